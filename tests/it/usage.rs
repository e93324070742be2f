//! What was spent: once each, exactly, and on the disk.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{TIERS, on_each_database};

fn record(id: &str, user: &str, cost: impl Into<Value>) -> Value {
    json!({"id": id, "user_id": user, "cost": cost.into()})
}

#[tokio::test]
async fn a_record_is_answered_and_counted_once_however_often_it_comes() {
    on_each_database(TIERS, async |app| {
        let body = json!({"id": "a", "user_id": "u", "cost": 0.03, "model": "gpt-4o", "metadata": {"b": 1, "a": [true]}});
        let first = app.post("/v1/usage", &body).await.ok();
        assert_eq!(
            first,
            json!({"id": "a", "user_id": "u", "cost": 0.03, "time": "2026-01-12T12:00:00Z", "recorded_at": "2026-01-12T12:00:00Z", "repeated": false})
        );
        app.advance(TimeDelta::hours(1));
        // The same body, written differently.
        let same = r#"{"metadata": {"a":[true],"b":1}, "model":"gpt-4o", "cost":"3e-2", "user_id":"u", "id":"a"}"#;
        for _ in 0..2 {
            let again = app.post("/v1/usage", same).await.ok();
            assert_eq!(again["repeated"], json!(true));
            assert_eq!((&again["time"], &again["recorded_at"]), (&first["time"], &first["recorded_at"]));
            app.restart().await;
        }
        let user = app.user("u").await;
        assert_eq!(user["lifetime"], json!({"spent": 0.03, "entries": 1}));
    })
    .await;
}

#[tokio::test]
async fn another_body_under_the_same_id_is_refused_and_books_nothing() {
    on_each_database(TIERS, async |app| {
        app.post("/v1/usage", record("a", "u", 0.01)).await.ok();
        let others = [record("a", "u", 0.02), record("a", "v", 0.01), json!({"id": "a", "user_id": "u", "cost": 0.01, "model": "m"})];
        for other in others {
            let problem = app.post("/v1/usage", &other).await.problem(409, "id_reused");
            assert_eq!(problem["field"], "id");
        }
        let batch = json!([record("b", "u", 0.01), record("a", "u", 0.02)]);
        assert_eq!(app.post("/v1/usage", batch).await.problem(409, "id_reused")["field"], "[1].id");
        assert_eq!(app.user("u").await["lifetime"], json!({"spent": 0.01, "entries": 1}));
        assert_eq!(app.user("v").await["known"], json!(false));
    })
    .await;
}

#[tokio::test]
async fn a_batch_is_booked_whole_with_repeats_inside_and_outside_it() {
    on_each_database(TIERS, async |app| {
        app.post("/v1/usage", record("a", "u", 0.01)).await.ok();
        let batch = json!([record("a", "u", 0.01), record("b", "u", "0.02"), record("b", "u", 0.02), record("c", "v", 0.04)]);
        let answer = app.post("/v1/usage", &batch).await.ok();
        let repeated: Vec<&Value> = answer["results"].as_array().unwrap().iter().map(|result| &result["repeated"]).collect();
        assert_eq!(repeated, [true, false, true, false]);
        assert_eq!(app.user("u").await["lifetime"], json!({"spent": 0.03, "entries": 2}));
        assert_eq!(app.user("v").await["lifetime"], json!({"spent": 0.04, "entries": 1}));
        let thousand = Value::from_iter((0..1000).map(|number| record(&format!("t{number}"), "w", "0.000000001")));
        assert_eq!(app.post("/v1/usage", thousand).await.ok()["results"].as_array().unwrap().len(), 1000);
        assert_eq!(app.user("w").await["lifetime"], json!({"spent": 0.000001, "entries": 1000}));
    })
    .await;
}

#[tokio::test]
async fn concurrent_repeats_count_once_and_concurrent_records_all() {
    on_each_database(TIERS, async |app| {
        let app = &*app;
        app.check("u").await;
        let posts = (0..200).map(|number| app.post("/v1/usage", record(&format!("id-{}", number % 50), "u", 0.001)));
        let answers = futures_util::future::join_all(posts).await;
        let first = answers.iter().filter(|answer| answer.ok()["repeated"] == json!(false)).count();
        assert_eq!(first, 50);
        assert_eq!(app.check("u").await["budgets"][0]["spent"], json!(0.05));
        assert_eq!(app.user("u").await["lifetime"], json!({"spent": 0.05, "entries": 50}));
    })
    .await;
}

#[tokio::test]
async fn the_check_after_an_answer_sees_the_spend_from_memory_and_from_the_disk_alike() {
    on_each_database(TIERS, async |app| {
        assert_eq!(app.user("u").await["known"], json!(false));
        for step in 1..=5 {
            app.spend(&format!("s{step}"), "u", "0.01").await;
            assert_eq!(app.user("u").await["known"], json!(true));
            let from_memory = app.check("u").await;
            assert_eq!(from_memory["budgets"][0]["spent"], json!(0.01 * f64::from(step)), "step {step}");
            app.restart().await;
            assert_eq!(app.check("u").await, from_memory);
        }
    })
    .await;
}

#[tokio::test]
async fn late_usage_counts_where_it_happened() {
    on_each_database(TIERS, async |app| {
        app.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
        let late = async |id: &str, time: &str| {
            let body = json!({"id": id, "user_id": "u", "cost": 0.1, "time": time});
            app.post("/v1/usage", body).await.ok();
            let answer = app.check("u").await;
            let spent = answer["budgets"].as_array().unwrap().iter().map(|budget| budget["spent"].clone());
            Value::from_iter(spent)
        };
        // It is Monday the 12th: daily, weekly, monthly.
        assert_eq!(late("today", "2026-01-12T00:00:00Z").await, json!([0.1, 0.1, 0.1]));
        assert_eq!(late("sunday", "2026-01-11T23:59:59.999Z").await, json!([0.1, 0.1, 0.2]));
        assert_eq!(late("december", "2025-12-31T23:59:59Z").await, json!([0.1, 0.1, 0.2]));
        assert_eq!(late("offset", "2026-01-12T01:00:00+02:00").await, json!([0.1, 0.1, 0.3]));
        assert_eq!(app.user("u").await["lifetime"]["spent"], json!(0.4));
        app.set_clock("2026-01-11T13:00:00Z");
        assert_eq!(app.check("u").await["budgets"][0]["spent"], json!(0.2));
        let days = app.get("/v1/users/u/usage?group_by=day").await.ok();
        let days: Vec<&str> = days["sums"].as_array().unwrap().iter().map(|sum| sum["day"].as_str().unwrap()).collect();
        assert_eq!(days, ["2026-01-12", "2026-01-11", "2025-12-31"]);
    })
    .await;
}

#[tokio::test]
async fn usage_of_a_clock_that_runs_ahead_is_taken_within_five_minutes() {
    on_each_database(TIERS, async |app| {
        app.set_clock("2026-01-12T23:58:00Z");
        let ahead = |id: &str, time: &str| json!({"id": id, "user_id": "u", "cost": 0.1, "time": time});
        app.check("u").await;
        app.post("/v1/usage", ahead("a", "2026-01-13T00:03:00Z")).await.ok();
        let problem = app.post("/v1/usage", ahead("b", "2026-01-13T00:03:00.000001Z")).await.problem(422, "invalid_field");
        assert_eq!(problem["field"], "time");
        assert_eq!(app.check("u").await["action"], "ALLOW");
        app.set_clock("2026-01-13T00:00:00Z");
        assert_eq!(app.check("u").await["action"], "BLOCK");
    })
    .await;
}

#[tokio::test]
async fn entries_page_without_gap_or_repeat_and_sums_agree_with_them() {
    on_each_database(TIERS, async |app| {
        let records = (0..25).map(|number| {
            // Several share a time, so that the order within it matters.
            let time = format!("2026-01-{:02}T10:00:00Z", 1 + number % 5);
            let model = if number % 2 == 0 { "gpt-4o" } else { "small" };
            json!({"id": format!("e{number}"), "user_id": "u", "cost": "0.000000001", "time": time,
                "model": model, "input_tokens": 10, "output_tokens": number})
        });
        app.post("/v1/usage", Value::from_iter(records)).await.ok();
        app.spend("other", "v", "0.05").await;
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = app.get(&format!("/v1/users/u/usage?limit=7{cursor}")).await.ok();
            for entry in page["entries"].as_array().unwrap() {
                seen.push((entry["time"].as_str().unwrap().to_owned(), entry["id"].as_str().unwrap().to_owned()));
            }
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.windows(2).all(|pair| pair[1].0 <= pair[0].0), "{seen:?}");
        let mut ids: Vec<&String> = seen.iter().map(|(_, id)| id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 25);
        let by_model = app.get("/v1/users/u/usage?group_by=model").await.ok();
        assert_eq!(
            by_model["sums"],
            json!([
                {"model": "gpt-4o", "spent": 0.000000013, "entries": 13, "input_tokens": 130, "output_tokens": 156},
                {"model": "small", "spent": 0.000000012, "entries": 12, "input_tokens": 120, "output_tokens": 144}
            ])
        );
        let by_both = app.get("/v1/users/u/usage?group_by=day,model&from=2026-01-02T00:00:00Z&to=2026-01-03T00:00:00Z").await.ok();
        assert_eq!(by_both["sums"].as_array().unwrap().len(), 2);
        assert_eq!((&by_both["sums"][0]["day"], &by_both["next_cursor"]), (&json!("2026-01-02"), &Value::Null));
        let (mut rows, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = app.get(&format!("/v1/users/u/usage?group_by=day,model&limit=3{cursor}")).await.ok();
            rows.extend(page["sums"].as_array().unwrap().iter().map(|sum| (sum["day"].to_string(), sum["model"].to_string())));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(rows.len(), 10);
        assert!(rows.windows(2).all(|pair| pair[1].0 < pair[0].0 || (pair[0].0 == pair[1].0 && pair[0].1 < pair[1].1)), "{rows:?}");
        for group_by in ["day", "model"] {
            let all = app.get(&format!("/v1/users/u/usage?group_by={group_by}")).await.ok();
            let first = app.get(&format!("/v1/users/u/usage?group_by={group_by}&limit=1")).await.ok();
            let next = format!("/v1/users/u/usage?group_by={group_by}&cursor={}", first["next_cursor"].as_str().unwrap());
            assert_eq!(app.get(&next).await.ok()["sums"].as_array().unwrap()[..], all["sums"].as_array().unwrap()[1..]);
        }
        let problem = app.get("/v1/users/u/usage?from=yesterday").await.problem(422, "invalid_field");
        assert_eq!(problem["field"], "from");
        let some = app.get("/v1/users/u/usage?from=2026-01-05T00:00:00Z&to=2026-01-05T10:00:00Z").await.ok();
        assert_eq!(some["entries"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn bad_records_are_refused_by_field_and_nothing_is_booked() {
    on_each_database(TIERS, async |app| {
        let check = async |body: &str, code: &str, field: &str| {
            let problem = app.post("/v1/usage", body).await.problem(422, code);
            assert_eq!(problem["field"], field, "{body}");
        };
        check(r#"{"id":"a","user_id":"u"}"#, "missing_field", "cost").await;
        check(r#"{"id":"a","user_id":"u","cost":null}"#, "missing_field", "cost").await;
        check(r#"{"user_id":"u","cost":1}"#, "missing_field", "id").await;
        check(r#"{"id":"a","user_id":"u","cost":1,"cots":1}"#, "unknown_field", "cots").await;
        check(r#"{"id":"","user_id":"u","cost":1}"#, "invalid_field", "id").await;
        check(r#"{"id":"a\u0000","user_id":"u","cost":1}"#, "invalid_field", "id").await;
        check(r#"{"id":"a","id":"b","user_id":"u","cost":1}"#, "invalid_field", "id").await;
        for cost in
            ["-0.01", "true", "[]", "\"\"", "\"NaN\"", "0.0000000001", "1000000000.000000001", "1e999", "\"1,5\"", "0.30000000000000004"]
        {
            check(&format!(r#"{{"id":"a","user_id":"u","cost":{cost}}}"#), "invalid_field", "cost").await;
        }
        for (field, value) in [
            ("input_tokens", "-1"),
            ("input_tokens", "1.5"),
            ("output_tokens", "1000000000001"),
            ("time", "\"now\""),
            ("time", "\"1969-12-31T23:59:59Z\""),
            ("metadata", "5"),
            ("model", "\"\""),
        ] {
            check(&format!(r#"{{"id":"a","user_id":"u","cost":1,"{field}":{value}}}"#), "invalid_field", field).await;
        }
        let large = json!({"id": "a", "user_id": "u", "cost": 1, "metadata": {"note": "x".repeat(5000)}});
        check(&large.to_string(), "invalid_field", "metadata").await;
        let batch = r#"[{"id":"a","user_id":"u","cost":1},{"id":"b","user_id":"u","cost":-1}]"#;
        check(batch, "invalid_field", "[1].cost").await;
        assert_eq!(app.user("u").await["known"], json!(false));
    })
    .await;
}

#[tokio::test]
async fn totals_beyond_what_can_be_counted_are_refused_not_wrapped() {
    on_each_database(TIERS, async |app| {
        for number in 0..9 {
            app.spend(&format!("a{number}"), "u", "1000000000").await;
        }
        let problem = app.post("/v1/usage", record("b", "u", "1000000000")).await.problem(422, "invalid_field");
        assert_eq!(problem["field"], "cost");
        app.post("/v1/usage", record("b", "u", "1000000000")).await.problem(422, "invalid_field");
        // What one user has made of it is no matter to others.
        app.spend("e", "v", "1000000000").await;
        app.spend("c", "u", "223372036.854775807").await;
        app.post("/v1/usage", record("d", "u", "0.000000001")).await.problem(422, "invalid_field");
        assert_eq!(app.check("u").await["action"], "BLOCK");
    })
    .await;
}

#[tokio::test]
async fn ids_of_every_shape_go_through_path_and_body_alike() {
    on_each_database(TIERS, async |app| {
        let ids = ["auth0|5f7c8ec7", "ada@example.com", "a/b", "?x=1#y", "100%", "Zoë 東京", "'; DROP TABLE users; --", "\"quoted\"", "+"];
        for (number, id) in ids.into_iter().enumerate() {
            app.spend(&format!("i{number}"), id, "0.01").await;
            let path: String = form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>().replace('+', "%20");
            let answer = app.get(&format!("/v1/users/{path}/enforcement")).await.ok();
            assert_eq!((&answer["user_id"], &answer["budgets"][0]["spent"]), (&json!(id), &json!(0.01)));
        }
        assert_eq!(app.get("/v1/users?limit=1000").await.ok()["users"].as_array().unwrap().len(), ids.len());
    })
    .await;
}
