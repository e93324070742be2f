//! What we remember; the only SQL.
//!
//! SQLite has one writer, so writes go through one connection and wait for it in order; reads have connections of their own. The
//! ledger's batches do not wait for it: they are durable in a journal beside the database, and the tables follow.

pub mod accounts;
pub mod holds;
pub mod inbox;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod links;
pub mod reconciliation;
pub mod requests;
mod retention;
mod settle;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, Row, Sqlite, SqliteConnection};
use tokio::sync::Mutex;
use tracing::warn;

use crate::domain::operation::Fingerprint;
use journal::{DROPPED_AT_ONCE, Journal, Numbered};

/// The database failed, or refused. Callers cannot mend it, so there is nothing here to match on.
#[derive(Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreError(#[from] sqlx::Error);

impl StoreError {
    /// It took longer than anybody should wait.
    pub fn late() -> Self {
        Self(sqlx::Error::PoolTimedOut)
    }

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

/// A connection that goes back to its pool.
pub type PoolConnection = sqlx::pool::PoolConnection<Sqlite>;

const PROBE: &str = "INSERT INTO probe (only, at) VALUES (1, $1) ON CONFLICT (only) DO UPDATE SET at = excluded.at";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// Checks that miss memory read in parallel; more than a few only wait for the disk.
const READERS: u32 = 4;
/// A negative number is KiB: the pages that random ids touch stay at hand, instead of SQLite's own two megabytes.
const CACHE_KIB: &str = "-65536";
/// Readers look up a few rows of one user each; what they share is in the kernel's cache.
const CACHE_KIB_OF_READERS: &str = "-8192";
/// Pages in the log before they are moved to their places: 64 MiB for the tables, since a page that many commits touch is moved once;
/// less for the journal, since who commits while they are moved waits.
const CHECKPOINT_PAGES: &str = "16384";
const CHECKPOINT_PAGES_OF_JOURNAL: &str = "4096";
/// How long a write waits for another process (the command line beside the server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long anybody waits for a connection before the store counts as failed.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Batches of the journal that are read at once.
const LEFT_AT_ONCE: i64 = 256;

/// Moves a log's pages to their places, syncs them there, and empties the log. Answers whether somebody was in the way.
const LEAVE_THE_LOG: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// A connection that does nothing but stay. The index of a file's log lives as long as somebody has the file open. Without it the next
/// connection would read the log anew, and take for committed what a failed sync had left in the kernel's cache and nowhere else; and
/// what is committed behind it would be lost with it.
#[derive(Clone, Debug)]
struct Anchor(Arc<Mutex<Option<SqliteConnection>>>);

impl Anchor {
    async fn drop_at(options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = options.connect().await?;
        // The log is opened by the first who reads.
        sqlx::query("SELECT COUNT(*) FROM sqlite_schema").fetch_one(&mut connection).await?;
        Ok(Self(Arc::new(Mutex::new(Some(connection)))))
    }

    /// To be called before the last other connection goes, which brings the log to its place.
    async fn weigh(&self) {
        if let Some(connection) = self.0.lock().await.take() {
            // It has written nothing.
            let _ = connection.close().await;
        }
    }
}

/// Whether [`LEAVE_THE_LOG`] did what it was asked.
fn was_left(row: Option<&SqliteRow>) -> Result<bool, StoreError> {
    let busy: i64 = row.ok_or_else(|| corrupt("a checkpoint answers in one row"))?.try_get("busy")?;
    Ok(busy == 0)
}

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    readers: SqlitePool,
    writer: SqlitePool,
    journal: Journal,
    anchor: Anchor,
}

impl Store {
    /// Opens the file, makes it where it is missing, brings its schema up to date, and its tables up to the journal.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // FULL: a commit is on the disk before it is answered, in WAL mode too.
        let file = |path: &Path, checkpoint_pages: &'static str| {
            SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(BUSY_TIMEOUT)
                .foreign_keys(true)
                .pragma("cache_size", CACHE_KIB)
                .pragma("wal_autocheckpoint", checkpoint_pages)
        };
        let options = file(path, CHECKPOINT_PAGES);
        // A connection to a file need not be asked whether it is still there.
        let pool = |connections: u32| {
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT).test_before_acquire(false)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        MIGRATIONS.run(&writer).await?;
        let anchor = Anchor::drop_at(&options).await?;
        let readers = pool(READERS).connect_with(options.pragma("cache_size", CACHE_KIB_OF_READERS)).await?;
        let journal = Journal::open(file(&journal_path(path), CHECKPOINT_PAGES_OF_JOURNAL)).await?;
        let store = Self { readers, writer, journal, anchor };
        store.settle_what_is_left().await?;
        Ok(store)
    }

    /// Brings the tables up to the journal, as after a kill; beside a running service too.
    async fn settle_what_is_left(&self) -> Result<(), StoreError> {
        // The journal is asked first: a service beside us drops only what the tables have by then. And what it adds from now on, it settles.
        let ends = self.journal.ends().await?;
        let mut through = settle::through(&mut *self.reader().await?).await?;
        let (first, last) = ends.unwrap_or_default();
        if last < through {
            warn!(
                "the journal ends at batch {last} and the tables have batch {through}: was the journal's file left behind? What it had beyond is lost"
            );
        }
        if ends.is_some() && through + 1 < first {
            return Err(corrupt(
                "the journal begins after what the tables have: the two files are not of one moment; put back both from one backup",
            ));
        }
        while through < last {
            let left = self.journal.after(through, LEFT_AT_ONCE).await?;
            let Some((upto, _)) = left.last() else { break };
            through = *upto;
            self.settle(&left).await?;
        }
        Ok(())
    }

    /// Writes batches of the journal into the tables. Those that the tables have change nothing.
    pub async fn settle(&self, batches: &[Numbered]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        settle::settle(&mut tx, batches).await?;
        tx.commit().await
    }

    /// Forgets batches that the tables have, a few at a time.
    pub async fn drop_settled(&self, from: i64, through: i64) -> Result<(), StoreError> {
        let mut upto = from;
        while upto < through {
            upto = through.min(upto + DROPPED_AT_ONCE);
            self.journal.drop_through(upto).await?;
        }
        Ok(())
    }

    /// Where the ledger's batches become durable.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The number of the last batch, wherever it stands. A journal that was lost begins behind what the tables have.
    pub async fn last_batch(&self) -> Result<i64, StoreError> {
        let settled = settle::through(&mut *self.reader().await?).await?;
        Ok(self.journal.ends().await?.map_or(settled, |(_, last)| last.max(settled)))
    }

    /// Leaves nothing in the logs that an earlier process wrote. It may have been killed after a sync had failed: then the end of a log
    /// is in the kernel's cache only, and what we would commit behind it would be lost with it. To be called by whoever owns the files.
    pub async fn leave_the_logs(&self) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        let row = sqlx::query(LEAVE_THE_LOG).fetch_optional(&mut *connection).await?;
        if !(was_left(row.as_ref())? && self.journal.leave_the_log().await?) {
            warn!("another process reads beside us, so the logs could not be emptied at this start");
        }
        Ok(())
    }

    pub async fn close(&self) {
        self.anchor.weigh().await;
        self.journal.close().await;
        self.readers.close().await;
        self.writer.close().await;
    }

    /// For reading only.
    pub async fn reader(&self) -> Result<PoolConnection, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// Whether a write reaches the disk.
    pub async fn probe(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(PROBE).bind(micros(now)).execute(tx.connection()?).await?;
        tx.commit().await?;
        self.journal.probe(now).await
    }

    /// Reads of one moment, however many statements they take.
    pub async fn begin_read(&self) -> Result<Tx, StoreError> {
        let mut tx = Tx { connection: Some(self.reader().await?) };
        sqlx::query("BEGIN").execute(tx.connection()?).await?;
        Ok(tx)
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
    connection: Option<PoolConnection>,
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

/// The journal's file: `spendgate.journal.db` beside `spendgate.db`.
fn journal_path(database: &Path) -> PathBuf {
    let ending = database.extension().map_or_else(|| "journal".to_owned(), |ending| format!("journal.{}", ending.display()));
    database.with_extension(ending)
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
