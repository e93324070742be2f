//! One try: an alert to an endpoint, over connections that lead only where they may.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderMap;
use reqwest::{Client, Response};

use super::endpoint::{Endpoint, Format};
use super::network::{self, Network, is_public};
use super::{signing, slack};
use crate::store::outbox::Told;

/// So much of an answer is read, so that its connection can be used again; what it says is of no interest.
const REPLY_BYTES_MAX: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Somebody who asks for more is asked again sooner.
const RETRY_AFTER_MAX: TimeDelta = TimeDelta::hours(6);

/// The clients could not be made. Where they could, no try fails for this reason.
#[derive(Debug, thiserror::Error)]
#[error("the client for alerts cannot be made: {0}")]
pub struct NoClient(String);

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Taken,
    /// The endpoint wants nothing of this any more.
    Gone,
    /// Why, and when the endpoint wants to be asked again, if it said so.
    Failed {
        why: String,
        after: Option<TimeDelta>,
    },
}

#[derive(Debug)]
pub(super) struct Post {
    allowed: Vec<Network>,
    /// `None` where nobody is told over TLS: whom this machine trusts need not be known then.
    https: Option<Client>,
    /// For endpoints within the allowed networks, and for no others.
    http: Client,
}

/// Resolves names, and gives away only the addresses that may be connected to. There is no second look-up between this and the
/// connection, so a name that changes its mind meanwhile gains nothing.
#[derive(Debug)]
struct Guarded {
    allowed: Vec<Network>,
    /// Whether the Internet's addresses are among them.
    public: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("{name} has no address that alerts may go to; ALERT_ALLOWED_NETWORKS names those within your network")]
struct NowhereToGo {
    name: String,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (name, allowed, public) = (name.as_str().to_owned(), self.allowed.clone(), self.public);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let may = |address: &SocketAddr| {
                let ip = address.ip();
                (public && is_public(ip)) || allowed.iter().any(|network| network.contains(ip))
            };
            let addresses: Vec<SocketAddr> = found.filter(may).collect();
            if addresses.is_empty() {
                return Err(NowhereToGo { name }.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

impl Post {
    /// `deadline` is for a whole try, from the look-up to the end of the answer.
    pub fn new(allowed: Vec<Network>, deadline: Duration, speaks_tls: bool) -> Result<Self, NoClient> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Somebody else in the process may have installed it before; that is all the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let client = |public: bool| {
            // Where there is no TLS, whom this machine trusts need not be read.
            let client = if public { Client::builder() } else { Client::builder().tls_certs_only([]) };
            client
                .user_agent(concat!("spendgate/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Arc::new(Guarded { allowed: allowed.clone(), public }))
                // A proxy would connect where it likes, and elsewhere is not where the operator said.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .https_only(public)
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(deadline)
                .build()
                .map_err(|error| NoClient(innermost(&error)))
        };
        let https = if speaks_tls { Some(client(true)?) } else { None };
        Ok(Self { https, http: client(false)?, allowed })
    }

    /// Neither the URL nor what the answer says is in what comes back.
    pub async fn send(&self, endpoint: &Endpoint, alert: &Told, now: DateTime<Utc>) -> Reply {
        // The resolver is not asked for what is an address already.
        let address = endpoint.url.host_str().and_then(network::literal);
        let is_allowed = |address| self.allowed.iter().any(|network| network.contains(address));
        let is_http = endpoint.url.scheme() == "http";
        if address.is_some_and(|address| !is_allowed(address) && (is_http || !is_public(address))) {
            return failed("its address is none that alerts may go to".to_owned());
        }
        let client = if is_http { Some(&self.http) } else { self.https.as_ref() };
        let Some(client) = client else { return failed("no endpoint had https at the start".to_owned()) };
        let mut request = client.post(endpoint.url.clone()).header("content-type", "application/json");
        request = match &endpoint.format {
            Format::Slack => request.body(slack::body(alert)),
            Format::Standard(secrets) => {
                let body = signing::body(alert);
                for (name, value) in signing::headers(secrets, &alert.alert_id, &body, now) {
                    request = request.header(name, value);
                }
                request.body(body)
            }
        };
        match request.send().await {
            Ok(response) => {
                let reply = judge(response.status().as_u16(), response.headers(), now);
                drain(response).await;
                reply
            }
            Err(error) if error.is_timeout() => failed("there was no answer in time".to_owned()),
            Err(error) => {
                let what = if error.is_connect() { "no connection" } else { "the connection broke" };
                failed(format!("{what}: {}", innermost(&error)))
            }
        }
    }
}

fn failed(why: String) -> Reply {
    Reply::Failed { why, after: None }
}

/// The status says it all.
fn judge(status: u16, headers: &HeaderMap, now: DateTime<Utc>) -> Reply {
    match status {
        200..300 => Reply::Taken,
        410 => Reply::Gone,
        300..400 => failed(format!("status {status}: it leads elsewhere, and that is not followed")),
        _ => {
            let asked = headers.get("retry-after").and_then(|value| value.to_str().ok());
            let after = asked.filter(|_| matches!(status, 429 | 503)).and_then(|asked| pause(asked.trim(), now));
            Reply::Failed { why: format!("status {status}"), after }
        }
    }
}

/// Seconds, or a date.
fn pause(asked: &str, now: DateTime<Utc>) -> Option<TimeDelta> {
    let seconds = || asked.parse().ok().and_then(TimeDelta::try_seconds);
    let until = || DateTime::parse_from_rfc2822(asked).ok().map(|at| at.to_utc() - now);
    let all_digits = !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a number takes are a long time.
    let pause = if all_digits { seconds().or(Some(RETRY_AFTER_MAX)) } else { until() };
    pause.map(|pause| pause.clamp(TimeDelta::zero(), RETRY_AFTER_MAX))
}

async fn drain(mut response: Response) {
    let mut read = 0_usize;
    while let Ok(Some(chunk)) = response.chunk().await {
        read = read.saturating_add(chunk.len());
        if REPLY_BYTES_MAX < read {
            return;
        }
    }
}

/// What failed at the bottom of it, without the URL.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn only_a_status_of_success_is_a_success_and_who_asks_for_a_pause_gets_one() {
        let now: DateTime<Utc> = "2026-01-12T12:00:00Z".parse().unwrap();
        let judged = |status: u16, asked: Option<&'static str>| {
            let headers = asked.map(|asked| (reqwest::header::RETRY_AFTER, HeaderValue::from_static(asked)));
            judge(status, &headers.into_iter().collect(), now)
        };
        for status in [200, 201, 204, 299] {
            assert_eq!(judged(status, Some("7")), Reply::Taken);
        }
        assert_eq!(judged(410, None), Reply::Gone);
        let after = |status, asked| {
            let Reply::Failed { after, .. } = judged(status, asked) else { panic!("{status} is a failure") };
            after
        };
        for status in [301, 302, 307, 400, 401, 404, 500, 502] {
            assert_eq!(after(status, Some("7")), None, "{status}");
        }
        for status in [429, 503] {
            assert_eq!(after(status, None), None);
            assert_eq!(after(status, Some(" 7 ")), Some(TimeDelta::seconds(7)));
            assert_eq!(after(status, Some("Mon, 12 Jan 2026 12:01:00 GMT")), Some(TimeDelta::minutes(1)));
            assert_eq!(after(status, Some("Mon, 12 Jan 2026 11:00:00 GMT")), Some(TimeDelta::zero()));
            assert_eq!(after(status, Some("soon")), None);
            for long in ["864000", "99999999999999999999999"] {
                assert_eq!(after(status, Some(long)), Some(RETRY_AFTER_MAX));
            }
        }
    }
}
