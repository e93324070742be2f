//! What is remembered of links that were opened lately: a place for each payer, who opened how often, and a bound on all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::way::Way;
use crate::domain::user::UserId;
use crate::sync::Owner;

/// Payers who are remembered. What is forgotten is only made again: under the same idempotency key, so it is the same.
const SLOTS_MAX: usize = 10_000;
/// Targets of one payer.
const SESSIONS_MAX: usize = 8;
/// How often a user's links lead on within a minute. People open them once or twice.
const OPENINGS_MAX: u32 = 20;
/// How often all links together do: each opening takes some calls of those that Stripe allows.
const ALL_OPENINGS_MAX: u32 = 600;
const SECONDS_PER_MINUTE: i64 = 60;

/// A page that was made at Stripe.
#[derive(Clone, Debug)]
pub struct Session {
    pub target: String,
    pub customer: String,
    pub way: Way,
    pub page: Page,
}

/// Where a payer is led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub url: String,
    pub until: DateTime<Utc>,
    /// Of a checkout. Others may have ended it meanwhile (another node, or he himself), and another price may be the right one by now.
    pub checkout: Option<Selling>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selling {
    pub session: String,
    pub price: String,
}

/// What is remembered of one payer.
#[derive(Debug, Default)]
pub struct Slot {
    sessions: Vec<Session>,
}

impl Slot {
    /// The page that was made for the same, and is not too old.
    pub fn known(&self, target: &str, customer: &str, way: &Way, now: DateTime<Utc>) -> Option<Page> {
        let same = |known: &&Session| known.target == target && known.customer == customer && known.way == *way && now < known.page.until;
        self.sessions.iter().find(same).map(|known| known.page.clone())
    }

    pub fn keep(&mut self, session: Session, now: DateTime<Utc>) {
        // A checkout ends the others that were open.
        let is_checkout = |known: &Session| matches!(known.way, Way::Checkout { .. });
        let ended = |known: &Session| is_checkout(&session) && is_checkout(known);
        self.sessions.retain(|known| known.target != session.target && now < known.page.until && !ended(known));
        self.sessions.truncate(SESSIONS_MAX - 1);
        self.sessions.push(session);
    }
}

/// A payer's place, which one opening holds at a time.
pub type Place = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Debug, Default)]
pub struct Slots(Mutex<HashMap<Owner, Place>>);

impl Slots {
    /// The place of a payer; `None` where all are taken by openings under way.
    pub fn of(&self, payer: &Owner) -> Option<Place> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = slots.get(payer) {
            return Some(known.clone());
        }
        if SLOTS_MAX <= slots.len() {
            slots.retain(|_, place| 1 < Arc::strong_count(place));
        }
        if SLOTS_MAX <= slots.len() {
            return None;
        }
        Some(slots.entry(payer.clone()).or_default().clone())
    }
}

/// The openings of one minute. It never holds more users than openings that are let through.
#[derive(Debug, Default)]
struct Minute {
    number: i64,
    all: u32,
    by_user: HashMap<UserId, u32>,
}

#[derive(Debug, Default)]
pub struct Openings(Mutex<Minute>);

impl Openings {
    /// Counts an opening; `false` where there were too many within this minute, by this user or by all.
    pub fn count(&self, user: &UserId, now: DateTime<Utc>) -> bool {
        let number = now.timestamp().div_euclid(SECONDS_PER_MINUTE);
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.number != number {
            *minute = Minute { number, ..Minute::default() };
        }
        let his = minute.by_user.get(user).copied().unwrap_or(0);
        // What is refused counts for nobody: one who opens without end does not close the door for all.
        if OPENINGS_MAX <= his || ALL_OPENINGS_MAX <= minute.all {
            return false;
        }
        minute.all += 1;
        minute.by_user.insert(user.clone(), his + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u32) -> UserId {
        UserId::parse(&format!("u{number}")).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_user_and_all_together_have_a_limit_within_a_minute() {
        let (openings, at) = (Openings::default(), |seconds: i64| DateTime::from_timestamp(1_768_219_200 + seconds, 0).unwrap_or_default());
        let let_through = |number: u32, seconds| (0..100).filter(|_| openings.count(&user(number), at(seconds))).count();
        assert_eq!((let_through(0, 0), let_through(0, 59), let_through(0, 60)), (20, 0, 20));
        // 29 others use up the minute, and the next one finds nothing left.
        assert!((1..30).all(|number| let_through(number, 60) == 20));
        assert_eq!((let_through(30, 119), let_through(30, 120)), (0, 20));
    }
}
