//! Grants: more budget for one user, once, until an end.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Caller, Scope, require};
use super::body::{self, GrantPath, Name, NoParams, Params, Time, UserPath};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Amount, Cursor, GrantState, Limit};
use super::view::Moment;
use super::{App, page};
use crate::domain::grants::{Grant, OPEN_MAX};
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::user::UserId;
use crate::meter::View;
use crate::store::accounts::{self, Audit};
use crate::store::grants::{self, StoredGrant};
use crate::store::{Connection, StoreError};
use crate::sync::Touched;

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewGrant {
    id: Name,
    #[schema(value_type = Amount)]
    amount: Money,
    period: Period,
    ends_at: Time,
    reason: Name,
}

impl NewGrant {
    fn into_stored(self, now: DateTime<Utc>) -> Result<StoredGrant, Problem> {
        if self.amount == Money::ZERO {
            return Err(Problem::invalid("amount", "is 0; a grant adds more than nothing"));
        }
        let (id, period, ends_at, amount) = (self.id.0.into(), self.period, self.ends_at.0, self.amount);
        let grant = Grant { id, period, ends_at, is_revoked: false, amount, used: Money::ZERO, drawn: Default::default() };
        Ok(StoredGrant { grant, reason: self.reason.0, created_at: now, revoked_at: None })
    }
}

/// A grant at one moment.
#[derive(Debug, Serialize, ToSchema)]
struct GrantView {
    id: String,
    user_id: UserId,
    period: Period,
    amount: Money,
    used: Money,
    /// What can still be drawn.
    remaining: Money,
    /// open, `used_up`, revoked, or ended by the clock.
    #[schema(value_type = GrantState)]
    state: &'static str,
    created_at: Moment,
    ends_at: Moment,
    revoked_at: Option<Moment>,
    reason: String,
}

impl GrantView {
    fn of(user: &UserId, stored: StoredGrant, now: DateTime<Utc>) -> Self {
        let grant = stored.grant;
        let (state, remaining) = match grant.left() {
            Money::ZERO => ("used_up", Money::ZERO),
            _ if grant.is_revoked => ("revoked", Money::ZERO),
            left if grant.is_open(now) => ("open", left),
            _ => ("ended", Money::ZERO),
        };
        Self {
            id: grant.id.to_string(),
            user_id: user.clone(),
            period: grant.period,
            amount: grant.amount,
            used: grant.used,
            remaining,
            state,
            created_at: Moment(stored.created_at),
            ends_at: Moment(grant.ends_at),
            revoked_at: stored.revoked_at.map(Moment),
            reason: stored.reason,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Granted {
    #[serde(flatten)]
    grant: GrantView,
    repeated: bool,
}

/// Why nothing can be granted to this user for this period at the moment.
fn refusal(view: &View<'_>, grant: &Grant, now: DateTime<Utc>) -> Option<Problem> {
    let tier = view.standing.tier;
    if let Some(account) = view.payer.pool(&view.standing) {
        let why =
            format!("the budgets of tier `{}` are those of the account `{account}`, so none is the user's own to be added to", tier.name);
        return Some(Problem::new(ErrorCode::BudgetIsShared, why));
    }
    let limits = &tier.budgets.limits;
    if !limits.contains_key(&grant.period) {
        let (period, periods) = (grant.period.name(), limits.keys().map(|period| period.name()).collect::<Vec<_>>().join(", "));
        let has = if periods.is_empty() { "no budget to add to".to_owned() } else { format!("use one of {periods}") };
        return Some(Problem::invalid("period", format!("names no budget of tier `{}`, which has no {period} one; {has}", tier.name)));
    }
    (grant.ends_at <= now).then(|| Problem::invalid("ends_at", "lies in the past"))
}

/// `POST /v1/users/{user_id}/grants`: from now on what is spent beyond the tier's limit of that period draws on it. Audited.
#[utoipa::path(
    post, path = "/v1/users/{user_id}/grants", tag = "users", operation_id = "grant",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    request_body(content = NewGrant, example = json!({"id": "grant-1", "amount": 5, "period": "daily", "ends_at": "2027-01-01T00:00:00Z", "reason": "goodwill"})),
    responses((status = 200, description = "the grant as it stands", body = Granted)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::IdReused, ErrorCode::BudgetIsShared, ErrorCode::TooManyGrants]))),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let now = app.now();
    let new = body::one::<NewGrant>(&body::read(body, BODY_BYTES_MAX).await?)?.into_stored(now)?;
    let catalogue = app.catalogue.load_full();
    let refusal = refusal(&app.meter.view(&catalogue, &user, now).await?, &new.grant, now);
    let (done, whom, id) = (app.clone(), user.clone(), new.grant.id.clone());
    let made = app.change(async move {
        let mut tx = done.store.begin().await?;
        let made = make(tx.connection()?, &caller, &whom, &new, refusal, now).await?;
        tx.commit().await?;
        Ok((made, Touched::Users(vec![whom])))
    });
    let repeated = made.await??;
    let grant = shown(&app, &user, &id).await?;
    Ok(Json(Granted { grant, repeated }).into_response())
}

/// Whether it had been made before. Where it is refused nothing was written.
async fn make(
    db: &mut Connection,
    caller: &Caller,
    user: &UserId,
    new: &StoredGrant,
    refusal: Option<Problem>,
    now: DateTime<Utc>,
) -> Result<Result<bool, Problem>, StoreError> {
    let id = &*new.grant.id;
    if let Some(before) = grants::by_id(db, user, id).await? {
        let other = || Problem::field(ErrorCode::IdReused, "id", format!("names another grant of this user already: `{id}`"));
        return Ok(if before.is_same(new) { Ok(true) } else { Err(other()) });
    }
    if let Some(refusal) = refusal {
        return Ok(Err(refusal));
    }
    if OPEN_MAX <= grants::open(db, user, now).await? {
        let why = format!("the user has {OPEN_MAX} open grants; revoke some, or let them end");
        return Ok(Err(Problem::new(ErrorCode::TooManyGrants, why)));
    }
    accounts::meet(db, user, now).await?;
    grants::make(db, user, new).await?;
    let grant = &new.grant;
    let to = json!({"amount": grant.amount.decimal(), "period": grant.period, "ends_at": Moment(grant.ends_at)});
    let change = json!({"grant": id, "from": null, "to": to}).to_string();
    let audit = Audit { at: now, key_id: &caller.key_id, account: None, user: Some(user), change, reason: Some(&new.reason) };
    accounts::write_audit(db, &audit).await?;
    Ok(Ok(false))
}

/// The grant as it stands, with everything that was acknowledged.
async fn shown(app: &App, user: &UserId, id: &str) -> Result<GrantView, Problem> {
    let found = grants::by_id(&mut app.meter.reader_of(std::slice::from_ref(user)).await?, user, id).await?;
    found.map(|found| GrantView::of(user, found, app.now())).ok_or_else(missing)
}

fn missing() -> Problem {
    Problem::new(ErrorCode::GrantNotFound, "the user has no grant of this id; GET /v1/users/{user_id}/grants lists those that he has")
}

/// `DELETE /v1/users/{user_id}/grants/{grant_id}`: nothing more is drawn; what is used stays used. Audited.
#[utoipa::path(
    delete, path = "/v1/users/{user_id}/grants/{grant_id}", tag = "users", operation_id = "revoke_grant",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded"), ("grant_id" = Name, Path, description = "the caller's id of the grant")),
    responses((status = 200, description = "the grant, revoked", body = GrantView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::GrantNotFound]))),
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    key: Bearer,
    GrantPath(user, id): GrantPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let (now, done, whom, which) = (app.now(), app.clone(), user.clone(), id.clone());
    let revoked = app.change(async move {
        let mut tx = done.store.begin().await?;
        let found = end(tx.connection()?, &caller, &whom, &which, now).await?;
        tx.commit().await?;
        Ok((found, Touched::Users(vec![whom])))
    });
    if !revoked.await? {
        return Err(missing());
    }
    Ok(Json(shown(&app, &user, &id).await?).into_response())
}

/// `false` where there is no such grant.
async fn end(db: &mut Connection, caller: &Caller, user: &UserId, id: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    if grants::by_id(db, user, id).await?.is_none() {
        return Ok(false);
    }
    if grants::revoke(db, user, id, now).await? {
        let change = json!({"grant": id, "from": "open", "to": "revoked"}).to_string();
        let audit = Audit { at: now, key_id: &caller.key_id, account: None, user: Some(user), change, reason: None };
        accounts::write_audit(db, &audit).await?;
    }
    Ok(true)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct GrantsView {
    grants: Vec<GrantView>,
    next_cursor: Option<String>,
}

/// `GET /v1/users/{user_id}/grants`, the latest first.
#[utoipa::path(
    get, path = "/v1/users/{user_id}/grants", tag = "users", operation_id = "list_grants",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded"), ListQuery),
    responses((status = 200, description = "a page of grants", body = GrantsView)),
    security(("bearer" = ["check"])),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(query): Params<ListQuery>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let before = page::place(query.cursor.as_deref(), |place| {
        let (micros, id) = place.split_once(' ')?;
        Some((DateTime::from_timestamp_micros(micros.parse().ok()?)?, id.to_owned()))
    })?;
    let db = &mut app.meter.reader_of(std::slice::from_ref(&user)).await?;
    let found = grants::page(db, &user, before.as_ref(), i64::from(limit)).await?;
    let last = found.last().filter(|_| usize::from(limit) <= found.len());
    let next_cursor = last.map(|last| page::cursor(&format!("{} {}", last.created_at.timestamp_micros(), last.grant.id)));
    let now = app.now();
    let grants = found.into_iter().map(|stored| GrantView::of(&user, stored, now)).collect();
    Ok(Json(GrantsView { grants, next_cursor }).into_response())
}
