//! API keys: only a digest of each.

use chrono::{DateTime, Utc};

use super::{Connection, Row, StoreError, corrupt, from_micros, micros};

/// The SHA-256 of a key.
pub type KeyDigest = [u8; 32];

/// A key as it is stored; `scopes` is what `http::auth` wrote.
#[derive(Clone, Debug)]
pub struct StoredKey {
    pub key_id: String,
    pub name: String,
    pub scopes: String,
    pub created_at: DateTime<Utc>,
    /// From this moment on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    /// Up to a minute behind.
    pub last_used_at: Option<DateTime<Utc>>,
    /// The `key_id` of the key that took its place.
    pub successor: Option<String>,
}

const INSERT: &str = "INSERT INTO api_keys (key_id, name, digest, scopes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (key_id) DO UPDATE SET digest = excluded.digest, scopes = excluded.scopes, expires_at = excluded.expires_at, \
     revoked_at = NULL, successor = NULL";
const REMOVE_OTHERS: &str = "DELETE FROM api_keys WHERE digest = $1 AND key_id <> $2";
const BY_DIGEST: &str = "SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at, successor, digest FROM api_keys \
     WHERE digest = $1";
const BY_ID: &str =
    "SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at, successor FROM api_keys WHERE key_id = $1";
const ALL: &str = "SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at, successor FROM api_keys \
     ORDER BY created_at, key_id";
const PAGE: &str = "SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at, successor FROM api_keys \
     WHERE $1 < created_at OR ($1 = created_at AND $2 < key_id) ORDER BY created_at, key_id LIMIT $3";
const REVOKE: &str = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE key_id = $1";
const REPLACE: &str = "UPDATE api_keys SET successor = $2, expires_at = $3 WHERE key_id = $1 AND successor IS NULL";
const USED: &str = "UPDATE api_keys SET last_used_at = $2 WHERE key_id = $1 AND COALESCE(last_used_at, 0) < $2";

/// Stores a key; one with the same `key_id`, and the same key under another, is replaced.
pub async fn put(db: &mut Connection, key: &StoredKey, digest: KeyDigest) -> Result<(), StoreError> {
    db.query(REMOVE_OTHERS).bind(digest.as_slice()).bind(&key.key_id).execute().await?;
    let query = db.query(INSERT).bind(&key.key_id).bind(&key.name).bind(digest.as_slice()).bind(&key.scopes);
    query.bind(micros(key.created_at)).bind(key.expires_at.map(micros)).execute().await?;
    Ok(())
}

/// With the digest that stands beside it.
pub async fn by_digest(db: &mut Connection, digest: KeyDigest) -> Result<Option<(StoredKey, KeyDigest)>, StoreError> {
    let Some(row) = db.query(BY_DIGEST).bind(digest.as_slice()).fetch_optional().await? else { return Ok(None) };
    let stands: Vec<u8> = row.try_get("digest")?;
    let stands = KeyDigest::try_from(stands).map_err(|_| corrupt("a digest has 32 bytes"))?;
    Ok(Some((read(&row)?, stands)))
}

pub async fn by_id(db: &mut Connection, key_id: &str) -> Result<Option<StoredKey>, StoreError> {
    db.query(BY_ID).bind(key_id).fetch_optional().await?.map(|row| read(&row)).transpose()
}

pub async fn all(db: &mut Connection) -> Result<Vec<StoredKey>, StoreError> {
    db.query(ALL).fetch_all().await?.iter().map(read).collect()
}

/// Those behind a place, the oldest first.
pub async fn page(db: &mut Connection, behind: Option<&(DateTime<Utc>, String)>, limit: i64) -> Result<Vec<StoredKey>, StoreError> {
    let (created_at, key_id) = behind.map_or((i64::MIN, ""), |(created_at, key_id)| (micros(*created_at), key_id));
    db.query(PAGE).bind(created_at).bind(key_id).bind(limit).fetch_all().await?.iter().map(read).collect()
}

/// `false` where there is no such key. A key that was revoked before keeps its time.
pub async fn revoke(db: &mut Connection, key_id: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let done = db.query(REVOKE).bind(key_id).bind(micros(now)).execute().await?;
    Ok(0 < done)
}

/// Lets a key end at `expires_at`, since another took its place. A key that was replaced before stays as it is.
pub async fn replace(db: &mut Connection, key_id: &str, successor: &str, expires_at: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(REPLACE).bind(key_id).bind(successor).bind(micros(expires_at)).execute().await?;
    Ok(())
}

/// Notes that a key was used. Of what several nodes saw the latest counts.
pub async fn used(db: &mut Connection, key_id: &str, at: DateTime<Utc>) -> Result<(), StoreError> {
    db.query(USED).bind(key_id).bind(micros(at)).execute().await?;
    Ok(())
}

fn read(row: &Row) -> Result<StoredKey, StoreError> {
    let time = |column: &str| row.try_get::<Option<i64>>(column)?.map(from_micros).transpose();
    Ok(StoredKey {
        key_id: row.try_get("key_id")?,
        name: row.try_get("name")?,
        scopes: row.try_get("scopes")?,
        created_at: from_micros(row.try_get("created_at")?)?,
        expires_at: time("expires_at")?,
        revoked_at: time("revoked_at")?,
        last_used_at: time("last_used_at")?,
        successor: row.try_get("successor")?,
    })
}
