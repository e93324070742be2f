//! Grants: more budget for one user, and what windows drew on it.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::accounts::{StoredUser, money, user_id};
use super::backend::by_list;
use super::ledger::MICROS_PER_DAY;
use super::{Connection, Row, StoreError, corrupt, from_micros, list, micros};
use crate::domain::grants::{Draw, Grant, Grants, sums_of_draws};
use crate::domain::period::Period;
use crate::domain::user::UserId;

/// Those that are open, and those that a window drew on that may be open: windows of a subscription are not told by days.
const OF_USERS: (&str, &str) = by_list!(
    "SELECT grants.user_id, grants.grant_id, period, amount, used, ends_at, reason, created_at, revoked_at, window_start, drawn FROM grants \
     LEFT JOIN draws ON draws.user_id = grants.user_id AND draws.grant_id = grants.grant_id AND draws.drawn <> 0 \
     AND (grants.period IN ('billing', 'total') OR $2 <= draws.window_start) WHERE grants.user_id",
    "$1",
    " AND (draws.drawn IS NOT NULL OR (grants.revoked_at IS NULL AND $3 < grants.ends_at))"
);
const ONE: &str =
    "SELECT grant_id, period, amount, used, ends_at, reason, created_at, revoked_at FROM grants WHERE user_id = $1 AND grant_id = $2";
const PAGE: &str = "SELECT grant_id, period, amount, used, ends_at, reason, created_at, revoked_at FROM grants \
     WHERE user_id = $1 AND (created_at < $2 OR (created_at = $2 AND grant_id < $3)) ORDER BY created_at DESC, grant_id DESC LIMIT $4";
const OPEN: &str = "SELECT COUNT(*) FROM grants WHERE user_id = $1 AND revoked_at IS NULL AND $2 < ends_at AND used < amount";
/// The user first: a batch that draws has locked him, and waits for nobody after that.
const TOUCH: &str = "UPDATE users SET granted_until = CASE WHEN granted_until IS NULL OR granted_until < $2 THEN $2 ELSE granted_until END, \
     version = version + 1048576 WHERE user_id = $1";
const MAKE: &str =
    "INSERT INTO grants (user_id, grant_id, period, amount, ends_at, reason, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const REVOKE: &str = "UPDATE grants SET revoked_at = $3 WHERE user_id = $1 AND grant_id = $2 AND revoked_at IS NULL";
const DRAW: &str = "INSERT INTO draws (user_id, grant_id, window_start, drawn) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (user_id, grant_id, window_start) DO UPDATE SET drawn = draws.drawn + excluded.drawn";
const USE: &str = "UPDATE grants SET used = used + $3 WHERE user_id = $1 AND grant_id = $2";
const DRAW_MANY: &str = "INSERT INTO draws (user_id, grant_id, window_start, drawn) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[]) \
     ON CONFLICT (user_id, grant_id, window_start) DO UPDATE SET drawn = draws.drawn + excluded.drawn";
/// What was judged by another state than what is here changes no row, and is done again.
const USE_MANY: &str = "UPDATE grants SET used = used + s.nanos FROM (SELECT user_id, grant_id, CAST(SUM(nanos) AS BIGINT) AS nanos \
     FROM UNNEST($1::text[], $2::text[], $3::bigint[]) AS d(user_id, grant_id, nanos) GROUP BY 1, 2) AS s \
     WHERE grants.user_id = s.user_id AND grants.grant_id = s.grant_id AND used + s.nanos BETWEEN 0 AND amount";

/// A grant as it was made, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGrant {
    /// What windows drew is known only where it was asked for.
    pub grant: Grant,
    pub reason: String,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

impl StoredGrant {
    /// Whether `other` says the same of what was granted.
    pub fn is_same(&self, other: &Self) -> bool {
        let said = |stored: &Self| (stored.grant.period, stored.grant.amount, stored.grant.ends_at);
        said(self) == said(other) && self.reason == other.reason
    }
}

/// What those of `stored` were granted who were granted anything; the windows that are open at `now` begin on `first_day` or later.
pub async fn of_users(
    db: &mut Connection,
    stored: &HashMap<UserId, StoredUser>,
    first_day: i64,
    now: DateTime<Utc>,
) -> Result<HashMap<UserId, Grants>, StoreError> {
    let granted: HashMap<&UserId, DateTime<Utc>> =
        stored.iter().filter_map(|(user, stored)| stored.granted_until.map(|until| (user, until))).collect();
    if granted.is_empty() {
        return Ok(HashMap::new());
    }
    let users = list(granted.keys().map(|user| user.as_str()));
    let query = db.query_of(OF_USERS.0, OF_USERS.1).bind(users).bind(first_day.saturating_mul(MICROS_PER_DAY)).bind(micros(now));
    let mut found: HashMap<UserId, HashMap<String, Grant>> = HashMap::new();
    for row in query.fetch_all().await? {
        let of_user = found.entry(user_id(row.try_get("user_id")?)?).or_default();
        let grant = of_user.entry(row.try_get("grant_id")?).or_insert(read(&row)?.grant);
        let (window_start, drawn): (Option<i64>, Option<i64>) = (row.try_get("window_start")?, row.try_get("drawn")?);
        if let Some((start, drawn)) = window_start.zip(drawn) {
            grant.drawn.insert(from_micros(start)?, money(drawn)?);
        }
    }
    let of = |(user, until): (&UserId, DateTime<Utc>)| {
        let grants: Vec<Grant> = found.remove(user).unwrap_or_default().into_values().collect();
        (user.clone(), Grants::new(until, grants))
    };
    // Of whom nothing is open and nothing was drawn, nothing need be known.
    let matters = |(_, grants): &(UserId, Grants)| grants.may_draw(now) || !grants.is_empty();
    Ok(granted.into_iter().map(of).filter(matters).collect())
}

pub async fn by_id(db: &mut Connection, user: &UserId, id: &str) -> Result<Option<StoredGrant>, StoreError> {
    db.query(ONE).bind(user.as_str()).bind(id).fetch_optional().await?.as_ref().map(read).transpose()
}

/// Where a page of a list begins: behind this moment, and within it behind this id.
pub type Place = (DateTime<Utc>, String);

/// The latest first.
pub async fn page(db: &mut Connection, user: &UserId, before: Option<&Place>, limit: i64) -> Result<Vec<StoredGrant>, StoreError> {
    let (at, id) = before.map_or((i64::MAX, ""), |(at, id)| (micros(*at), id));
    db.query(PAGE).bind(user.as_str()).bind(at).bind(id).bind(limit).fetch_all().await?.iter().map(read).collect()
}

/// How many grants of a user are open at `now`.
pub async fn open(db: &mut Connection, user: &UserId, now: DateTime<Utc>) -> Result<usize, StoreError> {
    let open: i64 = db.query(OPEN).bind(user.as_str()).bind(micros(now)).scalar().await?;
    Ok(usize::try_from(open).unwrap_or(usize::MAX))
}

/// Grants to a known user what he has no grant of this id for.
pub async fn make(db: &mut Connection, user: &UserId, stored: &StoredGrant) -> Result<(), StoreError> {
    let grant = &stored.grant;
    db.query(TOUCH).bind(user.as_str()).bind(micros(grant.ends_at)).execute().await?;
    let query = db.query(MAKE).bind(user.as_str()).bind(&*grant.id).bind(grant.period.name()).bind(grant.amount.nanos());
    query.bind(micros(grant.ends_at)).bind(&stored.reason).bind(micros(stored.created_at)).execute().await?;
    Ok(())
}

/// From now on nothing more is drawn. `false` where it was so already.
pub async fn revoke(db: &mut Connection, user: &UserId, id: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    db.query(TOUCH).bind(user.as_str()).bind(micros(now)).execute().await?;
    let revoked = db.query(REVOKE).bind(user.as_str()).bind(id).bind(micros(now)).execute().await?;
    Ok(0 < revoked)
}

/// Writes what was drawn, a row at a time: few batches draw anything.
pub(super) async fn draw<'d>(db: &mut Connection, draws: impl IntoIterator<Item = &'d Draw>) -> Result<(), StoreError> {
    for ((user, grant, window_start), nanos) in sums_of_draws(draws) {
        db.query(DRAW).bind(user.as_str()).bind(grant).bind(micros(window_start)).bind(nanos).execute().await?;
        db.query(USE).bind(user.as_str()).bind(grant).bind(nanos).execute().await?;
    }
    Ok(())
}

/// The same for users whom the transaction has locked; a conflict where a grant is not as it was believed to be.
pub(super) async fn draw_locked(db: &mut PgConnection, draws: &[Draw]) -> Result<(), StoreError> {
    let sums = sums_of_draws(draws);
    if sums.is_empty() {
        return Ok(());
    }
    let users: Vec<&str> = sums.keys().map(|(user, ..)| user.as_str()).collect();
    let grants: Vec<&str> = sums.keys().map(|(_, grant, _)| *grant).collect();
    let windows: Vec<i64> = sums.keys().map(|(.., window_start)| micros(*window_start)).collect();
    let nanos: Vec<i64> = sums.values().copied().collect();
    sqlx::query(DRAW_MANY).bind(&users).bind(&grants).bind(windows).bind(&nanos).execute(&mut *db).await?;
    let used = sqlx::query(USE_MANY).bind(&users).bind(&grants).bind(&nanos).execute(&mut *db).await?.rows_affected();
    let expected = sums.keys().map(|(user, grant, _)| (user, grant)).collect::<std::collections::BTreeSet<_>>().len();
    if usize::try_from(used).ok() == Some(expected) { Ok(()) } else { Err(StoreError(sqlx::Error::RowNotFound)) }
}

fn read(row: &Row) -> Result<StoredGrant, StoreError> {
    let (id, period): (String, String) = (row.try_get("grant_id")?, row.try_get("period")?);
    let revoked_at: Option<i64> = row.try_get("revoked_at")?;
    Ok(StoredGrant {
        grant: Grant {
            id: id.into(),
            period: Period::parse(&period).ok_or_else(|| corrupt("a grant of an unknown period"))?,
            ends_at: from_micros(row.try_get("ends_at")?)?,
            is_revoked: revoked_at.is_some(),
            amount: money(row.try_get("amount")?)?,
            used: money(row.try_get("used")?)?,
            drawn: BTreeMap::new(),
        },
        reason: row.try_get("reason")?,
        created_at: from_micros(row.try_get("created_at")?)?,
        revoked_at: revoked_at.map(from_micros).transpose()?,
    })
}
