//! Users, the Stripe customers that are bound to them, and what operators changed by hand.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::backend::by_list;
use super::{Connection, Row, StoreError, corrupt, from_micros, list, micros};
use crate::domain::caps::Caps;
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::subscription::Customer;
use crate::domain::user::{AccountId, ManualTier, Profile, UserId};

/// What is stored of one user.
#[derive(Clone, Debug, Default)]
pub struct StoredUser {
    pub profile: Profile,
    /// The sum of all his usage, ever.
    pub spent: Money,
    pub entries: i64,
    /// When the last grant ends that he was ever given; `None` where there never was one.
    pub granted_until: Option<DateTime<Utc>>,
}

/// What is stored of one Stripe customer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredCustomer {
    /// Whom it pays for, where that is known: an account, or a user who stands alone.
    pub account: Option<AccountId>,
    pub user_id: Option<UserId>,
    pub state: Customer,
}

const USERS: (&str, &str) = by_list!(
    "SELECT users.user_id, users.account_id, spent, entries, manual_tier, manual_reason, manual_set_at, manual_ends_at, caps, granted_until, COALESCE(theirs.customer, his.customer) AS customer, CASE WHEN theirs.customer IS NULL THEN his.state ELSE theirs.state END AS state FROM users LEFT JOIN customers theirs ON theirs.account_id = users.account_id LEFT JOIN customers his ON his.user_id = users.user_id WHERE users.user_id",
    "$1",
    ""
);
const USER_IDS: &str = "SELECT user_id FROM users WHERE $1 < user_id ORDER BY user_id LIMIT $2";
const MEET: &str = "INSERT INTO users (user_id, created_at) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING";
const SET_TIER: &str = "UPDATE users SET manual_tier = $2, manual_reason = $3, manual_set_at = $4, manual_ends_at = $5, version = version + 1048576 \
     WHERE user_id = $1";
const SET_CAPS: &str = "UPDATE users SET caps = $2, version = version + 1048576 WHERE user_id = $1";
const CUSTOMER: &str = "SELECT account_id, user_id, state FROM customers WHERE customer = $1";
const CUSTOMER_OF: &str = "SELECT customer FROM customers WHERE user_id = $1";
const CUSTOMER_OF_ACCOUNT: &str = "SELECT customer FROM customers WHERE account_id = $1";
const MAKE_ACCOUNT: &str = "INSERT INTO accounts (account_id, created_at) VALUES ($1, $2) ON CONFLICT (account_id) DO NOTHING";
const ACCOUNT: &str = "SELECT created_at FROM accounts WHERE account_id = $1";
const MEMBERS: &str = "SELECT user_id FROM users WHERE account_id = $1 AND $2 < user_id ORDER BY user_id LIMIT $3";
const JOIN: &str = "UPDATE users SET account_id = $2, version = version + 1048576 WHERE user_id = $1";
const PUT_CUSTOMER: &str = "INSERT INTO customers (customer, account_id, user_id, state, updated_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (customer) DO UPDATE SET account_id = excluded.account_id, user_id = excluded.user_id, state = excluded.state, updated_at = excluded.updated_at";
const RELEASE: &str = "UPDATE customers SET user_id = NULL WHERE user_id = $1";
const RELEASE_OF_ACCOUNT: &str = "UPDATE customers SET account_id = NULL WHERE account_id = $1";
const AUDIT: &str = "INSERT INTO audit (at, key_id, account_id, user_id, change, reason) VALUES ($1, $2, $3, $4, $5, $6)";
const CHANGED_BY: &str = "SELECT key_id FROM audit WHERE user_id = $1 AND at = $2 ORDER BY seq DESC LIMIT 1";
const WRITTEN_AT: &str = "SELECT updated_at FROM customers WHERE customer = $1";

/// Those of `users` that are known; the others are absent from the answer.
pub async fn users(db: &mut Connection, users: &[UserId]) -> Result<HashMap<UserId, StoredUser>, StoreError> {
    let rows = db.query_of(USERS.0, USERS.1).bind(list(users.iter().map(UserId::as_str))).fetch_all().await?;
    rows.iter().map(|row| Ok((user_id(row.try_get("user_id")?)?, read_user(row)?))).collect()
}

/// The ids after `after` in the order of their bytes.
pub async fn user_ids(db: &mut Connection, after: &str, limit: i64) -> Result<Vec<UserId>, StoreError> {
    let rows = db.query(USER_IDS).bind(after).bind(limit).fetch_all().await?;
    rows.iter().map(|row| user_id(row.try_get("user_id")?)).collect()
}

/// Makes the user known.
pub async fn meet(db: &mut Connection, user: &UserId, now: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(MEET).bind(user.as_str()).bind(micros(now)).execute().await?;
    Ok(())
}

/// Sets the tier of a known user by hand; `None` clears it.
pub async fn set_manual_tier(db: &mut Connection, user: &UserId, manual: Option<&ManualTier>) -> Result<(), StoreError> {
    let query = db.query(SET_TIER).bind(user.as_str()).bind(manual.map(|manual| &manual.tier)).bind(manual.map(|manual| &manual.reason));
    let query = query.bind(manual.map(|manual| micros(manual.set_at))).bind(manual.and_then(|manual| manual.ends_at).map(micros));
    query.execute().await?;
    Ok(())
}

/// Sets the caps of a known user; `None` clears them.
pub async fn set_caps(db: &mut Connection, user: &UserId, caps: Option<&Caps>) -> Result<(), StoreError> {
    let nanos = |caps: &Caps| caps.limits().iter().map(|(period, limit)| (*period, limit.nanos())).collect::<BTreeMap<Period, i64>>();
    let text = caps.map(|caps| serde_json::to_string(&nanos(caps))).transpose().map_err(|error| corrupt(&error.to_string()))?;
    db.query(SET_CAPS).bind(user.as_str()).bind(text).execute().await?;
    Ok(())
}

pub async fn customer(db: &mut Connection, customer: &str) -> Result<Option<StoredCustomer>, StoreError> {
    db.query(CUSTOMER).bind(customer).fetch_optional().await?.as_ref().map(read_customer).transpose()
}

pub(super) fn read_customer(row: &Row) -> Result<StoredCustomer, StoreError> {
    let (account, user): (Option<String>, Option<String>) = (row.try_get("account_id")?, row.try_get("user_id")?);
    let (account, user_id) = (account.map(account_id).transpose()?, user.map(user_id).transpose()?);
    Ok(StoredCustomer { account, user_id, state: read_state(row.try_get("state")?)? })
}

/// The Stripe customer that pays for a user.
pub async fn customer_of(db: &mut Connection, user: &UserId) -> Result<Option<String>, StoreError> {
    db.query(CUSTOMER_OF).bind(user.as_str()).scalar_optional().await
}

pub async fn put_customer(db: &mut Connection, customer: &str, stored: &StoredCustomer, now: DateTime<Utc>) -> Result<(), StoreError> {
    let state = serde_json::to_string(&stored.state).map_err(|error| corrupt(&error.to_string()))?;
    let query = db.query(PUT_CUSTOMER).bind(customer).bind(stored.account.as_ref().map(AccountId::as_str));
    query.bind(stored.user_id.as_ref().map(UserId::as_str)).bind(state).bind(micros(now)).execute().await?;
    Ok(())
}

/// Takes the user's customer from him; what is known of the customer stays.
pub async fn release_customer(db: &mut Connection, user: &UserId) -> Result<(), StoreError> {
    db.query(RELEASE).bind(user.as_str()).execute().await?;
    Ok(())
}

/// Makes an account, unless it is there.
pub async fn make_account(db: &mut Connection, account: &AccountId, now: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(MAKE_ACCOUNT).bind(account.as_str()).bind(micros(now)).execute().await?;
    Ok(())
}

/// When an account was made; `None` where there is none.
pub async fn account(db: &mut Connection, account: &AccountId) -> Result<Option<DateTime<Utc>>, StoreError> {
    let made: Option<i64> = db.query(ACCOUNT).bind(account.as_str()).scalar_optional().await?;
    made.map(from_micros).transpose()
}

/// The users of an account after `after`, in the order of their ids' bytes.
pub async fn members(db: &mut Connection, account: &AccountId, after: &str, limit: i64) -> Result<Vec<UserId>, StoreError> {
    let users: Vec<String> = db.query(MEMBERS).bind(account.as_str()).bind(after).bind(limit).scalars().await?;
    users.into_iter().map(user_id).collect()
}

/// Lets a known user belong to an account, or to none.
pub async fn join(db: &mut Connection, user: &UserId, account: Option<&AccountId>) -> Result<(), StoreError> {
    db.query(JOIN).bind(user.as_str()).bind(account.map(AccountId::as_str)).execute().await?;
    Ok(())
}

/// The Stripe customer that pays for an account.
pub async fn customer_of_account(db: &mut Connection, account: &AccountId) -> Result<Option<String>, StoreError> {
    db.query(CUSTOMER_OF_ACCOUNT).bind(account.as_str()).scalar_optional().await
}

/// Takes the account's customer from it; what is known of the customer stays.
pub async fn release_customer_of_account(db: &mut Connection, account: &AccountId) -> Result<(), StoreError> {
    db.query(RELEASE_OF_ACCOUNT).bind(account.as_str()).execute().await?;
    Ok(())
}

/// A change that an operator made.
#[derive(Clone, Debug)]
pub struct Audit<'a> {
    pub at: DateTime<Utc>,
    /// The key that he used.
    pub key_id: &'a str,
    pub account: Option<&'a AccountId>,
    pub user: Option<&'a UserId>,
    /// What was and what is, as a JSON object.
    pub change: String,
    pub reason: Option<&'a str>,
}

pub async fn write_audit(db: &mut Connection, audit: &Audit<'_>) -> Result<(), StoreError> {
    let query = db.query(AUDIT).bind(micros(audit.at)).bind(audit.key_id);
    let query = query.bind(audit.account.map(AccountId::as_str)).bind(audit.user.map(UserId::as_str));
    query.bind(&audit.change).bind(audit.reason).execute().await?;
    Ok(())
}

/// The key that changed the user by hand at `at`.
pub async fn changed_by(db: &mut Connection, user: &UserId, at: DateTime<Utc>) -> Result<Option<String>, StoreError> {
    db.query(CHANGED_BY).bind(user.as_str()).bind(micros(at)).scalar_optional().await
}

/// When our record of a Stripe customer was last written.
pub async fn customer_written_at(db: &mut Connection, customer: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    let at: Option<i64> = db.query(WRITTEN_AT).bind(customer).scalar_optional().await?;
    at.map(from_micros).transpose()
}

fn read_user(row: &Row) -> Result<StoredUser, StoreError> {
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
    let account: Option<String> = row.try_get("account_id")?;
    let profile = Profile {
        manual,
        account: account.map(account_id).transpose()?,
        stripe_customer: row.try_get("customer")?,
        customer: state.map(read_state).transpose()?.unwrap_or_default(),
        caps: row.try_get::<Option<String>>("caps")?.map(|text| read_caps(&text)).transpose()?.flatten().map(Box::new),
    };
    let (spent, entries, granted_until) =
        (money(row.try_get("spent")?)?, row.try_get("entries")?, row.try_get::<Option<i64>>("granted_until")?);
    Ok(StoredUser { profile, spent, entries, granted_until: granted_until.map(from_micros).transpose()? })
}

fn read_caps(text: &str) -> Result<Option<Caps>, StoreError> {
    let nanos: BTreeMap<Period, i64> = serde_json::from_str(text).map_err(|error| corrupt(&error.to_string()))?;
    let limits = nanos.into_iter().map(|(period, nanos)| Ok::<_, StoreError>((period, money(nanos)?)));
    Ok(Caps::new(limits.collect::<Result<_, _>>()?))
}

fn read_state(state: String) -> Result<Customer, StoreError> {
    serde_json::from_str(&state).map_err(|error| corrupt(&error.to_string()))
}

pub(super) fn account_id(text: String) -> Result<AccountId, StoreError> {
    AccountId::parse(&text).map_err(|_| corrupt("an account_id that cannot be"))
}

pub(super) fn user_id(text: String) -> Result<UserId, StoreError> {
    UserId::try_from(text).map_err(|_| corrupt("a user_id that cannot be"))
}

pub(super) fn money(nanos: i64) -> Result<Money, StoreError> {
    Money::from_nanos(nanos).ok_or_else(|| corrupt("a negative amount"))
}
