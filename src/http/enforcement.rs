//! May this user spend this much?

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::App;
use super::auth::{Scope, require};
use super::body::{self, Name, NoParams, OneOrMany, Params, UserPath};
use super::error::Problem;
use super::view::{Ask, DecisionView};
use crate::domain::money::Money;
use crate::domain::user::UserId;
use crate::store::StoreError;

/// Users in one request.
const MANY_MAX: usize = 1000;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// When to ask again after an answer that the store could not be read, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    model: Option<Name>,
    estimated_cost: Option<String>,
}

/// `GET /v1/users/{user_id}/enforcement`
pub async fn one(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    UserPath(user): UserPath,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    require(&app, &headers, Scope::Check).await?;
    let estimate = match query.estimated_cost.as_deref() {
        Some(text) => Money::parse(text).map_err(|error| Problem::invalid("estimated_cost", error))?,
        None => Money::ZERO,
    };
    let ask = Ask { model: query.model.map(|name| name.0), estimate };
    Ok(answer(&app, user, ask).await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    user_id: UserId,
    model: Option<Name>,
    estimated_cost: Option<Money>,
}

impl Question {
    fn into_parts(self) -> (UserId, Ask) {
        (self.user_id, Ask { model: self.model.map(|name| name.0), estimate: self.estimated_cost.unwrap_or_default() })
    }
}

#[derive(Debug, Serialize)]
struct Several<'c> {
    results: Vec<DecisionView<'c>>,
}

/// `POST /v1/enforcement`: one question, or a list of them.
pub async fn several(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &headers, Scope::Check).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    match OneOrMany::<Question>::read(&body, MANY_MAX)? {
        OneOrMany::One(question) => {
            let (user, ask) = question.into_parts();
            Ok(answer(&app, user, ask).await)
        }
        OneOrMany::Many(questions) => {
            let (users, asks): (Vec<_>, Vec<_>) = questions.into_iter().map(Question::into_parts).unzip();
            match app.meter.views(&users, app.now()).await {
                Ok(views) => {
                    let results = users.iter().zip(&views).zip(asks).map(|((user, view), ask)| DecisionView::of(&app, user, view, ask));
                    Ok(respond(Several { results: results.collect() }, app.meter.is_writable()))
                }
                Err(error) => {
                    let results = users.iter().zip(asks).map(|(user, ask)| DecisionView::unknown(&app, user, ask));
                    Ok(respond(unreadable(&error, Several { results: results.collect() }), false))
                }
            }
        }
    }
}

async fn answer(app: &App, user: UserId, ask: Ask) -> Response {
    match app.meter.view(&user, app.now()).await {
        Ok(view) => respond(DecisionView::of(app, &user, &view, ask), app.meter.is_writable()),
        Err(error) => respond(unreadable(&error, DecisionView::unknown(app, &user, ask)), false),
    }
}

fn unreadable<T>(error: &StoreError, answer: T) -> T {
    tracing::error!(%error, "a check was answered BLOCK: {error}");
    answer
}

/// While the store is away, an answer says when to ask again.
fn respond(answer: impl Serialize, store_answers: bool) -> Response {
    let mut response = Json(answer).into_response();
    if !store_answers {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    response
}
