//! `spendgate fake-stripe`

use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;

use super::replay::client;
use super::serve::Signals;
use super::{Machine, Misconfigured, read_catalogue, read_config, say};
use crate::config::Config;
use crate::domain::catalogue::{Catalogue, Tier};
use crate::domain::money::NANOS_PER_DOLLAR;
use crate::fake_stripe::objects::Recurring;
use crate::fake_stripe::{FakeStripe, Generation, Options, PriceSpec};
use crate::http::serve::{Limits, Listener, serve};

/// A Stripe to try things out with: no account, no money, all in memory. It has every price and lookup key of the tiers; pay at
/// the pages that its checkout and portal sessions lead to. `/_fake` turns its knobs and needs no key, so keep it on loopback.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value = "127.0.0.1:12111")]
    listen: SocketAddr,
    /// The tiers to sell; those that `serve` would use where it is not given.
    #[arg(long)]
    tiers: Option<PathBuf>,
    /// The API key that it takes.
    #[arg(long, default_value = "sk_test_fake")]
    key: String,
    /// The most objects on a page, whatever is asked for.
    #[arg(long, default_value_t = 100)]
    page_max: usize,
    /// How objects look to who names no version.
    #[arg(long, value_enum, default_value_t = Shape::Basil)]
    generation: Shape,
    /// Send every event here, as `stripe listen --forward-to` does; endpoints that are registered get theirs in any case.
    #[arg(long)]
    forward_to: Option<String>,
    /// The secret that signs what is forwarded.
    #[arg(long, default_value = "whsec_fake")]
    secret: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// The period on the subscription: before 2025-03-31.
    Acacia,
    /// The period on its items.
    Basil,
}

pub async fn run(args: Args, machine: Machine) -> anyhow::Result<()> {
    let config = read_config(&machine)?;
    let config = Config { tiers_file: args.tiers.or(config.tiers_file), ..config };
    let (catalogue, sources) = read_catalogue(&config)?;
    let generation = match args.generation {
        Shape::Acacia => Generation::Acacia,
        Shape::Basil => Generation::Basil,
    };
    let options = Options { keys: vec![args.key.clone()], generation, page_max: args.page_max, ..Options::default() };
    let seed = u64::from_le_bytes((machine.random)()?[..8].try_into()?);
    let fake = FakeStripe::new(options, machine.clock.clone(), seed);
    stock(&fake, &catalogue);
    if let Some(url) = &args.forward_to {
        fake.listen(url, &args.secret);
    }
    let signals = Signals::listen()?;
    let limits = Limits::default();
    let (listener, address) = Listener::tcp(args.listen, limits.send_buffer)
        .map_err(|error| Misconfigured(format!("--listen: {} cannot be listened on: {error}", args.listen)))?;
    let url = format!("http://{address}");
    let deliverer = tokio::spawn(fake.clone().deliver_forever(client()?));
    let key = &args.key;
    say(format_args!("The fake Stripe listens on {url}, with the prices of {}. Everything is forgotten when it ends.", sources.tiers));
    say("Point the service to it, in another shell:");
    say(format_args!("  export STRIPE_API_BASE={url} STRIPE_API_KEY={key}"));
    match &args.forward_to {
        Some(to) => say(format_args!("  export STRIPE_WEBHOOK_SECRETS={}    # every event is posted to {to}", args.secret)),
        None => say("  (register an endpoint at /v1/webhook_endpoints, or start this with --forward-to, and events will come)"),
    }
    say("Make a customer, and see what there is:");
    say(format_args!("  curl -u {key}: {url}/v1/customers -d 'metadata[user_id]=u_42'"));
    if let Some(price) = first_price(&catalogue) {
        say(format_args!("  curl {url}/_fake/customers/cus_…/subscriptions -d price={price}"));
    }
    say(format_args!("  curl {url}/_fake"));
    say(format_args!("Make the next three calls fail: curl {url}/_fake/knobs -d next=429 -d times=3"));
    let router = TowerToHyperService::new(fake.router());
    let answer = move |request| router.call(request);
    let served = serve(listener, None, limits, Arc::default(), answer, signals.told()).await;
    deliverer.abort();
    Ok(served?)
}

/// Makes every price, lookup key and product that buys a tier.
fn stock(fake: &FakeStripe, catalogue: &Catalogue) {
    let mut made = BTreeSet::new();
    for tier in catalogue.tiers() {
        let named: Vec<&str> = tier.sold_as.products.iter().map(String::as_str).collect();
        let own = format!("prod_{}", tier.name);
        let products = if named.is_empty() { vec![own.as_str()] } else { named };
        for product in &products {
            fake.create_product(product, &[]);
        }
        let Some(product) = products.first() else { continue };
        for price in &tier.sold_as.prices {
            made.insert(price.clone());
            fake.create_price(price, product, PriceSpec::monthly(cents(tier)));
        }
        for lookup_key in &tier.sold_as.lookup_keys {
            let yearly = ["year", "annual"].iter().any(|word| lookup_key.contains(word));
            let months = if yearly { 12 } else { 1 };
            let spec = PriceSpec {
                lookup_key: Some(lookup_key),
                recurring: Some(Recurring::every(if yearly { "year" } else { "month" })),
                ..PriceSpec::monthly(cents(tier).saturating_mul(months))
            };
            // A price id is an arbitrary text, and may be taken by a price of the file.
            let id = format!("price_{lookup_key}");
            let id = if made.contains(&id) { format!("{id}_by_lookup_key") } else { id };
            fake.create_price(&id, product, spec);
        }
        // A product that is named needs a price to be bought by.
        for product in &tier.sold_as.products {
            fake.create_price(&format!("price_of_{product}"), product, PriceSpec::monthly(cents(tier)));
        }
    }
}

fn cents(tier: &Tier) -> i64 {
    tier.monthly_price.nanos() / (NANOS_PER_DOLLAR / 100)
}

fn first_price(catalogue: &Catalogue) -> Option<String> {
    let mut tiers = catalogue.tiers().iter().filter(|tier| tier.name != catalogue.default_tier().name);
    tiers.find_map(|tier| tier.sold_as.prices.first().cloned())
}
