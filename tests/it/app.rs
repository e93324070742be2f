//! The real server on a real database, with the clock in the test's hand.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use spendgate::alerts::Teller;
use spendgate::cli::Machine;
use spendgate::cli::serve::Server;
use spendgate::config::{AdminKey, Authentication, Config, GateConfig, StripeConfig};
use spendgate::domain::pricing::PriceBook;
use spendgate::domain::{prices_file, tiers_file};
use spendgate::http::serve::Limits;
use spendgate::store::{Address, Store};
use spendgate::stripe::signature::Secret;
use spendgate::sync::asking::Asker;
use spendgate::sync::reconcile::Reconciler;
use tempfile::TempDir;

use crate::described::{Description, SEEN};
use crate::postgres;

/// Where every promise is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];
}

/// A Monday, in the middle of the day and of the month.
pub const NOON: &str = "2026-01-12T12:00:00Z";
pub const ADMIN_KEY: &str = "admin-key-of-the-tests-0123456789abcdef";
pub const WEBHOOK_SECRET: &str = "whsec_of_the_tests";

/// The catalogue of the repository.
pub const TIERS: &str = include_str!("../../tiers.yaml");

pub struct TestApp {
    server: Option<Server>,
    pub config: Config,
    tiers: String,
    prices: PriceBook,
    clock: Arc<Mutex<DateTime<Utc>>>,
    pub client: reqwest::Client,
    pub folder: TempDir,
    /// Whether the database goes with it.
    owns: bool,
    limits: Limits,
}

/// Numbers that no test knows, each once.
fn random() -> anyhow::Result<[u8; 32]> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Ok(bytes)
}

/// An answer, read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The JSON of a 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Checks that the answer is a problem with this status and code, and gives it.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{}", self.text);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", self.text);
        problem
    }
}

/// No test takes so long: one that waits for what was promised fails, and does not hang.
pub const HANGS_AFTER: Duration = Duration::from_secs(600);

/// Runs a test on a fresh service over each database.
pub async fn on_each_database(tiers: &str, test: impl AsyncFn(&mut TestApp)) {
    for database in Database::ALL {
        let mut app = TestApp::start(database, tiers, |config| config).await;
        tokio::time::timeout(HANGS_AFTER, test(&mut app)).await.expect("it waits for what never comes");
        app.stop().await;
    }
}

/// Another node: the database is not its own.
pub struct Node(TestApp);

impl Deref for Node {
    type Target = TestApp;

    fn deref(&self) -> &TestApp {
        &self.0
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut TestApp {
        &mut self.0
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        // A test that failed leaves it to be looked at, until the server stops.
        if !std::thread::panicking() && self.owns {
            self.server = None;
            postgres::drop_database(&self.config.database);
        }
    }
}

/// The price book of the repository.
pub fn prices() -> PriceBook {
    prices_file::read(include_str!("../../prices.yaml")).unwrap_or_else(|problems| panic!("{problems:?}"))
}

impl TestApp {
    pub async fn start(database: Database, tiers: &str, change: impl Fn(Config) -> Config) -> Self {
        Self::start_within(Limits::default(), database, tiers, change).await
    }

    /// The same, with other limits on connections.
    pub async fn start_within(limits: Limits, database: Database, tiers: &str, change: impl Fn(Config) -> Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = match database {
            Database::Sqlite => Address::Sqlite(folder.path().join("test.db")),
            Database::Postgres => postgres::fresh_database(folder.path()),
        };
        let config = change(Config {
            listen_addr: SocketAddr::from(([127, 0, 0, 1], 0)).into(),
            tls: None,
            authentication: Authentication::Required,
            metrics_addr: None,
            data_dir: folder.path().to_owned(),
            database,
            tiers_file: None,
            prices_file: None,
            webhook_secrets: vec![Secret::new(WEBHOOK_SECRET).unwrap()],
            stripe: StripeConfig {
                api_base: "https://stripe.invalid".to_owned(),
                reconcile_every: None,
                compares: false,
                ..StripeConfig::default()
            },
            retention_days: None,
            max_staleness: TimeDelta::zero(),
            // A machine that is busy with tests is not down.
            store_timeout: Duration::from_secs(20),
            gate: GateConfig::default(),
            admin_api_key: Some(AdminKey(ADMIN_KEY.to_owned())),
            public_url: Some("https://spend.example.com".to_owned()),
            return_url: None,
            alerts: spendgate::alerts::Settings { tells: false, ..Default::default() },
        });
        let clock = Arc::new(Mutex::new(NOON.parse().unwrap()));
        let client = Self::client();
        let mut app = Self { server: None, config, tiers: tiers.to_owned(), prices: prices(), clock, client, folder, owns: true, limits };
        app.open().await;
        app
    }

    pub fn client() -> reqwest::Client {
        // Once in a process is enough; a second time finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // It speaks to loopback only: whom this machine trusts need not be read.
        reqwest::Client::builder().tls_certs_only([]).build().unwrap()
    }

    async fn open(&mut self) {
        let clock = self.clock.clone();
        let machine = Machine { clock: Arc::new(move || *clock.lock().unwrap()), random, environment: |_| None };
        let catalogue = tiers_file::read(&self.tiers, self.prices.clone()).unwrap_or_else(|problems| panic!("{problems:?}"));
        self.server = Some(Server::start_within(self.limits, &self.config, catalogue, &machine).await.unwrap());
    }

    /// Another node on the same database, with the same clock.
    pub async fn node(&self, change: impl Fn(Config) -> Config) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let config = change(self.config.clone());
        Node(
            Self {
                server: None,
                config,
                tiers: self.tiers.clone(),
                prices: self.prices.clone(),
                clock: self.clock.clone(),
                client: Self::client(),
                folder,
                owns: false,
                limits: self.limits,
            }
            .opened()
            .await,
        )
    }

    async fn opened(mut self) -> Self {
        self.open().await;
        self
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    pub async fn stop(&mut self) {
        self.server.take().expect("it runs").stop().await.unwrap();
    }

    /// Starts another service on the data of one that was stopped.
    pub async fn restart_after_stop(&mut self) {
        self.open().await;
    }

    /// Ends the service and starts another one on the same data.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.open().await;
    }

    /// The same with another catalogue.
    pub async fn restart_with(&mut self, tiers: &str) {
        tiers.clone_into(&mut self.tiers);
        self.restart().await;
    }

    /// The same with another price book.
    pub async fn restart_with_prices(&mut self, prices: &str) {
        self.prices = prices_file::read(prices).unwrap_or_else(|problems| panic!("{problems:?}"));
        self.restart().await;
    }

    pub fn now(&self) -> DateTime<Utc> {
        *self.clock.lock().unwrap()
    }

    /// The service's own clock, for who must agree with it.
    pub fn shared_clock(&self) -> Arc<dyn Fn() -> DateTime<Utc> + Send + Sync> {
        let clock = self.clock.clone();
        Arc::new(move || *clock.lock().unwrap())
    }

    pub fn set_clock(&self, to: &str) {
        *self.clock.lock().unwrap() = to.parse().unwrap();
    }

    pub fn advance(&self, by: TimeDelta) {
        *self.clock.lock().unwrap() += by;
    }

    /// Who asks Stripe; only where there is a key.
    pub fn asker(&self) -> Arc<Asker> {
        self.server.as_ref().and_then(|server| server.asker.clone()).expect("it has a key")
    }

    /// Who compares everything with Stripe; only where there is a key.
    pub fn reconciler(&self) -> Arc<Reconciler> {
        self.server.as_ref().and_then(|server| server.reconciler.clone()).expect("it has a key")
    }

    /// Lets the store know when keys were used last, as the service does by itself once a minute.
    pub async fn write_uses(&self) {
        let server = self.server.as_ref().expect("it runs");
        server.keys.write_uses(&Store::open(&self.config.database).await.unwrap()).await.unwrap();
    }

    /// Who tells others of alerts; a test takes his steps.
    pub fn teller(&self) -> Arc<Teller> {
        self.server.as_ref().expect("it runs").teller.clone()
    }

    pub fn address(&self) -> SocketAddr {
        self.server.as_ref().and_then(|server| server.address.tcp()).expect("it runs, on an address")
    }

    /// Where metrics are read without a key; only where it is set.
    pub fn metrics_address(&self) -> SocketAddr {
        self.server.as_ref().and_then(|server| server.metrics_address).expect("it has such an address")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub fn database(&self) -> Address {
        self.config.database.clone()
    }

    /// SQLite's file.
    pub fn file(&self) -> PathBuf {
        self.config.database.file().expect("it is SQLite").to_owned()
    }

    /// Statements of somebody else, whatever the service thinks.
    pub async fn execute(&self, statements: &str) {
        if self.is_postgres() {
            drop(postgres::sql(&self.config.database, statements));
            return;
        }
        let pool = self.sqlite(self.file()).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&pool).await.unwrap();
        pool.close().await;
    }

    /// A column of text, as somebody else reads it.
    pub async fn column(&self, query: &str) -> Vec<String> {
        if self.is_postgres() {
            return postgres::sql(&self.config.database, query).lines().map(str::to_owned).collect();
        }
        let pool = self.sqlite(self.file()).await;
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&pool).await.unwrap();
        pool.close().await;
        rows
    }

    pub async fn sqlite(&self, file: PathBuf) -> sqlx::SqlitePool {
        sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(file)).await.unwrap()
    }

    pub fn is_postgres(&self) -> bool {
        self.config.database.file().is_none()
    }

    /// What `spendgate verify` says, in a process of its own beside the service. Its exit code agrees with what it says.
    pub fn verify(&self) -> String {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_spendgate"));
        verify.arg("verify").env("DATABASE_URL", self.database().url()).current_dir(self.folder.path());
        let output = verify.output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let faults = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), told.contains(" 0 disagreements"), "{told}{faults}");
        assert!(told.contains(" disagreements"), "{faults}");
        told
    }

    /// Every answer is held to the description of the doors.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let (client, request) = request.build_split();
        let request = request.unwrap();
        let (method, url) = (request.method().clone(), request.url().clone());
        let response = client.execute(request).await.unwrap();
        let (status, headers, led_to) = (response.status().as_u16(), response.headers().clone(), response.url().clone());
        let answer = Answer { status, headers, text: response.text().await.unwrap() };
        if self.is_running() && method != "HEAD" && url == led_to && url.as_str().starts_with(&self.url("/")) {
            let description = Description::of(&self.url("/openapi.json"), &self.client).await;
            description.hold(method.as_str(), url.path(), &answer);
            if let Some((door, _)) = description.door(method.as_str(), url.path()) {
                SEEN.note(&self.url(""), door.clone(), &answer);
            }
        }
        answer
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(self.url(path)).bearer_auth(ADMIN_KEY)).await
    }

    pub async fn post(&self, path: &str, body: impl ToString) -> Answer {
        self.send(self.client.post(self.url(path)).bearer_auth(ADMIN_KEY).body(body.to_string())).await
    }

    pub async fn put(&self, path: &str, body: impl ToString) -> Answer {
        self.send(self.client.put(self.url(path)).bearer_auth(ADMIN_KEY).body(body.to_string())).await
    }

    /// Posts an event as Stripe would, signed now.
    pub async fn deliver(&self, body: &[u8]) -> Answer {
        let signature = Secret::new(WEBHOOK_SECRET).unwrap().sign(body, self.now());
        let request = self.client.post(self.url("/webhooks/stripe")).header("stripe-signature", signature);
        self.send(request.body(body.to_vec())).await
    }

    /// Delivers an event that must be taken, and gives what the inbox says of it.
    pub async fn apply(&self, event: Value) -> Value {
        self.deliver(event.to_string().as_bytes()).await.ok();
        self.get(&format!("/v1/events/{}", event["id"].as_str().unwrap())).await.ok()
    }

    pub async fn check(&self, user: &str) -> Value {
        self.get(&format!("/v1/users/{user}/enforcement?model=gpt-4o")).await.ok()
    }

    pub async fn user(&self, user: &str) -> Value {
        self.get(&format!("/v1/users/{user}")).await.ok()
    }

    pub async fn spend(&self, id: &str, user: &str, cost: &str) -> Value {
        self.post("/v1/usage", json!({"id": id, "user_id": user, "cost": cost})).await.ok()
    }
}
