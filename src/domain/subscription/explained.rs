//! Why a customer has the tier that he has: each of his subscriptions, and what it is worth.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Customer, Grant, Item, Snapshot};
use crate::domain::catalogue::{Catalogue, ItemNames, Tier};

/// Which name of an item a tier is sold as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    Price,
    LookupKey,
    /// The price's own metadata `tier`.
    Metadata,
    Product,
    /// No tier is sold as any of its items: it keeps what it bought when last we understood it.
    Kept,
}

/// One subscription, and what it is worth at one moment.
#[derive(Clone, Debug)]
pub struct Explained<'a> {
    pub subscription: &'a str,
    /// Whether this is the one that decides among the customer's.
    pub decides: bool,
    pub grant: Grant<'a>,
    /// What it buys, whether it is paid or not.
    pub buys: Option<(&'a Tier, NamedBy)>,
    /// The item that buys it; where none does, the first.
    pub item: Option<&'a Item>,
    pub said_at: DateTime<Utc>,
    pub paid_at: Option<DateTime<Utc>>,
    pub past_due_since: Option<DateTime<Utc>>,
    pub collection_paused: bool,
}

impl Customer {
    /// Stripe says that there is no such customer any more.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Every subscription that we know; the one that decides comes first.
    pub fn explained<'a>(&'a self, catalogue: &'a Catalogue, now: DateTime<Utc>) -> Vec<Explained<'a>> {
        let one = |(id, known): (&'a String, &'a super::Subscription)| {
            let latest = known.latest.as_ref()?;
            let best = latest.best_item(catalogue);
            let named = best.and_then(|(item, tier)| Some((tier, named_by(item, catalogue)?)));
            let kept = || {
                let kept = known.worth.as_ref().and_then(|worth| catalogue.tier(worth.tier.as_deref()?));
                kept.filter(|_| !latest.items.is_empty()).map(|tier| (tier, NamedBy::Kept))
            };
            Some(Explained {
                subscription: id,
                decides: false,
                grant: self.grant_of(known, catalogue, now)?,
                buys: named.or_else(kept),
                item: item_of(latest, best),
                said_at: latest.said_at,
                paid_at: known.paid_at,
                past_due_since: known.past_due_since,
                collection_paused: latest.collection_paused,
            })
        };
        let mut explained: Vec<Explained<'a>> = self.subscriptions.iter().filter_map(one).collect();
        let first = explained.iter().enumerate().max_by_key(|(_, subscription)| subscription.grant.by_worth()).map(|(place, _)| place);
        if let Some(first) = first {
            explained[first].decides = true;
            explained[..=first].rotate_right(1);
        }
        explained
    }
}

fn item_of<'a>(latest: &'a Snapshot, best: Option<(&'a Item, &'a Tier)>) -> Option<&'a Item> {
    best.map(|(item, _)| item).or(latest.items.first())
}

/// In the order in which the catalogue asks.
fn named_by(item: &Item, catalogue: &Catalogue) -> Option<NamedBy> {
    let names = item.names();
    let nothing = ItemNames::default();
    let one_by_one = [
        (NamedBy::Price, ItemNames { price: names.price, ..nothing }),
        (NamedBy::LookupKey, ItemNames { lookup_key: names.lookup_key, ..nothing }),
        (NamedBy::Metadata, ItemNames { metadata_tier: names.metadata_tier, ..nothing }),
        (NamedBy::Product, ItemNames { product: names.product, ..nothing }),
    ];
    one_by_one.into_iter().find(|(_, names)| catalogue.tier_of(*names).is_some()).map(|(by, _)| by)
}
