//! The HTTP door: who asks, what goes wrong on the way, and what was answered before under the same idempotency key.

use std::future::pending;
use std::io;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};

use super::answer::{Answer, ApiError};
use super::api;
use super::form::Form;
use super::knobs::{Call, Fault};
use super::world::{Used, World};
use super::{FakeStripe, Generation, control, pages};

/// A longer body is cut off, as by Stripe.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long Stripe keeps what was answered under an idempotency key.
const KEYS_KEPT: TimeDelta = TimeDelta::hours(24);
/// From so many keys on, those that have expired are looked for.
const KEYS_MAX: usize = 10_000;
/// What stands between us and Stripe answers in its own way.
const GATEWAY_PAGE: &str = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n\
<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n";

pub fn router(fake: FakeStripe) -> Router {
    Router::new().fallback(receive).with_state(fake)
}

/// What was sent, as far as it is looked at.
pub struct Sent {
    pub method: String,
    pub path: String,
    pub query: String,
    pub body: String,
    /// The API key, by Bearer or as the user of Basic.
    key: Option<String>,
    idempotency_key: Option<String>,
    stripe_version: Option<String>,
    host: Option<String>,
}

impl Sent {
    fn read(parts: &Parts, body: &Bytes) -> Self {
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            method: parts.method.as_str().to_owned(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: String::from_utf8_lossy(body).into_owned(),
            key: header("authorization").and_then(|text| api_key(&text)),
            idempotency_key: header("idempotency-key"),
            stripe_version: header("stripe-version"),
            host: header("host"),
        }
    }

    /// `METHOD /path`
    fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The segments of the path, without `/v1`.
    pub fn segments(&self) -> Vec<&str> {
        self.path.split('/').filter(|segment| !segment.is_empty()).skip(1).collect()
    }

    /// Query and body together.
    pub fn form(&self) -> Result<Form, ApiError> {
        Ok(Form::parse(&self.query)?.and(Form::parse(&self.body)?))
    }
}

fn api_key(authorization: &str) -> Option<String> {
    let (scheme, rest) = authorization.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    Some(pair.split(':').next().unwrap_or_default().to_owned())
}

async fn receive(State(fake): State<FakeStripe>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // A body that breaks off or is too long is answered by whatever its part says.
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let sent = Sent::read(&parts, &body);
    fake.lock().meet(sent.host.as_deref());
    match sent.path.split('/').nth(1) {
        Some("v1") => api_door(&fake, &sent).await,
        Some("checkout" | "portal" | "invoice") => pages::answer(&fake, &sent),
        Some("_fake") => control::answer(&fake, &sent),
        _ => json(&ApiError::no_such_path(&sent.method, &sent.path).answer()),
    }
}

async fn api_door(fake: &FakeStripe, sent: &Sent) -> Response {
    let (fault, latency) = fake.lock().admit(sent);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let mut response = match fault {
        Fault::Pass | Fault::AnswerLost | Fault::AnswerLostInGateway | Fault::AnswerHangs => answered(fake, sent),
        Fault::TooManyRequests { retry_after } => {
            let mut response = json(&ApiError::too_many().answer());
            if let Some(seconds) = retry_after {
                set(&mut response, "retry-after", &seconds.to_string());
            }
            response
        }
        Fault::ServerError => json(&ApiError::of_the_server().answer()),
        Fault::ServerErrorKept => {
            let answer = ApiError::of_the_server().answer();
            fake.lock().keep(sent, &answer);
            json(&answer)
        }
        Fault::BadGateway => gateway(),
        Fault::KeyInUse => json(&ApiError::key_in_use().answer()),
        Fault::Forbidden => json(&ApiError::forbidden().answer()),
        Fault::Hang => pending().await,
    };
    match fault {
        Fault::AnswerLost => return lost(),
        Fault::AnswerLostInGateway => return gateway(),
        Fault::AnswerHangs => return pending().await,
        Fault::Pass
        | Fault::TooManyRequests { .. }
        | Fault::ServerError
        | Fault::ServerErrorKept
        | Fault::BadGateway
        | Fault::KeyInUse
        | Fault::Forbidden
        | Fault::Hang => {}
    }
    let now = fake.lock().now();
    set(&mut response, "date", &now.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    response
}

fn answered(fake: &FakeStripe, sent: &Sent) -> Response {
    let write = sent.method != "GET";
    let (answer, request, version) = {
        let mut world = fake.lock();
        if write {
            world.remember();
        }
        let request = world.id("req_", 14);
        let answer = world.answer(sent, &request);
        let version = sent.stripe_version.clone().unwrap_or_else(|| world.options.generation.version().to_owned());
        (answer, request, version)
    };
    if write {
        fake.news.notify_one();
    }
    let mut response = json(&answer);
    set(&mut response, "request-id", &request);
    set(&mut response, "stripe-version", &version);
    if let Some(key) = &sent.idempotency_key {
        set(&mut response, "idempotency-key", key);
    }
    if answer.replayed {
        set(&mut response, "idempotent-replayed", "true");
    }
    response
}

impl World {
    /// Remembers where the caller found us. What could not stand in a URL is not believed.
    fn meet(&mut self, host: Option<&str>) {
        let plain = |host: &&str| !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]_".contains(c));
        if let Some(host) = host.filter(plain) {
            host.clone_into(&mut self.host);
        }
    }

    /// Counts a call, and says what becomes of it.
    fn admit(&mut self, sent: &Sent) -> (Fault, std::time::Duration) {
        let at = self.true_now();
        let in_a_second = self.calls.arrive(at);
        let too_fast = self.knobs.calls_per_second_max.is_some_and(|most| most < in_a_second);
        let fault = if too_fast { Fault::TooManyRequests { retry_after: None } } else { self.knobs.judge(&sent.line(), &mut self.luck) };
        self.calls.remember(Call {
            at,
            method: sent.method.clone(),
            path: sent.path.clone(),
            query: sent.query.clone(),
            body: sent.body.clone(),
            idempotency_key: sent.idempotency_key.clone(),
            stripe_version: sent.stripe_version.clone(),
            fault,
        });
        (fault, self.knobs.latency)
    }

    /// The answer to a call that reaches Stripe.
    fn answer(&mut self, sent: &Sent, request: &str) -> Answer {
        match &sent.key {
            Some(key) if self.options.keys.contains(key) => {}
            key => return ApiError::wrong_key(key.as_deref()).answer(),
        }
        if let Some(answer) = self.answer_of_before(sent) {
            return answer;
        }
        self.request = Some((request.to_owned(), sent.idempotency_key.clone()));
        let answered = self.answer_anew(sent);
        self.request = None;
        match answered {
            Ok(answer) => {
                self.keep(sent, &answer);
                answer
            }
            Err(error) => {
                // What fails by its parameters was never begun; a declined card was.
                if error.status == 402 {
                    self.keep(sent, &error.answer());
                }
                error.answer()
            }
        }
    }

    fn answer_anew(&mut self, sent: &Sent) -> Result<Answer, ApiError> {
        let form = sent.form()?;
        let generation = match &sent.stripe_version {
            Some(version) if !is_version(version) => {
                return Err(ApiError::invalid("", format!("Invalid Stripe API version: {version}")));
            }
            Some(version) => Generation::of(version),
            None => self.options.generation,
        };
        let segments = sent.segments();
        let call = api::Asked { method: &sent.method, path: &sent.path, segments: &segments, form: &form, generation };
        api::answer(self, &call).map(|value| Answer::ok(&value))
    }

    /// What was answered to the same request under the same key, or that the key was used for another one.
    fn answer_of_before(&self, sent: &Sent) -> Option<Answer> {
        let key = sent.idempotency_key.as_ref().filter(|_| sent.method == "POST")?;
        let now = self.true_now();
        let used = self.used.get(key).filter(|used| is_kept(used.at, now))?;
        if used.request != fingerprint(sent) {
            return Some(ApiError::key_used_otherwise(key).answer());
        }
        Some(Answer { replayed: true, ..used.answer.clone() })
    }

    fn keep(&mut self, sent: &Sent, answer: &Answer) {
        let Some(key) = sent.idempotency_key.clone().filter(|_| sent.method == "POST") else { return };
        let at = self.true_now();
        if KEYS_MAX <= self.used.len() {
            self.used.retain(|_, used| is_kept(used.at, at));
        }
        self.used.insert(key, Used { request: fingerprint(sent), answer: answer.clone(), at });
    }
}

fn is_kept(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now < at + KEYS_KEPT
}

fn fingerprint(sent: &Sent) -> String {
    format!("{}?{}\n{}", sent.line(), sent.query, sent.body)
}

/// `2024-12-18`, perhaps with a name behind it.
fn is_version(text: &str) -> bool {
    let date = text.split('.').next().unwrap_or_default();
    date.len() == 10 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// Sets a header; a value that no header may have is left out.
pub fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A response of this status; one that does not exist is 500.
pub fn response(status: u16, kind: &str, body: String) -> Response {
    let built = Response::builder().status(status).header("content-type", kind).body(Body::from(body));
    built.unwrap_or_else(|_| Response::new(Body::empty()))
}

pub fn json(answer: &Answer) -> Response {
    response(answer.status, "application/json", answer.body.clone())
}

fn gateway() -> Response {
    response(502, "text/html", GATEWAY_PAGE.to_owned())
}

/// A body that breaks before its first byte: the server can only close the connection.
fn lost() -> Response {
    let broken = futures_util::stream::once(async { Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset)) });
    Response::new(Body::from_stream(broken))
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
