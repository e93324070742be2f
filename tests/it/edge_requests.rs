//! Requests as the edge sees them: too many of a kind, encoded bodies, ids, and a Host that lies.

use serde_json::json;

use crate::app::{ADMIN_KEY, TIERS, TestApp, WEBHOOK_SECRET, on_each_database};
use crate::raw::{Raw, check, head, request};
use crate::stripe::paying;
use spendgate::stripe::signature::Secret;

/// A request that waits for its body, and is known to be in flight.
async fn in_flight(app: &TestApp, path: &str, length: usize) -> Raw {
    let mut raw = Raw::begun(app, &format!("{}content-length: {length}\r\nexpect: 100-continue\r\n\r\n", head("POST", path))).await;
    assert_eq!(raw.status().await, Some(100), "{path}");
    raw
}

#[tokio::test]
async fn a_flood_of_events_finds_no_room_and_checks_writes_and_other_events_do() {
    on_each_database(TIERS, async |app| {
        for (length, most) in [(1_000_000, 8), (60_000, 256)] {
            let mut flood = Vec::new();
            for _ in 0..most {
                flood.push(in_flight(app, "/webhooks/stripe", length).await);
            }
            let mut refused = Raw::begun(app, &format!("{}content-length: {length}\r\n\r\n", head("POST", "/webhooks/stripe"))).await;
            let answer = refused.answer().await.unwrap();
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
            assert!(answer.body.contains("\"code\":\"busy\"") && answer.body.contains(&most.to_string()), "{}", answer.body);
            app.check("u").await;
            app.spend(&format!("spent-beside-{most}"), "u", "0.001").await;
            let of_other_size = 1_060_000 - length;
            let mut other = Raw::begun(app, &request("POST", "/webhooks/stripe", "", &" ".repeat(of_other_size))).await;
            assert_eq!(other.status().await, Some(400), "it is not signed");
            drop(flood.pop());
            let mut again = in_flight_again(app, length).await;
            again.send(&" ".repeat(length)).await;
            assert_eq!(again.status().await, Some(400), "a place is free again");
        }
        let [created, subscribed] = paying("u", "price_pro");
        app.apply(created).await;
        app.apply(subscribed).await;
        assert_eq!(app.check("u").await["tier"], "pro");
    })
    .await;
}

/// Whoever hung up is not noticed at once.
async fn in_flight_again(app: &TestApp, length: usize) -> Raw {
    loop {
        let mut raw =
            Raw::begun(app, &format!("{}content-length: {length}\r\nexpect: 100-continue\r\n\r\n", head("POST", "/webhooks/stripe"))).await;
        match raw.status().await {
            Some(100) => return raw,
            status => assert_eq!(status, Some(503)),
        }
    }
}

#[tokio::test]
async fn a_body_that_is_encoded_is_refused_on_every_door_that_reads_one() {
    on_each_database(TIERS, async |app| {
        let doors = [
            ("POST", "/v1/enforcement"),
            ("POST", "/v1/usage"),
            ("POST", "/v1/corrections"),
            ("POST", "/v1/holds"),
            ("POST", "/v1/holds/h/capture"),
            ("POST", "/v1/holds/h/extend"),
            ("POST", "/v1/simulate"),
            ("POST", "/v1/users/u/grants"),
            ("PUT", "/v1/users/u"),
            ("PUT", "/v1/users/u/caps"),
            ("PUT", "/v1/accounts/a"),
            ("POST", "/webhooks/stripe"),
        ];
        let ask = async |(method, path): (&str, &str), name: &str, value: &str| {
            let request = app.client.request(method.parse().unwrap(), app.url(path)).bearer_auth(ADMIN_KEY);
            app.send(request.header(name, value).body("{}")).await
        };
        for door in doors {
            for coding in ["gzip", "br", "identity, gzip", "GZIP", "x"] {
                let problem = ask(door, "content-encoding", coding).await.problem(415, "unsupported_encoding");
                assert!(problem["detail"].as_str().unwrap().contains("without Content-Encoding"), "{problem}");
            }
            for coding in ["identity", "Identity"] {
                assert_ne!(ask(door, "content-encoding", coding).await.status, 415, "{door:?}");
            }
        }
        let twice = format!("{}transfer-encoding: gzip, chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n", head("POST", "/v1/usage"));
        assert_eq!(Raw::begun(app, &twice).await.status().await, Some(415));
        // What is signed counts, and nothing is unpacked to be looked at.
        let [created, _] = paying("u", "price_pro");
        let body = created.to_string();
        let signature = Secret::new(WEBHOOK_SECRET).unwrap().sign(body.as_bytes(), app.now());
        let post = app.client.post(app.url("/webhooks/stripe")).header("stripe-signature", signature);
        app.send(post.try_clone().unwrap().header("content-encoding", "gzip").body(body.clone()))
            .await
            .problem(415, "unsupported_encoding");
        app.send(post.body(body)).await.ok();
        // A door that reads none does not care.
        let get = app.client.get(app.url("/v1/users/u/enforcement")).bearer_auth(ADMIN_KEY).header("content-encoding", "gzip");
        app.send(get).await.ok();
    })
    .await;
}

#[tokio::test]
async fn an_id_that_is_sent_comes_back_and_every_problem_has_one() {
    on_each_database(TIERS, async |app| {
        let ask = async |path: &str, id: Option<&str>| {
            let request = app.client.get(app.url(path)).bearer_auth(ADMIN_KEY);
            app.send(id.into_iter().fold(request, |request, id| request.header("x-request-id", id))).await
        };
        let of = |answer: &crate::app::Answer| answer.headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
        let (check, tiers, nowhere) = ("/v1/users/u/enforcement", "/v1/tiers", "/nowhere");
        let longest = "x".repeat(128);
        for id in ["a", "call-1/2:3", "\"quoted\\", longest.as_str()] {
            for path in [check, tiers, nowhere, "/v1/users/%00/enforcement"] {
                assert_eq!(of(&ask(path, Some(id)).await).as_deref(), Some(id), "{path}");
            }
        }
        for path in [check, tiers] {
            assert_eq!(of(&ask(path, None).await), None, "{path}");
        }
        let too_long = "x".repeat(129);
        for bad in ["", " ", "a b", too_long.as_str()] {
            assert_eq!(of(&ask(check, Some(bad)).await), None, "{bad}");
            let made = of(&ask(nowhere, Some(bad)).await).unwrap();
            assert!(made.len() == 16 && made.chars().all(|c| c.is_ascii_hexdigit()), "{made}");
        }
        let first = ask(nowhere, None).await;
        assert_ne!(of(&first), of(&ask(nowhere, None).await));
        assert!(!first.text.contains("request_id"), "{}", first.text);
        for odd in ["x-request-id: a\r\nx-request-id: b", "x-request-id: a\u{e9}", "x-request-id: a\tb"] {
            let mut raw = Raw::begun(app, &format!("{}{odd}\r\n\r\n", head("GET", check))).await;
            let answer = raw.answer().await.unwrap();
            assert_eq!((answer.status, answer.header("x-request-id")), (200, None), "{odd}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_fault_of_ours_names_the_request_in_its_body_too() {
    on_each_database(TIERS, async |app| {
        app.config.webhook_secrets = Vec::new();
        app.restart().await;
        let post = || app.client.post(app.url("/webhooks/stripe")).body("{}");
        let answer = app.send(post().header("x-request-id", "\"a\\b\"")).await;
        let problem = answer.problem(503, "webhook_not_configured");
        assert_eq!(problem["request_id"], "\"a\\b\"");
        assert_eq!(answer.headers["content-length"].to_str().unwrap(), answer.text.len().to_string());
        let made = app.send(post()).await;
        assert_eq!(made.problem(503, "webhook_not_configured")["request_id"].as_str(), made.headers["x-request-id"].to_str().ok());
    })
    .await;
}

#[tokio::test]
async fn the_host_that_a_request_names_is_in_no_link() {
    on_each_database(TIERS, async |app| {
        app.spend("s", "u", "1000").await;
        for forged in ["host: evil.example\r\n", "host: evil.example\r\nx-forwarded-host: evil.example\r\nforwarded: host=evil.example\r\n"]
        {
            for path in ["/v1/users/u/enforcement", "/upgrade?from=free", "/v1/users/u", "/v1/tiers", "/v1/users/u/explain"] {
                let request = format!("{}\r\n", head("GET", path)).replace("host: x\r\n", forged);
                let answer = Raw::begun(app, &request).await.answer().await.unwrap();
                assert_eq!(answer.status, 200, "{path}: {}", answer.body);
                assert!(!answer.body.contains("evil") && !answer.head.contains("evil"), "{path}: {}{}", answer.head, answer.body);
            }
        }
        assert!(app.check("u").await["upgrade_url"].as_str().unwrap().starts_with("https://spend.example.com/upgrade"));
    })
    .await;
}

#[tokio::test]
async fn nothing_that_a_user_is_called_gets_out_of_a_link() {
    let tiers = TIERS.replace("upgrade_url: /upgrade?from={tier}", "upgrade_url: /upgrade?from={tier}&user={user_id}");
    on_each_database(&tiers, async |app| {
        for odd in ["a%0d%0aset-cookie:%20x=1", "a%0ab", "a%00b", "a%7fb"] {
            app.get(&format!("/v1/users/{odd}/enforcement")).await.problem(422, "invalid_field");
        }
        for (number, user) in ODD_USERS.into_iter().enumerate() {
            app.spend(&format!("s{number}"), user, "1000").await;
            let answer = app.post("/v1/enforcement", json!({"user_id": user})).await.ok();
            let url = answer["upgrade_url"].as_str().unwrap();
            let path = url.strip_prefix("https://spend.example.com").unwrap();
            let named = path.strip_prefix("/upgrade?from=free&user=").unwrap();
            assert!(named.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)), "{url}");
            let page = Raw::begun(app, &format!("{}\r\n", head("GET", path))).await.answer().await.unwrap();
            assert_eq!((page.status, page.header("set-cookie")), (200, None), "{}", page.head);
            assert!(!page.body.contains("<c>"), "{}", page.body);
        }
        let split = check().replace("/v1/users/u/enforcement", "/v1/users/u\r\nset-cookie: x/enforcement");
        assert_eq!(Raw::begun(app, &split).await.status().await, Some(400));
    })
    .await;
}

/// Names that would end a header, a path, a query or a tag, were they not encoded.
const ODD_USERS: [&str; 9] = [
    "a\"b<c>'d",
    "a b&to=x#y?z=1",
    "../../evil",
    "a%0d%0aset-cookie: x",
    "a%250d%250aset-cookie: x",
    "\u{fc}|1",
    "{user_id}{tier}",
    "//evil.example",
    "a\\b",
];
