//! Alerts: what was to be told, and how far it came.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Scope, require};
use super::body::{self, Name, NoParams, Params, PathId};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{AlertKindName, AlertState, Cursor, Limit};
use super::view::Moment;
use super::{App, page};
use crate::domain::alert::{Alert, AlertKind};
use crate::domain::user::UserId;
use crate::store::outbox::{self, Delivery, Filter, Listed, Place, State as Progress};

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RaisedAlert)]
struct AlertView {
    alert_id: String,
    #[schema(value_type = AlertKindName)]
    kind: &'static str,
    /// What receivers know the kind by.
    #[serde(rename = "type")]
    event_type: &'static str,
    user_id: Option<String>,
    message: String,
    #[schema(value_type = Option<Object>)]
    details: Option<Box<RawValue>>,
    created_at: Moment,
    #[schema(value_type = AlertState)]
    state: &'static str,
    deliveries: Vec<DeliveryView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AlertDelivery)]
struct DeliveryView {
    endpoint: String,
    #[schema(value_type = AlertState)]
    state: &'static str,
    tries: i64,
    next_try_at: Option<Moment>,
    delivered_at: Option<Moment>,
    parked_at: Option<Moment>,
    error: Option<String>,
}

impl From<Listed> for AlertView {
    fn from(listed: Listed) -> Self {
        let Listed { alert, state, deliveries } = listed;
        Self {
            alert_id: alert.alert_id,
            kind: alert.kind.name(),
            event_type: alert.kind.event_type(),
            user_id: alert.user_id,
            message: alert.message,
            details: RawValue::from_string(alert.details).ok(),
            created_at: Moment(alert.created_at),
            state: state.name(),
            deliveries: deliveries.into_iter().map(DeliveryView::from).collect(),
        }
    }
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        let state = match (delivery.delivered_at, delivery.parked_at) {
            (Some(_), _) => Progress::Delivered,
            (None, Some(_)) => Progress::Parked,
            (None, None) => Progress::Waiting,
        };
        Self {
            endpoint: delivery.endpoint,
            state: state.name(),
            tries: delivery.tries,
            next_try_at: delivery.due_at.map(Moment),
            delivered_at: delivery.delivered_at.map(Moment),
            parked_at: delivery.parked_at.map(Moment),
            error: delivery.error,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = Option<AlertKindName>)]
    kind: Option<String>,
    #[param(value_type = Option<UserId>)]
    user_id: Option<String>,
    #[param(value_type = Option<AlertState>)]
    state: Option<String>,
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

impl ListQuery {
    fn filter(&self) -> Result<Filter, Problem> {
        let kind = self.kind.as_deref().map(|name| {
            let names = AlertKind::ALL.map(AlertKind::name).join(", ");
            AlertKind::parse(name).ok_or_else(|| Problem::invalid("kind", format!("must be one of {names}")))
        });
        let state = self.state.as_deref().map(|name| {
            let names = Progress::ALL.map(Progress::name).join(", ");
            Progress::parse(name).ok_or_else(|| Problem::invalid("state", format!("must be one of {names}")))
        });
        let user_id = self.user_id.as_deref().map(|text| UserId::parse(text).map_err(|error| Problem::invalid("user_id", error)));
        Ok(Filter { kind: kind.transpose()?, user_id: user_id.transpose()?, state: state.transpose()? })
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Alerts {
    alerts: Vec<AlertView>,
    /// A filtered page may be short, or empty, and have one: each page looks through so many alerts and no more.
    next_cursor: Option<String>,
}

/// `GET /v1/alerts`, the latest first.
#[utoipa::path(
    get, path = "/v1/alerts", tag = "alerts", operation_id = "list_alerts",
    params(ListQuery),
    responses((status = 200, description = "a page of alerts", body = Alerts)),
    security(("bearer" = ["admin"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<ListQuery>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let before = page::place(query.cursor.as_deref(), |place| {
        let (micros, alert_id) = place.split_once(' ')?;
        Some(Place { micros: micros.parse().ok()?, alert_id: alert_id.to_owned() })
    })?;
    // Also what was acknowledged a moment ago.
    let db = &mut app.meter.reader().await?;
    let (found, behind) = outbox::page(db, &query.filter()?, &before.unwrap_or(Place::LAST), i64::from(limit)).await?;
    let next_cursor = behind.map(|place| page::cursor(&format!("{} {}", place.micros, place.alert_id)));
    Ok(Json(Alerts { alerts: found.into_iter().map(AlertView::from).collect(), next_cursor }).into_response())
}

/// `GET /v1/alerts/{alert_id}`: what it says, and who was told.
#[utoipa::path(
    get, path = "/v1/alerts/{alert_id}", tag = "alerts", operation_id = "show_alert",
    params(("alert_id" = Name, Path, description = "as `GET /v1/alerts` lists it")),
    responses((status = 200, description = "the alert", body = AlertView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::AlertNotFound]))),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(alert_id): PathId,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    one(&app, &alert_id).await
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Redelivery {
    endpoint: Option<String>,
}

/// `POST /v1/alerts/{alert_id}/redeliver`: to all endpoints of today, or to one, as if nobody had been told.
#[utoipa::path(
    post, path = "/v1/alerts/{alert_id}/redeliver", tag = "alerts", operation_id = "redeliver_alert",
    params(("alert_id" = Name, Path, description = "as `GET /v1/alerts` lists it")),
    request_body(content = Option<Redelivery>, example = json!({"endpoint": "ops"})),
    responses((status = 200, description = "the alert, waiting again", body = AlertView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::AlertNotFound, ErrorCode::NoAlertEndpoint]))),
)]
pub async fn redeliver(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(alert_id): PathId,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let asked = if body.is_empty() { Redelivery::default() } else { body::one(&body)? };
    let endpoints = endpoints(&app)?;
    let chosen: Vec<&str> = endpoints.iter().copied().filter(|name| asked.endpoint.as_deref().is_none_or(|asked| asked == *name)).collect();
    if chosen.is_empty() {
        return Err(Problem::invalid("endpoint", format!("is not one of ALERT_WEBHOOKS, which are {}", endpoints.join(", "))));
    }
    // One such transaction at a time: the alert does not go meanwhile because it is old.
    let mut tx = app.store.begin().await?;
    if outbox::one(tx.connection()?, &alert_id).await?.is_none() {
        tx.commit().await?;
        return Err(missing());
    }
    outbox::again(tx.connection()?, &alert_id, &chosen, app.now()).await?;
    tx.commit().await?;
    app.teller.wake();
    one(&app, &alert_id).await
}

/// `POST /v1/alerts/test`: an alert of no meaning, on the way of all others.
#[utoipa::path(
    post, path = "/v1/alerts/test", tag = "alerts", operation_id = "send_test_alert",
    responses((status = 200, description = "the alert", body = AlertView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::NoAlertEndpoint]))),
)]
pub async fn test(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let (endpoints, now) = (endpoints(&app)?, app.now());
    let alert = Alert {
        kind: AlertKind::Test,
        key: format!("{} {}", now.timestamp_micros(), caller.key_id),
        user_id: None,
        message: "This is a test: alerts of Spendgate arrive here.".to_owned(),
        details: "{}".to_owned(),
        at: now,
    };
    let id = alert.id();
    let mut tx = app.store.begin_aside().await?;
    outbox::raise(tx.connection()?, &[alert]).await?;
    outbox::spread(tx.connection()?, std::slice::from_ref(&id), &endpoints, now).await?;
    tx.commit().await?;
    app.teller.wake();
    one(&app, &id).await
}

fn endpoints(app: &App) -> Result<Vec<&str>, Problem> {
    let endpoints = app.teller.endpoints();
    if endpoints.is_empty() {
        return Err(Problem::new(ErrorCode::NoAlertEndpoint, "set ALERT_WEBHOOKS, so that somebody can be told"));
    }
    Ok(endpoints)
}

async fn one(app: &App, alert_id: &str) -> Result<Response, Problem> {
    let found = outbox::one(&mut app.meter.reader().await?, alert_id).await?;
    Ok(Json(AlertView::from(found.ok_or_else(missing)?)).into_response())
}

fn missing() -> Problem {
    Problem::new(ErrorCode::AlertNotFound, "there is no alert of this id, or it was deleted after its days; GET /v1/alerts lists them")
}
