//! What is known of a user, and what an operator sets by hand.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{TIERS, on_each_database};
use crate::stripe::{customer, paying, subscription, updated};

#[tokio::test]
async fn a_tier_set_by_hand_holds_until_its_end_and_comes_before_stripes() {
    on_each_database(TIERS, async |app| {
        let body = json!({"tier": "enterprise", "reason": "conference", "ends_at": "2026-01-12T13:00:00Z"});
        let user = app.put("/v1/users/u", body).await.ok();
        assert_eq!(
            (&user["tier"], &user["tier_source"]),
            (
                &json!("enterprise"),
                &json!({"source": "manual", "reason": "conference", "set_at": "2026-01-12T12:00:00Z", "ends_at": "2026-01-12T13:00:00Z"})
            )
        );
        for event in paying("u", "price_pro") {
            app.apply(event).await;
        }
        assert_eq!(app.check("u").await["tier"], "enterprise");
        app.advance(TimeDelta::hours(1));
        assert_eq!((&app.user("u").await["tier"], &app.user("u").await["tier_source"]["source"]), (&json!("pro"), &json!("stripe")));
        app.put("/v1/users/u", json!({"tier": "free", "reason": "abuse"})).await.ok();
        app.restart().await;
        assert_eq!(app.check("u").await["tier"], "free");
        let cleared = app.put("/v1/users/u", json!({"tier": null, "reason": "a mistake"})).await.ok();
        assert_eq!(cleared["tier"], "pro");
    })
    .await;
}

#[tokio::test]
async fn an_unbound_customer_is_kept_and_counts_once_it_is_bound() {
    on_each_database(TIERS, async |app| {
        let event = app.apply(updated(1, subscription("cus_x", "active", "price_pro"))).await;
        assert_eq!(event["state"], "kept");
        assert_eq!(app.check("u").await["tier"], "free");
        let user = app.put("/v1/users/u", json!({"stripe_customer": "cus_x"})).await.ok();
        assert_eq!((&user["tier"], &user["stripe_customer"]), (&json!("pro"), &json!("cus_x")));
        assert_eq!(app.check("u").await["tier"], "pro");
        app.put("/v1/users/v", json!({"stripe_customer": "cus_x"})).await.problem(409, "customer_bound");
        assert_eq!(app.user("v").await["known"], json!(false));
        let unbound = app.put("/v1/users/u", json!({"stripe_customer": null})).await.ok();
        assert_eq!((&unbound["tier"], &unbound["stripe_customer"]), (&json!("free"), &Value::Null));
        assert_eq!(app.put("/v1/users/v", json!({"stripe_customer": "cus_x"})).await.ok()["tier"], "pro");
        // Another customer takes the place of the first.
        let other = app.put("/v1/users/v", json!({"stripe_customer": "cus_y"})).await.ok();
        assert_eq!((&other["tier"], &other["stripe_customer"]), (&json!("free"), &json!("cus_y")));
    })
    .await;
}

#[tokio::test]
async fn a_webhook_never_moves_a_binding_and_says_so() {
    on_each_database(TIERS, async |app| {
        app.apply(customer("customer.created", 0, "cus_x", Some("u"))).await;
        let event = app.apply(customer("customer.updated", 1, "cus_x", Some("v"))).await;
        assert_eq!(event["alerts"][0]["code"], "binding_conflict");
        assert_eq!(app.user("u").await["stripe_customer"], "cus_x");
        // Nor does a second customer take the user of the first.
        let mut second = subscription("cus_second", "active", "price_pro");
        second["metadata"]["user_id"] = json!("u");
        let event = app.apply(updated(2, second)).await;
        assert_eq!((&event["state"], &event["alerts"][0]["code"]), (&json!("kept"), &json!("binding_conflict")));
        assert_eq!((&app.user("u").await["stripe_customer"], &app.user("u").await["tier"]), (&json!("cus_x"), &json!("free")));
    })
    .await;
}

#[tokio::test]
async fn every_change_by_hand_is_in_the_audit_table() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u", json!({"tier": "pro", "reason": "beta"})).await.ok();
        app.put("/v1/users/u", json!({"tier": null, "stripe_customer": "cus_x", "reason": "over"})).await.ok();
        app.put("/v1/users/u", json!({"tier": "no-such", "reason": "x"})).await.problem(422, "invalid_field");
        let column = async |name: &str| app.column(&format!("SELECT {name} FROM audit ORDER BY seq")).await;
        let changes: Vec<Value> = column("change").await.iter().map(|change| serde_json::from_str(change).unwrap()).collect();
        assert_eq!((column("key_id").await, column("user_id").await), (vec!["environment".to_owned(); 2], vec!["u".to_owned(); 2]));
        assert_eq!(changes[0]["tier"], json!({"from": null, "to": {"tier": "pro", "ends_at": null}}));
        assert_eq!(changes[1]["stripe_customer"], json!({"from": null, "to": "cus_x"}));
        assert_eq!(column("reason").await[1], "over");
    })
    .await;
}

#[tokio::test]
async fn the_list_pages_in_order_and_filters_by_tier_and_action() {
    on_each_database(TIERS, async |app| {
        let records = (0..1200).map(|number| {
            let cost = if number % 400 == 7 { "0.10" } else { "0.01" };
            json!({"id": format!("r{number}"), "user_id": format!("u{number:04}"), "cost": cost})
        });
        let records: Vec<Value> = records.collect();
        for part in records.chunks(1000) {
            app.post("/v1/usage", Value::from(part.to_vec())).await.ok();
        }
        app.put("/v1/users/u1199", json!({"tier": "pro", "reason": "x"})).await.ok();
        let all = async |query: &str| {
            let (mut ids, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("/v1/users?{query}{cursor}")).await.ok();
                ids.extend(page["users"].as_array().unwrap().iter().map(|user| user["user_id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_cursor"].as_str() else { return ids };
                cursor = format!("&cursor={next}");
            }
        };
        let ids = all("limit=70").await;
        assert_eq!(ids.len(), 1200);
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(all("action=BLOCK&limit=1").await, ["u0007", "u0407", "u0807"]);
        assert_eq!(all("tier=pro").await, ["u1199"]);
        assert_eq!(all("tier=pro&action=BLOCK").await, Vec::<String>::new());
        for query in ["limit=0", "limit=1001", "limit=x", "action=block", "tier=gold", "cursor=%25", "colour=red"] {
            let answer = app.get(&format!("/v1/users?{query}")).await;
            let code = if query.starts_with("colour") { "unknown_field" } else { "invalid_field" };
            assert_eq!(answer.problem(422, code)["field"], query.split('=').next().unwrap(), "{query}");
        }
    })
    .await;
}

#[tokio::test]
async fn changes_that_make_no_sense_are_refused_by_field() {
    on_each_database(TIERS, async |app| {
        let check = async |body: Value, code: &str, field: &str| {
            let problem = app.put("/v1/users/u", &body).await.problem(422, code);
            assert_eq!(problem.get("field").and_then(Value::as_str).unwrap_or_default(), field, "{body}");
        };
        check(json!({}), "missing_field", "tier").await;
        check(json!({"reason": "x"}), "missing_field", "tier").await;
        check(json!({"tier": "pro"}), "missing_field", "reason").await;
        check(json!({"tier": null}), "missing_field", "reason").await;
        check(json!({"tier": "prof", "reason": "x"}), "invalid_field", "tier").await;
        check(json!({"tier": "pro", "reason": ""}), "invalid_field", "reason").await;
        check(json!({"tier": "pro", "reason": "x", "ends_at": "2026-01-12T12:00:00Z"}), "invalid_field", "ends_at").await;
        check(json!({"tier": null, "reason": "x", "ends_at": "2027-01-12T12:00:00Z"}), "invalid_field", "ends_at").await;
        check(json!({"stripe_customer": ""}), "invalid_field", "stripe_customer").await;
        check(json!({"tire": "pro"}), "unknown_field", "tire").await;
        assert_eq!(app.user("u").await["known"], json!(false));
    })
    .await;
}

#[tokio::test]
async fn the_catalogue_is_shown_as_it_is_written() {
    let tiers = format!("global: {{ budgets: {{ daily: 500 }}, policy: strict, thresholds: {{ warn: 82.5 }} }}\n{TIERS}");
    on_each_database(&tiers, async |app| {
        let shown = app.get("/v1/tiers").await.ok();
        assert_eq!(shown["default_tier"], "free");
        let names: Vec<&str> = shown["tiers"].as_array().unwrap().iter().map(|tier| tier["tier"].as_str().unwrap()).collect();
        assert_eq!(names, ["free", "pro", "enterprise"]);
        assert_eq!(shown["tiers"][1]["budgets"], json!({"daily": 1, "weekly": 5, "monthly": 20}));
        assert_eq!(shown["tiers"][1]["thresholds"], json!({"warn": 90, "degrade": 100, "block": null}));
        assert_eq!(shown["tiers"][1]["degrade_to"], json!({"models": {"gpt-4o": "gpt-4o-mini"}, "default": "gpt-4o-mini"}));
        assert_eq!(shown["global"], json!({"budgets": {"daily": 500}, "thresholds": {"warn": 82.50, "degrade": null, "block": 100}}));
    })
    .await;
}
