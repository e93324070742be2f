//! Who may do what.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::http::auth::Scope;
use spendgate::http::doors::{DOORS, Need};

use crate::app::{ADMIN_KEY, Answer, Database, TIERS, TestApp, on_each_database};
use crate::tidy::sources;

/// Every method that a client may send.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// The path of a door, with something in the place of each of its parts.
fn path(door: &str) -> String {
    door.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/")
}

async fn status(app: &TestApp, method: &str, path: &str, authorization: Option<&str>) -> u16 {
    ask(app, method, path, authorization).await.status
}

pub async fn ask(app: &TestApp, method: &str, path: &str, authorization: Option<&str>) -> Answer {
    let mut request = app.client.request(method.parse().unwrap(), app.url(path));
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    app.send(request).await
}

/// What `spendgate keys` prints, run beside the service by the real clock.
pub fn keys(app: &TestApp, args: &[&str]) -> String {
    let (code, told, faults) = try_keys(app, args);
    assert_eq!(code, 0, "{told}{faults}");
    told
}

pub fn try_keys(app: &TestApp, args: &[&str]) -> (i32, String, String) {
    let args = [&["keys"], args].concat();
    crate::cli::run(app.folder.path(), &args, &[("DATABASE_URL", &app.database().url())])
}

/// Makes a key through the door, and gives its header and its id.
pub async fn made(app: &TestApp, scopes: Value, expires_in: Option<i64>) -> (String, String) {
    let body = json!({"name": "backend", "scopes": scopes, "expires_in_seconds": expires_in});
    let made = app.post("/v1/keys", body).await.ok();
    (format!("Bearer {}", made["key"].as_str().unwrap()), made["key_id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn no_door_opens_without_a_key_that_has_its_scope() {
    on_each_database(TIERS, async |app| {
        let mut good = Vec::new();
        let mut ended = Vec::new();
        for scope in Scope::ALL {
            good.push((scope, made(app, json!([scope.name()]), None).await.0));
            let (revoked, id) = made(app, json!([scope.name()]), None).await;
            ended.push((scope, "revoked", revoked.clone()));
            ended.push((scope, "expired", made(app, json!([scope.name()]), Some(60)).await.0));
            // It was good, and may be remembered as such.
            assert_ne!(status(app, "GET", "/v1/tiers", Some(&revoked)).await, 401);
            app.send(app.client.delete(app.url(&format!("/v1/keys/{id}"))).bearer_auth(ADMIN_KEY)).await.ok();
        }
        app.advance(TimeDelta::seconds(60));
        for (method, door, need) in DOORS {
            let (method, path) = (method.as_str(), path(door));
            let Need::Key(needs) = need else {
                let status = status(app, method, &path, None).await;
                assert!(![401, 403, 405].contains(&status), "{method} {path} without a key: {status}");
                continue;
            };
            assert_eq!(status(app, method, &path, None).await, 401, "{method} {path} without a key");
            let long = format!("Bearer {}", "x".repeat(5000));
            for wrong in ["", "Bearer", "Bearer ", "Bearer sg_0000", &format!("Basic {ADMIN_KEY}"), &long] {
                assert_eq!(status(app, method, &path, Some(wrong)).await, 401, "{method} {path} with {wrong:.20}");
            }
            for (scope, how, key) in &ended {
                let answer = ask(app, method, &path, Some(key)).await;
                let problem = answer.problem(401, "unauthorized");
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.contains(how), "{method} {path} with a key of {scope:?} that is {how}: {detail}");
            }
            for (scope, key) in &good {
                let status = status(app, method, &path, Some(key)).await;
                let allowed = scope == needs || *scope == Scope::Admin;
                assert_eq!(status == 403, !allowed, "{method} {path} with {scope:?}: {status}");
                assert!(![401, 405].contains(&status), "{method} {path} with {scope:?}: {status}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_path_takes_the_methods_of_the_table_and_no_others() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |config| config).await;
    let mut doors: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (method, door, _) in DOORS {
        let methods = doors.entry(door).or_default();
        assert!(methods.insert(method.as_str()), "{method} {door} is there twice");
        if *method == "GET" {
            methods.insert("HEAD");
        }
    }
    for (door, methods) in doors {
        for method in METHODS {
            let answer = ask(&app, method, &path(door), None).await;
            assert_eq!(answer.status == 405, !methods.contains(method), "{method} {door}: {}", answer.status);
            if answer.status == 405 {
                let told: BTreeSet<&str> = answer.headers["allow"].to_str().unwrap().split(',').collect();
                assert_eq!(told, methods, "{door}");
            }
        }
    }
    app.stop().await;
}

/// The paths that a source names as doors: to a router, or in a handler's description.
fn doors_in(source: &str) -> BTreeSet<&str> {
    let after = |start: &'static str| source.split(start).skip(1).filter_map(|rest| rest.split('"').next());
    let described = source.split("utoipa::path(").skip(1).filter_map(|rest| rest.split("path = \"").nth(1)?.split('"').next());
    after(".route(\"").chain(described).filter(|path| path.starts_with('/')).collect()
}

#[test]
fn every_path_that_the_router_knows_is_in_the_table() {
    let sources = sources("src");
    let routed: BTreeSet<&str> = sources.iter().filter(|source| source.room == "http").flat_map(|source| doors_in(&source.text)).collect();
    let told: BTreeSet<&str> = DOORS.iter().map(|(_, door, _)| *door).collect();
    assert_eq!(routed, told);
}

#[test]
fn the_search_for_paths_finds_them() {
    let source = r#"Router::new().route("/a/{b}", get(c)); #[utoipa::path(get, path = "/d", tag = "e")] let not = "/f";"#;
    assert_eq!(doors_in(source), BTreeSet::from(["/a/{b}", "/d"]));
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
