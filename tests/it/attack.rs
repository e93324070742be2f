//! Whatever a client sends: the answer is the client's own fault, says which and where, and afterwards the service is as it was. Each kind
//! of attack has a control, which is let in.

mod amounts;
mod bodies;
mod fields;
mod ids;
mod signatures;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{ADMIN_KEY, Answer, TestApp};

/// What every attack is drawn from: the same on each run.
const SEED: u64 = 0x5eed;

/// A body's door: method, path, the most bytes that it takes, and a body that it takes. `N` stands for a number of the request's own.
struct Door {
    method: &'static str,
    path: &'static str,
    limit: usize,
    good: &'static str,
}

const KIB: usize = 1024;
const DOORS: [Door; 11] = [
    Door {
        method: "POST",
        path: "/v1/enforcement",
        limit: 1024 * KIB,
        good: r#"{"user_id": "u", "model": "gpt-4o", "provider": "openai", "estimated_cost": 0.01, "metadata": {"a": 1}, "input_tokens": 10,
            "output_tokens": 10, "cached_input_tokens": 1, "cache_write_tokens": 1, "audio_input_tokens": 1, "reasoning_tokens": 1,
            "audio_output_tokens": 1, "images": 1, "hold": true, "id": "q-N", "ttl_seconds": 60, "if_short": "refuse"}"#,
    },
    Door {
        method: "POST",
        path: "/v1/usage",
        limit: 8 * 1024 * KIB,
        good: r#"{"id": "i-N", "user_id": "u", "cost": 0.000001, "model": "gpt-4o", "provider": "openai", "time": "2026-01-12T11:00:00Z",
            "metadata": {"a": 1}, "input_tokens": 10, "output_tokens": 10, "cached_input_tokens": 1, "cache_write_tokens": 1,
            "audio_input_tokens": 1, "reasoning_tokens": 1, "audio_output_tokens": 1, "images": 1}"#,
    },
    Door {
        method: "POST",
        path: "/v1/corrections",
        limit: 64 * KIB,
        good: r#"{"id": "c-N", "user_id": "spender", "amount": 0.000001, "reason": "r", "time": "2026-01-12T11:00:00Z", "model": "gpt-4o"}"#,
    },
    Door {
        method: "POST",
        path: "/v1/holds",
        limit: 64 * KIB,
        good: r#"{"id": "h-N", "user_id": "u", "estimated_cost": 0.000001, "model": "gpt-4o", "provider": "openai", "metadata": {"a": 1},
            "ttl_seconds": 60, "if_short": "reduce", "input_tokens": 10, "output_tokens": 10}"#,
    },
    Door {
        method: "POST",
        path: "/v1/holds/held/capture",
        limit: 64 * KIB,
        good: r#"{"cost": 0.000001, "model": "gpt-4o", "provider": "openai", "metadata": {"a": 1}, "input_tokens": 10, "output_tokens": 10}"#,
    },
    Door { method: "POST", path: "/v1/holds/long/extend", limit: 64 * KIB, good: r#"{"ttl_seconds": 60}"# },
    Door {
        method: "PUT",
        path: "/v1/users/u",
        limit: 64 * KIB,
        good: r#"{"stripe_customer": "cus_of_u", "tier": "enterprise", "ends_at": "2026-02-01T00:00:00Z", "reason": "r"}"#,
    },
    Door {
        method: "PUT",
        path: "/v1/users/u/caps",
        limit: 64 * KIB,
        good: r#"{"daily": 1000, "weekly": 1000, "monthly": 1000, "billing": 1000, "total": 1000}"#,
    },
    Door {
        method: "POST",
        path: "/v1/users/granted-N/grants",
        limit: 64 * KIB,
        good: r#"{"id": "g-N", "amount": 1, "period": "daily", "ends_at": "2026-02-01T00:00:00Z", "reason": "r"}"#,
    },
    Door { method: "PUT", path: "/v1/accounts/acme", limit: 64 * KIB, good: r#"{"stripe_customer": "cus_of_acme", "reason": "r"}"# },
    Door {
        method: "POST",
        path: "/v1/simulate",
        limit: 4 * 1024 * KIB,
        good: r#"{"user_id": "u", "tiers": "default_tier: free\ntiers: { free: { rank: 0, budgets: { daily: 1 }, policy: strict } }",
            "prices": "models: { gpt-4o: { input: 1, output: 1 } }", "since": "2026-01-01T00:00:00Z"}"#,
    },
];

impl Door {
    async fn send(&self, app: &TestApp, number: u32, body: impl Into<reqwest::Body>) -> Answer {
        let path = self.path.replace('N', &number.to_string());
        app.send(app.client.request(self.method.parse().unwrap(), app.url(&path)).bearer_auth(ADMIN_KEY).body(body)).await
    }

    fn good(&self, number: u32) -> String {
        self.good.replace("-N", &format!("-{number}"))
    }
}

/// What the good bodies need to be there: money spent, and two holds.
async fn prepare(app: &TestApp) {
    app.put("/v1/users/u", r#"{"tier": "enterprise", "reason": "r"}"#).await.ok();
    let spent = r#"{"id": "spent", "user_id": "spender", "cost": 1000, "model": "gpt-4o", "time": "2026-01-12T11:00:00Z"}"#;
    app.post("/v1/usage", spent).await.ok();
    for id in ["held", "long"] {
        let held =
            app.post("/v1/holds", format!(r#"{{"id": "{id}", "user_id": "u", "estimated_cost": 0.01, "ttl_seconds": 86400}}"#)).await.ok();
        assert_eq!(held["hold"]["state"], "open");
    }
}

/// A refusal by which a caller can mend his request: 4xx, a problem with a code, and the field where one is wrong.
#[track_caller]
fn refused(answer: &Answer, what: &str) -> Value {
    let what: String = what.chars().take(300).collect();
    assert!((400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.text);
    let problem = answer.problem(answer.status, answer.json()["code"].as_str().unwrap_or_else(|| panic!("{what}: {}", answer.text)));
    assert!(
        answer.status != 422 || problem["field"].is_string() || problem["detail"].as_str().unwrap().starts_with("the list has"),
        "{what}: {problem}"
    );
    problem
}

/// After an attack: the service answers, and its books are right.
async fn goes_on(app: &TestApp) {
    app.send(app.client.get(app.url("/readyz"))).await.ok();
    app.spend("after-the-attack", "after", "0.05").await;
    assert_eq!(app.check("after").await["budgets"][0]["spent"], 0.05);
    let told = app.verify();
    assert!(told.contains(" 0 disagreements"), "{told}");
}

/// A request as it is written, for what no client would send. `None`: the connection was cut without an answer.
async fn raw(app: &TestApp, request: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(app.address()).await.unwrap();
    // The service may have answered, and cut, before all is written.
    drop(stream.write_all(request).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}

/// A GET of a target as it is written.
async fn raw_get(app: &TestApp, target: &str) -> Option<(u16, String)> {
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n");
    raw(app, head.as_bytes()).await
}
