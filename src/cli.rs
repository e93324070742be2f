//! The command line: a file for each command.

pub mod catalogue;
mod check_config;
mod copy;
mod demo;
mod explain;
mod fake_stripe;
mod healthcheck;
mod keys;
mod listen;
pub mod logs;
mod plan;
mod prices;
mod replay;
mod schema;
pub mod serve;
mod simulate;
mod status;
mod stripe;
mod sync;
mod table;
mod verify;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::meter::Clock;
use crate::store::Store;
use catalogue::{built_in_catalogue, read_catalogue};

/// What the process gets from the machine: `main` makes the real one.
#[derive(Clone)]
pub struct Machine {
    pub clock: Clock,
    /// 256 bits that nobody can guess.
    pub random: fn() -> anyhow::Result<[u8; 32]>,
    pub environment: fn(&str) -> Option<String>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine(…)")
    }
}

/// Stripe-synced spend limits for AI products: ask before each model call, and get ALLOW, WARN, DEGRADE or BLOCK.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "Without a command, `serve`. Settings come from the environment and from .env; .env.example describes them.\n\n\
Exit codes: 0 done; 1 failed; 2 the command line, a setting, tiers.yaml or prices.yaml is wrong; 3 `status` or `explain` of a user who is blocked.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the service (SQLite in `DATA_DIR` unless told otherwise) and print where it listens.
    Serve,
    /// Show it all in a minute: a real server on a temporary database, real signed events, three users who spend.
    Demo(demo::Args),
    /// Sign and post recorded Stripe events to a running service, and print what each was answered.
    Replay(replay::Args),
    /// Start a fake Stripe on loopback, to try webhooks, checkout and the portal without a Stripe account.
    FakeStripe(fake_stripe::Args),
    /// Ask the service on this machine whether it is ready: 0 where it is, else 1.
    Healthcheck,
    /// Check the settings, tiers.yaml and prices.yaml, and say what is wrong with them.
    CheckConfig,
    /// Show what another tiers.yaml or prices.yaml would change, and for whom; nothing is changed.
    Plan(plan::Args),
    /// Print the JSON Schema of tiers.yaml or prices.yaml, by which editors complete and check them.
    Schema(schema::Args),
    /// Show a user's tier, budgets and what a check would answer now.
    Status(status::Args),
    /// Say why a check of a user is answered as it is: tier, Stripe, every budget, holds and the last entries.
    Explain(explain::Args),
    /// Judge the recorded usage again by other tiers or prices: who would have been warned, degraded, blocked. Changes nothing.
    Simulate(simulate::Args),
    /// Compare everything with Stripe and mend what differs, or one customer; on SQLite the service must not be running.
    Sync(sync::Args),
    /// Recompute every counter from the ledger's rows, and say whether they agree (1 where they do not).
    Verify,
    /// Move a whole database from SQLite to Postgres, or go on with a copy that was stopped; the service must not be running.
    Copy(copy::Args),
    /// Set the account at Stripe up for this service, and check it.
    #[command(subcommand)]
    Stripe(stripe::Command),
    /// Make a price book of what others keep.
    #[command(subcommand)]
    Prices(prices::Command),
    /// Make, list, rotate and revoke API keys.
    #[command(subcommand)]
    Keys(keys::Keys),
}

/// Something that the operator wrote is wrong; the process ends with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misconfigured(String);

impl Cli {
    /// Whether the command is a service, whose log somebody keeps; the others only tell of what goes wrong.
    pub fn is_service(&self) -> bool {
        matches!(self.command, None | Some(Command::Serve | Command::FakeStripe(_)))
    }

    /// Runs the command; errors are told on standard error.
    pub async fn run(self, machine: Machine) -> ExitCode {
        let done = match self.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::run(machine).await.map(|()| ExitCode::SUCCESS),
            Command::Demo(args) => demo::run(args, machine).await.map(|()| ExitCode::SUCCESS),
            Command::Replay(args) => replay::run(args, &machine).await,
            Command::FakeStripe(args) => fake_stripe::run(args, machine).await.map(|()| ExitCode::SUCCESS),
            Command::Healthcheck => healthcheck::run(&machine).await,
            Command::CheckConfig => check_config::run(&machine).map(|()| ExitCode::SUCCESS),
            Command::Plan(args) => plan::run(args, machine).await.map(|()| ExitCode::SUCCESS),
            Command::Schema(args) => {
                schema::run(&args);
                Ok(ExitCode::SUCCESS)
            }
            Command::Status(args) => status::run(args, machine).await,
            Command::Explain(args) => explain::run(args, machine).await,
            Command::Simulate(args) => simulate::run(args, &machine).await.map(|()| ExitCode::SUCCESS),
            Command::Sync(args) => sync::run(args, &machine).await,
            Command::Verify => verify::run(&machine).await,
            Command::Copy(args) => copy::run(args, &machine).await,
            Command::Stripe(command) => stripe::run(command, &machine).await,
            Command::Prices(command) => prices::run(command).map(|()| ExitCode::SUCCESS),
            Command::Keys(keys) => keys::run(keys, &machine).await.map(|()| ExitCode::SUCCESS),
        };
        done.unwrap_or_else(|error| {
            // Nobody is left to be told if standard error is closed.
            let _ = writeln!(std::io::stderr(), "spendgate: {error:#}");
            ExitCode::from(if error.is::<Misconfigured>() { 2 } else { 1 })
        })
    }
}

/// Writes a line to standard output. A reader that has gone away (`| head`) is no error.
fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn read_config(machine: &Machine) -> anyhow::Result<Config> {
    Config::read(machine.environment).map_err(|error| Misconfigured(error.to_string()).into())
}

/// Opens the database, and makes what is missing.
async fn open_store(config: &Config) -> anyhow::Result<Store> {
    if let Some(folder) = config.database.file().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("the folder {} cannot be made", folder.display()))?;
    }
    Store::open(&config.database).await.with_context(|| format!("{} cannot be opened", config.database))
}

/// Opens the database that a service of this version has made, and changes nothing of it.
async fn open_known_store(config: &Config) -> anyhow::Result<Store> {
    if let Some(file) = config.database.file().filter(|file| !file.exists()) {
        bail!("there is no database at {}; `spendgate serve` makes it", file.display());
    }
    Store::open_as_it_is(&config.database).await.with_context(|| format!("{} cannot be used", config.database))
}
