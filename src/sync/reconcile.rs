//! Compares everything with Stripe: events may be lost for days, and an endpoint may be turned off. Whatever differs is asked about like
//! any nudge; nothing is written from a list, which is read over minutes.
//!
//! A step is one page. How far it came stands in the store, so a run goes on where it stopped.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::asking::{AskError, Asker};
use super::binding::{may_bind, owner};
use super::{Rules, accept, telling};
use crate::domain::subscription::Snapshot;
use crate::store::accounts::{self, StoredCustomer};
use crate::store::reconciliation::{self, Drift, Fault, Phase, Run};
use crate::store::requests::{self, Subject};
use crate::store::{Backend, Connection, StoreError, inbox, leases};
use crate::stripe::client::{Page, RemoteCustomer, RemoteSubscription, StripeError};
use crate::stripe::event::Event;
use crate::stripe::registration::EVENTS;

/// Drifted customers that are told by name; the others are counted.
const TOLD_MAX: usize = 1000;
/// Customers of ours that are looked at in one step.
const OURS_AT_ONCE: i64 = 500;
/// How far before the run before events are looked for: those of its last moments may not have been listed yet.
const OVERLAP: TimeDelta = TimeDelta::hours(1);
/// An event that is younger may be on its way: it is taken, and is not counted as one that did not come.
const ON_ITS_WAY: TimeDelta = TimeDelta::minutes(5);
/// Whoever holds it compares.
const LEASE: &str = "reconciliation";
/// A page takes less; who has not saved one in so long has stopped.
const LEASE_LASTS: TimeDelta = TimeDelta::minutes(1);
/// A node that starts compares, unless a run is younger: then another node has just done it.
const AT_START: TimeDelta = TimeDelta::minutes(10);
/// A pause after Stripe or the store failed.
const PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether a run is due.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Whether a run changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What differs is asked about.
    Mend,
    /// What differs is told, and nothing is written.
    DryRun,
}

/// Why a comparison does not go on.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("another node compares at the moment")]
    Elsewhere,
}

impl From<StoreError> for CompareError {
    fn from(error: StoreError) -> Self {
        Self::Ask(error.into())
    }
}

impl From<StripeError> for CompareError {
    fn from(error: StripeError) -> Self {
        Self::Ask(error.into())
    }
}

/// Compares page by page.
#[derive(Debug)]
pub struct Reconciler {
    asker: Arc<Asker>,
    rules: Rules,
    /// By which name this process holds the lease: one at a time compares, whatever the number of nodes.
    holder: String,
    wanted: Notify,
}

/// A run under way.
#[derive(Debug)]
pub struct Comparison {
    pub run: Run,
    mode: Mode,
    /// The phase whose list was read from the beginning again; once is enough.
    began_anew: Option<Phase>,
    /// Whom a dry run has met, and who of them differs: it writes no marks.
    met: HashSet<String>,
    differing: HashSet<String>,
}

impl Reconciler {
    pub fn new(asker: Arc<Asker>, rules: Rules, holder: String) -> Arc<Self> {
        // One process owns a file, so what one of before held is this one's.
        let holder = if let Backend::Sqlite(_) = asker.store.backend() { "owner".to_owned() } else { holder };
        Arc::new(Self { asker, rules, holder, wanted: Notify::new() })
    }

    /// Begins a run as soon as it can, whatever is due.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Compares at once, unless another node has just begun to; then as often as `every`, or when it is wanted; until it is dropped.
    pub async fn run(self: Arc<Self>, every: Option<TimeDelta>) {
        // Nobody else compares for a process that has its own file.
        let mut wanted = matches!(self.asker.store.backend(), Backend::Sqlite(_));
        let mut due_after = Some(every.map_or(AT_START, |every| every.min(AT_START)));
        let mut starts = true;
        loop {
            match self.due(due_after, wanted, starts).await {
                Ok(true) => match self.once().await {
                    Ok(_) => wanted = false,
                    // It stays wanted: what the other one has read may be older than the wish.
                    Err(CompareError::Elsewhere) => {}
                    Err(error) => {
                        warn!("the comparison with Stripe goes on later: {error}");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                Ok(false) => {}
                Err(error) => {
                    warn!("whether a comparison with Stripe is due could not be read: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            (due_after, starts) = (every, false);
            // A time-out means that nobody wants one.
            wanted |= tokio::time::timeout(LOOK_EVERY, self.wanted.notified()).await.is_ok();
        }
    }

    /// What Stripe did not show to the process before it may show to this one: perhaps it has another key.
    async fn due(&self, every: Option<TimeDelta>, wanted: bool, starts: bool) -> Result<bool, StoreError> {
        let last = reconciliation::last(&mut self.asker.store.reader().await?).await?;
        let now = (self.asker.clock)();
        let is_old = |run: &Run| every.is_some_and(|every| run.started_at + every <= now);
        let is_open = |run: &Run| run.finished_at.is_none() || (starts && !run.faults.is_empty());
        Ok(wanted || last.is_none_or(|run| is_open(&run) || is_old(&run)))
    }

    /// One whole run, from where the last one stopped.
    pub async fn once(&self) -> Result<Run, CompareError> {
        let mut comparison = self.begin(Mode::Mend).await?;
        while comparison.run.phase != Phase::Done {
            self.step(&mut comparison).await?;
        }
        let mut tx = self.asker.store.begin_aside().await?;
        leases::leave(tx.connection()?, LEASE, &self.holder).await?;
        tx.commit().await?;
        let Run { checked, drifted, missed_events, .. } = comparison.run;
        info!(
            checked,
            drifted, missed_events, "compared with Stripe: {checked} checked, {drifted} differed, {missed_events} events had not come"
        );
        Ok(comparison.run)
    }

    /// The run that was not finished, else a new one. A dry run is always new.
    pub async fn begin(&self, mode: Mode) -> Result<Comparison, CompareError> {
        if mode == Mode::Mend {
            // Before it is read how far the last one came: nobody else goes on with it from here.
            let mut tx = self.asker.store.begin_aside().await?;
            self.hold(tx.connection()?).await?;
            tx.commit().await?;
        }
        let last = reconciliation::last(&mut self.asker.store.reader().await?).await?;
        let now = (self.asker.clock)();
        let run = match last {
            Some(run) if run.finished_at.is_none() && mode == Mode::Mend => run,
            last => Run {
                number: last.as_ref().map_or(0, |run| run.number) + 1,
                phase: Phase::Subscriptions,
                place: None,
                events_since: last.map(|run| events_since(&run)),
                started_at: now,
                finished_at: None,
                checked: 0,
                drifted: 0,
                missed_events: 0,
                drift: Vec::new(),
                faults: Vec::new(),
                unread: 0,
            },
        };
        Ok(Comparison { run, mode, began_anew: None, met: HashSet::new(), differing: HashSet::new() })
    }

    /// Renews the lease. What is written in the same transaction is written only while it is held.
    async fn hold(&self, db: &mut Connection) -> Result<(), CompareError> {
        let now = (self.asker.clock)();
        if leases::take(db, LEASE, &self.holder, now, now + LEASE_LASTS).await? { Ok(()) } else { Err(CompareError::Elsewhere) }
    }

    /// One page; or the end of a phase of which Stripe does not show more.
    pub async fn step(&self, comparison: &mut Comparison) -> Result<(), CompareError> {
        let done = match self.page(comparison).await {
            // A key that is not taken is no list's fault: all of it waits for the operator.
            Err(CompareError::Ask(AskError::Stripe(error))) if error.is_final() && !error.is_of_the_key() => {
                self.leave(comparison, &error).await
            }
            done => done,
        };
        self.asker.wake();
        done
    }

    /// What asking again would not change: the place where it stopped may be gone, else the phase goes on without the rest.
    async fn leave(&self, comparison: &mut Comparison, error: &StripeError) -> Result<(), CompareError> {
        let (now, run) = ((self.asker.clock)(), &mut comparison.run);
        let phase = run.phase.name();
        if error.is_missing() && run.place.take().is_some() && comparison.began_anew != Some(run.phase) {
            comparison.began_anew = Some(run.phase);
            warn!(phase, "where the comparison with Stripe stopped is gone, so its list of {phase} is read from the beginning: {error}");
        } else {
            warn!(phase, "the comparison with Stripe goes on without the rest of its list of {phase}: {error}");
            run.faults.push(Fault { phase: run.phase, what: error.to_string() });
            comparison.go_on(None, now);
        }
        let mut tx = self.asker.store.begin().await?;
        self.save(comparison, tx.connection()?).await?;
        Ok(tx.commit().await?)
    }

    async fn page(&self, comparison: &mut Comparison) -> Result<(), CompareError> {
        let now = (self.asker.clock)();
        let place = comparison.run.place.clone();
        match comparison.run.phase {
            Phase::Subscriptions => {
                let page = self.asker.client.subscriptions_page(place.as_deref(), now).await?;
                self.subscriptions(comparison, page, now).await?;
            }
            Phase::Customers => {
                let page = self.asker.client.customers_page(place.as_deref()).await?;
                self.customers(comparison, page, now).await?;
            }
            Phase::Ours => self.ours(comparison, now).await?,
            Phase::Events => self.events(comparison, now).await?,
            Phase::Done => {}
        }
        Ok(())
    }

    async fn subscriptions(
        &self,
        comparison: &mut Comparison,
        page: Page<RemoteSubscription>,
        now: DateTime<Utc>,
    ) -> Result<(), CompareError> {
        let mut tx = self.asker.store.begin().await?;
        let db = tx.connection()?;
        let mut asked = HashSet::new();
        for shown in &page.items {
            let known = accounts::customer(db, &shown.customer).await?;
            let agrees = known.as_ref().is_some_and(|known| known.state.agrees(&shown.id, &shown.snapshot));
            let unbound = known.as_ref().is_none_or(is_free) && may_bind(db, shown.user_hint.as_deref()).await?;
            comparison.meet(db, &shown.customer).await?;
            if (!agrees || unbound) && asked.insert(shown.customer.clone()) {
                let what = format!("subscription {}: Stripe says {}", shown.id, summary(&shown.snapshot));
                comparison.differs(db, &shown.customer, what, now).await?;
            }
        }
        comparison.count(&page);
        comparison.go_on(page.next, now);
        self.save(comparison, db).await?;
        Ok(tx.commit().await?)
    }

    async fn customers(&self, comparison: &mut Comparison, page: Page<RemoteCustomer>, now: DateTime<Utc>) -> Result<(), CompareError> {
        let mut tx = self.asker.store.begin().await?;
        let db = tx.connection()?;
        for shown in &page.items {
            let known = accounts::customer(db, &shown.id).await?;
            comparison.meet(db, &shown.id).await?;
            let unbound = known.as_ref().is_none_or(is_free);
            if let Some(user) = &shown.user_hint
                && unbound
                && may_bind(db, Some(user)).await?
            {
                comparison.differs(db, &shown.id, format!("its metadata name user {user}, and it was bound to nobody"), now).await?;
            }
        }
        comparison.count(&page);
        comparison.go_on(page.next, now);
        self.save(comparison, db).await?;
        Ok(tx.commit().await?)
    }

    async fn save(&self, comparison: &Comparison, db: &mut Connection) -> Result<(), CompareError> {
        match comparison.mode {
            Mode::Mend => {
                self.hold(db).await?;
                if let Some(finished_at) = comparison.run.finished_at {
                    telling::drift(db, &comparison.run, finished_at).await?;
                }
                Ok(reconciliation::save(db, &comparison.run).await?)
            }
            Mode::DryRun => Ok(()),
        }
    }

    /// Those with a running subscription that none of Stripe's lists had. Of a list that was not read to its end nothing follows.
    async fn ours(&self, comparison: &mut Comparison, now: DateTime<Utc>) -> Result<(), CompareError> {
        let mut tx = self.asker.store.begin().await?;
        let db = tx.connection()?;
        let after = comparison.run.place.clone().unwrap_or_default();
        let found = match comparison.run.left_out(Phase::Subscriptions) {
            true => Vec::new(),
            false => reconciliation::not_met(db, &comparison.run, &after, OURS_AT_ONCE).await?,
        };
        let full = i64::try_from(found.len()).is_ok_and(|count| OURS_AT_ONCE <= count);
        let next = found.last().filter(|_| full).map(|(customer, _)| customer.clone());
        for (customer, known) in &found {
            if let Some(subscription) = known.state.running().next().filter(|_| !comparison.met.contains(customer)) {
                let what = format!("subscription {subscription} runs here, and Stripe does not list it");
                comparison.differs(db, customer, what, now).await?;
            }
        }
        comparison.go_on(next, now);
        self.save(comparison, db).await?;
        Ok(tx.commit().await?)
    }

    /// Events that never came are taken as if they came now.
    async fn events(&self, comparison: &mut Comparison, now: DateTime<Utc>) -> Result<(), CompareError> {
        let next = match comparison.run.events_since {
            None => None,
            Some(since) => {
                let page = self.asker.client.events_page(since, comparison.run.place.as_deref()).await?;
                let read = page.items.iter().filter_map(|raw| Some((Event::from_json(raw.get().as_bytes(), now).ok()?, raw)));
                let ours: Vec<_> = read.filter(|(event, _)| EVENTS.contains(&event.kind.as_str())).collect();
                let ids: Vec<&str> = ours.iter().map(|(event, _)| event.id.as_str()).collect();
                let catalogue = self.asker.catalogue.load_full();
                let known = inbox::known(&mut self.asker.store.reader().await?, &ids).await?;
                // The oldest first, as they happened.
                for (event, raw) in ours.iter().rev().filter(|(event, _)| !known.contains(&event.id)) {
                    // One of this moment is on its way.
                    comparison.run.missed_events += i64::from(event.created + ON_ITS_WAY <= now);
                    if comparison.mode == Mode::Mend {
                        accept(&self.asker.store, &catalogue, &self.rules, event, raw.get().as_bytes(), now).await?;
                    }
                }
                page.next
            }
        };
        comparison.go_on(next, now);
        let mut tx = self.asker.store.begin().await?;
        self.save(comparison, tx.connection()?).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Bound to nobody, and may be.
fn is_free(known: &StoredCustomer) -> bool {
    owner(known).is_none() && !known.state.is_deleted()
}

/// From where the run after this one looks for events.
fn events_since(run: &Run) -> DateTime<Utc> {
    let begun = run.started_at - OVERLAP;
    if run.left_out(Phase::Events) { run.events_since.unwrap_or(begun) } else { begun }
}

impl Comparison {
    fn count<T>(&mut self, page: &Page<T>) {
        let count = |objects: usize| i64::try_from(objects).unwrap_or_default();
        self.run.checked += count(page.items.len());
        self.run.unread += count(page.unread);
    }

    async fn meet(&mut self, db: &mut Connection, customer: &str) -> Result<(), StoreError> {
        match self.mode {
            Mode::Mend => reconciliation::meet(db, customer, self.run.number).await,
            Mode::DryRun => {
                self.met.insert(customer.to_owned());
                Ok(())
            }
        }
    }

    /// Notes that a customer differs, and asks for Stripe to be asked about him. Who is to be asked about anyway is no news.
    async fn differs(&mut self, db: &mut Connection, customer: &str, what: String, now: DateTime<Utc>) -> Result<(), StoreError> {
        let asked_anyway = match self.mode {
            Mode::Mend => requests::waits(db, customer).await?,
            Mode::DryRun => !self.differing.insert(customer.to_owned()),
        };
        if asked_anyway {
            return Ok(());
        }
        self.run.drifted += 1;
        if self.run.drift.len() < TOLD_MAX {
            self.run.drift.push(Drift { customer: customer.to_owned(), what });
        }
        if self.mode == Mode::Mend {
            requests::raise(db, &Subject::Customer(customer.to_owned()), now).await?;
        }
        Ok(())
    }

    /// To the next page, or the next phase.
    fn go_on(&mut self, next: Option<String>, now: DateTime<Utc>) {
        if next.is_none() {
            self.run.phase = self.run.phase.next();
        }
        self.run.place = next;
        if self.run.phase == Phase::Done {
            self.run.finished_at = Some(now);
        }
    }
}

/// `active, price_pro × 1`
fn summary(snapshot: &Snapshot) -> String {
    let item = |price: Option<&str>, quantity: Option<u64>| match (price, quantity) {
        (Some(price), Some(quantity)) => format!("{price} × {quantity}"),
        (Some(price), None) => price.to_owned(),
        (None, _) => "an item without a price".to_owned(),
    };
    let items = snapshot.items.iter().map(|line| item(line.price.as_deref(), line.quantity));
    [snapshot.status.name().to_owned()].into_iter().chain(items).collect::<Vec<_>>().join(", ")
}
