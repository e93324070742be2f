//! Writes the ledger beside other nodes: locks whom a batch concerns, judges it by the same pure step, commits once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Kept, Shared, distinct, members};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::changes::Changes;
use crate::domain::ledger::{DayOfModel, Ledger, Payer, SpentIn, day};
use crate::domain::money::Money;
use crate::domain::operation::{EntryKind, Hold, Operation};
use crate::domain::user::{AccountId, UserId};
use crate::meter::batch::{BATCH_MAX, accounts, changed_users, entry_ids, hold_id, size, step, users};
use crate::meter::{Reply, Request, WriteError, load};
use crate::store::batch::{self, Before, RowVersion, UserVersion};
use crate::store::{Connection, StoreError, Tx, holds, ledger};

/// How often a store that did not confirm is tried again while nobody writes.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often a batch is done again because another node was in the way. Each time somebody else went on.
const CONFLICTS_MAX: u32 = 20;
/// How long a batch is tried again while there is no primary: as long as one takes to be promoted.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two tries while there is no primary.
const PAUSE: Duration = Duration::from_millis(50);
/// A database that takes longer for one try does not answer.
const TIMEOUT: Duration = Duration::from_secs(6);

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

type Replies = Vec<Result<Reply, WriteError>>;

/// A batch that is done.
struct Written {
    replies: Replies,
    /// Whether any of it changed anything.
    anything: bool,
}

/// A batch whose commit was sent and not answered.
struct Doubt {
    changes: Changes,
    replies: Replies,
}

impl Doubt {
    /// Whether it was committed, by what is there now. A batch is there as a whole or not at all, so one of its rows tells. One that was
    /// changed since tells nothing; then each operation finds by its id that it was done.
    fn is_done(&self, ledger: &Ledger) -> bool {
        let booked = self.changes.entries.iter().any(|entry| {
            let known = ledger.booked.get(&(entry.kind, entry.id.clone()));
            entry.kind != EntryKind::Capture && known == Some(&entry.booked)
        });
        booked || self.changes.holds.iter().any(|hold| ledger.holds.get(&*hold.id) == Some(hold))
    }
}

/// Writes until nobody can ask any more.
pub async fn run(shared: Arc<Shared>, waiting: Arc<Mutex<mpsc::Receiver<Request>>>) {
    let mut kept = Kept::default();
    loop {
        let batch = {
            let mut waiting = waiting.lock().await;
            match tokio::time::timeout(PROBE_EVERY, waiting.recv()).await {
                Ok(None) => return,
                Err(_) => None,
                Ok(Some(first)) => {
                    let mut records = size(&first.operation);
                    let mut batch = vec![first];
                    while records < BATCH_MAX {
                        let Ok(request) = waiting.try_recv() else { break };
                        records += size(&request.operation);
                        batch.push(request);
                    }
                    Some(batch)
                }
            }
        };
        match batch {
            Some(batch) => shared.answer(&mut kept, batch).await,
            None => shared.probe().await,
        }
    }
}

impl Shared {
    /// While the store does not confirm, callers are told not to spend, so that nobody would write and find out that it is back.
    async fn probe(&self) {
        let now = self.now();
        if !self.health.is_writable(now) {
            let works = self.store.probe(now).await.is_ok();
            self.health.set(works);
        }
    }

    async fn answer(&self, kept: &mut Kept, batch: Vec<Request>) {
        self.health.begin(self.now());
        let written = self.write(kept, &batch).await;
        self.health.end();
        match written {
            Ok(Written { replies, anything }) => {
                // A batch of repeats and refusals wrote nothing, and proves nothing.
                if anything {
                    self.health.set(true);
                } else {
                    self.probe().await;
                }
                for (request, reply) in batch.into_iter().zip(replies) {
                    // A caller that went away has no use for the answer.
                    let _ = request.answer.send(reply);
                }
            }
            Err(error) => {
                self.health.set(false);
                error!(%error, requests = batch.len(), "a batch of {} requests was not confirmed: {error}", batch.len());
                for request in batch {
                    let _ = request.answer.send(Err(WriteError::Unconfirmed));
                }
            }
        }
    }

    /// Does a batch, and does it again where that is of use. Nothing is done twice: each operation has an id, and a commit of which nobody
    /// knows whether it happened is looked for first.
    async fn write(&self, kept: &mut Kept, batch: &[Request]) -> Result<Written, StoreError> {
        let (begun, mut conflicts, mut doubt) = (Instant::now(), 0, None);
        loop {
            let tried = tokio::time::timeout(TIMEOUT, self.attempt(kept, batch, &mut doubt)).await;
            let error = match tried {
                Ok(Ok(written)) => return Ok(written),
                Ok(Err(Failed::Conflict)) => {
                    conflicts += 1;
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    if CONFLICTS_MAX < conflicts {
                        return Err(StoreError::torn());
                    }
                    continue;
                }
                Ok(Err(Failed::Store(error))) => error,
                Err(_) => StoreError::late(),
            };
            if !error.may_pass() || PATIENCE < begun.elapsed() {
                return Err(error);
            }
            if doubt.is_some() {
                warn!(%error, "a commit was not answered; whether it happened is looked for: {error}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, kept: &mut Kept, batch: &[Request], doubt: &mut Option<Doubt>) -> Result<Written, Failed> {
        let now = self.now();
        let mut tx = Tx::begin_on(kept.take(self).await?).await?;
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
        let payers = self.payers(db, &whom, &versions, now).await?;
        let days = days(db, batch).await?;
        let mut whose: Vec<AccountId> = accounts(&payers, &held, &days).into_iter().collect();
        whose.sort_unstable();
        let (pools, pool_versions) = self.locked_pools(db, &whose, &payers, now).await?;
        let all = self.all_for(db, batch, &held, now).await?;
        let ids: Vec<&str> = batch.iter().flat_map(|request| entry_ids(&request.operation)).map(|(_, id)| id).collect();
        let booked = ledger::booked(db, &ids).await?;
        let (entries, touched_holds, corrections) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut ledger = Ledger { booked, holds: held, payers, accounts: pools, all, days, entries, touched_holds, corrections };
        if let Some(doubt) = doubt.take_if(|doubt| doubt.is_done(&ledger)) {
            kept.give_back(self, tx.commit_and_keep().await?);
            return Ok(Written { replies: doubt.replies, anything: true });
        }
        // What was not there will not be: its locks are ours now.
        *doubt = None;
        let replies = batch.iter().map(|request| step(&mut ledger, request, &self.catalogue, now)).collect();
        let changes = ledger.changes(now);
        if changes.is_empty() {
            kept.give_back(self, tx.commit_and_keep().await?);
            return Ok(Written { replies, anything: false });
        }
        let db = tx.connection()?;
        let version = batch::write(db, &changes, &before, fastrand::u32(..)).await?;
        self.news.in_batch(db, &changes).await?;
        let Doubt { replies, changes } = doubt.insert(Doubt { changes, replies });
        let changed = changed_users(&ledger);
        let touched: HashSet<AccountId> = changes.accounts().cloned().collect();
        let replies = std::mem::take(replies);
        let connection = match tx.commit_and_keep().await {
            Ok(connection) => connection,
            Err(error) => {
                if let Some(doubt) = doubt {
                    doubt.replies = replies;
                }
                return Err(error.into());
            }
        };
        *doubt = None;
        kept.give_back(self, connection);
        for (user, mut payer) in ledger.payers.into_iter().filter(|(user, _)| changed.contains(user)) {
            payer.book.prune(now);
            self.keep_user(&user, UserVersion::written(versions.get(&user), version), now, Arc::new(payer));
        }
        for (account, mut pool) in ledger.accounts {
            pool.prune(now);
            let version = if touched.contains(&account) { Some(version) } else { pool_versions.get(&account).copied() };
            if let Some(version) = version {
                self.keep_account(&account, version, now, Arc::new(pool));
            }
        }
        Ok(Written { replies, anything: true })
    }

    /// The users of a batch, from memory where it has the version that is locked.
    async fn payers(
        &self,
        db: &mut Connection,
        users: &[UserId],
        versions: &HashMap<UserId, UserVersion>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<UserId, Payer>, StoreError> {
        let mut payers = HashMap::with_capacity(users.len());
        let mut missing = Vec::new();
        for user in users {
            match versions.get(user) {
                None => drop(payers.insert(user.clone(), self.unknown(now))),
                Some(version) => match self.known(user, *version, now) {
                    Some(payer) => drop(payers.insert(user.clone(), Payer::clone(&payer))),
                    None => missing.push(user.clone()),
                },
            }
        }
        if !missing.is_empty() {
            payers.extend(load::payers(db, &self.catalogue, &missing, now).await?);
        }
        Ok(payers)
    }

    async fn locked_pools(
        &self,
        db: &mut Connection,
        accounts: &[AccountId],
        payers: &HashMap<UserId, Payer>,
        now: DateTime<Utc>,
    ) -> Result<(HashMap<AccountId, Book>, HashMap<AccountId, RowVersion>), StoreError> {
        if accounts.is_empty() {
            return Ok((HashMap::new(), HashMap::new()));
        }
        let versions = batch::lock_accounts(db, accounts).await?;
        let members = members(payers.values());
        let mut pools = HashMap::with_capacity(accounts.len());
        for account in accounts {
            let members = members.get(account).map(Vec::as_slice).unwrap_or_default();
            let known = versions.get(account).and_then(|version| self.known_account(account, *version, members, now));
            let pool = match known {
                Some(pool) => Book::clone(&pool),
                None => {
                    let billing: Vec<_> = members.iter().map(|payer| payer.profile.standing(&self.catalogue, now).grant.billing).collect();
                    load::account(db, account, &billing, now).await?
                }
            };
            pools.insert(account.clone(), pool);
        }
        Ok((pools, versions))
    }

    /// What all have spent, where the batch may be refused by it: then no other one admits anything until it is committed.
    async fn all_for(
        &self,
        db: &mut Connection,
        batch: &[Request],
        held: &HashMap<String, Hold>,
        now: DateTime<Utc>,
    ) -> Result<Book, StoreError> {
        let admits = batch.iter().any(|request| matches!(request.operation, Operation::Hold(_)));
        if self.catalogue.global.is_none() || !admits {
            return Ok(Book::new(now, &SpentByDay::new(), Money::ZERO, []));
        }
        batch::lock_all(db).await?;
        let open = held.values().filter(|hold| hold.is_open(now)).map(Hold::promise).collect();
        self.read_all(db, open, now).await
    }
}

/// The sums that a batch's corrections would lower.
async fn days(db: &mut Connection, batch: &[Request]) -> Result<HashMap<DayOfModel, SpentIn>, StoreError> {
    let mut days = HashMap::new();
    for request in batch {
        if let Operation::Correct(correction) = &request.operation {
            let of = (correction.user_id.clone(), day(correction.time), correction.model.clone().unwrap_or_default());
            let spent = ledger::day_of_model(db, &of).await?;
            days.insert(of, spent);
        }
    }
    Ok(days)
}
