//! How it stands in the database, in numbers, for who watches over it.

use chrono::{DateTime, Utc};

use super::{Connection, StoreError, from_micros, micros};

/// Each number is found by an index of few rows, or is one row: whoever asks every few seconds must not read a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Open at the moment of asking.
    pub holds_open: i64,
    /// When the oldest event was received that is not applied yet, since Stripe was not asked about it.
    pub queued_since: Option<DateTime<Utc>>,
    /// Events that are not applied because they are of another account or mode, or could not be read.
    pub events_parked: i64,
    /// Events about whose customer Stripe was asked in vain.
    pub events_dead: i64,
    /// When the last event was received.
    pub last_event_at: Option<DateTime<Utc>>,
    /// Customers about whom Stripe is to be asked.
    pub asks_waiting: i64,
    pub asks_given_up: i64,
    /// What the last comparison with Stripe found otherwise, and which events it found missing.
    pub drifted: i64,
    pub missed_events: i64,
    /// When it ended.
    pub reconciled_at: Option<DateTime<Utc>>,
    /// Deliveries of alerts that are to be made, and those that were given up.
    pub alerts_waiting: i64,
    pub alerts_parked: i64,
}

const FIGURES: &str = "SELECT \
     (SELECT COUNT(*) FROM holds WHERE ended_at IS NULL AND $1 < expires_at) AS holds_open, \
     (SELECT MIN(received_at) FROM inbox WHERE requested_seq IS NOT NULL AND state = 'queued') AS queued_since, \
     (SELECT COUNT(*) FROM inbox WHERE state IN ('parked', 'unreadable')) AS events_parked, \
     (SELECT COUNT(*) FROM inbox WHERE requested_seq IS NOT NULL AND state = 'dead') AS events_dead, \
     (SELECT received_at FROM inbox ORDER BY seq DESC LIMIT 1) AS last_event_at, \
     (SELECT COUNT(*) FROM requests WHERE due_at IS NOT NULL) AS asks_waiting, \
     (SELECT COUNT(*) FROM requests WHERE given_up_at IS NOT NULL) AS asks_given_up, \
     (SELECT drifted FROM reconciliation) AS drifted, \
     (SELECT missed_events FROM reconciliation) AS missed_events, \
     (SELECT finished_at FROM reconciliation) AS reconciled_at, \
     (SELECT COUNT(*) FROM outbox WHERE spread_at IS NULL) + (SELECT COUNT(*) FROM deliveries WHERE due_at IS NOT NULL) AS alerts_waiting, \
     (SELECT COUNT(*) FROM deliveries WHERE parked_at IS NOT NULL) AS alerts_parked";
const SCHEMA_VERSION: &str = "SELECT MAX(version) FROM _sqlx_migrations WHERE success";

pub async fn figures(db: &mut Connection, now: DateTime<Utc>) -> Result<Figures, StoreError> {
    let row = db.query(FIGURES).bind(micros(now)).fetch_one().await?;
    let time = |name: &str| row.try_get::<Option<i64>>(name)?.map(from_micros).transpose();
    let of_last_run = |name: &str| row.try_get::<Option<i64>>(name).map(Option::unwrap_or_default);
    Ok(Figures {
        holds_open: row.try_get("holds_open")?,
        queued_since: time("queued_since")?,
        events_parked: row.try_get("events_parked")?,
        events_dead: row.try_get("events_dead")?,
        last_event_at: time("last_event_at")?,
        asks_waiting: row.try_get("asks_waiting")?,
        asks_given_up: row.try_get("asks_given_up")?,
        drifted: of_last_run("drifted")?,
        missed_events: of_last_run("missed_events")?,
        reconciled_at: time("reconciled_at")?,
        alerts_waiting: row.try_get("alerts_waiting")?,
        alerts_parked: row.try_get("alerts_parked")?,
    })
}

/// The number of the last migration that the database has.
pub async fn schema_version(db: &mut Connection) -> Result<i64, StoreError> {
    Ok(db.query(SCHEMA_VERSION).scalar::<Option<i64>>().await?.unwrap_or_default())
}
