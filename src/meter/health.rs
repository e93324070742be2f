//! Whether what is spent can be booked.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::info;

use super::Clock;

/// How long a write may be under way before the store counts as one that hangs.
const HANGS_AFTER: TimeDelta = TimeDelta::seconds(5);

/// Whether what is spent can be booked.
#[derive(Debug, Default)]
pub struct Health {
    unconfirmed: AtomicBool,
    /// Since when writes are under way and none has ended, in microseconds since 1970; 0 is none.
    writing_since: AtomicI64,
    /// How many are.
    under_way: Mutex<u32>,
}

impl Health {
    pub fn is_writable(&self, now: DateTime<Utc>) -> bool {
        let since = self.writing_since.load(Ordering::Acquire);
        let hangs = since != 0 && HANGS_AFTER.num_microseconds().is_some_and(|most| most < now.timestamp_micros() - since);
        !hangs && !self.unconfirmed.load(Ordering::Acquire)
    }

    /// A write was confirmed, or was not.
    pub fn set(&self, confirmed: bool) {
        if self.unconfirmed.swap(!confirmed, Ordering::AcqRel) && confirmed {
            info!("writes are confirmed again");
        }
    }

    /// A write that somebody waits for is under way until what this gives is dropped. Of several that are, each that ends shows that the
    /// store does not hang.
    pub fn begin<'h>(&'h self, clock: &'h Clock) -> UnderWay<'h> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        *under_way += 1;
        if *under_way == 1 {
            self.writing_since.store(clock().timestamp_micros(), Ordering::Release);
        }
        UnderWay { health: self, clock }
    }
}

pub struct UnderWay<'h> {
    health: &'h Health,
    clock: &'h Clock,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.health.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        *under_way = under_way.saturating_sub(1);
        let since = if *under_way == 0 { 0 } else { (self.clock)().timestamp_micros() };
        self.health.writing_since.store(since, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A clock, and what sets it to so many seconds.
    fn clock() -> (Clock, impl Fn(i64) -> DateTime<Utc>) {
        let seconds = Arc::new(AtomicI64::new(0));
        let shown = seconds.clone();
        let clock: Clock = Arc::new(move || DateTime::from_timestamp(1_768_219_200 + shown.load(Ordering::Relaxed), 0).unwrap_or_default());
        let set = clock.clone();
        let set = move |to: i64| {
            seconds.store(to, Ordering::Relaxed);
            set()
        };
        (clock, set)
    }

    #[test]
    fn a_write_that_hangs_counts_as_a_store_that_is_down() {
        let (health, (clock, at)) = (Health::default(), clock());
        let write = health.begin(&clock);
        assert!(health.is_writable(at(5)) && !health.is_writable(at(6)));
        drop(write);
        assert!(health.is_writable(at(60)));
        health.set(false);
        assert!(!health.is_writable(at(60)));
        health.set(true);
        assert!(health.is_writable(at(60)));
    }

    #[test]
    fn of_two_writes_the_one_that_ends_shows_that_the_store_does_not_hang_and_the_other_one_may_yet() {
        let (health, (clock, at)) = (Health::default(), clock());
        let first = health.begin(&clock);
        at(4);
        let second = health.begin(&clock);
        assert!(!health.is_writable(at(6)), "none has ended for six seconds");
        drop(second);
        assert!(health.is_writable(at(11)) && !health.is_writable(at(12)), "the first one is under way");
        drop(first);
        assert!(health.is_writable(at(60)));
    }
}
