//! May this user spend this much?

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Bearer, Scope, require, require_at_once};
use super::body::{self, Name, NoParams, OneOrMany, Params, UserPath};
use super::call::{self, with_tokens};
use super::error::{ErrorCode, Problem};
use super::holds::{self, Short, Ttl};
use super::openapi::shapes::{Amount, Answered, Questions};
use super::usage::Metadata;
use super::view::DecisionView;
use crate::domain::judge::Ask;
use crate::domain::money::Money;
use crate::domain::operation::HoldAsk;
use crate::domain::user::UserId;
use crate::store::StoreError;

/// Users in one request.
const MANY_MAX: usize = 1000;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Reservations of one list that wait for the writer at the same time.
const RESERVED_AT_ONCE: usize = 128;
/// Checks of one list that are judged before others have a turn: they take some 4 µs each.
const JUDGED_AT_ONCE: usize = 32;
/// Room for most answers, so that it need not grow while one is written.
const ANSWER_BYTES: usize = 1024;
/// When to ask again after an answer that the store could not be read, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

with_tokens! {
    #[derive(Debug, Deserialize, IntoParams)]
    #[into_params(parameter_in = Query)]
    #[serde(deny_unknown_fields)]
    pub struct Query {
        model: Option<Name>,
        provider: Option<Name>,
        #[param(value_type = Option<Amount>)]
        estimated_cost: Option<String>,
    }
}

impl Query {
    /// The call that is asked about.
    pub fn ask(self) -> Result<Ask, Problem> {
        let cost = self.estimated_cost.as_deref().map(Money::parse).transpose();
        let cost = cost.map_err(|error| Problem::invalid("estimated_cost", error))?;
        self.counts().ask(cost, self.model, self.provider, None).map_err(|fault| call::problem(fault, ""))
    }
}

/// `GET /v1/users/{user_id}/enforcement`
#[utoipa::path(
    get, path = "/v1/users/{user_id}/enforcement", tag = "checks", operation_id = "check",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded"), Query),
    responses((status = 200, description = "the decision; a BLOCK is one too", body = DecisionView<'static>)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::MissingField]))),
)]
pub async fn one(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    Ok(decide(&app, &user, &query.ask()?, show).await)
}

/// The user's part of the path of [`one`], as it came.
pub fn user_in(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/users/")?.strip_suffix("/enforcement").filter(|part| !part.is_empty() && !part.contains('/'))
}

/// How a decision becomes an answer; the last says whether the store was there for it.
pub type Show = fn(&App, &DecisionView<'_>, bool) -> Response;

/// How far a check of one user comes without waiting for anything.
#[derive(Debug)]
pub enum Begun {
    Answered(Response),
    /// The key is good, but memory does not have all that counts.
    Waits(UserId, Ask),
    /// The key itself has to be asked for.
    Unknown,
}

impl From<Problem> for Begun {
    fn from(problem: Problem) -> Self {
        Self::Answered(problem.into_response())
    }
}

/// [`one`], as far as memory goes.
pub fn begin<B>(app: &App, request: &Request<B>, user: &str) -> Begun {
    let begun = || {
        let (UserPath(user), Params(query)) = (UserPath::read(user)?, Params::<Query>::read(request.uri().query())?);
        let now = app.now();
        match require_at_once(app, &Bearer::of(request.headers()), Scope::Check, now)? {
            None => Ok(Begun::Unknown),
            Some(_) => Ok(by_memory(app, user, query.ask()?, now, show)),
        }
    };
    begun().unwrap_or_else(|problem: Problem| problem.into())
}

pub fn by_memory(app: &App, user: UserId, ask: Ask, now: DateTime<Utc>, show: Show) -> Begun {
    let catalogue = app.catalogue.load();
    match app.meter.remembered(&catalogue, &user, now) {
        None => Begun::Waits(user, ask),
        Some(view) => {
            let decision = DecisionView::of_view(app, &user, &view, &ask, now).counted(app);
            Begun::Answered(show(app, &decision, app.meter.is_writable(now)))
        }
    }
}

with_tokens! {
    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Question {
        user_id: UserId,
        model: Option<Name>,
        provider: Option<Name>,
        #[schema(value_type = Option<Amount>)]
        estimated_cost: Option<Money>,
        metadata: Option<Metadata>,
        /// Decide and reserve in one step; then `id` and what it may cost are needed.
        #[serde(default)]
        hold: bool,
        id: Option<Name>,
        ttl_seconds: Option<Ttl>,
        if_short: Option<Short>,
    }
}

/// A question that makes sense.
enum Asked {
    Check(UserId, Ask),
    Reserve(HoldAsk),
}

impl Question {
    /// `prefix` names its place in a list.
    fn check(self, prefix: &str) -> Result<Asked, Problem> {
        let call = self
            .counts()
            .ask(self.estimated_cost, self.model, self.provider, self.metadata)
            .map_err(|fault| call::problem(fault, prefix))?;
        if self.hold {
            let missing = || Problem::field(ErrorCode::MissingField, &format!("{prefix}id"), "is missing; a hold needs an id of yours");
            let id = self.id.ok_or_else(missing)?;
            let (ttl, if_short) = (self.ttl_seconds.unwrap_or_default(), self.if_short.unwrap_or_default());
            return holds::hold_ask(id, self.user_id, call, ttl, if_short, prefix).map(Asked::Reserve);
        }
        let given = [("id", self.id.is_some()), ("ttl_seconds", self.ttl_seconds.is_some()), ("if_short", self.if_short.is_some())];
        match given.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(Problem::invalid(&format!("{prefix}{name}"), "goes with `\"hold\": true`")),
            None => Ok(Asked::Check(self.user_id, call)),
        }
    }
}

/// `POST /v1/enforcement`: one question, or a list of them.
#[utoipa::path(
    post, path = "/v1/enforcement", tag = "checks", operation_id = "check_several",
    request_body(content = Questions, example = json!({"user_id": "u_42", "model": "gpt-4o", "estimated_cost": 0.03})),
    responses((status = 200, description = "the decision, or a list of them in the order asked; with `hold`, what was reserved too", body = Answered)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::IdReused, ErrorCode::Busy]))),
)]
pub async fn several(
    State(app): State<Arc<App>>,
    key: Bearer,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let (questions, is_list) = OneOrMany::<Question>::read(&body, MANY_MAX)?.into_parts();
    let prefix = |index: usize| if is_list { format!("[{index}].") } else { String::new() };
    let asked = questions.into_iter().enumerate().map(|(index, question)| question.check(&prefix(index)));
    let mut asked = asked.collect::<Result<Vec<Asked>, _>>()?;
    if asked.iter().any(|asked| matches!(asked, Asked::Reserve(_))) {
        require(&app, &key, Scope::Write).await?;
    }
    match if is_list { None } else { asked.pop() } {
        Some(Asked::Check(user, ask)) => Ok(decide(&app, &user, &ask, show).await),
        Some(Asked::Reserve(ask)) => Ok(holds::json_text(holds::reserve(&app, ask).await?)),
        None => Ok(answers(&app, asked).await),
    }
}

/// Answers in the order asked. Reservations are each their own: one that is refused by an error has the error in its place.
async fn answers(app: &Arc<App>, asked: Vec<Asked>) -> Response {
    let users: Vec<UserId> = asked
        .iter()
        .filter_map(|asked| match asked {
            Asked::Check(user, _) => Some(user.clone()),
            Asked::Reserve(_) => None,
        })
        .collect();
    let catalogue = app.catalogue.load_full();
    let views = app.meter.views_in_time(&catalogue, &users, app.now(), app.store_timeout).await;
    let readable = views.is_ok();
    let views = match views {
        Ok(views) => views.into_iter().map(Some).collect(),
        // One whom memory knows is judged by that, whoever else is in the list.
        Err(error) => unread(app, &error, users.iter().map(|user| app.meter.remembered(&catalogue, user, app.now())).collect::<Vec<_>>()),
    };
    let mut views = views.iter();
    let mut judged: Vec<Result<String, HoldAsk>> = Vec::with_capacity(asked.len());
    // Lists take turns, and each lets others have theirs: a crowd of them is not to stand before a single check.
    let turn = if users.is_empty() { None } else { Some(app.turns.acquire().await) };
    for (place, asked) in asked.into_iter().enumerate() {
        if place % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        judged.push(match asked {
            Asked::Check(user, ask) => Ok(json(&match views.next() {
                Some(Some(view)) => DecisionView::of_view(app, &user, view, &ask, app.now()).counted(app),
                Some(None) | None => DecisionView::unread(app, &catalogue, &user, &ask).counted(app),
            })),
            Asked::Reserve(ask) => Err(ask),
        });
    }
    drop(turn);
    let answer = |judged: Result<String, HoldAsk>| async move {
        match judged {
            Ok(text) => text,
            Err(ask) => match holds::reserve(app, ask).await {
                Ok(text) => text,
                Err(problem) => json(&problem),
            },
        }
    };
    // Begun in their order, so that earlier ones are reserved first, and not so many at once that others find the queue full.
    let results: Vec<String> = stream::iter(judged).map(answer).buffered(RESERVED_AT_ONCE).collect().await;
    let response = holds::json_text(format!("{{\"results\":[{}]}}", results.join(",")));
    with_retry(response, readable && app.meter.is_writable(app.now()))
}

pub fn json(answer: &impl Serialize) -> String {
    let mut text = Vec::with_capacity(ANSWER_BYTES);
    // Nothing of an answer refuses to be written, and JSON is text.
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => String::from_utf8(text).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

pub fn show(_: &App, decision: &DecisionView<'_>, store_answers: bool) -> Response {
    with_retry(holds::json_text(json(decision)), store_answers)
}

/// Decides, and shows the decision.
pub async fn decide(app: &App, user: &UserId, ask: &Ask, show: Show) -> Response {
    let catalogue = app.catalogue.load();
    match app.meter.view_in_time(&catalogue, user, app.now(), app.store_timeout).await {
        Ok(view) => {
            // It may have waited.
            let now = app.now();
            show(app, &DecisionView::of_view(app, user, &view, ask, now).counted(app), app.meter.is_writable(now))
        }
        Err(error) => show(app, &unread(app, &error, DecisionView::unread(app, &catalogue, user, ask).counted(app)), false),
    }
}

fn unread<T>(app: &App, error: &StoreError, answer: T) -> T {
    app.telemetry.unreadable_checks.add();
    tracing::error!(%error, "a check was answered without the store: {error}");
    answer
}

pub fn with_retry(mut response: Response, store_answers: bool) -> Response {
    if !store_answers {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    response
}
