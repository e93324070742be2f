//! What the operator is told of the service itself, in the transaction that brings it about.

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::fake_stripe::Options;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::store::reconciliation::Run;

use crate::app::{TIERS, TestApp, on_each_database};
use crate::asking::{Story, on_each_story};
use crate::stripe::{customer, event, subscription, updated};
use crate::telling::raised;

async fn all(app: &TestApp, kind: &str) -> Vec<Value> {
    app.get(&format!("/v1/alerts?limit=1000&kind={kind}")).await.ok()["alerts"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_price_that_no_tier_names_is_told_once_a_day() {
    on_each_database(TIERS, async |app| {
        for user in ["a", "b"] {
            app.apply(customer("customer.created", 0, &format!("cus_{user}"), Some(user))).await;
            app.apply(updated(1, subscription(&format!("cus_{user}"), "active", "price_new"))).await;
        }
        let alerts = all(app, "unmapped_price").await;
        let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
        assert_eq!((&alert["user_id"], &alert["type"]), (&json!("a"), &json!("stripe.unmapped_price")));
        assert_eq!(
            alert["details"],
            json!({"customer": "cus_a", "subscription": "sub_of_cus_a", "prices": ["price_new"], "kept_tier": null})
        );
        assert_eq!(
            alert["message"],
            "Subscription sub_of_cus_a of customer cus_a pays for price_new, which no tier of tiers.yaml names: the default tier holds."
        );
        app.apply(updated(2, subscription("cus_b", "active", "price_other"))).await;
        app.advance(TimeDelta::days(1));
        app.apply(updated(3, subscription("cus_b", "active", "price_new"))).await;
        let prices: Vec<Value> = all(app, "unmapped_price").await.iter().map(|alert| alert["details"]["prices"][0].clone()).collect();
        assert_eq!(prices.iter().filter(|price| *price == "price_new").count(), 2);
        assert_eq!(prices.iter().filter(|price| *price == "price_other").count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_customer_who_names_a_user_of_another_is_told_once_a_day() {
    on_each_database(TIERS, async |app| {
        app.apply(customer("customer.created", 0, "cus_a", Some("u"))).await;
        app.apply(customer("customer.created", 1, "cus_b", Some("u"))).await;
        app.apply(customer("customer.updated", 2, "cus_b", Some("u"))).await;
        let alerts = all(app, "binding_conflict").await;
        let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
        assert_eq!((&alert["user_id"], &alert["type"]), (&json!("u"), &json!("stripe.binding_conflict")));
        assert_eq!(alert["details"], json!({"customer": "cus_b", "user_id": "u"}));
        app.advance(TimeDelta::days(1));
        app.apply(customer("customer.updated", 3, "cus_a", Some("v"))).await;
        assert_eq!(all(app, "binding_conflict").await.len(), 2, "his own customer names another one");
        assert_eq!(app.user("u").await["stripe_customer"], "cus_a");
    })
    .await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_a_dead_letter() {
    on_each_database(TIERS, async |app| {
        let broken = event("customer.subscription.updated", 1, json!({"object": "subscription", "id": "sub_1"}));
        app.apply(broken.clone()).await;
        app.deliver(broken.to_string().as_bytes()).await.ok();
        let alerts = all(app, "dead_letter").await;
        let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
        assert_eq!((&alert["details"]["event_id"], &alert["type"]), (&broken["id"], &json!("stripe.dead_letter")), "{alert}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_stripe_does_not_know_is_a_dead_letter_each_time_that_he_is_given_up() {
    on_each_story(Options::default(), async |story: Story| {
        let app = &story.app;
        let lost = updated(1, subscription("cus_of_another_account", "active", "price_pro"));
        app.deliver(lost.to_string().as_bytes()).await.ok();
        for round in 1..=2 {
            for _ in 0..20 {
                story.settle().await;
            }
            let alerts = all(app, "dead_letter").await;
            assert_eq!(alerts.len(), round);
            assert_eq!(alerts[0]["details"]["subject"], "cus_of_another_account", "{}", alerts[0]);
            assert!(alerts[0]["message"].as_str().unwrap().contains("8 times in vain"), "{}", alerts[0]);
            app.post(&format!("/v1/events/{}/replay", lost["id"].as_str().unwrap()), "").await.ok();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_comparison_finds_is_one_alert_and_none_where_it_finds_nothing() {
    on_each_story(Options::default(), async |story: Story| {
        let (app, fake) = (&story.app, &story.fake);
        for user in ["a", "b"] {
            let customer = fake.create_customer(&[("user_id", user)]);
            fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
        }
        fake.calm_deliveries();
        app.advance(TimeDelta::minutes(5));
        // The second run has a time before it, in which events did not come; the third finds nothing.
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(app.reconciler().once().await.unwrap());
            story.settle().await;
        }
        let found = all(app, "drift").await.iter().map(|alert| alert["details"].clone()).collect::<Vec<_>>();
        let [second, first] = found.as_slice() else { panic!("{found:?}") };
        for (told, run) in [(first, &runs[0]), (second, &runs[1])] {
            let Run { number, checked, drifted, missed_events, .. } = run;
            let found = json!({
                "run": number, "checked": checked, "drifted": drifted, "missed_events": missed_events, "faults": [], "unread": 0,
            });
            assert_eq!(*told, found);
        }
        assert!(2 <= runs[0].drifted && 0 < runs[1].missed_events && (runs[2].drifted, runs[2].missed_events) == (0, 0), "{runs:?}");
        // An unmapped price is told where Stripe is asked too.
        fake.create_product("prod_new", &[]);
        fake.create_price("price_new", "prod_new", spendgate::fake_stripe::PriceSpec::monthly(1));
        let customer = fake.create_customer(&[("user_id", "c")]);
        fake.subscribe(&customer, &[("price_new", Some(1))], "active");
        story.deliver(Weather::CALM, 1).await;
        story.settle().await;
        assert_eq!(all(app, "unmapped_price").await[0]["details"]["customer"], json!(customer));
    })
    .await;
}

#[tokio::test]
async fn a_model_without_a_price_and_a_rule_that_fails_are_told_once_a_day() {
    let tiers = format!("rules:\n  - {{ name: needs_a_feature, when: \"metadata.feature == 'chat'\", action: WARN }}\n{TIERS}");
    on_each_database(&tiers, async |app| {
        let ask = async |model: &str| {
            let call = json!({"user_id": "u", "model": model, "input_tokens": 1, "metadata": {"feature": "search"}});
            app.post("/v1/enforcement", call).await.ok();
        };
        for day in 1..=2 {
            for _ in 0..3 {
                ask("unheard-of").await;
                app.check("u").await;
            }
            let today = app.now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            for kind in ["unpriced_model", "rule_failed"] {
                raised(app, |alert| alert["kind"] == kind && alert["created_at"] == today.as_str()).await;
                assert_eq!(all(app, kind).await.len(), day, "{kind}");
            }
            app.advance(TimeDelta::days(1));
        }
        assert_eq!(all(app, "unpriced_model").await[0]["details"], json!({"model": "unheard-of"}));
        assert_eq!(all(app, "rule_failed").await[0]["details"]["rule"], "needs_a_feature");
        // Another node, or the same one after a restart, tells nothing again.
        app.set_clock("2026-01-12T12:00:00Z");
        app.restart().await;
        for model in ["unheard-of", "unheard-of-too"] {
            let call = json!({"user_id": "u", "model": model, "input_tokens": 1, "metadata": {"feature": "search"}});
            app.post("/v1/enforcement", call).await.ok();
        }
        raised(app, |alert| alert["details"]["model"] == "unheard-of-too").await;
        assert_eq!(all(app, "unpriced_model").await.len(), 3);
    })
    .await;
}
