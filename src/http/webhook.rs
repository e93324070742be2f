//! Where Stripe posts its events.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::error::{ErrorCode, Problem};
use super::{App, body};
use crate::stripe::event::{Event, NotAnEvent};
use crate::stripe::signature::{self, SignatureError};
use crate::sync;

/// Stripe's own events have some tens of kilobytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
const SIGNATURE: &str = "stripe-signature";

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventReceived)]
pub struct Received {
    received: bool,
    duplicate: bool,
}

/// `POST /webhooks/stripe`
#[utoipa::path(
    post, path = "/webhooks/stripe", tag = "stripe", operation_id = "receive_event",
    params(("Stripe-Signature" = String, Header, description = "`t=…,v1=…` over the raw body")),
    request_body(content = Object, description = "one of Stripe's events, as it was signed"),
    responses((status = 200, description = "it is on the disk", body = Received)),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::SignatureMissing, ErrorCode::SignatureInvalid, ErrorCode::SignatureStale, ErrorCode::NotAnEvent, ErrorCode::MalformedJson, ErrorCode::BodyTimeout, ErrorCode::BodyTooLarge, ErrorCode::UnsupportedEncoding, ErrorCode::WebhookNotConfigured, ErrorCode::StoreUnavailable]))),
)]
pub async fn receive(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Received>, Problem> {
    let received = take(&app, &headers, body).await;
    let counts = &app.telemetry.deliveries;
    let outcome = match received.as_ref().map_err(|problem| problem.code) {
        Ok(Json(Received { duplicate: false, .. })) => &counts.accepted,
        Ok(Json(Received { duplicate: true, .. })) => &counts.duplicate,
        Err(ErrorCode::SignatureMissing | ErrorCode::SignatureInvalid) => &counts.bad_signature,
        Err(ErrorCode::SignatureStale) => &counts.stale,
        Err(ErrorCode::NotAnEvent) => &counts.not_an_event,
        Err(_) => &counts.failed,
    };
    outcome.add();
    received
}

async fn take(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Json<Received>, Problem> {
    if app.webhook_secrets.is_empty() {
        return Err(Problem::new(
            ErrorCode::WebhookNotConfigured,
            "set STRIPE_WEBHOOK_SECRETS to the endpoint's signing secret; nothing was stored",
        ));
    }
    let now = app.now();
    let body = body::read(body, BODY_BYTES_MAX).await?;
    signature::verify(signature_header(headers)?, &body, &app.webhook_secrets, now)?;
    app.telemetry.deliveries.verified(now.timestamp_micros());
    let event = Event::from_json(&body, now)?;
    let done = app.clone();
    let duplicate = app.change(async move {
        let catalogue = done.catalogue.load_full();
        let accepted = sync::accept(&done.store, &catalogue, &done.rules, &event, &body, now).await?;
        if let Some(reconciler) = done.reconciler.as_ref().filter(|_| accepted.renamed) {
            reconciler.want();
        }
        Ok((accepted.duplicate, accepted.touched))
    });
    Ok(Json(Received { received: true, duplicate: duplicate.await? }))
}

fn signature_header(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(SIGNATURE).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        (None, _) => Err(Problem::new(ErrorCode::SignatureMissing, "there is no Stripe-Signature header")),
        (Some(_), _) => Err(SignatureError::Malformed.into()),
    }
}

impl From<SignatureError> for Problem {
    fn from(error: SignatureError) -> Self {
        warn!("a delivery was refused: {error}");
        let code = match error {
            SignatureError::Malformed | SignatureError::Mismatch => ErrorCode::SignatureInvalid,
            SignatureError::Stale(_) => ErrorCode::SignatureStale,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NotAnEvent> for Problem {
    fn from(error: NotAnEvent) -> Self {
        warn!("a signed delivery was refused: {error}");
        Self::new(ErrorCode::NotAnEvent, error.to_string())
    }
}
