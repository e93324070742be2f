//! Names of users, accounts, holds, grants and events that are chosen to hurt.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};

use super::{goes_on, raw, raw_get, refused};
use crate::app::{ADMIN_KEY, TestApp, on_each_database};

/// Everything is blocked, and the upgrade URL repeats the name.
const TIERS: &str = "
default_tier: free
upgrade_url: https://app.example.com/up/{user_id}?who={user_id}&to={to}
tiers:
  free: { rank: 0, budgets: { daily: 0 }, policy: strict }
  pro: { rank: 10, budgets: { daily: 1000 }, policy: strict, prices: [price_pro] }
";

/// Odd, and allowed: 1 to 255 bytes of UTF-8 without control characters.
fn allowed() -> Vec<String> {
    let odd = [
        "'",
        "\"",
        "`",
        "\\",
        "' OR 1=1 --",
        "'; DROP TABLE users; --",
        "\") UNION SELECT 1 --",
        "$1",
        "{user_id}",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "%s%n",
        "%00",
        "%2e%2e",
        "%2e%2e%2f",
        "..%2f..",
        ".",
        "..",
        "../..",
        "/",
        "//",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "?",
        "#",
        "a?b=c#d",
        "&",
        "a&to=evil",
        ";",
        ":",
        "@",
        "user@example.com",
        "auth0|5f7c",
        " ",
        "  a  ",
        "+",
        "a+b",
        "null",
        "true",
        "0",
        "-1",
        "NaN",
        "[]",
        "{}",
        "<script>alert(1)</script>",
        "javascript:alert(1)",
        "enforcement",
        "usage",
        "caps",
        "grants",
        "\u{1f600}",
        "👩‍👩‍👧‍👦",
        "\u{202e}drowssap",
        "שלום",
        "مرحبا",
        "e\u{301}",
        "é",
        "ﬁ",
        "İ",
        "ß",
        "\u{feff}",
        "\u{200b}",
        "\u{2028}",
        "\u{fffd}",
        "\u{fffe}",
        "\u{10ffff}",
        "\u{e000}",
        "z\u{0335}\u{0321}\u{0337}",
        "𝕦",
        "\u{a0}",
        "\u{3000}",
    ];
    let long = [
        "x".repeat(255),
        "é".repeat(127),
        "\u{1f600}".repeat(63),
        "%".repeat(255),
        "/".repeat(255),
        "'".repeat(255),
        " ".repeat(255),
        ".".repeat(255),
    ];
    odd.map(str::to_owned).into_iter().chain(long).collect()
}

/// Not allowed.
fn forbidden() -> Vec<String> {
    let control = ["", "\0", "a\0b", "a\nb", "a\r\nSet-Cookie: x=1", "\t", "\u{1b}[31m", "\u{7f}", "\u{80}", "\u{85}", "\u{9f}", "a\u{8}"];
    let long = ["x".repeat(256), "é".repeat(128), "\u{1f600}".repeat(64)];
    control.map(str::to_owned).into_iter().chain(long).collect()
}

fn encoded(id: &str) -> String {
    utf8_percent_encode(id, NON_ALPHANUMERIC).to_string()
}

/// The answer to a GET of a target as it is written.
async fn get(app: &TestApp, target: &str) -> (u16, Value) {
    let (status, body) = raw_get(app, target).await.unwrap_or_else(|| panic!("{target} was not answered"));
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {status}: {error}: {body}")))
}

/// The same with a method and a body.
async fn send(app: &TestApp, method: &str, target: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {ADMIN_KEY}\r\n");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let (status, body) = raw(app, request.as_bytes()).await.unwrap_or_else(|| panic!("{target} was not answered"));
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {status}: {error}: {body}")))
}

#[tokio::test]
async fn an_odd_name_is_the_same_name_in_paths_bodies_and_answers() {
    on_each_database(TIERS, async |app| {
        for id in allowed() {
            let path = encoded(&id);
            let same = |(status, answer): (u16, Value), name: &str, what: &str| {
                assert_eq!(status, 200, "{id:?} {what}: {answer}");
                assert_eq!(answer[name], json!(id), "{what}");
                answer
            };
            let checked = same(get(app, &format!("/v1/users/{path}/enforcement")).await, "user_id", "checked");
            let url = checked["upgrade_url"].as_str().unwrap();
            // Nothing of the name gets out of its place.
            assert!(url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'<>\\".contains(&byte)), "{id:?}: {url}");
            let (in_path, in_query) = url.strip_prefix("https://app.example.com/up/").unwrap().split_once("?who=").unwrap();
            let in_query = in_query.strip_suffix("&to=pro").unwrap();
            for part in [in_path, in_query] {
                assert_eq!(percent_decode_str(part).decode_utf8().unwrap(), id, "{url}");
                assert!(!part.contains(['/', '?', '#', '&', '=', '+']), "{url}");
            }
            let used = json!({"id": id, "user_id": id, "cost": "0.5", "model": id, "provider": id, "metadata": {id.clone(): id}});
            same(send(app, "POST", "/v1/usage", &used).await, "user_id", "booked");
            same(send(app, "PUT", &format!("/v1/users/{path}"), &json!({"tier": "pro", "reason": id})).await, "user_id", "set");
            let user = same(get(app, &format!("/v1/users/{path}")).await, "user_id", "shown");
            assert_eq!(user["lifetime"]["spent"], json!(0.5), "{id:?}");
            let entries = get(app, &format!("/v1/users/{path}/usage")).await.1;
            assert_eq!((&entries["entries"][0]["id"], &entries["entries"][0]["model"]), (&json!(id), &json!(id)));
            let held = send(app, "POST", "/v1/holds", &json!({"id": id, "user_id": id, "estimated_cost": "0.5"})).await;
            assert_eq!(held.1["hold"]["id"], json!(id), "{held:?}");
            same(get(app, &format!("/v1/holds/{path}")).await, "id", "the hold");
            let captured = send(app, "POST", &format!("/v1/holds/{path}/capture"), &json!({"cost": "0.25"})).await;
            assert_eq!(captured.1["hold"]["captured"], json!(0.25), "{captured:?}");
            let grant = json!({"id": id, "amount": 1, "period": "daily", "ends_at": "2026-02-01T00:00:00Z", "reason": id});
            same(send(app, "POST", &format!("/v1/users/{path}/grants"), &grant).await, "id", "granted");
            same(send(app, "DELETE", &format!("/v1/users/{path}/grants/{path}"), &json!({})).await, "id", "revoked");
            same(send(app, "PUT", &format!("/v1/users/{path}/caps"), &json!({"daily": 5})).await, "user_id", "capped");
            same(send(app, "PUT", &format!("/v1/accounts/{path}/users/{path}"), &json!({})).await, "account_id", "joined");
            let account = same(get(app, &format!("/v1/accounts/{path}")).await, "account_id", "the account");
            assert_eq!(account["users"], json!([id]));
            let (status, explained) = get(app, &format!("/v1/users/{path}/explain")).await;
            assert_eq!(status, 200, "{id:?}: {explained}");
        }
        // Each is a name of its own: none was folded into another.
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = app.get(&format!("/v1/users?limit=7{cursor}")).await.ok();
            listed.extend(page["users"].as_array().unwrap().iter().map(|user| user["user_id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let mut expected = allowed();
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected);
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn a_forbidden_name_is_refused_wherever_it_stands() {
    on_each_database(TIERS, async |app| {
        for id in forbidden() {
            let posts = [
                ("/v1/usage", json!({"id": id, "user_id": "u", "cost": 0}), "id"),
                ("/v1/usage", json!({"id": "i", "user_id": id, "cost": 0}), "user_id"),
                ("/v1/usage", json!([{"id": "i", "user_id": "u", "cost": 0, "model": id}]), "[0].model"),
                ("/v1/usage", json!({"id": "i", "user_id": "u", "cost": 0, "provider": id}), "provider"),
                ("/v1/enforcement", json!({"user_id": id}), "user_id"),
                ("/v1/enforcement", json!({"user_id": "u", "model": id}), "model"),
                ("/v1/holds", json!({"id": id, "user_id": "u", "estimated_cost": 0}), "id"),
                (
                    "/v1/corrections",
                    json!({"id": "c", "user_id": "u", "amount": 1, "reason": id, "time": "2026-01-12T11:00:00Z"}),
                    "reason",
                ),
            ];
            for (path, body, field) in posts {
                let problem = refused(&app.post(path, &body).await, &format!("{path} {body}"));
                assert_eq!(problem["field"], field, "{path} {body}");
            }
            let path = encoded(&id);
            let targets = [
                format!("/v1/users/{path}"),
                format!("/v1/users/{path}/enforcement"),
                format!("/v1/users/{path}/usage"),
                format!("/v1/users/{path}/explain"),
                format!("/v1/accounts/{path}"),
                format!("/v1/holds/{path}"),
                format!("/v1/events/{path}"),
                format!("/v1/holds?user_id={path}"),
                format!("/v1/users/u/enforcement?model={path}"),
                format!("/v1/users?cursor={path}"),
                format!("/v1/users?tier={path}"),
                format!("/v1/prices?model={path}"),
                format!("/v1/events?type={path}"),
            ];
            for target in targets {
                let (status, answer) = get(app, &target).await;
                // A list without a name in its path is a list; a filter that nothing passes is an empty one.
                let is_list = id.is_empty() || target.contains("/events?");
                assert!(
                    (400..500).contains(&status) && answer["code"].is_string() || is_list && status == 200,
                    "{target}: {status} {answer}"
                );
            }
            for (method, target) in [
                ("PUT", format!("/v1/users/{path}")),
                ("PUT", format!("/v1/users/{path}/caps")),
                ("PUT", format!("/v1/accounts/{path}/users/u")),
                ("PUT", format!("/v1/accounts/a/users/{path}")),
                ("POST", format!("/v1/users/{path}/grants")),
            ] {
                let (status, answer) = send(app, method, &target, &json!({})).await;
                assert!((400..500).contains(&status) && answer["code"].is_string(), "{method} {target}: {status} {answer}");
            }
        }
        let huge = "x".repeat(1024 * 1024);
        let records = json!({"id": huge, "user_id": "u", "cost": 0});
        assert_eq!(refused(&app.post("/v1/usage", records).await, "an id of a mebibyte")["field"], "id");
        // The head has a bound of its own, below the router.
        let status = raw_get(app, &format!("/v1/users/{huge}/enforcement")).await.map_or(0, |(status, _)| status);
        assert!([0, 400, 414, 431].contains(&status), "{status}");
        assert_eq!(app.get("/v1/users").await.ok()["users"], json!([]), "nothing of it is known");
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn a_path_that_is_written_oddly_leads_nowhere_else() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "victim", "0.1").await;
        let targets = [
            "/v1/users/x/../victim",
            "/v1/users/x/%2e%2e/victim",
            "/v1/users/x%2f..%2fvictim/../..",
            "//v1/users/victim",
            "/v1//users/victim",
            "/v1/users//victim",
            "/v1/users/victim/",
            "/V1/users/victim",
            "/v1/users/victim/enforcement/",
            "/v1/users//enforcement",
            "/v1/users/enforcement",
            "/v1/users/victim%",
            "/v1/users/%zz",
            "/v1/users/%",
            "/v1/users/%ff",
            "/v1/users/%c0%ae",
            "/v1/users/%ed%a0%80/enforcement",
            "/v1/users/%f8%88%80%80%ae/enforcement",
            "/v1/users/victim;x=1/caps/..",
            "/v1/users/victim/enforcement?",
            "/v1/users/victim/enforcement?&&&",
            "/v1/users/victim/enforcement?=",
            "/v1/users/victim/enforcement?model",
            "/v1/users/victim/enforcement?model=a&model=b",
            "/v1/users/victim/enforcement?estimated_cost=%00",
            "/v1/users/victim/enforcement?estimated_cost=1&estimated_cost=2",
            "/v1/users/victim/enforcement?x%00y=1",
            "/v1/users/victim/enforcement?%ff=%ff",
            "/v1/users?limit=-1",
            "/v1/users?limit=99999999999999999999",
            "/v1/users?limit=1e3",
            "/v1/users?cursor=////",
            "/v1/users?cursor=AAAA",
            "/v1/users?limit=1&limit=2",
            "/v1/events?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5",
            "/v1/holds?state=x",
            "/v1/holds?cursor=LTE",
            "/v1/users/victim/usage?from=x",
            "/v1/users/victim/usage?from=9999-12-31T23:59:59Z&to=1970-01-01T00:00:00Z",
            "/v1/users/victim/usage?group_by=day,day",
            "/v1/users/victim/usage?group_by=",
            "/v1/users/victim/usage?cursor=OTIyMzM3MjAzNjg1NDc3NTgwNyAx",
            "/v1/users/victim/usage?group_by=day&cursor=OTIyMzM3MjAzNjg1NDc3NTgwNyAx",
            "/upgrade?from=%00",
            "/upgrade/%00",
            "/upgrade/..%2f..",
            "/billing/return/%ff",
            "/upgrade/AQAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ];
        for target in targets {
            let (status, body) = raw_get(app, target).await.unwrap_or_else(|| panic!("{target} was not answered"));
            assert!((200..500).contains(&status), "{target}: {status} {body}");
        }
        // What is no target at all.
        for line in [
            "GET v1/users HTTP/1.1",
            "GET http://evil.example/v1/users HTTP/1.1",
            "GET * HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET /v1/users HTTP/9.9",
            "GET /v1/users\0 HTTP/1.1",
            "G\0ET / HTTP/1.1",
            "CONNECT evil.example:443 HTTP/1.1",
            "TRACE / HTTP/1.1",
            " ",
            "\u{1f600}",
        ] {
            let request = format!("{line}\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n");
            let status = raw(app, request.as_bytes()).await.map_or(400, |(status, _)| status);
            assert!((200..500).contains(&status) || status == 505, "{line:?}: {status}");
        }
        goes_on(app).await;
    })
    .await;
}

#[tokio::test]
async fn users_whom_nobody_knows_leave_no_row_however_they_are_asked_about() {
    on_each_database(TIERS, async |app| {
        let rows = async || {
            let mut rows = Vec::new();
            for table in ["users", "accounts", "usage", "holds", "grants", "audit", "outbox", "spend_by_day"] {
                rows.extend(app.column(&format!("SELECT CAST(count(*) AS TEXT) FROM {table}")).await);
            }
            rows
        };
        let before = rows().await;
        for first in (0..20_000).step_by(1000) {
            let list: Vec<Value> = (first..first + 1000).map(|number| json!({"user_id": format!("nobody-{number}")})).collect();
            let answers = app.post("/v1/enforcement", json!(list)).await.ok();
            assert_eq!(answers["results"].as_array().unwrap().len(), 1000);
        }
        for number in 0..100 {
            for door in ["", "/enforcement", "/explain", "/usage", "/caps", "/grants"] {
                app.get(&format!("/v1/users/nobody-{number}{door}")).await.ok();
            }
            app.get(&format!("/v1/holds?user_id=nobody-{number}")).await.ok();
        }
        assert_eq!(app.get("/v1/users").await.ok()["users"], json!([]));
        assert_eq!(rows().await, before);
        // The control: who spends has rows, once somebody reads them.
        goes_on(app).await;
        assert_eq!(app.user("after").await["known"], json!(true));
        assert_ne!(rows().await, before);
    })
    .await;
}
