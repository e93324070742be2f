//! A user's own caps: hard limits of his own spend that he sets himself, below whatever his tier allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::App;
use super::auth::{Bearer, Caller, Scope, require};
use super::body::{self, NoParams, Params, UserPath};
use super::error::Problem;
use super::openapi::shapes::Amount;
use super::view::BudgetView;
use crate::domain::caps::Caps;
use crate::domain::decide::Source;
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::user::UserId;
use crate::store::accounts::{self, Audit};
use crate::store::{Connection, StoreError};
use crate::sync::Touched;

const BODY_BYTES_MAX: usize = 64 * 1024;

/// All caps of a user; one that is absent or null is none.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CapsBody {
    #[schema(value_type = Option<Amount>)]
    daily: Option<Money>,
    #[schema(value_type = Option<Amount>)]
    weekly: Option<Money>,
    #[schema(value_type = Option<Amount>)]
    monthly: Option<Money>,
    #[schema(value_type = Option<Amount>)]
    billing: Option<Money>,
    #[schema(value_type = Option<Amount>)]
    total: Option<Money>,
}

impl CapsBody {
    fn into_caps(self) -> Option<Caps> {
        let given = [
            (Period::Daily, self.daily),
            (Period::Weekly, self.weekly),
            (Period::Monthly, self.monthly),
            (Period::Billing, self.billing),
            (Period::Total, self.total),
        ];
        Caps::new(given.into_iter().filter_map(|(period, limit)| limit.map(|limit| (period, limit))).collect())
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct CapsView {
    user_id: UserId,
    caps: BTreeMap<Period, Money>,
    /// How full they are.
    budgets: Vec<BudgetView>,
}

/// `GET /v1/users/{user_id}/caps`
#[utoipa::path(
    get, path = "/v1/users/{user_id}/caps", tag = "users", operation_id = "show_caps",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    responses((status = 200, description = "his caps, and how full they are", body = CapsView)),
    security(("bearer" = ["check"])),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    answer(&app, user).await
}

async fn answer(app: &App, user: UserId) -> Result<Response, Problem> {
    let catalogue = app.catalogue.load();
    let view = app.meter.view(&catalogue, &user, app.now()).await?;
    let caps = view.payer.profile.caps.as_ref().map(|caps| caps.limits().clone()).unwrap_or_default();
    let budgets = view.budgets.iter().filter(|budget| budget.source == Source::Cap).map(BudgetView::from).collect();
    Ok(Json(CapsView { user_id: user, caps, budgets }).into_response())
}

/// `PUT /v1/users/{user_id}/caps`: these and no others from now on; an empty object clears them. Audited. A key that may book usage may do
/// this: no cap lets anybody spend more than his tier does.
#[utoipa::path(
    put, path = "/v1/users/{user_id}/caps", tag = "users", operation_id = "change_caps",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    request_body(content = CapsBody, example = json!({"daily": 1.5})),
    responses((status = 200, description = "his caps from now on", body = CapsView)),
    security(("bearer" = ["write"])),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Write).await?;
    let caps = body::one::<CapsBody>(&body::read(body, BODY_BYTES_MAX).await?)?.into_caps();
    let (now, done, whom) = (app.now(), app.clone(), user.clone());
    let changed = app.change(async move {
        let mut tx = done.store.begin().await?;
        write(tx.connection()?, &caller, &whom, caps.as_ref(), now).await?;
        tx.commit().await?;
        Ok(((), Touched::Users(vec![whom])))
    });
    changed.await?;
    answer(&app, user).await
}

async fn write(db: &mut Connection, caller: &Caller, user: &UserId, caps: Option<&Caps>, now: DateTime<Utc>) -> Result<(), StoreError> {
    accounts::meet(db, user, now).await?;
    let before = accounts::users(db, std::slice::from_ref(user)).await?.remove(user).unwrap_or_default().profile.caps;
    accounts::set_caps(db, user, caps).await?;
    let told = |caps: Option<&Caps>| -> BTreeMap<Period, String> {
        caps.map(|caps| caps.limits().iter().map(|(period, limit)| (*period, limit.decimal())).collect()).unwrap_or_default()
    };
    let change = json!({"caps": {"from": told(before.as_deref()), "to": told(caps)}}).to_string();
    let audit = Audit { at: now, key_id: &caller.key_id, account: None, user: Some(user), change, reason: None };
    accounts::write_audit(db, &audit).await
}
