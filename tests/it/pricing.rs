//! Calls that come as tokens: what they cost, which models a tier includes, and what has no price.

use serde_json::{Value, json};

use crate::app::{TestApp, on_each_database};

/// Free users pay a fifth more and have two models; pro users have what is priced; the models of lab users count or are told.
const TIERS: &str = "default_tier: free\nupgrade_url: https://app.example.com/upgrade?from={tier}\ntiers:\n  \
    free: { rank: 0, budgets: { daily: 0.1 }, policy: graceful, markup_pct: 20, models: { allow: [gpt-4o, gpt-4o-mini*] }, degrade_to: { default: gpt-4o-mini } }\n  \
    basic: { rank: 5, budgets: { daily: 0.1 }, policy: strict, prices: [price_basic], models: { deny: [o1*] } }\n  \
    pro: { rank: 10, budgets: { daily: 1 }, policy: strict, prices: [price_pro] }\n  \
    lab: { rank: 20, budgets: { daily: 1 }, policy: strict, unknown_model: flag }\n  \
    late: { rank: 30, budgets: { daily: 1 }, policy: strict, unknown_model: { price_as: gpt-4o } }\n";

async fn put_in(app: &TestApp, user: &str, tier: &str) {
    app.put(&format!("/v1/users/{user}"), json!({"tier": tier, "reason": "test"})).await.ok();
}

async fn usage(app: &TestApp, body: Value) -> Value {
    app.post("/v1/usage", body).await.ok()
}

#[tokio::test]
async fn usage_in_tokens_costs_what_the_book_says_and_the_entry_keeps_how() {
    on_each_database(TIERS, async |app| {
        // 1000 of input, 400 of them cached, and 100 of output: (600 × 2.50 + 400 × 1.25 + 100 × 10) / 10⁶, and a fifth more.
        let call = json!({"id": "a", "user_id": "u", "model": "gpt-4o", "provider": "openai", "input_tokens": 1000,
            "cached_input_tokens": 400, "output_tokens": 100, "reasoning_tokens": 0});
        let first = usage(app, call.clone()).await;
        assert_eq!((&first["cost"], &first["repeated"]), (&json!(0.0036), &json!(false)));
        app.restart().await;
        // The same id again costs what it cost, in whatever tier the user is by now.
        put_in(app, "u", "pro").await;
        let again = usage(app, call.clone()).await;
        assert_eq!((&again["cost"], &again["repeated"]), (&json!(0.0036), &json!(true)));
        let mut other = call;
        other["cached_input_tokens"] = json!(401);
        app.post("/v1/usage", other).await.problem(409, "id_reused");
        let entry = app.get("/v1/users/u/usage").await.ok()["entries"][0].clone();
        assert_eq!((&entry["cost"], &entry["input_tokens"], &entry["cached_input_tokens"]), (&json!(0.0036), &json!(1000), &json!(400)));
        let pricing = &entry["pricing"];
        assert_eq!((&pricing["model"], &pricing["input"], &pricing["output"]), (&json!("gpt-4o"), &json!(2.5), &json!(10)));
        assert_eq!((&pricing["cached_input"], &pricing["markup_pct"]), (&json!(1.25), &json!(20)));
        assert_eq!(app.check("u").await["budgets"][0]["spent"], json!(0.0036));
        // In the new tier nothing is added.
        assert_eq!(usage(app, json!({"id": "b", "user_id": "u", "model": "gpt-4o", "output_tokens": 100})).await["cost"], json!(0.001));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn checks_and_holds_in_tokens_are_judged_and_reserved_by_what_the_named_model_costs() {
    on_each_database(TIERS, async |app| {
        let ask = |tokens: i64| format!("/v1/users/u/enforcement?model=gpt-4o&input_tokens=1000&output_tokens={tokens}");
        assert_eq!(app.get(&ask(100)).await.ok()["action"], "ALLOW");
        // (1000 × 2.50 + 9000 × 10) / 10⁶ and a fifth is $0.111.
        let over = app.get(&ask(9000)).await.ok();
        assert_eq!((&over["action"], &over["reason"]), (&json!("BLOCK"), &json!("estimate_exceeds_budget")));
        // $0.097 of the $0.1 remain for what comes out of it: at $12 per million tokens.
        assert_eq!(over["max_affordable_output_tokens"], json!(8083));
        app.spend("s", "u", "0.092").await;
        let degraded = app.get(&ask(100)).await.ok();
        assert_eq!((&degraded["action"], &degraded["model"]), (&json!("DEGRADE"), &json!("gpt-4o-mini")));
        // $0.008 is left: less $0.00018 for the input, at $0.72 per million.
        assert_eq!(degraded["max_affordable_output_tokens"], json!(10_861));
        let hold = json!({"id": "h", "user_id": "u", "model": "gpt-4o", "input_tokens": 1000, "output_tokens": 100});
        let held = app.post("/v1/holds", hold.clone()).await.ok();
        assert_eq!((&held["hold"]["amount"], &held["hold"]["model"]), (&json!(0.000252), &json!("gpt-4o-mini")));
        // Its capture is priced by the model that was named.
        let settled = app.post("/v1/holds/h/capture", json!({"input_tokens": 1000, "output_tokens": 50})).await.ok();
        assert_eq!(settled["hold"]["captured"], json!(0.000216));
        assert_eq!(app.post("/v1/holds", hold).await.ok()["repeated"], json!(true));
        let other = json!({"id": "h", "user_id": "u", "model": "gpt-4o", "input_tokens": 1000, "output_tokens": 101});
        app.post("/v1/holds", other).await.problem(409, "id_reused");
        let questions = json!([{"user_id": "u", "model": "gpt-4o", "input_tokens": 1000}, {"user_id": "v", "model": "gpt-4o", "output_tokens": 10_000}]);
        let results = app.post("/v1/enforcement", questions).await.ok()["results"].clone();
        assert_eq!((&results[0]["action"], &results[1]["action"]), (&json!("DEGRADE"), &json!("BLOCK")));
    })
    .await;
}

#[tokio::test]
async fn a_model_outside_the_tier_is_replaced_where_it_can_be_paid_and_else_blocked_with_a_way_up() {
    on_each_database(TIERS, async |app| {
        let ask = "/v1/users/u/enforcement?model=o1&input_tokens=1000&output_tokens=100";
        let replaced = app.get(ask).await.ok();
        assert_eq!((&replaced["action"], &replaced["reason"]), (&json!("DEGRADE"), &json!("model_not_in_tier")));
        assert_eq!(replaced["model"], "gpt-4o-mini");
        app.spend("s", "u", "0.1").await;
        let blocked = app.get(ask).await.ok();
        assert_eq!((&blocked["action"], &blocked["reason"]), (&json!("BLOCK"), &json!("model_not_in_tier")));
        // `basic` is the next tier, and does not include it either.
        assert_eq!(
            (&blocked["upgrade"]["tier"], &blocked["upgrade_url"]),
            (&json!("pro"), &json!("https://app.example.com/upgrade?from=free"))
        );
        put_in(app, "b", "basic").await;
        let by_provider = app.get("/v1/users/b/enforcement?model=openai%2Fo1&estimated_cost=0.01").await.ok();
        assert_eq!(by_provider["reason"], "model_not_in_tier");
        let hold = app.post("/v1/holds", json!({"id": "h", "user_id": "b", "model": "o1", "estimated_cost": 0.01})).await.ok();
        assert_eq!((&hold["reason"], &hold["hold"]), (&json!("model_not_in_tier"), &Value::Null));
        // What was spent was spent, on whatever model.
        usage(app, json!({"id": "spent", "user_id": "b", "model": "o1", "output_tokens": 1})).await;
    })
    .await;
}

#[tokio::test]
async fn a_model_without_a_price_is_refused_priced_as_another_or_told() {
    on_each_database(TIERS, async |app| {
        let call = |id: &str, user: &str| json!({"id": id, "user_id": user, "model": "brand-new", "input_tokens": 1000});
        let refused = app.post("/v1/usage", call("a", "u")).await;
        assert_eq!(refused.problem(422, "unknown_model")["field"], "model");
        put_in(app, "lab", "lab").await;
        let list = app.post("/v1/usage", json!([call("x", "lab"), call("y", "u")])).await;
        assert_eq!(list.problem(422, "unknown_model")["field"], "[1].model");
        put_in(app, "p", "pro").await;
        let blocked = app.get("/v1/users/p/enforcement?model=brand-new&input_tokens=1000").await.ok();
        assert_eq!((&blocked["action"], &blocked["reason"]), (&json!("BLOCK"), &json!("unknown_model")));
        let told = app.get("/v1/users/lab/enforcement?model=brand-new&input_tokens=1000").await.ok();
        assert_eq!((&told["action"], &told["unpriced"]), (&json!("ALLOW"), &json!(true)));
        let flagged = usage(app, call("b", "lab")).await;
        assert_eq!((&flagged["cost"], &flagged["unpriced"]), (&json!(0), &json!(true)));
        assert_eq!(app.get("/v1/users/lab/usage").await.ok()["entries"][0]["unpriced"], json!(true));
        put_in(app, "late", "late").await;
        assert_eq!(usage(app, call("c", "late")).await["cost"], json!(0.0025));
        assert_eq!(app.get("/v1/users/late/usage").await.ok()["entries"][0]["pricing"]["price_as"], json!(true));
        let prices = app.get("/v1/prices").await.ok();
        assert_eq!((&prices["unpriced"][0]["model"], &prices["unpriced"][0]["times"]), (&json!("brand-new"), &json!(5)));
        app.get("/v1/prices?model=brand-new").await.problem(404, "price_not_found");
        assert_eq!(app.get("/v1/prices?model=openai/gpt-4o").await.ok()["input"], json!(2.5));
    })
    .await;
}

#[tokio::test]
async fn a_repeat_in_tokens_is_answered_as_the_first_time_when_its_model_has_no_price_any_more() {
    on_each_database(TIERS, async |app| {
        put_in(app, "u", "pro").await;
        let call = json!({"id": "a", "user_id": "u", "model": "gpt-4o", "input_tokens": 1000});
        usage(app, call.clone()).await;
        app.restart_with_prices("models: { gpt-4o: { input: 1 }, gpt-4o-mini: { input: 1 } }").await;
        app.restart_with_prices("models: { gpt-4o-mini: { input: 1 }, other: { input: 1, aliases: [gpt-4o] } }").await;
        let new = app.post("/v1/usage", json!([call, {"id": "b", "user_id": "u", "model": "gpt-4o", "input_tokens": 1000}])).await.ok();
        assert_eq!((&new["results"][0]["repeated"], &new["results"][0]["cost"]), (&json!(true), &json!(0.0025)));
        assert_eq!((&new["results"][1]["repeated"], &new["results"][1]["cost"]), (&json!(false), &json!(0.001)));
        let gone = "default_tier: free\ntiers:\n  free: { rank: 0, budgets: { daily: 1 }, policy: strict }\n";
        app.restart_with(gone).await;
        app.restart_with_prices("models: { other: { input: 1 } }").await;
        let again = usage(app, call.clone()).await;
        assert_eq!((&again["repeated"], &again["cost"]), (&json!(true), &json!(0.0025)));
        app.post("/v1/usage", json!({"id": "c", "user_id": "u", "model": "gpt-4o", "input_tokens": 1})).await.problem(422, "unknown_model");
    })
    .await;
}

#[tokio::test]
async fn what_tokens_cost_follows_a_plan_that_another_node_heard_of() {
    on_each_database(TIERS, async |app| {
        if !app.is_postgres() {
            return;
        }
        let mut other = app.node(|config| config).await;
        let call = |id: &str| json!({"id": id, "user_id": "payer", "model": "gpt-4o", "input_tokens": 1000});
        assert_eq!(other.post("/v1/usage", call("a")).await.ok()["cost"], json!(0.003));
        for event in crate::stripe::paying("payer", "price_pro") {
            app.apply(event).await;
        }
        // In `pro` nothing is added to the price.
        assert_eq!(other.post("/v1/usage", call("b")).await.ok()["cost"], json!(0.0025));
        other.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_capture_is_priced_by_the_provider_of_its_hold_and_what_reduces_holds_what_its_model_needs() {
    on_each_database(TIERS, async |app| {
        let book =
            "models: { gpt-4o: { input: 10 }, gpt-4o-mini: { input: 1 }, llama: { input: 9 }, groq/llama: { provider: groq, input: 2 } }";
        app.restart_with_prices(book).await;
        put_in(app, "p", "pro").await;
        let hold = json!({"id": "h", "user_id": "p", "model": "llama", "provider": "Groq", "input_tokens": 1000});
        assert_eq!(app.post("/v1/holds", hold).await.ok()["hold"]["amount"], json!(0.002));
        assert_eq!(app.post("/v1/holds/h/capture", json!({"input_tokens": 500})).await.ok()["hold"]["captured"], json!(0.001));
        // $0.1 a day, a fifth on top: 10 000 tokens of gpt-4o do not fit, and of gpt-4o-mini need $0.012.
        let reduce = json!({"id": "r", "user_id": "u", "model": "gpt-4o", "input_tokens": 10_000, "if_short": "reduce"});
        let held = app.post("/v1/holds", reduce).await.ok();
        assert_eq!((&held["hold"]["model"], &held["hold"]["amount"]), (&json!("gpt-4o-mini"), &json!(0.012)));
    })
    .await;
}

#[tokio::test]
async fn a_capture_that_counts_nothing_says_so_and_one_that_names_no_model_is_refused() {
    on_each_database(TIERS, async |app| {
        put_in(app, "lab", "lab").await;
        for (id, model) in [("h", None), ("n", Some("brand-new"))] {
            let hold = json!({"id": id, "user_id": "lab", "estimated_cost": 0.5, "model": model});
            app.post("/v1/holds", hold).await.ok();
        }
        let tokens = json!({"input_tokens": 1000, "output_tokens": 500});
        let refused = app.post("/v1/holds/h/capture", &tokens).await.problem(422, "unknown_model");
        assert_eq!(refused["field"], "model");
        assert_eq!(app.get("/v1/holds/h").await.ok()["state"], "open");
        for repeated in [false, true] {
            let told = app.post("/v1/holds/n/capture", &tokens).await.ok();
            let expected = (&json!(0), &json!(repeated), &json!(true));
            assert_eq!((&told["hold"]["captured"], &told["repeated"], &told["unpriced"]), expected, "{told}");
        }
        let told = app.post("/v1/holds/h/capture", json!({"cost": 0})).await.ok();
        assert_eq!(told.get("unpriced"), None, "{told}");
    })
    .await;
}

#[tokio::test]
async fn a_late_record_is_priced_as_it_was() {
    on_each_database(TIERS, async |app| {
        put_in(app, "u", "pro").await;
        let million = |id: &str, time: &str| json!({"id": id, "user_id": "u", "model": "dated", "time": time, "input_tokens": 1_000_000});
        // The book of the repository has no such model: this one is read at the next start.
        let prices = "models: { gpt-4o: { input: 1 }, gpt-4o-mini: { input: 1 }, dated: { prices: [{ valid_from: 2024-05-13, input: 5 }, { valid_from: 2025-10-02, input: 2 }] } }";
        app.restart_with_prices(prices).await;
        assert_eq!(usage(app, million("a", "2025-10-01T23:59:59Z")).await["cost"], json!(5));
        assert_eq!(usage(app, million("b", "2026-01-12T00:00:00Z")).await["cost"], json!(2));
    })
    .await;
}

#[tokio::test]
async fn a_free_model_is_held_for_nothing_however_full_the_budget_is() {
    on_each_database(TIERS, async |app| {
        put_in(app, "u", "basic").await;
        app.restart_with_prices("models: { local: { input: 0, output: 0 }, gpt-4o: { input: 1 }, gpt-4o-mini: { input: 1 } }").await;
        app.spend("s", "u", "0.2").await;
        let hold = json!({"id": "h", "user_id": "u", "model": "local", "input_tokens": 10});
        let held = app.post("/v1/holds", hold).await.ok();
        assert_eq!((&held["reason"], &held["hold"]["amount"]), (&json!("free_model"), &json!(0)));
        assert_eq!(app.post("/v1/holds/h/capture", json!({"input_tokens": 10})).await.ok()["hold"]["captured"], json!(0));
        assert_eq!(app.get("/v1/users/u/enforcement?model=gpt-4o").await.ok()["action"], "BLOCK");
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn counts_that_cannot_be_are_refused_by_the_field() {
    on_each_database(TIERS, async |app| {
        let with = |more: Value| {
            let mut body = json!({"id": "a", "user_id": "u", "model": "gpt-4o"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let cases = [
            (json!({}), "missing_field", "cost"),
            (json!({"model": null, "input_tokens": 1}), "missing_field", "cost"),
            (json!({"input_tokens": -1}), "invalid_field", "input_tokens"),
            (json!({"output_tokens": 1_000_000_001}), "invalid_field", "output_tokens"),
            (json!({"input_tokens": 5, "cached_input_tokens": 3, "cache_write_tokens": 3}), "invalid_field", "input_tokens"),
            (json!({"input_tokens": 5, "reasoning_tokens": 1}), "invalid_field", "output_tokens"),
            (json!({"inputTokens": 5}), "unknown_field", "inputTokens"),
        ];
        for (more, code, field) in cases {
            let body = with(more);
            assert_eq!(app.post("/v1/usage", &body).await.problem(422, code)["field"], field, "{body}");
        }
        let path = "/v1/users/u/enforcement?input_tokens=5";
        assert_eq!(app.get(path).await.problem(422, "missing_field")["field"], "model");
        let hold = json!({"id": "h", "user_id": "u", "model": "gpt-4o"});
        assert_eq!(app.post("/v1/holds", &hold).await.problem(422, "missing_field")["field"], "estimated_cost");
        let hold = json!({"id": "h", "user_id": "u", "model": "gpt-4o", "input_tokens": 0});
        assert_eq!(app.post("/v1/holds", &hold).await.problem(422, "invalid_field")["field"], "input_tokens");
    })
    .await;
}
