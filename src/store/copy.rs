//! Moves a whole database from SQLite to Postgres, a page at a time. How far it came stands in the target, written in the transaction that
//! writes the rows: who begins again goes on there.

mod tables;

use std::fmt;
use std::hash::Hash;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use futures_util::future::join;
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::verify::{self, Disagreement};
use super::{Backend, Connection, Row, Store, StoreError, Tx, corrupt, micros};
use tables::{Kind, Table, tables};

/// A page ends with the row that makes it so large: bodies of events may have a megabyte each.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

const KEEP_ID: &str = "INSERT INTO copy_source (\"only\", id) VALUES (1, $1) ON CONFLICT (\"only\") DO NOTHING";
const ID: &str = "SELECT id FROM copy_source WHERE \"only\" = 1";
const FORGET_ID: &str = "DELETE FROM copy_source";
const PROGRESS: &str = "SELECT source, origin, table_name, place, copied, finished_at FROM copying WHERE \"only\" = 1";
const BEGIN: &str = "INSERT INTO copying (\"only\", source, origin, table_name, copied, started_at) VALUES (1, $1, $2, $3, 0, $4)";
/// Every page makes the count larger, so whoever goes on from another count is not alone.
const GO_ON: &str =
    "UPDATE copying SET table_name = $1, place = $2, copied = $3 WHERE \"only\" = 1 AND copied = $4 AND finished_at IS NULL";
const FINISH: &str = "UPDATE copying SET finished_at = $1 WHERE \"only\" = 1 AND copied = $2 AND finished_at IS NULL";

/// The numbers that SQLite gave last, also those of rows that went since.
const LAST_OF: &str = "SELECT seq FROM sqlite_sequence WHERE name = $1";
const LAST_TICKET: &str = "SELECT last FROM tickets";
const SET_NUMBERS: [(&str, &str); 4] = [
    ("usage", "SELECT setval(pg_get_serial_sequence('usage', 'seq'), $1)"),
    ("holds", "SELECT setval(pg_get_serial_sequence('holds', 'seq'), $1)"),
    ("inbox", "SELECT setval(pg_get_serial_sequence('inbox', 'seq'), $1)"),
    ("audit", "SELECT setval(pg_get_serial_sequence('audit', 'seq'), $1)"),
];
const SET_TICKETS: &str = "SELECT setval('ticket_numbers', $1)";

/// Why a copy does not go on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("only a SQLite database can be copied, and only to Postgres")]
    Direction,
    #[error("the target is not empty: its table `{0}` has rows; give the address of a new database")]
    NotEmpty(&'static str),
    #[error("the target has a copy of {0} that is finished, and nothing more can be copied to it")]
    Finished(String),
    #[error(
        "the target has an unfinished copy of something else: of {0}, or of this database as it was before it was served again; \
         give the address of a new database"
    )]
    OtherSource(String),
    #[error("another copy to the same target is at work")]
    NotAlone,
    #[error(
        "table `{table}`, the row with the key {key}: `{column}` has a NUL character, which Postgres cannot store; change it at the source"
    )]
    Nul { table: &'static str, key: String, column: &'static str },
    #[error("table `{table}`, up to the row with the key {key}: {error}")]
    Write { table: &'static str, key: String, error: StoreError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The value of a column of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Part {
    Int(i64),
    Text(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

fn shown(key: &[Part]) -> String {
    key.iter().map(Part::to_string).collect::<Vec<_>>().join(", ")
}

/// How far a copy came.
#[derive(Clone, Debug)]
struct Place {
    table: usize,
    /// Of the last row that is there.
    key: Option<Vec<Part>>,
    copied: i64,
}

/// Rows of one table, column by column, as Postgres takes them.
#[derive(Debug)]
struct Page {
    table: usize,
    rows: u32,
    bytes: usize,
    columns: Vec<Values>,
}

#[derive(Debug)]
enum Values {
    Int(Vec<Option<i64>>),
    Text(Vec<Option<String>>),
    Bytes(Vec<Option<Vec<u8>>>),
}

/// A copy that goes on.
#[derive(Debug)]
pub struct Copying {
    source: Store,
    reader: Connection,
    target: Store,
    place: Place,
    /// Read while the page before was written.
    next: Option<Page>,
    total: i64,
}

/// What a table has, on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub rows: i64,
    /// The sums of columns, by name. Amounts are nano-dollars.
    pub sums: Vec<(&'static str, i128)>,
    /// The same wherever the rows are the same, in whatever order.
    digest: u128,
}

/// What was found at the end.
#[derive(Debug)]
pub struct Found {
    /// Table, source, target.
    pub tables: Vec<(&'static str, Tally, Tally)>,
    /// In the target.
    pub disagreements: Vec<Disagreement>,
}

impl Found {
    /// Whether both sides are the same, and every counter agrees with its rows.
    pub fn is_good(&self) -> bool {
        self.tables.iter().all(|(_, source, target)| source == target) && self.disagreements.is_empty()
    }
}

/// Where the unfinished copy that this database is comes from; `None` where it is whole.
pub async fn unfinished(db: &mut Connection) -> Result<Option<String>, StoreError> {
    let Some(row) = db.query(PROGRESS).fetch_optional().await? else { return Ok(None) };
    let finished: Option<i64> = row.try_get("finished_at")?;
    if finished.is_some() { Ok(None) } else { row.try_get("origin").map(Some) }
}

/// Each table and column that is copied.
pub fn columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    tables().iter().flat_map(|table| table.columns.iter().map(|column| (table.name, column.name)))
}

/// To be called by whoever is about to change this database: a copy that has begun cannot go on with what will be in it.
pub async fn forget_source(db: &mut Connection) -> Result<(), StoreError> {
    db.query(FORGET_ID).execute().await?;
    Ok(())
}

impl Copying {
    /// Begins, or goes on with the copy of this very source. The caller sees to it that nobody serves the source. `fresh` becomes its id
    /// where it has none; `origin` says to people where it is.
    pub async fn begin(source: Store, target: Store, origin: &str, fresh: [u8; 32], now: DateTime<Utc>) -> Result<Self, CopyError> {
        let (Backend::Sqlite(_), Backend::Postgres(_)) = (source.backend(), target.backend()) else { return Err(CopyError::Direction) };
        let mut tx = source.begin().await?;
        tx.connection()?.query(KEEP_ID).bind(hex::encode(fresh)).execute().await?;
        let id: String = tx.connection()?.query(ID).scalar().await?;
        tx.commit().await?;
        let mut tx = target.begin().await?;
        let place = find(tx.connection()?, &id, origin, now).await?;
        tx.commit().await?;
        let mut reader = source.reader().await?;
        let mut total = 0;
        for table in tables() {
            total += reader.query(&table.count).scalar::<i64>().await?;
        }
        Ok(Self { source, reader, target, place, next: None, total })
    }

    /// Rows that are there, of how many. There may be more by the end: `spendgate keys` works beside.
    pub fn progress(&self) -> (i64, i64) {
        (self.place.copied, self.total)
    }

    /// Copies at most `rows_max` rows, durably. `false` where nothing is left.
    pub async fn step(&mut self, rows_max: u32) -> Result<bool, CopyError> {
        let page = match self.next.take() {
            Some(page) => Some(page),
            None => read(&mut self.reader, &self.place, rows_max).await?,
        };
        let Some(page) = page else { return Ok(false) };
        let copied = self.place.copied + i64::from(page.rows);
        let place = Place { table: page.table, key: Some(page.last_key()?), copied };
        let write = write(&self.target, page, self.place.copied, &place);
        let (written, next) = join(write, read(&mut self.reader, &place, rows_max)).await;
        written?;
        self.place = place;
        self.next = next?;
        Ok(true)
    }

    /// Sets the sequences, compares both sides, and lets services start on the target if it is good.
    pub async fn finish(&mut self, now: DateTime<Utc>) -> Result<Found, CopyError> {
        let mut tx = self.target.begin_aside().await?;
        self.set_numbers(&mut tx).await?;
        tx.take_your_time().await?;
        for table in tables() {
            tx.connection()?.query(&table.analyze).execute().await?;
        }
        tx.commit().await?;
        let mut tx = self.target.begin_read().await?;
        tx.take_your_time().await?;
        let mut compared = Vec::new();
        for table in tables() {
            let (source, target) = join(tally(&mut self.reader, table), tally(tx.connection()?, table)).await;
            compared.push((table.name, source?, target?));
        }
        let (_, disagreements) = verify::disagreements(tx.connection()?, DISAGREEMENTS_MAX).await?;
        tx.commit().await?;
        let found = Found { tables: compared, disagreements };
        if found.is_good() {
            let mut tx = self.target.begin_aside().await?;
            let query = tx.connection()?.query(FINISH).bind(micros(now)).bind(self.place.copied);
            if query.execute().await? == 0 {
                return Err(CopyError::NotAlone);
            }
            tx.commit().await?;
        }
        Ok(found)
    }

    async fn set_numbers(&mut self, tx: &mut Tx) -> Result<(), StoreError> {
        for (table, set) in SET_NUMBERS {
            if let Some(last) = self.reader.query(LAST_OF).bind(table).scalar_optional::<i64>().await?.filter(|last| 0 < *last) {
                tx.connection()?.query(set).bind(last).execute().await?;
            }
        }
        let ticket: i64 = self.reader.query(LAST_TICKET).scalar().await?;
        if 0 < ticket {
            tx.connection()?.query(SET_TICKETS).bind(ticket).execute().await?;
        }
        Ok(())
    }

    /// Leaves it as far as it came.
    pub async fn close(self) {
        drop(self.reader);
        self.source.close().await;
        self.target.close().await;
    }
}

/// Disagreements that are shown of each kind.
const DISAGREEMENTS_MAX: i64 = 20;

/// How far the copy of `id` came; a target that nobody has used becomes one. Whoever starts a service looks under the same lock.
async fn find(db: &mut Connection, id: &str, origin: &str, now: DateTime<Utc>) -> Result<Place, CopyError> {
    if let Some(row) = db.query(PROGRESS).fetch_optional().await? {
        let (source, origin): (String, String) = (row.try_get("source")?, row.try_get("origin")?);
        let finished: Option<i64> = row.try_get("finished_at")?;
        if finished.is_some() {
            return Err(CopyError::Finished(origin));
        }
        if source != id {
            return Err(CopyError::OtherSource(origin));
        }
        return Ok(place(&row)?);
    }
    for table in tables() {
        if db.query(&table.any).fetch_optional().await?.is_some() {
            return Err(CopyError::NotEmpty(table.name));
        }
    }
    let first = tables().first().map_or("", |table| table.name);
    db.query(BEGIN).bind(id).bind(origin).bind(first).bind(micros(now)).execute().await?;
    Ok(Place { table: 0, key: None, copied: 0 })
}

fn place(row: &Row) -> Result<Place, StoreError> {
    let (name, key): (String, Option<String>) = (row.try_get("table_name")?, row.try_get("place")?);
    let table = tables().iter().position(|table| table.name == name).ok_or_else(|| corrupt("a copy stopped in a table that is none"))?;
    let key = key.map(|key| serde_json::from_str(&key)).transpose().map_err(|_| corrupt("a copy stopped at a key that is none"))?;
    Ok(Place { table, key, copied: row.try_get("copied")? })
}

/// The rows behind `place`, of the same table or of the next one that has any.
async fn read(db: &mut Connection, place: &Place, rows_max: u32) -> Result<Option<Page>, CopyError> {
    let mut behind = place.key.as_deref();
    for (index, table) in tables().iter().enumerate().skip(place.table) {
        let key = behind.take();
        let mut query = db.query(if key.is_some() { &table.behind } else { &table.first });
        for part in key.unwrap_or_default() {
            query = match part {
                Part::Int(number) => query.bind(*number),
                Part::Text(text) => query.bind(text.as_str()),
            };
        }
        let mut rows = query.bind(i64::from(rows_max)).fetch()?;
        let mut page = Page::new(index, table);
        while page.bytes < PAGE_BYTES_MAX {
            let Some(row) = rows.try_next().await? else { break };
            page.push(table, &row)?;
        }
        if 0 < page.rows {
            return Ok(Some(page));
        }
    }
    Ok(None)
}

impl Page {
    fn new(index: usize, table: &Table) -> Self {
        let columns = table.columns.iter().map(|column| match column.kind {
            Kind::Int => Values::Int(Vec::new()),
            Kind::Text => Values::Text(Vec::new()),
            Kind::Bytes => Values::Bytes(Vec::new()),
        });
        Self { table: index, rows: 0, bytes: 0, columns: columns.collect() }
    }

    fn push(&mut self, table: &Table, row: &Row) -> Result<(), CopyError> {
        let mut with_nul = None;
        for (place, (column, values)) in table.columns.iter().zip(&mut self.columns).enumerate() {
            match values {
                Values::Int(values) => values.push(row.at(place)?),
                Values::Text(values) => {
                    let text: Option<String> = row.at(place)?;
                    self.bytes += text.as_ref().map_or(0, String::len);
                    with_nul = with_nul.or(text.as_ref().filter(|text| text.contains('\0')).map(|_| column.name));
                    values.push(text);
                }
                Values::Bytes(values) => {
                    let bytes: Option<Vec<u8>> = row.at(place)?;
                    self.bytes += bytes.as_ref().map_or(0, Vec::len);
                    values.push(bytes);
                }
            }
        }
        self.rows += 1;
        match with_nul {
            None => Ok(()),
            Some(column) => Err(CopyError::Nul { table: table.name, key: shown(&self.last_key()?), column }),
        }
    }

    /// The key of its last row.
    fn last_key(&self) -> Result<Vec<Part>, StoreError> {
        let key = tables().get(self.table).map_or(0, |table| table.key);
        let parts = self.columns.iter().take(key).map(|values| match values {
            Values::Int(values) => values.last().copied().flatten().map(Part::Int),
            Values::Text(values) => values.last().cloned().flatten().map(Part::Text),
            Values::Bytes(_) => None,
        });
        parts.collect::<Option<_>>().ok_or_else(|| corrupt("a key without a value"))
    }
}

/// Writes a page and that the copy came to `place` with it, if it was at `before`.
async fn write(target: &Store, page: Page, before: i64, place: &Place) -> Result<(), CopyError> {
    let Some(table) = tables().get(page.table) else { return Err(StoreError::torn().into()) };
    let key = place.key.as_deref().unwrap_or_default();
    let told = serde_json::to_string(key).map_err(|_| corrupt("a key that cannot be written"))?;
    let mut tx = target.begin_aside().await?;
    let db = tx.connection()?;
    if db.query(GO_ON).bind(table.name).bind(told).bind(place.copied).bind(before).execute().await? == 0 {
        return Err(CopyError::NotAlone);
    }
    let Backend::Postgres(db) = db else { return Err(CopyError::Direction) };
    let mut query = sqlx::query(table.insert.as_str());
    for values in page.columns {
        query = match values {
            Values::Int(values) => query.bind(values),
            Values::Text(values) => query.bind(values),
            Values::Bytes(values) => query.bind(values),
        };
    }
    let refused = |error: sqlx::Error| CopyError::Write { table: table.name, key: shown(key), error: error.into() };
    query.execute(&mut **db).await.map_err(refused)?;
    tx.commit().await?;
    Ok(())
}

/// Reads a whole table. Both sides go through the same code, so what differs is in the rows.
async fn tally(db: &mut Connection, table: &'static Table) -> Result<Tally, StoreError> {
    let (mut count, mut digest, mut sums) = (0, 0_u128, vec![0_i128; table.columns.len()]);
    let mut rows = db.query(&table.all).fetch()?;
    while let Some(row) = rows.try_next().await? {
        let mut hasher = SipHasher13::new();
        for (place, (column, sum)) in table.columns.iter().zip(&mut sums).enumerate() {
            match column.kind {
                Kind::Int => {
                    let number: Option<i64> = row.at(place)?;
                    *sum += i128::from(number.unwrap_or(0));
                    number.hash(&mut hasher);
                }
                Kind::Text => row.at::<Option<String>>(place)?.hash(&mut hasher),
                Kind::Bytes => row.at::<Option<Vec<u8>>>(place)?.hash(&mut hasher),
            }
        }
        count += 1;
        digest = digest.wrapping_add(hasher.finish128().as_u128());
    }
    let named = |place: &usize| Some((table.columns.get(*place)?.name, *sums.get(*place)?));
    Ok(Tally { rows: count, sums: table.sums.iter().filter_map(named).collect(), digest })
}
