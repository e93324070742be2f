//! How much is in flight at once, by kind, so that a flood of one kind leaves room for the others. What finds no room is answered 503 at
//! once: nothing waits here.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Method;

use super::error::{ErrorCode, Problem};
use super::{enforcement, gate};

/// A body up to this size is light: a record, a hold, a check with metadata, most of Stripe's events.
const LIGHT_BYTES_MAX: u64 = 64 * 1024;

/// What a request is, by its method, path and the length that it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Check,
    Write,
    Webhook,
    /// Whatever a key or a signature is asked for and has a body that is not light, or says no length.
    Large,
    LargeWebhook,
    /// Is it alive, is it ready?
    Health,
    Other,
}

impl Lane {
    const ALL: [Self; 7] = [Self::Check, Self::Write, Self::Webhook, Self::Large, Self::LargeWebhook, Self::Health, Self::Other];

    /// `length` of the body; `None` where it is not said.
    pub fn of(method: &Method, path: &str, length: Option<u64>) -> Self {
        let is_light = length.is_some_and(|length| length <= LIGHT_BYTES_MAX);
        match path {
            "/webhooks/stripe" if is_light => Self::Webhook,
            "/webhooks/stripe" => Self::LargeWebhook,
            "/healthz" | "/readyz" | "/metrics" => Self::Health,
            // These read no body.
            path if gate::is_at(path) || *method == Method::GET && enforcement::user_in(path).is_some() => Self::Check,
            _ if !is_light => Self::Large,
            "/v1/enforcement" => Self::Check,
            _ if *method != Method::POST => Self::Other,
            "/v1/usage" | "/v1/corrections" => Self::Write,
            path if path.starts_with("/v1/holds") => Self::Write,
            _ => Self::Other,
        }
    }

    /// How many at once. In bytes of bodies that is at the worst 256 + 64 + 16 MiB of the light ones, 256 MiB of large ones (the largest
    /// door takes 8 MiB) and 8 MiB of large events, so not more than 620 MiB altogether, and that only to who has a key: without one it
    /// is 24 MiB.
    const fn places(self) -> usize {
        match self {
            // Answered from memory; on Postgres all that wait share one question.
            Self::Check => 4096,
            // Several commits' worth, each of up to 512.
            Self::Write => 1024,
            // A second of what SQLite's one writer does. Stripe sends again what finds no room.
            Self::Webhook => 256,
            // These take a core for milliseconds each, whoever waits behind them.
            Self::Large => 32,
            // Nothing of them is known before all was read and summed, so they are few; Stripe's own are light.
            Self::LargeWebhook => 8,
            Self::Health => 64,
            // They ask the database, which has some connections for all of them.
            Self::Other => 256,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Check => 0,
            Self::Write => 1,
            Self::Webhook => 2,
            Self::Large => 3,
            Self::LargeWebhook => 4,
            Self::Health => 5,
            Self::Other => 6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Check => "checks",
            Self::Write => "writes",
            Self::Webhook => "events",
            Self::Large => "requests with more than 64 KiB, or of no stated length,",
            Self::LargeWebhook => "events with more than 64 KiB, or of no stated length,",
            Self::Health => "questions whether it is alive or ready",
            Self::Other => "requests",
        }
    }

    /// There is no room.
    pub fn busy(self) -> Problem {
        let detail = format!("{} {} are in flight, which is the most at once; nothing was done, ask again", self.places(), self.name());
        Problem::new(ErrorCode::Busy, detail)
    }
}

/// One count, on a line of the cache of its own: checks must not wait for who counts something else.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Taken(AtomicUsize);

#[derive(Debug, Default)]
pub struct Lanes([Taken; Lane::ALL.len()]);

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place<'a>(&'a AtomicUsize);

impl Lanes {
    /// `None` where all places are taken.
    pub fn enter(&self, lane: Lane) -> Option<Place<'_>> {
        let Taken(taken) = self.0.get(lane.index())?;
        let before = taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(taken);
        (before < lane.places()).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_its_own_count_and_gives_back_what_was_taken() {
        let lanes = Lanes::default();
        for lane in Lane::ALL {
            for _ in 0..2 {
                let taken: Vec<_> = (0..lane.places()).map(|_| lanes.enter(lane)).collect();
                assert!(taken.iter().all(Option::is_some), "{lane:?}");
                assert!(lanes.enter(lane).is_none(), "{lane:?}");
                for other in Lane::ALL.into_iter().filter(|other| *other != lane) {
                    assert!(lanes.enter(other).is_some(), "{other:?} while {lane:?} is full");
                }
            }
        }
    }

    #[test]
    fn a_request_is_what_its_path_and_length_say() {
        let check = |method: Method, path: &str, length: Option<u64>, lane: Lane| {
            assert_eq!(Lane::of(&method, path, length), lane, "{method} {path} {length:?}");
        };
        check(Method::POST, "/webhooks/stripe", Some(65_536), Lane::Webhook);
        check(Method::POST, "/webhooks/stripe", Some(65_537), Lane::LargeWebhook);
        check(Method::POST, "/webhooks/stripe", None, Lane::LargeWebhook);
        check(Method::GET, "/readyz", Some(0), Lane::Health);
        check(Method::GET, "/healthz", None, Lane::Health);
        check(Method::POST, "/v1/enforcement", Some(100), Lane::Check);
        check(Method::POST, "/v1/enforcement", Some(1_000_000), Lane::Large);
        check(Method::GET, "/v1/users/u/enforcement", None, Lane::Check);
        check(Method::POST, "/v1/usage", Some(100), Lane::Write);
        check(Method::POST, "/v1/usage", None, Lane::Large);
        check(Method::POST, "/v1/holds/h/capture", Some(9), Lane::Write);
        check(Method::GET, "/v1/holds", Some(0), Lane::Other);
        check(Method::GET, "/v1/users", Some(0), Lane::Other);
        check(Method::GET, "/nowhere", None, Lane::Large);
    }
}
