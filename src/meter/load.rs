//! Reads users and all together from the store.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::domain::book::{Book, days_of_calendar};
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::Payer;
use crate::domain::period::{BillingPeriod, Period};
use crate::domain::user::{AccountId, UserId};
use crate::store::ledger::Spender;
use crate::store::{Connection, StoreError, accounts, grants, holds, ledger};

/// Every one of `users` at `now`, also those whom nobody knows.
pub async fn payers(
    db: &mut Connection,
    catalogue: &Catalogue,
    users: &[UserId],
    now: DateTime<Utc>,
) -> Result<HashMap<UserId, Payer>, StoreError> {
    let mut stored = accounts::users(db, users).await?;
    let (first, end) = days_of_calendar(now);
    let mut days = ledger::days(db, users, first, end).await?;
    let mut open = holds::open(db, users, now).await?;
    let mut granted = grants::of_users(db, &stored, first, now).await?;
    let mut payers = HashMap::with_capacity(users.len());
    for user in users {
        if payers.contains_key(user) {
            continue;
        }
        let exists = stored.contains_key(user);
        let stored = stored.remove(user).unwrap_or_default();
        let days = days.remove(user).unwrap_or_default();
        let mut book = Book::new(now, &days, stored.spent, open.remove(user).unwrap_or_default());
        let caps = stored.profile.caps.as_ref();
        if catalogue.uses(Period::Billing) || caps.is_some_and(|caps| caps.limits().contains_key(&Period::Billing)) {
            let billing = stored.profile.standing(catalogue, now).grant.billing;
            let window = Period::Billing.window(now, billing);
            // Without a subscription it is the calendar's month.
            let of_month = if billing.is_none() { book.spent(Period::Monthly, window) } else { None };
            let spent = match of_month {
                Some(spent) => spent.nanos(),
                None => ledger::spent_in(db, Spender::User(user), window).await?,
            };
            book.count_billing(window, spent);
        }
        let (profile, entries, grants) = (stored.profile.shared(), stored.entries, granted.remove(user).map(Box::new));
        payers.insert(user.clone(), Payer { profile, exists, entries, book, grants });
    }
    Ok(payers)
}

/// An account at `now`, for users with these billing periods (`None` as the calendar's month).
pub async fn account(
    db: &mut Connection,
    account: &AccountId,
    billing: &[Option<BillingPeriod>],
    now: DateTime<Utc>,
) -> Result<Book, StoreError> {
    let (first, end) = days_of_calendar(now);
    let (days, total) = ledger::days_of_account(db, account, first, end).await?;
    let mut book = Book::new(now, &days, total, holds::open_of_account(db, account, now).await?);
    for billing in billing {
        let window = Period::Billing.window(now, *billing);
        if book.spent(Period::Billing, window).is_none() {
            let spent = ledger::spent_in(db, Spender::Account(account), window).await?;
            book.count_billing(window, spent);
        }
    }
    Ok(book)
}

/// All users together at `now`.
pub async fn all(db: &mut Connection, now: DateTime<Utc>) -> Result<Book, StoreError> {
    let (first, end) = days_of_calendar(now);
    let days = ledger::days_of_all(db, first, end).await?;
    let total = ledger::spent_by_all(db).await?;
    Ok(Book::new(now, &days, total, holds::open_of_all(db, now).await?))
}
