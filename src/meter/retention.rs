//! Lets old rows go, a few at a time.

use std::time::Duration;

use chrono::TimeDelta;
use tracing::{info, warn};

use super::Clock;
use crate::store::Store;

/// How often old rows are looked for.
const EVERY: Duration = Duration::from_hours(1);
/// Rows in one transaction: others that write the tables wait for no more.
const ROWS_AT_ONCE: i64 = 2000;
/// Between two transactions, so that others have their turn.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until it is dropped. What it has begun is then as if it had not.
pub async fn run(store: Store, keep: TimeDelta, clock: Clock) {
    loop {
        let mut gone = 0;
        loop {
            // A clock that is ahead at a start is set right soon; nothing more goes from then on.
            match store.roll(clock(), keep, ROWS_AT_ONCE).await {
                Ok(0) => break,
                Ok(rows) => gone += rows,
                Err(error) => {
                    warn!(%error, "old rows could not be rolled into daily sums, and stay: {error}");
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        if 0 < gone {
            info!(rows = gone, "{gone} rows older than {} days were rolled into daily sums", keep.num_days());
        }
        tokio::time::sleep(EVERY).await;
    }
}
