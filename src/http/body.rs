//! Reads what a caller sent: bounded, in time, and with the name of the field that is wrong.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use chrono::{DateTime, Datelike, Utc};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::arriving::Unread;
use super::error::{ErrorCode, Problem};
use crate::domain::user::{AccountId, UserId};

/// The whole body, of at most `limit` bytes. How long it may take is seen to while it arrives.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(ErrorCode::BodyTooLarge, format!("the body has more than {limit} bytes; send less at once"));
    // One that says so itself is not waited for.
    if u64::try_from(limit).is_ok_and(|limit| limit < body.size_hint().lower()) {
        return Err(too_large());
    }
    let (mut body, mut whole) = (Limited::new(body, limit), Vec::new());
    // Each piece is a part of what the connection had read, and keeps all of that while it is kept: of many small pieces kept, each would
    // keep kilobytes.
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(piece)) if whole.is_empty() && body.is_end_stream() => return Ok(piece),
            Ok(Ok(piece)) => whole.extend_from_slice(&piece),
            // What follows a body says nothing to us.
            Ok(Err(_)) => {}
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(error) => {
                let broken = || Problem::new(ErrorCode::MalformedJson, "the body broke off before its end");
                return Err(Unread::behind(&*error).map_or_else(broken, Problem::from));
            }
        }
    }
    Ok(Bytes::from(whole))
}

/// What one request may ask at once.
#[derive(Debug)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// Reads an object, or an array of 1 to `most` objects.
    pub fn read(body: &[u8], most: usize) -> Result<Self, Problem>
    where
        T: DeserializeOwned,
    {
        let text = text(body)?;
        if !text.starts_with('[') {
            return object(text, "").map(Self::One);
        }
        let raw: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        if raw.is_empty() || most < raw.len() {
            let detail = format!("the list has {} items; send 1 to {most} at once", raw.len());
            return Err(Problem::new(ErrorCode::InvalidField, detail));
        }
        raw.iter().enumerate().map(|(index, raw)| object(raw.get(), &format!("[{index}]."))).collect::<Result<_, _>>().map(Self::Many)
    }

    /// The items, and whether the caller sent a list.
    pub fn into_parts(self) -> (Vec<T>, bool) {
        match self {
            Self::One(item) => (vec![item], false),
            Self::Many(items) => (items, true),
        }
    }
}

/// A body that is one JSON object.
pub fn one<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    object(text(body)?, "")
}

fn text(body: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::new(ErrorCode::MalformedJson, "the body is not UTF-8"))?;
    Ok(text.trim_ascii())
}

/// Fields are named with `prefix` before them. An array is not taken for an object, as serde would.
fn object<T: DeserializeOwned>(text: &str, prefix: &str) -> Result<T, Problem> {
    if !text.starts_with('{') {
        let what = if prefix.is_empty() { "the body".to_owned() } else { format!("`{}`", prefix.trim_end_matches('.')) };
        return Err(Problem::new(ErrorCode::MalformedJson, format!("{what} is not a JSON object; write {{\"name\": value, …}}")));
    }
    // Keeping the path to a fault costs as much as reading, so it is kept only where there is one.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let (told, path) = (without_position(&error.inner().to_string()), error.path().to_string());
        if error.inner().is_data() { named(&told, &path, prefix) } else { unreadable(text, error.inner(), &told, &path, prefix) }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(ErrorCode::MalformedJson, format!("the body is not JSON: {error}"))
}

/// No JSON, or a value that no field can have: a number beyond all floats, half of a pair of characters, something else than a word where
/// one of some words is expected. `serde_json` calls them alike, but the latter are the fault of one field.
fn unreadable(text: &str, error: &serde_json::Error, told: &str, path: &str, prefix: &str) -> Problem {
    let field = path.split(['.', '[']).next().filter(|field| !field.is_empty() && *field != "?");
    match field.filter(|_| serde_json::from_str::<IgnoredAny>(text).is_ok()) {
        Some(field) => {
            let why = if told == "expected value" { "another kind of value is expected" } else { told };
            Problem::invalid(&format!("{prefix}{field}"), format!("does not fit: {why}"))
        }
        None => malformed(error),
    }
}

/// serde says what is wrong in a sentence; the field's name is in it, or in the path to it.
fn named(message: &str, path: &str, prefix: &str) -> Problem {
    let quoted = message.split('`').nth(1).unwrap_or_default();
    let inner = if path == "." { String::new() } else { format!("{path}.") };
    if message.starts_with("unknown field") {
        let expected = message.split_once(", ").map(|(_, expected)| expected.to_owned()).unwrap_or_default();
        return Problem::field(ErrorCode::UnknownField, &format!("{prefix}{quoted}"), format!("is not known here; {expected}"));
    }
    if message.starts_with("missing field") {
        return Problem::field(ErrorCode::MissingField, &format!("{prefix}{quoted}"), "is missing");
    }
    if message.starts_with("duplicate field") {
        return Problem::field(ErrorCode::InvalidField, &format!("{prefix}{quoted}"), "is given twice");
    }
    let field = format!("{prefix}{}", inner.trim_end_matches('.'));
    let message = without_value(message).replace("expected i64", "expected a whole number").replace("expected a map", "expected an object");
    let why = if message.starts_with("invalid ") { format!("does not fit: {message}") } else { message };
    Problem::invalid(&field, why)
}

/// serde repeats the text that does not fit. It is nothing for an answer, which may be kept where the request is not: somebody may have sent
/// a secret in the wrong place.
fn without_value(message: &str) -> String {
    let end = message.rfind(", expected").unwrap_or(message.len());
    let kind = ["invalid type: string", "invalid value: string", "unknown variant"].into_iter().find(|kind| message.starts_with(kind));
    match kind {
        Some(kind) => format!("{kind}{}", &message[end..]),
        None => message.to_owned(),
    }
}

/// `serde_json` adds where in the text; the path says it better.
fn without_position(message: &str) -> String {
    message.rfind(" at line ").map_or(message, |end| &message[..end]).to_owned()
}

/// The parameters after the question mark; an unknown one is refused by name.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(parts.uri.query())
    }
}

impl<T: DeserializeOwned> Params<T> {
    /// Reads what stands after the question mark.
    pub fn read(query: Option<&str>) -> Result<Self, Problem> {
        let query = query.unwrap_or_default();
        // `%` is how a control character comes; most queries have none.
        if query.contains('%')
            && let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).find(|(_, value)| value.chars().any(char::is_control))
        {
            return Err(Problem::invalid(&name, "has a control character"));
        }
        // Keeping the path to a fault costs as much as reading, so it is kept only where there is one.
        if let Ok(params) = serde_urlencoded::from_str(query) {
            return Ok(Self(params));
        }
        let deserializer = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        let read = serde_path_to_error::deserialize(deserializer);
        read.map(Self).map_err(|error| named(&error.inner().to_string(), &error.path().to_string(), ""))
    }
}

/// A door without parameters: whatever stands after the question mark is refused by name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// The one variable part of a path, decoded.
#[derive(Debug)]
pub struct PathText(pub String);

impl<S: Sync + Send> FromRequestParts<S> for PathText {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(ErrorCode::NotFound, "the path is not percent-encoded UTF-8"))?;
        Ok(Self(text))
    }
}

/// An id in a path, which the store is asked for.
#[derive(Debug)]
pub struct PathId(pub String);

impl<S: Sync + Send> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let PathText(text) = PathText::from_request_parts(parts, state).await?;
        // No id of anything has one, and Postgres cannot be asked for it.
        if text.chars().any(char::is_control) {
            return Err(Problem::new(ErrorCode::NotFound, "the path has a control character"));
        }
        Ok(Self(text))
    }
}

/// The `{user_id}` of a path.
#[derive(Debug)]
pub struct UserPath(pub UserId);

impl<S: Sync + Send> FromRequestParts<S> for UserPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Self::not_text())?;
        Self::parse(&text)
    }
}

impl UserPath {
    /// Reads the part of a path as it came, percent-encoded.
    pub fn read(part: &str) -> Result<Self, Problem> {
        let text = percent_decode_str(part).decode_utf8().map_err(|_| Self::not_text())?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        UserId::parse(text).map(Self).map_err(|error| Problem::invalid("user_id", error))
    }

    fn not_text() -> Problem {
        Problem::invalid("user_id", "in the path is not percent-encoded UTF-8")
    }
}

/// The `{account_id}` of a path.
#[derive(Debug)]
pub struct AccountPath(pub AccountId);

impl<S: Sync + Send> FromRequestParts<S> for AccountPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let PathText(text) = PathText::from_request_parts(parts, state).await?;
        AccountId::parse(&text).map(Self).map_err(|error| Problem::invalid("account_id", error))
    }
}

/// The `{account_id}` and the `{user_id}` of a path.
#[derive(Debug)]
pub struct MemberPath(pub AccountId, pub UserId);

impl<S: Sync + Send> FromRequestParts<S> for MemberPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((account, user)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(ErrorCode::NotFound, "the path is not percent-encoded UTF-8"))?;
        let account = AccountId::parse(&account).map_err(|error| Problem::invalid("account_id", error))?;
        let user = UserId::parse(&user).map_err(|error| Problem::invalid("user_id", error))?;
        Ok(Self(account, user))
    }
}

/// The `{user_id}` and the `{grant_id}` of a path.
#[derive(Debug)]
pub struct GrantPath(pub UserId, pub String);

impl<S: Sync + Send> FromRequestParts<S> for GrantPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((user, grant)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(ErrorCode::NotFound, "the path is not percent-encoded UTF-8"))?;
        // No id of anything has one, and Postgres cannot be asked for it.
        if grant.chars().any(char::is_control) {
            return Err(Problem::new(ErrorCode::NotFound, "the path has a control character"));
        }
        let user = UserId::parse(&user).map_err(|error| Problem::invalid("user_id", error))?;
        Ok(Self(user, grant))
    }
}

/// A name that a caller chose: 1 to 255 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(pub String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() || 255 < text.len() || text.chars().any(char::is_control) {
            return Err("must have 1 to 255 bytes and no control characters");
        }
        Ok(Self(text))
    }
}

/// A moment from 1970 to 9999, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Time(pub DateTime<Utc>);

impl TryFrom<String> for Time {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let time = DateTime::parse_from_rfc3339(&text).map_err(|_| "is not a time; write RFC 3339, as in 2026-01-05T12:00:00Z")?;
        let micros = time.timestamp_micros();
        let time = DateTime::from_timestamp_micros(micros).filter(|_| 0 <= micros).ok_or("is before 1970")?;
        // What is the last evening of 9999 somewhere may be another year in UTC, which RFC 3339 cannot write.
        if 9999 < time.year() {
            return Err("is after the year 9999");
        }
        Ok(Self(time))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;

    use super::*;

    /// What the connection has read at once; a piece of it keeps all of it.
    struct Read {
        bytes: [u8; 8192],
        kept: Arc<AtomicUsize>,
    }

    impl AsRef<[u8]> for Read {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    impl Drop for Read {
        fn drop(&mut self) {
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_body_in_small_pieces_keeps_none_of_what_they_were_read_into() {
        let kept = Arc::new(AtomicUsize::new(0));
        let (of_pieces, most) = (kept.clone(), Arc::new(AtomicUsize::new(0)));
        let seen = most.clone();
        let pieces = (0..1000).map(move |_| {
            let now = of_pieces.fetch_add(1, Ordering::Relaxed) + 1;
            seen.fetch_max(now, Ordering::Relaxed);
            let read = Bytes::from_owner(Read { bytes: [b'x'; 8192], kept: of_pieces.clone() });
            Ok::<_, Infallible>(read.slice(..1))
        });
        let whole = read(Body::from_stream(stream::iter(pieces)), 1000).await.unwrap();
        assert_eq!((whole.len(), kept.load(Ordering::Relaxed)), (1000, 0));
        assert!(most.load(Ordering::Relaxed) <= 2, "{} were kept at once", most.load(Ordering::Relaxed));
    }

    #[test]
    fn a_time_is_one_that_can_be_written_again() {
        let read = |text: &str| Time::try_from(text.to_owned()).map(|time| time.0.to_rfc3339());
        assert_eq!(read("9999-12-31T23:59:59+00:00"), Ok("9999-12-31T23:59:59+00:00".to_owned()));
        assert_eq!(read("9999-12-31T11:59:59-14:00"), Err("is after the year 9999"));
        assert_eq!(read("1970-01-01T00:00:00+00:00"), Ok("1970-01-01T00:00:00+00:00".to_owned()));
        assert_eq!(read("1970-01-01T00:00:00+00:01"), Err("is before 1970"));
    }
}
