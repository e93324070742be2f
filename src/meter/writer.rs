//! The one task that writes the ledger.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;
use tracing::{error, info};

use super::{Clock, Present, Reply, Request, WriteError, load};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::decide::{Budget, Scope};
use crate::domain::ledger::{DayOfModel, Ledger, Payer, day};
use crate::domain::money::Money;
use crate::domain::operation::{Hold, Operation, Outcome};
use crate::domain::user::UserId;
use crate::meter::memory::Memory;
use crate::store::{Connection, Store, StoreError, holds, ledger};

/// Records in one commit; more only lengthens the slowest answer.
const BATCH_MAX: usize = 4096;
/// How often a store that did not confirm is tried again while nobody writes.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// What readers see of the ledger.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub users: Arc<Memory<UserId, Payer>>,
    pub all: Arc<Memory<(), Book>>,
    pub health: Arc<Health>,
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
}

impl Writer {
    /// Takes what is waiting, writes it in one commit, shows it to readers, answers every caller; until nobody can ask any more.
    pub async fn run(self, mut waiting: mpsc::Receiver<Request>) {
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
    async fn probe(&self) {
        let now = (self.clock)();
        if !self.shown.health.is_writable(now) {
            self.shown.health.set(self.store.probe(now).await.is_ok());
        }
    }

    async fn answer(&self, batch: Vec<Request>) {
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
    async fn write(&self, batch: &[Request], now: DateTime<Utc>) -> Result<(Vec<Result<Reply, WriteError>>, bool), StoreError> {
        // This task alone writes the ledger, so what it reads here still holds when it writes, without a transaction around both.
        let mut writing = self.store.write_alone().await?;
        let db = writing.connection()?;
        let ids: Vec<&str> = batch.iter().filter_map(|request| hold_id(&request.operation)).collect();
        let holds = holds::by_id(db, &ids).await?;
        let users = users(batch, &holds);
        // From here on memory tells us of what is changed beside us.
        let committing_users = self.shown.users.begin_commit(users.iter().cloned().collect());
        let committing_all = self.shown.all.begin_commit(vec![()]);
        let mut ledger = self.load(db, batch, &users, holds, now).await?;
        let replies = batch.iter().map(|request| self.step(&mut ledger, request, now)).collect();
        if ledger.is_unchanged() {
            writing.done();
            committing_users.nothing();
            committing_all.nothing();
            return Ok((replies, false));
        }
        ledger::write(db, &ledger, now).await?;
        writing.done();
        let changed = changed_users(&ledger);
        let shown = ledger.payers.into_iter().filter(|(user, _)| changed.contains(user)).map(|(user, mut payer)| {
            payer.book.prune(now);
            (user, Arc::new(payer))
        });
        committing_users.publish(shown);
        if self.catalogue.global.is_some() {
            let mut all = ledger.all;
            all.prune(now);
            committing_all.publish([((), Arc::new(all))]);
        } else {
            committing_all.nothing();
        }
        Ok((replies, true))
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

    async fn load(
        &self,
        db: &mut Connection,
        batch: &[Request],
        users: &BTreeSet<UserId>,
        holds: HashMap<String, Hold>,
        now: DateTime<Utc>,
    ) -> Result<Ledger, StoreError> {
        let mut payers = HashMap::with_capacity(users.len());
        let mut missing = Vec::new();
        for user in users {
            match self.shown.users.get(user).filter(|payer| payer.budgets(&self.catalogue, now).is_some()) {
                Some(payer) => drop(payers.insert(user.clone(), Payer::clone(&payer))),
                None => missing.push(user.clone()),
            }
        }
        if !missing.is_empty() {
            payers.extend(load::payers(db, &self.catalogue, &missing, now).await?);
        }
        let all = match &self.catalogue.global {
            None => Book::new(now, &SpentByDay::new(), Money::ZERO, []),
            Some(limits) => match self.shown.all.get(&()).filter(|all| all.budgets(Scope::Global, limits, None, now).is_some()) {
                Some(all) => Book::clone(&all),
                None => load::all(db, now).await?,
            },
        };
        let mut days: HashMap<DayOfModel, i64> = HashMap::new();
        for request in batch {
            if let Operation::Correct(correction) = &request.operation {
                let of = (correction.user_id.clone(), day(correction.time), correction.model.clone().unwrap_or_default());
                let spent = ledger::day_of_model(db, &of).await?;
                days.insert(of, spent);
            }
        }
        let ids: Vec<&str> = batch.iter().flat_map(|request| entry_ids(&request.operation)).collect();
        let booked = ledger::booked(db, &ids).await?;
        let (entries, touched_holds, corrections) = (Vec::new(), BTreeSet::new(), Vec::new());
        Ok(Ledger { booked, holds, payers, all, days, entries, touched_holds, corrections })
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
fn entry_ids(operation: &Operation) -> Vec<&str> {
    match operation {
        Operation::Record(usages) => usages.iter().map(|usage| usage.id.as_str()).collect(),
        Operation::Correct(correction) => vec![&correction.id],
        // A hold knows its own end.
        Operation::Hold(_) | Operation::Capture { .. } | Operation::Release { .. } | Operation::Extend { .. } => Vec::new(),
    }
}

fn users(batch: &[Request], holds: &HashMap<String, Hold>) -> BTreeSet<UserId> {
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

fn changed_users(ledger: &Ledger) -> BTreeSet<UserId> {
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
