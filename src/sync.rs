//! The one place where Stripe's word becomes our record. Stripe is not asked: what an event shows is applied, guarded by
//! `domain::subscription`, in the transaction that puts the event into the inbox.

use std::fmt;

use chrono::{DateTime, Utc};
use tracing::{info, warn};

use crate::domain::catalogue::Catalogue;
use crate::domain::subscription::{Change, Doubt, Notice};
use crate::domain::user::{AccountId, UserId};
use crate::store::accounts::{self, StoredCustomer};
use crate::store::inbox::{self, Alert, Arrival, Effect, EventState};
use crate::store::{Connection, Store, StoreError};
use crate::stripe::event::{Content, Event, NotAnEvent};

/// What the events are judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether events must be live (`Some(true)`) or test ones; `None` takes both.
    pub livemode: Option<bool>,
}

/// What became of a delivery.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The event had been received before; nothing was done.
    pub duplicate: bool,
    /// Whose record changed: what memory holds of them is stale.
    pub touched: Touched,
}

/// Puts the event into the inbox and applies it, in one transaction. `Ok` means that both are on the disk.
pub async fn accept(
    store: &Store,
    catalogue: &Catalogue,
    rules: &Rules,
    event: &Event,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<Accepted, StoreError> {
    let mut tx = store.begin().await?;
    let customer = event.facts.customer.as_deref();
    let arrival = Arrival { event_id: &event.id, kind: &event.kind, customer, received_at: now, body };
    if !inbox::accept(tx.connection()?, arrival).await? {
        tx.commit().await?;
        return Ok(Accepted { duplicate: true, touched: Touched::default() });
    }
    let (effect, touched) = apply(tx.connection()?, catalogue, rules, event, now).await?;
    inbox::settle(tx.connection()?, &event.id, &effect, now).await?;
    tx.commit().await?;
    report(event, &effect);
    Ok(Accepted { duplicate: false, touched })
}

/// Why an event cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotAnEvent(#[from] NotAnEvent),
}

/// Applies an event of the inbox again, as after a change of the catalogue or of a binding. `None` where there is no such
/// event. The guards hold: a replay cannot bring back what is over.
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
    let (effect, touched) = apply(tx.connection()?, catalogue, rules, &event, now).await?;
    inbox::settle(tx.connection()?, event_id, &effect, now).await?;
    tx.commit().await?;
    report(&event, &effect);
    Ok(Some(Accepted { duplicate: false, touched }))
}

/// Whom a customer pays for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    User(UserId),
    Account(AccountId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user `{user}`"),
            Self::Account(account) => write!(f, "account `{account}`"),
        }
    }
}

fn owner(stored: &StoredCustomer) -> Option<Owner> {
    stored.account.clone().map(Owner::Account).or_else(|| stored.user_id.clone().map(Owner::User))
}

/// Users of one account that are told apart; of a larger one it is quicker to read everybody again.
const TOUCHED_MAX: i64 = 1000;

/// Whose record changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    Users(Vec<UserId>),
    /// A large account, or nobody knows whom.
    Many,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Users(Vec::new())
    }
}

impl Touched {
    /// All users of an account.
    pub async fn members(db: &mut Connection, account: &AccountId) -> Result<Self, StoreError> {
        let users = accounts::members(db, account, "", TOUCHED_MAX).await?;
        Ok(if i64::try_from(users.len()).is_ok_and(|users| users < TOUCHED_MAX) { Self::Users(users) } else { Self::Many })
    }

    async fn of(db: &mut Connection, stored: &StoredCustomer) -> Result<Self, StoreError> {
        match owner(stored) {
            Some(Owner::Account(account)) => Self::members(db, &account).await,
            Some(Owner::User(user)) => Ok(Self::Users(vec![user])),
            None => Ok(Self::default()),
        }
    }
}

/// Binds a customer in the same transaction as the caller's other changes; one that the owner had before is let go. `Err` names whom it
/// is bound to already.
pub async fn bind(db: &mut Connection, to: &Owner, customer: &str, now: DateTime<Utc>) -> Result<Result<(), Owner>, StoreError> {
    let mut stored = accounts::customer(db, customer).await?.unwrap_or_default();
    match owner(&stored) {
        Some(other) if other != *to => return Ok(Err(other)),
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    match to {
        Owner::User(user) => {
            accounts::meet(db, user, now).await?;
            accounts::release_customer(db, user).await?;
            stored.user_id = Some(user.clone());
        }
        Owner::Account(account) => {
            accounts::make_account(db, account, now).await?;
            accounts::release_customer_of_account(db, account).await?;
            stored.account = Some(account.clone());
        }
    }
    accounts::put_customer(db, customer, &stored, now).await?;
    Ok(Ok(()))
}

async fn apply(
    db: &mut Connection,
    catalogue: &Catalogue,
    rules: &Rules,
    event: &Event,
    now: DateTime<Utc>,
) -> Result<(Effect, Touched), StoreError> {
    if let Some(account) = &event.account {
        let detail = format!("the event belongs to the connected account {account}; only our own account's events are applied");
        return Ok((parked("other_account", detail), Touched::default()));
    }
    if rules.livemode.is_some_and(|livemode| livemode != event.livemode) {
        let detail = format!("the event's livemode is {}, and STRIPE_API_KEY is of the other mode", event.livemode);
        return Ok((parked("other_mode", detail), Touched::default()));
    }
    let plain = |state: EventState, sentence: &str| Effect { state, sentence: sentence.to_owned(), alerts: Vec::new() };
    let effect = match &event.content {
        Content::Notice { customer, notice } => return notice_of(db, catalogue, event, customer, Some(notice), now).await,
        Content::Mapping { customer } => return notice_of(db, catalogue, event, customer, None, now).await,
        Content::Nudge { .. } => plain(EventState::Noted, "The subscription's own event says what changed; nothing to do."),
        Content::Catalogue => plain(EventState::Noted, "A price or product changed at Stripe; tiers.yaml says what it buys."),
        Content::Alert => {
            let detail = format!("{}: money went back or is disputed; no tier changes by itself", event.kind);
            Effect { alerts: vec![alert("money_returned", detail)], ..plain(EventState::Noted, "Noted; no tier changes by itself.") }
        }
        Content::Unreadable(why) => {
            let detail = format!("{}: {why}", event.kind);
            Effect { alerts: vec![alert("unreadable_event", detail)], ..plain(EventState::Unreadable, why) }
        }
        Content::Ignored => plain(EventState::Ignored, "Not of a kind that concerns us."),
    };
    Ok((effect, Touched::default()))
}

/// Applies what an event says of a customer, and binds the customer where the event may say to whom.
async fn notice_of(
    db: &mut Connection,
    catalogue: &Catalogue,
    event: &Event,
    customer: &str,
    notice: Option<&Notice>,
    now: DateTime<Utc>,
) -> Result<(Effect, Touched), StoreError> {
    let before = accounts::customer(db, customer).await?.unwrap_or_default();
    let mut alerts = Vec::new();
    let hint = trusted_hint(event, &mut alerts);
    let user_id = bound(db, &before, customer, hint, &mut alerts, now).await?;
    let account = before.account.clone();
    let (state, change) = match notice {
        Some(notice) => before.state.after(notice, catalogue, now),
        None => (before.state.clone(), Change::Latest),
    };
    if let Some(Notice::Subscription { subscription, .. }) = notice {
        alerts.extend(state.doubts(subscription, catalogue).iter().map(|doubt| doubt_alert(subscription, doubt)));
    }
    let after = StoredCustomer { account, user_id, state };
    if after != before || notice.is_none() {
        accounts::put_customer(db, customer, &after, now).await?;
    }
    let sentence = sentence(catalogue, event, customer, &before, &after, change, now);
    let touched = Touched::of(db, &after).await?;
    let state = match (change, owner(&after)) {
        (Change::Stale, _) => EventState::Stale,
        (Change::Latest, None) => EventState::Kept,
        (Change::Latest, Some(_)) => EventState::Applied,
    };
    Ok((Effect { state, sentence, alerts }, touched))
}

/// Whom the event names as the customer's user, where it may: metadata of customers and subscriptions is the operator's own.
/// A Checkout session's `client_reference_id` can be written by the buyer (Payment Links), so it binds nobody.
fn trusted_hint(event: &Event, alerts: &mut Vec<Alert>) -> Option<UserId> {
    let hint = event.facts.user_hint.as_deref()?;
    if event.kind.starts_with("checkout.session.") {
        return None;
    }
    match UserId::parse(hint) {
        Ok(user) => Some(user),
        Err(error) => {
            alerts.push(alert("bad_user_id", format!("metadata user_id {error}")));
            None
        }
    }
}

/// Whom the customer is bound to after `hint`. A webhook never moves a binding.
async fn bound(
    db: &mut Connection,
    before: &StoredCustomer,
    customer: &str,
    hint: Option<UserId>,
    alerts: &mut Vec<Alert>,
    now: DateTime<Utc>,
) -> Result<Option<UserId>, StoreError> {
    let Some(hint) = hint else { return Ok(before.user_id.clone()) };
    if before.account.is_some() {
        // An operator bound it to an account; whoever it names may be one of its users.
        return Ok(None);
    }
    if let Some(user) = &before.user_id {
        if *user != hint {
            let detail = format!("customer {customer} is bound to user {user}, but its metadata names {hint}; the binding stays");
            alerts.push(alert("binding_conflict", detail));
        }
        return Ok(Some(user.clone()));
    }
    if let Some(other) = accounts::customer_of(db, &hint).await? {
        let detail = format!("customer {customer} names user {hint}, who is bound to customer {other}; the binding stays");
        alerts.push(alert("binding_conflict", detail));
        return Ok(None);
    }
    accounts::meet(db, &hint, now).await?;
    Ok(Some(hint))
}

fn sentence(
    catalogue: &Catalogue,
    event: &Event,
    customer: &str,
    before: &StoredCustomer,
    after: &StoredCustomer,
    change: Change,
    now: DateTime<Utc>,
) -> String {
    let paid = |stored: &StoredCustomer| {
        let tier = stored.state.grant(catalogue, now).tier.unwrap_or(catalogue.default_tier());
        tier.name.clone()
    };
    let (was, is) = (paid(before), paid(after));
    let tier = if was == is { format!("tier {is}, as before") } else { format!("tier {was} → {is}") };
    match (owner(after), change) {
        (_, Change::Stale) => format!("Older than what is known of customer {customer}: {tier}."),
        (Some(Owner::User(user)), Change::Latest) => format!("Customer {customer} (user {user}): {tier}."),
        (Some(Owner::Account(account)), Change::Latest) => format!("Customer {customer} (account {account}): {tier}."),
        (None, Change::Latest) => {
            let hint = event.facts.user_hint.as_deref().map(|hint| format!(" It hints at user {hint}.")).unwrap_or_default();
            format!("Customer {customer} is bound to no user (PUT /v1/users/{{user_id}} binds it); kept until then: {tier}.{hint}")
        }
    }
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
    let (id, kind, state, sentence) = (&event.id, &event.kind, effect.state.name(), &effect.sentence);
    info!(event_id = %id, kind = %kind, state, "event {id} ({kind}) {state}: {sentence}");
    for alert in &effect.alerts {
        warn!(event_id = %id, code = %alert.code, "event {id}: {}: {}", alert.code, alert.detail);
    }
}
