//! Services on a Postgres of their own, beside what people do first: one statement for each request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;

use crate::client::{self, Load, Pace};
use crate::median;
use crate::servers::Server;
use crate::service::{Bare, Service};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Of each turn.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Users known and asked for.
    #[arg(long, default_value_t = 1000)]
    users: usize,
    /// Then so many users known, ten thousand of them asked for; 0 leaves it out.
    #[arg(long, default_value_t = 0)]
    many: usize,
    /// What the server keeps in memory by itself.
    #[arg(long, default_value = "256MB")]
    shared_buffers: String,
}

/// Of many users.
const HOT: usize = 10_000;

struct Turn {
    name: &'static str,
    nodes: Vec<SocketAddr>,
    load: Load,
}

impl Turn {
    /// Requests a second, all nodes together, and their worst p99 in milliseconds.
    async fn take(&self, args: &Args) -> Result<(f64, f64)> {
        let connections = args.connections / self.nodes.len();
        let time = Duration::from_secs(args.seconds);
        let of = self.nodes.iter().map(|node| client::run(*node, &self.load, connections, Pace::Closed, time));
        let reports = try_join_all(of).await?;
        let slowest = reports.iter().map(|report| report.millis(0.99)).fold(0.0, f64::max);
        Ok((reports.iter().map(client::Report::rate).sum(), slowest))
    }
}

async fn rounds(turns: &[Turn], args: &Args) -> Result<Vec<f64>> {
    let mut taken: Vec<(Vec<f64>, Vec<f64>)> = turns.iter().map(|_| Default::default()).collect();
    for round in 0..=args.rounds {
        for (turn, (rates, slowest)) in turns.iter().zip(&mut taken) {
            let (rate, slow) = turn.take(args).await?;
            // The first round warms up.
            if 0 < round {
                rates.push(rate);
                slowest.push(slow);
            }
        }
    }
    let medians: Vec<(f64, f64)> = taken.iter_mut().map(|(rates, slowest)| (median(rates), median(slowest))).collect();
    let base = medians.first().map_or(1.0, |(rate, _)| *rate);
    println!("{:<34} {:>12} {:>7} {:>9}", "", "requests/s", "ratio", "p99 ms");
    for (turn, (rate, slow)) in turns.iter().zip(&medians) {
        println!("{:<34} {rate:>12.0} {:>7.3} {slow:>9.2}", turn.name, rate / base);
    }
    Ok(medians.into_iter().map(|(rate, _)| rate / base).collect())
}

pub async fn compare(args: Args) -> Result<()> {
    let server = Server::make(&[&format!("shared_buffers = {}", args.shared_buffers), "max_wal_size = 4GB"]);
    server.sql("CREATE DATABASE gate");
    let made = "CREATE TABLE spent (user_id TEXT PRIMARY KEY, spent BIGINT) WITH (fillfactor = 50)";
    server.sql(made);
    server.sql(&format!("INSERT INTO spent SELECT 'user-' || n, 0 FROM generate_series(0, {}) n", args.users));
    let url = |database: &str| format!("postgres://postgres@{}/{database}", server.host());
    let bare = Bare::start(Some(&url("postgres")))?;
    let gate = url("gate");
    let one = Service::start_with(&[("DATABASE_URL", &gate)])?;
    let other = Service::start_with(&[("DATABASE_URL", &gate)])?;
    let remembers = Service::start_with(&[("DATABASE_URL", &gate), ("MAX_STALENESS_MS", "100")])?;
    one.meet(0..args.users).await?;
    let turn = |name, nodes: &[&Service], load| Turn { name, nodes: nodes.iter().map(|node| node.address).collect(), load };
    let of_bare = |name, load| Turn { name, nodes: vec![bare.address], load };
    let turns = [
        of_bare("bare handler", Load::bare()),
        of_bare("one SELECT each", Load::check("", args.users)),
        turn("check", &[&one], Load::check(&one.key, args.users)),
        turn("check, MAX_STALENESS_MS=100", &[&remembers], Load::check(&one.key, args.users)),
        of_bare("one UPDATE … RETURNING each", Load::update(args.users)),
        turn("usage", &[&one], Load::usage(&one.key, args.users, 1)),
        turn("usage, two nodes", &[&one, &other], Load::usage(&one.key, args.users, 1)),
        turn("hold + capture", &[&one], Load::hold(&one.key, args.users)),
        turn("checks, lists of 100", &[&one], Load::checks(&one.key, args.users, 100)),
        turn("usage, lists of 100", &[&one], Load::usage(&one.key, args.users, 100)),
    ];
    println!("Postgres, {} connections, {} rounds of {} s, {} users; medians", args.connections, args.rounds, args.seconds, args.users);
    let ratios = rounds(&turns, &args).await?;
    if let [_, select, check, _, update, usage, two, _, checks, usages] = ratios.as_slice() {
        println!(
            "check to SELECT: × {:.1}; usage to UPDATE: × {:.1}; two nodes to one: × {:.2}",
            check / select,
            usage / update,
            two / usage
        );
        println!("in lists of 100: check to SELECT: × {:.1}; usage to UPDATE: × {:.1}", 100.0 * checks / select, 100.0 * usages / update);
    }
    if args.many == 0 {
        return Ok(());
    }
    one.meet(args.users..args.many).await?;
    println!("with {} users, {HOT} of them asked for", args.many);
    let turns = [
        of_bare("bare handler", Load::bare()),
        turn("check", &[&one], Load::check(&one.key, HOT)),
        turn("usage", &[&one], Load::usage(&one.key, HOT, 1)),
    ];
    let of_many = rounds(&turns, &args).await?;
    if let ([_, check, usage], [_, _, few_check, _, _, few_usage, ..]) = (of_many.as_slice(), ratios.as_slice()) {
        println!("cost with many to cost with few: check × {:.2}, usage × {:.2}", few_check / check, few_usage / usage);
    }
    Ok(())
}
