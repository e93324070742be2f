//! The operator's own rules, as callers meet them.

use serde_json::{Value, json};

use crate::app::on_each_database;

const TIERS: &str = "default_tier: free\nupgrade_url: https://app.example.com/upgrade?from={tier}\nrules:\n  \
    - { name: system_cap, when: estimate > 5, action: BLOCK, message: No call costs more than $5. }\n  \
    - { name: no_agents_at_night, when: \"has(metadata.agent) && now.getHours() < 6\", action: BLOCK, message: Agents rest at night. }\ntiers:\n  \
    free:\n    rank: 0\n    budgets: { daily: 10 }\n    policy: graceful\n    degrade_to: { default: gpt-4o-mini }\n    rules:\n      \
    - { name: cheap_models_only, when: \"model == 'gpt-4o' && output_tokens > 100\", action: DEGRADE }\n      \
    - { name: half_is_much, when: \"budgets.daily.used_pct > 50.0\", action: WARN, message: Half of it is gone. }\n  \
    pro:\n    rank: 10\n    prices: [price_pro]\n    budgets: { daily: 10 }\n    policy: strict\n    rules:\n      \
    - { name: needs_a_feature, when: \"metadata.feature == 'chat'\", action: WARN }\n";

#[tokio::test]
async fn rules_make_answers_stricter_and_say_which_one_did() {
    on_each_database(TIERS, async |app| {
        let ask = async |body: Value| {
            let answer = app.post("/v1/enforcement", body).await.ok();
            (answer["action"].as_str().unwrap().to_owned(), answer["reason"].clone(), answer["rule"].clone(), answer["message"].clone())
        };
        let (action, reason, rule, message) = ask(json!({"user_id": "u", "estimated_cost": 5.000000001})).await;
        assert_eq!((&*action, reason, rule), ("BLOCK", json!("rule"), json!("system_cap")));
        assert_eq!(message, "No call costs more than $5.");
        let (action, reason, rule, _) = ask(json!({"user_id": "u", "estimated_cost": 5})).await;
        assert_eq!((&*action, reason, rule), ("ALLOW", json!("within_budget"), Value::Null));
        // By day agents may, by night they may not.
        let agent = json!({"user_id": "u", "metadata": {"agent": true}});
        assert_eq!(ask(agent.clone()).await.0, "ALLOW");
        app.set_clock("2026-01-13T05:59:59Z");
        assert_eq!((ask(agent.clone()).await.2, ask(agent.clone()).await.0), (json!("no_agents_at_night"), "BLOCK".to_owned()));
        app.set_clock("2026-01-13T06:00:00Z");
        assert_eq!(ask(agent).await.0, "ALLOW");
        app.spend("s", "u", "6").await;
        assert_eq!(ask(json!({"user_id": "u"})).await.2, "half_is_much");
        // What the budgets say is said too, where it is as strict.
        app.spend("t", "u", "2.5").await;
        assert_eq!(ask(json!({"user_id": "u"})).await.1, "warn_threshold");
    })
    .await;
}

#[tokio::test]
async fn a_rule_degrades_to_a_cheaper_model_and_holds_obey_rules_too() {
    on_each_database(TIERS, async |app| {
        let path = "/v1/users/u/enforcement?model=gpt-4o&input_tokens=1000&output_tokens=101";
        let degraded = app.get(path).await.ok();
        assert_eq!(
            (&degraded["action"], &degraded["model"], &degraded["rule"]),
            (&json!("DEGRADE"), &json!("gpt-4o-mini"), &json!("cheap_models_only"))
        );
        let hold = json!({"id": "h", "user_id": "u", "model": "gpt-4o", "input_tokens": 1000, "output_tokens": 101});
        let held = app.post("/v1/holds", hold).await.ok();
        assert_eq!((&held["hold"]["model"], &held["rule"]), (&json!("gpt-4o-mini"), &json!("cheap_models_only")));
        let blocked = app.post("/v1/holds", json!({"id": "i", "user_id": "u", "estimated_cost": 6, "if_short": "reduce"})).await.ok();
        assert_eq!((&blocked["hold"], &blocked["rule"]), (&Value::Null, &json!("system_cap")));
        // The same hold with other metadata is another body.
        let with = |agent: bool| json!({"id": "j", "user_id": "u", "estimated_cost": 1, "metadata": {"agent": agent}});
        app.post("/v1/holds", with(true)).await.ok();
        assert_eq!(app.post("/v1/holds", with(true)).await.ok()["repeated"], true);
        app.post("/v1/holds", with(false)).await.problem(409, "id_reused");
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_fails_blocks_says_so_and_is_counted() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/p", json!({"tier": "pro", "reason": "test"})).await.ok();
        let chat = json!({"user_id": "p", "metadata": {"feature": "chat"}});
        assert_eq!(app.post("/v1/enforcement", chat).await.ok()["action"], "WARN");
        let failed = app.post("/v1/enforcement", json!({"user_id": "p", "metadata": {"secret": "4711"}})).await.ok();
        assert_eq!((&failed["action"], &failed["reason"], &failed["rule"]), (&json!("BLOCK"), &json!("rule"), &json!("needs_a_feature")));
        let message = failed["message"].as_str().unwrap();
        assert!(message.contains("`needs_a_feature` could not be judged") && !message.contains("4711"), "{message}");
        assert_eq!(app.get("/readyz").await.ok()["failed_rules"], json!({"needs_a_feature": 1}));
        app.post("/v1/enforcement", json!({"user_id": "p", "metadata": {"big": "x".repeat(5000)}})).await.problem(422, "invalid_field");
    })
    .await;
}
