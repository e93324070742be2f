//! Numbers of every shape, at and past every edge, at every door that takes an amount.

use serde_json::{Value, json};

use super::{goes_on, refused};
use crate::app::{ADMIN_KEY, Answer, TIERS, TestApp, on_each_database};
use crate::fuzz::targets::nanos_of;

/// As they are written in a body; strings are tried as well.
const AMOUNTS: [&str; 58] = [
    "0",
    "-0",
    "0.0",
    "-0.0",
    "0e0",
    "0e999",
    "-0e-999",
    "1",
    "0.1",
    "0.30",
    "29",
    "1e0",
    "1E0",
    "1e+0",
    "1e-0",
    "0.000000001",
    "1e-9",
    "1.0e-9",
    "10e-10",
    "0.0000000010",
    "0.0000000001",
    "1e-10",
    "1e-999",
    "1e-9999",
    "0.30000000000000004",
    "0.1234567891",
    "999999999.999999999",
    "1000000000",
    "1e9",
    "1000000000.0",
    "1000000000.000000000000",
    "1000000000.000000001",
    "1000000001",
    "1e10",
    "9999999999",
    "1e18",
    "1e19",
    "9223372036",
    "9223372036.854775807",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e308",
    "1e309",
    "1e400",
    "1e9999",
    "1e99999999999999999999",
    "-1",
    "-0.000000001",
    "-1e-9",
    "-9223372036854775808",
    "-1e400",
    "0.00000000000000000000000000000000000000000000000000000000000001",
    "0.000000000000000000000000000000000000000000000000000000000000001",
    "00000000000000000000000000000000000000000000000000000000000000000001",
    "1000000000000000000000000000000000000000000000000000000000000000e-60",
    "123456789.123456789",
    "0.999999999",
];
/// No JSON, and no amount.
const NONSENSE: [&str; 22] = [
    "NaN",
    "nan",
    "Infinity",
    "-Infinity",
    "inf",
    "0x10",
    "1_000",
    "1,5",
    ".5",
    "5.",
    "+1",
    "--1",
    "1e",
    "1e+",
    "e1",
    "1.2.3",
    "0b1",
    "1d",
    "1f",
    "٣",
    "１",
    "½",
];
/// JSON, and no amount.
const OTHERS: [&str; 13] = [
    "true",
    "false",
    "[]",
    "[1]",
    "{}",
    r#"{"amount": 1}"#,
    r#""""#,
    r#"" ""#,
    r#"" 1""#,
    r#""1 ""#,
    r#""$1""#,
    r#""1 USD""#,
    r#""\u0031""#,
];

/// A door that takes an amount: what is sent with `AMOUNT` in it, and the name of its field. `N` stands for a number of its own.
const DOORS: [(&str, &str, &str, &str); 12] = [
    ("POST", "/v1/usage", r#"{"id": "u-N", "user_id": "spends-N", "cost": AMOUNT}"#, "cost"),
    ("POST", "/v1/usage", r#"[{"id": "l-N", "user_id": "lists-N", "cost": AMOUNT}]"#, "[0].cost"),
    ("POST", "/v1/enforcement", r#"{"user_id": "asks", "estimated_cost": AMOUNT}"#, "estimated_cost"),
    ("POST", "/v1/enforcement", r#"[{"user_id": "asks", "estimated_cost": AMOUNT}]"#, "[0].estimated_cost"),
    ("POST", "/v1/holds", r#"{"id": "h-N", "user_id": "holds-N", "estimated_cost": AMOUNT}"#, "estimated_cost"),
    ("POST", "/v1/holds/open-N/capture", r#"{"cost": AMOUNT}"#, "cost"),
    (
        "POST",
        "/v1/corrections",
        r#"{"id": "c-N", "user_id": "rich", "amount": AMOUNT, "reason": "r", "time": "2026-01-12T11:00:00Z"}"#,
        "amount",
    ),
    (
        "POST",
        "/v1/users/granted-N/grants",
        r#"{"id": "g-N", "amount": AMOUNT, "period": "daily", "ends_at": "2026-02-01T00:00:00Z", "reason": "r"}"#,
        "amount",
    ),
    ("PUT", "/v1/users/capped-N/caps", r#"{"daily": AMOUNT}"#, "daily"),
    ("PUT", "/v1/users/capped-N/caps", r#"{"total": AMOUNT}"#, "total"),
    ("GET", "/v1/users/asks/enforcement?estimated_cost=AMOUNT", "", "estimated_cost"),
    ("GET", "/v1/users/asks/explain?estimated_cost=AMOUNT", "", "estimated_cost"),
];

async fn send(app: &TestApp, door: (&str, &str, &str, &str), number: usize, amount: &str) -> Answer {
    let (method, path, body, _) = door;
    let encoded = percent_encoding::utf8_percent_encode(amount, percent_encoding::NON_ALPHANUMERIC).to_string();
    let path = path.replace("-N", &format!("-{number}")).replace("AMOUNT", &encoded);
    if path.ends_with("/capture") {
        let hold = json!({"id": format!("open-{number}"), "user_id": format!("captures-{number}"), "estimated_cost": "0.000000001"});
        app.post("/v1/holds", hold).await.ok();
    }
    let request = app.client.request(method.parse().unwrap(), app.url(&path)).bearer_auth(ADMIN_KEY);
    app.send(request.body(body.replace("-N", &format!("-{number}")).replace("AMOUNT", amount))).await
}

#[tokio::test]
async fn every_door_takes_the_same_amounts_and_refuses_the_others_by_field() {
    on_each_database(TIERS, async |app| {
        app.post("/v1/usage", json!({"id": "rich", "user_id": "rich", "cost": 5, "time": "2026-01-12T11:00:00Z"})).await.ok();
        let mut number = 0;
        let quoted = AMOUNTS.iter().chain(&NONSENSE).map(|amount| format!("\"{amount}\""));
        let texts: Vec<String> = AMOUNTS.iter().chain(&NONSENSE).chain(&OTHERS).map(|amount| (*amount).to_owned()).chain(quoted).collect();
        let (mut taken, mut spent) = (0, 0_i128);
        for door in DOORS {
            let in_query = door.0 == "GET";
            for text in texts.iter().filter(|text| !in_query || !text.starts_with('"')) {
                number += 1;
                let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).filter(|_| !in_query).unwrap_or(text);
                // Zeros before a number are no JSON.
                let is_json = in_query || serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok();
                let nanos = nanos_of(inner).filter(|_| is_json);
                let answer = send(app, door, number, text).await;
                let what = format!("{} {} with {text}", door.0, door.1);
                let problem = |answer: &Answer| {
                    let problem = refused(answer, &what);
                    assert!(!is_json || problem["field"] == door.3, "{what}: {problem}");
                };
                match nanos {
                    None => problem(&answer),
                    // A correction of more than was booked, a grant or a hold of nothing: it is an amount, and is told.
                    Some(0) if door.3 == "amount" || door.1 == "/v1/holds" => problem(&answer),
                    Some(_) if door.3 == "amount" && answer.status == 422 => problem(&answer),
                    Some(nanos) => {
                        assert_eq!(answer.status, 200, "{what}: {}", answer.text);
                        taken += 1;
                        if door.3 == "cost" && door.1 == "/v1/usage" {
                            let shown = answer.text.split_once("\"cost\":").unwrap().1.split(',').next().unwrap();
                            assert_eq!(nanos_of(shown), Some(nanos), "{what}: {shown} was booked");
                            spent += nanos;
                        }
                    }
                }
            }
        }
        // The control: some were let in at every door, and cost what they say.
        assert!(DOORS.len() * 20 < taken, "{taken}");
        assert!(0 < spent);
        goes_on(app).await;
    })
    .await;
}

/// Sums of many amounts that are each allowed are refused before they cannot be counted.
#[tokio::test]
async fn a_sum_that_cannot_be_counted_is_refused_whole() {
    on_each_database(TIERS, async |app| {
        let record = |id: usize| json!({"id": format!("sum-{id}"), "user_id": "sums", "cost": 1_000_000_000});
        let list: Vec<Value> = (0..10).map(record).collect();
        let problem = refused(&app.post("/v1/usage", json!(list)).await, "ten billions at once");
        assert_eq!(problem["field"], "[9].cost");
        assert_eq!(app.user("sums").await["known"], json!(false), "nothing of it was booked");
        for id in 0..9 {
            app.post("/v1/usage", record(id)).await.ok();
        }
        assert_eq!(refused(&app.post("/v1/usage", record(9)).await, "the tenth")["field"], "cost");
        assert_eq!(app.user("sums").await["lifetime"]["spent"], json!(9_000_000_000_u64));
    })
    .await;
}
