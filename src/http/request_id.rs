//! A name for one request, by which an answer and the log are matched.

use std::borrow::Cow;
use std::future::Future;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

use super::error::Problem;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is not kept.
const BYTES_MAX: usize = 128;

tokio::task_local! {
    /// Whose work is being done. It is asked for where a line is logged; a span would be made for every request, and hardly any logs one.
    static CURRENT: RequestId;
}

/// As the caller sent it, else made where it is needed.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// 1 to 128 visible ASCII characters.
    Sent(HeaderValue),
    /// Names one request among those of a while; it keeps no secret.
    Made(u64),
}

impl RequestId {
    /// What the caller sent, if it may stand in an answer and a log: 1 to 128 visible ASCII characters, and one only.
    pub fn sent(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(REQUEST_ID)?;
        let is_good = (1..=BYTES_MAX).contains(&text.len()) && text.as_bytes().iter().all(u8::is_ascii_graphic);
        let is_one = headers.get_all(REQUEST_ID).iter().nth(1).is_none();
        (is_good && is_one).then(|| Self::Sent(text.clone()))
    }

    pub fn made() -> Self {
        Self::Made(fastrand::u64(..))
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Sent(text) => text.to_str().unwrap_or_default().into(),
            Self::Made(number) => format!("{number:016x}").into(),
        }
    }

    /// Lines that `work` logs name the request.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    /// Lines that `work` logs name the request.
    pub fn around<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }
}

/// The name of the request whose work is being done.
pub fn current() -> Option<String> {
    CURRENT.try_with(|id| id.text().into_owned()).ok()
}

/// Work for the current request that goes on in a task of its own.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let id = CURRENT.try_with(Clone::clone).ok();
    async move {
        match id {
            Some(id) => id.around(work).await,
            None => work.await,
        }
    }
}

/// Puts the id on an answer: on one that went well only where the caller sent it, since most go well and nobody looks; on every other
/// one, and into the body of those that are our fault.
pub fn mark(response: Response, id: Option<RequestId>) -> Response {
    let failed = !(response.status().is_success() || response.status().is_redirection());
    let id = match id {
        Some(id @ RequestId::Sent(_)) => id,
        Some(id) if failed => id,
        None if failed => RequestId::made(),
        Some(RequestId::Made(_)) | None => return response,
    };
    let mut response = name_in_body(response, &id.text());
    // Visible ASCII is a header's value.
    if let Ok(text) = HeaderValue::from_str(&id.text()) {
        response.headers_mut().insert(REQUEST_ID, text);
    }
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
