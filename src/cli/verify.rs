//! `spendgate verify`

use std::process::ExitCode;

use super::{Machine, open_known_store, read_config, say};
use crate::store::verify;

/// Disagreements shown of each kind.
const SHOWN: i64 = 20;

/// Recomputes every counter from the ledger's rows, beside a running service too.
pub async fn run(machine: &Machine) -> anyhow::Result<ExitCode> {
    let config = read_config(machine)?;
    let store = open_known_store(&config).await?;
    let mut tx = store.begin_read().await?;
    tx.take_your_time().await?;
    let (counted, found) = verify::disagreements(tx.connection()?, SHOWN).await?;
    tx.commit().await?;
    store.close().await;
    for fault in &found {
        let told = |sum: &Option<String>| sum.clone().unwrap_or_else(|| "nothing".to_owned());
        say(format_args!("{}: the counter says {}, its rows make {}", fault.what, told(&fault.counter), told(&fault.rows)));
    }
    let (users, entries, holds) = (counted.users, counted.entries, counted.open_holds);
    say(format_args!("{users} users, {entries} entries, {holds} holds not ended: {} disagreements", found.len()));
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
