//! A Unix socket, and a service that asks nobody for a key.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use spendgate::config::{Authentication, Listen};
use spendgate::http::serve::Limits;
use tokio::net::UnixStream;

use crate::app::{Database, TIERS, TestApp};
use crate::cli::{folder, run};
use crate::raw::{Raw, check, request};

async fn listen_at(socket: &Path, database: Database) -> TestApp {
    TestApp::start_within(Limits::default(), database, TIERS, |mut config| {
        config.listen_addr = Listen::Unix(socket.to_owned());
        config
    })
    .await
}

#[tokio::test]
async fn a_socket_serves_whom_its_permissions_let_in_and_goes_with_the_service() {
    for database in Database::ALL {
        let folder = folder();
        let socket = folder.path().join("s.sock");
        // A process that is gone has left one.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let mut app = listen_at(&socket, database).await;
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing else is left");
        let mut raw = Raw::over(UnixStream::connect(&socket).await.unwrap());
        assert!(raw.is_served().await);
        raw.send(&request("POST", "/v1/usage", "", &json!({"id": "a", "user_id": "u", "cost": 0.01}).to_string())).await;
        assert_eq!(raw.status().await, Some(200));
        raw.send(&check().replace("Bearer", "Basic")).await;
        assert_eq!(raw.status().await, Some(401));
        app.stop().await;
        assert!(!socket.exists());
        app.restart_after_stop().await;
        assert!(Raw::over(UnixStream::connect(&socket).await.unwrap()).is_served().await);
        // Somebody else's of the same name stays.
        fs::remove_file(&socket).unwrap();
        let others = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        app.stop().await;
        assert!(socket.exists());
        drop(others);
    }
}

#[test]
fn a_path_that_is_in_use_or_no_socket_is_refused_and_left_alone() {
    let folder = folder();
    let socket = folder.path().join("s.sock");
    let serve = || run(folder.path(), &["serve"], &[("LISTEN_ADDR", &format!("unix:{}", socket.display()))]);
    let alive = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, _, err) = serve();
    assert_eq!(code, 1, "it may be over in a moment: {err}");
    assert!(err.contains("LISTEN_ADDR: ") && err.contains("is served by another process"), "{err}");
    assert!(alive.accept().is_ok(), "it was only asked");
    drop(alive);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "precious").unwrap();
    let (code, _, err) = serve();
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("is not a socket"), "{err}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_start_on_a_socket_without_authentication_says_what_to_know() {
    let folder = folder();
    let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
        .current_dir(folder.path())
        .env_clear()
        .envs([("LISTEN_ADDR", "unix:s.sock"), ("AUTHENTICATION", "off")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut told = |what: &str| assert!(log.by_ref().any(|line| line.contains(what)), "the log does not tell {what}");
    told("listening on unix:s.sock");
    told("PUBLIC_URL is not set");
    told("AUTHENTICATION=off");
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(out.any(|line| line.contains("curl --unix-socket 's.sock' ")));
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    told("stopped");
    assert!(child.wait().unwrap().success());
    assert!(!folder.path().join("s.sock").exists());
    let (code, _, err) = run(folder.path(), &["serve"], &[("LISTEN_ADDR", "0.0.0.0:0"), ("AUTHENTICATION", "off")]);
    assert!(code == 2 && err.contains("AUTHENTICATION: "), "{code} {err}");
}

#[tokio::test]
async fn the_log_names_the_request_that_a_line_is_about() {
    for (format, named) in [("json", r#""span":{"name":"request","request_id":"call-7"}"#), ("text", r#"request{request_id="call-7"}"#)] {
        let folder = folder();
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder.path())
            .env_clear()
            .envs([("LISTEN_ADDR", "unix:s.sock"), ("STRIPE_WEBHOOK_SECRETS", "whsec_x"), ("LOG_FORMAT", format)])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let begun = log.find(|line| line.contains("listening on unix:s.sock")).unwrap();
        assert!(!begun.contains("request"), "{begun}");
        let mut raw = Raw::over(UnixStream::connect(folder.path().join("s.sock")).await.unwrap());
        raw.send(&request("POST", "/webhooks/stripe", "stripe-signature: t=1,v1=00\r\nx-request-id: call-7\r\n", "{}")).await;
        assert_eq!(raw.status().await, Some(400));
        let line = log.find(|line| line.contains("a delivery was refused")).unwrap();
        assert!(line.contains(named), "{line}");
        assert!(format == "text" || serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        assert!(log.any(|line| line.contains("stopped")));
        assert!(child.wait().unwrap().success());
    }
}

#[tokio::test]
async fn without_authentication_everybody_is_an_admin_and_is_audited_as_nobody_known() {
    for database in Database::ALL {
        for authentication in [Authentication::Off, Authentication::Required] {
            let mut app = TestApp::start(database, TIERS, |mut config| {
                config.authentication = authentication;
                config
            })
            .await;
            let put = app.client.put(app.url("/v1/users/u")).body(json!({"tier": "pro", "reason": "r"}).to_string());
            let get = app.client.get(app.url("/v1/users/u/explain")).bearer_auth("whatever");
            let (put, get) = (app.send(put).await, app.send(get).await);
            match authentication {
                Authentication::Off => {
                    put.ok();
                    assert_eq!(get.ok()["tier"]["manual"]["key_id"], "anonymous");
                }
                Authentication::Required => {
                    put.problem(401, "unauthorized");
                    get.problem(401, "unauthorized");
                    assert_eq!(app.user("u").await["tier_source"]["source"], "default");
                }
            }
            app.stop().await;
        }
    }
}
