//! What was acknowledged is there, and a failed write leaves no trap behind.

use chrono::DateTime;
use spendgate::domain::user::UserId;
use spendgate::store::{Address, Backend, Store, accounts};

use crate::app::{TIERS, TestApp, on_each_database};

#[tokio::test]
async fn a_transaction_that_is_not_committed_leaves_nothing_and_the_next_one_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let address = Address::Sqlite(path);
    let store = Store::open(&address).await.unwrap();
    let user = |name: &str| UserId::parse(name).unwrap();
    for round in 0..3 {
        let lost = user(&format!("lost-{round}"));
        let mut tx = store.begin().await.unwrap();
        accounts::meet(tx.connection().unwrap(), &lost, DateTime::UNIX_EPOCH).await.unwrap();
        if round == 1 {
            // As after SQLITE_FULL: the database has rolled back by itself, and nobody told the pool.
            let Backend::Sqlite(connection) = tx.connection().unwrap() else { unreachable!("it is SQLite") };
            sqlx::query("ROLLBACK").execute(&mut **connection).await.unwrap();
        }
        drop(tx);
        let kept = user(&format!("kept-{round}"));
        let mut tx = store.begin().await.unwrap();
        accounts::meet(tx.connection().unwrap(), &kept, DateTime::UNIX_EPOCH).await.unwrap();
        tx.commit().await.unwrap();
        // Another process sees what was acknowledged, and only that.
        let other = Store::open(&address).await.unwrap();
        let found = accounts::users(&mut other.reader().await.unwrap(), &[lost.clone(), kept.clone()]).await.unwrap();
        assert!(found.contains_key(&kept) && !found.contains_key(&lost), "round {round}");
        other.close().await;
    }
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_stop_and_all_is_counted_once() {
    on_each_database(TIERS, async |app| {
        for round in 0..5 {
            let app_now = &*app;
            let posts = (0..40).map(|number| async move { app_now.spend(&format!("r{round}-{number}"), "u", "0.000000001").await });
            futures_util::future::join_all(posts).await;
            app.restart().await;
            let user = app.user("u").await;
            assert_eq!(user["lifetime"]["entries"], 40 * (round + 1));
        }
    })
    .await;
}

pub async fn rename(app: &TestApp, tables: &[&str], away: bool) {
    for table in tables {
        let (from, to) = if away { ((*table).to_owned(), format!("{table}_away")) } else { (format!("{table}_away"), (*table).to_owned()) };
        app.execute(&format!("ALTER TABLE {from} RENAME TO {to}")).await;
    }
}

/// Lets every write fail while reads go on, as a full disk does.
pub async fn refuse_writes(app: &TestApp, refuse: bool) {
    if app.is_postgres() {
        let refusal = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
            $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$";
        let on =
            |table: &str| format!("CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse()");
        match refuse {
            true => app.execute(&format!("{refusal}; {}; {}", on("usage"), on("probe"))).await,
            false => app.execute("DROP FUNCTION refuse CASCADE").await,
        }
        return;
    }
    let pool = app.sqlite(app.file().with_extension("journal.db")).await;
    for (table, when) in [("journal", "INSERT"), ("probe", "INSERT"), ("probe", "UPDATE")] {
        let name = format!("refuse_{table}_{when}");
        let sql = match refuse {
            true => format!("CREATE TRIGGER {name} BEFORE {when} ON {table} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"),
            false => format!("DROP TRIGGER {name}"),
        };
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    }
    pool.close().await;
}

pub const ALL_TABLES: [&str; 7] = ["users", "usage", "spend_by_day", "spend_by_day_of_all", "inbox", "api_keys", "probe"];

#[tokio::test]
async fn a_store_that_cannot_be_read_blocks_and_says_so() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.01").await;
        app.restart().await;
        app.check("warm").await;
        // The database is gone from under the service, and what it held of keys is old.
        rename(app, &ALL_TABLES, true).await;
        app.advance(chrono::TimeDelta::minutes(1));
        let answer = app.get("/v1/users/u/enforcement").await;
        assert!(answer.headers.contains_key("retry-after"));
        let decision = answer.ok();
        assert_eq!((&decision["action"], &decision["reason"]), (&"BLOCK".into(), &"store_unavailable".into()));
        let many = app.post("/v1/enforcement", r#"[{"user_id":"u"}]"#).await.ok();
        assert_eq!(many["results"][0]["reason"], "store_unavailable");
        let body = serde_json::json!({"id": "b", "user_id": "u", "cost": 0.01});
        let refused = app.post("/v1/usage", &body).await;
        refused.problem(503, "store_unavailable");
        assert!(refused.headers.contains_key("retry-after"));
        app.get("/v1/users/u").await.problem(503, "store_unavailable");
        app.get("/readyz").await.problem(503, "store_unavailable");
        app.deliver(crate::stripe::paying("u", "price_pro")[0].to_string().as_bytes()).await.problem(503, "store_unavailable");
        assert_eq!(app.get("/healthz").await.status, 200);
        rename(app, &ALL_TABLES, false).await;
        // It comes back by itself, and the repeated write counts once.
        assert_eq!(app.post("/v1/usage", &body).await.ok()["repeated"], false);
        assert_eq!(app.check("u").await["budgets"][0]["spent"], 0.02);
    })
    .await;
}

#[tokio::test]
async fn while_nothing_can_be_written_hard_limits_block_though_memory_knows_better() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.01").await;
        app.put("/v1/users/big", serde_json::json!({"tier": "enterprise", "reason": "test"})).await.ok();
        let reason = async |user: &str| app.check(user).await["reason"].as_str().unwrap().to_owned();
        assert_eq!((reason("u").await.as_str(), reason("big").await.as_str()), ("within_budget", "within_budget"));
        refuse_writes(app, true).await;
        let body = serde_json::json!({"id": "b", "user_id": "u", "cost": 0.01});
        app.post("/v1/usage", &body).await.problem(503, "store_unavailable");
        // What is spent now is not counted, so a hard limit would not hold; a tier that never blocks has none.
        assert_eq!((reason("u").await.as_str(), reason("big").await.as_str()), ("store_unavailable", "within_budget"));
        assert_eq!(app.check("u").await["tier"], "free");
        assert_eq!((&app.user("u").await["action"], &app.user("big").await["action"]), (&"BLOCK".into(), &"ALLOW".into()));
        // Repeats and refusals write nothing, and prove nothing.
        let repeat = serde_json::json!({"id": "a", "user_id": "u", "cost": "0.01"});
        assert_eq!(app.post("/v1/usage", &repeat).await.ok()["repeated"], true);
        app.post("/v1/holds/none/release", "").await.problem(404, "hold_not_found");
        assert_eq!(reason("u").await, "store_unavailable");
        app.get("/readyz").await.problem(503, "store_unavailable");
        refuse_writes(app, false).await;
        // Blocked callers write nothing, so the service finds out by itself.
        while reason("u").await != "within_budget" {
            tokio::task::yield_now().await;
        }
        app.post("/v1/usage", &body).await.ok();
        assert_eq!(app.check("u").await["budgets"][0]["spent"], 0.02);
        // A hold that is the first write after an outage is answered as what it is.
        refuse_writes(app, true).await;
        let hold = serde_json::json!({"id": "h", "user_id": "u", "estimated_cost": 0.01});
        app.post("/v1/holds", &hold).await.problem(503, "store_unavailable");
        refuse_writes(app, false).await;
        assert_eq!(app.post("/v1/holds", &hold).await.ok()["reason"], "within_budget");
    })
    .await;
}
