//! Users, the Stripe customers that are bound to them, and what operators changed by hand.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Connection, StoreError, corrupt, from_micros, list, micros};
use crate::domain::money::Money;
use crate::domain::subscription::Customer;
use crate::domain::user::{ManualTier, Profile, UserId};

/// What is stored of one user.
#[derive(Clone, Debug, Default)]
pub struct StoredUser {
    pub profile: Profile,
    /// The sum of all his usage, ever.
    pub spent: Money,
    pub entries: i64,
}

/// What is stored of one Stripe customer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredCustomer {
    /// Whom it pays for, where that is known.
    pub user_id: Option<UserId>,
    pub state: Customer,
}

const USERS: &str = "SELECT users.user_id, spent, entries, manual_tier, manual_reason, manual_set_at, manual_ends_at, customer, state \
     FROM users LEFT JOIN customers ON customers.account_id = users.account_id \
     WHERE users.user_id IN (SELECT value FROM json_each($1))";
const USER_IDS: &str = "SELECT user_id FROM users WHERE $1 < user_id ORDER BY user_id LIMIT $2";
const MEET: &str = "INSERT INTO users (user_id, account_id, created_at) VALUES ($1, $1, $2) ON CONFLICT (user_id) DO NOTHING";
const SET_TIER: &str = "UPDATE users SET manual_tier = $2, manual_reason = $3, manual_set_at = $4, manual_ends_at = $5 WHERE user_id = $1";
const CUSTOMER: &str = "SELECT account_id, state FROM customers WHERE customer = $1";
const CUSTOMER_OF: &str = "SELECT customer FROM customers WHERE account_id = $1";
const PUT_CUSTOMER: &str = "INSERT INTO customers (customer, account_id, state, updated_at) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (customer) DO UPDATE SET account_id = excluded.account_id, state = excluded.state, updated_at = excluded.updated_at";
const RELEASE: &str = "UPDATE customers SET account_id = NULL WHERE account_id = $1";
const AUDIT: &str = "INSERT INTO audit (at, key_id, user_id, change, reason) VALUES ($1, $2, $3, $4, $5)";

/// Those of `users` that are known; the others are absent from the answer.
pub async fn users(db: &mut Connection, users: &[UserId]) -> Result<HashMap<UserId, StoredUser>, StoreError> {
    let rows = sqlx::query(USERS).bind(list(users.iter().map(UserId::as_str))).fetch_all(db).await?;
    rows.iter().map(|row| Ok((user_id(row.try_get("user_id")?)?, read_user(row)?))).collect()
}

/// The ids after `after` in the order of their bytes.
pub async fn user_ids(db: &mut Connection, after: &str, limit: i64) -> Result<Vec<UserId>, StoreError> {
    let rows = sqlx::query(USER_IDS).bind(after).bind(limit).fetch_all(db).await?;
    rows.iter().map(|row| user_id(row.try_get("user_id")?)).collect()
}

/// Makes the user known.
pub async fn meet(db: &mut Connection, user: &UserId, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query(MEET).bind(user.as_str()).bind(micros(now)).execute(db).await?;
    Ok(())
}

/// Sets the tier of a known user by hand; `None` clears it.
pub async fn set_manual_tier(db: &mut Connection, user: &UserId, manual: Option<&ManualTier>) -> Result<(), StoreError> {
    let query = sqlx::query(SET_TIER).bind(user.as_str()).bind(manual.map(|manual| &manual.tier)).bind(manual.map(|manual| &manual.reason));
    let query = query.bind(manual.map(|manual| micros(manual.set_at))).bind(manual.and_then(|manual| manual.ends_at).map(micros));
    query.execute(db).await?;
    Ok(())
}

pub async fn customer(db: &mut Connection, customer: &str) -> Result<Option<StoredCustomer>, StoreError> {
    let row = sqlx::query(CUSTOMER).bind(customer).fetch_optional(db).await?;
    row.map(|row| {
        let account: Option<String> = row.try_get("account_id")?;
        Ok(StoredCustomer { user_id: account.map(user_id).transpose()?, state: read_state(row.try_get("state")?)? })
    })
    .transpose()
}

/// The Stripe customer that pays for a user.
pub async fn customer_of(db: &mut Connection, user: &UserId) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(CUSTOMER_OF).bind(user.as_str()).fetch_optional(db).await?)
}

pub async fn put_customer(db: &mut Connection, customer: &str, stored: &StoredCustomer, now: DateTime<Utc>) -> Result<(), StoreError> {
    let state = serde_json::to_string(&stored.state).map_err(|error| corrupt(&error.to_string()))?;
    let query = sqlx::query(PUT_CUSTOMER).bind(customer).bind(stored.user_id.as_ref().map(UserId::as_str)).bind(state);
    query.bind(micros(now)).execute(db).await?;
    Ok(())
}

/// Takes the user's customer from him; what is known of the customer stays.
pub async fn release_customer(db: &mut Connection, user: &UserId) -> Result<(), StoreError> {
    sqlx::query(RELEASE).bind(user.as_str()).execute(db).await?;
    Ok(())
}

/// A change that an operator made.
#[derive(Clone, Debug)]
pub struct Audit<'a> {
    pub at: DateTime<Utc>,
    /// The key that he used.
    pub key_id: &'a str,
    pub user: &'a UserId,
    /// What was and what is, as a JSON object.
    pub change: String,
    pub reason: Option<&'a str>,
}

pub async fn write_audit(db: &mut Connection, audit: &Audit<'_>) -> Result<(), StoreError> {
    let query = sqlx::query(AUDIT).bind(micros(audit.at)).bind(audit.key_id).bind(audit.user.as_str());
    query.bind(&audit.change).bind(audit.reason).execute(db).await?;
    Ok(())
}

fn read_user(row: &SqliteRow) -> Result<StoredUser, StoreError> {
    let state: Option<String> = row.try_get("state")?;
    let tier: Option<String> = row.try_get("manual_tier")?;
    let manual = match tier {
        Some(tier) => {
            let ends_at: Option<i64> = row.try_get("manual_ends_at")?;
            Some(ManualTier {
                tier,
                reason: row.try_get("manual_reason")?,
                set_at: from_micros(row.try_get("manual_set_at")?)?,
                ends_at: ends_at.map(from_micros).transpose()?,
            })
        }
        None => None,
    };
    let profile =
        Profile { manual, stripe_customer: row.try_get("customer")?, customer: state.map(read_state).transpose()?.unwrap_or_default() };
    Ok(StoredUser { profile, spent: money(row.try_get("spent")?)?, entries: row.try_get("entries")? })
}

fn read_state(state: String) -> Result<Customer, StoreError> {
    serde_json::from_str(&state).map_err(|error| corrupt(&error.to_string()))
}

pub(super) fn user_id(text: String) -> Result<UserId, StoreError> {
    UserId::try_from(text).map_err(|_| corrupt("a user_id that cannot be"))
}

pub(super) fn money(nanos: i64) -> Result<Money, StoreError> {
    Money::from_nanos(nanos).ok_or_else(|| corrupt("a negative amount"))
}
