//! A Stripe of our own, over real HTTP: customers, prices, subscriptions, checkout, portal, events and webhooks, with knobs for
//! everything that goes wrong at the real one. Tests run against it, and so can people (`spendgate fake-stripe`).
//!
//! Nothing else in the service uses it, and it uses nothing of the service but the signature that it must make. What it does not
//! know it refuses, as Stripe refuses what Stripe does not know.

mod answer;
mod api;
mod billing;
mod checkout;
mod control;
pub mod delivery;
mod door;
mod form;
mod hand;
pub mod knobs;
mod list;
pub mod objects;
mod pages;
mod render;
mod shelf;
mod world;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;

pub use hand::PriceSpec;
use world::World;

/// Tells the time; the fake never asks the machine.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// How objects look. The versions between two generations differ in nothing that we know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Before 2025-03-31.basil: a subscription has its period, an invoice its subscription.
    Acacia,
    /// Since then: items have their periods, and an invoice's subscription stands at `parent`.
    Basil,
}

impl Generation {
    const BASIL_BEGINS: &'static str = "2025-03-31";

    /// A version of this generation.
    pub fn version(self) -> &'static str {
        match self {
            Self::Acacia => "2024-12-18.acacia",
            Self::Basil => "2025-06-30.basil",
        }
    }

    /// The generation of a version, which begins with its date.
    pub fn of(version: &str) -> Self {
        if version < Self::BASIL_BEGINS { Self::Acacia } else { Self::Basil }
    }
}

/// What the billing portal allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// Somebody saved the portal's settings; without that Stripe makes no session.
    pub configured: bool,
    /// Customers may change their plan.
    pub updates: bool,
    /// The prices that they may change to; `None` is all.
    pub prices: Option<Vec<String>>,
}

/// What stays as it is while the fake runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The keys that are taken. The first one's prefix says whether all this is live.
    pub keys: Vec<String>,
    /// How objects look to whoever does not name a version.
    pub generation: Generation,
    /// No page has more objects, whatever `limit` asks for.
    pub page_max: usize,
    /// How many items a subscription shows itself.
    pub items_max: usize,
    /// Where our pages are, without a slash at its end; `None`: where the last caller found us.
    pub public_url: Option<String>,
    pub portal: Portal,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keys: vec!["sk_test_fake".to_owned()],
            generation: Generation::Basil,
            page_max: 100,
            items_max: 10,
            public_url: None,
            portal: Portal { configured: true, updates: true, prices: None },
        }
    }
}

impl Options {
    fn livemode(&self) -> bool {
        self.keys.first().is_some_and(|key| key.starts_with("sk_live_") || key.starts_with("rk_live_"))
    }
}

/// A handle to one fake Stripe; clones lead to the same.
#[derive(Clone)]
pub struct FakeStripe {
    world: Arc<Mutex<World>>,
    /// There may be something to deliver.
    news: Arc<Notify>,
}

impl FakeStripe {
    /// An empty account. The same seed and the same calls make the same ids.
    pub fn new(options: Options, clock: Clock, seed: u64) -> Self {
        Self { world: Arc::new(Mutex::new(World::new(options, clock, seed))), news: Arc::new(Notify::new()) }
    }

    /// `/v1`, the pages that people see, and `/_fake` to turn the knobs.
    pub fn router(&self) -> Router {
        door::router(self.clone())
    }

    /// A test that failed while it held the lock has told so already.
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the world; whoever reads stale lists sees the one before.
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        world.remember();
        let done = change(&mut world);
        drop(world);
        self.news.notify_one();
        done
    }
}

impl fmt::Debug for FakeStripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeStripe(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_belongs_to_a_generation() {
        for version in ["2016-07-06", "2024-12-18.acacia", "2025-02-24.acacia"] {
            assert_eq!(Generation::of(version), Generation::Acacia, "{version}");
        }
        for version in ["2025-03-31.basil", "2025-10-29.clover", "2026-03-25.dahlia"] {
            assert_eq!(Generation::of(version), Generation::Basil, "{version}");
        }
        for generation in [Generation::Acacia, Generation::Basil] {
            assert_eq!(Generation::of(generation.version()), generation);
        }
    }
}
