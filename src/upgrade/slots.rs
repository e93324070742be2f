//! What is remembered of those who opened links lately: one place for each user, and a bound on all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::way::Way;
use crate::domain::user::UserId;

/// Users who are remembered. What is forgotten is only made again: under the same idempotency key, so it is the same.
const SLOTS_MAX: usize = 10_000;
/// Targets of one user.
const SESSIONS_MAX: usize = 8;
/// How often a user's links lead on within a minute. People open them once or twice.
const OPENINGS_MAX: u32 = 20;
const SECONDS_PER_MINUTE: i64 = 60;

/// A page that was made at Stripe.
#[derive(Clone, Debug)]
pub struct Session {
    pub target: String,
    pub customer: String,
    pub way: Way,
    pub url: String,
    pub until: DateTime<Utc>,
}

/// What is remembered of one user.
#[derive(Debug, Default)]
pub struct Slot {
    sessions: Vec<Session>,
    minute: i64,
    openings: u32,
}

impl Slot {
    /// Counts an opening; `false` where there were too many within this minute.
    pub fn count(&mut self, now: DateTime<Utc>) -> bool {
        let minute = now.timestamp().div_euclid(SECONDS_PER_MINUTE);
        if self.minute != minute {
            (self.minute, self.openings) = (minute, 0);
        }
        self.openings = self.openings.saturating_add(1);
        self.openings <= OPENINGS_MAX
    }

    /// The page that was made for the same, and is open still.
    pub fn known(&self, target: &str, customer: &str, way: &Way, now: DateTime<Utc>) -> Option<String> {
        let same = |known: &&Session| known.target == target && known.customer == customer && known.way == *way && now < known.until;
        self.sessions.iter().find(same).map(|known| known.url.clone())
    }

    pub fn keep(&mut self, session: Session, now: DateTime<Utc>) {
        self.sessions.retain(|known| known.target != session.target && now < known.until);
        self.sessions.truncate(SESSIONS_MAX - 1);
        self.sessions.push(session);
    }
}

/// A user's place, which one opening holds at a time.
pub type Place = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Debug, Default)]
pub struct Slots(Mutex<HashMap<UserId, Place>>);

impl Slots {
    /// The place of a user; `None` where all are taken by openings under way.
    pub fn of(&self, user: &UserId) -> Option<Place> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = slots.get(user) {
            return Some(known.clone());
        }
        if SLOTS_MAX <= slots.len() {
            slots.retain(|_, place| 1 < Arc::strong_count(place));
        }
        if SLOTS_MAX <= slots.len() {
            return None;
        }
        Some(slots.entry(user.clone()).or_default().clone())
    }
}
