//! One batch of the ledger on Postgres: rows are locked in the order of their keys, and written in one statement.
//!
//! Locks are taken in one order by every node (users, accounts, the lock of all, then keys that are new), so no two batches wait for each
//! other. What a batch believes to be new is inserted without a second thought: where another node was first, the unique key says so,
//! and the batch is done again.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::accounts::{account_id, money, user_id};
use super::ledger::{id_hash, kind_name};
use super::{Backend, Connection, StoreError, grants, micros};
use crate::domain::alert::Alert;
use crate::domain::book::SpentByDay;
use crate::domain::changes::{Changes, sums, sums_of_accounts, sums_of_all};
use crate::domain::money::Money;
use crate::domain::operation::HoldEnd;
use crate::domain::user::{AccountId, UserId};

/// Which state of a user or an account it is: whatever changes what it has spent or holds counts its row's version up, so what was read at
/// the same version is the same.
pub type RowVersion = i64;

/// By so much a user's version goes up where more than usage was added to him: a hold, a correction, a tier, a cap. Usage that is only
/// added counts up by one, so two versions tell whether anything else lies between them.
const MORE_THAN_USAGE: RowVersion = 1 << 20;

/// A user's row after a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub version: RowVersion,
    /// All that he ever spent.
    pub spent: Money,
}

impl Row {
    /// What others spent since `before`, if they did nothing else, where all is `total` by what they are not known to have done.
    pub fn spent_by_others(&self, before: RowVersion, total: Money) -> Option<Money> {
        let only_usage = self.version.saturating_sub(before) < MORE_THAN_USAGE;
        only_usage.then(|| self.spent.less(i128::from(total.nanos())))
    }
}

/// Which state of a user it is: his row, and those of the Stripe customers that may pay for him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserVersion {
    pub row: RowVersion,
    theirs: RowVersion,
    his: RowVersion,
}

impl UserVersion {
    /// Whether the same customers, as they stand, may pay for him.
    pub fn is_paid_for_as(&self, other: &Self) -> bool {
        (self.theirs, self.his) == (other.theirs, other.his)
    }

    /// What it is after a batch has written the row of a user whom it knew at `before`.
    pub fn written(before: Option<&Self>, row: RowVersion) -> Self {
        before.map_or(Self { row, theirs: 0, his: 0 }, |before| Self { row, ..*before })
    }
}

/// A user as he stands in the database.
#[derive(Clone, Debug)]
pub struct Standing {
    pub version: UserVersion,
    pub account: Option<(AccountId, RowVersion)>,
}

const VERSIONS: &str = "SELECT users.user_id, users.version, \
     COALESCE(CAST(CAST(theirs.xmin AS TEXT) AS BIGINT), 0) AS theirs, COALESCE(CAST(CAST(his.xmin AS TEXT) AS BIGINT), 0) AS his, \
     accounts.account_id, COALESCE(accounts.version, 0) AS account_version FROM users \
     LEFT JOIN accounts ON accounts.account_id = users.account_id \
     LEFT JOIN customers theirs ON theirs.account_id = users.account_id \
     LEFT JOIN customers his ON his.user_id = users.user_id WHERE users.user_id = ANY($1)";
const LOCK_USERS: &str = "SELECT user_id, version FROM users \
     WHERE user_id = ANY($1) ORDER BY user_id FOR NO KEY UPDATE";
const ACCOUNT: &str = "SELECT version FROM accounts WHERE account_id = $1";
const LOCK_ACCOUNTS: &str = "SELECT account_id, version FROM accounts \
     WHERE account_id = ANY($1) ORDER BY account_id FOR NO KEY UPDATE";
/// Whoever admits a hold under a limit for all users is alone in doing so.
const LOCK_ALL: &str = "SELECT pg_advisory_xact_lock(7305807313)";
/// One statement, so that what is captured meanwhile is either held or spent.
const ALL: &str = "SELECT day, CAST(LEAST(SUM(spent), 9223372036854775807) AS BIGINT) AS nanos FROM spend_by_day_of_all WHERE $1 <= day GROUP BY day \
     UNION ALL SELECT NULL, CAST(LEAST(COALESCE(SUM(amount), 0), 9223372036854775807) AS BIGINT) FROM holds WHERE ended_at IS NULL AND $2 < expires_at";
/// Rows of one day's sum; as many nodes commit side by side.
const SLOTS: i64 = 16;

/// What every batch writes, with the parameters up to $28. Lists are taken apart where they are selected, side by side: in `FROM` each of
/// them would be a table of its own, made before the first row is written. `$step` is by how much versions go up; `$known` says of which of the users it concerns it knows what it must.
macro_rules! write {
    ($step:literal, $known:literal, $more:literal, $detail:literal) => {
        concat!(
            "WITH entries AS (INSERT INTO usage (id, id_hash, kind, user_id, account_id, cost, happened_at, recorded_at, model, provider, ",
            "input_tokens, output_tokens, metadata, fingerprint, detail) SELECT UNNEST($1::text[]), UNNEST($2::bigint[]), UNNEST($3::text[]), UNNEST($4::text[]), ",
            "UNNEST($5::text[]), UNNEST($6::bigint[]), UNNEST($7::bigint[]), UNNEST($8::bigint[]), UNNEST($9::text[]), UNNEST($10::text[]), ",
            "UNNEST($11::bigint[]), UNNEST($12::bigint[]), UNNEST($13::text[]), UNNEST($14::bytea[]), UNNEST(",
            $detail,
            "::text[])), ",
            "days AS (INSERT INTO spend_by_day (user_id, day, model, spent, entries, input_tokens, output_tokens) ",
            "SELECT UNNEST($15::text[]), UNNEST($16::bigint[]), UNNEST($17::text[]), UNNEST($18::bigint[]), UNNEST($19::bigint[]), ",
            "UNNEST($20::bigint[]), UNNEST($21::bigint[]) ",
            "ON CONFLICT (user_id, day, model) DO UPDATE SET spent = spend_by_day.spent + excluded.spent, ",
            "entries = spend_by_day.entries + excluded.entries, input_tokens = spend_by_day.input_tokens + excluded.input_tokens, ",
            "output_tokens = spend_by_day.output_tokens + excluded.output_tokens), ",
            "of_all AS (INSERT INTO spend_by_day_of_all (day, slot, spent, entries) ",
            "SELECT UNNEST($22::bigint[]), $25, UNNEST($23::bigint[]), UNNEST($24::bigint[]) ",
            "ON CONFLICT (day, slot) DO UPDATE SET ",
            "spent = CAST(LEAST(CAST(spend_by_day_of_all.spent AS NUMERIC) + excluded.spent, 9223372036854775807) AS BIGINT), ",
            "entries = spend_by_day_of_all.entries + excluded.entries), ",
            $more,
            "known AS (UPDATE users SET spent = users.spent + s.spent, entries = users.entries + s.entries, version = users.version + ",
            $step,
            " ",
            "FROM (SELECT UNNEST($26::text[]) AS user_id, UNNEST($27::bigint[]) AS spent, UNNEST($28::bigint[]) AS entries) AS s WHERE users.user_id = s.user_id",
            $known,
            " RETURNING users.user_id, users.version, users.spent) ",
            "SELECT ARRAY_AGG(user_id) AS users, ARRAY_AGG(version) AS versions, ARRAY_AGG(spent) AS spent FROM known ",
            "HAVING CASE WHEN COUNT(*) = CARDINALITY($26) THEN true ELSE conflict() END"
        )
    };
}

const ADD: &str = write!("1", " AND users.account_id IS NULL AND (users.granted_until IS NULL OR users.granted_until <= $29)", "", "$30");
const WRITE: &str = write!(
    "1048576",
    "",
    "of_accounts AS (INSERT INTO spend_by_day_of_account (account_id, day, spent, entries) \
     SELECT * FROM UNNEST($29::text[], $30::bigint[], $31::bigint[], $32::bigint[]) ON CONFLICT (account_id, day) DO UPDATE SET \
     spent = GREATEST(0, spend_by_day_of_account.spent + LEAST(excluded.spent, 9223372036854775807 - spend_by_day_of_account.spent)), \
     entries = spend_by_day_of_account.entries + excluded.entries), \
     met AS (INSERT INTO users (user_id, created_at, spent, entries) SELECT user_id, $36, spent, entries \
     FROM UNNEST($33::text[], $34::bigint[], $35::bigint[]) AS s(user_id, spent, entries)), \
     touched AS (UPDATE accounts SET version = version + 1 WHERE account_id = ANY($37)), ",
    "$38"
);
const NEW_HOLDS: &str = "INSERT INTO holds (id, user_id, account_id, amount, model, created_at, expires_at, fingerprint, ended_at, captured, \
     end_fingerprint, answer, provider) SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], \
     $8::bytea[], $9::bigint[], $10::bigint[], $11::bytea[], $12::text[], $13::text[])";
/// A hold that has ended stays as it ended.
const CHANGED_HOLDS: &str = "UPDATE holds SET expires_at = s.expires_at, ended_at = s.ended_at, captured = s.captured, end_fingerprint = s.end_fingerprint \
     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[]) AS s(id, expires_at, ended_at, captured, end_fingerprint) \
     WHERE holds.id = s.id AND holds.ended_at IS NULL";
/// What was told before, here or by another node, stays as it was told.
const RAISE: &str = "INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[]) ON CONFLICT (alert_id) DO NOTHING";
const AUDIT: &str = "INSERT INTO audit (at, key_id, user_id, change, reason) VALUES ($1, $2, $3, $4, $5)";

fn postgres(db: &mut Connection) -> Result<&mut PgConnection, StoreError> {
    match db {
        Backend::Postgres(db) => Ok(db),
        Backend::Sqlite(_) => Err(StoreError::torn()),
    }
}

fn keys(users: &[UserId]) -> Vec<&str> {
    users.iter().map(UserId::as_str).collect()
}

fn read(row: &PgRow) -> Result<(UserId, Standing), StoreError> {
    let account: Option<String> = row.try_get("account_id")?;
    let account = account.map(account_id).transpose()?;
    let version = UserVersion { row: row.try_get("version")?, theirs: row.try_get("theirs")?, his: row.try_get("his")? };
    let account = account.map(|account| Ok::<_, StoreError>((account, row.try_get("account_version")?))).transpose()?;
    Ok((user_id(row.try_get("user_id")?)?, Standing { version, account }))
}

/// Those of `users` that there are, as they stand now.
pub async fn standings(db: &mut Connection, users: &[UserId]) -> Result<HashMap<UserId, Standing>, StoreError> {
    let rows = sqlx::query(VERSIONS).bind(keys(users)).fetch_all(postgres(db)?).await?;
    rows.iter().map(read).collect()
}

/// Locks those of `users` that there are until the transaction ends.
pub async fn lock_users(db: &mut Connection, users: &[UserId]) -> Result<HashMap<UserId, RowVersion>, StoreError> {
    let rows = sqlx::query(LOCK_USERS).bind(keys(users)).fetch_all(postgres(db)?).await?;
    rows.iter().map(|row| Ok((user_id(row.try_get("user_id")?)?, row.try_get("version")?))).collect()
}

/// Locks accounts until the transaction ends.
pub async fn lock_accounts(db: &mut Connection, accounts: &[AccountId]) -> Result<HashMap<AccountId, RowVersion>, StoreError> {
    let accounts: Vec<&str> = accounts.iter().map(AccountId::as_str).collect();
    let rows = sqlx::query(LOCK_ACCOUNTS).bind(accounts).fetch_all(postgres(db)?).await?;
    rows.iter().map(|row| Ok((account_id(row.try_get("account_id")?)?, row.try_get("version")?))).collect()
}

/// `None` where there is no such account.
pub async fn account_version(db: &mut Connection, account: &AccountId) -> Result<Option<RowVersion>, StoreError> {
    Ok(sqlx::query_scalar(ACCOUNT).bind(account.as_str()).fetch_optional(postgres(db)?).await?)
}

/// Waits until no other batch admits holds under a limit for all.
pub async fn lock_all(db: &mut Connection) -> Result<(), StoreError> {
    sqlx::query(LOCK_ALL).execute(postgres(db)?).await?;
    Ok(())
}

/// What all users spent on the days from `first` on, and what is held of all at `now`.
pub async fn all(db: &mut Connection, first: i64, now: DateTime<Utc>) -> Result<(SpentByDay, Money), StoreError> {
    let rows = sqlx::query(ALL).bind(first).bind(micros(now)).fetch_all(postgres(db)?).await?;
    let (mut days, mut held) = (SpentByDay::new(), Money::ZERO);
    for row in &rows {
        // A slot may have less than nothing, where what another one counted was taken back.
        let nanos = Money::from_nanos(row.try_get::<i64, _>("nanos")?.max(0)).unwrap_or_default();
        match row.try_get::<Option<i64>, _>("day")? {
            Some(day) => drop(days.insert(day, nanos)),
            None => held = nanos,
        }
    }
    Ok((days, held))
}

/// What the batch knew before: the others are new.
#[derive(Debug)]
pub struct Before<'b> {
    pub users: &'b HashSet<UserId>,
    pub holds: &'b HashSet<String>,
}

/// Writes a batch in a transaction that has locked whom it concerns, and gives the versions that known users' rows have then: an account's
/// goes up by one, a user's by `MORE_THAN_USAGE`. `slot` is any number.
pub async fn write(db: &mut Connection, changes: &Changes, before: &Before<'_>, slot: u32) -> Result<HashMap<UserId, Row>, StoreError> {
    let only_tells = changes.entries.is_empty() && changes.holds.is_empty();
    let rows = if only_tells { HashMap::new() } else { write_entries(db, changes, Some(before), slot).await? };
    let db = postgres(db)?;
    write_holds(db, changes, before).await?;
    grants::draw_locked(db, &changes.draws).await?;
    raise_on(db, &changes.alerts).await?;
    for correction in &changes.corrections {
        let change = json!({"correction": correction.id, "amount": correction.amount.decimal(), "model": correction.model});
        let query = sqlx::query(AUDIT).bind(micros(changes.at)).bind(&correction.key_id).bind(correction.user_id.as_str());
        query.bind(change.to_string()).bind(&correction.reason).execute(&mut *db).await?;
    }
    Ok(rows)
}

/// Books the usage of known users who stand alone and have no open grants, in one statement that is a transaction by itself: it only adds, so it need not know what
/// it adds to. `Ok` means that it is on the disk. A conflict where one of them is new, or has an account or a grant by now.
pub async fn add(db: &mut Connection, changes: &Changes, slot: u32) -> Result<HashMap<UserId, Row>, StoreError> {
    write_entries(db, changes, None, slot).await
}

/// Without `before` all users are known, stand alone and have no open grants.
async fn write_entries(
    db: &mut Connection,
    changes: &Changes,
    before: Option<&Before<'_>>,
    slot: u32,
) -> Result<HashMap<UserId, Row>, StoreError> {
    let db = postgres(db)?;
    let mut entries: Vec<_> = changes.entries.iter().map(|entry| (id_hash(&entry.id), entry)).collect();
    // In the order of the key, so that two nodes that book the same ids wait for each other in one order.
    entries.sort_by_key(|(hash, _)| *hash);
    let mut days: Vec<_> = sums(&changes.entries).into_iter().collect();
    days.sort_unstable_by_key(|(key, _)| *key);
    let of_all: Vec<_> = sums_of_all(&changes.entries).into_iter().collect();
    let mut users: HashMap<&UserId, (i64, i64)> = changes.users().map(|user| (user, (0, 0))).collect();
    for ((user, _, _), sum) in &days {
        if let Some((spent, entries)) = users.get_mut(user) {
            (*spent, *entries) = (spent.saturating_add(sum.spent), *entries + sum.entries);
        }
    }
    let mut users: Vec<_> = users.into_iter().collect();
    users.sort_unstable_by_key(|(user, _)| *user);
    let is_known = |user: &UserId| before.is_none_or(|before| before.users.contains(user));
    let (known, met): (Vec<_>, Vec<_>) = users.into_iter().partition(|(user, _)| is_known(user));
    let fields = |of: &dyn Fn(&crate::domain::operation::Entry) -> i64| entries.iter().map(|(_, entry)| of(entry)).collect::<Vec<i64>>();
    let query = sqlx::query(if before.is_some() { WRITE } else { ADD })
        .bind(entries.iter().map(|(_, entry)| entry.id.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(hash, _)| *hash).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| kind_name(entry.kind)).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.user_id.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.account.as_ref().map(AccountId::as_str)).collect::<Vec<_>>())
        .bind(fields(&|entry| entry.consumption.cost.nanos()))
        .bind(fields(&|entry| micros(entry.booked.time)))
        .bind(fields(&|entry| micros(entry.booked.recorded_at)))
        .bind(entries.iter().map(|(_, entry)| entry.consumption.model.as_deref()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.consumption.provider.as_deref()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.consumption.input_tokens).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.consumption.output_tokens).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.consumption.metadata.as_deref()).collect::<Vec<_>>())
        .bind(entries.iter().map(|(_, entry)| entry.booked.fingerprint.as_slice()).collect::<Vec<_>>());
    let query = query
        .bind(days.iter().map(|((user, _, _), _)| user.as_str()).collect::<Vec<_>>())
        .bind(days.iter().map(|((_, day, _), _)| *day).collect::<Vec<_>>())
        .bind(days.iter().map(|((_, _, model), _)| *model).collect::<Vec<_>>())
        .bind(days.iter().map(|(_, sum)| sum.spent).collect::<Vec<_>>())
        .bind(days.iter().map(|(_, sum)| sum.entries).collect::<Vec<_>>())
        .bind(days.iter().map(|(_, sum)| sum.input_tokens).collect::<Vec<_>>())
        .bind(days.iter().map(|(_, sum)| sum.output_tokens).collect::<Vec<_>>());
    let query = query
        .bind(of_all.iter().map(|(day, _)| *day).collect::<Vec<_>>())
        .bind(of_all.iter().map(|(_, sum)| sum.spent).collect::<Vec<_>>())
        .bind(of_all.iter().map(|(_, sum)| sum.entries).collect::<Vec<_>>())
        .bind(i64::from(slot) % SLOTS);
    let of_users = |users: &[(&UserId, (i64, i64))]| {
        let (spent, entries) = users.iter().map(|(_, sum)| *sum).unzip::<i64, i64, Vec<_>, Vec<_>>();
        (users.iter().map(|(user, _)| user.as_str().to_owned()).collect::<Vec<_>>(), spent, entries)
    };
    let (known, met) = (of_users(&known), of_users(&met));
    let mut query = query.bind(known.0).bind(known.1).bind(known.2);
    if before.is_some() {
        let mut of_accounts: Vec<_> = sums_of_accounts(&changes.entries).into_iter().collect();
        of_accounts.sort_unstable_by_key(|(key, _)| *key);
        let mut touched: Vec<&str> = changes.accounts().map(AccountId::as_str).collect();
        touched.sort_unstable();
        touched.dedup();
        query = query
            .bind(of_accounts.iter().map(|((account, _), _)| account.as_str().to_owned()).collect::<Vec<_>>())
            .bind(of_accounts.iter().map(|((_, day), _)| *day).collect::<Vec<_>>())
            .bind(of_accounts.iter().map(|(_, sum)| sum.spent).collect::<Vec<_>>())
            .bind(of_accounts.iter().map(|(_, sum)| sum.entries).collect::<Vec<_>>());
        query = query.bind(met.0).bind(met.1).bind(met.2).bind(micros(changes.at)).bind(touched);
    } else {
        query = query.bind(micros(changes.at));
    }
    let query = query.bind(entries.iter().map(|(_, entry)| entry.consumption.detail.as_deref()).collect::<Vec<_>>());
    // One row, since it costs as much to read as there are of them.
    let row = query.fetch_one(&mut *db).await?;
    let list = |name| Ok::<_, StoreError>(row.try_get::<Option<Vec<i64>>, _>(name)?.unwrap_or_default());
    let users = row.try_get::<Option<Vec<String>>, _>("users")?.unwrap_or_default();
    let numbers = list("versions")?.into_iter().zip(list("spent")?);
    let read = |(user, (version, spent))| Ok((user_id(user)?, Row { version, spent: money(spent)? }));
    users.into_iter().zip(numbers).map(read).collect()
}

/// Notes what is to be told, in the order of its ids, so that two nodes that tell the same wait for each other in one order.
pub async fn raise(db: &mut Connection, alerts: &[Alert]) -> Result<(), StoreError> {
    raise_on(postgres(db)?, alerts).await
}

async fn raise_on(db: &mut PgConnection, alerts: &[Alert]) -> Result<(), StoreError> {
    if alerts.is_empty() {
        return Ok(());
    }
    let mut alerts: Vec<_> = alerts.iter().map(|alert| (alert.id(), alert)).collect();
    alerts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let of = |text: &dyn Fn(&Alert) -> String| alerts.iter().map(|(_, alert)| text(alert)).collect::<Vec<String>>();
    let query = sqlx::query(RAISE)
        .bind(alerts.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
        .bind(of(&|alert| alert.key.clone()))
        .bind(of(&|alert| alert.kind.name().to_owned()))
        .bind(alerts.iter().map(|(_, alert)| alert.user_id.as_ref().map(UserId::as_str)).collect::<Vec<_>>())
        .bind(of(&|alert| alert.message.clone()))
        .bind(of(&|alert| alert.details.clone()));
    query.bind(alerts.iter().map(|(_, alert)| micros(alert.at)).collect::<Vec<_>>()).execute(db).await?;
    Ok(())
}

async fn write_holds(db: &mut PgConnection, changes: &Changes, before: &Before<'_>) -> Result<(), StoreError> {
    let mut holds: Vec<_> = changes.holds.iter().collect();
    holds.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    let (changed, made): (Vec<_>, Vec<_>) = holds.into_iter().partition(|hold| before.holds.contains(&*hold.id));
    let ended_at = |end: &Option<HoldEnd>| match end {
        None => None,
        Some(HoldEnd::Released { at } | HoldEnd::Captured { at, .. }) => Some(micros(*at)),
    };
    let captured = |end: &Option<HoldEnd>| match end {
        None | Some(HoldEnd::Released { .. }) => (None, None),
        Some(HoldEnd::Captured { cost, fingerprint, .. }) => (Some(cost.nanos()), Some(fingerprint.to_vec())),
    };
    if !made.is_empty() {
        let (costs, fingerprints): (Vec<_>, Vec<_>) = made.iter().map(|hold| captured(&hold.end)).unzip();
        let query = sqlx::query(NEW_HOLDS)
            .bind(made.iter().map(|hold| &*hold.id).collect::<Vec<&str>>())
            .bind(made.iter().map(|hold| hold.user_id.as_str()).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| hold.account.as_ref().map(AccountId::as_str)).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| hold.amount.nanos()).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| hold.model.as_deref()).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| micros(hold.created_at)).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| micros(hold.expires_at)).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| hold.fingerprint.as_slice()).collect::<Vec<_>>())
            .bind(made.iter().map(|hold| ended_at(&hold.end)).collect::<Vec<_>>());
        let query = query.bind(costs).bind(fingerprints).bind(made.iter().map(|hold| hold.answer.as_str()).collect::<Vec<_>>());
        let query = query.bind(made.iter().map(|hold| hold.provider.as_deref()).collect::<Vec<_>>());
        query.execute(&mut *db).await?;
    }
    if !changed.is_empty() {
        let (costs, fingerprints): (Vec<_>, Vec<_>) = changed.iter().map(|hold| captured(&hold.end)).unzip();
        let query = sqlx::query(CHANGED_HOLDS)
            .bind(changed.iter().map(|hold| &*hold.id).collect::<Vec<&str>>())
            .bind(changed.iter().map(|hold| micros(hold.expires_at)).collect::<Vec<_>>())
            .bind(changed.iter().map(|hold| ended_at(&hold.end)).collect::<Vec<_>>());
        let done = query.bind(costs).bind(fingerprints).execute(&mut *db).await?.rows_affected();
        if usize::try_from(done).is_ok_and(|done| done < changed.len()) {
            // One that was too old to keep is gone by now.
            return Err(StoreError(sqlx::Error::RowNotFound));
        }
    }
    Ok(())
}
