//! What was acknowledged is there, and a failed write leaves no trap behind.

use chrono::DateTime;
use spendgate::domain::user::UserId;
use spendgate::store::{Store, accounts};

use crate::app::{TIERS, on_each_database};

#[tokio::test]
async fn a_transaction_that_is_not_committed_leaves_nothing_and_the_next_one_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let store = Store::open(&path).await.unwrap();
    let user = |name: &str| UserId::parse(name).unwrap();
    for round in 0..3 {
        let lost = user(&format!("lost-{round}"));
        let mut tx = store.begin().await.unwrap();
        accounts::meet(tx.connection().unwrap(), &lost, DateTime::UNIX_EPOCH).await.unwrap();
        if round == 1 {
            // As after SQLITE_FULL: the database has rolled back by itself, and nobody told the pool.
            sqlx::query("ROLLBACK").execute(tx.connection().unwrap()).await.unwrap();
        }
        drop(tx);
        let kept = user(&format!("kept-{round}"));
        let mut tx = store.begin().await.unwrap();
        accounts::meet(tx.connection().unwrap(), &kept, DateTime::UNIX_EPOCH).await.unwrap();
        tx.commit().await.unwrap();
        // Another process sees what was acknowledged, and only that.
        let other = Store::open(&path).await.unwrap();
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

#[tokio::test]
async fn a_store_that_cannot_be_read_blocks_and_says_so() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.01").await;
        app.restart().await;
        app.check("warm").await;
        // The database is gone from under the service.
        let pool = sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(app.database())).await.unwrap();
        for table in ["users", "usage", "spend_by_day", "inbox"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("ALTER TABLE {table} RENAME TO {table}_away"))).execute(&pool).await.unwrap();
        }
        let answer = app.get("/v1/users/u/enforcement").await;
        assert!(answer.headers.contains_key("retry-after"));
        let decision = answer.ok();
        assert_eq!((&decision["action"], &decision["reason"]), (&"BLOCK".into(), &"store_unavailable".into()));
        let body = serde_json::json!({"id": "b", "user_id": "u", "cost": 0.01});
        let refused = app.post("/v1/usage", &body).await;
        refused.problem(503, "store_unavailable");
        assert!(refused.headers.contains_key("retry-after"));
        app.get("/v1/users/u").await.problem(503, "store_unavailable");
        app.get("/readyz").await.problem(503, "store_unavailable");
        assert_eq!(app.get("/healthz").await.status, 200);
        for table in ["users", "usage", "spend_by_day", "inbox"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("ALTER TABLE {table}_away RENAME TO {table}"))).execute(&pool).await.unwrap();
        }
        // It comes back by itself, and the repeated write counts once.
        assert_eq!(app.post("/v1/usage", &body).await.ok()["repeated"], false);
        assert_eq!(app.check("u").await["budgets"][0]["spent"], 0.02);
    })
    .await;
}
