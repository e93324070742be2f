//! Tells others what stands in the outbox: each alert to each endpoint at least once, whatever the number of nodes.
//!
//! What is to be told is written with what brought it about, and that somebody was told only once he said so. Between the two anything
//! may end: then he is told again, under the same id.

mod endpoint;
mod network;
mod post;
mod signing;
mod slack;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::{join, join_all};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::domain::alert::AlertKind;
use crate::store::outbox::{self, Due, Old, Outcome, Place};
use crate::store::{Backend, Connection, Store, StoreError, leases};
pub use endpoint::{Endpoint, Fault, Setting, endpoints, networks};
pub use network::Network;
pub use post::NoClient;
use post::{Post, Reply};

/// How often the outbox is looked at where nobody says that there is something: other nodes raise alerts too.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for what goes to endpoints that nobody has.
const TIDY_EVERY: Duration = Duration::from_hours(1);
/// How often of that old alerts are looked for. Those of limits that never reset stay, and are looked at each time.
const TIDY_ALL_EVERY: u64 = 24;
/// A whole try: a receiver that takes longer should take first and think then.
const DEADLINE: Duration = Duration::from_secs(10);
/// Alerts in one transaction. They are due together, so no more than go in one step, which puts them in order.
const SPREAD_AT_ONCE: i64 = TRIES_AT_ONCE;
/// Tries in one step of an endpoint.
const TRIES_AT_ONCE: i64 = 100;
/// Whoever holds an endpoint's lease sends to it. A try takes less; who has not renewed it in so long has stopped.
const LEASE_LASTS: TimeDelta = TimeDelta::minutes(1);
/// The pauses between tries, as Standard Webhooks recommends them: three days altogether. After the last try it is given up.
const PAUSES: [TimeDelta; 9] = [
    TimeDelta::seconds(5),
    TimeDelta::minutes(5),
    TimeDelta::minutes(30),
    TimeDelta::hours(2),
    TimeDelta::hours(5),
    TimeDelta::hours(10),
    TimeDelta::hours(14),
    TimeDelta::hours(20),
    TimeDelta::hours(24),
];
/// A pause is longer by up to this part of it, so that those who failed together do not come back together.
const JITTER: i32 = 10;
/// How long alerts stay listed that wait for nothing.
const KEPT_FOR: TimeDelta = TimeDelta::days(90);
/// Old alerts that are looked at in one transaction.
const OLD_AT_ONCE: i64 = 500;
/// Nodes that are replaced one after the other have other settings for a while, and not for so long.
const STRAY_AFTER: TimeDelta = TimeDelta::days(1);

/// Reads the clock.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Whom to tell.
#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoints: Vec<Endpoint>,
    /// Where alerts may go besides the Internet.
    pub allowed: Vec<Network>,
    /// How long one try may take; not a setting.
    pub deadline: Duration,
    /// Whether this process tells by itself; not a setting. Tests take each step by hand.
    pub tells: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { endpoints: Vec::new(), allowed: Vec::new(), deadline: DEADLINE, tells: true }
    }
}

/// Whoever tells.
pub struct Teller {
    store: Store,
    clock: Clock,
    receivers: Vec<Receiver>,
    post: Post,
    /// By which name this process holds leases.
    holder: String,
    luck: Mutex<fastrand::Rng>,
    news: watch::Sender<()>,
}

/// An endpoint, and whose turn it is to send to it within this process.
struct Receiver {
    endpoint: Endpoint,
    turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

impl Teller {
    /// `holder` is another one for each process; `seed` spreads the pauses between tries.
    pub fn new(store: Store, clock: Clock, settings: &Settings, holder: String, seed: u64) -> Result<Arc<Self>, NoClient> {
        // One process owns a file, so what one of before held is this one's.
        let holder = if let Backend::Sqlite(_) = store.backend() { "owner".to_owned() } else { holder };
        let speaks_tls = settings.endpoints.iter().any(|endpoint| endpoint.url.scheme() == "https");
        let receivers = settings.endpoints.iter().cloned().map(|endpoint| Receiver { endpoint, turn: tokio::sync::Mutex::default() });
        Ok(Arc::new(Self {
            store,
            clock,
            receivers: receivers.collect(),
            post: Post::new(settings.allowed.clone(), settings.deadline, speaks_tls)?,
            holder,
            luck: Mutex::new(fastrand::Rng::with_seed(seed)),
            news: watch::Sender::new(()),
        }))
    }

    /// The names of all endpoints.
    pub fn endpoints(&self) -> Vec<&str> {
        self.receivers.iter().map(|receiver| receiver.endpoint.name.as_str()).collect()
    }

    /// There may be something to tell.
    pub fn wake(&self) {
        self.news.send_replace(());
    }

    /// Tells, and lets old alerts go, until it is dropped. No endpoint waits for another one.
    pub async fn run(self: Arc<Self>) {
        let each = join_all(self.receivers.iter().map(|receiver| self.tell_on(receiver)));
        join(join(self.spread_on(), each), self.tidy_on()).await;
    }

    /// Gives out what is new, and sends each endpoint what is due. Gives how many tries there were.
    pub async fn step(&self) -> Result<usize, StoreError> {
        self.spread().await?;
        let told = join_all(self.receivers.iter().map(|receiver| self.tell(receiver))).await;
        told.into_iter().sum()
    }

    async fn spread_on(&self) {
        let mut news = self.news.subscribe();
        loop {
            match self.spread().await {
                Ok(0) => {}
                Ok(_) => self.wake(),
                Err(error) => error!(%error, "alerts could not be given to their endpoints: {error}"),
            }
            // A time-out means that nobody said anything.
            let _ = tokio::time::timeout(LOOK_EVERY, news.changed()).await;
        }
    }

    async fn tell_on(&self, receiver: &Receiver) {
        let mut news = self.news.subscribe();
        loop {
            match self.tell(receiver).await {
                // There may be more.
                Ok(tries) if i64::try_from(tries).is_ok_and(|tries| TRIES_AT_ONCE <= tries) => continue,
                Ok(_) => {}
                Err(error) => {
                    let name = &receiver.endpoint.name;
                    error!(%error, endpoint = %name, "what {name} is to be told could not be read, or what came of it not be noted: {error}");
                }
            }
            let _ = tokio::time::timeout(LOOK_EVERY, news.changed()).await;
        }
    }

    async fn tidy_on(&self) {
        for round in 0_u64.. {
            let tidied = if round.is_multiple_of(TIDY_ALL_EVERY) { self.tidy().await } else { self.park_strays().await };
            if let Err(error) = tidied {
                warn!(%error, "old alerts could not be deleted or given up, and stay: {error}");
            }
            tokio::time::sleep(TIDY_EVERY).await;
        }
    }

    /// Gives what is new to all endpoints. Gives how many alerts it were.
    async fn spread(&self) -> Result<usize, StoreError> {
        let mut spread = 0;
        loop {
            let new = outbox::unspread(&mut self.store.reader().await?, SPREAD_AT_ONCE).await?;
            if new.is_empty() {
                return Ok(spread);
            }
            let mut tx = self.store.begin_aside().await?;
            outbox::spread(tx.connection()?, &new, &self.endpoints(), (self.clock)()).await?;
            tx.commit().await?;
            spread += new.len();
        }
    }

    /// Sends an endpoint what is due, in the order of its time, up to the first try that fails: whoever is away is not asked for all of
    /// it at once, and whoever refuses one alert has the next one in the next step.
    async fn tell(&self, receiver: &Receiver) -> Result<usize, StoreError> {
        let _turn = receiver.turn.lock().await;
        let name = &receiver.endpoint.name;
        if self.due(name).await?.is_empty() || !self.take(name).await? {
            return Ok(0);
        }
        let mut tries = 0;
        // What was due before the lease was had, another node may have sent.
        for due in self.due(name).await? {
            let reply = self.post.send(&receiver.endpoint, &due.alert, (self.clock)()).await;
            let outcome = self.outcome(&due, reply);
            report(name, &due, &outcome);
            tries += 1;
            if !self.note(name, &due, &outcome).await? || !matches!(outcome, Outcome::Delivered { .. }) {
                break;
            }
        }
        self.leave(name).await?;
        Ok(tries)
    }

    async fn due(&self, endpoint: &str) -> Result<Vec<Due>, StoreError> {
        outbox::due(&mut self.store.reader().await?, endpoint, (self.clock)(), TRIES_AT_ONCE).await
    }

    fn outcome(&self, due: &Due, reply: Reply) -> Outcome {
        let at = (self.clock)();
        let (error, after) = match reply {
            Reply::Taken => return Outcome::Delivered { at },
            Reply::Gone => return Outcome::Parked { at, error: "status 410: it is gone for good".to_owned() },
            Reply::Failed { why, after } => (why, after.unwrap_or_default()),
        };
        let tries = usize::try_from(due.tries).unwrap_or(usize::MAX);
        match PAUSES.get(tries) {
            Some(pause) => {
                let jitter = (*pause / JITTER).num_milliseconds();
                let jitter = self.luck.lock().unwrap_or_else(PoisonError::into_inner).i64(0..=jitter);
                Outcome::AgainAt { at: at + after.max(*pause + TimeDelta::milliseconds(jitter)), error }
            }
            None => Outcome::Parked { at, error },
        }
    }

    /// Notes what a try came to. `false` where another node sends to the endpoint by now.
    async fn note(&self, endpoint: &str, due: &Due, outcome: &Outcome) -> Result<bool, StoreError> {
        let mut tx = self.store.begin_aside().await?;
        outbox::tried(tx.connection()?, endpoint, due, outcome).await?;
        let ours = self.hold(tx.connection()?, endpoint).await?;
        tx.commit().await?;
        Ok(ours)
    }

    /// Takes an endpoint's lease. That this was written says too that what comes of a try can be: else it would be sent again and again.
    async fn take(&self, endpoint: &str) -> Result<bool, StoreError> {
        let mut tx = self.store.begin_aside().await?;
        let ours = self.hold(tx.connection()?, endpoint).await?;
        tx.commit().await?;
        Ok(ours)
    }

    async fn hold(&self, db: &mut Connection, endpoint: &str) -> Result<bool, StoreError> {
        let now = (self.clock)();
        leases::take(db, &lease(endpoint), &self.holder, now, now + LEASE_LASTS).await
    }

    async fn leave(&self, endpoint: &str) -> Result<(), StoreError> {
        let mut tx = self.store.begin_aside().await?;
        leases::leave(tx.connection()?, &lease(endpoint), &self.holder).await?;
        tx.commit().await
    }

    /// Gives up what goes to endpoints that nobody has.
    async fn park_strays(&self) -> Result<(), StoreError> {
        let now = (self.clock)();
        let mut tx = self.store.begin_aside().await?;
        let strays = outbox::park_strays(tx.connection()?, now - STRAY_AFTER, &self.endpoints(), now).await?;
        tx.commit().await?;
        if 0 < strays {
            warn!(strays, "{strays} alerts were to go to endpoints that are not in ALERT_WEBHOOKS any more, and are given up");
        }
        Ok(())
    }

    /// Deletes old alerts, a few at a time, and gives up what goes to endpoints that nobody has.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        self.park_strays().await?;
        let now = (self.clock)();
        let mut behind = Place::FIRST;
        loop {
            // One such transaction at a time: nobody asks for an alert anew while it goes.
            let mut tx = self.store.begin().await?;
            let old = outbox::old(tx.connection()?, &behind, now - KEPT_FOR, OLD_AT_ONCE).await?;
            let Some(last) = old.last() else { return tx.commit().await };
            behind = last.place.clone();
            let gone: Vec<&str> = old.iter().filter(|old| may_go(old, now)).map(|old| old.place.alert_id.as_str()).collect();
            outbox::forget(tx.connection()?, &gone).await?;
            tx.commit().await?;
            if !gone.is_empty() {
                info!(alerts = gone.len(), "{} alerts from before {} were deleted", gone.len(), now - KEPT_FOR);
            }
        }
    }
}

fn lease(endpoint: &str) -> String {
    format!("alerts to {endpoint}")
}

/// A budget whose window is still open would be told anew.
fn may_go(old: &Old, now: DateTime<Utc>) -> bool {
    if old.kind != AlertKind::BudgetThreshold {
        return true;
    }
    let details: serde_json::Value = serde_json::from_str(&old.details).unwrap_or_default();
    let end = details["window"]["end"].as_str().and_then(|end| DateTime::parse_from_rfc3339(end).ok());
    end.is_some_and(|end| end <= now)
}

fn report(endpoint: &str, due: &Due, outcome: &Outcome) {
    let (alert_id, kind) = (&due.alert.alert_id, due.alert.kind.name());
    match outcome {
        Outcome::Delivered { .. } => debug!(alert_id, endpoint, "{endpoint} was told of {alert_id} ({kind})"),
        Outcome::AgainAt { at, error } => {
            let tries = due.tries.saturating_add(1);
            warn!(alert_id, endpoint, tries, "{endpoint} could not be told of {alert_id} ({kind}), and is tried again at {at}: {error}");
        }
        Outcome::Parked { error, .. } => {
            error!(
                alert_id,
                endpoint, "{endpoint} was not told of {alert_id} ({kind}), and it is given up; it can be redelivered: {error}"
            );
        }
    }
}
