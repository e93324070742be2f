//! The doors. A handler reads, asks, answers; HTTP's status codes exist in this room only.

mod accounts;
mod alerts;
pub mod auth;
mod body;
mod call;
mod caps;
mod corrections;
mod enforcement;
pub mod error;
mod events;
mod explain;
mod grants;
mod health;
mod holds;
pub mod notices;
mod page;
mod prices;
mod reconciliation;
mod reload;
pub mod serve;
mod simulate;
mod tiers;
mod upgrade;
mod usage;
mod users;
mod view;
mod webhook;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Request};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use chrono::{DateTime, Utc};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::alerts::Teller;
use crate::current::{Current, Reload};
use crate::meter::{Clock, Meter};
use crate::store::{Store, StoreError};
use crate::stripe::signature::Secret;
use crate::sync::asking::Asker;
use crate::sync::reconcile::Reconciler;
use crate::sync::{Rules, Touched};
use crate::upgrade::Upgrades;
use auth::KeyRing;
use error::{ErrorCode, Problem};
use notices::Notices;

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
    pub keys: KeyRing,
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
    pub clock: Clock,
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
        let done = tokio::spawn(async move {
            let done = work.await;
            forget(&app.meter, done.as_ref().map_or(&Touched::Many, |(_, touched)| touched));
            if let Some(asker) = &app.asker {
                asker.wake();
            }
            app.teller.wake();
            done
        });
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

/// The doors as a connection calls them. A check is asked before every model call, so it goes straight to its door: the router would
/// take a tenth of the time that it needs.
#[derive(Clone, Debug)]
pub struct Doors {
    app: Arc<App>,
    router: TowerToHyperService<Router>,
}

impl Doors {
    pub fn new(app: Arc<App>) -> Self {
        Self { router: TowerToHyperService::new(router(app.clone())), app }
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Result<Response, Infallible> {
        let is_check = request.method() == Method::GET && enforcement::user_in(request.uri().path()).is_some();
        if !is_check {
            return self.router.call(request).await;
        }
        let (head, _) = request.into_parts();
        let user = enforcement::user_in(head.uri.path()).unwrap_or_default();
        Ok(enforcement::at_once(self.app.clone(), &head, user).await)
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/users/{user_id}/enforcement", get(enforcement::one))
        .route("/v1/enforcement", post(enforcement::several))
        .route("/v1/users/{user_id}/explain", get(explain::show))
        .route("/v1/usage", post(usage::record))
        .route("/v1/corrections", post(corrections::create))
        .route("/v1/holds", get(holds::list).post(holds::create))
        .route("/v1/holds/{hold_id}", get(holds::show))
        .route("/v1/holds/{hold_id}/capture", post(holds::capture))
        .route("/v1/holds/{hold_id}/release", post(holds::release))
        .route("/v1/holds/{hold_id}/extend", post(holds::extend))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{user_id}", get(users::show).put(users::change))
        .route("/v1/users/{user_id}/usage", get(usage::list))
        .route("/v1/users/{user_id}/caps", get(caps::show).put(caps::change))
        .route("/v1/users/{user_id}/grants", get(grants::list).post(grants::create))
        .route("/v1/users/{user_id}/grants/{grant_id}", delete(grants::revoke))
        .route("/v1/accounts/{account_id}", get(accounts::show).put(accounts::change))
        .route("/v1/accounts/{account_id}/users/{user_id}", put(accounts::join).delete(accounts::leave))
        .route("/v1/tiers", get(tiers::list))
        .route("/v1/prices", get(prices::show))
        .route("/v1/simulate", post(simulate::run))
        .route("/v1/alerts", get(alerts::list))
        .route("/v1/alerts/test", post(alerts::test))
        .route("/v1/alerts/{alert_id}", get(alerts::show))
        .route("/v1/alerts/{alert_id}/redeliver", post(alerts::redeliver))
        .route("/v1/events", get(events::list))
        .route("/v1/events/{event_id}", get(events::show))
        .route("/v1/events/{event_id}/replay", post(events::replay))
        .route("/v1/admin/reload", post(reload::reload))
        .route("/v1/reconciliation", get(reconciliation::show).post(reconciliation::begin))
        .route("/webhooks/stripe", post(webhook::receive))
        .route("/upgrade", get(upgrade::page))
        .route("/upgrade/{token}", get(upgrade::open))
        .route("/billing/return/{token}", get(upgrade::returned))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .fallback(async || Problem::new(ErrorCode::NotFound, "there is nothing at this path; docs/API.md lists what there is"))
        .method_not_allowed_fallback(async || {
            Problem::new(ErrorCode::MethodNotAllowed, "this path takes another method; the Allow header says which")
        })
        .with_state(app)
}
