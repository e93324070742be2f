//! A subscription as Stripe writes it, in an event or in an answer of its API: the same object, of any API version.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::read::{flag, metadata, named, seconds, text};
use crate::domain::subscription::{Item, Occasion, Snapshot, Status};

/// What a subscription object shows, as it is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub status: Option<String>,
    pub items: Vec<Item>,
    pub period_end: Option<DateTime<Utc>>,
    pub cancel_at_period_end: bool,
    pub cancel_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub trial_end: Option<DateTime<Utc>>,
    pub pause_collection: bool,
    pub pending_update: bool,
    /// Stripe did not send all items.
    pub has_more_items: bool,
}

impl Shown {
    pub fn status(&self) -> Status {
        Status::from(self.status.clone().unwrap_or_default())
    }
}

pub fn shown(object: &Map<String, Value>) -> Shown {
    let items = items(object);
    Shown {
        status: text(object, "status"),
        period_end: seconds(object, "current_period_end").or_else(|| items.iter().find_map(|item| item.period_end)),
        items,
        cancel_at_period_end: flag(object, "cancel_at_period_end"),
        cancel_at: seconds(object, "cancel_at"),
        ended_at: seconds(object, "ended_at"),
        trial_end: seconds(object, "trial_end"),
        pause_collection: object.get("pause_collection").is_some_and(Value::is_object),
        pending_update: object.get("pending_update").is_some_and(Value::is_object),
        has_more_items: object.get("items").and_then(Value::as_object).is_some_and(|items| flag(items, "has_more")),
    }
}

/// The subscription at `said_at`, when `told` was told of it. The status is the caller's: an event's kind may know better.
pub fn snapshot(object: &Map<String, Value>, shown: &Shown, told: (Status, Occasion), said_at: DateTime<Utc>) -> Snapshot {
    // Before 2025-03-31.basil the period stands on the subscription, since then on its items.
    let (start, end) = (seconds(object, "current_period_start"), seconds(object, "current_period_end"));
    let items = shown.items.iter().map(|item| Item {
        period_start: item.period_start.or(start),
        period_end: item.period_end.or(end),
        ..item.clone()
    });
    Snapshot {
        status: told.0,
        occasion: told.1,
        said_at,
        items: items.collect(),
        cancel_at: shown.cancel_at,
        cancel_at_period_end: shown.cancel_at_period_end,
        collection_paused: shown.pause_collection,
        has_more_items: shown.has_more_items,
    }
}

fn items(object: &Map<String, Value>) -> Vec<Item> {
    let listed = object.get("items").and_then(|items| items.get("data")).and_then(Value::as_array);
    match listed {
        Some(items) => items.iter().filter_map(Value::as_object).map(item).collect(),
        // The oldest API versions have one plan, on the subscription itself.
        None if object.get("plan").is_some_and(|plan| !plan.is_null()) => vec![item(object)],
        None => Vec::new(),
    }
}

fn item(line: &Map<String, Value>) -> Item {
    let price = line.get("price").filter(|price| !price.is_null()).or_else(|| line.get("plan"));
    let fields = price.and_then(Value::as_object);
    Item {
        price: price.and_then(named),
        lookup_key: fields.and_then(|price| text(price, "lookup_key")),
        metadata_tier: fields.and_then(|price| metadata(price, "tier")),
        product: fields.and_then(|price| price.get("product")).and_then(named),
        quantity: line.get("quantity").and_then(Value::as_u64),
        period_start: seconds(line, "current_period_start"),
        period_end: seconds(line, "current_period_end"),
    }
}
