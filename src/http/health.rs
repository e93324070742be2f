//! Is it alive, is it ready?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::{Alive, Ready};
use crate::store::requests::{self, Backlog};
use crate::store::{figures, inbox};

/// The process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "operation", operation_id = "alive",
    responses((status = 200, description = "the process answers", body = Alive)),
    security(()),
)]
pub async fn alive() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// How long the store may take to answer before it counts as one that does not.
const DEADLINE: Duration = Duration::from_secs(2);

/// The store answers and takes writes too, its schema is the one that this program needs, there is a catalogue, and how Stripe is listened
/// to. A store that hangs does not hang this.
#[utoipa::path(
    get, path = "/readyz", tag = "operation", operation_id = "ready",
    responses((status = 200, description = "the store answers and takes writes", body = Ready)),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::StoreUnavailable]))),
)]
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    let late = |_| Problem::new(ErrorCode::StoreUnavailable, "the store did not answer in time");
    tokio::time::timeout(DEADLINE, look(&app)).await.map_err(late)?
}

async fn look(app: &App) -> Result<Json<Value>, Problem> {
    if !app.meter.is_writable(app.now()) {
        return Err(Problem::new(
            ErrorCode::StoreUnavailable,
            "the last write was not confirmed; what is spent is not counted at the moment",
        ));
    }
    let mut db = app.store.reader().await?;
    inbox::page(&mut db, &inbox::Filter::default(), 0, 1).await?;
    let (schema, known) = (figures::schema_version(&mut db).await?, app.store.known_schema());
    // A newer one is what another node has made while it is rolled out; an older one was put there under us.
    if schema < known {
        let why = format!("the database has schema {schema}, and this service needs {known}; a start brings it up to date");
        return Err(Problem::new(ErrorCode::StoreUnavailable, why));
    }
    // Without a key events are applied as they show.
    let stripe_sync = match app.asker {
        Some(_) => {
            let Backlog { waiting, given_up } = requests::backlog(&mut db).await?;
            json!({"mode": "asked", "waiting": waiting, "given_up": given_up})
        }
        None => json!({"mode": "payload"}),
    };
    let webhook = if app.webhook_secrets.is_empty() { "not_configured" } else { "ready" };
    Ok(Json(json!({
        "status": "ready",
        "store": "writable",
        "schema": schema,
        "webhook": webhook,
        "stripe_sync": stripe_sync,
        "retried_batches": app.meter.retries(),
        "failed_rules": app.notices.failed_rules.all().into_iter().map(|(rule, seen)| (rule, seen.times)).collect::<BTreeMap<_, _>>(),
        "tiers": app.catalogue.load().tiers().len(),
    })))
}
