//! Every field of every door that takes a body: missing, twice, misspelt, and of every wrong kind.

use serde_json::{Map, Value};

use super::{DOORS, Door, goes_on, prepare, refused};
use crate::app::{TIERS, TestApp, on_each_database};
use crate::fuzz::targets::nanos_of;

/// What a field takes, null apart.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// 1 to 255 bytes without control characters.
    Name,
    /// Any text; what it says is read by who understands it.
    Text,
    Amount,
    Tokens,
    Seconds,
    Time,
    Object,
    Truth,
    Word(&'static [&'static str]),
}

/// A name, what it takes, whether it may be missing, and whether it may be null.
type Field = (&'static str, Kind, bool, bool);

const SHORT: Kind = Kind::Word(&["refuse", "reduce"]);
const PERIODS: Kind = Kind::Word(&["daily", "weekly", "monthly", "billing", "total"]);

/// What is known of a field by its name; `door` knows whether it must be there.
fn field(door: &Door, name: &'static str) -> Field {
    let must = |names: &[&str]| !names.contains(&name);
    let optional = match door.path {
        "/v1/enforcement" => must(&["user_id", "id"]),
        "/v1/usage" => must(&["id", "user_id"]),
        "/v1/corrections" => must(&["id", "user_id", "amount", "reason", "time"]),
        "/v1/holds" => must(&["id", "user_id"]),
        "/v1/holds/long/extend" => must(&["ttl_seconds"]),
        "/v1/users/granted-N/grants" => must(&["id", "amount", "period", "ends_at", "reason"]),
        "/v1/accounts/acme" => must(&["stripe_customer"]),
        "/v1/simulate" => must(&["user_id", "tiers"]),
        _ => true,
    };
    let kind = match name {
        "estimated_cost" | "cost" | "amount" | "daily" | "weekly" | "monthly" | "billing" | "total" => Kind::Amount,
        "metadata" => Kind::Object,
        "hold" => Kind::Truth,
        "ttl_seconds" => Kind::Seconds,
        "if_short" => SHORT,
        "period" => PERIODS,
        "time" | "ends_at" | "since" => Kind::Time,
        "tiers" | "prices" => Kind::Text,
        "images" => Kind::Tokens,
        _ if name.ends_with("_tokens") => Kind::Tokens,
        _ => Kind::Name,
    };
    // Null takes a binding away; a setting with a default of its own has no null.
    let nullable = match (door.path, name) {
        ("/v1/accounts/acme", "stripe_customer") => true,
        ("/v1/enforcement", "hold") | ("/v1/holds", "ttl_seconds" | "if_short") => false,
        _ => optional,
    };
    (name, kind, optional, nullable)
}

/// What is put in place of a value, as it is written.
fn values() -> Vec<String> {
    let huge = [
        format!("\"{}\"", "x".repeat(255)),
        format!("\"{}\"", "x".repeat(256)),
        format!("\"{}\"", "é".repeat(128)),
        format!("\"{}\"", "x".repeat(50_000)),
    ];
    let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let odd = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "7",
        "-1",
        "1.5",
        "1e2",
        "1e400",
        "1e-400",
        "2147483648",
        "9223372036854775808",
        "18446744073709551616",
        "-9223372036854775809",
        "\"\"",
        "\" \"",
        "\"0\"",
        "\"7\"",
        "\"true\"",
        "\"null\"",
        "\"daily\"",
        "\"a\\u0000b\"",
        "\"a\\nb\"",
        "\"\\u007f\"",
        "\"\\u0085\"",
        "\"\\ud800\"",
        "\"\\ud83d\\ude00\"",
        "\"2026-01-12\"",
        "\"1969-12-31T23:59:59Z\"",
        "\"9999-12-31T23:59:59Z\"",
        "\"10000-01-01T00:00:00Z\"",
        "\"2026-02-30T00:00:00Z\"",
        "\"2026-01-12T11:00:00\"",
        "[]",
        "[null]",
        "[7]",
        "[\"x\"]",
        "{}",
        "{\"a\":1}",
        "{\"\":{}}",
    ];
    odd.map(str::to_owned).into_iter().chain(huge).chain([nested]).collect()
}

fn takes((_, kind, _, nullable): Field, raw: &str) -> bool {
    if raw == "null" {
        return nullable;
    }
    let Ok(value) = serde_json::from_str::<Value>(raw) else { return false };
    let time = |text: &str| chrono::DateTime::parse_from_rfc3339(text).is_ok_and(|time| 0 <= time.timestamp());
    match kind {
        Kind::Name => value.as_str().is_some_and(|text| (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)),
        Kind::Text => value.is_string(),
        Kind::Amount => (value.is_number() || value.is_string()) && nanos_of(raw.trim_matches('"')).is_some(),
        // A whole number, written as one.
        Kind::Tokens => value.as_i64().is_some_and(|number| (0..=1_000_000_000).contains(&number)) && raw != "-0",
        Kind::Seconds => value.as_i64().is_some_and(|number| (1..=86_400).contains(&number)),
        Kind::Time => value.as_str().is_some_and(time),
        Kind::Object => value.is_object(),
        Kind::Truth => value.is_boolean(),
        Kind::Word(words) => value.as_str().is_some_and(|text| words.contains(&text)),
    }
}

/// Sends a body of fields as they are written, and gives the status of what was refused rightly or taken.
async fn check(app: &TestApp, door: &Door, number: u32, fields: &[(String, String)], changed: Field, raw: Option<&str>) -> u16 {
    let body = fields.iter().map(|(name, raw)| format!("\"{name}\":{raw}")).collect::<Vec<_>>().join(",");
    let answer = door.send(app, number, format!("{{{body}}}")).await;
    let what =
        format!("{} {} with {} = {}", door.method, door.path, changed.0, raw.unwrap_or("(missing)").chars().take(60).collect::<String>());
    let legal = raw.map_or(changed.2, |raw| takes(changed, raw));
    if answer.status == 200 {
        assert!(legal, "{what} was taken: {}", answer.text);
        return answer.status;
    }
    let problem = refused(&answer, &what);
    if !legal {
        let is_json = raw.is_none_or(|raw| serde_json::from_str::<Value>(raw).is_ok());
        assert!([400, 422].contains(&answer.status), "{what}: {problem}");
        // What is no JSON has no fields.
        assert!(
            answer.status == 400 && !is_json || problem["field"].as_str().is_some_and(|field| field.starts_with(changed.0)),
            "{what}: {problem}"
        );
    }
    answer.status
}

#[tokio::test]
async fn every_field_of_every_body_takes_what_it_takes_and_nothing_else() {
    on_each_database(TIERS, async |app| {
        prepare(app).await;
        let mut number = 1000;
        for door in &DOORS {
            let good: Map<String, Value> = serde_json::from_str(door.good).unwrap();
            let mut taken = 0;
            for name in good.keys() {
                let changed = field(door, name.clone().leak());
                for raw in values().iter().map(|raw| Some(raw.as_str())).chain([None]) {
                    number += 1;
                    let numbered: Map<String, Value> = serde_json::from_str(&door.good(number)).unwrap();
                    let others =
                        numbered.iter().filter(|(other, _)| *other != name).map(|(other, value)| (other.clone(), value.to_string()));
                    let fields: Vec<(String, String)> = raw.map(|raw| (name.clone(), raw.to_owned())).into_iter().chain(others).collect();
                    taken += u32::from(check(app, door, number, &fields, changed, raw).await == 200);
                }
                // Twice, and misspelt.
                let written = |name: &str, value: &Value| (name.to_owned(), value.to_string());
                let mut twice: Vec<_> = good.iter().map(|(name, value)| written(name, value)).collect();
                twice.push(written(name, &good[name]));
                let body = |fields: &[(String, String)]| {
                    format!("{{{}}}", fields.iter().map(|(name, raw)| format!("\"{name}\":{raw}")).collect::<Vec<_>>().join(","))
                };
                assert_eq!(refused(&door.send(app, number, body(&twice)).await, "a field twice")["field"], name.as_str(), "{}", door.path);
                for misspelt in
                    [format!("{name}s"), name.to_uppercase(), format!("{name} "), format!("{name}\\u0000"), name.replace('_', "-") + "x"]
                {
                    let fields: Vec<_> = good.iter().map(|(of, value)| written(if of == name { &misspelt } else { of }, value)).collect();
                    let problem = refused(&door.send(app, number, body(&fields)).await, &misspelt);
                    assert_eq!(problem["code"], "unknown_field", "{}: {misspelt}: {problem}", door.path);
                }
            }
            // The control: what is legal was taken.
            assert!(0 < taken, "{}: nothing was taken", door.path);
            let answer = door.send(app, number + 1, door.good(number + 1)).await;
            assert!(answer.status == 200 || door.path.ends_with("/capture"), "{}: {}", door.path, answer.text);
            number += 1;
        }
        goes_on(app).await;
    })
    .await;
}
