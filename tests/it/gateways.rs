//! Behind real gateways, by the very files of `examples/`.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};
use spendgate::config::{Config, GateConfig};
use tempfile::TempDir;

use crate::app::{ADMIN_KEY, Answer, Database, TIERS, TestApp};
use crate::durability::{ALL_TABLES, rename};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Caddy,
}

/// A gateway that runs, with a service behind it.
struct Gateway {
    child: Child,
    address: SocketAddr,
    service: Service,
    /// Where it keeps what it needs.
    _folder: TempDir,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Each is one process, so nothing of it stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers what it was sent, and remembers how often.
#[derive(Clone)]
struct Service {
    address: SocketAddr,
    calls: Arc<Mutex<u32>>,
}

impl Service {
    async fn start() -> Self {
        let calls: Arc<Mutex<u32>> = Arc::default();
        let counted = calls.clone();
        let echo = async move |method: Method, uri: Uri, headers: HeaderMap, body: String| {
            *counted.lock().unwrap() += 1;
            let headers: Value = headers
                .keys()
                .map(|name| {
                    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
                    (name.to_string(), json!(values.join(",")))
                })
                .collect();
            axum::Json(json!({"method": method.as_str(), "uri": uri.to_string(), "headers": headers, "body": body}))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(echo)).await });
        Self { address, calls }
    }

    fn calls(&self) -> u32 {
        *self.calls.lock().unwrap()
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

impl Kind {
    fn command(self, folder: &Path, listen: SocketAddr, spendgate: SocketAddr, service: SocketAddr, key: &str) -> Command {
        match self {
            Self::Nginx => {
                let mut text = fs::read_to_string(example("nginx.conf")).unwrap();
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {of};")).concat();
                for (from, to) in [
                    ("127.0.0.1:8088", listen.to_string()),
                    ("127.0.0.1:8080", spendgate.to_string()),
                    ("127.0.0.1:9000", service.to_string()),
                    ("sg_REPLACE", key.to_owned()),
                    // Debian's own folders are root's.
                    ("access_log off;", format!("access_log off; {temporary}")),
                ] {
                    let (comment, rest) = text.split_once("\nworker_processes").unwrap();
                    assert!(rest.contains(from), "{from}");
                    text = format!("{comment}\nworker_processes{}", rest.replace(from, &to));
                }
                fs::write(folder.join("nginx.conf"), text).unwrap();
                let found = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
                let mut nginx = Command::new(found.unwrap_or("nginx"));
                nginx.arg("-p").arg(folder).args(["-e", "stderr", "-c", "nginx.conf", "-g", "daemon off; master_process off;"]);
                nginx
            }
            Self::Caddy => {
                let mut caddy = Command::new("caddy");
                caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(example("Caddyfile"));
                caddy.envs([("HOME", folder), ("XDG_CONFIG_HOME", folder), ("XDG_DATA_HOME", folder)]);
                caddy.envs([("LISTEN", listen), ("SPENDGATE", spendgate), ("UPSTREAM", service)].map(|(name, at)| (name, at.to_string())));
                caddy.env("SPENDGATE_KEY", key);
                caddy
            }
        }
    }

    /// As its example says that Spendgate is set up.
    fn config(self) -> GateConfig {
        match self {
            Self::Nginx => GateConfig { block_status: 403, ..GateConfig::default() },
            Self::Caddy => GateConfig::default(),
        }
    }
}

impl Gateway {
    async fn start(kind: Kind, spendgate: SocketAddr, key: &str) -> Self {
        let service = Service::start().await;
        loop {
            let folder = tempfile::tempdir().unwrap();
            // A port that was free a moment ago; where somebody else took it the gateway ends, and another one is tried.
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let log = fs::File::create(folder.path().join("log")).unwrap();
            let mut command = kind.command(folder.path(), address, spendgate, service.address, key);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
            let mut child = child.unwrap_or_else(|error| panic!("{kind:?} cannot be started ({error}); .ci/test installs it"));
            loop {
                if child.try_wait().unwrap().is_some() {
                    let log = fs::read_to_string(folder.path().join("log")).unwrap();
                    assert!(log.contains("in use"), "{kind:?} ended: {log}");
                    break;
                }
                if TcpStream::connect(address).is_ok() {
                    return Self { child, address, service, _folder: folder };
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// A call of the service through the gateway.
    async fn call(&self, app: &TestApp, token: &str, headers: &[(&str, &str)]) -> Answer {
        let url = format!("http://{}/v1/chat/completions?stream=1", self.address);
        let mut request = app.client.post(url).body("{\"model\": \"?\"}");
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.send(request).await
    }
}

const ADA: &str = "token-of-ada";
const BOB: &str = "token-of-bob";
/// What a client could hope to be believed.
const FORGED: [(&str, &str); 8] = [
    ("x-user-id", "somebody"),
    ("x-model", "gpt-4o"),
    ("x-estimated-cost", "not money"),
    ("x-spendgate-key", "sg_forged"),
    ("x-spendgate-action", "ALLOW"),
    ("x-spendgate-model", "forged"),
    ("x-original-uri", "/healthz"),
    ("x-forwarded-uri", "/healthz"),
];

async fn behind(kind: Kind, test: impl AsyncFn(&mut TestApp, &Gateway)) {
    for database in Database::ALL {
        let mut app = TestApp::start(database, TIERS, |config| Config { gate: kind.config(), ..config }).await;
        let gateway = Gateway::start(kind, app.address(), ADMIN_KEY).await;
        test(&mut app, &gateway).await;
        if app.is_running() {
            app.stop().await;
        }
    }
}

async fn passes_and_blocks(kind: Kind) {
    behind(kind, async |app, gateway| {
        // The service sees who calls and what is to be used, as the gateway and Spendgate say, and the call itself as it was sent.
        let seen = gateway.call(app, ADA, &FORGED).await.ok();
        assert_eq!((&seen["method"], &seen["body"]), (&json!("POST"), &json!("{\"model\": \"?\"}")));
        assert_eq!(seen["uri"], "/v1/chat/completions?stream=1");
        let header = |seen: &Value, name: &str| seen["headers"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!((header(&seen, "x-user-id"), header(&seen, "x-spendgate-model")), ("ada".to_owned(), "gpt-4o".to_owned()));
        assert_eq!(header(&seen, "x-spendgate-action"), "ALLOW");
        assert_ne!(header(&seen, "x-spendgate-key"), ADMIN_KEY, "the key leaves the gateway");
        // A model that nobody named is none, whatever the client calls the answer.
        let seen = gateway.call(app, ADA, &[("x-spendgate-model", "forged")]).await.ok();
        assert_eq!(header(&seen, "x-spendgate-model"), "");
        // On DEGRADE it is the cheaper one.
        app.put("/v1/users/ada", json!({"tier": "pro", "reason": "test"})).await.ok();
        app.spend("a", "ada", "1").await;
        let seen = gateway.call(app, ADA, &FORGED).await.ok();
        assert_eq!(
            (header(&seen, "x-spendgate-action"), header(&seen, "x-spendgate-model")),
            ("DEGRADE".to_owned(), "gpt-4o-mini".to_owned())
        );
        // Bob has nothing left, and cannot call in another one's name; others go on.
        app.spend("b", "bob", "0.10").await;
        let calls = gateway.service.calls();
        for headers in [&FORGED[..], &[("x-user-id", "ada")], &[]] {
            let blocked = gateway.call(app, BOB, headers).await;
            assert_eq!(blocked.status, 402, "{}", blocked.text);
            let decision = blocked.json();
            assert_eq!((&decision["action"], &decision["reason"]), (&json!("BLOCK"), &json!("budget_exhausted")));
            let url = app.check("bob").await["upgrade_url"].clone();
            assert!(url.as_str().is_some_and(|url| url.starts_with("https://spend.example.com/upgrade")), "{url}");
            assert_eq!(decision["upgrade_url"], url);
            assert_eq!(blocked.headers["x-spendgate-upgrade-url"], url.as_str().unwrap());
            assert_eq!(blocked.headers["retry-after"], "43200");
        }
        for token in ["", "token-of-nobody"] {
            assert_eq!(gateway.call(app, token, &[("x-user-id", "ada")]).await.status, 401);
        }
        assert_eq!(gateway.service.calls(), calls, "a call that was refused came through");
        gateway.call(app, ADA, &[]).await.ok();
        assert_eq!(gateway.service.calls(), calls + 1);
    })
    .await;
}

async fn fails_closed(kind: Kind) {
    behind(kind, async |app, gateway| {
        gateway.call(app, ADA, &[]).await.ok();
        // A key that Spendgate does not take lets nobody pass.
        let wrong = Gateway::start(kind, app.address(), "sg_of_nobody").await;
        let refused = wrong.call(app, ADA, &[]).await;
        assert!(matches!(refused.status, 401 | 503), "{}: {}", refused.status, refused.text);
        assert_eq!(wrong.service.calls(), 0);
        // The store is away, and the tier blocks then.
        rename(app, &ALL_TABLES, true).await;
        app.advance(chrono::TimeDelta::days(1));
        let blocked = gateway.call(app, ADA, &[]).await;
        assert_eq!((blocked.status, &blocked.json()["reason"]), (503, &json!("store_unavailable")));
        assert_eq!(blocked.headers["retry-after"], "1");
        rename(app, &ALL_TABLES, false).await;
        gateway.call(app, ADA, &[]).await.ok();
        // Spendgate itself is away.
        app.stop().await;
        let calls = gateway.service.calls();
        let blocked = gateway.call(app, ADA, &[]).await;
        assert_eq!((blocked.status, &blocked.json()["action"]), (503, &json!("BLOCK")));
        assert_eq!((gateway.service.calls(), &blocked.headers["retry-after"]), (calls, &"1".parse().unwrap()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_lets_pass_what_is_allowed_and_blocks_the_rest() {
    passes_and_blocks(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_lets_pass_what_is_allowed_and_blocks_the_rest() {
    passes_and_blocks(Kind::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_lets_nobody_pass_while_nothing_can_be_decided() {
    fails_closed(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_lets_nobody_pass_while_nothing_can_be_decided() {
    fails_closed(Kind::Caddy).await;
}
