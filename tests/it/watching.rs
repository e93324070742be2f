//! The log and the traces of a real process.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use spendgate::stripe::signature::Secret;
use tempfile::TempDir;

use crate::app::{ADMIN_KEY, TestApp, WEBHOOK_SECRET};
use crate::stripe::paying;

/// A service of its own.
struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    url: String,
    client: reqwest::Client,
    _folder: TempDir,
}

impl Process {
    fn start(environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder.path())
            .env_clear()
            .envs([("LISTEN_ADDR", "127.0.0.1:0"), ("ADMIN_API_KEY", ADMIN_KEY), ("STRIPE_WEBHOOK_SECRETS", WEBHOOK_SECRET)])
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = log.by_ref().map(Result::unwrap).find(|line| line.contains("listening on http://")).unwrap();
        let url = listens.split("listening on ").nth(1).unwrap().split(';').next().unwrap().to_owned();
        Self { child, log, url, client: TestApp::client(), _folder: folder }
    }

    async fn check(&self, user: &str, headers: &[(&str, &str)]) {
        let request = self.client.get(format!("{}/v1/users/{user}/enforcement?model=gpt-4o", self.url)).bearer_auth(ADMIN_KEY);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    }

    async fn spend(&self, headers: &[(&str, &str)]) {
        let body = json!({"id": "id-of-a-record", "user_id": "user-of-a-record", "cost": "0.01"}).to_string();
        let request = self.client.post(format!("{}/v1/usage", self.url)).bearer_auth(ADMIN_KEY).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    }

    async fn deliver(&self) {
        let [event, _] = paying("ann", "price_of_the_tests");
        let body = event.to_string();
        let signature = Secret::new(WEBHOOK_SECRET).unwrap().sign(body.as_bytes(), chrono::Utc::now());
        let request = self.client.post(format!("{}/webhooks/stripe", self.url)).header("stripe-signature", signature);
        assert_eq!(request.body(body).send().await.unwrap().status().as_u16(), 200);
    }

    /// Ends it well, and gives the rest of its log.
    fn stop(mut self) -> Vec<String> {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        let rest = self.log.map(Result::unwrap).collect();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_checks_add_no_line_to_the_log_and_a_webhook_adds_one() {
    let process = Process::start(&[]);
    for number in 0..1_000 {
        process.check(&format!("user-{}", number % 10), &[]).await;
    }
    process.deliver().await;
    let lines: Vec<Value> = process.stop().iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    let after: Vec<&&str> = messages
        .iter()
        .filter(|message| {
            !message.starts_with("Stripe is not asked") && !message.starts_with("alerts are told") && !message.contains("stop")
        })
        .collect();
    assert!(after.len() == 1 && after[0].starts_with("event evt_test_"), "{messages:#?}");
    let event = lines.iter().find(|line| line["message"].as_str() == Some(after[0])).unwrap();
    assert_eq!((&event["level"], &event["target"], &event["state"]), (&json!("INFO"), &json!("spendgate::sync"), &json!("applied")));
    assert!(event["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
    assert!(event["span"]["request_id"].is_string() && event.get("spans").is_none(), "{event}");
}

#[test]
fn the_log_is_text_where_that_is_asked_for() {
    let lines = Process::start(&[("LOG_FORMAT", "text")]).stop();
    assert!(lines.iter().any(|line| line.contains(" INFO spendgate::cli::serve: stopped")), "{lines:#?}");
}

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collected {
    spans: Arc<Mutex<Vec<Span>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

/// A collector on loopback, and where it listens.
async fn collector() -> (Collected, String) {
    let collected = Collected::default();
    let kept = collected.clone();
    let take = async move |headers: HeaderMap, body: Bytes| {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let spans = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone());
        kept.spans.lock().unwrap().extend(spans);
        kept.headers.lock().unwrap().push(headers);
        kept.requests.lock().unwrap().push(request);
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(take))).await });
    (collected, url)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_becomes_a_span_of_its_callers_trace() {
    let (collected, url) = collector().await;
    let process = Process::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector=of%20the%20tests"),
        ("OTEL_SERVICE_NAME", "spendgate-of-tests"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
    ]);
    process.spend(&[("traceparent", PARENT)]).await;
    process.check("user-of-a-check", &[("traceparent", PARENT)]).await;
    process.check("user-of-a-check", &[("traceparent", UNSAMPLED)]).await;
    process.spend(&[("traceparent", UNSAMPLED)]).await;
    // What is left is sent before it ends.
    let log = process.stop();
    let spans = collected.spans.lock().unwrap().clone();
    let trace = hex::decode(TRACE).unwrap();
    let mut of_caller: Vec<&str> = spans.iter().filter(|span| span.trace_id == trace).map(|span| span.name.as_str()).collect();
    of_caller.sort_unstable();
    assert_eq!(of_caller, ["GET /v1/users/{}/enforcement", "POST /v1/usage"], "{log:#?}");
    let usage = spans.iter().find(|span| span.name == "POST /v1/usage").unwrap();
    assert_eq!(hex::encode(&usage.parent_span_id), "b7ad6b7169203331");
    assert_eq!(spans.iter().filter(|span| span.name.contains("/v1/")).count(), 2, "those that the caller does not keep are not kept here");
    assert!(spans.iter().any(|span| span.name == "batch"), "the writer's batches have spans");
    let sent = format!("{:?}", collected.requests.lock().unwrap());
    assert!(sent.contains("spendgate-of-tests") && sent.contains("http.route"), "{sent}");
    for secret in [ADMIN_KEY, WEBHOOK_SECRET, "user-of-a-check", "user-of-a-record", "id-of-a-record", "of the tests"] {
        assert!(!sent.contains(secret), "{secret} is in a span");
    }
    assert_eq!(collected.headers.lock().unwrap()[0]["x-collector"], "of the tests");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_nothing_is_sent_and_a_collector_that_is_away_costs_a_line() {
    let (collected, url) = collector().await;
    let silent = Process::start(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "always_on")]);
    silent.spend(&[("traceparent", PARENT)]).await;
    silent.stop();
    assert!(collected.requests.lock().unwrap().is_empty());
    // The control: the same with an endpoint.
    let told = Process::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    told.spend(&[]).await;
    told.stop();
    assert!(!collected.requests.lock().unwrap().is_empty());

    let away = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let process = Process::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &away)]);
    process.spend(&[]).await;
    process.check("ann", &[]).await;
    let log = process.stop();
    assert_eq!(log.iter().filter(|line| line.contains("spans cannot be sent")).count(), 1, "{log:#?}");
}
