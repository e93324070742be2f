//! What Stripe is asked to tell us, and in which words.

/// The API version of our requests and of the events that are registered. Other versions are understood too; one that does
/// not move by itself is easier to reason about.
pub const API_VERSION: &str = "2026-03-25.dahlia";

/// Where events are taken, below the service's own URL.
pub const WEBHOOK_PATH: &str = "/webhooks/stripe";

/// Every type that we act on or tell the operator of, and no other: `*` would bring many that nobody reads.
pub const EVENTS: [&str; 35] = [
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.refunded",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "customer.created",
    "customer.deleted",
    "customer.updated",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "entitlements.active_entitlement_summary.updated",
    "invoice.finalization_failed",
    "invoice.marked_uncollectible",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.voided",
    "price.created",
    "price.deleted",
    "price.updated",
    "product.deleted",
    "product.updated",
    "subscription_schedule.aborted",
    "subscription_schedule.canceled",
    "subscription_schedule.completed",
    "subscription_schedule.released",
    "subscription_schedule.updated",
];

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::stripe::event::{Content, Event};

    #[test]
    fn nothing_is_registered_that_would_be_ignored() {
        for kind in EVENTS {
            let object = r#"{"id":"x_1","customer":"cus_1","subscription":"sub_1","status":"active"}"#;
            let body = format!(r#"{{"id":"evt_1","type":"{kind}","created":5,"data":{{"object":{object}}}}}"#);
            let event = Event::from_json(body.as_bytes(), DateTime::default()).unwrap_or_else(|error| panic!("{error}"));
            assert!(!matches!(event.content, Content::Ignored | Content::Unreadable(_)), "{kind}: {:?}", event.content);
        }
    }
}
