//! API keys: only a digest of each.

use chrono::{DateTime, Utc};

use super::{Connection, Row, StoreError, from_micros, micros};

/// The SHA-256 of a key.
pub type KeyDigest = [u8; 32];

/// A key as it is stored; `scopes` is what `http::auth` wrote.
#[derive(Clone, Debug)]
pub struct StoredKey {
    pub key_id: String,
    pub name: String,
    pub scopes: String,
    pub created_at: DateTime<Utc>,
    pub revoked_at: Option<DateTime<Utc>>,
}

const INSERT: &str = "INSERT INTO api_keys (key_id, name, digest, scopes, created_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (key_id) DO UPDATE SET digest = excluded.digest, scopes = excluded.scopes, revoked_at = NULL";
const REMOVE_OTHERS: &str = "DELETE FROM api_keys WHERE digest = $1 AND key_id <> $2";
const BY_DIGEST: &str = "SELECT key_id, name, scopes, created_at, revoked_at FROM api_keys WHERE digest = $1";
const ALL: &str = "SELECT key_id, name, scopes, created_at, revoked_at FROM api_keys ORDER BY created_at, key_id";
const REVOKE: &str = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE key_id = $1";

/// Stores a key; one with the same `key_id`, and the same key under another, is replaced.
pub async fn put(db: &mut Connection, key: &StoredKey, digest: KeyDigest) -> Result<(), StoreError> {
    db.query(REMOVE_OTHERS).bind(digest.as_slice()).bind(&key.key_id).execute().await?;
    let query = db.query(INSERT).bind(&key.key_id).bind(&key.name).bind(digest.as_slice()).bind(&key.scopes);
    query.bind(micros(key.created_at)).execute().await?;
    Ok(())
}

pub async fn by_digest(db: &mut Connection, digest: KeyDigest) -> Result<Option<StoredKey>, StoreError> {
    db.query(BY_DIGEST).bind(digest.as_slice()).fetch_optional().await?.map(|row| read(&row)).transpose()
}

pub async fn all(db: &mut Connection) -> Result<Vec<StoredKey>, StoreError> {
    db.query(ALL).fetch_all().await?.iter().map(read).collect()
}

/// `false` where there is no such key. A key that was revoked before keeps its time.
pub async fn revoke(db: &mut Connection, key_id: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let done = db.query(REVOKE).bind(key_id).bind(micros(now)).execute().await?;
    Ok(0 < done)
}

fn read(row: &Row) -> Result<StoredKey, StoreError> {
    let revoked_at: Option<i64> = row.try_get("revoked_at")?;
    Ok(StoredKey {
        key_id: row.try_get("key_id")?,
        name: row.try_get("name")?,
        scopes: row.try_get("scopes")?,
        created_at: from_micros(row.try_get("created_at")?)?,
        revoked_at: revoked_at.map(from_micros).transpose()?,
    })
}
