//! The inbox.

use serde_json::{Value, json};

use crate::app::{TIERS, on_each_database};
use crate::stripe::{customer, event, subscription, updated};

#[tokio::test]
async fn the_inbox_lists_the_latest_first_and_filters() {
    on_each_database(TIERS, async |app| {
        for number in 0..5 {
            app.apply(customer("customer.updated", number, &format!("cus_{number}"), None)).await;
        }
        app.apply(event("ping", 9, json!(null))).await;
        let ids = async |query: &str| {
            let (mut customers, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("/v1/events?{query}{cursor}")).await.ok();
                customers.extend(page["events"].as_array().unwrap().iter().map(|event| event["customer"].clone()));
                let Some(next) = page["next_cursor"].as_str() else { return Value::from(customers) };
                cursor = format!("&cursor={next}");
            }
        };
        assert_eq!(ids("limit=2").await, json!([null, "cus_4", "cus_3", "cus_2", "cus_1", "cus_0"]));
        assert_eq!(ids("state=ignored").await, json!([null]));
        assert_eq!(ids("type=customer.updated&customer=cus_2").await, json!(["cus_2"]));
        assert_eq!(app.get("/v1/events?state=lost").await.problem(422, "invalid_field")["field"], "state");
        app.get("/v1/events/evt_none").await.problem(404, "event_not_found");
        app.post("/v1/events/evt_none/replay", "").await.problem(404, "event_not_found");
    })
    .await;
}

#[tokio::test]
async fn a_replay_applies_an_event_by_the_catalogue_of_today_and_revives_nothing() {
    on_each_database(TIERS, async |app| {
        app.apply(customer("customer.created", 0, "cus_u", Some("u"))).await;
        let unmapped = app.apply(updated(1, subscription("cus_u", "active", "price_new"))).await;
        assert_eq!(unmapped["alerts"][0]["code"], "unmapped_price");
        app.restart_with(&TIERS.replace("prices: [price_pro]", "prices: [price_pro, price_new]")).await;
        let id = unmapped["event_id"].as_str().unwrap();
        let replayed = app.post(&format!("/v1/events/{id}/replay"), "").await.ok();
        assert_eq!((&replayed["alerts"], &replayed["state"]), (&json!([]), &json!("applied")));
        assert_eq!(app.check("u").await["tier"], "pro");
        app.apply(event("customer.subscription.deleted", 5, subscription("cus_u", "canceled", "price_new"))).await;
        let replayed = app.post(&format!("/v1/events/{id}/replay"), "").await.ok();
        assert_eq!((&replayed["state"], &app.check("u").await["tier"]), (&json!("stale"), &json!("free")));
    })
    .await;
}

#[tokio::test]
async fn a_replay_binds_what_a_conflict_kept_apart_and_the_next_check_sees_it() {
    on_each_database(TIERS, async |app| {
        app.apply(customer("customer.created", 0, "cus_first", Some("u"))).await;
        let mut second = subscription("cus_second", "active", "price_pro");
        second["metadata"]["user_id"] = json!("u");
        let event = app.apply(updated(1, second)).await;
        assert_eq!(event["alerts"][0]["code"], "binding_conflict");
        app.put("/v1/users/u", json!({"stripe_customer": null})).await.ok();
        assert_eq!(app.check("u").await["tier"], "free");
        let id = event["event_id"].as_str().unwrap();
        let replayed = app.post(&format!("/v1/events/{id}/replay"), "").await.ok();
        assert_eq!((&replayed["state"], &replayed["alerts"]), (&json!("applied"), &json!([])));
        assert_eq!(app.check("u").await["tier"], "pro");
    })
    .await;
}
