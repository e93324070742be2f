//! The catalogue that holds now, and how another one comes to hold. It is swapped as a whole.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use tracing::{error, info};

use crate::domain::catalogue::Catalogue;
use crate::domain::difference::{Difference, differences};
use crate::telemetry::Counter;

/// Every request, batch and step loads once, and is judged by that one catalogue to its end: one that is swapped meanwhile holds from
/// the next one on, and nobody is judged by half of each.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<Catalogue>>);

impl Current {
    pub fn new(catalogue: Catalogue) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(catalogue)))
    }

    /// Waits for nobody, and writes to no memory that others read.
    pub fn load(&self) -> Guard<Arc<Catalogue>> {
        self.0.load()
    }

    /// The same, for who keeps it longer.
    pub fn load_full(&self) -> Arc<Catalogue> {
        self.0.load_full()
    }

    pub fn swap(&self, next: Catalogue) {
        self.0.store(Arc::new(next));
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(…)")
    }
}

/// Differences that are logged one by one; a new price book may have thousands.
const LOGGED_MAX: usize = 50;

/// Reads the files again. All or nothing: what is refused changes nothing.
#[derive(Clone)]
pub struct Reload {
    current: Current,
    read: Arc<dyn Fn() -> Result<Catalogue, String> + Send + Sync>,
    turn: Arc<Mutex<()>>,
    counts: Arc<Counts>,
}

/// How often the files were read again.
#[derive(Debug, Default)]
pub struct Counts {
    pub done: Counter,
    pub refused: Counter,
}

/// What has come of it.
#[derive(Debug)]
pub struct Reloaded {
    pub changed: Vec<Difference>,
    pub tiers: usize,
    pub models: usize,
}

impl Reload {
    /// `read` checks what the start checks; its error names the file, the line and what is wrong.
    pub fn new(current: Current, read: impl Fn() -> Result<Catalogue, String> + Send + Sync + 'static) -> Self {
        Self { current, read: Arc::new(read), turn: Arc::default(), counts: Arc::default() }
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Waits for the files, and for who reads them already: the last one to read has the last word.
    pub fn run(&self) -> Result<Reloaded, String> {
        // Nothing is left half done by one that panics.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (self.read)().inspect_err(|why| {
            self.counts.refused.add();
            error!("the files were read again and are refused; what held goes on: {why}");
        })?;
        let changed = differences(&self.current.load(), &next);
        let (tiers, models) = (next.tiers().len(), next.prices.models().len());
        self.current.swap(next);
        self.counts.done.add();
        info!(
            changed = changed.len(),
            tiers,
            models,
            "the files were read again: {} changes, {tiers} tiers, {models} models",
            changed.len()
        );
        for difference in changed.iter().take(LOGGED_MAX) {
            info!("changed: {difference}");
        }
        if let Some(more) = changed.len().checked_sub(LOGGED_MAX).filter(|more| 0 < *more) {
            info!("changed: … and {more} more");
        }
        Ok(Reloaded { changed, tiers, models })
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload(…)")
    }
}
