//! What is asked of the ledger, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::alerts::Refused;
use super::book::OpenHold;
use super::decide::Budget;
use super::judge::{Ask, Judgement};
use super::money::Money;
use super::pricing::Parts;
use super::user::{AccountId, UserId};

/// How far a record's own time may lie ahead of our clock: clocks differ.
pub const AHEAD_MAX: TimeDelta = TimeDelta::minutes(5);

/// What was used, for a record or a capture, as the caller says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// `None`: it is to be worked out from the tokens, so there is a model.
    pub cost: Option<Money>,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    /// What of it has prices of its own.
    pub parts: Option<Box<Parts>>,
    /// The caller's own JSON object, in canonical form.
    pub metadata: Option<String>,
}

/// What is booked of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumption {
    pub cost: Money,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    /// The caller's own JSON object, in canonical form.
    pub metadata: Option<String>,
    /// Tokens of other kinds, and the prices that were applied, as a JSON object.
    pub detail: Option<String>,
}

impl Consumption {
    /// Whether it cost nothing because its model has no price.
    pub fn is_unpriced(&self) -> bool {
        self.detail.as_deref().is_some_and(tells_unpriced)
    }
}

/// Whether a [`Consumption::detail`] says so. It is the last of its fields.
pub fn tells_unpriced(detail: &str) -> bool {
    detail.ends_with("\"unpriced\":true}")
}

/// One usage record as the caller gave it, checked at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub id: String,
    pub user_id: UserId,
    /// When it happened; `None` is when we booked it.
    pub time: Option<DateTime<Utc>>,
    pub used: Used,
}

/// What to do where a hold does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfShort {
    Refuse,
    /// Hold what is left, if anything is.
    Reduce,
}

/// The first of the two phases of spending: reserve the estimate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldAsk {
    pub id: String,
    pub user_id: UserId,
    pub call: Ask,
    pub ttl: TimeDelta,
    pub if_short: IfShort,
}

/// Lowers spend that was booked too high. Never a negative cost: its own kind of row, with a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correction {
    pub id: String,
    pub user_id: UserId,
    pub amount: Money,
    /// The day and the model whose sum it lowers.
    pub time: DateTime<Utc>,
    pub model: Option<String>,
    pub reason: String,
    /// The key of whoever ordered it.
    pub key_id: String,
}

/// What callers ask of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Booked whole or not at all.
    Record(Vec<Usage>),
    Hold(HoldAsk),
    Capture {
        hold_id: String,
        used: Used,
    },
    Release {
        hold_id: String,
    },
    Extend {
        hold_id: String,
        ttl: TimeDelta,
    },
    Correct(Correction),
    /// A check was answered BLOCK, and nobody may have been told yet. It changes nothing that is counted.
    Tell {
        user_id: UserId,
        refused: Refused,
    },
}

/// The first 16 bytes of a SHA-256: enough that no two bodies share it by accident or by design.
pub type Fingerprint = [u8; 16];

/// What makes two bodies under one id the same body. A part's length comes before it, so that no two bodies read alike.
fn fingerprint(parts: &[Option<&[u8]>]) -> Fingerprint {
    let mut hasher = Sha256::new();
    for part in parts {
        match part {
            Some(bytes) => {
                hasher.update([1]);
                hasher.update(bytes.len().to_be_bytes());
                hasher.update(bytes);
            }
            None => hasher.update([0]),
        }
    }
    let digest = hasher.finalize();
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(&digest[..16]);
    fingerprint
}

fn text(text: &Option<String>) -> Option<&[u8]> {
    text.as_deref().map(str::as_bytes)
}

fn bytes(number: Option<i64>) -> Option<[u8; 8]> {
    number.map(i64::to_be_bytes)
}

fn parts_bytes(parts: &Parts) -> Vec<u8> {
    let counts = [parts.cached_input, parts.cache_write, parts.audio_input, parts.reasoning, parts.audio_output, parts.images];
    counts.into_iter().flat_map(i64::to_be_bytes).collect()
}

impl Used {
    /// Of the body, not of what it comes to: the same body is the same tomorrow, when prices have changed.
    pub(super) fn fingerprint(&self, user: Option<&UserId>, time: Option<DateTime<Utc>>) -> Fingerprint {
        let (input, output) = (bytes(self.input_tokens), bytes(self.output_tokens));
        let (time, cost) = (bytes(time.map(|time| time.timestamp_micros())), bytes(self.cost.map(Money::nanos)));
        let parts = self.parts.as_deref().filter(|parts| **parts != Parts::NONE).map(parts_bytes);
        let said = [
            user.map(|user| user.as_str().as_bytes()),
            cost.as_ref().map(<[u8; 8]>::as_slice),
            text(&self.model),
            text(&self.provider),
            input.as_ref().map(<[u8; 8]>::as_slice),
            output.as_ref().map(<[u8; 8]>::as_slice),
            time.as_ref().map(<[u8; 8]>::as_slice),
            text(&self.metadata),
            parts.as_deref(),
        ];
        // A body that has none reads as it did before there were any.
        fingerprint(if parts.is_some() { &said } else { &said[..8] })
    }
}

impl Correction {
    pub(super) fn consumption(&self) -> Consumption {
        Consumption { cost: self.amount, model: self.model.clone(), ..Consumption::default() }
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let used = Used { cost: Some(self.amount), model: self.model.clone(), ..Used::default() };
        let body = used.fingerprint(Some(&self.user_id), Some(self.time));
        fingerprint(&[Some(&body), Some(self.reason.as_bytes())])
    }
}

impl HoldAsk {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let reduce = [u8::from(self.if_short == IfShort::Reduce)];
        let (user, cost, ttl) =
            (self.user_id.as_str().as_bytes(), bytes(self.call.cost.map(Money::nanos)), self.ttl.num_seconds().to_be_bytes());
        let tokens = self.call.tokens.map(|tokens| {
            let sums = [tokens.input, tokens.output].into_iter().flat_map(i64::to_be_bytes);
            sums.chain(parts_bytes(&tokens.parts)).collect::<Vec<u8>>()
        });
        // Its keys are in order, whatever their order was.
        let in_order =
            |metadata: &Map<String, Value>| Value::from_iter(metadata.clone().into_iter().collect::<BTreeMap<_, _>>()).to_string();
        let metadata = self.call.metadata.as_ref().map(in_order);
        let said = [
            Some(user),
            cost.as_ref().map(<[u8; 8]>::as_slice),
            Some(&ttl),
            text(&self.call.model),
            Some(&reduce),
            text(&self.call.provider),
            tokens.as_deref(),
            metadata.as_ref().map(String::as_bytes),
        ];
        // A body that has neither reads as it did before there were any.
        fingerprint(if said[5..].iter().any(Option::is_some) { &said } else { &said[..5] })
    }
}

/// What is remembered of a row that was booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booked {
    pub fingerprint: Fingerprint,
    pub cost: Money,
    /// The model had no price, so it cost nothing.
    pub unpriced: bool,
    pub time: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
}

/// Why a row of the ledger was written. Ids are unique among rows of one kind; a capture's is its hold's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    Usage,
    Capture,
    /// Its cost counts downwards.
    Correction,
}

/// The answer to one record or correction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub id: String,
    pub user_id: UserId,
    pub cost: Money,
    pub time: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
    /// The model had no price, so it cost nothing.
    pub unpriced: bool,
    /// It had been booked before; this is the first answer again.
    pub repeated: bool,
}

/// How a hold ended. One that has expired has no end of its own: the clock says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    Captured { cost: Money, at: DateTime<Utc>, fingerprint: Fingerprint },
    Released { at: DateTime<Utc> },
}

/// A hold that was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub id: Arc<str>,
    pub user_id: UserId,
    /// The account that he belonged to when it was made: its capture counts there too.
    pub account: Option<AccountId>,
    pub amount: Money,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub fingerprint: Fingerprint,
    pub end: Option<HoldEnd>,
    /// What was answered when it was admitted, to be answered again.
    pub answer: String,
}

impl Hold {
    pub fn promise(&self) -> OpenHold {
        OpenHold { id: self.id.clone(), amount: self.amount, expires_at: self.expires_at }
    }

    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        self.end.is_none() && now < self.expires_at
    }
}

/// Why an operation was not done. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("under the id `{id}` another body was booked")]
    IdReused { index: usize, id: String },
    #[error("the model `{model}` has no price")]
    Unpriced { index: usize, model: String },
    #[error("the total would pass 9223372036.854775807, the most that can be counted")]
    TotalOutOfRange { index: usize },
    #[error("there is no hold `{0}`")]
    NoSuchHold(String),
    #[error("the hold has ended")]
    HoldEnded(Box<Hold>),
    #[error("of that day and model only {available} is booked, so no more can be taken back")]
    NotSoMuch { available: Money },
    /// What is known of the user is not of this moment. The caller is to load it again; this is never an answer.
    #[error("what is known of the user is not of this moment")]
    OutOfDate,
}

/// How a hold was judged, and by which budgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub judgement: Judgement,
    pub budgets: Vec<Budget>,
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Recorded(Vec<Receipt>),
    /// Admitted, now or (`repeated`) before; then nothing is judged.
    Held {
        hold: Box<Hold>,
        judged: Option<Box<Judged>>,
        repeated: bool,
    },
    /// It does not fit. Nothing is remembered of it: the same id may ask again.
    NotHeld {
        judged: Box<Judged>,
    },
    Ended {
        hold: Box<Hold>,
        repeated: bool,
        /// The model of what was captured has no price, so it cost nothing.
        unpriced: bool,
    },
    Extended(Box<Hold>),
    Corrected(Receipt),
    Told,
}

/// A row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    pub id: String,
    pub user_id: UserId,
    /// The account that he belonged to.
    pub account: Option<AccountId>,
    pub consumption: Consumption,
    pub booked: Booked,
}
