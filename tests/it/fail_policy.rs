//! What is answered while the store is away: by the tier's own word, and every such answer says so.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::config::Config;

use crate::app::{ADMIN_KEY, Answer, Database, TIERS, TestApp, on_each_database};
use crate::durability::{ALL_TABLES, refuse_writes, rename};
use crate::postgres;

/// Free users are blocked, pro users pass, with the models of their tier.
const POLICIES: &str = "
default_tier: free
tiers:
  free: { rank: 0, budgets: { daily: 1 }, policy: strict }
  pro:
    rank: 10
    prices: [price_pro]
    budgets: { daily: 1 }
    policy: graceful
    on_store_down: allow
    degrade_to: { default: gpt-4o-mini }
    models: { deny: [gpt-4] }
";

async fn make_pro(app: &TestApp, users: &[&str]) {
    for user in users {
        app.put(&format!("/v1/users/{user}"), json!({"tier": "pro", "reason": "test"})).await.ok();
        app.check(user).await;
    }
}

/// Action, reason and tier of an answer that was given while the store was away.
#[track_caller]
fn away(answer: &Answer) -> (String, String, String) {
    let decision = answer.ok();
    assert!(answer.headers.contains_key("retry-after"), "{decision}");
    let message = decision["message"].as_str().unwrap();
    assert!(message.contains("The store is not available") || message.contains("cannot be read"), "{message}");
    let text = |field: &str| decision[field].as_str().unwrap().to_owned();
    (text("action"), text("reason"), text("tier"))
}

fn said(action: &str, reason: &str, tier: &str) -> (String, String, String) {
    (action.to_owned(), reason.to_owned(), tier.to_owned())
}

async fn is_back(app: &TestApp, user: &str) {
    while app.check(user).await["reason"] == "store_unavailable" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_tier_says_what_its_users_are_told_while_the_store_is_away() {
    on_each_database(POLICIES, async |app| {
        app.spend("a", "f", "0.01").await;
        app.spend("b", "p", "0.01").await;
        make_pro(app, &["p"]).await;
        rename(app, &ALL_TABLES, true).await;
        // Another day: whatever memory has, the windows that are open now have to be read.
        app.advance(TimeDelta::days(1));
        let check = async |user: &str, model: &str| app.get(&format!("/v1/users/{user}/enforcement?model={model}")).await;
        for _ in 0..2 {
            assert_eq!(away(&check("p", "gpt-4o").await), said("ALLOW", "store_unavailable", "pro"));
            assert_eq!(away(&check("f", "gpt-4o").await), said("BLOCK", "store_unavailable", "free"));
            // Of whom nothing is known, the default tier's policy holds.
            assert_eq!(away(&check("stranger", "gpt-4o").await), said("BLOCK", "store_unavailable", "free"));
            // An outage gives nobody another tier's models.
            let degraded = check("p", "gpt-4").await;
            assert_eq!(away(&degraded), said("DEGRADE", "model_not_in_tier", "pro"));
            assert_eq!(degraded.json()["model"], "gpt-4o-mini");
            let many = app.post("/v1/enforcement", r#"[{"user_id":"p"},{"user_id":"stranger"},{"user_id":"f"}]"#).await;
            assert!(many.headers.contains_key("retry-after"));
            let of = |index: usize| many.json()["results"][index]["action"].as_str().unwrap().to_owned();
            assert_eq!([of(0), of(1), of(2)], ["ALLOW", "BLOCK", "BLOCK"]);
            // Nothing can be reserved. A write whose outcome is unknown takes nothing from what is known of the tier.
            let hold = json!({"id": "h", "user_id": "p", "estimated_cost": 0.01});
            app.post("/v1/holds", &hold).await.problem(503, "store_unavailable");
            app.post("/v1/usage", json!({"id": "c", "user_id": "p", "cost": 0.01})).await.problem(503, "store_unavailable");
        }
        rename(app, &ALL_TABLES, false).await;
        is_back(app, "p").await;
        let answer = app.get("/v1/users/p/enforcement").await;
        assert!(!answer.headers.contains_key("retry-after"));
        assert_eq!((&answer.ok()["reason"], &answer.ok()["budgets"][0]["spent"]), (&json!("within_budget"), &json!(0)));
    })
    .await;
}

#[tokio::test]
async fn the_default_tier_speaks_for_strangers() {
    let tiers = POLICIES.replace("policy: strict", "policy: strict, on_store_down: allow").replace("on_store_down: allow\n", "\n");
    on_each_database(&tiers, async |app| {
        app.spend("b", "p", "0.01").await;
        make_pro(app, &["p"]).await;
        rename(app, &ALL_TABLES, true).await;
        app.advance(TimeDelta::days(1));
        assert_eq!(away(&app.get("/v1/users/stranger/enforcement").await), said("ALLOW", "store_unavailable", "free"));
        assert_eq!(away(&app.get("/v1/users/p/enforcement").await), said("BLOCK", "store_unavailable", "pro"));
        rename(app, &ALL_TABLES, false).await;
    })
    .await;
}

#[tokio::test]
async fn while_nothing_can_be_written_the_policy_holds_and_what_is_known_to_forbid_still_does() {
    on_each_database(POLICIES, async |app| {
        app.spend("a", "f", "0.01").await;
        app.spend("b", "p", "0.01").await;
        app.spend("c", "full", "1").await;
        make_pro(app, &["p", "full"]).await;
        refuse_writes(app, true).await;
        app.post("/v1/usage", json!({"id": "d", "user_id": "p", "cost": 0.01})).await.problem(503, "store_unavailable");
        // On Postgres a refusal that is told for the first time is written, to other tables: no proof that usage can be.
        app.post("/v1/holds", json!({"id": "h", "user_id": "p", "estimated_cost": 50})).await;
        assert_eq!(away(&app.get("/v1/users/p/enforcement").await), said("ALLOW", "store_unavailable", "pro"));
        assert_eq!(away(&app.get("/v1/users/f/enforcement").await), said("BLOCK", "store_unavailable", "free"));
        assert_eq!(away(&app.get("/v1/users/full/enforcement").await), said("BLOCK", "budget_exhausted", "pro"));
        assert_eq!((&app.user("p").await["action"], &app.user("f").await["action"]), (&json!("ALLOW"), &json!("BLOCK")));
        refuse_writes(app, false).await;
        is_back(app, "p").await;
        is_back(app, "f").await;
    })
    .await;
}

#[tokio::test]
async fn the_catalogue_tells_the_policy() {
    on_each_database(POLICIES, async |app| {
        let tiers = app.get("/v1/tiers").await.ok();
        let policy = |index: usize| tiers["tiers"][index]["on_store_down"].clone();
        assert_eq!((policy(0), policy(1)), (json!("block"), json!("allow")));
    })
    .await;
}

/// What keeps the store from answering, until it is let go.
enum Lock {
    /// The settler cannot bring the tables up to the journal, and who reads a user's tables waits for it.
    Sqlite(sqlx::SqlitePool),
    Postgres(Child),
}

impl Lock {
    async fn take(app: &TestApp) -> Self {
        if app.is_postgres() {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-q", &app.database().url()]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut psql = psql.spawn().unwrap();
            let asks = b"BEGIN; LOCK TABLE users, api_keys IN ACCESS EXCLUSIVE MODE;\n\\echo locked\n";
            psql.stdin.as_mut().unwrap().write_all(asks).unwrap();
            let mut told = String::new();
            BufReader::new(psql.stdout.as_mut().unwrap()).read_line(&mut told).unwrap();
            assert_eq!(told, "locked\n");
            return Self::Postgres(psql);
        }
        let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(app.file())).await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&pool).await.unwrap();
        Self::Sqlite(pool)
    }

    async fn let_go(self) {
        match self {
            Self::Sqlite(pool) => {
                sqlx::raw_sql("ROLLBACK").execute(&pool).await.unwrap();
                pool.close().await;
            }
            Self::Postgres(mut psql) => {
                // The end of what it reads ends it, and its transaction.
                drop(psql.stdin.take());
                psql.wait().unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_a_store_that_is_down_after_the_deadline() {
    for database in Database::ALL {
        let mut app = TestApp::start(database, POLICIES, |config| config).await;
        app.spend("a", "f", "0.01").await;
        app.spend("b", "p", "0.01").await;
        make_pro(&app, &["p"]).await;
        app.config = Config { store_timeout: Duration::from_millis(200), ..app.config.clone() };
        app.restart().await;
        // A machine that is busy with other tests may take longer than this deadline.
        is_back(&app, "f").await;
        is_back(&app, "p").await;
        let lock = Lock::take(&app).await;
        if !app.is_postgres() {
            app.spend("c", "f", "0.01").await;
            app.spend("d", "p", "0.01").await;
            app.advance(TimeDelta::days(1));
        }
        // Who asks for more than a decision is told by the database's own limits, seconds later: before that the checks must be answered.
        let (client, url) = (app.client.clone(), app.url("/v1/users/p"));
        let slow = tokio::spawn(async move { client.get(url).bearer_auth(ADMIN_KEY).send().await.unwrap().status().as_u16() });
        let checks = (0..100).map(|index| {
            let user = if index % 2 == 0 { "p" } else { "f" };
            let request = app.client.get(app.url(&format!("/v1/users/{user}/enforcement"))).bearer_auth(ADMIN_KEY);
            let app = &app;
            async move { (user, app.send(request).await) }
        });
        for (user, answer) in futures_util::future::join_all(checks).await {
            let expected = if user == "p" { said("ALLOW", "store_unavailable", "pro") } else { said("BLOCK", "store_unavailable", "free") };
            assert_eq!(away(&answer), expected);
        }
        let list: Vec<Value> = (0..100).map(|index| json!({"user_id": if index % 2 == 0 { "p" } else { "f" }})).collect();
        let list = app.post("/v1/enforcement", Value::from(list)).await;
        assert!(list.headers.contains_key("retry-after"));
        assert_eq!((&list.json()["results"][98]["action"], &list.json()["results"][99]["action"]), (&json!("ALLOW"), &json!("BLOCK")));
        assert!(!slow.is_finished(), "the database gave up by itself, so the deadline is not tested");
        if app.is_postgres() {
            let hung = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let hung: u32 = postgres::sql(&app.database(), hung).parse().unwrap();
            assert!((1..=4).contains(&hung), "{hung} look-ups hang");
        }
        lock.let_go().await;
        is_back(&app, "p").await;
        is_back(&app, "f").await;
        slow.await.unwrap();
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_good_is_good_while_the_store_hangs() {
    let mut app = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    app.config = Config { store_timeout: Duration::from_millis(200), ..app.config.clone() };
    app.restart().await;
    is_back(&app, "u").await;
    let lock = Lock::take(&app).await;
    app.advance(TimeDelta::minutes(1));
    assert_eq!(away(&app.get("/v1/users/u/enforcement").await), said("BLOCK", "store_unavailable", "free"));
    let stranger = app.client.get(app.url("/v1/users/u/enforcement")).bearer_auth("sg_of_nobody");
    app.send(stranger).await.problem(503, "store_unavailable");
    lock.let_go().await;
    is_back(&app, "u").await;
}
