//! Holds: cost that was promised to calls.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::accounts::{account_id, money, user_id};
use super::backend::by_list;
use super::ledger::Spender;
use super::{Connection, Row, StoreError, fingerprint, from_micros, list, micros};
use crate::domain::book::OpenHold;
use crate::domain::operation::{Hold, HoldEnd};
use crate::domain::user::{AccountId, UserId};

/// By name: a plan that was made before a migration added one says so, and would end in a fault.
macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT ", columns!(), " FROM holds WHERE ", $rest)
    };
}
macro_rules! columns {
    () => {
        "id, seq, user_id, account_id, amount, model, provider, created_at, expires_at, fingerprint, ended_at, captured, end_fingerprint, answer"
    };
}

const BY_ID: (&str, &str) =
    (select!("id IN (SELECT value FROM json_each($1))"), select!("id = ANY(ARRAY(SELECT value FROM json_each($1)))"));
const OPEN: (&str, &str) =
    by_list!("SELECT user_id, id, amount, expires_at FROM holds WHERE ended_at IS NULL AND user_id", "$1", " AND $2 < expires_at");
const OPEN_OF_ACCOUNT: &str =
    "SELECT user_id, id, amount, expires_at FROM holds WHERE ended_at IS NULL AND account_id = $1 AND $2 < expires_at";
const OPEN_OF_ALL: &str = "SELECT user_id, id, amount, expires_at FROM holds WHERE ended_at IS NULL AND $1 < expires_at";
const IDS: &str = "SELECT id FROM holds WHERE $1 < id ORDER BY id LIMIT $2";
const PAGE: &str = select!(
    "seq < $1 AND ($2 IS NULL OR user_id = $2) AND CASE $3 \
     WHEN 'open' THEN ended_at IS NULL AND $4 < expires_at WHEN 'expired' THEN ended_at IS NULL AND expires_at <= $4 \
     WHEN 'captured' THEN captured IS NOT NULL WHEN 'released' THEN ended_at IS NOT NULL AND captured IS NULL ELSE true END \
     ORDER BY seq DESC LIMIT $5"
);
const NEXT_TO_EXPIRE: &str = select!("user_id = $1 AND ended_at IS NULL AND $2 < expires_at ORDER BY expires_at, id LIMIT $3");
const NEXT_TO_EXPIRE_OF_ACCOUNT: &str =
    select!("account_id = $1 AND ended_at IS NULL AND $2 < expires_at ORDER BY expires_at, id LIMIT $3");

/// Those of `ids` that there are.
pub async fn by_id(db: &mut Connection, ids: &[&str]) -> Result<HashMap<String, Hold>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = db.query_of(BY_ID.0, BY_ID.1).bind(list(ids.iter().copied())).fetch_all().await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, read(row)?))).collect()
}

/// The ids behind `after`, in their order.
pub async fn ids(db: &mut Connection, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
    db.query(IDS).bind(after).bind(limit).scalars().await
}

/// As a usage's ([`super::ledger::id_hash`]), and not the same for the same id: a hold's capture bears its id among usage.
pub fn id_hash(id: &str) -> i64 {
    !super::ledger::id_hash(id)
}

/// What is held at `now` for each of `users`.
pub async fn open(db: &mut Connection, users: &[UserId], now: DateTime<Utc>) -> Result<HashMap<UserId, Vec<OpenHold>>, StoreError> {
    let query = db.query_of(OPEN.0, OPEN.1).bind(list(users.iter().map(UserId::as_str))).bind(micros(now));
    let mut open: HashMap<UserId, Vec<OpenHold>> = HashMap::new();
    for row in query.fetch_all().await? {
        open.entry(user_id(row.try_get("user_id")?)?).or_default().push(read_open(&row)?);
    }
    Ok(open)
}

pub async fn open_of_account(db: &mut Connection, account: &AccountId, now: DateTime<Utc>) -> Result<Vec<OpenHold>, StoreError> {
    let rows = db.query(OPEN_OF_ACCOUNT).bind(account.as_str()).bind(micros(now)).fetch_all().await?;
    rows.iter().map(read_open).collect()
}

pub async fn open_of_all(db: &mut Connection, now: DateTime<Utc>) -> Result<Vec<OpenHold>, StoreError> {
    db.query(OPEN_OF_ALL).bind(micros(now)).fetch_all().await?.iter().map(read_open).collect()
}

/// Which holds a list shows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub user_id: Option<UserId>,
    /// `open`, `expired`, `captured` or `released`, at the moment of asking.
    pub state: Option<&'static str>,
}

/// The latest first, those before `before`; each with its place.
pub async fn page(
    db: &mut Connection,
    filter: &Filter,
    before: i64,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<(i64, Hold)>, StoreError> {
    let query = db.query(PAGE).bind(before).bind(filter.user_id.as_ref().map(UserId::as_str)).bind(filter.state);
    let rows = query.bind(micros(now)).bind(limit).fetch_all().await?;
    rows.iter().map(|row| Ok((row.try_get("seq")?, read(row)?))).collect()
}

/// What is held at `now`, in the order in which it expires.
pub async fn next_to_expire(db: &mut Connection, spender: Spender<'_>, now: DateTime<Utc>, limit: i64) -> Result<Vec<Hold>, StoreError> {
    let (key, statement) = match spender {
        Spender::User(user) => (user.as_str(), NEXT_TO_EXPIRE),
        Spender::Account(account) => (account.as_str(), NEXT_TO_EXPIRE_OF_ACCOUNT),
    };
    let rows = db.query(statement).bind(key).bind(micros(now)).bind(limit).fetch_all().await?;
    rows.iter().map(read).collect()
}

fn read_open(row: &Row) -> Result<OpenHold, StoreError> {
    let id: String = row.try_get("id")?;
    Ok(OpenHold { id: id.into(), amount: money(row.try_get("amount")?)?, expires_at: from_micros(row.try_get("expires_at")?)? })
}

fn read(row: &Row) -> Result<Hold, StoreError> {
    let id: String = row.try_get("id")?;
    let (ended_at, account): (Option<i64>, Option<String>) = (row.try_get("ended_at")?, row.try_get("account_id")?);
    let captured: Option<i64> = row.try_get("captured")?;
    let end_fingerprint: Option<Vec<u8>> = row.try_get("end_fingerprint")?;
    let end = match (ended_at.map(from_micros).transpose()?, captured, end_fingerprint) {
        (None, ..) => None,
        (Some(at), Some(cost), Some(bytes)) => Some(HoldEnd::Captured { cost: money(cost)?, at, fingerprint: fingerprint(bytes)? }),
        (Some(at), ..) => Some(HoldEnd::Released { at }),
    };
    Ok(Hold {
        id: id.into(),
        user_id: user_id(row.try_get("user_id")?)?,
        account: account.map(account_id).transpose()?,
        amount: money(row.try_get("amount")?)?,
        model: row.try_get("model")?,
        provider: row.try_get("provider")?,
        created_at: from_micros(row.try_get("created_at")?)?,
        expires_at: from_micros(row.try_get("expires_at")?)?,
        fingerprint: fingerprint(row.try_get("fingerprint")?)?,
        end,
        answer: row.try_get("answer")?,
    })
}
