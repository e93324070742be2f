//! What is counted. Each room counts what it knows, without knowing who reads it; what is read is read by `http::metrics`. Nothing here
//! takes a lock or waits, and no name comes from a caller: what callers invent would grow without bound.

mod decisions;
pub mod traces;

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub use decisions::{Decided, Decisions};

/// Threads count in lanes of their own, so that two of them seldom write the same line of memory.
const LANES: usize = 8;

thread_local! {
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

/// The lane of this thread.
fn lane() -> usize {
    LANE.with(|lane| *lane)
}

/// How often something happened; for what is rare.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

impl Level {
    /// One more, until what is given is dropped.
    pub fn enter(self: &std::sync::Arc<Self>) -> Inside {
        self.0.fetch_add(1, Ordering::Relaxed);
        Inside(self.clone())
    }

    pub fn now(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of a [`Level`].
#[derive(Debug)]
pub struct Inside(std::sync::Arc<Level>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The share of one lane.
#[derive(Debug)]
#[repr(align(64))]
struct Share {
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// Whole numbers by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    shares: [Share; LANES],
}

/// What a histogram has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The most that each bucket takes; the last one takes the rest.
    pub bounds: &'static [u64],
    /// Each by itself, one more than bounds.
    pub buckets: Vec<u64>,
    pub sum: u64,
}

impl Histogram {
    /// `bounds` ascend.
    pub fn new(bounds: &'static [u64]) -> Self {
        let share = |_| Share { buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) };
        Self { bounds, shares: std::array::from_fn(share) }
    }

    pub fn saw(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        let share = self.shares.get(lane());
        if let Some((share, bucket)) = share.and_then(|share| share.buckets.get(place).map(|bucket| (share, bucket))) {
            bucket.fetch_add(1, Ordering::Relaxed);
            share.sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// In microseconds.
    pub fn took(&self, time: Duration) {
        self.saw(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn seen(&self) -> Seen {
        let of =
            |place: usize| self.shares.iter().filter_map(|share| share.buckets.get(place)).map(|cell| cell.load(Ordering::Relaxed)).sum();
        Seen {
            bounds: self.bounds,
            buckets: (0..=self.bounds.len()).map(of).collect(),
            sum: self.shares.iter().map(|share| share.sum.load(Ordering::Relaxed)).fold(0, u64::saturating_add),
        }
    }
}

/// How long requests and commits take, in microseconds.
const MICROS: [u64; 14] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000, 10_000_000];
/// How many records are written together.
const RECORDS: [u64; 10] = [1, 2, 4, 8, 16, 64, 256, 1_024, 2_048, 4_096];

/// What the writer of the ledger counts.
#[derive(Debug)]
pub struct Writes {
    pub batch_records: Histogram,
    pub batch_micros: Histogram,
    /// Batches of which nobody knows whether they are done.
    pub unconfirmed: Counter,
    /// Writes that were turned away, since too many waited.
    pub busy: Counter,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            batch_records: Histogram::new(&RECORDS),
            batch_micros: Histogram::new(&MICROS),
            unconfirmed: Counter::default(),
            busy: Counter::default(),
        }
    }
}

impl Writes {
    /// A batch was written, or was not.
    pub fn wrote(&self, records: usize, took: Duration, confirmed: bool) {
        self.batch_records.saw(u64::try_from(records).unwrap_or(u64::MAX));
        self.batch_micros.took(took);
        if !confirmed {
            self.unconfirmed.add();
        }
    }
}

/// What questions to Stripe came to.
#[derive(Debug, Default)]
pub struct Asks {
    pub answered: Counter,
    pub failed: Counter,
}

/// Doors that are alike in what they cost and who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Check,
    /// Usage, holds, corrections.
    Ledger,
    Webhook,
    /// Pages for people who buy.
    Upgrade,
    /// Health and metrics.
    Probe,
    Other,
}

impl Class {
    pub const ALL: [Self; 6] = [Self::Check, Self::Ledger, Self::Webhook, Self::Upgrade, Self::Probe, Self::Other];

    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Ledger => "ledger",
            Self::Webhook => "webhook",
            Self::Upgrade => "upgrade",
            Self::Probe => "probe",
            Self::Other => "other",
        }
    }

    fn place(self) -> usize {
        match self {
            Self::Check => 0,
            Self::Ledger => 1,
            Self::Webhook => 2,
            Self::Upgrade => 3,
            Self::Probe => 4,
            Self::Other => 5,
        }
    }
}

/// The first digits of statuses.
pub const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests by class and by the first digit of their status.
#[derive(Debug)]
pub struct Requests([[Histogram; 5]; 6]);

impl Default for Requests {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| Histogram::new(&MICROS))))
    }
}

impl Requests {
    pub fn saw(&self, class: Class, status: u16, took: Duration) {
        let place = usize::from(status / 100).saturating_sub(1);
        if let Some(histogram) = self.0.get(class.place()).and_then(|statuses| statuses.get(place)) {
            histogram.took(took);
        }
    }

    /// Those that were asked at all.
    pub fn all(&self) -> impl Iterator<Item = (Class, &'static str, Seen)> {
        let of = |(class, statuses): (Class, &'_ [Histogram; 5])| {
            let seen = STATUS_CLASSES.into_iter().zip(statuses.iter().map(Histogram::seen));
            seen.map(move |(status, seen)| (class, status, seen)).collect::<Vec<_>>()
        };
        let all = Class::ALL.into_iter().zip(&self.0).flat_map(of);
        all.filter(|(_, _, seen)| seen.buckets.iter().any(|count| 0 < *count))
    }
}

/// What became of deliveries to the webhook.
#[derive(Debug, Default)]
pub struct Deliveries {
    pub accepted: Counter,
    pub duplicate: Counter,
    pub bad_signature: Counter,
    pub stale: Counter,
    pub not_an_event: Counter,
    /// The store did not take it, or nothing was read of it.
    pub failed: Counter,
    /// When the last one came whose signature was right, in microseconds since 1970; 0 is never.
    verified_at: AtomicI64,
}

impl Deliveries {
    pub fn verified(&self, micros: i64) {
        self.verified_at.fetch_max(micros, Ordering::Relaxed);
    }

    pub fn verified_at(&self) -> Option<i64> {
        Some(self.verified_at.load(Ordering::Relaxed)).filter(|micros| *micros != 0)
    }

    pub fn all(&self) -> [(&'static str, u64); 6] {
        [
            ("accepted", &self.accepted),
            ("duplicate", &self.duplicate),
            ("bad_signature", &self.bad_signature),
            ("stale", &self.stale),
            ("not_an_event", &self.not_an_event),
            ("failed", &self.failed),
        ]
        .map(|(name, counter)| (name, counter.count()))
    }
}

/// What the doors count.
#[derive(Debug, Default)]
pub struct Telemetry {
    pub decisions: Decisions,
    pub requests: Requests,
    pub deliveries: Deliveries,
    /// Checks that were answered by their tier's policy because the store could not be read.
    pub unreadable_checks: Counter,
    /// Requests that were answered with an error because the store failed.
    pub failed_requests: Counter,
    pub connections: std::sync::Arc<Level>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_in_the_first_bucket_that_takes_it() {
        let histogram = Histogram::new(&RECORDS);
        for value in [1, 2, 3, 4, 4_096, 4_097] {
            histogram.saw(value);
        }
        let seen = histogram.seen();
        assert_eq!(seen.buckets, [1, 1, 2, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(seen.sum, 8_203);
    }

    #[test]
    fn what_many_threads_count_is_all_there() {
        let requests = Requests::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..100).for_each(|_| requests.saw(Class::Check, 200, Duration::from_micros(70))));
            }
        });
        let all: Vec<_> = requests.all().map(|(class, status, seen)| (class, status, seen.buckets.iter().sum::<u64>(), seen.sum)).collect();
        assert_eq!(all, [(Class::Check, "2xx", 2_000, 140_000)]);
    }
}
