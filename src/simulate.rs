//! Runs the recorded usage again under another catalogue. Nothing is changed by it.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;

use crate::domain::catalogue::{Budgets, Catalogue};
use crate::domain::decide::Scope;
use crate::domain::ledger::day;
use crate::domain::money::Money;
use crate::domain::period::{BillingPeriod, Period, Window};
use crate::domain::simulation::{Counters, Recorded, Simulation};
use crate::domain::user::{AccountId, UserId};
use crate::store::ledger::Spender;
use crate::store::recorded::{self, Rolled};
use crate::store::{Connection, StoreError, accounts, ledger};

/// Entries whose users are looked up at once.
const PAGE: usize = 1000;
/// Entries that are read for one user, his account's among them.
pub const ENTRIES_MAX: usize = 20_000;

/// What a simulation came to, and what it could not see.
#[derive(Debug)]
pub struct Simulated<'c> {
    pub simulation: Simulation<'c>,
    pub rolled: Rolled,
}

/// Everybody, from the midnight `since` on. `rows` gives entries while `users` tells who booked them; `progress` is told how many were
/// judged.
pub async fn everybody<'c>(
    rows: &mut Connection,
    users: &mut Connection,
    catalogue: &'c Catalogue,
    since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    progress: impl Fn(usize),
) -> Result<Simulated<'c>, StoreError> {
    let rolled = recorded::rolled(users, since).await?;
    let all = match &catalogue.global {
        Some(budgets) => before_by_all(users, budgets, since).await?,
        None => Counters::default(),
    };
    let mut simulation = Simulation::new(catalogue, Some(all), now);
    let mut entries = recorded::all(rows, since)?;
    let mut page = Vec::with_capacity(PAGE);
    loop {
        let entry = entries.try_next().await?;
        let is_last = entry.is_none();
        page.extend(entry);
        if page.len() == PAGE || is_last {
            judge(&mut simulation, users, &page, since).await?;
            progress(page.len());
            page.clear();
        }
        if is_last {
            return Ok(Simulated { simulation, rolled });
        }
    }
}

/// One user, in whose account others may spend. The budgets of all users together are not judged. `None` where there is more to read
/// than [`ENTRIES_MAX`].
pub async fn one<'c>(
    db: &mut Connection,
    catalogue: &'c Catalogue,
    user: &UserId,
    since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Option<Simulated<'c>>, StoreError> {
    let stored = accounts::users(db, std::slice::from_ref(user)).await?.remove(user).unwrap_or_default();
    let mut simulation = Simulation::new(catalogue, None, now);
    let is_shared = simulation.standing(&stored.profile).tier.budgets.scope == Scope::Account;
    let account = stored.profile.account.as_ref().filter(|_| is_shared);
    let most = i64::try_from(ENTRIES_MAX + 1).unwrap_or(i64::MAX);
    let entries = recorded::round(db, user, account, since, most).await?;
    if ENTRIES_MAX < entries.len() {
        return Ok(None);
    }
    let rolled = recorded::rolled_round(db, user, account, since).await?;
    // Known also where nothing was spent.
    meet(&mut simulation, db, &BTreeSet::from([user]), since).await?;
    for page in entries.chunks(PAGE) {
        judge(&mut simulation, db, page, since).await?;
        // Others are answered between two pages.
        tokio::task::yield_now().await;
    }
    Ok(Some(Simulated { simulation, rolled }))
}

async fn judge(
    simulation: &mut Simulation<'_>,
    db: &mut Connection,
    page: &[Recorded],
    since: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    let strangers = page.iter().map(|entry| &entry.user).filter(|user| !simulation.has_met(user)).collect();
    meet(simulation, db, &strangers, since).await?;
    let accounts: HashSet<&AccountId> = page.iter().filter_map(|entry| entry.account.as_ref()).collect();
    for account in accounts.into_iter().filter(|account| !simulation.has_met_account(account)).collect::<Vec<_>>() {
        let counters = before_in_account(db, simulation.catalogue(), account, page, since).await?;
        simulation.meet_account(account.clone(), counters);
    }
    page.iter().for_each(|entry| simulation.run(entry));
    Ok(())
}

async fn meet(
    simulation: &mut Simulation<'_>,
    db: &mut Connection,
    users: &BTreeSet<&UserId>,
    since: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    let ids: Vec<UserId> = users.iter().map(|user| (*user).clone()).collect();
    let mut stored = accounts::users(db, &ids).await?;
    for user in ids {
        let profile = stored.remove(&user).unwrap_or_default().profile;
        let standing = simulation.standing(&profile);
        let mut periods: BTreeSet<Period> = standing.tier.budgets.limits.keys().copied().collect();
        periods.extend(profile.caps.iter().flat_map(|caps| caps.limits().keys().copied()));
        let before = before(db, Spender::User(&user), periods.into_iter(), standing.grant.billing, since).await?;
        simulation.meet(user, &profile, before);
    }
    Ok(())
}

/// What was spent in an account before, in the periods of whatever tier shares its budgets.
async fn before_in_account(
    db: &mut Connection,
    catalogue: &Catalogue,
    account: &AccountId,
    page: &[Recorded],
    since: Option<DateTime<Utc>>,
) -> Result<Counters, StoreError> {
    let shared = catalogue.tiers().iter().filter(|tier| tier.budgets.scope == Scope::Account);
    let periods: BTreeSet<Period> = shared.flat_map(|tier| tier.budgets.limits.keys().copied()).collect();
    let mut billing = None;
    if periods.contains(&Period::Billing)
        && let Some(entry) = page.iter().find(|entry| entry.account.as_ref() == Some(account))
    {
        let stored = accounts::users(db, std::slice::from_ref(&entry.user)).await?.remove(&entry.user).unwrap_or_default();
        billing = stored.profile.customer.grant(catalogue, since.unwrap_or(entry.time)).billing;
    }
    before(db, Spender::Account(account), periods.into_iter(), billing, since).await
}

/// What was spent before `since` in the windows that are open then.
async fn before(
    db: &mut Connection,
    spender: Spender<'_>,
    periods: impl Iterator<Item = Period>,
    billing: Option<BillingPeriod>,
    since: Option<DateTime<Utc>>,
) -> Result<Counters, StoreError> {
    let mut counters = Counters::default();
    let Some(since) = since else { return Ok(counters) };
    for period in periods {
        let window = period.window(since, billing);
        if window.start < since {
            let spent = ledger::spent_in(db, spender, Window { end: Some(since), ..window }).await?;
            counters.begin(period, window, Money::at_least_nothing(spent));
        }
    }
    Ok(counters)
}

/// The same of all users together; their sums are of whole days.
async fn before_by_all(db: &mut Connection, budgets: &Budgets, since: Option<DateTime<Utc>>) -> Result<Counters, StoreError> {
    let mut counters = Counters::default();
    let Some(since) = since else { return Ok(counters) };
    for period in budgets.limits.keys() {
        let window = period.window(since, None);
        let days = ledger::days_of_all(db, day(window.start), day(since)).await?;
        let spent = days.values().fold(Money::ZERO, |sum, spent| sum.saturating_add(*spent));
        counters.begin(*period, window, spent);
    }
    Ok(counters)
}
