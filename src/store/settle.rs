//! Writes batches of the ledger into the tables, many rows to a statement.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde_json::json;
use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Sqlite};

use super::journal::Numbered;
use super::ledger::{id_hash, kind_name};
use super::{Backend, Connection, StoreError, Tx, grants, micros};
use crate::domain::changes::{Changes, sums, sums_of_accounts, sums_of_all};
use crate::domain::operation::{Hold, HoldEnd};
use crate::domain::user::{AccountId, UserId};

const THROUGH: &str = "SELECT through FROM settled";
const SETTLED: &str = "UPDATE settled SET through = $1";
const AUDIT: &str = "INSERT INTO audit (at, key_id, user_id, change, reason) VALUES ($1, $2, $3, $4, $5)";

const USAGE: &str = "INSERT INTO usage (id, id_hash, kind, user_id, account_id, cost, happened_at, recorded_at, model, provider, input_tokens, output_tokens, \
     metadata, fingerprint, detail) ";
const DAYS: (&str, &str) = (
    "INSERT INTO spend_by_day (user_id, day, model, spent, entries, input_tokens, output_tokens) ",
    " ON CONFLICT (user_id, day, model) DO UPDATE SET spent = spend_by_day.spent + excluded.spent, \
     entries = spend_by_day.entries + excluded.entries, input_tokens = spend_by_day.input_tokens + excluded.input_tokens, \
     output_tokens = spend_by_day.output_tokens + excluded.output_tokens",
);
const DAYS_OF_ACCOUNTS: (&str, &str) = (
    "INSERT INTO spend_by_day_of_account (account_id, day, spent, entries) ",
    " ON CONFLICT (account_id, day) DO UPDATE SET \
     spent = MAX(0, spend_by_day_of_account.spent + MIN(excluded.spent, 9223372036854775807 - spend_by_day_of_account.spent)), \
     entries = spend_by_day_of_account.entries + excluded.entries",
);
/// The sum of all users stops at the most that can be counted.
const DAYS_OF_ALL: (&str, &str) = (
    "INSERT INTO spend_by_day_of_all (day, spent, entries) ",
    " ON CONFLICT (day) DO UPDATE SET spent = MAX(0, spend_by_day_of_all.spent + MIN(excluded.spent, 9223372036854775807 - spend_by_day_of_all.spent)), \
     entries = spend_by_day_of_all.entries + excluded.entries",
);
const USERS: (&str, &str) = (
    "INSERT INTO users (user_id, created_at, spent, entries) ",
    " ON CONFLICT (user_id) DO UPDATE SET spent = users.spent + excluded.spent, entries = users.entries + excluded.entries",
);
/// A hold that has ended stays as it ended.
const HOLDS: (&str, &str) = (
    "INSERT INTO holds (id, user_id, account_id, amount, model, created_at, expires_at, fingerprint, ended_at, captured, end_fingerprint, answer, \
     provider) ",
    " ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, ended_at = excluded.ended_at, captured = excluded.captured, \
     end_fingerprint = excluded.end_fingerprint WHERE holds.ended_at IS NULL",
);

/// What was told before stays as it was told.
const ALERTS: (&str, &str) =
    ("INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at) ", " ON CONFLICT (alert_id) DO NOTHING");

/// Rows in one statement. A statement is prepared once for each of these sizes.
const ROWS: [usize; 4] = [256, 32, 4, 1];

/// The number of the last batch that the tables have.
pub async fn through(db: &mut Connection) -> Result<i64, StoreError> {
    db.query(THROUGH).scalar().await
}

/// Writes those of `batches` that the tables do not have: another process may have been here. Nothing shows before the commit.
pub async fn settle(tx: &mut Tx, batches: &[Numbered]) -> Result<(), StoreError> {
    let db = tx.connection()?;
    let through = through(db).await?;
    let missing: Vec<&Changes> = batches.iter().filter(|(seq, _)| through < *seq).map(|(_, changes)| &**changes).collect();
    let Some((last, _)) = batches.last().filter(|(last, _)| through < *last) else { return Ok(()) };
    write(db, &missing).await?;
    db.query(SETTLED).bind(*last).execute().await?;
    Ok(())
}

async fn write(db: &mut Connection, batches: &[&Changes]) -> Result<(), StoreError> {
    let mut entries: Vec<_> = batches.iter().flat_map(|changes| &changes.entries).map(|entry| (id_hash(&entry.id), entry)).collect();
    // In the order of the dearest key, so that neighbours fall into one page.
    entries.sort_by_key(|(hash, _)| *hash);
    let mut days: Vec<_> = sums(entries.iter().map(|(_, entry)| *entry)).into_iter().collect();
    days.sort_unstable_by_key(|(key, _)| *key);
    let of_accounts: Vec<_> = sums_of_accounts(entries.iter().map(|(_, entry)| *entry)).into_iter().collect();
    let of_all: Vec<_> = sums_of_all(entries.iter().map(|(_, entry)| *entry)).into_iter().collect();
    let holds = last_words(batches);
    let mut users: HashMap<&UserId, (i64, i64, i64)> = HashMap::new();
    for (user, at) in batches.iter().flat_map(|changes| changes.users().map(|user| (user, micros(changes.at)))) {
        users.entry(user).or_insert((at, 0, 0));
    }
    for ((user, _, _), sum) in &days {
        if let Some((_, spent, entries)) = users.get_mut(user) {
            (*spent, *entries) = (spent.saturating_add(sum.spent), *entries + sum.entries);
        }
    }
    let mut users: Vec<_> = users.into_iter().collect();
    users.sort_unstable_by_key(|(user, _)| *user);
    bulk(db, (USAGE, ""), &entries, |row, (hash, entry)| {
        let (usage, booked) = (&entry.consumption, &entry.booked);
        row.push_bind(entry.id.as_str())
            .push_bind(*hash)
            .push_bind(kind_name(entry.kind))
            .push_bind(entry.user_id.as_str())
            .push_bind(entry.account.as_ref().map(AccountId::as_str))
            .push_bind(usage.cost.nanos());
        row.push_bind(micros(booked.time)).push_bind(micros(booked.recorded_at));
        row.push_bind(usage.model.as_deref()).push_bind(usage.provider.as_deref());
        row.push_bind(usage.input_tokens).push_bind(usage.output_tokens);
        row.push_bind(usage.metadata.as_deref()).push_bind(booked.fingerprint.as_slice()).push_bind(usage.detail.as_deref());
    })
    .await?;
    bulk(db, DAYS, &days, |row, ((user, day, model), sum)| {
        row.push_bind(user.as_str()).push_bind(*day).push_bind(*model).push_bind(sum.spent).push_bind(sum.entries);
        row.push_bind(sum.input_tokens).push_bind(sum.output_tokens);
    })
    .await?;
    bulk(db, DAYS_OF_ACCOUNTS, &of_accounts, |row, ((account, day), sum)| {
        row.push_bind(account.as_str()).push_bind(*day).push_bind(sum.spent).push_bind(sum.entries);
    })
    .await?;
    bulk(db, DAYS_OF_ALL, &of_all, |row, (day, sum)| {
        row.push_bind(*day).push_bind(sum.spent).push_bind(sum.entries);
    })
    .await?;
    bulk(db, USERS, &users, |row, (user, (at, spent, entries))| {
        row.push_bind(user.as_str()).push_bind(*at).push_bind(*spent).push_bind(*entries);
    })
    .await?;
    bulk(db, HOLDS, &holds, |row, hold| {
        let (ended_at, captured, end_fingerprint) = match &hold.end {
            None => (None, None, None),
            Some(HoldEnd::Released { at }) => (Some(at), None, None),
            Some(HoldEnd::Captured { cost, at, fingerprint }) => (Some(at), Some(cost.nanos()), Some(fingerprint.as_slice())),
        };
        row.push_bind(&*hold.id).push_bind(hold.user_id.as_str()).push_bind(hold.account.as_ref().map(AccountId::as_str));
        row.push_bind(hold.amount.nanos()).push_bind(hold.model.as_deref());
        row.push_bind(micros(hold.created_at)).push_bind(micros(hold.expires_at)).push_bind(hold.fingerprint.as_slice());
        row.push_bind(ended_at.map(|at| micros(*at))).push_bind(captured).push_bind(end_fingerprint).push_bind(hold.answer.as_str());
        row.push_bind(hold.provider.as_deref());
    })
    .await?;
    let mut alerts: Vec<_> = batches.iter().flat_map(|changes| &changes.alerts).map(|alert| (alert.id(), alert)).collect();
    alerts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    bulk(db, ALERTS, &alerts, |row, (id, alert)| {
        row.push_bind(id.clone()).push_bind(alert.key.as_str()).push_bind(alert.kind.name());
        row.push_bind(alert.user_id.as_ref().map(UserId::as_str)).push_bind(alert.message.as_str());
        row.push_bind(alert.details.as_str()).push_bind(micros(alert.at));
    })
    .await?;
    grants::draw(db, batches.iter().flat_map(|changes| &changes.draws)).await?;
    for changes in batches {
        for correction in &changes.corrections {
            let change = json!({"correction": correction.id, "amount": correction.amount.decimal(), "model": correction.model});
            let query = db.query(AUDIT).bind(micros(changes.at)).bind(&correction.key_id).bind(correction.user_id.as_str());
            query.bind(change.to_string()).bind(&correction.reason).execute().await?;
        }
    }
    Ok(())
}

/// Each hold as it stands after all batches, in the order in which they were first named.
fn last_words<'b>(batches: &[&'b Changes]) -> Vec<&'b Hold> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut holds = Vec::new();
    for hold in batches.iter().flat_map(|changes| &changes.holds) {
        match places.entry(&hold.id) {
            Entry::Occupied(place) => holds[*place.get()] = hold,
            Entry::Vacant(place) => {
                place.insert(holds.len());
                holds.push(hold);
            }
        }
    }
    holds
}

/// One statement for as many rows as it takes; `statement` is what stands before the rows and behind them.
async fn bulk<R>(
    db: &mut Connection,
    statement: (&str, &str),
    rows: &[R],
    bind: impl Fn(&mut Separated<'_, Sqlite, &'static str>, &R),
) -> Result<(), StoreError> {
    let Backend::Sqlite(db) = db else { return Err(StoreError::torn()) };
    let mut rest = rows;
    let mut statement_of_some = || {
        let size = ROWS.into_iter().find(|size| *size <= rest.len())?;
        let (some, others) = rest.split_at(size);
        rest = others;
        let mut query = QueryBuilder::<Sqlite>::new(statement.0);
        query.push_values(some, |mut row, values| bind(&mut row, values)).push(statement.1);
        Some(query)
    };
    let mut next = statement_of_some();
    while let Some(mut query) = next {
        // The database works in a thread of its own: while it writes some rows, the next ones are made ready.
        let written = query.build().execute(&mut **db);
        let (written, prepared) = futures_util::future::join(written, async { statement_of_some() }).await;
        written?;
        next = prepared;
    }
    Ok(())
}
