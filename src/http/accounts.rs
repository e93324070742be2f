//! Accounts: whom Stripe bills for several users.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Caller, Scope, require};
use super::body::{self, AccountPath, MemberPath, Name, NoParams, Params};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Cursor, Limit};
use super::users::present;
use super::view::Moment;
use super::{App, page};
use crate::domain::money::Money;
use crate::domain::user::{AccountId, UserId};
use crate::store::accounts::{self, Audit};
use crate::store::{Connection, StoreError, ledger};
use crate::sync::{self, Owner, Touched};

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Serialize, ToSchema)]
struct Lifetime {
    spent: Money,
    entries: i64,
}

#[derive(Debug, Serialize, ToSchema)]
struct AccountView {
    account_id: AccountId,
    created_at: Moment,
    stripe_customer: Option<String>,
    /// What its users spent while they belonged to it.
    lifetime: Lifetime,
    users: Vec<UserId>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ShowQuery {
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

/// `GET /v1/accounts/{account_id}`, with its users by pages.
#[utoipa::path(
    get, path = "/v1/accounts/{account_id}", tag = "accounts", operation_id = "show_account",
    params(("account_id" = AccountId, Path, description = "percent-encoded"), ShowQuery),
    responses((status = 200, description = "the account, with a page of its users", body = AccountView)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::AccountNotFound]))),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    AccountPath(account): AccountPath,
    Params(query): Params<ShowQuery>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let after = page::place(query.cursor.as_deref(), |place| Some(place.to_owned()))?.unwrap_or_default();
    let db = &mut app.meter.reader_of_account(&account).await?;
    let missing = || Problem::new(ErrorCode::AccountNotFound, "PUT /v1/accounts/{account_id}/users/{user_id} makes an account");
    let created_at = Moment(accounts::account(db, &account).await?.ok_or_else(missing)?);
    let (_, spent) = ledger::days_of_account(db, &account, 0, 0).await?;
    let lifetime = Lifetime { spent, entries: ledger::entries_of_account(db, &account).await? };
    let stripe_customer = accounts::customer_of_account(db, &account).await?;
    let users = accounts::members(db, &account, &after, i64::from(limit)).await?;
    let next_cursor = users.last().filter(|_| usize::from(limit) <= users.len()).map(|last| page::cursor(last.as_str()));
    Ok(Json(AccountView { account_id: account, created_at, stripe_customer, lifetime, users, next_cursor }).into_response())
}

/// `null` unbinds.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AccountChange)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    #[serde(default, deserialize_with = "present")]
    #[schema(required, value_type = Option<Name>)]
    stripe_customer: Option<Option<Name>>,
    reason: Option<Name>,
}

/// `PUT /v1/accounts/{account_id}`: makes the account and binds a Stripe customer to it. Audited.
#[utoipa::path(
    put, path = "/v1/accounts/{account_id}", tag = "accounts", operation_id = "change_account",
    params(("account_id" = AccountId, Path, description = "percent-encoded")),
    request_body(content = ChangeBody, example = json!({"stripe_customer": "cus_42"})),
    responses((status = 200, description = "the account, changed", body = AccountView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::CustomerBound]))),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    key: Bearer,
    AccountPath(account): AccountPath,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let body = body::one::<ChangeBody>(&body::read(body, BODY_BYTES_MAX).await?)?;
    let customer = body.stripe_customer.ok_or_else(|| {
        Problem::field(ErrorCode::MissingField, "stripe_customer", "is missing; give the id of a Stripe customer, or null to unbind it")
    })?;
    let (now, done, whose) = (app.now(), app.clone(), account.clone());
    let bound = app.change(async move {
        let mut tx = done.store.begin().await?;
        let db = tx.connection()?;
        let before = accounts::customer_of_account(db, &whose).await?;
        accounts::make_account(db, &whose, now).await?;
        let bound = match &customer {
            Some(customer) => sync::bind(db, &Owner::Account(whose.clone()), &customer.0, done.rules.asks, now).await?,
            None => Ok(accounts::release_customer_of_account(db, &whose).await?),
        };
        if bound.is_err() {
            return Ok((bound, Touched::default()));
        }
        let change = json!({"stripe_customer": {"from": before, "to": customer.map(|customer| customer.0)}});
        let reason = body.reason.as_ref().map(|reason| reason.0.as_str());
        let audit = Audit { at: now, key_id: &caller.key_id, account: Some(&whose), user: None, change: change.to_string(), reason };
        accounts::write_audit(db, &audit).await?;
        let touched = Touched::members(db, &whose).await?;
        tx.commit().await?;
        Ok((bound, touched))
    });
    if let Err(other) = bound.await? {
        let why = format!("is bound to {other} already; unbind it there first, with null");
        return Err(Problem::field(ErrorCode::CustomerBound, "stripe_customer", why));
    }
    show(State(app), key, AccountPath(account), Params(ShowQuery { limit: None, cursor: None })).await
}

/// Where a user spends from now on.
#[derive(Debug, Serialize, ToSchema)]
struct MemberView<'a> {
    /// `None`: he stands alone.
    account_id: Option<&'a AccountId>,
    user_id: &'a UserId,
}

/// `PUT /v1/accounts/{account_id}/users/{user_id}`: from now on the user spends in this account. Audited.
#[utoipa::path(
    put, path = "/v1/accounts/{account_id}/users/{user_id}", tag = "accounts", operation_id = "join_account",
    params(("account_id" = AccountId, Path, description = "percent-encoded"), ("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    responses((status = 200, description = "he belongs to it", body = MemberView<'static>)),
    security(("bearer" = ["admin"])),
)]
pub async fn join(
    State(app): State<Arc<App>>,
    key: Bearer,
    MemberPath(account, user): MemberPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    belong(&app, caller, &account, &user, true).await?;
    Ok(Json(MemberView { account_id: Some(&account), user_id: &user }).into_response())
}

/// `DELETE /v1/accounts/{account_id}/users/{user_id}`: from now on the user stands alone. What he spent in the account stays there.
#[utoipa::path(
    delete, path = "/v1/accounts/{account_id}/users/{user_id}", tag = "accounts", operation_id = "leave_account",
    params(("account_id" = AccountId, Path, description = "percent-encoded"), ("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    responses((status = 200, description = "he stands alone", body = MemberView<'static>)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::AccountNotFound]))),
)]
pub async fn leave(
    State(app): State<Arc<App>>,
    key: Bearer,
    MemberPath(account, user): MemberPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    if !belong(&app, caller, &account, &user, false).await? {
        return Err(Problem::new(ErrorCode::AccountNotFound, "the user does not belong to this account"));
    }
    Ok(Json(MemberView { account_id: None, user_id: &user }).into_response())
}

/// `false` where the user is not there to leave.
async fn belong(app: &Arc<App>, caller: Arc<Caller>, account: &AccountId, user: &UserId, joins: bool) -> Result<bool, Problem> {
    let (now, done, whose, whom) = (app.now(), app.clone(), account.clone(), user.clone());
    let changed = app.change(async move {
        let mut tx = done.store.begin().await?;
        let changed = write(tx.connection()?, &caller, &whose, &whom, joins, now).await?;
        tx.commit().await?;
        Ok((changed, Touched::Users(vec![whom])))
    });
    Ok(changed.await?)
}

async fn write(
    db: &mut Connection,
    caller: &Caller,
    account: &AccountId,
    user: &UserId,
    joins: bool,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<bool, StoreError> {
    let before = accounts::users(db, std::slice::from_ref(user)).await?.remove(user).and_then(|stored| stored.profile.account);
    if !joins && before.as_ref() != Some(account) {
        return Ok(false);
    }
    if joins {
        accounts::make_account(db, account, now).await?;
        accounts::meet(db, user, now).await?;
    }
    let after = Some(account).filter(|_| joins);
    accounts::join(db, user, after).await?;
    let change = json!({"account_id": {"from": before, "to": after}}).to_string();
    let audit = Audit { at: now, key_id: &caller.key_id, account: Some(account), user: Some(user), change, reason: None };
    accounts::write_audit(db, &audit).await?;
    Ok(true)
}
