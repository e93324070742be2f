//! What the operator should hear of, and nobody else would tell: each is logged at its first time, and counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

/// So many names are told apart; callers may invent more.
const NAMES_MAX: usize = 100;

/// Since the service began.
#[derive(Debug, Default)]
pub struct Notices {
    /// Models that were asked for and have no price.
    pub unpriced: Tally,
    /// Rules that could not be judged.
    pub failed_rules: Tally,
}

#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, Seen>>);

/// How often, and when last.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub times: u64,
    pub last: DateTime<Utc>,
}

impl Tally {
    /// `tell` is called for a name that is new.
    pub fn saw(&self, name: &str, now: DateTime<Utc>, tell: impl FnOnce(&str)) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get_mut(name) {
            (known.times, known.last) = (known.times + 1, now);
        } else if seen.len() < NAMES_MAX {
            seen.insert(name.to_owned(), Seen { times: 1, last: now });
            drop(seen);
            tell(name);
        }
    }

    pub fn all(&self) -> BTreeMap<String, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Notices {
    pub fn saw_unpriced(&self, model: &str, now: DateTime<Utc>) {
        self.unpriced.saw(model, now, |model| tracing::warn!(model, "the model {model:?} has no price; add it to prices.yaml"));
    }

    pub fn saw_failed_rule(&self, rule: &str, message: &str, now: DateTime<Utc>) {
        self.failed_rules.saw(rule, now, |rule| tracing::warn!(rule, "checks are blocked by a rule that fails: {message}"));
    }
}
