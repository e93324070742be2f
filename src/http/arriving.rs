//! A body on its way: in time, and as it is.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, header};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::error::{ErrorCode, Problem};
use super::serve::{Alarm, Limits};

/// Why a body is not read to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unread {
    #[error("the body took more than {0} s")]
    Late(u64),
    #[error("nothing of the body came for {0} s")]
    Stalled(u64),
    #[error("the body is encoded ({0}); send it as it is, without Content-Encoding, and with `chunked` as the only Transfer-Encoding")]
    Encoded(String),
}

impl Unread {
    /// What stands behind an error of a body, if it is one of these.
    pub fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut error = Some(error);
        while let Some(this) = error {
            if let Some(unread) = this.downcast_ref() {
                return Some(unread);
            }
            error = this.source();
        }
        None
    }
}

impl From<&Unread> for Problem {
    fn from(unread: &Unread) -> Self {
        let code = match unread {
            Unread::Late(_) | Unread::Stalled(_) => ErrorCode::BodyTimeout,
            Unread::Encoded(_) => ErrorCode::UnsupportedEncoding,
        };
        Self::new(code, unread.to_string())
    }
}

/// What hyper reads, watched. A door that reads no body does not notice.
#[derive(Debug)]
pub struct Arriving {
    body: Incoming,
    limits: Limits,
    /// When all of it must be there; set where something is waited for.
    ends_at: Option<Instant>,
    quiet_since: Option<Instant>,
    alarm: Alarm,
    refused: Option<Unread>,
}

impl Arriving {
    pub fn new(body: Incoming, headers: &HeaderMap, limits: Limits) -> Self {
        Self { body, limits, ends_at: None, quiet_since: None, alarm: Alarm::default(), refused: encoded(headers).map(Unread::Encoded) }
    }
}

/// A body that would have to be unpacked: a small one may become a large one, and Stripe's signature is of what was sent.
fn encoded(headers: &HeaderMap) -> Option<String> {
    for (name, plain) in [(header::CONTENT_ENCODING, "identity"), (header::TRANSFER_ENCODING, "chunked")] {
        for value in headers.get_all(&name) {
            let text = value.to_str().unwrap_or("?");
            if !text.split(',').all(|coding| coding.trim().eq_ignore_ascii_case(plain)) {
                return Some(format!("{name}: {}", text.chars().take(64).collect::<String>()));
            }
        }
    }
    None
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Some(refused) = &this.refused {
            return Poll::Ready(Some(Err(refused.clone().into())));
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.quiet_since = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let (now, limits) = (Instant::now(), this.limits);
                let ends_at = *this.ends_at.get_or_insert(now + limits.body);
                let stalled_at = *this.quiet_since.get_or_insert(now) + limits.body_stall;
                if !this.alarm.rings(ends_at.min(stalled_at), context) {
                    return Poll::Pending;
                }
                let is_late = ends_at <= stalled_at;
                let why = if is_late { Unread::Late(limits.body.as_secs()) } else { Unread::Stalled(limits.body_stall.as_secs()) };
                Poll::Ready(Some(Err(why.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
