//! Brings the tables up to what is durable in the journal, in bulk.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{error, warn};

use super::pending::Pending;
use crate::store::sqlite::Files;

/// How long what is durable may be missing in the tables while nobody asks for it.
const EVERY: Duration = Duration::from_secs(2);
/// How long to wait after the tables could not be written.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Runs until `ending`, then brings the tables up to date once more. What that does not reach is safe in the journal.
pub async fn run(store: Files, pending: Arc<Pending>, mut ending: oneshot::Receiver<()>) {
    let mut pause = EVERY;
    loop {
        tokio::select! {
            _ = &mut ending => break,
            () = pending.wanted(), if pause == EVERY => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = if settle(&store, &pending, Upto::Wanted).await { EVERY } else { AGAIN_AFTER };
    }
    if !settle(&store, &pending, Upto::All).await {
        warn!("the tables are behind the journal; the next start brings them up to date");
    }
}

/// How far a turn goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upto {
    /// One transaction, and more only where somebody waits or much has gathered: while others commit there is always a little left, and
    /// a little at a time is dear.
    Wanted,
    All,
}

/// Whether it went well.
async fn settle(store: &Files, pending: &Pending, upto: Upto) -> bool {
    loop {
        let batches = pending.first();
        let (Some((first, _)), Some((last, _))) = (batches.first(), batches.last()) else { return true };
        if let Err(error) = store.settle(&batches).await {
            error!(%error, batches = batches.len(), "{} batches are durable and not in the tables yet: {error}", batches.len());
            pending.failed();
            return false;
        }
        pending.settled(*last);
        // What is not dropped takes room and nothing else.
        if let Err(error) = store.drop_settled(first - 1, *last).await {
            warn!(%error, "batches that the tables have could not be dropped from the journal: {error}");
        }
        if upto == Upto::Wanted && !pending.is_wanted() {
            return true;
        }
    }
}
