//! Writes the ledger beside other nodes: locks whom a batch concerns, judges it by the same pure step, commits once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::{Instrument, error, info_span, warn};

use super::doubt::{Doubt, Wrote};
use super::found::{days, empty};
use super::{Kept, Known, Shared, alerts, distinct};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::{Ledger, Payer};
use crate::domain::money::Money;
use crate::domain::operation::Operation;
use crate::domain::user::{AccountId, UserId};
use crate::meter::batch::{BATCH_MAX, accounts, changed_users, entry_ids, hold_id, is_awaited, size, step, users};
use crate::meter::health::UnderWay;
use crate::meter::{Reply, Request, WriteError};
use crate::store::batch::{self, Before, UserVersion};
use crate::store::{StoreError, Tx, holds, ledger};

/// How often a store that did not confirm is tried again while nobody writes.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often a batch is done again because another node was in the way. Each time somebody else went on.
const CONFLICTS_MAX: u32 = 20;
/// How long a batch is tried again while there is no primary: a standby that is promoted at once is found within it. Then callers are told.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries while there is no primary.
const PAUSE: Duration = Duration::from_millis(50);
/// A database that takes longer for one try does not answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// For so long a user who only spends is told of his budgets by what paid for him when he was last looked at; what Stripe ends changes
/// nothing in his own row.
const PAYS_AS_BEFORE: TimeDelta = TimeDelta::minutes(1);

/// What is believed of the ids of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    /// Almost all are; where one is not, the unique key says so, and the batch is done again.
    New,
    /// The database is asked for each.
    Asked,
}

/// After an id that came again so many batches are looked up before they are done: who repeats one repeats more.
const LOOKS: u32 = 64;

/// Why a try failed.
enum Failed {
    /// Another node was in the way. The same again goes well.
    Conflict,
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        if error.is_conflict() { Self::Conflict } else { Self::Store(error) }
    }
}

pub(super) type Replies = Vec<Result<Reply, WriteError>>;

/// A batch that is done.
pub(super) struct Written {
    replies: Replies,
    pub(super) wrote: Wrote,
    /// Of these others have spent meanwhile, so whether anything is to be told of them has to be looked up.
    pub(super) unseen: Vec<UserId>,
    /// Something else may pay for these by now.
    unpaid: Vec<UserId>,
}

/// Writes until nobody can ask any more.
pub async fn run(shared: Arc<Shared>, waiting: Arc<Mutex<mpsc::Receiver<Request>>>) {
    let mut kept = Kept::default();
    loop {
        let mut turn = waiting.lock().await;
        match tokio::time::timeout(PROBE_EVERY, turn.recv()).await {
            Ok(None) => return,
            Err(_) => {
                drop(turn);
                shared.probe().await;
            }
            Ok(Some(first)) => {
                let mut records = size(&first.operation);
                let mut batch = vec![first];
                while records < BATCH_MAX {
                    let Ok(request) = turn.try_recv() else { break };
                    records += size(&request.operation);
                    batch.push(request);
                }
                shared.answer(&mut kept, batch, turn).await;
            }
        }
    }
}

impl Shared {
    /// While the store does not confirm, callers are told not to spend, so that nobody would write and find out that it is back.
    async fn probe(&self) {
        let now = self.now();
        if !self.health.is_writable(now) {
            let probed = tokio::time::timeout(TIMEOUT, self.store.probe(now)).await;
            self.health.set(matches!(probed, Ok(Ok(()))));
        }
    }

    async fn answer<T>(&self, kept: &mut Kept, batch: Vec<Request>, turn: T) {
        let under_way = is_awaited(&batch).then(|| self.health.begin(&self.clock.0));
        let (begun, records) = (Instant::now(), batch.iter().map(|request| size(&request.operation)).sum());
        let span = info_span!("batch", requests = batch.len(), records);
        let written = self.write(kept, &batch, turn, under_way).instrument(span).await;
        self.writes.wrote(records, begun.elapsed(), written.is_ok());
        match written {
            Ok(Written { replies, wrote, unseen: _, unpaid }) => {
                // A batch of repeats and refusals proves nothing.
                if wrote == Wrote::Usage {
                    self.health.set(true);
                } else {
                    self.probe().await;
                }
                for (request, reply) in batch.into_iter().zip(replies) {
                    // A caller that went away has no use for the answer.
                    let _ = request.answer.send(reply);
                }
                self.look_who_pays(kept, unpaid).await;
            }
            // One of them is something that the database does not take, and it is not known which. The others are not to suffer for it.
            Err(error) if error.is_refusal() && 1 < batch.len() => {
                error!(%error, requests = batch.len(), "a batch is done one by one: {error}");
                for request in batch {
                    Box::pin(self.answer(kept, vec![request], ())).await;
                }
            }
            Err(error) if error.is_refusal() => {
                error!(%error, "a request was refused by the database: {error}");
                batch.into_iter().for_each(|request| drop(request.answer.send(Err(WriteError::Unconfirmed))));
            }
            Err(error) => {
                // A note that nobody waits for proves nothing of what others may spend.
                if is_awaited(&batch) {
                    self.health.set(false);
                }
                error!(%error, requests = batch.len(), "a batch of {} requests was not confirmed: {error}", batch.len());
                for request in batch {
                    let _ = request.answer.send(Err(WriteError::Unconfirmed));
                }
            }
        }
    }

    /// Does a batch, and does it again where that is of use. Nothing is done twice: each operation has an id, and a commit of which nobody
    /// knows whether it happened is looked for first.
    ///
    /// `turn` is given on where others may wait for somebody: until then they gather, since one batch of many costs less than many of few.
    async fn write<T>(&self, kept: &mut Kept, batch: &[Request], turn: T, under_way: Option<UnderWay<'_>>) -> Result<Written, StoreError> {
        let mut turn = Some(turn);
        let catalogue = self.catalogue.load_full();
        let (begun, mut tries, mut conflicts, mut doubt) = (Instant::now(), 0_u32, 0, None);
        loop {
            // Corrections are few, and a batch that was tried may be there.
            let corrects = batch.iter().any(|request| matches!(request.operation, Operation::Correct(_)));
            let repeats = self.repeats.load(Ordering::Relaxed);
            // While nothing can be written, what was written before is answered all the same.
            let trusts = repeats == 0 && !corrects && self.health.is_writable(self.now());
            let ids = if tries == 0 && trusts { Ids::New } else { Ids::Asked };
            self.repeats.store(repeats.saturating_sub(1), Ordering::Relaxed);
            tries += 1;
            let attempt = async {
                if ids == Ids::New
                    && let Some(written) = self.add(kept, &catalogue, batch, &mut doubt).await?
                {
                    return Ok(written);
                }
                turn = None;
                self.attempt(kept, &catalogue, batch, ids, &mut doubt).await
            };
            let tried = tokio::time::timeout(TIMEOUT, attempt).await;
            let error = match tried {
                Ok(Ok(written)) => {
                    // It is done. What is looked at now waits for other nodes, and nobody should wait for that, nor take it for a store that hangs.
                    drop((turn.take(), under_way));
                    self.look(kept, &catalogue, &written).await;
                    return Ok(written);
                }
                Ok(Err(Failed::Conflict)) => {
                    conflicts += 1;
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    if CONFLICTS_MAX < conflicts {
                        doubt.iter().for_each(|doubt| self.doubt(&doubt.changes));
                        return Err(StoreError::torn());
                    }
                    continue;
                }
                Ok(Err(Failed::Store(error))) => error,
                Err(_) => StoreError::late(),
            };
            if !error.may_pass() || PATIENCE < begun.elapsed() {
                doubt.iter().for_each(|doubt| self.doubt(&doubt.changes));
                return Err(error);
            }
            if doubt.is_some() {
                warn!(%error, "a commit was not answered; whether it happened is looked for: {error}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Books a batch that is nothing but usage of users who are remembered, stand alone and have no open grants, without asking for anything before: it is only
    /// added. `None` where it is another batch.
    async fn add(
        &self,
        kept: &mut Kept,
        catalogue: &Catalogue,
        batch: &[Request],
        doubt: &mut Option<Doubt>,
    ) -> Result<Option<Written>, Failed> {
        let (now, generation) = (self.now(), self.cluster.generation());
        // What is priced by a tier is priced by the tier as it stands, and that has to be asked for.
        let is_plain = |request: &Request| match &request.operation {
            Operation::Record(usages) => usages.iter().all(|usage| usage.used.cost.is_some()),
            Operation::Hold(_)
            | Operation::Capture { .. }
            | Operation::Release { .. }
            | Operation::Extend { .. }
            | Operation::Correct(_)
            | Operation::Tell { .. } => false,
        };
        if !batch.iter().all(is_plain) {
            return Ok(None);
        }
        let whom = users(batch, &HashMap::new());
        let (mut payers, mut known) = (HashMap::with_capacity(whom.len()), HashMap::with_capacity(whom.len()));
        for user in whom {
            // Of a grant that may be drawn on it must be known what is left.
            let only_adds =
                |payer: &Payer| payer.profile.account.is_none() && payer.grants.as_ref().is_none_or(|grants| !grants.may_draw(now));
            let Some(found) = self.known(catalogue, &user, |_| true, generation, now).filter(|found| only_adds(&found.value)) else {
                return Ok(None);
            };
            known.insert(user.clone(), found.clone());
            payers.insert(user, Payer::clone(&found.value));
        }
        let all = Book::new(now, &SpentByDay::new(), Money::ZERO, []);
        let mut ledger = empty(payers, all);
        let replies: Replies = batch.iter().map(|request| step(&mut ledger, request, catalogue, now)).collect();
        let changes = ledger.changes(now);
        // What is refused or told is so by what the database has, not by what is remembered.
        if changes.is_empty() || !changes.alerts.is_empty() || replies.iter().any(Result::is_err) {
            return Ok(None);
        }
        let mut db = kept.take(self).await?;
        if kept.generation() != generation {
            // What is remembered is of another server.
            kept.give_back(db);
            return Ok(None);
        }
        let sent = doubt.insert(Doubt { changes, replies, found: HashSet::new() });
        let written = match batch::add(&mut db, &sent.changes, fastrand::u32(..)).await {
            Ok(written) => written,
            Err(error) if error.is_refusal() => {
                // It was not done: an id is known, another node was in the way, or a sum is at its end; the other way tells exactly.
                *doubt = None;
                kept.give_back(db);
                self.repeats.store(LOOKS, Ordering::Relaxed);
                return Err(Failed::Conflict);
            }
            Err(error) => return Err(error.into()),
        };
        let replies = doubt.take().map(|doubt| doubt.replies).unwrap_or_default();
        kept.give_back(db);
        let (mut unseen, mut unpaid) = (Vec::new(), Vec::new());
        for (user, mut payer) in ledger.payers {
            let Some((before, row)) = known.get(&user).zip(written.get(&user)) else { continue };
            if before.pays_as_of + PAYS_AS_BEFORE < now {
                unpaid.push(user.clone());
            }
            // Where nobody else wrote it meanwhile, what was remembered was right, and so is what has come of it.
            // Who pays for him was not asked for, so he is as old as he was.
            if before.version.row + 1 == row.version {
                payer.book.prune(now);
                let version = UserVersion::written(Some(&before.version), row.version);
                self.keep_user(&user, Known::paid_for(version, (before.as_of, before.pays_as_of), generation, Arc::new(payer)));
            } else if alerts::may_be_due(&payer, before.version.row, row, catalogue, now) {
                unseen.push(user);
            }
        }
        Ok(Some(Written { replies, wrote: Wrote::Usage, unseen, unpaid }))
    }

    async fn attempt(
        &self,
        kept: &mut Kept,
        catalogue: &Catalogue,
        batch: &[Request],
        ids: Ids,
        doubt: &mut Option<Doubt>,
    ) -> Result<Written, Failed> {
        let now = self.now();
        let mut tx = Tx::begin_on(kept.take(self).await?).await?;
        let generation = kept.generation();
        let db = tx.connection()?;
        let hold_ids: Vec<&str> = batch.iter().filter_map(|request| hold_id(&request.operation)).collect();
        let whom = distinct(users(batch, &holds::by_id(db, &hold_ids).await?));
        let versions = batch::lock_users(db, &whom).await?;
        // Whoever changes a hold has locked its user, so from here on they stand as they are.
        let held = holds::by_id(db, &hold_ids).await?;
        if users(batch, &held).iter().any(|user| whom.binary_search(user).is_err()) {
            return Err(Failed::Conflict);
        }
        let before = Before { users: &versions.keys().cloned().collect(), holds: &held.keys().cloned().collect() };
        let needs_all = |request: &Request| match &request.operation {
            // One that is extended may have been counted as expired by another batch that admits.
            Operation::Hold(_) | Operation::Extend { .. } => true,
            Operation::Tell { refused, .. } => refused.is_of_all(),
            Operation::Record(_) | Operation::Capture { .. } | Operation::Release { .. } | Operation::Correct(_) => false,
        };
        let admits = batch.iter().any(needs_all);
        let (payers, known) = self.payers(db, catalogue, &whom, &versions, generation, now).await?;
        let days = days(db, batch).await?;
        let mut whose: Vec<AccountId> = accounts(&payers, &held, &days).into_iter().collect();
        whose.sort_unstable();
        let (pools, pool_versions) = self.locked_pools(db, catalogue, &whose, &payers, generation, now).await?;
        let all = self.all_for(db, catalogue, admits, &held, now).await?;
        let booked = match ids {
            Ids::New => HashMap::new(),
            Ids::Asked => {
                let ids: Vec<&str> = batch.iter().flat_map(|request| entry_ids(&request.operation)).map(|(_, id)| id).collect();
                ledger::booked(db, &ids).await?
            }
        };
        let mut ledger = Ledger { booked, holds: held, accounts: pools, days, ..empty(payers, all) };
        if doubt.as_ref().is_some_and(|doubt| doubt.is_done(&ledger)) {
            // Where this is not answered either, it is still in doubt, and looked for again.
            kept.give_back(tx.commit_and_keep().await?);
            doubt.iter().for_each(|doubt| self.doubt(&doubt.changes));
            let (replies, wrote) = doubt.take().map_or((Vec::new(), Wrote::Nothing), |doubt| (doubt.replies, Wrote::of(&doubt.changes)));
            return Ok(Written { replies, wrote, unseen: Vec::new(), unpaid: Vec::new() });
        }
        // What was not there will not be: its locks are ours now.
        *doubt = None;
        // What expired while its locks were waited for has expired: whoever had them may have given its amount to others.
        let locked_at = self.now();
        let step = |request: &Request| {
            let at = if let Operation::Extend { .. } = request.operation { locked_at } else { now };
            let reply = step(&mut ledger, request, catalogue, at);
            if admits {
                ledger.tell_of_all(catalogue, now);
            }
            reply
        };
        let replies: Replies = batch.iter().map(step).collect();
        if ids == Ids::New && replies.iter().any(Result::is_err) {
            // What is refused may have been booked before, and then it is answered as it was.
            self.repeats.store(LOOKS, Ordering::Relaxed);
            return Err(Failed::Conflict);
        }
        let changes = ledger.changes(now);
        if changes.is_empty() {
            kept.give_back(tx.commit_and_keep().await?);
            return Ok(Written { replies, wrote: Wrote::Nothing, unseen: Vec::new(), unpaid: Vec::new() });
        }
        let db = tx.connection()?;
        let written = batch::write(db, &changes, &before, fastrand::u32(..)).await?;
        self.news.in_batch(db, &changes).await?;
        let changed = changed_users(&ledger);
        let touched: HashSet<AccountId> = changes.accounts().cloned().collect();
        *doubt = Some(Doubt { changes, replies, found: before.holds.clone() });
        kept.give_back(tx.commit_and_keep().await?);
        let (replies, wrote) = doubt.take().map_or((Vec::new(), Wrote::Nothing), |doubt| (doubt.replies, Wrote::of(&doubt.changes)));
        for (user, mut payer) in ledger.payers.into_iter().filter(|(user, _)| changed.contains(user)) {
            payer.book.prune(now);
            let before = known.get(&user);
            // A row that is new has no version yet; one of whom something was only told has the one that it had.
            let row = written.get(&user).map(|row| row.version).or(before.map(|(version, _)| version.row)).unwrap_or_default();
            let as_of = before.map_or(now, |(_, as_of)| *as_of);
            let version = UserVersion::written(before.map(|(version, _)| version), row);
            self.keep_user(&user, Known::new(version, as_of, generation, Arc::new(payer)));
        }
        self.keep_told(&ledger.all, now);
        for (account, mut pool) in ledger.accounts {
            pool.prune(now);
            if let Some(version) = pool_versions.get(&account) {
                let version = version + i64::from(touched.contains(&account));
                self.keep_account(&account, Known::new(version, now, generation, Arc::new(pool)));
            }
        }
        Ok(Written { replies, wrote, unseen: Vec::new(), unpaid: Vec::new() })
    }
}
