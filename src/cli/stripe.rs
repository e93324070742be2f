//! `spendgate stripe`: how the account at Stripe is set up for this service.

mod doctor;
mod register;

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Url;

use super::serve::stripe_client;
use super::{Machine, Misconfigured, read_config};
use crate::config::Config;
use crate::stripe::client::{Client, WebhookEndpoint};
use crate::stripe::registration::WEBHOOK_PATH;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let Stripe send its events here: make the webhook endpoint, or correct the one that is there.
    Register(register::Args),
    /// Check key, clock, endpoint, prices and portal, and say what to do where something is wrong (1 where something is).
    Doctor(doctor::Args),
}

pub async fn run(command: Command, machine: &Machine) -> anyhow::Result<ExitCode> {
    match command {
        Command::Register(args) => register::run(args, machine).await.map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(args, machine).await,
    }
}

/// The settings, and a client in the name of their key.
pub(super) fn client(machine: &Machine) -> anyhow::Result<(Config, Client)> {
    let config = read_config(machine)?;
    if config.stripe.api_key.is_none() {
        let why = "STRIPE_API_KEY is not set; Stripe makes keys at https://dashboard.stripe.com/apikeys (one of test mode to try it)";
        return Err(Misconfigured(why.to_owned()).into());
    }
    let client = stripe_client(&config, machine)?;
    Ok((config, client))
}

fn mode(client: &Client) -> &'static str {
    if client.livemode() { "live mode" } else { "test mode" }
}

/// Where events are to be taken: as given, else below `PUBLIC_URL` if that is a place for them; `None` where neither says so.
fn endpoint_url(given: Option<&str>, config: &Config, livemode: bool) -> anyhow::Result<Option<Url>> {
    if let Some(given) = given {
        return good_url(given, livemode).map(Some).map_err(|why| Misconfigured(format!("--url {why}")).into());
    }
    Ok(config.public_url.as_ref().and_then(|url| good_url(&format!("{url}{WEBHOOK_PATH}"), livemode).ok()))
}

/// A URL that Stripe can post to, or why it is none.
fn good_url(text: &str, livemode: bool) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is no URL; it is like https://spend.example.com/webhooks/stripe")?;
    let loopback = url.host_str().is_some_and(is_loopback);
    match url.scheme() {
        "https" | "http" if loopback && livemode => return Err("is of this machine, which Stripe cannot reach in live mode"),
        "https" => {}
        "http" if loopback => {}
        _ => return Err("must begin with https://; http:// is for this machine itself, and a test key"),
    }
    if !url.path().ends_with(WEBHOOK_PATH) {
        return Err("must end with /webhooks/stripe, where this service takes events");
    }
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    plain.then_some(url).ok_or("must have no query, fragment or user")
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether an endpoint posts to `url`, however it is written.
fn posts_to(endpoint: &WebhookEndpoint, url: &Url) -> bool {
    Url::parse(&endpoint.url).is_ok_and(|its| its == *url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_stripe_could_not_post_to_are_refused() {
        let check = |url: &str, livemode, good| assert_eq!(good_url(url, livemode).is_ok(), good, "{url} {livemode}");
        for livemode in [true, false] {
            check("https://spend.example.com/webhooks/stripe", livemode, true);
            check("https://example.com:8443/spend/webhooks/stripe", livemode, true);
            check("http://spend.example.com/webhooks/stripe", livemode, false);
            check("https://spend.example.com/webhooks/stripe/", livemode, false);
            check("https://spend.example.com/", livemode, false);
            check("https://u:p@spend.example.com/webhooks/stripe", livemode, false);
            check("https://spend.example.com/webhooks/stripe?x", livemode, false);
            check("ftp://localhost/webhooks/stripe", livemode, false);
            check("spend.example.com/webhooks/stripe", livemode, false);
            check("http://localhost:8080/webhooks/stripe", livemode, !livemode);
            check("http://[::1]:8080/webhooks/stripe", livemode, !livemode);
            check("https://127.0.0.1/webhooks/stripe", livemode, !livemode);
        }
    }

    #[test]
    fn a_url_is_the_same_however_it_is_written() {
        let endpoint =
            |url: &str| WebhookEndpoint { id: "we_1".to_owned(), url: url.to_owned(), enabled: true, events: vec![], api_version: None };
        let url = good_url("https://spend.example.com/webhooks/stripe", true).unwrap_or_else(|why| panic!("{why}"));
        assert!(posts_to(&endpoint("https://Spend.example.com:443/webhooks/stripe"), &url));
        assert!(!posts_to(&endpoint("https://spend.example.com/webhooks/stripe2"), &url));
        assert!(!posts_to(&endpoint(""), &url));
    }
}
