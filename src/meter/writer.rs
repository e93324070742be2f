//! The one task that writes the ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tracing::{error, info};

use super::{Clock, Global, Known, Request, WriteError};
use crate::domain::ledger::{Entry, Ledger, Receipt, Refusal};
use crate::domain::user::UserId;
use crate::meter::memory::Memory;
use crate::store::{Store, StoreError, ledger};

/// Records in one commit; more only lengthens the slowest answer.
const BATCH_MAX: usize = 4096;

/// What readers see of the ledger.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub users: Arc<Memory<UserId, Known>>,
    pub global: Arc<Memory<(), Global>>,
    pub health: Arc<Health>,
}

/// Whether what is spent can be booked.
#[derive(Debug, Default)]
pub struct Health {
    unconfirmed: AtomicBool,
}

impl Health {
    pub fn is_writable(&self) -> bool {
        !self.unconfirmed.load(Ordering::Acquire)
    }

    fn set(&self, confirmed: bool) {
        if self.unconfirmed.swap(!confirmed, Ordering::AcqRel) && confirmed {
            info!("writes are confirmed again");
        }
    }
}

/// How often a store that did not confirm is tried again while nobody writes.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// Takes what is waiting, writes it in one commit, shows it to readers, answers every caller; until nobody can ask any more.
pub async fn run(store: Store, shown: Shown, mut waiting: mpsc::Receiver<Request>, clock: Clock) {
    loop {
        let first = match tokio::time::timeout(PROBE_EVERY, waiting.recv()).await {
            Ok(Some(first)) => first,
            Ok(None) => return,
            Err(_) => {
                if !shown.health.is_writable() {
                    shown.health.set(store.probe(clock()).await.is_ok());
                }
                continue;
            }
        };
        let mut records = first.usages.len();
        let mut batch = vec![first];
        while records < BATCH_MAX {
            let Ok(request) = waiting.try_recv() else { break };
            records += request.usages.len();
            batch.push(request);
        }
        match write(&store, &shown, &batch, clock()).await {
            Ok(results) => {
                shown.health.set(true);
                for (request, result) in batch.into_iter().zip(results) {
                    // A caller that went away has no use for the answer.
                    let _ = request.answer.send(result.map_err(WriteError::Refused));
                }
            }
            Err(error) => {
                shown.health.set(false);
                error!(%error, requests = batch.len(), "a batch of {} requests was not confirmed: {error}", batch.len());
                for request in batch {
                    let _ = request.answer.send(Err(WriteError::Unconfirmed));
                }
            }
        }
    }
}

type Answers = Vec<Result<Vec<Receipt>, Refusal>>;

async fn write(store: &Store, shown: &Shown, batch: &[Request], now: DateTime<Utc>) -> Result<Answers, StoreError> {
    let usages = || batch.iter().flat_map(|request| &request.usages);
    let mut tx = store.begin().await?;
    let ids = usages().map(|usage| usage.id.as_str());
    let users = usages().map(|usage| usage.user_id.as_str());
    let mut ledger = ledger::load(tx.connection()?, ids, users).await?;
    let answers = batch.iter().map(|request| ledger.step(&request.usages, now)).collect();
    if ledger.entries.is_empty() {
        tx.commit().await?;
        return Ok(answers);
    }
    let by_user = by_user(&ledger);
    let users = shown.users.begin_commit(by_user.keys().map(|user| (*user).clone()).collect());
    let global = shown.global.begin_commit(vec![()]);
    ledger::append(tx.connection()?, &ledger, now).await?;
    tx.commit().await?;
    users.publish(|user, known| {
        for entry in by_user.get(user).into_iter().flatten() {
            known.book(entry.usage.cost, entry.booked.time);
        }
    });
    global.publish(|(), known| {
        for entry in &ledger.entries {
            known.book(entry.usage.cost, entry.booked.time);
        }
    });
    Ok(answers)
}

fn by_user(ledger: &Ledger) -> HashMap<&UserId, Vec<&Entry>> {
    let mut users: HashMap<&UserId, Vec<&Entry>> = HashMap::new();
    for entry in &ledger.entries {
        users.entry(&entry.usage.user_id).or_default().push(entry);
    }
    users
}
