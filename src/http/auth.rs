//! API keys: 256 random bits, of which only a digest is kept.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use super::App;
use super::error::{ErrorCode, Problem};
use crate::store::keys::{KeyDigest, StoredKey};
use crate::store::{Store, StoreError, keys};

/// What every key of ours begins with, so that a scanner finds one in a place where it should not be.
pub const KEY_PREFIX: &str = "sg_";
/// The `key_id` of the key that `ADMIN_API_KEY` gives.
pub const ENVIRONMENT_KEY_ID: &str = "environment";
/// How long a key is believed without asking the store: a revoked one works no longer than this.
pub const KEPT_FOR: TimeDelta = TimeDelta::seconds(5);
/// How long after the store failed it is asked for a key again.
const ASKED_AGAIN_AFTER: TimeDelta = TimeDelta::seconds(1);
/// Keys in memory; beyond, all are asked for again.
const KEPT_MAX: usize = 10_000;
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

/// The scopes of one key, as they are stored: names separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// `None` where a name is not a scope, or there is none.
    pub fn parse(text: &str) -> Option<Self> {
        let one = |name: &str| Scope::ALL.into_iter().find(|scope| scope.name() == name.trim());
        text.split(',').map(one).collect::<Option<Vec<_>>>().map(Self)
    }

    pub fn admin() -> Self {
        Self(vec![Scope::Admin])
    }

    pub fn text(&self) -> String {
        self.0.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(",")
    }

    fn allow(&self, scope: Scope) -> bool {
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

/// Makes a key of 32 random bytes.
pub fn new_key(random: [u8; 32], name: &str, scopes: &Scopes, now: DateTime<Utc>) -> NewKey {
    let text = format!("{KEY_PREFIX}{}", hex::encode(random));
    // The digest's beginning names the key without telling anything of it.
    let key_id = format!("key_{}", hex::encode(&digest(&text)[..6]));
    let stored = StoredKey { key_id, name: name.to_owned(), scopes: scopes.text(), created_at: now, revoked_at: None };
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

/// A caller, and when the store was asked for him.
type Kept = (Arc<Caller>, DateTime<Utc>);

/// The keys that were used lately.
#[derive(Debug, Default)]
pub struct KeyRing {
    kept: Mutex<HashMap<KeyDigest, Kept>>,
}

impl KeyRing {
    fn kept(&self, digest: KeyDigest) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }

    async fn stored(store: &Store, digest: KeyDigest) -> Result<Option<StoredKey>, StoreError> {
        keys::by_digest(&mut store.reader().await?, digest).await
    }

    async fn caller(
        &self,
        store: &Store,
        digest: KeyDigest,
        now: DateTime<Utc>,
        patience: Duration,
    ) -> Result<Option<Arc<Caller>>, StoreError> {
        let fresh = |read_at: DateTime<Utc>| read_at <= now && now - read_at < KEPT_FOR;
        if let Some((caller, _)) = self.kept(digest).filter(|(_, read_at)| fresh(*read_at)) {
            return Ok(Some(caller));
        }
        let asked = tokio::time::timeout(patience, Self::stored(store, digest)).await;
        let stored = match asked.unwrap_or_else(|_| Err(StoreError::late())) {
            Ok(stored) => stored,
            // While the store is away, a key that was good is good: checks are then answered by their tier's policy, not with an error. It is
            // not asked for by each of them, or each would wait for a store that hangs.
            Err(error) => {
                let (caller, _) = self.kept(digest).ok_or(error)?;
                self.keep(digest, caller.clone(), now - (KEPT_FOR - ASKED_AGAIN_AFTER));
                return Ok(Some(caller));
            }
        };
        let caller = stored.filter(|key| key.revoked_at.is_none()).and_then(|key| {
            let scopes = Scopes::parse(&key.scopes)?;
            Some(Arc::new(Caller { key_id: key.key_id, scopes }))
        });
        match &caller {
            Some(caller) => self.keep(digest, caller.clone(), now),
            None => drop(self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest)),
        }
        Ok(caller)
    }

    fn keep(&self, digest: KeyDigest, caller: Arc<Caller>, read_at: DateTime<Utc>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if KEPT_MAX <= kept.len() {
            kept.clear();
        }
        kept.insert(digest, (caller, read_at));
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

    /// A key without the word `Bearer` before it.
    pub fn of_key(key: &HeaderValue) -> Self {
        Self(HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat()).ok())
    }
}

/// The caller, if his key may do this.
pub async fn require(app: &App, key: &Bearer, scope: Scope) -> Result<Arc<Caller>, Problem> {
    let unauthorized = |why: &str| Problem::new(ErrorCode::Unauthorized, format!("{why}; send `Authorization: Bearer sg_…`"));
    let value = key.0.as_ref().ok_or_else(|| unauthorized("there is no Authorization header"))?;
    let text = value.to_str().ok().filter(|text| text.len() <= KEY_BYTES_MAX);
    let (scheme, key) =
        text.and_then(|text| text.split_once(' ')).ok_or_else(|| unauthorized("the Authorization header is not a bearer key"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthorized("the Authorization header is not a bearer key"));
    }
    let caller = app.keys.caller(&app.store, digest(key.trim()), app.now(), app.store_timeout).await?;
    let caller = caller.ok_or_else(|| unauthorized("the key is not known, or was revoked"))?;
    if !caller.scopes.allow(scope) {
        let (has, needs) = (caller.scopes.text(), scope.name());
        return Err(Problem::new(ErrorCode::ForbiddenScope, format!("the key's scopes are {has}; this needs {needs}")));
    }
    Ok(caller)
}
