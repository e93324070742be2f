//! A request as it is watched: how long it takes, what it is answered, and its span where somebody collects spans. Nothing that a caller
//! invents is kept of it: ids stand in paths, so a span has the path's words only.

use axum::http::{HeaderMap, Request};
use axum::response::Response;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::error::ErrorCode;
use super::{enforcement, gate};
use crate::telemetry::{Class, Telemetry, traces};

/// What paths consist of beside ids.
const WORDS: [&str; 36] = [
    "v1",
    "users",
    "enforcement",
    "explain",
    "usage",
    "corrections",
    "holds",
    "capture",
    "release",
    "extend",
    "caps",
    "grants",
    "accounts",
    "tiers",
    "prices",
    "simulate",
    "events",
    "replay",
    "admin",
    "reload",
    "reconciliation",
    "webhooks",
    "stripe",
    "upgrade",
    "billing",
    "return",
    "gate",
    "healthz",
    "readyz",
    "metrics",
    "keys",
    "rotate",
    "alerts",
    "redeliver",
    "openapi.json",
    "docs",
];
/// Parts of a path that are shown; none of ours has more.
const PARTS_MAX: usize = 8;

/// Which kind of door a path leads to.
fn class(path: &str) -> Class {
    if enforcement::user_in(path).is_some() || path == "/v1/enforcement" || gate::is_at(path) {
        return Class::Check;
    }
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some("v1"), Some("usage" | "holds" | "corrections")) => Class::Ledger,
        (Some("webhooks"), Some(_)) => Class::Webhook,
        (Some("upgrade" | "billing"), _) => Class::Upgrade,
        (Some("healthz" | "readyz" | "metrics"), None) => Class::Probe,
        (Some(_) | None, _) => Class::Other,
    }
}

/// The path with `{}` for everything that may be an id.
fn route(path: &str) -> String {
    let known = |part: &str| WORDS.into_iter().find(|word| *word == part);
    let parts = path.split('/').skip(1).take(PARTS_MAX);
    parts.flat_map(|part| ["/", known(part).unwrap_or("{}")]).collect()
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Watched {
    pub span: Span,
    class: Class,
    begun: Instant,
}

impl Watched {
    pub fn begin<B>(request: &Request<B>) -> Self {
        let class = class(request.uri().path());
        Self { span: span(request, class), class, begun: Instant::now() }
    }

    pub fn end(self, telemetry: &Telemetry, response: &Response) {
        let status = response.status();
        telemetry.requests.saw(self.class, status.as_u16(), self.begun.elapsed());
        if status.is_server_error() {
            self.span.record("otel.status_code", "ERROR");
            // A probe that is told so asks again every few seconds.
            if self.class != Class::Probe && response.extensions().get() == Some(&ErrorCode::StoreUnavailable) {
                telemetry.failed_requests.add();
            }
        }
        self.span.record("http.response.status_code", status.as_u16());
    }
}

fn span<B>(request: &Request<B>, class: Class) -> Span {
    // Where nobody collects spans this is one look at a number, and nothing of it is worked out.
    let span = info_span!(
        "request",
        otel.kind = "server",
        otel.name = Empty,
        otel.status_code = Empty,
        http.request.method = Empty,
        http.route = Empty,
        http.response.status_code = Empty,
        spendgate.class = class.name(),
    );
    if !span.is_disabled() {
        // A parent is taken before anything else is said of the span.
        let headers: &HeaderMap = request.headers();
        traces::follow(&span, |name| headers.get(name)?.to_str().ok());
        let (method, route) = (method(request), route(request.uri().path()));
        span.record("otel.name", format!("{method} {route}"));
        span.record("http.request.method", method);
        span.record("http.route", route);
    }
    span
}

/// Callers may invent methods too.
fn method<B>(request: &Request<B>) -> &'static str {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    known.into_iter().find(|known| *known == request.method().as_str()).unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_the_words_of_a_path_and_no_ids() {
        let check = |path: &str, expected: &str, kind: Class| assert_eq!((route(path).as_str(), class(path)), (expected, kind), "{path}");
        check("/v1/users/ann@example.com/enforcement", "/v1/users/{}/enforcement", Class::Check);
        check("/v1/enforcement", "/v1/enforcement", Class::Check);
        check("/v1/holds/h-1/capture", "/v1/holds/{}/capture", Class::Ledger);
        check("/webhooks/stripe", "/webhooks/stripe", Class::Webhook);
        check("/upgrade/secret-token", "/upgrade/{}", Class::Upgrade);
        check("/v1/tiers", "/v1/tiers", Class::Other);
        check("/healthz", "/healthz", Class::Probe);
        check("/a/b/c/d/e/f/g/h/i/j", "/{}/{}/{}/{}/{}/{}/{}/{}", Class::Other);
    }
}
