//! Processes that share one Postgres, put under load beside each other: every limit holds, every limit is reached, and what was
//! acknowledged counts once.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::door::{Door, cents};
use crate::servers::Server;
use crate::service::Service;

/// Cents that may be spent in all time, so that no midnight falls into it. The hot user fills his own while there is room for all, and
/// the others fill what all have before they fill theirs.
const OF_A_USER: u64 = 2_000;
const OF_ALL: u64 = 6_000;
const TIERS: &str = "
default_tier: free
global: { budgets: { total: 60 }, policy: strict }
tiers:
  free: { rank: 0, monthly_price: 0, prices: [price_free], budgets: { total: 20 }, policy: strict }
";

const HOT: &str = "hot";
const OTHERS: u64 = 6;
/// So many that two batches seldom name the same one: nothing but the limit for all makes them wait for each other.
const STRANGERS: u64 = 307;
const CALLERS_OF_A_NODE: u64 = 8;
/// What a caller asks for before he waits for the others.
const ASKS: usize = 40;
/// Of cents.
const COSTS: [u64; 3] = [3, 5, 7];
const SMALLEST: u64 = 3;
/// Requests at once where their order says nothing.
const AT_ONCE: usize = 24;

/// Processes on one database; each has its own folder.
struct Nodes {
    services: Vec<Service>,
    doors: Vec<Door>,
    _folders: Vec<TempDir>,
    _server: Server,
}

impl Nodes {
    fn start(count: usize) -> Self {
        let server = Server::make(&["shared_buffers = 32MB"]);
        let url = format!("postgres://postgres@{}/postgres", server.host());
        let folders: Vec<TempDir> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let start = |folder: &TempDir| {
            fs::write(folder.path().join("tiers.yaml"), TIERS).unwrap();
            Service::start(folder.path(), &[("DATABASE_URL", Path::new(&url))])
        };
        let services: Vec<Service> = folders.iter().map(start).collect();
        Self { doors: services.iter().map(Door::of).collect(), services, _folders: folders, _server: server }
    }

    /// Another one for each number.
    fn door(&self, number: u64) -> &Door {
        &self.doors[usize::try_from(number).unwrap() % self.doors.len()]
    }

    /// Each of them agrees, and sees so many entries.
    fn verify(&self, entries: usize) {
        for service in &self.services {
            assert_eq!(service.verify(), u64::try_from(entries).unwrap());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Left,
    Released,
    Captured(u64),
}

/// A hold that was admitted, and what became of it, as its caller was told.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    number: u64,
    end: End,
}

impl Admitted {
    /// What counts against the limits.
    fn used(&self) -> u64 {
        match self.end {
            End::Left => cost(self.number),
            End::Released => 0,
            End::Captured(cost) => cost,
        }
    }
}

/// For whom callers ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// Half of all asks are for one user.
    Hot,
    /// Each is asked for now and then.
    Strangers,
}

impl Whom {
    fn user(self, number: u64) -> String {
        match self {
            Self::Hot if number.is_multiple_of(2) => HOT.to_owned(),
            Self::Hot => format!("u{}", number / 2 % OTHERS),
            Self::Strangers => format!("u{}", number % STRANGERS),
        }
    }

    fn all(self) -> Vec<String> {
        let count = match self {
            Self::Hot => 2 * OTHERS,
            Self::Strangers => STRANGERS,
        };
        let users: BTreeSet<String> = (0..count).map(|number| self.user(number)).collect();
        users.into_iter().collect()
    }

    fn hold(self, number: u64) -> Value {
        let (id, user, cost) = (format!("h{number}"), self.user(number), dollars(cost(number)));
        json!({"id": id, "user_id": user, "estimated_cost": cost, "ttl_seconds": 86_400})
    }
}

fn cost(number: u64) -> u64 {
    COSTS[usize::try_from(number % 3).unwrap()]
}

fn dollars(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// How a hold is to end, and by which request.
fn ending(number: u64) -> (End, Option<(String, Value)>) {
    let request = |what: &str, body| Some((format!("/v1/holds/h{number}/{what}"), body));
    // Of each four for one user and one cost, one ends in each way.
    match number / 12 % 4 {
        0 => (End::Left, None),
        1 => (End::Released, request("release", json!({}))),
        2 => (End::Captured(cost(number)), request("capture", json!({"cost": dollars(cost(number))}))),
        // Less than was held: the rest is there for others.
        _ => (End::Captured(cost(number) - 2), request("capture", json!({"cost": dollars(cost(number) - 2)}))),
    }
}

fn is_admitted(answer: &Value) -> bool {
    assert_eq!(answer["repeated"], false, "{answer}");
    // Whoever looks, and whenever: no budget has more in it than fits.
    for budget in answer["budgets"].as_array().unwrap() {
        assert!(cents(&budget["spent"]) + cents(&budget["held"]) <= cents(&budget["limit"]), "{answer}");
    }
    assert_eq!(answer["hold"].is_null(), answer["action"] == "BLOCK", "{answer}");
    !answer["hold"].is_null()
}

/// Asks a node, and settles with another one, until it has asked so often.
async fn call(nodes: Arc<Nodes>, whom: Whom, next: Arc<AtomicU64>, node: u64) -> Vec<Admitted> {
    let mut admitted = Vec::new();
    for _ in 0..ASKS {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if !is_admitted(&nodes.door(node).post("/v1/holds", &whom.hold(number)).await) {
            continue;
        }
        let (end, request) = ending(number);
        if let Some((path, body)) = request {
            let answer = nodes.door(node + 1).post(&path, &body).await;
            assert_eq!(answer["repeated"], false, "{answer}");
        }
        admitted.push(Admitted { number, end });
    }
    admitted
}

/// All callers of all nodes at once, again and again, until nobody was admitted while nobody gave anything back.
async fn fill(nodes: &Arc<Nodes>, whom: Whom) -> Vec<Admitted> {
    let (next, mut all) = (Arc::new(AtomicU64::new(0)), Vec::new());
    loop {
        let callers = 0..u64::try_from(nodes.doors.len()).unwrap() * CALLERS_OF_A_NODE;
        let calls: Vec<_> = callers.map(|caller| tokio::spawn(call(nodes.clone(), whom, next.clone(), caller))).collect();
        let admitted: Vec<Admitted> = join_all(calls).await.into_iter().flat_map(Result::unwrap).collect();
        if admitted.is_empty() {
            return all;
        }
        all.extend(admitted);
    }
}

fn sum(admitted: &[Admitted], of: impl Fn(&Admitted) -> u64) -> u64 {
    admitted.iter().map(of).sum()
}

fn spent(admitted: &[Admitted]) -> u64 {
    sum(admitted, |admitted| if matches!(admitted.end, End::Captured(_)) { admitted.used() } else { 0 })
}

fn held(admitted: &[Admitted]) -> u64 {
    sum(admitted, |admitted| if admitted.end == End::Left { admitted.used() } else { 0 })
}

fn captures(admitted: &[Admitted]) -> usize {
    admitted.iter().filter(|admitted| matches!(admitted.end, End::Captured(_))).count()
}

/// What `node` says of a budget: (spent, held).
async fn budget(node: &Door, user: &str, scope: &str) -> (u64, u64) {
    let check = node.get(&format!("/v1/users/{user}/enforcement")).await;
    let budget = check["budgets"].as_array().unwrap().iter().find(|budget| budget["scope"] == scope);
    let budget = budget.unwrap_or_else(|| panic!("{check}"));
    (cents(&budget["spent"]), cents(&budget["held"]))
}

/// Whether it is there once, as it was acknowledged: its own request, sent to another node, finds it.
async fn is_there_once(nodes: &Nodes, whom: Whom, admitted: &Admitted) {
    let number = admitted.number;
    let again = nodes.door(number).post("/v1/holds", &whom.hold(number)).await;
    assert_eq!((&again["repeated"], cents(&again["hold"]["amount"])), (&json!(true), cost(number)), "{again}");
    if let (_, Some((path, body))) = ending(number) {
        let again = nodes.door(number + 1).post(&path, &body).await;
        assert_eq!(again["repeated"], true, "{again}");
    }
}

/// Fills the limits from all nodes, checks everything, and gives the nodes and what was admitted.
async fn limits_hold_and_are_reached(count: usize, whom: Whom) -> (Arc<Nodes>, Vec<Admitted>) {
    let nodes = Arc::new(Nodes::start(count));
    let admitted = fill(&nodes, whom).await;
    let mut by_user: HashMap<String, Vec<Admitted>> = whom.all().into_iter().map(|user| (user, Vec::new())).collect();
    for one in &admitted {
        by_user.get_mut(&whom.user(one.number)).unwrap().push(*one);
    }
    // By what was acknowledged, whatever the service says of it: each limit holds, and there is no room for one more.
    let all = sum(&admitted, Admitted::used);
    assert!(all <= OF_ALL && OF_ALL - all < SMALLEST, "all have {all} of {OF_ALL}");
    for (user, mine) in &by_user {
        let used = sum(mine, Admitted::used);
        assert!(used <= OF_A_USER, "{user} has {used} of {OF_A_USER}");
        for node in &nodes.doors {
            let refused = node.post("/v1/holds", &json!({"id": "one-more", "user_id": user, "estimated_cost": dollars(SMALLEST)})).await;
            assert_eq!((&refused["action"], &refused["hold"]), (&json!("BLOCK"), &Value::Null), "{refused}");
        }
    }
    // Every node says the same of every budget.
    for node in &nodes.doors {
        for (user, mine) in &by_user {
            assert_eq!(budget(node, user, "user").await, (spent(mine), held(mine)), "{user}");
        }
        assert_eq!(budget(node, HOT, "global").await, (spent(&admitted), held(&admitted)));
    }
    // What was acknowledged is there, and nothing else.
    for (user, mine) in &by_user {
        let list = nodes.doors[0].list(&format!("/v1/holds?user_id={user}"), "holds").await;
        let listed: HashMap<&str, &str> = list.iter().map(|hold| (hold["id"].as_str().unwrap(), hold["state"].as_str().unwrap())).collect();
        assert_eq!((list.len(), listed.len()), (mine.len(), mine.len()), "{user}");
        for Admitted { number, end } in mine {
            let state = match end {
                End::Left => "open",
                End::Released => "released",
                End::Captured(_) => "captured",
            };
            assert_eq!(listed.get(&*format!("h{number}")), Some(&state), "h{number}");
        }
    }
    stream::iter(&admitted).for_each_concurrent(AT_ONCE, |admitted| is_there_once(&nodes, whom, admitted)).await;
    nodes.verify(captures(&admitted));
    (nodes, admitted)
}

/// The same for a user for whom half of all asks are.
async fn a_hot_user_fills_his_limit(count: usize) {
    let (nodes, admitted) = limits_hold_and_are_reached(count, Whom::Hot).await;
    let his: Vec<Admitted> = admitted.iter().copied().filter(|admitted| Whom::Hot.user(admitted.number) == HOT).collect();
    let used = sum(&his, Admitted::used);
    assert!(used <= OF_A_USER && OF_A_USER - used < SMALLEST, "the hot user has {used} of {OF_A_USER}");
    // The control: his holds have ended in each way; seven cents only by all that was held, one only by less.
    for end in [End::Left, End::Released, End::Captured(7), End::Captured(1)] {
        assert!(his.iter().any(|admitted| admitted.end == end), "the harness is void: no hold is {end:?}");
    }
    usage_counts_once(&nodes, spent(&his), captures(&admitted)).await;
}

/// Plain usage of the hot user from all nodes, where a part of it comes to two nodes at once.
async fn usage_counts_once(nodes: &Nodes, spent: u64, entries: usize) {
    const RECORDS: u64 = 600;
    let before = |node: Value| (cents(&node["lifetime"]["spent"]), node["lifetime"]["entries"].as_u64().unwrap());
    let (spent_before, entries_before) = before(nodes.doors[0].get(&format!("/v1/users/{HOT}")).await);
    assert_eq!(spent_before, spent);
    let cost = |number: u64| 1 + number % 9;
    let record = |number: u64| json!({"id": format!("r{number}"), "user_id": HOT, "cost": dollars(cost(number))});
    let send = async |number: u64| {
        let body = record(number);
        let answers = if number.is_multiple_of(5) {
            let (one, other) = tokio::join!(nodes.door(number).post("/v1/usage", &body), nodes.door(number + 1).post("/v1/usage", &body));
            vec![one, other]
        } else {
            vec![nodes.door(number).post("/v1/usage", &body).await]
        };
        assert_eq!(answers.iter().filter(|answer| answer["repeated"] == false).count(), 1, "{answers:?}");
    };
    stream::iter(0..RECORDS).for_each_concurrent(AT_ONCE, send).await;
    for node in &nodes.doors {
        let (spent, entries) = before(node.get(&format!("/v1/users/{HOT}")).await);
        assert_eq!((spent, entries), (spent_before + (0..RECORDS).map(cost).sum::<u64>(), entries_before + RECORDS));
    }
    let listed = nodes.doors[0].list(&format!("/v1/users/{HOT}/usage"), "entries").await;
    let records: HashMap<&str, u64> = listed
        .iter()
        .filter(|entry| entry["kind"] == "usage")
        .map(|entry| (entry["id"].as_str().unwrap(), cents(&entry["cost"])))
        .collect();
    let expected: HashMap<String, u64> = (0..RECORDS).map(|number| (format!("r{number}"), cost(number))).collect();
    assert_eq!(records.len(), expected.len());
    assert!(expected.iter().all(|(id, cost)| records.get(&**id) == Some(cost)), "{records:?}");
    nodes.verify(entries + usize::try_from(RECORDS).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_on_two_nodes_and_are_reached_and_usage_counts_once() {
    a_hot_user_fills_his_limit(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_on_three_nodes_and_are_reached_and_usage_counts_once() {
    a_hot_user_fills_his_limit(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_for_all_holds_on_two_nodes_that_ask_for_different_users_and_is_reached() {
    limits_hold_and_are_reached(2, Whom::Strangers).await;
}
