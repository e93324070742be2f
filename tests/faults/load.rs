//! Callers who write as fast as they are answered, and remember what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use spendgate::stripe::signature::Secret;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::door;
use crate::service::{ADMIN_KEY, Service, WEBHOOK_SECRET};

const CALLERS: usize = 16;
const USERS: usize = 7;
/// Records in a list; with their metadata a list is a good many pages, so that the log is written back into its database meanwhile.
const LIST: u64 = 20;
const METADATA_BYTES: usize = 3500;
/// Records, lists, holds, events.
const KINDS: u64 = 4;
const WEBHOOK: &str = "/webhooks/stripe";
/// A request that takes longer hangs. The store waits five seconds for a connection, and nothing here is a reason to wait for one.
const HANGS_AFTER: Duration = Duration::from_secs(4);
/// How long anything here may take before the harness is void.
const VOID_AFTER: Duration = Duration::from_secs(120);
/// A second, in steps: polls of an answer, and the pause after each.
const POLLS: u32 = 20;
const BETWEEN_POLLS: Duration = Duration::from_millis(50);

/// What callers were told since the last check, by the numbers of their requests.
#[derive(Default)]
pub struct Told {
    pub acknowledged: Vec<u64>,
    /// Answered with 503.
    pub refused: Vec<u64>,
    /// Not answered: the connection broke.
    pub broken: Vec<u64>,
}

/// What a check found.
pub struct Found {
    /// Requests without a good answer that are not there. They need not be.
    pub lost: usize,
    pub refused: usize,
}

pub struct Load {
    client: reqwest::Client,
    next: AtomicU64,
    told: watch::Sender<Told>,
    /// How many requests the checks so far have found or brought to be there: all those with smaller numbers than this.
    settled: AtomicU64,
    /// How many acknowledgements there were when the last fault began.
    before: AtomicUsize,
}

enum Answer {
    Acknowledged(Value),
    Refused,
    Broken,
}

/// Callers at work. They end by themselves when the service is gone.
pub struct Callers {
    enough: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Waits until the service is gone for each of them.
    pub async fn ended(self) {
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    /// Lets each of them take its last answer.
    pub async fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.ended().await;
    }
}

impl Load {
    pub fn new() -> Arc<Self> {
        Self::that_waits(HANGS_AFTER)
    }

    /// Whoever waits longer than `hangs_after` hangs.
    pub fn that_waits(hangs_after: Duration) -> Arc<Self> {
        let client = door::client().timeout(hangs_after).build().unwrap();
        Arc::new(Self {
            client,
            next: AtomicU64::new(0),
            told: watch::Sender::new(Told::default()),
            settled: AtomicU64::new(0),
            before: AtomicUsize::new(0),
        })
    }

    pub fn start(self: &Arc<Self>, service: &Service) -> Callers {
        let enough = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (load, url, enough) = (self.clone(), service.url.clone(), enough.clone());
            tokio::spawn(async move { while !enough.load(Ordering::Relaxed) && load.call(&url).await.is_some() {} })
        };
        let tasks = (0..CALLERS).map(caller).collect();
        Callers { enough, tasks }
    }

    /// Sends the next request, and remembers the answer. `None` where the connection broke, else whether it was acknowledged.
    async fn call(&self, url: &str) -> Option<bool> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(url, number).await;
        if let Answer::Acknowledged(answer) = &answer {
            assert!(!was_there(answer), "{number} was never sent before: {answer}");
        }
        self.told.send_modify(|told| match &answer {
            Answer::Acknowledged(_) => told.acknowledged.push(number),
            Answer::Refused => told.refused.push(number),
            Answer::Broken => told.broken.push(number),
        });
        match answer {
            Answer::Acknowledged(_) => Some(true),
            Answer::Refused => Some(false),
            Answer::Broken => None,
        }
    }

    /// Waits until callers were told so much: a slow machine breaks as deep in the load as a fast one.
    pub async fn until(&self, enough: impl Fn(&Told) -> bool) {
        let mut told = self.told.subscribe();
        let reached = tokio::time::timeout(VOID_AFTER, told.wait_for(|told| enough(told))).await;
        drop(reached.expect("the harness is void: the load did not get so far").unwrap());
    }

    /// Waits until so many more were acknowledged.
    pub async fn until_more(&self, count: usize) {
        let now = self.told.borrow().acknowledged.len();
        self.until(|told| now + count <= told.acknowledged.len()).await;
    }

    /// To be called at the moment before a fault.
    pub fn begins(&self) {
        self.before.store(self.told.borrow().acknowledged.len(), Ordering::Relaxed);
    }

    /// The first success after a fault has ended comes within a second.
    pub async fn is_taken_again(&self, service: &Service) {
        for _ in 0..POLLS {
            if self.call(&service.url).await.expect("the service is gone") {
                return;
            }
            tokio::time::sleep(BETWEEN_POLLS).await;
        }
        panic!("nothing was written within a second, though the disk was well again");
    }

    /// Everybody was answered, and another process sees each acknowledged row at once, whatever became of the others.
    pub fn is_seen_beside(&self, service: &Service) {
        let seen = service.verify();
        let told = self.told.borrow();
        assert!(told.broken.is_empty(), "the service gave no answer to {:?}", told.broken);
        let least = (0..self.settled.load(Ordering::Relaxed)).chain(told.acknowledged.iter().copied()).map(entries).sum();
        let most = least + told.refused.iter().copied().map(entries).sum::<u64>();
        assert!((least..=most).contains(&seen), "{seen} entries are seen, {least} were acknowledged, and at most {most} can be there");
    }

    /// Checks, after a start and with nobody else calling, that each acknowledged write is there once. What was not acknowledged is
    /// sent again, as callers do, so that in the end everything is there.
    pub async fn check(&self, service: &Service, after: &str) -> Found {
        let Told { acknowledged, refused, broken } = self.told.send_replace(Told::default());
        let booked = self.booked(service).await;
        let mut gone = Vec::new();
        for (place, number) in acknowledged.iter().enumerate() {
            if !was_there(&self.repeat(service, *number).await) {
                gone.push((place, *number));
            }
        }
        // Where they stand among the answers tells what went wrong: the last ones, or a stretch, and before or after the fault began.
        let (all, before) = (acknowledged.len(), self.before.load(Ordering::Relaxed));
        assert!(
            gone.is_empty(),
            "{after}: of {all} acknowledgements, {before} before the fault began, these (place, number) are gone: {gone:?}"
        );
        let mut expected = [0; USERS];
        for number in (0..self.settled.load(Ordering::Relaxed)).chain(acknowledged) {
            expected[user(number)] += entries(number);
        }
        let mut absent = Vec::new();
        for number in refused.iter().chain(&broken) {
            match was_there(&self.repeat(service, *number).await) {
                true => expected[user(*number)] += entries(*number),
                false => absent.push(*number),
            }
        }
        assert_eq!(booked, expected, "{after}: entries of each user, as found and as they must be");
        for number in &absent {
            expected[user(*number)] += entries(*number);
        }
        assert_eq!(self.booked(service).await, expected, "{after}: entries of each user, once everything was sent again");
        assert_eq!(service.verify(), expected.iter().sum::<u64>(), "{after}: entries that another process sees");
        self.settled.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        Found { lost: absent.len(), refused: refused.len() }
    }

    /// What the service says of each user's lifetime. Every record costs a nano-dollar, so entries and dollars must agree.
    async fn booked(&self, service: &Service) -> [u64; USERS] {
        let mut booked = [0; USERS];
        for (user, booked) in booked.iter_mut().enumerate() {
            let request = self.client.get(format!("{}/v1/users/u{user}", service.url)).bearer_auth(ADMIN_KEY);
            let body = request.send().await.unwrap().bytes().await.unwrap();
            let answer: Value = serde_json::from_slice(&body).unwrap();
            *booked = answer["lifetime"]["entries"].as_u64().unwrap_or_else(|| panic!("{answer}"));
            let spent: f64 = format!("{booked}e-9").parse().unwrap();
            assert_eq!(answer["lifetime"]["spent"].as_f64(), Some(spent), "{answer}");
        }
        booked
    }

    /// Grants each user so much beyond his tier's budget that never resets.
    pub async fn grant(&self, service: &Service, nanos: u64) {
        for user in 0..USERS {
            let body =
                json!({"id": "g", "amount": format!("0.{nanos:09}"), "period": "total", "ends_at": "9999-01-01T00:00:00Z", "reason": "x"});
            let request = self.client.post(format!("{}/v1/users/u{user}/grants", service.url)).bearer_auth(ADMIN_KEY);
            assert_eq!(request.body(body.to_string()).send().await.unwrap().status(), 200);
        }
    }

    /// What is used of each user's grant is what he spent beyond his limit, as far as the grant lasts. Gives how many are used up.
    pub async fn check_grants(&self, service: &Service, limit: u64, nanos: u64) -> usize {
        let mut used_up = 0;
        for (user, spent) in self.booked(service).await.into_iter().enumerate() {
            let request = self.client.get(format!("{}/v1/users/u{user}/grants", service.url)).bearer_auth(ADMIN_KEY);
            let body = request.send().await.unwrap().bytes().await.unwrap();
            let answer: Value = serde_json::from_slice(&body).unwrap();
            let used = nanos.min(spent.saturating_sub(limit));
            let expected: f64 = format!("{used}e-9").parse().unwrap();
            assert_eq!(answer["grants"][0]["used"].as_f64(), Some(expected), "u{user} spent {spent}: {answer}");
            used_up += usize::from(used == nanos);
        }
        used_up
    }

    async fn repeat(&self, service: &Service, number: u64) -> Value {
        match self.post(&service.url, number).await {
            Answer::Acknowledged(answer) => answer,
            Answer::Refused => panic!("{number} is refused, though nothing fails"),
            Answer::Broken => panic!("{number} is not answered, though nothing fails"),
        }
    }

    /// Whatever fails below it, the service acknowledges or refuses: it says nothing else, and it does not hang.
    async fn post(&self, url: &str, number: u64) -> Answer {
        let (path, body) = request(number);
        let (request, body) = (self.client.post(format!("{url}{path}")), body.to_string());
        let request = if path == WEBHOOK {
            let secret = Secret::new(WEBHOOK_SECRET).unwrap();
            request.header("stripe-signature", secret.sign(body.as_bytes(), chrono::Utc::now()))
        } else {
            request.bearer_auth(ADMIN_KEY)
        };
        let request = request.body(body);
        let answer = async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
        };
        let (status, body) = match answer.await {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => panic!("{number} hangs: {error}"),
            Err(_) => return Answer::Broken,
        };
        match status {
            200 => {
                let answer: Value = serde_json::from_slice(&body).unwrap();
                assert!(answer.get("hold").is_none_or(|hold| !hold.is_null()), "{number} fits every limit: {answer}");
                Answer::Acknowledged(answer)
            }
            503 => Answer::Refused,
            _ => panic!("{number} is answered {status}: {}", String::from_utf8_lossy(&body)),
        }
    }
}

/// What one caller sends, by its number: the same number is the same body. Records, lists, holds and Stripe's events take turns.
fn request(number: u64) -> (&'static str, Value) {
    let user = format!("u{}", user(number));
    match number % KINDS {
        0 => ("/v1/usage", json!({"id": format!("r{number}"), "user_id": user, "cost": "0.000000001"})),
        1 => {
            let metadata = json!({"note": "x".repeat(METADATA_BYTES)});
            let id = |part: u64| format!("r{number}-{part}");
            let record = |part| json!({"id": id(part), "user_id": user, "cost": "0.000000001", "metadata": metadata});
            ("/v1/usage", Value::from_iter((0..LIST).map(record)))
        }
        2 => ("/v1/holds", json!({"id": format!("r{number}"), "user_id": user, "estimated_cost": "0.000000001", "ttl_seconds": 86_400})),
        _ => {
            let customer = json!({"id": format!("cus_{number}"), "object": "customer", "metadata": {}});
            let event = json!({"id": format!("evt_{number}"), "object": "event", "created": 1_767_225_600, "type": "customer.created", "livemode": false,
                "data": {"object": customer}});
            (WEBHOOK, event)
        }
    }
}

fn user(number: u64) -> usize {
    usize::try_from(number).unwrap() % USERS
}

/// The entries that a request makes: a hold makes none, nor an event.
fn entries(number: u64) -> u64 {
    [1, LIST, 0, 0][usize::try_from(number % KINDS).unwrap()]
}

/// Whether the request had been booked before, as a whole or not at all.
fn was_there(answer: &Value) -> bool {
    let results = answer["results"].as_array().map_or(std::slice::from_ref(answer), Vec::as_slice);
    let there = results.iter().filter(|result| result["repeated"] == true || result["duplicate"] == true).count();
    assert!(there == 0 || there == results.len(), "half of a list was there: {answer}");
    there != 0
}
