//! What checks read without asking the store: values by key, bounded, never staler than the last commit.
//!
//! A value may come in from the store while a commit changes the same key. Whoever loads or commits therefore says so before
//! and after, and a value that was loaded beside a change is used once and not kept. Each change of a busy key has a number, so
//! that a load knows whether one fell into its own time, and not merely into another load's.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// More shards than there are cores to fight over them.
const SHARDS: usize = 64;
/// Values in one generation of one shard: 2 × 64 × 14 336, some 1.8 million values in all. As many fit a table of 16 384 places; one more
/// would double it.
const GENERATION_MAX: usize = 14_336;

#[derive(Debug)]
pub struct Memory<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
    generation_max: usize,
}

#[derive(Debug)]
struct Shard<K, V> {
    /// What was read lately; when it is full it becomes `old`, and what was `old` and not read since is forgotten.
    young: HashMap<K, Arc<V>>,
    old: HashMap<K, Arc<V>>,
    /// What is not believed any more, though nobody said that it changed: the last that is known while the store is away.
    doubtful: HashMap<K, Arc<V>>,
    busy: HashMap<K, Busy>,
}

/// Who is at work on a key.
#[derive(Debug, Default)]
struct Busy {
    loads: usize,
    commits: usize,
    /// How often the key changed while anybody was at work on it.
    changes: u64,
}

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self::bounded(GENERATION_MAX)
    }
}

impl<K, V> Memory<K, V> {
    /// Each of the shards holds at most two generations of `generation_max` values.
    fn bounded(generation_max: usize) -> Self {
        let shard = || Mutex::new(Shard { young: HashMap::new(), old: HashMap::new(), doubtful: HashMap::new(), busy: HashMap::new() });
        Self { shards: std::iter::repeat_with(shard).take(SHARDS).collect(), hasher: RandomState::new(), generation_max }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Memory<K, V> {
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut shard = self.shard(key);
        if let Some(value) = shard.young.get(key) {
            return Some(value.clone());
        }
        let value = shard.old.remove(key)?;
        shard.insert(key.clone(), value.clone(), self.generation_max);
        Some(value)
    }

    /// The last value that is known, which may be an old one. Not for amounts: for what is better than nothing while the store is away.
    pub fn last(&self, key: &K) -> Option<Arc<V>> {
        self.get(key).or_else(|| self.shard(key).doubtful.get(key).cloned())
    }

    /// Keeps a value that carries its own proof of being right, or what `merged` makes of it and the one that is kept.
    pub fn put(&self, key: K, value: Arc<V>, merged: impl FnOnce(&Arc<V>, Arc<V>) -> Arc<V>) {
        let mut shard = self.shard(&key);
        let kept = shard.young.get(&key).or_else(|| shard.old.get(&key)).cloned();
        let value = match &kept {
            Some(kept) => merged(kept, value),
            None => value,
        };
        shard.old.remove(&key);
        shard.insert(key, value, self.generation_max);
    }

    /// The key changed outside: the next reader asks the store.
    pub fn forget(&self, key: &K) {
        self.shard(key).forget(key);
    }

    /// The next reader asks the store; until then it is the last that is known.
    pub fn doubt(&self, key: &K) {
        let mut shard = self.shard(key);
        let known = shard.young.get(key).or_else(|| shard.old.get(key)).or_else(|| shard.doubtful.get(key)).cloned();
        shard.forget(key);
        if let Some(value) = known {
            shard.doubt(key.clone(), value, self.generation_max);
        }
    }

    /// Something changed outside, and nobody knows what.
    pub fn forget_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let (young, old) = (std::mem::take(&mut shard.young), std::mem::take(&mut shard.old));
            for (key, value) in old.into_iter().chain(young) {
                shard.doubt(key, value, self.generation_max);
            }
            for busy in shard.busy.values_mut() {
                busy.changes += 1;
            }
        }
    }

    /// To be called before the store is read.
    pub fn begin_load(&self, keys: Vec<K>) -> Loading<'_, K, V> {
        Loading { memory: self, keys: self.begin(keys, |busy| busy.loads += 1) }
    }

    /// To be called before what a commit changes is read.
    pub fn begin_commit(&self, keys: Vec<K>) -> Committing<'_, K, V> {
        Committing { memory: self, keys: self.begin(keys, |busy| busy.commits += 1), settled: false }
    }

    /// Each key with the number of its changes so far. One that is given twice is one.
    fn begin(&self, keys: Vec<K>, mark: impl Fn(&mut Busy)) -> HashMap<K, u64> {
        let begin = |key: K| {
            let mut shard = self.shard(&key);
            let busy = shard.busy.entry(key.clone()).or_default();
            mark(busy);
            let changes = busy.changes;
            drop(shard);
            (key, changes)
        };
        let keys: HashSet<K> = keys.into_iter().collect();
        keys.into_iter().map(begin).collect()
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let place = self.hasher.hash_one(key) % (SHARDS as u64);
        let place = usize::try_from(place).unwrap_or_default();
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shard<K, V> {
    fn insert(&mut self, key: K, value: Arc<V>, generation_max: usize) {
        if generation_max <= self.young.len() {
            self.old = std::mem::take(&mut self.young);
        }
        self.doubtful.remove(&key);
        self.young.insert(key, value);
    }

    /// As many as two generations; beyond, it is better to know nobody than to look for who is the oldest.
    fn doubt(&mut self, key: K, value: Arc<V>, generation_max: usize) {
        if 2 * generation_max <= self.doubtful.len() {
            self.doubtful.clear();
        }
        self.doubtful.insert(key, value);
    }

    fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
        self.doubtful.remove(key);
        if let Some(busy) = self.busy.get_mut(key) {
            busy.changes += 1;
        }
    }

    fn end(&mut self, key: &K, done: impl Fn(&mut Busy)) {
        if let Some(busy) = self.busy.get_mut(key) {
            done(busy);
            if busy.loads == 0 && busy.commits == 0 {
                self.busy.remove(key);
            }
        }
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Loading<'a, K: Clone + Eq + Hash, V: Clone> {
    memory: &'a Memory<K, V>,
    /// Each with the number of its changes when the load began.
    keys: HashMap<K, u64>,
}

impl<K: Clone + Eq + Hash, V: Clone> Loading<'_, K, V> {
    /// Keeps what was loaded, unless the key changed meanwhile or is about to.
    pub fn keep(&self, key: &K, value: &Arc<V>) {
        let Some(before) = self.keys.get(key) else { return };
        let mut shard = self.memory.shard(key);
        let quiet = shard.busy.get(key).is_some_and(|busy| busy.changes == *before && busy.commits == 0);
        if quiet {
            shard.old.remove(key);
            shard.insert(key.clone(), value.clone(), self.memory.generation_max);
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Drop for Loading<'_, K, V> {
    fn drop(&mut self) {
        for key in self.keys.keys() {
            self.memory.shard(key).end(key, |busy| busy.loads = busy.loads.saturating_sub(1));
        }
    }
}

/// A commit under way. Dropped before it is settled its outcome is unknown, and its keys are forgotten.
#[derive(Debug)]
pub struct Committing<'a, K: Clone + Eq + Hash, V: Clone> {
    memory: &'a Memory<K, V>,
    /// Each with the number of its changes when the commit began.
    keys: HashMap<K, u64>,
    settled: bool,
}

impl<K: Clone + Eq + Hash, V: Clone> Committing<'_, K, V> {
    /// Shows readers what was committed. A key that was changed from elsewhere meanwhile is forgotten instead: what the commit
    /// knew of it may be old.
    pub fn publish(mut self, values: impl IntoIterator<Item = (K, Arc<V>)>) {
        for (key, value) in values {
            let Some(before) = self.keys.get(&key) else { continue };
            let mut shard = self.memory.shard(&key);
            let Some(busy) = shard.busy.get_mut(&key) else { continue };
            let alone = busy.changes == *before && busy.commits == 1;
            busy.changes += 1;
            if alone {
                shard.old.remove(&key);
                shard.insert(key, value, self.memory.generation_max);
            } else {
                shard.forget(&key);
            }
        }
        self.settled = true;
    }

    /// Nothing was changed after all.
    pub fn nothing(mut self) {
        self.settled = true;
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Drop for Committing<'_, K, V> {
    fn drop(&mut self) {
        for key in self.keys.keys() {
            let mut shard = self.memory.shard(key);
            if !self.settled {
                let last = shard.young.get(key).or_else(|| shard.old.get(key)).or_else(|| shard.doubtful.get(key)).cloned();
                shard.forget(key);
                if let Some(last) = last {
                    shard.doubt(key.clone(), last, self.memory.generation_max);
                }
            }
            shard.end(key, |busy| busy.commits = busy.commits.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(memory: &Memory<&'static str, i64>) -> Option<i64> {
        memory.get(&"u").map(|value| *value)
    }

    #[test]
    fn what_is_loaded_in_quiet_is_kept_and_a_commit_shows() {
        let memory = Memory::default();
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(1));
        assert_eq!(held(&memory), Some(1));
        let committing = memory.begin_commit(vec!["u"]);
        assert_eq!(held(&memory), Some(1), "nothing shows before the commit");
        committing.publish([("u", Arc::new(2))]);
        assert_eq!(held(&memory), Some(2));
        memory.begin_commit(vec!["u"]).nothing();
        assert_eq!(held(&memory), Some(2));
    }

    #[test]
    fn what_is_kept_is_merged_and_what_is_doubted_is_the_last_that_is_known() {
        let memory = Memory::default();
        let put = |value: i64| memory.put("u", Arc::new(value), |kept, new| kept.clone().max(new));
        put(2);
        put(1);
        assert_eq!(held(&memory), Some(2));
        put(3);
        assert_eq!(held(&memory), Some(3));
        memory.doubt(&"u");
        assert_eq!((held(&memory), memory.last(&"u").map(|value| *value)), (None, Some(3)));
        memory.doubt(&"u");
        assert_eq!(memory.last(&"u").map(|value| *value), Some(3), "twice is once");
        memory.forget(&"u");
        assert_eq!(memory.last(&"u"), None);
        memory.doubt(&"u");
        assert_eq!(memory.last(&"u"), None);
    }

    #[test]
    fn what_is_loaded_beside_a_change_is_not_kept() {
        // The load may have seen the commit or not.
        let memory = Memory::default();
        let committing = memory.begin_commit(vec!["u"]);
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(1));
        assert_eq!(held(&memory), None);
        let loading = memory.begin_load(vec!["u"]);
        committing.publish([("u", Arc::new(2))]);
        loading.keep(&"u", &Arc::new(0));
        assert_eq!(held(&memory), Some(2));
        drop(loading);
        let loading = memory.begin_load(vec!["u"]);
        memory.forget(&"u");
        loading.keep(&"u", &Arc::new(0));
        assert_eq!(held(&memory), None);
        drop(loading);
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(3));
        assert_eq!(held(&memory), Some(3));
    }

    #[test]
    fn what_was_changed_beside_a_commit_is_read_again() {
        let memory = Memory::default();
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(1));
        let committing = memory.begin_commit(vec!["u"]);
        memory.forget(&"u");
        committing.publish([("u", Arc::new(2))]);
        assert_eq!(held(&memory), None);
    }

    #[test]
    fn a_key_that_is_always_being_loaded_is_kept_all_the_same() {
        let memory = Memory::default();
        let first = memory.begin_load(vec!["u"]);
        memory.forget(&"u");
        // The second load begins after the change, so the change is in what it read.
        let second = memory.begin_load(vec!["u"]);
        first.keep(&"u", &Arc::new(0));
        assert_eq!(held(&memory), None);
        second.keep(&"u", &Arc::new(1));
        assert_eq!(held(&memory), Some(1));
        memory.forget_all();
        assert_eq!(held(&memory), None);
        second.keep(&"u", &Arc::new(1));
        assert_eq!(held(&memory), None);
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_forgotten() {
        let memory = Memory::default();
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(1));
        drop(memory.begin_commit(vec!["u"]));
        assert_eq!(held(&memory), None);
    }

    #[test]
    fn what_is_doubtful_is_the_last_that_is_known_until_it_is_said_to_have_changed() {
        let last = |memory: &Memory<&'static str, i64>| memory.last(&"u").map(|value| *value);
        let memory = Memory::default();
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(1));
        drop(memory.begin_commit(vec!["u"]));
        assert_eq!((held(&memory), last(&memory)), (None, Some(1)));
        drop(memory.begin_commit(vec!["u"]));
        memory.forget_all();
        assert_eq!((held(&memory), last(&memory)), (None, Some(1)));
        memory.begin_load(vec!["u"]).keep(&"u", &Arc::new(2));
        assert_eq!(last(&memory), Some(2));
        memory.forget_all();
        assert_eq!((held(&memory), last(&memory)), (None, Some(2)));
        memory.forget(&"u");
        assert_eq!(last(&memory), None);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_read() {
        let generation_max = 16;
        let memory: Memory<usize, usize> = Memory::bounded(generation_max);
        let keys = 3 * SHARDS * generation_max;
        for key in 0..keys {
            memory.begin_load(vec![key]).keep(&key, &Arc::new(key));
            assert!(memory.get(&0).is_some(), "key 0 is read all the time");
        }
        let doubted: Memory<usize, usize> = Memory::bounded(generation_max);
        for key in 0..keys {
            doubted.begin_load(vec![key]).keep(&key, &Arc::new(key));
            doubted.forget_all();
        }
        let count: usize = doubted.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).doubtful.len()).sum();
        assert!(count <= 2 * SHARDS * generation_max, "{count}");
        let count: usize = memory
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                assert!(shard.busy.is_empty());
                shard.young.len() + shard.old.len()
            })
            .sum();
        assert!(count <= 2 * SHARDS * generation_max, "{count}");
    }
}
