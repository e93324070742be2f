//! The fake Stripe's events are taken as Stripe's own.

use spendgate::fake_stripe::delivery::Weather;
use spendgate::fake_stripe::{FakeStripe, Generation, Options, PriceSpec};

use crate::app::{TIERS, TestApp, WEBHOOK_SECRET, on_each_database};

/// Posts what waits, as the weather lets it through.
pub async fn deliver(app: &TestApp, fake: &FakeStripe, weather: Weather) {
    for delivery in fake.deliveries(7, weather) {
        let request =
            delivery.headers.iter().fold(TestApp::client().post(&delivery.url), |request, (name, value)| request.header(name, value));
        let answer = app.send(request.body(delivery.body.clone())).await;
        assert_eq!(answer.status, 200, "{}", delivery.kind);
    }
}

#[tokio::test]
async fn a_subscription_at_the_fake_decides_the_tier_as_one_at_stripe_would() {
    for generation in [Generation::Acacia, Generation::Basil] {
        on_each_database(TIERS, async |app| {
            let clock = app.shared_clock();
            let fake = FakeStripe::new(Options { generation, ..Options::default() }, clock, 1);
            fake.listen(&app.url("/webhooks/stripe"), WEBHOOK_SECRET);
            for price in ["price_pro", "price_enterprise"] {
                fake.create_product(&format!("prod_{price}"), &[]);
                fake.create_price(price, &format!("prod_{price}"), PriceSpec::monthly(2900));
            }
            let customer = fake.create_customer(&[("user_id", "u")]);
            let subscription = fake.subscribe(&customer, &[("price_pro", Some(1))], "active");
            deliver(app, &fake, Weather::CALM).await;
            assert_eq!(app.check("u").await["tier"], "pro");
            app.advance(chrono::TimeDelta::minutes(1));
            fake.change_items(&subscription, &[("price_enterprise", Some(1))]);
            // Again and in any order.
            deliver(app, &fake, Weather { shuffle: true, repeats_max: 3, ..Weather::CALM }).await;
            assert_eq!(app.check("u").await["tier"], "enterprise");
            app.advance(chrono::TimeDelta::minutes(1));
            fake.cancel(&subscription);
            deliver(app, &fake, Weather::CALM).await;
            assert_eq!(app.check("u").await["tier"], "free");
        })
        .await;
    }
}
