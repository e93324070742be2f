//! Everything is compared with Stripe: what no event told is found and mended.

use std::process::{Command, Output};

use chrono::TimeDelta;
use serde_json::json;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::fake_stripe::knobs::Fault;
use spendgate::fake_stripe::{FakeStripe, Options};
use spendgate::store::reconciliation::{Phase, Run};
use spendgate::sync::reconcile::Mode;

use crate::app::{TIERS, TestApp};
use crate::asking::{Story, on_each_story};
use crate::stripe_client::serve;

/// A run, and the answers to what it asked.
pub async fn reconcile(story: &Story) -> Run {
    let run = story.app.reconciler().once().await.unwrap();
    story.settle().await;
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_event_told_is_found_and_mended() {
    // One object on a page: every list is many pages.
    on_each_story(Options { page_max: 1, items_max: 1, ..Options::default() }, async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let make = |user: &str, price: &str| {
            let customer = fake.create_customer(&[("user_id", user)]);
            let subscription = fake.subscribe(&customer, &[(price, Some(1)), ("price_free", Some(1))], "active");
            (customer, subscription)
        };
        let known = make("known", "price_pro");
        let ended = make("ended", "price_enterprise");
        let raised = make("raised", "price_pro");
        story.deliver(Weather::CALM, 0).await;
        story.settle().await;
        // Nobody hears of what follows.
        make("new", "price_enterprise");
        let only_customer = fake.create_customer(&[("user_id", "no-subscription")]);
        fake.cancel(&ended.1);
        fake.change_items(&raised.1, &[("price_enterprise", Some(1))]);
        fake.calm_deliveries();
        assert_eq!(story.tier("ended").await, "enterprise", "nothing told us");
        let run = reconcile(&story).await;
        assert_eq!((run.phase, run.missed_events), (Phase::Done, 0));
        let mut drifted: Vec<&str> = run.drift.iter().map(|drift| drift.customer.as_str()).collect();
        drifted.sort_unstable();
        let new = app.user("new").await["stripe_customer"].as_str().unwrap().to_owned();
        let mut expected = [ended.0.as_str(), &raised.0, &new, &only_customer];
        expected.sort_unstable();
        assert_eq!(drifted, expected, "those that differed, and not {}", known.0);
        for (user, tier) in [("known", "pro"), ("ended", "free"), ("raised", "enterprise"), ("new", "enterprise")] {
            assert_eq!(story.tier(user).await, tier, "{user}");
        }
        assert_eq!(app.user("no-subscription").await["stripe_customer"], json!(only_customer));
        // Once mended nothing differs; events that never came are taken by now.
        app.advance(TimeDelta::hours(2));
        fake.cancel(&known.1);
        fake.calm_deliveries();
        app.advance(TimeDelta::minutes(5));
        let run = reconcile(&story).await;
        assert_eq!(run.drift.iter().map(|drift| drift.customer.as_str()).collect::<Vec<_>>(), [known.0.as_str()]);
        assert!(0 < run.missed_events);
        let events = app.get(&format!("/v1/events?customer={}&type=customer.subscription.deleted", known.0)).await.ok();
        assert_eq!(events["events"][0]["state"], "applied", "{events}");
        let run = reconcile(&story).await;
        assert_eq!((run.drifted, run.missed_events), (0, 0), "{:?}", run.drift);
        let shown = app.get("/v1/reconciliation").await.ok();
        assert_eq!((&shown["reconciliation"]["phase"], &shown["reconciliation"]["drifted"]), (&json!("done"), &json!(0)), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_where_it_stopped() {
    on_each_story(Options { page_max: 1, ..Options::default() }, async |story| {
        let fake = &story.fake;
        for number in 0..6 {
            let customer = fake.create_customer(&[("user_id", format!("u{number}").as_str())]);
            fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        }
        fake.calm_deliveries();
        // The third page is not answered, however often it is asked for.
        fake.script(2, Fault::Pass, "GET /v1/subscriptions");
        fake.script(2, Fault::BadGateway, "GET /v1/subscriptions");
        let reconciler = story.app.reconciler();
        let mut comparison = reconciler.begin(Mode::Mend).await.unwrap();
        reconciler.step(&mut comparison).await.unwrap();
        reconciler.step(&mut comparison).await.unwrap();
        fake.turn(|knobs| (knobs.chance_per_mille, knobs.chances) = (1000, vec![Fault::BadGateway]));
        reconciler.step(&mut comparison).await.unwrap_err();
        fake.turn(|knobs| knobs.chance_per_mille = 0);
        fake.turn(|knobs| knobs.script.clear());
        drop(comparison);
        let again = reconciler.begin(Mode::Mend).await.unwrap();
        assert_eq!((again.run.number, again.run.phase, again.run.checked), (1, Phase::Subscriptions, 2));
        assert!(again.run.place.is_some());
        let run = reconcile(&story).await;
        assert_eq!((run.number, run.checked, run.drifted), (1, 12, 6), "six subscriptions and six customers, each once");
        for number in 0..6 {
            assert_eq!(story.tier(&format!("u{number}")).await, "pro");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_customer_has_nothing_any_more() {
    on_each_story(Options::default(), async |story| {
        let customer = story.fake.create_customer(&[]);
        story.app.put("/v1/users/u", json!({"stripe_customer": customer})).await.ok();
        let subscription = story.fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        story.deliver(Weather::CALM, 0).await;
        story.settle().await;
        assert_eq!(story.tier("u").await, "pro");
        story.fake.delete_customer(&customer);
        story.fake.calm_deliveries();
        let run = reconcile(&story).await;
        assert_eq!(run.drift.len(), 1, "{subscription}: {:?}", run.drift);
        assert_eq!(story.tier("u").await, "free");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_another_account_takes_nothing_from_anybody() {
    on_each_story(Options::default(), async |mut story| {
        let customer = story.fake.create_customer(&[("user_id", "u")]);
        story.fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        story.deliver(Weather::CALM, 0).await;
        story.settle().await;
        let other = FakeStripe::new(Options::default(), story.app.shared_clock(), 2);
        story.app.config.stripe.api_base = serve(other.router()).await;
        story.app.restart().await;
        let run = reconcile(&story).await;
        assert_eq!(run.drift.iter().map(|drift| drift.customer.as_str()).collect::<Vec<_>>(), [customer.as_str()]);
        for _ in 0..20 {
            story.settle().await;
        }
        assert_eq!(story.tier("u").await, "pro");
        assert_eq!(story.app.get("/readyz").await.ok()["stripe_sync"]["given_up"], 1);
    })
    .await;
}

fn spendgate(app: &TestApp, api_base: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spendgate"));
    command.args(args).current_dir(app.folder.path()).env("STRIPE_API_KEY", "sk_test_fake").env("STRIPE_API_BASE", api_base);
    command.env("DATABASE_URL", app.database().url()).env("STRIPE_CALLS_PER_SECOND", "1000");
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_differs_and_mends_it() {
    on_each_story(Options::default(), async |mut story| {
        std::fs::write(story.app.folder.path().join("tiers.yaml"), TIERS).unwrap();
        let api_base = story.app.config.stripe.api_base.clone();
        let customer = story.fake.create_customer(&[("user_id", "u")]);
        story.fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        story.fake.calm_deliveries();
        let told = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        // Beside a running service it would change what the service has in memory, where that is not asked for again.
        if !story.app.is_postgres() {
            let refused = spendgate(&story.app, &api_base, &["sync"]);
            assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
            assert!(told(&refused).contains("POST /v1/reconciliation"), "{}", told(&refused));
        }
        story.app.stop().await;
        let dry = spendgate(&story.app, &api_base, &["sync", "--dry-run"]);
        let line = format!("{customer}: subscription ");
        assert!(dry.status.success() && told(&dry).contains(&line) && told(&dry).contains("nothing was changed"), "{}", told(&dry));
        let again = spendgate(&story.app, &api_base, &["sync", "--dry-run"]);
        assert!(told(&again).contains(&line), "the dry run changed something: {}", told(&again));
        let mended = spendgate(&story.app, &api_base, &["sync"]);
        assert!(told(&mended).contains("not known → tier pro") && told(&mended).contains("mended"), "{}", told(&mended));
        let one = spendgate(&story.app, &api_base, &["sync", "--customer", &customer]);
        assert!(told(&one).contains(&format!("{customer}: tier pro → tier pro")), "{}", told(&one));
        let nobody = spendgate(&story.app, &api_base, &["sync", "--customer", "cus_nobody"]);
        assert!(!nobody.status.success() && told(&nobody).contains("knows no such customer"), "{}", told(&nobody));
        story.app.restart_after_stop().await;
        assert_eq!(story.tier("u").await, "pro");
    })
    .await;
}

#[tokio::test]
async fn without_a_key_there_is_nothing_to_compare_with() {
    crate::app::on_each_database(TIERS, async |app| {
        app.post("/v1/reconciliation", "").await.problem(409, "stripe_not_asked");
        assert_eq!(app.get("/v1/reconciliation").await.ok(), json!({"reconciliation": null}));
        assert_eq!(app.get("/readyz").await.ok()["stripe_sync"]["mode"], "payload");
    })
    .await;
}
