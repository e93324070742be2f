//! The doors. A handler reads, asks, answers; HTTP's status codes exist in this room only.

mod accounts;
mod alerts;
mod arriving;
pub mod auth;
mod body;
mod call;
mod caps;
mod corrections;
pub mod doors;
mod enforcement;
pub mod error;
mod events;
mod explain;
pub mod gate;
mod grants;
mod health;
mod holds;
pub mod key_book;
pub mod key_ring;
mod keys;
mod lanes;
pub mod metrics;
pub mod notices;
mod openapi;
mod page;
mod prices;
mod reconciliation;
mod reload;
pub mod request_id;
pub mod serve;
mod simulate;
mod tiers;
mod trace;
mod upgrade;
mod usage;
mod users;
mod view;
mod webhook;

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::future::Either;
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::alerts::Teller;
use crate::current::{Current, Reload};
use crate::meter::{Clock, Meter};
use crate::store::{Store, StoreError};
use crate::stripe::signature::Secret;
use crate::sync::asking::Asker;
use crate::sync::reconcile::Reconciler;
use crate::sync::{Rules, Touched};
use crate::telemetry::Telemetry;
use crate::upgrade::Upgrades;
use arriving::Arriving;
use enforcement::{Begun, Show};
use error::{ErrorCode, Problem};
use gate::Gate;
use key_ring::KeyRing;
use lanes::{Lane, Lanes};
use notices::Notices;
use request_id::RequestId;
use serve::{Limits, Listener};

/// Connections at once to `METRICS_ADDR`.
const METRICS_CONNECTIONS_MAX: usize = 64;

/// What every door needs.
pub struct App {
    pub store: Store,
    pub meter: Arc<Meter>,
    pub catalogue: Current,
    /// Reads the files of the catalogue again.
    pub reload: Reload,
    pub notices: Notices,
    /// Tells others of alerts.
    pub teller: Arc<Teller>,
    pub keys: Arc<KeyRing>,
    /// 256 bits that nobody can guess.
    pub random: fn() -> anyhow::Result<[u8; 32]>,
    /// Empty: the webhook door says so and takes nothing.
    pub webhook_secrets: Vec<Secret>,
    pub rules: Rules,
    /// Asks Stripe; `None` where events are applied as they show.
    pub asker: Option<Arc<Asker>>,
    /// Compares everything with Stripe; `None` where it is not asked.
    pub reconciler: Option<Arc<Reconciler>>,
    /// Makes links to buy more, and follows them; `None` where Stripe is not asked.
    pub upgrades: Option<Arc<Upgrades>>,
    /// Where users reach this service; without a slash at its end.
    pub public_url: String,
    /// Where people go who are back from Stripe; `None` is our own page.
    pub return_url: Option<String>,
    /// How long a check waits for the store.
    pub store_timeout: Duration,
    pub gate: Gate,
    /// Lists of checks that are judged at the same time: one for each core, so that a single check never waits for more than these.
    pub turns: Semaphore,
    pub clock: Clock,
    pub started_at: DateTime<Utc>,
    pub telemetry: Telemetry,
    /// What the database said of itself lately.
    pub figures: metrics::Kept,
}

impl App {
    fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Does what changes a user's record, and then lets memory forget him, to the end also where the caller goes away meanwhile:
    /// a commit that memory did not hear of would never be seen. Where the outcome is unknown, memory forgets everybody. Whoever asks
    /// Stripe looks whether there is something to ask.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<(T, Touched), StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let app = self.clone();
        let work = async move {
            let done = work.await;
            forget(&app.meter, done.as_ref().map_or(&Touched::Many, |(_, touched)| touched));
            if let Some(asker) = &app.asker {
                asker.wake();
            }
            app.teller.wake();
            done
        };
        // Its lines in the log are of this request.
        let done = tokio::spawn(request_id::carried(work).in_current_span());
        done.await.unwrap_or_else(|_| Err(StoreError::torn())).map(|(done, _)| done)
    }
}

/// Lets memory forget whose record changed.
pub fn forget(meter: &Meter, touched: &Touched) {
    match touched {
        Touched::Users(users) => users.iter().for_each(|user| meter.forget(user)),
        Touched::Many => meter.forget_all(),
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

/// What a request comes to.
pub type Answer = Either<Ready<Result<Response, Infallible>>, Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>>;

/// The doors as a connection calls them. A check is asked before every model call, so it goes straight to its door: the router would
/// take a tenth of the time that it needs.
#[derive(Clone, Debug)]
pub struct Doors {
    app: Arc<App>,
    router: TowerToHyperService<Router>,
    lanes: Arc<Lanes>,
    limits: Limits,
}

impl Doors {
    pub fn new(app: Arc<App>, limits: Limits) -> Self {
        Self { router: TowerToHyperService::new(router(app.clone())), app, lanes: Arc::default(), limits }
    }

    /// Most checks are answered by memory alone, at once. Everything else is a future on the heap: as a part of a connection's own it
    /// would be moved with it, some kilobytes for each request.
    pub fn answer(&self, request: Request<Incoming>) -> Answer {
        let watched = trace::Watched::begin(&request);
        let id = RequestId::sent(request.headers());
        let span = watched.span.clone();
        let begin = || self.begin(&request);
        let begun = span.in_scope(|| match &id {
            Some(id) => id.clone().within(begin),
            None => begin(),
        });
        match begun {
            Some((Begun::Answered(response), _)) => {
                let response = request_id::mark(response, id);
                watched.end(&self.app.telemetry, &response);
                Either::Left(ready(Ok(response)))
            }
            Some((Begun::Waits(user, ask), show)) => {
                let doors = self.clone();
                let id = id.unwrap_or_else(RequestId::made);
                let answer = async move {
                    let response = match doors.lanes.enter(Lane::Check) {
                        Some(_place) => id.clone().around(enforcement::decide(&doors.app, &user, &ask, show)).await,
                        None => Lane::Check.busy().into_response(),
                    };
                    let response = request_id::mark(response, Some(id));
                    watched.end(&doors.app.telemetry, &response);
                    Ok(response)
                };
                Either::Right(Box::pin(answer.instrument(span)))
            }
            Some((Begun::Unknown, _)) | None => {
                let doors = self.clone();
                Either::Right(Box::pin(async move {
                    let response = doors.admit(request, id).instrument(span).await?;
                    watched.end(&doors.app.telemetry, &response);
                    Ok(response)
                }))
            }
        }
    }

    /// A check of one user, as far as memory goes; it takes no place in a lane, since there are no more of them at once than threads.
    fn begin(&self, request: &Request<Incoming>) -> Option<(Begun, Show)> {
        let path = request.uri().path();
        if gate::is_at(path) {
            return Some((gate::begin(&self.app, request.headers()), gate::show));
        }
        let user = enforcement::user_in(path).filter(|_| request.method() == Method::GET)?;
        Some((enforcement::begin(&self.app, request, user), enforcement::show))
    }

    async fn admit(&self, request: Request<Incoming>, id: Option<RequestId>) -> Result<Response, Infallible> {
        let lane = Lane::of(request.method(), request.uri().path(), request.body().size_hint().exact());
        let Some(_place) = self.lanes.enter(lane) else { return Ok(request_id::mark(lane.busy().into_response(), id)) };
        let id = id.unwrap_or_else(RequestId::made);
        // Whatever method it has, and whatever stands behind its path.
        let response = if gate::is_at(request.uri().path()) {
            let (head, _) = request.into_parts();
            id.clone().around(gate::ask(State(self.app.clone()), head.headers)).await.into_response()
        } else {
            let (head, body) = request.into_parts();
            let body = Body::new(Arriving::new(body, &head.headers, self.limits));
            id.clone().around(self.router.call(Request::from_parts(head, body))).await?
        };
        Ok(request_id::mark(response, Some(id)))
    }
}

/// Serves [`metrics::router`] until it is dropped.
pub async fn serve_metrics(listener: Listener, limits: Limits, app: Arc<App>) {
    let router = TowerToHyperService::new(metrics::router(app));
    let answer = move |request: Request<Incoming>| {
        let router = router.clone();
        async move { router.call(request).await }
    };
    // Scrapers are few; whoever else comes is not to take the handles that checks need.
    let limits = Limits { connections: METRICS_CONNECTIONS_MAX, ..limits };
    if let Err(error) = serve::serve(listener, None, limits, Arc::default(), answer, std::future::pending()).await {
        tracing::error!(%error, "metrics are served no more: {error}");
    }
}

/// Every door, with its description. A handler is registered by its name: its path and method are those of its `#[utoipa::path]`.
fn doors() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(enforcement::one))
        .routes(routes!(enforcement::several))
        .routes(routes!(gate::ask))
        .routes(routes!(explain::show))
        .routes(routes!(usage::record))
        .routes(routes!(usage::list))
        .routes(routes!(corrections::create))
        .routes(routes!(holds::list, holds::create))
        .routes(routes!(holds::show))
        .routes(routes!(holds::capture))
        .routes(routes!(holds::release))
        .routes(routes!(holds::extend))
        .routes(routes!(users::list))
        .routes(routes!(users::show, users::change))
        .routes(routes!(caps::show, caps::change))
        .routes(routes!(grants::list, grants::create))
        .routes(routes!(grants::revoke))
        .routes(routes!(accounts::show, accounts::change))
        .routes(routes!(accounts::join, accounts::leave))
        .routes(routes!(tiers::list))
        .routes(routes!(prices::show))
        .routes(routes!(simulate::run))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(alerts::list))
        .routes(routes!(alerts::test))
        .routes(routes!(alerts::show))
        .routes(routes!(alerts::redeliver))
        .routes(routes!(events::list))
        .routes(routes!(events::show))
        .routes(routes!(events::replay))
        .routes(routes!(reload::reload))
        .routes(routes!(reconciliation::show, reconciliation::begin))
        .routes(routes!(webhook::receive))
        .routes(routes!(upgrade::page))
        .routes(routes!(upgrade::open))
        .routes(routes!(upgrade::returned))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::show))
        .routes(routes!(openapi::pages::document))
        .routes(routes!(openapi::pages::page))
        .routes(routes!(openapi::pages::part))
}

fn router(app: Arc<App>) -> Router {
    let (router, _) = doors().split_for_parts();
    router
        .fallback(async || Problem::new(ErrorCode::NotFound, "there is nothing at this path; docs/API.md lists what there is"))
        .method_not_allowed_fallback(async || {
            Problem::new(ErrorCode::MethodNotAllowed, "this path takes another method; the Allow header says which")
        })
        .with_state(app)
}
