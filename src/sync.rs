//! The one place where Stripe's word becomes our record.
//!
//! With an API key an event is a nudge: it is put into the inbox, the customer is asked about later, and Stripe's answer is what counts
//! (`asking`). Without one, what an event shows is applied in the transaction that puts it into the inbox (`shown`).

pub mod asking;
mod binding;
pub mod reconcile;
mod shown;
mod telling;

use chrono::{DateTime, Utc};
use tracing::{info, warn};

use crate::domain::catalogue::Catalogue;
use crate::domain::subscription::Doubt;
use crate::store::accounts::StoredCustomer;
use crate::store::inbox::{self, Alert, Arrival, Effect, EventState};
use crate::store::requests::{self, Subject, Ticket};
use crate::store::{Connection, Store, StoreError};
use crate::stripe::event::{Content, Event, NotAnEvent};
pub use binding::{Owner, Touched, bind};

/// What the events are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether events must be live (`Some(true)`) or test ones; `None` takes both.
    pub livemode: Option<bool>,
    /// Whether Stripe is asked, and events are nudges.
    pub asks: bool,
}

/// What became of a delivery.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The event had been received before; nothing was done.
    pub duplicate: bool,
    /// Whose record changed: what memory holds of them is stale.
    pub touched: Touched,
    /// Whether all should be compared with Stripe: a price has other names now.
    pub renamed: bool,
}

/// Puts the event into the inbox and applies it, or asks for its customer to be asked about, in one transaction. `Ok` means that it is
/// on the disk.
pub async fn accept(
    store: &Store,
    catalogue: &Catalogue,
    rules: &Rules,
    event: &Event,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<Accepted, StoreError> {
    // Asking for a question is right beside anything else; what is applied as it shows reads what it changes.
    let mut tx = if rules.asks { store.begin_aside().await? } else { store.begin().await? };
    // Where only the subscription is named it stands in until Stripe says whose it is.
    let customer = event.facts.customer.as_deref().or(event.facts.subscription.as_deref().filter(|_| rules.asks));
    let arrival = Arrival { event_id: &event.id, kind: &event.kind, customer, received_at: now, body };
    if !inbox::accept(tx.connection()?, arrival).await? {
        tx.commit().await?;
        return Ok(Accepted { duplicate: true, touched: Touched::default(), renamed: false });
    }
    let done = apply(tx.connection()?, catalogue, rules, event, now).await?;
    inbox::settle(tx.connection()?, &event.id, &done.effect, done.nudge, now).await?;
    tx.commit().await?;
    report(event, &done.effect);
    Ok(done.accepted())
}

/// Why an event cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotAnEvent(#[from] NotAnEvent),
}

/// Applies an event of the inbox again, as after a change of the catalogue or of a binding, or after it was given up. `None` where there
/// is no such event. The guards hold: a replay cannot bring back what is over.
pub async fn replay(
    store: &Store,
    catalogue: &Catalogue,
    rules: &Rules,
    event_id: &str,
    now: DateTime<Utc>,
) -> Result<Option<Accepted>, ReplayError> {
    let mut tx = store.begin().await?;
    let Some((received, body)) = inbox::one(tx.connection()?, event_id).await? else {
        tx.commit().await?;
        return Ok(None);
    };
    let event = Event::from_json(&body, received.received_at)?;
    let done = apply(tx.connection()?, catalogue, rules, &event, now).await?;
    inbox::settle(tx.connection()?, event_id, &done.effect, done.nudge, now).await?;
    tx.commit().await?;
    report(&event, &done.effect);
    Ok(Some(done.accepted()))
}

/// What an event came to.
struct Done {
    effect: Effect,
    touched: Touched,
    /// Under which number its customer is asked about.
    nudge: Option<Ticket>,
    renamed: bool,
}

impl Done {
    fn noted(effect: Effect) -> Self {
        Self { effect, touched: Touched::default(), nudge: None, renamed: false }
    }

    fn accepted(self) -> Accepted {
        Accepted { duplicate: false, touched: self.touched, renamed: self.renamed }
    }
}

async fn apply(db: &mut Connection, catalogue: &Catalogue, rules: &Rules, event: &Event, now: DateTime<Utc>) -> Result<Done, StoreError> {
    if let Some(account) = &event.account {
        let detail = format!("the event belongs to the connected account {account}; only our own account's events are applied");
        return Ok(Done::noted(parked("other_account", detail)));
    }
    if rules.livemode.is_some_and(|livemode| livemode != event.livemode) {
        let detail = format!("the event's livemode is {}, and STRIPE_API_KEY is of the other mode", event.livemode);
        return Ok(Done::noted(parked("other_mode", detail)));
    }
    let plain = |state: EventState, sentence: &str| Effect { state, sentence: sentence.to_owned(), alerts: Vec::new() };
    let (customer, notice) = match &event.content {
        Content::Notice { customer, notice } => (Some(customer), Some(notice)),
        Content::Mapping { customer } => (Some(customer), None),
        Content::Nudge { customer } => (customer.as_ref(), None),
        Content::Catalogue { renamed } => {
            let sentence = match (*renamed, rules.asks) {
                (false, _) => "A price or product changed at Stripe; tiers.yaml says what it buys.",
                (true, true) => "A price has other names at Stripe; everything is compared.",
                (true, false) => {
                    "A price has other names at Stripe; who has it is mapped by them from the next event of his subscription on."
                }
            };
            return Ok(Done { renamed: *renamed && rules.asks, ..Done::noted(plain(EventState::Noted, sentence)) });
        }
        Content::Alert => {
            let detail = format!("{}: money went back or is disputed; no tier changes by itself", event.kind);
            let effect = plain(EventState::Noted, "Noted; no tier changes by itself.");
            return Ok(Done::noted(Effect { alerts: vec![alert("money_returned", detail)], ..effect }));
        }
        Content::Unreadable(why) => {
            let detail = format!("{}: {why}", event.kind);
            let effect = plain(EventState::Unreadable, why);
            telling::unreadable(db, event, why, now).await?;
            return Ok(Done::noted(Effect { alerts: vec![alert("unreadable_event", detail)], ..effect }));
        }
        Content::Ignored => return Ok(Done::noted(plain(EventState::Ignored, "Not of a kind that concerns us."))),
    };
    if rules.asks {
        let subscription = || event.facts.subscription.clone().map(Subject::Subscription);
        if let Some(subject) = customer.cloned().map(Subject::Customer).or_else(subscription) {
            let nudge = requests::raise(db, &subject, now).await?;
            let effect = plain(EventState::Queued, "Stripe is asked about it.");
            return Ok(Done { nudge: Some(nudge), ..Done::noted(effect) });
        }
        return Ok(Done::noted(plain(EventState::Noted, "It names nobody about whom Stripe could be asked.")));
    }
    match (&event.content, customer) {
        (Content::Nudge { .. }, _) | (_, None) => {
            Ok(Done::noted(plain(EventState::Noted, "The subscription's own event says what changed; nothing to do.")))
        }
        (_, Some(customer)) => {
            let (effect, touched) = shown::apply(db, catalogue, event, customer, notice, now).await?;
            Ok(Done { touched, ..Done::noted(effect) })
        }
    }
}

/// `tier pro → free`
fn tier_sentence(catalogue: &Catalogue, before: &StoredCustomer, after: &StoredCustomer, now: DateTime<Utc>) -> String {
    let paid = |stored: &StoredCustomer| {
        let tier = stored.state.grant(catalogue, now).tier.unwrap_or(catalogue.default_tier());
        tier.name.clone()
    };
    let (was, is) = (paid(before), paid(after));
    if was == is { format!("tier {is}, as before") } else { format!("tier {was} → {is}") }
}

fn unbound(customer: &str) -> String {
    format!("Customer {customer} is bound to no user (PUT /v1/users/{{user_id}} binds it); kept until then")
}

fn parked(code: &str, detail: String) -> Effect {
    Effect { state: EventState::Parked, sentence: detail.clone(), alerts: vec![alert(code, detail)] }
}

fn alert(code: &str, detail: String) -> Alert {
    Alert { code: code.to_owned(), detail }
}

fn doubt_alert(subscription: &str, doubt: &Doubt) -> Alert {
    match doubt {
        Doubt::UnmappedPrice { prices, kept } => {
            let prices = prices.join(", ");
            let kept = kept.as_ref().map_or("it had none, so the default tier holds".to_owned(), |tier| format!("tier {tier} is kept"));
            alert("unmapped_price", format!("subscription {subscription} pays for {prices}, which no tier of tiers.yaml names; {kept}"))
        }
        Doubt::MissingItems { shown } => alert(
            "missing_items",
            format!("subscription {subscription} came with {shown} items and not all; what is not shown buys nothing"),
        ),
        Doubt::UnknownStatus { status } => alert(
            "unknown_status",
            format!("subscription {subscription} has the status \"{status}\", which is not known; the tier is kept"),
        ),
    }
}

fn report(event: &Event, effect: &Effect) {
    let (id, kind, state) = (&event.id, &event.kind, effect.state.name());
    info!(event_id = %id, kind = %kind, state, "event {id} ({kind}) {state}; GET /v1/events/{id} says what it did");
    for alert in &effect.alerts {
        warn!(event_id = %id, code = %alert.code, "event {id}: {}: {}", alert.code, logged(alert));
    }
}

/// What the log is told of an alert. Some name users, whose ids may be e-mail addresses: those are told in full by the inbox only, and so is
/// one that is not named here.
fn logged(alert: &Alert) -> &str {
    const WITHOUT_USERS: [&str; 8] = [
        "other_account",
        "other_mode",
        "money_returned",
        "unreadable_event",
        "unmapped_price",
        "missing_items",
        "unknown_status",
        "sync_failed",
    ];
    if WITHOUT_USERS.contains(&alert.code.as_str()) { &alert.detail } else { "GET /v1/events has the event, and says more" }
}
