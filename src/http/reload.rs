//! The files that say what may be spent, read again.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::info;
use utoipa::ToSchema;

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{NoParams, Params};
use super::error::{ErrorCode, Problem};
use crate::domain::difference::Difference;

#[derive(Debug, Serialize, ToSchema)]
struct ReloadView {
    changed: Vec<Difference>,
    tiers: usize,
    models: usize,
}

/// `POST /v1/admin/reload`: reads tiers.yaml and prices.yaml again, all or nothing.
#[utoipa::path(
    post, path = "/v1/admin/reload", tag = "catalogue", operation_id = "reload",
    responses((status = 200, description = "what changed", body = ReloadView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::CatalogueRefused]))),
)]
pub async fn reload(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    info!(key_id = %caller.key_id, "key {} has the files read again", caller.key_id);
    let reload = app.reload.clone();
    // It reads files, and waits for who reads them already.
    let read = tokio::task::spawn_blocking(move || reload.run()).await;
    let refused = |why| Problem::new(ErrorCode::CatalogueRefused, why);
    let reloaded = read.map_err(|_| refused("reading did not end; what held goes on".to_owned()))?.map_err(refused)?;
    Ok(Json(ReloadView { changed: reloaded.changed, tiers: reloaded.tiers, models: reloaded.models }).into_response())
}
