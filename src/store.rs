//! What we remember; the only SQL. SQLite's files, or a Postgres that many nodes share: one query text for both.

pub mod accounts;
mod address;
mod backend;
pub mod batch;
pub mod copy;
pub mod figures;
pub mod grants;
pub mod holds;
pub mod inbox;
pub mod journal;
pub mod keys;
pub mod leases;
pub mod ledger;
mod lent;
pub mod links;
pub mod news;
pub mod outbox;
pub mod postgres;
pub mod reconciliation;
pub mod recorded;
pub mod requests;
mod retention;
mod settle;
pub mod sqlite;
pub mod verify;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::migrate::Migrator;

use crate::domain::operation::Fingerprint;
pub use address::{Address, AddressError, Hosts};
pub use backend::{Backend, Connection};
use backend::{Row, on};
use postgres::Cluster;
use sqlite::Files;

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

    /// The same, for somebody else who is to be told.
    pub fn like(other: &Self) -> Self {
        Self(sqlx::Error::Protocol(other.0.to_string()))
    }

    /// Whether the database answered that it did nothing because of what it was asked, and not because it cannot do anything.
    pub fn is_refusal(&self) -> bool {
        // Classes 22 (data that it does not take), 23 (what would not fit together), 40 (another transaction).
        let code = self.0.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| ["22", "23", "40"].iter().any(|class| code.starts_with(class)))
    }

    /// Whether it may be over in a moment: the database was not reached, or is about to stop or to start, or is no primary any more.
    pub fn may_pass(&self) -> bool {
        use sqlx::Error::{Io, PoolClosed, PoolTimedOut, Protocol, WorkerCrashed};
        if let Some(error) = self.0.as_database_error() {
            let code = error.code().unwrap_or_default();
            // Classes 08 (connection) and 57P (shutdown, crash, not yet ready); a standby; a lock, or a standby's word, that takes too long.
            return code.starts_with("08") || code.starts_with("57P") || ["25006", "55P03", "57014", "53300", "25P03"].contains(&&*code);
        }
        matches!(&self.0, Io(_) | PoolTimedOut | PoolClosed | WorkerCrashed | Protocol(_))
    }

    /// Whether another transaction was in the way: the same again goes well.
    pub fn is_conflict(&self) -> bool {
        // A row that was there before.
        if matches!(self.0, sqlx::Error::RowNotFound) {
            return true;
        }
        // A unique key that somebody else took meanwhile, a serialization failure, a deadlock that Postgres ended.
        let code = self.0.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| matches!(&*code, "23505" | "40001" | "40P01"))
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self(error.into())
    }
}

const PROBE: &str = "INSERT INTO probe (\"only\", at) VALUES (1, $1) ON CONFLICT (\"only\") DO UPDATE SET at = excluded.at";

/// What reads everything takes as long as it takes, and where two databases are compared the one side may wait for the other.
const TAKE_YOUR_TIME: [&str; 2] = ["SET LOCAL statement_timeout = 0", "SET LOCAL idle_in_transaction_session_timeout = 0"];

/// How long anybody waits for a connection before the store counts as failed.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The database.
#[derive(Clone, Debug)]
pub struct Store(Backend<Files, Cluster>);

/// Whether a schema of before is brought up to date; the program of before does not run on it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schema {
    Migrate,
    AsItIs,
}

impl Schema {
    /// Whether it can be worked with where nothing may be changed. `found`: the last migration that the database has seen.
    fn check(found: Option<i64>, migrations: &Migrator) -> Result<(), StoreError> {
        let known = newest(migrations);
        let why = match found.unwrap_or_default() {
            found if found == known => return Ok(()),
            0 => "the database has no tables yet; `spendgate serve` makes them".to_owned(),
            found if known < found => format!("the database has schema {found}, of a later version; this one has {known}"),
            found => format!(
                "the database has schema {found}, and this version {known}; a start of the service (`spendgate serve`) brings it up to date, after which the \
                 version of before does not run on it: make a backup first"
            ),
        };
        Err(StoreError(sqlx::Error::Configuration(why.into())))
    }
}

/// The last migration that the database has seen, by a program such as this one.
const SEEN: &str = "SELECT MAX(version) FROM _sqlx_migrations";

/// A database without the table has seen none.
fn seen_or_none(seen: Result<Option<i64>, sqlx::Error>) -> Result<Option<i64>, StoreError> {
    match seen {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") || error.message().contains("no such table") => {
            Ok(None)
        }
        seen => Ok(seen?),
    }
}

fn newest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or_default()
}

impl Store {
    /// Opens it, makes what is missing, and brings its schema up to date.
    pub async fn open(address: &Address) -> Result<Self, StoreError> {
        Self::open_with(address, Schema::Migrate).await
    }

    /// The same of a database that a service of this version has made: any other one is refused, and left as it is.
    pub async fn open_as_it_is(address: &Address) -> Result<Self, StoreError> {
        Self::open_with(address, Schema::AsItIs).await
    }

    async fn open_with(address: &Address, schema: Schema) -> Result<Self, StoreError> {
        Ok(Self(match address {
            Address::Sqlite(path) => Backend::Sqlite(Files::open(path, schema).await?),
            Address::Postgres(hosts) => Backend::Postgres(Cluster::connect(hosts, schema).await?),
        }))
    }

    /// Which of the two it is.
    pub fn backend(&self) -> &Backend<Files, Cluster> {
        &self.0
    }

    pub async fn close(&self) {
        on!(&self.0, |store| store.close().await);
    }

    /// For reading only.
    pub async fn reader(&self) -> Result<Connection, StoreError> {
        on!(&self.0, |store| store.reader().await)
    }

    /// Whether a write reaches the disk.
    pub async fn probe(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let mut tx = self.begin_aside().await?;
        tx.connection()?.query(PROBE).bind(micros(now)).execute().await?;
        tx.commit().await?;
        match &self.0 {
            Backend::Sqlite(files) => files.journal().probe(now).await,
            Backend::Postgres(_) => Ok(()),
        }
    }

    /// The number of the last migration that this program knows.
    pub fn known_schema(&self) -> i64 {
        newest(match &self.0 {
            Backend::Sqlite(_) => &sqlite::MIGRATIONS,
            Backend::Postgres(_) => &postgres::MIGRATIONS,
        })
    }

    /// Reads of one moment, however many statements they take.
    pub async fn begin_read(&self) -> Result<Tx, StoreError> {
        on!(&self.0, |store| store.begin_read().await)
    }

    /// One such transaction at a time, whatever the node: what it reads still holds when it writes.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        on!(&self.0, |store| store.begin().await)
    }

    /// A transaction beside others, where there can be others: each of its statements must be right whatever is done beside it.
    pub async fn begin_aside(&self) -> Result<Tx, StoreError> {
        match &self.0 {
            Backend::Sqlite(files) => files.begin().await,
            Backend::Postgres(cluster) => cluster.begin_aside().await,
        }
    }
}

/// A transaction. Unless it is committed, its connection is thrown away: after a failed write SQLite may have rolled
/// back by itself, and what follows on that connection would be acknowledged and lost.
#[derive(Debug)]
pub struct Tx {
    connection: Option<Connection>,
}

impl Tx {
    pub fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = self.connection.as_mut().ok_or(StoreError(sqlx::Error::PoolClosed))?;
        Ok(connection)
    }

    /// Lifts the limits of time from the rest of it, for whoever reads everything. SQLite has none.
    pub async fn take_your_time(&mut self) -> Result<(), StoreError> {
        if let Backend::Postgres(db) = self.connection()? {
            db.take_your_time();
            for limit in TAKE_YOUR_TIME {
                self.connection()?.query(limit).execute().await?;
            }
        }
        Ok(())
    }

    /// On a connection that the caller keeps, beside others.
    pub async fn begin_on(connection: Connection) -> Result<Self, StoreError> {
        let mut tx = Self { connection: Some(connection) };
        tx.connection()?.query("BEGIN").execute().await?;
        Ok(tx)
    }

    /// `Ok` means that it is on the disk. An error means that the outcome is unknown.
    pub async fn commit(self) -> Result<(), StoreError> {
        // Dropping the connection itself returns it to the pool.
        self.commit_and_keep().await.map(drop)
    }

    /// The same, for a caller who keeps the connection.
    pub async fn commit_and_keep(mut self) -> Result<Connection, StoreError> {
        self.connection()?.query("COMMIT").execute().await?;
        self.connection.take().ok_or(StoreError(sqlx::Error::PoolClosed))
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        // Closing the connection rolls back what it had begun.
        match self.connection.take() {
            Some(Backend::Sqlite(connection)) => drop(connection.detach()),
            Some(Backend::Postgres(connection)) => connection.close(),
            None => {}
        }
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
