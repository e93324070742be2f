//! The ledger of a database that many nodes write. What memory holds is only believed at the version that the database names: that
//! costs one question, which all checks that wait share; and where `MAX_STALENESS_MS` allows it, none for as long.

mod alerts;
mod doubt;
mod found;
mod news;
mod reader;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::health::Health;
use super::memory::Memory;
use super::{Clock, Request, retention};
use crate::current::Current;
use crate::domain::book::{Book, OpenHold, SpentByDay, days_of_calendar};
use crate::domain::catalogue::Catalogue;
use crate::domain::changes::Changes;
use crate::domain::ledger::Payer;
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::user::{AccountId, Profile, UserId};
use crate::store::batch::{self, RowVersion, UserVersion};
use crate::store::postgres::Cluster;
use crate::store::{Connection, Store, StoreError};
use crate::telemetry::Writes;
use alerts::ToldOfAll;
use news::News;

/// While one batch waits for its commit the next one is gathered and judged; more make the batches smaller.
const WRITERS: usize = 2;
/// While one looks something up the other answers those whose users are known.
const READERS: usize = 2;
/// Checks that wait for a reader; beyond, the store counts as one that does not answer.
const ASKS_MAX: usize = 4096;
/// When a sum stops being held: never, since it is read anew before it is used.
const LONG: TimeDelta = TimeDelta::days(365);

/// Something as the database had it.
#[derive(Clone, Debug)]
struct Known<V, T> {
    version: V,
    /// The database was asked no earlier.
    as_of: DateTime<Utc>,
    /// Who or what pays was asked for no earlier; a row says nothing of that.
    pays_as_of: DateTime<Utc>,
    /// Which server said so: another one may have other rows at the same version.
    generation: u64,
    value: Arc<T>,
    /// Whether it is about to be asked again.
    is_awaited: Arc<AtomicBool>,
}

impl<V, T> Known<V, T> {
    fn new(version: V, as_of: DateTime<Utc>, generation: u64, value: Arc<T>) -> Arc<Self> {
        Self::paid_for(version, (as_of, as_of), generation, value)
    }

    /// Of one moment, and of another one for who pays.
    fn paid_for(version: V, (as_of, pays_as_of): (DateTime<Utc>, DateTime<Utc>), generation: u64, value: Arc<T>) -> Arc<Self> {
        Arc::new(Self { version, as_of, pays_as_of, generation, value, is_awaited: Arc::default() })
    }
}

impl<V: Copy, T> Known<V, T> {
    /// The same, as fresh as `other`, which the same server said; else `other`.
    fn as_fresh_as(&self, other: &Arc<Self>) -> Arc<Self> {
        if self.generation != other.generation {
            return other.clone();
        }
        let of = (self.as_of.max(other.as_of), self.pays_as_of.max(other.pays_as_of));
        Self::paid_for(self.version, of, self.generation, self.value.clone())
    }
}

type KnownUsers = Memory<UserId, Known<UserVersion, Payer>>;
type KnownAccounts = Memory<AccountId, Known<RowVersion, Book>>;

/// All users together, as the database had them.
#[derive(Clone, Debug)]
struct KnownOfAll {
    as_of: DateTime<Utc>,
    /// By which it was read: another one may have a budget of another period.
    catalogue: Arc<Catalogue>,
    book: Arc<Book>,
}

/// What a node knows.
#[derive(Debug)]
pub struct Shared {
    store: Store,
    cluster: Cluster,
    catalogue: Current,
    clock: Clock_,
    users: KnownUsers,
    accounts: KnownAccounts,
    all: Mutex<Option<KnownOfAll>>,
    /// What is known to be told of all together.
    told_of_all: Mutex<ToldOfAll>,
    pub health: Health,
    pub writes: Writes,
    max_staleness: TimeDelta,
    /// Batches that were done again, since another node was in the way.
    retries: AtomicU64,
    /// For how many batches ids are looked up before.
    repeats: AtomicU32,
    news: News,
}

/// A clock that shows nothing.
#[derive(Clone)]
struct Clock_(Clock);

impl std::fmt::Debug for Clock_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// A user as he stands, with what his account and all together have spent where that counts.
#[derive(Clone, Debug)]
pub struct Seen {
    pub payer: Arc<Payer>,
    pub pool: Option<Arc<Book>>,
    pub all: Option<Arc<Book>>,
    /// The moment at which he is to be judged.
    pub now: DateTime<Utc>,
}

/// Somebody who waits to see users.
struct Ask {
    users: Vec<UserId>,
    /// By which they are to be judged.
    catalogue: Arc<Catalogue>,
    answer: oneshot::Sender<Result<Vec<Seen>, Arc<StoreError>>>,
}

/// How checks ask.
#[derive(Debug)]
pub struct Reading {
    pub shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    /// Who will be too old in a moment.
    ahead: mpsc::Sender<UserId>,
}

/// What a node is told to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How old what a check is answered by may be.
    pub max_staleness: TimeDelta,
    /// How long rows are kept; `None` is for ever.
    pub keep: Option<TimeDelta>,
}

/// Starts the tasks that read and write. They end when the reading is dropped and nobody can write any more.
pub async fn start(
    store: Store,
    cluster: Cluster,
    catalogue: Current,
    clock: Clock,
    settings: Settings,
    waiting: mpsc::Receiver<Request>,
) -> Result<(Reading, JoinHandle<()>), StoreError> {
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let (news, telling) = News::new(settings.max_staleness);
    let shared = Arc::new(Shared {
        store: store.clone(),
        cluster,
        catalogue,
        clock: Clock_(clock.clone()),
        users: Memory::default(),
        accounts: Memory::default(),
        all: Mutex::default(),
        told_of_all: Mutex::default(),
        health: Health::default(),
        writes: Writes::default(),
        max_staleness: settings.max_staleness,
        retries: AtomicU64::new(0),
        repeats: AtomicU32::new(0),
        news,
    });
    let (waiting, asked) = (Arc::new(tokio::sync::Mutex::new(waiting)), Arc::new(tokio::sync::Mutex::new(asked)));
    let mut tasks = JoinSet::new();
    for _ in 0..WRITERS {
        tasks.spawn(writer::run(shared.clone(), waiting.clone()));
    }
    for _ in 0..READERS {
        tasks.spawn(reader::run(shared.clone(), asked.clone()));
    }
    let (ahead, aging) = mpsc::channel(ASKS_MAX);
    tasks.spawn(reader::run_ahead(shared.clone(), aging));
    let mut aside = JoinSet::new();
    if let Some(telling) = telling {
        aside.spawn(news::tell(shared.clone(), telling));
        aside.spawn(news::listen(shared.clone()));
    }
    if let Some(keep) = settings.keep {
        aside.spawn(retention::run(store, keep, clock));
    }
    let ended = tokio::spawn(async move {
        while tasks.join_next().await.is_some() {}
        aside.shutdown().await;
    });
    Ok((Reading { shared, asks, ahead }, ended))
}

impl Reading {
    /// One user at `now`, where memory may be believed.
    pub fn recent(&self, catalogue: &Arc<Catalogue>, user: &UserId, now: DateTime<Utc>) -> Option<Seen> {
        let all = self.shared.recent_all(catalogue, now)?;
        self.shared.recent_user(catalogue, user, all.as_ref(), &self.ahead, now)
    }

    /// Users as they stand at `now` or later, in the order asked, with all that counts by this catalogue; or an error after `patience`.
    pub async fn see(
        &self,
        catalogue: &Arc<Catalogue>,
        users: &[UserId],
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Vec<Seen>, StoreError> {
        if let Some(seen) = self.shared.recent(catalogue, users, &self.ahead, now) {
            return Ok(seen);
        }
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(Ask { users: users.to_vec(), catalogue: catalogue.clone(), answer }).map_err(|_| StoreError::late())?;
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(Ok(seen))) => Ok(seen),
            Ok(Ok(Err(error))) => Err(Arc::try_unwrap(error).unwrap_or_else(|error| StoreError::like(&error))),
            Ok(Err(_)) | Err(_) => Err(StoreError::late()),
        }
    }
}

impl Shared {
    fn now(&self) -> DateTime<Utc> {
        (self.clock.0)()
    }

    /// How often a batch was done again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A user's record was changed here: other nodes are told, where they keep anything.
    pub fn forget(&self, user: &UserId) {
        self.users.forget(user);
        self.news.user(user);
    }

    /// Something changed, and nobody knows what.
    pub fn forget_all(&self) {
        self.forget_what_is_kept();
        self.news.all();
    }

    /// A batch of which nobody knows whether it was done, or that was found to be done: memory did not follow it.
    fn doubt(&self, changes: &Changes) {
        changes.users().for_each(|user| self.users.doubt(user));
        changes.accounts().for_each(|account| self.accounts.doubt(account));
    }

    fn forget_what_is_kept(&self) {
        self.users.forget_all();
        self.accounts.forget_all();
        *self.all.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What was known of a user when he was last seen here.
    pub fn last_known(&self, user: &UserId) -> Option<Arc<Profile>> {
        self.users.last(user).map(|known| known.value.profile.clone())
    }

    fn is_recent(&self, as_of: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        as_of <= now && now - as_of < self.max_staleness
    }

    /// What memory says of all of `users`, where it is as fresh as it has to be.
    fn recent(&self, catalogue: &Arc<Catalogue>, users: &[UserId], ahead: &mpsc::Sender<UserId>, now: DateTime<Utc>) -> Option<Vec<Seen>> {
        let all = self.recent_all(catalogue, now)?;
        users.iter().map(|user| self.recent_user(catalogue, user, all.as_ref(), ahead, now)).collect()
    }

    /// All users together, where a limit for them is to be had.
    fn recent_all(&self, catalogue: &Arc<Catalogue>, now: DateTime<Utc>) -> Option<Option<Arc<Book>>> {
        if self.max_staleness <= TimeDelta::zero() {
            return None;
        }
        let Some(limits) = &catalogue.global else { return Some(None) };
        let known = self.all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_right = |known: &KnownOfAll| Arc::ptr_eq(&known.catalogue, catalogue) && self.is_recent(known.as_of, now);
        let book = known.filter(is_right)?.book;
        book.counts(limits, None, now).then_some(Some(book))
    }

    fn recent_user(
        &self,
        catalogue: &Catalogue,
        user: &UserId,
        all: Option<&Arc<Book>>,
        ahead: &mpsc::Sender<UserId>,
        now: DateTime<Utc>,
    ) -> Option<Seen> {
        let known = self.users.get(user).filter(|known| self.is_recent(known.as_of, now))?;
        if self.max_staleness < (now - known.as_of) * 2 && !known.is_awaited.swap(true, Ordering::Relaxed) {
            // He is asked for often, so he is looked up again before he is too old. Where too many are, he ages.
            let _ = ahead.try_send(user.clone());
        }
        let standing = known.value.profile.standing(catalogue, now);
        let pool = match known.value.pool(&standing) {
            None => None,
            Some(account) => Some(self.accounts.get(account).filter(|pool| self.is_recent(pool.as_of, now))?.value.clone()),
        };
        let counts = known.value.counts(pool.as_deref(), &standing, now);
        counts.then(|| Seen { payer: known.value.clone(), pool, all: all.cloned(), now })
    }

    /// A user, where memory has him at the right version and counts the windows that are open at `now`.
    fn known(
        &self,
        catalogue: &Catalogue,
        user: &UserId,
        is_right: impl Fn(&UserVersion) -> bool,
        generation: u64,
        now: DateTime<Utc>,
    ) -> Option<Arc<Known<UserVersion, Payer>>> {
        let known = self.users.get(user).filter(|known| known.generation == generation && is_right(&known.version))?;
        let standing = known.value.profile.standing(catalogue, now);
        known.value.counts(None, &standing, now).then_some(known)
    }

    /// A question that was asked before a batch may be answered after it. What the batch made of him is newer, and by the answer it is as
    /// fresh as the question, if the same pay for him.
    fn keep_user(&self, user: &UserId, known: Arc<Known<UserVersion, Payer>>) {
        self.users.put(user.clone(), known, |kept, known| {
            let is_newer = known.version.row < kept.version.row && known.version.is_paid_for_as(&kept.version);
            if is_newer { kept.as_fresh_as(&known) } else { known }
        });
    }

    /// An account at this version, where memory has it and counts the windows that these users need at `now`.
    fn known_account(
        &self,
        catalogue: &Catalogue,
        account: &AccountId,
        version: RowVersion,
        members: &[&Payer],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Option<Arc<Book>> {
        let known = self.accounts.get(account).filter(|known| known.generation == generation && known.version == version)?;
        let counts = |payer: &&Payer| payer.counts(Some(&known.value), &payer.profile.standing(catalogue, now), now);
        members.iter().all(counts).then(|| known.value.clone())
    }

    fn keep_account(&self, account: &AccountId, known: Arc<Known<RowVersion, Book>>) {
        self.accounts.put(
            account.clone(),
            known,
            |kept, known| if known.version < kept.version { kept.as_fresh_as(&known) } else { known },
        );
    }

    /// All users together. Of holds there is the sum only; `named` are those that may end in a moment, and stand by themselves.
    async fn read_all(
        &self,
        catalogue: &Catalogue,
        db: &mut Connection,
        named: Vec<OpenHold>,
        now: DateTime<Utc>,
    ) -> Result<Book, StoreError> {
        let totals = catalogue.global.as_ref().is_some_and(|limits| limits.limits.contains_key(&Period::Total));
        let first = if totals { i64::MIN } else { days_of_calendar(now).0 };
        let (days, held) = batch::all(db, first, now).await?;
        let total = days.values().fold(Money::ZERO, |sum, spent| sum.saturating_add(*spent));
        let by_name: i128 = named.iter().map(|hold| i128::from(hold.amount.nanos())).sum();
        let rest = OpenHold { id: "".into(), amount: held.less(by_name), expires_at: now + LONG };
        Ok(Book::new(now, &days, total, named.into_iter().chain([rest])))
    }

    /// A user of whom the database knows nothing.
    fn unknown(&self, catalogue: &Catalogue, now: DateTime<Utc>) -> Payer {
        let mut book = Book::new(now, &SpentByDay::new(), Money::ZERO, []);
        if catalogue.uses(Period::Billing) {
            book.count_billing(Period::Billing.window(now, None), 0);
        }
        Payer { profile: Arc::<Profile>::default(), exists: false, entries: 0, book, grants: None }
    }
}

/// The connection that a task keeps: a pool would ask it whether it is well each time.
#[derive(Debug, Default)]
struct Kept {
    connection: Option<Connection>,
    /// Which server it leads to.
    generation: u64,
}

impl Kept {
    /// Takes it out, so that a failure leaves none behind whose state nobody knows; a new one where another server is used now.
    async fn take(&mut self, shared: &Shared) -> Result<Connection, StoreError> {
        let is_right = self.generation == shared.cluster.generation();
        let mut connection = match self.connection.take().filter(|_| is_right) {
            Some(connection) => connection,
            None => loop {
                self.generation = shared.cluster.generation();
                let connection = shared.store.reader().await?;
                // Where another one is used by now it may lead to either.
                if self.generation == shared.cluster.generation() {
                    break connection;
                }
            },
        };
        connection.keep();
        Ok(connection)
    }

    /// Of the server to which the connection that was taken last leads.
    fn generation(&self) -> u64 {
        self.generation
    }

    fn give_back(&mut self, mut connection: Connection) {
        connection.trust();
        self.connection = Some(connection);
    }
}

/// Users by their ids, each once.
fn distinct(users: impl IntoIterator<Item = UserId>) -> Vec<UserId> {
    let mut users: Vec<UserId> = users.into_iter().collect::<std::collections::HashSet<_>>().into_iter().collect();
    users.sort_unstable();
    users
}

/// The members of each account.
fn members<'p>(payers: impl Iterator<Item = &'p Payer>) -> HashMap<&'p AccountId, Vec<&'p Payer>> {
    let mut members: HashMap<&AccountId, Vec<&Payer>> = HashMap::new();
    for payer in payers {
        if let Some(account) = &payer.profile.account {
            members.entry(account).or_default().push(payer);
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_batch_made_is_as_fresh_as_an_older_answer_of_the_same_server() {
        let at = |seconds: i64| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        let known = |version: i64, seconds: i64, generation: u64| Known::new(version, at(seconds), generation, Arc::new(version));
        let shown = |known: &Known<i64, i64>| (known.version, *known.value, known.as_of, known.generation);
        let kept = known(2, 10, 1);
        assert_eq!(shown(&kept.as_fresh_as(&known(1, 15, 1))), (2, 2, at(15), 1));
        assert_eq!(shown(&kept.as_fresh_as(&known(1, 5, 1))), (2, 2, at(10), 1), "it does not become older");
        assert_eq!(shown(&kept.as_fresh_as(&known(1, 5, 2))), (1, 1, at(5), 2));
        kept.is_awaited.store(true, Ordering::Relaxed);
        assert!(!kept.as_fresh_as(&known(1, 15, 1)).is_awaited.load(Ordering::Relaxed), "it may be looked up ahead again");
    }
}
