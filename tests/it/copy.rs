//! A database that was moved to Postgres answers as it did before.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use spendgate::config::Config;
use spendgate::store::copy::{CopyError, Copying, columns};
use spendgate::store::{Address, Store};
use tempfile::TempDir;

use crate::app::{Database, Node, TIERS, TestApp};
use crate::cli::{folder, run};
use crate::postgres;
use crate::stripe::{customer, paying, subscription, updated};

/// A user id as nobody should choose it.
const ODD: &str = "ключ 'n' \"quotes\" \\ {a,b} 100% 🙂";

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A service on SQLite that has seen everything, and was stopped.
async fn filled() -> TestApp {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| Config { retention_days: Some(35), ..config }).await;
    for number in 0..5 {
        app.spend(&format!("old-{number}"), "u", "0.001").await;
    }
    app.advance(TimeDelta::days(40));
    app.restart().await;
    while app.get("/v1/users/u/usage").await.ok()["entries"] != json!([]) {
        tokio::task::yield_now().await;
    }
    for user in ["u", "v"] {
        app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
    }
    app.put("/v1/users/granted/caps", json!({"daily": 5, "total": "0.000000001"})).await.ok();
    for id in ["g", ODD] {
        let grant = json!({"id": id, "amount": "0.000000500", "period": "daily", "ends_at": "2027-01-01T00:00:00Z", "reason": ODD});
        app.post("/v1/users/granted/grants", grant).await.ok();
    }
    app.spend("drawn", "granted", "0.100000700").await;
    for event in paying("paid", "price_pro") {
        app.apply(event).await;
    }
    app.apply(updated(2, subscription("cus_acme", "active", "price_pro"))).await;
    app.apply(customer("customer.created", 3, "cus_nobody", None)).await;
    app.put("/v1/accounts/acme", json!({"stripe_customer": "cus_acme"})).await.ok();
    app.put(&format!("/v1/users/{}", escaped(ODD)), json!({"tier": "enterprise", "reason": "'; DROP TABLE users --"})).await.ok();
    for number in 0..25 {
        let (user, model) = ([ODD, "u", "v", "paid"][number % 4], ["gpt-4o", "o1"][number % 2]);
        app.post(
            "/v1/usage",
            json!({"id": format!("{ODD} {number}"), "user_id": user, "cost": "0.000000007", "model": model, "provider": "openai", "input_tokens": number,
                "output_tokens": 3, "metadata": {"feature": ODD, "list": [1, null], "nul": "\\u0000"}}),
        )
        .await
        .ok();
    }
    for (id, user) in [("open", "u"), ("captured", ODD), ("released", "v"), ("h 4/4", "paid")] {
        app.post("/v1/holds", json!({"id": id, "user_id": user, "estimated_cost": 0.01, "ttl_seconds": 80_000})).await.ok();
    }
    app.post("/v1/holds/captured/capture", json!({"cost": 0.002, "model": "o1"})).await.ok();
    app.post("/v1/holds/released/release", "").await.ok();
    let correction = json!({"id": "c", "user_id": "u", "amount": "0.000000002", "reason": "a mistake", "model": "o1", "time": app.now()});
    app.post("/v1/corrections", correction).await.ok();
    app.stop().await;
    assert_ne!(app.column("SELECT alert_key FROM outbox").await, [""; 0], "nobody was told of anything");
    // What only a key for Stripe's API would bring about.
    app.execute(
        "INSERT INTO requests (subject, kind, requested_seq, applied_seq, tries, due_at, error) VALUES ('cus_x', 'customer', 41, 40, 2, 9, 'gone'); \
         INSERT INTO reconciliation (only, run, phase, place, started_at) VALUES (1, 3, 'customers', 'cus_paid', 5); \
         INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at) VALUES ('alert_1', 'k', 'test', 'u', 'told', '{}', 7); \
         INSERT INTO deliveries (alert_id, endpoint, tries, due_at, error) VALUES ('alert_1', 'ops', 3, 8, 'status 500'); \
         INSERT INTO upgrade_links (only, secret) VALUES (1, x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'); \
         UPDATE tickets SET last = 41",
    )
    .await;
    app
}

/// A Postgres that nobody has used, and goes with the test.
struct Target {
    address: Address,
    folder: TempDir,
}

impl Drop for Target {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            postgres::drop_database(&self.address);
        }
    }
}

impl Target {
    fn new() -> Self {
        let folder = folder();
        Self { address: postgres::empty_database(folder.path()), folder }
    }

    fn sql(&self, statement: &str) -> String {
        postgres::sql(&self.address, statement)
    }

    /// What the command says, with its exit code.
    fn copy(&self, app: &TestApp) -> (i32, String, String) {
        run(self.folder.path(), &["copy", "--from", &app.database().url(), "--to", &self.address.url()], &[])
    }

    /// What `spendgate serve` says of it where it is refused.
    fn refused(&self) -> String {
        let environment = [("DATABASE_URL", &*self.address.url()), ("LISTEN_ADDR", "127.0.0.1:0")];
        let (code, out, err) = run(self.folder.path(), &["serve"], &environment);
        assert_eq!(code, 2, "{out}{err}");
        err
    }

    async fn begin(&self, app: &TestApp) -> Result<Copying, CopyError> {
        let (source, target) = (Store::open(&app.database()).await.unwrap(), Store::open(&self.address).await.unwrap());
        Copying::begin(source, target, "here", [9; 32], app.now()).await
    }

    /// A service on it, with the clock of the other one.
    async fn serve(&self, app: &TestApp) -> Node {
        app.node(|config| Config { database: self.address.clone(), ..config }).await
    }
}

/// What every door that reads answers, page by page.
async fn all_answers(app: &TestApp) -> Vec<(String, Value)> {
    let users = ["u", "v", "paid", "nobody", "granted", &escaped(ODD)].map(str::to_owned);
    let mut paths: Vec<String> = ["users", "events", "holds", "tiers", "reconciliation", "accounts/acme", "holds/open", "holds/captured"]
        .into_iter()
        .chain(["holds/released", "holds/h%204%2F4", "users?limit=2", "events?limit=2", "holds?limit=1", "users?tier=pro"])
        .map(|path| format!("/v1/{path}"))
        .collect();
    for user in &users {
        paths.extend(
            ["", "/enforcement?model=gpt-4o", "/caps", "/grants?limit=1", "/usage?limit=3", "/usage?group_by=day", "/usage?group_by=model"]
                .map(|door| format!("/v1/users/{user}{door}")),
        );
    }
    let mut answers = Vec::new();
    while let Some(path) = paths.pop() {
        let answer = app.get(&path).await;
        let body = answer.json();
        if let Some(cursor) = body["next_cursor"].as_str() {
            let first = path.split("&cursor=").next().unwrap();
            paths.push(format!("{first}&cursor={}", escaped(cursor)));
        }
        if path == "/v1/events" {
            paths.extend(
                body["events"].as_array().unwrap().iter().map(|event| format!("/v1/events/{}", event["event_id"].as_str().unwrap())),
            );
        }
        answers.push((format!("{path} {}", answer.status), body));
    }
    assert!(40 < answers.len());
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_database_answers_every_question_as_its_source_and_goes_on() {
    let (mut app, target) = (filled().await, Target::new());
    let made = run(app.folder.path(), &["keys", "create", "--name", "app"], &[("DATABASE_URL", &app.database().url())]);
    assert_eq!(made.0, 0, "{}", made.2);
    let key = made.1.lines().next().unwrap().to_owned();
    let (code, out, err) = target.copy(&app);
    assert_eq!(code, 0, "{out}{err}");
    for line in [
        "usage                    28 rows  cost 102000877, input_tokens 300, output_tokens 75",
        "Every row is the same on both sides",
        "DATABASE_URL",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(!out.contains(" 0 rows"), "a table that nothing was copied of: {out}");
    app.restart_after_stop().await;
    let moved = target.serve(&app).await;
    let (theirs, ours) = (all_answers(&app).await, all_answers(&moved).await);
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs, ours);
    }
    assert_eq!(theirs.len(), ours.len());
    let with_key = moved.send(moved.client.get(moved.url("/v1/users/u/enforcement")).bearer_auth(&key)).await;
    assert_eq!(with_key.status, 200, "{}", with_key.text);
    let last = |table: &str| target.sql(&format!("SELECT MAX(seq) FROM {table}")).parse::<i64>().unwrap();
    let lasts = ["usage", "holds", "inbox", "audit"].map(|table| (table, last(table)));
    // What was booked is known by its id, and what comes is numbered behind it.
    let known = json!({"id": "c", "user_id": "u", "amount": "0.000000002", "reason": "a mistake", "model": "o1", "time": moved.now()});
    assert_eq!(moved.post("/v1/corrections", known).await.ok()["repeated"], true);
    moved.spend("after", "u", "0.001").await;
    moved.post("/v1/holds", json!({"id": "after", "user_id": "v", "estimated_cost": 0.001})).await.ok();
    moved.post("/v1/holds/open/capture", json!({"cost": 0.003})).await.ok();
    moved.apply(customer("customer.created", 9, "cus_after", Some("after"))).await;
    moved.put("/v1/users/v", json!({"tier": "pro", "reason": "after"})).await.ok();
    for (table, before) in lasts {
        assert!(before < last(table), "{table}");
    }
    assert_eq!(target.sql("SELECT nextval('ticket_numbers')"), "42");
    assert!(moved.verify().contains(" 0 disagreements"), "{}", moved.verify());
    assert_eq!(app.user("u").await["known"], json!(true), "nothing is deleted at the source");
    drop(moved);
    // It is whole: nothing more is copied to it.
    app.stop().await;
    let (code, _, err) = target.copy(&app);
    assert!(code == 2 && err.contains("finished"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_stopped_anywhere_goes_on_and_until_then_nobody_serves_it() {
    let (mut app, target) = (filled().await, Target::new());
    let mut runs = 0;
    loop {
        let mut copying = target.begin(&app).await.unwrap();
        // A few rows at a time, and dropped with the next page read already.
        let (before, total) = copying.progress();
        let more = copying.step(3).await.unwrap() && copying.step(3).await.unwrap();
        let (after, _) = copying.progress();
        assert!(before <= after && after <= total && after <= before + 6);
        drop(copying);
        let copied: i64 = target.sql("SELECT copied FROM copying").parse().unwrap();
        assert_eq!(copied, after, "what was copied is there");
        let told = target.refused();
        assert!(told.contains("unfinished copy of here") && told.contains("spendgate copy --from"), "{told}");
        runs += 1;
        if !more {
            break;
        }
    }
    assert!(12 < runs);
    let (code, out, err) = target.copy(&app);
    assert_eq!(code, 0, "{out}{err}");
    app.restart_after_stop().await;
    let moved = target.serve(&app).await;
    assert_eq!(all_answers(&app).await, all_answers(&moved).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_at_once_do_not_mix() {
    let (app, target) = (filled().await, Target::new());
    let (mut one, mut other) = (target.begin(&app).await.unwrap(), target.begin(&app).await.unwrap());
    assert!(one.step(2).await.unwrap());
    assert!(matches!(other.step(2).await, Err(CopyError::NotAlone)));
    while one.step(4).await.unwrap() {}
    assert!(one.finish(app.now()).await.unwrap().is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_began_before_the_source_was_served_again_does_not_go_on() {
    let (mut app, target) = (filled().await, Target::new());
    let mut copying = target.begin(&app).await.unwrap();
    copying.step(3).await.unwrap();
    copying.close().await;
    app.restart_after_stop().await;
    // A source that is served is left alone.
    let (code, _, err) = target.copy(&app);
    assert!(code == 1 && err.contains("served by another process already; stop it"), "{code} {err}");
    app.stop().await;
    let (code, _, err) = target.copy(&app);
    assert!(code == 2 && err.contains("as it was before it was served again"), "{code} {err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_empty_and_other_directions_are_refused() {
    let (app, target) = (filled().await, Target::new());
    let served = target.serve(&app).await;
    let (code, _, err) = target.copy(&app);
    assert!(code == 2 && err.contains("`api_keys` has rows"), "{code} {err}");
    drop(served);
    let (sqlite, postgres) = (app.database().url(), target.address.url());
    for (from, to, why) in [
        (&*postgres, &*sqlite, "only a SQLite database"),
        (&sqlite, "sqlite:other.db", "only to Postgres"),
        ("sqlite:missing.db", &postgres, "there is no database at missing.db"),
        ("mysql://u:secret@h/d", &postgres, "--from must be sqlite:"),
        (&sqlite, "postgres://u:secret@h", "--to must be sqlite:"),
    ] {
        let (code, _, err) = run(target.folder.path(), &["copy", "--from", from, "--to", to], &[]);
        assert!(code == 2 && err.contains(why) && !err.contains("secret"), "{from} {to}: {code} {err}");
    }
    assert_eq!(target.folder.path().read_dir().unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_at_the_end_is_told_and_nobody_serves_it() {
    let (app, target) = (filled().await, Target::new());
    let mut copying = target.begin(&app).await.unwrap();
    while copying.step(1000).await.unwrap() {}
    copying.close().await;
    // Neither the number of rows nor any sum gives it away.
    app.execute("UPDATE users SET manual_reason = 'another' WHERE manual_reason IS NOT NULL").await;
    let (code, out, err) = target.copy(&app);
    assert_eq!(code, 1, "{out}{err}");
    let differs: Vec<&str> = out.lines().filter(|line| line.contains("DIFFERS")).collect();
    assert!(differs.len() == 1 && differs[0].starts_with("users "), "{out}");
    assert!(out.contains("NOT the same"), "{out}");
    target.refused();
    app.execute("UPDATE users SET manual_reason = '''; DROP TABLE users --' WHERE manual_reason IS NOT NULL").await;
    assert_eq!(target.copy(&app).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_a_nul_is_told_with_its_table_and_key_and_the_copy_goes_on_without_it() {
    let (app, target) = (filled().await, Target::new());
    app.execute("UPDATE users SET manual_reason = 'a' || char(0) || 'b' WHERE user_id = 'v'").await;
    let (code, out, err) = target.copy(&app);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("table `users`, the row with the key \"v\": `manual_reason` has a NUL"), "{err}");
    app.execute("UPDATE users SET manual_reason = NULL WHERE user_id = 'v'").await;
    let (code, out, err) = target.copy(&app);
    assert_eq!(code, 0, "{out}{err}");
}

/// Tables that tell of the database itself, and what is otherwise on Postgres.
const NOT_COPIED: [&str; 9] =
    ["settled", "tickets", "probe", "leases", "copying", "copy_source", "counted_rows", "_sqlx_migrations", "sqlite_sequence"];

#[tokio::test]
async fn every_table_and_column_is_copied() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| config).await;
    let query = "SELECT m.name || '.' || c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type IN ('table', 'view')";
    let of_data = |column: &String| !NOT_COPIED.contains(&column.split('.').next().unwrap());
    let there: BTreeSet<String> = app.column(query).await.into_iter().filter(of_data).collect();
    let copied: BTreeSet<String> = columns().map(|(table, column)| format!("{table}.{column}")).collect();
    assert_eq!(copied, there);
    app.stop().await;
}
