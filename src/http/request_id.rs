//! A name for one request, by which an answer and the log are matched.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use tracing::{Span, error_span};

use super::error::Problem;

/// The target of the spans by which lines of the log name their request; nobody collects them.
pub const REQUEST_NAMED: &str = "request";
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is not kept.
const BYTES_MAX: usize = 128;

/// As the caller sent it, else made where it is needed.
#[derive(Debug)]
pub struct RequestId {
    text: HeaderValue,
    is_sent: bool,
}

impl RequestId {
    /// What the caller sent, if it may stand in an answer and a log: 1 to 128 visible ASCII characters, and one only.
    pub fn sent(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(REQUEST_ID)?;
        let is_good = (1..=BYTES_MAX).contains(&text.len()) && text.as_bytes().iter().all(u8::is_ascii_graphic);
        let is_one = headers.get_all(REQUEST_ID).iter().nth(1).is_none();
        (is_good && is_one).then(|| Self { text: text.clone(), is_sent: true })
    }

    /// Names one request among those of a while; it keeps no secret.
    pub fn made() -> Self {
        let text = format!("{:016x}", fastrand::u64(..));
        // Sixteen digits are a header's value.
        Self { text: HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0")), is_sent: false }
    }

    fn text(&self) -> &str {
        self.text.to_str().unwrap_or_default()
    }

    /// The span by which lines of the log name the request.
    pub fn span(&self) -> Span {
        error_span!(target: REQUEST_NAMED, "request", request_id = self.text())
    }
}

/// Puts the id on an answer: on one that went well only where the caller sent it, since most go well and nobody looks; on every other
/// one, and into the body of those that are our fault.
pub fn mark(response: Response, id: Option<RequestId>) -> Response {
    let failed = !(response.status().is_success() || response.status().is_redirection());
    let id = match id {
        Some(id) if id.is_sent || failed => id,
        None if failed => RequestId::made(),
        Some(_) | None => return response,
    };
    let mut response = name_in_body(response, id.text());
    response.headers_mut().insert(REQUEST_ID, id.text);
    response
}

/// A page that was made of a problem stays as it is.
fn name_in_body(mut response: Response, id: &str) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    if response.headers().get(header::CONTENT_TYPE) != Some(&Problem::MEDIA_TYPE) {
        return response;
    }
    // It is written by who knows its length.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    let (head, _) = response.into_parts();
    Response::from_parts(head, Body::from(problem.named(id).text()))
}
