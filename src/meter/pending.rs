//! What is durable in the journal and not in the tables yet: who looks something up must look here first, and who reads the tables
//! may have to wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::domain::operation::{Booked, EntryKind, Hold};
use crate::domain::user::{AccountId, UserId};
use crate::store::StoreError;
use crate::store::journal::Numbered;

/// Rows that may wait for the tables; then commits wait for them. In memory they take some 400 bytes each.
const ROWS_MAX: usize = 131_072;
/// Rows from which on the tables are brought up to date without waiting for the next turn.
const ROWS_MANY: usize = 65_536;
/// Rows that go into the tables in one transaction. Others that write (a Stripe event, a new key) wait for no more than that.
const ROWS_AT_ONCE: usize = 65_536;
/// How long anybody waits for the tables.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Pending {
    state: Mutex<State>,
    settled: watch::Sender<Settled>,
    /// Somebody waits for the tables to have this batch.
    wanted_through: AtomicI64,
    wake: Notify,
}

/// How far the tables are.
#[derive(Clone, Copy, Debug)]
struct Settled {
    /// The number of the last batch that they have.
    through: i64,
    /// How often they could not be written.
    failures: u64,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Numbered>,
    rows: usize,
    /// Each with the number of the last batch that names it.
    booked: HashMap<(EntryKind, String), (i64, Booked)>,
    holds: HashMap<Arc<str>, (i64, Hold)>,
    users: HashMap<UserId, i64>,
    accounts: HashMap<AccountId, i64>,
}

impl Pending {
    /// `last` is the number of the last batch that the tables have.
    pub fn new(last: i64) -> Self {
        Self {
            state: Mutex::default(),
            settled: watch::Sender::new(Settled { through: last, failures: 0 }),
            wanted_through: AtomicI64::new(last),
            wake: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before what a batch changed is shown to anybody.
    pub fn add(&self, batch: Numbered) {
        let (seq, changes) = &batch;
        let mut state = self.state();
        for entry in &changes.entries {
            state.booked.insert((entry.kind, entry.id.clone()), (*seq, entry.booked));
        }
        for hold in &changes.holds {
            state.holds.insert(hold.id.clone(), (*seq, hold.clone()));
        }
        for user in changes.users() {
            state.users.insert(user.clone(), *seq);
        }
        for account in changes.accounts() {
            state.accounts.insert(account.clone(), *seq);
        }
        state.rows += changes.size();
        state.batches.push_back(batch);
        if ROWS_MANY <= state.rows {
            self.wake.notify_one();
        }
    }

    /// What is to be written next.
    pub fn first(&self) -> Vec<Numbered> {
        let state = self.state();
        let mut rows = 0;
        let fits = |(_, changes): &&Numbered| {
            let first = rows == 0;
            rows += changes.size();
            first || rows <= ROWS_AT_ONCE
        };
        state.batches.iter().take_while(fits).cloned().collect()
    }

    /// The tables have all batches up to `through`.
    pub fn settled(&self, through: i64) {
        loop {
            // The lock is given back after each batch: a commit must not wait for all of them.
            let mut state = self.state();
            let Some((seq, changes)) = state.batches.pop_front_if(|(seq, _)| *seq <= through) else { break };
            state.rows = state.rows.saturating_sub(changes.size());
            for entry in &changes.entries {
                let key = (entry.kind, entry.id.clone());
                if state.booked.get(&key).is_some_and(|(last, _)| *last <= seq) {
                    state.booked.remove(&key);
                }
            }
            for hold in &changes.holds {
                if state.holds.get(&hold.id).is_some_and(|(last, _)| *last <= seq) {
                    state.holds.remove(&hold.id);
                }
            }
            for user in changes.users() {
                if state.users.get(user).is_some_and(|last| *last <= seq) {
                    state.users.remove(user);
                }
            }
            for account in changes.accounts() {
                if state.accounts.get(account).is_some_and(|last| *last <= seq) {
                    state.accounts.remove(account);
                }
            }
        }
        self.settled.send_modify(|settled| settled.through = through);
    }

    /// The tables could not be written. Whoever waits for them is told, rather than kept waiting for the next try.
    pub fn failed(&self) {
        self.settled.send_modify(|settled| settled.failures += 1);
    }

    /// How often the tables could not be written.
    pub fn failures(&self) -> u64 {
        self.settled.borrow().failures
    }

    pub fn booked<'i>(&self, ids: impl Iterator<Item = (EntryKind, &'i str)>) -> HashMap<(EntryKind, String), Booked> {
        let state = self.state();
        let ids = ids.map(|(kind, id)| (kind, id.to_owned()));
        ids.filter_map(|key| state.booked.get(&key).map(|(_, booked)| *booked).map(|booked| (key, booked))).collect()
    }

    pub fn hold(&self, id: &str) -> Option<Hold> {
        self.state().holds.get(id).map(|(_, hold)| hold.clone())
    }

    /// Comes back when a turn is due: somebody waits, or much has gathered.
    pub async fn wanted(&self) {
        self.wake.notified().await;
    }

    /// Whether a turn is due at once.
    pub fn is_wanted(&self) -> bool {
        self.settled.borrow().through < self.wanted_through.load(Ordering::Acquire) || ROWS_MANY <= self.state().rows
    }

    /// Waits until the tables have everything of these users.
    pub async fn have(&self, users: &[UserId]) -> Result<(), StoreError> {
        let last = {
            let state = self.state();
            users.iter().filter_map(|user| state.users.get(user)).max().copied()
        };
        self.wait(last).await
    }

    /// Waits until the tables have everything of this account.
    pub async fn have_account(&self, account: &AccountId) -> Result<(), StoreError> {
        let last = self.state().accounts.get(account).copied();
        self.wait(last).await
    }

    /// Waits until the tables have everything that is durable now.
    pub async fn have_all(&self) -> Result<(), StoreError> {
        let last = self.state().batches.back().map(|(seq, _)| *seq);
        self.wait(last).await
    }

    /// Waits until there is room for more.
    pub async fn have_room(&self) -> Result<(), StoreError> {
        let first = {
            let state = self.state();
            state.batches.front().filter(|_| ROWS_MAX <= state.rows).map(|(seq, _)| *seq)
        };
        self.wait(first).await
    }

    async fn wait(&self, last: Option<i64>) -> Result<(), StoreError> {
        let Some(last) = last else { return Ok(()) };
        let mut settled = self.settled.subscribe();
        self.wanted_through.fetch_max(last, Ordering::AcqRel);
        self.wake.notify_one();
        let failures = settled.borrow().failures;
        let over = |settled: &Settled| last <= settled.through || failures < settled.failures;
        match tokio::time::timeout(DEADLINE, settled.wait_for(over)).await {
            Ok(Ok(settled)) if last <= settled.through => Ok(()),
            Ok(_) | Err(_) => Err(StoreError::late()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::changes::Changes;
    use crate::domain::money::Money;
    use crate::domain::operation::{Consumption, Entry};

    fn batch(seq: i64, id: &str) -> Numbered {
        let booked = Booked {
            fingerprint: [0; 16],
            cost: Money::ZERO,
            unpriced: false,
            time: chrono::DateTime::UNIX_EPOCH,
            recorded_at: chrono::DateTime::UNIX_EPOCH,
        };
        let user_id = UserId::parse("u").unwrap();
        let entry =
            Entry { kind: EntryKind::Usage, id: id.to_owned(), user_id, account: None, consumption: Consumption::default(), booked };
        (seq, Arc::new(Changes { entries: vec![entry], ..Changes::default() }))
    }

    fn knows(pending: &Pending, id: &str) -> bool {
        !pending.booked([(EntryKind::Usage, id)].into_iter()).is_empty()
    }

    #[tokio::test]
    async fn what_the_tables_have_is_no_longer_pending_and_the_rest_is() {
        let pending = Pending::new(4);
        pending.add(batch(5, "a"));
        pending.add(batch(6, "b"));
        assert!(knows(&pending, "a") && knows(&pending, "b") && !knows(&pending, "c"));
        assert_eq!(pending.first().len(), 2);
        pending.settled(5);
        assert!(!knows(&pending, "a") && knows(&pending, "b"));
        // Whoever waits is heard, and goes on once it is there.
        let users = [UserId::parse("u").unwrap(), UserId::parse("other").unwrap()];
        let waits = async { pending.have(&users).await.unwrap() };
        let settles = async {
            pending.wanted().await;
            pending.settled(6);
        };
        futures_util::future::join(waits, settles).await;
        pending.have(&users).await.unwrap();
        pending.have_all().await.unwrap();
        assert!(pending.first().is_empty());
    }
}
