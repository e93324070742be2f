//! `spendgate copy`: moves a database from SQLite to Postgres.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::serve::lock;
use super::table::table;
use super::{Machine, Misconfigured, say};
use crate::store::copy::{CopyError, Copying, Found, Tally};
use crate::store::sqlite::journal_path;
use crate::store::{Address, Store};

/// Rows in one transaction. More make it no faster, and what is lost when it is stopped is one transaction.
const ROWS_AT_ONCE: u32 = 4096;
/// How often the bar moves.
const TICK: Duration = Duration::from_millis(120);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The SQLite database that is copied, as `DATABASE_URL` has it; its service must be stopped, and nothing is deleted there.
    #[arg(long, value_name = "sqlite:…")]
    from: String,
    /// The Postgres that takes it, as `DATABASE_URL` has it: a new database, or one where this copy was stopped. `PGPASSWORD` may have the
    /// password.
    #[arg(long, value_name = "postgres://…")]
    to: String,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<ExitCode> {
    let (from, to) = (address("--from", &args.from)?, address("--to", &args.to)?);
    let (Some(file), None) = (from.file(), to.file()) else { return Err(Misconfigured(CopyError::Direction.to_string()).into()) };
    if !file.exists() {
        return Err(Misconfigured(format!("--from: there is no database at {}", file.display())).into());
    }
    if !journal_path(file).exists() {
        let why = format!(
            "--from: {} is missing, which has what was acknowledged last; put it beside its database",
            journal_path(file).display()
        );
        return Err(Misconfigured(why).into());
    }
    let origin = file.canonicalize().with_context(|| format!("{} cannot be found", file.display()))?;
    let _lock = lock(&from).context("a database is copied while no service writes to it; start the service again when the copy is done")?;
    let source = Store::open(&from).await.with_context(|| format!("--from: {from} cannot be opened"))?;
    let target = Store::open(&to).await.with_context(|| format!("--to: {to} cannot be opened"))?;
    let begun = Copying::begin(source, target, &origin.display().to_string(), (machine.random)()?, (machine.clock)()).await;
    let mut copying = begun.map_err(|error| refused(error).context("nothing was copied"))?;
    let found = copy(&mut copying, machine).await;
    copying.close().await;
    let found = found.context("the copy is not finished; the same command goes on where it stopped")?;
    tell(&found);
    if !found.is_good() {
        say(
            "The copy is NOT the same as its source, and no service starts on it. Where tables differ, something was changed while it ran, or between",
        );
        say("two runs: copy again into a new database. Where only counters disagree, `spendgate verify` says the same of the source.");
        return Ok(ExitCode::FAILURE);
    }
    say("Every row is the same on both sides, and every counter agrees with its rows. Next:");
    say(format_args!("  set DATABASE_URL to the address that you gave as --to ({to}), and start `spendgate serve`"));
    say(format_args!("  keep {} and its journal until you are content, but start no service on it again", origin.display()));
    Ok(ExitCode::SUCCESS)
}

/// The text is not repeated: it may hold a password.
fn address(option: &str, text: &str) -> anyhow::Result<Address> {
    Address::parse(text).map_err(|error| Misconfigured(format!("{option} {error}")).into())
}

/// What the operator can mend by another address ends with 2.
fn refused(error: CopyError) -> anyhow::Error {
    match error {
        CopyError::Direction | CopyError::NotEmpty(_) | CopyError::Finished(_) | CopyError::OtherSource(_) => {
            Misconfigured(error.to_string()).into()
        }
        CopyError::NotAlone | CopyError::Nul { .. } | CopyError::Write { .. } | CopyError::Store(_) => error.into(),
    }
}

async fn copy(copying: &mut Copying, machine: &Machine) -> anyhow::Result<Found> {
    let bar =
        ProgressBar::no_length().with_style(ProgressStyle::with_template("{bar:30} {pos} of {len} rows ({per_sec}, {eta} left) {msg}")?);
    bar.enable_steady_tick(TICK);
    let (before, _) = copying.progress();
    bar.set_position(u64::try_from(before)?);
    // What an earlier run did is not this one's speed.
    bar.reset_eta();
    loop {
        let (copied, total) = copying.progress();
        bar.set_length(u64::try_from(total.max(copied))?);
        bar.set_position(u64::try_from(copied)?);
        if !copying.step(ROWS_AT_ONCE).await? {
            break;
        }
    }
    bar.set_message("comparing both sides");
    let found = copying.finish((machine.clock)()).await?;
    bar.finish_and_clear();
    Ok(found)
}

/// A line for each table. Amounts are nano-dollars, as in `spendgate verify`.
fn tell(found: &Found) {
    let sums = |tally: &Tally| tally.sums.iter().map(|(name, sum)| format!("{name} {sum}")).collect::<Vec<_>>().join(", ");
    let lines = found.tables.iter().map(|(name, source, target)| {
        let verdict =
            if source == target { "the same".to_owned() } else { format!("DIFFERS: {} rows there, {}", target.rows, sums(target)) };
        vec![(*name).to_owned(), format!("{} rows", source.rows), sums(source), verdict]
    });
    say(table(&lines.collect::<Vec<_>>()));
    for fault in &found.disagreements {
        let told = |sum: &Option<String>| sum.clone().unwrap_or_else(|| "nothing".to_owned());
        say(format_args!("{}: the counter says {}, its rows make {}", fault.what, told(&fault.counter), told(&fault.rows)));
    }
}
