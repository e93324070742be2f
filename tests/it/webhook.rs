//! Stripe's door: who is believed, and what it does to a user's tier.

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::store::Store;
use spendgate::stripe::key::ApiKey;
use spendgate::stripe::signature::Secret;

use crate::app::{Database, TIERS, TestApp, WEBHOOK_SECRET, on_each_database};
use crate::stripe::{customer, event, paying, subscription, updated};

async fn tier(app: &TestApp, user: &str) -> String {
    app.check(user).await["tier"].as_str().unwrap().to_owned()
}

async fn post(app: &TestApp, header: Option<&str>, body: &[u8]) -> crate::app::Answer {
    let mut request = app.client.post(app.url("/webhooks/stripe")).body(body.to_vec());
    if let Some(header) = header {
        request = request.header("stripe-signature", header);
    }
    app.send(request).await
}

#[tokio::test]
async fn only_what_stripe_signed_lately_is_taken() {
    on_each_database(TIERS, async |app| {
        let body = customer("customer.created", 0, "cus_x", Some("u")).to_string();
        let body = body.as_bytes();
        let secret = Secret::new(WEBHOOK_SECRET).unwrap();
        let good = secret.sign(body, app.now());
        post(app, None, body).await.problem(400, "signature_missing");
        post(app, Some(""), body).await.problem(400, "signature_invalid");
        post(app, Some(&good.replace("v1=", "v0=")), body).await.problem(400, "signature_invalid");
        post(app, Some(&Secret::new("whsec_other").unwrap().sign(body, app.now())), body).await.problem(400, "signature_invalid");
        post(app, Some(&good), &[body, b" "].concat()).await.problem(400, "signature_invalid");
        post(app, Some(&secret.sign(body, app.now() - TimeDelta::seconds(301))), body).await.problem(400, "signature_stale");
        post(app, Some(&secret.sign(body, app.now() + TimeDelta::seconds(301))), body).await.problem(400, "signature_stale");
        let large = vec![b' '; 1024 * 1024 + 1];
        post(app, Some(&secret.sign(&large, app.now())), &large).await.problem(413, "body_too_large");
        assert_eq!(app.get("/v1/events").await.ok()["events"], json!([]));
        assert_eq!(app.user("u").await["known"], json!(false));
        // An event that is days old is good, as long as its delivery is fresh.
        assert_eq!(post(app, Some(&good), body).await.ok(), json!({"received": true, "duplicate": false}));
        assert_eq!(post(app, Some(&good), body).await.ok(), json!({"received": true, "duplicate": true}));
    })
    .await;
}

#[tokio::test]
async fn while_a_secret_is_rolled_both_are_believed() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |mut config| {
        config.webhook_secrets.push(Secret::new("whsec_new").unwrap());
        config
    })
    .await;
    let body = customer("customer.created", 0, "cus_x", Some("u")).to_string();
    for name in [WEBHOOK_SECRET, "whsec_new"] {
        post(&app, Some(&Secret::new(name).unwrap().sign(body.as_bytes(), app.now())), body.as_bytes()).await.ok();
    }
    app.stop().await;
}

#[tokio::test]
async fn without_a_secret_the_door_says_so_and_stores_nothing() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |mut config| {
        config.webhook_secrets.clear();
        config
    })
    .await;
    let body = customer("customer.created", 0, "cus_x", Some("u")).to_string();
    let answer = app.deliver(body.as_bytes()).await;
    answer.problem(503, "webhook_not_configured");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(app.get("/v1/events").await.ok()["events"], json!([]));
    assert_eq!(app.get("/readyz").await.ok()["webhook"], "not_configured");
    app.stop().await;
}

#[tokio::test]
async fn a_life_at_stripe_is_followed_by_the_very_next_check() {
    on_each_database(TIERS, async |app| {
        for event in paying("u", "price_pro") {
            app.apply(event).await;
        }
        assert_eq!(tier(app, "u").await, "pro");
        let event = app.apply(updated(10, subscription("cus_u", "active", "price_enterprise"))).await;
        assert_eq!((&event["state"], tier(app, "u").await.as_str()), (&json!("applied"), "enterprise"));
        assert_eq!(event["effect"], "Customer cus_u (user u): tier pro → enterprise.");
        let mut cancelling = subscription("cus_u", "active", "price_pro");
        cancelling["cancel_at_period_end"] = json!(true);
        app.apply(updated(20, cancelling)).await;
        let answer = app.check("u").await;
        assert_eq!(
            (&answer["tier"], &answer["subscription"]),
            (&json!("pro"), &json!({"status": "active", "ends_at": "2026-02-01T00:00:00Z"}))
        );
        app.apply(crate::stripe::event("customer.subscription.deleted", 30, subscription("cus_u", "canceled", "price_pro"))).await;
        assert_eq!(tier(app, "u").await, "free");
        // What was said before arrives after.
        let late = app.apply(updated(25, subscription("cus_u", "active", "price_pro"))).await;
        assert_eq!((&late["state"], tier(app, "u").await.as_str()), (&json!("stale"), "free"));
    })
    .await;
}

#[tokio::test]
async fn a_change_of_plan_that_arrives_before_the_older_one_stays() {
    on_each_database(TIERS, async |app| {
        app.apply(updated(20, subscription("cus_u", "active", "price_enterprise"))).await;
        app.apply(updated(10, subscription("cus_u", "active", "price_pro"))).await;
        app.apply(customer("customer.created", 0, "cus_u", Some("u"))).await;
        assert_eq!(tier(app, "u").await, "enterprise");
    })
    .await;
}

#[tokio::test]
async fn a_debt_is_tolerated_for_the_grace_days_and_paying_it_restores_the_tier() {
    on_each_database(TIERS, async |app| {
        for event in paying("u", "price_pro") {
            app.apply(event).await;
        }
        app.apply(updated(10, subscription("cus_u", "past_due", "price_pro"))).await;
        app.apply(updated(11, subscription("cus_u", "past_due", "price_pro"))).await;
        let user = app.user("u").await;
        assert_eq!((&user["tier"], &user["grace_ends_at"]), (&json!("pro"), &json!("2026-01-19T12:00:00Z")));
        app.advance(TimeDelta::days(7) - TimeDelta::seconds(1));
        assert_eq!(tier(app, "u").await, "pro");
        app.advance(TimeDelta::seconds(1));
        assert_eq!(tier(app, "u").await, "free");
        let invoice = json!({"id": "in_1", "object": "invoice", "customer": "cus_u",
            "parent": {"subscription_details": {"subscription": "sub_of_cus_u"}}});
        app.apply(event("invoice.paid", 20, invoice.clone())).await;
        assert_eq!(tier(app, "u").await, "pro");
        // A failed payment alone takes nothing: the subscription's own event says what it is worth.
        let failed = app.apply(event("invoice.payment_failed", 30, invoice)).await;
        assert_eq!((&failed["state"], tier(app, "u").await.as_str()), (&json!("noted"), "pro"));
    })
    .await;
}

#[tokio::test]
async fn an_unknown_price_is_an_alert_and_never_free_in_silence() {
    on_each_database(TIERS, async |app| {
        for event in paying("u", "price_pro") {
            app.apply(event).await;
        }
        let event = app.apply(updated(10, subscription("cus_u", "active", "price_of_tomorrow"))).await;
        assert_eq!(event["alerts"][0]["code"], "unmapped_price");
        assert!(event["alerts"][0]["detail"].as_str().unwrap().contains("price_of_tomorrow"));
        assert_eq!(tier(app, "u").await, "pro");
        // A newcomer on that price has had no tier to keep.
        for event in paying("v", "price_of_tomorrow") {
            app.apply(event).await;
        }
        assert_eq!(tier(app, "v").await, "free");
        // Once the operator has named the price, both have what they pay for.
        app.restart_with(&TIERS.replace("prices: [price_enterprise]", "prices: [price_enterprise, price_of_tomorrow]")).await;
        assert_eq!((tier(app, "u").await.as_str(), tier(app, "v").await.as_str()), ("enterprise", "enterprise"));
    })
    .await;
}

#[tokio::test]
async fn a_price_of_empty_metadata_downgrades_nobody() {
    on_each_database(TIERS, async |app| {
        let mut by_lookup_key = subscription("cus_u", "active", "price_new");
        by_lookup_key["items"]["data"][0]["price"]["lookup_key"] = json!("pro_yearly");
        by_lookup_key["items"]["data"][0]["price"]["metadata"] = json!({"tier": ""});
        app.apply(customer("customer.created", 0, "cus_u", Some("u"))).await;
        app.apply(updated(1, by_lookup_key)).await;
        assert_eq!(tier(app, "u").await, "pro");
        let mut by_metadata = subscription("cus_u", "active", "price_new");
        by_metadata["items"]["data"][0]["price"]["metadata"] = json!({"tier": "enterprise"});
        app.apply(updated(2, by_metadata)).await;
        assert_eq!(tier(app, "u").await, "enterprise");
    })
    .await;
}

#[tokio::test]
async fn metadata_of_a_subscription_binds_and_a_buyers_own_words_do_not() {
    on_each_database(TIERS, async |app| {
        let session = json!({"id": "cs_1", "object": "checkout.session", "customer": "cus_x", "subscription": "sub_of_cus_x",
            "client_reference_id": "victim", "metadata": {}, "mode": "subscription"});
        let event = app.apply(event("checkout.session.completed", 0, session)).await;
        assert_eq!((&event["state"], &event["understood"]["user_hint"]), (&json!("kept"), &json!("victim")));
        assert!(event["effect"].as_str().unwrap().contains("hints at user victim"), "{event}");
        assert_eq!(app.user("victim").await["stripe_customer"], Value::Null);
        let mut named = subscription("cus_x", "active", "price_pro");
        named["metadata"]["user_id"] = json!("u");
        app.apply(updated(1, named)).await;
        assert_eq!((tier(app, "u").await.as_str(), &app.user("u").await["stripe_customer"]), ("pro", &json!("cus_x")));
        let mut bad = subscription("cus_y", "active", "price_pro");
        bad["metadata"]["user_id"] = json!("x".repeat(255) + "é");
        app.apply(updated(1, bad)).await;
    })
    .await;
}

#[tokio::test]
async fn events_of_others_are_parked_with_an_alert() {
    let mut app = TestApp::start(Database::Sqlite, TIERS, |mut config| {
        config.stripe.api_key = Some(ApiKey::parse("sk_live_of_the_tests").unwrap());
        config
    })
    .await;
    let mut foreign = updated(1, subscription("cus_u", "active", "price_pro"));
    foreign["account"] = json!("acct_other");
    foreign["livemode"] = json!(true);
    let parked = app.apply(foreign).await;
    assert_eq!((&parked["state"], &parked["alerts"][0]["code"]), (&json!("parked"), &json!("other_account")));
    let test_mode = app.apply(updated(1, subscription("cus_u", "active", "price_pro"))).await;
    assert_eq!((&test_mode["state"], &test_mode["alerts"][0]["code"]), (&json!("parked"), &json!("other_mode")));
    app.put("/v1/users/u", json!({"stripe_customer": "cus_u"})).await.ok();
    assert_eq!(tier(&app, "u").await, "free");
    app.stop().await;
}

#[tokio::test]
async fn kinds_that_we_do_not_know_are_taken_and_disputes_are_alerts() {
    on_each_database(TIERS, async |app| {
        let ignored = app.apply(event("issuing_card.created", 0, json!({"id": "ic_1"}))).await;
        assert_eq!(ignored["state"], "ignored");
        let odd = app.apply(event("future.kind", 0, json!([1, 2]))).await;
        assert_eq!(odd["state"], "ignored");
        let dispute = app.apply(event("charge.dispute.created", 0, json!({"id": "dp_1", "object": "dispute"}))).await;
        assert_eq!((&dispute["state"], &dispute["alerts"][0]["code"]), (&json!("noted"), &json!("money_returned")));
        let plan = app.apply(event("plan.updated", 0, json!({"id": "gold plan/monthly", "object": "plan"}))).await;
        assert_eq!(plan["state"], "noted");
        let nobody = app.apply(updated(1, json!({"id": "sub_1", "object": "subscription", "status": "active"}))).await;
        assert_eq!((&nobody["state"], &nobody["alerts"][0]["code"]), (&json!("unreadable"), &json!("unreadable_event")));
        let unknown = app.apply(updated(1, subscription("cus_u", "a_status_of_2027", "price_pro"))).await;
        assert_eq!(unknown["alerts"][0]["code"], "unknown_status");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_sender_goes_away_is_applied_to_its_end_and_seen_by_the_next_check() {
    on_each_database(TIERS, async |app| {
        let [created, subscribed] = paying("u", "price_pro");
        app.apply(created).await;
        assert_eq!(tier(app, "u").await, "free");
        // Another process writes, so the event waits for its turn while its sender hangs up.
        let store = Store::open(&app.database()).await.unwrap();
        let other = store.begin().await.unwrap();
        let body = subscribed.to_string();
        let signature = Secret::new(WEBHOOK_SECRET).unwrap().sign(body.as_bytes(), app.now());
        let length = body.len();
        let request =
            format!("POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\nstripe-signature: {signature}\r\ncontent-length: {length}\r\n\r\n{body}");
        let mut sender = tokio::net::TcpStream::connect(app.address()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut sender, request.as_bytes()).await.unwrap();
        // The service has begun with it before it answers others that came later, some of them over connections of their own; and it
        // has seen the sender hang up before it answers those after that.
        let others = async || futures_util::future::join_all((0..20).map(|_| tier(app, "u"))).await;
        assert!(others().await.iter().all(|tier| tier == "free"));
        drop(sender);
        assert!(others().await.iter().all(|tier| tier == "free"));
        drop(other);
        let seen = async {
            while tier(app, "u").await != "pro" {
                tokio::task::yield_now().await;
            }
        };
        // Not a measure: only so that a failure ends.
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("the event was dropped with its sender");
    })
    .await;
}
