//! Where alerts may go, what they look like there, and what an answer can do.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use chrono::TimeDelta;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use spendgate::alerts::Settings;
use spendgate::config::Config;

use crate::app::{ADMIN_KEY, Database, TIERS, TestApp};
use crate::telling::{Arrived, Receiver, SECRET, on_each, raise, raised, settings, shown, status, tell};

#[tokio::test]
async fn what_slack_shows_has_no_link_and_no_mention_of_a_users_making() {
    const HOSTILE: &str = "<!channel> <https://evil.example|your bill> @here &lt;!here&gt; www.evil.example";
    for database in Database::ALL {
        let receiver = Receiver::start().await;
        let settings = settings(&format!("chat=slack+{}/hooks/1", receiver.url), "127.0.0.1");
        let mut app = TestApp::start(database, TIERS, |config| Config { alerts: settings.clone(), ..config }).await;
        app.post("/v1/enforcement", json!({"user_id": "u", "model": HOSTILE, "input_tokens": 1})).await.ok();
        let alert = raised(&app, |_| true).await;
        tell(&app).await;
        let [arrived] = receiver.arrived().try_into().unwrap();
        assert!(!arrived.headers.contains_key("webhook-signature") && arrived.path == "/hooks/1");
        let body = arrived.json();
        let text = body["text"].as_str().unwrap();
        assert!(text.contains("&lt;!channel&gt;") && text.contains("&amp;lt;!here&amp;gt;"), "{text}");
        assert!(!text.contains(['<', '>']) && !text.contains("@here") && !text.contains("://") && !text.contains(".evil"), "{text}");
        // What Slack shows is plain text, of which it makes nothing.
        assert_eq!(body["blocks"], json!([{"type": "section", "text": {"type": "plain_text", "emoji": false, "text": alert["message"]}}]));
        assert_eq!((&body["mrkdwn"], &body["unfurl_links"]), (&json!(false), &json!(false)));
        app.stop().await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    on_each(&["ops", "elsewhere"], async |app, receivers| {
        let [ops, elsewhere] = receivers else { panic!("two") };
        let (id, target) = (raise(app, 1).await.remove(0), format!("{}/stolen", elsewhere.url));
        ops.answers(move |_| Some(Response::builder().status(307).header("location", &target).body(Body::empty()).unwrap()));
        tell(app).await;
        let alert = shown(app, &id).await;
        let error = alert["deliveries"][1]["error"].as_str().unwrap();
        assert!(error.starts_with("status 307") && !error.contains("stolen"), "{alert}");
        assert_eq!(elsewhere.arrived().iter().map(|arrived| arrived.path.clone()).collect::<Vec<_>>(), ["/elsewhere"]);
    })
    .await;
}

fn endless(chunk: &'static [u8]) -> Body {
    Body::from_stream(stream::repeat(Bytes::from_static(chunk)).map(Ok::<_, std::io::Error>))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_costs_no_more_than_a_bound() {
    for database in Database::ALL {
        let receiver = Receiver::start().await;
        // It is not the time that ends it.
        let settings = settings(&format!("ops={}/", receiver.url), "127.0.0.0/8");
        let mut app = TestApp::start(database, TIERS, |config| Config { alerts: settings.clone(), ..config }).await;
        let ids = raise(&app, 2).await;
        let first = ids[0].clone();
        receiver.answers(move |arrived| {
            let ok = arrived.header("webhook-id") == first;
            Some(Response::builder().status(if ok { 200 } else { 500 }).body(endless(&[b'x'; 4096])).unwrap())
        });
        tell(&app).await;
        assert_eq!(shown(&app, &ids[0]).await["state"], "delivered");
        assert_eq!(shown(&app, &ids[1]).await["deliveries"][0]["error"], "status 500");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_has_failed_and_who_never_ends_his_answer_has_given_its_status() {
    for database in Database::ALL {
        let receiver = Receiver::start().await;
        let short = Settings { deadline: Duration::from_millis(300), ..settings(&format!("ops={}/", receiver.url), "127.0.0.0/8") };
        let mut app = TestApp::start(database, TIERS, |config| Config { alerts: short.clone(), ..config }).await;
        let id = raise(&app, 1).await.remove(0);
        receiver.answers(|_| None);
        tell(&app).await;
        assert_eq!(shown(&app, &id).await["deliveries"][0]["error"], "there was no answer in time");
        receiver.answers(|_| {
            let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"o"))]);
            Some(Response::new(Body::from_stream(first.chain(stream::pending()))))
        });
        app.advance(TimeDelta::seconds(6));
        tell(&app).await;
        assert_eq!(shown(&app, &id).await["state"], "delivered");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_name_is_connected_to_only_where_it_leads_to_where_alerts_may_go() {
    for database in Database::ALL {
        let receiver = Receiver::start().await;
        let port = receiver.url.rsplit(':').next().unwrap();
        for (url, allowed, goes) in [
            // A name that leads within, and nothing within is allowed.
            (format!("https://localhost:{port}/"), "", false),
            // Another network is, and that makes http no more allowed than before.
            (format!("http://localhost:{port}/"), "10.0.0.0/8", false),
            (format!("http://LOCALHOST:{port}/"), "10.0.0.0/8", false),
            (format!("http://localhost:{port}/"), "127.0.0.0/8,::1", true),
        ] {
            let settings = settings(&format!("ops={url}"), allowed);
            let mut app = TestApp::start(database, TIERS, |config| Config { alerts: settings.clone(), ..config }).await;
            let id = raise(&app, 1).await.remove(0);
            tell(&app).await;
            let alert = shown(&app, &id).await;
            if goes {
                assert_eq!(alert["state"], "delivered", "{url}: {alert}");
                assert_eq!(receiver.arrived().len(), 1);
            } else {
                let error = alert["deliveries"][0]["error"].as_str().unwrap();
                assert!(error.contains("no address that alerts may go to"), "{url}: {alert}");
                assert!(receiver.arrived().is_empty(), "{url}");
            }
            app.stop().await;
        }
    }
}

/// The real binary, with all that it says.
struct Service {
    child: std::process::Child,
    url: String,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Service {
    fn start(folder: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spendgate"));
        command
            .current_dir(folder)
            .env_clear()
            .envs(environment.iter().copied())
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("ADMIN_API_KEY", ADMIN_KEY);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            said
        });
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_else(|| panic!("it says {line:?}"));
        Self { url: url.trim_end_matches('.').to_owned(), child, stderr: Some(stderr) }
    }

    async fn post(&self, path: &str) -> Value {
        let request = TestApp::client().post(format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY);
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap().parse().unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let request = TestApp::client().get(format!("{}{path}", self.url)).bearer_auth(ADMIN_KEY);
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap().parse().unwrap()
    }

    /// Ends it, and gives its log.
    fn kill(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stderr.take().map(|said| said.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Python that has Standard Webhooks' own library.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standardwebhooks");
    let made = Command::new("tests/standardwebhooks.sh").arg(&folder).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    folder.join("bin/python")
}

/// What the library says of it under each of these secrets.
fn verify(arrived: &Arrived, body: &[u8], secret: &str) -> bool {
    const VERIFY: &str = "import json, sys\nfrom standardwebhooks.webhooks import Webhook, WebhookVerificationError\n\
        given = json.load(sys.stdin)\ntry:\n    Webhook(given['secret']).verify(given['body'], given['headers'])\n    print('good')\n\
        except WebhookVerificationError as error:\n    print('refused:', error)\n";
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Value =
        names.iter().map(|name| ((*name).to_owned(), json!(arrived.header(name)))).collect::<serde_json::Map<_, _>>().into();
    let mut child = Command::new(python()).args(["-c", VERIFY]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let given = json!({"secret": secret, "headers": headers, "body": std::str::from_utf8(body).unwrap()}).to_string();
    child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("good") || said.contains("No matching signature"), "{said}");
    said.starts_with("good")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standards_own_library_takes_what_the_service_sends_and_refuses_what_was_changed() {
    const OTHER: &str = "whsec_bmV3IHNlY3JldCB3aGlsZSBvbmUgaXMgcm9sbGVk";
    const STRANGER: &str = "whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCBoZXJl";
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start().await);
    let (webhooks, secrets) = (format!("ops={}/in", receiver.url), format!("ops={SECRET},ops={OTHER}"));
    let service = Service::start(
        folder.path(),
        &[("ALERT_WEBHOOKS", &webhooks), ("ALERT_WEBHOOK_SECRETS", &secrets), ("ALERT_ALLOWED_NETWORKS", "127.0.0.0/8")],
    );
    let test = service.post("/v1/alerts/test").await;
    receiver.until(1).await;
    let arrived = receiver.arrived().remove(0);
    assert_eq!(arrived.header("webhook-id"), test["alert_id"].as_str().unwrap());
    assert_eq!(arrived.header("content-type"), "application/json");
    assert_eq!(
        arrived.json(),
        json!({"type": "alert.test", "timestamp": test["created_at"], "data": {"alert_id": test["alert_id"], "user_id": null,
            "message": "This is a test: alerts of Spendgate arrive here.", "details": {}}})
    );
    for secret in [SECRET, OTHER] {
        assert!(verify(&arrived, &arrived.body, secret));
    }
    assert!(!verify(&arrived, &arrived.body, STRANGER));
    let mut changed = arrived.body.to_vec();
    changed[2] ^= 1;
    assert!(!verify(&arrived, &changed, SECRET));
    let mut another = arrived;
    another.headers.insert("webhook-id", "alert_another".parse().unwrap());
    assert!(!verify(&another, &another.body, SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_passed_by() {
    let (folder, receiver, proxy) = (tempfile::tempdir().unwrap(), Receiver::start().await, Receiver::start().await);
    let webhooks = format!("chat=slack+{}/", receiver.url);
    let settings = [("ALERT_WEBHOOKS", webhooks.as_str()), ("ALERT_ALLOWED_NETWORKS", "127.0.0.0/8")];
    let proxies =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, proxy.url.as_str()));
    let service = Service::start(folder.path(), &[&settings[..], &proxies[..]].concat());
    service.post("/v1/alerts/test").await;
    while receiver.arrived().len() + proxy.arrived().len() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(proxy.arrived().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_secret_nor_a_url_is_in_the_log_at_any_door_or_on_the_disk() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start().await);
    receiver.answers(|_| Some(status(500)));
    let slack = format!("ops={0}/canary-path?key=canary-query,chat=slack+{0}/canary-slack", receiver.url);
    let webhooks = format!("{slack},away=https://localhost:1/canary-path");
    let secrets = format!("ops={SECRET},away={SECRET}");
    let environment = [
        ("ALERT_WEBHOOKS", &*webhooks),
        ("ALERT_WEBHOOK_SECRETS", &secrets),
        ("ALERT_ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("RUST_LOG", "trace"),
    ];
    let mut service = Service::start(folder.path(), &environment);
    let id = service.post("/v1/alerts/test").await["alert_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/alerts/{id}");
    let shown = loop {
        let shown = service.get(&path).await;
        if shown["deliveries"].as_array().unwrap().iter().all(|delivery| delivery["tries"] != 0) {
            break shown.to_string();
        }
    };
    let log = service.kill();
    assert!(log.contains("could not be told of") && log.contains("TRACE"), "the harness is void: {log:.300}");
    for canary in ["canary-path", "canary-query", "canary-slack", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(canary)).take(3).collect();
        assert!(lines.is_empty() && !shown.contains(canary), "{canary}: {lines:#?} {shown}");
        for file in std::fs::read_dir(folder.path().join("data")).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(canary.len()).any(|window| window == canary.as_bytes()), "{canary} is on the disk");
        }
    }
}
