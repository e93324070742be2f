//! Links to buy more where it is easy to go wrong: accounts, two days, prices of a product, pages for browsers, forged headers.

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;
use spendgate::fake_stripe::delivery::Weather;
use spendgate::fake_stripe::knobs::Fault;
use spendgate::fake_stripe::{Options, PriceSpec};

use crate::app::{Database, TIERS};
use crate::asking::{Story, on_each_story};
use crate::upgrade::{ask, below_us, blocked, last_part, led_to, open};

/// Two users of an account whose customer has no subscription. Gives the customer.
async fn account(story: &Story) -> String {
    let customer = story.fake.create_customer(&[]);
    for user in ["a", "b"] {
        story.app.put(&format!("/v1/accounts/acme/users/{user}"), "").await.ok();
    }
    story.app.put("/v1/accounts/acme", json!({"stripe_customer": customer})).await.ok();
    story.settle().await;
    customer
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_one_account_are_sold_one_subscription() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let customer = account(&story).await;
        let (one, two) = (blocked(app, "a").await, blocked(app, "b").await);
        let (one, two) = tokio::join!(open(app, &one), open(app, &two));
        assert_eq!(led_to(&one), led_to(&two));
        let back = below_us(&fake.pay_checkout(last_part(&led_to(&one))));
        open(app, &back).await;
        assert_eq!((fake.subscriptions(&customer).len(), fake.call_count("POST /v1/checkout/sessions")), (1, 1));
        assert_eq!((story.tier("a").await, story.tier("b").await), ("pro".to_owned(), "pro".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_leads_to_an_open_checkout_after_another_link_ended_the_one_before() {
    on_each_story(Options::default(), async |mut story| {
        let pro = blocked(&story.app, "u").await;
        let tiers = TIERS.replace("prices: [price_pro]\n    lookup_keys: [pro_monthly, pro_yearly]", "prices: []");
        assert_ne!(tiers, TIERS);
        story.app.restart_with(&tiers).await;
        let enterprise = below_us(story.app.check("u").await["upgrade_url"].as_str().unwrap());
        story.app.restart_with(TIERS).await;
        let app = &story.app;
        let mut before = String::new();
        for path in [&pro, &enterprise, &pro, &enterprise] {
            let to = led_to(&open(app, path).await);
            assert_ne!(to, before);
            let page = app.send(app.client.get(&to)).await;
            assert!(page.text.contains("Pay"), "{}", page.text);
            if !before.is_empty() {
                let ended = app.send(app.client.get(&before)).await;
                assert!(ended.text.contains("This checkout is expired"), "{}", ended.text);
            }
            before = to;
        }
        // A service that forgot finds what is open.
        story.app.restart().await;
        assert_eq!(led_to(&open(&story.app, &enterprise).await), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_one_account_get_one_session_where_stripes_lists_are_old() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        account(&story).await;
        let (one, two) = (blocked(app, "a").await, blocked(app, "b").await);
        // No list shows the session of the first one.
        fake.turn(|knobs| knobs.stale_changes = 100);
        let one = led_to(&open(app, &one).await);
        assert_eq!(led_to(&open(app, &two).await), one);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_customer_in_the_place_of_an_accounts_pays_for_the_account() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let gone = account(&story).await;
        fake.delete_customer(&gone);
        let path = blocked(app, "a").await;
        let back = below_us(&fake.pay_checkout(last_part(&led_to(&open(app, &path).await))));
        let page = open(app, &back).await;
        assert!(page.text.contains("Your plan is pro"), "{}", page.text);
        story.deliver(Weather::CALM, 1).await;
        story.settle().await;
        assert_eq!((story.tier("a").await, story.tier("b").await), ("pro".to_owned(), "pro".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_day_before_is_handed_out_again_by_a_service_that_forgot_it() {
    on_each_story(Options::default(), async |mut story| {
        story.app.set_clock("2026-01-12T23:59:00Z");
        let path = blocked(&story.app, "u").await;
        let one = led_to(&open(&story.app, &path).await);
        story.app.advance(TimeDelta::minutes(2));
        story.app.restart().await;
        assert_eq!(led_to(&open(&story.app, &path).await), one);
        // Shortly before it ends there is another one.
        story.app.set_clock("2026-01-13T23:50:00Z");
        story.app.spend("again", "u", "0.20").await;
        let path = below_us(story.app.check("u").await["upgrade_url"].as_str().unwrap());
        assert_ne!(led_to(&open(&story.app, &path).await), one);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_price_of_the_target_is_another_session() {
    on_each_story(Options::default(), async |mut story| {
        story.fake.create_price("price_new", "prod_price_pro", PriceSpec::monthly(3900));
        let path = blocked(&story.app, "u").await;
        let one = led_to(&open(&story.app, &path).await);
        story.app.restart_with(&TIERS.replace("prices: [price_pro]", "prices: [price_new, price_pro]")).await;
        assert_ne!(led_to(&open(&story.app, &path).await), one);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_is_sold_by_its_lookup_key_or_its_product_where_it_names_no_price() {
    let sold_as = "prices: [price_pro]\n    lookup_keys: [pro_monthly, pro_yearly]";
    let cases = [
        ("lookup_keys: [none, pro_monthly]", None, "by_key"),
        ("products: [prod_x]", None, "newest"),
        ("products: [prod_x]", Some("old"), "old"),
    ];
    for database in Database::ALL {
        for (instead, default, expected) in cases {
            let tiers = TIERS.replace(sold_as, instead);
            assert_ne!(tiers, TIERS);
            let mut story = Story::begin(database, Options::default()).await;
            story.app.restart_with(&tiers).await;
            let (app, fake) = (&story.app, &story.fake);
            fake.create_product("prod_x", &[]);
            fake.create_price("by_key", "prod_price_pro", PriceSpec { lookup_key: Some("pro_monthly"), ..PriceSpec::monthly(2900) });
            fake.create_price("old", "prod_x", PriceSpec::monthly(1900));
            fake.create_price("newest", "prod_x", PriceSpec::monthly(2900));
            fake.create_price("once", "prod_x", PriceSpec { recurring: None, ..PriceSpec::monthly(2900) });
            fake.create_price("ended", "prod_x", PriceSpec { active: false, ..PriceSpec::monthly(2900) });
            if let Some(price) = default {
                fake.set_default_price("prod_x", price);
            }
            let path = blocked(app, "u").await;
            assert!(led_to(&open(app, &path).await).contains("/checkout/"));
            let sold = fake.calls().into_iter().find(|call| call.method == "POST" && call.path == "/v1/checkout/sessions").unwrap();
            assert!(sold.body.contains(&format!("={expected}&")) || sold.body.ends_with(&format!("={expected}")), "{}", sold.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_pay_is_shown_what_he_bought_and_led_to_pay_it() {
    for database in Database::ALL {
        for status in ["unpaid", "incomplete", "past_due"] {
            let story = Story::begin(database, Options::default()).await;
            let (app, fake) = (&story.app, &story.fake);
            let customer = fake.create_customer(&[]);
            app.put("/v1/users/u", json!({"stripe_customer": customer})).await.ok();
            let subscription = fake.subscribe(&customer, &[("price_enterprise", Some(1))], "incomplete");
            fake.set_status(&subscription, status);
            // A question that is under way already would be answered by what was before.
            story.settle().await;
            app.asker().now(&customer).await.unwrap();
            story.settle().await;
            // Longer than the tier's grace.
            app.advance(TimeDelta::days(31));
            let path = blocked(app, "u").await;
            let check = app.check("u").await;
            assert_eq!((&check["tier"], &check["upgrade"]["tier"]), (&json!("free"), &json!("enterprise")), "{status}");
            let page = app.send(app.client.get(led_to(&open(app, &path).await))).await;
            let expected = if status == "past_due" { "<h2>Your card" } else { "<h1>Invoice" };
            assert!(page.text.contains(expected), "{status}: {}", page.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_see_pages_where_others_get_problems() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let browser = Some(("accept", "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8"));
        let page = async |path: &str, status: u16, title: &str, accept| {
            let answer = ask(app, Method::GET, path, accept).await;
            let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            assert_eq!((answer.status, header("content-type").as_str()), (status, "text/html; charset=utf-8"), "{}", answer.text);
            assert!(answer.text.contains(title), "{}", answer.text);
            assert_eq!((header("cache-control").as_str(), header("referrer-policy").as_str()), ("no-store", "no-referrer"));
            assert!(header("content-security-policy").contains("default-src 'none'"));
            header("retry-after")
        };
        for accept in [browser, Some(("accept", "*/*"))] {
            page("/upgrade/none", 404, "There is no such link", accept).await;
            page("/billing/return/none", 404, "go back to where it was shown", accept).await;
        }
        fake.turn(|knobs| (knobs.chance_per_mille, knobs.chances) = (1000, vec![Fault::BadGateway]));
        assert_eq!(page(&path, 503, "Stripe cannot be reached", browser).await, "1");
        fake.turn(|knobs| knobs.chance_per_mille = 0);
        app.advance(TimeDelta::hours(24));
        page(&path, 410, "The link has expired", browser).await;
        open(app, &path).await.problem(410, "link_expired");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_fetched_ahead_has_the_link_and_makes_nothing() {
    on_each_story(Options::default(), async |story| {
        let path = blocked(&story.app, "u").await;
        for header in [("x-moz", "prefetch"), ("purpose", "prefetch"), ("sec-purpose", "prefetch;prerender")] {
            let page = ask(&story.app, Method::GET, &path, Some(header)).await;
            assert!(page.status == 200 && page.text.contains(&format!("<a href=\"https://spend.example.com{path}\">")), "{}", page.text);
        }
        assert_eq!(story.fake.call_count(""), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_headers_and_paths_lead_nowhere_else() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        for header in [("host", "evil.example"), ("x-forwarded-host", "evil.example"), ("forwarded", "host=evil.example")] {
            led_to(&ask(app, Method::GET, &path, Some(header)).await);
            let check = app.client.get(app.url("/v1/users/u/enforcement")).bearer_auth(crate::app::ADMIN_KEY).header(header.0, header.1);
            assert_eq!(below_us(app.send(check).await.ok()["upgrade_url"].as_str().unwrap()), path);
        }
        let sold = fake.calls().into_iter().find(|call| call.method == "POST" && call.path == "/v1/checkout/sessions").unwrap();
        assert!(!sold.body.contains("evil") && sold.body.contains("spend.example.com"), "{}", sold.body);
        let back = below_us(&fake.pay_checkout(last_part(&led_to(&open(app, &path).await))));
        for tail in ["?to=https://evil.example", "?url=//evil.example"] {
            let answer = open(app, &format!("{back}{tail}")).await;
            assert!(answer.status == 200 && !answer.headers.contains_key("location") && !answer.text.contains("evil"), "{}", answer.text);
        }
        for bad in ["%0d%0aset-cookie:%20a=b", "a%0d%0alocation:%20https:%2F%2Fevil.example", "%00", "%3Cscript%3E"] {
            for door in ["upgrade", "billing/return"] {
                let answer = open(app, &format!("/{door}/{bad}")).await;
                answer.problem(404, "link_invalid");
                assert!(!answer.headers.contains_key("set-cookie") && !answer.headers.contains_key("location"));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_led_back_to_the_page_of_the_operators_and_their_tier_is_there_already() {
    on_each_story(Options::default(), async |mut story| {
        story.app.config.return_url = Some("https://app.example.com/billing".to_owned());
        story.app.restart().await;
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let back = below_us(&fake.pay_checkout(last_part(&led_to(&open(app, &path).await))));
        assert_eq!(ask(app, Method::HEAD, &back, None).await.status, 200);
        assert_eq!(story.tier("u").await, "free");
        assert_eq!(led_to(&open(app, &format!("{back}?to=https://evil.example")).await), "https://app.example.com/billing");
        assert_eq!(story.tier("u").await, "pro");
        open(app, "/billing/return/none").await.problem(404, "link_invalid");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_that_another_node_has_ended_is_not_handed_out_again() {
    on_each_story(Options::default(), async |story| {
        let app = &story.app;
        let path = blocked(app, "u").await;
        let first = led_to(&open(app, &path).await);
        assert_eq!(led_to(&open(app, &path).await), first);
        let expire = format!("{}/v1/checkout/sessions/{}/expire", app.config.stripe.api_base, last_part(&first));
        assert_eq!(app.client.post(expire).bearer_auth("sk_test_fake").send().await.unwrap().status().as_u16(), 200);
        let second = led_to(&open(app, &path).await);
        assert_ne!(second, first);
        let page = app.send(app.client.get(&second)).await;
        assert!(page.text.contains("Pay"), "{}", page.text);
    })
    .await;
}
