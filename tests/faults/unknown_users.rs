//! Whoever is asked about and was never heard of costs nothing: no row, and no memory that grows with their number.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::door::{self, Door};
use crate::service::{ADMIN_KEY, Service};
use crate::short_or_long;

/// Connections side by side, each with one question after the other.
const CALLERS: u64 = 16;
/// Users of one list.
const LISTED: u64 = 99;
/// What may be added by users nobody knows, in KiB: buffers and caches that fill up once, whatever the number of users.
const GROWTH_KIB: u64 = 8 * 1024;

/// What the process holds in memory, in KiB.
fn resident(service: &Service) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn name(number: u64) -> String {
    format!("unknown-{number:0>200}")
}

/// Asks about so many users whom nobody asked about before: one by himself, then some in a list.
async fn ask(url: &str, next: &Arc<AtomicU64>, count: u64) {
    let client = door::client().build().unwrap();
    let end = next.load(Ordering::Relaxed) + count;
    let callers = (0..CALLERS).map(|_| {
        let (client, next, url) = (client.clone(), next.clone(), url.to_owned());
        tokio::spawn(async move {
            loop {
                let first = next.fetch_add(1 + LISTED, Ordering::Relaxed);
                if end <= first {
                    break;
                }
                let one = client.get(format!("{url}/v1/users/{}/enforcement?model=gpt-4o", name(first)));
                let list: Vec<Value> =
                    (first + 1..=first + LISTED).map(|number| json!({"user_id": name(number), "model": "gpt-4o"})).collect();
                let several = client.post(format!("{url}/v1/enforcement")).body(json!(list).to_string());
                for (asked, expected) in [(one, 1), (several, list.len())] {
                    let answer = asked.bearer_auth(ADMIN_KEY).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let text = answer.text().await.unwrap();
                    assert_eq!(text.matches("\"action\":\"ALLOW\"").count(), expected, "{text}");
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
}

/// How many rows a table has, beside the running service.
async fn rows(folder: &Path, table: &str) -> i64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join("spendgate.db")).read_only(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(&pool).await.unwrap();
    pool.close().await;
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_unknown_users_leave_no_row_and_memory_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[]);
    let (many, next) = (short_or_long(60_000, 1_000_000), Arc::new(AtomicU64::new(0)));
    // What fills up once is full after these.
    ask(&service.url, &next, 20_000).await;
    let before = resident(&service);
    ask(&service.url, &next, many).await;
    let after = resident(&service);
    eprintln!("{many} unknown users: {before} KiB before, {after} KiB after");
    assert!(after < before + GROWTH_KIB, "{many} unknown users: {before} KiB before, {after} KiB after");
    assert_eq!((rows(folder.path(), "users").await, rows(folder.path(), "usage").await), (0, 0));
    // The control: who spends is known, and has a row.
    let spent = json!({"id": "a", "user_id": name(7), "cost": 0.01});
    Door::of(&service).post("/v1/usage", &spent).await;
    service.stop();
    assert_eq!((rows(folder.path(), "users").await, rows(folder.path(), "usage").await), (1, 1));
}
