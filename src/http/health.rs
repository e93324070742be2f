//! Is it alive, is it ready?

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Alive, Ready};
use crate::store::inbox;
use crate::store::requests::{self, Backlog};

/// The process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "operation", operation_id = "alive",
    responses((status = 200, description = "the process answers", body = Alive)),
    security(()),
)]
pub async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The store answers too, and how Stripe is listened to.
#[utoipa::path(
    get, path = "/readyz", tag = "operation", operation_id = "ready",
    responses((status = 200, description = "the store answers and takes writes", body = Ready)),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::StoreUnavailable]))),
)]
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    if !app.meter.is_writable(app.now()) {
        return Err(Problem::new(
            ErrorCode::StoreUnavailable,
            "the last write was not confirmed; what is spent is not counted at the moment",
        ));
    }
    inbox::page(&mut app.store.reader().await?, &inbox::Filter::default(), 0, 1).await?;
    // Without a key events are applied as they show.
    let stripe_sync = match app.asker {
        Some(_) => {
            let Backlog { waiting, given_up } = requests::backlog(&mut app.store.reader().await?).await?;
            json!({"mode": "asked", "waiting": waiting, "given_up": given_up})
        }
        None => json!({"mode": "payload"}),
    };
    let webhook = if app.webhook_secrets.is_empty() { "not_configured" } else { "ready" };
    Ok(Json(json!({
        "status": "ready",
        "webhook": webhook,
        "stripe_sync": stripe_sync,
        "retried_batches": app.meter.retries(),
        "failed_rules": app.notices.failed_rules.all().into_iter().map(|(rule, seen)| (rule, seen.times)).collect::<BTreeMap<_, _>>(),
        "tiers": app.catalogue.load().tiers().len(),
    })))
}
