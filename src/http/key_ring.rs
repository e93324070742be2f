//! The keys that were used lately, and when. A check asks for its key here, so nothing on this way waits for a write.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hmac::Hmac;
use hmac::digest::CtOutput;
use sha2::Sha256;
use tracing::warn;

use super::auth::{ANONYMOUS_KEY_ID, Caller, Scopes};
use crate::store::keys::{KeyDigest, StoredKey};
use crate::store::{Store, StoreError, keys};

/// How long a key is believed without asking the store: one that was revoked elsewhere works no longer than this.
pub const KEPT_FOR: TimeDelta = TimeDelta::seconds(5);
/// How long after the store failed it is asked for a key again.
const ASKED_AGAIN_AFTER: TimeDelta = TimeDelta::seconds(1);
/// Keys in memory; beyond, all are asked for again.
const KEPT_MAX: usize = 10_000;
/// How often it is written when keys were used last: once for each key and node, however often it was.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// Why a key opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such key, or it was revoked.
    Unknown,
    Expired(DateTime<Utc>),
}

/// A key that was good when the store was asked.
#[derive(Debug)]
struct Kept {
    caller: Arc<Caller>,
    expires_at: Option<DateTime<Utc>>,
    read_at: DateTime<Utc>,
    /// `None`: the store knows of the last use.
    used_at: Option<DateTime<Utc>>,
}

impl Kept {
    /// By the clock, however lately the store was asked.
    fn take(&mut self, now: DateTime<Utc>) -> Result<Arc<Caller>, Refused> {
        match self.expires_at.filter(|end| *end <= now) {
            Some(end) => Err(Refused::Expired(end)),
            None => {
                self.used_at = Some(now);
                Ok(self.caller.clone())
            }
        }
    }

    fn is_fresh(&self, now: DateTime<Utc>) -> bool {
        self.read_at <= now && now - self.read_at < KEPT_FOR
    }
}

#[derive(Debug, Default)]
struct Ring {
    kept: HashMap<KeyDigest, Kept>,
    /// Uses of keys that are not kept any more, until they are written. Only keys that were good are here.
    left: BTreeMap<String, DateTime<Utc>>,
    /// How often a key was changed here: what was read before a change is not kept after it.
    changes: u64,
}

impl Ring {
    fn leave(&mut self, key_id: &str, used_at: Option<DateTime<Utc>>) {
        if let Some(used_at) = used_at {
            let last = self.left.entry(key_id.to_owned()).or_insert(used_at);
            *last = used_at.max(*last);
        }
    }

    fn drop_where(&mut self, gone: impl Fn(&KeyDigest, &Kept) -> bool) {
        let dropped: Vec<(KeyDigest, Kept)> = self.kept.extract_if(|digest, kept| gone(digest, kept)).collect();
        for (_, kept) in dropped {
            self.leave(&kept.caller.key_id, kept.used_at);
        }
    }

    fn keep(&mut self, digest: KeyDigest, kept: Kept) {
        if KEPT_MAX <= self.kept.len() {
            self.drop_where(|_, _| true);
        }
        self.kept.insert(digest, kept);
    }

    /// What the store does not know of yet, in the order of the keys.
    fn uses(&self) -> BTreeMap<String, DateTime<Utc>> {
        let mut uses = self.left.clone();
        for kept in self.kept.values() {
            if let Some(used_at) = kept.used_at {
                let last = uses.entry(kept.caller.key_id.clone()).or_insert(used_at);
                *last = used_at.max(*last);
            }
        }
        uses
    }

    fn wrote(&mut self, written: &BTreeMap<String, DateTime<Utc>>) {
        let is_known = |key_id: &str, used_at: DateTime<Utc>| written.get(key_id).is_some_and(|at| used_at <= *at);
        self.left.retain(|key_id, used_at| !is_known(key_id, *used_at));
        for kept in self.kept.values_mut() {
            kept.used_at = kept.used_at.filter(|used_at| !is_known(&kept.caller.key_id, *used_at));
        }
    }
}

/// The keys that were used lately.
#[derive(Debug, Default)]
pub struct KeyRing {
    ring: Mutex<Ring>,
    /// Where no key is asked for, everybody is this caller.
    pub(super) anonymous: Option<Arc<Caller>>,
}

impl KeyRing {
    /// Asks nobody for a key. What makes it safe is where the service listens.
    pub fn open_to_all() -> Self {
        let anonymous = Caller::new(ANONYMOUS_KEY_ID.to_owned(), Scopes::admin());
        Self { anonymous: Some(Arc::new(anonymous)), ..Self::default() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose key it is, if it is good at this moment. `None` where the store has to be asked.
    pub fn kept(&self, digest: KeyDigest, now: DateTime<Utc>) -> Option<Result<Arc<Caller>, Refused>> {
        self.ring().kept.get_mut(&digest).filter(|kept| kept.is_fresh(now)).map(|kept| kept.take(now))
    }

    /// [`Self::kept`], from the store.
    pub async fn ask(
        &self,
        store: &Store,
        digest: KeyDigest,
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Result<Arc<Caller>, Refused>, StoreError> {
        let (changes, begun) = (self.ring().changes, tokio::time::Instant::now());
        let asked = tokio::time::timeout(patience, stored(store, digest)).await;
        let stored = match asked.unwrap_or_else(|_| Err(StoreError::late())) {
            Ok(stored) => stored,
            // While the store is away, a key that was good is good: checks are then answered by their tier's policy, not with an error. It is
            // not asked for by each of them, or each would wait for a store that hangs.
            Err(error) => {
                let mut ring = self.ring();
                let kept = ring.kept.get_mut(&digest).ok_or(error)?;
                // From the end of the wait on: it may be as long.
                let waited = TimeDelta::from_std(begun.elapsed()).unwrap_or_default();
                kept.read_at = now + waited - (KEPT_FOR - ASKED_AGAIN_AFTER);
                return Ok(kept.take(now));
            }
        };
        let mut ring = self.ring();
        let Some(mut kept) = stored.and_then(|key| good(key, now)) else {
            ring.drop_where(|other, _| *other == digest);
            return Ok(Err(Refused::Unknown));
        };
        let caller = kept.take(now);
        if ring.changes == changes {
            ring.keep(digest, kept);
        } else {
            ring.leave(&kept.caller.key_id, kept.used_at);
        }
        Ok(caller)
    }

    /// The key was changed on this node, or may have been: the store is asked at its next use.
    pub fn forget(&self, key_id: &str) {
        let mut ring = self.ring();
        ring.changes += 1;
        ring.drop_where(|_, kept| kept.caller.key_id == key_id);
    }

    /// Lets the store know when keys were used last. What it could not be told is told the next time.
    pub async fn write_uses(&self, store: &Store) -> Result<(), StoreError> {
        let uses = self.ring().uses();
        if uses.is_empty() {
            return Ok(());
        }
        let mut tx = store.begin_aside().await?;
        // All nodes write in the order of the keys, so that none waits for another in a ring.
        for (key_id, used_at) in &uses {
            keys::used(tx.connection()?, key_id, *used_at).await?;
        }
        tx.commit().await?;
        self.ring().wrote(&uses);
        Ok(())
    }

    pub async fn keep_writing(self: Arc<Self>, store: Store) {
        loop {
            tokio::time::sleep(WRITE_EVERY).await;
            if let Err(error) = self.write_uses(&store).await {
                warn!(%error, "when keys were used last could not be written, and is written later: {error}");
            }
        }
    }
}

/// A key is found by its digest, by a map here and by an index of the database there, which take longer the more of it agrees. What can be
/// learnt of that is of a digest, and nobody can choose a key by the digest that it shall have: it would take 2^n tries to agree in n bits,
/// and with all of them known there would still be no key. So the search itself needs no constant time. What the database found is compared
/// once more in constant time, so that nothing rests on how a database compares.
async fn stored(store: &Store, digest: KeyDigest) -> Result<Option<StoredKey>, StoreError> {
    let found = keys::by_digest(&mut store.reader().await?, digest).await?;
    Ok(found.filter(|(_, stands)| is_same(*stands, digest)).map(|(key, _)| key))
}

/// In constant time.
fn is_same(one: KeyDigest, other: KeyDigest) -> bool {
    let compared = |digest: KeyDigest| CtOutput::<Hmac<Sha256>>::new(digest.into());
    compared(one) == compared(other)
}

/// A key that expired is kept too: it is told so by the clock.
fn good(key: StoredKey, now: DateTime<Utc>) -> Option<Kept> {
    if key.revoked_at.is_some() {
        return None;
    }
    let scopes = Scopes::parse(&key.scopes)?;
    Some(Kept { caller: Arc::new(Caller::new(key.key_id, scopes)), expires_at: key.expires_at, read_at: now, used_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_same_only_in_all_of_their_bits() {
        let digest: KeyDigest = std::array::from_fn(|byte| u8::try_from(byte).unwrap_or_default());
        assert!(is_same(digest, digest));
        for bit in 0..256 {
            let mut other = digest;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_same(digest, other));
        }
    }

    #[test]
    fn a_use_is_told_until_it_is_written_and_the_latest_counts() {
        let at = |second| DateTime::UNIX_EPOCH + TimeDelta::seconds(second);
        let kept = |read: i64| {
            let caller = Arc::new(Caller::new("key_1".to_owned(), Scopes::admin()));
            Kept { caller, expires_at: Some(at(100)), read_at: at(read), used_at: None }
        };
        let mut ring = Ring::default();
        ring.keep([1; 32], kept(0));
        let take = |ring: &mut Ring, second| ring.kept.get_mut(&[1; 32]).map(|kept| kept.take(at(second)).is_ok());
        assert_eq!(take(&mut ring, 1), Some(true));
        let first = ring.uses();
        assert_eq!(first, BTreeMap::from([("key_1".to_owned(), at(1))]));
        // Used again while that is being written.
        assert_eq!(take(&mut ring, 2), Some(true));
        ring.wrote(&first);
        let second = BTreeMap::from([("key_1".to_owned(), at(2))]);
        assert_eq!(ring.uses(), second);
        ring.drop_where(|_, _| true);
        assert_eq!(ring.uses(), second, "what is not kept any more is written all the same");
        ring.keep([1; 32], kept(3));
        assert_eq!(take(&mut ring, 100), Some(false), "it ends at the moment itself");
        assert_eq!(ring.uses(), second, "to be refused is no use");
        ring.wrote(&second);
        assert!(ring.uses().is_empty());
    }
}
