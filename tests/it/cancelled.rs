//! Callers who go away in the middle of something leave nothing behind for others.

use std::future::Future;
use std::pin::pin;

use futures_util::poll;
use spendgate::store::{Backend, Store};
use sqlx::{Executor, Row};

use crate::app::{TIERS, TestApp, on_each_database};

/// Moments at which a transaction is begun no further.
const MOMENTS: usize = 20;
/// As in `src/store/postgres.rs`.
const CONNECTIONS_MAX: usize = 12;

/// Polls a future that cannot end until `enough`, and drops it.
async fn cut<T>(future: impl Future<Output = T>, mut enough: impl AsyncFnMut() -> bool) {
    let mut future = pin!(future);
    loop {
        assert!(poll!(&mut future).is_pending(), "somebody else has begun already");
        if enough().await {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Checks that each connection of the pool is outside of a transaction: a statement by itself has its own, which begins with it.
async fn nothing_is_open(store: &Store) {
    const ALONE: &str = "SELECT CAST(now() = statement_timestamp() AS TEXT)";
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        all.push(store.reader().await.unwrap());
    }
    for connection in &mut all {
        let Backend::Postgres(connection) = connection else { unreachable!("it is Postgres") };
        // A prepared statement would begin when it is bound, and be counted from when it is executed.
        let alone: String = connection.fetch_one(sqlx::raw_sql(ALONE)).await.unwrap().get(0);
        assert_eq!(alone, "true", "a transaction was left open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_beginning_nobody_waits_for_any_more_is_not_left_open() {
    on_each_database(TIERS, async |app: &mut TestApp| {
        let (store, other) = (Store::open(&app.database()).await.unwrap(), Store::open(&app.database()).await.unwrap());
        // The others wait behind it, in the middle of their beginning.
        let first = other.begin().await.unwrap();
        for moment in 0..MOMENTS {
            let mut polls = 0;
            let enough = async || {
                polls += 1;
                moment < polls
            };
            cut(store.begin(), enough).await;
        }
        if app.is_postgres() {
            // The server has begun it, and says so.
            let waits = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
            let before: u32 = app.column(waits).await[0].parse().unwrap();
            cut(store.begin(), async || before < app.column(waits).await[0].parse().unwrap()).await;
        }
        first.commit().await.unwrap();
        if app.is_postgres() {
            nothing_is_open(&store).await;
        }
        // Whoever comes next has a transaction of his own.
        for _ in 0..CONNECTIONS_MAX {
            store.probe(app.now()).await.unwrap();
            store.begin().await.unwrap().commit().await.unwrap();
        }
        app.spend("r", "u", "0.01").await;
        assert_eq!(app.user("u").await["lifetime"]["entries"], 1);
        store.close().await;
        other.close().await;
    })
    .await;
}
