//! Drives a service over HTTP and tells requests a second and percentiles, beside a bare handler in the same run.
//!
//! `cargo bench --bench spendgate-load -- compare` is the one that docs/PERFORMANCE.md quotes.
#![expect(clippy::print_stdout, clippy::float_arithmetic, reason = "it prints figures")]
#![expect(clippy::cast_possible_truncation, reason = "figures for people, far from any limit")]

mod client;
mod service;

use std::net::SocketAddr;
use std::time::Duration;

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
    /// Serve 300 static bytes, as the limit of what any handler can do.
    Bare { address: SocketAddr },
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

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    Check,
    Usage,
    Usage100,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Compare(args) => compare(args).await,
        Command::Drive(args) => drive(args).await,
        Command::Bare { address } => service::serve_bare(address).await,
    }
}

fn load(what: What, key: &str, users: usize) -> Load {
    match what {
        What::Check => Load::check(key, users),
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
    let bare = Bare::start()?;
    let service = Service::start()?;
    service.meet(args.users).await?;
    let hot = args.hot.min(args.users);
    let turns = [
        ("bare handler", bare.address, Load::bare()),
        ("check", service.address, Load::check(&service.key, hot)),
        ("usage, one record", service.address, Load::usage(&service.key, hot, 1)),
        ("usage, 100 records", service.address, Load::usage(&service.key, hot, 100)),
    ];
    let mut rates = turns.each_ref().map(|_| Vec::new());
    let mut waits = turns.each_ref().map(|_| Vec::new());
    for round in 0..=args.rounds {
        for (place, (_, address, load)) in turns.iter().enumerate() {
            let report = client::run(*address, load, args.connections, Pace::Closed, Duration::from_secs(args.seconds)).await?;
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
    println!("records/s in batches of 100, to single ones: {:.1}", 100.0 * median(&mut rates[3]) / median(&mut rates[2]));
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
