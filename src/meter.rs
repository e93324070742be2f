//! Gathers concurrent operations into one durable commit, and keeps what checks read.

mod memory;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::domain::catalogue::{Budgets, Catalogue};
use crate::domain::decide::{Budget, Scope};
use crate::domain::ledger::{Receipt, Refusal, Usage, day};
use crate::domain::money::Money;
use crate::domain::period::{Period, Window};
use crate::domain::user::{Standing, UserId};
use crate::store::accounts::StoredUser;
use crate::store::ledger::SpentByDay;
use crate::store::{Connection, Store, StoreError, accounts, ledger};
use writer::Shown;

/// Reads the clock. `main` makes the real one, tests one that they set.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Requests that wait for the writer; beyond, a caller is told to come back rather than to wait.
const QUEUE_MAX: usize = 1024;
/// How long a caller waits for his answer. The write may still happen; the id settles it when he asks again.
const DEADLINE: Duration = Duration::from_secs(10);

/// The spend of one window.
#[derive(Clone, Copy, Debug)]
struct Counter {
    period: Period,
    window: Window,
    spent: Money,
}

/// The windows that were open when the store was asked, and the sum of all time.
#[derive(Clone, Debug, Default)]
struct Counters {
    open: Vec<Counter>,
    total: Money,
}

impl Counters {
    /// The calendar's windows at `now`, from sums by day that cover them.
    fn from_days(days: &SpentByDay, total: Money, now: DateTime<Utc>) -> Self {
        let open = CALENDAR.map(|period| {
            let window = period.window(now, None);
            let (first, end) = (day(window.start), window.end.map_or(i64::MAX, day));
            let within = days.iter().filter(|(day, _)| first <= **day && **day < end);
            let spent = within.fold(Money::ZERO, |sum, (_, spent)| sum.checked_add(*spent).unwrap_or(sum));
            Counter { period, window, spent }
        });
        Self { open: open.to_vec(), total }
    }

    fn book(&mut self, cost: Money, time: DateTime<Utc>) {
        // The step has refused what would not fit.
        let add = |sum: &mut Money| *sum = sum.checked_add(cost).unwrap_or(*sum);
        add(&mut self.total);
        for counter in self.open.iter_mut().filter(|counter| counter.window.contains(time)) {
            add(&mut counter.spent);
        }
    }

    /// `None` where the store must be asked: another window is open now.
    fn spent(&self, period: Period, window: Window) -> Option<Money> {
        if period == Period::Total {
            return Some(self.total);
        }
        self.open.iter().find(|counter| counter.period == period && counter.window == window).map(|counter| counter.spent)
    }
}

const CALENDAR: [Period; 3] = [Period::Daily, Period::Weekly, Period::Monthly];

/// The days that the calendar's windows at `now` cover: first, and one past the last.
fn days_of_calendar(now: DateTime<Utc>) -> (i64, i64) {
    let windows = CALENDAR.map(|period| period.window(now, None));
    let first = windows.iter().map(|window| day(window.start)).min();
    let end = windows.iter().filter_map(|window| window.end.map(day)).max();
    (first.unwrap_or_default(), end.unwrap_or(i64::MAX))
}

/// What is held of a user: what the store says of him, and his counters.
#[derive(Clone, Debug)]
pub struct Known {
    pub user: StoredUser,
    /// Whether the store knows the user at all.
    pub exists: bool,
    counters: Counters,
}

impl Known {
    fn book(&mut self, cost: Money, time: DateTime<Utc>) {
        self.counters.book(cost, time);
        self.user.spent = self.counters.total;
        self.user.entries += 1;
    }
}

/// The counters of all users together.
#[derive(Clone, Debug)]
struct Global(Counters);

impl Global {
    fn book(&mut self, cost: Money, time: DateTime<Utc>) {
        self.0.book(cost, time);
    }
}

/// A user as the catalogue judges him at one moment.
#[derive(Clone, Debug)]
pub struct View<'c> {
    pub known: Arc<Known>,
    pub standing: Standing<'c>,
    /// His own, then those of all users together.
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

struct Request {
    usages: Vec<Usage>,
    answer: oneshot::Sender<Result<Vec<Receipt>, WriteError>>,
}

/// The counters of all users.
pub struct Meter {
    store: Store,
    catalogue: Arc<Catalogue>,
    shown: Shown,
    queue: mpsc::Sender<Request>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// Starts the writer. It ends, after what is queued, when the meter is dropped.
    pub fn start(store: Store, catalogue: Arc<Catalogue>, clock: Clock) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let shown = Shown::default();
        let writer = tokio::spawn(writer::run(store.clone(), shown.clone(), waiting, clock));
        (Self { store, catalogue, shown, queue }, writer)
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Books usage, all of it or nothing. `Ok` means that it is on the disk.
    pub async fn record(&self, usages: Vec<Usage>) -> Result<Vec<Receipt>, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Request { usages, answer }).map_err(|error| match error {
            TrySendError::Full(_) => WriteError::Busy,
            TrySendError::Closed(_) => WriteError::Unconfirmed,
        })?;
        match tokio::time::timeout(DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(WriteError::Unconfirmed),
        }
    }

    /// Forgets what is held of a user whose record was changed elsewhere: the next check reads it again.
    pub fn forget(&self, user: &UserId) {
        self.shown.users.forget(user);
    }

    /// Forgets everybody: something changed, and nobody knows what.
    pub fn forget_all(&self) {
        self.shown.users.forget_all();
    }

    /// Whether the last write was confirmed. While it was not, what is spent is not counted.
    pub fn is_writable(&self) -> bool {
        self.shown.health.is_writable()
    }

    /// One user at `now`.
    pub async fn view(&self, user: &UserId, now: DateTime<Utc>) -> Result<View<'_>, StoreError> {
        let global = self.global_budgets(now).await?;
        if let Some(view) = self.held(user, &global, now) {
            return Ok(view);
        }
        let mut views = self.load(vec![user.clone()], &global, now).await?;
        views.pop().ok_or_else(StoreError::torn)
    }

    /// Many users at `now`, in the order asked.
    pub async fn views(&self, users: &[UserId], now: DateTime<Utc>) -> Result<Vec<View<'_>>, StoreError> {
        let global = self.global_budgets(now).await?;
        let mut views: Vec<Option<View<'_>>> = users.iter().map(|user| self.held(user, &global, now)).collect();
        let missing = users.iter().zip(&views).filter(|(_, view)| view.is_none());
        let missing: Vec<UserId> = missing.map(|(user, _)| user.clone()).collect();
        let mut loaded = self.load(missing, &global, now).await?.into_iter();
        for view in views.iter_mut().filter(|view| view.is_none()) {
            *view = loaded.next();
        }
        views.into_iter().collect::<Option<Vec<_>>>().ok_or_else(StoreError::torn)
    }

    fn held(&self, user: &UserId, global: &[Budget], now: DateTime<Utc>) -> Option<View<'_>> {
        self.judge(self.shown.users.get(user)?, global, now)
    }

    /// `None` where a window has opened that `known` does not count.
    fn judge(&self, known: Arc<Known>, global: &[Budget], now: DateTime<Utc>) -> Option<View<'_>> {
        let standing = known.user.profile.standing(&self.catalogue, now);
        let own = budgets(Scope::User, &standing.tier.budgets, &known.counters, |period| period.window(now, standing.grant.billing))?;
        let budgets = own.into_iter().chain(global.iter().copied()).collect();
        Some(View { known, standing, budgets })
    }

    /// Reads users from the store, and keeps those that exist: asking for others leaves no trace.
    async fn load(&self, users: Vec<UserId>, global: &[Budget], now: DateTime<Utc>) -> Result<Vec<View<'_>>, StoreError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let loading = self.shown.users.begin_load(users.clone());
        let mut db = self.store.reader().await?;
        let mut stored = accounts::users(&mut db, &users).await?;
        let (first, end) = days_of_calendar(now);
        let mut days = ledger::days(&mut db, &users, first, end).await?;
        let mut views = Vec::with_capacity(users.len());
        let mut met = std::collections::HashMap::new();
        for user in &users {
            let known = match met.get(user) {
                Some(known) => Arc::clone(known),
                None => {
                    let exists = stored.contains_key(user);
                    let stored = stored.remove(user).unwrap_or_default();
                    let days = days.remove(user).unwrap_or_default();
                    let mut counters = Counters::from_days(&days, stored.spent, now);
                    counters.open.extend(self.billing_counter(&mut db, user, &stored, &counters, now).await?);
                    let known = Arc::new(Known { user: stored, exists, counters });
                    if exists {
                        loading.keep(user, &known);
                    }
                    met.insert(user, Arc::clone(&known));
                    known
                }
            };
            views.push(self.judge(known, global, now).ok_or_else(StoreError::torn)?);
        }
        Ok(views)
    }

    /// The window of the user's subscription, where any tier has a budget for it.
    async fn billing_counter(
        &self,
        db: &mut Connection,
        user: &UserId,
        stored: &StoredUser,
        counters: &Counters,
        now: DateTime<Utc>,
    ) -> Result<Option<Counter>, StoreError> {
        if !self.catalogue.uses(Period::Billing) {
            return Ok(None);
        }
        let billing = stored.profile.standing(&self.catalogue, now).grant.billing;
        let window = Period::Billing.window(now, billing);
        let spent = match counters.spent(Period::Monthly, window) {
            Some(spent) if billing.is_none() => spent,
            _ => ledger::spent_in(db, user, window).await?,
        };
        Ok(Some(Counter { period: Period::Billing, window, spent }))
    }

    async fn global_budgets(&self, now: DateTime<Utc>) -> Result<Vec<Budget>, StoreError> {
        let Some(limits) = &self.catalogue.global else { return Ok(Vec::new()) };
        let judge = |global: &Global| budgets(Scope::Global, limits, &global.0, |period| period.window(now, None));
        if let Some(budgets) = self.shown.global.get(&()).and_then(|global| judge(&global)) {
            return Ok(budgets);
        }
        let loading = self.shown.global.begin_load(vec![()]);
        let mut db = self.store.reader().await?;
        let (first, end) = days_of_calendar(now);
        let days = ledger::days_of_all(&mut db, first, end).await?;
        let total = ledger::spent_by_all(&mut db).await?;
        let global = Arc::new(Global(Counters::from_days(&days, total, now)));
        loading.keep(&(), &global);
        judge(&global).ok_or_else(StoreError::torn)
    }
}

fn budgets(scope: Scope, budgets: &Budgets, counters: &Counters, window: impl Fn(Period) -> Window) -> Option<Vec<Budget>> {
    let one = |(period, limit): (&Period, &Money)| {
        let window = window(*period);
        let spent = counters.spent(*period, window)?;
        // Nothing is held yet: holds come with the ledger's two-phase form.
        Some(Budget { scope, period: *period, limit: *limit, spent, held: Money::ZERO, window, thresholds: budgets.thresholds })
    };
    budgets.limits.iter().map(one).collect()
}
