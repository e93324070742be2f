//! The last comparison of everything with Stripe: how far it came, and what it found.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::accounts::{StoredCustomer, read_customer};
use super::{Connection, StoreError, corrupt, from_micros, micros};

/// What is compared, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// All of Stripe's subscriptions, ended ones too.
    Subscriptions,
    /// All of Stripe's customers, for whom their metadata name.
    Customers,
    /// Ours, of whom Stripe's lists said nothing.
    Ours,
    /// Stripe's list of events, for those that never came.
    Events,
    Done,
}

impl Phase {
    pub const ALL: [Self; 5] = [Self::Subscriptions, Self::Customers, Self::Ours, Self::Events, Self::Done];

    pub fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Customers => "customers",
            Self::Ours => "ours",
            Self::Events => "events",
            Self::Done => "done",
        }
    }

    pub fn next(self) -> Self {
        match self {
            Self::Subscriptions => Self::Customers,
            Self::Customers => Self::Ours,
            Self::Ours => Self::Events,
            Self::Events | Self::Done => Self::Done,
        }
    }
}

/// A customer whom we knew otherwise than Stripe does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    pub customer: String,
    /// One sentence: what differed.
    pub what: String,
}

/// A list of Stripe's that could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub phase: Phase,
    /// Why, in Stripe's words where they are its.
    pub what: String,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number. Customers that it has met bear it.
    pub number: i64,
    pub phase: Phase,
    /// Where in the phase it is: the last id of the page before.
    pub place: Option<String>,
    /// Events from here on are looked for; `None` for the first run, which has no time before it.
    pub events_since: Option<DateTime<Utc>>,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Subscriptions and customers that were compared.
    pub checked: i64,
    pub drifted: i64,
    pub missed_events: i64,
    /// The first of those that differed.
    pub drift: Vec<Drift>,
    /// What was left out.
    pub faults: Vec<Fault>,
    /// Objects of Stripe's lists that could not be read.
    pub unread: i64,
}

impl Run {
    /// Whether a phase was left before its end.
    pub fn left_out(&self, phase: Phase) -> bool {
        self.faults.iter().any(|fault| fault.phase == phase)
    }
}

const LAST: &str = "SELECT run, phase, place, events_since, started_at, finished_at, checked, drifted, missed_events, drift, faults, unread FROM reconciliation";
const SAVE: &str = "INSERT INTO reconciliation (\"only\", run, phase, place, events_since, started_at, finished_at, checked, drifted, missed_events, drift, faults, unread) \
     VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (\"only\") DO UPDATE SET run = excluded.run, phase = excluded.phase, \
     place = excluded.place, events_since = excluded.events_since, started_at = excluded.started_at, finished_at = excluded.finished_at, \
     checked = excluded.checked, drifted = excluded.drifted, missed_events = excluded.missed_events, drift = excluded.drift, \
     faults = excluded.faults, unread = excluded.unread";
const MEET: &str = "UPDATE customers SET reconciled_in = $2 WHERE customer = $1";
const NOT_MET: &str = "SELECT customer, account_id, user_id, state FROM customers \
     WHERE reconciled_in <> $1 AND updated_at < $2 AND $3 < customer ORDER BY customer LIMIT $4";

/// The last one, finished or not.
pub async fn last(db: &mut Connection) -> Result<Option<Run>, StoreError> {
    let Some(row) = db.query(LAST).fetch_optional().await? else { return Ok(None) };
    let (phase, drift, faults): (String, String, String) = (row.try_get("phase")?, row.try_get("drift")?, row.try_get("faults")?);
    let time = |name: &str| row.try_get::<Option<i64>>(name)?.map(from_micros).transpose();
    Ok(Some(Run {
        number: row.try_get("run")?,
        phase: Phase::ALL.into_iter().find(|known| known.name() == phase).ok_or_else(|| corrupt("an unknown phase"))?,
        place: row.try_get("place")?,
        events_since: time("events_since")?,
        started_at: from_micros(row.try_get("started_at")?)?,
        finished_at: time("finished_at")?,
        checked: row.try_get("checked")?,
        drifted: row.try_get("drifted")?,
        missed_events: row.try_get("missed_events")?,
        drift: serde_json::from_str(&drift).map_err(|error| corrupt(&error.to_string()))?,
        faults: serde_json::from_str(&faults).map_err(|error| corrupt(&error.to_string()))?,
        unread: row.try_get("unread")?,
    }))
}

pub async fn save(db: &mut Connection, run: &Run) -> Result<(), StoreError> {
    let drift = serde_json::to_string(&run.drift).map_err(|error| corrupt(&error.to_string()))?;
    let faults = serde_json::to_string(&run.faults).map_err(|error| corrupt(&error.to_string()))?;
    let query = db.query(SAVE).bind(run.number).bind(run.phase.name()).bind(&run.place).bind(run.events_since.map(micros));
    let query = query.bind(micros(run.started_at)).bind(run.finished_at.map(micros)).bind(run.checked).bind(run.drifted);
    query.bind(run.missed_events).bind(drift).bind(faults).bind(run.unread).execute().await?;
    Ok(())
}

/// The run has met this customer, if we know him.
pub async fn meet(db: &mut Connection, customer: &str, run: i64) -> Result<(), StoreError> {
    db.query(MEET).bind(customer).bind(run).execute().await?;
    Ok(())
}

/// Customers of ours after `after`, in the order of their ids, whom the run has not met. What was written since it began may be younger than
/// the page where they would have been.
pub async fn not_met(db: &mut Connection, run: &Run, after: &str, limit: i64) -> Result<Vec<(String, StoredCustomer)>, StoreError> {
    let rows = db.query(NOT_MET).bind(run.number).bind(micros(run.started_at)).bind(after).bind(limit).fetch_all().await?;
    rows.iter().map(|row| Ok((row.try_get("customer")?, read_customer(row)?))).collect()
}
