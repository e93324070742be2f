//! Is it alive, is it ready?

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::{ErrorCode, Problem};
use crate::store::inbox;

/// The process answers.
pub async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The store answers too, and how Stripe is listened to.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    if !app.meter.is_writable(app.now()) {
        return Err(Problem::new(
            ErrorCode::StoreUnavailable,
            "the last write was not confirmed; what is spent is not counted at the moment",
        ));
    }
    inbox::page(&mut *app.store.reader().await?, &inbox::Filter::default(), 0, 1).await?;
    let webhook = if app.webhook_secrets.is_empty() { "not_configured" } else { "ready" };
    Ok(Json(json!({
        "status": "ready",
        "webhook": webhook,
        // Events are applied as they show; Stripe itself is not asked.
        "stripe_sync": "payload",
        "tiers": app.catalogue.tiers().len(),
    })))
}
