//! What a batch could not see and somebody is to be told: usage that is only added does not know what other nodes added meanwhile, and
//! no batch but one that admits holds knows what all users together spend. So whoever has committed looks once more; of two who write
//! at the same time, the one that commits last sees both.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tracing::{debug, warn};

use super::doubt::Wrote;
use super::found::empty;
use super::writer::{TIMEOUT, Written};
use super::{Kept, Known, Shared};
use crate::domain::alerts::{self, Refused, Told};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::Payer;
use crate::domain::money::Money;
use crate::domain::period::BillingPeriod;
use crate::domain::user::{AccountId, UserId};
use crate::meter::{View, load};
use crate::store::batch::{self, Row, RowVersion};
use crate::store::{Connection, StoreError, Tx};

/// How often it is looked again because another node was in the way.
const TRIES: usize = 3;

/// Whether anything may be to be told of a user to whom a batch has added, when others wrote him since `before`, the version at which
/// `payer` was remembered. He spent at most what he is remembered to have spent and all that others added, in every window.
pub(super) fn may_be_due(payer: &Payer, before: RowVersion, row: &Row, catalogue: &Catalogue, now: DateTime<Utc>) -> bool {
    let Some(others) = row.spent_by_others(before, payer.book.total()) else { return true };
    let mut at_most = payer.clone();
    at_most.book.add(others, now);
    alerts::is_due(&at_most, catalogue, now)
}

/// What is known to be told of all users together.
#[derive(Debug, Default)]
pub(super) struct ToldOfAll {
    /// Of the server that was told.
    generation: u64,
    told: Vec<Told>,
}

/// What was told of a book stays told whoever changes it: the database, of which it is read anew, is not asked for that.
fn carry_over(told: &[Told], book: &mut Book, now: DateTime<Utc>) {
    told.iter().filter(|told| told.is_open(now)).for_each(|told| book.tell(*told));
}

impl Shared {
    /// Users as the database has them, with what memory knows to be told of them. `generation` is of the server that is read: another one
    /// may not have what was written to it.
    pub(super) async fn read_payers(
        &self,
        db: &mut Connection,
        catalogue: &Catalogue,
        users: &[UserId],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<HashMap<UserId, Payer>, StoreError> {
        let mut payers = load::payers(db, catalogue, users, now).await?;
        for (user, payer) in &mut payers {
            if let Some(known) = self.users.last(user).filter(|known| known.generation == generation) {
                carry_over(known.value.book.told(), &mut payer.book, now);
            }
        }
        Ok(payers)
    }

    /// [`Self::read_payers`], for an account whose users have these billing periods.
    pub(super) async fn read_account(
        &self,
        db: &mut Connection,
        account: &AccountId,
        billing: &[Option<BillingPeriod>],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<Book, StoreError> {
        let mut book = load::account(db, account, billing, now).await?;
        if let Some(known) = self.accounts.last(account).filter(|known| known.generation == generation) {
            carry_over(known.value.told(), &mut book, now);
        }
        Ok(book)
    }

    /// Tells what a batch that is committed could not see. Where it fails, whoever spends next tells it: nothing is told only where it is
    /// passed.
    pub(super) async fn look(&self, kept: &mut Kept, catalogue: &Catalogue, written: &Written) {
        let mut users = written.unseen.clone();
        users.sort_unstable();
        let of_all = written.wrote != Wrote::Nothing && catalogue.global.is_some();
        for left in (0..TRIES).rev() {
            let error = match tokio::time::timeout(TIMEOUT, self.try_to_look(kept, catalogue, &users, of_all)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) if error.is_conflict() && 0 < left => continue,
                Ok(Err(error)) => error,
                Err(_) => StoreError::late(),
            };
            warn!(%error, "whether anything is to be told of budgets could not be looked up; the next write looks again: {error}");
            return;
        }
    }

    /// Asks again what pays for users who were not looked at for a while: where it is something else, what is to be told of them has to be
    /// looked up. Nobody waits for it; where it fails, it is asked at what they spend next.
    pub(super) async fn look_who_pays(&self, kept: &mut Kept, mut users: Vec<UserId>) {
        if users.is_empty() {
            return;
        }
        users.sort_unstable();
        let asked = async {
            let mut db = kept.take(self).await?;
            let (now, generation) = (self.now(), kept.generation());
            let standings = batch::standings(&mut db, &users).await?;
            kept.give_back(db);
            users.retain(|user| {
                let known = self.users.get(user).filter(|known| known.generation == generation);
                let Some((known, standing)) = known.zip(standings.get(user)) else { return false };
                let as_before = known.version.is_paid_for_as(&standing.version);
                if as_before {
                    self.keep_user(user, Known::paid_for(known.version, (known.as_of, now), generation, known.value.clone()));
                }
                !as_before
            });
            self.try_to_look(kept, &self.catalogue.load_full(), &users, false).await
        };
        let error = match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => StoreError::late(),
        };
        debug!(%error, "what pays for users who spend could not be looked up, and is at what they spend next: {error}");
    }

    /// Gives `all` what is known to be told of it.
    pub(super) fn put_told(&self, all: &mut Book) {
        self.told_of_all().told.iter().for_each(|told| all.tell(*told));
    }

    /// Remembers what is told of `all` by now.
    pub(super) fn keep_told(&self, all: &Book, now: DateTime<Utc>) {
        let mut known = self.told_of_all();
        known.told.retain(|told| told.is_open(now));
        let new: Vec<Told> = all.told().iter().filter(|told| !known.told.contains(told)).copied().collect();
        known.told.extend(new);
    }

    /// What is known to be told, of the server that is used: another one may not have it.
    fn told_of_all(&self) -> MutexGuard<'_, ToldOfAll> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        let mut known = self.told_of_all.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.cluster.generation();
        if known.generation != generation {
            *known = ToldOfAll { generation, told: Vec::new() };
        }
        known
    }

    /// Whether memory knows that it is told.
    pub fn knows_told(&self, view: &View<'_>, refused: &Refused) -> bool {
        let account = view.payer.pool(&view.standing).filter(|_| refused.is_of_tier());
        match account {
            _ if refused.is_of_all() => refused.is_told(&view.budgets, &self.told_of_all().told),
            Some(account) => self.accounts.get(account).is_some_and(|pool| refused.is_told(&view.budgets, pool.value.told())),
            None => refused.is_told(&view.budgets, view.payer.book.told()),
        }
    }

    async fn try_to_look(&self, kept: &mut Kept, catalogue: &Catalogue, users: &[UserId], of_all: bool) -> Result<(), StoreError> {
        if !users.is_empty() {
            self.look_at(kept, catalogue, users).await?;
        }
        if of_all {
            self.look_at_all(kept, catalogue).await?;
        }
        Ok(())
    }

    async fn look_at(&self, kept: &mut Kept, catalogue: &Catalogue, users: &[UserId]) -> Result<(), StoreError> {
        let now = self.now();
        let mut tx = Tx::begin_on(kept.take(self).await?).await?;
        let generation = kept.generation();
        let db = tx.connection()?;
        let versions = batch::lock_users(db, users).await?;
        let (payers, known) = self.payers(db, catalogue, users, &versions, generation, now).await?;
        let mut ledger = empty(payers, Book::new(now, &SpentByDay::new(), Money::ZERO, []));
        for user in users {
            ledger.tell(user, catalogue, now);
        }
        batch::raise(db, &ledger.alerts).await?;
        kept.give_back(tx.commit_and_keep().await?);
        for (user, mut payer) in ledger.payers {
            if let Some((version, as_of)) = known.get(&user) {
                payer.book.prune(now);
                self.keep_user(&user, Known::new(*version, *as_of, generation, Arc::new(payer)));
            }
        }
        Ok(())
    }

    async fn look_at_all(&self, kept: &mut Kept, catalogue: &Catalogue) -> Result<(), StoreError> {
        let now = self.now();
        let mut db = kept.take(self).await?;
        let mut all = self.read_all(catalogue, &mut db, Vec::new(), now).await?;
        self.put_told(&mut all);
        let mut ledger = empty(HashMap::new(), all);
        ledger.tell_of_all(catalogue, now);
        if !ledger.alerts.is_empty() {
            batch::raise(&mut db, &ledger.alerts).await?;
            self.keep_told(&ledger.all, now);
        }
        kept.give_back(db);
        Ok(())
    }
}
