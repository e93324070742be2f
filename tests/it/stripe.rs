//! Plays Stripe: events as Stripe would write them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// A second in 2026 after which events are said to have happened.
pub const T: i64 = 1_767_225_600;

fn event_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("evt_test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn event(kind: &str, created: i64, object: Value) -> Value {
    json!({
        "id": event_id(), "object": "event", "api_version": "2026-03-25.dahlia", "created": T + created, "type": kind,
        "livemode": false, "pending_webhooks": 1, "request": {"id": null, "idempotency_key": null}, "data": {"object": object},
    })
}

pub fn customer(kind: &str, created: i64, customer: &str, user: Option<&str>) -> Value {
    let metadata = user.map_or(json!({}), |user| json!({"user_id": user}));
    event(kind, created, json!({"id": customer, "object": "customer", "metadata": metadata}))
}

/// A subscription object of one price.
pub fn subscription(customer: &str, status: &str, price: &str) -> Value {
    json!({
        "id": format!("sub_of_{customer}"), "object": "subscription", "customer": customer, "status": status, "metadata": {},
        "cancel_at": null, "cancel_at_period_end": false, "pause_collection": null,
        "items": {"object": "list", "has_more": false, "data": [{
            "id": "si_1", "object": "subscription_item", "quantity": 1,
            "current_period_start": T, "current_period_end": T + 31 * 86_400,
            "price": {"id": price, "object": "price", "product": "prod_of_the_tests", "lookup_key": null, "metadata": {}},
        }]},
    })
}

pub fn updated(created: i64, subscription: Value) -> Value {
    event("customer.subscription.updated", created, subscription)
}

/// Customer `cus_{user}` is `user`, and pays for `price`.
pub fn paying(user: &str, price: &str) -> [Value; 2] {
    let customer_id = format!("cus_{user}");
    [customer("customer.created", 0, &customer_id, Some(user)), updated(1, subscription(&customer_id, "active", price))]
}
