//! The comparison with Stripe where Stripe does not show everything, where nobody waits for it, and where there is nothing to mend.

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::fake_stripe::Options;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::fake_stripe::knobs::Fault;
use spendgate::store::reconciliation::Phase;
use spendgate::sync::reconcile::Mode;

use crate::asking::{Story, on_each_story};
use crate::reconcile::reconcile;
use crate::stripe::event;

/// A customer of `user` whose subscription buys `price`, of whom no event tells. Gives both ids.
fn untold(story: &Story, user: &str, price: &str) -> (String, String) {
    let customer = story.fake.create_customer(&[("user_id", user)]);
    let subscription = story.fake.subscribe(&customer, &[(price, Some(1))], "active");
    story.fake.calm_deliveries();
    (customer, subscription)
}

async fn last(story: &Story) -> Value {
    story.app.get("/v1/reconciliation").await.ok()["reconciliation"].clone()
}

async fn drift_alerts(story: &Story) -> Vec<String> {
    let told = story.app.get("/v1/alerts?kind=drift").await.ok();
    told["alerts"].as_array().unwrap().iter().map(|alert| alert["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_read_events_compares_the_rest_and_tells_and_misses_nothing_later() {
    on_each_story(Options::default(), async |story| {
        reconcile(&story).await;
        story.app.advance(TimeDelta::hours(3));
        let (customer, _) = untold(&story, "u", "price_pro");
        story.app.advance(TimeDelta::hours(3));
        story.fake.script(1, Fault::Forbidden, "GET /v1/events");
        let run = reconcile(&story).await;
        assert_eq!((run.phase, run.drifted, run.missed_events), (Phase::Done, 1, 0), "{:?}", run.drift);
        assert_eq!(story.tier("u").await, "pro");
        let told = last(&story).await;
        let fault = told["faults"][0].clone();
        assert_eq!((&fault["phase"], told["faults"].as_array().unwrap().len()), (&json!("events"), 1), "{told}");
        assert!(fault["what"].as_str().unwrap().contains("403"), "{told}");
        let alerts = drift_alerts(&story).await;
        assert!(alerts.len() == 1 && alerts[0].contains("all of Stripe's list of events"), "{alerts:?}");
        // Hours later the key may; what the run before would have found is found.
        story.app.advance(TimeDelta::hours(6));
        let run = reconcile(&story).await;
        assert!(0 < run.missed_events && run.faults.is_empty(), "{run:?}");
        let events = story.app.get(&format!("/v1/events?customer={customer}&type=customer.subscription.created")).await.ok();
        assert_eq!(events["events"].as_array().unwrap().len(), 1, "{events}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_subscriptions_that_stripe_does_not_show_nothing_follows() {
    on_each_story(Options::default(), async |story| {
        story.fake.create_customer(&[("user_id", "u")]);
        let (customer, _) = untold(&story, "v", "price_pro");
        reconcile(&story).await;
        story.app.advance(TimeDelta::hours(6));
        story.fake.script(1, Fault::Forbidden, "GET /v1/subscriptions");
        let run = reconcile(&story).await;
        assert_eq!((run.phase, run.drifted, run.faults.len()), (Phase::Done, 0, 1), "{:?}", run.drift);
        // The control: a list that is read to its end and does not have him is asked about.
        story.app.advance(TimeDelta::hours(6));
        story.fake.delete_customer(&customer);
        story.fake.calm_deliveries();
        assert_eq!(reconcile(&story).await.drifted, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_place_is_gone_is_read_from_the_beginning() {
    on_each_story(Options { page_max: 1, ..Options::default() }, async |story| {
        for user in ["a", "b", "c"] {
            untold(&story, user, "price_pro");
        }
        let reconciler = story.app.reconciler();
        let mut comparison = reconciler.begin(Mode::Mend).await.unwrap();
        reconciler.step(&mut comparison).await.unwrap();
        assert!(comparison.run.place.is_some());
        story.app.execute("UPDATE reconciliation SET place = 'sub_gone'").await;
        drop(comparison);
        let run = reconcile(&story).await;
        assert_eq!((run.number, run.phase, run.faults), (1, Phase::Done, Vec::new()));
        for user in ["a", "b", "c"] {
            assert_eq!(story.tier(user).await, "pro", "{user}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_never_due_it_is_done_at_a_start_and_on_demand() {
    on_each_story(Options::default(), async |mut story| {
        untold(&story, "u", "price_pro");
        story.app.config.stripe.compares = true;
        assert_eq!(story.app.config.stripe.reconcile_every, None);
        story.app.restart().await;
        let done = async |number: u64| {
            while last(&story).await["number"] != number || last(&story).await["phase"] != "done" {
                tokio::task::yield_now().await;
            }
        };
        done(1).await;
        assert_eq!(last(&story).await["drifted"], 1);
        story.app.post("/v1/reconciliation", "").await.ok();
        done(2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_has_other_names_has_everything_compared() {
    on_each_story(Options::default(), async |mut story| {
        story.app.config.stripe.compares = true;
        story.app.restart().await;
        let number = async || last(&story).await["number"].as_u64().unwrap_or(0);
        while last(&story).await["phase"] != "done" {
            tokio::task::yield_now().await;
        }
        let price = |before: Value| {
            let mut event = event("price.updated", 0, json!({"id": "price_x", "object": "price", "metadata": {"tier": "enterprise"}}));
            event["data"]["previous_attributes"] = before;
            event
        };
        // What else changes of a price is nothing to us.
        for before in [json!({"nickname": "Old"}), json!({"metadata": {"synced_at": "yesterday"}})] {
            let told = story.app.apply(price(before)).await;
            assert!(told["effect"].as_str().unwrap().contains("tiers.yaml says"), "{told}");
        }
        let before = number().await;
        let told = story.app.apply(price(json!({"metadata": {"tier": "pro"}}))).await;
        assert!(told["effect"].as_str().unwrap().contains("everything is compared"), "{told}");
        while number().await == before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_customer_makes_room_for_the_one_who_pays_now() {
    on_each_story(Options::default(), async |story| {
        let (old, _) = untold(&story, "u", "price_pro");
        reconcile(&story).await;
        // While he is there, another one is a conflict, which is no drift however often it is compared.
        let new = story.fake.create_customer(&[("user_id", "u")]);
        story.fake.subscribe(&new, &[("price_enterprise", Some(1))], "active");
        story.deliver(Weather::CALM, 1).await;
        story.settle().await;
        assert_eq!(story.tier("u").await, "pro");
        for _ in 0..2 {
            story.app.advance(TimeDelta::hours(6));
            let run = reconcile(&story).await;
            assert_eq!(run.drifted, 0, "{:?}", run.drift);
        }
        story.fake.delete_customer(&old);
        story.deliver(Weather::CALM, 2).await;
        story.settle().await;
        assert_eq!(story.tier("u").await, "free");
        // The next word of the other one binds him; a comparison needs none.
        story.app.advance(TimeDelta::hours(6));
        let run = reconcile(&story).await;
        assert_eq!(run.drift.iter().map(|drift| drift.customer.as_str()).collect::<Vec<_>>(), [new.as_str()]);
        assert_eq!(story.tier("u").await, "enterprise");
        assert_eq!(story.app.user("u").await["stripe_customer"], json!(new));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_did_not_show_before_is_asked_for_again_at_the_next_start() {
    on_each_story(Options::default(), async |mut story| {
        let (customer, _) = untold(&story, "u", "price_pro");
        story.fake.script(1, Fault::Forbidden, "GET /v1/subscriptions");
        story.fake.script(1, Fault::Forbidden, "GET /v1/customers");
        assert_eq!(reconcile(&story).await.faults.len(), 2);
        // Another key, a minute later.
        story.app.advance(TimeDelta::minutes(1));
        story.app.config.stripe.compares = true;
        story.app.restart().await;
        while last(&story).await["number"] != 2 || last(&story).await["phase"] != "done" {
            tokio::task::yield_now().await;
        }
        story.settle().await;
        assert_eq!(story.app.user("u").await["stripe_customer"], json!(customer));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_who_were_deleted_do_not_take_a_user_from_each_other() {
    on_each_story(Options::default(), async |story| {
        let mut gone = Vec::new();
        for _ in 0..2 {
            let customer = story.fake.create_customer(&[]);
            story.fake.subscribe_with(&customer, &[("price_pro", Some(1))], "active", &[("user_id", "u")]);
            story.deliver(Weather::CALM, 1).await;
            story.settle().await;
            story.fake.delete_customer(&customer);
            story.deliver(Weather::CALM, 2).await;
            story.settle().await;
            gone.push(customer);
        }
        // The second one paid after the first was gone.
        assert_eq!(story.app.user("u").await["stripe_customer"], json!(gone[1]));
        for _ in 0..3 {
            story.app.advance(TimeDelta::hours(6));
            let run = reconcile(&story).await;
            assert_eq!(run.drifted, 0, "{:?}", run.drift);
            assert_eq!(story.app.user("u").await["stripe_customer"], json!(gone[1]));
        }
        let told = story.app.get("/v1/alerts?kind=binding_conflict").await.ok();
        assert_eq!(told["alerts"], json!([]));
    })
    .await;
}
