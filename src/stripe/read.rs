//! Fields of Stripe's JSON, read leniently: what is missing, of another type or too long counts as absent.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

/// The longest text that we keep of any field.
const TEXT_BYTES_MAX: usize = 255;
/// 9999-12-31T23:59:59Z, the last moment that RFC 3339 can write.
const SECONDS_MAX: i64 = 253_402_300_799;

/// A name that should be an id, and is text that could lead elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnId;

/// A price or product, written as an id or as the object itself. Its id is an arbitrary text.
pub fn named(value: &Value) -> Option<String> {
    value.as_str().and_then(bounded).or_else(|| text(value.as_object()?, "id"))
}

/// A customer's or subscription's id, written as an id or as the object itself. `Err` where it is text but not an id: such a
/// name would later be put into a path.
pub fn reference(object: &Map<String, Value>, key: &str) -> Result<Option<String>, NotAnId> {
    let value = match object.get(key) {
        Some(Value::Object(expanded)) => expanded.get("id"),
        value => value,
    };
    match value {
        Some(Value::String(_)) => value.and_then(id).map(Some).ok_or(NotAnId),
        _ => Ok(None),
    }
}

/// An id that can stand in a path: no slash, no query, no way up, no blank.
pub fn id(value: &Value) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@+:|".contains(&byte);
    let text = value.as_str()?;
    let good = !text.is_empty() && text.len() <= TEXT_BYTES_MAX && text.bytes().all(allowed) && !text.contains("..") && text != ".";
    good.then(|| text.to_owned())
}

fn bounded(text: &str) -> Option<String> {
    let good = !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    good.then(|| text.to_owned())
}

pub fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key)?.as_str().and_then(bounded)
}

pub fn metadata(object: &Map<String, Value>, key: &str) -> Option<String> {
    text(object.get("metadata")?.as_object()?, key)
}

pub fn flag(object: &Map<String, Value>, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub fn seconds(object: &Map<String, Value>, key: &str) -> Option<DateTime<Utc>> {
    object.get(key).and_then(time)
}

/// Unix seconds, forced into what RFC 3339 can write.
pub fn time(value: &Value) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(value.as_i64()?.clamp(0, SECONDS_MAX), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_not_ids() {
        for name in ["", ".", "..", "a/b", "a?b", "a#b", "a b", "a%2fb", "a\\b", "x/../y", "é", "a\u{0}"] {
            assert_eq!(id(&Value::from(name)), None, "{name}");
        }
        for name in ["cus_123", "ada@example.com", "small-monthly"] {
            assert_eq!(id(&Value::from(name)).as_deref(), Some(name));
        }
    }
}
