//! What the service survives: kills, power cuts, a disk that fails, a Postgres whose primary dies or is replaced; and what holds where many
//! processes share one. Users whom nobody knows cost nothing. The real binary is put under load, something breaks, it is started again, and
//! each write that it acknowledged must be there once. Each fault has a control that must show itself, or the harness is void. `FAULTS=long`
//! takes more of each. (A disk that fills up is in `tests/it/disk_full.rs`.)
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is what it is for")]
#![expect(clippy::disallowed_methods, reason = "how long it may take, and whether it runs in CI, is told by the environment")]

mod deposed;
mod door;
mod failover;
mod io_errors;
mod kills;
mod load;
mod lossy;
mod nodes;
mod pgbouncer;
mod power_cuts;
mod servers;
mod service;
mod silent;
mod unknown_users;

use std::process::Command;

/// The moments of all faults follow from it.
const SEED: u64 = 0x5eed;

/// One number for the run of every push, another for the long one.
fn short_or_long<T>(short: T, long: T) -> T {
    if std::env::var_os("FAULTS").is_some_and(|length| length == "long") { long } else { short }
}

/// Tells that this machine cannot do what a test needs. In CI it must.
fn unable(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("not tested: {why}");
}

/// Runs a command to its end; an error is what it said.
fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
