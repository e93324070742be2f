//! The two-phase way to spend: reserve the estimate, settle the actual.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Scope, require};
use super::body::{self, Name, NoParams, Params, PathId};
use super::call::{self, with_tokens};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Amount, Cursor, HoldState, Limit, Reservation};
use super::usage::Metadata;
use super::view::{DecisionView, Moment};
use super::{App, page};
use crate::domain::judge::Ask;
use crate::domain::money::Money;
use crate::domain::operation::{Hold, HoldAsk, HoldEnd, IfShort, Operation, Outcome, Refusal};
use crate::domain::pricing;
use crate::domain::user::UserId;
use crate::meter::{Present, WriteError};
use crate::store::holds;

const BODY_BYTES_MAX: usize = 64 * 1024;
const TTL_DEFAULT: u32 = 600;
pub(super) const TTL_MAX: u32 = 86_400;

/// How long a hold lasts, in whole seconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Ttl(u32);

impl TryFrom<i64> for Ttl {
    type Error = String;

    fn try_from(seconds: i64) -> Result<Self, String> {
        let seconds = u32::try_from(seconds).ok().filter(|seconds| (1..=TTL_MAX).contains(seconds));
        seconds.map(Self).ok_or_else(|| format!("is out of range; a hold lasts 1 to {TTL_MAX} seconds"))
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self(TTL_DEFAULT)
    }
}

impl Ttl {
    fn time(self) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.0))
    }
}

/// What to do where the estimate does not fit.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Short {
    #[default]
    Refuse,
    Reduce,
}

with_tokens! {
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    struct NewHold {
        id: Name,
        user_id: UserId,
        #[schema(value_type = Option<Amount>)]
        estimated_cost: Option<Money>,
        model: Option<Name>,
        provider: Option<Name>,
        metadata: Option<Metadata>,
        #[serde(default)]
        ttl_seconds: Ttl,
        #[serde(default)]
        if_short: Short,
    }
}

/// A hold at one moment.
#[derive(Debug, Serialize, ToSchema)]
pub struct HoldView {
    id: String,
    user_id: UserId,
    amount: Money,
    model: Option<String>,
    /// open, captured, released, or expired by the clock.
    #[schema(value_type = HoldState)]
    state: &'static str,
    created_at: Moment,
    expires_at: Moment,
    ended_at: Option<Moment>,
    /// The actual cost, where it was captured.
    captured: Option<Money>,
    /// More was captured than held.
    over_hold: bool,
    /// It was captured after it had expired; the cost counts all the same.
    late: bool,
}

impl HoldView {
    pub fn of(hold: &Hold, now: DateTime<Utc>) -> Self {
        let (state, ended_at, captured) = match hold.end {
            Some(HoldEnd::Captured { cost, at, .. }) => ("captured", Some(at), Some(cost)),
            Some(HoldEnd::Released { at }) => ("released", Some(at), None),
            None if hold.is_open(now) => ("open", None, None),
            None => ("expired", None, None),
        };
        Self {
            id: hold.id.to_string(),
            user_id: hold.user_id.clone(),
            amount: hold.amount,
            model: hold.model.clone(),
            state,
            created_at: Moment(hold.created_at),
            expires_at: Moment(hold.expires_at),
            ended_at: ended_at.map(Moment),
            captured,
            over_hold: captured.is_some_and(|cost| hold.amount < cost),
            late: captured.is_some() && ended_at.is_some_and(|at| hold.expires_at <= at),
        }
    }
}

/// A decision, and what was reserved by it.
#[derive(Debug, Serialize, ToSchema)]
struct Reserved<'c> {
    hold: Option<HoldView>,
    #[serde(flatten)]
    decision: DecisionView<'c>,
}

/// Decides and reserves in one step. The answer is JSON text: a repeat is answered with the very first one.
pub async fn reserve(app: &Arc<App>, ask: HoldAsk) -> Result<String, Problem> {
    let (shown, user) = (app.clone(), ask.user_id.clone());
    // It may be judged several times before it is written, and is counted once it is answered.
    let judged = Arc::new(Mutex::new(None));
    let kept = judged.clone();
    let present: Present = Box::new(move |hold, standing, judged| {
        // If what is judged here cannot be written, this answer is never sent.
        let decision = DecisionView::of(&shown, &user, standing, &judged.budgets, judged.judgement.clone());
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((decision.tier.to_owned(), decision.action, decision.reason));
        let hold = hold.map(|hold| HoldView::of(hold, hold.created_at));
        serde_json::to_string(&Reserved { hold, decision }).unwrap_or_default()
    });
    let reply = app.meter.submit(Operation::Hold(ask), Some(present)).await.map_err(|error| match error {
        WriteError::Refused(refusal @ Refusal::TotalOutOfRange { .. }) => {
            Problem::invalid("estimated_cost", format!("does not fit: {refusal}"))
        }
        WriteError::Refused(_) | WriteError::Busy | WriteError::Unconfirmed => Problem::from_write(error, false),
    })?;
    if let Some((tier, action, reason)) = judged.lock().unwrap_or_else(PoisonError::into_inner).take() {
        app.telemetry.decisions.saw(&tier, action, reason);
    }
    let repeated = matches!(reply.outcome, Outcome::Held { repeated: true, .. });
    let answer = reply.answer.unwrap_or_default();
    Ok(format!("{{\"repeated\":{repeated},{}", answer.strip_prefix('{').unwrap_or("}")))
}

/// Checks what a hold asks for; `prefix` names its place in a list.
pub fn hold_ask(id: Name, user_id: UserId, call: Ask, ttl: Ttl, if_short: Short, prefix: &str) -> Result<HoldAsk, Problem> {
    let field = |name: &str| format!("{prefix}{name}");
    if call.cost == Some(Money::ZERO) {
        return Err(Problem::invalid(&field("estimated_cost"), "is 0; a hold reserves more than nothing"));
    }
    if call.cost.is_none() && call.tokens.is_none() {
        let why = "is missing; give it, or `model` and tokens to work it out from";
        return Err(Problem::field(ErrorCode::MissingField, &field("estimated_cost"), why));
    }
    if call.cost.is_none() && call.tokens == Some(pricing::Tokens::default()) {
        return Err(Problem::invalid(&field("input_tokens"), "and `output_tokens` are 0; a hold reserves more than nothing"));
    }
    let if_short = match if_short {
        Short::Refuse => IfShort::Refuse,
        Short::Reduce => IfShort::Reduce,
    };
    Ok(HoldAsk { id: id.0, user_id, call, ttl: ttl.time(), if_short })
}

pub fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `POST /v1/holds`: the decision, and the hold where it was admitted.
#[utoipa::path(
    post, path = "/v1/holds", tag = "holds", operation_id = "hold",
    request_body(content = NewHold, example = json!({"id": "call-2", "user_id": "u_42", "estimated_cost": 0.03, "ttl_seconds": 120})),
    responses((status = 200, description = "the decision, and the hold where it was admitted", body = Reservation)),
    security(("bearer" = ["write"])),
    extensions(("x-problem-codes" = json!([ErrorCode::IdReused, ErrorCode::Busy]))),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    key: Bearer,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Write).await?;
    let new: NewHold = body::one(&body::read(body, BODY_BYTES_MAX).await?)?;
    let call = new.counts().ask(new.estimated_cost, new.model, new.provider, new.metadata).map_err(|fault| call::problem(fault, ""))?;
    let ask = hold_ask(new.id, new.user_id, call, new.ttl_seconds, new.if_short, "")?;
    Ok(json_text(reserve(&app, ask).await?))
}

with_tokens! {
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    struct CaptureBody {
        #[schema(value_type = Option<Amount>)]
        cost: Option<Money>,
        model: Option<Name>,
        provider: Option<Name>,
        metadata: Option<Metadata>,
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Settled {
    hold: HoldView,
    repeated: bool,
    /// The model has no price, and the tier lets it pass: nothing was counted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unpriced: bool,
}

async fn settle(app: &App, operation: Operation) -> Result<Response, Problem> {
    let model = match &operation {
        Operation::Capture { used, .. } => used.model.clone(),
        Operation::Record(_)
        | Operation::Hold(_)
        | Operation::Release { .. }
        | Operation::Extend { .. }
        | Operation::Correct(_)
        | Operation::Tell { .. } => None,
    };
    let reply = app.meter.submit(operation, None).await.map_err(|error| Problem::from_priced_write(app, error, false))?;
    let (hold, repeated, unpriced) = match reply.outcome {
        Outcome::Ended { hold, repeated, unpriced } => {
            if unpriced && !repeated {
                app.notices.saw_unpriced(model.as_deref().or(hold.model.as_deref()).unwrap_or_default(), app.now());
            }
            (hold, repeated, unpriced)
        }
        Outcome::Extended(hold) => (hold, false, false),
        Outcome::Recorded(_) | Outcome::Held { .. } | Outcome::NotHeld { .. } | Outcome::Corrected(_) | Outcome::Told => {
            return Err(Problem::from_write(WriteError::Unconfirmed, false));
        }
    };
    Ok(Json(Settled { hold: HoldView::of(&hold, app.now()), repeated, unpriced }).into_response())
}

/// `POST /v1/holds/{hold_id}/capture`: the actual cost; what was held beyond it is free again.
#[utoipa::path(
    post, path = "/v1/holds/{hold_id}/capture", tag = "holds", operation_id = "capture_hold",
    params(("hold_id" = Name, Path, description = "the caller's id of the hold")),
    request_body(content = CaptureBody, example = json!({"cost": 0.0271})),
    responses((status = 200, description = "the hold, settled", body = Settled)),
    security(("bearer" = ["write"])),
    extensions(("x-problem-codes" = json!([ErrorCode::HoldNotFound, ErrorCode::HoldEnded, ErrorCode::UnknownModel, ErrorCode::Busy]))),
)]
pub async fn capture(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(hold_id): PathId,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Write).await?;
    let body: CaptureBody = body::one(&body::read(body, BODY_BYTES_MAX).await?)?;
    let metadata = body.metadata.as_ref().map(|metadata| metadata.0.clone());
    // The hold knows its model where the body names none.
    let used = body.counts().used(body.cost, body.model, body.provider, metadata, true).map_err(|fault| call::problem(fault, ""))?;
    settle(&app, Operation::Capture { hold_id, used }).await
}

/// `POST /v1/holds/{hold_id}/release`: the call was not made.
#[utoipa::path(
    post, path = "/v1/holds/{hold_id}/release", tag = "holds", operation_id = "release_hold",
    params(("hold_id" = Name, Path, description = "the caller's id of the hold")),
    request_body(content = Option<ReleaseBody>, description = "may be left out"),
    responses((status = 200, description = "the hold, given back", body = Settled)),
    security(("bearer" = ["write"])),
    extensions(("x-problem-codes" = json!([ErrorCode::HoldNotFound, ErrorCode::HoldEnded, ErrorCode::Busy]))),
)]
pub async fn release(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(hold_id): PathId,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Write).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    if !body.is_empty() {
        // Whoever says what it cost meant to capture it.
        let ReleaseBody {} = body::one(&body)?;
    }
    settle(&app, Operation::Release { hold_id }).await
}

/// A release says nothing more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReleaseBody {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ExtendBody {
    ttl_seconds: Ttl,
}

/// `POST /v1/holds/{hold_id}/extend`: it lasts at least so long from now.
#[utoipa::path(
    post, path = "/v1/holds/{hold_id}/extend", tag = "holds", operation_id = "extend_hold",
    params(("hold_id" = Name, Path, description = "the caller's id of the hold")),
    request_body(content = ExtendBody, example = json!({"ttl_seconds": 600})),
    responses((status = 200, description = "the hold, which lasts longer", body = Settled)),
    security(("bearer" = ["write"])),
    extensions(("x-problem-codes" = json!([ErrorCode::HoldNotFound, ErrorCode::HoldEnded, ErrorCode::Busy]))),
)]
pub async fn extend(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(hold_id): PathId,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Write).await?;
    let body: ExtendBody = body::one(&body::read(body, BODY_BYTES_MAX).await?)?;
    settle(&app, Operation::Extend { hold_id, ttl: body.ttl_seconds.time() }).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    user_id: Option<UserId>,
    #[param(value_type = Option<HoldState>)]
    state: Option<String>,
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Holds {
    holds: Vec<HoldView>,
    next_cursor: Option<String>,
}

pub(super) const STATES: [&str; 4] = ["open", "expired", "captured", "released"];

/// `GET /v1/holds`, the latest first.
#[utoipa::path(
    get, path = "/v1/holds", tag = "holds", operation_id = "list_holds",
    params(ListQuery),
    responses((status = 200, description = "a page of holds", body = Holds)),
    security(("bearer" = ["check"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<ListQuery>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let before = page::place(query.cursor.as_deref(), |place| place.parse().ok())?.unwrap_or(i64::MAX);
    let state = query.state.as_deref().map(|name| {
        let known = STATES.into_iter().find(|state| *state == name);
        known.ok_or_else(|| Problem::invalid("state", format!("must be one of {}", STATES.join(", "))))
    });
    let filter = holds::Filter { user_id: query.user_id, state: state.transpose()? };
    let now = app.now();
    let found = holds::page(&mut app.meter.reader().await?, &filter, before, i64::from(limit), now).await?;
    let full = usize::from(limit) <= found.len();
    let next_cursor = found.last().filter(|_| full).map(|(seq, _)| page::cursor(&seq.to_string()));
    let holds = found.iter().map(|(_, hold)| HoldView::of(hold, now)).collect();
    Ok(Json(Holds { holds, next_cursor }).into_response())
}

/// `GET /v1/holds/{hold_id}`
#[utoipa::path(
    get, path = "/v1/holds/{hold_id}", tag = "holds", operation_id = "show_hold",
    params(("hold_id" = Name, Path, description = "the caller's id of the hold")),
    responses((status = 200, description = "the hold", body = HoldView)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::HoldNotFound]))),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(hold_id): PathId,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let found = app.meter.hold(&hold_id).await?;
    let missing = || Problem::new(ErrorCode::HoldNotFound, "no hold of this id was admitted; GET /v1/holds lists them");
    let hold = found.ok_or_else(missing)?;
    Ok(Json(HoldView::of(&hold, app.now())).into_response())
}
