//! What one node at a time does.

use chrono::{DateTime, Utc};

use super::{Connection, StoreError, micros};

const TAKE: &str = "INSERT INTO leases (name, holder, held_until) VALUES ($1, $2, $4) \
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until \
     WHERE leases.holder = excluded.holder OR leases.held_until <= $3";
const LEAVE: &str = "DELETE FROM leases WHERE name = $1 AND holder = $2";

/// Takes or renews a lease until `until`. `false` where another one holds it: then the caller may not go on.
pub async fn take(db: &mut Connection, name: &str, holder: &str, now: DateTime<Utc>, until: DateTime<Utc>) -> Result<bool, StoreError> {
    Ok(0 < db.query(TAKE).bind(name).bind(holder).bind(micros(now)).bind(micros(until)).execute().await?)
}

/// Gives a lease back before its time.
pub async fn leave(db: &mut Connection, name: &str, holder: &str) -> Result<(), StoreError> {
    db.query(LEAVE).bind(name).bind(holder).execute().await?;
    Ok(())
}
