//! The inbox: every Stripe event that was received, once each.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::backend::by_list;
use super::requests::Ticket;
use super::{Connection, Row, StoreError, corrupt, from_micros, list, micros};

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// Our record of its customer says now what it says.
    Applied,
    /// Its customer is not bound to a user yet; it counts as soon as it is.
    Kept,
    /// Older than what we know.
    Stale,
    /// Of interest, but it changes nothing by itself.
    Noted,
    /// Of a kind that does not concern us.
    Ignored,
    /// Another account's, or another mode's: not applied, and an alert.
    Parked,
    /// Of a kind that does concern us, without what it needs: an alert.
    Unreadable,
    /// Stripe is to be asked about its customer.
    Queued,
    /// Stripe was asked in vain, as often as makes sense: an alert. A replay asks again.
    Dead,
}

impl EventState {
    pub const ALL: [Self; 9] =
        [Self::Applied, Self::Kept, Self::Stale, Self::Noted, Self::Ignored, Self::Parked, Self::Unreadable, Self::Queued, Self::Dead];

    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Kept => "kept",
            Self::Stale => "stale",
            Self::Noted => "noted",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Unreadable => "unreadable",
            Self::Queued => "queued",
            Self::Dead => "dead",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Something that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// A stable name, as `unmapped_price`.
    pub code: String,
    pub detail: String,
}

/// What an event did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub state: EventState,
    /// One sentence.
    pub sentence: String,
    pub alerts: Vec<Alert>,
}

/// An event in the inbox, without its body.
#[derive(Clone, Debug)]
pub struct Received {
    pub seq: i64,
    pub event_id: String,
    pub kind: String,
    pub customer: Option<String>,
    pub received_at: DateTime<Utc>,
    pub applied_at: DateTime<Utc>,
    pub effect: Effect,
}

/// An event that has just come.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub event_id: &'a str,
    pub kind: &'a str,
    pub customer: Option<&'a str>,
    pub received_at: DateTime<Utc>,
    pub body: &'a [u8],
}

const ACCEPT: &str = "INSERT INTO inbox (event_id, kind, customer, received_at, applied_at, state, effect, alerts, body) \
     VALUES ($1, $2, $3, $4, $4, 'noted', '', '[]', $5) ON CONFLICT (event_id) DO NOTHING";
const SETTLE: &str = "UPDATE inbox SET state = $2, effect = $3, alerts = $4, applied_at = $5, requested_seq = $6 WHERE event_id = $1";
/// The alerts stand at the latest of the events.
const SETTLE_AWAITING: &str = "UPDATE inbox SET state = $3, effect = $4, applied_at = $6, \
     requested_seq = CASE WHEN $3 = 'dead' THEN requested_seq END, \
     alerts = CASE WHEN seq = (SELECT MAX(seq) FROM inbox WHERE customer = $1 AND requested_seq <= $2) THEN $5 ELSE '[]' END \
     WHERE customer = $1 AND requested_seq <= $2";
const HAND_OVER: &str = "UPDATE inbox SET customer = $2, requested_seq = $4 WHERE customer = $1 AND requested_seq <= $3";
const HAS: (&str, &str) = by_list!("SELECT event_id FROM inbox WHERE event_id", "$1", "");
const ONE: &str =
    "SELECT seq, event_id, kind, customer, received_at, applied_at, state, effect, alerts, body FROM inbox WHERE event_id = $1";
const PAGE: &str = "SELECT seq, event_id, kind, customer, received_at, applied_at, state, effect, alerts FROM inbox \
     WHERE seq < $1 AND ($2 IS NULL OR state = $2) AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR customer = $4) \
     ORDER BY seq DESC LIMIT $5";
const LAST_APPLIED: &str = "SELECT seq, event_id, kind, customer, received_at, applied_at, state, effect, alerts FROM inbox \
     WHERE customer = $1 AND state IN ('applied', 'kept') ORDER BY seq DESC LIMIT 1";

/// `false` where the event is there already.
pub async fn accept(db: &mut Connection, arrival: Arrival<'_>) -> Result<bool, StoreError> {
    let query = db.query(ACCEPT).bind(arrival.event_id).bind(arrival.kind).bind(arrival.customer);
    let done = query.bind(micros(arrival.received_at)).bind(arrival.body).execute().await?;
    Ok(0 < done)
}

/// What an event did. With a `nudge` it awaits what Stripe answers to that number or a later one.
pub async fn settle(
    db: &mut Connection,
    event_id: &str,
    effect: &Effect,
    nudge: Option<Ticket>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let query = db.query(SETTLE).bind(event_id).bind(effect.state.name()).bind(&effect.sentence).bind(write_alerts(&effect.alerts)?);
    query.bind(micros(now)).bind(nudge).execute().await?;
    Ok(())
}

/// What Stripe's answer to the question of `ticket` did to every event that awaited it. Those that are dead go on to be found.
pub async fn settle_awaiting(
    db: &mut Connection,
    customer: &str,
    ticket: Ticket,
    effect: &Effect,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let query = db.query(SETTLE_AWAITING).bind(customer).bind(ticket).bind(effect.state.name()).bind(&effect.sentence);
    query.bind(write_alerts(&effect.alerts)?).bind(micros(now)).execute().await?;
    Ok(())
}

/// It turned out whose subscription it is: what awaited an answer about it awaits one about the customer.
pub async fn hand_over(db: &mut Connection, subscription: &str, customer: &str, ticket: Ticket, nudge: Ticket) -> Result<(), StoreError> {
    db.query(HAND_OVER).bind(subscription).bind(customer).bind(ticket).bind(nudge).execute().await?;
    Ok(())
}

/// Those of `ids` that were received.
pub async fn known(db: &mut Connection, ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let found: Vec<String> = db.query_of(HAS.0, HAS.1).bind(list(ids.iter().copied())).scalars().await?;
    Ok(found.into_iter().collect())
}

fn write_alerts(alerts: &[Alert]) -> Result<String, StoreError> {
    serde_json::to_string(alerts).map_err(|error| corrupt(&error.to_string()))
}

/// The event and its body as it came.
pub async fn one(db: &mut Connection, event_id: &str) -> Result<Option<(Received, Vec<u8>)>, StoreError> {
    let row = db.query(ONE).bind(event_id).fetch_optional().await?;
    row.map(|row| Ok((read(&row)?, row.try_get("body")?))).transpose()
}

/// Which events a list shows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub state: Option<EventState>,
    pub kind: Option<String>,
    pub customer: Option<String>,
}

/// The latest first, those before `before`.
pub async fn page(db: &mut Connection, filter: &Filter, before: i64, limit: i64) -> Result<Vec<Received>, StoreError> {
    let query = db.query(PAGE).bind(before).bind(filter.state.map(EventState::name)).bind(&filter.kind).bind(&filter.customer);
    query.bind(limit).fetch_all().await?.iter().map(read).collect()
}

/// The latest event that our record of the customer follows.
pub async fn last_applied(db: &mut Connection, customer: &str) -> Result<Option<Received>, StoreError> {
    db.query(LAST_APPLIED).bind(customer).fetch_optional().await?.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<Received, StoreError> {
    let state: String = row.try_get("state")?;
    let alerts: String = row.try_get("alerts")?;
    Ok(Received {
        seq: row.try_get("seq")?,
        event_id: row.try_get("event_id")?,
        kind: row.try_get("kind")?,
        customer: row.try_get("customer")?,
        received_at: from_micros(row.try_get("received_at")?)?,
        applied_at: from_micros(row.try_get("applied_at")?)?,
        effect: Effect {
            state: EventState::parse(&state).ok_or_else(|| corrupt("an unknown event state"))?,
            sentence: row.try_get("effect")?,
            alerts: serde_json::from_str(&alerts).map_err(|error| corrupt(&error.to_string()))?,
        },
    })
}
