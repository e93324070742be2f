//! Drives a service over HTTP and tells requests a second and percentiles, beside a bare handler in the same run.
//!
//! `cargo bench --bench spendgate-load -- compare` is the one that docs/PERFORMANCE.md quotes.
#![expect(clippy::print_stdout, clippy::float_arithmetic, reason = "it prints figures")]
#![expect(clippy::cast_possible_truncation, reason = "figures for people, far from any limit")]

mod client;
mod postgres;
mod rules;
#[expect(dead_code, clippy::expect_used, reason = "tests do more with them, and a server that does not start ends the run")]
#[path = "../../tests/faults/servers.rs"]
mod servers;
mod service;
mod slow;
mod strangers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};

use client::{Load, Pace, Report};
use service::{Bare, Service};

#[derive(Debug, Parser)]
struct Cli {
    /// cargo says this to every bench.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the release binary and a bare handler, drive both in turns, print medians and ratios.
    Compare(Compare),
    /// Drive a service that runs already.
    Drive(Drive),
    /// What it costs to know many users: memory, the first answer after a start, a check.
    Known(Known),
    /// How long checks take while usage floods in.
    Flood(Flood),
    /// How long checks take while others ask and take no answers.
    SlowReaders(slow::Args),
    /// What it leaves behind to ask about users whom nobody knows.
    Strangers(strangers::Args),
    /// What a check costs with ten rules of the operator, to one without.
    Rules(rules::Args),
    /// Start a Postgres of its own, and compare services on it with what people do first.
    Postgres(postgres::Args),
    /// Serve the baselines.
    #[command(hide = true)]
    Bare { address: SocketAddr, database: PathBuf, postgres: Option<String> },
}

#[derive(Debug, clap::Args)]
struct Compare {
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Of each turn.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Users known to the service before it is driven.
    #[arg(long, default_value_t = 1000)]
    users: usize,
    /// How many of them are asked for and spend.
    #[arg(long, default_value_t = 1000)]
    hot: usize,
}

#[derive(Debug, clap::Args)]
struct Drive {
    /// host:port
    address: SocketAddr,
    /// An API key with check and write.
    #[arg(long)]
    key: String,
    #[arg(long, value_enum)]
    what: What,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests a second on a fixed clock (open loop; latency counts from when a request was due). Without it, each connection
    /// asks again as soon as it is answered (closed loop).
    #[arg(long)]
    rate: Option<u64>,
    #[arg(long, default_value_t = 1000)]
    users: usize,
}

#[derive(Debug, clap::Args)]
struct Known {
    #[arg(long, default_value_t = 1_000_000)]
    users: usize,
    #[arg(long, default_value_t = 10_000)]
    hot: usize,
}

#[derive(Debug, clap::Args)]
struct Flood {
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Checks a second.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    Bare,
    Check,
    Usage,
    Usage100,
    Hold,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Compare(args) => compare(args).await,
        Command::Drive(args) => drive(args).await,
        Command::Known(args) => known(args).await,
        Command::Flood(args) => flood(args).await,
        Command::Bare { address, database, postgres } => service::serve_bare(address, &database, postgres.as_deref()).await,
        Command::SlowReaders(args) => slow::compare(args).await,
        Command::Rules(args) => rules::compare(args).await,
        Command::Strangers(args) => strangers::ask(args).await,
        Command::Postgres(args) => postgres::compare(args).await,
    }
}

fn load(what: What, key: &str, users: usize) -> Load {
    match what {
        What::Bare => Load::bare(),
        What::Check => Load::check(key, users),
        What::Hold => Load::hold(key, users),
        What::Usage => Load::usage(key, users, 1),
        What::Usage100 => Load::usage(key, users, 100),
    }
}

async fn drive(args: Drive) -> Result<()> {
    let load = load(args.what, &args.key, args.users);
    let pace = args.rate.map_or(Pace::Closed, Pace::Open);
    let report = client::run(args.address, &load, args.connections, pace, Duration::from_secs(args.seconds)).await?;
    println!("{report}");
    Ok(())
}

async fn compare(args: Compare) -> Result<()> {
    let bare = Bare::start(None)?;
    let service = Service::start()?;
    service.meet(0..args.users).await?;
    let hot = args.hot.min(args.users);
    let turns = [
        ("bare handler", bare.address, Load::bare()),
        ("check", service.address, Load::check(&service.key, hot)),
        ("usage, one record", service.address, Load::usage(&service.key, hot, 1)),
        ("hold + capture", service.address, Load::hold(&service.key, hot)),
        ("a transaction each", bare.address, Load::usage("", hot, 1)),
        ("usage, 100 records", service.address, Load::usage(&service.key, hot, 100)),
    ];
    let mut rates = turns.each_ref().map(|_| Vec::new());
    let mut waits = turns.each_ref().map(|_| Vec::new());
    for round in 0..=args.rounds {
        for (place, (_, address, load)) in turns.iter().enumerate() {
            let report = client::run(*address, load, args.connections, Pace::Closed, Duration::from_secs(args.seconds)).await?;
            service.rest().await?;
            // The first round warms up.
            if 0 < round {
                rates[place].push(report.rate());
                waits[place].push(report);
            }
        }
    }
    println!(
        "{} connections, {} rounds of {} s, {} users known, {hot} of them hot; medians",
        args.connections, args.rounds, args.seconds, args.users
    );
    println!("{:<20} {:>12} {:>7} {:>9} {:>9}", "", "requests/s", "ratio", "p50 ms", "p99 ms");
    let base = median(&mut rates[0].clone());
    for (place, (name, ..)) in turns.iter().enumerate() {
        let rate = median(&mut rates[place]);
        let at = |quantile: f64| median(&mut waits[place].iter().map(|report: &Report| report.millis(quantile)).collect::<Vec<_>>());
        println!("{name:<20} {rate:>12.0} {:>7.3} {:>9.2} {:>9.2}", rate / base, at(0.5), at(0.99));
    }
    // The requests of the last row carry a hundred records each.
    println!("records/s in batches of 100, to single ones: {:.1}", 100.0 * median(&mut rates[5]) / median(&mut rates[2]));
    Ok(())
}

async fn known(args: Known) -> Result<()> {
    let service = Service::start()?;
    service.meet(0..1000).await?;
    let bare = Bare::start(None)?;
    let time = Duration::from_secs(5);
    let (mut of_few, mut of_many) = (Vec::new(), Vec::new());
    let rate = async |address, load: Load| Ok::<_, anyhow::Error>(client::run(address, &load, 64, Pace::Closed, time).await?.rate());
    for _ in 0..3 {
        let base = rate(bare.address, Load::bare()).await?;
        of_few.push(rate(service.address, Load::check(&service.key, 1000)).await? / base);
    }
    // What is there once (caches of the database, the filter of ids, room for what is pending) is there with a quarter of them too.
    let quarter = args.users / 4;
    service.meet(1000..quarter).await?;
    service.rest().await?;
    let few = service.resident()?;
    service.meet(quarter..args.users).await?;
    service.rest().await?;
    let more = service.resident()?.saturating_sub(few) / (args.users - quarter) as u64;
    println!("{more} bytes in memory for each user more, up to {}; {} MB with a quarter of them", args.users, few >> 20);
    for _ in 0..3 {
        let base = rate(bare.address, Load::bare()).await?;
        of_many.push(rate(service.address, Load::check(&service.key, args.hot)).await? / base);
    }
    let (of_few, of_many) = (median(&mut of_few), median(&mut of_many));
    println!(
        "a check with 1000 users {of_few:.3} of the bare handler, with {} ({} hot) {of_many:.3}: × {:.2}",
        args.users,
        args.hot,
        of_few / of_many
    );
    let begun = Instant::now();
    let service = service.restart()?;
    let listens = begun.elapsed();
    let first = client::run(service.address, &Load::check(&service.key, args.users), 1, Pace::Closed, Duration::from_millis(1)).await?;
    println!(
        "the first answer {:.3} s after SIGTERM to the one before (listening after {:.3} s; {first})",
        begun.elapsed().as_secs_f64(),
        listens.as_secs_f64()
    );
    Ok(())
}

async fn flood(args: Flood) -> Result<()> {
    let service = Service::start()?;
    service.meet(0..1000).await?;
    let time = Duration::from_secs(args.seconds);
    let checks = Load::check(&service.key, 1000);
    let quiet = client::run(service.address, &checks, 16, Pace::Open(args.rate), time).await?;
    let usage = Load::usage(&service.key, 1000, 1);
    let flood = client::run(service.address, &usage, args.connections, Pace::Closed, time);
    let (flood, checked) =
        futures_util::future::try_join(flood, client::run(service.address, &checks, 16, Pace::Open(args.rate), time)).await?;
    println!("quiet   {quiet}\nflooded {checked}\nflood   {flood}");
    println!("p99 of checks while flooded, to quiet: × {:.1}", checked.millis(0.99) / quiet.millis(0.99));
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
