//! What was recorded, in the order of its time: for whoever judges it again.

use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use super::accounts::{account_id, money, user_id};
use super::ledger::read_kind;
use super::{Connection, Row, StoreError, from_micros, micros};
use crate::domain::ledger::day;
use crate::domain::pricing::Tokens;
use crate::domain::simulation::Recorded;
use crate::domain::user::{AccountId, UserId};

const ALL: &str = "SELECT user_id, account_id, kind, cost, happened_at, model, provider, input_tokens, output_tokens, detail, metadata FROM usage \
     WHERE $1 <= happened_at ORDER BY happened_at, seq";
/// His own, and what others booked in his account.
const ROUND: &str = "SELECT seq, user_id, account_id, kind, cost, happened_at, model, provider, input_tokens, output_tokens, detail, metadata FROM usage \
     WHERE user_id = $1 AND $3 <= happened_at UNION ALL \
     SELECT seq, user_id, account_id, kind, cost, happened_at, model, provider, input_tokens, output_tokens, detail, metadata FROM usage \
     WHERE account_id = $2 AND user_id <> $1 AND $3 <= happened_at ORDER BY happened_at, seq LIMIT $4";
const COUNT: &str = "SELECT COUNT(*) FROM usage WHERE $1 <= happened_at";
const ROLLED: &str = "SELECT COUNT(DISTINCT day) AS days, CAST(COALESCE(SUM(entries), 0) AS BIGINT) AS entries FROM rolled WHERE $1 <= day";
const ROLLED_ROUND: &str = "SELECT COUNT(DISTINCT day) AS days, CAST(COALESCE(SUM(entries), 0) AS BIGINT) AS entries FROM rolled \
     WHERE (user_id = $1 OR account_id = $2) AND $3 <= day";

/// From when entries are read; all of them where nothing is said.
fn begin(since: Option<DateTime<Utc>>) -> DateTime<Utc> {
    since.unwrap_or(DateTime::UNIX_EPOCH)
}

/// Everybody's, one by one. The database sorts them, on its disk where they are many.
pub fn all(db: &mut Connection, since: Option<DateTime<Utc>>) -> Result<BoxStream<'_, Result<Recorded, StoreError>>, StoreError> {
    let rows = db.query(ALL).bind(micros(begin(since))).fetch()?;
    Ok(rows.and_then(|row| async move { read(&row) }).boxed())
}

/// How many those are.
pub async fn count(db: &mut Connection, since: Option<DateTime<Utc>>) -> Result<i64, StoreError> {
    db.query(COUNT).bind(micros(begin(since))).scalar().await
}

/// A user's, and those of `account`, the first `limit` of them.
pub async fn round(
    db: &mut Connection,
    user: &UserId,
    account: Option<&AccountId>,
    since: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<Recorded>, StoreError> {
    let query = db.query(ROUND).bind(user.as_str()).bind(account.map(AccountId::as_str));
    query.bind(micros(begin(since))).bind(limit).fetch_all().await?.iter().map(read).collect()
}

/// Days of which entries are not there any more, only their sums; and how many entries that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rolled {
    pub days: i64,
    pub entries: i64,
}

pub async fn rolled(db: &mut Connection, since: Option<DateTime<Utc>>) -> Result<Rolled, StoreError> {
    read_rolled(&db.query(ROLLED).bind(day(begin(since))).fetch_one().await?)
}

/// Those of a user and of `account`.
pub async fn rolled_round(
    db: &mut Connection,
    user: &UserId,
    account: Option<&AccountId>,
    since: Option<DateTime<Utc>>,
) -> Result<Rolled, StoreError> {
    let query = db.query(ROLLED_ROUND).bind(user.as_str()).bind(account.map(AccountId::as_str));
    read_rolled(&query.bind(day(begin(since))).fetch_one().await?)
}

fn read_rolled(row: &Row) -> Result<Rolled, StoreError> {
    Ok(Rolled { days: row.try_get("days")?, entries: row.try_get("entries")? })
}

fn read(row: &Row) -> Result<Recorded, StoreError> {
    let account: Option<String> = row.try_get("account_id")?;
    let detail: Option<String> = row.try_get("detail")?;
    Ok(Recorded {
        user: user_id(row.try_get("user_id")?)?,
        account: account.map(account_id).transpose()?,
        kind: read_kind(&row.try_get::<String>("kind")?)?,
        cost: money(row.try_get("cost")?)?,
        time: from_micros(row.try_get("happened_at")?)?,
        model: row.try_get("model")?,
        metadata: row.try_get("metadata")?,
        provider: row.try_get("provider")?,
        tokens: Tokens::recorded(row.try_get("input_tokens")?, row.try_get("output_tokens")?, detail.as_deref()),
    })
}
