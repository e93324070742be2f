//! What a check answers.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{TIERS, TestApp, on_each_database};
use crate::stripe::paying;

/// One tier for each thing that a check can meet.
const CATALOGUE: &str = "
default_tier: free
upgrade_url: https://app.example.com/up?from={tier}&to={to}&user={user_id}
contact_url: mailto:sales@example.com
tiers:
  free: { rank: 0, budgets: { daily: 0.10 }, policy: strict }
  hand: { rank: 1, budgets: {}, policy: strict }
  stack:
    rank: 2
    prices: [price_stack]
    budgets: { daily: 1, weekly: 2, monthly: 3, billing: 4, total: 5 }
    policy: graceful
    degrade_to: { gpt-4o: gpt-4o-mini, default: small }
  capped: { rank: 3, prices: [price_capped], budgets: { daily: 1 }, policy: soft, thresholds: { block: 120 }, degrade_to: { default: small } }
  top: { rank: 4, prices: [price_top], budgets: { monthly: 1 }, policy: strict }
";

async fn paid(app: &TestApp, user: &str, price: &str) {
    for event in paying(user, price) {
        app.deliver(event.to_string().as_bytes()).await.ok();
    }
}

fn action(answer: &Value) -> &str {
    answer["action"].as_str().unwrap()
}

#[tokio::test]
async fn an_estimate_is_judged_to_the_last_nano_dollar() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.07").await;
        let ask = async |estimate: &str| {
            let answer = app.get(&format!("/v1/users/u/enforcement?estimated_cost={estimate}")).await.ok();
            (action(&answer).to_owned(), answer["reason"].as_str().unwrap().to_owned())
        };
        let pair = |action: &str, reason: &str| (action.to_owned(), reason.to_owned());
        assert_eq!(ask("0.009999999").await, pair("ALLOW", "within_budget"));
        assert_eq!(ask("0.01").await, pair("WARN", "warn_threshold"));
        assert_eq!(ask("0.03").await, pair("WARN", "warn_threshold"));
        assert_eq!(ask("3e-2").await, pair("WARN", "warn_threshold"));
        assert_eq!(ask("0.030000001").await, pair("BLOCK", "estimate_exceeds_budget"));
    })
    .await;
}

#[tokio::test]
async fn ten_cents_in_ten_steps_are_the_whole_of_ten_cents() {
    on_each_database(TIERS, async |app| {
        for step in 0..10 {
            assert_ne!(action(&app.check("u").await), "BLOCK", "before step {step}");
            app.spend(&format!("s{step}"), "u", "0.01").await;
        }
        let answer = app.check("u").await;
        assert_eq!((action(&answer), &answer["budgets"][0]["used_pct"]), ("BLOCK", &json!(100.0)));
    })
    .await;
}

#[tokio::test]
async fn the_worst_of_all_stacked_budgets_decides() {
    on_each_database(CATALOGUE, async |app| {
        paid(app, "u", "price_stack").await;
        let day = TimeDelta::days(1);
        app.spend("d1", "u", "0.95").await;
        assert_eq!(action(&app.check("u").await), "DEGRADE");
        app.advance(day);
        assert_eq!(action(&app.check("u").await), "ALLOW");
        app.spend("d2", "u", "0.70").await;
        let answer = app.check("u").await;
        assert_eq!((action(&answer), &answer["binding"]["period"]), ("WARN", &json!("weekly")));
        app.advance(day);
        app.spend("d3", "u", "0.35").await;
        let answer = app.check("u").await;
        assert_eq!((action(&answer), &answer["binding"]["period"]), ("BLOCK", &json!("weekly")));
        assert_eq!(answer["retry_at"], "2026-01-19T00:00:00Z");
        let spent: Vec<&Value> = answer["budgets"].as_array().unwrap().iter().map(|budget| &budget["spent"]).collect();
        assert_eq!(spent, [&json!(0.35), &json!(2), &json!(2), &json!(2), &json!(2)]);
        let periods: Vec<&Value> = answer["budgets"].as_array().unwrap().iter().map(|budget| &budget["period"]).collect();
        assert_eq!(periods, ["daily", "weekly", "monthly", "billing", "total"]);
    })
    .await;
}

#[tokio::test]
async fn at_the_end_of_a_window_the_very_next_check_sees_a_fresh_budget() {
    on_each_database(TIERS, async |app| {
        app.set_clock("2026-01-12T23:59:59.999999Z");
        app.spend("a", "u", "0.10").await;
        assert_eq!(action(&app.check("u").await), "BLOCK");
        app.set_clock("2026-01-13T00:00:00Z");
        let answer = app.check("u").await;
        assert_eq!((action(&answer), &answer["budgets"][0]["spent"]), ("ALLOW", &json!(0)));
        // A clock that steps back loses no spend.
        app.set_clock("2026-01-12T23:00:00Z");
        assert_eq!(action(&app.check("u").await), "BLOCK");
    })
    .await;
}

#[tokio::test]
async fn a_billing_budget_follows_the_subscriptions_own_period() {
    on_each_database(CATALOGUE, async |app| {
        paid(app, "u", "price_stack").await;
        let billing = async |app: &TestApp| {
            let answer = app.check("u").await;
            let budgets = answer["budgets"].as_array().unwrap().clone();
            budgets.into_iter().find(|budget| budget["period"] == "billing").unwrap()
        };
        // The subscription of the tests is paid from 2026-01-01T00:00:00Z for 31 days.
        assert_eq!(billing(app).await["resets_at"], "2026-02-01T00:00:00Z");
        let mut later = crate::stripe::subscription("cus_u", "active", "price_stack");
        later["items"]["data"][0]["current_period_start"] = json!(crate::stripe::T + 11 * 86_400 + 36_000);
        later["items"]["data"][0]["current_period_end"] = json!(crate::stripe::T + 42 * 86_400 + 36_000);
        app.spend("before", "u", "0.25").await;
        app.post("/v1/usage", json!({"id": "edge-1", "user_id": "u", "cost": "0.125", "time": "2026-01-12T09:59:59.999999Z"})).await.ok();
        app.post("/v1/usage", json!({"id": "edge-2", "user_id": "u", "cost": "0.0625", "time": "2026-01-12T10:00:00Z"})).await.ok();
        app.deliver(crate::stripe::updated(9, later).to_string().as_bytes()).await.ok();
        let budget = billing(app).await;
        // From 10:00 on the 12th: what was spent at noon and at the very edge, not what came a microsecond before.
        assert_eq!((&budget["resets_at"], &budget["spent"]), (&json!("2026-02-12T10:00:00Z"), &json!(0.3125)));
        // A correction lowers the window that it falls into, at its edge too.
        let correction = json!({"id": "c", "user_id": "u", "amount": "0.03125", "reason": "test", "time": "2026-01-12T11:00:00Z"});
        app.post("/v1/corrections", &correction).await.ok();
        assert_eq!(billing(app).await["spent"], json!(0.28125));
        app.restart().await;
        assert_eq!(billing(app).await["spent"], json!(0.28125));
        app.advance(TimeDelta::days(3));
        app.spend("after", "u", "0.5").await;
        app.restart().await;
        assert_eq!(billing(app).await["spent"], json!(0.78125));
        app.set_clock("2026-02-12T10:00:00Z");
        assert_eq!(billing(app).await["spent"], json!(0));
    })
    .await;
}

#[tokio::test]
async fn a_correction_at_the_edge_of_a_billing_window_counts_in_memory_as_in_the_store() {
    on_each_database(CATALOGUE, async |app| {
        paid(app, "u", "price_stack").await;
        let spent = async |app: &TestApp| {
            let answer = app.check("u").await;
            answer["budgets"].as_array().unwrap().iter().find(|budget| budget["period"] == "billing").unwrap()["spent"].clone()
        };
        let mut later = crate::stripe::subscription("cus_u", "active", "price_stack");
        later["items"]["data"][0]["current_period_start"] = json!(crate::stripe::T + 11 * 86_400 + 36_000);
        later["items"]["data"][0]["current_period_end"] = json!(crate::stripe::T + 42 * 86_400 + 36_000);
        app.post("/v1/usage", json!({"id": "before", "user_id": "u", "cost": "0.5", "time": "2026-01-12T09:00:00Z"})).await.ok();
        app.deliver(crate::stripe::updated(9, later).to_string().as_bytes()).await.ok();
        assert_eq!(spent(app).await, json!(0));
        // The day has as much, the window has not.
        let correction = json!({"id": "c", "user_id": "u", "amount": "0.25", "reason": "test", "time": "2026-01-12T11:00:00Z"});
        app.post("/v1/corrections", &correction).await.ok();
        assert_eq!(spent(app).await, json!(0));
        app.spend("after", "u", "0.375").await;
        assert_eq!(spent(app).await, json!(0.125));
        app.restart().await;
        assert_eq!(spent(app).await, json!(0.125));
    })
    .await;
}

#[tokio::test]
async fn a_checkout_that_fails_does_not_begin_a_billing_period_anew() {
    let tiers = CATALOGUE.replace("free: { rank: 0, budgets: { daily: 0.10 }", "free: { rank: 0, budgets: { billing: 1 }");
    on_each_database(&tiers, async |app| {
        app.spend("a", "u", "1").await;
        assert_eq!(action(&app.check("u").await), "BLOCK");
        app.apply(crate::stripe::customer("customer.created", 0, "cus_u", Some("u"))).await;
        for status in ["incomplete", "incomplete_expired"] {
            let mut unpaid = crate::stripe::subscription("cus_u", status, "price_stack");
            unpaid["items"]["data"][0]["current_period_start"] = json!(app.now().timestamp() + 1);
            app.advance(TimeDelta::seconds(2));
            app.apply(crate::stripe::updated(app.now().timestamp() - crate::stripe::T, unpaid)).await;
            assert_eq!(action(&app.check("u").await), "BLOCK", "{status}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_soft_policy_may_have_a_hard_cap() {
    on_each_database(CATALOGUE, async |app| {
        paid(app, "u", "price_capped").await;
        app.spend("a", "u", "1.1").await;
        assert_eq!(action(&app.check("u").await), "DEGRADE");
        let over = app.get("/v1/users/u/enforcement?estimated_cost=0.100000001").await.ok();
        assert_eq!(action(&over), "BLOCK");
        app.spend("b", "u", "0.1").await;
        assert_eq!(action(&app.check("u").await), "BLOCK");
    })
    .await;
}

#[tokio::test]
async fn a_tier_without_budgets_limits_nothing() {
    on_each_database(CATALOGUE, async |app| {
        app.put("/v1/users/u", json!({"tier": "hand", "reason": "staff"})).await.ok();
        app.spend("a", "u", "1000000000").await;
        let answer = app.get("/v1/users/u/enforcement?estimated_cost=1000000000").await.ok();
        assert_eq!((action(&answer), &answer["binding"], &answer["budgets"]), ("ALLOW", &Value::Null, &json!([])));
    })
    .await;
}

#[tokio::test]
async fn a_blocked_user_is_shown_the_next_tier_that_can_be_bought_and_the_highest_whom_to_talk_to() {
    on_each_database(CATALOGUE, async |app| {
        app.spend("a", "ad|a", "1").await;
        let answer = app.get("/v1/users/ad%7Ca/enforcement").await.ok();
        assert_eq!(answer["upgrade_url"], "https://app.example.com/up?from=free&to=stack&user=ad%7Ca");
        assert_eq!((&answer["upgrade"]["tier"], &answer["contact_url"]), (&json!("stack"), &Value::Null));
        paid(app, "rich", "price_top").await;
        app.spend("b", "rich", "1").await;
        let answer = app.check("rich").await;
        assert_eq!((action(&answer), &answer["upgrade_url"], &answer["upgrade"]), ("BLOCK", &Value::Null, &Value::Null));
        assert_eq!((&answer["contact_url"], &answer["retry_at"]), (&json!("mailto:sales@example.com"), &json!("2026-02-01T00:00:00Z")));
    })
    .await;
}

#[tokio::test]
async fn a_budget_of_all_users_together_binds_everybody_and_sells_nothing() {
    let tiers = format!("global: {{ budgets: {{ daily: 1, monthly: 100 }}, policy: strict }}\n{TIERS}");
    on_each_database(&tiers, async |app| {
        paid(app, "rich", "price_enterprise").await;
        app.spend("a", "rich", "0.5").await;
        let answer = app.check("nobody").await;
        assert_eq!(action(&answer), "ALLOW");
        assert_eq!((&answer["budgets"][1]["scope"], &answer["budgets"][1]["spent"]), (&json!("global"), &json!(0.5)));
        app.spend("b", "rich", "0.5").await;
        for user in ["nobody", "rich"] {
            let answer = app.check(user).await;
            assert_eq!((action(&answer), &answer["binding"]["scope"]), ("BLOCK", &json!("global")), "{user}");
            assert_eq!((&answer["upgrade_url"], &answer["retry_at"]), (&Value::Null, &json!("2026-01-13T00:00:00Z")));
        }
        app.restart().await;
        assert_eq!(action(&app.check("nobody").await), "BLOCK");
        app.advance(TimeDelta::days(1));
        let answer = app.check("nobody").await;
        assert_eq!((action(&answer), &answer["budgets"][2]["spent"]), ("ALLOW", &json!(1)));
    })
    .await;
}

#[tokio::test]
async fn asking_for_users_whom_nobody_knows_leaves_no_trace() {
    on_each_database(TIERS, async |app| {
        for number in 0..20 {
            let answer = app.check(&format!("ghost-{number}")).await;
            assert_eq!((action(&answer), &answer["tier"]), ("ALLOW", &json!("free")));
        }
        let many: Vec<Value> = (0..1000).map(|number| json!({"user_id": format!("ghost-{number}")})).collect();
        let answers = app.post("/v1/enforcement", Value::from(many)).await.ok();
        assert_eq!(answers["results"].as_array().unwrap().len(), 1000);
        assert_eq!(app.user("ghost-1").await["known"], json!(false));
        assert_eq!(app.get("/v1/users").await.ok()["users"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn many_are_answered_in_the_order_asked_each_as_if_alone() {
    on_each_database(CATALOGUE, async |app| {
        paid(app, "s", "price_stack").await;
        app.spend("a", "s", "0.95").await;
        app.spend("b", "f", "0.10").await;
        app.restart().await;
        let body = json!([
            {"user_id": "s", "model": "gpt-4o"}, {"user_id": "f"}, {"user_id": "ghost", "estimated_cost": "0.2"},
            {"user_id": "s", "model": "gpt-4o", "estimated_cost": 0.06},
        ]);
        let answers = app.post("/v1/enforcement", body).await.ok();
        let actions: Vec<&str> = answers["results"].as_array().unwrap().iter().map(action).collect();
        assert_eq!(actions, ["DEGRADE", "BLOCK", "BLOCK", "BLOCK"]);
        let alone = app.post("/v1/enforcement", json!({"user_id": "s", "model": "gpt-4o"})).await.ok();
        assert_eq!(alone, answers["results"][0]);
        assert_eq!(alone, app.check("s").await);
    })
    .await;
}

#[tokio::test]
async fn bad_questions_are_refused_by_the_name_of_the_field() {
    on_each_database(TIERS, async |app| {
        let get = async |query: &str, code: &str, field: &str| {
            let problem = app.get(&format!("/v1/users/u/enforcement?{query}")).await.problem(422, code);
            assert_eq!(problem["field"], field, "{query}");
        };
        get("estimated_cots=0.03", "unknown_field", "estimated_cots").await;
        get("estimated_cost=-0.03", "invalid_field", "estimated_cost").await;
        get("estimated_cost=0.0000000001", "invalid_field", "estimated_cost").await;
        get("estimated_cost=1000000000.1", "invalid_field", "estimated_cost").await;
        get("estimated_cost=NaN", "invalid_field", "estimated_cost").await;
        get("estimated_cost=", "invalid_field", "estimated_cost").await;
        get("model=a&model=b", "invalid_field", "model").await;
        get("model=", "invalid_field", "model").await;
        let post = async |body: Value, code: &str, field: &str| {
            let problem = app.post("/v1/enforcement", &body).await.problem(422, code);
            assert_eq!(problem["field"], field, "{body}");
        };
        post(json!({}), "missing_field", "user_id").await;
        post(json!({"user_id": ""}), "invalid_field", "user_id").await;
        post(json!({"user_id": 5}), "invalid_field", "user_id").await;
        post(json!([{"user_id": "a"}, {"user_id": "b", "estimated_cost": -1}]), "invalid_field", "[1].estimated_cost").await;
        post(json!([{"user_id": "a", "modle": "x"}]), "unknown_field", "[0].modle").await;
        app.post("/v1/enforcement?estimated_cost=9", json!({"user_id": "a"})).await.problem(422, "unknown_field");
        assert_eq!(
            app.post("/v1/enforcement", json!({"user_id": "a", "model": null, "estimated_cost": null})).await.ok()["action"],
            "ALLOW"
        );
        for body in ["", "[", "null", "5", "[1]", "[[\"u\"]]", "{\"user_id\":\"a\"} x", "\u{feff}{}"] {
            app.post("/v1/enforcement", body).await.problem(400, "malformed_json");
        }
        let none: Vec<Value> = Vec::new();
        app.post("/v1/enforcement", Value::from(none)).await.problem(422, "invalid_field");
        let many = Value::from_iter((0..1001).map(|_| json!({"user_id": "a"})));
        app.post("/v1/enforcement", many).await.problem(422, "invalid_field");
        app.post("/v1/enforcement", "[".repeat(100_000)).await.problem(400, "malformed_json");
        app.post("/v1/enforcement", " ".repeat(2_000_000)).await.problem(413, "body_too_large");
    })
    .await;
}
