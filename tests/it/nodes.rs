//! Many nodes on one Postgres are as exact as one.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use spendgate::config::Config;
use spendgate::fake_stripe::Options;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::sync::reconcile::{CompareError, Mode};
use sqlx::Connection;

use crate::app::{Answer, Database, Node, TIERS, TestApp};
use crate::asking::Story;
use crate::stripe::{paying, subscription, updated};

async fn two() -> (TestApp, Node) {
    let one = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    let other = one.node(|config| config).await;
    (one, other)
}

fn hold(id: &str, user: &str, cost: &str) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_writes_the_very_next_check_on_every_node_sees() {
    let (one, other) = two().await;
    let spent = async |node: &TestApp| node.check("u").await["budgets"][0]["spent"].clone();
    for round in 1..=9_u32 {
        let (writes, reads) = if round % 2 == 0 { (&one, &*other) } else { (&*other, &one) };
        writes.spend(&format!("{round}"), "u", "0.01").await;
        let expected = json!(f64::from(round) / 100.0);
        assert_eq!((spent(reads).await, spent(writes).await), (expected.clone(), expected));
    }
    // A hold, its end, and a tier.
    one.post("/v1/holds", hold("h", "u", "0.01")).await.ok();
    assert_eq!(other.check("u").await["budgets"][0]["held"], 0.01);
    other.post("/v1/holds/h/capture", json!({"cost": 0.01})).await.ok();
    assert_eq!((one.check("u").await["budgets"][0]["held"].clone(), one.check("u").await["action"].clone()), (json!(0), json!("BLOCK")));
    other.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
    assert_eq!((one.check("u").await["tier"].clone(), one.check("u").await["action"].clone()), (json!("pro"), json!("ALLOW")));
    assert_eq!(one.get("/v1/holds/h").await.ok()["state"], "captured");
    assert!(one.verify().contains(" 0 disagreements"));
}

/// How many of many holds that come to several nodes at once are admitted, and what each answered.
async fn at_once(nodes: &[&TestApp], count: usize, user: impl Fn(usize) -> String) -> Vec<Answer> {
    let ask = |number: usize| {
        let user = user(number);
        let (node, body) = (nodes[number % nodes.len()], hold(&format!("{user}-{number}"), &user, "0.01"));
        async move { node.post("/v1/holds", body).await }
    };
    join_all((0..count).map(ask)).await
}

fn admitted(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.ok()["action"] != "BLOCK").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_on_many_nodes_for_a_user_whom_nobody_knows() {
    let (one, other) = two().await;
    let third = one.node(|config| config).await;
    for round in 0..10 {
        let user = format!("u{round}");
        let answers = at_once(&[&one, &other, &third], 60, |_| user.clone()).await;
        assert_eq!(admitted(&answers), 10);
        assert_eq!(third.check(&user).await["budgets"][0]["held"], 0.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_for_all_users_holds_on_many_nodes_and_is_reached() {
    let tiers = format!("global: {{ budgets: {{ daily: 0.5 }}, policy: strict }}\n{TIERS}");
    let one = TestApp::start(Database::Postgres, &tiers, |config| config).await;
    let other = one.node(|config| config).await;
    let answers = at_once(&[&one, &other], 200, |number| format!("u{}", number % 40)).await;
    assert_eq!(admitted(&answers), 50);
    // What is captured goes from held to spent, whoever looks and when.
    let capture = async |number: usize, answer: &Answer| {
        if answer.json()["action"] != "BLOCK" {
            one.post(&format!("/v1/holds/u{}-{number}/capture", number % 40), json!({"cost": "0.01"})).await.ok();
        }
    };
    join_all(answers.iter().enumerate().map(|(number, answer)| capture(number, answer))).await;
    let check = other.check("nobody").await;
    let global = check["budgets"].as_array().unwrap().iter().find(|budget| budget["scope"] == "global").unwrap().clone();
    assert_eq!((&global["spent"], &global["held"], &check["action"]), (&json!(0.5), &json!(0), &json!("BLOCK")));
    assert!(one.verify().contains(" 0 disagreements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_on_many_nodes_at_once_is_one_record_and_another_body_under_it_is_refused() {
    let (one, other) = two().await;
    for round in 0..20 {
        let body = |user: &str| json!({"id": format!("r{round}"), "user_id": user, "cost": "0.000001"});
        let nodes = [&one, &*other, &one, &*other];
        let answers = join_all(nodes.map(|node| node.post("/v1/usage", body("u")))).await;
        assert_eq!(answers.iter().filter(|answer| answer.ok()["repeated"] == false).count(), 1, "{round}");
        // For two users at once: one of them has it.
        let body = |user: &str| json!({"id": format!("s{round}"), "user_id": user, "cost": "0.000001"});
        let (for_one, for_other) = tokio::join!(one.post("/v1/usage", body("v")), other.post("/v1/usage", body("w")));
        let mut statuses = [for_one.status, for_other.status];
        statuses.sort_unstable();
        assert_eq!((statuses[0], statuses[1] < 500 && 400 <= statuses[1]), (200, true), "{} {}", for_one.text, for_other.text);
    }
    assert_eq!(one.user("u").await["lifetime"]["entries"], 20);
    let both =
        one.user("v").await["lifetime"]["entries"].as_i64().unwrap_or(0) + one.user("w").await["lifetime"]["entries"].as_i64().unwrap_or(0);
    assert_eq!(both, 20);
    assert!(one.verify().contains(" 0 disagreements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_name_each_others_users_and_accounts_stop_nobody() {
    let (one, other) = two().await;
    for account in 0..3 {
        for user in 0..4 {
            one.put(&format!("/v1/accounts/a{account}/users/u{}", account * 4 + user), "").await.ok();
        }
    }
    let post = |number: usize| {
        let node = if number.is_multiple_of(2) { &one } else { &*other };
        // Some forwards, some backwards.
        let users = (0..12).map(|step| if number.is_multiple_of(3) { step } else { 11 - step });
        let records: Vec<Value> =
            users.map(|user| json!({"id": format!("{number}-{user}"), "user_id": format!("u{user}"), "cost": "0.000001"})).collect();
        async move { node.post("/v1/usage", json!(records)).await.ok() }
    };
    join_all((0..120).map(post)).await;
    for user in 0..12 {
        assert_eq!(other.user(&format!("u{user}")).await["lifetime"]["entries"], 120);
    }
    assert!(one.verify().contains(" 0 disagreements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn within_max_staleness_memory_answers_and_news_come_at_once() {
    let stale = |config: Config| Config { max_staleness: TimeDelta::seconds(10), ..config };
    let one = TestApp::start(Database::Postgres, TIERS, stale).await;
    let other = one.node(stale).await;
    let silent = one.node(|config| Config { max_staleness: TimeDelta::zero(), ..config }).await;
    let spent = async |node: &TestApp| node.check("u").await["budgets"][0]["spent"].clone();
    // A node that tells nobody: what is kept holds as long as it may, and no longer. A node that has just begun to listen forgets what it
    // keeps once more.
    let mut nanos = 0;
    let is_kept = async |nanos: &mut u32| {
        let before = spent(&other).await;
        *nanos += 1;
        silent.spend(&format!("silent-{nanos}"), "u", "0.000001").await;
        (spent(&other).await == before).then_some(before)
    };
    let mut kept = None;
    while kept.is_none() && nanos < 1000 {
        kept = is_kept(&mut nanos).await;
    }
    let (kept, is) = (kept.expect("nothing is ever kept"), spent(&silent).await);
    assert_ne!(kept, is);
    one.advance(TimeDelta::milliseconds(9_999));
    assert_eq!(spent(&other).await, kept);
    one.advance(TimeDelta::milliseconds(1));
    assert_eq!(spent(&other).await, is);
    // A node that tells: at once, though nothing has aged.
    let sees = async |expected: Value, node: &TestApp| {
        // Not a measure: only so that a failure ends.
        let seen = async {
            while spent(node).await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("it was told");
    };
    one.spend("c", "u", "0.01").await;
    sees(spent(&silent).await, &other).await;
    one.put("/v1/users/u", json!({"tier": "pro", "reason": "test"})).await.ok();
    let tier = async {
        while other.check("u").await["tier"] != "pro" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), tier).await.expect("it was told");
    // What is told while nobody listens is not missed: everything is forgotten.
    while is_kept(&mut nanos).await.is_none() {
        assert!(nanos < 1000, "nothing is kept any more");
    }
    let listening =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()";
    assert_eq!(one.column(listening).await, ["2"]);
    sees(spent(&silent).await, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_out_what_stripe_is_asked_and_one_at_a_time_compares() {
    let story = Story::begin(Database::Postgres, Options::default()).await;
    let (app, fake) = (&story.app, &story.fake);
    let other = app.node(|config| config).await;
    let customers: Vec<String> = (0..40).map(|user| fake.create_customer(&[("user_id", &format!("u{user}"))])).collect();
    for customer in &customers {
        fake.subscribe(customer, &[("price_pro", Some(1))], "active");
    }
    // The nodes ask by themselves as soon as the first nudge is there; whoever is asked about is asked about by one.
    story.deliver(Weather::CALM, 0).await;
    let (one, two) = (app.asker(), other.asker());
    let (first, second) = tokio::join!(one.rest(), two.rest());
    first.unwrap();
    second.unwrap();
    for user in 0..40 {
        assert_eq!(other.check(&format!("u{user}")).await["tier"], "pro");
    }
    // Each event asks for one question at most, whatever the number of nodes.
    let told = app.get("/v1/events?limit=1000").await.ok()["events"].as_array().unwrap().len();
    let asked = usize::try_from(fake.call_count("GET /v1/subscriptions")).unwrap();
    assert!((40..=told).contains(&asked), "{asked} questions after {told} events");
    // Who compares keeps the others from it until he is done, or gone for a while.
    let (mine, others) = (app.reconciler(), other.reconciler());
    drop(mine.begin(Mode::Mend).await.unwrap());
    let refused = others.begin(Mode::Mend).await.unwrap_err();
    assert!(matches!(refused, CompareError::Elsewhere), "{refused}");
    app.advance(TimeDelta::minutes(2));
    others.once().await.unwrap();
    mine.once().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_in_the_account_that_another_node_has_put_the_user_in() {
    let (one, other) = two().await;
    for id in ["a", "b"] {
        // The second one is added to what is remembered of him.
        one.spend(id, "u", "0.01").await;
    }
    other.put("/v1/accounts/acme/users/u", "").await.ok();
    one.spend("c", "u", "0.02").await;
    assert_eq!(one.column("SELECT spent FROM spend_by_day_of_account").await, ["20000000"]);
    assert!(one.verify().contains(" 0 disagreements"));
}

/// Usage says nothing of who pays, so it must not make what is remembered of that fresher.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_spends_all_the_time_has_his_new_tier_within_max_staleness() {
    let stale = |config: Config| Config { max_staleness: TimeDelta::seconds(10), ..config };
    let one = TestApp::start(Database::Postgres, TIERS, stale).await;
    let silent = one.node(|config| Config { max_staleness: TimeDelta::zero(), ..config }).await;
    one.put("/v1/users/u", json!({"stripe_customer": "cus_u", "reason": "test"})).await.ok();
    one.spend("first", "u", "0.000001").await;
    assert_eq!(one.check("u").await["tier"], "free");
    let [_, subscribed] = paying("u", "price_pro");
    silent.apply(subscribed).await;
    assert_eq!(silent.check("u").await["tier"], "pro");
    for second in 0..10 {
        one.spend(&format!("s{second}"), "u", "0.000001").await;
        one.advance(TimeDelta::seconds(1));
    }
    assert_eq!(one.check("u").await["tier"], "pro");
}

async fn retried(node: &TestApp) -> u64 {
    node.get("/readyz").await.ok()["retried_batches"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_in_each_others_way_try_again_and_nobody_is_told() {
    let (one, other) = two().await;
    let third = one.node(|config| config).await;
    let nodes = [&one, &*other, &*third];
    let ask = async |round: usize, number: usize| {
        let node = nodes[number % nodes.len()];
        // A user whom nobody knows is made by all of them at once, and so is one hold.
        let (user, cost) = (format!("u{round}"), "0.000001");
        node.post("/v1/usage", json!({"id": format!("{round}-{number}"), "user_id": user, "cost": cost})).await.ok();
        node.post("/v1/holds", hold(&format!("h{round}"), &user, cost)).await.ok();
        node.post(&format!("/v1/holds/h{round}/capture"), json!({"cost": cost})).await.ok();
    };
    for round in 0..30 {
        join_all((0..12).map(|number| ask(round, number))).await;
        assert_eq!(other.user(&format!("u{round}")).await["lifetime"]["entries"], 13);
    }
    let retries = retried(&one).await + retried(&other).await + retried(&third).await;
    assert!(0 < retries, "nobody was in anybody's way");
    assert!(one.verify().contains(" 0 disagreements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_finds_another_node_in_its_way_is_tried_twenty_times_again_and_no_more() {
    const AGAIN: u64 = 20;
    let app = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    app.spend("first", "known", "0.01").await;
    app.execute(
        "CREATE SEQUENCE tried; CREATE TABLE in_the_way (times BIGINT NOT NULL); INSERT INTO in_the_way VALUES (0); \
         CREATE FUNCTION in_the_way() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
         IF nextval('tried') <= (SELECT times FROM in_the_way) THEN RAISE 'in the way' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER in_the_way BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION in_the_way()",
    )
    .await;
    let mut before = retried(&app).await;
    // A sequence counts what was rolled back too.
    let is_in_the_way = async |times: u64| {
        app.execute(&format!("SELECT setval('tried', 1, false); UPDATE in_the_way SET times = {times}")).await;
    };
    for (id, user) in [("a", "known"), ("b", "new")] {
        is_in_the_way(AGAIN).await;
        app.spend(id, user, "0.01").await;
        assert_eq!(retried(&app).await, before + AGAIN, "{user}");
        before += AGAIN;
        // For ever: whoever asks is told to come again, and the id makes it count once.
        is_in_the_way(1_000_000).await;
        let record = json!({"id": format!("{id}-late"), "user_id": user, "cost": "0.02"});
        app.post("/v1/usage", record.clone()).await.problem(503, "store_unavailable");
        assert_eq!(app.column("SELECT last_value FROM tried").await, [(AGAIN + 1).to_string()]);
        is_in_the_way(0).await;
        assert_eq!(app.post("/v1/usage", record).await.ok()["repeated"], false);
        before += AGAIN + 1;
        assert_eq!(retried(&app).await, before, "{user}");
    }
    assert_eq!(
        (app.user("known").await["lifetime"].clone(), app.user("new").await["lifetime"].clone()),
        (json!({"spent": 0.04, "entries": 3}), json!({"spent": 0.03, "entries": 2}))
    );
    assert!(app.verify().contains(" 0 disagreements"));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_has_as_long_as_it_takes_to_read_everything() {
    let app = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    app.spend("r", "u", "0.01").await;
    app.execute(
        "CREATE FUNCTION has_time() RETURNS BOOLEAN LANGUAGE plpgsql AS $$ BEGIN \
         IF current_setting('statement_timeout') <> '0' THEN RAISE 'it would be ended'; END IF; RETURN true; END $$; \
         ALTER VIEW counted_rows RENAME TO counted; CREATE VIEW counted_rows AS SELECT * FROM counted WHERE has_time()",
    )
    .await;
    assert!(app.verify().contains(" 1 entries"), "the harness is void: nothing is read");
}

/// Holds what `statement` locks, until it is dropped.
async fn locked(app: &TestApp, statement: &'static str) -> sqlx::PgConnection {
    let mut lock = sqlx::PgConnection::connect(&app.database().url()).await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut lock).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut lock).await.unwrap();
    lock
}

async fn somebody_waits(app: &TestApp) {
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while app.column(waiting).await != ["1"] {
        tokio::task::yield_now().await;
    }
}

/// A hold is extended by one node while somebody else has a lock, and expires meanwhile: whoever has the lock may give what is free by then to
/// another hold.
async fn is_not_extended_where_it_waits_for(tiers: &str, lock: &'static str) {
    let one = TestApp::start(Database::Postgres, tiers, |config| config).await;
    let other = one.node(|config| config).await;
    one.post("/v1/holds", json!({"id": "h", "user_id": "u", "estimated_cost": "0.10", "ttl_seconds": 60})).await.ok();
    let lock = locked(&one, lock).await;
    let extended = other.post("/v1/holds/h/extend", json!({"ttl_seconds": 600}));
    tokio::pin!(extended);
    tokio::select! {
        answer = &mut extended => panic!("it did not wait: {}", answer.text),
        () = somebody_waits(&one) => one.advance(TimeDelta::seconds(61)),
    }
    drop(lock);
    extended.await.problem(409, "hold_ended");
    assert_ne!(one.post("/v1/holds", hold("h2", "u", "0.10")).await.ok()["action"], "BLOCK");
    assert_eq!(one.check("u").await["budgets"][0]["held"], 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_expired_while_its_user_was_waited_for_is_not_extended() {
    is_not_extended_where_it_waits_for(TIERS, "SELECT 1 FROM users WHERE user_id = 'u' FOR UPDATE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_one_that_expired_while_all_users_were_waited_for() {
    let tiers = format!("global: {{ budgets: {{ daily: 0.5 }}, policy: strict }}\n{TIERS}");
    is_not_extended_where_it_waits_for(&tiers, "SELECT pg_advisory_xact_lock(7305807313)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_only_spends_is_told_of_the_budgets_that_he_has_by_now() {
    let (one, other) = two().await;
    for event in paying("u", "price_pro") {
        one.apply(event).await;
    }
    // It remembers him as one who pays; his own row does not change when he no longer does.
    for number in 0..2 {
        one.spend(&format!("before-{number}"), "u", "0.02").await;
    }
    other.apply(updated(2, subscription("cus_u", "canceled", "price_pro"))).await;
    one.advance(TimeDelta::minutes(2));
    let told = async || one.get("/v1/alerts?kind=budget_threshold").await.ok()["alerts"].as_array().unwrap().len();
    assert_eq!(told().await, 0);
    one.spend("after", "u", "0.07").await;
    // It is looked at once the answer is given.
    while told().await == 0 {
        tokio::task::yield_now().await;
    }
}
