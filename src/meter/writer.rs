//! The one task that writes the ledger.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tracing::error;

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
}

/// Takes what is waiting, writes it in one commit, shows it to readers, answers every caller; until nobody can ask any more.
pub async fn run(store: Store, shown: Shown, mut waiting: mpsc::Receiver<Request>, clock: Clock) {
    while let Some(first) = waiting.recv().await {
        let mut records = first.usages.len();
        let mut batch = vec![first];
        while records < BATCH_MAX {
            let Ok(request) = waiting.try_recv() else { break };
            records += request.usages.len();
            batch.push(request);
        }
        match write(&store, &shown, &batch, clock()).await {
            Ok(results) => {
                for (request, result) in batch.into_iter().zip(results) {
                    // A caller that went away has no use for the answer.
                    let _ = request.answer.send(result.map_err(WriteError::Refused));
                }
            }
            Err(error) => {
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
