//! `spendgate sync`: compares everything with Stripe, or asks about one customer.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chrono::SubsecRound;
use indicatif::{ProgressBar, ProgressStyle};

use super::serve::lock;
use super::{Machine, open_store, read_catalogue, say, stripe};
use crate::current::Current;
use crate::meter::Clock;
use crate::store::reconciliation::{Drift, Fault, Phase};
use crate::store::{StoreError, accounts, copy};
use crate::sync::Rules;
use crate::sync::asking::Asker;
use crate::sync::reconcile::{CompareError, Mode, Reconciler};

/// How often a page of Stripe's is asked for before the command gives up; it goes on from there when it is called again.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this Stripe customer.
    #[arg(long, value_name = "cus_…")]
    customer: Option<String>,
    /// Say what differs and change nothing.
    #[arg(long, conflicts_with = "customer")]
    dry_run: bool,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<ExitCode> {
    let (config, client) = stripe::client(machine)?;
    let (catalogue, _) = read_catalogue(&config)?;
    // What is written here a running service would not see.
    let _lock = lock(&config.database).context("`POST /v1/reconciliation` compares while the service runs")?;
    let reads = machine.clock.clone();
    let clock: Clock = Arc::new(move || reads().trunc_subsecs(6));
    let store = open_store(&config).await?;
    let mut tx = store.begin().await?;
    copy::forget_source(tx.connection()?).await?;
    tx.commit().await?;
    let rules = Rules { livemode: config.stripe.livemode(), asks: true };
    // Nobody else has anything in memory.
    let asker = Asker::new(store.clone(), Current::new(catalogue), client, clock, Arc::new(|_| {}));
    let done = match &args.customer {
        Some(customer) => one(&asker, customer).await,
        None => all(&asker, rules, if args.dry_run { Mode::DryRun } else { Mode::Mend }, hex::encode((machine.random)()?)).await,
    };
    store.close().await;
    done
}

async fn one(asker: &Arc<Asker>, customer: &str) -> anyhow::Result<ExitCode> {
    let before = tier(asker, customer).await?;
    asker.now(customer).await.with_context(|| format!("customer {customer}"))?;
    let after = tier(asker, customer).await?;
    say(format_args!("{customer}: {before} → {after}"));
    Ok(ExitCode::SUCCESS)
}

async fn all(asker: &Arc<Asker>, rules: Rules, mode: Mode, holder: String) -> anyhow::Result<ExitCode> {
    let reconciler = Reconciler::new(asker.clone(), rules, holder);
    let mut comparison = reconciler.begin(mode).await?;
    let progress = ProgressBar::no_length().with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    progress.enable_steady_tick(TICK);
    let mut tries = 0;
    while comparison.run.phase != Phase::Done {
        let (phase, run) = (comparison.run.phase.name(), &comparison.run);
        progress.set_message(format!("{phase}: {} compared, {} differ, {} events missed", run.checked, run.drifted, run.missed_events));
        match reconciler.step(&mut comparison).await {
            Ok(()) => tries = 0,
            Err(error @ CompareError::Elsewhere) => return Err(error.into()),
            Err(error) => {
                tries += 1;
                if TRIES <= tries {
                    return Err(error).context("the comparison stopped; the next call goes on where it is");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let run = &comparison.run;
    let mut before = Vec::with_capacity(run.drift.len());
    for drift in &run.drift {
        before.push(tier(asker, &drift.customer).await?);
    }
    if mode == Mode::Mend {
        progress.set_message(format!("asking about {} customers", run.drifted));
        asker.rest().await?;
    }
    progress.finish_and_clear();
    for (Drift { customer, what }, before) in run.drift.iter().zip(before) {
        match mode {
            Mode::Mend => say(format_args!("{customer}: {what}; {before} → {}", tier(asker, customer).await?)),
            Mode::DryRun => say(format_args!("{customer}: {what}; here {before}")),
        }
    }
    let told = run.drift.len();
    if i64::try_from(told).is_ok_and(|told| told < run.drifted) {
        say(format_args!("… and {} more", run.drifted - i64::try_from(told).unwrap_or_default()));
    }
    for Fault { phase, what } in &run.faults {
        say(format_args!("Stripe's list of {} could not be read to its end: {what}", phase.name()));
    }
    if run.unread != 0 {
        say(format_args!("{} objects of Stripe's lists could not be read", run.unread));
    }
    let done = if mode == Mode::Mend { "mended" } else { "nothing was changed" };
    let (checked, drifted, missed) = (run.checked, run.drifted, run.missed_events);
    say(format_args!("{checked} compared, {drifted} differed, {missed} events had not come; {done}"));
    Ok(if run.faults.is_empty() && run.unread == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a customer pays for, as far as we know.
async fn tier(asker: &Asker, customer: &str) -> Result<String, StoreError> {
    let stored = accounts::customer(&mut asker.store.reader().await?, customer).await?;
    let (catalogue, now) = (asker.catalogue.load_full(), (asker.clock)());
    Ok(stored.map_or("not known".to_owned(), |stored| {
        let tier = stored.state.grant(&catalogue, now).tier.unwrap_or(catalogue.default_tier());
        format!("tier {}", tier.name)
    }))
}
