//! With a key Stripe itself is asked: whatever the events say, in whatever order, the tier ends as Stripe's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::config::StripeConfig;
use spendgate::current::Current;
use spendgate::domain::tiers_file;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::fake_stripe::knobs::Fault;
use spendgate::fake_stripe::{FakeStripe, Generation, Options, PriceSpec};
use spendgate::store::Store;
use spendgate::stripe::client::{Client, Patience};
use spendgate::stripe::key::ApiKey;
use spendgate::sync::asking::Asker;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::app::{Database, HANGS_AFTER, TIERS, TestApp, WEBHOOK_SECRET, prices};
use crate::fake_stripe::deliver;
use crate::stripe_client::serve;

const KEY: &str = "sk_test_fake";
/// Tries at once, and so long that no machine is too slow.
pub const QUICK: Patience = Patience {
    deadline: Duration::from_secs(120),
    answer: Duration::from_secs(60),
    tries: 2,
    pause: Duration::from_millis(1),
    pause_max: Duration::from_millis(1),
    ..Patience::BACKGROUND
};
/// More than any test asks.
pub const NO_PACE: u32 = 1_000_000;
/// Longer than any pause after questions that failed.
const A_WHILE: TimeDelta = TimeDelta::minutes(2);
const PRICES: [&str; 3] = ["price_free", "price_pro", "price_enterprise"];

/// The service, and the Stripe that it asks.
pub struct Story {
    pub app: TestApp,
    pub fake: FakeStripe,
}

/// Tells a story on each database.
pub async fn on_each_story(options: Options, story: impl AsyncFn(Story)) {
    for database in Database::ALL {
        let story = story(Story::begin(database, options.clone()).await);
        tokio::time::timeout(HANGS_AFTER, story).await.expect("it waits for what never comes");
    }
}

impl Story {
    pub async fn begin(database: Database, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_base = format!("http://{}", listener.local_addr().unwrap());
        let app = TestApp::start(database, TIERS, |mut config| {
            let stripe = StripeConfig {
                api_base: api_base.clone(),
                patience: QUICK,
                reconcile_every: None,
                compares: false,
                ..StripeConfig::default()
            };
            config.stripe = StripeConfig { api_key: ApiKey::parse(KEY).ok(), calls_per_second: Some(NO_PACE), ..stripe };
            config
        })
        .await;
        let fake = FakeStripe::new(options, app.shared_clock(), 1);
        let router = fake.router();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake.listen(&app.url("/webhooks/stripe"), WEBHOOK_SECRET);
        for price in PRICES {
            fake.create_product(&format!("prod_{price}"), &[]);
            fake.create_price(price, &format!("prod_{price}"), PriceSpec::monthly(2900));
        }
        fake.calm_deliveries();
        Self { app, fake }
    }

    /// Asks Stripe until nothing is due, however much later.
    pub async fn settle(&self) {
        self.app.asker().rest().await.unwrap();
        self.app.advance(A_WHILE);
        self.app.asker().rest().await.unwrap();
    }

    pub async fn tier(&self, user: &str) -> String {
        self.app.check(user).await["tier"].as_str().unwrap().to_owned()
    }

    pub async fn deliver(&self, weather: Weather, seed: u64) {
        for delivery in self.fake.deliveries(seed, weather) {
            self.app.deliver(&delivery.body).await.ok();
        }
    }
}

/// What Stripe's own objects are worth, told by another hand than the service's: no grace ends here, and nothing is paused.
fn truth(fake: &FakeStripe, customer: &str) -> &'static str {
    let rank = |subscription: &String| {
        let object = fake.object(subscription, Generation::Basil);
        let pays = ["active", "trialing", "past_due"].contains(&object["status"].as_str().unwrap());
        let items = object["items"]["data"].as_array().unwrap().iter();
        let best = items.filter_map(|item| PRICES.iter().position(|price| item["price"]["id"] == *price)).max();
        best.filter(|_| pays).unwrap_or(0)
    };
    let best = fake.subscriptions(customer).iter().map(rank).max().unwrap_or(0);
    ["free", "pro", "enterprise"][best]
}

/// The planted rule: of each subscription the event with the newest `created` wins, and of equal ones the last to arrive.
#[derive(Default)]
struct NewestCreatedWins(HashMap<String, (i64, usize)>);

impl NewestCreatedWins {
    fn hear(&mut self, body: &[u8]) {
        let event: Value = serde_json::from_slice(body).unwrap();
        let object = &event["data"]["object"];
        if object["object"] != "subscription" {
            return;
        }
        let pays = ["active", "trialing", "past_due"].contains(&object["status"].as_str().unwrap());
        let items = object["items"]["data"].as_array().unwrap().iter();
        let best = items.filter_map(|item| PRICES.iter().position(|price| item["price"]["id"] == *price)).max();
        let heard = (event["created"].as_i64().unwrap(), best.filter(|_| pays).unwrap_or(0));
        let known = self.0.entry(object["id"].as_str().unwrap().to_owned()).or_insert(heard);
        if known.0 <= heard.0 {
            *known = heard;
        }
    }

    fn tier(&self, subscriptions: &[String]) -> &'static str {
        let best = subscriptions.iter().filter_map(|id| self.0.get(id)).map(|(_, best)| *best).max().unwrap_or(0);
        ["free", "pro", "enterprise"][best]
    }
}

/// Something happens to a customer at Stripe.
fn happen(fake: &FakeStripe, customer: &str, random: &mut fastrand::Rng) {
    let price = |random: &mut fastrand::Rng| PRICES[random.usize(0..PRICES.len())];
    let all = fake.subscriptions(customer);
    let ended = |id: &String| ["canceled", "incomplete_expired"].contains(&fake.object(id, Generation::Basil)["status"].as_str().unwrap());
    let running: Vec<String> = all.into_iter().filter(|id| !ended(id)).collect();
    let Some(subscription) = running.first().filter(|_| running.len() > 1 || random.u8(0..4) != 0) else {
        let status = ["active", "trialing", "incomplete", "past_due"][random.usize(0..4)];
        fake.subscribe(customer, &[(price(random), Some(1))], status);
        return;
    };
    match random.u8(0..6) {
        0 | 1 => fake.change_items(subscription, &[(price(random), Some(1))]),
        2 => fake.change_items(subscription, &[(price(random), Some(1)), ("price_free", Some(2))]),
        3 => fake.set_status(subscription, ["active", "past_due", "unpaid", "paused"][random.usize(0..4)]),
        4 => fake.cancel(subscription),
        _ => fake.cancel_at_period_end(subscription, random.bool()),
    }
}

const HISTORIES: u64 = 1000;
const FAULTS: [Fault; 4] = [Fault::ServerError, Fault::BadGateway, Fault::TooManyRequests { retry_after: None }, Fault::AnswerLost];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_of_events_the_tier_ends_as_stripes_own() {
    on_each_story(Options { page_max: 2, items_max: 1, ..Options::default() }, async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let mut customers = Vec::new();
        let mut wrong_by_created = 0;
        // Half of them on each.
        for history in (u64::from(app.is_postgres())..HISTORIES).step_by(2) {
            let mut random = fastrand::Rng::with_seed(history);
            let mut planted = NewestCreatedWins::default();
            let users: Vec<String> = (0..1 + history / 2 % 2).map(|number| format!("u{history}-{number}")).collect();
            let theirs: Vec<String> = users.iter().map(|user| fake.create_customer(&[("user_id", user.as_str())])).collect();
            fake.turn(|knobs| (knobs.chance_per_mille, knobs.chances) = (200, FAULTS.to_vec()));
            for step in 0..random.u64(2..6) {
                happen(fake, &theirs[random.usize(0..theirs.len())], &mut random);
                if random.bool() {
                    app.advance(TimeDelta::seconds(1));
                }
                if random.u8(0..3) == 0 {
                    for delivery in fake.deliveries(history * 100 + step, Weather { repeats_max: 1, ..Weather::ROUGH }) {
                        planted.hear(&delivery.body);
                        app.deliver(&delivery.body).await.ok();
                    }
                }
            }
            // What the weather held back comes in the end.
            app.advance(TimeDelta::minutes(1));
            for round in 0.. {
                let rest = fake.deliveries(history * 100 + 50 + round, Weather { shuffle: true, ..Weather::CALM });
                if rest.is_empty() {
                    break;
                }
                for delivery in rest {
                    planted.hear(&delivery.body);
                    app.deliver(&delivery.body).await.ok();
                }
            }
            fake.turn(|knobs| knobs.chance_per_mille = 0);
            let by_created = |customer: &String| planted.tier(&fake.subscriptions(customer)) != truth(fake, customer);
            wrong_by_created += theirs.iter().filter(|customer| by_created(customer)).count();
            customers.extend(users.into_iter().zip(theirs));
        }
        story.settle().await;
        for (user, customer) in &customers {
            assert_eq!(story.tier(user).await, truth(fake, customer), "{user} ({customer})");
        }
        // The control: another rule fails on the same deliveries.
        assert!(10 < wrong_by_created, "the harness is void: the newest `created` was wrong {wrong_by_created} times only");
        let events = app.get("/v1/events?state=queued").await.ok();
        assert_eq!(events["events"], json!([]), "nothing waits any more");
    })
    .await;
}

/// Holds the answers to lists of subscriptions back until it is told to let them go.
async fn held_back(fake: &FakeStripe, arrived: Arc<Notify>, go: Arc<Notify>) -> String {
    let behind = serve(fake.router()).await;
    let client = TestApp::client();
    let answer = move |request: Request| {
        let (client, behind, arrived, go) = (client.clone(), behind.clone(), arrived.clone(), go.clone());
        async move {
            let path = request.uri().path_and_query().unwrap().to_string();
            let asked = client.get(format!("{behind}{path}")).header("authorization", request.headers()["authorization"].clone());
            let answer = asked.send().await.unwrap().bytes().await.unwrap();
            if path.starts_with("/v1/subscriptions") {
                arrived.notify_one();
                go.notified().await;
            }
            Response::new(Body::from(answer))
        }
    };
    serve(Router::new().fallback(answer)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_a_later_one_changes_nothing() {
    on_each_story(Options::default(), async |mut story| {
        let (app, fake) = (&story.app, &story.fake);
        let customer = fake.create_customer(&[("user_id", "u")]);
        let subscription = fake.subscribe(&customer, &[("price_enterprise", Some(1))], "active");
        story.deliver(Weather::CALM, 0).await;
        story.settle().await;
        assert_eq!(story.tier("u").await, "enterprise");
        // Another worker, as on another node: it asks now, and is stopped with Stripe's answer in its hands.
        let (arrived, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let url = held_back(fake, arrived.clone(), go.clone()).await;
        let store = Store::open(&app.database()).await.unwrap();
        let catalogue = Current::new(tiers_file::read(TIERS, prices()).unwrap());
        let client = Client::new(ApiKey::parse(KEY).unwrap(), &url, 1).unwrap().with(QUICK);
        let late = Asker::new(store.clone(), catalogue, client, app.shared_clock(), Arc::new(|_| {}));
        let asked = tokio::spawn({
            let (late, customer) = (late.clone(), customer.clone());
            async move { late.now(&customer).await }
        });
        arrived.notified().await;
        fake.cancel(&subscription);
        story.deliver(Weather::CALM, 1).await;
        story.settle().await;
        assert_eq!(story.tier("u").await, "free");
        go.notify_one();
        asked.await.unwrap().unwrap();
        store.close().await;
        // What the other worker wrote our memory did not hear of.
        story.app.restart().await;
        let app = &story.app;
        assert_eq!(story.tier("u").await, "free", "the late answer said enterprise");
        let events = app.get(&format!("/v1/events?customer={customer}")).await.ok();
        assert!(events["events"].as_array().unwrap().iter().all(|event| event["state"] == "applied"), "{events}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_gets_an_answer_that_is_newer_than_his_question() {
    on_each_story(Options::default(), async |mut story| {
        // Its own asker would take what is asked here, if it looked at the right moment.
        story.app.stop().await;
        let (app, fake) = (&story.app, &story.fake);
        let customer = fake.create_customer(&[("user_id", "u")]);
        let (arrived, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let url = held_back(fake, arrived.clone(), go.clone()).await;
        let store = Store::open(&app.database()).await.unwrap();
        let client = Client::new(ApiKey::parse(KEY).unwrap(), &url, 1).unwrap().with(QUICK);
        let asker = Asker::new(
            store.clone(),
            Current::new(tiers_file::read(TIERS, prices()).unwrap()),
            client,
            app.shared_clock(),
            Arc::new(|_| {}),
        );
        let ask = || {
            let (asker, customer) = (asker.clone(), customer.clone());
            tokio::spawn(async move { asker.now(&customer).await })
        };
        let early = ask();
        arrived.notified().await;
        fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        // Two who are back from Stripe while the answer of before is on its way.
        let (mut one, two) = (ask(), ask());
        let last = || async {
            let mut reader = store.reader().await.unwrap();
            spendgate::store::requests::last_ticket(&mut reader).await.unwrap()
        };
        while last().await < 4 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        early.await.unwrap().unwrap();
        tokio::select! {
            () = arrived.notified() => go.notify_one(),
            _ = &mut one => panic!("what was asked before was taken for the answer"),
        }
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        assert_eq!(fake.call_count("GET /v1/subscriptions"), 2, "one answer for both");
        store.close().await;
        story.app.restart_after_stop().await;
        assert_eq!(story.tier("u").await, "pro");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_stripe_is_down_checks_go_on_and_afterwards_all_is_made_good() {
    on_each_story(Options::default(), async |mut story| {
        let (app, fake) = (&story.app, &story.fake);
        let customer = fake.create_customer(&[("user_id", "u")]);
        let subscription = fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        story.deliver(Weather::CALM, 0).await;
        story.settle().await;
        let before = app.check("u").await;
        assert_eq!(before["tier"], "pro");
        fake.turn(|knobs| (knobs.chance_per_mille, knobs.chances) = (1000, vec![Fault::BadGateway]));
        let mut queued = 0;
        for minute in 0..60 {
            fake.change_items(&subscription, &[(PRICES[2 - minute % 2], Some(1))]);
            story.deliver(Weather::CALM, minute as u64).await;
            app.advance(TimeDelta::minutes(1));
            assert_eq!(app.check("u").await, before, "minute {minute}");
            let now = app.get("/v1/events?state=queued&limit=1000").await.ok()["events"].as_array().unwrap().len();
            assert!(queued < now, "{queued} then {now} wait in the inbox");
            queued = now;
        }
        let ready = app.get("/readyz").await.ok();
        assert_eq!((&ready["stripe_sync"]["mode"], &ready["stripe_sync"]["waiting"]), (&json!("asked"), &json!(1)), "{ready}");
        fake.turn(|knobs| knobs.chance_per_mille = 0);
        fake.change_items(&subscription, &[("price_enterprise", Some(1))]);
        // Whoever answered 200 is gone, and the next one asks by itself. The last change was never told by an event, and is seen all the same.
        story.app.stop().await;
        story.app.advance(A_WHILE);
        story.app.restart_after_stop().await;
        let app = &story.app;
        while story.tier("u").await != "enterprise" {
            tokio::task::yield_now().await;
        }
        assert_eq!(app.get("/v1/events?state=queued").await.ok()["events"], json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_refuses_is_given_up_told_and_asked_again_on_a_replay() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let customer = fake.create_customer(&[("user_id", "u")]);
        fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        // A customer who is not there is no reason to take anything from anybody.
        fake.script(1000, Fault::Forbidden, "GET /v1/subscriptions");
        story.deliver(Weather::CALM, 0).await;
        for _ in 0..20 {
            story.settle().await;
        }
        // A key that may not ask is everybody's trouble, and passes when it may.
        assert_eq!(app.get("/v1/events?state=dead").await.ok()["events"], json!([]));
        fake.turn(|knobs| knobs.script.clear());
        story.settle().await;
        assert_eq!(story.tier("u").await, "pro");
        // One whom Stripe does not know under this key.
        let event = crate::stripe::updated(1, crate::stripe::subscription("cus_of_another_account", "active", "price_enterprise"));
        app.deliver(event.to_string().as_bytes()).await.ok();
        for _ in 0..20 {
            story.settle().await;
        }
        let dead = app.get("/v1/events?state=dead").await.ok();
        assert_eq!(dead["events"][0]["event_id"], event["id"], "{dead}");
        assert_eq!(dead["events"][0]["alerts"][0]["code"], "sync_failed");
        assert_eq!(app.get("/readyz").await.ok()["stripe_sync"]["given_up"], 1);
        let replayed = app.post(&format!("/v1/events/{}/replay", event["id"].as_str().unwrap()), "").await.ok();
        assert_eq!(replayed["state"], "queued");
        assert_eq!(app.get("/readyz").await.ok()["stripe_sync"]["given_up"], 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_belongs_to_whom_we_say_then_to_whom_his_metadata_say() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        // The customer's own metadata come before the subscription's.
        let both = fake.create_customer(&[("user_id", "by-customer")]);
        fake.subscribe_with(&both, &[("price_pro", Some(1))], "active", &[("user_id", "by-subscription")]);
        let one = fake.create_customer(&[]);
        fake.subscribe_with(&one, &[("price_pro", Some(1))], "active", &[("user_id", "by-subscription")]);
        let nobody = fake.create_customer(&[]);
        fake.subscribe(&nobody, &[("price_enterprise", Some(1))], "active");
        story.deliver(Weather { shuffle: true, ..Weather::CALM }, 3).await;
        story.settle().await;
        for (user, customer) in [("by-customer", &both), ("by-subscription", &one)] {
            let seen = app.user(user).await;
            assert_eq!((&seen["tier"], &seen["stripe_customer"]), (&json!("pro"), &json!(customer)), "{seen}");
        }
        // One that nobody is known for is kept, and counts from the moment when it is bound.
        let kept = app.get("/v1/events?state=kept").await.ok();
        assert_eq!(kept["events"][0]["customer"], json!(nobody), "{kept}");
        app.put("/v1/users/later", json!({"stripe_customer": nobody})).await.ok();
        assert_eq!(story.tier("later").await, "enterprise");
        // Metadata never move a binding; that they differ is told.
        fake.set_customer_metadata(&nobody, &[("user_id", "somebody-else")]);
        story.deliver(Weather::CALM, 4).await;
        story.settle().await;
        assert_eq!((story.tier("later").await, story.tier("somebody-else").await), ("enterprise".to_owned(), "free".to_owned()));
        let told = app.get(&format!("/v1/events?customer={nobody}")).await.ok();
        assert_eq!(told["events"][0]["alerts"][0]["code"], "binding_conflict", "{told}");
        // A customer of whom no event ever told is asked about when he is bound.
        let unheard = fake.create_customer(&[]);
        fake.subscribe(&unheard, &[("price_pro", Some(1))], "active");
        fake.calm_deliveries();
        app.put("/v1/accounts/acme", json!({"stripe_customer": unheard})).await.ok();
        app.put("/v1/accounts/acme/users/member", "").await.ok();
        story.settle().await;
        assert_eq!(story.tier("member").await, "pro");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_names_only_a_subscription_is_a_nudge_for_its_customer() {
    on_each_story(Options::default(), async |story| {
    let (app, fake) = (&story.app, &story.fake);
    let customer = fake.create_customer(&[("user_id", "u")]);
    let subscription = fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
    fake.calm_deliveries();
    let thin = json!({
        "id": "evt_thin", "object": "v2.core.event", "type": "v1.customer.subscription.updated", "livemode": false,
        "created": "2026-01-12T12:00:00.000Z", "related_object": {"id": subscription, "type": "subscription", "url": "/v1/subscriptions/x"},
    });
    app.deliver(thin.to_string().as_bytes()).await.ok();
    story.settle().await;
    assert_eq!(story.tier("u").await, "pro");
    let event = app.get("/v1/events/evt_thin").await.ok();
    assert_eq!((&event["state"], &event["customer"]), (&json!("applied"), &json!(customer)), "{event}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_events_at_checkout_costs_a_question_or_two() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let customer = fake.create_customer(&[("user_id", "u")]);
        let subscription = fake.subscribe(&customer, &[("price_pro", Some(1))], "incomplete");
        for _ in 0..10 {
            fake.set_status(&subscription, "active");
            fake.change_items(&subscription, &[("price_enterprise", Some(1))]);
            fake.change_items(&subscription, &[("price_pro", Some(1))]);
        }
        // Nothing is answered before all have come.
        fake.turn(|knobs| knobs.latency = Duration::from_millis(200));
        let before = fake.call_count("GET /v1/subscriptions");
        deliver(app, fake, Weather::CALM).await;
        fake.turn(|knobs| knobs.latency = Duration::ZERO);
        story.settle().await;
        let asked = fake.call_count("GET /v1/subscriptions") - before;
        assert_eq!(story.tier("u").await, "pro");
        assert!(asked < 10, "30 events cost {asked} questions");
    })
    .await;
}
