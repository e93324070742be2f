//! `spendgate stripe register`

use std::collections::BTreeSet;

use anyhow::Context;
use reqwest::Url;

use super::super::{Machine, Misconfigured, say};
use super::{client, endpoint_url, mode, posts_to};
use crate::stripe::client::{Client, EndpointChange, Idempotency, SigningSecret, WebhookEndpoint};
use crate::stripe::registration::{API_VERSION, EVENTS};

/// Needs a key that may write webhook endpoints. Run it again as often as you like: what is as it should be is left alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where Stripe shall post: this service's own URL with /webhooks/stripe; below `PUBLIC_URL` where it is not given.
    #[arg(long)]
    url: Option<String>,
    /// Make a new endpoint, with a new secret and API version, and delete the one that is there.
    #[arg(long)]
    replace: bool,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<()> {
    let (config, client) = client(machine)?;
    let url = endpoint_url(args.url.as_deref(), &config, client.livemode())?;
    let url = url.ok_or_else(|| Misconfigured("give --url https://<your host>/webhooks/stripe, or set PUBLIC_URL".to_owned()))?;
    // Each run is a change of its own; only its own tries are repeats.
    let salt = hex::encode((machine.random)()?);
    let once = Idempotency::Salt(&salt);
    let there = client.webhook_endpoints().await.context("the endpoints cannot be listed")?;
    let mut there: Vec<WebhookEndpoint> = there.into_iter().filter(|endpoint| posts_to(endpoint, &url)).collect();
    if args.replace || there.is_empty() {
        let (made, secret) = make(&client, &url, once).await?;
        // Before anything else can fail: nobody will hear of it again.
        show(&secret);
        for endpoint in &there {
            let gone = client.delete_webhook_endpoint(&endpoint.id).await;
            gone.with_context(|| format!("{} was made, but {} cannot be deleted: delete it in the dashboard", made.id, endpoint.id))?;
            say(format_args!("{} is deleted, and its secret signs nothing any more", endpoint.id));
        }
        if !there.is_empty() {
            say("Until the new secret is in place, events are refused, and Stripe sends them again.");
        }
        return Ok(());
    }
    // Where there are several, the one to keep is of our version, and works.
    there.sort_by_key(|endpoint| (endpoint.api_version.as_deref() != Some(API_VERSION), !endpoint.enabled));
    let kept = there.remove(0);
    correct(&client, &kept, once).await?;
    for other in there {
        say(format_args!("{} posts here too, so every event comes twice; delete it in the dashboard, or use --replace", other.id));
    }
    Ok(())
}

async fn make(client: &Client, url: &Url, once: Idempotency<'_>) -> anyhow::Result<(WebhookEndpoint, SigningSecret)> {
    let made = client.create_webhook_endpoint(url.as_str(), &EVENTS, API_VERSION, once).await;
    let (made, secret) = made.context("the endpoint cannot be made (one that was made without our hearing of it goes with --replace)")?;
    say(format_args!("{} is made in {}: {} events of API version {API_VERSION} go to {url}", made.id, mode(client), made.events.len()));
    Ok((made, secret))
}

fn show(secret: &SigningSecret) {
    say("Its secret is shown this once. Put it into the service's environment and start the service again:");
    say(format_args!("  STRIPE_WEBHOOK_SECRETS={}", secret.reveal()));
}

/// Brings an endpoint to what is to be registered, as far as Stripe lets it be changed.
async fn correct(client: &Client, endpoint: &WebhookEndpoint, once: Idempotency<'_>) -> anyhow::Result<()> {
    let id = &endpoint.id;
    let wanted = BTreeSet::from(EVENTS);
    let is: BTreeSet<&str> = endpoint.events.iter().map(String::as_str).collect();
    if endpoint.enabled && is == wanted {
        say(format_args!("{id} is registered in {} as it should be", mode(client)));
    } else {
        let change = EndpointChange { events: Some(&EVENTS), enabled: Some(true), ..EndpointChange::default() };
        client.update_webhook_endpoint(id, change, once).await.with_context(|| format!("{id} cannot be changed"))?;
        let list = |kinds: Vec<&&str>| kinds.into_iter().copied().collect::<Vec<_>>().join(", ");
        let (missing, more) = (list(wanted.difference(&is).collect()), list(is.difference(&wanted).collect()));
        if !endpoint.enabled {
            say(format_args!("{id} was disabled and is enabled again"));
        }
        if !missing.is_empty() {
            say(format_args!("{id} now gets, beside what it got: {missing}"));
        }
        if !more.is_empty() {
            say(format_args!("{id} no longer gets, since nobody here reads it: {more}"));
        }
    }
    if endpoint.api_version.as_deref() != Some(API_VERSION) {
        let version = endpoint.api_version.as_deref().unwrap_or("the account's default version");
        say(format_args!("Its events are of {version}, which works as well but is not {API_VERSION}. Stripe lets nobody change it:"));
        say("run this with --replace to make a new endpoint.");
    }
    say("Stripe shows its secret in the dashboard only (Developers > Webhooks > Signing secret); --replace makes one with a new secret.");
    Ok(())
}
