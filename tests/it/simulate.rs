//! The recorded usage under another catalogue.

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::config::Config;

use crate::app::{Database, TestApp, on_each_database};
use crate::cli::run;

/// Nothing is ever blocked: whatever is recorded goes in.
const TIERS: &str = "default_tier: free\ntiers:\n  \
    free: { rank: 0, budgets: { daily: 1 }, policy: monitor }\n  \
    team: { rank: 1, budgets: { daily: 1 }, policy: monitor }\n";

/// What is tried instead.
const STRICTER: &str = "default_tier: free\ntiers:\n  \
    free: { rank: 0, budgets: { daily: 0.10, monthly: 0.25 }, policy: graceful, degrade_to: { default: gpt-4o-mini } }\n  \
    team: { rank: 1, budgets: { daily: 0.10 }, policy: strict, scope: account }\n";

async fn simulate(app: &TestApp, user: &str, tiers: &str, more: Value) -> Value {
    app.post("/v1/simulate", body(user, tiers, more)).await.ok()
}

fn body(user: &str, tiers: &str, more: Value) -> Value {
    let mut body = json!({"user_id": user, "tiers": tiers});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn record(id: &str, user: &str, cost: f64, time: &str) -> Value {
    json!({"id": id, "user_id": user, "cost": cost, "time": time, "model": "gpt-4o"})
}

/// Three days of one user, recorded in another order than they happened.
async fn three_days(app: &TestApp) {
    let records = json!([
        record("c", "u", 0.035, "2026-01-10T12:00:00Z"),
        record("a", "u", 0.06, "2026-01-10T10:00:00Z"),
        record("b", "u", 0.06, "2026-01-10T11:00:00Z"),
        record("d", "u", 0.10, "2026-01-11T10:00:00Z"),
        record("e", "u", 0.09, "2026-01-12T10:00:00Z"),
        record("f", "v", 0.01, "2026-01-12T10:30:00Z"),
    ]);
    app.post("/v1/usage", records).await.ok();
}

#[tokio::test]
async fn one_users_calls_are_judged_again_in_the_order_of_their_time_and_nothing_is_changed() {
    on_each_database(TIERS, async |app| {
        three_days(app).await;
        let before = (app.user("u").await, app.check("u").await);
        let told = simulate(app, "u", STRICTER, json!({})).await;
        // 6 cents and then 6 more do not fit a day of 10, and 3.5 make it more than 9; 10 fit the next day; of the month's 25 no 9 are left.
        assert_eq!((&told["user_id"], &told["tier"], &told["worst"]), (&json!("u"), &json!("free"), &json!("BLOCK")));
        assert_eq!((&told["calls"], &told["spent"], &told["would_have_spent"]), (&json!(5), &json!(0.345), &json!(0.195)));
        assert_eq!((&told["allow"]["calls"], &told["degrade"]["calls"]), (&json!(1), &json!(2)));
        assert_eq!((&told["block"]["calls"], &told["block"]["cost"]), (&json!(2), &json!(0.15)));
        let first =
            json!({"at": "2026-01-10T11:00:00Z", "reason": "estimate_exceeds_budget", "binding": {"scope": "user", "period": "daily", "source": "tier"}});
        assert_eq!(told["block"]["first"], first);
        assert_eq!((&told["rolled_days"], &told["since"]), (&json!(0), &Value::Null));
        assert_eq!((app.user("u").await, app.check("u").await), before);
        let nobody = simulate(app, "nobody", STRICTER, json!({})).await;
        assert_eq!((&nobody["calls"], &nobody["worst"], &nobody["tier"]), (&json!(0), &json!("ALLOW"), &json!("free")));
        assert_eq!(app.user("nobody").await["known"], false);
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn what_was_spent_before_the_beginning_fills_the_windows_that_were_open() {
    on_each_database(TIERS, async |app| {
        three_days(app).await;
        let since = |since: &str| json!({"since": since});
        // All 15.5 cents of the 10th were spent by then: of the month's 25 there are 9.5 left, which 10 do not fit.
        let told = simulate(app, "u", STRICTER, since("2026-01-11T00:00:00Z")).await;
        assert_eq!((&told["calls"], &told["block"]["calls"], &told["since"]), (&json!(2), &json!(1), &json!("2026-01-11T00:00:00Z")));
        assert_eq!(told["block"]["first"]["binding"]["period"], "monthly");
        // Within a day: 6 cents of that day lie before it, and so do 6 of the month.
        let told = simulate(app, "u", STRICTER, since("2026-01-10T11:00:00Z")).await;
        assert_eq!((&told["calls"], &told["block"]["first"]["at"]), (&json!(4), &json!("2026-01-10T11:00:00Z")));
        assert_eq!(told["would_have_spent"], json!(0.135));
    })
    .await;
}

#[tokio::test]
async fn a_shared_budget_is_filled_by_all_users_of_the_account() {
    on_each_database(TIERS, async |app| {
        for user in ["u", "v"] {
            app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
            app.put(&format!("/v1/users/{user}"), json!({"tier": "team", "reason": "test"})).await.ok();
        }
        let records = json!([
            record("a", "v", 0.06, "2026-01-12T09:00:00Z"),
            record("b", "u", 0.05, "2026-01-12T10:00:00Z"),
            record("c", "v", 0.01, "2026-01-12T11:00:00Z"),
            record("d", "u", 0.03, "2026-01-12T11:30:00Z"),
        ]);
        app.post("/v1/usage", records).await.ok();
        let told = simulate(app, "u", STRICTER, json!({})).await;
        assert_eq!((&told["calls"], &told["block"]["calls"], &told["warn"]["calls"]), (&json!(2), &json!(1), &json!(1)));
        assert_eq!(told["block"]["first"]["binding"], json!({"scope": "account", "period": "daily", "source": "tier"}));
        // What the other one spent before counts as well.
        let told = simulate(app, "u", STRICTER, json!({"since": "2026-01-12T10:00:00Z"})).await;
        assert_eq!((&told["calls"], &told["block"]["calls"]), (&json!(2), &json!(1)));
    })
    .await;
}

#[tokio::test]
async fn degrading_is_priced_where_tokens_are_known_by_the_prices_that_are_tried() {
    on_each_database(TIERS, async |app| {
        let call = |id: &str, time: &str| json!({"id": id, "user_id": "u", "time": time, "model": "gpt-4o", "input_tokens": 10_000, "output_tokens": 6_000});
        app.post("/v1/usage", json!([record("a", "u", 0.08, "2026-01-12T08:00:00Z"), call("b", "2026-01-12T09:00:00Z")])).await.ok();
        let tiers = STRICTER.replace("policy: graceful", "policy: soft");
        // $0.085 at gpt-4o's price.
        let told = simulate(app, "u", &tiers, json!({})).await;
        assert_eq!((&told["degrade"]["calls"], &told["degrade"]["cost"]), (&json!(1), &json!(0.085)));
        assert_eq!((&told["saved_by_degrading"], &told["degraded_at_unknown_cost"]), (&json!(0.0799), &json!(0)));
        let prices = "models: { gpt-4o: { input: 2.5, output: 10 }, gpt-4o-mini: { input: 1, output: 5 } }";
        let told = simulate(app, "u", &tiers, json!({"prices": prices})).await;
        assert_eq!((&told["saved_by_degrading"], &told["would_have_spent"]), (&json!(0.045), &json!(0.12)));
    })
    .await;
}

#[tokio::test]
async fn files_that_make_no_sense_and_more_than_can_be_read_are_refused_by_the_field() {
    on_each_database(TIERS, async |app| {
        let refused = async |body: Value, code: &str| app.post("/v1/simulate", body).await.problem(422, code);
        let faulty = STRICTER.replace("monthly: 0.25", "monhtly: 0.25, daily2: 1");
        let problem = refused(body("u", &faulty, json!({})), "invalid_field").await;
        assert_eq!(problem["field"], "tiers");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("\n3:44: `monhtly` is not a period; did you mean `monthly`?") && detail.contains("\n3:59: `daily2`"),
            "{detail}"
        );
        let problem = refused(body("u", STRICTER, json!({"prices": "models: { a: { inptu: 1 } }"})), "invalid_field").await;
        assert_eq!(problem["field"], "prices");
        assert!(problem["detail"].as_str().unwrap().contains("\n1:16: "), "{problem}");
        assert_eq!(refused(body("u", STRICTER, json!({"since": "yesterday"})), "invalid_field").await["field"], "since");
        assert_eq!(refused(json!({"user_id": "u"}), "missing_field").await["field"], "tiers");
        assert_eq!(refused(body("u", STRICTER, json!({"tires": ""})), "unknown_field").await["field"], "tires");
        for start in (0..20_001).step_by(1000) {
            let call = |n: i32| json!({"id": format!("n{n}"), "user_id": "u", "cost": 0.000001, "time": "2026-01-12T10:00:00Z"});
            let records: Vec<Value> = (start..(start + 1000).min(20_001)).map(call).collect();
            app.post("/v1/usage", json!(records)).await.ok();
        }
        let problem = refused(body("u", STRICTER, json!({})), "invalid_field").await;
        assert_eq!(problem["field"], "since");
        assert!(problem["detail"].as_str().unwrap().contains("20000"), "{problem}");
        assert_eq!(simulate(app, "u", STRICTER, json!({"since": "2026-01-12T10:00:01Z"})).await["calls"], 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_judges_everybody_beside_the_running_service() {
    on_each_database(TIERS, async |app| {
        three_days(app).await;
        app.put("/v1/users/w", json!({"tier": "team", "reason": "test"})).await.ok();
        app.post("/v1/usage", record("g", "w", 0.2, "2026-01-12T11:00:00Z")).await.ok();
        let folder = app.folder.path();
        std::fs::write(folder.join("tiers.yaml"), TIERS).unwrap();
        // Of all together 9.5 cents a day.
        let all = format!("{}global: {{ budgets: {{ daily: 0.095 }}, policy: strict }}\n", STRICTER.replace("  team", "  crew"));
        std::fs::write(folder.join("new.yaml"), &all).unwrap();
        let database = app.database().url();
        let told = |args: &[&str]| run(folder, &[&["simulate"], args].concat(), &[("DATABASE_URL", &database)]);
        let (code, out, err) = told(&["--tiers", "new.yaml", "--json"]);
        assert_eq!(code, 0, "{out}{err}");
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
        assert_eq!((&report["total"]["calls"], &report["total"]["spent"]), (&json!(7), &json!(0.555)));
        let users: Vec<(&str, &str)> = report["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| (user["user_id"].as_str().unwrap(), user["worst"].as_str().unwrap()))
            .collect();
        // 9 of 9.5 cents of the 12th are his who came first; 1 more does not fit, nor do 20. The one who lost most comes first.
        assert_eq!(users, [("w", "BLOCK"), ("u", "BLOCK"), ("v", "BLOCK")]);
        assert_eq!(report["users"][2]["block"]["first"]["binding"], json!({"scope": "global", "period": "daily", "source": "global"}));
        assert_eq!(report["unknown_tiers"], json!([{"tier": "team", "users": 1}]));
        assert_eq!(
            (&report["tiers"][0]["tier"], &report["tiers"][0]["users"], &report["tiers"][0]["blocked"]),
            (&json!("free"), &json!(3), &json!(3))
        );
        let (code, out, err) = told(&["--tiers", "new.yaml", "--since", "2026-01-12"]);
        assert_eq!(code, 0, "{err}");
        for part in ["Under new.yaml", "BLOCK at 2026-01-12T", "The tier team, set by hand for 1, is not there", "calls that cost"] {
            assert!(out.contains(part), "{part} is missing in {out}");
        }
        // Under the tiers that are in force nobody is told anything.
        let (code, out, _) = told(&["--since", "2026-01-01"]);
        assert!(code == 0 && out.contains("Nobody would have been told anything but ALLOW"), "{out}");
        assert!(out.contains("Of $0.555 for 7 calls $0.555 would have been spent."), "{out}");
        std::fs::write(folder.join("bad.yaml"), all.replace("rank: 0", "rnak: 0")).unwrap();
        let (code, _, err) = told(&["--tiers", "bad.yaml"]);
        assert!(code == 2 && err.contains("bad.yaml:3:11: "), "{err}");
        assert_eq!(told(&["--tiers", "missing.yaml"]).0, 2);
        assert_eq!(told(&["--since", "yesterday"]).0, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn days_of_which_only_sums_are_kept_are_told() {
    for database in Database::ALL {
        let mut app = TestApp::start(database, TIERS, |config| Config { retention_days: Some(35), ..config }).await;
        three_days(&app).await;
        app.advance(TimeDelta::days(40));
        app.spend("young", "u", "0.01").await;
        app.restart().await;
        // The service looks for old rows by itself when it starts.
        while 1 < app.get("/v1/users/u/usage").await.ok()["entries"].as_array().unwrap().len() {
            tokio::task::yield_now().await;
        }
        while !app.get("/v1/users/v/usage").await.ok()["entries"].as_array().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let told = simulate(&app, "u", STRICTER, json!({})).await;
        assert_eq!((&told["calls"], &told["rolled_days"]), (&json!(1), &json!(3)));
        let young = simulate(&app, "u", STRICTER, json!({"since": "2026-01-12T00:00:00Z"})).await;
        assert_eq!(young["rolled_days"], 1);
        std::fs::write(app.folder.path().join("new.yaml"), STRICTER).unwrap();
        let url = app.database().url();
        let (_, out, err) = run(app.folder.path(), &["simulate", "--tiers", "new.yaml"], &[("DATABASE_URL", &url)]);
        assert!(out.contains("Not judged: 6 entries of 3 days"), "{out}{err}");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_cap_that_was_half_full_before_is_half_full_where_a_simulation_begins() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u/caps", json!({"monthly": "0.25"})).await.ok();
        three_days(app).await;
        let told = simulate(app, "u", TIERS, json!({"since": "2026-01-12T00:00:00Z"})).await;
        // 25.5 cents were spent before.
        assert_eq!((&told["block"]["calls"], &told["block"]["first"]["binding"]["source"]), (&json!(1), &json!("cap")), "{told}");
    })
    .await;
}
