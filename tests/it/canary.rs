//! No secret and no e-mail address is in the log, however much of it is asked for; and no secret is in an answer to who should not have it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use spendgate::fake_stripe::{FakeStripe, Options, PriceSpec};
use spendgate::store::Address;
use spendgate::stripe::signature::Secret;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::app::{Database, TestApp};
use crate::postgres;
use crate::stripe::event;

const ADMIN: &str = "canary-admin-5f1d0c9a7b3e4d21-0123456789";
const WEBHOOK: &str = "whsec_canarywebhook8d21";
const API_KEY: &str = "sk_test_canaryapikey77f0";
const PASSWORD: &str = "canarypassword41c6";
const EMAIL: &str = "canary.jane@example.com";
/// What stands in the log on purpose: who does not find it does not look.
const CONTROL: &str = "canary-control-90ab";
/// So much of a secret is as bad as all of it: a key with a slip has it too.
const TELLING: usize = 24;

/// The real service, with all of its log.
struct Service {
    child: Child,
    url: String,
    says: Option<JoinHandle<String>>,
    folder: TempDir,
    database: Address,
    client: reqwest::Client,
    /// What no log may hold: its name and its text.
    canaries: Vec<(&'static str, String)>,
    /// Answers that nobody who reads them should find a secret in.
    answers: Vec<(String, String)>,
}

impl Service {
    fn start(database: Database, stripe: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = match database {
            Database::Sqlite => Address::Sqlite(folder.path().join(CONTROL)),
            Database::Postgres => postgres::fresh_database(folder.path()),
        };
        let mut url = database.url();
        if database.file().is_none() {
            // The server takes anybody, so nobody looks at the password. The second one has a slip in its name.
            url = url.replace("postgres@", &format!("postgres:{PASSWORD}@")) + "?passwort=" + PASSWORD;
        }
        let tiers = folder.path().join(format!("{CONTROL}.yaml"));
        fs::write(&tiers, crate::app::TIERS).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder.path())
            .env_clear()
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("RUST_LOG", "trace")
            .env("DATABASE_URL", url)
            .env("TIERS_FILE", tiers)
            .env("ADMIN_API_KEY", ADMIN)
            .env("STRIPE_WEBHOOK_SECRETS", WEBHOOK)
            .env("STRIPE_API_KEY", API_KEY)
            .env("STRIPE_API_BASE", stripe)
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut told = String::new();
        out.read_line(&mut told).unwrap();
        let url = told.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_else(|| panic!("{told:?}"));
        let url = url.trim_end_matches('.').to_owned();
        let says = std::thread::spawn(move || {
            out.read_to_string(&mut told).unwrap();
            told
        });
        let secrets =
            [("admin key", ADMIN), ("webhook secret", WEBHOOK), ("Stripe key", API_KEY), ("password", PASSWORD), ("e-mail", EMAIL)];
        let canaries = secrets.map(|(name, text)| (name, text.to_owned())).to_vec();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { child, url, says: Some(says), folder, database, client, canaries, answers: Vec::new() }
    }

    /// Sends a request, and keeps the answer to look through it.
    async fn send(&mut self, what: &str, request: reqwest::RequestBuilder) -> (u16, String) {
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        self.answers.push((format!("{what}: {status}"), text.clone()));
        (status, text)
    }

    async fn ask(&mut self, method: &str, path: &str, body: impl ToString) -> (u16, String) {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url)).bearer_auth(ADMIN);
        self.send(&format!("{method} {path}"), request.body(body.to_string())).await
    }

    async fn done(&mut self, method: &str, path: &str, body: impl ToString) -> Value {
        let (status, text) = self.ask(method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Without what is sent for everybody.
    async fn bare(&mut self, path: &str, header: Option<(&str, String)>) -> u16 {
        let mut request = self.client.get(format!("{}{path}", self.url));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        self.send(path, request).await.0
    }

    async fn deliver(&mut self, body: &str, signature: &str) -> u16 {
        let request = self.client.post(format!("{}/webhooks/stripe", self.url)).header("stripe-signature", signature);
        self.send("webhook", request.body(body.to_owned())).await.0
    }

    /// Delivers an event, and waits until the service has asked Stripe about it.
    async fn apply(&mut self, event: &Value) {
        let body = event.to_string();
        let signature = Secret::new(WEBHOOK).unwrap().sign(body.as_bytes(), Utc::now());
        self.canaries.push(("signature", signature.split("v1=").nth(1).unwrap().to_owned()));
        assert_eq!(self.deliver(&body, &signature).await, 200);
        let path = format!("/v1/events/{}", event["id"].as_str().unwrap());
        let asked = async { while self.done("GET", &path, "").await["state"] == "queued" {} };
        tokio::time::timeout(Duration::from_secs(120), asked).await.unwrap();
    }

    /// Ends it, and gives all that it said: the log, and what it printed.
    fn stop(&mut self) -> String {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
        self.says.take().unwrap().join().unwrap() + &String::from_utf8_lossy(&fs::read(self.folder.path().join("log")).unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After a failed test too. A process that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
        postgres::drop_database(&self.database);
    }
}

/// The lines that hold something of a canary, each with its name.
fn found<'t>(text: &'t str, canaries: &[(&'static str, String)]) -> Vec<(&'static str, &'t str)> {
    let telling = |text: &str| text[..text.len().min(TELLING)].to_owned();
    let encoded = |text: &str| text.replace('@', "%40");
    let needles: Vec<(&'static str, String)> =
        canaries.iter().flat_map(|(name, text)| [(*name, telling(text)), (*name, telling(&encoded(text)))]).collect();
    let has = |line: &'t str| needles.iter().find(|(_, needle)| line.contains(needle.as_str())).map(|(name, _)| (*name, line));
    text.lines().filter_map(has).collect()
}

async fn wrong_keys(service: &mut Service, key: &str) {
    for key in [ADMIN, key] {
        let slip = format!("{}x", &key[..key.len() - 1]);
        assert_eq!(service.bare("/v1/tiers", Some(("authorization", format!("Bearer {slip}")))).await, 401);
        assert_eq!(service.bare("/v1/tiers", Some(("authorization", format!("Basic {key}")))).await, 401);
        assert_eq!(service.bare("/v1/tiers", Some(("authorization", key.to_owned()))).await, 401);
        assert_eq!(service.bare("/v1/tiers", Some(("x-api-key", key.to_owned()))).await, 401);
        assert_eq!(service.bare(&format!("/v1/nothing/{key}"), None).await, 404);
        assert_eq!(service.bare(&format!("/{key}?{key}"), None).await, 404);
        assert_eq!(service.bare(&format!("/upgrade/{key}"), None).await, 404);
        service.bare(&format!("/v1/tiers?api_key={key}"), None).await;
        service.ask("GET", &format!("/v1/tiers?api_key={key}"), "").await;
        service.ask("GET", &format!("/v1/users/u/enforcement?estimated_cost={key}"), "").await;
        service.ask("GET", &format!("/v1/events?cursor={key}&limit={key}"), "").await;
    }
}

async fn bad_bodies(service: &mut Service, key: &str) {
    for secret in [key, WEBHOOK, API_KEY] {
        for body in [
            format!("{{\"id\": \"{secret}\""),
            format!("\"{secret}\""),
            secret.to_owned(),
            json!({"id": "x", "user_id": "u", "cost": secret}).to_string(),
            json!({"id": "x", "user_id": {"is": secret}, "cost": 1}).to_string(),
            json!({"id": "x", "user_id": "u", "estimated_cost": 1, "ttl_seconds": secret}).to_string(),
            json!({"id": "x", "user_id": "u", "estimated_cost": 1, "if_short": secret}).to_string(),
            json!({"id": "x", "user_id": "u", "estimated_cost": 1, "metadata": secret}).to_string(),
            json!({"name": "x", "scopes": [secret]}).to_string(),
            json!({"name": "x", "scopes": secret}).to_string(),
            json!({"tier": secret}).to_string(),
        ] {
            for path in ["/v1/usage", "/v1/holds", "/v1/enforcement", "/v1/keys", "/v1/corrections", "/v1/simulate"] {
                let (status, text) = service.ask("POST", path, &body).await;
                assert!((400..500).contains(&status), "{path} with {body}: {status} {text}");
            }
            service.ask("PUT", "/v1/users/u", &body).await;
            service.ask("PUT", "/v1/users/u/caps", &body).await;
        }
    }
}

async fn webhooks(service: &mut Service, customer: &str, other: &str) {
    let object = json!({"id": customer, "object": "customer", "email": EMAIL, "metadata": {"user_id": EMAIL}});
    service.apply(&event("customer.created", 0, object.clone())).await;
    service.apply(&event("customer.updated", 1, object.clone())).await;
    let forged = format!("t={},v1=canarysignature{}", Utc::now().timestamp(), "0".repeat(49));
    service.canaries.push(("signature", "canarysignature0".to_owned()));
    let body = event("customer.updated", 2, object).to_string();
    assert_eq!(service.deliver(&body, &forged).await, 400);
    assert_eq!(service.deliver(&body, &format!("v1=canarysignature0,{WEBHOOK}")).await, 400);
    for body in [format!("{EMAIL} {WEBHOOK}"), json!({"id": EMAIL, "object": EMAIL, "type": EMAIL}).to_string()] {
        let signed = |seconds| Secret::new(WEBHOOK).unwrap().sign(body.as_bytes(), Utc::now() - chrono::TimeDelta::seconds(seconds));
        assert_eq!(service.deliver(&body, &signed(0)).await, 400);
        assert_eq!(service.deliver(&body, &signed(1000)).await, 400);
    }
    // Another customer names a user who has one: the alert names him, to who may read it.
    let other = json!({"id": other, "object": "customer", "email": EMAIL, "metadata": {"user_id": EMAIL}});
    service.apply(&event("customer.created", 3, other)).await;
}

async fn calls(service: &mut Service, customer: &str) {
    let user = format!("/v1/users/{EMAIL}");
    service.done("PUT", &user, json!({"stripe_customer": customer})).await;
    service.done("PUT", &user, json!({"tier": "free", "reason": "a canary"})).await;
    service.done("POST", "/v1/usage", json!({"id": "a", "user_id": EMAIL, "cost": 0.09, "model": "gpt-4o"})).await;
    service.ask("POST", "/v1/usage", json!({"id": "a", "user_id": EMAIL, "cost": 1})).await;
    service.done("POST", "/v1/holds", json!({"id": "h", "user_id": EMAIL, "estimated_cost": 0.005})).await;
    service.done("POST", "/v1/holds/h/capture", json!({"cost": 0.02})).await;
    service.done("PUT", &format!("{user}/caps"), json!({"daily": 5})).await;
    service
        .ask(
            "POST",
            "/v1/users/u/grants",
            json!({"id": "g", "amount": 1, "period": "daily", "ends_at": "2099-01-01T00:00:00Z", "reason": EMAIL}),
        )
        .await;
    service.ask("PUT", "/v1/accounts/a", json!({"stripe_customer": null})).await;
    service.ask("PUT", &format!("/v1/accounts/a/users/{EMAIL}"), "").await;
    service.ask("DELETE", &format!("/v1/accounts/a/users/{EMAIL}"), "").await;
    service
        .ask(
            "POST",
            "/v1/corrections",
            json!({"id": "c", "user_id": EMAIL, "amount": 0.001, "reason": "x", "time": Utc::now(), "model": "gpt-4o"}),
        )
        .await;
    service.ask("PUT", "/v1/users/somebody", json!({"stripe_customer": customer})).await;
    for path in [user.clone(), format!("{user}/explain"), format!("{user}/usage"), "/v1/users".to_owned(), "/v1/events".to_owned()] {
        service.done("GET", &path, "").await;
    }
    service.done("POST", "/v1/admin/reload", "").await;
    service.ask("POST", "/v1/reconciliation", "").await;
    service.done("GET", "/readyz", "").await;
    // Whoever has the link has the user's billing pages.
    let blocked = service.done("GET", &format!("{user}/enforcement?model=gpt-4o"), "").await;
    assert_eq!(blocked["action"], "BLOCK", "{blocked}");
    let link = blocked["upgrade_url"].as_str().unwrap().to_owned();
    let path = link.strip_prefix(&service.url).unwrap_or_else(|| panic!("{link}")).to_owned();
    service.bare(&path, None).await;
    let token = path.strip_prefix("/upgrade/").unwrap();
    service.bare(&format!("/billing/return/{token}"), None).await;
    service.bare(&format!("{path}x"), None).await;
    // Its beginning names the user, and is the same in other tokens of his.
    service.canaries.push(("upgrade link", token[token.len() - TELLING..].to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log_at_its_loudest_nor_in_an_answer() {
    drop(TestApp::client());
    for database in Database::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stripe = format!("http://{}", listener.local_addr().unwrap());
        let fake = FakeStripe::new(Options { keys: vec![API_KEY.to_owned()], ..Options::default() }, Arc::new(Utc::now), 1);
        let router = fake.router();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        for price in ["price_free", "price_pro", "price_enterprise"] {
            fake.create_product(&format!("prod_{price}"), &[]);
            fake.create_price(price, &format!("prod_{price}"), PriceSpec::monthly(2900));
        }
        let customer = fake.create_customer(&[("user_id", EMAIL)]);
        let other = fake.create_customer(&[("user_id", EMAIL)]);
        fake.subscribe(&customer, &[("price_pro", None)], "active");
        let mut service = Service::start(database, &stripe);

        let made = service.client.post(format!("{}/v1/keys", service.url)).bearer_auth(ADMIN);
        let made = made.body(json!({"name": EMAIL, "scopes": ["check"]}).to_string()).send().await.unwrap();
        let made: Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
        let (key, id) = (made["key"].as_str().unwrap().to_owned(), made["key_id"].as_str().unwrap().to_owned());
        service.canaries.push(("made key", key.clone()));
        let path = format!("/v1/users/{EMAIL}/enforcement");
        assert_eq!(service.bare(&path, Some(("authorization", format!("Bearer {key}")))).await, 200);
        assert_eq!(service.bare("/v1/users", Some(("authorization", format!("Bearer {key}")))).await, 403);
        webhooks(&mut service, &customer, &other).await;
        calls(&mut service, &customer).await;
        wrong_keys(&mut service, &key).await;
        bad_bodies(&mut service, &key).await;
        service.done("DELETE", &format!("/v1/keys/{id}"), "").await;
        assert_eq!(service.bare("/v1/tiers", Some(("authorization", format!("Bearer {key}")))).await, 401);
        let metrics = service.client.get(format!("{}/metrics", service.url)).bearer_auth(ADMIN).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();

        let log = service.stop();
        assert!(log.contains("TRACE") && log.contains("DEBUG"), "it is not at its loudest");
        let planted = format!("{log}\nsomebody sent Bearer {}\n", &key[..30]);
        assert_eq!(found(&planted, &service.canaries).last().map(|(name, _)| *name), Some("made key"));
        assert!(!found(&log, &[("control", CONTROL.to_owned())]).is_empty(), "what stands in the log is not found");
        let leaks = found(&log, &service.canaries);
        assert!(leaks.is_empty(), "{database:?}: {:#?}", &leaks[..leaks.len().min(20)]);
        assert!(found(&metrics, &service.canaries).is_empty(), "{metrics}");
        // A user's id is in the answers about him, and so is his link.
        let secrets: Vec<_> = service.canaries.iter().filter(|(name, _)| !["e-mail", "upgrade link"].contains(name)).cloned().collect();
        for (what, answer) in &service.answers {
            assert!(found(answer, &secrets).is_empty(), "{what}: {answer}");
        }
        assert!(100 < service.answers.len());
    }
}
