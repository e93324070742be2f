//! Lowers spend that was booked too high.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{self, Name, NoParams, Params, Time};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::Amount;
use super::view::Moment;
use crate::domain::money::Money;
use crate::domain::operation::{AHEAD_MAX, Correction, Operation, Outcome};
use crate::domain::user::UserId;
use crate::meter::WriteError;

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCorrection {
    id: Name,
    user_id: UserId,
    #[schema(value_type = Amount)]
    amount: Money,
    reason: Name,
    /// The moment whose windows it lowers; a repeat must say the same.
    time: Time,
    model: Option<Name>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CorrectionView {
    id: String,
    user_id: UserId,
    amount: Money,
    time: Moment,
    recorded_at: Moment,
    repeated: bool,
}

/// `POST /v1/corrections`: takes back at most what is booked on that day for that model. Audited.
#[utoipa::path(
    post, path = "/v1/corrections", tag = "usage", operation_id = "correct",
    request_body(content = NewCorrection, example = json!({"id": "fix-1", "user_id": "u_42", "amount": 0.01, "reason": "billed twice", "time": "2026-01-12T09:00:00Z"})),
    responses((status = 200, description = "what was taken back", body = CorrectionView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::IdReused, ErrorCode::Busy]))),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    key: Bearer,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let new: NewCorrection = body::one(&body::read(body, BODY_BYTES_MAX).await?)?;
    if new.amount == Money::ZERO {
        return Err(Problem::invalid("amount", "is 0; a correction takes back more than nothing"));
    }
    if app.now() + AHEAD_MAX < new.time.0 {
        return Err(Problem::invalid("time", "lies ahead of this service's clock"));
    }
    let correction = Correction {
        id: new.id.0,
        user_id: new.user_id,
        amount: new.amount,
        time: new.time.0,
        model: new.model.map(|name| name.0),
        reason: new.reason.0,
        key_id: caller.key_id.clone(),
    };
    let reply = app.meter.submit(Operation::Correct(correction), None).await;
    match reply.map_err(|error| Problem::from_write(error, false))?.outcome {
        Outcome::Corrected(receipt) => {
            let (time, recorded_at) = (Moment(receipt.time), Moment(receipt.recorded_at));
            let (id, user_id, amount, repeated) = (receipt.id, receipt.user_id, receipt.cost, receipt.repeated);
            Ok(Json(CorrectionView { id, user_id, amount, time, recorded_at, repeated }).into_response())
        }
        Outcome::Recorded(_)
        | Outcome::Held { .. }
        | Outcome::NotHeld { .. }
        | Outcome::Ended { .. }
        | Outcome::Extended(_)
        | Outcome::Told => Err(Problem::from_write(WriteError::Unconfirmed, false)),
    }
}
