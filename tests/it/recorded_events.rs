//! Every recorded body beside the project is answered, and understood, as its manifest says.

use std::fs;
use std::path::PathBuf;

use chrono::DateTime;
use serde_json::{Value, json};

use crate::app::{TIERS, on_each_database};

/// The recorded bodies, or `None` where they do not lie beside the project. In CI they must.
fn recorded() -> Option<(PathBuf, Vec<Value>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/stripe_events");
    if !folder.exists() {
        assert!(std::env::var_os("CI").is_none(), "{} is missing", folder.display());
        eprintln!("{} is missing: the recorded bodies are not tested", folder.display());
        return None;
    }
    let manifest = fs::read(folder.join("manifest.json")).unwrap();
    Some((folder, serde_json::from_slice(&manifest).unwrap()))
}

fn moment(seconds: &Value) -> Value {
    let Some(seconds) = seconds.as_i64() else { return Value::Null };
    let last_that_can_be_written = 253_402_300_799;
    let time = DateTime::from_timestamp(seconds.min(last_that_can_be_written), 0).unwrap();
    json!(time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}

#[track_caller]
fn check_understood(file: &str, event: &Value, expect: &Value) {
    let understood = &event["understood"];
    let check = |ours: &Value, name: &str, theirs: Value| assert_eq!(*ours, theirs, "{file}: {name}");
    check(&event["event_id"], "id", expect["id"].clone());
    check(&event["type"], "type", expect["type"].clone());
    for name in ["livemode", "account", "api_version"] {
        check(&understood[name], name, expect[name].clone());
    }
    for name in ["object", "object_id", "customer", "subscription", "user_hint"] {
        if let Some(expected) = expect.get(name) {
            check(&understood[name], name, expected.clone());
        }
    }
    for name in ["status", "cancel_at_period_end", "pause_collection", "pending_update"] {
        if let Some(expected) = expect.get(name) {
            check(&understood[name], name, expected.clone());
        }
    }
    for name in ["period_end", "cancel_at", "ended_at", "trial_end"] {
        if let Some(expected) = expect.get(name) {
            check(&understood[name], name, moment(expected));
        }
    }
    if let Some(items) = expect.get("items") {
        let ours = understood["items"].as_array().unwrap().iter();
        let ours = ours.map(|item| json!({"price": item["price"], "quantity": item["quantity"], "lookup_key": item["lookup_key"]}));
        assert_eq!(Value::from_iter(ours), *items, "{file}: items");
    }
}

/// The states of the inbox that fit what the manifest says a correct consumer does.
fn states(class: &str) -> &'static [&'static str] {
    match class {
        "sync" | "mapping" | "customer_deleted" => &["applied", "kept", "stale"],
        "nudge" => &["noted", "applied", "kept", "stale"],
        "catalogue" | "alert" => &["noted"],
        "ignore" => &["ignored"],
        "ignore_or_nudge" => &["ignored", "noted"],
        other => panic!("the manifest has a new class: {other}"),
    }
}

#[tokio::test]
async fn every_recorded_body_is_answered_and_understood_as_its_manifest_says() {
    let Some((folder, manifest)) = recorded() else { return };
    // Each on a service of its own would hide what one does to another; together, some share an id.
    on_each_database(TIERS, async |app| {
        let mut seen = Vec::new();
        for record in &manifest {
            let file = record["file"].as_str().unwrap();
            let answer = app.deliver(&fs::read(folder.join(file)).unwrap()).await;
            if record["class"] == "malformed" {
                answer.problem(400, "not_an_event");
                continue;
            }
            assert_eq!(Value::from(answer.status), record["http"], "{file}: {}", answer.text);
            let (id, expect) = (record["expect"]["id"].as_str().unwrap(), &record["expect"]);
            assert_eq!(answer.json()["duplicate"], json!(seen.contains(&id)), "{file}");
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            let event = app.get(&format!("/v1/events/{id}")).await.ok();
            check_understood(file, &event, expect);
            let state = event["state"].as_str().unwrap();
            let class = record["class"].as_str().unwrap();
            assert!(states(class).contains(&state), "{file}: {class} is {state}");
            assert_eq!(class == "alert", event["alerts"][0]["code"] == "money_returned", "{file}");
        }
        assert!(30 < seen.len(), "only {} events", seen.len());
    })
    .await;
}

#[tokio::test]
async fn no_recorded_body_cut_short_anywhere_makes_a_server_error_or_a_change() {
    let Some((folder, manifest)) = recorded() else { return };
    on_each_database(TIERS, async |app| {
        // They are refused before any database is asked, so the one that is slower to start sees some of them.
        for record in manifest.iter().step_by(if app.is_postgres() { 10 } else { 1 }) {
            let file = record["file"].as_str().unwrap();
            let body = fs::read(folder.join(file)).unwrap();
            // Everywhere near both ends, and at 40 places between.
            let near = (0..body.len().min(40)).chain(body.len().saturating_sub(40)..body.len());
            let between = (1..40).map(|part| body.len() * part / 40);
            for end in near.chain(between).filter(|end| *end < body.len()) {
                let answer = app.deliver(&body[..end]).await;
                let only_blank_was_cut = serde_json::from_slice::<Value>(&body[..end]).is_ok_and(|cut| cut.is_object());
                assert!(answer.status == 400 || only_blank_was_cut, "{file} cut at {end}: {} {}", answer.status, answer.text);
            }
        }
    })
    .await;
}
