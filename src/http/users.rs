//! Users: what is known of them, and what an operator sets by hand.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Caller, Scope, require};
use super::body::{self, Name, NoParams, Params, Time, UserPath};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Cursor, Limit};
use super::view::{BudgetView, Moment, SubscriptionView, judged};
use super::{App, page};
use crate::domain::catalogue::Catalogue;
use crate::domain::decide::Action;
use crate::domain::judge::Ask;
use crate::domain::money::Money;
use crate::domain::user::{AccountId, ManualTier, TierSource, UserId};
use crate::meter::View;
use crate::store::accounts::{self, Audit};
use crate::store::{Connection, StoreError};
use crate::sync::{self, Owner, Touched};

const BODY_BYTES_MAX: usize = 64 * 1024;
/// Users looked at for one page of a filtered list: a page may hold fewer than asked, with a cursor to go on.
const SCAN_MAX: usize = 5000;
const SCAN_STEP: usize = 500;

#[derive(Debug, Serialize, ToSchema)]
struct SourceView {
    source: TierSource,
    reason: Option<String>,
    set_at: Option<Moment>,
    ends_at: Option<Moment>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Lifetime {
    spent: Money,
    entries: i64,
}

#[derive(Debug, Serialize, ToSchema)]
struct UserView<'c> {
    user_id: UserId,
    /// Whether anything was ever said of this user.
    known: bool,
    tier: &'c str,
    tier_source: SourceView,
    /// `None`: he stands alone.
    account_id: Option<AccountId>,
    /// His account's, where it has one; else his own.
    stripe_customer: Option<String>,
    subscription: SubscriptionView,
    /// When a subscription that is past due loses its tier.
    grace_ends_at: Option<Moment>,
    action: Action,
    budgets: Vec<BudgetView>,
    lifetime: Lifetime,
}

impl<'c> UserView<'c> {
    fn of(app: &App, user: &UserId, view: &View<'c>) -> Self {
        let (standing, profile) = (&view.standing, &view.payer.profile);
        let manual = profile.manual.as_ref().filter(|_| standing.source == TierSource::Manual);
        Self {
            user_id: user.clone(),
            known: view.payer.exists,
            tier: &standing.tier.name,
            tier_source: SourceView {
                source: standing.source,
                reason: manual.map(|manual| manual.reason.clone()),
                set_at: manual.map(|manual| Moment(manual.set_at)),
                ends_at: manual.and_then(|manual| manual.ends_at).map(Moment),
            },
            account_id: profile.account.clone(),
            stripe_customer: profile.stripe_customer.clone(),
            subscription: SubscriptionView::from(standing),
            grace_ends_at: standing.grant.grace_ends_at.map(Moment),
            action: judged(app, user, view, &Ask::default(), app.now()).decision.action,
            budgets: view.budgets.iter().map(BudgetView::from).collect(),
            lifetime: Lifetime { spent: view.payer.book.total(), entries: view.payer.entries },
        }
    }
}

/// `GET /v1/users/{user_id}`: one that nobody knows is on the default tier with nothing spent.
#[utoipa::path(
    get, path = "/v1/users/{user_id}", tag = "users", operation_id = "show_user",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    responses((status = 200, description = "the user", body = UserView<'static>)),
    security(("bearer" = ["check"])),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let catalogue = app.catalogue.load();
    let view = app.meter.view(&catalogue, &user, app.now()).await?;
    Ok(Json(UserView::of(&app, &user, &view)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    tier: Option<String>,
    #[param(value_type = Option<Action>)]
    action: Option<String>,
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Users<'c> {
    users: Vec<UserView<'c>>,
    next_cursor: Option<String>,
}

/// `GET /v1/users`, in the order of their ids' bytes.
#[utoipa::path(
    get, path = "/v1/users", tag = "users", operation_id = "list_users",
    params(ListQuery),
    responses((status = 200, description = "a page of users", body = Users<'static>)),
    security(("bearer" = ["admin"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<ListQuery>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let limit = usize::from(page::limit(query.limit.as_deref())?);
    let catalogue = app.catalogue.load_full();
    let wanted = Wanted::read(&catalogue, &query)?;
    let mut last = page::place(query.cursor.as_deref(), |place| Some(place.to_owned()))?.unwrap_or_default();
    let (mut users, mut scanned, mut more) = (Vec::new(), 0, true);
    while more && users.len() < limit && scanned < SCAN_MAX {
        let step = i64::try_from(SCAN_STEP).unwrap_or(i64::MAX);
        let ids = accounts::user_ids(&mut app.meter.reader().await?, &last, step).await?;
        let views = app.meter.views(&catalogue, &ids, app.now()).await?;
        more = ids.len() == SCAN_STEP;
        for (user, view) in ids.iter().zip(&views) {
            if users.len() == limit {
                more = true;
                break;
            }
            last = user.as_str().to_owned();
            scanned += 1;
            users.extend(Some(UserView::of(&app, user, view)).filter(|view| wanted.holds(view)));
        }
    }
    let next_cursor = more.then(|| page::cursor(&last));
    Ok(Json(Users { users, next_cursor }).into_response())
}

struct Wanted {
    tier: Option<String>,
    action: Option<Action>,
}

impl Wanted {
    fn read(catalogue: &Catalogue, query: &ListQuery) -> Result<Self, Problem> {
        if let Some(tier) = &query.tier {
            known_tier(catalogue, tier)?;
        }
        let action = query.action.as_deref().map(|name| {
            let action = Action::ALL.into_iter().find(|action| action.name() == name);
            action.ok_or_else(|| Problem::invalid("action", "must be ALLOW, WARN, DEGRADE or BLOCK"))
        });
        Ok(Self { tier: query.tier.clone(), action: action.transpose()? })
    }

    fn holds(&self, user: &UserView<'_>) -> bool {
        self.tier.as_ref().is_none_or(|tier| tier == user.tier) && self.action.is_none_or(|action| action == user.action)
    }
}

/// A field that is absent leaves things as they are; `null` clears.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = UserChange)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Name>)]
    stripe_customer: Option<Option<Name>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Name>)]
    tier: Option<Option<Name>>,
    ends_at: Option<Time>,
    reason: Option<Name>,
}

pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Name>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A change that makes sense.
#[derive(Debug)]
struct UserChange {
    stripe_customer: Option<Option<String>>,
    tier: Option<Option<ManualTier>>,
    reason: Option<String>,
}

impl ChangeBody {
    fn check(self, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<UserChange, Problem> {
        if self.stripe_customer.is_none() && self.tier.is_none() {
            return Err(Problem::field(
                ErrorCode::MissingField,
                "tier",
                "is missing, and so is `stripe_customer`; give a tier (a name, or null to clear) or a customer (an id, or null to unbind)",
            ));
        }
        if self.ends_at.is_some() && !matches!(self.tier, Some(Some(_))) {
            return Err(Problem::invalid("ends_at", "goes with a `tier` that is set"));
        }
        if self.ends_at.is_some_and(|end| end.0 <= now) {
            return Err(Problem::invalid("ends_at", "lies in the past"));
        }
        let reason = self.reason.map(|reason| reason.0);
        let tier = match self.tier {
            None => None,
            Some(tier) => {
                let missing =
                    || Problem::field(ErrorCode::MissingField, "reason", "is missing; a tier is set or cleared by hand for a reason");
                let reason = reason.clone().ok_or_else(missing)?;
                let manual = tier.map(|tier| {
                    known_tier(catalogue, &tier.0)?;
                    Ok::<_, Problem>(ManualTier { tier: tier.0, reason, set_at: now, ends_at: self.ends_at.map(|end| end.0) })
                });
                Some(manual.transpose()?)
            }
        };
        Ok(UserChange { stripe_customer: self.stripe_customer.map(|customer| customer.map(|name| name.0)), tier, reason })
    }
}

fn known_tier(catalogue: &Catalogue, name: &str) -> Result<(), Problem> {
    let names = || catalogue.tiers().iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>().join(", ");
    catalogue.tier(name).map(|_| ()).ok_or_else(|| Problem::invalid("tier", format!("is not a tier; use one of {}", names())))
}

/// `PUT /v1/users/{user_id}`: binds a Stripe customer, sets or clears a tier by hand. Audited.
#[utoipa::path(
    put, path = "/v1/users/{user_id}", tag = "users", operation_id = "change_user",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded")),
    request_body(content = ChangeBody, example = json!({"tier": "pro", "reason": "a friend of the house", "ends_at": "2027-01-01T00:00:00Z"})),
    responses((status = 200, description = "the user, changed", body = UserView<'static>)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::CustomerBound]))),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let now = app.now();
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let change = body::one::<ChangeBody>(&body)?.check(&app.catalogue.load(), now)?;
    let (done, whom) = (app.clone(), user.clone());
    let key_id = caller.key_id.clone();
    let bound = app.change(async move {
        let mut tx = done.store.begin().await?;
        let bound = write(tx.connection()?, &caller, &whom, &change, done.rules.asks, now).await?;
        if bound.is_ok() {
            tx.commit().await?;
        }
        Ok((bound, Touched::Users(vec![whom])))
    });
    if let Err(other) = bound.await? {
        let why = format!("is bound to {other} already; unbind it there first, with null");
        return Err(Problem::field(ErrorCode::CustomerBound, "stripe_customer", why));
    }
    // Who it was is in the audit table: a user's id may be an e-mail address, which is nothing for a log.
    tracing::info!(key_id = %key_id, "a user was changed by key {key_id}");
    let catalogue = app.catalogue.load();
    let view = app.meter.view(&catalogue, &user, now).await?;
    Ok(Json(UserView::of(&app, &user, &view)).into_response())
}

async fn write(
    db: &mut Connection,
    caller: &Caller,
    user: &UserId,
    change: &UserChange,
    asks: bool,
    now: DateTime<Utc>,
) -> Result<Result<(), Owner>, StoreError> {
    accounts::meet(db, user, now).await?;
    let before = accounts::users(db, std::slice::from_ref(user)).await?.remove(user).unwrap_or_default().profile;
    match &change.stripe_customer {
        Some(Some(customer)) => {
            if let Err(other) = sync::bind(db, &Owner::User(user.clone()), customer, asks, now).await? {
                return Ok(Err(other));
            }
        }
        Some(None) => accounts::release_customer(db, user).await?,
        None => {}
    }
    if let Some(tier) = &change.tier {
        accounts::set_manual_tier(db, user, tier.as_ref()).await?;
    }
    let after = accounts::users(db, std::slice::from_ref(user)).await?.remove(user).unwrap_or_default().profile;
    let tier =
        |manual: &Option<ManualTier>| manual.as_ref().map(|manual| json!({"tier": manual.tier, "ends_at": manual.ends_at.map(Moment)}));
    let change_text = json!({
        "stripe_customer": {"from": before.stripe_customer, "to": after.stripe_customer},
        "tier": {"from": tier(&before.manual), "to": tier(&after.manual)},
    });
    let (change_text, reason) = (change_text.to_string(), change.reason.as_deref());
    let audit = Audit { at: now, key_id: &caller.key_id, account: None, user: Some(user), change: change_text, reason };
    accounts::write_audit(db, &audit).await?;
    Ok(Ok(()))
}
