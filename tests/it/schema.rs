//! Both databases have the same tables with the same columns.

use std::collections::BTreeSet;

use crate::app::{Database, TIERS, TestApp};

/// What one has and the other has not, and why.
const APART: [(&str, &str); 5] = [
    // Postgres has no journal beside it: what a batch writes is in the tables.
    ("settled", "only"),
    ("settled", "through"),
    // One row would make all nodes commit one after the other.
    ("spend_by_day_of_all", "slot"),
    // A sequence, for the same reason.
    ("tickets", "last"),
    ("tickets", "only"),
];

const OF_SQLITE: &str = "SELECT m.name || '.' || c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c \
     WHERE m.type IN ('table', 'view') AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '_sqlx%'";
const OF_POSTGRES: &str = "SELECT table_name || '.' || column_name FROM information_schema.columns \
     WHERE table_schema = 'public' AND table_name NOT LIKE '_sqlx%'";

#[tokio::test]
async fn both_databases_have_the_same_columns() {
    let mut columns: Vec<BTreeSet<String>> = Vec::new();
    for (database, query) in [(Database::Sqlite, OF_SQLITE), (Database::Postgres, OF_POSTGRES)] {
        let mut app = TestApp::start(database, TIERS, |config| config).await;
        columns.push(app.column(query).await.into_iter().collect());
        app.stop().await;
    }
    assert!(columns.iter().all(|columns| 80 < columns.len()), "{columns:?}");
    let apart: BTreeSet<String> = columns[0].symmetric_difference(&columns[1]).cloned().collect();
    let expected: BTreeSet<String> = APART.iter().map(|(table, column)| format!("{table}.{column}")).collect();
    assert_eq!(apart, expected);
}

#[test]
fn every_migration_is_there_for_both() {
    let names = |folder: &str| -> BTreeSet<String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}
