//! Keys made, replaced and ended: what the doors and the command line do alike, each in a transaction of the caller's. Each change is
//! written to the audit table, never with the key itself.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::auth::{ENVIRONMENT_KEY_ID, NewKey, Scope, Scopes, digest, new_key};
use super::view::Moment;
use crate::domain::period::rfc3339;
use crate::store::accounts::{self, Audit};
use crate::store::keys::{self, StoredKey};
use crate::store::{Connection, StoreError};

/// How long a key may live that ends by itself: a minute to ten years.
pub const LIFETIME_SECONDS: RangeInclusive<i64> = 60..=3650 * 86_400;
/// How long a key may be good beside its successor.
pub const OVERLAP_SECONDS: RangeInclusive<i64> = 0..=30 * 86_400;
pub const OVERLAP: TimeDelta = TimeDelta::hours(24);
/// Who changes keys from the command line, in the audit table.
pub const COMMAND_LINE: &str = "command_line";

/// Why a key stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum KeyRefusal {
    #[error("there is no key {0}")]
    NotFound(String),
    #[error("{key_id} was revoked at {at}; make another one")]
    Revoked { key_id: String, at: String },
    #[error("{key_id} expired at {at}; make another one")]
    Expired { key_id: String, at: String },
    #[error("{key_id} was replaced already; {successor} took its place, and can be replaced in turn")]
    Replaced { key_id: String, successor: String },
    #[error("the key that ADMIN_API_KEY gives is replaced there: set another one, and restart")]
    FromEnvironment,
    #[error("{0} is the last key with the scope admin that is good; make another one first")]
    LastAdmin(String),
}

/// Who changes keys, and when.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    pub key_id: &'a str,
    pub now: DateTime<Utc>,
}

/// Whether a key is good at a moment, and else why not.
pub fn state(key: &StoredKey, now: DateTime<Utc>) -> &'static str {
    if key.revoked_at.is_some() {
        return "revoked";
    }
    if key.expires_at.is_some_and(|end| end <= now) { "expired" } else { "good" }
}

pub async fn create(db: &mut Connection, hand: Hand<'_>, key: &NewKey) -> Result<(), StoreError> {
    keys::put(db, &key.stored, digest(&key.text)).await?;
    audit(db, hand, &key.stored.key_id, Value::Null, said(&key.stored)).await
}

/// What came of a rotation.
#[derive(Debug)]
pub struct Rotated {
    pub successor: NewKey,
    pub replaced: StoredKey,
}

/// Makes a key of the same name and scopes, which lives as long as the old one was made for; the old one ends after `overlap`, or when it
/// would have ended anyway.
pub async fn rotate(
    db: &mut Connection,
    hand: Hand<'_>,
    key_id: &str,
    overlap: TimeDelta,
    random: [u8; 32],
) -> Result<Result<Rotated, KeyRefusal>, StoreError> {
    let now = hand.now;
    let old = match rotatable(keys::by_id(db, key_id).await?, key_id, now) {
        Ok(old) => old,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let scopes = Scopes::parse(&old.scopes).ok_or_else(StoreError::torn)?;
    let expires_at = old.expires_at.map(|end| now + (end - old.created_at));
    let successor = new_key(random, &old.name, &scopes, now, expires_at);
    keys::put(db, &successor.stored, digest(&successor.text)).await?;
    let ends_at = old.expires_at.map_or(now + overlap, |end| end.min(now + overlap));
    keys::replace(db, key_id, &successor.stored.key_id, ends_at).await?;
    let replaced = StoredKey { expires_at: Some(ends_at), successor: Some(successor.stored.key_id.clone()), ..old.clone() };
    audit(db, hand, &successor.stored.key_id, Value::Null, said(&successor.stored)).await?;
    audit(db, hand, key_id, said(&old), said(&replaced)).await?;
    Ok(Ok(Rotated { successor, replaced }))
}

fn rotatable(key: Option<StoredKey>, key_id: &str, now: DateTime<Utc>) -> Result<StoredKey, KeyRefusal> {
    let key = key.ok_or_else(|| KeyRefusal::NotFound(key_id.to_owned()))?;
    let key_id = key.key_id.clone();
    if key_id == ENVIRONMENT_KEY_ID {
        return Err(KeyRefusal::FromEnvironment);
    }
    if let Some(at) = key.revoked_at {
        return Err(KeyRefusal::Revoked { key_id, at: rfc3339(at) });
    }
    if let Some(successor) = key.successor {
        return Err(KeyRefusal::Replaced { key_id, successor });
    }
    match key.expires_at.filter(|end| *end <= now) {
        Some(at) => Err(KeyRefusal::Expired { key_id, at: rfc3339(at) }),
        None => Ok(key),
    }
}

/// Ends a key now; one that was revoked before stays as it is. With `keeps_an_admin` the last key that may change keys is not ended.
pub async fn revoke(
    db: &mut Connection,
    hand: Hand<'_>,
    key_id: &str,
    keeps_an_admin: bool,
) -> Result<Result<StoredKey, KeyRefusal>, StoreError> {
    let all = keys::all(db).await?;
    let Some(key) = all.iter().find(|key| key.key_id == key_id) else {
        return Ok(Err(KeyRefusal::NotFound(key_id.to_owned())));
    };
    if key.revoked_at.is_some() {
        return Ok(Ok(key.clone()));
    }
    let is_admin =
        |key: &&StoredKey| state(key, hand.now) == "good" && Scopes::parse(&key.scopes).is_some_and(|scopes| scopes.allow(Scope::Admin));
    // One that was replaced ends soon.
    let stays = |other: &&StoredKey| is_admin(other) && other.successor.is_none();
    if keeps_an_admin && is_admin(&key) && all.iter().filter(stays).all(|other| other.key_id == key_id) {
        return Ok(Err(KeyRefusal::LastAdmin(key_id.to_owned())));
    }
    keys::revoke(db, key_id, hand.now).await?;
    let revoked = StoredKey { revoked_at: Some(hand.now), ..key.clone() };
    audit(db, hand, key_id, said(key), said(&revoked)).await?;
    Ok(Ok(revoked))
}

fn said(key: &StoredKey) -> Value {
    json!({
        "name": key.name,
        "scopes": key.scopes,
        "expires_at": key.expires_at.map(Moment),
        "revoked_at": key.revoked_at.map(Moment),
        "successor": key.successor,
    })
}

async fn audit(db: &mut Connection, hand: Hand<'_>, key_id: &str, from: Value, to: Value) -> Result<(), StoreError> {
    let change = json!({"key": key_id, "from": from, "to": to}).to_string();
    let audit = Audit { at: hand.now, key_id: hand.key_id, account: None, user: None, change, reason: None };
    accounts::write_audit(db, &audit).await
}
