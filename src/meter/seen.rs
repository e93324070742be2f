//! Which ids may be known to the tables. Most ids are new, and to ask the tables for each batch would cost as much as to commit it.

use std::sync::atomic::{AtomicBool, Ordering};

use fastbloom::AtomicBloomFilter;
use tracing::error;

use crate::domain::changes::Changes;
use crate::store::{Store, StoreError, holds, ledger};

/// Bits for each id: one new id in four hundred is asked for in vain.
const BITS_PER_ID: usize = 16;
const HASHES: u32 = 4;
/// Room for as many ids at the least, in 8 MB.
const IDS_MIN: usize = 4_000_000;
/// Room for as many at the most, in 64 MB; beyond, more ids are asked for in vain.
const IDS_MAX: usize = 32_000_000;
/// Ids that are read at once when the service starts.
const READ_AT_ONCE: i64 = 20_000;

/// A set that never denies an id that it was given, and sometimes claims one that it was not.
#[derive(Debug)]
pub struct Seen {
    filter: AtomicBloomFilter,
    /// Whether all ids of the tables are in it.
    complete: AtomicBool,
}

impl Seen {
    /// `ids` is how many there are; as many again find room.
    pub fn new(ids: usize) -> Self {
        let room = ids.saturating_mul(2).clamp(IDS_MIN, IDS_MAX);
        let filter = AtomicBloomFilter::with_num_bits(room * BITS_PER_ID).seed(&0).hashes(HASHES);
        Self { filter, complete: AtomicBool::new(false) }
    }

    /// To be called before what a batch changed is shown to anybody.
    pub fn add(&self, changes: &Changes) {
        for entry in &changes.entries {
            self.filter.insert_hash(ledger::id_hash(&entry.id).cast_unsigned());
        }
        for hold in &changes.holds {
            self.filter.insert_hash(holds::id_hash(&hold.id).cast_unsigned());
        }
    }

    /// Whether the tables must be asked.
    pub fn may_have(&self, id_hash: i64) -> bool {
        !self.complete.load(Ordering::Acquire) || self.filter.contains_hash(id_hash.cast_unsigned())
    }

    /// Reads all ids of the tables. What is committed meanwhile is added by whoever commits it.
    pub async fn fill(&self, store: &Store) {
        match self.read_all(store).await {
            Ok(()) => self.complete.store(true, Ordering::Release),
            Err(error) => error!(%error, "the known ids could not be read, so each is asked for: {error}"),
        }
    }

    async fn read_all(&self, store: &Store) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let hashes = ledger::id_hashes(&mut store.reader().await?, after, READ_AT_ONCE).await?;
            for hash in &hashes {
                self.filter.insert_hash(hash.cast_unsigned());
            }
            let Some(last) = hashes.last() else { break };
            after = Some(*last);
        }
        let mut after = String::new();
        loop {
            let ids = holds::ids(&mut store.reader().await?, &after, READ_AT_ONCE).await?;
            for id in &ids {
                self.filter.insert_hash(holds::id_hash(id).cast_unsigned());
            }
            let Some(last) = ids.last() else { return Ok(()) };
            after.clone_from(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn before_all_ids_are_read_every_id_may_be_known_and_then_few_that_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&crate::store::Address::Sqlite(folder.path().join("test.db"))).await.unwrap();
        let seen = Seen::new(0);
        let hash = |number: i32| ledger::id_hash(&format!("id-{number}"));
        assert!((0..100).all(|number| seen.may_have(hash(number))));
        seen.filter.insert_hash(hash(0).cast_unsigned());
        seen.fill(&store).await;
        assert!(seen.may_have(hash(0)));
        assert!((1..1000).filter(|number| seen.may_have(hash(*number))).count() < 10);
    }
}
