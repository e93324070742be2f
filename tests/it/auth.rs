//! Who may do what.

use std::process::Command;

use chrono::TimeDelta;
use serde_json::json;

use crate::app::{ADMIN_KEY, TIERS, TestApp, on_each_database};

/// Every door that needs a key: method, path, the scope that opens it.
const DOORS: [(&str, &str, &str); 31] = [
    ("GET", "/v1/users/u/enforcement", "check"),
    ("POST", "/v1/enforcement", "check"),
    ("POST", "/v1/usage", "write"),
    ("GET", "/v1/users/u", "check"),
    ("GET", "/v1/users/u/usage", "check"),
    ("GET", "/v1/users/u/caps", "check"),
    ("PUT", "/v1/users/u/caps", "write"),
    ("GET", "/v1/users/u/grants", "check"),
    ("POST", "/v1/users/u/grants", "admin"),
    ("DELETE", "/v1/users/u/grants/g", "admin"),
    ("GET", "/v1/users/u/explain", "check"),
    ("GET", "/v1/tiers", "check"),
    ("GET", "/v1/prices", "check"),
    ("GET", "/v1/users", "admin"),
    ("PUT", "/v1/users/u", "admin"),
    ("GET", "/v1/events", "admin"),
    ("GET", "/v1/events/evt_1", "admin"),
    ("POST", "/v1/events/evt_1/replay", "admin"),
    ("GET", "/v1/users?limit=1", "admin"),
    ("GET", "/v1/alerts", "admin"),
    ("GET", "/v1/alerts/alert_1", "admin"),
    ("POST", "/v1/alerts/alert_1/redeliver", "admin"),
    ("POST", "/v1/alerts/test", "admin"),
    ("POST", "/v1/admin/reload", "admin"),
    ("POST", "/v1/corrections", "admin"),
    ("GET", "/v1/holds", "check"),
    ("POST", "/v1/holds", "write"),
    ("GET", "/v1/holds/h", "check"),
    ("POST", "/v1/holds/h/capture", "write"),
    ("POST", "/v1/holds/h/release", "write"),
    ("POST", "/v1/holds/h/extend", "write"),
];

async fn status(app: &TestApp, method: &str, path: &str, authorization: Option<&str>) -> u16 {
    let mut request = app.client.request(method.parse().unwrap(), app.url(path));
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    app.send(request).await.status
}

fn keys(app: &TestApp, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_spendgate"))
        .arg("keys")
        .args(args)
        .env("DATABASE_URL", app.database().url())
        .current_dir(app.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn no_door_opens_without_a_key_that_has_its_scope() {
    on_each_database(TIERS, async |app| {
        let made = ["check", "write", "admin"].map(|scope| (scope, keys(app, &["create", "--name", scope, "--scopes", scope])));
        let made = made.map(|(scope, output)| (scope, output.lines().next().unwrap().to_owned()));
        for (method, path, needs) in DOORS {
            assert_eq!(status(app, method, path, None).await, 401, "{method} {path} without a key");
            for wrong in ["", "Bearer", "Bearer ", "Bearer sg_0000", &format!("Basic {ADMIN_KEY}"), &format!("Bearer {}", "x".repeat(5000))]
            {
                assert_eq!(status(app, method, path, Some(wrong)).await, 401, "{method} {path} with {wrong:.20}");
            }
            for (scope, key) in &made {
                let status = status(app, method, path, Some(&format!("Bearer {key}"))).await;
                let allowed = *scope == needs || *scope == "admin";
                assert_eq!(status == 403, !allowed, "{method} {path} with {scope}: {status}");
                assert_ne!(status, 401, "{method} {path} with {scope}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_five_seconds() {
    on_each_database(TIERS, async |app| {
        let created = keys(app, &["create", "--name", "backend"]);
        let (key, id) = (created.lines().next().unwrap().to_owned(), created.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned());
        let bearer = format!("Bearer {key}");
        assert_eq!(status(app, "GET", "/v1/tiers", Some(&bearer)).await, 200);
        keys(app, &["revoke", &id]);
        app.advance(TimeDelta::seconds(5));
        assert_eq!(status(app, "GET", "/v1/tiers", Some(&bearer)).await, 401);
        assert!(keys(app, &["list"]).contains(&id));
    })
    .await;
}

#[tokio::test]
async fn an_admin_key_from_outside_replaces_and_ends_with_the_setting() {
    on_each_database(TIERS, async |app| {
        let made = keys(app, &["create", "--name", "first", "--scopes", "admin"]).lines().next().unwrap().to_owned();
        let bearer = format!("Bearer {made}");
        // The key that was shown once is given from outside from now on.
        app.config.admin_api_key = Some(spendgate::config::AdminKey(made.clone()));
        app.restart().await;
        assert_eq!(status(app, "GET", "/v1/users", Some(&bearer)).await, 200);
        assert_eq!(status(app, "GET", "/v1/users", Some(&format!("Bearer {ADMIN_KEY}"))).await, 401);
        app.config.admin_api_key = None;
        app.restart().await;
        assert_eq!(status(app, "GET", "/v1/users", Some(&bearer)).await, 401);
        app.config.admin_api_key = Some(spendgate::config::AdminKey(ADMIN_KEY.to_owned()));
        app.restart().await;
        assert_eq!(status(app, "GET", "/v1/users", Some(&format!("Bearer {ADMIN_KEY}"))).await, 200);
    })
    .await;
}

#[tokio::test]
async fn a_key_is_on_the_disk_as_a_digest_only() {
    on_each_database(TIERS, async |app| {
        let key = keys(app, &["create", "--name", "backend"]).lines().next().unwrap().to_owned();
        assert_eq!(key.len(), "sg_".len() + 64);
        assert_eq!(app.get("/v1/users").await.ok()["users"], json!([]));
        app.stop().await;
        for file in std::fs::read_dir(app.folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for secret in [key.as_bytes(), &key.as_bytes()[3..], ADMIN_KEY.as_bytes()] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret));
            }
        }
        app.restart_after_stop().await;
    })
    .await;
}
