//! Pages of a list: `limit` and an opaque `cursor`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::Problem;

const LIMIT_DEFAULT: u16 = 50;
const LIMIT_MAX: u16 = 1000;

/// How many items a page has: 1 to 1000.
pub fn limit(asked: Option<&str>) -> Result<u16, Problem> {
    let Some(asked) = asked else { return Ok(LIMIT_DEFAULT) };
    let limit = asked.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| Problem::invalid("limit", format!("must be a whole number from 1 to {LIMIT_MAX}")))
}

/// Where the next page begins, as text that says nothing to the caller.
pub fn cursor(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

/// The place that [`cursor`] wrote, read by `parse`.
pub fn place<T>(cursor: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    let decoded = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let place = decoded.filter(|place| !place.chars().any(char::is_control)).and_then(|place| parse(&place));
    place.map(Some).ok_or_else(|| Problem::invalid("cursor", "is not one that this list gave; take next_cursor as it is, or leave it out"))
}
