//! API keys, for people without a shell on the machine. The key itself is in the answer that makes it, and nowhere else.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tracing::{error, info};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Bearer, NewKey, Scope, Scopes, new_key, require};
use super::body::{self, Name, NoParams, Params, PathId};
use super::error::{ErrorCode, Problem};
use super::key_book::{self, Hand, KeyRefusal, LIFETIME_SECONDS, OVERLAP, OVERLAP_SECONDS, Rotated};
use super::openapi::shapes::{Cursor, Limit};
use super::view::Moment;
use super::{App, page};
use crate::store::keys::{self, StoredKey};
use crate::sync::Touched;

const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a key lives.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Lifetime(TimeDelta);

impl TryFrom<i64> for Lifetime {
    type Error = String;

    fn try_from(seconds: i64) -> Result<Self, String> {
        bounded(seconds, &LIFETIME_SECONDS).map(Self)
    }
}

/// How long the old key is good beside the new one.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Overlap(TimeDelta);

impl TryFrom<i64> for Overlap {
    type Error = String;

    fn try_from(seconds: i64) -> Result<Self, String> {
        bounded(seconds, &OVERLAP_SECONDS).map(Self)
    }
}

fn bounded(seconds: i64, range: &std::ops::RangeInclusive<i64>) -> Result<TimeDelta, String> {
    let good = Some(seconds).filter(|seconds| range.contains(seconds)).map(TimeDelta::seconds);
    good.ok_or_else(|| format!("must be {} to {}", range.start(), range.end()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewKey)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: Name,
    scopes: Scopes,
    /// Without it the key ends when it is revoked.
    expires_in_seconds: Option<Lifetime>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = Rotation)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    overlap_seconds: Option<Overlap>,
}

/// A key at one moment.
#[derive(Debug, Serialize, ToSchema)]
struct KeyView {
    key_id: String,
    name: String,
    scopes: Option<Scopes>,
    /// good, expired, or revoked.
    state: &'static str,
    created_at: Moment,
    expires_at: Option<Moment>,
    revoked_at: Option<Moment>,
    /// Up to a minute behind.
    last_used_at: Option<Moment>,
    /// The key that took its place.
    successor: Option<String>,
}

impl KeyView {
    fn of(key: StoredKey, now: DateTime<Utc>) -> Self {
        Self {
            state: key_book::state(&key, now),
            scopes: Scopes::parse(&key.scopes),
            key_id: key.key_id,
            name: key.name,
            created_at: Moment(key.created_at),
            expires_at: key.expires_at.map(Moment),
            revoked_at: key.revoked_at.map(Moment),
            last_used_at: key.last_used_at.map(Moment),
            successor: key.successor,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct MadeView {
    /// The key itself, this once.
    key: String,
    #[serde(flatten)]
    view: KeyView,
    /// The key whose place it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    replaced: Option<KeyView>,
}

/// Nobody between us and who asked may keep the answer.
fn shown_once(new: NewKey, replaced: Option<StoredKey>, now: DateTime<Utc>) -> Response {
    let replaced = replaced.map(|replaced| KeyView::of(replaced, now));
    let made = MadeView { key: new.text, view: KeyView::of(new.stored, now), replaced };
    ([(header::CACHE_CONTROL, "no-store")], Json(made)).into_response()
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[param(value_type = Option<Limit>)]
    limit: Option<String>,
    #[param(value_type = Option<Cursor>)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct KeysView {
    keys: Vec<KeyView>,
    next_cursor: Option<String>,
}

/// `GET /v1/keys`, the oldest first; those that ended are among them.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "list_keys",
    params(ListQuery),
    responses((status = 200, description = "a page of keys", body = KeysView)),
    security(("bearer" = ["admin"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<ListQuery>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Admin).await?;
    let limit = page::limit(query.limit.as_deref())?;
    let behind = page::place(query.cursor.as_deref(), |place| {
        let (micros, key_id) = place.split_once(' ')?;
        Some((DateTime::from_timestamp_micros(micros.parse().ok()?)?, key_id.to_owned()))
    })?;
    let found = keys::page(&mut app.store.reader().await?, behind.as_ref(), i64::from(limit)).await?;
    let last = found.last().filter(|_| usize::from(limit) <= found.len());
    let next_cursor = last.map(|last| page::cursor(&format!("{} {}", last.created_at.timestamp_micros(), last.key_id)));
    let now = app.now();
    let keys = found.into_iter().map(|key| KeyView::of(key, now)).collect();
    Ok(Json(KeysView { keys, next_cursor }).into_response())
}

/// `POST /v1/keys`. Audited.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "create_key",
    request_body(content = CreateBody, example = json!({"name": "backend", "scopes": ["check", "write"], "expires_in_seconds": 7_776_000})),
    responses((status = 200, description = "the key, shown this once", body = MadeView)),
    security(("bearer" = ["admin"])),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    key: Bearer,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let body: CreateBody = body::one(&body::read(body, BODY_BYTES_MAX).await?)?;
    let now = app.now();
    let expires_at = body.expires_in_seconds.map(|lifetime| now + lifetime.0);
    let new = new_key(random(&app)?, &body.name.0, &body.scopes, now, expires_at);
    let (done, by) = (app.clone(), caller.key_id.clone());
    let made = app.change(async move {
        let mut tx = done.store.begin().await?;
        key_book::create(tx.connection()?, Hand { key_id: &by, now }, &new).await?;
        tx.commit().await?;
        Ok((new, Touched::default()))
    });
    let new = made.await?;
    info!(key_id = %caller.key_id, made = %new.stored.key_id, "key {} was made by key {}", new.stored.key_id, caller.key_id);
    Ok(shown_once(new, None, now))
}

/// `POST /v1/keys/{key_id}/rotate`: another key of the same name and scopes; the old one is good beside it for a while. Audited.
#[utoipa::path(
    post, path = "/v1/keys/{key_id}/rotate", tag = "keys", operation_id = "rotate_key",
    params(("key_id" = Name, Path, description = "as `GET /v1/keys` lists it")),
    request_body(content = Option<RotateBody>, example = json!({"overlap_seconds": 86_400})),
    responses((status = 200, description = "its successor, shown this once", body = MadeView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::KeyNotFound, ErrorCode::KeyEnded]))),
)]
pub async fn rotate(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(key_id): PathId,
    Params(NoParams {}): Params<NoParams>,
    body: Body,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let body = body::read(body, BODY_BYTES_MAX).await?;
    let body = if body.is_empty() { RotateBody::default() } else { body::one(&body)? };
    let overlap = body.overlap_seconds.map_or(OVERLAP, |overlap| overlap.0);
    let (now, random) = (app.now(), random(&app)?);
    let (done, by) = (app.clone(), caller.key_id.clone());
    let rotated = app.change(async move {
        let rotated = async {
            let mut tx = done.store.begin().await?;
            let rotated = key_book::rotate(tx.connection()?, Hand { key_id: &by, now }, &key_id, overlap, random).await?;
            tx.commit().await?;
            Ok((rotated, Touched::default()))
        };
        let rotated = rotated.await;
        // Also where the outcome is unknown: whoever comes with it next is looked up.
        done.keys.forget(&key_id);
        rotated
    });
    let Rotated { successor, replaced } = rotated.await??;
    let (old, new) = (&replaced.key_id, &successor.stored.key_id);
    info!(key_id = %caller.key_id, replaced = %old, made = %new, "key {old} was replaced by {new}; key {} asked for it", caller.key_id);
    Ok(shown_once(successor, Some(replaced), now))
}

/// `DELETE /v1/keys/{key_id}`: refused from now on, here at once and by other nodes within five seconds. Audited.
#[utoipa::path(
    delete, path = "/v1/keys/{key_id}", tag = "keys", operation_id = "revoke_key",
    params(("key_id" = Name, Path, description = "as `GET /v1/keys` lists it")),
    responses((status = 200, description = "the key, revoked", body = KeyView)),
    security(("bearer" = ["admin"])),
    extensions(("x-problem-codes" = json!([ErrorCode::KeyNotFound, ErrorCode::LastAdminKey]))),
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    key: Bearer,
    PathId(key_id): PathId,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, Problem> {
    let caller = require(&app, &key, Scope::Admin).await?;
    let (now, done, by) = (app.now(), app.clone(), caller.key_id.clone());
    let revoked = app.change(async move {
        let revoked = async {
            let mut tx = done.store.begin().await?;
            let revoked = key_book::revoke(tx.connection()?, Hand { key_id: &by, now }, &key_id, true).await?;
            tx.commit().await?;
            Ok((revoked, Touched::default()))
        };
        let revoked = revoked.await;
        done.keys.forget(&key_id);
        revoked
    });
    let revoked = revoked.await??;
    info!(key_id = %caller.key_id, revoked = %revoked.key_id, "key {} was revoked by key {}", revoked.key_id, caller.key_id);
    Ok(Json(KeyView::of(revoked, now)).into_response())
}

fn random(app: &App) -> Result<[u8; 32], Problem> {
    (app.random)().map_err(|fault| {
        error!(error = %fault, "this machine gives no random numbers: {fault}");
        Problem::new(ErrorCode::StoreUnavailable, "this machine gives no random numbers at the moment; ask again")
    })
}

impl From<KeyRefusal> for Problem {
    fn from(refusal: KeyRefusal) -> Self {
        let code = match &refusal {
            KeyRefusal::NotFound(_) => return Self::new(ErrorCode::KeyNotFound, "there is no key of this id; GET /v1/keys lists them"),
            KeyRefusal::FromEnvironment => ErrorCode::InvalidField,
            KeyRefusal::Revoked { .. } | KeyRefusal::Expired { .. } | KeyRefusal::Replaced { .. } => ErrorCode::KeyEnded,
            KeyRefusal::LastAdmin(_) => ErrorCode::LastAdminKey,
        };
        Self::new(code, refusal.to_string())
    }
}
