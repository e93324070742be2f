//! The one task that writes the ledger.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::pending::Pending;
use super::seen::Seen;
use super::{Clock, Present, Reply, Request, WriteError, load, retention, settler};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::changes::Changes;
use crate::domain::decide::Budget;
use crate::domain::ledger::{DayOfModel, Ledger, Payer, SpentIn, day};
use crate::domain::money::Money;
use crate::domain::operation::{Booked, EntryKind, Hold, Operation, Outcome};
use crate::domain::user::{AccountId, UserId};
use crate::meter::memory::Memory;
use crate::store::{Store, StoreError, holds, ledger};

/// Records in one commit; more only lengthens the slowest answer.
const BATCH_MAX: usize = 4096;
/// How often a store that did not confirm is tried again while nobody writes.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// What readers see of the ledger.
#[derive(Clone, Debug)]
pub struct Shown {
    pub users: Arc<Memory<UserId, Payer>>,
    pub accounts: Arc<Memory<AccountId, Book>>,
    pub all: Arc<Memory<(), Book>>,
    pub health: Arc<Health>,
    pub pending: Arc<Pending>,
}

/// How long a write may be under way before the store counts as one that hangs.
const HANGS_AFTER: TimeDelta = TimeDelta::seconds(5);

/// Whether what is spent can be booked.
#[derive(Debug, Default)]
pub struct Health {
    unconfirmed: AtomicBool,
    /// Since when a write is under way, in microseconds since 1970; 0 is none.
    writing_since: AtomicI64,
}

impl Health {
    pub fn is_writable(&self, now: DateTime<Utc>) -> bool {
        let since = self.writing_since.load(Ordering::Acquire);
        let hangs = since != 0 && HANGS_AFTER.num_microseconds().is_some_and(|most| most < now.timestamp_micros() - since);
        !hangs && !self.unconfirmed.load(Ordering::Acquire)
    }

    /// A write was confirmed, or was not.
    pub fn set(&self, confirmed: bool) {
        if self.unconfirmed.swap(!confirmed, Ordering::AcqRel) && confirmed {
            info!("writes are confirmed again");
        }
    }

    fn begin(&self, now: DateTime<Utc>) {
        self.writing_since.store(now.timestamp_micros(), Ordering::Release);
    }

    fn end(&self) {
        self.writing_since.store(0, Ordering::Release);
    }
}

/// What the writer works with.
pub struct Writer {
    pub store: Store,
    pub catalogue: Arc<Catalogue>,
    pub shown: Shown,
    pub clock: Clock,
    /// How long rows are kept; `None` is for ever.
    pub keep: Option<TimeDelta>,
    pub seen: Arc<Seen>,
    /// The number of the last batch that is known to be durable.
    pub last: i64,
    /// A batch behind `last` may be durable or not.
    pub in_doubt: bool,
}

/// Batches that are looked for where the outcome of one is unknown.
const IN_DOUBT_MAX: i64 = 16;

impl Writer {
    /// Takes what is waiting, writes it in one commit, shows it to readers, answers every caller; until nobody can ask any more.
    pub async fn run(mut self, mut waiting: mpsc::Receiver<Request>) {
        let (end, ending) = oneshot::channel();
        let settler = tokio::spawn(settler::run(self.store.clone(), self.shown.pending.clone(), ending));
        let fill = tokio::spawn({
            let (seen, store) = (self.seen.clone(), self.store.clone());
            async move { seen.fill(&store).await }
        });
        let retention = self.keep.map(|keep| tokio::spawn(retention::run(self.store.clone(), keep, self.clock.clone())));
        self.write_all(&mut waiting).await;
        fill.abort();
        if let Some(retention) = retention {
            retention.abort();
        }
        // The settler ends by `end`; if it ended before, there is nobody to tell.
        let _ = end.send(());
        let _ = settler.await;
    }

    async fn write_all(&mut self, waiting: &mut mpsc::Receiver<Request>) {
        loop {
            let first = match tokio::time::timeout(PROBE_EVERY, waiting.recv()).await {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(_) => {
                    self.probe().await;
                    continue;
                }
            };
            let mut records = size(&first.operation);
            let mut batch = vec![first];
            while records < BATCH_MAX {
                let Ok(request) = waiting.try_recv() else { break };
                records += size(&request.operation);
                batch.push(request);
            }
            self.answer(batch).await;
        }
    }

    /// While the store does not confirm, callers are told not to spend, so that nobody would write and find out that it is back.
    async fn probe(&mut self) {
        let now = (self.clock)();
        if !self.shown.health.is_writable(now) {
            let works = self.settle_doubt().await.is_ok() && self.store.probe(now).await.is_ok();
            self.shown.health.set(works);
        }
    }

    async fn answer(&mut self, batch: Vec<Request>) {
        let now = (self.clock)();
        self.shown.health.begin(now);
        let written = self.write(&batch, now).await;
        self.shown.health.end();
        match written {
            Ok((replies, wrote)) => {
                // A batch of repeats and refusals wrote nothing, and proves nothing.
                if wrote {
                    self.shown.health.set(true);
                } else {
                    self.probe().await;
                }
                for (request, reply) in batch.into_iter().zip(replies) {
                    // A caller that went away has no use for the answer.
                    let _ = request.answer.send(reply);
                }
            }
            Err(error) => {
                self.shown.health.set(false);
                error!(%error, requests = batch.len(), "a batch of {} requests was not confirmed: {error}", batch.len());
                for request in batch {
                    let _ = request.answer.send(Err(WriteError::Unconfirmed));
                }
            }
        }
    }

    /// The answers, and whether anything was written.
    async fn write(&mut self, batch: &[Request], now: DateTime<Utc>) -> Result<(Vec<Result<Reply, WriteError>>, bool), StoreError> {
        self.settle_doubt().await?;
        self.shown.pending.have_room().await?;
        // This task alone writes the ledger, so what it reads here still holds when it writes, without a transaction around both.
        let holds = self.holds(batch).await?;
        let users = users(batch, &holds);
        // A handle of our own: what is shown outlives the commit's mark in it.
        let shown = self.shown.clone();
        // From here on memory tells us of what is changed beside us.
        let committing_users = shown.users.begin_commit(users.iter().cloned().collect());
        let committing_all = shown.all.begin_commit(vec![()]);
        let payers = self.payers(&users, now).await?;
        let days = self.days(batch).await?;
        let accounts = accounts(&payers, &holds, &days);
        let committing_accounts = shown.accounts.begin_commit(accounts.iter().cloned().collect());
        let mut ledger = self.load(batch, payers, &accounts, holds, days, now).await?;
        let replies = batch.iter().map(|request| self.step(&mut ledger, request, now)).collect();
        let changes = ledger.changes(now);
        if changes.is_empty() {
            committing_users.nothing();
            committing_accounts.nothing();
            committing_all.nothing();
            return Ok((replies, false));
        }
        self.append(changes).await?;
        let changed = changed_users(&ledger);
        let shown = ledger.payers.into_iter().filter(|(user, _)| changed.contains(user)).map(|(user, mut payer)| {
            payer.book.prune(now);
            (user, Arc::new(payer))
        });
        committing_users.publish(shown);
        committing_accounts.publish(ledger.accounts.into_iter().map(|(account, mut pool)| {
            pool.prune(now);
            (account, Arc::new(pool))
        }));
        if self.catalogue.global.is_some() {
            let mut all = ledger.all;
            all.prune(now);
            committing_all.publish([((), Arc::new(all))]);
        } else {
            committing_all.nothing();
        }
        Ok((replies, true))
    }

    /// Makes a batch durable.
    async fn append(&mut self, changes: Changes) -> Result<(), StoreError> {
        let seq = self.last + 1;
        self.in_doubt = true;
        self.store.journal().append(seq, &changes).await?;
        (self.last, self.in_doubt) = (seq, false);
        self.seen.add(&changes);
        self.shown.pending.add((seq, Arc::new(changes)));
        Ok(())
    }

    /// A batch whose commit failed may be there all the same. What is there counts, though nobody was told.
    async fn settle_doubt(&mut self) -> Result<(), StoreError> {
        if !self.in_doubt {
            return Ok(());
        }
        for (seq, changes) in self.store.journal().after(self.last, IN_DOUBT_MAX).await? {
            self.seen.add(&changes);
            self.shown.pending.add((seq, changes.clone()));
            changes.users().for_each(|user| self.shown.users.forget(user));
            changes.accounts().for_each(|account| self.shown.accounts.forget(account));
            self.shown.all.forget(&());
            self.last = seq;
        }
        self.in_doubt = false;
        Ok(())
    }

    /// The holds that a batch names.
    async fn holds(&self, batch: &[Request]) -> Result<HashMap<String, Hold>, StoreError> {
        let ids = batch.iter().filter_map(|request| hold_id(&request.operation));
        // What is pending is asked first: it may reach the tables meanwhile.
        let (mut found, mut others) = (HashMap::new(), Vec::new());
        for id in ids {
            match self.shown.pending.hold(id) {
                Some(hold) => drop(found.insert(id.to_owned(), hold)),
                None if self.seen.may_have(holds::id_hash(id)) => others.push(id),
                None => {}
            }
        }
        if !others.is_empty() {
            found.extend(holds::by_id(&mut *self.store.reader().await?, &others).await?);
        }
        Ok(found)
    }

    /// The sums that a batch's corrections would lower.
    async fn days(&self, batch: &[Request]) -> Result<HashMap<DayOfModel, SpentIn>, StoreError> {
        let mut days = HashMap::new();
        for request in batch {
            if let Operation::Correct(correction) = &request.operation {
                let of = (correction.user_id.clone(), day(correction.time), correction.model.clone().unwrap_or_default());
                self.shown.pending.have(std::slice::from_ref(&of.0)).await?;
                let spent = ledger::day_of_model(&mut *self.store.reader().await?, &of).await?;
                days.insert(of, spent);
            }
        }
        Ok(days)
    }

    /// What is booked under the ids that a batch names.
    async fn booked(&self, batch: &[Request]) -> Result<HashMap<(EntryKind, String), Booked>, StoreError> {
        let ids: Vec<(EntryKind, &str)> = batch.iter().flat_map(|request| entry_ids(&request.operation)).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut found = self.shown.pending.booked(ids.iter().copied());
        let unknown =
            |(kind, id): &&(EntryKind, &str)| !found.contains_key(&(*kind, (*id).to_owned())) && self.seen.may_have(ledger::id_hash(id));
        let others: Vec<&str> = ids.iter().filter(unknown).map(|(_, id)| *id).collect();
        if !others.is_empty() {
            found.extend(ledger::booked(&mut *self.store.reader().await?, &others).await?);
        }
        Ok(found)
    }

    fn step(&self, ledger: &mut Ledger, request: &Request, now: DateTime<Utc>) -> Result<Reply, WriteError> {
        let outcome = ledger.step(&request.operation, &self.catalogue, now)?;
        let (Operation::Hold(ask), Some(present)) = (&request.operation, &request.present) else {
            return Ok(Reply { outcome, answer: None });
        };
        let answer = match &outcome {
            Outcome::Held { hold, repeated: true, .. } => hold.answer.clone(),
            Outcome::Held { hold, budgets, .. } => {
                let answer = self.present(ledger, present, Some(hold), &ask.user_id, budgets, now);
                if let Some(hold) = ledger.holds.get_mut(&ask.id) {
                    hold.answer.clone_from(&answer);
                }
                answer
            }
            Outcome::NotHeld { budgets } => self.present(ledger, present, None, &ask.user_id, budgets, now),
            Outcome::Recorded(_) | Outcome::Ended { .. } | Outcome::Extended(_) | Outcome::Corrected(_) => String::new(),
        };
        Ok(Reply { outcome, answer: Some(answer) })
    }

    fn present(
        &self,
        ledger: &Ledger,
        present: &Present,
        hold: Option<&Hold>,
        user: &UserId,
        budgets: &[Budget],
        now: DateTime<Utc>,
    ) -> String {
        let profile = ledger.payers.get(user).map(|payer| payer.profile.clone()).unwrap_or_default();
        present(hold, &profile.standing(&self.catalogue, now), budgets)
    }

    /// The users of a batch, from memory or the store.
    async fn payers(&self, users: &HashSet<UserId>, now: DateTime<Utc>) -> Result<HashMap<UserId, Payer>, StoreError> {
        let fresh = |payer: &Arc<Payer>| payer.budgets(None, &payer.profile.standing(&self.catalogue, now), now).is_some();
        let mut payers = HashMap::with_capacity(users.len());
        let mut missing = Vec::new();
        for user in users {
            match self.shown.users.get(user).filter(fresh) {
                Some(payer) => drop(payers.insert(user.clone(), Payer::clone(&payer))),
                None => missing.push(user.clone()),
            }
        }
        if !missing.is_empty() {
            self.shown.pending.have(&missing).await?;
            let mut tx = self.store.begin_read().await?;
            payers.extend(load::payers(tx.connection()?, &self.catalogue, &missing, now).await?);
            tx.commit().await?;
        }
        Ok(payers)
    }

    /// The accounts of a batch, from memory or the store.
    async fn pools(
        &self,
        accounts: &HashSet<AccountId>,
        payers: &HashMap<UserId, Payer>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<AccountId, Book>, StoreError> {
        let mut pools = HashMap::with_capacity(accounts.len());
        for account in accounts {
            let members = payers.values().filter(|payer| payer.profile.account.as_ref() == Some(account));
            let standings: Vec<_> = members.map(|payer| (payer, payer.profile.standing(&self.catalogue, now))).collect();
            let fresh = |pool: &Arc<Book>| standings.iter().all(|(payer, standing)| payer.budgets(Some(pool), standing, now).is_some());
            let pool = match self.shown.accounts.get(account).filter(fresh) {
                Some(pool) => Book::clone(&pool),
                None => {
                    self.shown.pending.have_account(account).await?;
                    let billing: Vec<_> = standings.iter().map(|(_, standing)| standing.grant.billing).collect();
                    let mut tx = self.store.begin_read().await?;
                    let pool = load::account(tx.connection()?, account, &billing, now).await?;
                    tx.commit().await?;
                    pool
                }
            };
            pools.insert(account.clone(), pool);
        }
        Ok(pools)
    }

    async fn load(
        &self,
        batch: &[Request],
        payers: HashMap<UserId, Payer>,
        accounts: &HashSet<AccountId>,
        holds: HashMap<String, Hold>,
        days: HashMap<DayOfModel, SpentIn>,
        now: DateTime<Utc>,
    ) -> Result<Ledger, StoreError> {
        let accounts = self.pools(accounts, &payers, now).await?;
        let all = match &self.catalogue.global {
            None => Book::new(now, &SpentByDay::new(), Money::ZERO, []),
            Some(limits) => match self.shown.all.get(&()).filter(|all| all.budgets(limits, 1, None, now).is_some()) {
                Some(all) => Book::clone(&all),
                None => {
                    self.shown.pending.have_all().await?;
                    let mut tx = self.store.begin_read().await?;
                    let all = load::all(tx.connection()?, now).await?;
                    tx.commit().await?;
                    all
                }
            },
        };
        let booked = self.booked(batch).await?;
        let (entries, touched_holds, corrections) = (Vec::new(), BTreeSet::new(), Vec::new());
        Ok(Ledger { booked, holds, payers, accounts, all, days, entries, touched_holds, corrections })
    }
}

fn size(operation: &Operation) -> usize {
    match operation {
        Operation::Record(usages) => usages.len(),
        Operation::Hold(_) | Operation::Capture { .. } | Operation::Release { .. } | Operation::Extend { .. } | Operation::Correct(_) => 1,
    }
}

/// The hold that an operation names.
fn hold_id(operation: &Operation) -> Option<&str> {
    match operation {
        Operation::Hold(ask) => Some(&ask.id),
        Operation::Capture { hold_id, .. } | Operation::Release { hold_id } | Operation::Extend { hold_id, .. } => Some(hold_id),
        Operation::Record(_) | Operation::Correct(_) => None,
    }
}

/// The ids under which an operation may find that it was booked before.
fn entry_ids(operation: &Operation) -> Vec<(EntryKind, &str)> {
    match operation {
        Operation::Record(usages) => usages.iter().map(|usage| (EntryKind::Usage, usage.id.as_str())).collect(),
        Operation::Correct(correction) => vec![(EntryKind::Correction, &correction.id)],
        // A hold knows its own end.
        Operation::Hold(_) | Operation::Capture { .. } | Operation::Release { .. } | Operation::Extend { .. } => Vec::new(),
    }
}

fn users(batch: &[Request], holds: &HashMap<String, Hold>) -> HashSet<UserId> {
    let of = |request: &Request| match &request.operation {
        Operation::Record(usages) => usages.iter().map(|usage| usage.user_id.clone()).collect(),
        Operation::Hold(ask) => vec![ask.user_id.clone()],
        Operation::Correct(correction) => vec![correction.user_id.clone()],
        Operation::Capture { hold_id, .. } | Operation::Release { hold_id } | Operation::Extend { hold_id, .. } => {
            holds.get(hold_id).map(|hold| hold.user_id.clone()).into_iter().collect()
        }
    };
    batch.iter().flat_map(of).collect()
}

/// Every account that a batch may touch.
fn accounts(payers: &HashMap<UserId, Payer>, holds: &HashMap<String, Hold>, days: &HashMap<DayOfModel, SpentIn>) -> HashSet<AccountId> {
    let of_users = payers.values().filter_map(|payer| payer.profile.account.clone());
    let of_days = days.values().flat_map(|spent| spent.keys().flatten().cloned());
    of_users.chain(of_days).chain(holds.values().filter_map(|hold| hold.account.clone())).collect()
}

fn changed_users(ledger: &Ledger) -> HashSet<UserId> {
    let by_entries = ledger.entries.iter().map(|entry| entry.user_id.clone());
    let by_holds = ledger.touched_holds.iter().filter_map(|id| ledger.holds.get(id)).map(|hold| hold.user_id.clone());
    by_entries.chain(by_holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_hangs_counts_as_a_store_that_is_down() {
        let health = Health::default();
        let at = |micros: i64| DateTime::from_timestamp_micros(1_768_219_200_000_000 + micros).unwrap_or_default();
        health.begin(at(0));
        assert!(health.is_writable(at(5_000_000)));
        assert!(!health.is_writable(at(5_000_001)));
        health.end();
        assert!(health.is_writable(at(60_000_000)));
        health.set(false);
        assert!(!health.is_writable(at(60_000_000)));
        health.set(true);
        assert!(health.is_writable(at(60_000_000)));
    }
}
