//! The journal: what the ledger committed and the tables do not have yet. SQLite only.
//!
//! A row in a table with two indexes costs a page or two of writing, and its commit waits for all of them; a batch in one row costs
//! what its text is long. So a batch is durable once it stands here, in a file of its own whose commits wait for nobody, and the
//! tables follow in bulk (`settle.rs`). Numbers ascend by one; the tables remember the last that they have.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Connection, Row, Sqlite, SqliteConnection};
use tokio::sync::Mutex;

use super::accounts::{account_id, money, user_id};
use super::sqlite::{self, Anchor};
use super::{PROBE, StoreError, corrupt, from_micros, ledger, micros};
use crate::domain::alert::{Alert, AlertKind};
use crate::domain::changes::Changes;
use crate::domain::grants::Draw;
use crate::domain::operation::{Booked, Consumption, Correction, Entry, Fingerprint, Hold, HoldEnd};

const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS journal (seq INTEGER NOT NULL PRIMARY KEY, body TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS probe (only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1), at INTEGER NOT NULL) STRICT",
];
const APPEND: &str = "INSERT INTO journal (seq, body) VALUES ($1, $2)";
const AFTER: &str = "SELECT seq, body FROM journal WHERE $1 < seq ORDER BY seq LIMIT $2";
const ENDS: &str = "SELECT MIN(seq) AS first, MAX(seq) AS last FROM journal";
/// The last one stays, to tell where the numbers are.
const DROP: &str = "DELETE FROM journal WHERE seq < MIN($1 + 1, (SELECT MAX(seq) FROM journal))";

/// Batches dropped by one statement; more would let a commit wait.
pub const DROPPED_AT_ONCE: i64 = 256;

/// A batch with its number.
pub type Numbered = (i64, Arc<Changes>);

/// The file beside the database.
#[derive(Clone, Debug)]
pub struct Journal {
    options: SqliteConnectOptions,
    /// One connection, and not in a pool: a pool asks a connection whether it is well before and after it lends it, and each question is
    /// as long on its way as a commit. After a failure it is thrown away, since SQLite may have rolled back by itself.
    connection: Arc<Mutex<Option<SqliteConnection>>>,
    anchor: Anchor,
}

impl Journal {
    pub(super) async fn open(options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let anchor = Anchor::drop_at(&options).await?;
        let journal = Self { options, connection: Arc::default(), anchor };
        for statement in SCHEMA {
            journal.write(sqlx::query(statement)).await?;
        }
        Ok(journal)
    }

    pub(super) async fn close(&self) {
        self.anchor.weigh().await;
        if let Some(connection) = self.connection.lock().await.take() {
            // What was written is on the disk; a connection that does not close well changes nothing.
            let _ = connection.close().await;
        }
    }

    /// Does one statement, which is atomic by itself.
    async fn write(&self, statement: Statement) -> Result<(), StoreError> {
        let mut place = self.connection.lock().await;
        // Taken out, so that a caller who goes away leaves none behind whose state nobody knows.
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        statement.execute(&mut connection).await?;
        *place = Some(connection);
        Ok(())
    }

    async fn read(&self, statement: Statement) -> Result<Vec<SqliteRow>, StoreError> {
        let mut place = self.connection.lock().await;
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        let rows = statement.fetch_all(&mut connection).await?;
        *place = Some(connection);
        Ok(rows)
    }

    /// `Ok` means that it is on the disk. An error means that the outcome is unknown: [`Journal::after`] tells.
    pub async fn append(&self, seq: i64, changes: &Changes) -> Result<(), StoreError> {
        self.write(sqlx::query(APPEND).bind(seq).bind(write(changes)?)).await
    }

    /// At most `limit` batches behind `seq`.
    pub async fn after(&self, seq: i64, limit: i64) -> Result<Vec<Numbered>, StoreError> {
        let rows = self.read(sqlx::query(AFTER).bind(seq).bind(limit)).await?;
        rows.iter().map(|row| Ok((row.try_get("seq")?, Arc::new(read(row.try_get("body")?)?)))).collect()
    }

    /// The first and the last number that are there.
    pub(super) async fn ends(&self) -> Result<Option<(i64, i64)>, StoreError> {
        let rows = self.read(sqlx::query(ENDS)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (first, last): (Option<i64>, Option<i64>) = (row.try_get("first")?, row.try_get("last")?);
        Ok(first.zip(last))
    }

    /// Forgets what the tables have.
    pub async fn drop_through(&self, seq: i64) -> Result<(), StoreError> {
        self.write(sqlx::query(DROP).bind(seq)).await
    }

    /// Moves everything out of the log, as [`sqlite::Files::leave_the_logs`] needs it.
    pub(super) async fn leave_the_log(&self) -> Result<bool, StoreError> {
        let rows = self.read(sqlx::query(sqlite::LEAVE_THE_LOG)).await?;
        sqlite::was_left(rows.first())
    }

    /// Whether a write reaches the disk.
    pub(super) async fn probe(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        self.write(sqlx::query(PROBE).bind(micros(now))).await
    }
}

type Statement = Query<'static, Sqlite, SqliteArguments>;

type Text<'a> = Cow<'a, str>;

/// Lists without names: a batch is written a thousand times for each time that it is read.
#[derive(Deserialize)]
struct Body<'a>(
    i64,
    #[serde(borrow)] Vec<EntryRow<'a>>,
    #[serde(borrow)] Vec<HoldRow<'a>>,
    #[serde(borrow)] Vec<CorrectionRow<'a>>,
    /// Not there where this list and the one behind it are empty, as before there were grants.
    #[serde(borrow, default)]
    Vec<DrawRow<'a>>,
    /// Not there where it is empty, as before there were alerts.
    #[serde(borrow, default)]
    Vec<AlertRow<'a>>,
);

/// Kind, id, user, account, time, when it was recorded, fingerprint, what was consumed.
#[derive(Serialize, Deserialize)]
struct EntryRow<'a>(
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Option<Text<'a>>,
    i64,
    i64,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] ConsumptionRow<'a>,
);

/// Cost, model, provider, input and output tokens, metadata, detail. The last one is absent in batches of versions before it.
#[derive(Serialize, Deserialize)]
struct ConsumptionRow<'a>(
    i64,
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow)] Option<Text<'a>>,
    Option<i64>,
    Option<i64>,
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow, default)] Option<Text<'a>>,
);

/// Id, user, account, amount, model, when it was made and expires, fingerprint, answer, its end (when, and for a capture its cost and
/// fingerprint), and the provider, which is absent in batches of versions before it.
#[derive(Serialize, Deserialize)]
struct HoldRow<'a>(
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Option<Text<'a>>,
    i64,
    #[serde(borrow)] Option<Text<'a>>,
    i64,
    i64,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    Option<(i64, Option<(i64, String)>)>,
    #[serde(borrow, default)] Option<Text<'a>>,
);

/// Id, user, amount, time, model, reason, key.
#[derive(Serialize, Deserialize)]
struct CorrectionRow<'a>(
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    i64,
    i64,
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
);

/// User, grant, the start of the window, amount.
#[derive(Serialize, Deserialize)]
struct DrawRow<'a>(#[serde(borrow)] Text<'a>, #[serde(borrow)] Text<'a>, i64, i64);

/// Kind, key, user, message, details, when.
#[derive(Serialize, Deserialize)]
struct AlertRow<'a>(
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    i64,
);

fn text(text: &Option<String>) -> Option<Text<'_>> {
    text.as_deref().map(Text::from)
}

fn owned(text: Option<Text<'_>>) -> Option<String> {
    text.map(Cow::into_owned)
}

fn read_fingerprint(text: &str) -> Result<Fingerprint, StoreError> {
    super::fingerprint(hex::decode(text).map_err(|error| corrupt(&error.to_string()))?)
}

impl<'a> EntryRow<'a> {
    fn of(entry: &'a Entry) -> Self {
        let (usage, booked) = (&entry.consumption, &entry.booked);
        let (model, provider, metadata) = (text(&usage.model), text(&usage.provider), text(&usage.metadata));
        let consumption =
            ConsumptionRow(usage.cost.nanos(), model, provider, usage.input_tokens, usage.output_tokens, metadata, text(&usage.detail));
        let (kind, fingerprint) = (ledger::kind_name(entry.kind), hex::encode(booked.fingerprint));
        let (time, recorded_at) = (micros(booked.time), micros(booked.recorded_at));
        let account = entry.account.as_ref().map(|account| account.as_str().into());
        Self(kind.into(), (&entry.id).into(), entry.user_id.as_str().into(), account, time, recorded_at, fingerprint.into(), consumption)
    }

    fn read(self) -> Result<Entry, StoreError> {
        let Self(kind, id, user, account, time, recorded_at, fingerprint, consumption) = self;
        let ConsumptionRow(cost, model, provider, input_tokens, output_tokens, metadata, detail) = consumption;
        let consumption = Consumption {
            cost: money(cost)?,
            model: owned(model),
            provider: owned(provider),
            input_tokens,
            output_tokens,
            metadata: owned(metadata),
            detail: owned(detail),
        };
        let fingerprint = read_fingerprint(&fingerprint)?;
        let booked = Booked {
            fingerprint,
            cost: consumption.cost,
            unpriced: consumption.is_unpriced(),
            time: from_micros(time)?,
            recorded_at: from_micros(recorded_at)?,
        };
        Ok(Entry {
            kind: ledger::read_kind(&kind)?,
            id: id.into_owned(),
            user_id: user_id(user.into_owned())?,
            account: owned(account).map(account_id).transpose()?,
            consumption,
            booked,
        })
    }
}

impl<'a> HoldRow<'a> {
    fn of(hold: &'a Hold) -> Self {
        let end = hold.end.map(|end| match end {
            HoldEnd::Released { at } => (micros(at), None),
            HoldEnd::Captured { cost, at, fingerprint } => (micros(at), Some((cost.nanos(), hex::encode(fingerprint)))),
        });
        let (created_at, expires_at) = (micros(hold.created_at), micros(hold.expires_at));
        let (id, user, fingerprint) = ((&*hold.id).into(), hold.user_id.as_str().into(), hex::encode(hold.fingerprint).into());
        let account = hold.account.as_ref().map(|account| account.as_str().into());
        Self(
            id,
            user,
            account,
            hold.amount.nanos(),
            text(&hold.model),
            created_at,
            expires_at,
            fingerprint,
            (&hold.answer).into(),
            end,
            text(&hold.provider),
        )
    }

    fn read(self) -> Result<Hold, StoreError> {
        let Self(id, user, account, amount, model, created_at, expires_at, fingerprint, answer, end, provider) = self;
        let end = match end {
            None => None,
            Some((at, None)) => Some(HoldEnd::Released { at: from_micros(at)? }),
            Some((at, Some((cost, fingerprint)))) => {
                Some(HoldEnd::Captured { cost: money(cost)?, at: from_micros(at)?, fingerprint: read_fingerprint(&fingerprint)? })
            }
        };
        Ok(Hold {
            id: id.into(),
            user_id: user_id(user.into_owned())?,
            account: owned(account).map(account_id).transpose()?,
            amount: money(amount)?,
            model: owned(model),
            provider: owned(provider),
            created_at: from_micros(created_at)?,
            expires_at: from_micros(expires_at)?,
            fingerprint: read_fingerprint(&fingerprint)?,
            end,
            answer: answer.into_owned(),
        })
    }
}

impl<'a> CorrectionRow<'a> {
    fn of(correction: &'a Correction) -> Self {
        let (id, user, reason, key) = (&correction.id, correction.user_id.as_str(), &correction.reason, &correction.key_id);
        let (amount, time, model) = (correction.amount.nanos(), micros(correction.time), text(&correction.model));
        Self(id.into(), user.into(), amount, time, model, reason.into(), key.into())
    }

    fn read(self) -> Result<Correction, StoreError> {
        let Self(id, user, amount, time, model, reason, key_id) = self;
        Ok(Correction {
            id: id.into_owned(),
            user_id: user_id(user.into_owned())?,
            amount: money(amount)?,
            time: from_micros(time)?,
            model: owned(model),
            reason: reason.into_owned(),
            key_id: key_id.into_owned(),
        })
    }
}

impl<'a> DrawRow<'a> {
    fn of(draw: &'a Draw) -> Self {
        Self(draw.user_id.as_str().into(), (&*draw.grant).into(), micros(draw.window_start), draw.nanos)
    }

    fn read(self) -> Result<Draw, StoreError> {
        let Self(user, grant, window_start, nanos) = self;
        Ok(Draw { user_id: user_id(user.into_owned())?, grant: grant.into(), window_start: from_micros(window_start)?, nanos })
    }
}

impl<'a> AlertRow<'a> {
    fn of(alert: &'a Alert) -> Self {
        let user = alert.user_id.as_ref().map(|user| user.as_str().into());
        let (key, message, details) = ((&alert.key).into(), (&alert.message).into(), (&alert.details).into());
        Self(alert.kind.name().into(), key, user, message, details, micros(alert.at))
    }

    fn read(self) -> Result<Alert, StoreError> {
        let Self(kind, key, user, message, details, at) = self;
        let known = AlertKind::ALL.into_iter().find(|known| known.name() == kind);
        Ok(Alert {
            kind: known.ok_or_else(|| corrupt(&format!("the journal: an alert of the kind {kind}")))?,
            key: key.into_owned(),
            user_id: owned(user).map(user_id).transpose()?,
            message: message.into_owned(),
            details: details.into_owned(),
            at: from_micros(at)?,
        })
    }
}

fn write(changes: &Changes) -> Result<String, StoreError> {
    let (at, entries) = (micros(changes.at), changes.entries.iter().map(EntryRow::of).collect::<Vec<_>>());
    let holds = changes.holds.iter().map(HoldRow::of).collect::<Vec<_>>();
    let corrections = changes.corrections.iter().map(CorrectionRow::of).collect::<Vec<_>>();
    let draws = changes.draws.iter().map(DrawRow::of).collect::<Vec<_>>();
    let alerts = changes.alerts.iter().map(AlertRow::of).collect::<Vec<_>>();
    let text = match (draws.is_empty(), alerts.is_empty()) {
        (true, true) => serde_json::to_string(&(at, entries, holds, corrections)),
        (false, true) => serde_json::to_string(&(at, entries, holds, corrections, draws)),
        (true | false, false) => serde_json::to_string(&(at, entries, holds, corrections, draws, alerts)),
    };
    text.map_err(|error| corrupt(&error.to_string()))
}

fn read(body: &str) -> Result<Changes, StoreError> {
    let Body(at, entries, holds, corrections, draws, alerts) =
        serde_json::from_str(body).map_err(|error| corrupt(&format!("the journal: {error}")))?;
    Ok(Changes {
        at: from_micros(at)?,
        entries: entries.into_iter().map(EntryRow::read).collect::<Result<_, _>>()?,
        holds: holds.into_iter().map(HoldRow::read).collect::<Result<_, _>>()?,
        corrections: corrections.into_iter().map(CorrectionRow::read).collect::<Result<_, _>>()?,
        draws: draws.into_iter().map(DrawRow::read).collect::<Result<_, _>>()?,
        alerts: alerts.into_iter().map(AlertRow::read).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::operation::EntryKind;
    use crate::domain::user::{AccountId, UserId};

    #[test]
    fn a_batch_reads_as_it_was_written() {
        let at = from_micros(1_768_219_200_000_001).unwrap();
        let user = UserId::parse("u \"quoted\" \\ é").unwrap();
        let consumption = Consumption {
            cost: money(7).unwrap(),
            metadata: Some(r#"{"a":"\n"}"#.to_owned()),
            input_tokens: Some(3),
            detail: Some(r#"{"images":1}"#.to_owned()),
            ..Consumption::default()
        };
        let booked = Booked { fingerprint: [200; 16], cost: consumption.cost, unpriced: false, time: at, recorded_at: at };
        let account = AccountId::parse("acme").ok();
        let entry = |kind| Entry {
            kind,
            id: "i".to_owned(),
            user_id: user.clone(),
            account: account.clone(),
            consumption: consumption.clone(),
            booked,
        };
        let hold = |end| Hold {
            id: "h".into(),
            user_id: user.clone(),
            account: account.clone(),
            amount: money(9).unwrap(),
            model: Some("m".to_owned()),
            provider: Some("p".to_owned()),
            created_at: at,
            expires_at: at + TimeDelta::seconds(1),
            fingerprint: [1; 16],
            end,
            answer: "{\"x\":1}".to_owned(),
        };
        let captured = HoldEnd::Captured { cost: money(8).unwrap(), at, fingerprint: [2; 16] };
        let correction = Correction {
            id: "c".to_owned(),
            user_id: user.clone(),
            amount: money(1).unwrap(),
            time: at,
            model: None,
            reason: "why".to_owned(),
            key_id: "key_1".to_owned(),
        };
        let alert = |user_id| Alert {
            kind: AlertKind::BudgetThreshold,
            key: "user tier daily x warn u".to_owned(),
            user_id,
            message: "u has \"used\" it".to_owned(),
            details: r#"{"limit":0.1}"#.to_owned(),
            at,
        };
        let alerts = vec![alert(Some(user.clone())), alert(None)];
        let changes = Changes {
            at,
            entries: [EntryKind::Usage, EntryKind::Capture, EntryKind::Correction].map(entry).to_vec(),
            holds: vec![hold(None), hold(Some(HoldEnd::Released { at })), hold(Some(captured))],
            corrections: vec![correction],
            draws: vec![Draw { user_id: user, grant: "g".into(), window_start: at, nanos: -5 }],
            alerts,
        };
        assert_eq!(read(&write(&changes).unwrap()).unwrap(), changes);
        // A batch that tells nothing is written as it was before there were alerts, one that draws nothing as before there were grants.
        let lists = |changes: &Changes| {
            let text = write(changes).unwrap();
            assert_eq!(read(&text).unwrap(), *changes);
            serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap().len()
        };
        let drawing = Changes { alerts: Vec::new(), ..changes.clone() };
        let telling = Changes { draws: Vec::new(), ..changes.clone() };
        let neither = Changes { draws: Vec::new(), ..drawing.clone() };
        assert_eq!([&changes, &drawing, &telling, &neither].map(lists), [6, 5, 6, 4]);
    }
}
