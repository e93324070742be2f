//! Of budgets that fill somebody is told, once each, whatever happens to the service and however many nodes there are.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::app::{Database, Node, TestApp, on_each_database};
use spendgate::config::Config;

const TIERS: &str = "
default_tier: free
tiers:
  free: { rank: 0, budgets: { daily: 0.10, total: 10 }, policy: strict, alerts: [warn, block, 30] }
  team: { rank: 1, budgets: { monthly: 1 }, scope: account, policy: strict }
";
const DAY: &str = "2026-01-12T00:00:00Z";

fn key(mark: &str, user: &str) -> String {
    format!("user tier daily {DAY} {mark} {user}")
}

/// What is in the outbox, each row.
async fn told(app: &TestApp) -> Vec<String> {
    // It waits until the tables have everything.
    app.get("/v1/users").await.ok();
    let mut keys = app.column("SELECT alert_key FROM outbox").await;
    keys.sort_unstable();
    keys
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort_unstable();
    keys
}

fn hold(id: &str, user: &str, cost: &str) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost})
}

#[tokio::test]
async fn each_mark_is_told_once_in_each_window_by_usage_and_by_holds() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.02").await;
        assert_eq!(told(app).await, [""; 0]);
        app.spend("b", "u", "0.01").await;
        assert_eq!(told(app).await, [key("30", "u")]);
        app.post("/v1/holds", hold("h", "u", "0.05")).await.ok();
        app.post("/v1/holds/h/capture", json!({"cost": "0.06"})).await.ok();
        app.spend("b", "u", "0.01").await;
        assert_eq!(told(app).await, sorted(vec![key("30", "u"), key("warn", "u")]));
        // What is known of it is forgotten, and what is told stays told.
        app.restart().await;
        app.spend("c", "u", "0.02").await;
        assert_eq!(told(app).await, sorted(vec![key("30", "u"), key("warn", "u"), key("block", "u")]));
        app.advance(TimeDelta::days(1));
        app.spend("d", "u", "0.03").await;
        let tomorrow = "user tier daily 2026-01-13T00:00:00Z 30 u".to_owned();
        assert_eq!(told(app).await, sorted(vec![key("30", "u"), key("warn", "u"), key("block", "u"), tomorrow]));
        let rows = app.column("SELECT kind || ' ' || user_id || ' ' || message FROM outbox WHERE alert_key LIKE '%block u'").await;
        let message = "u has used 110 % of the daily budget of $0.10 (tier free); it resets at 2026-01-13T00:00:00Z.";
        assert_eq!(rows, [format!("budget_threshold u {message}")]);
    })
    .await;
}

#[tokio::test]
async fn a_shared_budget_is_told_by_its_account_and_a_new_tier_by_the_next_entry() {
    on_each_database(TIERS, async |app| {
        for user in ["u", "v"] {
            app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
            app.put(&format!("/v1/users/{user}"), json!({"tier": "team", "reason": "test"})).await.ok();
        }
        app.spend("a", "u", "0.5").await;
        app.spend("b", "v", "0.3").await;
        let of_account = "account tier monthly 2026-01-01T00:00:00Z warn acme".to_owned();
        assert_eq!(told(app).await, std::slice::from_ref(&of_account));
        app.spend("c", "u", "0.01").await;
        app.put("/v1/users/u", json!({"tier": "free", "reason": "test"})).await.ok();
        app.put("/v1/users/u/caps", json!({"monthly": "0.4"})).await.ok();
        assert_eq!(told(app).await, std::slice::from_ref(&of_account));
        app.spend("d", "u", "0").await;
        let cap = "user cap monthly 2026-01-01T00:00:00Z block u".to_owned();
        assert_eq!(told(app).await, sorted(vec![of_account, cap, key("30", "u"), key("warn", "u"), key("block", "u")]));
    })
    .await;
}

#[tokio::test]
async fn what_is_durable_and_not_in_the_tables_yet_is_told_once_after_the_next_start() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| config).await;
    app.spend("a", "u", "0.01").await;
    assert_eq!(told(&app).await, [""; 0]);
    app.execute("CREATE TRIGGER refuse BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END").await;
    app.spend("b", "u", "0.08").await;
    app.spend("c", "u", "0.02").await;
    // It ends with the journal ahead of the tables, as one that is killed.
    app.stop().await;
    assert_eq!(app.column("SELECT alert_key FROM outbox").await, [""; 0], "the harness is void: the tables have it");
    app.execute("DROP TRIGGER refuse").await;
    for _ in 0..2 {
        app.restart_after_stop().await;
        assert_eq!(told(&app).await, sorted(vec![key("30", "u"), key("warn", "u"), key("block", "u")]));
        app.stop().await;
    }
}

async fn two(tiers: &str) -> (TestApp, Node) {
    let one = TestApp::start(Database::Postgres, tiers, |config| config).await;
    let other = one.node(|config| config).await;
    (one, other)
}

/// Each node adds to what it remembers, and neither sees alone that a mark is reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_no_node_sees_alone_is_told_once() {
    let (one, other) = two(TIERS).await;
    // Both remember him.
    one.spend("a", "u", "0.001").await;
    other.spend("b", "u", "0.001").await;
    other.spend("c", "u", "0.001").await;
    assert_eq!(told(&one).await, [""; 0]);
    for (number, node) in [&one, &*other, &one].into_iter().enumerate() {
        node.spend(&format!("d{number}"), "u", "0.009").await;
    }
    assert_eq!(told(&one).await, [key("30", "u")]);
    one.spend("e", "u", "0.027").await;
    other.spend("f", "u", "0.027").await;
    assert_eq!(told(&one).await, sorted(vec![key("30", "u"), key("warn", "u")]));
    // What is held on one node counts on the other, and so does a cap.
    other.post("/v1/holds", hold("h", "v", "0.02")).await.ok();
    one.spend("g", "v", "0").await;
    one.spend("h", "v", "0").await;
    other.post("/v1/holds", hold("h2", "v", "0.009")).await.ok();
    one.spend("i", "v", "0.001").await;
    one.spend("j", "w", "0.001").await;
    one.spend("k", "w", "0.001").await;
    other.put("/v1/users/w/caps", json!({"total": "0.003"})).await.ok();
    one.spend("l", "w", "0.001").await;
    let keys = vec![key("30", "u"), key("warn", "u"), key("30", "v"), "user cap total ever block w".to_owned()];
    assert_eq!(told(&one).await, sorted(keys));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_that_spend_at_once_miss_no_mark_and_tell_none_twice() {
    let (one, other) = two(TIERS).await;
    let third = one.node(|config| config).await;
    let nodes = [&one, &*other, &*third];
    for round in 0..20 {
        let user = format!("u{round}");
        for (number, node) in nodes.iter().enumerate() {
            node.spend(&format!("{round}-first-{number}"), &user, "0.000001").await;
        }
        let spend = |number: usize| {
            let (node, id, user) = (nodes[number % nodes.len()], format!("{round}-{number}"), &user);
            async move { node.spend(&id, user, "0.003").await }
        };
        join_all((0..27).map(spend)).await;
        // 0.081 and a little: two of the three are reached.
        let mine: Vec<String> = told(&one).await.into_iter().filter(|key| key.ends_with(&format!(" {user}"))).collect();
        assert_eq!(mine, sorted(vec![key("30", &user), key("warn", &user)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_for_all_users_is_told_whoever_passes_it() {
    let tiers =
        format!("global: {{ budgets: {{ daily: 0.5 }}, policy: strict, alerts: [warn, block, 50] }}\n{}", TIERS.replace("0.10", "100"));
    on_each_database(&tiers, async |app| {
        app.spend("a", "u", "0.24").await;
        assert_eq!(told(app).await, [""; 0]);
        app.post("/v1/holds", hold("h", "v", "0.01")).await.ok();
        let key = |mark: &str| format!("all global daily {DAY} {mark}");
        assert_eq!(told(app).await, [key("50")]);
        app.restart().await;
        app.spend("b", "w", "0.3").await;
        assert_eq!(told(app).await, sorted(vec![key("50"), key("warn"), key("block")]));
    })
    .await;
    let (one, other) = two(&tiers).await;
    let nodes = [&one, &*other];
    let spend = async |number: usize| nodes[number % 2].spend(&format!("{number}"), &format!("u{}", number % 7), "0.011").await;
    join_all((0..40).map(spend)).await;
    let key = |mark: &str| format!("all global daily {DAY} {mark}");
    assert_eq!(told(&one).await, sorted(vec![key("50"), key("warn")]));
    join_all((40..50).map(spend)).await;
    assert_eq!(told(&one).await, sorted(vec![key("50"), key("warn"), key("block")]));
}

/// How many batches a node has done, by its own count.
async fn batches_of(node: &TestApp) -> String {
    node.advance(TimeDelta::seconds(4));
    let metrics = node.get("/metrics").await.text;
    let line = metrics.lines().find(|line| line.starts_with("spendgate_meter_batch_records_count "));
    line.unwrap().to_owned()
}

/// Whenever another node has written a user or his account, they are read anew: what was told of them is not forgotten by that, else
/// each check would tell it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_to_be_told_it_knows_though_others_write() {
    let (one, other) = two(TIERS).await;
    one.put("/v1/accounts/acme/users/t", "").await.ok();
    one.put("/v1/users/t", json!({"tier": "team", "reason": "test"})).await.ok();
    let of_account = "account tier monthly 2026-01-01T00:00:00Z block acme".to_owned();
    for (user, cost, estimate, key) in [("u", "0.02", "0.09", key("block", "u")), ("t", "0.2", "0.9", of_account)] {
        other.spend(&format!("first-{user}"), user, cost).await;
        let is_refused = async || {
            let answer = one.get(&format!("/v1/users/{user}/enforcement?estimated_cost={estimate}")).await.ok();
            assert_eq!(answer["action"], "BLOCK");
        };
        is_refused().await;
        told_at_last(&one, told(&one).await.into_iter().chain([key]).collect::<BTreeSet<_>>().into_iter().collect()).await;
        // Of the note that was written a moment ago memory may not know yet; a write waits until it does.
        one.spend(&format!("behind-{user}"), "somebody-else", "0").await;
        let before = batches_of(&one).await;
        for number in 0..8 {
            other.spend(&format!("{number}-{user}"), user, "0.0001").await;
            is_refused().await;
        }
        assert_eq!(batches_of(&one).await, before);
    }
}

/// The same where memory answers for a while and hears of what others write: a batch of theirs changes what was spent, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_to_be_told_it_knows_though_it_hears_of_others() {
    let stale = |config: Config| Config { max_staleness: TimeDelta::seconds(600), ..config };
    let one = TestApp::start(Database::Postgres, TIERS, stale).await;
    let other = one.node(stale).await;
    other.spend("first", "u", "0.02").await;
    let is_refused = async || {
        let answer = one.get("/v1/users/u/enforcement?estimated_cost=0.09").await.ok();
        assert_eq!(answer["action"], "BLOCK");
    };
    // A node that has just begun to listen forgets what it keeps, and what it knows to be told with it.
    let heard = async |held: f64| {
        let heard = async {
            while one.check("u").await["budgets"][0]["held"] != json!(held) {
                tokio::task::yield_now().await;
            }
        };
        // Not a measure: only so that a failure ends.
        tokio::time::timeout(std::time::Duration::from_secs(30), heard).await.expect("it was told");
    };
    other.post("/v1/holds", hold("h", "u", "0.001")).await.ok();
    heard(0.001).await;
    is_refused().await;
    told_at_last(&one, vec![key("block", "u")]).await;
    one.spend("behind", "somebody-else", "0").await;
    let before = batches_of(&one).await;
    for number in 2..=8 {
        other.post("/v1/holds", hold(&format!("h-{number}"), "u", "0.001")).await.ok();
        heard(f64::from(number) / 1000.0).await;
        is_refused().await;
    }
    assert_eq!(batches_of(&one).await, before);
}

/// Waits until it is told: whoever checks does not.
async fn told_at_last(app: &TestApp, expected: Vec<String>) {
    let expected = sorted(expected);
    // Not a measure: only so that a failure ends.
    let told = async {
        while told(app).await != expected {
            tokio::task::yield_now().await;
        }
    };
    let is_told = tokio::time::timeout(std::time::Duration::from_secs(30), told).await.is_ok();
    assert!(is_told, "{:?} and not {expected:?}", app.column("SELECT alert_key FROM outbox").await);
}

/// How many batches were ever made durable.
async fn batches(app: &TestApp) -> Option<i64> {
    if app.is_postgres() {
        return None;
    }
    let pool = app.sqlite(app.file().with_extension("journal.db")).await;
    let last = sqlx::query_scalar("SELECT MAX(seq) FROM journal").fetch_one(&pool).await.unwrap();
    pool.close().await;
    last
}

#[tokio::test]
async fn the_first_call_that_a_budget_refuses_is_told_though_something_is_left() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.02").await;
        let refused = app.post("/v1/holds", hold("h", "u", "0.09")).await.ok();
        assert_eq!((&refused["action"], &refused["reason"]), (&json!("BLOCK"), &json!("estimate_exceeds_budget")));
        assert_eq!(told(app).await, [key("block", "u")]);
        let rows = app.column("SELECT message FROM outbox").await;
        let resets = "it resets at 2026-01-13T00:00:00Z.";
        assert_eq!(rows, [format!("u has $0.08 left of the daily budget of $0.10 (tier free), and a call of $0.09 was refused; {resets}")]);
        let details: Value = serde_json::from_str(&app.column("SELECT details FROM outbox").await[0]).unwrap();
        let said = ["threshold", "used_pct", "action", "reason", "estimate"].map(|field| details[field].clone());
        assert_eq!(said, [json!("block"), json!(20), json!("BLOCK"), json!("estimate_exceeds_budget"), json!(0.09)]);
        // Once told, neither refusals nor checks write anything.
        let before = batches(app).await;
        app.post("/v1/holds", hold("h2", "u", "0.09")).await.ok();
        for _ in 0..20 {
            assert_eq!(app.get("/v1/users/u/enforcement?estimated_cost=0.09").await.ok()["action"], "BLOCK");
        }
        app.spend("b", "v", "0.02").await;
        assert_eq!(before.map(|before| before + 1), batches(app).await);
        // A check is enough, and more of them tell nothing more.
        for _ in 0..3 {
            assert_eq!(app.get("/v1/users/v/enforcement?estimated_cost=0.09").await.ok()["action"], "BLOCK");
        }
        told_at_last(app, vec![key("block", "u"), key("block", "v")]).await;
        // The usage that fills it tells what is left to tell.
        app.spend("c", "v", "0.09").await;
        told_at_last(app, vec![key("block", "u"), key("block", "v"), key("warn", "v"), key("30", "v")]).await;
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn whom_nobody_knows_is_refused_without_a_trace() {
    on_each_database(TIERS, async |app| {
        for number in 0..20 {
            assert_eq!(app.get(&format!("/v1/users/x{number}/enforcement?estimated_cost=0.2")).await.ok()["action"], "BLOCK");
            assert_eq!(app.post("/v1/holds", hold("h", &format!("x{number}"), "0.2")).await.ok()["action"], "BLOCK");
        }
        app.restart().await;
        assert_eq!(told(app).await, [""; 0]);
        assert_eq!(app.column("SELECT user_id FROM users").await, [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn what_refuses_everybody_is_told_once_whoever_asks() {
    let tiers = format!("global: {{ budgets: {{ daily: 0.05 }}, policy: strict, alerts: [block] }}\n{}", TIERS.replace("block, 30", "30"));
    on_each_database(&tiers, async |app| {
        app.put("/v1/accounts/acme/users/t", "").await.ok();
        app.put("/v1/users/t", json!({"tier": "team", "reason": "test"})).await.ok();
        app.spend("a", "t", "0.01").await;
        for user in ["nobody", "t", "nobody"] {
            assert_eq!(app.get(&format!("/v1/users/{user}/enforcement?estimated_cost=0.06")).await.ok()["action"], "BLOCK");
        }
        let of_all = format!("all global daily {DAY} block");
        told_at_last(app, vec![of_all.clone()]).await;
        app.restart_with(TIERS).await;
        assert_eq!(app.get("/v1/users/t/enforcement?estimated_cost=1").await.ok()["action"], "BLOCK");
        let of_account = "account tier monthly 2026-01-01T00:00:00Z block acme".to_owned();
        told_at_last(app, vec![of_all, of_account]).await;
    })
    .await;
}
