//! Gathers concurrent operations into one durable commit, and keeps what checks read.

mod alerts;
mod batch;
mod health;
mod load;
mod looking;
mod memory;
mod pending;
mod retention;
mod seen;
mod settler;
mod shared;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::current::Current;
use crate::domain::catalogue::Catalogue;
use crate::domain::decide::Budget;
use crate::domain::ledger::Payer;
use crate::domain::operation::{Hold, Judged, Operation, Outcome, Receipt, Refusal, Usage};
use crate::domain::user::{AccountId, Standing, UserId};
use crate::store::{Backend, Connection, Store, StoreError, holds, ledger};
use crate::telemetry::Writes;
use health::Health;
use pending::Pending;
use seen::Seen;
use shared::Reading;
pub use shared::Settings;
use writer::{Shown, Writer};

/// Reads the clock. `main` makes the real one, tests one that they set.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Writes the answer to a hold: what was admitted, if anything, and what it was judged by. It is kept, to be answered again.
pub type Present = Box<dyn Fn(Option<&Hold>, &Standing<'_>, &Judged) -> String + Send + Sync>;

/// Requests that wait for the writer; beyond, a caller is told to come back rather than to wait.
const QUEUE_MAX: usize = 1024;
/// How long a caller waits for his answer. The write may still happen; the id settles it when he asks again.
const DEADLINE: Duration = Duration::from_secs(10);

/// A user as the catalogue judges him at one moment.
#[derive(Clone, Debug)]
pub struct View<'c> {
    pub payer: Arc<Payer>,
    pub standing: Standing<'c>,
    /// Those of his tier and his own caps, then those of all users together.
    pub budgets: Vec<Budget>,
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// More is waiting than can be written soon. Nothing of it was done.
    #[error("too many writes are waiting")]
    Busy,
    /// The store failed, or did not answer in time: it may be done or not, and the id settles it.
    #[error("the store did not confirm the write")]
    Unconfirmed,
}

/// What an operation came to.
#[derive(Debug)]
pub struct Reply {
    pub outcome: Outcome,
    /// For a hold, what `Present` wrote, now or the first time.
    pub answer: Option<String>,
}

struct Request {
    operation: Operation,
    present: Option<Present>,
    answer: oneshot::Sender<Result<Reply, WriteError>>,
}

/// The counters and holds of all users.
pub struct Meter {
    store: Store,
    /// What this process alone writes is read from memory; what others write too is asked for.
    kept: Backend<Shown, Reading>,
    queue: mpsc::Sender<Request>,
    /// Look-ups of checks under way, where this process alone writes.
    lookups: Arc<Semaphore>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// Starts the writer. It ends, after what is queued, when the meter is dropped.
    pub async fn start(store: Store, catalogue: Current, clock: Clock, settings: Settings) -> Result<(Self, JoinHandle<()>), StoreError> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let files = match store.backend() {
            Backend::Sqlite(files) => files.clone(),
            Backend::Postgres(cluster) => {
                let (reading, ended) = shared::start(store.clone(), cluster.clone(), catalogue, clock, settings, waiting).await?;
                return Ok((Self { store, kept: Backend::Postgres(reading), queue, lookups: looking::places() }, ended));
            }
        };
        let last = files.last_batch().await?;
        let shown = Shown {
            users: Arc::default(),
            accounts: Arc::default(),
            all: Arc::default(),
            health: Arc::default(),
            pending: Arc::new(Pending::new(last)),
            writes: Arc::default(),
        };
        let seen = Arc::new(Seen::new(ledger::rows_at_most(&mut store.reader().await?).await?));
        let (shown_, keep) = (shown.clone(), settings.keep);
        let writer = Writer { store: store.clone(), files, catalogue, shown: shown_, clock, keep, seen, last, in_doubt: false };
        let writer = tokio::spawn(writer.run(waiting));
        Ok((Self { store, kept: Backend::Sqlite(shown), queue, lookups: looking::places() }, writer))
    }

    /// A connection that sees everything that was acknowledged of these users.
    pub async fn reader_of(&self, users: &[UserId]) -> Result<Connection, StoreError> {
        if let Backend::Sqlite(shown) = &self.kept {
            shown.pending.have(users).await?;
        }
        self.store.reader().await
    }

    /// A connection that sees everything that was acknowledged of this account.
    pub async fn reader_of_account(&self, account: &AccountId) -> Result<Connection, StoreError> {
        if let Backend::Sqlite(shown) = &self.kept {
            shown.pending.have_account(account).await?;
        }
        self.store.reader().await
    }

    /// A connection that sees everything that was acknowledged.
    pub async fn reader(&self) -> Result<Connection, StoreError> {
        if let Backend::Sqlite(shown) = &self.kept {
            shown.pending.have_all().await?;
        }
        self.store.reader().await
    }

    /// A hold as it stands.
    pub async fn hold(&self, id: &str) -> Result<Option<Hold>, StoreError> {
        if let Backend::Sqlite(shown) = &self.kept
            // What is pending is asked first: it may reach the tables meanwhile.
            && let Some(hold) = shown.pending.hold(id)
        {
            return Ok(Some(hold));
        }
        Ok(holds::by_id(&mut self.store.reader().await?, &[id]).await?.remove(id))
    }

    /// Books usage, all of it or nothing. `Ok` means that it is on the disk.
    pub async fn record(&self, usages: Vec<Usage>) -> Result<Vec<Receipt>, WriteError> {
        match self.submit(Operation::Record(usages), None).await?.outcome {
            Outcome::Recorded(receipts) => Ok(receipts),
            Outcome::Held { .. }
            | Outcome::NotHeld { .. }
            | Outcome::Ended { .. }
            | Outcome::Extended(_)
            | Outcome::Corrected(_)
            | Outcome::Told => Err(WriteError::Unconfirmed),
        }
    }

    /// Does one operation, all of it or nothing. `Ok` means that it is on the disk.
    pub async fn submit(&self, operation: Operation, present: Option<Present>) -> Result<Reply, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Request { operation, present, answer }).map_err(|error| match error {
            TrySendError::Full(_) => {
                self.writes().busy.add();
                WriteError::Busy
            }
            TrySendError::Closed(_) => self.unconfirmed(),
        })?;
        match tokio::time::timeout(DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(self.unconfirmed()),
        }
    }

    /// The store hangs, or the writer is gone: until a write is confirmed, what is spent is not counted.
    fn unconfirmed(&self) -> WriteError {
        self.health().set(false);
        WriteError::Unconfirmed
    }

    fn health(&self) -> &Health {
        match &self.kept {
            Backend::Sqlite(shown) => &shown.health,
            Backend::Postgres(reading) => &reading.shared.health,
        }
    }

    /// Forgets what is held of a user whose record was changed elsewhere: the next check reads it again.
    pub fn forget(&self, user: &UserId) {
        match &self.kept {
            Backend::Sqlite(shown) => shown.users.forget(user),
            Backend::Postgres(reading) => reading.shared.forget(user),
        }
    }

    /// Forgets everybody: something changed, and nobody knows what.
    pub fn forget_all(&self) {
        match &self.kept {
            Backend::Sqlite(shown) => shown.users.forget_all(),
            Backend::Postgres(reading) => reading.shared.forget_all(),
        }
    }

    /// What the writer counts.
    pub fn writes(&self) -> &Writes {
        match &self.kept {
            Backend::Sqlite(shown) => &shown.writes,
            Backend::Postgres(reading) => &reading.shared.writes,
        }
    }

    /// How many writes wait for the writer, and how many may.
    pub fn queue(&self) -> (usize, usize) {
        let bound = self.queue.max_capacity();
        (bound - self.queue.capacity(), bound)
    }

    /// How often what is durable could not be brought into the tables.
    pub fn settle_failures(&self) -> u64 {
        match &self.kept {
            Backend::Sqlite(shown) => shown.pending.failures(),
            Backend::Postgres(_) => 0,
        }
    }

    /// Batches that were done again, since another node was in the way.
    pub fn retries(&self) -> u64 {
        match &self.kept {
            Backend::Sqlite(_) => 0,
            Backend::Postgres(reading) => reading.shared.retries(),
        }
    }

    /// Whether the last write was confirmed, and none hangs. While it is not so, what is spent is not counted.
    pub fn is_writable(&self, now: DateTime<Utc>) -> bool {
        self.health().is_writable(now)
    }

    /// One user at `now`.
    pub async fn view<'c>(&self, catalogue: &'c Arc<Catalogue>, user: &UserId, now: DateTime<Utc>) -> Result<View<'c>, StoreError> {
        match &self.kept {
            Backend::Sqlite(shown) => self.own_view(shown, catalogue, user, now).await,
            Backend::Postgres(reading) => {
                let seen = reading.see(catalogue, std::slice::from_ref(user), now, DEADLINE).await?.pop();
                judge_seen(catalogue, seen.ok_or_else(StoreError::torn)?)
            }
        }
    }

    /// Many users at `now`, in the order asked.
    pub async fn views<'c>(
        &self,
        catalogue: &'c Arc<Catalogue>,
        users: &[UserId],
        now: DateTime<Utc>,
    ) -> Result<Vec<View<'c>>, StoreError> {
        match &self.kept {
            Backend::Sqlite(shown) => self.own_views(shown, catalogue, users, now).await,
            Backend::Postgres(reading) => {
                reading.see(catalogue, users, now, DEADLINE).await?.into_iter().map(|seen| judge_seen(catalogue, seen)).collect()
            }
        }
    }

    async fn own_view<'c>(
        &self,
        shown: &Shown,
        catalogue: &'c Catalogue,
        user: &UserId,
        now: DateTime<Utc>,
    ) -> Result<View<'c>, StoreError> {
        let all = self.budgets_of_all(shown, catalogue, now).await?;
        if let Some(payer) = shown.users.get(user)
            && let Some(view) = self.judge(shown, catalogue, payer, &all, now).await?
        {
            return Ok(view);
        }
        let payer = self.load(shown, catalogue, std::slice::from_ref(user), now).await?.remove(user).ok_or_else(StoreError::torn)?;
        self.judge(shown, catalogue, payer, &all, now).await?.ok_or_else(StoreError::torn)
    }

    async fn own_views<'c>(
        &self,
        shown: &Shown,
        catalogue: &'c Catalogue,
        users: &[UserId],
        now: DateTime<Utc>,
    ) -> Result<Vec<View<'c>>, StoreError> {
        let all = self.budgets_of_all(shown, catalogue, now).await?;
        let mut views: Vec<Option<View<'c>>> = Vec::with_capacity(users.len());
        for user in users {
            views.push(match shown.users.get(user) {
                Some(payer) => self.judge(shown, catalogue, payer, &all, now).await?,
                None => None,
            });
        }
        let missing = users.iter().zip(&views).filter(|(_, view)| view.is_none());
        let missing: Vec<UserId> = missing.map(|(user, _)| user.clone()).collect();
        if !missing.is_empty() {
            let loaded = self.load(shown, catalogue, &missing, now).await?;
            for (user, view) in users.iter().zip(&mut views).filter(|(_, view)| view.is_none()) {
                let payer = loaded.get(user).ok_or_else(StoreError::torn)?;
                *view = self.judge(shown, catalogue, payer.clone(), &all, now).await?;
            }
        }
        views.into_iter().collect::<Option<Vec<_>>>().ok_or_else(StoreError::torn)
    }

    /// `None` where a window has opened that `payer` does not count.
    async fn judge<'c>(
        &self,
        shown: &Shown,
        catalogue: &'c Catalogue,
        payer: Arc<Payer>,
        all: &[Budget],
        now: DateTime<Utc>,
    ) -> Result<Option<View<'c>>, StoreError> {
        let standing = payer.profile.standing(catalogue, now);
        let budgets = match payer.pool(&standing) {
            None => payer.budgets(None, &standing, now),
            Some(_) if !payer.counts_caps(&standing, now) => None,
            Some(account) => Some(self.budgets_of_account(shown, account, &payer, &standing, now).await?),
        };
        let Some(mut budgets) = budgets else { return Ok(None) };
        budgets.extend_from_slice(all);
        Ok(Some(View { payer, standing, budgets }))
    }

    async fn budgets_of_account(
        &self,
        shown: &Shown,
        account: &AccountId,
        payer: &Payer,
        standing: &Standing<'_>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Budget>, StoreError> {
        if let Some(budgets) = shown.accounts.get(account).and_then(|pool| payer.budgets(Some(&pool), standing, now)) {
            return Ok(budgets);
        }
        let loading = shown.accounts.begin_load(vec![account.clone()]);
        shown.pending.have_account(account).await?;
        let mut tx = self.store.begin_read().await?;
        let pool = Arc::new(load::account(tx.connection()?, account, &[standing.grant.billing], now).await?);
        tx.commit().await?;
        loading.keep(account, &pool);
        payer.budgets(Some(&pool), standing, now).ok_or_else(StoreError::torn)
    }

    /// Reads users from the store, and keeps those that exist: asking for others leaves no trace.
    async fn load(
        &self,
        shown: &Shown,
        catalogue: &Catalogue,
        users: &[UserId],
        now: DateTime<Utc>,
    ) -> Result<std::collections::HashMap<UserId, Arc<Payer>>, StoreError> {
        let loading = shown.users.begin_load(users.to_vec());
        shown.pending.have(users).await?;
        // One moment for all statements: what is captured between two of them would be neither spent nor held.
        let mut tx = self.store.begin_read().await?;
        let loaded = load::payers(tx.connection()?, catalogue, users, now).await?;
        tx.commit().await?;
        let keep = |(user, payer): (UserId, Payer)| {
            let payer = Arc::new(payer);
            if payer.exists {
                loading.keep(&user, &payer);
            }
            (user, payer)
        };
        Ok(loaded.into_iter().map(keep).collect())
    }

    async fn budgets_of_all(&self, shown: &Shown, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Vec<Budget>, StoreError> {
        let Some(limits) = &catalogue.global else { return Ok(Vec::new()) };
        if let Some(budgets) = shown.all.get(&()).and_then(|all| all.budgets(limits, 1, None, now)) {
            return Ok(budgets);
        }
        let loading = shown.all.begin_load(vec![()]);
        shown.pending.have_all().await?;
        let mut tx = self.store.begin_read().await?;
        let all = Arc::new(load::all(tx.connection()?, now).await?);
        tx.commit().await?;
        loading.keep(&(), &all);
        all.budgets(limits, 1, None, now).ok_or_else(StoreError::torn)
    }
}

/// What was read by this catalogue counts every window that it needs.
fn judge_seen(catalogue: &Catalogue, seen: shared::Seen) -> Result<View<'_>, StoreError> {
    let shared::Seen { payer, pool, all, now } = seen;
    let standing = payer.profile.standing(catalogue, now);
    let mut budgets = payer.budgets(pool.as_deref(), &standing, now).ok_or_else(StoreError::torn)?;
    if let Some((limits, all)) = catalogue.global.as_ref().zip(all) {
        budgets.extend(all.budgets(limits, 1, None, now).ok_or_else(StoreError::torn)?);
    }
    Ok(View { payer, standing, budgets })
}
