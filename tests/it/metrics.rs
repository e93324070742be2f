//! What Prometheus reads, and whether the dashboard, the alert rules and the documentation know the same metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::stripe::signature::Secret;

use crate::app::{ADMIN_KEY, Database, TIERS, TestApp, WEBHOOK_SECRET, on_each_database};
use crate::stripe::paying;

/// A moment later: what the database says of itself is shown for three seconds.
async fn scrape(app: &TestApp) -> BTreeMap<String, f64> {
    app.advance(TimeDelta::seconds(4));
    let answer = app.get("/metrics").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(answer.text.ends_with("# EOF\n"));
    samples(&answer.text)
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// The families of a scrape with their types.
fn families(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

#[tokio::test]
async fn decisions_requests_batches_and_deliveries_are_counted() {
    on_each_database(TIERS, async |app| {
        let before = scrape(app).await;
        assert!(!before.keys().any(|name| name.starts_with("spendgate_decisions_total")), "{before:?}");
        for _ in 0..3 {
            app.check("ann").await;
        }
        app.post("/v1/enforcement", json!([{"user_id": "ann"}, {"user_id": "bob"}])).await.ok();
        app.post("/v1/holds", json!({"id": "h1", "user_id": "ann", "estimated_cost": 0.01})).await.ok();
        app.spend("1", "ann", "5").await;
        app.check("ann").await;
        // What is asked for an explanation is no decision.
        app.get("/v1/users/ann/explain").await.ok();

        let [event, _] = paying("ann", "price_of_the_tests");
        let body = event.to_string();
        app.deliver(body.as_bytes()).await.ok();
        app.deliver(body.as_bytes()).await.ok();
        let stale = Secret::new(WEBHOOK_SECRET).unwrap().sign(body.as_bytes(), app.now() - TimeDelta::hours(1));
        let signed =
            |signature: &str| app.client.post(app.url("/webhooks/stripe")).header("stripe-signature", signature).body(body.clone());
        app.send(signed(&stale)).await.problem(400, "signature_stale");
        app.send(signed("t=1,v1=00")).await;
        app.deliver(b"{}").await.problem(400, "not_an_event");

        let after = scrape(app).await;
        let is = |name: &str, expected: f64| assert_eq!(after.get(name), Some(&expected), "{name}: {after:#?}");
        is("spendgate_decisions_total{action=\"ALLOW\",tier=\"free\",reason=\"within_budget\"}", 6.0);
        is("spendgate_decisions_total{action=\"BLOCK\",tier=\"free\",reason=\"budget_exhausted\"}", 1.0);
        is("spendgate_request_duration_seconds_count{class=\"check\",status=\"2xx\"}", 5.0);
        is("spendgate_request_duration_seconds_count{class=\"ledger\",status=\"2xx\"}", 2.0);
        is("spendgate_request_duration_seconds_count{class=\"webhook\",status=\"4xx\"}", 3.0);
        is("spendgate_webhook_deliveries_total{outcome=\"accepted\"}", 1.0);
        is("spendgate_webhook_deliveries_total{outcome=\"duplicate\"}", 1.0);
        is("spendgate_webhook_deliveries_total{outcome=\"stale\"}", 1.0);
        is("spendgate_webhook_deliveries_total{outcome=\"bad_signature\"}", 1.0);
        is("spendgate_webhook_deliveries_total{outcome=\"not_an_event\"}", 1.0);
        // Two commits, each of one record.
        is("spendgate_meter_batch_records_count", 2.0);
        is("spendgate_meter_batch_records_sum", 2.0);
        is("spendgate_meter_commit_seconds_bucket{le=\"+Inf\"}", 2.0);
        is("spendgate_meter_queue_length", 0.0);
        is("spendgate_meter_queue_limit", 1024.0);
        is("spendgate_store_up", 1.0);
        is("spendgate_store_writable", 1.0);
        is("spendgate_last_event_age_seconds", 4.0);
        is("spendgate_catalogue_tiers", 3.0);
        is("spendgate_uptime_seconds", 8.0);
        is("spendgate_inbox_lag_seconds", 0.0);
        let connections = after["spendgate_connections"];
        assert!((1.0..100.0).contains(&connections), "{connections}");
    })
    .await;
}

#[tokio::test]
async fn what_the_database_knows_is_asked_for_and_shown_for_three_seconds() {
    on_each_database(TIERS, async |app| {
        let holds = |scraped: &BTreeMap<String, f64>| scraped["spendgate_holds_open"];
        assert_eq!(holds(&scrape(app).await), 0.0);
        app.post("/v1/holds", json!({"id": "h1", "user_id": "ann", "estimated_cost": 0.01})).await.ok();
        // It is in the tables once somebody reads them.
        app.get("/v1/holds").await.ok();
        assert_eq!(holds(&samples(&app.get("/metrics").await.text)), 0.0, "the database is not asked again so soon");
        assert_eq!(holds(&scrape(app).await), 1.0);
        app.advance(TimeDelta::days(1));
        assert_eq!(holds(&scrape(app).await), 0.0, "it has expired");

        let body = if app.is_postgres() { "''" } else { "x''" };
        let event = |id: &str, received_at: i64, state: &str, requested: &str| {
            format!("('{id}', 'x', {received_at}, 0, '{state}', '', '[]', {body}, {requested})")
        };
        let events = [
            event("evt_q", 1_768_305_600_000_000, "queued", "1"),
            event("evt_d", 1, "dead", "2"),
            event("evt_p", 1, "parked", "NULL"),
            event("evt_u", 1, "unreadable", "NULL"),
        ];
        let columns = "event_id, kind, received_at, applied_at, state, effect, alerts, body, requested_seq";
        app.execute(&format!("INSERT INTO inbox ({columns}) VALUES {}", events.join(", "))).await;
        app.execute("INSERT INTO deliveries (alert_id, endpoint, due_at, parked_at) VALUES ('a', 'x', 1, NULL), ('b', 'x', NULL, 1)").await;
        app.set_clock("2026-01-14T12:00:00Z");
        let after = scrape(app).await;
        assert_eq!(after["spendgate_inbox_lag_seconds"], 86_404.0);
        assert_eq!(after["spendgate_inbox_dead_letters{state=\"dead\"}"], 1.0);
        assert_eq!(after["spendgate_inbox_dead_letters{state=\"parked\"}"], 2.0);
        assert_eq!((after["spendgate_alerts_waiting"], after["spendgate_alerts_parked"]), (1.0, 1.0));
    })
    .await;
}

#[tokio::test]
async fn nothing_that_a_caller_invents_stands_in_a_label() {
    on_each_database(TIERS, async |app| {
        app.get("/v1/users/canary-user/enforcement?model=canary-model").await.ok();
        app.get("/v1/canary-path").await;
        app.post("/v1/usage", json!({"id": "canary-id", "user_id": "canary-user", "cost": "1", "metadata": {"canary-key": "x"}}))
            .await
            .ok();
        app.send(app.client.request("CANARY".parse().unwrap(), app.url("/v1/usage"))).await;
        let text = app.get("/metrics").await.text;
        assert!(!text.to_lowercase().contains("canary"), "{text}");
        assert!(!text.contains(ADMIN_KEY) && text.contains("spendgate_decisions_total{"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_down_costs_only_what_the_store_knows() {
    on_each_database(TIERS, async |app| {
        app.check("ann").await;
        app.execute("ALTER TABLE outbox RENAME TO outbox_elsewhere").await;
        let down = scrape(app).await;
        assert_eq!(down["spendgate_store_up"], 0.0);
        assert!(down.contains_key("spendgate_uptime_seconds") && !down.contains_key("spendgate_holds_open"), "{down:#?}");
        app.execute("ALTER TABLE outbox_elsewhere RENAME TO outbox").await;
        let back = scrape(app).await;
        assert_eq!((back["spendgate_store_up"], back["spendgate_holds_open"]), (1.0, 0.0));
    })
    .await;
}

#[tokio::test]
async fn metrics_need_a_key_but_at_their_own_address() {
    for database in Database::ALL {
        let own = |config| spendgate::config::Config { metrics_addr: Some(([127, 0, 0, 1], 0).into()), ..config };
        let mut app = TestApp::start(database, TIERS, own).await;
        app.send(app.client.get(app.url("/metrics"))).await.problem(401, "unauthorized");
        let address = app.metrics_address();
        let client = app.client.clone();
        let at = |path: &str| client.get(format!("http://{address}{path}"));
        let answer = app.send(at("/metrics")).await;
        assert_eq!(families(&answer.text), families(&app.get("/metrics").await.text));
        assert_eq!(app.send(at("/healthz")).await.ok(), json!({"status": "ok"}));
        assert_eq!(app.send(at("/readyz")).await.ok()["status"], "ready");
        // Nothing else is there.
        app.send(at("/v1/tiers").bearer_auth(ADMIN_KEY)).await.problem(404, "not_found");
        app.stop().await;
        assert!(at("/metrics").send().await.is_err(), "it ends with the service");
    }
}

#[tokio::test]
async fn readyz_says_how_it_stands_and_does_not_hang_with_the_store() {
    on_each_database(TIERS, async |app| {
        let ready = app.get("/readyz").await.ok();
        assert_eq!((&ready["status"], &ready["store"], &ready["tiers"]), (&json!("ready"), &json!("writable"), &json!(3)));
        assert_eq!(ready["stripe_sync"], json!({"mode": "payload"}));
        assert!(ready["schema"].as_i64().is_some_and(|schema| 9 <= schema), "{ready}");
        app.execute("DELETE FROM _sqlx_migrations WHERE 9 < version").await;
        let problem = app.get("/readyz").await.problem(503, "store_unavailable");
        assert!(problem["detail"].as_str().unwrap().contains("schema 9"), "{problem}");
        assert_eq!(app.get("/healthz").await.ok(), json!({"status": "ok"}));
    })
    .await;

    let mut app = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    let other = sqlx::PgPool::connect(&app.database().url()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::query("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let problem = app.get("/readyz").await.problem(503, "store_unavailable");
    assert_eq!(problem["detail"], "the store did not answer in time");
    assert_eq!(scrape(&app).await["spendgate_store_up"], 0.0);
    held.rollback().await.unwrap();
    other.close().await;
    assert_eq!(app.get("/readyz").await.ok()["status"], "ready");
    app.stop().await;
}

/// The names of ours that a text asks for, without what Prometheus adds to them.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let found = text.match_indices("spendgate_").map(|(at, _)| text[at..].chars().take_while(|c| is_name(*c)).collect::<String>());
    found.collect()
}

fn family_of(name: &str, families: &BTreeMap<String, String>) -> Option<String> {
    let ends: &[(&str, &str)] = &[
        ("", "gauge"),
        ("_total", "counter"),
        ("_bucket", "histogram"),
        ("_sum", "histogram"),
        ("_count", "histogram"),
        ("_info", "info"),
    ];
    let bases = ends.iter().filter_map(|(end, kind)| Some((name.strip_suffix(end)?, *kind)));
    bases.into_iter().find(|(base, kind)| families.get(*base).is_some_and(|is| is == kind)).map(|(base, _)| base.to_owned())
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_metrics_that_exist_and_all_are_documented() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| config).await;
    let families = families(&app.get("/metrics").await.text);
    app.stop().await;
    assert!(30 < families.len(), "{families:#?}");

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let dashboard = read("deploy/grafana/spendgate.json");
    let alerts = read("deploy/prometheus/alerts.yaml");
    for (path, text) in [("the dashboard", &dashboard), ("the alerts", &alerts)] {
        let names = names_in(text);
        assert!(5 < names.len(), "{names:?}");
        for name in names {
            assert!(family_of(&name, &families).is_some(), "{path} asks for {name}, which is not exported");
        }
    }
    assert_eq!(family_of("spendgate_no_such", &families), None);
    assert_eq!(family_of("spendgate_decisions", &families), None, "a counter is asked for by its full name");

    let documented = read("docs/METRICS.md");
    let rows: BTreeMap<&str, Vec<&str>> = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let mut cells = line.split(" | ");
            (cells.next().unwrap().trim_end_matches('`'), cells.collect())
        })
        .collect();
    for (family, kind) in &families {
        let end = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let row = rows.get(format!("{family}{end}").as_str()).unwrap_or_else(|| panic!("docs/METRICS.md does not tell of {family}{end}"));
        assert_eq!(row.first(), Some(&kind.as_str()), "{family}: its type");
        assert!(row.len() == 4 && row.iter().all(|cell| !cell.trim_matches([' ', '|']).is_empty()), "{family}: {row:?}");
        if family.ends_with("_seconds") {
            assert_eq!(row[1], "seconds", "{family}: its unit");
        }
    }
    for name in rows.keys().filter(|name| name.starts_with("spendgate_")) {
        assert!(
            family_of(name, &families).is_some() || families.contains_key(*name),
            "docs/METRICS.md tells of {name}, which is not exported"
        );
    }
}

#[test]
fn the_dashboard_and_the_rules_are_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(root.join("deploy/grafana/spendgate.json")).unwrap()).unwrap();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "{panel}");
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
        if panel["type"] != "row" {
            assert!(panel["targets"].as_array().is_some_and(|targets| targets.iter().all(|target| target["expr"].is_string())), "{panel}");
        }
    }
    let rules = fs::read_to_string(root.join("deploy/prometheus/alerts.yaml")).unwrap();
    let count = |what: &str| rules.lines().filter(|line| line.trim_start().trim_start_matches("- ").starts_with(what)).count();
    let alerts = count("alert: ");
    assert!(8 < alerts, "{alerts}");
    for what in ["expr: ", "for: ", "severity: ", "summary: ", "description: "] {
        assert_eq!(count(what), alerts, "each alert has one `{what}`");
    }
}
