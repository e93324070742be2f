//! What is still to be told to others: each alert once, and its way to each endpoint.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::backend::by_list;
use super::{Connection, Row, StoreError, corrupt, from_micros, list, micros};
use crate::domain::alert::{Alert, AlertKind};
use crate::domain::user::UserId;

const RAISE: &str = "INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (alert_id) DO NOTHING";
const UNSPREAD: &str = "SELECT alert_id FROM outbox WHERE spread_at IS NULL ORDER BY created_at, alert_id LIMIT $1";
const SPREAD: &str = "INSERT INTO deliveries (alert_id, endpoint, due_at) \
     SELECT alerts.value, endpoints.value, CAST($3 AS BIGINT) FROM json_each($1) AS alerts CROSS JOIN json_each($2) AS endpoints WHERE true \
     ON CONFLICT (alert_id, endpoint) DO NOTHING";
const IS_SPREAD: (&str, &str) = by_list!("UPDATE outbox SET spread_at = $2 WHERE spread_at IS NULL AND alert_id", "$1", "");
/// A backlog may be long: what was due first is taken by its index, and only that is looked up and put in order.
const DUE: &str = "SELECT o.alert_id, o.kind, o.user_id, o.message, o.details, o.created_at, d.tries, d.due_at \
     FROM (SELECT alert_id, tries, due_at FROM deliveries WHERE endpoint = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3) d \
     JOIN outbox o ON o.alert_id = d.alert_id ORDER BY o.created_at, o.alert_id";
/// Only where nobody asked for it anew meanwhile.
const TRIED: &str = "UPDATE deliveries SET tries = tries + 1, due_at = $4, delivered_at = $5, parked_at = $6, error = $7 \
     WHERE alert_id = $1 AND endpoint = $2 AND due_at = $3";
const AGAIN: &str = "INSERT INTO deliveries (alert_id, endpoint, due_at) \
     SELECT CAST($1 AS TEXT), endpoints.value, CAST($3 AS BIGINT) FROM json_each($2) AS endpoints WHERE true \
     ON CONFLICT (alert_id, endpoint) DO UPDATE SET tries = 0, due_at = excluded.due_at, delivered_at = NULL, parked_at = NULL, error = NULL";
/// To endpoints that nobody has any more.
const PARK_STRAYS: &str = "UPDATE deliveries SET due_at = NULL, parked_at = $2, error = 'no endpoint of this name is configured' \
     WHERE due_at < $1 AND endpoint NOT IN (SELECT value FROM json_each($3))";
/// Whatever it waits for comes before what was given up, and that before what went well.
macro_rules! listed {
    ($of:literal) => {
        concat!(
            "SELECT o.alert_id, o.kind, o.user_id, o.message, o.details, o.created_at, CASE WHEN o.spread_at IS NULL OR EXISTS \
             (SELECT 1 FROM deliveries d WHERE d.alert_id = o.alert_id AND d.due_at IS NOT NULL) THEN 'waiting' WHEN EXISTS \
             (SELECT 1 FROM deliveries d WHERE d.alert_id = o.alert_id AND d.parked_at IS NOT NULL) THEN 'parked' WHEN EXISTS \
             (SELECT 1 FROM deliveries d WHERE d.alert_id = o.alert_id) THEN 'delivered' ELSE 'none' END AS state FROM outbox o",
            $of
        )
    };
}
const ONE: &str = listed!(" WHERE o.alert_id = $1");
const PAGE: &str = concat!(
    "SELECT * FROM (",
    listed!(" WHERE (o.created_at, o.alert_id) < ($1, $2) AND (o.created_at, o.alert_id) >= ($7, $8)"),
    ") listed WHERE ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR user_id = $4) AND ($5 IS NULL OR state = $5) \
     ORDER BY created_at DESC, alert_id DESC LIMIT $6"
);
const LOOKED_THROUGH: &str = "SELECT created_at, alert_id FROM outbox WHERE (created_at, alert_id) < ($1, $2) \
     ORDER BY created_at DESC, alert_id DESC LIMIT 1 OFFSET $3";
const DELIVERIES: (&str, &str) = by_list!(
    "SELECT alert_id, endpoint, tries, due_at, delivered_at, parked_at, error FROM deliveries WHERE alert_id",
    "$1",
    " ORDER BY alert_id, endpoint"
);
const OLD: &str = "SELECT alert_id, kind, details, created_at FROM outbox o \
     WHERE (created_at, alert_id) > ($1, $2) AND created_at < $3 AND spread_at IS NOT NULL \
     AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.alert_id = o.alert_id AND d.due_at IS NOT NULL) ORDER BY created_at, alert_id LIMIT $4";
const FORGET_DELIVERIES: (&str, &str) = by_list!("DELETE FROM deliveries WHERE alert_id", "$1", "");
const FORGET: (&str, &str) = by_list!("DELETE FROM outbox WHERE alert_id", "$1", "");

/// Of so many alerts a filter may leave out all but few, for one page: without an end of it one call could read all that there are.
const LOOKED_THROUGH_MAX: i64 = 10_000;

/// What is told of an alert.
#[derive(Clone, Debug)]
pub struct Told {
    pub alert_id: String,
    pub kind: AlertKind,
    pub user_id: Option<String>,
    /// One sentence for people.
    pub message: String,
    /// A JSON object for programs.
    pub details: String,
    pub created_at: DateTime<Utc>,
}

/// An alert that is to go to one endpoint now.
#[derive(Clone, Debug)]
pub struct Due {
    pub alert: Told,
    /// Tries before this one, since it was asked for.
    pub tries: u32,
    due_at: i64,
}

/// What a try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered { at: DateTime<Utc> },
    AgainAt { at: DateTime<Utc>, error: String },
    Parked { at: DateTime<Utc>, error: String },
}

/// How far an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Somebody is still to be told.
    Waiting,
    /// Everybody was told.
    Delivered,
    /// Somebody could not be told, and it is given up.
    Parked,
    /// There was nobody to be told.
    None,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Delivered, Self::Parked, Self::None];

    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Parked => "parked",
            Self::None => "none",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// An alert's way to one endpoint.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub endpoint: String,
    pub tries: i64,
    pub due_at: Option<DateTime<Utc>>,
    pub delivered_at: Option<DateTime<Utc>>,
    pub parked_at: Option<DateTime<Utc>>,
    pub error: Option<String>,
}

/// An alert as the operator sees it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub alert: Told,
    pub state: State,
    pub deliveries: Vec<Delivery>,
}

/// Which alerts are listed; `None` is all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub kind: Option<AlertKind>,
    pub user_id: Option<UserId>,
    pub state: Option<State>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.user_id.is_none() && self.state.is_none()
    }
}

/// A place in the list, by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub micros: i64,
    pub alert_id: String,
}

impl Place {
    pub const FIRST: Self = Self { micros: i64::MIN, alert_id: String::new() };
    pub const LAST: Self = Self { micros: i64::MAX, alert_id: String::new() };

    pub fn of(alert: &Told) -> Self {
        Self { micros: micros(alert.created_at), alert_id: alert.alert_id.clone() }
    }
}

/// An alert that is old enough to go.
#[derive(Clone, Debug)]
pub struct Old {
    pub place: Place,
    pub kind: AlertKind,
    pub details: String,
}

/// Notes what is to be told, in the transaction that brought it about. What was raised before stays as it was.
pub async fn raise(db: &mut Connection, alerts: &[Alert]) -> Result<(), StoreError> {
    for alert in alerts {
        let query = db.query(RAISE).bind(alert.id()).bind(&alert.key).bind(alert.kind.name());
        let query = query.bind(alert.user_id.as_ref().map(|user| user.as_str())).bind(&alert.message);
        query.bind(&alert.details).bind(micros(alert.at)).execute().await?;
    }
    Ok(())
}

/// The oldest of those that no endpoint was given yet.
pub async fn unspread(db: &mut Connection, limit: i64) -> Result<Vec<String>, StoreError> {
    db.query(UNSPREAD).bind(limit).scalars().await
}

/// Gives alerts to the endpoints, to be sent at once. Without an endpoint they are given to nobody, and stay listed.
pub async fn spread(db: &mut Connection, alert_ids: &[String], endpoints: &[&str], now: DateTime<Utc>) -> Result<(), StoreError> {
    let alerts = list(alert_ids.iter().map(String::as_str));
    db.query(SPREAD).bind(&alerts).bind(list(endpoints.iter().copied())).bind(micros(now)).execute().await?;
    db.query_of(IS_SPREAD.0, IS_SPREAD.1).bind(&alerts).bind(micros(now)).execute().await?;
    Ok(())
}

/// What was due first at an endpoint, and of that the oldest alert first.
pub async fn due(db: &mut Connection, endpoint: &str, now: DateTime<Utc>, limit: i64) -> Result<Vec<Due>, StoreError> {
    let rows = db.query(DUE).bind(endpoint).bind(micros(now)).bind(limit).fetch_all().await?;
    let read = |row: &Row| {
        let tries: i64 = row.try_get("tries")?;
        Ok(Due { alert: told(row)?, tries: u32::try_from(tries).unwrap_or(u32::MAX), due_at: row.try_get("due_at")? })
    };
    rows.iter().map(read).collect()
}

/// Notes what a try came to, unless it was asked for anew while it was under way: then it is sent again.
pub async fn tried(db: &mut Connection, endpoint: &str, due: &Due, outcome: &Outcome) -> Result<(), StoreError> {
    let (due_at, delivered_at, parked_at, error) = match outcome {
        Outcome::Delivered { at } => (None, Some(*at), None, None),
        Outcome::AgainAt { at, error } => (Some(*at), None, None, Some(error)),
        Outcome::Parked { at, error } => (None, None, Some(*at), Some(error)),
    };
    let query = db.query(TRIED).bind(&due.alert.alert_id).bind(endpoint).bind(due.due_at).bind(due_at.map(micros));
    query.bind(delivered_at.map(micros)).bind(parked_at.map(micros)).bind(error).execute().await?;
    Ok(())
}

/// Lets an alert go to these endpoints anew, whether it went there before or not.
pub async fn again(db: &mut Connection, alert_id: &str, endpoints: &[&str], now: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(AGAIN).bind(alert_id).bind(list(endpoints.iter().copied())).bind(micros(now)).execute().await?;
    Ok(())
}

/// Gives up what has been due since before `horizon` at endpoints other than these.
pub async fn park_strays(db: &mut Connection, horizon: DateTime<Utc>, endpoints: &[&str], now: DateTime<Utc>) -> Result<u64, StoreError> {
    db.query(PARK_STRAYS).bind(micros(horizon)).bind(micros(now)).bind(list(endpoints.iter().copied())).execute().await
}

/// The latest first, those before `before`, and behind which the next page begins. A page of some of them may be short, or empty, and
/// not be the last.
pub async fn page(db: &mut Connection, filter: &Filter, before: &Place, limit: i64) -> Result<(Vec<Listed>, Option<Place>), StoreError> {
    // First, so that nothing that comes or goes meanwhile lies between two pages.
    let mut end = None;
    if !filter.is_empty() {
        let query = db.query(LOOKED_THROUGH).bind(before.micros).bind(&before.alert_id).bind(LOOKED_THROUGH_MAX - 1);
        end = query.fetch_all().await?.first().map(place).transpose()?;
    }
    let from = end.clone().unwrap_or(Place::FIRST);
    let query = db.query(PAGE).bind(before.micros).bind(&before.alert_id).bind(filter.kind.map(AlertKind::name));
    let query = query.bind(filter.user_id.as_ref().map(|user| user.as_str())).bind(filter.state.map(State::name));
    let rows = query.bind(limit).bind(from.micros).bind(&from.alert_id).fetch_all().await?;
    let listed = with_deliveries(db, &rows).await?;
    let full = listed.last().filter(|_| usize::try_from(limit).is_ok_and(|limit| limit <= listed.len()));
    let behind = full.map(|last| Place::of(&last.alert)).or(end);
    Ok((listed, behind))
}

pub async fn one(db: &mut Connection, alert_id: &str) -> Result<Option<Listed>, StoreError> {
    let rows = db.query(ONE).bind(alert_id).fetch_all().await?;
    Ok(with_deliveries(db, &rows).await?.pop())
}

async fn with_deliveries(db: &mut Connection, rows: &[Row]) -> Result<Vec<Listed>, StoreError> {
    let mut listed = rows.iter().map(listed).collect::<Result<Vec<_>, _>>()?;
    let ids = list(listed.iter().map(|listed| listed.alert.alert_id.as_str()));
    let mut deliveries: HashMap<String, Vec<Delivery>> = HashMap::new();
    for row in db.query_of(DELIVERIES.0, DELIVERIES.1).bind(ids).fetch_all().await? {
        deliveries.entry(row.try_get("alert_id")?).or_default().push(delivery(&row)?);
    }
    for listed in &mut listed {
        listed.deliveries = deliveries.remove(&listed.alert.alert_id).unwrap_or_default();
    }
    Ok(listed)
}

/// Alerts from before `horizon` behind a place, the oldest first, which wait for nothing.
pub async fn old(db: &mut Connection, behind: &Place, horizon: DateTime<Utc>, limit: i64) -> Result<Vec<Old>, StoreError> {
    let query = db.query(OLD).bind(behind.micros).bind(&behind.alert_id).bind(micros(horizon)).bind(limit);
    let read = |row: &Row| Ok(Old { place: place(row)?, kind: kind(row)?, details: row.try_get("details")? });
    query.fetch_all().await?.iter().map(read).collect()
}

/// What is forgotten may be raised again.
pub async fn forget(db: &mut Connection, alert_ids: &[&str]) -> Result<(), StoreError> {
    let ids = list(alert_ids.iter().copied());
    db.query_of(FORGET_DELIVERIES.0, FORGET_DELIVERIES.1).bind(&ids).execute().await?;
    db.query_of(FORGET.0, FORGET.1).bind(&ids).execute().await?;
    Ok(())
}

fn place(row: &Row) -> Result<Place, StoreError> {
    Ok(Place { micros: row.try_get("created_at")?, alert_id: row.try_get("alert_id")? })
}

fn kind(row: &Row) -> Result<AlertKind, StoreError> {
    let name: String = row.try_get("kind")?;
    AlertKind::parse(&name).ok_or_else(|| corrupt("an alert of an unknown kind"))
}

fn told(row: &Row) -> Result<Told, StoreError> {
    Ok(Told {
        alert_id: row.try_get("alert_id")?,
        kind: kind(row)?,
        user_id: row.try_get("user_id")?,
        message: row.try_get("message")?,
        details: row.try_get("details")?,
        created_at: from_micros(row.try_get("created_at")?)?,
    })
}

fn listed(row: &Row) -> Result<Listed, StoreError> {
    let state: String = row.try_get("state")?;
    let state = State::parse(&state).ok_or_else(|| corrupt("an alert in an unknown state"))?;
    Ok(Listed { alert: told(row)?, state, deliveries: Vec::new() })
}

fn delivery(row: &Row) -> Result<Delivery, StoreError> {
    let time = |name: &str| row.try_get::<Option<i64>>(name)?.map(from_micros).transpose();
    Ok(Delivery {
        endpoint: row.try_get("endpoint")?,
        tries: row.try_get("tries")?,
        due_at: time("due_at")?,
        delivered_at: time("delivered_at")?,
        parked_at: time("parked_at")?,
        error: row.try_get("error")?,
    })
}
