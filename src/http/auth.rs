//! API keys: 256 random bits, of which only a digest is kept.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::App;
use super::error::{ErrorCode, Problem};
use super::key_ring::Refused;
use crate::domain::period::rfc3339;
use crate::store::keys::{KeyDigest, StoredKey};

/// What every key of ours begins with, so that a scanner finds one in a place where it should not be.
pub const KEY_PREFIX: &str = "sg_";
/// The `key_id` of the key that `ADMIN_API_KEY` gives.
pub const ENVIRONMENT_KEY_ID: &str = "environment";
/// The `key_id` of everybody where no key is asked for.
pub const ANONYMOUS_KEY_ID: &str = "anonymous";
/// A longer one is not a key.
const KEY_BYTES_MAX: usize = 512;

/// What a key may do. `Admin` may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Ask for decisions, tiers, and one user's state.
    Check,
    /// Book usage.
    Write,
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Check, Self::Write, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// The scopes of one key, each once. They are stored as names separated by commas, and sent as a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Scopes(Vec<Scope>);

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|scope| scope.name()))
    }
}

impl TryFrom<Vec<String>> for Scopes {
    type Error = &'static str;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        Self::of(names.iter().map(String::as_str)).ok_or("must be a list of check, write and admin")
    }
}

impl Scopes {
    /// `None` where a name is not a scope, or there is none.
    pub fn parse(text: &str) -> Option<Self> {
        Self::of(text.split(',').map(str::trim))
    }

    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut scopes = Vec::new();
        for name in names {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name)?;
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        (!scopes.is_empty()).then_some(Self(scopes))
    }

    pub fn admin() -> Self {
        Self(vec![Scope::Admin])
    }

    pub fn text(&self) -> String {
        self.0.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(",")
    }

    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }
}

/// A new key, to be shown once.
pub struct NewKey {
    pub text: String,
    pub stored: StoredKey,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("stored", &self.stored).finish_non_exhaustive()
    }
}

/// Makes a key of 32 random bytes; without `expires_at` it ends when it is revoked.
pub fn new_key(random: [u8; 32], name: &str, scopes: &Scopes, now: DateTime<Utc>, expires_at: Option<DateTime<Utc>>) -> NewKey {
    let text = format!("{KEY_PREFIX}{}", hex::encode(random));
    // The digest's beginning names the key without telling anything of it.
    let key_id = format!("key_{}", hex::encode(&digest(&text)[..6]));
    let (name, scopes) = (name.to_owned(), scopes.text());
    let stored = StoredKey { key_id, name, scopes, created_at: now, expires_at, revoked_at: None, last_used_at: None, successor: None };
    NewKey { text, stored }
}

/// A key of 256 random bits needs no slow digest: there is nothing to guess.
pub fn digest(key: &str) -> KeyDigest {
    Sha256::digest(key.as_bytes()).into()
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    pub key_id: String,
    scopes: Scopes,
}

impl Caller {
    pub(super) fn new(key_id: String, scopes: Scopes) -> Self {
        Self { key_id, scopes }
    }
}

/// What a request says of who sends it. The other headers are left where they are: to copy them all would cost more than to check the key.
#[derive(Debug)]
pub struct Bearer(Option<HeaderValue>);

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

impl Bearer {
    pub fn of(headers: &HeaderMap) -> Self {
        Self(headers.get(header::AUTHORIZATION).cloned())
    }

    fn digest(&self) -> Result<KeyDigest, Problem> {
        let value = self.0.as_ref().ok_or_else(|| unauthorized("there is no Authorization header"))?;
        let text = value.to_str().ok().filter(|text| text.len() <= KEY_BYTES_MAX);
        let (scheme, key) =
            text.and_then(|text| text.split_once(' ')).ok_or_else(|| unauthorized("the Authorization header is not a bearer key"))?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized("the Authorization header is not a bearer key"));
        }
        Ok(digest(key.trim()))
    }

    /// A key without the word `Bearer` before it.
    pub fn of_key(key: &HeaderValue) -> Self {
        Self(HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat()).ok())
    }
}

/// The caller, if his key may do this.
pub async fn require(app: &App, key: &Bearer, scope: Scope) -> Result<Arc<Caller>, Problem> {
    let now = app.now();
    if let Some(caller) = require_at_once(app, key, scope, now)? {
        return Ok(caller);
    }
    // Seldom, and large: it would make a large future of each request.
    let caller = Box::pin(app.keys.ask(&app.store, key.digest()?, now, app.store_timeout)).await?;
    allowed(caller, scope)
}

/// [`require`], by what is remembered. `None` where the store has to be asked.
pub fn require_at_once(app: &App, key: &Bearer, scope: Scope, now: DateTime<Utc>) -> Result<Option<Arc<Caller>>, Problem> {
    if let Some(anonymous) = &app.keys.anonymous {
        return Ok(Some(anonymous.clone()));
    }
    app.keys.kept(key.digest()?, now).map(|caller| allowed(caller, scope)).transpose()
}

fn unauthorized(why: &str) -> Problem {
    Problem::new(ErrorCode::Unauthorized, format!("{why}; send `Authorization: Bearer sg_…`"))
}

fn allowed(caller: Result<Arc<Caller>, Refused>, scope: Scope) -> Result<Arc<Caller>, Problem> {
    let caller = caller.map_err(|refused| match refused {
        Refused::Unknown => unauthorized("the key is not known, or was revoked"),
        Refused::Expired(end) => unauthorized(&format!("the key expired at {}", rfc3339(end))),
    })?;
    if !caller.scopes.allow(scope) {
        let (has, needs) = (caller.scopes.text(), scope.name());
        return Err(Problem::new(ErrorCode::ForbiddenScope, format!("the key's scopes are {has}; this needs {needs}")));
    }
    Ok(caller)
}
