//! The secret that signs links to buy more.

use super::{Connection, StoreError, corrupt};

const KEEP: &str = "INSERT INTO upgrade_links (\"only\", secret) VALUES (1, $1) ON CONFLICT (\"only\") DO NOTHING";
const SECRET: &str = "SELECT secret FROM upgrade_links WHERE \"only\" = 1";

/// The secret; `fresh` becomes it where there is none yet.
pub async fn secret(db: &mut Connection, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
    db.query(KEEP).bind(fresh.as_slice()).execute().await?;
    let secret: Vec<u8> = db.query(SECRET).scalar().await?;
    secret.try_into().map_err(|_| corrupt("a secret that has not 32 bytes"))
}
