//! Asks Stripe about the customers that nudges named, and makes its answer our record.
//!
//! A number is taken from the database before each question. An answer is written only where no later question was answered before it:
//! so a worker that was stopped for an hour changes nothing when it goes on.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::binding::{Touched, bound, owner, read_hint};
use super::telling::{self, Whose};
use super::{alert, doubt_alert, logged, tier_sentence, unbound};
use crate::current::Current;
use crate::domain::subscription::Snapshot;
use crate::store::accounts::{self, StoredCustomer};
use crate::store::inbox::{self, Alert, Effect, EventState};
use crate::store::requests::{self, Next, Request, Subject, Ticket};
use crate::store::{Store, StoreError};
use crate::stripe::client::{Client, Patience, RemoteSubscription, StripeError};
use crate::telemetry::Asks;

/// Questions under way at once: more would only wait for the pace that Stripe allows.
const FLIGHTS_MAX: usize = 16;
/// Questions in a row that may be refused before the customer is given up.
const TRIES_MAX: u32 = 8;
/// The pause after the first question that failed; twice as long after each further one.
const PAUSE: TimeDelta = TimeDelta::seconds(2);
const PAUSE_MAX: TimeDelta = TimeDelta::seconds(60);
/// How often the requests are looked at without a nudge: what failed is due again by then.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After so long another node may ask what one has taken. What it would write then, if it is not dead but slow, is refused by its number.
const LEASE: TimeDelta = TimeDelta::minutes(2);
/// How often it is looked whether a question that somebody else asks is answered.
const FLIGHT_POLL: Duration = Duration::from_millis(2);
/// A pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Tells memory whose record changed.
pub type Tell = Arc<dyn Fn(&Touched) + Send + Sync>;

/// Reads the clock.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Whoever asks Stripe.
pub struct Asker {
    pub store: Store,
    pub catalogue: Current,
    pub client: Client,
    pub clock: Clock,
    pub tell: Tell,
    pub asks: Asks,
    wake: Notify,
    /// A question that was under way is answered, or failed.
    landed: Notify,
    /// The subjects that are being asked about: one question at a time for each.
    flying: Mutex<HashSet<String>>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Why a question has no answer in our record.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// Perhaps the key is another account's. What we know of the customer stays as it is.
    #[error("Stripe knows no such customer or subscription under this key")]
    NoSuch,
}

impl AskError {
    /// Whether it may go well by itself: then it is tried for ever.
    fn passes(&self) -> bool {
        match self {
            // A key that is not taken is no customer's fault: all of them wait for the operator.
            Self::Stripe(StripeError::Refused { status, .. }) => matches!(status, 401 | 403),
            Self::Store(_) | Self::Stripe(StripeError::Unreachable(_)) => true,
            Self::Stripe(StripeError::NotFound | StripeError::WrongMode | StripeError::Unreadable(_)) | Self::NoSuch => false,
        }
    }
}

/// What Stripe says of a customer.
struct Seen {
    deleted: bool,
    /// Whom the metadata name: the customer's, else those of the subscription that was made last.
    user_hint: Option<String>,
    subscriptions: Vec<(String, Snapshot)>,
}

/// The mark of a question under way.
struct Flight {
    asker: Arc<Asker>,
    subject: String,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.asker.flying().remove(&self.subject);
        self.asker.landed.notify_waiters();
    }
}

impl Asker {
    pub fn new(store: Store, catalogue: Current, client: Client, clock: Clock, tell: Tell) -> Arc<Self> {
        Arc::new(Self {
            store,
            catalogue,
            client,
            clock,
            tell,
            asks: Asks::default(),
            wake: Notify::new(),
            landed: Notify::new(),
            flying: Mutex::default(),
        })
    }

    /// There may be something to ask.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks whatever is due, many side by side, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut flights = JoinSet::new();
        loop {
            match self.take_off(FLIGHTS_MAX - flights.len()).await {
                Ok(taken) => {
                    for (request, flight) in taken {
                        let asker = self.clone();
                        flights.spawn(async move { asker.due(&request, flight).await });
                    }
                }
                Err(error) => error!(%error, "the requests to Stripe could not be read: {error}"),
            }
            tokio::select! {
                () = self.wake.notified(), if flights.len() < FLIGHTS_MAX => {}
                Some(_) = flights.join_next() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            while flights.try_join_next().is_some() {}
        }
    }

    /// Asks what is due now, and waits for the answers; gives how many there were.
    pub async fn step(self: &Arc<Self>) -> Result<usize, StoreError> {
        let taken = self.take_off(FLIGHTS_MAX).await?;
        let count = taken.len();
        join_all(taken.into_iter().map(|(request, flight)| async move { self.due(&request, flight).await })).await;
        Ok(count)
    }

    /// Asks until nothing is due and nothing under way.
    pub async fn rest(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let count = self.step().await?;
            let due = requests::due(&mut self.store.reader().await?, (self.clock)(), 1).await?;
            if due.is_empty() && self.flying().is_empty() {
                return Ok(());
            }
            if count == 0 {
                tokio::time::sleep(FLIGHT_POLL).await;
            }
        }
    }

    /// Asks about a customer at once, for somebody who waits: as [`Asker::step`] would, with less patience. What is written then is no
    /// older than the call.
    pub async fn now(self: &Arc<Self>, customer: &str) -> Result<(), AskError> {
        let subject = Subject::Customer(customer.to_owned());
        let mut tx = self.store.begin_aside().await?;
        let asked = requests::raise(tx.connection()?, &subject, (self.clock)()).await?;
        tx.commit().await?;
        // Another question that is under way was perhaps asked before what is waited for happened.
        let _flight = loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if let Some(flight) = self.fly(&subject) {
                break flight;
            }
            landed.await;
        };
        if requests::is_answered(&mut self.store.reader().await?, customer, asked).await? {
            return Ok(());
        }
        let ticket = self.ticket().await?;
        self.refresh(&subject, ticket, &self.client.with(Patience::INTERACTIVE)).await
    }

    fn flying(&self) -> MutexGuard<'_, HashSet<String>> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where the subject is being asked about.
    fn fly(self: &Arc<Self>, subject: &Subject) -> Option<Flight> {
        let subject = subject.id().to_owned();
        self.flying().insert(subject.clone()).then(|| Flight { asker: self.clone(), subject })
    }

    /// At most `most` of what is due and not under way.
    async fn take_off(self: &Arc<Self>, most: usize) -> Result<Vec<(Request, Flight)>, StoreError> {
        let (now, under_way): (_, Vec<String>) = ((self.clock)(), self.flying().iter().cloned().collect());
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let due = requests::take(&mut self.store.reader().await?, now, now + LEASE, &under_way, limit).await?;
        let free = due.into_iter().filter_map(|request| self.fly(&request.subject).map(|flight| (request, flight)));
        Ok(free.take(most).collect())
    }

    async fn due(self: &Arc<Self>, request: &Request, _flight: Flight) {
        let done = async {
            let ticket = self.ticket().await?;
            match self.refresh(&request.subject, ticket, &self.client).await {
                Ok(()) => Ok(()),
                Err(AskError::Store(error)) => Err(error),
                Err(why) => self.failed(request, ticket, &why).await,
            }
        };
        if let Err(error) = done.await {
            let id = request.subject.id();
            error!(%error, "what Stripe says of {id} could not be written: {error}");
            tokio::time::sleep(STORE_PAUSE).await;
            // Where other nodes could have taken it it was put off, and where this fails too it is due by then.
            let again = async {
                let mut tx = self.store.begin_aside().await?;
                requests::again(tx.connection()?, id, (self.clock)()).await?;
                tx.commit().await
            };
            let _: Result<(), StoreError> = again.await;
        }
    }

    /// The number of a question, which is asked after it.
    async fn ticket(&self) -> Result<Ticket, StoreError> {
        let mut tx = self.store.begin_aside().await?;
        let ticket = requests::ticket(tx.connection()?).await?;
        tx.commit().await?;
        Ok(ticket)
    }

    async fn refresh(self: &Arc<Self>, subject: &Subject, ticket: Ticket, client: &Client) -> Result<(), AskError> {
        let asked = self.ask_and_record(subject, ticket, client).await;
        if asked.is_ok() {
            self.asks.answered.add()
        } else {
            self.asks.failed.add()
        }
        asked
    }

    async fn ask_and_record(self: &Arc<Self>, subject: &Subject, ticket: Ticket, client: &Client) -> Result<(), AskError> {
        match subject {
            Subject::Customer(customer) => {
                let seen = self.ask(client, customer).await?;
                self.record(customer.clone(), ticket, seen).await
            }
            Subject::Subscription(subscription) => {
                let customer = client.subscription((self.clock)(), subscription).await?.ok_or(AskError::NoSuch)?.customer;
                let (now, mut tx) = ((self.clock)(), self.store.begin().await?);
                if requests::applied(tx.connection()?, subscription, ticket, now).await? {
                    let request = Subject::Customer(customer.clone());
                    let nudge = requests::raise(tx.connection()?, &request, now).await?;
                    inbox::hand_over(tx.connection()?, subscription, &customer, ticket, nudge).await?;
                }
                tx.commit().await?;
                self.wake();
                Ok(())
            }
        }
    }

    /// No transaction is open meanwhile.
    async fn ask(&self, client: &Client, customer: &str) -> Result<Seen, AskError> {
        let remote = client.customer(customer).await?.ok_or(AskError::NoSuch)?;
        let mut subscriptions = client.subscriptions_of(customer, (self.clock)()).await?;
        subscriptions.sort_by_key(|subscription| subscription.created);
        let of_latest = |all: &[RemoteSubscription]| all.iter().rev().find_map(|subscription| subscription.user_hint.clone());
        let user_hint = remote.user_hint.or_else(|| of_latest(&subscriptions));
        let shown = subscriptions.into_iter().map(|subscription| (subscription.id, subscription.snapshot));
        Ok(Seen { deleted: remote.deleted, user_hint, subscriptions: shown.collect() })
    }

    /// Writes, and lets memory forget whom it concerns, to the end also where the caller goes away meanwhile. Where the outcome is
    /// unknown memory forgets everybody.
    async fn record(self: &Arc<Self>, customer: String, ticket: Ticket, seen: Seen) -> Result<(), AskError> {
        let asker = self.clone();
        let done = tokio::spawn(async move {
            let written = asker.write(&customer, ticket, seen).await;
            (asker.tell)(written.as_ref().unwrap_or(&Touched::Many));
            written.map(drop)
        });
        Ok(done.await.unwrap_or_else(|_| Err(StoreError::torn()))?)
    }

    /// Makes the answer to the question of `ticket` our record, unless a later one is.
    async fn write(&self, customer: &str, ticket: Ticket, seen: Seen) -> Result<Touched, StoreError> {
        let (now, mut tx) = ((self.clock)(), self.store.begin().await?);
        let db = tx.connection()?;
        if !requests::applied(db, customer, ticket, now).await? {
            tx.commit().await?;
            debug!(customer, "a later answer about {customer} was there before this one");
            return Ok(Touched::default());
        }
        let before = accounts::customer(db, customer).await?.unwrap_or_default();
        let mut alerts: Vec<Alert> = Vec::new();
        let hint = read_hint(seen.user_hint.as_deref(), &mut alerts);
        let user_id = bound(db, &before, (customer, seen.deleted), hint, &mut alerts, now).await?;
        let ids: Vec<String> = seen.subscriptions.iter().map(|(id, _)| id.clone()).collect();
        let catalogue = self.catalogue.load_full();
        let state = before.state.as_asked(seen.deleted, seen.subscriptions, &catalogue, now);
        for id in &ids {
            let doubts = state.doubts(id, &catalogue);
            alerts.extend(doubts.iter().map(|doubt| doubt_alert(id, doubt)));
            telling::unmapped(db, Whose { customer, subscription: id, user_id: user_id.as_ref() }, &doubts, now).await?;
        }
        let after = StoredCustomer { account: before.account.clone(), user_id, state };
        accounts::put_customer(db, customer, &after, now).await?;
        let tier = tier_sentence(&catalogue, &before, &after, now);
        let (state, sentence) = match owner(&after) {
            Some(owner) => (EventState::Applied, format!("Customer {customer} ({}): {tier}.", owner.named())),
            None => (EventState::Kept, format!("{}: {tier}.", unbound(customer))),
        };
        let effect = Effect { state, sentence, alerts };
        inbox::settle_awaiting(db, customer, ticket, &effect, now).await?;
        let touched = Touched::of(db, &after).await?;
        tx.commit().await?;
        report(customer, &effect, before != after);
        Ok(touched)
    }

    /// Notes when to ask again, or that it is given up.
    async fn failed(&self, request: &Request, ticket: Ticket, why: &AskError) -> Result<(), StoreError> {
        let (now, customer, tries) = ((self.clock)(), request.subject.id(), request.tries.saturating_add(1));
        let mut tx = self.store.begin().await?;
        let db = tx.connection()?;
        if !why.passes() && TRIES_MAX <= tries {
            let sentence = format!("Stripe was asked about {customer} {tries} times in vain: {why}; a replay asks again.");
            let alerts = vec![alert("sync_failed", sentence.clone())];
            let effect = Effect { state: EventState::Dead, sentence, alerts };
            requests::failed(db, customer, ticket, Next::GiveUpAt(now), &why.to_string()).await?;
            inbox::settle_awaiting(db, customer, ticket, &effect, now).await?;
            telling::given_up(db, customer, ticket, &effect.sentence, &why.to_string(), now).await?;
            tx.commit().await?;
            report(customer, &effect, true);
            return Ok(());
        }
        let doubled = 2_i32.saturating_pow(tries.saturating_sub(1).min(16));
        let pause = PAUSE.checked_mul(doubled).map_or(PAUSE_MAX, |pause| pause.min(PAUSE_MAX));
        requests::failed(db, customer, ticket, Next::AskAgainAt(now + pause), &why.to_string()).await?;
        tx.commit().await?;
        warn!(customer, tries, "Stripe could not be asked about {customer} ({tries} times in a row): {why}");
        Ok(())
    }
}

fn report(customer: &str, effect: &Effect, is_news: bool) {
    if is_news {
        let state = effect.state.name();
        info!(customer, state, "Stripe was asked about customer {customer}: {state}");
    }
    for alert in &effect.alerts {
        warn!(customer, code = %alert.code, "customer {customer}: {}: {}", alert.code, logged(alert));
    }
}
