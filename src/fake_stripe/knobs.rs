//! What goes wrong, and how often: a script for the next calls, chance by seed, and what is always so.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Calls that are remembered one by one; counts go on beyond.
const CALLS_MAX: usize = 100_000;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: for scripts, as in "the second call fails".
    Pass,
    /// 429, with `Retry-After` where there are seconds.
    TooManyRequests { retry_after: Option<u32> },
    /// 500 in JSON; nothing happened.
    ServerError,
    /// 500 in JSON, and Stripe keeps it: the same idempotency key gets it again and again.
    ServerErrorKept,
    /// 502 as HTML, from something before Stripe; nothing happened.
    BadGateway,
    /// 409: another request is just using the idempotency key.
    KeyInUse,
    /// 403: a restricted key that may not do this.
    Forbidden,
    /// No answer, ever; nothing happened.
    Hang,
    /// It happened; the connection breaks before the answer.
    AnswerLost,
    /// It happened; a 502 as HTML comes instead of the answer.
    AnswerLostInGateway,
    /// It happened; no answer, ever.
    AnswerHangs,
}

impl Fault {
    /// By the name that `/_fake/knobs` takes.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pass" => Self::Pass,
            "429" => Self::TooManyRequests { retry_after: Some(1) },
            "500" => Self::ServerError,
            "500_kept" => Self::ServerErrorKept,
            "502" => Self::BadGateway,
            "409" => Self::KeyInUse,
            "403" => Self::Forbidden,
            "hang" => Self::Hang,
            "answer_lost" => Self::AnswerLost,
            "answer_lost_502" => Self::AnswerLostInGateway,
            "answer_hangs" => Self::AnswerHangs,
            _ => return None,
        })
    }
}

/// One line of the script: it waits for the next call that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub fault: Fault,
    /// How `METHOD /path` must begin, as in `POST /v1/checkout/sessions`; empty is every call.
    pub on: String,
}

/// All zero: everything goes well, and everybody sees everything at once.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    /// Before each answer.
    pub latency: Duration,
    pub script: VecDeque<Line>,
    /// Of 1000 calls that the script does not judge, so many meet one of `chances`.
    pub chance_per_mille: u32,
    pub chances: Vec<Fault>,
    /// Lists show the world as it was so many changes ago, though never older than when this was set. 0: as it is.
    pub stale_changes: usize,
    /// How far Stripe's clock is ahead of the given one: the `Date` header, `created`, the `t` of signatures.
    pub clock_ahead: Duration,
    /// How far it is behind; it counts together with `clock_ahead`.
    pub clock_behind: Duration,
    /// The call after so many within a second is answered 429. `None`: as many as you like.
    pub calls_per_second_max: Option<usize>,
}

impl Knobs {
    /// The next `times` calls that begin with `on` meet `fault`.
    pub fn script(&mut self, times: usize, fault: Fault, on: &str) {
        self.script.extend((0..times).map(|_| Line { fault, on: on.to_owned() }));
    }

    /// The judgement over a call; a line of the script is used up.
    pub fn judge(&mut self, call: &str, rng: &mut fastrand::Rng) -> Fault {
        if let Some(place) = self.script.iter().position(|line| call.starts_with(&line.on)) {
            return self.script.remove(place).map_or(Fault::Pass, |line| line.fault);
        }
        if self.chances.is_empty() || self.chance_per_mille <= rng.u32(0..1000) {
            return Fault::Pass;
        }
        self.chances.get(rng.usize(0..self.chances.len())).copied().unwrap_or(Fault::Pass)
    }

    pub fn skew(&self) -> TimeDelta {
        let delta = |time: Duration| TimeDelta::from_std(time).unwrap_or_default();
        delta(self.clock_ahead) - delta(self.clock_behind)
    }
}

/// One call to `/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub at: DateTime<Utc>,
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub body: String,
    pub idempotency_key: Option<String>,
    pub stripe_version: Option<String>,
    pub fault: Fault,
}

/// Who called what, how often, how fast.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    recent: VecDeque<Call>,
    by_path: BTreeMap<String, u64>,
    /// Of the last second, by the given clock.
    window: VecDeque<DateTime<Utc>>,
    most_in_a_second: usize,
}

impl Calls {
    /// How many came in the second that ends now, this one included.
    pub fn arrive(&mut self, at: DateTime<Utc>) -> usize {
        while self.window.front().is_some_and(|first| *first + TimeDelta::seconds(1) <= at) {
            self.window.pop_front();
        }
        self.window.push_back(at);
        self.most_in_a_second = self.most_in_a_second.max(self.window.len());
        self.window.len()
    }

    pub fn remember(&mut self, call: Call) {
        *self.by_path.entry(format!("{} {}", call.method, call.path)).or_default() += 1;
        if self.recent.len() == CALLS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(call);
    }

    /// The last ones, the oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Call> {
        self.recent.iter()
    }

    /// By `METHOD /path`.
    pub fn by_path(&self) -> &BTreeMap<String, u64> {
        &self.by_path
    }

    /// Those whose `METHOD /path` begins so; all where `start` is empty.
    pub fn count(&self, start: &str) -> u64 {
        self.by_path.iter().filter(|(path, _)| path.starts_with(start)).map(|(_, count)| count).sum()
    }

    /// The most calls in any second.
    pub fn most_in_a_second(&self) -> usize {
        self.most_in_a_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_script_waits_for_its_call() {
        let mut knobs = Knobs::default();
        let mut rng = fastrand::Rng::with_seed(1);
        knobs.script(2, Fault::ServerError, "POST /v1/customers");
        knobs.script(1, Fault::Hang, "");
        assert_eq!(knobs.judge("GET /v1/events", &mut rng), Fault::Hang);
        assert_eq!(knobs.judge("GET /v1/events", &mut rng), Fault::Pass);
        assert_eq!(knobs.judge("POST /v1/customers", &mut rng), Fault::ServerError);
        assert_eq!(knobs.judge("POST /v1/customers/cus_1", &mut rng), Fault::ServerError);
        assert_eq!(knobs.judge("POST /v1/customers", &mut rng), Fault::Pass);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let faults = |seed| {
            let mut knobs = Knobs { chance_per_mille: 500, chances: vec![Fault::ServerError, Fault::BadGateway], ..Knobs::default() };
            let mut rng = fastrand::Rng::with_seed(seed);
            (0..100).map(|_| knobs.judge("GET /v1/events", &mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(faults(7), faults(7));
        assert!(faults(7).contains(&Fault::Pass) && faults(7).contains(&Fault::ServerError));
    }

    #[test]
    fn the_busiest_second_is_known() {
        let mut calls = Calls::default();
        let at = |millis: i64| DateTime::from_timestamp_millis(millis).unwrap_or_default();
        for millis in [0, 100, 999, 1000, 1099, 5000] {
            calls.arrive(at(millis));
        }
        // From 100 to 1099 it is four; a window holds neither 0 and 1000 nor 100 and 1100.
        assert_eq!(calls.most_in_a_second(), 4);
    }
}
