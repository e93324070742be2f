//! What another catalogue would have meant for one user.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{self, NoParams, Params, Time};
use super::error::{ErrorCode, Problem};
use super::view::Moment;
use crate::domain::catalogue::Catalogue;
use crate::domain::simulation::OfUser;
use crate::domain::user::UserId;
use crate::domain::yaml::{self, FILE_BYTES_MAX};
use crate::domain::{prices_file, tiers_file};
use crate::simulate::{self, ENTRIES_MAX};

/// Two files, and what JSON makes of their quotes and line ends.
const BODY_BYTES_MAX: usize = 4 * FILE_BYTES_MAX;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SimulateBody {
    user_id: UserId,
    /// The text of a tiers.yaml.
    tiers: String,
    /// The text of a prices.yaml; without one, the service's own.
    prices: Option<String>,
    since: Option<Time>,
}

impl SimulateBody {
    fn catalogue(&self, app: &App) -> Result<Catalogue, Problem> {
        let prices = match &self.prices {
            Some(text) => prices_file::read(text).map_err(|faults| refused("prices", &faults))?,
            None => app.catalogue.load().prices.clone(),
        };
        tiers_file::read(&self.tiers, prices).map_err(|faults| refused("tiers", &faults))
    }
}

/// Each fault with its line and column.
fn refused(field: &str, faults: &[yaml::Problem]) -> Problem {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Problem::invalid(field, format!("is refused\n{}", lines.join("\n")))
}

#[derive(Debug, Serialize, ToSchema)]
struct SimulatedView<'c> {
    since: Option<Moment>,
    /// Days of which only sums are kept, so that nothing of them was judged.
    rolled_days: i64,
    #[serde(flatten)]
    user: OfUser<'c>,
}

/// `POST /v1/simulate`: writes nothing.
#[utoipa::path(
    post, path = "/v1/simulate", tag = "catalogue", operation_id = "simulate",
    request_body = SimulateBody,
    responses((status = 200, description = "what would have been", body = SimulatedView<'static>)),
    security(("bearer" = ["admin"])),
)]
pub async fn run(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>, body: Body) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let asked: SimulateBody = body::one(&body)?;
    let catalogue = asked.catalogue(&app)?;
    let (user, since) = (&asked.user_id, asked.since.map(|time| time.0));
    // What others booked in his account counts too.
    let mut db = app.meter.reader().await?;
    let Some(done) = simulate::one(&mut db, &catalogue, user, since, app.now()).await? else {
        let why = format!(
            "is too early: more than {ENTRIES_MAX} entries of this user and his account lie behind it; give a later one, or run `spendgate simulate`"
        );
        return Err(Problem::field(ErrorCode::InvalidField, "since", why));
    };
    let Some(of_user) = done.simulation.of_user(user) else {
        return Err(Problem::new(ErrorCode::StoreUnavailable, "what was read does not fit together; ask again"));
    };
    Ok(Json(SimulatedView { since: since.map(Moment), rolled_days: done.rolled.days, user: of_user }).into_response())
}
