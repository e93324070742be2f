//! One table from errors to HTTP: RFC 9457 problem details with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::error;
use utoipa::ToSchema;

use super::App;
use crate::domain::operation::{Hold, HoldEnd, Refusal};
use crate::domain::period::rfc3339;
use crate::meter::WriteError;
use crate::store::StoreError;

/// When a caller should ask again after a 503, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;
/// The same after a 429: what is counted is counted by the minute.
const RETRY_AFTER_TOO_MANY_SECONDS: u32 = 60;

/// The stable names of what can go wrong. docs/API.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    MalformedJson,
    MissingField,
    UnknownField,
    InvalidField,
    UnknownModel,
    CatalogueRefused,
    HeaderMissing,
    HeaderInvalid,
    Unauthorized,
    ForbiddenScope,
    NotFound,
    EventNotFound,
    AccountNotFound,
    PriceNotFound,
    GrantNotFound,
    AlertNotFound,
    MethodNotAllowed,
    BodyTimeout,
    BodyTooLarge,
    UnsupportedEncoding,
    IdReused,
    HoldNotFound,
    HoldEnded,
    KeyNotFound,
    KeyEnded,
    LastAdminKey,
    CustomerBound,
    BudgetIsShared,
    TooManyGrants,
    SignatureMissing,
    SignatureInvalid,
    SignatureStale,
    NotAnEvent,
    StripeNotAsked,
    NoAlertEndpoint,
    StripeUnreachable,
    LinkExpired,
    LinkInvalid,
    TooManyRequests,
    WebhookNotConfigured,
    Busy,
    StoreUnavailable,
}

impl ErrorCode {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson
            | Self::HeaderMissing
            | Self::HeaderInvalid
            | Self::SignatureMissing
            | Self::SignatureInvalid
            | Self::SignatureStale
            | Self::NotAnEvent => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForbiddenScope => StatusCode::FORBIDDEN,
            Self::NotFound
            | Self::EventNotFound
            | Self::AccountNotFound
            | Self::PriceNotFound
            | Self::GrantNotFound
            | Self::AlertNotFound
            | Self::HoldNotFound
            | Self::KeyNotFound
            | Self::LinkInvalid => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::IdReused | Self::HoldEnded | Self::CustomerBound | Self::BudgetIsShared | Self::TooManyGrants => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::MissingField | Self::UnknownField | Self::InvalidField | Self::UnknownModel | Self::CatalogueRefused => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::StripeNotAsked | Self::KeyEnded | Self::LastAdminKey | Self::NoAlertEndpoint => StatusCode::CONFLICT,
            Self::LinkExpired => StatusCode::GONE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::StripeUnreachable | Self::WebhookNotConfigured | Self::Busy | Self::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::MalformedJson => "The body is not the JSON that this door takes",
            Self::MissingField => "A field is missing",
            Self::UnknownField => "A field is not known here",
            Self::InvalidField => "A field has a value that cannot be",
            Self::UnknownModel => "The model has no price",
            Self::CatalogueRefused => "The files are refused; what held goes on",
            Self::HeaderMissing => "A header is missing",
            Self::HeaderInvalid => "A header has a value that cannot be",
            Self::Unauthorized => "An API key is needed",
            Self::ForbiddenScope => "The API key may not do this",
            Self::NotFound => "There is nothing here",
            Self::EventNotFound => "No such event was received",
            Self::AccountNotFound => "There is no such account",
            Self::PriceNotFound => "The model has no price",
            Self::GrantNotFound => "There is no such grant",
            Self::AlertNotFound => "There is no such alert",
            Self::MethodNotAllowed => "The path does not take this method",
            Self::BodyTimeout => "The body did not arrive in time",
            Self::BodyTooLarge => "The body is too large",
            Self::UnsupportedEncoding => "The body is encoded",
            Self::HoldNotFound => "There is no such hold",
            Self::HoldEnded => "The hold has ended",
            Self::KeyNotFound => "There is no such key",
            Self::KeyEnded => "The key has ended, or was replaced",
            Self::LastAdminKey => "No other key may change keys",
            Self::IdReused => "The id was used before with another body",
            Self::CustomerBound => "The Stripe customer is bound to somebody else",
            Self::BudgetIsShared => "The budget is not the user's own",
            Self::TooManyGrants => "The user has too many open grants",
            Self::SignatureMissing => "The delivery is not signed",
            Self::SignatureInvalid => "The delivery's signature does not match",
            Self::SignatureStale => "The delivery's signature is too old or too new",
            Self::NotAnEvent => "The body is not a Stripe event",
            Self::StripeNotAsked => "There is no key to ask Stripe with",
            Self::NoAlertEndpoint => "There is nobody to be told of alerts",
            Self::StripeUnreachable => "Stripe cannot be reached",
            Self::LinkExpired => "The link has expired",
            Self::LinkInvalid => "There is no such link",
            Self::TooManyRequests => "Too many requests within a minute",
            Self::WebhookNotConfigured => "No webhook secret is configured",
            Self::Busy => "Too much is asked at once",
            Self::StoreUnavailable => "The store is not available",
        }
    }
}

/// An error answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    pub title: &'static str,
    status: u16,
    pub code: ErrorCode,
    /// What was wrong, and what would be right.
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
    /// Of a fault of ours only, by which it is found in the log: other bodies are the same each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    request_id: Option<String>,
}

impl Problem {
    pub const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let (title, status, detail) = (code.title(), code.status().as_u16(), detail.into());
        Self { kind: "about:blank", title, status, code, detail, field: None, request_id: None }
    }

    pub fn named(self, request_id: &str) -> Self {
        Self { request_id: Some(request_id.to_owned()), ..self }
    }

    /// As it is sent.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// `field` as the caller wrote it, as in `cost` or `[3].cost`; `why` follows its name in the sentence.
    pub fn field(code: ErrorCode, field: &str, why: impl std::fmt::Display) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(code, format!("`{field}` {why}")) }
    }

    /// [`Problem::from_write`], where the write may be refused for a model without a price: that is told to the operator too.
    pub fn from_priced_write(app: &App, error: WriteError, is_list: bool) -> Self {
        if let WriteError::Refused(Refusal::Unpriced { model, .. }) = &error
            && !model.is_empty()
        {
            app.notices.saw_unpriced(model, app.now());
        }
        Self::from_write(error, is_list)
    }

    /// `is_list`: whether the caller sent a list, and so knows records by their place.
    pub fn from_write(error: WriteError, is_list: bool) -> Self {
        let field = |index: usize, name: &str| Some(if is_list { format!("[{index}].{name}") } else { name.to_owned() });
        match error {
            WriteError::Refused(Refusal::IdReused { index, id }) => {
                let detail = format!("under the id `{id}` another body was booked; nothing of this request was");
                Self { field: field(index, "id"), ..Self::new(ErrorCode::IdReused, detail) }
            }
            WriteError::Refused(refusal @ Refusal::TotalOutOfRange { index }) => {
                let detail = format!("{refusal}; nothing of this request was booked");
                Self { field: field(index, "cost"), ..Self::new(ErrorCode::InvalidField, detail) }
            }
            WriteError::Refused(Refusal::Unpriced { index, model }) => {
                let what = match model.as_str() {
                    "" => "is missing, and so is what the call cost".to_owned(),
                    model => format!("is `{model}`, which has no price"),
                };
                let why = format!("{what}; give `cost`, or a model that is in prices.yaml; nothing of this request was booked");
                Self {
                    field: field(index, "model"),
                    ..Self::field(ErrorCode::UnknownModel, &field(index, "model").unwrap_or_default(), why)
                }
            }
            WriteError::Refused(Refusal::NoSuchHold(id)) => {
                Self::new(ErrorCode::HoldNotFound, format!("no hold `{id}` was admitted; GET /v1/holds lists them"))
            }
            WriteError::Refused(Refusal::HoldEnded(hold)) => Self::new(ErrorCode::HoldEnded, ended(&hold)),
            WriteError::Refused(Refusal::NotSoMuch { available }) => {
                Self::invalid("amount", format!("is more than the {available} that is booked on that day for that model"))
            }
            WriteError::Busy => {
                Self::new(ErrorCode::Busy, "more writes are waiting than can be done soon; nothing of this request was booked")
            }
            // Out of date is never an answer: the writer loads what is of this moment.
            WriteError::Unconfirmed | WriteError::Refused(Refusal::OutOfDate) => {
                Self::new(ErrorCode::StoreUnavailable, "the database did not confirm; ask again with the same id, which counts once")
            }
        }
    }

    pub fn invalid(field: &str, why: impl std::fmt::Display) -> Self {
        Self::field(ErrorCode::InvalidField, field, why)
    }
}

fn ended(hold: &Hold) -> String {
    match hold.end {
        Some(HoldEnd::Captured { cost, at, .. }) => format!("hold `{}` was captured at {} with {cost}", hold.id, rfc3339(at)),
        Some(HoldEnd::Released { at }) => format!("hold `{}` was released at {}", hold.id, rfc3339(at)),
        None => format!("hold `{}` expired at {}; what was spent can still be captured", hold.id, rfc3339(hold.expires_at)),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let (code, mut response) = (self.code, (status, self.text()).into_response());
        if status.is_server_error() {
            // Whoever names the request writes the body again.
            response.extensions_mut().insert(self);
        }
        // For who counts answers.
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, Self::MEDIA_TYPE);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_TOO_MANY_SECONDS));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(fault: StoreError) -> Self {
        error!(error = %fault, "{fault}");
        Self::new(ErrorCode::StoreUnavailable, "the database did not answer; ask again, with the same id if this was a write")
    }
}
