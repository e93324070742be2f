//! `spendgate simulate`: the recorded usage under another catalogue.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::table::table;
use super::{Machine, open_known_store, read_catalogue, read_config, say};
use crate::config::Config;
use crate::domain::decide::Action;
use crate::domain::period::rfc3339;
use crate::domain::simulation::{OfTier, OfUser, Tally, Told};
use crate::simulate::{Simulated, everybody};
use crate::store::recorded;

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(120);
/// Users that are shown, the worst off first; `--json` tells of all.
const USERS_SHOWN: usize = 50;

/// Judges every call that was recorded as if these tiers had been in force, in the order of their time, and says who would have been
/// warned, degraded and blocked. It changes nothing, and runs beside the service. Tiers are taken as everybody has them now.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tiers to try; the configured ones where it is not given.
    #[arg(long, value_name = "FILE")]
    tiers: Option<PathBuf>,
    /// The prices to try; the configured ones where it is not given.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// The first day (UTC) whose calls are judged; what was spent before it fills the windows that were open then.
    #[arg(long, value_name = "YYYY-MM-DD")]
    since: Option<NaiveDate>,
    /// Tell of everything as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'c> {
    since: Option<NaiveDate>,
    /// Days of which only sums are kept, and the entries that they had.
    rolled_days: i64,
    rolled_entries: i64,
    total: Tally,
    tiers: Vec<OfTier<'c>>,
    /// Those who would have been told anything but ALLOW.
    users: Vec<OfUser<'c>>,
    /// Tiers that were set by hand and that these tiers do not have; whoever has one is judged by what he pays for.
    unknown_tiers: Vec<UnknownTier<'c>>,
}

#[derive(Serialize)]
struct UnknownTier<'c> {
    tier: &'c str,
    users: u64,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<()> {
    let config = read_config(machine)?;
    let (tiers_file, prices_file) = (args.tiers.or(config.tiers_file.clone()), args.prices.or(config.prices_file.clone()));
    let (catalogue, sources) = read_catalogue(&Config { tiers_file, prices_file, ..config.clone() })?;
    let since = args.since.map(|day| day.and_time(NaiveTime::MIN).and_utc());
    let store = open_known_store(&config).await?;
    let mut users = store.reader().await?;
    // One moment for all of it; on SQLite nothing is in its way meanwhile.
    let mut tx = store.begin_read().await?;
    tx.take_your_time().await?;
    let bar = bar()?;
    if !bar.is_hidden() {
        bar.set_length(recorded::count(tx.connection()?, since).await?.unsigned_abs());
    }
    let progress = |judged: usize| bar.inc(u64::try_from(judged).unwrap_or_default());
    let done = everybody(tx.connection()?, &mut users, &catalogue, since, (machine.clock)(), progress).await?;
    bar.finish_and_clear();
    tx.commit().await?;
    drop(users);
    store.close().await;
    let report = report(&done, args.since);
    if args.json {
        say(serde_json::to_string_pretty(&report)?);
    } else {
        say(format_args!("Under {} with {}, everybody in the tier that he has now:\n", sources.tiers, sources.prices));
        show(&report);
    }
    Ok(())
}

fn bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} entries ({per_sec}, {eta} left)")?;
    let bar = ProgressBar::no_length().with_style(style);
    bar.enable_steady_tick(TICK);
    Ok(bar)
}

fn report<'a>(done: &'a Simulated<'_>, since: Option<NaiveDate>) -> Report<'a> {
    let simulation = &done.simulation;
    let unknown = simulation.unknown_tiers().iter().map(|(tier, users)| UnknownTier { tier, users: *users });
    Report {
        since,
        rolled_days: done.rolled.days,
        rolled_entries: done.rolled.entries,
        total: simulation.total(),
        tiers: simulation.tiers(),
        users: simulation.users(),
        unknown_tiers: unknown.collect(),
    }
}

fn show(report: &Report<'_>) {
    let total = &report.total;
    say(by_tier(&report.tiers));
    say("");
    if report.users.is_empty() {
        say("Nobody would have been told anything but ALLOW.");
    } else {
        say(by_user(&report.users));
        if USERS_SHOWN < report.users.len() {
            say(format_args!("… and {} more; --json tells of all", report.users.len() - USERS_SHOWN));
        }
    }
    let (calls, blocked, degraded) = (total.calls, total.block.calls, total.degrade.calls);
    say(format_args!("\nOf {} for {calls} calls {} would have been spent.", total.spent, total.would_have_spent));
    say(format_args!("{blocked} calls that cost {} would not have been made.", total.block.cost));
    say(format_args!("{degraded} calls would have gone to a cheaper model, for {} less.", total.saved_by_degrading));
    if 0 < total.degraded_at_unknown_cost {
        let unknown = total.degraded_at_unknown_cost;
        say(format_args!("What {unknown} of these would have cost is not known (no tokens, or no price); they count as they were."));
    }
    if total.corrected.nanos() != 0 {
        say(format_args!("Corrections took back {} of what was spent.", total.corrected));
    }
    if 0 < report.rolled_days {
        let (days, entries) = (report.rolled_days, report.rolled_entries);
        say(format_args!("Not judged: {entries} entries of {days} days, of which only sums are kept (RETENTION_DAYS)."));
    }
    for unknown in &report.unknown_tiers {
        let (tier, users) = (unknown.tier, unknown.users);
        say(format_args!("The tier {tier}, set by hand for {users}, is not there: what is paid for counts instead."));
    }
}

fn by_tier(tiers: &[OfTier<'_>]) -> String {
    let head = ["TIER", "USERS", "WARNED", "DEGRADED", "BLOCKED", "CALLS", "SPENT", "WOULD HAVE SPENT", "CALLS BLOCKED", "COST BLOCKED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for tier in tiers {
        let tally = &tier.tally;
        let people = [tier.users, tier.warned, tier.degraded, tier.blocked, tally.calls].map(|count| count.to_string());
        let money = [tally.spent.to_string(), tally.would_have_spent.to_string()];
        let blocked = [tally.block.calls.to_string(), tally.block.cost.to_string()];
        rows.push([vec![tier.tier.to_owned()], people.to_vec(), money.to_vec(), blocked.to_vec()].concat());
    }
    table(&rows)
}

fn by_user(users: &[OfUser<'_>]) -> String {
    let head = ["USER", "TIER", "CALLS", "SPENT", "WOULD HAVE SPENT", "WARN", "DEGRADE", "BLOCK", "FIRST"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for user in users.iter().take(USERS_SHOWN) {
        let tally = &user.tally;
        let money = [tally.spent.to_string(), tally.would_have_spent.to_string()];
        let told = [&tally.warn, &tally.degrade, &tally.block].map(|told| told.calls.to_string());
        let first = first(user.worst, tally).map(rfc3339).unwrap_or_default();
        let name = [user.user_id.to_string(), user.tier.to_owned(), tally.calls.to_string()];
        rows.push([name.to_vec(), money.to_vec(), told.to_vec(), vec![format!("{} at {first}", user.worst.name())]].concat());
    }
    table(&rows)
}

/// When the worst that happened did first.
fn first(worst: Action, tally: &Tally) -> Option<DateTime<Utc>> {
    let told: &Told = match worst {
        Action::Allow => &tally.allow,
        Action::Warn => &tally.warn,
        Action::Degrade => &tally.degrade,
        Action::Block => &tally.block,
    };
    told.first.map(|first| first.at)
}
