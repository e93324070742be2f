//! The two-phase way to spend: exact, once, and gone by itself.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::app::{TIERS, TestApp, on_each_database};

fn ask(id: &str, user: &str, cost: impl Into<Value>) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost.into()})
}

async fn daily(app: &TestApp, user: &str) -> (Value, Value, Value) {
    let answer = app.check(user).await;
    let budget = &answer["budgets"][0];
    (answer["action"].clone(), budget["spent"].clone(), budget["held"].clone())
}

#[tokio::test]
async fn a_hold_reserves_and_a_capture_settles_what_was_really_spent() {
    on_each_database(TIERS, async |app| {
        let answer = app.post("/v1/holds", json!({"id": "h", "user_id": "u", "estimated_cost": 0.06, "model": "gpt-4o"})).await.ok();
        assert_eq!((&answer["action"], &answer["repeated"]), (&json!("ALLOW"), &json!(false)));
        assert_eq!(
            answer["hold"],
            json!({"id": "h", "user_id": "u", "amount": 0.06, "model": "gpt-4o", "state": "open", "created_at": "2026-01-12T12:00:00Z",
                "expires_at": "2026-01-12T12:10:00Z", "ended_at": null, "captured": null, "over_hold": false, "late": false})
        );
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0), json!(0.06)));
        let refused = app.post("/v1/holds", ask("h2", "u", 0.05)).await.ok();
        assert_eq!(
            (&refused["action"], &refused["reason"], &refused["hold"]),
            (&json!("BLOCK"), &json!("estimate_exceeds_budget"), &Value::Null)
        );
        assert!(refused["upgrade_url"].is_string());
        let settled = app.post("/v1/holds/h/capture", json!({"cost": 0.04, "output_tokens": 7})).await.ok();
        assert_eq!((&settled["hold"]["state"], &settled["hold"]["captured"]), (&json!("captured"), &json!(0.04)));
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0.04), json!(0)));
        let entry = &app.get("/v1/users/u/usage").await.ok()["entries"][0];
        assert_eq!((&entry["id"], &entry["kind"], &entry["model"]), (&json!("h"), &json!("capture"), &json!("gpt-4o")));
        // The same id asks again once there is room: nothing was remembered of the refusal.
        assert_eq!(app.post("/v1/holds", ask("h2", "u", 0.05)).await.ok()["hold"]["state"], "open");
        let over = app.post("/v1/holds/h2/capture", json!({"cost": 0.09})).await.ok();
        assert_eq!(over["hold"]["over_hold"], json!(true));
        assert_eq!(daily(app, "u").await, (json!("BLOCK"), json!(0.13), json!(0)));
        app.restart().await;
        assert_eq!(daily(app, "u").await, (json!("BLOCK"), json!(0.13), json!(0)));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn repeats_are_answered_as_the_first_time_and_other_bodies_refused() {
    on_each_database(TIERS, async |app| {
        let first = app.post("/v1/holds", ask("h", "u", 0.05)).await.ok();
        app.spend("s", "u", "0.05").await;
        app.restart().await;
        app.advance(TimeDelta::seconds(5));
        let mut again = app.post("/v1/holds", ask("h", "u", "5e-2")).await.ok();
        assert_eq!(again["repeated"], json!(true));
        again["repeated"] = json!(false);
        assert_eq!(again, first);
        for other in
            [ask("h", "u", 0.04), ask("h", "v", 0.05), json!({"id": "h", "user_id": "u", "estimated_cost": 0.05, "ttl_seconds": 60})]
        {
            app.post("/v1/holds", other).await.problem(409, "id_reused");
        }
        let captured = app.post("/v1/holds/h/capture", json!({"cost": 0.05})).await.ok();
        app.restart().await;
        let again = app.post("/v1/holds/h/capture", json!({"cost": 0.05})).await.ok();
        assert_eq!((&again["repeated"], &again["hold"]), (&json!(true), &captured["hold"]));
        app.post("/v1/holds/h/capture", json!({"cost": 0.06})).await.problem(409, "hold_ended");
        app.post("/v1/holds/h/release", "").await.problem(409, "hold_ended");
        app.post("/v1/holds/none/capture", json!({"cost": 0.05})).await.problem(404, "hold_not_found");
        app.get("/v1/holds/none").await.problem(404, "hold_not_found");
        // A usage record may have the id of a hold: ids are unique among their kind.
        app.spend("h", "u", "0.01").await;
        assert_eq!(app.user("u").await["lifetime"], json!({"spent": 0.11, "entries": 3}));
    })
    .await;
}

#[tokio::test]
async fn a_hold_expires_by_the_clock_alone_and_a_late_capture_still_counts() {
    on_each_database(TIERS, async |app| {
        let body = json!({"id": "h", "user_id": "u", "estimated_cost": 0.1, "ttl_seconds": 60});
        app.post("/v1/holds", body).await.ok();
        assert_eq!(daily(app, "u").await.0, "BLOCK");
        app.advance(TimeDelta::seconds(30));
        let extended = app.post("/v1/holds/h/extend", json!({"ttl_seconds": 60})).await.ok();
        assert_eq!(extended["hold"]["expires_at"], "2026-01-12T12:01:30Z");
        app.restart().await;
        app.advance(TimeDelta::seconds(59));
        assert_eq!(daily(app, "u").await, (json!("BLOCK"), json!(0), json!(0.1)));
        app.advance(TimeDelta::seconds(1));
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0), json!(0)));
        assert_eq!(app.get("/v1/holds/h").await.ok()["state"], "expired");
        app.post("/v1/holds/h/release", "").await.problem(409, "hold_ended");
        app.post("/v1/holds/h/extend", json!({"ttl_seconds": 60})).await.problem(409, "hold_ended");
        // A clock that steps back finds it open again.
        app.advance(TimeDelta::seconds(-1));
        assert_eq!(daily(app, "u").await, (json!("BLOCK"), json!(0), json!(0.1)));
        app.advance(TimeDelta::seconds(100));
        let late = app.post("/v1/holds/h/capture", json!({"cost": 0.02})).await.ok();
        assert_eq!((&late["hold"]["late"], &late["hold"]["state"]), (&json!(true), &json!("captured")));
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0.02), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn a_released_hold_gives_everything_back() {
    on_each_database(TIERS, async |app| {
        app.post("/v1/holds", ask("h", "u", 0.1)).await.ok();
        // Whoever says what it cost meant to capture it.
        assert_eq!(app.post("/v1/holds/h/release", json!({"cost": 0.05})).await.problem(422, "unknown_field")["field"], "cost");
        app.post("/v1/holds/h/release", "{").await.problem(400, "malformed_json");
        let released = app.post("/v1/holds/h/release", "{}").await.ok();
        assert_eq!((&released["hold"]["state"], &released["repeated"]), (&json!("released"), &json!(false)));
        assert_eq!(app.post("/v1/holds/h/release", "").await.ok()["repeated"], json!(true));
        app.post("/v1/holds/h/capture", json!({"cost": 0.1})).await.problem(409, "hold_ended");
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn a_hold_ends_whole_also_on_a_clock_of_nanoseconds() {
    on_each_database(TIERS, async |app| {
        app.set_clock("2026-01-12T12:00:00.123456789Z");
        for (id, end) in [("r", "release"), ("c", "capture"), ("e", "extend")] {
            app.post("/v1/holds", ask(id, "u", 0.02)).await.ok();
            let body = match end {
                "capture" => json!({"cost": 0.001}).to_string(),
                "extend" => json!({"ttl_seconds": 900}).to_string(),
                _ => String::new(),
            };
            app.advance(TimeDelta::nanoseconds(1_234_567));
            app.post(&format!("/v1/holds/{id}/{end}"), body).await.ok();
        }
        let from_memory = daily(app, "u").await;
        assert_eq!(from_memory, (json!("ALLOW"), json!(0.001), json!(0.02)));
        app.restart().await;
        assert_eq!(daily(app, "u").await, from_memory);
    })
    .await;
}

#[tokio::test]
async fn a_hold_that_is_short_may_take_what_is_left() {
    on_each_database(TIERS, async |app| {
        app.spend("s", "u", "0.03").await;
        let reduce = |id: &str, cost: f64| json!({"id": id, "user_id": "u", "estimated_cost": cost, "if_short": "reduce"});
        let answer = app.post("/v1/holds", reduce("a", 0.5)).await.ok();
        assert_eq!((&answer["action"], &answer["hold"]["amount"]), (&json!("WARN"), &json!(0.07)));
        let none = app.post("/v1/holds", reduce("b", 0.5)).await.ok();
        assert_eq!((&none["action"], &none["hold"]), (&json!("BLOCK"), &Value::Null));
    })
    .await;
}

#[tokio::test]
async fn one_call_decides_and_reserves() {
    on_each_database(TIERS, async |app| {
        let body = json!({"user_id": "u", "estimated_cost": 0.06, "hold": true, "id": "h", "ttl_seconds": 5});
        let answer = app.post("/v1/enforcement", &body).await.ok();
        assert_eq!((&answer["action"], &answer["hold"]["expires_at"]), (&json!("ALLOW"), &json!("2026-01-12T12:00:05Z")));
        let list = json!([
            {"user_id": "u", "estimated_cost": 0.03, "hold": true, "id": "i"},
            {"user_id": "u"},
            {"user_id": "u", "estimated_cost": 0.03, "hold": true, "id": "j"},
            {"user_id": "u", "estimated_cost": 0.05, "hold": true, "id": "h"},
        ]);
        let answers = app.post("/v1/enforcement", list).await.ok();
        let results = answers["results"].as_array().unwrap();
        assert_eq!((&results[0]["hold"]["amount"], &results[2]["hold"]), (&json!(0.03), &Value::Null));
        assert_eq!((&results[1]["action"], &results[3]["code"]), (&json!("ALLOW"), &json!("id_reused")));
        let check = async |body: Value, code: &str, field: &str| {
            assert_eq!(app.post("/v1/enforcement", &body).await.problem(422, code)["field"], field, "{body}");
        };
        check(json!({"user_id": "u", "hold": true, "estimated_cost": 1}), "missing_field", "id").await;
        check(json!({"user_id": "u", "hold": true, "id": "x"}), "missing_field", "estimated_cost").await;
        check(json!([{"user_id": "u", "id": "x"}]), "invalid_field", "[0].id").await;
    })
    .await;
}

#[tokio::test]
async fn sixty_four_at_once_never_pass_a_limit_and_reach_it() {
    let tiers = format!("global: {{ budgets: {{ total: 2.5 }}, policy: strict }}\n{TIERS}");
    on_each_database(&tiers, async |app| {
        let app = &*app;
        for round in 0..10 {
            // Each round has its own user, whose limit is 0.10; 64 ask for 0.003 each, so 33 fit.
            let user = format!("u{round}");
            let posts = (0..64).map(|number| app.post("/v1/holds", ask(&format!("{round}-{number}"), &user, 0.003)));
            let admitted = join_all(posts).await.iter().filter(|answer| answer.ok()["hold"].is_object()).count();
            assert_eq!(admitted, 33, "round {round}");
            let paths: Vec<String> = (0..64).map(|number| format!("/v1/holds/{round}-{number}/capture")).collect();
            let captures = paths.iter().map(|path| app.post(path, json!({"cost": 0.003})));
            let captured = join_all(captures).await.iter().filter(|answer| answer.status == 200).count();
            assert_eq!(captured, 33);
            assert_eq!(daily(app, &user).await, (json!("WARN"), json!(0.099), json!(0)));
        }
        // The limit of all together: 0.99 is spent of 2.50; enterprise users, who have no hard limit of their own.
        let rich = |number: usize| format!("rich{}", number % 8);
        for number in 0..8 {
            app.put(&format!("/v1/users/{}", rich(number)), json!({"tier": "enterprise", "reason": "test"})).await.ok();
        }
        let posts = (0..64).map(|number| app.post("/v1/holds", ask(&format!("all-{number}"), &rich(number), 0.05)));
        let admitted = join_all(posts).await.iter().filter(|answer| answer.ok()["hold"].is_object()).count();
        assert_eq!(admitted, 30);
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn the_control_checking_first_and_spending_then_passes_the_limit() {
    on_each_database(TIERS, async |app| {
        let app = &*app;
        let checks = join_all((0..64).map(|_| app.check("u"))).await;
        assert!(checks.iter().all(|answer| answer["action"] == "ALLOW"));
        let names: Vec<String> = (0..64).map(|number| format!("s{number}")).collect();
        join_all(names.iter().map(|id| app.spend(id, "u", "0.003"))).await;
        assert_eq!(daily(app, "u").await, (json!("BLOCK"), json!(0.192), json!(0)));
    })
    .await;
}

#[tokio::test]
async fn holds_are_listed_by_user_and_state() {
    on_each_database(TIERS, async |app| {
        for number in 0..5 {
            let body = json!({"id": format!("h{number}"), "user_id": "u", "estimated_cost": 0.001, "ttl_seconds": 60 * (1 + number)});
            app.post("/v1/holds", body).await.ok();
        }
        app.post("/v1/holds", ask("other", "v", 0.001)).await.ok();
        app.post("/v1/holds/h3/capture", json!({"cost": 0})).await.ok();
        app.post("/v1/holds/h4/release", "").await.ok();
        app.advance(TimeDelta::seconds(60));
        let ids = async |query: &str| {
            let (mut ids, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("/v1/holds?limit=2&{query}{cursor}")).await.ok();
                ids.extend(page["holds"].as_array().unwrap().iter().map(|hold| hold["id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_cursor"].as_str() else { return ids };
                cursor = format!("&cursor={next}");
            }
        };
        assert_eq!(ids("").await, ["other", "h4", "h3", "h2", "h1", "h0"]);
        assert_eq!(ids("user_id=u&state=open").await, ["h2", "h1"]);
        assert_eq!(ids("state=expired").await, ["h0"]);
        assert_eq!(ids("state=captured").await, ["h3"]);
        assert_eq!(ids("state=released").await, ["h4"]);
        assert_eq!(app.get("/v1/holds?state=lost").await.problem(422, "invalid_field")["field"], "state");
        assert_eq!(app.get("/v1/holds?user_id=").await.problem(422, "invalid_field")["field"], "user_id");
    })
    .await;
}

#[tokio::test]
async fn holds_that_make_no_sense_are_refused_by_field() {
    on_each_database(TIERS, async |app| {
        let check = async |body: Value, code: &str, field: &str| {
            assert_eq!(app.post("/v1/holds", &body).await.problem(422, code)["field"], field, "{body}");
        };
        check(ask("h", "u", 0), "invalid_field", "estimated_cost").await;
        check(ask("h", "u", -1), "invalid_field", "estimated_cost").await;
        check(json!({"id": "h", "user_id": "u"}), "missing_field", "estimated_cost").await;
        for ttl in [json!(0), json!(-1), json!(86_401), json!(1.5), json!("60")] {
            check(json!({"id": "h", "user_id": "u", "estimated_cost": 1, "ttl_seconds": ttl}), "invalid_field", "ttl_seconds").await;
        }
        check(json!({"id": "h", "user_id": "u", "estimated_cost": 1, "if_short": "shrink"}), "invalid_field", "if_short").await;
        app.put("/v1/users/big", json!({"tier": "enterprise", "reason": "test"})).await.ok();
        for number in 0..9 {
            app.post("/v1/holds", ask(&format!("b{number}"), "big", 1_000_000_000)).await.ok();
        }
        check(ask("b9", "big", 1_000_000_000), "invalid_field", "estimated_cost").await;
        check(json!({"id": "h", "user_id": "u", "estimated_cost": 1, "ttl": 5}), "unknown_field", "ttl").await;
        assert_eq!(app.user("u").await["known"], json!(false));
    })
    .await;
}

#[tokio::test]
async fn a_correction_takes_back_what_is_booked_and_is_audited() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.10").await;
        let correct = |id: &str, amount: f64| {
            json!({"id": id, "user_id": "u", "amount": amount, "reason": "double billing", "time": "2026-01-12T09:00:00Z"})
        };
        let first = app.post("/v1/corrections", correct("c", 0.04)).await.ok();
        assert_eq!((&first["amount"], &first["repeated"]), (&json!(0.04), &json!(false)));
        assert_eq!(app.post("/v1/corrections", correct("c", 0.04)).await.ok()["repeated"], json!(true));
        app.post("/v1/corrections", correct("c", 0.05)).await.problem(409, "id_reused");
        let problem = app.post("/v1/corrections", correct("d", 0.07)).await.problem(422, "invalid_field");
        assert_eq!(problem["field"], "amount");
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0.06), json!(0)));
        app.restart().await;
        assert_eq!(daily(app, "u").await, (json!("ALLOW"), json!(0.06), json!(0)));
        let sums = app.get("/v1/users/u/usage?group_by=day").await.ok();
        assert_eq!((&sums["sums"][0]["spent"], &sums["sums"][0]["entries"]), (&json!(0.06), &json!(2)));
        for body in [correct("e", 0.0), correct("e", -0.01), json!({"id": "e", "user_id": "u", "amount": 0.01, "time": "2026-01-12T09:00:00Z"})] {
            assert_eq!(app.post("/v1/corrections", body).await.status, 422);
        }
        assert_eq!(app.column("SELECT reason FROM audit").await, ["double billing"]);
        assert!(app.verify().contains(" 0 disagreements"));
        app.execute("UPDATE users SET spent = spent + 1; DELETE FROM usage WHERE kind = 'correction'").await;
        let told = app.verify();
        assert!(told.contains("lifetime spend of user u: the counter says 60000001 in 2 entries, its rows make 100000000 in 1 entries"), "{told}");
    })
    .await;
}
