//! What we remember; the only SQL.
//!
//! SQLite has one writer, so writes go through one connection and wait for it in order; reads have connections of their own.

pub mod accounts;
pub mod holds;
pub mod inbox;
pub mod keys;
pub mod ledger;
pub mod verify;

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection};

use crate::domain::operation::Fingerprint;

/// The database failed, or refused. Callers cannot mend it, so there is nothing here to match on.
#[derive(Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreError(#[from] sqlx::Error);

impl StoreError {
    /// What was read does not fit together.
    pub fn torn() -> Self {
        corrupt("what was read does not fit together")
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self(error.into())
    }
}

/// A connection, in or outside a transaction.
pub type Connection = SqliteConnection;

const PROBE: &str = "INSERT INTO probe (only, at) VALUES (1, $1) ON CONFLICT (only) DO UPDATE SET at = excluded.at";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// Checks that miss memory read in parallel; more than a few only wait for the disk.
const READERS: u32 = 4;
/// A negative number is KiB: the pages that random ids touch stay at hand, instead of SQLite's own two megabytes.
const CACHE_KIB: &str = "-65536";
/// Pages in the log before they are moved to their places, 16 MiB. A page that many commits touch is moved once, so more is faster,
/// but who comes while they are moved waits longer.
const CHECKPOINT_PAGES: &str = "4096";
/// How long a write waits for another process (the command line beside the server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long anybody waits for a connection before the store counts as failed.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Store {
    /// Opens the file, makes it where it is missing, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // FULL: a commit is on the disk before it is answered, in WAL mode too.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("cache_size", CACHE_KIB)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
        let pool = |connections: u32| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
        let writer = pool(1).connect_with(options.clone()).await?;
        MIGRATIONS.run(&writer).await?;
        let readers = pool(READERS).connect_with(options).await?;
        Ok(Self { readers, writer })
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// For reading only.
    pub async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// Whether a write reaches the disk.
    pub async fn probe(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(PROBE).bind(micros(now)).execute(tx.connection()?).await?;
        tx.commit().await
    }

    /// Reads of one moment, however many statements they take.
    pub async fn begin_read(&self) -> Result<Tx, StoreError> {
        let mut tx = Tx { connection: Some(self.reader().await?) };
        sqlx::query("BEGIN").execute(tx.connection()?).await?;
        Ok(tx)
    }

    /// The one connection that writes, for statements that are atomic by themselves.
    pub async fn write_alone(&self) -> Result<Writing, StoreError> {
        Ok(Writing(Tx { connection: Some(self.writer.acquire().await?) }))
    }

    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = Tx { connection: Some(self.writer.acquire().await?) };
        // IMMEDIATE queues for the one writer; a plain BEGIN would fail once it has read and then wants to write.
        sqlx::query("BEGIN IMMEDIATE").execute(tx.connection()?).await?;
        Ok(tx)
    }
}

/// A transaction. Unless it is committed, its connection is thrown away: after a failed write SQLite may have rolled
/// back by itself, and what follows on that connection would be acknowledged and lost.
#[derive(Debug)]
pub struct Tx {
    connection: Option<PoolConnection<Sqlite>>,
}

impl Tx {
    pub fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = self.connection.as_mut().ok_or(StoreError(sqlx::Error::PoolClosed))?;
        Ok(connection)
    }

    /// `Ok` means that it is on the disk. An error means that the outcome is unknown.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query("COMMIT").execute(self.connection()?).await?;
        // Dropping the connection itself returns it to the pool.
        self.connection.take();
        Ok(())
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Closing the connection rolls back what it had begun.
            drop(connection.detach());
        }
    }
}

/// The writing connection outside a transaction. Unless all went well it is thrown away, as a transaction's is.
#[derive(Debug)]
pub struct Writing(Tx);

impl Writing {
    pub fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.0.connection()
    }

    /// Every statement was confirmed.
    pub fn done(mut self) {
        // Dropping the connection itself returns it to the pool.
        self.0.connection.take();
    }
}

/// Microseconds since 1970-01-01 UTC, as times are stored.
fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

fn from_micros(micros: i64) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_micros(micros).ok_or_else(|| corrupt("a time is out of range"))
}

/// What stands in the database cannot have been written by us.
fn corrupt(what: &str) -> StoreError {
    StoreError(sqlx::Error::Decode(what.into()))
}

fn fingerprint(bytes: Vec<u8>) -> Result<Fingerprint, StoreError> {
    Fingerprint::try_from(bytes).map_err(|_| corrupt("a fingerprint has 16 bytes"))
}

/// A list as the one parameter of a statement, for `json_each`.
fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    serde_json::Value::from_iter(items.into_iter().map(serde_json::Value::from)).to_string()
}
