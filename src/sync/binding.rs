//! Whose customer it is: our own binding first, then what Stripe's metadata name. A webhook never moves a binding.

use std::fmt;

use chrono::{DateTime, Utc};

use super::{alert, telling};
use crate::domain::user::{AccountId, UserId};
use crate::store::accounts::{self, StoredCustomer};
use crate::store::inbox::Alert;
use crate::store::requests::{self, Subject};
use crate::store::{Connection, StoreError};

/// Whom a customer pays for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    User(UserId),
    Account(AccountId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user `{user}`"),
            Self::Account(account) => write!(f, "account `{account}`"),
        }
    }
}

impl Owner {
    /// `user u_42`
    pub(super) fn named(&self) -> String {
        match self {
            Self::User(user) => format!("user {user}"),
            Self::Account(account) => format!("account {account}"),
        }
    }
}

pub(super) fn owner(stored: &StoredCustomer) -> Option<Owner> {
    stored.account.clone().map(Owner::Account).or_else(|| stored.user_id.clone().map(Owner::User))
}

/// Users of one account that are told apart; of a larger one it is quicker to read everybody again.
const TOUCHED_MAX: i64 = 1000;

/// Whose record changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    Users(Vec<UserId>),
    /// A large account, or nobody knows whom.
    Many,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Users(Vec::new())
    }
}

impl Touched {
    /// All users of an account.
    pub async fn members(db: &mut Connection, account: &AccountId) -> Result<Self, StoreError> {
        let users = accounts::members(db, account, "", TOUCHED_MAX).await?;
        Ok(if i64::try_from(users.len()).is_ok_and(|users| users < TOUCHED_MAX) { Self::Users(users) } else { Self::Many })
    }

    pub(super) async fn of(db: &mut Connection, stored: &StoredCustomer) -> Result<Self, StoreError> {
        match owner(stored) {
            Some(Owner::Account(account)) => Self::members(db, &account).await,
            Some(Owner::User(user)) => Ok(Self::Users(vec![user])),
            None => Ok(Self::default()),
        }
    }
}

/// Binds a customer in the same transaction as the caller's other changes; one that the owner had before is let go. `Err` names whom it
/// is bound to already. With `asks`, Stripe is asked about the customer: what we know of him may be old, or nothing.
pub async fn bind(
    db: &mut Connection,
    to: &Owner,
    customer: &str,
    asks: bool,
    now: DateTime<Utc>,
) -> Result<Result<(), Owner>, StoreError> {
    let mut stored = accounts::customer(db, customer).await?.unwrap_or_default();
    match owner(&stored) {
        Some(other) if other != *to => return Ok(Err(other)),
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    match to {
        Owner::User(user) => {
            accounts::meet(db, user, now).await?;
            accounts::release_customer(db, user).await?;
            stored.user_id = Some(user.clone());
        }
        Owner::Account(account) => {
            accounts::make_account(db, account, now).await?;
            accounts::release_customer_of_account(db, account).await?;
            stored.account = Some(account.clone());
        }
    }
    accounts::put_customer(db, customer, &stored, now).await?;
    if asks {
        requests::raise(db, &Subject::Customer(customer.to_owned()), now).await?;
    }
    Ok(Ok(()))
}

/// The user whom metadata name.
pub(super) fn read_hint(hint: Option<&str>, alerts: &mut Vec<Alert>) -> Option<UserId> {
    match hint.map(UserId::parse) {
        Some(Ok(user)) => Some(user),
        Some(Err(error)) => {
            alerts.push(alert("bad_user_id", format!("metadata user_id {error}")));
            None
        }
        None => None,
    }
}

/// Whom the customer is bound to after `hint`. A webhook never moves a binding, and one that Stripe deleted (`deleted`) is bound to nobody
/// new.
pub(super) async fn bound(
    db: &mut Connection,
    before: &StoredCustomer,
    (customer, deleted): (&str, bool),
    hint: Option<UserId>,
    alerts: &mut Vec<Alert>,
    now: DateTime<Utc>,
) -> Result<Option<UserId>, StoreError> {
    let Some(hint) = hint else { return Ok(before.user_id.clone()) };
    if before.account.is_some() {
        // An operator bound it to an account; whoever it names may be one of its users.
        return Ok(None);
    }
    if let Some(user) = &before.user_id {
        if *user != hint {
            let detail = format!("customer {customer} is bound to user {user}, but its metadata names {hint}; the binding stays");
            telling::conflict(db, customer, &hint, &detail, now).await?;
            alerts.push(alert("binding_conflict", detail));
        }
        return Ok(Some(user.clone()));
    }
    if deleted {
        return Ok(None);
    }
    if let Some(other) = rival(db, &hint).await? {
        let detail = format!("customer {customer} names user {hint}, who is bound to customer {other}; the binding stays");
        telling::conflict(db, customer, &hint, &detail, now).await?;
        alerts.push(alert("binding_conflict", detail));
        return Ok(None);
    }
    accounts::meet(db, &hint, now).await?;
    // Whom he had before was deleted.
    accounts::release_customer(db, &hint).await?;
    Ok(Some(hint))
}

/// The customer who keeps a user from another one. One that Stripe deleted never comes back, and keeps nobody.
async fn rival(db: &mut Connection, user: &UserId) -> Result<Option<String>, StoreError> {
    let Some(other) = accounts::customer_of(db, user).await? else { return Ok(None) };
    let is_deleted = accounts::customer(db, &other).await?.is_some_and(|other| other.state.is_deleted());
    Ok(Some(other).filter(|_| !is_deleted))
}

/// Whether a customer who is bound to nobody would be bound by what its metadata say.
pub(super) async fn may_bind(db: &mut Connection, hint: Option<&str>) -> Result<bool, StoreError> {
    match hint.map(UserId::parse) {
        Some(Ok(user)) => Ok(rival(db, &user).await?.is_none()),
        Some(Err(_)) | None => Ok(false),
    }
}
