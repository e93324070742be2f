//! Recomputes every counter from the rows that it counts.

use std::collections::{BTreeSet, HashMap};

use futures_util::TryStreamExt;

use super::{Connection, StoreError};

/// A counter that does not agree with its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// Which counter: of a user, of a day, of a hold.
    pub what: String,
    /// What stands in the counter, and what its rows make. `None` is a missing row.
    pub counter: Option<String>,
    pub rows: Option<String>,
}

/// Each gives (what, counter, made) for whatever does not agree. The left and the right side are compared both ways, so that a
/// counter without rows is found as well as rows without a counter. Amounts are nano-dollars.
const CHECKS: [&str; 7] = [
    "WITH r AS (SELECT user_id, SUM(spent) || ' in ' || SUM(entries) || ' entries' AS n FROM (SELECT user_id, spent, entries FROM counted_rows \
     UNION ALL SELECT user_id, spent, entries FROM rolled) counted GROUP BY user_id), \
     c AS (SELECT user_id, spent || ' in ' || entries || ' entries' AS n FROM users) \
     SELECT 'lifetime spend of user ' || COALESCE(c.user_id, r.user_id) AS what, c.n AS counter, r.n AS made \
     FROM c FULL JOIN r ON r.user_id = c.user_id WHERE COALESCE(c.n, '') <> COALESCE(r.n, '0 in 0 entries') LIMIT $1",
    "WITH r AS (SELECT user_id, day, model, SUM(spent) || ' in ' || SUM(entries) || ' entries of ' || SUM(input_tokens) || '+' || \
     SUM(output_tokens) || ' tokens' AS n FROM (SELECT user_id, day, model, spent, entries, input_tokens, output_tokens FROM counted_rows \
     UNION ALL SELECT user_id, day, model, spent, entries, input_tokens, output_tokens FROM rolled) counted GROUP BY 1, 2, 3), \
     c AS (SELECT user_id, day, model, spent || ' in ' || entries || ' entries of ' || input_tokens || '+' || output_tokens || ' tokens' AS n \
     FROM spend_by_day) \
     SELECT 'spend of user ' || COALESCE(c.user_id, r.user_id) || ' on day ' || COALESCE(c.day, r.day) || ' with model \"' || \
     COALESCE(c.model, r.model) || '\"' AS what, c.n AS counter, r.n AS made \
     FROM c FULL JOIN r ON r.user_id = c.user_id AND r.day = c.day AND r.model = c.model WHERE COALESCE(c.n, '') <> COALESCE(r.n, '') LIMIT $1",
    "WITH r AS (SELECT id, cost || ' by ' || user_id AS n FROM usage WHERE kind = 'capture'), \
     c AS (SELECT id, captured || ' by ' || user_id AS n FROM holds WHERE captured IS NOT NULL) \
     SELECT 'captured cost of hold ' || COALESCE(c.id, r.id) AS what, c.n AS counter, r.n AS made \
     FROM c FULL JOIN r ON r.id = c.id WHERE COALESCE(c.n, '') <> COALESCE(r.n, '') LIMIT $1",
    "WITH r AS (SELECT account_id, day, SUM(spent) || ' in ' || SUM(entries) || ' entries' AS n FROM (SELECT account_id, day, spent, entries \
     FROM counted_rows UNION ALL SELECT account_id, day, spent, entries FROM rolled) counted WHERE account_id <> '' GROUP BY 1, 2), \
     c AS (SELECT account_id, day, spent || ' in ' || entries || ' entries' AS n FROM spend_by_day_of_account) \
     SELECT 'spend of account ' || COALESCE(c.account_id, r.account_id) || ' on day ' || COALESCE(c.day, r.day) AS what, c.n AS counter, r.n AS made \
     FROM c FULL JOIN r ON r.account_id = c.account_id AND r.day = c.day WHERE COALESCE(c.n, '') <> COALESCE(r.n, '') LIMIT $1",
    "SELECT 'entries of kind ' || kind || ' with the id ' || id AS what, '1' AS counter, CAST(COUNT(*) AS TEXT) AS made FROM usage \
     GROUP BY id_hash, id, kind HAVING 1 < COUNT(*) LIMIT $1",
    "WITH r AS (SELECT user_id, grant_id, CAST(SUM(drawn) AS TEXT) AS n FROM draws GROUP BY 1, 2), \
     c AS (SELECT user_id, grant_id, CAST(used AS TEXT) AS n FROM grants) \
     SELECT 'what is used of grant ' || COALESCE(c.grant_id, r.grant_id) || ' of user ' || COALESCE(c.user_id, r.user_id) AS what, \
     c.n AS counter, r.n AS made FROM c FULL JOIN r ON r.user_id = c.user_id AND r.grant_id = c.grant_id \
     WHERE COALESCE(c.n, '') <> COALESCE(r.n, '0') LIMIT $1",
    "SELECT 'what is used of grant ' || grant_id || ' of user ' || user_id || ', of its amount' AS what, CAST(used AS TEXT) AS counter, \
     CAST(amount AS TEXT) AS made FROM grants WHERE used < 0 OR amount < used LIMIT $1",
];
const DAYS: &str = "SELECT day, spent, entries FROM spend_by_day";
const DAYS_OF_ALL: &str = "SELECT day, spent, entries FROM spend_by_day_of_all";

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
        for row in db.query(check).bind(most).fetch_all().await? {
            found.push(Disagreement { what: row.try_get("what")?, counter: row.try_get("counter")?, rows: row.try_get("made")? });
        }
    }
    let (rows, counters) = (by_day(db, DAYS).await?, by_day(db, DAYS_OF_ALL).await?);
    let days: BTreeSet<i64> = rows.keys().chain(counters.keys()).copied().collect();
    // A sum that cannot be counted stops at the most that can, and is no longer exact.
    let countable = |day: &i64| rows.get(day).is_none_or(|(spent, _)| *spent < i128::from(i64::MAX));
    let differ = days.iter().filter(|day| countable(day) && rows.get(day) != counters.get(day));
    let told = |sum: Option<&(i128, i64)>| sum.map(|(spent, entries)| format!("{spent} in {entries} entries"));
    found.extend(differ.take(usize::try_from(most).unwrap_or(usize::MAX)).map(|day| Disagreement {
        what: format!("spend of all on day {day}"),
        counter: told(counters.get(day)),
        rows: told(rows.get(day)),
    }));
    let row = db.query(COUNTED).fetch_one().await?;
    let counted = Counted { users: row.try_get("users")?, entries: row.try_get("entries")?, open_holds: row.try_get("open_holds")? };
    Ok((counted, found))
}

/// The sums of (spent, entries) by day, wider than the database can add.
async fn by_day(db: &mut Connection, query: &'static str) -> Result<HashMap<i64, (i128, i64)>, StoreError> {
    let mut days: HashMap<i64, (i128, i64)> = HashMap::new();
    let mut rows = db.query(query).fetch()?;
    while let Some(row) = rows.try_next().await? {
        let (spent, entries): (i64, i64) = (row.try_get("spent")?, row.try_get("entries")?);
        let sum = days.entry(row.try_get("day")?).or_default();
        *sum = (sum.0 + i128::from(spent), sum.1 + entries);
    }
    Ok(days)
}
