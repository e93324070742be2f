//! A check for gateways, which read a status and headers: nginx's `auth_request`, Traefik's `ForwardAuth`, Caddy's `forward_auth`, Envoy's
//! HTTP `ext_authz`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::App;
use super::auth::{Bearer, Scope, require, require_at_once};
use super::body::Name;
use super::enforcement::{Begun, by_memory, decide, json, with_retry};
use super::error::{ErrorCode, Problem};
use super::holds::json_text;
use super::openapi::shapes::Amount;
use super::view::DecisionView;
use crate::domain::decide::{Action, Reason};
use crate::domain::judge::Ask;
use crate::domain::money::Money;
use crate::domain::user::UserId;

/// Our key, where `Authorization` is somebody else's.
const KEY: HeaderName = HeaderName::from_static("x-spendgate-key");
const ACTION: HeaderName = HeaderName::from_static("x-spendgate-action");
const REASON: HeaderName = HeaderName::from_static("x-spendgate-reason");
const MODEL: HeaderName = HeaderName::from_static("x-spendgate-model");
const UPGRADE_URL: HeaderName = HeaderName::from_static("x-spendgate-upgrade-url");
const REMAINING: HeaderName = HeaderName::from_static("x-spendgate-remaining");

/// What a text is encoded by that is to be visible ASCII, and can be read back.
const TEXT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'\\');
/// A URL's own encoding stays. Without quotes a gateway may put it into JSON or HTML as it is.
const URL: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'\'').add(b'\\').add(b'<').add(b'>');

/// How gateways are spoken to.
#[derive(Clone, Debug)]
pub struct Gate {
    pub user: HeaderName,
    pub model: HeaderName,
    pub cost: HeaderName,
    block: StatusCode,
}

impl Gate {
    /// `None` where `block` is no status of HTTP.
    pub fn new(user: HeaderName, model: HeaderName, cost: HeaderName, block: u16) -> Option<Self> {
        Some(Self { user, model, cost, block: StatusCode::from_u16(block).ok()? })
    }

    /// Who wants to call, and what.
    fn asked(&self, headers: &HeaderMap) -> Result<(UserId, Ask), Problem> {
        let user = text(headers, &self.user)?;
        let user = user.ok_or_else(|| {
            Problem::field(ErrorCode::HeaderMissing, self.user.as_str(), "is missing; the gateway sets it to the user that it knows")
        })?;
        let user = UserId::parse(user).map_err(|error| invalid(&self.user, error))?;
        let model = text(headers, &self.model)?.map(|model| Name::try_from(model.to_owned())).transpose();
        let model = model.map_err(|error| invalid(&self.model, error))?;
        let cost = text(headers, &self.cost)?.map(Money::parse).transpose().map_err(|error| invalid(&self.cost, error))?;
        Ok((user, Ask { model: model.map(|model| model.0), cost, ..Ask::default() }))
    }
}

fn invalid(name: &HeaderName, why: impl std::fmt::Display) -> Problem {
    Problem::field(ErrorCode::HeaderInvalid, name.as_str(), why)
}

/// A header's one value; an empty one is none. Of two, one may be the client's, and nobody can say which.
fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(name, "is sent twice; the gateway overwrites what its client sent"));
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| invalid(name, "is not UTF-8"))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

const PATH: &str = "/v1/gate";

/// Whether a path is the gate's, or below it: some gateways append the original one.
pub fn is_at(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `GET /v1/gate`: may this user make the call that is on its way? Whatever method the call has, and whatever path follows, as gateways send
/// them; the body is not read. The headers that say who calls, and what, are the operator's choice.
#[utoipa::path(
    get, path = "/v1/gate", tag = "checks", operation_id = "ask_for_gateway",
    responses(
        (status = 200, description = "ALLOW, WARN or DEGRADE: the call may go on", headers(("X-Spendgate-Action" = String, description = "the action"))),
        (status = 402, description = "BLOCK; another status where GATE_BLOCK_STATUS says so", body = DecisionView, content_type = "application/json"),
        (status = 403, description = "BLOCK, where GATE_BLOCK_STATUS is 403", body = DecisionView, content_type = "application/json"),
        (status = 429, description = "BLOCK, where GATE_BLOCK_STATUS is 429", body = DecisionView, content_type = "application/json"),
        (status = 503, description = "BLOCK, since the store is away", body = DecisionView, content_type = "application/json"),
    ),
    params(
        ("X-User-Id" = UserId, Header, description = "who calls; GATE_USER_HEADER names it otherwise"),
        ("X-Model" = Option<Name>, Header, description = "GATE_MODEL_HEADER names it otherwise"),
        ("X-Estimated-Cost" = Option<Amount>, Header, description = "GATE_COST_HEADER names it otherwise"),
    ),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::HeaderMissing, ErrorCode::HeaderInvalid]))),
)]
pub async fn ask(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Problem> {
    require(&app, &key(&headers), Scope::Check).await?;
    let (user, ask) = app.gate.asked(&headers)?;
    Ok(decide(&app, &user, &ask, show).await)
}

/// [`ask`], as far as memory goes.
pub fn begin(app: &App, headers: &HeaderMap) -> Begun {
    let begun = || {
        let now = app.now();
        if require_at_once(app, &key(headers), Scope::Check, now)?.is_none() {
            return Ok(Begun::Unknown);
        }
        let (user, ask) = app.gate.asked(headers)?;
        Ok(by_memory(app, user, ask, now, show))
    };
    begun().unwrap_or_else(|problem: Problem| problem.into())
}

fn key(headers: &HeaderMap) -> Bearer {
    headers.get(KEY).map_or_else(|| Bearer::of(headers), Bearer::of_key)
}

pub fn show(app: &App, decision: &DecisionView<'_>, store_answers: bool) -> Response {
    let mut response = match (decision.action, decision.reason) {
        (Action::Allow | Action::Warn | Action::Degrade, _) => StatusCode::OK.into_response(),
        (Action::Block, Reason::StoreUnavailable) => (StatusCode::SERVICE_UNAVAILABLE, json_text(json(decision))).into_response(),
        (Action::Block, _) => (app.gate.block, json_text(json(decision))).into_response(),
    };
    let remaining = decision.budgets.iter().map(|budget| budget.remaining).min();
    // Empty where none was named: for a header that is missing Caddy 2.6 hands on the placeholder's own name.
    let model = Some(decision.model.as_deref().unwrap_or_default()).filter(|_| decision.action != Action::Block);
    // Rounded up: who comes back a moment too early is blocked again.
    let seconds = decision.retry_at.map(|at| ((at.0 - app.now()).num_milliseconds().max(0) + 999) / 1000);
    let said = [
        (ACTION, Some(decision.action.name().to_owned())),
        (REASON, Some(json(&decision.reason).trim_matches('"').to_owned())),
        (MODEL, model.map(|model| utf8_percent_encode(model, TEXT).to_string())),
        (UPGRADE_URL, decision.upgrade_url.as_deref().map(|url| utf8_percent_encode(url, URL).to_string())),
        (REMAINING, remaining.map(Money::decimal)),
        (header::RETRY_AFTER, seconds.map(|seconds| seconds.to_string())),
        (header::CACHE_CONTROL, Some("no-store".to_owned())),
    ];
    for (name, value) in said {
        // All of it is visible ASCII.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    with_retry(response, store_answers)
}
