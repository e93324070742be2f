//! HTTP to Stripe: how long, how often, how fast.

use std::error::Error;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use stripe_client_core::StripeMethod;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{Instrument, info_span};

use super::call::Call;
use super::error::told;
use super::pace::{Lane, Pace};
use super::{NoClient, StripeError};
use crate::stripe::key::ApiKey;
use crate::stripe::registration::API_VERSION;

/// A page of 100 subscriptions has some 500 KiB.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long and how often a call is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For all tries of all requests that a call of the client makes, with the pauses between them.
    pub deadline: Duration,
    /// For one try.
    pub answer: Duration,
    /// For one request.
    pub tries: u32,
    /// The pause after the first try is random and up to this; after each further one up to twice the one before.
    pub pause: Duration,
    pub pause_max: Duration,
    pub lane: Lane,
}

impl Patience {
    /// Nobody waits for the answer.
    pub const BACKGROUND: Self = Self {
        deadline: Duration::from_secs(20),
        answer: Duration::from_secs(12),
        tries: 4,
        pause: Duration::from_millis(500),
        pause_max: Duration::from_secs(4),
        lane: Lane::Background,
    };
    /// Somebody looks at a page that does not load. One try that hangs leaves time for another.
    pub const INTERACTIVE: Self = Self {
        deadline: Duration::from_secs(5),
        answer: Duration::from_secs(3),
        pause: Duration::from_millis(200),
        lane: Lane::Interactive,
        ..Self::BACKGROUND
    };

    /// How long to wait after so many tries: at random, so that those who failed together do not come back together, and never
    /// less than Stripe asks for.
    fn pause_after(&self, tried: u32, retry_after: Option<Duration>, rng: &mut fastrand::Rng) -> Duration {
        let doubled = 2_u32.saturating_pow(tried.saturating_sub(1));
        let most = self.pause.saturating_mul(doubled).min(self.pause_max);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.u64(0..=nanos)).max(retry_after.unwrap_or_default())
    }
}

pub(super) struct Transport {
    http: reqwest::Client,
    pub key: ApiKey,
    /// Without a slash at its end.
    pub base: String,
    pub pace: Pace,
    luck: Mutex<fastrand::Rng>,
    server_time: Mutex<Option<DateTime<Utc>>>,
}

/// What an answer says beside its body.
#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    retry_after: Option<Duration>,
    should_retry: Option<bool>,
}

/// What follows from one try.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done(Vec<u8>),
    Final(StripeError),
    Again { why: String, after: Option<Duration> },
}

impl Transport {
    pub fn new(key: ApiKey, base: &str, seed: u64) -> Result<Self, NoClient> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Somebody else in the process may have installed it before; that is all the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut headers = HeaderMap::new();
        headers.insert("authorization", key.header().ok_or(NoClient("the key cannot stand in a header".to_owned()))?);
        headers.insert("stripe-version", HeaderValue::from_static(API_VERSION));
        let http = reqwest::Client::builder()
            .user_agent(concat!("spendgate/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // Elsewhere is not Stripe, and must not see the key.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| NoClient(innermost(&error)))?;
        Ok(Self {
            http,
            pace: Pace::new(key.livemode()),
            key,
            base: base.trim_end_matches('/').to_owned(),
            luck: Mutex::new(fastrand::Rng::with_seed(seed)),
            server_time: Mutex::default(),
        })
    }

    /// The `Date` of the latest answer, whatever it was.
    pub fn server_time(&self) -> Option<DateTime<Utc>> {
        *self.server_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a good answer. Tries again what may go better, until there is no time or no try left.
    pub async fn send(&self, call: &Call, patience: Patience, until: Instant) -> Result<Vec<u8>, StripeError> {
        let name = if matches!(call.method, StripeMethod::Get) { "stripe read" } else { "stripe write" };
        // The path names whose data it is, so it is not told.
        let span = info_span!("stripe", otel.kind = "client", otel.name = name);
        self.try_until(call, patience, until).instrument(span).await
    }

    async fn try_until(&self, call: &Call, patience: Patience, until: Instant) -> Result<Vec<u8>, StripeError> {
        let mut tried = 0;
        loop {
            let Some(turn) = self.pace.take(patience.lane, Instant::now(), until) else {
                return Err(StripeError::Unreachable("too many requests wait for their turn".to_owned()));
            };
            sleep_until(turn).await;
            tried += 1;
            let limit = until.min(Instant::now() + patience.answer);
            let outcome = match timeout_at(limit, self.send_once(call, patience.lane)).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Again { why: "there was no answer in time".to_owned(), after: None },
            };
            let (why, after) = match outcome {
                Outcome::Done(body) => return Ok(body),
                Outcome::Final(error) => return Err(error),
                Outcome::Again { why, after } => (why, after),
            };
            let pause = patience.pause_after(tried, after, &mut self.luck.lock().unwrap_or_else(PoisonError::into_inner));
            let in_time = Instant::now().checked_add(pause).is_some_and(|next| next < until);
            if patience.tries <= tried || !in_time {
                return Err(StripeError::Unreachable(why));
            }
            tracing::debug!(tried, why, "try {tried} of a request to Stripe failed, and there will be another: {why}");
            sleep(pause).await;
        }
    }

    async fn send_once(&self, call: &Call, lane: Lane) -> Outcome {
        let url = format!("{}{}", self.base, call.path);
        let mut request = match call.method {
            StripeMethod::Get => self.http.get(url),
            StripeMethod::Post => self.http.post(url),
            StripeMethod::Delete => self.http.delete(url),
        };
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = &call.body {
            request = request.header("content-type", "application/x-www-form-urlencoded").body(body.clone());
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return broken(&error),
        };
        let head = Head::read(response.status().as_u16(), response.headers());
        if let Some(time) = date(response.headers()) {
            *self.server_time.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if chunk.len() <= BODY_BYTES_MAX - body.len() => body.extend_from_slice(&chunk),
                Ok(Some(_)) if head.is_good() => return Outcome::Final(StripeError::Unreadable("it is longer than 16 MiB")),
                // The status of an error says enough.
                Ok(Some(_) | None) => break,
                Err(error) => return broken(&error),
            }
        }
        if head.status == 429 {
            self.pace.slow_down(lane, Instant::now());
        }
        judge(&head, body, &self.key)
    }
}

impl Head {
    fn read(status: u16, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        Self {
            status,
            // The other form of the header, a date, is not used by Stripe.
            retry_after: text("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
            should_retry: text("stripe-should-retry").and_then(|word| word.parse().ok()),
        }
    }

    fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What an answer means. Stripe knows best whether another try makes sense; where it does not say, conflicts over a lock or an
/// idempotency key, too many requests and faults of the server may pass.
fn judge(head: &Head, body: Vec<u8>, key: &ApiKey) -> Outcome {
    if head.is_good() {
        return Outcome::Done(body);
    }
    let status = head.status;
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let field = |name: &str| error.get("error").and_then(|error| error.get(name)).and_then(Value::as_str);
    let code = field("code").map(|code| told(code, key));
    let message = field("message").map_or_else(|| unexplained(status), |message| told(message, key));
    let may_pass = matches!(status, 409 | 429 | 500..=599);
    if head.should_retry.unwrap_or(may_pass) {
        return Outcome::Again { why: format!("status {status}: {message}"), after: head.retry_after };
    }
    Outcome::Final(match code.as_deref() {
        _ if may_pass => StripeError::Unreachable(format!("status {status}: {message}")),
        // A 404 without the code may be a wrong base URL, and says nothing of the object.
        Some("resource_missing") if status == 404 => StripeError::NotFound,
        _ => StripeError::Refused { status, code, message },
    })
}

fn unexplained(status: u16) -> String {
    let words = match status {
        300..400 => "it leads elsewhere; is this the URL of Stripe's API?",
        500..600 => "not in Stripe's own words; something on the way may have failed",
        _ => "not in Stripe's own words; is this the URL of Stripe's API?",
    };
    words.to_owned()
}

fn broken(error: &reqwest::Error) -> Outcome {
    let what = if error.is_connect() { "no connection" } else { "the connection broke" };
    Outcome::Again { why: format!("{what}: {}", innermost(error)), after: None }
}

/// What failed at the bottom of it, without the URL.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn date(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    let text = headers.get("date")?.to_str().ok()?;
    DateTime::parse_from_rfc2822(text).ok().map(|time| time.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Outcome {
        let headers = headers.iter().map(|(name, value)| ((*name).parse(), HeaderValue::from_static(value)));
        let headers = headers.filter_map(|(name, value)| Some((name.ok()?, value))).collect();
        let key = ApiKey::parse("sk_test_abc").unwrap_or_else(|error| panic!("{error}"));
        judge(&Head::read(status, &headers), body.as_bytes().to_vec(), &key)
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        for status in [409, 429, 500, 502, 503, 504, 599] {
            assert!(matches!(outcome(status, &[], "<html>"), Outcome::Again { after: None, .. }), "{status}");
        }
        for status in [301, 302, 400, 401, 402, 403, 404] {
            assert!(matches!(outcome(status, &[], "{}"), Outcome::Final(StripeError::Refused { .. })), "{status}");
        }
        assert_eq!(outcome(200, &[], "x"), Outcome::Done(b"x".to_vec()));
    }

    #[test]
    fn stripe_has_the_last_word_on_another_try() {
        assert!(matches!(outcome(400, &[("stripe-should-retry", "true")], "{}"), Outcome::Again { .. }));
        assert!(matches!(outcome(500, &[("stripe-should-retry", "false")], "{}"), Outcome::Final(StripeError::Unreachable(_))));
        let Outcome::Again { after, .. } = outcome(429, &[("retry-after", " 7 ")], "{}") else { panic!("again") };
        assert_eq!(after, Some(Duration::from_secs(7)));
        let Outcome::Again { after, .. } = outcome(429, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], "{}") else { panic!("again") };
        assert_eq!(after, None);
    }

    #[test]
    fn only_stripe_itself_says_that_an_object_is_missing() {
        let missing = r#"{"error":{"code":"resource_missing","message":"No such customer: 'cus_1'"}}"#;
        assert_eq!(outcome(404, &[], missing), Outcome::Final(StripeError::NotFound));
        let Outcome::Final(error) = outcome(400, &[], missing) else { panic!("final") };
        assert!(error.is_missing() && error.to_string() == "Stripe refuses (status 400, resource_missing): No such customer: 'cus_1'");
        assert!(matches!(outcome(404, &[], "<html>not here"), Outcome::Final(StripeError::Refused { status: 404, code: None, .. })));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_shorter_than_stripe_asks() {
        let patience = Patience { pause: Duration::from_secs(1), pause_max: Duration::from_secs(5), ..Patience::BACKGROUND };
        let mut rng = fastrand::Rng::with_seed(1);
        for (tried, most) in [(1, 1), (2, 2), (3, 4), (4, 5), (u32::MAX, 5)] {
            let pauses: Vec<Duration> = (0..200).map(|_| patience.pause_after(tried, None, &mut rng)).collect();
            let (longest, shortest) = (pauses.iter().max(), pauses.iter().min());
            assert!(longest.is_some_and(|longest| *longest <= Duration::from_secs(most)), "{tried}");
            assert!(longest.is_some_and(|longest| Duration::from_secs(most) * 9 / 10 < *longest), "{tried}");
            assert!(shortest.is_some_and(|shortest| *shortest < Duration::from_secs(most) / 10), "{tried}");
        }
        let asked = Duration::from_secs(60);
        assert_eq!(patience.pause_after(1, Some(asked), &mut rng), asked);
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let headers = HeaderMap::from_iter([(reqwest::header::DATE, HeaderValue::from_static("Mon, 12 Jan 2026 12:00:00 GMT"))]);
        assert_eq!(date(&headers).map(|time| time.timestamp()), Some(1_768_219_200));
    }
}
