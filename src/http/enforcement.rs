//! May this user spend this much?

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{self, Name, NoParams, OneOrMany, Params, UserPath};
use super::call::{self, with_tokens};
use super::error::{ErrorCode, Problem};
use super::holds::{self, Short, Ttl};
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
/// Room for most answers, so that it need not grow while one is written.
const ANSWER_BYTES: usize = 1024;
/// When to ask again after an answer that the store could not be read, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

with_tokens! {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Query {
        model: Option<Name>,
        provider: Option<Name>,
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
pub async fn one(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    Ok(answer(&app, user, query.ask()?).await)
}

/// The user's part of the path of [`one`], as it came.
pub fn user_in(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/users/")?.strip_suffix("/enforcement").filter(|part| !part.is_empty() && !part.contains('/'))
}

/// [`one`], without a router before it.
pub async fn at_once(app: Arc<App>, head: &Parts, user: &str) -> Response {
    let read = || Ok((UserPath::read(user)?, Params::read(head.uri.query())?));
    let answer = match read() {
        Ok((user, query)) => one(State(app), Bearer::of(&head.headers), user, query).await,
        Err(problem) => Err(problem),
    };
    answer.into_response()
}

with_tokens! {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Question {
        user_id: UserId,
        model: Option<Name>,
        provider: Option<Name>,
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
        Some(Asked::Check(user, ask)) => Ok(answer(&app, user, ask).await),
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
    let views = app.meter.views(&catalogue, &users, app.now()).await;
    let readable = views.is_ok();
    let views = views.map_err(|error| unreadable(app, &error, ())).unwrap_or_default();
    let mut views = views.iter();
    let results = asked.into_iter().map(|asked| {
        let checked = match asked {
            Asked::Check(user, ask) => Ok(json(&match views.next() {
                Some(view) => DecisionView::of_view(app, &user, view, &ask).counted(app),
                None => DecisionView::unknown(&catalogue, &user, &ask).counted(app),
            })),
            Asked::Reserve(ask) => Err(ask),
        };
        async move {
            match checked {
                Ok(text) => text,
                Err(ask) => match holds::reserve(app, ask).await {
                    Ok(text) => text,
                    Err(problem) => json(&problem),
                },
            }
        }
    });
    // Begun in their order, so that earlier ones are reserved first, and not so many at once that others find the queue full.
    let results: Vec<String> = stream::iter(results).buffered(RESERVED_AT_ONCE).collect().await;
    let response = holds::json_text(format!("{{\"results\":[{}]}}", results.join(",")));
    with_retry(response, readable && app.meter.is_writable(app.now()))
}

fn json(answer: &impl Serialize) -> String {
    let mut text = Vec::with_capacity(ANSWER_BYTES);
    // Nothing of an answer refuses to be written, and JSON is text.
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => String::from_utf8(text).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

async fn answer(app: &App, user: UserId, ask: Ask) -> Response {
    let catalogue = app.catalogue.load();
    match app.meter.view(&catalogue, &user, app.now()).await {
        Ok(view) => respond(DecisionView::of_view(app, &user, &view, &ask).counted(app), app.meter.is_writable(app.now())),
        Err(error) => respond(unreadable(app, &error, DecisionView::unknown(&catalogue, &user, &ask).counted(app)), false),
    }
}

fn unreadable<T>(app: &App, error: &StoreError, answer: T) -> T {
    app.telemetry.unreadable_checks.add();
    tracing::error!(%error, "a check was answered BLOCK: {error}");
    answer
}

/// While the store is away, an answer says when to ask again.
fn respond(answer: impl Serialize, store_answers: bool) -> Response {
    with_retry(holds::json_text(json(&answer)), store_answers)
}

fn with_retry(mut response: Response, store_answers: bool) -> Response {
    if !store_answers {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    response
}
