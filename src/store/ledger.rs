//! Usage, and its sums by day.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use siphasher::sip::SipHasher13;

use super::accounts::{account_id, money, user_id};
use super::backend::by_list;
use super::{Connection, Row, StoreError, corrupt, from_micros, list, micros};
use crate::domain::book::SpentByDay;
use crate::domain::changes::Sum;
use crate::domain::ledger::{DayOfModel, SpentIn, day};
use crate::domain::money::Money;
use crate::domain::operation::{Booked, EntryKind, tells_unpriced};
use crate::domain::period::Window;
use crate::domain::user::{AccountId, UserId};

const BOOKED: (&str, &str) = by_list!(
    "SELECT id, kind, fingerprint, cost, detail, happened_at, recorded_at FROM usage WHERE id_hash",
    number "$1",
    ""
);
const ID_HASHES: &str = "SELECT DISTINCT id_hash FROM usage WHERE $1 < id_hash ORDER BY id_hash LIMIT $2";
const IDS: &str = "SELECT CAST(COALESCE(MAX(seq), 0) AS BIGINT) FROM usage";
const DAY_OF_MODEL: &str = "SELECT account_id, CAST(SUM(spent) AS BIGINT) AS spent FROM ( \
     SELECT account_id, CASE WHEN kind = 'correction' THEN -cost ELSE cost END AS spent FROM usage \
     WHERE user_id = $1 AND $2 <= happened_at AND happened_at < $3 AND COALESCE(model, '') = $4 UNION ALL \
     SELECT NULLIF(account_id, '') AS account_id, spent FROM rolled WHERE user_id = $1 AND day = $5 AND model = $4) parts GROUP BY account_id";
const SPENT_BY_ALL: &str = "SELECT spent FROM spend_by_day_of_all";
/// A day has several rows, which may add up to more than can be counted.
const SPENT_BY_ALL_IN_SLOTS: &str = "SELECT CAST(LEAST(SUM(spent), 9223372036854775807) AS BIGINT) FROM spend_by_day_of_all GROUP BY day";
const DAYS: (&str, &str) = by_list!(
    "SELECT user_id, day, CAST(SUM(spent) AS BIGINT) AS spent FROM spend_by_day WHERE user_id",
    "$1",
    " AND $2 <= day AND day < $3 GROUP BY user_id, day"
);
const DAYS_OF_ALL: &str = "SELECT day, spent FROM spend_by_day_of_all WHERE $1 <= day AND day < $2";
const DAYS_OF_ALL_IN_SLOTS: &str = "SELECT day, CAST(LEAST(SUM(spent), 9223372036854775807) AS BIGINT) AS spent FROM spend_by_day_of_all \
     WHERE $1 <= day AND day < $2 GROUP BY day";
const STRETCH: &str = "SELECT CAST(COALESCE(SUM(CASE WHEN kind = 'correction' THEN -cost ELSE cost END), 0) AS BIGINT) FROM usage \
     WHERE user_id = $1 AND $2 <= happened_at AND happened_at < $3";
const ROLLED: &str = "SELECT CAST(COALESCE(SUM(spent), 0) AS BIGINT) FROM rolled WHERE user_id = $1 AND day = $2";
const WHOLE_DAYS: &str = "SELECT CAST(COALESCE(SUM(spent), 0) AS BIGINT) FROM spend_by_day WHERE user_id = $1 AND $2 <= day AND day < $3";
const STRETCH_OF_ACCOUNT: &str = "SELECT CAST(COALESCE(SUM(CASE WHEN kind = 'correction' THEN -cost ELSE cost END), 0) AS BIGINT) \
     FROM usage WHERE account_id = $1 AND $2 <= happened_at AND happened_at < $3";
const WHOLE_DAYS_OF_ACCOUNT: &str =
    "SELECT CAST(COALESCE(SUM(spent), 0) AS BIGINT) FROM spend_by_day_of_account WHERE account_id = $1 AND $2 <= day AND day < $3";
const DAYS_OF_ACCOUNT: &str = "SELECT day, spent FROM spend_by_day_of_account WHERE account_id = $1 AND $2 <= day AND day < $3";
const ENTRIES_OF_ACCOUNT: &str = "SELECT CAST(COALESCE(SUM(entries), 0) AS BIGINT) FROM spend_by_day_of_account WHERE account_id = $1";
const ENTRIES: &str = "SELECT seq, id, kind, cost, happened_at, recorded_at, model, provider, input_tokens, output_tokens, metadata, detail FROM usage \
     WHERE user_id = $1 AND (happened_at < $2 OR (happened_at = $2 AND seq < $3)) AND $4 <= happened_at AND happened_at < $5 \
     ORDER BY happened_at DESC, seq DESC LIMIT $6";
const LAST: &str = "SELECT user_id, seq, id, kind, cost, happened_at, recorded_at, model, provider, input_tokens, output_tokens, metadata, detail FROM usage \
     WHERE user_id = $1 AND $2 <= happened_at ORDER BY happened_at DESC, seq DESC LIMIT $3";
const LAST_OF_ACCOUNT: &str = "SELECT user_id, seq, id, kind, cost, happened_at, recorded_at, model, provider, input_tokens, output_tokens, metadata, detail \
     FROM usage WHERE account_id = $1 AND $2 <= happened_at ORDER BY happened_at DESC, seq DESC LIMIT $3";
const SUMS: &str = "SELECT CASE WHEN $4 THEN day END AS day, CASE WHEN $5 THEN model END AS model, \
     CAST(SUM(spent) AS BIGINT) AS spent, CAST(SUM(entries) AS BIGINT) AS entries, \
     CAST(SUM(input_tokens) AS BIGINT) AS input_tokens, CAST(SUM(output_tokens) AS BIGINT) AS output_tokens \
     FROM spend_by_day WHERE user_id = $1 AND $2 <= day AND day < $3 \
     AND CASE WHEN $4 AND $5 THEN day < $6 OR (day = $6 AND $7 < model) WHEN $4 THEN day < $6 ELSE $7 IS NULL OR $7 < model END GROUP BY 1, 2 ORDER BY 1 DESC, 2 LIMIT $8";

pub(super) const MICROS_PER_DAY: i64 = 86_400_000_000;

pub(super) fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Usage => "usage",
        EntryKind::Capture => "capture",
        EntryKind::Correction => "correction",
    }
}

pub(super) fn read_kind(name: &str) -> Result<EntryKind, StoreError> {
    let kinds = [EntryKind::Usage, EntryKind::Capture, EntryKind::Correction];
    kinds.into_iter().find(|kind| kind_name(*kind) == name).ok_or_else(|| corrupt("an unknown kind of entry"))
}

/// Where the index finds an id: its SipHash-1-3 with a key of zeros. Two ids may share it, so what is found there is compared.
pub fn id_hash(id: &str) -> i64 {
    // The least number is none, so that all others lie behind it.
    SipHasher13::new().hash(id.as_bytes()).cast_signed().max(i64::MIN + 1)
}

/// The rows that are known under these ids; others whose ids share a hash with them may be among them.
pub async fn booked(db: &mut Connection, ids: &[&str]) -> Result<HashMap<(EntryKind, String), Booked>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let hashes = serde_json::Value::from_iter(ids.iter().map(|id| id_hash(id))).to_string();
    let rows = db.query_of(BOOKED.0, BOOKED.1).bind(hashes).fetch_all().await?;
    let read = |row: &Row| {
        let booked = Booked {
            fingerprint: super::fingerprint(row.try_get("fingerprint")?)?,
            cost: money(row.try_get("cost")?)?,
            unpriced: row.try_get::<Option<String>>("detail")?.as_deref().is_some_and(tells_unpriced),
            time: from_micros(row.try_get("happened_at")?)?,
            recorded_at: from_micros(row.try_get("recorded_at")?)?,
        };
        Ok(((read_kind(&row.try_get::<String>("kind")?)?, row.try_get("id")?), booked))
    };
    rows.iter().map(read).collect()
}

/// The hashes of all ids behind `after`, in their order.
pub async fn id_hashes(db: &mut Connection, after: Option<i64>, limit: i64) -> Result<Vec<i64>, StoreError> {
    db.query(ID_HASHES).bind(after.unwrap_or(i64::MIN)).bind(limit).scalars().await
}

/// How many rows there are at most.
pub async fn rows_at_most(db: &mut Connection) -> Result<usize, StoreError> {
    let rows: i64 = db.query(IDS).scalar().await?;
    Ok(usize::try_from(rows).unwrap_or_default())
}

/// A day's sums of one user and one model.
pub async fn day_of_model(db: &mut Connection, of: &DayOfModel) -> Result<SpentIn, StoreError> {
    let (user, day, model) = of;
    let query = db.query(DAY_OF_MODEL).bind(user.as_str()).bind(day * MICROS_PER_DAY).bind((day + 1) * MICROS_PER_DAY);
    let rows = query.bind(model).bind(day).fetch_all().await?;
    let read = |row: &Row| {
        let account: Option<String> = row.try_get("account_id")?;
        Ok((account.map(account_id).transpose()?, row.try_get("spent")?))
    };
    rows.iter().map(read).collect()
}

/// What each of `users` spent on the days from `first` to before `end`.
pub async fn days(db: &mut Connection, users: &[UserId], first: i64, end: i64) -> Result<HashMap<UserId, SpentByDay>, StoreError> {
    let query = db.query_of(DAYS.0, DAYS.1).bind(list(users.iter().map(UserId::as_str))).bind(first).bind(end);
    let mut days: HashMap<UserId, SpentByDay> = HashMap::new();
    for row in query.fetch_all().await? {
        let spent = money(row.try_get("spent")?)?;
        days.entry(user_id(row.try_get("user_id")?)?).or_default().insert(row.try_get("day")?, spent);
    }
    Ok(days)
}

pub async fn days_of_all(db: &mut Connection, first: i64, end: i64) -> Result<SpentByDay, StoreError> {
    let rows = db.query_of(DAYS_OF_ALL, DAYS_OF_ALL_IN_SLOTS).bind(first).bind(end).fetch_all().await?;
    rows.iter().map(|row| Ok((row.try_get("day")?, Money::at_least_nothing(row.try_get("spent")?)))).collect()
}

pub async fn spent_by_all(db: &mut Connection) -> Result<Money, StoreError> {
    let days: Vec<i64> = db.query_of(SPENT_BY_ALL, SPENT_BY_ALL_IN_SLOTS).scalars().await?;
    days.into_iter().try_fold(Money::ZERO, |sum, spent| Ok(sum.saturating_add(Money::at_least_nothing(spent))))
}

/// Whose spend is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Spender<'a> {
    User(&'a UserId),
    Account(&'a AccountId),
}

impl<'a> Spender<'a> {
    /// Its key, the sum of records between two moments, and the sum of whole days.
    fn statements(self) -> (&'a str, &'static str, &'static str) {
        match self {
            Self::User(user) => (user.as_str(), STRETCH, WHOLE_DAYS),
            Self::Account(account) => (account.as_str(), STRETCH_OF_ACCOUNT, WHOLE_DAYS_OF_ACCOUNT),
        }
    }
}

/// What was spent in a window that need not begin at midnight, less what was taken back, in nano-dollars: the sums of whole days, and the
/// records at the edges. A user's records that were rolled into the sum of their day count where any of the day does.
pub async fn spent_in(db: &mut Connection, spender: Spender<'_>, window: Window) -> Result<i64, StoreError> {
    let (start, end) = (micros(window.start), window.end.map_or(i64::MAX, micros));
    let (first, last) = (start.div_euclid(MICROS_PER_DAY) + 1, end.div_euclid(MICROS_PER_DAY));
    let (key, stretch, whole_days) = spender.statements();
    // Each sum is of a stretch of time.
    let mut parts = vec![(stretch, start, end)];
    if first < last {
        parts = vec![(stretch, start, first * MICROS_PER_DAY), (whole_days, first, last), (stretch, last * MICROS_PER_DAY, end)];
    }
    let mut spent: i64 = 0;
    for (statement, from, to) in parts {
        let part: i64 = db.query(statement).bind(key).bind(from).bind(to).scalar().await?;
        spent = spent.saturating_add(part);
    }
    if let Spender::User(_) = spender {
        // The last day of an open window is too young for it.
        let rolled: i64 = db.query(ROLLED).bind(key).bind(first - 1).scalar().await?;
        spent = spent.saturating_add(rolled);
    }
    Ok(spent)
}

/// What an account spent on the days from `first` to before `end`, and ever.
pub async fn days_of_account(db: &mut Connection, account: &AccountId, first: i64, end: i64) -> Result<(SpentByDay, Money), StoreError> {
    let rows = db.query(DAYS_OF_ACCOUNT).bind(account.as_str()).bind(first).bind(end).fetch_all().await?;
    let days = rows.iter().map(|row| Ok((row.try_get("day")?, Money::at_least_nothing(row.try_get("spent")?))));
    let days = days.collect::<Result<SpentByDay, StoreError>>()?;
    let total: i64 = db.query(WHOLE_DAYS_OF_ACCOUNT).bind(account.as_str()).bind(i64::MIN).bind(i64::MAX).scalar().await?;
    Ok((days, Money::at_least_nothing(total)))
}

/// The entries that an account's users booked in it.
pub async fn entries_of_account(db: &mut Connection, account: &AccountId) -> Result<i64, StoreError> {
    db.query(ENTRIES_OF_ACCOUNT).bind(account.as_str()).scalar().await
}

/// A booked record, as lists show it.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    pub seq: i64,
    pub id: String,
    pub kind: EntryKind,
    pub cost: Money,
    pub time: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    pub metadata: Option<String>,
    pub detail: Option<String>,
}

/// From when (inclusive) to when (exclusive).
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// The latest first; `before` is the time and `seq` of the last one seen.
pub async fn entries(
    db: &mut Connection,
    user: &UserId,
    stretch: Stretch,
    before: (DateTime<Utc>, i64),
    limit: i64,
) -> Result<Vec<StoredEntry>, StoreError> {
    let query = db.query(ENTRIES).bind(user.as_str()).bind(micros(before.0)).bind(before.1);
    let query = query.bind(micros(stretch.from)).bind(micros(stretch.to)).bind(limit);
    query.fetch_all().await?.iter().map(read_entry).collect()
}

/// What was booked last since `from`, the latest first, and by whom.
pub async fn last_entries(
    db: &mut Connection,
    spender: Spender<'_>,
    from: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(UserId, StoredEntry)>, StoreError> {
    let (key, statement) = match spender {
        Spender::User(user) => (user.as_str(), LAST),
        Spender::Account(account) => (account.as_str(), LAST_OF_ACCOUNT),
    };
    let rows = db.query(statement).bind(key).bind(micros(from)).bind(limit).fetch_all().await?;
    rows.iter().map(|row| Ok((user_id(row.try_get("user_id")?)?, read_entry(row)?))).collect()
}

fn read_entry(row: &Row) -> Result<StoredEntry, StoreError> {
    Ok(StoredEntry {
        seq: row.try_get("seq")?,
        id: row.try_get("id")?,
        kind: read_kind(&row.try_get::<String>("kind")?)?,
        cost: money(row.try_get("cost")?)?,
        time: from_micros(row.try_get("happened_at")?)?,
        recorded_at: from_micros(row.try_get("recorded_at")?)?,
        model: row.try_get("model")?,
        provider: row.try_get("provider")?,
        input_tokens: row.try_get("input_tokens")?,
        output_tokens: row.try_get("output_tokens")?,
        metadata: row.try_get("metadata")?,
        detail: row.try_get("detail")?,
    })
}

/// A sum over one day, one model, or both.
#[derive(Clone, Debug)]
pub struct StoredSum {
    /// Days since 1970-01-01, where days are told apart.
    pub day: Option<i64>,
    /// Where models are told apart; empty is usage that named none.
    pub model: Option<String>,
    pub sum: Sum,
}

/// How sums are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupBy {
    pub day: bool,
    pub model: bool,
}

/// Where a page of sums begins: after this day, and within it after this model.
#[derive(Clone, Debug)]
pub struct SumPlace {
    pub day: i64,
    /// `None` is before all.
    pub model: Option<String>,
}

/// Sums over the whole days of `stretch`, the latest first.
pub async fn sums(
    db: &mut Connection,
    user: &UserId,
    stretch: Stretch,
    group_by: GroupBy,
    after: &SumPlace,
    limit: i64,
) -> Result<Vec<StoredSum>, StoreError> {
    let query = db.query(SUMS).bind(user.as_str()).bind(day(stretch.from)).bind(day(stretch.to));
    let query = query.bind(group_by.day).bind(group_by.model).bind(after.day).bind(&after.model);
    let rows = query.bind(limit).fetch_all().await?;
    let read = |row: &Row| {
        Ok(StoredSum {
            day: row.try_get("day")?,
            model: row.try_get("model")?,
            sum: Sum {
                spent: row.try_get("spent")?,
                entries: row.try_get("entries")?,
                input_tokens: row.try_get("input_tokens")?,
                output_tokens: row.try_get("output_tokens")?,
            },
        })
    };
    rows.iter().map(read).collect()
}
