//! Keys are made, replaced and ended, by the command line and through the doors.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{ADMIN_KEY, Answer, NOON, TIERS, TestApp, on_each_database};
use crate::auth::{ask, keys, made, try_keys};

async fn opens(app: &TestApp, bearer: &str) -> bool {
    match ask(app, "GET", "/v1/tiers", Some(bearer)).await.status {
        200 => true,
        401 => false,
        other => panic!("{other}"),
    }
}

async fn revoke(app: &TestApp, key_id: &str) -> Answer {
    app.send(app.client.delete(app.url(&format!("/v1/keys/{key_id}"))).bearer_auth(ADMIN_KEY)).await
}

/// All keys but the one of the tests, by their ids.
async fn listed(app: &TestApp) -> Vec<Value> {
    let listed = app.get("/v1/keys").await.ok();
    listed["keys"].as_array().unwrap().iter().filter(|key| key["key_id"] != "environment").cloned().collect()
}

/// The key and its id, as `create` and `rotate` print them.
fn printed(told: &str) -> (String, String) {
    let mut lines = told.lines();
    let (key, id) = (lines.next().unwrap(), lines.next().unwrap().split(' ').next().unwrap());
    (format!("Bearer {key}"), id.to_owned())
}

#[tokio::test]
async fn a_key_that_was_revoked_elsewhere_is_refused_within_five_seconds() {
    on_each_database(TIERS, async |app| {
        let (key, id) = printed(&keys(app, &["create", "--name", "backend"]));
        assert!(opens(app, &key).await);
        keys(app, &["revoke", &id]);
        app.advance(TimeDelta::seconds(5));
        assert!(!opens(app, &key).await);
        assert!(keys(app, &["list"]).contains(&id));
        let (code, _, told) = try_keys(app, &["revoke", "key_of_nobody"]);
        assert!(code == 1 && told.contains("there is no key"), "{told}");
    })
    .await;
}

#[tokio::test]
async fn a_key_that_was_revoked_here_is_refused_at_once_and_its_first_end_counts() {
    on_each_database(TIERS, async |app| {
        let (key, id) = made(app, json!(["check"]), None).await;
        let node = if app.is_postgres() { Some(app.node(|config| config).await) } else { None };
        assert!(opens(app, &key).await);
        if let Some(node) = &node {
            assert!(opens(node, &key).await);
        }
        let revoked = revoke(app, &id).await.ok();
        assert_eq!((&revoked["state"], &revoked["revoked_at"]), (&json!("revoked"), &json!(NOON)));
        assert!(!opens(app, &key).await);
        app.advance(TimeDelta::seconds(5));
        assert_eq!(revoke(app, &id).await.ok(), revoked, "again it changes nothing");
        revoke(app, "key_of_nobody").await.problem(404, "key_not_found");
        if let Some(mut node) = node {
            assert!(!opens(&node, &key).await, "another node hears of it within five seconds");
            node.stop().await;
        }
        let audit = app.column("SELECT change FROM audit ORDER BY seq").await;
        assert_eq!(audit.len(), 2, "a line for each change: {audit:?}");
        assert!(audit[1].contains(&id) && audit[1].contains("\"revoked_at\":\"2026-01-12T12:00:00Z\""), "{audit:?}");
    })
    .await;
}

#[tokio::test]
async fn a_key_ends_by_the_clock_also_where_it_was_good_a_moment_ago() {
    on_each_database(TIERS, async |app| {
        let (key, id) = made(app, json!(["check"]), Some(60)).await;
        app.advance(TimeDelta::seconds(59));
        assert!(opens(app, &key).await);
        app.advance(TimeDelta::microseconds(999_999));
        assert!(opens(app, &key).await);
        app.advance(TimeDelta::microseconds(1));
        let refused = ask(app, "GET", "/v1/tiers", Some(&key)).await.problem(401, "unauthorized");
        assert_eq!(refused["detail"], "the key expired at 2026-01-12T12:01:00Z; send `Authorization: Bearer sg_…`");
        let shown = listed(app).await.remove(0);
        assert_eq!(
            (&shown["key_id"], &shown["state"], &shown["expires_at"]),
            (&json!(id), &json!("expired"), &json!("2026-01-12T12:01:00Z"))
        );
        // The command line goes by the real clock.
        app.set_clock(&chrono::Utc::now().to_rfc3339());
        let told = keys(app, &["create", "--name", "backend", "--expires-in", "90d"]);
        let (key, id) = printed(&told);
        assert!(told.contains("good until "), "{told}");
        assert!(opens(app, &key).await);
        app.advance(TimeDelta::days(90) + TimeDelta::minutes(1));
        assert!(!opens(app, &key).await);
        let list = keys(app, &["list"]);
        let line = list.lines().find(|line| line.starts_with(&id)).unwrap();
        assert!(told.contains(line.split_whitespace().nth(4).unwrap()), "{list}");
        for wrong in ["90", "0d", "4000d", "-1d", "9999999999999999d"] {
            assert_eq!(try_keys(app, &["create", "--name", "x", &format!("--expires-in={wrong}")]).0, 2, "{wrong}");
        }
    })
    .await;
}

#[tokio::test]
async fn when_a_key_was_used_last_is_written_beside_the_calls_and_at_the_stop() {
    on_each_database(TIERS, async |app| {
        let (key, id) = made(app, json!(["check"]), None).await;
        let (other, other_id) = made(app, json!(["check"]), None).await;
        let column = format!("SELECT COALESCE(CAST(last_used_at AS TEXT), '-') FROM api_keys WHERE key_id = '{id}'");
        let written = async |app: &TestApp| app.column(&column).await.remove(0);
        app.advance(TimeDelta::seconds(1));
        assert!(opens(app, &key).await);
        assert_eq!(written(app).await, "-", "no call writes");
        app.write_uses().await;
        let first = written(app).await;
        assert_eq!(first, (app.now().timestamp_micros()).to_string());
        app.advance(TimeDelta::seconds(10));
        assert!(opens(app, &key).await && opens(app, &other).await);
        assert_eq!(written(app).await, first);
        app.restart().await;
        assert_eq!(written(app).await, (app.now().timestamp_micros()).to_string());
        // A clock that steps back, or another node that is behind, takes nothing back.
        app.advance(TimeDelta::seconds(-5));
        assert!(opens(app, &key).await);
        app.write_uses().await;
        let shown = listed(app).await;
        for id in [id, other_id] {
            let one = shown.iter().find(|key| key["key_id"] == json!(id)).unwrap();
            assert_eq!(one["last_used_at"], "2026-01-12T12:00:11Z", "{one}");
        }
        assert!(keys(app, &["list"]).contains("2026-01-12T12:00:11Z"));
        // The last use of a key that was revoked afterwards is known too.
        let (ended, id) = made(app, json!(["check"]), None).await;
        assert!(opens(app, &ended).await);
        revoke(app, &id).await.ok();
        assert!(!opens(app, &ended).await);
        app.restart().await;
        let shown = listed(app).await;
        assert_eq!(shown.iter().find(|key| key["key_id"] == json!(id)).unwrap()["last_used_at"], "2026-01-12T12:00:06Z");
    })
    .await;
}

#[tokio::test]
async fn a_key_and_its_successor_are_both_good_for_the_overlap() {
    on_each_database(TIERS, async |app| {
        let (old, id) = made(app, json!(["write", "check", "write"]), None).await;
        let rotate = async |app: &TestApp, id: &str, body: &str| app.post(&format!("/v1/keys/{id}/rotate"), body).await;
        let rotated = rotate(app, &id, r#"{"overlap_seconds": 3600}"#).await;
        assert_eq!(rotated.headers["cache-control"], "no-store");
        let rotated = rotated.ok();
        let successor = format!("Bearer {}", rotated["key"].as_str().unwrap());
        assert_eq!((&rotated["name"], &rotated["scopes"]), (&json!("backend"), &json!(["write", "check"])));
        let replaced = &rotated["replaced"];
        assert_eq!((&replaced["key_id"], &replaced["successor"]), (&json!(id), &rotated["key_id"]));
        assert_eq!((&replaced["expires_at"], &rotated["expires_at"]), (&json!("2026-01-12T13:00:00Z"), &Value::Null));
        let again = rotate(app, &id, "").await.problem(409, "key_ended");
        assert!(again["detail"].as_str().unwrap().contains(rotated["key_id"].as_str().unwrap()), "{again}");
        app.advance(TimeDelta::minutes(59));
        assert!(opens(app, &old).await && opens(app, &successor).await);
        app.advance(TimeDelta::minutes(1));
        assert!(!opens(app, &old).await && opens(app, &successor).await);
        // Without an overlap the old one ends here at once.
        let next = rotate(app, rotated["key_id"].as_str().unwrap(), r#"{"overlap_seconds": 0}"#).await.ok();
        assert!(!opens(app, &successor).await);
        assert!(opens(app, &format!("Bearer {}", next["key"].as_str().unwrap())).await);
        // Without a word it is a day; a key that was to end sooner does, and its successor lives as long as it was made for.
        let (_, short) = made(app, json!(["check"]), Some(7200)).await;
        app.advance(TimeDelta::hours(1));
        let next = rotate(app, &short, "").await.ok();
        assert_eq!(
            (&next["replaced"]["expires_at"], &next["expires_at"]),
            (&json!("2026-01-12T15:00:00Z"), &json!("2026-01-12T16:00:00Z"))
        );
        revoke(app, next["key_id"].as_str().unwrap()).await.ok();
        rotate(app, next["key_id"].as_str().unwrap(), "").await.problem(409, "key_ended");
        rotate(app, "key_of_nobody", "").await.problem(404, "key_not_found");
        rotate(app, "environment", "").await.problem(422, "invalid_field");
        rotate(app, &short, r#"{"overlap_seconds": 2592001}"#).await.problem(422, "invalid_field");
        let lines = app.column("SELECT key_id FROM audit").await;
        assert_eq!(lines, ["environment"; 9], "two were made, three replaced (two lines each), one revoked");
    })
    .await;
}

#[tokio::test]
async fn the_command_line_rotates_keys_beside_the_service() {
    on_each_database(TIERS, async |app| {
        app.set_clock(&chrono::Utc::now().to_rfc3339());
        let (old, id) = printed(&keys(app, &["create", "--name", "backend", "--scopes", "check"]));
        let told = keys(app, &["rotate", &id]);
        let (key, successor) = printed(&told);
        assert!(told.contains(&format!("{id} ends at ")), "{told}");
        app.advance(TimeDelta::hours(23));
        assert!(opens(app, &old).await && opens(app, &key).await);
        app.advance(TimeDelta::hours(1) + TimeDelta::minutes(1));
        assert!(!opens(app, &old).await && opens(app, &key).await);
        let list = keys(app, &["list"]);
        assert!(list.lines().any(|line| line.starts_with(&id) && line.contains(&successor)), "{list}");
        let (code, _, told) = try_keys(app, &["rotate", &id]);
        assert!(code == 1 && told.contains("replaced already"), "{told}");
        assert_eq!(try_keys(app, &["rotate", &id, "--overlap", "31d"]).0, 2);
        let hands = app.column("SELECT key_id FROM audit").await;
        assert_eq!(hands, ["command_line"; 3]);
    })
    .await;
}

#[tokio::test]
async fn the_last_key_that_may_change_keys_is_not_revoked_through_the_door() {
    on_each_database(TIERS, async |app| {
        let (_, expired) = made(app, json!(["admin"]), Some(60)).await;
        let (_, weak) = made(app, json!(["write"]), None).await;
        app.advance(TimeDelta::seconds(60));
        revoke(app, "environment").await.problem(409, "last_admin_key");
        revoke(app, &expired).await.ok();
        revoke(app, &weak).await.ok();
        let (other, id) = made(app, json!(["admin"]), None).await;
        revoke(app, "environment").await.ok();
        app.get("/v1/keys").await.problem(401, "unauthorized");
        let last = ask(app, "DELETE", &format!("/v1/keys/{id}"), Some(&other)).await.problem(409, "last_admin_key");
        assert!(last["detail"].as_str().unwrap().contains("make another one first"), "{last}");
        assert!(opens(app, &other).await);
        // One that was replaced ends by itself soon, and keeps nobody in.
        let rotated = ask(app, "POST", &format!("/v1/keys/{id}/rotate"), Some(&other)).await.ok();
        let successor = rotated["key_id"].as_str().unwrap();
        ask(app, "DELETE", &format!("/v1/keys/{successor}"), Some(&other)).await.problem(409, "last_admin_key");
    })
    .await;
}

#[tokio::test]
async fn the_key_itself_is_in_the_answer_that_makes_it_and_nowhere_else() {
    on_each_database(TIERS, async |app| {
        let answer = app.post("/v1/keys", json!({"name": "backend", "scopes": ["check"]})).await;
        assert_eq!(answer.headers["cache-control"], "no-store");
        let made = answer.ok();
        let key = made["key"].as_str().unwrap();
        assert!(key.len() == 67 && key.starts_with("sg_"), "{key}");
        let id = made["key_id"].as_str().unwrap().to_owned();
        let told = [app.get("/v1/keys").await.text, revoke(app, &id).await.text, keys(app, &["list"])];
        let audit = app.column("SELECT change FROM audit").await;
        assert!(!told.iter().chain(&audit).any(|told| told.contains(&key[3..])), "{told:?} {audit:?}");
        // A page at a time, the oldest first.
        for _ in 0..3 {
            self::made(app, json!(["check"]), None).await;
        }
        let (mut ids, mut path) = (Vec::new(), "/v1/keys?limit=2".to_owned());
        loop {
            let page = app.get(&path).await.ok();
            ids.extend(page["keys"].as_array().unwrap().iter().map(|key| key["key_id"].as_str().unwrap().to_owned()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("/v1/keys?limit=2&cursor={cursor}");
        }
        let once: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!((ids.len(), once.len()), (5, 5), "{ids:?}");
    })
    .await;
}

#[tokio::test]
async fn a_key_that_makes_no_sense_is_not_made() {
    on_each_database(TIERS, async |app| {
        for (body, code) in [
            (json!({"scopes": ["check"]}), "missing_field"),
            (json!({"name": "x"}), "missing_field"),
            (json!({"name": "x", "scopes": []}), "invalid_field"),
            (json!({"name": "x", "scopes": ["root"]}), "invalid_field"),
            (json!({"name": "x", "scopes": "check,write"}), "invalid_field"),
            (json!({"name": "", "scopes": ["check"]}), "invalid_field"),
            (json!({"name": "x", "scopes": ["check"], "expires_in_seconds": 59}), "invalid_field"),
            (json!({"name": "x", "scopes": ["check"], "expires_in_seconds": i64::MAX}), "invalid_field"),
            (json!({"name": "x", "scopes": ["check"], "expires": 60}), "unknown_field"),
        ] {
            app.post("/v1/keys", &body).await.problem(422, code);
        }
        app.post("/v1/keys", "").await.problem(400, "malformed_json");
        assert_eq!(listed(app).await, Vec::<Value>::new());
    })
    .await;
}
