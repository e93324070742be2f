//! Killed at any instant under load, the next start has every acknowledged write, once.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::app::{ADMIN_KEY, TestApp};

const KILLS: u64 = 5;
const CALLERS: u64 = 16;

struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn start(folder: &Path, port: u16) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder)
            .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
            .env("ADMIN_API_KEY", ADMIN_KEY)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What one caller sends, by its number; the same number is the same body.
fn request(number: u64) -> (&'static str, Value) {
    let user = format!("u{}", number % 7);
    match number % 3 {
        0 => ("/v1/usage", json!({"id": format!("r{number}"), "user_id": user, "cost": "0.000000001"})),
        1 => {
            let list = (0..5).map(|part| json!({"id": format!("r{number}-{part}"), "user_id": user, "cost": "0.000000001"}));
            ("/v1/usage", Value::from_iter(list))
        }
        _ => ("/v1/holds", json!({"id": format!("r{number}"), "user_id": user, "estimated_cost": "0.000000001", "ttl_seconds": 86_400})),
    }
}

async fn post(client: &reqwest::Client, url: &str, number: u64) -> Option<Value> {
    let (path, body) = request(number);
    let response = client.post(format!("{url}{path}")).bearer_auth(ADMIN_KEY).body(body.to_string()).send().await.ok()?;
    let good = response.status().is_success();
    let body = response.bytes().await.ok()?;
    good.then(|| serde_json::from_slice(&body).unwrap())
}

fn was_there(answer: &Value) -> bool {
    answer.get("results").map_or(answer, |results| &results[0])["repeated"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_a_kill_once() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = TestApp::client();
    let next = AtomicU64::new(0);
    let (mut in_flight_lost, mut acknowledged_in_all) = (0, 0);
    for kill in 0..KILLS {
        let mut service = Service::start(folder.path(), port);
        let (acknowledged, unanswered) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        // The moment of the kill is a number of acknowledgements, not a time: a slow machine kills as deep in the load as a fast one.
        let enough = 40 + 37 * kill;
        let (reached, wait) = tokio::sync::oneshot::channel();
        let reached = Mutex::new(Some(reached));
        let caller = async || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                match post(&client, &service.url, number).await {
                    Some(_) => {
                        let mut acknowledged = acknowledged.lock().unwrap();
                        acknowledged.push(number);
                        if enough <= u64::try_from(acknowledged.len()).unwrap()
                            && let Some(reached) = reached.lock().unwrap().take()
                        {
                            reached.send(service.child.id()).unwrap();
                        }
                    }
                    None => return unanswered.lock().unwrap().push(number),
                }
            }
        };
        let killer = async {
            let pid = wait.await.unwrap();
            Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        };
        let callers = futures_util::future::join_all((0..CALLERS).map(|_| caller()));
        futures_util::future::join(callers, killer).await;
        service.kill();
        let (acknowledged, unanswered) = (acknowledged.into_inner().unwrap(), unanswered.into_inner().unwrap());
        let mut service = Service::start(folder.path(), port);
        for number in &acknowledged {
            let answer = post(&client, &service.url, *number).await.unwrap();
            assert!(was_there(&answer), "kill {kill}: {number} was acknowledged and is gone: {answer}");
        }
        // The control: what was in flight may be there or not. If nothing ever was lost, the kills came when nothing was done.
        for number in &unanswered {
            in_flight_lost += u64::from(!was_there(&post(&client, &service.url, *number).await.unwrap()));
        }
        acknowledged_in_all += acknowledged.len();
        service.kill();
        let verify = Command::new(env!("CARGO_BIN_EXE_spendgate")).arg("verify").current_dir(folder.path()).output().unwrap();
        assert!(verify.status.success(), "kill {kill}: {}", String::from_utf8_lossy(&verify.stdout));
    }
    assert!(0 < in_flight_lost, "the harness is void: no kill caught anything in flight");
    assert!(500 < acknowledged_in_all, "{acknowledged_in_all}");
}
