//! `spendgate explain USER`

use std::process::ExitCode;
use std::sync::Arc;

use super::status::BLOCKED;
use super::table::table;
use super::{Machine, Misconfigured, open_known_store, read_catalogue, read_config, say};
use crate::current::Current;
use crate::domain::catalogue::{Catalogue, Percent};
use crate::domain::decide::{Action, Budget, Decision, Scope, Source};
use crate::domain::explanation::{Basis, Estimate, reached_at};
use crate::domain::judge::{Ask, Caller, Judgement, judge};
use crate::domain::money::Money;
use crate::domain::operation::EntryKind;
use crate::domain::period::rfc3339;
use crate::domain::pricing::{Parts, Tokens};
use crate::domain::rules::TriedOutcome;
use crate::domain::subscription::{Explained, NamedBy, Status};
use crate::domain::user::{TierSource, UserId};
use crate::explain::{Grounds, Stripe, counting, grounds};
use crate::meter::{Meter, Settings, View};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application's own id of the user.
    user: String,
    /// The model that the call would use.
    #[arg(long)]
    model: Option<String>,
    #[arg(long)]
    provider: Option<String>,
    /// What the call may cost, in dollars.
    #[arg(long, value_name = "DOLLARS", value_parser = Money::parse)]
    estimated_cost: Option<Money>,
    /// Tokens that go in, all of them; they are priced where no cost is given.
    #[arg(long, requires = "model")]
    input_tokens: Option<u32>,
    /// The most tokens that may come out.
    #[arg(long, requires = "model")]
    output_tokens: Option<u32>,
}

impl Args {
    fn ask(&self) -> Ask {
        let number = |tokens: Option<u32>| tokens.map_or(0, i64::from);
        let tokens = Tokens { input: number(self.input_tokens), output: number(self.output_tokens), parts: Parts::NONE };
        let is_given = self.input_tokens.is_some() || self.output_tokens.is_some();
        let (model, provider) = (self.model.clone(), self.provider.clone());
        Ask { model, provider, cost: self.estimated_cost, tokens: is_given.then_some(tokens), metadata: None }
    }
}

/// Reads the database beside a running service, without stopping it.
pub async fn run(args: Args, machine: Machine) -> anyhow::Result<ExitCode> {
    let config = read_config(&machine)?;
    let (catalogue, _) = read_catalogue(&config)?;
    let catalogue = Arc::new(catalogue);
    let user = UserId::parse(&args.user).map_err(|error| Misconfigured(format!("the user id {error}")))?;
    let store = open_known_store(&config).await?;
    let (now, ask) = ((machine.clock)(), args.ask());
    let (meter, writer) =
        Meter::start(store.clone(), Current::new(Catalogue::clone(&catalogue)), machine.clock.clone(), Settings::default()).await?;
    let view = meter.view(&catalogue, &user, now).await?;
    let caller = Caller { user: &user, account: view.payer.profile.account.as_ref(), tier: view.standing.tier };
    let judgement = judge(&catalogue, caller, &view.budgets, &ask, now);
    let told = grounds(&meter, &catalogue, &user, &view, &ask, now).await.map(|grounds| show(&user, &view, &ask, &judgement, &grounds));
    drop(view);
    drop(meter);
    writer.await?;
    store.close().await;
    told?;
    Ok(if judgement.decision.action == Action::Block { ExitCode::from(BLOCKED) } else { ExitCode::SUCCESS })
}

fn show(user: &UserId, view: &View<'_>, ask: &Ask, judgement: &Judgement, grounds: &Grounds<'_>) {
    let decision = &judgement.decision;
    let unknown = if view.payer.exists { "" } else { " (nothing is known of this user)" };
    let instead = judgement.model.as_deref().filter(|model| ask.model.as_deref() != Some(*model));
    let instead = instead.map(|model| format!(" The model to use is {model}.")).unwrap_or_default();
    say(format_args!("A check of {user}{unknown} answers {}: {}{instead}", decision.action.name(), decision.message));
    say("");
    show_tier(view, grounds);
    if let Some(stripe) = &grounds.stripe {
        show_stripe(stripe);
    }
    say(format_args!("estimate  {}", estimate(&grounds.estimate, ask)));
    say("");
    say(budgets(view, decision, grounds));
    let grants = grounds.grants.iter().map(|grant| {
        vec![
            grant.id.to_string(),
            grant.period.name().to_owned(),
            grant.amount.to_string(),
            grant.left().to_string(),
            rfc3339(grant.ends_at),
        ]
    });
    section("Grants that add to them, drawn on in this order:", &["GRANT", "PERIOD", "AMOUNT", "LEFT", "ENDS"], grants.collect());
    let rules = grounds.rules.iter().map(|tried| {
        let outcome = match tried.outcome {
            TriedOutcome::Applies => tried.action.name(),
            TriedOutcome::DoesNotApply => "-",
            TriedOutcome::Failed => "failed: BLOCK",
        };
        vec![tried.rule.to_owned(), outcome.to_owned(), tried.when.to_owned()]
    });
    section("Rules that were tried:", &["RULE", "SAYS", "WHEN"], rules.collect());
    let holds = grounds.holds.iter().map(|hold| {
        let model = hold.model.as_deref().unwrap_or("-");
        vec![hold.id.to_string(), hold.amount.to_string(), model.to_owned(), hold.user_id.to_string(), rfc3339(hold.expires_at)]
    });
    section("Holds that are open:", &["HOLD", "AMOUNT", "MODEL", "USER", "EXPIRES"], holds.collect());
    if grounds.more_holds {
        say("… and more");
    }
    let entries = grounds.entries.iter().map(|(of, entry)| {
        let cost = match entry.kind {
            EntryKind::Usage | EntryKind::Capture => entry.cost.to_string(),
            EntryKind::Correction => format!("-{}", entry.cost),
        };
        let counts: Vec<String> = counting(&view.budgets, entry.time, *of != *user).map(place).collect();
        let model = entry.model.as_deref().unwrap_or("-");
        vec![rfc3339(entry.time), cost, model.to_owned(), of.to_string(), entry.id.clone(), counts.join(", ")]
    });
    section("The last entries that fill them:", &["TIME", "COST", "MODEL", "USER", "ID", "COUNTS IN"], entries.collect());
}

fn section(title: &str, head: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    say(format_args!("\n{title}\n{}", table(&[vec![head], rows].concat())));
}

fn show_tier(view: &View<'_>, grounds: &Grounds<'_>) {
    let (standing, profile) = (&view.standing, &view.payer.profile);
    let source = match (standing.source, &profile.manual) {
        (TierSource::Manual, Some(manual)) => {
            let by = grounds.set_by.as_deref().unwrap_or("a key that is not known");
            let until = manual.ends_at.map(|end| format!(" until {}", rfc3339(end))).unwrap_or_default();
            format!("set by hand at {} with key {by}{until}: {}", rfc3339(manual.set_at), manual.reason)
        }
        (TierSource::Manual, None) => "set by hand".to_owned(),
        (TierSource::Stripe, _) => "paid at Stripe".to_owned(),
        (TierSource::Default, _) => "the default".to_owned(),
    };
    let seats = if standing.seats == 1 { String::new() } else { format!(", {} seats", standing.seats) };
    say(format_args!("tier      {} ({source}{seats})", standing.tier.name));
    if let Some(account) = &profile.account {
        let shared = match standing.tier.budgets.scope {
            Scope::Account => "whose users share the tier's budgets",
            Scope::User | Scope::Global => "which shares none of the tier's budgets",
        };
        say(format_args!("account   {account}, {shared}"));
    }
}

fn show_stripe(stripe: &Stripe<'_>) {
    let gone = if stripe.is_deleted { ", which Stripe has deleted" } else { "" };
    let written = stripe.written_at.map(|at| format!(", written at {}", rfc3339(at))).unwrap_or_default();
    say(format_args!("stripe    {}{gone}{written}", stripe.customer));
    for subscription in &stripe.subscriptions {
        say(format_args!("          {}", told(subscription)));
    }
    if let Some(event) = &stripe.last_event {
        say(format_args!(
            "event     {} ({}), applied at {}: {}",
            event.event_id,
            event.kind,
            rfc3339(event.applied_at),
            event.effect.sentence
        ));
    }
    if let Some(question) = &stripe.question {
        let waits = match (question.due_at, question.given_up_at) {
            (Some(at), _) => format!("Stripe is asked again at {}", rfc3339(at)),
            (None, Some(at)) => format!("asking Stripe was given up at {}", rfc3339(at)),
            (None, None) => "nothing is left to ask Stripe".to_owned(),
        };
        let error = question.error.as_deref().map(|error| format!("; the last question failed: {error}")).unwrap_or_default();
        say(format_args!("question  number {} is answered; {waits}{error}", question.answered));
    }
}

fn told(subscription: &Explained<'_>) -> String {
    let grant = &subscription.grant;
    let status = grant.status.as_ref().map_or("unknown", Status::name);
    let name = subscription.item.and_then(|item| item.price.as_deref().or(item.lookup_key.as_deref())).unwrap_or("nothing");
    let buys = match subscription.buys {
        Some((tier, NamedBy::Kept)) => format!("{name}, which no tier is sold as; it bought {} before", tier.name),
        Some((tier, NamedBy::Price)) => format!("{name}, which buys {}", tier.name),
        Some((tier, NamedBy::LookupKey)) => format!("{name}, which buys {} by its lookup key", tier.name),
        Some((tier, NamedBy::Metadata)) => format!("{name}, which buys {} by its metadata", tier.name),
        Some((tier, NamedBy::Product)) => format!("{name}, which buys {} by its product", tier.name),
        None => format!("{name}, which buys nothing"),
    };
    let grants = grant.tier.map_or("nothing", |tier| tier.name.as_str());
    let grace = grant.grace_ends_at.map(|end| format!(", until {} at the latest", rfc3339(end))).unwrap_or_default();
    let ends = grant.ends_at.map(|end| format!(", cancelled for {}", rfc3339(end))).unwrap_or_default();
    let paused = if subscription.collection_paused { ", collection paused" } else { "" };
    format!("{} is {status}{ends}{paused}, pays for {buys}: it grants {grants}{grace}", subscription.subscription)
}

fn estimate(estimate: &Estimate<'_>, ask: &Ask) -> String {
    let model = ask.model.as_deref().unwrap_or_default();
    match (estimate.amount, estimate.basis, &estimate.pricing) {
        (Some(amount), Basis::Given, _) => format!("{amount}, as given"),
        (Some(amount), Basis::Nothing, _) => format!("{amount}: nothing was said of what the call may cost"),
        (Some(amount), Basis::Tokens, Some(pricing)) => format!("{amount} for these tokens at the price of {}", pricing.model()),
        (Some(amount), Basis::Tokens, None) => format!("{amount}: {model} has no price, and the tier lets it pass"),
        (None, ..) => format!("not known: {model} has no price"),
    }
}

fn budgets(view: &View<'_>, decision: &Decision, grounds: &Grounds<'_>) -> String {
    if view.budgets.is_empty() {
        return "No budget limits this user.".to_owned();
    }
    let head = ["BUDGET", "LIMIT", "SPENT", "HELD", "USED", "WARN", "DEGRADE", "BLOCK", "SINCE", "RESETS", "SAYS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (budget, verdict) in view.budgets.iter().zip(&grounds.verdicts) {
        let at = |percent: Option<Percent>| percent.map_or("-".to_owned(), |percent| reached_at(budget.limit, percent).to_string());
        let used = budget.used_permille();
        let since = budget.window.end.map_or("ever".to_owned(), |_| rfc3339(budget.window.start));
        let decides = if decision.binding == Some(budget.binding()) { " (decides)" } else { "" };
        let thresholds = &budget.thresholds;
        rows.push(vec![
            place(budget),
            budget.limit.to_string(),
            budget.spent.to_string(),
            budget.held.to_string(),
            format!("{}.{} %", used / 10, used % 10),
            at(thresholds.warn),
            at(thresholds.degrade),
            at(thresholds.block),
            since,
            budget.window.end.map_or("never".to_owned(), rfc3339),
            format!("{}{decides}", verdict.action.name()),
        ]);
    }
    table(&rows)
}

fn place(budget: &Budget) -> String {
    let scope = match (budget.source, budget.scope) {
        (Source::Cap, _) => "own cap,",
        (Source::Tier | Source::Global, Scope::User) => "user",
        (Source::Tier | Source::Global, Scope::Account) => "account",
        (Source::Tier | Source::Global, Scope::Global) => "global",
    };
    format!("{scope} {}", budget.period.name())
}
