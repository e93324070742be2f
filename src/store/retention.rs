//! Rows that are too old to keep: their sums stay, they themselves go.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Backend, Store, StoreError, micros};

/// The last of the oldest rows that one step looks at. What a clock that was ahead wrote is no older than now, and in nobody's way.
const LAST: &str =
    "SELECT CAST(COALESCE(MAX(seq), 0) AS BIGINT) FROM (SELECT seq FROM usage WHERE recorded_at <= $2 ORDER BY seq LIMIT $1) oldest";
const ROLL: &str = "INSERT INTO rolled (user_id, account_id, day, model, spent, entries, input_tokens, output_tokens) \
     SELECT user_id, COALESCE(account_id, ''), day, model, SUM(spent), SUM(entries), SUM(input_tokens), SUM(output_tokens) FROM counted_rows \
     WHERE seq <= $1 AND recorded_at < $2 GROUP BY 1, 2, 3, 4 \
     ON CONFLICT (user_id, account_id, day, model) DO UPDATE SET spent = rolled.spent + excluded.spent, \
     entries = rolled.entries + excluded.entries, input_tokens = rolled.input_tokens + excluded.input_tokens, \
     output_tokens = rolled.output_tokens + excluded.output_tokens";
/// A captured hold goes with the row of its capture.
const FORGET_CAPTURED: &str =
    "DELETE FROM holds WHERE id IN (SELECT id FROM usage WHERE kind = 'capture' AND seq <= $1 AND recorded_at < $2)";
const FORGET: &str = "DELETE FROM usage WHERE seq <= $1 AND recorded_at < $2";
const FORGET_HOLDS: &str = "DELETE FROM holds WHERE seq IN (SELECT seq FROM (SELECT seq, captured, ended_at, expires_at FROM holds WHERE created_at <= $3 ORDER BY seq LIMIT $1) oldest \
     WHERE captured IS NULL AND COALESCE(ended_at, expires_at) < $2)";

/// The same on Postgres, where rows have no place in a file that tells their age: an index does, roughly.
const ROLL_OLD: &str = "WITH gone AS (DELETE FROM usage WHERE ctid IN (SELECT ctid FROM usage WHERE recorded_at < $1 LIMIT $2) RETURNING *), \
     counted AS (INSERT INTO rolled (user_id, account_id, day, model, spent, entries, input_tokens, output_tokens) \
     SELECT user_id, COALESCE(account_id, ''), happened_at / 86400000000, COALESCE(model, ''), \
     SUM(CASE WHEN kind = 'correction' THEN -cost ELSE cost END), COUNT(*), SUM(COALESCE(input_tokens, 0)), SUM(COALESCE(output_tokens, 0)) \
     FROM gone GROUP BY 1, 2, 3, 4 \
     ON CONFLICT (user_id, account_id, day, model) DO UPDATE SET spent = rolled.spent + excluded.spent, \
     entries = rolled.entries + excluded.entries, input_tokens = rolled.input_tokens + excluded.input_tokens, \
     output_tokens = rolled.output_tokens + excluded.output_tokens), \
     captured AS (DELETE FROM holds USING gone WHERE gone.kind = 'capture' AND holds.id = gone.id RETURNING 1) \
     SELECT (SELECT COUNT(*) FROM gone) + (SELECT COUNT(*) FROM captured)";
impl Store {
    /// Rolls what was recorded more than `keep` before `now` into daily sums, looking at no more than `most` rows of usage and of holds.
    /// Returns how many rows went; none means that nothing old is left. In whose way this is: others that write the tables, for one such
    /// step.
    pub async fn roll(&self, now: DateTime<Utc>, keep: TimeDelta, most: i64) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let db = tx.connection()?;
        let (now, horizon, mut gone) = (micros(now), micros(now - keep), 0);
        if let Backend::Postgres(_) = db {
            gone += db.query(ROLL_OLD).bind(horizon).bind(most).scalar::<i64>().await?.unsigned_abs();
            gone += db.query(FORGET_HOLDS).bind(most).bind(horizon).bind(now).execute().await?;
            tx.commit().await?;
            return Ok(gone);
        }
        let last: i64 = db.query(LAST).bind(most).bind(now).scalar().await?;
        db.query(ROLL).bind(last).bind(horizon).execute().await?;
        for statement in [FORGET_CAPTURED, FORGET] {
            gone += db.query(statement).bind(last).bind(horizon).execute().await?;
        }
        gone += db.query(FORGET_HOLDS).bind(most).bind(horizon).bind(now).execute().await?;
        tx.commit().await?;
        Ok(gone)
    }
}
