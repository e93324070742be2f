//! Bodies that are deep, wide, huge, or hardly JSON, at every door that takes one.

use serde_json::{Value, json};

use super::{DOORS, goes_on, prepare, refused};
use crate::app::{TIERS, on_each_database};

const DEPTH: usize = 10_000;
const KEYS: usize = 100_000;

/// `DEPTH` of `open`, something, and as many of `close`.
fn deep(open: &str, close: &str) -> String {
    format!("{}0{}", open.repeat(DEPTH), close.repeat(DEPTH))
}

fn wide() -> String {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("\"k{key}\":0")).collect();
    format!("{{{}}}", keys.join(","))
}

/// Bodies that are wrong at every door.
fn wrong() -> Vec<Vec<u8>> {
    let objects = deep("{\"a\":", "}");
    let texts = [
        String::new(),
        " ".to_owned(),
        "null".to_owned(),
        "true".to_owned(),
        "0".to_owned(),
        "\"text\"".to_owned(),
        "[]".to_owned(),
        "[null]".to_owned(),
        "[[]]".to_owned(),
        "[{}]".to_owned(),
        "{}".to_owned(),
        "{".to_owned(),
        "}".to_owned(),
        "{}{}".to_owned(),
        "{\"\":0}".to_owned(),
        "{'id':'x'}".to_owned(),
        "{\"id\":\"x\",}".to_owned(),
        "{\"id\":\"x\"} // and no more".to_owned(),
        "{id:1}".to_owned(),
        "NaN".to_owned(),
        "{\"a\":NaN}".to_owned(),
        "{\"a\":1e999999999999}".to_owned(),
        "{\"\\ud800\":0}".to_owned(),
        "{\"a\":\"\\udc00\\ud800\"}".to_owned(),
        "{\"a\\u0000\":0}".to_owned(),
        "\u{feff}{\"id\":\"x\"}".to_owned(),
        "{\"__proto__\":{}}".to_owned(),
        "[".repeat(DEPTH),
        "{\"a\":".repeat(DEPTH),
        deep("[", "]"),
        objects.clone(),
        format!("[{objects}]"),
        format!("{{\"metadata\":{objects}}}"),
        format!("{{\"cost\":{},\"estimated_cost\":{}}}", deep("[", "]"), deep("[", "]")),
        format!("{{\"id\":\"{}\"}}", "x".repeat(60_000)),
        format!("{{\"{}\":0}}", "k".repeat(60_000)),
        "a=1&b=2".to_owned(),
        "<xml/>".to_owned(),
    ];
    let bytes: [&[u8]; 6] =
        [b"\0", b"{\"id\":\"a\0b\"}", b"{\"id\":\"\xff\xfe\"}", b"\xff\xfe{\0}\0", b"\x1f\x8b\x08\0", b"{\"id\":\"\xed\xa0\x80\"}"];
    texts.into_iter().map(String::into_bytes).chain(bytes.map(<[u8]>::to_vec)).collect()
}

#[tokio::test]
async fn bodies_that_are_deep_wide_or_no_json_are_refused_at_every_door() {
    on_each_database(TIERS, async |app| {
        prepare(app).await;
        for (number, door) in (0..).zip(DOORS) {
            for body in wrong() {
                // Caps of nothing are none: an empty object takes them away.
                if door.path.ends_with("/caps") && body == b"{}" {
                    continue;
                }
                let what = format!("{} {}", door.path, String::from_utf8_lossy(&body[..body.len().min(200)]));
                refused(&door.send(app, number, body).await, &what);
            }
            // Where so much is read at all; how a door ends what is larger is told below.
            if wide().len() < door.limit {
                refused(&door.send(app, number, wide()).await, door.path);
            }
            // The control.
            let answer = door.send(app, number, door.good(number)).await;
            assert_eq!(answer.status, 200, "{}: {}", door.path, answer.text);
        }
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_of_as_many_bytes_as_a_door_takes_is_taken_and_one_byte_more_is_not() {
    on_each_database(TIERS, async |app| {
        prepare(app).await;
        for (number, door) in (0..).zip(DOORS) {
            let good = door.good(number);
            let padded = |bytes: usize| good.clone() + &" ".repeat(bytes - good.len());
            let answer = door.send(app, number, padded(door.limit)).await;
            assert_eq!(answer.status, 200, "{}: {}", door.path, answer.text);
            door.send(app, number, padded(door.limit + 1)).await.problem(413, "body_too_large");
        }
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn metadata_is_bounded_in_bytes_and_keeps_whatever_json_has() {
    on_each_database(TIERS, async |app| {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let odd = [
            "{}",
            "{\"\":null}",
            "{\"a\\u0000\":\"\\u0000\"}",
            "{\"a\":1e308,\"b\":-0,\"c\":18446744073709551615}",
            "{\"a\":1,\"a\":2}",
            "{\"\\ud83d\\ude00\":\"\\u202e\"}",
        ];
        let deep = format!("{{\"a\":{}}}", nested(100));
        for (number, metadata) in odd.into_iter().chain([deep.as_str()]).enumerate() {
            let record = format!("{{\"id\":\"m{number}\",\"user_id\":\"m\",\"cost\":0,\"metadata\":{metadata}}}");
            app.post("/v1/usage", &record).await.ok();
            let question = format!("{{\"user_id\":\"m\",\"metadata\":{metadata}}}");
            app.post("/v1/enforcement", &question).await.ok();
            assert_eq!(app.post("/v1/usage", &record).await.ok()["repeated"], true, "the same object is the same: {metadata}");
        }
        let listed = app.get("/v1/users/m/usage").await.ok();
        assert_eq!(listed["entries"].as_array().unwrap().len(), odd.len() + 1);
        let refused_by_field = async |metadata: String| {
            for (path, rest) in
                [("/v1/usage", "\"id\":\"x\",\"cost\":0,"), ("/v1/enforcement", ""), ("/v1/holds", "\"id\":\"x\",\"estimated_cost\":0,")]
            {
                let answer = app.post(path, format!("{{\"user_id\":\"m\",{rest}\"metadata\":{metadata}}}")).await;
                let problem = refused(&answer, path);
                assert!(answer.status == 400 || problem["field"] == "metadata", "{path}: {problem}");
            }
        };
        for metadata in [format!("{{\"a\":\"{}\"}}", "x".repeat(4096)), nested(2), "[]".to_owned(), "\"{}\"".to_owned(), "7".to_owned()] {
            refused_by_field(metadata).await;
        }
        let answer = app.post("/v1/usage", format!("{{\"user_id\":\"m\",\"id\":\"x\",\"cost\":0,\"metadata\":{}}}", wide())).await;
        assert_eq!(refused(&answer, "wide metadata")["field"], "metadata");
        // Deeper than any reader goes down.
        refused_by_field(format!("{{\"a\":{}}}", nested(200))).await;
        refused_by_field(format!("{{\"a\":{}}}", nested(DEPTH))).await;
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn a_signed_delivery_of_any_shape_is_taken_or_refused_and_never_a_fault() {
    on_each_database(TIERS, async |app| {
        let event = |id: &str, kind: &str, object: &str| format!("{{\"id\":\"{id}\",\"type\":\"{kind}\",\"created\":1768219200,\"data\":{{\"object\":{object}}}}}");
        let keys: Vec<String> = (0..50_000).map(|key| format!("\"k{key}\":0")).collect();
        let metadata = format!("{{\"id\":\"cus_w\",\"metadata\":{{\"user_id\":\"{}\"}}}}", "x".repeat(300));
        let shapes = [
            ("wide", format!("{{\"id\":\"cus_w\",{}}}", keys.join(","))),
            ("deep", format!("{{\"id\":\"cus_w\",\"a\":{}}}", "[".repeat(100) + &"]".repeat(100))),
            ("long", metadata),
            ("numbers", "{\"id\":\"sub_n\",\"customer\":\"cus_n\",\"status\":\"active\",\"cancel_at\":1e300,\"ended_at\":-1e18,\"trial_end\":9223372036854775807,\"items\":{\"data\":[{\"quantity\":18446744073709551615,\"price\":{\"id\":\"price_pro\"},\"current_period_start\":-1,\"current_period_end\":1e400}]}}".to_owned()),
            ("items", format!("{{\"id\":\"sub_i\",\"customer\":\"cus_i\",\"status\":\"active\",\"items\":{{\"data\":[{}]}}}}", vec!["{\"price\":{\"id\":\"price_pro\"},\"quantity\":9223372036854775807}"; 5000].join(","))),
            ("twice", "{\"id\":\"cus_1\",\"id\":\"cus_2\",\"metadata\":{\"user_id\":\"a\",\"user_id\":\"b\"}}".to_owned()),
            ("nul", "{\"id\":\"cus_\\u0000\",\"metadata\":{\"user_id\":\"\\u0000\"}}".to_owned()),
            ("surrogate", "{\"id\":\"\\ud800\"}".to_owned()),
        ];
        for (name, object) in &shapes {
            for kind in ["customer.created", "customer.subscription.updated", "invoice.paid", "checkout.session.completed", "price.updated", "x"] {
                let answer = app.deliver(event(&format!("evt_{name}_{kind}"), kind, object).as_bytes()).await;
                assert!(answer.status == 200 || refused(&answer, name)["code"] == "not_an_event", "{name} {kind}: {}", answer.text);
            }
        }
        for body in wrong() {
            let answer = app.deliver(&body).await;
            refused(&answer, &String::from_utf8_lossy(&body[..body.len().min(100)]));
        }
        let huge = event("evt_huge", "customer.created", &format!("{{\"id\":\"cus_h\",\"name\":\"{}\"}}", "x".repeat(1024 * 1024)));
        app.deliver(huge.as_bytes()).await.problem(413, "body_too_large");
        for id in ["", ".", "..", "a/b", "a b", "../x", "a%2fb", "\\u0000", "é", "\\\"", &"x".repeat(256)] {
            refused(&app.deliver(event(id, "customer.created", "{\"id\":\"cus_1\"}").as_bytes()).await, id);
        }
        // The control, and what is listed of all that can be read.
        let longest = "x".repeat(255);
        app.deliver(event(&longest, "customer.created", "{\"id\":\"cus_1\"}").as_bytes()).await.ok();
        let events: Value = app.get("/v1/events?limit=1000").await.ok();
        for event in events["events"].as_array().unwrap() {
            app.get(&format!("/v1/events/{}", event["event_id"].as_str().unwrap())).await.ok();
            let replayed = app.post(&format!("/v1/events/{}/replay", event["event_id"].as_str().unwrap()), "").await;
            assert!(replayed.status < 500, "{event}: {}", replayed.text);
        }
        assert!(events["events"].as_array().unwrap().iter().any(|event| event["event_id"] == json!(longest)));
        goes_on(app).await;
    })
    .await;
}
