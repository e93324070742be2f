//! What is still to be told to others.

use super::{Connection, StoreError, micros};
use crate::domain::alert::Alert;

const RAISE: &str = "INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (alert_id) DO NOTHING";

/// Notes what is to be told, in the transaction that brought it about. What was raised before stays as it was.
pub async fn raise(db: &mut Connection, alerts: &[Alert]) -> Result<(), StoreError> {
    for alert in alerts {
        let query = db.query(RAISE).bind(alert.id()).bind(&alert.key).bind(alert.kind.name());
        let query = query.bind(alert.user_id.as_ref().map(|user| user.as_str())).bind(&alert.message);
        query.bind(&alert.details).bind(micros(alert.at)).execute().await?;
    }
    Ok(())
}
