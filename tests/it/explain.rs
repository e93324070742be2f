//! Why a check is answered as it is: everything behind the decision.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{TestApp, on_each_database};
use crate::cli::run;
use crate::stripe::{paying, subscription, updated};

/// Budgets of one's own, of an account, and of all.
const TIERS: &str = "default_tier: free\n\
    global: { budgets: { monthly: 100 }, policy: monitor }\n\
    tiers:\n  \
      free: { rank: 0, budgets: { daily: 0.10, total: 5 }, policy: strict }\n  \
      pro: { rank: 1, budgets: { daily: 1, billing: 20 }, policy: graceful, markup_pct: 20, prices: [price_pro], degrade_to: { default: gpt-4o-mini } }\n  \
      team: { rank: 2, budgets: { daily: 1 }, policy: strict, scope: account, per_seat: true, products: [prod_of_the_tests] }\n";

async fn explain(app: &TestApp, user: &str, query: &str) -> Value {
    app.get(&format!("/v1/users/{user}/explain{query}")).await.ok()
}

/// What the budget of this scope and period says.
fn budget<'v>(explained: &'v Value, scope: &str, period: &str) -> &'v Value {
    let found = explained["budgets"].as_array().unwrap().iter().find(|budget| budget["scope"] == scope && budget["period"] == period);
    found.unwrap_or_else(|| panic!("{explained}"))
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_explained_decision_is_the_one_that_a_check_gives() {
    on_each_database(TIERS, async |app| {
        for event in paying("payer", "price_pro") {
            app.apply(event).await;
        }
        app.put("/v1/accounts/acme/users/member", "").await.ok();
        app.put("/v1/users/member", json!({"tier": "team", "reason": "test"})).await.ok();
        app.spend("a", "u", "0.09").await;
        app.spend("b", "payer", "0.95").await;
        app.spend("c", "member", "0.99").await;
        app.post("/v1/holds", json!({"id": "h", "user_id": "member", "estimated_cost": 0.005})).await.ok();
        let queries = [
            "",
            "?model=gpt-4o",
            "?model=gpt-4o&estimated_cost=0.02",
            "?model=gpt-4o&input_tokens=1000&output_tokens=100",
            "?model=brand-new&input_tokens=1000",
        ];
        for user in ["u", "payer", "member", "nobody"] {
            for query in queries {
                let check = app.get(&format!("/v1/users/{user}/enforcement{query}")).await.ok();
                let explained = explain(app, user, query).await;
                assert_eq!(explained["decision"], check, "{user}{query}");
                // Every budget says something, and the one that decided says what was decided.
                assert_eq!(explained["budgets"].as_array().unwrap().len(), check["budgets"].as_array().unwrap().len());
                let binding = explained["budgets"].as_array().unwrap().iter().find(|budget| budget["binding"] == true);
                assert_eq!(binding.is_some(), check["binding"].is_object(), "{explained}");
                if let Some(binding) = binding {
                    assert_eq!((&binding["verdict"]["action"], &binding["verdict"]["message"]), (&check["action"], &check["message"]));
                }
            }
        }
        let refused = app.get("/v1/users/u/explain?estimated_cots=1").await;
        assert_eq!(refused.problem(422, "unknown_field")["field"], "estimated_cots");
    })
    .await;
}

#[tokio::test]
async fn every_budget_is_shown_with_its_window_its_thresholds_and_what_it_says_itself() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.08").await;
        let explained = explain(app, "u", "?model=gpt-4o&estimated_cost=0.015").await;
        assert_eq!(explained["estimate"], json!({"amount": 0.015, "basis": "given", "pricing": null}));
        let daily = budget(&explained, "user", "daily");
        assert_eq!((&daily["starts_at"], &daily["resets_at"]), (&json!("2026-01-12T00:00:00Z"), &json!("2026-01-13T00:00:00Z")));
        assert_eq!((&daily["spent"], &daily["projected"], &daily["binding"]), (&json!(0.08), &json!(0.095), &json!(true)));
        let thresholds = json!({"warn": {"pct": 80, "amount": 0.08}, "degrade": null, "block": {"pct": 100, "amount": 0.1}});
        assert_eq!(daily["thresholds"], thresholds);
        assert_eq!((&daily["verdict"]["action"], &daily["verdict"]["reason"]), (&json!("WARN"), &json!("warn_threshold")));
        let total = budget(&explained, "user", "total");
        assert_eq!((&total["starts_at"], &total["resets_at"], &total["binding"]), (&Value::Null, &Value::Null, &json!(false)));
        assert_eq!((&total["verdict"]["action"], &total["verdict"]["reason"]), (&json!("ALLOW"), &json!("within_budget")));
        assert_eq!(budget(&explained, "global", "monthly")["thresholds"]["warn"], json!({"pct": 90, "amount": 90}));
        // One that blocks beside one that does not.
        let blocked = explain(app, "u", "?estimated_cost=0.03").await;
        assert_eq!(budget(&blocked, "user", "daily")["verdict"]["reason"], "estimate_exceeds_budget");
        assert_eq!(budget(&blocked, "user", "daily")["verdict"]["retry_at"], "2026-01-13T00:00:00Z");
        assert_eq!(budget(&blocked, "user", "total")["verdict"]["action"], "ALLOW");
    })
    .await;
}

#[tokio::test]
async fn a_tier_that_was_set_by_hand_says_why_until_when_and_by_which_key() {
    on_each_database(TIERS, async |app| {
        let change = json!({"tier": "pro", "reason": "a friend", "ends_at": "2026-02-01T00:00:00Z"});
        app.put("/v1/users/u", change).await.ok();
        let tier = explain(app, "u", "").await["tier"].clone();
        let manual =
            json!({"reason": "a friend", "set_at": "2026-01-12T12:00:00Z", "ends_at": "2026-02-01T00:00:00Z", "key_id": "environment"});
        assert_eq!((&tier["name"], &tier["source"], &tier["manual"]), (&json!("pro"), &json!("manual"), &manual));
        assert_eq!(tier["stripe"], Value::Null);
        // It has ended, and no longer is why.
        app.set_clock("2026-02-01T00:00:00Z");
        let tier = explain(app, "u", "").await["tier"].clone();
        assert_eq!((&tier["name"], &tier["source"], &tier["manual"]), (&json!("free"), &json!("default"), &Value::Null));
    })
    .await;
}

#[tokio::test]
async fn a_tier_that_was_paid_names_the_subscription_its_price_and_the_event_that_said_so() {
    on_each_database(TIERS, async |app| {
        let [created, paid] = paying("u", "price_pro");
        app.apply(created).await;
        let paid_id = paid["id"].clone();
        app.apply(paid).await;
        let tier = explain(app, "u", "").await["tier"].clone();
        assert_eq!((&tier["name"], &tier["source"]), (&json!("pro"), &json!("stripe")));
        let stripe = &tier["stripe"];
        assert_eq!((&stripe["customer"], &stripe["deleted"], &stripe["question"]), (&json!("cus_u"), &json!(false), &Value::Null));
        assert_eq!((&stripe["last_event"]["event_id"], &stripe["last_event"]["state"]), (&paid_id, &json!("applied")));
        let first = &stripe["subscriptions"][0];
        assert_eq!((&first["subscription"], &first["decides"], &first["status"]), (&json!("sub_of_cus_u"), &json!(true), &json!("active")));
        assert_eq!((&first["grants"], &first["buys"], &first["bought_by"]), (&json!("pro"), &json!("pro"), &json!("price")));
        assert_eq!((&first["price"], &first["quantity"]), (&json!("price_pro"), &json!(1)));
        // A dearer one beside it decides, by the product that its price belongs to.
        let mut second = subscription("cus_u", "active", "price_elsewhere");
        (second["id"], second["items"]["data"][0]["quantity"]) = (json!("sub_a"), json!(3));
        let event = updated(2, second.clone());
        app.apply(event.clone()).await;
        let tier = explain(app, "u", "").await["tier"].clone();
        assert_eq!((&tier["name"], &tier["seats"], &tier["scope"]), (&json!("team"), &json!(3), &json!("account")));
        let subscriptions = tier["stripe"]["subscriptions"].as_array().unwrap();
        let decides: Vec<(&Value, &Value)> = subscriptions.iter().map(|one| (&one["subscription"], &one["decides"])).collect();
        assert_eq!(decides, [(&json!("sub_a"), &json!(true)), (&json!("sub_of_cus_u"), &json!(false))]);
        assert_eq!(subscriptions[0]["bought_by"], "product");
        // It is not paid: it buys the tier still, and grants it until the grace is over.
        second["status"] = json!("past_due");
        app.apply(updated(3, second.clone())).await;
        let late = explain(app, "u", "").await["tier"]["stripe"]["subscriptions"][0].clone();
        assert_eq!((&late["grants"], &late["grace_ends_at"]), (&json!("team"), &json!("2026-01-19T12:00:00Z")));
        second["status"] = json!("unpaid");
        app.apply(updated(4, second)).await;
        let tier = explain(app, "u", "").await["tier"].clone();
        assert_eq!(tier["name"], "pro");
        let unpaid = &tier["stripe"]["subscriptions"][1];
        assert_eq!((&unpaid["subscription"], &unpaid["grants"], &unpaid["buys"]), (&json!("sub_a"), &Value::Null, &json!("team")));
        // A late word changes nothing, so the record follows the one before it.
        let before = tier["stripe"]["last_event"]["event_id"].clone();
        assert_eq!(app.apply(updated(0, subscription("cus_u", "active", "price_pro"))).await["state"], "stale");
        assert_eq!(explain(app, "u", "").await["tier"]["stripe"]["last_event"]["event_id"], before);
    })
    .await;
}

#[tokio::test]
async fn what_fills_a_shared_budget_is_everybodys_and_what_fills_ones_own_is_not() {
    on_each_database(TIERS, async |app| {
        for user in ["u", "v"] {
            app.spend(&format!("before-{user}"), user, "0.01").await;
            app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
            app.put(&format!("/v1/users/{user}"), json!({"tier": "team", "reason": "test"})).await.ok();
        }
        app.advance(TimeDelta::seconds(1));
        app.spend("of-u", "u", "0.2").await;
        app.advance(TimeDelta::seconds(1));
        app.spend("of-v", "v", "0.3").await;
        let yesterday = json!({"id": "old", "user_id": "v", "cost": 0.4, "time": "2026-01-11T23:59:59Z"});
        app.post("/v1/usage", yesterday).await.ok();
        app.post("/v1/holds", json!({"id": "h", "user_id": "v", "estimated_cost": 0.1})).await.ok();
        app.put("/v1/users/u/caps", json!({"daily": 1})).await.ok();
        let explained = explain(app, "u", "").await;
        assert_eq!((&explained["tier"]["account_id"], &explained["tier"]["scope"]), (&json!("acme"), &json!("account")));
        assert_eq!(budget(&explained, "account", "daily")["spent"], json!(0.5));
        assert_eq!(ids(&explained["holds"]), ["h"]);
        // What was spent before he joined is not the account's; what is of yesterday counts in the month of all only.
        assert_eq!(ids(&explained["entries"]), ["of-v", "of-u", "old"]);
        let counts = |entry: &Value| entry["counts_in"].as_array().unwrap().iter().map(|one| one["scope"].clone()).collect::<Vec<_>>();
        assert_eq!(counts(&explained["entries"][0]), ["account", "global"], "his cap counts his own");
        assert_eq!(counts(&explained["entries"][1]), ["account", "user", "global"]);
        assert_eq!(counts(&explained["entries"][2]), ["global"]);
        assert_eq!((&explained["entries"][0]["user_id"], &explained["entries"][0]["cost"]), (&json!("v"), &json!(0.3)));
        // Alone again he has what is his own, wherever it was spent.
        app.put("/v1/users/u", json!({"tier": null, "reason": "test"})).await.ok();
        let own = explain(app, "u", "").await;
        assert_eq!((ids(&own["entries"]), ids(&own["holds"])), (vec!["of-u", "before-u"], vec![]));
    })
    .await;
}

#[tokio::test]
async fn lists_end_at_twenty_and_say_that_there_is_more() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
        let records: Vec<Value> = (0..25)
            .map(|n| json!({"id": format!("e{n}"), "user_id": "u", "cost": 0.001, "time": format!("2026-01-12T11:00:{n:02}Z")}))
            .collect();
        app.post("/v1/usage", json!(records)).await.ok();
        for number in 0..21 {
            let hold = json!({"id": format!("h{number}"), "user_id": "u", "estimated_cost": 0.001, "ttl_seconds": 1000 - number});
            app.post("/v1/holds", hold).await.ok();
        }
        let explained = explain(app, "u", "").await;
        assert_eq!((ids(&explained["entries"]).len(), ids(&explained["entries"])[0]), (20, "e24"));
        assert_eq!((ids(&explained["holds"]).len(), ids(&explained["holds"])[0]), (20, "h20"));
        assert_eq!(explained["more_holds"], true);
    })
    .await;
}

#[tokio::test]
async fn an_estimate_in_tokens_says_at_which_prices_and_a_user_nobody_knows_is_explained_too() {
    on_each_database(TIERS, async |app| {
        let unknown = explain(app, "nobody", "").await;
        assert_eq!((&unknown["known"], &unknown["tier"]["source"], &unknown["entries"]), (&json!(false), &json!("default"), &json!([])));
        assert_eq!(unknown["estimate"], json!({"amount": 0, "basis": "nothing", "pricing": null}));
        assert_eq!(app.user("nobody").await["known"], false, "asking leaves no trace");
        app.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
        let estimate = explain(app, "u", "?model=gpt-4o&input_tokens=1000&output_tokens=100").await["estimate"].clone();
        assert_eq!((&estimate["amount"], &estimate["basis"]), (&json!(0.0042), &json!("tokens")));
        assert_eq!((&estimate["pricing"]["model"], &estimate["pricing"]["markup_pct"]), (&json!("gpt-4o"), &json!(20)));
        let unpriced = explain(app, "u", "?model=brand-new&input_tokens=1").await["estimate"].clone();
        assert_eq!(unpriced, json!({"amount": null, "basis": "tokens", "pricing": null}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_explains_beside_the_running_service_and_ends_with_3_when_blocked() {
    on_each_database(TIERS, async |app| {
        app.set_clock(&chrono::Utc::now().to_rfc3339());
        std::fs::write(app.folder.path().join("tiers.yaml"), TIERS).unwrap();
        let database = app.database().url();
        let told = |args: &[&str]| run(app.folder.path(), &[&["explain"], args].concat(), &[("DATABASE_URL", &database)]);
        let (code, out, err) = told(&["nobody"]);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("nothing is known") && out.contains("free (the default)") && out.contains("ALLOW"), "{out}");
        app.put("/v1/users/u", json!({"tier": "team", "reason": "a friend"})).await.ok();
        app.put("/v1/accounts/acme/users/u", "").await.ok();
        app.put("/v1/accounts/acme", json!({"stripe_customer": "cus_acme"})).await.ok();
        app.apply(updated(1, subscription("cus_acme", "active", "price_pro"))).await;
        app.spend("call-1", "u", "0.9").await;
        app.post("/v1/holds", json!({"id": "held-1", "user_id": "u", "estimated_cost": 0.05})).await.ok();
        let (code, out, err) = told(&["u", "--model", "gpt-4o", "--estimated-cost", "0.06"]);
        assert_eq!(code, 3, "{out}{err}");
        for part in [
            "answers BLOCK: Daily budget of the account",
            "with key environment: a friend",
            "cus_acme",
            "sub_of_cus_acme is active, pays for price_pro, which buys pro: it grants pro",
            "customer.subscription.updated",
            "$0.06, as given",
            "account daily",
            "BLOCK (decides)",
            "held-1",
            "call-1",
        ] {
            assert!(out.contains(part), "{part} is missing in {out}");
        }
        assert_eq!(told(&["u", "--estimated-cost", "-1"]).0, 2);
        assert_eq!(told(&["u", "--input-tokens", "5"]).0, 2);
    })
    .await;
}

#[tokio::test]
async fn grants_caps_and_rules_are_explained_too() {
    const RULED: &str = "default_tier: free\nrules:\n  - { name: dear, when: estimate > 1, action: BLOCK }\ntiers:\n  \
        free:\n    rank: 0\n    budgets: { daily: 1 }\n    policy: strict\n    rules: [{ name: chat_only, when: \"metadata.feature == 'chat'\", action: WARN }]\n";
    on_each_database(RULED, async |app| {
        app.put("/v1/users/u/caps", json!({"monthly": 5})).await.ok();
        let grant = json!({"id": "g", "amount": 2, "period": "daily", "ends_at": "2026-01-20T00:00:00Z", "reason": "sorry"});
        app.post("/v1/users/u/grants", grant).await.ok();
        app.spend("s", "u", "1.5").await;
        let explained = explain(app, "u", "?estimated_cost=0.1").await;
        assert_eq!(
            explained["grants"],
            json!([{"id": "g", "period": "daily", "amount": 2, "used": 0.5, "remaining": 1.5, "ends_at": "2026-01-20T00:00:00Z"}])
        );
        assert_eq!(
            explained["rules"],
            json!([
                {"rule": "dear", "when": "estimate > 1", "action": "BLOCK", "outcome": "does_not_apply"},
                {"rule": "chat_only", "when": "metadata.feature == 'chat'", "action": "WARN", "outcome": "failed"},
            ])
        );
        assert_eq!((&explained["decision"]["action"], &explained["decision"]["rule"]), (&json!("BLOCK"), &json!("chat_only")));
        assert_eq!(budget(&explained, "user", "monthly")["source"], "cap");
        assert_eq!(budget(&explained, "user", "daily")["granted"], json!(2));
    })
    .await;
}
