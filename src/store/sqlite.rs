//! The database as files: SQLite has one writer, so writes go through one connection and wait for it in order; reads have connections of
//! their own. The ledger's batches do not wait for it: they are durable in a journal beside the database, and the tables follow.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, Row, Sqlite, SqliteConnection};
use tokio::sync::Mutex;
use tracing::warn;

use super::backend::Backend;
use super::journal::{DROPPED_AT_ONCE, Journal, Numbered};
use super::{ACQUIRE_TIMEOUT, Connection, SEEN, Schema, StoreError, Tx, corrupt, seen_or_none, settle};

pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// Checks that miss memory, and lists, read in parallel; more than a few only wait for the disk.
const READERS: u32 = 4;
/// Who writes the ledger, and loads whom it concerns, waits for none of those: a list may go through a whole table.
const READERS_OF_LEDGER: u32 = 2;
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
/// Batches of the journal that are read at once: each may have thousands of rows, and a start after a kill for memory must not take more.
const LEFT_AT_ONCE: i64 = 32;

/// Moves a log's pages to their places, syncs them there, and empties the log. Answers whether somebody was in the way.
pub(super) const LEAVE_THE_LOG: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// A connection that does nothing but stay. The index of a file's log lives as long as somebody has the file open. Without it the next
/// connection would read the log anew, and take for committed what a failed sync had left in the kernel's cache and nowhere else; and
/// what is committed behind it would be lost with it.
#[derive(Clone, Debug)]
pub(super) struct Anchor(Arc<Mutex<Option<SqliteConnection>>>);

impl Anchor {
    pub(super) async fn drop_at(options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = options.connect().await?;
        // The log is opened by the first who reads.
        sqlx::query("SELECT COUNT(*) FROM sqlite_schema").fetch_one(&mut connection).await?;
        Ok(Self(Arc::new(Mutex::new(Some(connection)))))
    }

    /// To be called before the last other connection goes, which brings the log to its place.
    pub(super) async fn weigh(&self) {
        if let Some(connection) = self.0.lock().await.take() {
            // It has written nothing.
            let _ = connection.close().await;
        }
    }
}

/// Whether [`LEAVE_THE_LOG`] did what it was asked.
pub(super) fn was_left(row: Option<&SqliteRow>) -> Result<bool, StoreError> {
    let busy: i64 = row.ok_or_else(|| corrupt("a checkpoint answers in one row"))?.try_get("busy")?;
    Ok(busy == 0)
}

/// The two files, open.
#[derive(Clone, Debug)]
pub struct Files {
    readers: SqlitePool,
    readers_of_ledger: SqlitePool,
    writer: SqlitePool,
    journal: Journal,
    anchor: Anchor,
}

impl Files {
    /// Opens the file, makes it where it is missing, brings its schema up to date where it may, and its tables up to the journal.
    pub(super) async fn open(path: &Path, schema: Schema) -> Result<Self, StoreError> {
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
        match schema {
            Schema::Migrate => MIGRATIONS.run(&writer).await?,
            Schema::AsItIs => {
                let seen = sqlx::query_scalar(SEEN).fetch_one(&writer).await;
                Schema::check(seen_or_none(seen)?, &MIGRATIONS)?;
            }
        }
        let anchor = Anchor::drop_at(&options).await?;
        let reads = options.pragma("cache_size", CACHE_KIB_OF_READERS);
        let readers = pool(READERS).connect_with(reads.clone()).await?;
        let readers_of_ledger = pool(READERS_OF_LEDGER).connect_with(reads).await?;
        let journal = Journal::open(file(&journal_path(path), CHECKPOINT_PAGES_OF_JOURNAL)).await?;
        let files = Self { readers, readers_of_ledger, writer, journal, anchor };
        files.settle_what_is_left().await?;
        Ok(files)
    }

    /// Brings the tables up to the journal, as after a kill; beside a running service too.
    async fn settle_what_is_left(&self) -> Result<(), StoreError> {
        // The journal is asked first: a service beside us drops only what the tables have by then. And what it adds from now on, it settles.
        let ends = self.journal.ends().await?;
        let mut through = settle::through(&mut self.reader().await?).await?;
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
        let settled = settle::through(&mut self.reader().await?).await?;
        Ok(self.journal.ends().await?.map_or(settled, |(_, last)| last.max(settled)))
    }

    /// Leaves nothing in the logs that an earlier process wrote. It may have been killed after a sync had failed: then the end of a log
    /// is in the kernel's cache only, and what we would commit behind it would be lost with it. To be called by whoever owns the files.
    pub async fn leave_the_logs(&self) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        let row = sqlx::query(LEAVE_THE_LOG).fetch_optional(&mut *connection).await?;
        let (tables, journal) = (was_left(row.as_ref())?, self.journal.leave_the_log().await?);
        if !(tables && journal) {
            warn!("another process reads beside us, so the logs could not be emptied at this start");
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.anchor.weigh().await;
        self.journal.close().await;
        self.readers.close().await;
        self.readers_of_ledger.close().await;
        self.writer.close().await;
    }

    pub(super) async fn reader(&self) -> Result<Connection, StoreError> {
        Ok(Backend::Sqlite(self.readers.acquire().await?))
    }

    pub(super) async fn begin_read(&self) -> Result<Tx, StoreError> {
        begun(self.readers.acquire().await?, "BEGIN").await
    }

    /// For reading only, for who writes the ledger.
    pub async fn reader_of_ledger(&self) -> Result<Connection, StoreError> {
        Ok(Backend::Sqlite(self.readers_of_ledger.acquire().await?))
    }

    /// Reads of one moment, for who writes the ledger.
    pub async fn begin_read_of_ledger(&self) -> Result<Tx, StoreError> {
        begun(self.readers_of_ledger.acquire().await?, "BEGIN").await
    }

    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        // IMMEDIATE queues for the one writer; a plain BEGIN would fail once it has read and then wants to write.
        begun(self.writer.acquire().await?, "BEGIN IMMEDIATE").await
    }
}

async fn begun(connection: PoolConnection<Sqlite>, how: &'static str) -> Result<Tx, StoreError> {
    let mut tx = Tx { connection: Some(Backend::Sqlite(connection)) };
    tx.connection()?.query(how).execute().await?;
    Ok(tx)
}

/// The journal's file: `spendgate.journal.db` beside `spendgate.db`.
pub fn journal_path(database: &Path) -> PathBuf {
    let ending = database.extension().map_or_else(|| "journal".to_owned(), |ending| format!("journal.{}", ending.display()));
    database.with_extension(ending)
}
