//! What is copied: every table that holds what somebody said or bought, its key and its columns. A test compares this with the schema.

use std::sync::LazyLock;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Int,
    Text,
    Bytes,
}

#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

const fn int(name: &'static str) -> Column {
    Column { name, kind: Kind::Int }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn bytes(name: &'static str) -> Column {
    Column { name, kind: Kind::Bytes }
}

struct Declared {
    name: &'static str,
    /// Unique, and its order is that of an index of SQLite's.
    key: &'static [Column],
    rest: &'static [Column],
    /// What is added up and shown, so that people can compare it with what they know.
    sums: &'static [&'static str],
}

/// Not here, and why: `settled` is of SQLite's journal, which is settled before; `tickets` is a sequence on Postgres; `probe`, `leases`,
/// `copying` and `copy_source` tell of the database itself.
const TABLES: [Declared; 19] = [
    Declared {
        name: "users",
        key: &[text("user_id")],
        rest: &[
            text("account_id"),
            int("created_at"),
            int("spent"),
            int("entries"),
            text("manual_tier"),
            text("manual_reason"),
            int("manual_set_at"),
            int("manual_ends_at"),
            int("version"),
            text("caps"),
            int("granted_until"),
        ],
        sums: &["spent", "entries"],
    },
    Declared { name: "accounts", key: &[text("account_id")], rest: &[int("created_at"), int("version")], sums: &[] },
    Declared {
        name: "customers",
        key: &[text("customer")],
        rest: &[text("account_id"), text("user_id"), text("state"), int("updated_at"), int("reconciled_in")],
        sums: &[],
    },
    Declared {
        name: "outbox",
        key: &[text("alert_id")],
        rest: &[text("alert_key"), text("kind"), text("user_id"), text("message"), text("details"), int("created_at"), int("spread_at")],
        sums: &[],
    },
    Declared {
        name: "deliveries",
        key: &[text("alert_id"), text("endpoint")],
        rest: &[int("tries"), int("due_at"), int("delivered_at"), int("parked_at"), text("error")],
        sums: &[],
    },
    Declared {
        name: "usage",
        key: &[int("seq")],
        rest: &[
            text("id"),
            int("id_hash"),
            text("kind"),
            text("user_id"),
            text("account_id"),
            int("cost"),
            int("happened_at"),
            int("recorded_at"),
            text("model"),
            text("provider"),
            int("input_tokens"),
            int("output_tokens"),
            text("metadata"),
            text("detail"),
            bytes("fingerprint"),
        ],
        sums: &["cost", "input_tokens", "output_tokens"],
    },
    Declared {
        name: "rolled",
        key: &[text("user_id"), text("account_id"), int("day"), text("model")],
        rest: &[int("spent"), int("entries"), int("input_tokens"), int("output_tokens")],
        sums: &["spent", "entries", "input_tokens", "output_tokens"],
    },
    Declared {
        name: "holds",
        key: &[int("seq")],
        rest: &[
            text("id"),
            text("user_id"),
            text("account_id"),
            int("amount"),
            text("model"),
            int("created_at"),
            int("expires_at"),
            bytes("fingerprint"),
            int("ended_at"),
            int("captured"),
            bytes("end_fingerprint"),
            text("answer"),
            text("provider"),
        ],
        sums: &["amount", "captured"],
    },
    Declared {
        name: "spend_by_day",
        key: &[text("user_id"), int("day"), text("model")],
        rest: &[int("spent"), int("entries"), int("input_tokens"), int("output_tokens")],
        sums: &["spent", "entries", "input_tokens", "output_tokens"],
    },
    Declared {
        name: "spend_by_day_of_account",
        key: &[text("account_id"), int("day")],
        rest: &[int("spent"), int("entries")],
        sums: &["spent", "entries"],
    },
    Declared { name: OF_ALL, key: &[int("day")], rest: &[int("spent"), int("entries")], sums: &["spent", "entries"] },
    Declared {
        name: "grants",
        key: &[text("user_id"), text("grant_id")],
        rest: &[text("period"), int("amount"), int("used"), int("ends_at"), text("reason"), int("created_at"), int("revoked_at")],
        sums: &["amount", "used"],
    },
    Declared { name: "draws", key: &[text("user_id"), text("grant_id"), int("window_start")], rest: &[int("drawn")], sums: &["drawn"] },
    Declared {
        name: "inbox",
        key: &[int("seq")],
        rest: &[
            text("event_id"),
            text("kind"),
            text("customer"),
            int("received_at"),
            int("applied_at"),
            text("state"),
            text("effect"),
            text("alerts"),
            bytes("body"),
            int("requested_seq"),
        ],
        sums: &[],
    },
    Declared {
        name: "requests",
        key: &[text("subject")],
        rest: &[text("kind"), int("requested_seq"), int("applied_seq"), int("tries"), int("due_at"), int("given_up_at"), text("error")],
        sums: &[],
    },
    Declared {
        name: "reconciliation",
        key: &[int("only")],
        rest: &[
            int("run"),
            text("phase"),
            text("place"),
            int("events_since"),
            int("started_at"),
            int("finished_at"),
            int("checked"),
            int("drifted"),
            int("missed_events"),
            text("drift"),
            text("faults"),
            int("unread"),
        ],
        sums: &[],
    },
    Declared {
        name: "audit",
        key: &[int("seq")],
        rest: &[int("at"), text("key_id"), text("account_id"), text("user_id"), text("change"), text("reason")],
        sums: &[],
    },
    Declared {
        name: "api_keys",
        key: &[text("key_id")],
        rest: &[
            text("name"),
            bytes("digest"),
            text("scopes"),
            int("created_at"),
            int("revoked_at"),
            int("expires_at"),
            int("last_used_at"),
            text("successor"),
        ],
        sums: &[],
    },
    Declared { name: "upgrade_links", key: &[int("only")], rest: &[bytes("secret")], sums: &[] },
];

/// On Postgres a day has several rows of it, told apart by `slot`. The first one takes what is copied.
const OF_ALL: &str = "spend_by_day_of_all";

/// A table and its statements. They are made of the names above and of nothing else, since 17 tables times seven statements by hand
/// would be a place for slips.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    /// The first so many columns are the key.
    pub key: usize,
    pub columns: Vec<Column>,
    /// Which columns are added up.
    pub sums: Vec<usize>,
    pub any: String,
    pub count: String,
    pub all: String,
    /// The first rows in the order of the key, and those behind a key; the last parameter is how many.
    pub first: String,
    pub behind: String,
    /// A parameter for each column: the values of all rows. Postgres only.
    pub insert: String,
    /// Without it the first statements after a copy are planned as for an empty table. Postgres only.
    pub analyze: String,
}

impl Table {
    fn new(declared: &Declared) -> Self {
        let columns = [declared.key, declared.rest].concat();
        let quoted = |columns: &[Column]| columns.iter().map(|column| format!("\"{}\"", column.name)).collect::<Vec<_>>().join(", ");
        let (name, key, names) = (declared.name, quoted(declared.key), quoted(&columns));
        let numbers = |count: usize| (1..=count).map(|number| format!("${number}")).collect::<Vec<_>>();
        let kinds = columns.iter().map(|column| match column.kind {
            Kind::Int => "bigint",
            Kind::Text => "text",
            Kind::Bytes => "bytea",
        });
        let arrays =
            numbers(columns.len()).iter().zip(kinds).map(|(number, kind)| format!("{number}::{kind}[]")).collect::<Vec<_>>().join(", ");
        let (slot, zero) = if name == OF_ALL { (", slot", ", 0") } else { ("", "") };
        let keys = declared.key.len();
        Self {
            name,
            key: keys,
            sums: columns.iter().enumerate().filter(|(_, column)| declared.sums.contains(&column.name)).map(|(index, _)| index).collect(),
            any: format!("SELECT 1 FROM \"{name}\" LIMIT 1"),
            count: format!("SELECT COUNT(*) FROM \"{name}\""),
            all: format!("SELECT {names} FROM \"{name}\""),
            first: format!("SELECT {names} FROM \"{name}\" ORDER BY {key} LIMIT $1"),
            behind: format!(
                "SELECT {names} FROM \"{name}\" WHERE ({key}) > ({}) ORDER BY {key} LIMIT ${}",
                numbers(keys).join(", "),
                keys + 1
            ),
            insert: format!(
                "INSERT INTO \"{name}\" ({names}{slot}) OVERRIDING SYSTEM VALUE SELECT copied.*{zero} FROM UNNEST({arrays}) AS copied"
            ),
            analyze: format!("ANALYZE \"{name}\""),
            columns,
        }
    }
}

/// In the order in which they are copied.
pub fn tables() -> &'static [Table] {
    static MADE: LazyLock<Vec<Table>> = LazyLock::new(|| TABLES.iter().map(Table::new).collect());
    &MADE
}
