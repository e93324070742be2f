//! The one task that writes the ledger.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{Instrument, error, info_span};

use super::batch::{self, BATCH_MAX, accounts, changed_users, entry_ids, hold_id, size, users};
use super::health::Health;
use super::pending::Pending;
use super::seen::Seen;
use super::{Clock, Reply, Request, WriteError, load, retention, settler};
use crate::current::Current;
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::changes::Changes;
use crate::domain::ledger::{DayOfModel, Ledger, Payer, SpentIn, day};
use crate::domain::money::Money;
use crate::domain::operation::{Booked, EntryKind, Hold, Operation};
use crate::domain::user::{AccountId, UserId};
use crate::meter::memory::Memory;
use crate::store::sqlite::Files;
use crate::store::{Store, StoreError, holds, ledger};
use crate::telemetry::Writes;

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
    pub writes: Arc<Writes>,
}

/// What the writer works with.
pub struct Writer {
    pub store: Store,
    pub files: Files,
    pub catalogue: Current,
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
        let settler = tokio::spawn(settler::run(self.files.clone(), self.shown.pending.clone(), ending));
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
        let (health, clock) = (self.shown.health.clone(), self.clock.clone());
        let under_way = batch::is_awaited(&batch).then(|| health.begin(&clock));
        let (begun, records) = (Instant::now(), batch.iter().map(|request| size(&request.operation)).sum());
        let span = info_span!("batch", requests = batch.len(), records);
        let written = self.write(&batch, now).instrument(span).await;
        self.shown.writes.wrote(records, begun.elapsed(), written.is_ok());
        drop(under_way);
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
        let catalogue = self.catalogue.load_full();
        // This task alone writes the ledger, so what it reads here still holds when it writes, without a transaction around both.
        let holds = self.holds(batch).await?;
        let users = users(batch, &holds);
        // A handle of our own: what is shown outlives the commit's mark in it.
        let shown = self.shown.clone();
        // From here on memory tells us of what is changed beside us.
        let committing_users = shown.users.begin_commit(users.iter().cloned().collect());
        let committing_all = shown.all.begin_commit(vec![()]);
        let payers = self.payers(&catalogue, &users, now).await?;
        let days = self.days(batch).await?;
        let accounts = accounts(&payers, &holds, &days);
        let committing_accounts = shown.accounts.begin_commit(accounts.iter().cloned().collect());
        let mut ledger = self.load(&catalogue, batch, payers, &accounts, holds, days, now).await?;
        let mut step = |request: &Request| {
            let reply = batch::step(&mut ledger, request, &catalogue, now);
            ledger.tell_of_all(&catalogue, now);
            reply
        };
        let replies = batch.iter().map(&mut step).collect();
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
        if catalogue.global.is_some() {
            let mut all = ledger.all;
            all.prune(now);
            committing_all.publish([((), Arc::new(all))]);
        } else {
            // Nobody asks for it; but a catalogue that holds later may, and must not find what was remembered before.
            drop(committing_all);
        }
        Ok((replies, true))
    }

    /// Makes a batch durable.
    async fn append(&mut self, changes: Changes) -> Result<(), StoreError> {
        let seq = self.last + 1;
        self.in_doubt = true;
        self.files.journal().append(seq, &changes).await?;
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
        for (seq, changes) in self.files.journal().after(self.last, IN_DOUBT_MAX).await? {
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
            found.extend(holds::by_id(&mut self.files.reader_of_ledger().await?, &others).await?);
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
                let spent = ledger::day_of_model(&mut self.files.reader_of_ledger().await?, &of).await?;
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
            found.extend(ledger::booked(&mut self.files.reader_of_ledger().await?, &others).await?);
        }
        Ok(found)
    }

    /// The users of a batch, from memory or the store.
    async fn payers(
        &self,
        catalogue: &Catalogue,
        users: &HashSet<UserId>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<UserId, Payer>, StoreError> {
        let fresh = |payer: &Arc<Payer>| payer.budgets(None, &payer.profile.standing(catalogue, now), now).is_some();
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
            let mut tx = self.files.begin_read_of_ledger().await?;
            payers.extend(load::payers(tx.connection()?, catalogue, &missing, now).await?);
            tx.commit().await?;
        }
        Ok(payers)
    }

    /// The accounts of a batch, from memory or the store.
    async fn pools(
        &self,
        catalogue: &Catalogue,
        accounts: &HashSet<AccountId>,
        payers: &HashMap<UserId, Payer>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<AccountId, Book>, StoreError> {
        let mut pools = HashMap::with_capacity(accounts.len());
        for account in accounts {
            let members = payers.values().filter(|payer| payer.profile.account.as_ref() == Some(account));
            let standings: Vec<_> = members.map(|payer| (payer, payer.profile.standing(catalogue, now))).collect();
            let fresh = |pool: &Arc<Book>| standings.iter().all(|(payer, standing)| payer.budgets(Some(pool), standing, now).is_some());
            let pool = match self.shown.accounts.get(account).filter(fresh) {
                Some(pool) => Book::clone(&pool),
                None => {
                    self.shown.pending.have_account(account).await?;
                    let billing: Vec<_> = standings.iter().map(|(_, standing)| standing.grant.billing).collect();
                    let mut tx = self.files.begin_read_of_ledger().await?;
                    let pool = load::account(tx.connection()?, account, &billing, now).await?;
                    tx.commit().await?;
                    pool
                }
            };
            pools.insert(account.clone(), pool);
        }
        Ok(pools)
    }

    #[expect(clippy::too_many_arguments, reason = "all that a batch names")]
    async fn load(
        &self,
        catalogue: &Catalogue,
        batch: &[Request],
        payers: HashMap<UserId, Payer>,
        accounts: &HashSet<AccountId>,
        holds: HashMap<String, Hold>,
        days: HashMap<DayOfModel, SpentIn>,
        now: DateTime<Utc>,
    ) -> Result<Ledger, StoreError> {
        let accounts = self.pools(catalogue, accounts, &payers, now).await?;
        let all = match &catalogue.global {
            None => Book::new(now, &SpentByDay::new(), Money::ZERO, []),
            Some(limits) => match self.shown.all.get(&()).filter(|all| all.budgets(limits, 1, None, now).is_some()) {
                Some(all) => Book::clone(&all),
                None => {
                    self.shown.pending.have_all().await?;
                    let mut tx = self.files.begin_read_of_ledger().await?;
                    let all = load::all(tx.connection()?, now).await?;
                    tx.commit().await?;
                    all
                }
            },
        };
        let booked = self.booked(batch).await?;
        let (entries, touched_holds, corrections, draws, alerts) = (Vec::new(), BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Ledger { booked, holds, payers, accounts, all, days, entries, touched_holds, corrections, draws, alerts })
    }
}
