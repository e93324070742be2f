//! `spendgate plan`: what other files would change, and for whom, before they hold.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Machine, open_known_store, read_catalogue, read_config, say};
use crate::config::Config;
use crate::current::Current;
use crate::domain::catalogue::Catalogue;
use crate::domain::decide::{Action, Budget, decide};
use crate::domain::difference::differences;
use crate::domain::money::Money;
use crate::domain::user::UserId;
use crate::meter::{Meter, Settings, View};
use crate::store::accounts;

/// Users looked up at once.
const PAGE: usize = 500;
/// Users told by name of each kind; the others are counted.
const NAMED_MAX: usize = 20;
/// How often the progress is drawn again.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    /// The tiers.yaml that is to hold; without it, the one that is set.
    #[arg(long)]
    tiers: Option<PathBuf>,
    /// The prices.yaml that is to hold; without it, the one that is set.
    #[arg(long)]
    prices: Option<PathBuf>,
}

/// What becomes of a user. The order is that in which it is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// He has this tier then.
    Tier(String),
    Limits,
    /// What a check answers now, and then.
    Action(Action, Action),
}

/// Users of one effect.
#[derive(Debug, Default)]
struct Whom {
    count: usize,
    /// The first of them.
    named: Vec<UserId>,
}

/// By the tier that users have now: how many there are, and what becomes of them.
type Effects = BTreeMap<String, (usize, BTreeMap<Effect, Whom>)>;

/// Reads the database beside a running service, and writes nothing.
pub async fn run(args: Args, machine: Machine) -> anyhow::Result<()> {
    let config = read_config(&machine)?;
    let (before, _) = read_catalogue(&config)?;
    let planned = Config {
        tiers_file: args.tiers.or_else(|| config.tiers_file.clone()),
        prices_file: args.prices.or_else(|| config.prices_file.clone()),
        ..config.clone()
    };
    let (after, _) = read_catalogue(&planned)?;
    let changed = differences(&before, &after);
    if changed.is_empty() {
        say("nothing changes");
        return Ok(());
    }
    say(format_args!("{} changes:", changed.len()));
    for difference in &changed {
        say(format_args!("  {difference}"));
    }
    if config.database.file().is_some_and(|file| !file.exists()) {
        say("there is no database yet, so nobody is affected");
        return Ok(());
    }
    let store = open_known_store(&config).await?;
    let (before, after) = (Current::new(before), Arc::new(after));
    let (meter, writer) = Meter::start(store.clone(), before.clone(), machine.clock.clone(), Settings::default()).await?;
    let effects = effects(&meter, &before.load_full(), &after, (machine.clock)()).await;
    drop(meter);
    writer.await?;
    store.close().await;
    tell(&effects?);
    Ok(())
}

async fn effects(meter: &Meter, before: &Arc<Catalogue>, after: &Arc<Catalogue>, now: DateTime<Utc>) -> anyhow::Result<Effects> {
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("{spinner} {pos} users ({per_sec})")?);
    bar.enable_steady_tick(TICK);
    let (mut effects, mut last) = (Effects::new(), String::new());
    loop {
        let ids = accounts::user_ids(&mut meter.reader().await?, &last, i64::try_from(PAGE)?).await?;
        let views = (meter.views(before, &ids, now).await?, meter.views(after, &ids, now).await?);
        for ((user, before), after) in ids.iter().zip(&views.0).zip(&views.1) {
            let (users, found) = effects.entry(before.standing.tier.name.clone()).or_default();
            *users += 1;
            for effect in of_user(before, after) {
                let whom = found.entry(effect).or_default();
                whom.count += 1;
                if whom.named.len() < NAMED_MAX {
                    whom.named.push(user.clone());
                }
            }
        }
        bar.inc(u64::try_from(ids.len())?);
        match ids.last().filter(|_| ids.len() == PAGE) {
            Some(user) => user.as_str().clone_into(&mut last),
            None => break,
        }
    }
    bar.finish_and_clear();
    Ok(effects)
}

fn of_user(before: &View<'_>, after: &View<'_>) -> Vec<Effect> {
    let mut effects = Vec::new();
    let tier = &after.standing.tier.name;
    if *tier != before.standing.tier.name {
        effects.push(Effect::Tier(tier.clone()));
    }
    let limits = |view: &View<'_>| view.budgets.iter().map(limit).collect::<Vec<_>>();
    if limits(before) != limits(after) {
        effects.push(Effect::Limits);
    }
    let action = |view: &View<'_>| decide(&view.budgets, Money::ZERO).action;
    if action(before) != action(after) {
        effects.push(Effect::Action(action(before), action(after)));
    }
    effects
}

/// What a budget allows, whatever is spent of it.
fn limit(budget: &Budget) -> impl PartialEq + use<> {
    (budget.scope, budget.period, budget.limit, budget.thresholds)
}

fn tell(effects: &Effects) {
    let users: usize = effects.values().map(|(users, _)| users).sum();
    let affected = effects.values().any(|(_, found)| !found.is_empty());
    say(format_args!("{users} users are known{}", if affected { ":" } else { "; none of them is affected now" }));
    for (tier, (users, found)) in effects.iter().filter(|(_, (_, found))| !found.is_empty()) {
        say(format_args!("  tier {tier}, {users} users now:"));
        for (effect, Whom { count, named }) in found {
            let names = named.iter().map(UserId::as_str).collect::<Vec<_>>().join(", ");
            let more = count - named.len();
            let more = if 0 < more { format!(", and {more} more") } else { String::new() };
            let what = match effect {
                Effect::Tier(tier) => format!("get the tier {tier}"),
                Effect::Limits => "get other limits".to_owned(),
                Effect::Action(before, after) => format!("{} -> {}", before.name(), after.name()),
            };
            say(format_args!("    {count} {what}: {names}{more}"));
        }
    }
}
