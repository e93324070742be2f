//! How fast Stripe is asked: under its limits, with a lane of its own for callers who wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Calls a second in live mode, where Stripe takes 100, and 25 at one endpoint: a question about a customer is a call at each of two. The rest
/// is for whoever else uses the account.
const LIVE: Rates = Rates { background: 32, interactive: 8 };
/// In test mode it takes 25.
const TEST: Rates = Rates { background: 16, interactive: 4 };
/// A lane that was idle may send so many at once, as a part of what it may send in a second.
const BURST_DIVISOR: u32 = 8;
/// How long a lane goes slower after Stripe said that it was too fast, and how much.
const SLOW_FOR: Duration = Duration::from_secs(10);
const SLOW_FACTOR: u32 = 4;

#[derive(Clone, Copy)]
struct Rates {
    background: u32,
    interactive: u32,
}

/// Who waits for the answer: a person, or nobody. Neither lane waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Background,
    Interactive,
}

/// All that share it together keep to the limits.
#[derive(Debug)]
pub(super) struct Pace {
    background: Bucket,
    interactive: Bucket,
}

/// A bucket of tokens, kept as the moment at which it would be full again.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    full_at: Option<Instant>,
    slow_until: Option<Instant>,
}

impl Pace {
    pub fn new(livemode: bool) -> Self {
        Self::at(if livemode { LIVE } else { TEST })
    }

    /// So many calls a second in all, a fifth of them for callers who wait.
    pub fn of(per_second: u32) -> Self {
        let interactive = (per_second / 5).max(1);
        Self::at(Rates { background: per_second.saturating_sub(interactive).max(1), interactive })
    }

    fn at(rates: Rates) -> Self {
        Self { background: Bucket::new(rates.background), interactive: Bucket::new(rates.interactive) }
    }

    /// When the next call may be sent, which is then counted; `None`, and nothing counted, where that would be after `until`.
    /// So nobody waits in a queue that is longer than the deadlines of those who wait in it.
    pub fn take(&self, lane: Lane, now: Instant, until: Instant) -> Option<Instant> {
        self.bucket(lane).take(now, until)
    }

    /// Goes slower for a while: Stripe said that we are too fast.
    pub fn slow_down(&self, lane: Lane, now: Instant) {
        self.bucket(lane).lock().slow_until = Some(now + SLOW_FOR);
    }

    fn bucket(&self, lane: Lane) -> &Bucket {
        match lane {
            Lane::Background => &self.background,
            Lane::Interactive => &self.interactive,
        }
    }
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, burst: (per_second / BURST_DIVISOR).max(1), state: Mutex::default() }
    }

    /// Nothing that holds the lock can fail half-way.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, now: Instant, until: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let slow = state.slow_until.is_some_and(|slow_until| now < slow_until);
        let interval = if slow { self.interval * SLOW_FACTOR } else { self.interval };
        let full_at = state.full_at.map_or(now, |full_at| full_at.max(now)) + interval;
        // `full_at` may lie a whole bucket ahead before anybody has to wait.
        let ahead = full_at.saturating_duration_since(now).saturating_sub(interval * self.burst);
        let at = now + ahead;
        if until < at {
            return None;
        }
        state.full_at = Some(full_at);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of `count` calls of the lane that come at once may be sent, in milliseconds.
    fn sent(pace: &Pace, lane: Lane, now: Instant, count: usize) -> Vec<u128> {
        let until = now + Duration::from_secs(3600);
        let taken = (0..count).filter_map(|_| pace.take(lane, now, until));
        taken.map(|at| at.saturating_duration_since(now).as_millis()).collect()
    }

    fn most_in_a_second(sent: &[u128]) -> usize {
        sent.iter().map(|from| sent.iter().filter(|at| (*from..*from + 1000).contains(*at)).count()).max().unwrap_or(0)
    }

    #[test]
    fn both_lanes_together_stay_under_stripes_limits() {
        // Half of them at one endpoint, which takes 25 in live mode.
        for (livemode, limit) in [(true, 50), (false, 25)] {
            let (pace, now) = (Pace::new(livemode), Instant::now());
            let mut all = sent(&pace, Lane::Background, now, 1000);
            all.extend(sent(&pace, Lane::Interactive, now, 1000));
            let most = most_in_a_second(&all);
            assert!(limit * 3 / 4 <= most && most <= limit, "{most} of {limit}");
        }
    }

    #[test]
    fn who_waits_for_an_answer_does_not_wait_for_the_others() {
        let (pace, now) = (Pace::new(false), Instant::now());
        sent(&pace, Lane::Background, now, 100);
        assert_eq!(sent(&pace, Lane::Interactive, now, 1), [0]);
    }

    #[test]
    fn what_would_come_too_late_takes_nothing() {
        let (pace, now) = (Pace::new(false), Instant::now());
        let soon = now + Duration::from_millis(100);
        let count = (0..100).filter(|_| pace.take(Lane::Background, now, soon).is_some()).count();
        assert_eq!(count, 3, "two at once, and one that waits");
        assert!(pace.take(Lane::Background, now + Duration::from_millis(200), now + Duration::from_millis(300)).is_some());
    }

    #[test]
    fn after_a_429_it_goes_slower_for_a_while() {
        let (pace, now) = (Pace::new(true), Instant::now());
        pace.slow_down(Lane::Background, now);
        assert!(most_in_a_second(&sent(&pace, Lane::Background, now, 200)) <= 32 / 4 + 4);
        let later = now + Duration::from_secs(60);
        let at_once = sent(&pace, Lane::Background, later, 4).into_iter().filter(|millis| *millis == 0).count();
        assert_eq!(at_once, 4, "what was slow is forgotten");
    }
}
