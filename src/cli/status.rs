//! `spendgate status USER`

use std::process::ExitCode;

use super::table::table;
use super::{Machine, Misconfigured, open_known_store, read_catalogue, read_config, say};
use crate::current::Current;
use crate::domain::decide::{Action, Decision};
use crate::domain::judge::{Ask, Caller, judge};
use crate::domain::period::rfc3339;
use crate::domain::subscription::Status;
use crate::domain::user::{TierSource, UserId};
use crate::meter::{Meter, Settings, View};

/// The exit code where the user is blocked.
pub(super) const BLOCKED: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application's own id of the user.
    user: String,
}

/// Reads the database beside a running service, without stopping it.
pub async fn run(args: Args, machine: Machine) -> anyhow::Result<ExitCode> {
    let config = read_config(&machine)?;
    let (catalogue, _) = read_catalogue(&config)?;
    let user = UserId::parse(&args.user).map_err(|error| Misconfigured(format!("the user id {error}")))?;
    let store = open_known_store(&config).await?;
    let now = (machine.clock)();
    let catalogue = Current::new(catalogue);
    let (meter, writer) = Meter::start(store.clone(), catalogue.clone(), machine.clock.clone(), Settings::default()).await?;
    let catalogue = catalogue.load_full();
    let view = meter.view(&catalogue, &user, now).await?;
    let caller = Caller { user: &user, account: view.payer.profile.account.as_ref(), tier: view.standing.tier };
    let decision = judge(&catalogue, caller, &view.budgets, &Ask::default(), now).decision;
    show(&user, &view, &decision);
    drop(view);
    drop(meter);
    writer.await?;
    store.close().await;
    Ok(if decision.action == Action::Block { ExitCode::from(BLOCKED) } else { ExitCode::SUCCESS })
}

fn show(user: &UserId, view: &View<'_>, decision: &Decision) {
    let (standing, profile) = (&view.standing, &view.payer.profile);
    let source = match standing.source {
        TierSource::Manual => {
            let manual = profile.manual.as_ref();
            format!("set by hand: {}", manual.map(|manual| manual.reason.as_str()).unwrap_or_default())
        }
        TierSource::Stripe => "paid at Stripe".to_owned(),
        TierSource::Default => "the default".to_owned(),
    };
    let unknown = if view.payer.exists { "" } else { " (nothing is known of this user)" };
    say(format_args!("user      {user}{unknown}"));
    say(format_args!("tier      {} ({source})", standing.tier.name));
    let customer = profile.stripe_customer.as_deref().unwrap_or("-");
    let status = standing.grant.status.as_ref().map_or("no subscription", Status::name);
    say(format_args!("stripe    {customer}, {status}"));
    say(format_args!("lifetime  {} in {} entries", view.payer.book.total(), view.payer.entries));
    let mut rows = vec![["SCOPE", "PERIOD", "LIMIT", "SPENT", "USED", "RESETS"].map(str::to_owned).to_vec()];
    for budget in &view.budgets {
        let scope = match budget.scope {
            crate::domain::decide::Scope::User => "user",
            crate::domain::decide::Scope::Account => "account",
            crate::domain::decide::Scope::Global => "global",
        };
        let used = budget.used_permille();
        let resets = budget.window.end.map(rfc3339).unwrap_or_else(|| "never".to_owned());
        let (limit, spent) = (budget.limit.to_string(), budget.spent.to_string());
        rows.push(vec![scope.to_owned(), budget.period.name().to_owned(), limit, spent, format!("{}.{} %", used / 10, used % 10), resets]);
    }
    say(table(&rows));
    say(format_args!("a check answers {}: {}", decision.action.name(), decision.message));
}
