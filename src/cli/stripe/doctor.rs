//! `spendgate stripe doctor`

use std::fmt;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use reqwest::Url;

use super::super::{Machine, read_catalogue, say};
use super::{client, endpoint_url, mode, posts_to};
use crate::domain::catalogue::{Catalogue, Tier};
use crate::stripe::client::{Client, StripeError, WebhookEndpoint};
use crate::stripe::registration::{API_VERSION, EVENTS, WEBHOOK_PATH};

/// Deliveries are refused when our clock and Stripe's differ by more than 300 s; before that it is time to act.
const SKEW_SECONDS_WARN: i64 = 60;
const SKEW_SECONDS_FAULT: i64 = 240;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where Stripe shall post; below `PUBLIC_URL` where it is not given, else any endpoint of a service like this.
    #[arg(long)]
    url: Option<String>,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<ExitCode> {
    let (config, client) = client(machine)?;
    let (catalogue, sources) = read_catalogue(&config)?;
    let url = endpoint_url(args.url.as_deref(), &config, client.livemode())?;
    let mut report = Report::default();
    let checked = async {
        account(&mut report, &client).await?;
        clock(&mut report, (machine.clock)(), client.server_time());
        endpoint(&mut report, &client, url.as_ref()).await?;
        match config.webhook_secrets.len() {
            0 => report.fault(
                "secrets",
                "STRIPE_WEBHOOK_SECRETS is not set, so no event is taken",
                "set it to the endpoint's signing secret",
            ),
            many => {
                report.ok("secrets", format_args!("STRIPE_WEBHOOK_SECRETS has {many}; that one is the endpoint's, only a delivery tells"))
            }
        }
        for tier in catalogue.tiers() {
            sold(&mut report, &client, &catalogue, tier, &sources.tiers).await?;
        }
        portal(&mut report, &client).await?;
        reads(&mut report, &client, (machine.clock)()).await
    };
    // What ends one check so would end all that follow.
    if let Err(error) = checked.await {
        let todo = remedy(&error);
        report.fault("stripe", error, todo);
    }
    let Report { faults, warnings } = report;
    say(format_args!("faults: {faults}, warnings: {warnings}"));
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line for each check; a fault's says what to do.
#[derive(Debug, Default)]
struct Report {
    faults: u32,
    warnings: u32,
}

impl Report {
    fn ok(&self, what: &str, told: impl fmt::Display) {
        say(format_args!("ok     {what:<9} {told}"));
    }

    fn warn(&mut self, what: &str, told: impl fmt::Display, todo: impl fmt::Display) {
        self.warnings += 1;
        say(format_args!("warn   {what:<9} {told}: {todo}"));
    }

    fn fault(&mut self, what: &str, told: impl fmt::Display, todo: impl fmt::Display) {
        self.faults += 1;
        say(format_args!("FAULT  {what:<9} {told}: {todo}"));
    }

    /// What was answered, where it was; a refusal is a fault of this check only, and other errors end all checks.
    fn answered<T>(&mut self, what: &str, answer: Result<T, StripeError>) -> Result<Option<T>, StripeError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ (StripeError::Refused { .. } | StripeError::NotFound)) => {
                self.fault(what, error, "a restricted key needs the permission to read this");
                Ok(None)
            }
            Err(error @ (StripeError::Unreachable(_) | StripeError::WrongMode | StripeError::Unreadable(_))) => Err(error),
        }
    }
}

fn remedy(error: &StripeError) -> &'static str {
    match error {
        StripeError::Refused { status: 401, .. } => "STRIPE_API_KEY is not, or no longer, a key of Stripe's; make another",
        StripeError::Unreachable(_) => "check the network, STRIPE_API_BASE and https://status.stripe.com",
        StripeError::WrongMode => "STRIPE_API_KEY and STRIPE_API_BASE do not belong together",
        StripeError::NotFound | StripeError::Refused { .. } | StripeError::Unreadable(_) => "is STRIPE_API_BASE the URL of Stripe's API?",
    }
}

async fn account(report: &mut Report, client: &Client) -> Result<(), StripeError> {
    let mode = mode(client);
    match client.account().await {
        Ok(account) => report.ok("key", format_args!("{mode}, account {}", account.id)),
        // Enough for a restricted key.
        Err(StripeError::Refused { status: 403, .. }) => {
            report.ok("key", format_args!("{mode}; it may not read the account, and need not"))
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn clock(report: &mut Report, ours: DateTime<Utc>, stripes: Option<DateTime<Utc>>) {
    let Some(stripes) = stripes else { return };
    let ahead = (ours - stripes).num_seconds();
    let told = match ahead {
        0 => "agrees with Stripe's".to_owned(),
        1.. => format!("is {ahead} s ahead of Stripe's"),
        _ => format!("is {} s behind Stripe's", ahead.saturating_neg()),
    };
    match ahead.saturating_abs() {
        seconds if SKEW_SECONDS_FAULT < seconds => {
            report.fault("clock", told, "from 300 s on events are refused; set the clock, best by NTP")
        }
        seconds if SKEW_SECONDS_WARN < seconds => report.warn("clock", told, "set it, best by NTP"),
        _ => report.ok("clock", told),
    }
}

async fn endpoint(report: &mut Report, client: &Client, url: Option<&Url>) -> Result<(), StripeError> {
    let Some(all) = report.answered("endpoint", client.webhook_endpoints().await)? else { return Ok(()) };
    let ours = |endpoint: &WebhookEndpoint| match url {
        Some(url) => posts_to(endpoint, url),
        None => endpoint.url.ends_with(WEBHOOK_PATH),
    };
    let found: Vec<WebhookEndpoint> = all.into_iter().filter(ours).collect();
    if found.is_empty() {
        let whose = url.map_or_else(|| format!("ends with {WEBHOOK_PATH}"), |url| format!("is {url}"));
        report.fault("endpoint", format_args!("there is none whose URL {whose}"), "make it with `spendgate stripe register --url …`");
    }
    for endpoint in &found {
        judge_endpoint(report, endpoint);
    }
    if 1 < found.len() && url.is_some() {
        report.warn("endpoint", format_args!("there are {} of this URL", found.len()), "delete all but one, or every event comes so often");
    }
    Ok(())
}

fn judge_endpoint(report: &mut Report, endpoint: &WebhookEndpoint) {
    let WebhookEndpoint { id, url, .. } = endpoint;
    let every = endpoint.events.iter().any(|kind| kind == "*");
    let missing: Vec<&str> = EVENTS.into_iter().filter(|kind| !every && !endpoint.events.iter().any(|known| known == kind)).collect();
    let todo = "`spendgate stripe register` mends it";
    if !endpoint.enabled {
        report.fault("endpoint", format_args!("{id} is disabled; Stripe does so after days of failed deliveries"), todo);
    } else if !missing.is_empty() {
        report.fault("endpoint", format_args!("{id} does not get {}", missing.join(", ")), todo);
    } else if every {
        report.warn("endpoint", format_args!("{id} gets every event there is"), todo);
    } else {
        report.ok("endpoint", format_args!("{id} posts {} types of event to {url}", endpoint.events.len()));
    }
    match endpoint.api_version.as_deref() {
        Some(API_VERSION) => report.ok("version", API_VERSION),
        version => {
            let version = version.unwrap_or("the account's default version, which may move");
            let todo = "this works; to pin it, make a new endpoint with `spendgate stripe register --replace`";
            report.warn("version", format_args!("{id} sends {version}, not {API_VERSION}"), todo);
        }
    }
}

/// Whether what buys a tier is there and can be bought.
async fn sold(
    report: &mut Report,
    client: &Client,
    catalogue: &Catalogue,
    tier: &Tier,
    source: &impl fmt::Display,
) -> Result<(), StripeError> {
    let name = &tier.name;
    let todo = format!("make it at Stripe in {}, or correct {source}", mode(client));
    let mut sellable = 0;
    let mut price = |report: &mut Report, called: String, found: Option<(bool, bool)>| match found {
        None => report.fault("price", format_args!("{called} of tier {name} does not exist"), &todo),
        Some((_, false)) => {
            report.fault("price", format_args!("{called} of tier {name} is paid once"), "only recurring prices make subscriptions");
        }
        Some((false, true)) => {
            report.warn("price", format_args!("{called} of tier {name} is archived"), "who has it keeps it, and nobody else can buy it");
        }
        Some((true, true)) => {
            sellable += 1;
            report.ok("price", format_args!("{called} buys tier {name}"));
        }
    };
    for id in &tier.sold_as.prices {
        if let Some(found) = report.answered("price", client.price(id).await)? {
            price(report, id.clone(), found.map(|found| (found.active, found.recurring)));
        }
    }
    let keys: Vec<&str> = tier.sold_as.lookup_keys.iter().map(String::as_str).collect();
    if let Some(found) = report.answered("price", client.prices_by_lookup_keys(&keys).await)? {
        for key in keys {
            let named = found.iter().filter(|price| price.lookup_key.as_deref() == Some(key));
            let found = named.map(|price| (price.active, price.recurring)).max();
            price(report, format!("lookup key {key}"), found);
        }
    }
    for id in &tier.sold_as.products {
        let Some(found) = report.answered("product", client.product(id).await)? else { continue };
        match found.map(|product| product.active) {
            None => report.fault("product", format_args!("{id} of tier {name} does not exist"), &todo),
            Some(false) => report.warn("product", format_args!("{id} of tier {name} is archived"), "who has it keeps it"),
            Some(true) => {
                sellable += 1;
                report.ok("product", format_args!("{id} buys tier {name}"));
            }
        }
    }
    if sellable == 0 && !tier.sold_as.is_nothing() && name != &catalogue.default_tier().name {
        report.fault("tier", format_args!("{name} cannot be bought"), "it needs an active price that recurs");
    }
    Ok(())
}

async fn portal(report: &mut Report, client: &Client) -> Result<(), StripeError> {
    let Some(all) = report.answered("portal", client.portal_configurations().await)? else { return Ok(()) };
    let settings = if client.livemode() {
        "save its settings at https://dashboard.stripe.com/settings/billing/portal"
    } else {
        "save its settings at https://dashboard.stripe.com/test/settings/billing/portal"
    };
    match all.iter().find(|one| one.is_default && one.active) {
        None => report.fault("portal", "nobody has set up the customer portal, so it makes no session", settings),
        Some(one) if !one.updates_subscriptions => {
            report.fault("portal", "customers cannot change their plan in it, so subscribers cannot upgrade", settings);
        }
        Some(_) => report.ok("portal", "customers can change their plan in it"),
    }
    Ok(())
}

/// Whether the service may read what it asks about: a restricted key that lacks one of these takes every event, and no tier follows.
async fn reads(report: &mut Report, client: &Client, now: DateTime<Utc>) -> Result<(), StripeError> {
    let customers = client.customers_page(None).await.map(drop);
    let subscriptions = client.subscriptions_page(None, now).await.map(drop);
    let events = client.events_page(now, None).await.map(drop);
    let mut may = Vec::new();
    for (what, answer) in [("customers", customers), ("subscriptions", subscriptions), ("events", events)] {
        match answer {
            Err(error @ (StripeError::Refused { .. } | StripeError::NotFound)) => {
                report.fault("reads", format_args!("{what}: {error}"), "a restricted key needs the permission to read them");
            }
            answer => {
                answer?;
                may.push(what);
            }
        }
    }
    if !may.is_empty() {
        report.ok("reads", format_args!("the service may read {}", may.join(", ")));
    }
    Ok(())
}
