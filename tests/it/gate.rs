//! The door of gateways, without one: what it reads, and what it answers.

use serde_json::json;
use spendgate::config::{Config, GateConfig};

use crate::app::{ADMIN_KEY, Answer, Database, TIERS, TestApp, on_each_database};
use crate::durability::{ALL_TABLES, rename};

/// A header's name and value.
type Header<'a> = (&'a str, &'a [u8]);

async fn ask(app: &TestApp, method: &str, path: &str, headers: &[Header<'_>]) -> Answer {
    let mut request = app.client.request(method.parse().unwrap(), app.url(path)).header("x-spendgate-key", ADMIN_KEY);
    for (name, value) in headers {
        request = request.header(*name, reqwest::header::HeaderValue::from_bytes(value).unwrap());
    }
    app.send(request).await
}

async fn gate(app: &TestApp, user: &str, model: &str) -> Answer {
    ask(app, "GET", "/v1/gate", &[("x-user-id", user.as_bytes()), ("x-model", model.as_bytes())]).await
}

/// The header `x-spendgate-…` of an answer.
fn said<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(format!("x-spendgate-{name}")).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn the_status_says_whether_and_the_headers_say_the_rest() {
    on_each_database(TIERS, async |app| {
        let answer = gate(app, "u", "gpt-4o").await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""));
        assert_eq!((said(&answer, "action"), said(&answer, "reason")), (Some("ALLOW"), Some("within_budget")));
        assert_eq!((said(&answer, "model"), said(&answer, "remaining")), (Some("gpt-4o"), Some("0.1")));
        app.spend("a", "u", "0.08").await;
        let answer = gate(app, "u", "gpt-4o").await;
        assert_eq!((answer.status, said(&answer, "action"), said(&answer, "remaining")), (200, Some("WARN"), Some("0.02")));
        // An estimate that does not fit.
        let answer = ask(app, "GET", "/v1/gate", &[("x-user-id", b"u"), ("x-estimated-cost", b"0.03")]).await;
        assert_eq!((answer.status, said(&answer, "reason")), (402, Some("estimate_exceeds_budget")));
        app.spend("b", "u", "0.02").await;
        let answer = gate(app, "u", "gpt-4o").await;
        assert_eq!(answer.status, 402);
        assert_eq!((said(&answer, "action"), said(&answer, "model"), said(&answer, "remaining")), (Some("BLOCK"), None, Some("0")));
        assert_eq!(answer.headers["retry-after"], "43200", "from noon to midnight");
        // The body is the check's, and the URL in the header is the body's.
        assert_eq!(answer.json(), app.check("u").await);
        assert_eq!(said(&answer, "upgrade-url"), answer.json()["upgrade_url"].as_str());
        // DEGRADE passes, with the model to use.
        app.put("/v1/users/p", json!({"tier": "pro", "reason": "test"})).await.ok();
        app.spend("c", "p", "1").await;
        let answer = gate(app, "p", "gpt-4o").await;
        assert_eq!((answer.status, said(&answer, "action"), said(&answer, "model")), (200, Some("DEGRADE"), Some("gpt-4o-mini")));
        // Nothing is written by asking.
        assert_eq!(app.get("/v1/users?limit=10").await.ok()["users"].as_array().unwrap().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn any_method_any_path_and_any_body_below_the_gate_ask_the_same() {
    on_each_database(TIERS, async |app| {
        let answer = ask(app, "GET", "/v1/gate", &[("x-user-id", b"u")]).await;
        assert_eq!(said(&answer, "model"), Some(""), "none was named");
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
            for path in ["/v1/gate", "/v1/gate/", "/v1/gate/v1/chat/completions?user_id=other&x", "/v1/gate/%FF//..%2f", "/v1/gate/a/%00"] {
                let answer = ask(app, method, path, &[("x-user-id", b"u")]).await;
                assert_eq!((answer.status, said(&answer, "action")), (200, Some("ALLOW")), "{method} {path}");
                let stranger = app.client.request(method.parse().unwrap(), app.url(path)).header("x-user-id", "u");
                assert_eq!(app.send(stranger).await.status, 401, "{method} {path}");
            }
        }
        let request = app.client.post(app.url("/v1/gate")).header("x-spendgate-key", ADMIN_KEY).header("x-user-id", "u");
        assert_eq!(app.send(request.body(vec![b'x'; 4 << 20])).await.status, 200);
        app.get("/v1/gates").await.problem(404, "not_found");
    })
    .await;
}

#[tokio::test]
async fn the_key_comes_in_its_own_header_or_as_everywhere() {
    on_each_database(TIERS, async |app| {
        let send = async |headers: &[(&str, &str)]| {
            let mut request = app.client.get(app.url("/v1/gate")).header("x-user-id", "u");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            app.send(request).await
        };
        let bearer = format!("Bearer {ADMIN_KEY}");
        assert_eq!(send(&[("authorization", &bearer)]).await.status, 200);
        assert_eq!(send(&[("authorization", "Bearer the-client's-own"), ("x-spendgate-key", ADMIN_KEY)]).await.status, 200);
        send(&[("authorization", &bearer), ("x-spendgate-key", "sg_of_nobody")]).await.problem(401, "unauthorized");
        send(&[("authorization", &bearer), ("x-spendgate-key", "")]).await.problem(401, "unauthorized");
        send(&[("authorization", "Basic eDp5")]).await.problem(401, "unauthorized");
        send(&[]).await.problem(401, "unauthorized");
    })
    .await;
}

#[tokio::test]
async fn a_header_that_cannot_be_is_refused_by_name() {
    on_each_database(TIERS, async |app| {
        let long = "x".repeat(256);
        let cases: [(&[Header<'_>], &str, &str); 11] = [
            (&[], "header_missing", "x-user-id"),
            (&[("x-user-id", b"")], "header_missing", "x-user-id"),
            (&[("x-user-id", long.as_bytes())], "header_invalid", "x-user-id"),
            (&[("x-user-id", b"\xff")], "header_invalid", "x-user-id"),
            (&[("x-user-id", b"a\tb")], "header_invalid", "x-user-id"),
            (&[("x-user-id", b"victim"), ("x-user-id", b"u")], "header_invalid", "x-user-id"),
            (&[("x-user-id", b"u"), ("x-model", long.as_bytes())], "header_invalid", "x-model"),
            (&[("x-user-id", b"u"), ("x-model", b"a"), ("x-model", b"b")], "header_invalid", "x-model"),
            (&[("x-user-id", b"u"), ("x-estimated-cost", b"-1")], "header_invalid", "x-estimated-cost"),
            (&[("x-user-id", b"u"), ("x-estimated-cost", b"NaN")], "header_invalid", "x-estimated-cost"),
            (&[("x-user-id", b"u"), ("x-estimated-cost", b"1000000001")], "header_invalid", "x-estimated-cost"),
        ];
        for (headers, code, field) in cases {
            assert_eq!(ask(app, "GET", "/v1/gate", headers).await.problem(400, code)["field"], field);
        }
        // What gateways send for nothing is nothing.
        assert_eq!(ask(app, "GET", "/v1/gate", &[("x-user-id", b"u"), ("x-model", b""), ("x-estimated-cost", b"")]).await.status, 200);
        assert_eq!(ask(app, "GET", "/v1/gate", &[("x-user-id", "Zoë|a@b".as_bytes())]).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn what_stands_in_a_header_is_visible_ascii_and_ends_no_line() {
    on_each_database(&TIERS.replace("/upgrade?from={tier}", "https://app.example/ü'?to={to}&u={user_id}"), async |app| {
        let answer = ask(app, "GET", "/v1/gate", &[("x-user-id", b"u"), ("x-model", "mödel %\"1\\".as_bytes())]).await;
        assert_eq!((answer.status, said(&answer, "model")), (200, Some("m%C3%B6del%20%25%221%5C")));
        app.spend("a", "Zoë\"'<>", "0.10").await;
        let answer = gate(app, "Zoë\"'<>", "gpt-4o").await;
        let url = "https://app.example/%C3%BC%27?to=pro&u=Zo%C3%AB%22%27%3C%3E";
        assert_eq!((answer.status, said(&answer, "upgrade-url")), (402, Some(url)));
    })
    .await;
}

#[tokio::test]
async fn the_headers_and_the_status_are_the_operators() {
    for database in Database::ALL {
        let gate = GateConfig {
            user_header: "x-auth-request-user".parse().unwrap(),
            model_header: "x-llm".parse().unwrap(),
            cost_header: "x-cost".parse().unwrap(),
            block_status: 403,
        };
        let mut app = TestApp::start(database, TIERS, |config| Config { gate: gate.clone(), ..config }).await;
        let headers: [Header<'_>; 4] = [("x-auth-request-user", b"u"), ("x-llm", b"gpt-4o"), ("x-cost", b"0.2"), ("x-user-id", b"other")];
        let answer = ask(&app, "GET", "/v1/gate", &headers).await;
        assert_eq!((answer.status, &answer.json()["user_id"]), (403, &json!("u")));
        ask(&app, "GET", "/v1/gate", &[("x-user-id", b"u")]).await.problem(400, "header_missing");
        app.stop().await;
    }
}

#[tokio::test]
async fn while_the_store_is_away_the_policy_blocks_with_503_or_lets_pass() {
    let tiers = TIERS.replacen("    # on_store_down: block", "    on_store_down: allow", 1);
    assert_ne!(tiers, TIERS);
    on_each_database(&tiers, async |app| {
        app.put("/v1/users/p", json!({"tier": "pro", "reason": "test"})).await.ok();
        app.check("p").await;
        rename(app, &ALL_TABLES, true).await;
        app.advance(chrono::TimeDelta::days(1));
        let blocked = gate(app, "stranger", "gpt-4o").await;
        assert_eq!((blocked.status, said(&blocked, "action"), said(&blocked, "reason")), (503, Some("BLOCK"), Some("store_unavailable")));
        assert_eq!((&blocked.headers["retry-after"], &blocked.json()["action"]), (&"1".parse().unwrap(), &json!("BLOCK")));
        let passed = gate(app, "p", "gpt-4o").await;
        assert_eq!((passed.status, said(&passed, "action"), said(&passed, "reason")), (200, Some("ALLOW"), Some("store_unavailable")));
        assert_eq!((passed.headers.contains_key("retry-after"), said(&passed, "remaining")), (true, None));
        rename(app, &ALL_TABLES, false).await;
    })
    .await;
}
