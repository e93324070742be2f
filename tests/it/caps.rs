//! A user's own caps: below what his tier allows, and seen by the next check.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use spendgate::config::Config;

use crate::app::{Database, TIERS, TestApp, on_each_database};
use crate::stripe::paying;

/// The budgets of an answer that come from there.
fn from(answer: &Value, source: &str) -> Vec<Value> {
    answer["budgets"].as_array().unwrap().iter().filter(|budget| budget["source"] == source).cloned().collect()
}

fn hold(id: &str, user: &str, cost: &str) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost})
}

async fn set(app: &TestApp, user: &str, caps: Value) -> Value {
    app.put(&format!("/v1/users/{user}/caps"), caps).await.ok()
}

#[tokio::test]
async fn a_cap_below_the_tier_blocks_says_whose_it_is_and_sells_nothing() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
        app.spend("a", "u", "0.40").await;
        assert_eq!(app.check("u").await["action"], "ALLOW");
        let told = set(app, "u", json!({"daily": "0.5", "monthly": 10})).await;
        assert_eq!((&told["user_id"], &told["caps"]), (&json!("u"), &json!({"daily": 0.5, "monthly": 10})));
        assert_eq!(told["budgets"][0]["remaining"], 0.1);
        let warned = app.check("u").await;
        assert_eq!(
            (&warned["action"], &warned["reason"], &warned["binding"]),
            (&json!("WARN"), &json!("warn_threshold"), &json!({"scope": "user", "period": "daily", "source": "cap"}))
        );
        let daily = json!({"scope": "user", "period": "daily", "source": "cap", "limit": 0.5, "spent": 0.4, "held": 0, "remaining": 0.1,
            "used_pct": 80.0, "resets_at": "2026-01-13T00:00:00Z"});
        assert_eq!((from(&warned, "cap").len(), &from(&warned, "cap")[0], from(&warned, "tier").len()), (2, &daily, 3));
        let asked = app.get("/v1/users/u/enforcement?estimated_cost=0.11").await.ok();
        assert_eq!(
            asked["message"],
            "The user's own daily cap of $0.50 has $0.10 left, and this request needs $0.11; it resets at 2026-01-13T00:00:00Z."
        );
        assert_eq!(app.post("/v1/holds", hold("h", "u", "0.11")).await.ok()["reason"], "cap_reached");
        assert_eq!(app.post("/v1/holds", hold("h", "u", "0.1")).await.ok()["hold"]["amount"], 0.1);
        app.post("/v1/holds/h/capture", json!({"cost": "0.1"})).await.ok();
        app.restart().await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["action"], &blocked["reason"]), (&json!("BLOCK"), &json!("cap_reached")));
        assert_eq!(blocked["message"], "The user's own daily cap of $0.50 is used up; it resets at 2026-01-13T00:00:00Z.");
        assert_eq!(blocked["retry_at"], "2026-01-13T00:00:00Z");
        for way in ["upgrade_url", "upgrade", "contact_url"] {
            assert_eq!(blocked[way], Value::Null, "{way}");
        }
        // The user raises it, or lifts it: the very next check knows.
        set(app, "u", json!({"daily": 0.7})).await;
        assert_eq!(app.check("u").await["action"], "ALLOW");
        assert_eq!(app.get("/v1/users/u/caps").await.ok()["caps"], json!({"daily": 0.7}));
        set(app, "u", json!({})).await;
        assert_eq!(from(&app.check("u").await, "cap"), Vec::<Value>::new());
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn a_cap_of_nothing_stops_all_spending_and_one_above_the_tier_stops_none() {
    on_each_database(TIERS, async |app| {
        set(app, "u", json!({"total": 0})).await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["action"], &blocked["reason"]), (&json!("BLOCK"), &json!("cap_reached")));
        assert_eq!((&blocked["retry_at"], &app.user("u").await["action"]), (&Value::Null, &json!("BLOCK")));
        // What was spent all the same is booked.
        app.spend("a", "u", "0.01").await;
        assert_eq!(app.user("u").await["lifetime"]["spent"], 0.01);
        set(app, "u", json!({"daily": 5})).await;
        assert_eq!(app.check("u").await["action"], "ALLOW");
        app.spend("b", "u", "0.09").await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &blocked["binding"]["source"]), (&json!("budget_exhausted"), &json!("tier")));
        assert!(blocked["upgrade_url"].is_string());
        // Where both are full until the same moment, to pay more would not help.
        set(app, "u", json!({"daily": "0.1"})).await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &blocked["upgrade_url"]), (&json!("cap_reached"), &Value::Null));
    })
    .await;
}

#[tokio::test]
async fn a_cap_counts_the_users_own_spend_also_where_the_tiers_budgets_are_the_accounts() {
    let tiers = "default_tier: team\ntiers:\n  team: { rank: 0, budgets: { monthly: 1.00 }, policy: strict, scope: account }\n";
    on_each_database(tiers, async |app| {
        for user in ["u", "v"] {
            app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
        }
        set(app, "u", json!({"daily": "0.2", "billing": "0.3"})).await;
        app.spend("a", "v", "0.5").await;
        app.spend("b", "u", "0.2").await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &blocked["binding"]["scope"]), (&json!("cap_reached"), &json!("user")));
        assert_eq!((&from(&blocked, "cap")[0]["spent"], &from(&blocked, "tier")[0]["spent"]), (&json!(0.2), &json!(0.7)));
        assert_eq!(app.check("v").await["action"], "ALLOW");
        // The next day, with the account's month going on: his own window is another one, in memory as well.
        app.advance(TimeDelta::days(1));
        for _ in 0..2 {
            let fresh = app.check("u").await;
            assert_eq!((&fresh["action"], &from(&fresh, "cap")[0]["spent"]), (&json!("ALLOW"), &json!(0)));
            assert_eq!(from(&fresh, "cap")[1]["remaining"], 0.1, "no tier has a budget of the billing period, and his cap has one");
        }
        assert_eq!(app.post("/v1/holds", hold("h", "u", "0.11")).await.ok()["binding"]["period"], "billing");
    })
    .await;
}

#[tokio::test]
async fn holds_at_once_never_pass_a_cap() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u", json!({"tier": "enterprise", "reason": "test"})).await.ok();
        set(app, "u", json!({"daily": "0.07"})).await;
        let app = &*app;
        let asks = (0..40).map(|number| async move { app.post("/v1/holds", hold(&format!("h{number}"), "u", "0.01")).await.ok() });
        let admitted = join_all(asks).await.iter().filter(|answer| answer["hold"].is_object()).count();
        assert_eq!(admitted, 7);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_that_one_node_sets_the_very_next_check_on_every_node_sees() {
    let one = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    let other = one.node(|config| config).await;
    for round in 1..=5 {
        let (writes, reads) = if round % 2 == 0 { (&one, &*other) } else { (&*other, &one) };
        assert_eq!(reads.check("u").await["action"], "ALLOW");
        set(writes, "u", json!({"daily": 0})).await;
        assert_eq!(
            (reads.check("u").await["reason"].clone(), writes.check("u").await["reason"].clone()),
            ("cap_reached".into(), "cap_reached".into())
        );
        assert_eq!(reads.post("/v1/holds", hold(&format!("h{round}"), "u", "0.01")).await.ok()["hold"], Value::Null);
        set(writes, "u", json!({})).await;
    }
}

#[tokio::test]
async fn caps_are_audited_and_bad_ones_are_refused_by_field() {
    on_each_database(TIERS, async |app| {
        let check = async |body: Value, code: &str, field: &str| {
            assert_eq!(app.put("/v1/users/u/caps", &body).await.problem(422, code)["field"], field, "{body}");
        };
        check(json!({"daily": -1}), "invalid_field", "daily").await;
        check(json!({"monthly": "a lot"}), "invalid_field", "monthly").await;
        check(json!({"hourly": 1}), "unknown_field", "hourly").await;
        app.put("/v1/users/u/caps", json!([])).await.problem(400, "malformed_json");
        app.put("/v1/users/u/caps?now=yes", json!({})).await.problem(422, "unknown_field");
        assert_eq!(app.user("u").await["known"], json!(false));
        set(app, "u", json!({"daily": "0.5"})).await;
        set(app, "u", json!({"weekly": 2, "daily": null})).await;
        let changes: Vec<Value> =
            app.column("SELECT change FROM audit ORDER BY seq").await.iter().map(|change| serde_json::from_str(change).unwrap()).collect();
        let expected =
            [json!({"caps": {"from": {}, "to": {"daily": "0.5"}}}), json!({"caps": {"from": {"daily": "0.5"}, "to": {"weekly": "2"}}})];
        assert_eq!(changes, expected);
    })
    .await;
}

#[tokio::test]
async fn of_budgets_that_block_until_the_same_moment_one_that_paying_does_not_lift_is_named_whatever_its_period() {
    let tiers = format!("global: {{ budgets: {{ monthly: 1 }}, policy: strict }}\n{TIERS}");
    on_each_database(&tiers, async |app| {
        // A Sunday: the day and the week end with it.
        app.set_clock("2026-01-18T12:00:00Z");
        set(app, "u", json!({"weekly": "0.1"})).await;
        app.spend("a", "u", "0.1").await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &blocked["binding"]["source"]), (&json!("cap_reached"), &json!("cap")), "{blocked}");
        assert_eq!((&blocked["retry_at"], &blocked["upgrade_url"]), (&json!("2026-01-19T00:00:00Z"), &Value::Null));
        // The last day of a month: the user's day ends with the month of all.
        app.set_clock("2026-01-31T12:00:00Z");
        app.spend("b", "v", "0.9").await;
        let blocked = app.check("v").await;
        assert_eq!((&blocked["reason"], &blocked["binding"]["source"]), (&json!("budget_exhausted"), &json!("global")), "{blocked}");
        assert_eq!((&blocked["retry_at"], &blocked["upgrade_url"]), (&json!("2026-02-01T00:00:00Z"), &Value::Null));
    })
    .await;
}

#[tokio::test]
async fn a_cap_of_the_billing_period_counts_what_was_rolled() {
    for database in Database::ALL {
        let mut app = TestApp::start(database, TIERS, |config| Config { retention_days: Some(35), ..config }).await;
        let [customer, mut paid] = paying("u", "price_pro");
        // A year that began this morning.
        let item = &mut paid["data"]["object"]["items"]["data"][0];
        let (start, day) = (app.now().timestamp() - 4 * 3600, 86_400);
        (item["current_period_start"], item["current_period_end"]) = (json!(start), json!(start + 365 * day));
        for event in [customer, paid] {
            app.apply(event).await;
        }
        set(&app, "u", json!({"billing": "0.5"})).await;
        app.spend("a", "u", "0.5").await;
        assert_eq!(app.check("u").await["reason"], "cap_reached");
        app.advance(TimeDelta::days(40));
        app.restart().await;
        while app.get("/v1/users/u/usage").await.ok()["entries"] != json!([]) {
            tokio::task::yield_now().await;
        }
        app.restart().await;
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &from(&blocked, "cap")[0]["spent"]), (&json!("cap_reached"), &json!(0.5)), "{blocked}");
        app.stop().await;
    }
}
