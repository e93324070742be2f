//! Alerts reach their endpoints: each at least once, in order, whatever fails.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};
use spendgate::alerts::{Settings, endpoints, networks};
use spendgate::config::Config;

use crate::app::{Database, TIERS, TestApp};
use crate::stripe_client::serve;

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Arrived {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Whoever is told, and answers as a test wants it.
#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    manner: Arc<Mutex<Manner>>,
}

/// How a receiver answers the next request; `None` is never.
type Manner = Arc<dyn Fn(&Arrived) -> Option<Response> + Send + Sync>;

pub fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::from("ok")).unwrap()
}

impl Receiver {
    /// One that takes everything.
    pub async fn start() -> Self {
        let (arrived, manner) =
            (Arc::<Mutex<Vec<Arrived>>>::default(), Arc::new(Mutex::new(Arc::new(|_: &Arrived| Some(status(200))) as Manner)));
        let (seen, answers) = (arrived.clone(), manner.clone());
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let one = Arrived { path: uri.to_string(), headers, body };
            let manner = answers.lock().unwrap().clone();
            let answer = manner(&one);
            seen.lock().unwrap().push(one);
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending::<Response>().await,
                }
            }
        });
        Self { url: serve(router).await, arrived, manner }
    }

    pub fn answers(&self, manner: impl Fn(&Arrived) -> Option<Response> + Send + Sync + 'static) {
        *self.manner.lock().unwrap() = Arc::new(manner);
    }

    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    pub fn ids(&self) -> Vec<String> {
        self.arrived().iter().map(|arrived| arrived.header("webhook-id").to_owned()).collect()
    }

    pub async fn until(&self, count: usize) {
        while self.arrived().len() < count {
            tokio::task::yield_now().await;
        }
    }
}

/// As the settings would be read.
pub fn settings(webhooks: &str, allowed: &str) -> Settings {
    let allowed = networks(allowed).unwrap();
    let signed = webhooks.split(',').filter(|part| !part.contains("=slack+")).filter_map(|part| part.split_once('='));
    let secrets: Vec<String> = signed.map(|(name, _)| format!("{name}={SECRET}")).collect();
    let endpoints = endpoints(webhooks, &secrets.join(","), &allowed).unwrap();
    // So long that no machine is too slow.
    Settings { endpoints, allowed, deadline: Duration::from_hours(24), tells: false }
}

/// A service that tells these receivers, on each database.
pub async fn on_each(names: &[&str], test: impl AsyncFn(&mut TestApp, &[Receiver])) {
    for database in Database::ALL {
        let receivers = join_all(names.iter().map(|_| Receiver::start())).await;
        let named = names.iter().zip(&receivers).map(|(name, receiver)| format!("{name}={}/{name}", receiver.url));
        let settings = settings(&named.collect::<Vec<_>>().join(","), "127.0.0.0/8");
        let mut app = TestApp::start(database, TIERS, |config| Config { alerts: settings.clone(), ..config }).await;
        test(&mut app, &receivers).await;
        app.stop().await;
    }
}

/// Raises so many alerts, a second apart, and gives their ids in this order.
pub async fn raise(app: &TestApp, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let model = format!("unheard-of-{number}");
        app.advance(TimeDelta::seconds(1));
        app.get(&format!("/v1/users/u/enforcement?model={model}&input_tokens=1")).await.ok();
        ids.push(raised(app, |alert| alert["details"]["model"] == model.as_str()).await["alert_id"].as_str().unwrap().to_owned());
    }
    ids
}

/// The latest alert of a kind, once it is there: some are raised in the background.
pub async fn raised(app: &TestApp, which: impl Fn(&Value) -> bool) -> Value {
    loop {
        let alerts = app.get("/v1/alerts?limit=1000").await.ok();
        if let Some(alert) = alerts["alerts"].as_array().unwrap().iter().find(|alert| which(alert)) {
            return alert.clone();
        }
        tokio::task::yield_now().await;
    }
}

pub async fn shown(app: &TestApp, id: &str) -> Value {
    app.get(&format!("/v1/alerts/{id}")).await.ok()
}

/// Tells until nothing is due.
pub async fn tell(app: &TestApp) {
    while app.teller().step().await.unwrap() != 0 {}
}

/// One call does not read all that there are, however few of them are asked for.
#[tokio::test]
async fn a_list_of_some_alerts_looks_through_so_many_for_each_page() {
    crate::app::on_each_database(TIERS, async |app| {
        // One more than a page looks through, and the oldest is the one that is looked for.
        app.execute(
            "INSERT INTO outbox (alert_id, alert_key, kind, user_id, message, details, created_at, spread_at) \
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001) \
             SELECT 'alert_' || CAST(i AS TEXT), 'key ' || CAST(i AS TEXT), 'budget_threshold', \
             CASE i WHEN 1 THEN 'ann' ELSE 'bob' END, '', '{}', 1768219200000000 + i, 1 FROM n",
        )
        .await;
        let page = async |query: &str| {
            let page = app.get(&format!("/v1/alerts?{query}")).await.ok();
            (page["alerts"].as_array().unwrap().len(), page["next_cursor"].as_str().map(ToOwned::to_owned))
        };
        let (found, next) = page("user_id=ann").await;
        assert_eq!(found, 0);
        assert_eq!(page(&format!("user_id=ann&cursor={}", next.unwrap())).await, (1, None));
        let (found, next) = page("user_id=bob&limit=1000").await;
        assert_eq!((found, next.is_some()), (1000, true));
        let (found, next) = page("limit=3").await;
        assert_eq!((found, next.is_some()), (3, true));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_is_told_to_each_endpoint_once_and_in_order_whatever_the_number_of_nodes() {
    const ALERTS: usize = 25;
    on_each(&["a", "b"], async |app, receivers| {
        let ids = raise(app, ALERTS).await;
        let nodes = if app.is_postgres() { vec![app.node(|config| config).await, app.node(|config| config).await] } else { Vec::new() };
        let tellers: Vec<_> = [app.teller(), app.teller()].into_iter().chain(nodes.iter().map(|node| node.teller())).collect();
        loop {
            let tries: usize = join_all(tellers.iter().map(|teller| teller.step())).await.into_iter().map(Result::unwrap).sum();
            if tries == 0 {
                break;
            }
        }
        for receiver in receivers {
            assert_eq!(receiver.ids(), ids);
        }
        let listed = app.get("/v1/alerts?limit=1000&state=delivered").await.ok();
        assert_eq!(listed["alerts"].as_array().unwrap().len(), ALERTS);
        drop(tellers);
        for mut node in nodes {
            node.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_fails_for_three_days_is_given_up_and_told_again_on_demand() {
    on_each(&["ops"], async |app, receivers| {
        let [receiver] = receivers else { panic!("one") };
        let id = raise(app, 1).await.remove(0);
        receiver.answers(|_| Some(status(500)));
        let began = app.now();
        let pauses = [5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600];
        for (tries, seconds) in (1..).zip(pauses) {
            tell(app).await;
            let delivery = shown(app, &id).await["deliveries"][0].clone();
            assert_eq!(
                (&delivery["state"], &delivery["tries"], &delivery["error"]),
                (&json!("waiting"), &json!(tries), &json!("status 500"))
            );
            let next: DateTime<Utc> = delivery["next_try_at"].as_str().unwrap().parse().unwrap();
            let pause = next - app.now();
            assert!(TimeDelta::seconds(seconds) <= pause && pause <= TimeDelta::seconds(seconds) * 11 / 10, "try {tries}: {pause}");
            assert_eq!(receiver.arrived().len(), tries);
            app.advance(pause);
        }
        assert!(TimeDelta::days(3) < app.now() - began && app.now() - began < TimeDelta::days(4));
        tell(app).await;
        app.advance(TimeDelta::days(9));
        tell(app).await;
        let alert = shown(app, &id).await;
        assert_eq!((&alert["state"], &alert["deliveries"][0]["next_try_at"]), (&json!("parked"), &Value::Null), "{alert}");
        assert_eq!(app.get("/v1/alerts?state=parked").await.ok()["alerts"], json!([alert]));
        assert_eq!(receiver.arrived().len(), 10);
        let redeliver = format!("/v1/alerts/{id}/redeliver");
        assert_eq!(app.post(&redeliver, json!({"endpoint": "nobody"})).await.problem(422, "invalid_field")["field"], "endpoint");
        assert_eq!(app.post(&redeliver, json!({"endpiont": "ops"})).await.problem(422, "unknown_field")["field"], "endpiont");
        app.post("/v1/alerts/alert_none/redeliver", "").await.problem(404, "alert_not_found");
        app.get("/v1/alerts/alert_none").await.problem(404, "alert_not_found");
        receiver.answers(|_| Some(status(204)));
        let again = app.post(&redeliver, "").await.ok();
        assert_eq!((&again["state"], &again["deliveries"][0]["tries"]), (&json!("waiting"), &json!(0)), "{again}");
        tell(app).await;
        let told = shown(app, &id).await;
        let delivery = &told["deliveries"][0];
        assert_eq!((&told["state"], &delivery["tries"], &delivery["error"]), (&json!("delivered"), &json!(1), &Value::Null), "{told}");
        // Once more, though it went well.
        app.post(&redeliver, json!({"endpoint": "ops"})).await.ok();
        tell(app).await;
        assert_eq!(receiver.ids(), vec![id; 12]);
        let attempts: Vec<String> = receiver.arrived().iter().map(|arrived| arrived.header("webhook-timestamp").to_owned()).collect();
        assert!(attempts.is_sorted() && attempts[0] != attempts[9], "the time of the try, and not of the alert");
        assert!(receiver.arrived().windows(2).all(|pair| pair[0].body == pair[1].body));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_the_sending_and_its_note_leads_to_a_repeat_under_the_same_id() {
    on_each(&["ops"], async |app, receivers| {
        let [receiver] = receivers else { panic!("one") };
        let id = raise(app, 1).await.remove(0);
        receiver.answers(|_| None);
        let teller = app.teller();
        let sending = tokio::spawn(async move { teller.step().await });
        receiver.until(1).await;
        sending.abort();
        assert!(sending.await.unwrap_err().is_cancelled());
        receiver.answers(|_| Some(status(200)));
        app.restart().await;
        // Another process waits until the lease of the one that is gone has ended.
        tell(app).await;
        assert_eq!(receiver.arrived().len(), if app.is_postgres() { 1 } else { 2 });
        app.advance(TimeDelta::minutes(2));
        tell(app).await;
        assert_eq!(receiver.ids(), [id.clone(), id.clone()]);
        assert_eq!(shown(app, &id).await["state"], "delivered");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_holds_up_no_other_one_and_a_refused_alert_no_later_one() {
    on_each(&["dead", "alive"], async |app, receivers| {
        let [dead, alive] = receivers else { panic!("two") };
        let ids = raise(app, 5).await;
        dead.answers(|_| None);
        let first = ids[0].clone();
        alive.answers(move |arrived| Some(status(if arrived.header("webhook-id") == first { 400 } else { 200 })));
        let running = tokio::spawn(app.teller().run());
        while shown(app, &ids[4]).await["deliveries"][0]["state"] != "delivered" {
            tokio::task::yield_now().await;
        }
        running.abort();
        assert_eq!((alive.ids(), dead.ids()), (ids.clone(), vec![ids[0].clone()]));
        let refused = shown(app, &ids[0]).await;
        assert_eq!(refused["deliveries"][0]["endpoint"], "alive");
        assert_eq!(refused["deliveries"][0]["error"], "status 400", "{refused}");
    })
    .await;
}

#[tokio::test]
async fn who_is_gone_is_not_asked_again_and_who_asks_for_a_pause_has_it() {
    on_each(&["gone", "busy"], async |app, receivers| {
        let [gone, busy] = receivers else { panic!("two") };
        let id = raise(app, 1).await.remove(0);
        gone.answers(|_| Some(status(410)));
        busy.answers(|_| Some(Response::builder().status(429).header("retry-after", "3600").body(Body::empty()).unwrap()));
        tell(app).await;
        let alert = shown(app, &id).await;
        assert_eq!(alert["state"], "waiting");
        let [busy, gone] = alert["deliveries"].as_array().unwrap().as_slice() else { panic!("two") };
        assert_eq!((&gone["state"], &gone["tries"]), (&json!("parked"), &json!(1)));
        assert_eq!(busy["next_try_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap(), app.now() + TimeDelta::hours(1));
    })
    .await;
}

#[tokio::test]
async fn alerts_are_listed_with_how_far_they_came_and_told_to_nobody_where_there_is_nobody() {
    on_each(&[], async |app, _| {
        app.post("/v1/alerts/test", "").await.problem(409, "no_alert_endpoint");
        let ids = raise(app, 5).await;
        app.post(&format!("/v1/alerts/{}/redeliver", ids[0]), "").await.problem(409, "no_alert_endpoint");
        assert_eq!(shown(app, &ids[0]).await["state"], "waiting");
        tell(app).await;
        let first = shown(app, &ids[0]).await;
        assert_eq!(
            first,
            json!({"alert_id": ids[0], "kind": "unpriced_model", "type": "model.unpriced", "user_id": null,
                "message": "The model \"unheard-of-0\" has no price; add it to prices.yaml", "details": {"model": "unheard-of-0"},
                "created_at": "2026-01-12T12:00:01Z", "state": "none", "deliveries": []})
        );
        let page = async |query: &str| {
            let (mut found, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("/v1/alerts?{query}{cursor}")).await.ok();
                found.extend(page["alerts"].as_array().unwrap().iter().map(|alert| alert["alert_id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_cursor"].as_str() else { return found };
                cursor = format!("&cursor={next}");
            }
        };
        let latest_first: Vec<String> = ids.iter().rev().cloned().collect();
        for query in ["limit=2", "limit=5", "kind=unpriced_model&state=none", "limit=1&state=none"] {
            assert_eq!(page(query).await, latest_first, "{query}");
        }
        for query in ["kind=drift", "user_id=u", "state=delivered", "state=waiting"] {
            assert!(page(query).await.is_empty(), "{query}");
        }
        for (query, field) in
            [("kind=x", "kind"), ("state=x", "state"), ("user_id=", "user_id"), ("limit=0", "limit"), ("cursor=x", "cursor")]
        {
            assert_eq!(app.get(&format!("/v1/alerts?{query}")).await.problem(422, "invalid_field")["field"], field);
        }
        assert_eq!(app.get("/v1/alerts?knid=drift").await.problem(422, "unknown_field")["field"], "knid");
    })
    .await;
}

#[tokio::test]
async fn old_alerts_go_but_for_what_waits_and_for_windows_that_are_open() {
    on_each(&["ops"], async |app, receivers| {
        let [receiver] = receivers else { panic!("one") };
        let ids = raise(app, 2).await;
        let waiting = ids[1].clone();
        receiver.answers(move |arrived| Some(status(if arrived.header("webhook-id") == waiting { 500 } else { 200 })));
        tell(app).await;
        let at = app.now().timestamp_micros();
        for (id, end) in [("closed", "\"2026-01-13T00:00:00Z\""), ("open", "\"2027-01-01T00:00:00Z\""), ("never", "null")] {
            app.execute(&format!(
                "INSERT INTO outbox (alert_id, alert_key, kind, message, details, created_at, spread_at) VALUES \
                 ('{id}', '{id}', 'budget_threshold', 'm', '{{\"window\": {{\"start\": null, \"end\": {end}}}}}', {at}, {at}); \
                 INSERT INTO deliveries (alert_id, endpoint, delivered_at) VALUES ('{id}', 'ops', {at})"
            ))
            .await;
        }
        // One that goes to somebody who was in the settings once.
        app.execute(&format!(
            "INSERT INTO outbox (alert_id, alert_key, kind, message, details, created_at, spread_at) VALUES ('stray', 's', 'test', 'm', '{{}}', {at}, {at}); \
             INSERT INTO deliveries (alert_id, endpoint, due_at) VALUES ('stray', 'old', {at})"
        ))
        .await;
        let all = async || {
            let alerts = app.get("/v1/alerts?limit=1000").await.ok();
            let mut ids: Vec<String> = alerts["alerts"].as_array().unwrap().iter().map(|alert| alert["alert_id"].as_str().unwrap().to_owned()).collect();
            ids.sort_unstable();
            ids
        };
        app.advance(TimeDelta::hours(23));
        app.teller().tidy().await.unwrap();
        assert_eq!(shown(app, "stray").await["state"], "waiting");
        app.advance(TimeDelta::hours(2));
        app.teller().tidy().await.unwrap();
        let stray = shown(app, "stray").await;
        assert_eq!((&stray["state"], &stray["deliveries"][0]["error"]), (&json!("parked"), &json!("no endpoint of this name is configured")));
        app.advance(TimeDelta::days(88));
        app.teller().tidy().await.unwrap();
        assert_eq!(all().await.len(), 6, "nothing is old enough");
        app.advance(TimeDelta::days(1));
        app.teller().tidy().await.unwrap();
        let mut left = ["never".to_owned(), "open".to_owned(), ids[1].clone()];
        left.sort_unstable();
        assert_eq!(all().await, left);
        assert_eq!(app.column("SELECT alert_id FROM deliveries ORDER BY alert_id").await.len(), 3);
    })
    .await;
}
