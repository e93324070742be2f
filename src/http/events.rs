//! The inbox: what Stripe said, and what it did.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, Scope, require};
use super::body::{Name, NoParams, Params, PathId};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Cursor, Limit, MaybeShown};
use super::view::Moment;
use super::{App, page};
use crate::domain::subscription::Item;
use crate::store::inbox::{self, Alert, EventState, Filter, Received};
use crate::stripe::event::Event;
use crate::stripe::subscription::Shown;
use crate::sync::{self, ReplayError, Touched};

#[derive(Debug, Serialize, ToSchema)]
struct EventView {
    event_id: String,
    #[serde(rename = "type")]
    kind: String,
    customer: Option<String>,
    received_at: Moment,
    applied_at: Moment,
    state: EventState,
    effect: String,
    alerts: Vec<Alert>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    understood: Option<Understood>,
}

impl EventView {
    fn of(received: Received, understood: Option<Understood>) -> Self {
        Self {
            event_id: received.event_id,
            kind: received.kind,
            customer: received.customer,
            received_at: Moment(received.received_at),
            applied_at: Moment(received.applied_at),
            state: received.effect.state,
            effect: received.effect.sentence,
            alerts: received.effect.alerts,
            understood,
        }
    }
}

/// What was read from the event's body.
#[derive(Debug, Serialize, ToSchema)]
struct Understood {
    created: Moment,
    livemode: bool,
    account: Option<String>,
    api_version: Option<String>,
    object: Option<String>,
    object_id: Option<String>,
    customer: Option<String>,
    subscription: Option<String>,
    user_hint: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = MaybeShown)]
    shown: Option<ShownView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShownView {
    status: Option<String>,
    items: Vec<ItemView>,
    period_end: Option<Moment>,
    cancel_at_period_end: bool,
    cancel_at: Option<Moment>,
    ended_at: Option<Moment>,
    trial_end: Option<Moment>,
    pause_collection: bool,
    pending_update: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct ItemView {
    price: Option<String>,
    lookup_key: Option<String>,
    product: Option<String>,
    quantity: Option<u64>,
}

impl From<Event> for Understood {
    fn from(event: Event) -> Self {
        Self {
            created: Moment(event.created),
            livemode: event.livemode,
            account: event.account,
            api_version: event.api_version,
            object: event.facts.object,
            object_id: event.facts.object_id,
            customer: event.facts.customer,
            subscription: event.facts.subscription,
            user_hint: event.facts.user_hint,
            shown: event.facts.shown.map(ShownView::from),
        }
    }
}

impl From<Shown> for ShownView {
    fn from(shown: Shown) -> Self {
        let item = |item: Item| ItemView { price: item.price, lookup_key: item.lookup_key, product: item.product, quantity: item.quantity };
        Self {
            status: shown.status,
            items: shown.items.into_iter().map(item).collect(),
            period_end: shown.period_end.map(Moment),
            cancel_at_period_end: shown.cancel_at_period_end,
            cancel_at: shown.cancel_at.map(Moment),
            ended_at: shown.ended_at.map(Moment),
            trial_end: shown.trial_end.map(Moment),
            pause_collection: shown.pause_collection,
            pending_update: shown.pending_update,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = Option<EventState>)]
    state: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    customer: Option<String>,
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Events {
    events: Vec<EventView>,
    next_cursor: Option<String>,
}

/// `GET /v1/events`, the latest first.
#[utoipa::path(
    get, path = "/v1/events", tag = "stripe", operation_id = "list_events",
    params(ListQuery),
    responses((status = 200, description = "a page of the inbox", body = Events)),
    security(("bearer" = ["admin"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<ListQuery>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let before = page::place(query.cursor.as_deref(), |place| place.parse().ok())?.unwrap_or(i64::MAX);
    let state = query.state.as_deref().map(|name| {
        let names = EventState::ALL.map(EventState::name).join(", ");
        EventState::parse(name).ok_or_else(|| Problem::invalid("state", format!("must be one of {names}")))
    });
    let filter = Filter { state: state.transpose()?, kind: query.kind, customer: query.customer };
    let found = inbox::page(&mut app.store.reader().await?, &filter, before, i64::from(limit)).await?;
    let full = usize::from(limit) <= found.len();
    let next_cursor = found.last().filter(|_| full).map(|event| page::cursor(&event.seq.to_string()));
    let events = found.into_iter().map(|event| EventView::of(event, None)).collect();
    Ok(Json(Events { events, next_cursor }).into_response())
}

/// `GET /v1/events/{event_id}`
#[utoipa::path(
    get, path = "/v1/events/{event_id}", tag = "stripe", operation_id = "show_event",
    params(("event_id" = Name, Path, description = "Stripe's id of the event")),
    responses((status = 200, description = "the event, and what was understood of it", body = EventView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::EventNotFound]))),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(event_id): PathId,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    one(&app, &event_id).await
}

/// `POST /v1/events/{event_id}/replay`: applies it again, as after a change of tiers.yaml or of a binding.
#[utoipa::path(
    post, path = "/v1/events/{event_id}/replay", tag = "stripe", operation_id = "replay_event",
    params(("event_id" = Name, Path, description = "Stripe's id of the event")),
    responses((status = 200, description = "the event, applied again", body = EventView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::EventNotFound, ErrorCode::NotAnEvent]))),
)]
pub async fn replay(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(event_id): PathId,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let (done, id, now) = (app.clone(), event_id.clone(), app.now());
    let replayed = app.change(async move {
        let catalogue = done.catalogue.load_full();
        match sync::replay(&done.store, &catalogue, &done.rules, &id, now).await {
            Ok(accepted) => Ok((Ok(()), accepted.map(|accepted| accepted.touched).unwrap_or_default())),
            Err(ReplayError::NotAnEvent(error)) => Ok((Err(error), Touched::default())),
            Err(ReplayError::Store(error)) => Err(error),
        }
    });
    replayed.await??;
    one(&app, &event_id).await
}

async fn one(app: &App, event_id: &str) -> Result<Response, Problem> {
    let found = inbox::one(&mut app.store.reader().await?, event_id).await?;
    let missing = || Problem::new(ErrorCode::EventNotFound, "no event of this id was received; GET /v1/events lists them");
    let (received, body) = found.ok_or_else(missing)?;
    let understood = Event::from_json(&body, received.received_at).ok().map(Understood::from);
    Ok(Json(EventView::of(received, understood)).into_response())
}
