//! Whether what is spent can be booked.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use tracing::info;

/// How long a write may be under way before the store counts as one that hangs.
const HANGS_AFTER: TimeDelta = TimeDelta::seconds(5);

/// Whether what is spent can be booked.
#[derive(Debug, Default)]
pub struct Health {
    unconfirmed: AtomicBool,
    /// Since when a write is under way, in microseconds since 1970; 0 is none.
    writing_since: AtomicI64,
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

    pub fn begin(&self, now: DateTime<Utc>) {
        self.writing_since.store(now.timestamp_micros(), Ordering::Release);
    }

    pub fn end(&self) {
        self.writing_since.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_hangs_counts_as_a_store_that_is_down() {
        let health = Health::default();
        let at = |micros: i64| DateTime::from_timestamp_micros(1_768_219_200_000_000 + micros).unwrap_or_default();
        health.begin(at(0));
        assert!(health.is_writable(at(5_000_000)));
        assert!(!health.is_writable(at(5_000_001)));
        health.end();
        assert!(health.is_writable(at(60_000_000)));
        health.set(false);
        assert!(!health.is_writable(at(60_000_000)));
        health.set(true);
        assert!(health.is_writable(at(60_000_000)));
    }
}
