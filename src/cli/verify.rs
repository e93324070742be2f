//! `spendgate verify`

use std::process::ExitCode;

use anyhow::bail;

use super::{Machine, read_config, say};
use crate::store::{Store, verify};

/// Disagreements shown of each kind.
const SHOWN: i64 = 20;

/// Recomputes every counter from the ledger's rows, beside a running service too.
pub async fn run(machine: &Machine) -> anyhow::Result<ExitCode> {
    let config = read_config(machine)?;
    if !config.database.exists() {
        bail!("there is no database at {}; `spendgate serve` makes it", config.database.display());
    }
    let store = Store::open(&config.database).await?;
    let mut tx = store.begin_read().await?;
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
