//! What checks see, in time: whoever asks for a decision is waiting to make a call, and a store that hangs is a store that is down.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;

use super::{Meter, Shown, View, judge_seen};
use crate::domain::catalogue::Catalogue;
use crate::domain::decide::Budget;
use crate::domain::ledger::Payer;
use crate::domain::user::{Profile, UserId};
use crate::store::{Backend, StoreError};

/// Look-ups in SQLite's files that may be under way at once: as many as there are connections to read by. One that hangs keeps its place
/// until it ends, so that those who were told meanwhile leave nothing behind that piles up.
const LOOKUPS_MAX: usize = 4;

pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LOOKUPS_MAX))
}

impl Meter {
    /// [`Meter::view`], or an error after `patience`.
    pub async fn view_in_time<'c>(
        self: &Arc<Self>,
        catalogue: &'c Arc<Catalogue>,
        user: &UserId,
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<View<'c>, StoreError> {
        if let Some(view) = self.remembered(catalogue, user, now) {
            return Ok(view);
        }
        let views = self.look_up(catalogue, std::slice::from_ref(user), now, patience).await?.pop();
        views.ok_or_else(StoreError::torn)
    }

    /// [`Meter::views`], or an error after `patience`.
    pub async fn views_in_time<'c>(
        self: &Arc<Self>,
        catalogue: &'c Arc<Catalogue>,
        users: &[UserId],
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Vec<View<'c>>, StoreError> {
        let remembered = users.iter().map(|user| self.remembered(catalogue, user, now)).collect();
        match remembered {
            Some(views) => Ok(views),
            None => self.look_up(catalogue, users, now, patience).await,
        }
    }

    /// One user at `now`, where memory alone knows everything that counts. Where other nodes write too it does for as long as the setting
    /// lets it.
    pub fn remembered<'c>(&self, catalogue: &'c Arc<Catalogue>, user: &UserId, now: DateTime<Utc>) -> Option<View<'c>> {
        match &self.kept {
            Backend::Sqlite(shown) => shown.remembered(catalogue, user, now),
            Backend::Postgres(reading) => judge_seen(catalogue, reading.recent(catalogue, user, now)?).ok(),
        }
    }

    /// What was known of a user when he was last seen here, though it may have changed since: for answers while the store is away.
    pub fn last_known(&self, user: &UserId) -> Option<Arc<Profile>> {
        match &self.kept {
            Backend::Sqlite(shown) => shown.users.last(user).map(|payer| payer.profile.clone()),
            Backend::Postgres(reading) => reading.shared.last_known(user),
        }
    }

    async fn look_up<'c>(
        self: &Arc<Self>,
        catalogue: &'c Arc<Catalogue>,
        users: &[UserId],
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Vec<View<'c>>, StoreError> {
        match &self.kept {
            Backend::Postgres(reading) => {
                let seen = reading.see(catalogue, users, now, patience).await?;
                seen.into_iter().map(|seen| judge_seen(catalogue, seen)).collect()
            }
            // Seldom, and large.
            Backend::Sqlite(_) => Box::pin(self.look_in_files(catalogue, users, now, patience)).await,
        }
    }

    async fn look_in_files<'c>(
        self: &Arc<Self>,
        catalogue: &'c Arc<Catalogue>,
        users: &[UserId],
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Vec<View<'c>>, StoreError> {
        let (meter, by, sought) = (self.clone(), catalogue.clone(), users.to_vec());
        let look = async {
            let place = self.lookups.clone().acquire_owned().await.map_err(|_| StoreError::late())?;
            // A task of its own: whoever gives up must not break off what SQLite is doing, and open the next connection for the next one.
            let seen = tokio::spawn(async move {
                let views = meter.views(&by, &sought, now).await;
                drop(place);
                Ok::<_, StoreError>(views?.into_iter().map(|view| (view.payer, view.budgets)).collect::<Vec<_>>())
            });
            seen.await.unwrap_or_else(|_| Err(StoreError::torn()))
        };
        let seen = tokio::time::timeout(patience, look).await.unwrap_or_else(|_| Err(StoreError::late()))?;
        let view = |(payer, budgets): (Arc<Payer>, Vec<Budget>)| View {
            standing: Profile::standing(&payer.profile, catalogue, now),
            payer,
            budgets,
        };
        Ok(seen.into_iter().map(view).collect())
    }
}

impl Shown {
    fn remembered<'c>(&self, catalogue: &'c Catalogue, user: &UserId, now: DateTime<Utc>) -> Option<View<'c>> {
        let all = match &catalogue.global {
            None => Vec::new(),
            Some(limits) => self.all.get(&())?.budgets(limits, 1, None, now)?,
        };
        let payer = self.users.get(user)?;
        let standing = payer.profile.standing(catalogue, now);
        let mut budgets = match payer.pool(&standing) {
            None => payer.budgets(None, &standing, now)?,
            Some(_) if !payer.counts_caps(&standing, now) => return None,
            Some(account) => payer.budgets(Some(&*self.accounts.get(account)?), &standing, now)?,
        };
        budgets.extend(all);
        Some(View { payer, standing, budgets })
    }
}
