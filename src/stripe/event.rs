//! Bytes → [`Event`], reading only the fields that we act on. Payloads of every API version come here, so whatever we do
//! not need may be missing, of another type, or new.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::read::{NotAnId, id, metadata, reference, text, time};
use super::subscription::{Shown, shown, snapshot};
use crate::domain::subscription::{Notice, Occasion, Status};

/// Why a body is not an event. The sentence says what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a Stripe event: {0}")]
pub struct NotAnEvent(pub &'static str);

impl From<NotAnId> for NotAnEvent {
    fn from(_: NotAnId) -> Self {
        Self("it names a customer or subscription by what is not an id")
    }
}

/// An event, as far as we act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub kind: String,
    /// When Stripe says it happened, in whole seconds; where the envelope has no time, when it was received.
    pub created: DateTime<Utc>,
    pub livemode: bool,
    /// The connected account that it belongs to; `None` is our own.
    pub account: Option<String>,
    pub api_version: Option<String>,
    pub facts: Facts,
    pub content: Content,
}

/// What the object of the event says, for people and for the inbox. Times that no clock can show are the last one that can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub object: Option<String>,
    pub object_id: Option<String>,
    pub customer: Option<String>,
    pub subscription: Option<String>,
    /// Whom the object names as its user: metadata `user_id`, or a Checkout session's `client_reference_id`.
    pub user_hint: Option<String>,
    pub shown: Option<Shown>,
}

/// What an event is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It says something of this customer.
    Notice {
        customer: String,
        notice: Notice,
    },
    /// It may tell which user a customer is.
    Mapping {
        customer: String,
    },
    /// Something of this customer changed elsewhere; whoever can ask Stripe should.
    Nudge {
        customer: Option<String>,
    },
    /// Prices or products changed.
    Catalogue {
        /// A price has other names than before, by which a tier may be sold: whoever has it may have another tier.
        renamed: bool,
    },
    /// Money went back, or is disputed.
    Alert,
    /// Of a kind that we act on, but what it needs is not in it.
    Unreadable(&'static str),
    Ignored,
}

impl Event {
    /// Reads a body whose signature was verified.
    pub fn from_json(body: &[u8], received_at: DateTime<Utc>) -> Result<Self, NotAnEvent> {
        let value: Value = serde_json::from_slice(body).map_err(|_| NotAnEvent("it is not JSON"))?;
        let envelope = value.as_object().ok_or(NotAnEvent("it is not a JSON object"))?;
        let thin = match envelope.get("object").map(Value::as_str) {
            Some(Some("event")) | None => false,
            Some(Some("v2.core.event")) => true,
            Some(_) => return Err(NotAnEvent("`object` is not \"event\"")),
        };
        let id = envelope.get("id").and_then(id).ok_or(NotAnEvent("`id` is missing, or is not an id of up to 255 bytes"))?;
        let kind = text(envelope, "type").ok_or(NotAnEvent("`type` is missing"))?;
        let nothing = Map::new();
        let (object, before) = match envelope.get("data") {
            Some(Value::Object(data)) => {
                let object = data.get("object").ok_or(NotAnEvent("`data.object` is missing"))?;
                (object, data.get("previous_attributes").and_then(Value::as_object).unwrap_or(&nothing))
            }
            _ if thin => (&Value::Null, &nothing),
            _ => return Err(NotAnEvent("`data` is missing")),
        };
        let created = envelope.get("created").and_then(|created| time(created).or_else(|| created.as_str()?.parse().ok()));
        let created = created.unwrap_or(received_at);
        let (facts, content) = if thin { read_thin(envelope) } else { read_object(&kind, object, before, created)? };
        Ok(Self {
            livemode: envelope.get("livemode").and_then(Value::as_bool).unwrap_or(false),
            account: text(envelope, "account"),
            api_version: text(envelope, "api_version"),
            id,
            kind,
            created,
            facts,
            content,
        })
    }
}

/// A thin event carries no object; where it names a subscription or a customer it is a nudge.
fn read_thin(envelope: &Map<String, Value>) -> (Facts, Content) {
    let Some(related) = envelope.get("related_object").and_then(Value::as_object) else {
        return (Facts::default(), Content::Ignored);
    };
    let (object, object_id) = (text(related, "type"), related.get("id").and_then(id));
    let mut facts = Facts { object, object_id: object_id.clone(), ..Facts::default() };
    let content = match facts.object.as_deref() {
        Some("subscription") => {
            facts.subscription = object_id;
            Content::Nudge { customer: None }
        }
        Some("customer") => {
            facts.customer = object_id.clone();
            Content::Nudge { customer: object_id }
        }
        _ => Content::Ignored,
    };
    (facts, content)
}

/// Which kinds of object we act on. The rest is taken, whatever its shape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Subscription,
    Checkout,
    Customer,
    Invoice,
    Nudge,
    Catalogue,
    Alert,
    Other,
}

fn family(kind: &str) -> Family {
    match kind {
        "customer.created" | "customer.updated" | "customer.deleted" => Family::Customer,
        "charge.refunded" => Family::Alert,
        "entitlements.active_entitlement_summary.updated" => Family::Nudge,
        _ if kind.starts_with("customer.subscription.") => Family::Subscription,
        _ if kind.starts_with("checkout.session.") => Family::Checkout,
        _ if kind.starts_with("invoice.") => Family::Invoice,
        _ if kind.starts_with("subscription_schedule.") => Family::Nudge,
        _ if ["price.", "product.", "plan."].iter().any(|start| kind.starts_with(start)) => Family::Catalogue,
        _ if kind.starts_with("charge.dispute.") => Family::Alert,
        _ => Family::Other,
    }
}

/// Whether what a price is known by, beside its id, is among what changed: of metadata Stripe shows the keys that did.
fn is_renamed(before: &Map<String, Value>) -> bool {
    let of_tier = |metadata: &Value| metadata.as_object().is_none_or(|metadata| metadata.contains_key("tier"));
    before.contains_key("lookup_key") || before.get("metadata").is_some_and(of_tier)
}

/// `before` is what `object` had in the place of what changed.
fn read_object(kind: &str, object: &Value, before: &Map<String, Value>, said_at: DateTime<Utc>) -> Result<(Facts, Content), NotAnEvent> {
    let family = family(kind);
    let Some(object) = object.as_object() else {
        if family == Family::Other {
            return Ok((Facts::default(), Content::Ignored));
        }
        return Err(NotAnEvent("`data.object` is not an object"));
    };
    let mut facts = Facts { object: text(object, "object"), object_id: object.get("id").and_then(id), ..Facts::default() };
    if family == Family::Other {
        return Ok((facts, Content::Ignored));
    }
    // The id of a price or plan is an arbitrary text, and leads nowhere.
    let leads_somewhere = !matches!(family, Family::Catalogue | Family::Alert);
    if leads_somewhere && object.get("id").is_some_and(Value::is_string) && facts.object_id.is_none() {
        return Err(NotAnEvent("`data.object.id` is not an id of up to 255 bytes"));
    }
    facts.customer = reference(object, "customer")?;
    let content = match family {
        Family::Subscription => {
            facts.subscription.clone_from(&facts.object_id);
            facts.user_hint = metadata(object, "user_id");
            let shown = shown(object);
            let (status, occasion) = told(kind, &shown);
            let snapshot = snapshot(object, &shown, (status, occasion), said_at);
            facts.shown = Some(shown);
            match (facts.customer.clone(), facts.subscription.clone()) {
                (Some(customer), Some(subscription)) => {
                    Content::Notice { customer, notice: Notice::Subscription { subscription, snapshot } }
                }
                _ => Content::Unreadable("the subscription names no customer"),
            }
        }
        Family::Checkout => {
            facts.subscription = reference(object, "subscription")?;
            facts.user_hint = text(object, "client_reference_id");
            facts.customer.clone().map_or(Content::Ignored, |customer| Content::Mapping { customer })
        }
        Family::Customer => {
            facts.customer.clone_from(&facts.object_id);
            facts.user_hint = metadata(object, "user_id");
            match facts.customer.clone() {
                Some(customer) if kind == "customer.deleted" => Content::Notice { customer, notice: Notice::Deleted },
                Some(customer) => Content::Mapping { customer },
                None => Content::Unreadable("the customer has no id"),
            }
        }
        Family::Invoice => {
            facts.subscription = invoice_subscription(object)?;
            match (facts.customer.clone(), facts.subscription.clone()) {
                (Some(customer), Some(subscription)) if kind == "invoice.paid" => {
                    Content::Notice { customer, notice: Notice::InvoicePaid { subscription, said_at } }
                }
                (customer, Some(_)) => Content::Nudge { customer },
                (_, None) => Content::Ignored,
            }
        }
        Family::Nudge => {
            facts.subscription = reference(object, "subscription")?.or(reference(object, "released_subscription")?);
            Content::Nudge { customer: facts.customer.clone() }
        }
        Family::Catalogue => Content::Catalogue { renamed: kind == "price.updated" && is_renamed(before) },
        Family::Alert => Content::Alert,
        Family::Other => Content::Ignored,
    };
    Ok((facts, content))
}

/// The status that an event tells, and on which occasion.
fn told(kind: &str, shown: &Shown) -> (Status, Occasion) {
    let written = shown.status();
    match kind {
        // Old API versions delete a subscription while its status still reads `active`.
        "customer.subscription.deleted" if written != Status::IncompleteExpired => (Status::Canceled, Occasion::Change),
        "customer.subscription.created" => (written, Occasion::Creation),
        "customer.subscription.trial_will_end" => (written, Occasion::Announcement),
        _ => (written, Occasion::Change),
    }
}

/// At `parent.subscription_details.subscription` since basil, at `subscription` before.
fn invoice_subscription(object: &Map<String, Value>) -> Result<Option<String>, NotAnEvent> {
    let details = object.get("parent").and_then(|parent| parent.get("subscription_details")).and_then(Value::as_object);
    let since_basil = details.map(|details| reference(details, "subscription")).transpose()?.flatten();
    Ok(since_basil.or(reference(object, "subscription")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::subscription::Item;

    fn content(body: &str) -> Result<Content, NotAnEvent> {
        Event::from_json(body.as_bytes(), DateTime::default()).map(|event| event.content)
    }

    #[test]
    fn a_deleted_subscription_is_canceled_whatever_its_status_reads() {
        let body = r#"{"id":"evt_1","type":"customer.subscription.deleted","created":5,
            "data":{"object":{"id":"sub_1","customer":{"id":"cus_1"},"status":"active"}}}"#;
        let Ok(Content::Notice { customer, notice: Notice::Subscription { snapshot, .. } }) = content(body) else {
            panic!("a notice");
        };
        assert_eq!((customer.as_str(), snapshot.status), ("cus_1", Status::Canceled));
    }

    #[test]
    fn a_plan_on_the_subscription_itself_is_its_item() {
        let body = r#"{"id":"evt_1","type":"customer.subscription.updated","created":5,"data":{"object":
            {"id":"sub_1","customer":"cus_1","status":"active","quantity":2,"plan":{"id":"gold","product":"prod_1"}}}}"#;
        let Ok(Content::Notice { notice: Notice::Subscription { snapshot, .. }, .. }) = content(body) else {
            panic!("a notice");
        };
        let expected = Item { price: Some("gold".to_owned()), product: Some("prod_1".to_owned()), quantity: Some(2), ..Item::default() };
        assert_eq!(snapshot.items, [expected]);
    }

    #[test]
    fn a_thin_event_that_names_a_customer_is_a_nudge() {
        let thin = |related: &str| {
            content(&format!(
                r#"{{"id":"evt_1","object":"v2.core.event","type":"v1.x","created":"2026-01-05T00:00:00Z","related_object":{related}}}"#
            ))
        };
        assert_eq!(thin(r#"{"id":"cus_1","type":"customer"}"#), Ok(Content::Nudge { customer: Some("cus_1".to_owned()) }));
        assert_eq!(thin(r#"{"id":"sub_1","type":"subscription"}"#), Ok(Content::Nudge { customer: None }));
        assert_eq!(thin("null"), Ok(Content::Ignored));
    }

    #[test]
    fn odd_types_in_fields_that_we_read_are_taken_as_absent() {
        let body = r#"{"id":"evt_1","type":"customer.subscription.updated","created":"yesterday","livemode":1,"data":{"object":
            {"id":"sub_1","customer":"cus_1","status":7,"items":{"data":[1,null,{"price":9,"quantity":-1}]},"cancel_at":"x","metadata":[]}}}"#;
        let Ok(Content::Notice { notice: Notice::Subscription { snapshot, .. }, .. }) = content(body) else {
            panic!("a notice");
        };
        assert_eq!(snapshot.status, Status::Unknown(String::new()));
        assert_eq!(snapshot.items, [Item::default()]);
    }
}
