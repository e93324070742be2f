//! What Stripe is to be asked about, and the numbers by which an answer tells whether it is the latest.

use chrono::{DateTime, Utc};

use super::{Backend, Connection, Row, StoreError, corrupt, from_micros, list, micros};

/// A number that is larger than every one before it.
pub type Ticket = i64;

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Customer(String),
    /// Only Stripe knows whose it is.
    Subscription(String),
}

impl Subject {
    pub fn id(&self) -> &str {
        match self {
            Self::Customer(id) | Self::Subscription(id) => id,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Customer(_) => "customer",
            Self::Subscription(_) => "subscription",
        }
    }
}

/// Something that Stripe is to be asked about.
#[derive(Clone, Debug)]
pub struct Request {
    pub subject: Subject,
    /// Questions in a row that failed.
    pub tries: u32,
}

const TICKET: &str = "UPDATE tickets SET last = last + 1 RETURNING last";
const TICKET_OF_SEQUENCE: &str = "SELECT nextval('ticket_numbers')";
const RAISE: &str = "INSERT INTO requests (subject, kind, requested_seq, due_at) VALUES ($1, $2, $3, $4) ON CONFLICT (subject) DO UPDATE SET \
     requested_seq = CASE WHEN requests.requested_seq < excluded.requested_seq THEN excluded.requested_seq ELSE requests.requested_seq END, due_at = excluded.due_at, tries = 0, given_up_at = NULL, error = NULL";
const DUE: &str = "SELECT subject, kind, tries FROM requests \
     WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
/// Whoever takes one puts it off, so that no other node takes it meanwhile; if he dies, it is due again by itself.
const TAKE: &str = "UPDATE requests SET due_at = $3 WHERE subject IN (SELECT subject FROM requests WHERE due_at <= $1 \
     AND subject NOT IN (SELECT value FROM json_each($4)) ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING subject, kind, tries";
const APPLIED: &str = "UPDATE requests SET applied_seq = $2, tries = 0, given_up_at = NULL, error = NULL, \
     due_at = CASE WHEN requested_seq <= $2 THEN NULL ELSE $3 END WHERE subject = $1 AND applied_seq < $2";
const IS_ANSWERED: &str = "SELECT 1 FROM requests WHERE subject = $1 AND $2 <= applied_seq";
const AGAIN: &str = "UPDATE requests SET due_at = $2 WHERE subject = $1 AND due_at IS NOT NULL";
const FAILED: &str = "UPDATE requests SET tries = tries + 1, due_at = $3, given_up_at = $4, error = $5 \
     WHERE subject = $1 AND requested_seq <= $2 AND applied_seq < $2";
const WAITS: &str = "SELECT 1 FROM requests WHERE subject = $1 AND due_at IS NOT NULL";
const BACKLOG: &str = "SELECT (SELECT COUNT(*) FROM requests WHERE due_at IS NOT NULL) AS waiting, \
     (SELECT COUNT(*) FROM requests WHERE given_up_at IS NOT NULL) AS given_up";
const QUESTION: &str = "SELECT applied_seq, tries, due_at, given_up_at, error FROM requests WHERE subject = $1";

/// How it stands with asking Stripe about somebody.
#[derive(Clone, Debug)]
pub struct Question {
    /// The question whose answer we have; 0 before the first.
    pub answered: Ticket,
    /// Questions in a row that failed.
    pub tries: i64,
    /// When Stripe is asked; `None` where there is nothing to ask, or where it was given up.
    pub due_at: Option<DateTime<Utc>>,
    pub given_up_at: Option<DateTime<Utc>>,
    pub error: Option<String>,
}

/// `None` where Stripe never was to be asked about it.
pub async fn question(db: &mut Connection, subject: &str) -> Result<Option<Question>, StoreError> {
    let row = db.query(QUESTION).bind(subject).fetch_optional().await?;
    let read = |row: Row| {
        let (due_at, given_up_at): (Option<i64>, Option<i64>) = (row.try_get("due_at")?, row.try_get("given_up_at")?);
        Ok(Question {
            answered: row.try_get("applied_seq")?,
            tries: row.try_get("tries")?,
            due_at: due_at.map(from_micros).transpose()?,
            given_up_at: given_up_at.map(from_micros).transpose()?,
            error: row.try_get("error")?,
        })
    };
    row.map(read).transpose()
}

/// Takes the next number. The caller's transaction makes it last.
pub async fn ticket(db: &mut Connection) -> Result<Ticket, StoreError> {
    db.query_of(TICKET, TICKET_OF_SEQUENCE).scalar().await
}

/// The last number that was given out.
pub async fn last_ticket(db: &mut Connection) -> Result<Ticket, StoreError> {
    db.query_of("SELECT last FROM tickets", "SELECT last_value FROM ticket_numbers").scalar().await
}

/// Asks for `subject` to be asked about, also where it had been given up.
pub async fn raise(db: &mut Connection, subject: &Subject, now: DateTime<Utc>) -> Result<Ticket, StoreError> {
    let ticket = ticket(&mut *db).await?;
    db.query(RAISE).bind(subject.id()).bind(subject.kind()).bind(ticket).bind(micros(now)).execute().await?;
    Ok(ticket)
}

/// What is due at `now`, that which waits longest first.
pub async fn due(db: &mut Connection, now: DateTime<Utc>, limit: i64) -> Result<Vec<Request>, StoreError> {
    db.query(DUE).bind(micros(now)).bind(limit).fetch_all().await?.iter().map(read).collect()
}

/// Takes what is due at `now` and not `under_way` here. Where there are other nodes it is theirs again at `until`, unless it is answered
/// before.
pub async fn take(
    db: &mut Connection,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    under_way: &[String],
    limit: i64,
) -> Result<Vec<Request>, StoreError> {
    if let Backend::Sqlite(_) = db {
        // Those under way are due until they are answered.
        let more = i64::try_from(under_way.len()).unwrap_or(i64::MAX);
        let mut due = due(db, now, limit.saturating_add(more)).await?;
        due.retain(|request| !under_way.iter().any(|id| id == request.subject.id()));
        due.truncate(usize::try_from(limit).unwrap_or_default());
        return Ok(due);
    }
    let query = db.query(TAKE).bind(micros(now)).bind(limit).bind(micros(until));
    query.bind(list(under_way.iter().map(String::as_str))).fetch_all().await?.iter().map(read).collect()
}

/// Whether `subject` is to be asked about already.
pub async fn waits(db: &mut Connection, subject: &str) -> Result<bool, StoreError> {
    Ok(db.query(WAITS).bind(subject).fetch_optional().await?.is_some())
}

/// The answer to the question of `ticket` is about to be written. `false` where a later one was: then nothing may be.
pub async fn applied(db: &mut Connection, subject: &str, ticket: Ticket, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let done = db.query(APPLIED).bind(subject).bind(ticket).bind(micros(now)).execute().await?;
    Ok(0 < done)
}

/// Whether an answer was written that was asked for at `since` or later.
pub async fn is_answered(db: &mut Connection, subject: &str, since: Ticket) -> Result<bool, StoreError> {
    Ok(db.query(IS_ANSWERED).bind(subject).bind(since).fetch_optional().await?.is_some())
}

/// What is still to be asked is to be asked at `at`.
pub async fn again(db: &mut Connection, subject: &str, at: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(AGAIN).bind(subject).bind(micros(at)).execute().await?;
    Ok(())
}

/// What becomes of a question that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    AskAgainAt(DateTime<Utc>),
    GiveUpAt(DateTime<Utc>),
}

/// The question of `ticket` failed. Nothing is noted where a nudge came after it: that one is due by itself.
pub async fn failed(db: &mut Connection, subject: &str, ticket: Ticket, next: Next, why: &str) -> Result<(), StoreError> {
    let (due_at, given_up_at) = match next {
        Next::AskAgainAt(at) => (Some(micros(at)), None),
        Next::GiveUpAt(at) => (None, Some(micros(at))),
    };
    db.query(FAILED).bind(subject).bind(ticket).bind(due_at).bind(given_up_at).bind(why).execute().await?;
    Ok(())
}

/// How many wait for Stripe, and how many were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub waiting: i64,
    pub given_up: i64,
}

pub async fn backlog(db: &mut Connection) -> Result<Backlog, StoreError> {
    let row = db.query(BACKLOG).fetch_one().await?;
    Ok(Backlog { waiting: row.try_get("waiting")?, given_up: row.try_get("given_up")? })
}

fn read(row: &Row) -> Result<Request, StoreError> {
    let (id, kind): (String, String) = (row.try_get("subject")?, row.try_get("kind")?);
    let subject = match kind.as_str() {
        "customer" => Subject::Customer(id),
        "subscription" => Subject::Subscription(id),
        _ => return Err(corrupt("a request of an unknown kind")),
    };
    let tries: i64 = row.try_get("tries")?;
    Ok(Request { subject, tries: u32::try_from(tries).unwrap_or(u32::MAX) })
}
