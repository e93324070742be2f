//! The command line. The only clock, environment and source of randomness.
#![expect(clippy::disallowed_methods, reason = "this is where the clock and the environment come from")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use spendgate::cli::{Cli, Machine, logs};
use spendgate::config::watching::Watching;
use tracing_subscriber::EnvFilter;

/// A check makes some forty small values; the system's own allocator takes a tenth of its time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is not logged whatever `RUST_LOG` says. It would tell a parameter of `DATABASE_URL` that it does not know, with its value: a
/// password, where somebody misspelt its name.
const TELLS_SECRETS: [&str; 1] = ["sqlx_postgres::options::parse=off"];

fn main() -> ExitCode {
    // A missing .env is the usual case; a broken one is told.
    if let Err(error) = dotenvy::dotenv()
        && !error.not_found()
    {
        // The parser's own message repeats the line, which may hold a secret.
        let unparsed = matches!(error, dotenvy::Error::LineParse(..));
        let why = if unparsed { "a line is not NAME=value; quote values with blanks".to_owned() } else { error.to_string() };
        return fail(&format!(".env: {why}"));
    }
    let cli = Cli::parse();
    let filter = match std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()) {
        // Commands that read everything take their time: that a statement is slow is nothing to be told.
        None => EnvFilter::new(if cli.is_service() { "info" } else { "warn,sqlx=error" }),
        Some(text) => match EnvFilter::try_new(text) {
            Ok(filter) => filter,
            Err(error) => return fail(&format!("RUST_LOG: {error}; a level such as info or debug would do")),
        },
    };
    let filter = TELLS_SECRETS.iter().filter_map(|directive| directive.parse().ok()).fold(filter, EnvFilter::add_directive);
    let watching = match Watching::read(|name| std::env::var(name).ok()) {
        Ok(watching) => watching,
        Err(error) => return fail(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime cannot start: {error}")),
    };
    let is_terminal = std::io::stderr().is_terminal();
    let traces = match logs::start(&watching, filter, cli.is_service(), is_terminal, runtime.handle().clone()) {
        Ok(traces) => traces,
        Err(why) => return fail(&why),
    };
    let machine = Machine {
        clock: Arc::new(chrono::Utc::now),
        random: || {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)?;
            Ok(bytes)
        },
        environment: |name| std::env::var(name).ok(),
    };
    let code = runtime.block_on(cli.run(machine));
    if let Some(traces) = traces {
        traces.stop();
    }
    code
}

/// A wrong setting ends with 2, as it does in every command.
fn fail(message: &str) -> ExitCode {
    use std::io::Write;
    // Nobody is left to be told if standard error is closed.
    let _ = writeln!(std::io::stderr(), "spendgate: {message}");
    ExitCode::from(2)
}
