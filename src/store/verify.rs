//! Recomputes every counter from the rows that it counts.

use sqlx::Row;

use super::{Connection, StoreError};

/// A counter that does not agree with its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// Which counter: of a user, of a day, of a hold.
    pub what: String,
    /// What stands in the counter, and what its rows make; nano-dollars, or a number of entries. `None` is a missing row.
    pub counter: Option<i64>,
    pub rows: Option<i64>,
}

/// Each gives (what, counter, rows) for whatever does not agree. The left and the right side are compared both ways, so that a
/// counter without rows is found as well as rows without a counter.
const CHECKS: [&str; 5] = [
    "WITH r AS (SELECT user_id, SUM(CASE WHEN kind = 'correction' THEN -cost ELSE cost END) AS n FROM usage GROUP BY user_id) \
     SELECT 'lifetime spend of user ' || COALESCE(users.user_id, r.user_id) AS what, users.spent AS counter, r.n AS made \
     FROM users FULL JOIN r ON r.user_id = users.user_id WHERE COALESCE(users.spent, -1) <> COALESCE(r.n, 0) LIMIT $1",
    "WITH r AS (SELECT user_id, COUNT(*) AS n FROM usage GROUP BY user_id) \
     SELECT 'entries of user ' || COALESCE(users.user_id, r.user_id) AS what, users.entries AS counter, r.n AS made \
     FROM users FULL JOIN r ON r.user_id = users.user_id WHERE COALESCE(users.entries, -1) <> COALESCE(r.n, 0) LIMIT $1",
    "WITH r AS (SELECT user_id, happened_at / 86400000000 AS day, COALESCE(model, '') AS model, \
     SUM(CASE WHEN kind = 'correction' THEN -cost ELSE cost END) AS n FROM usage GROUP BY 1, 2, 3) \
     SELECT 'spend of user ' || COALESCE(s.user_id, r.user_id) || ' on day ' || COALESCE(s.day, r.day) || ' with model \"' || \
     COALESCE(s.model, r.model) || '\"' AS what, s.spent AS counter, r.n AS made \
     FROM spend_by_day AS s FULL JOIN r ON r.user_id = s.user_id AND r.day = s.day AND r.model = s.model \
     WHERE COALESCE(s.spent, -1) <> COALESCE(r.n, 0) LIMIT $1",
    "WITH r AS (SELECT day, SUM(spent) AS n FROM spend_by_day GROUP BY day) \
     SELECT 'spend of all on day ' || COALESCE(s.day, r.day) AS what, s.spent AS counter, r.n AS made \
     FROM spend_by_day_of_all AS s FULL JOIN r ON r.day = s.day WHERE COALESCE(s.spent, -1) <> COALESCE(r.n, 0) LIMIT $1",
    "WITH r AS (SELECT id, cost AS n FROM usage WHERE kind = 'capture'), h AS (SELECT id, captured FROM holds WHERE captured IS NOT NULL) \
     SELECT 'captured cost of hold ' || COALESCE(h.id, r.id) AS what, h.captured AS counter, r.n AS made \
     FROM h FULL JOIN r ON r.id = h.id WHERE COALESCE(h.captured, -1) <> COALESCE(r.n, -2) LIMIT $1",
];

/// What was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub users: i64,
    pub entries: i64,
    pub open_holds: i64,
}

const COUNTED: &str = "SELECT (SELECT COUNT(*) FROM users) AS users, (SELECT COUNT(*) FROM usage) AS entries, \
     (SELECT COUNT(*) FROM holds WHERE ended_at IS NULL) AS open_holds";

/// At most `most` disagreements of each kind; none is what should be.
pub async fn disagreements(db: &mut Connection, most: i64) -> Result<(Counted, Vec<Disagreement>), StoreError> {
    let mut found = Vec::new();
    for check in CHECKS {
        for row in sqlx::query(check).bind(most).fetch_all(&mut *db).await? {
            found.push(Disagreement { what: row.try_get("what")?, counter: row.try_get("counter")?, rows: row.try_get("made")? });
        }
    }
    let row = sqlx::query(COUNTED).fetch_one(db).await?;
    let counted = Counted { users: row.try_get("users")?, entries: row.try_get("entries")?, open_holds: row.try_get("open_holds")? };
    Ok((counted, found))
}
