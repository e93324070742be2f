//! The comparison of everything with Stripe.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{NoParams, Params};
use super::error::{ErrorCode, Problem};
use super::view::Moment;
use crate::store::reconciliation::{self, Drift, Fault, Phase, Run};

#[derive(Debug, Serialize, ToSchema)]
struct RunView {
    number: i64,
    phase: Phase,
    started_at: Moment,
    finished_at: Option<Moment>,
    checked: i64,
    drifted: i64,
    missed_events: i64,
    drift: Vec<Drift>,
    /// What Stripe's lists did not show.
    faults: Vec<Fault>,
    unread: i64,
}

impl From<Run> for RunView {
    fn from(run: Run) -> Self {
        Self {
            number: run.number,
            phase: run.phase,
            started_at: Moment(run.started_at),
            finished_at: run.finished_at.map(Moment),
            checked: run.checked,
            drifted: run.drifted,
            missed_events: run.missed_events,
            drift: run.drift,
            faults: run.faults,
            unread: run.unread,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Last {
    /// `None` where there was none yet.
    reconciliation: Option<RunView>,
}

/// `GET /v1/reconciliation`: the last one, finished or not.
#[utoipa::path(
    get, path = "/v1/reconciliation", tag = "stripe", operation_id = "show_reconciliation",
    responses((status = 200, description = "the last one, or null", body = Last)),
    security(("bearer" = ["admin"])),
)]
pub async fn show(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    last(&app).await
}

/// `POST /v1/reconciliation`: begins one as soon as it can, and answers what is there so far.
#[utoipa::path(
    post, path = "/v1/reconciliation", tag = "stripe", operation_id = "begin_reconciliation",
    responses((status = 200, description = "what is there so far", body = Last)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::StripeNotAsked]))),
)]
pub async fn begin(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let Some(reconciler) = &app.reconciler else {
        return Err(Problem::new(ErrorCode::StripeNotAsked, "set STRIPE_API_KEY, so that Stripe can be asked"));
    };
    reconciler.want();
    last(&app).await
}

async fn last(app: &App) -> Result<Response, Problem> {
    let run = reconciliation::last(&mut app.store.reader().await?).await?;
    Ok(Json(Last { reconciliation: run.map(RunView::from) }).into_response())
}
