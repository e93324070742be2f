//! What one commit of the ledger adds: enough to write every row and every sum of it.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use super::alert::Alert;
use super::grants::Draw;
use super::ledger::day;
use super::operation::{Correction, Entry, EntryKind, Hold};
use super::user::{AccountId, UserId};

/// What a batch of operations came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub at: DateTime<Utc>,
    /// In the order in which they were accepted.
    pub entries: Vec<Entry>,
    /// The holds that were made or changed, as they stand after it.
    pub holds: Vec<Hold>,
    pub corrections: Vec<Correction>,
    /// What entries drew on grants, or gave back.
    pub draws: Vec<Draw>,
    /// What somebody is to be told of it.
    pub alerts: Vec<Alert>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.holds.is_empty() && self.alerts.is_empty()
    }

    /// How many rows it makes.
    pub fn size(&self) -> usize {
        self.entries.len() + self.holds.len() + self.corrections.len() + self.draws.len() + self.alerts.len()
    }

    /// Everybody whom it concerns; some more than once. Not who is only spoken of.
    pub fn users(&self) -> impl Iterator<Item = &UserId> {
        self.entries.iter().map(|entry| &entry.user_id).chain(self.holds.iter().map(|hold| &hold.user_id))
    }

    /// Every account that it concerns; some more than once.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        let by_entries = self.entries.iter().filter_map(|entry| entry.account.as_ref());
        by_entries.chain(self.holds.iter().filter_map(|hold| hold.account.as_ref()))
    }
}

/// What entries add to the sums of each account, by day.
pub fn sums_of_accounts<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> HashMap<(&'e AccountId, i64), Sum> {
    let mut sums: HashMap<(&AccountId, i64), Sum> = HashMap::new();
    for entry in entries {
        if let Some(account) = &entry.account {
            sums.entry((account, day(entry.booked.time))).or_default().add(entry);
        }
    }
    sums
}

/// What is added to a day's sum of one user and one model; a correction takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Nano-dollars.
    pub spent: i64,
    pub entries: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
}

impl Sum {
    fn add(&mut self, entry: &Entry) {
        let nanos = entry.consumption.cost.nanos();
        self.spent = self.spent.saturating_add(if entry.kind == EntryKind::Correction { -nanos } else { nanos });
        self.entries += 1;
        self.input_tokens = self.input_tokens.saturating_add(entry.consumption.input_tokens.unwrap_or(0));
        self.output_tokens = self.output_tokens.saturating_add(entry.consumption.output_tokens.unwrap_or(0));
    }
}

/// What entries add to each user's sums, by day (days since 1970-01-01 UTC) and model (empty where none was named).
pub fn sums<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> HashMap<(&'e UserId, i64, &'e str), Sum> {
    let mut sums: HashMap<(&UserId, i64, &str), Sum> = HashMap::new();
    for entry in entries {
        let key = (&entry.user_id, day(entry.booked.time), entry.consumption.model.as_deref().unwrap_or(""));
        sums.entry(key).or_default().add(entry);
    }
    sums
}

/// What entries add to the sums of all users together, by day.
pub fn sums_of_all<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> BTreeMap<i64, Sum> {
    let mut sums: BTreeMap<i64, Sum> = BTreeMap::new();
    for entry in entries {
        sums.entry(day(entry.booked.time)).or_default().add(entry);
    }
    sums
}
