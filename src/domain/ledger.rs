//! One step of the ledger: what is + what is asked + now → what shall be + the answers. Pure, so that the meter can run it
//! for many callers inside one transaction.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use super::money::Money;
use super::user::UserId;

/// How far a usage record's own time may lie ahead of our clock: clocks differ.
pub const AHEAD_MAX: TimeDelta = TimeDelta::minutes(5);

/// One usage record as the caller gave it, checked at the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub id: String,
    pub user_id: UserId,
    pub cost: Money,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    /// When it happened; `None` is when we booked it.
    pub time: Option<DateTime<Utc>>,
    /// The caller's own JSON object, in canonical form.
    pub metadata: Option<String>,
}

/// The first 16 bytes of a SHA-256: enough that no two bodies share it by accident or by design.
pub type Fingerprint = [u8; 16];

impl Usage {
    /// What makes two bodies under one id the same body. A part's length comes before it, so that no two bodies read alike.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = Sha256::new();
        let mut part = |part: Option<&[u8]>| match part {
            Some(bytes) => {
                hasher.update([1]);
                hasher.update(bytes.len().to_be_bytes());
                hasher.update(bytes);
            }
            None => hasher.update([0]),
        };
        let number = |value: Option<i64>| value.map(i64::to_be_bytes);
        part(Some(self.user_id.as_str().as_bytes()));
        part(Some(&self.cost.nanos().to_be_bytes()));
        part(self.model.as_deref().map(str::as_bytes));
        part(self.provider.as_deref().map(str::as_bytes));
        part(number(self.input_tokens).as_ref().map(<[u8; 8]>::as_slice));
        part(number(self.output_tokens).as_ref().map(<[u8; 8]>::as_slice));
        part(number(self.time.map(|time| time.timestamp_micros())).as_ref().map(<[u8; 8]>::as_slice));
        part(self.metadata.as_deref().map(str::as_bytes));
        let digest = hasher.finalize();
        let mut fingerprint = Fingerprint::default();
        fingerprint.copy_from_slice(&digest[..16]);
        fingerprint
    }
}

/// What is remembered of a record that was booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booked {
    pub fingerprint: Fingerprint,
    pub time: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
}

/// The answer to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub id: String,
    pub user_id: UserId,
    pub cost: Money,
    pub time: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
    /// The record had been booked before; this is the first answer again.
    pub repeated: bool,
}

/// Why a request was not booked. Nothing of the request was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the id `{id}` was used before with another body")]
    IdReused { index: usize, id: String },
    #[error("the total would pass 9223372036.854775807, the most that can be counted")]
    TotalOutOfRange { index: usize },
}

/// A row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub usage: Usage,
    pub booked: Booked,
}

/// What is added to a day's sum of one user and one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub spent: Money,
    pub entries: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
}

impl Sum {
    fn add(&mut self, usage: &Usage) {
        self.spent = self.spent.saturating_add(usage.cost);
        self.entries += 1;
        self.input_tokens = self.input_tokens.saturating_add(usage.input_tokens.unwrap_or(0));
        self.output_tokens = self.output_tokens.saturating_add(usage.output_tokens.unwrap_or(0));
    }
}

/// What is, as far as a batch needs it, and what shall be: the state between the database before and after.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The records known under the ids that the batch names.
    pub booked: HashMap<String, Booked>,
    /// The lifetime spend of each user that the batch names, where he has any.
    pub spent: HashMap<UserId, Money>,
    /// What the batch adds, in the order in which it was accepted.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// Books one request, all of it or nothing.
    pub fn step(&mut self, request: &[Usage], now: DateTime<Utc>) -> Result<Vec<Receipt>, Refusal> {
        let mut receipts = Vec::with_capacity(request.len());
        let mut fresh: HashMap<&str, Booked> = HashMap::new();
        let mut spent: HashMap<&UserId, Money> = HashMap::new();
        let mut entries = Vec::new();
        for (index, usage) in request.iter().enumerate() {
            let fingerprint = usage.fingerprint();
            let before = self.booked.get(&usage.id).or_else(|| fresh.get(usage.id.as_str())).copied();
            let booked = match before {
                Some(booked) if booked.fingerprint == fingerprint => booked,
                Some(_) => return Err(Refusal::IdReused { index, id: usage.id.clone() }),
                None => {
                    let booked = Booked { fingerprint, time: usage.time.unwrap_or(now), recorded_at: now };
                    let total = spent.entry(&usage.user_id).or_insert_with(|| self.spent.get(&usage.user_id).copied().unwrap_or_default());
                    *total = total.checked_add(usage.cost).ok_or(Refusal::TotalOutOfRange { index })?;
                    fresh.insert(&usage.id, booked);
                    entries.push(Entry { usage: usage.clone(), booked });
                    booked
                }
            };
            receipts.push(Receipt {
                id: usage.id.clone(),
                user_id: usage.user_id.clone(),
                cost: usage.cost,
                time: booked.time,
                recorded_at: booked.recorded_at,
                repeated: before.is_some(),
            });
        }
        self.spent.extend(spent.into_iter().map(|(user, total)| (user.clone(), total)));
        self.booked.extend(fresh.into_iter().map(|(id, booked)| (id.to_owned(), booked)));
        self.entries.append(&mut entries);
        Ok(receipts)
    }

    /// What the entries add to each user's sums, by day (days since 1970-01-01 UTC) and model (empty where none was named).
    pub fn sums(&self) -> BTreeMap<(UserId, i64, &str), Sum> {
        let mut sums: BTreeMap<(UserId, i64, &str), Sum> = BTreeMap::new();
        for Entry { usage, booked } in &self.entries {
            let key = (usage.user_id.clone(), day(booked.time), usage.model.as_deref().unwrap_or(""));
            sums.entry(key).or_default().add(usage);
        }
        sums
    }

    /// What the entries add to the sums of all users together, by day.
    pub fn sums_of_all(&self) -> BTreeMap<i64, Sum> {
        let mut sums: BTreeMap<i64, Sum> = BTreeMap::new();
        for Entry { usage, booked } in &self.entries {
            sums.entry(day(booked.time)).or_default().add(usage);
        }
        sums
    }
}

const SECONDS_PER_DAY: i64 = 86_400;

/// Days since 1970-01-01, UTC.
pub fn day(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(SECONDS_PER_DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str, user: &str, dollars: &str) -> Usage {
        Usage {
            id: id.to_owned(),
            user_id: UserId::parse(user).unwrap_or_else(|error| panic!("{error}")),
            cost: Money::parse(dollars).unwrap_or_else(|error| panic!("{error}")),
            model: None,
            provider: None,
            input_tokens: None,
            output_tokens: None,
            time: None,
            metadata: None,
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap_or_default()
    }

    #[test]
    fn a_repeat_is_answered_like_the_first_and_books_nothing() {
        let mut ledger = Ledger::default();
        let first = ledger.step(&[usage("a", "u", "1")], at(100)).unwrap_or_default();
        let again = ledger.step(&[usage("a", "u", "1.00")], at(200)).unwrap_or_default();
        assert_eq!(ledger.entries.len(), 1);
        assert_eq!((first[0].repeated, again[0].repeated), (false, true));
        assert_eq!((first[0].time, first[0].recorded_at), (again[0].time, again[0].recorded_at));
    }

    #[test]
    fn a_request_is_booked_whole_or_not_at_all() {
        let mut ledger = Ledger::default();
        assert!(ledger.step(&[usage("a", "u", "1")], at(100)).is_ok());
        let refused = ledger.step(&[usage("b", "u", "1"), usage("a", "u", "2")], at(200));
        assert_eq!(refused, Err(Refusal::IdReused { index: 1, id: "a".to_owned() }));
        assert_eq!(ledger.entries.len(), 1);
        assert!(!ledger.booked.contains_key("b"));
        let within = ledger.step(&[usage("c", "u", "1"), usage("c", "u", "1"), usage("c", "v", "1")], at(300));
        assert_eq!(within, Err(Refusal::IdReused { index: 2, id: "c".to_owned() }));
    }

    #[test]
    fn a_total_that_cannot_be_counted_is_refused() {
        let mut ledger = Ledger::default();
        for number in 0..9 {
            assert!(ledger.step(&[usage(&format!("a{number}"), "u", "1000000000")], at(100)).is_ok());
        }
        let refused = ledger.step(&[usage("b", "v", "0.1"), usage("c", "u", "1000000000")], at(100));
        assert_eq!(refused, Err(Refusal::TotalOutOfRange { index: 1 }));
        // What one user has made of it is no matter to others.
        assert!(ledger.step(&[usage("e", "w", "1000000000")], at(100)).is_ok());
        assert_eq!(ledger.sums_of_all().values().map(|sum| sum.spent.nanos()).collect::<Vec<_>>(), [i64::MAX]);
        assert!(ledger.step(&[usage("d", "u", "0.1")], at(100)).is_ok());
    }

    #[test]
    fn every_part_of_a_body_is_in_its_fingerprint() {
        let plain = usage("a", "u", "1");
        let others = [
            Usage { user_id: usage("a", "v", "1").user_id, ..plain.clone() },
            usage("a", "u", "1.000000001"),
            Usage { model: Some("m".to_owned()), ..plain.clone() },
            Usage { provider: Some("m".to_owned()), ..plain.clone() },
            Usage { input_tokens: Some(1), ..plain.clone() },
            Usage { output_tokens: Some(1), ..plain.clone() },
            Usage { time: Some(at(1)), ..plain.clone() },
            Usage { metadata: Some("{}".to_owned()), ..plain.clone() },
        ];
        let mut seen = vec![plain.fingerprint()];
        for other in others {
            assert!(!seen.contains(&other.fingerprint()), "{other:?}");
            seen.push(other.fingerprint());
        }
    }
}
