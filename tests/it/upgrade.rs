//! The way to pay more: a link on BLOCK, the right page of Stripe's behind it, and the tier there when the user is back.

use chrono::TimeDelta;
use reqwest::Method;
use reqwest::redirect::Policy;
use serde_json::json;
use spendgate::fake_stripe::knobs::{Call, Fault};
use spendgate::fake_stripe::objects::Card;
use spendgate::fake_stripe::{Generation, Options, Portal};

use crate::app::{Answer, Database, TestApp};
use crate::asking::{Story, on_each_story};

const PUBLIC_URL: &str = "https://spend.example.com";

/// A client that shows where it is sent, and takes problems as JSON.
pub async fn ask(app: &TestApp, method: Method, path: &str, header: Option<(&str, &str)>) -> Answer {
    // The first client of a process also chooses the cryptography.
    drop(TestApp::client());
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let request = client.request(method, app.url(path));
    let header = header.or(Some(("accept", "application/json")));
    app.send(header.into_iter().fold(request, |request, (name, value)| request.header(name, value))).await
}

pub async fn open(app: &TestApp, path: &str) -> Answer {
    ask(app, Method::GET, path, None).await
}

/// Where an opened link leads.
#[track_caller]
pub fn led_to(answer: &Answer) -> String {
    assert_eq!(answer.status, 303, "{}", answer.text);
    assert!(answer.headers["cache-control"] == "no-store" && answer.headers["referrer-policy"] == "no-referrer");
    answer.headers["location"].to_str().unwrap().to_owned()
}

pub fn last_part(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

pub fn below_us(url: &str) -> String {
    url.strip_prefix(PUBLIC_URL).unwrap_or_else(|| panic!("{url}")).to_owned()
}

/// Spends what the user's plan allows, and gives the path of the link that the check then has.
pub async fn blocked(app: &TestApp, user: &str) -> String {
    app.spend(&format!("all-{user}"), user, "0.20").await;
    let answer = app.check(user).await;
    assert_eq!(answer["action"], "BLOCK", "{answer}");
    let path = below_us(answer["upgrade_url"].as_str().unwrap());
    assert!(path.starts_with("/upgrade/"), "{path}");
    path
}

/// Whoever paid two of them would subscribe twice.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_checkouts_only_the_later_can_be_paid() {
    on_each_story(Options { page_max: 1, ..Options::default() }, async |mut story| {
        let path = blocked(&story.app, "u").await;
        let first = led_to(&open(&story.app, &path).await);
        // The service has forgotten the first, which ends so soon that it is not handed out again, so Stripe makes a second.
        story.app.advance(TimeDelta::hours(24) - TimeDelta::minutes(5));
        story.app.restart().await;
        let second = led_to(&open(&story.app, &path).await);
        let status = |url: &str| story.fake.object(last_part(url), Generation::Basil)["status"].clone();
        assert_eq!((status(&first), status(&second)), (json!("expired"), json!("open")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_user_buys_and_has_his_tier_before_any_webhook() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u|1").await;
        assert_eq!(fake.call_count(""), 0, "a link is made without asking Stripe");
        assert_eq!(app.check("u|1").await["upgrade_url"], json!(format!("{PUBLIC_URL}{path}")), "the same within an hour");
        let to = led_to(&open(app, &path).await);
        assert!(to.contains("/checkout/cs_"), "{to}");
        let session = fake.object(last_part(&to), Generation::Basil);
        let customer = app.user("u|1").await["stripe_customer"].as_str().unwrap().to_owned();
        assert_eq!((&session["customer"], &session["client_reference_id"]), (&json!(customer), &json!("u|1")));
        assert_eq!(fake.object(&customer, Generation::Basil)["metadata"], json!({"user_id": "u|1"}));
        assert_eq!(story.tier("u|1").await, "free");
        let back = below_us(&fake.pay_checkout(last_part(&to)));
        let page = open(app, &back).await;
        assert!(page.status == 200 && page.headers["cache-control"] == "no-store", "{}", page.text);
        assert!(page.text.contains("Your plan is pro"), "{}", page.text);
        assert_eq!(story.tier("u|1").await, "pro");
        assert_eq!(app.get("/v1/events").await.ok()["events"], json!([]), "no webhook has come");
        // The old link never sells a second subscription.
        let again = led_to(&open(app, &path).await);
        assert!(again.contains("/portal/"), "{again}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opened_again_at_once_and_by_two_it_makes_one_customer_and_one_session() {
    on_each_story(Options::default(), async |mut story| {
        let path = blocked(&story.app, "u").await;
        let (app, fake) = (&story.app, &story.fake);
        let (one, two, three) = tokio::join!(open(app, &path), open(app, &path), open(app, &path));
        let to = led_to(&one);
        let later = open(app, &path).await;
        assert!([&two, &three, &later].iter().all(|answer| led_to(answer) == to));
        assert_eq!((fake.call_count("POST /v1/customers"), fake.call_count("POST /v1/checkout/sessions")), (1, 1));
        // Another link of the same day, and a service that has forgotten: Stripe's own memory of the key is left.
        app.advance(TimeDelta::hours(2));
        story.app.restart().await;
        let (app, fake) = (&story.app, &story.fake);
        let other = blocked(app, "u").await;
        assert_ne!(other, path);
        assert_eq!(led_to(&open(app, &other).await), to);
        assert_eq!(led_to(&open(app, &path).await), to, "the key was kept over the restart");
        assert_eq!(fake.call_count("POST /v1/customers"), 1);
        fake.pay_checkout(last_part(&to));
        let customer = app.user("u").await["stripe_customer"].as_str().unwrap().to_owned();
        assert_eq!(fake.subscriptions(&customer).len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_stripes_that_is_lost_makes_no_second_customer_or_session() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        fake.script(1, Fault::AnswerLost, "POST /v1/customers");
        fake.script(1, Fault::AnswerLost, "POST /v1/checkout/sessions");
        led_to(&open(app, &path).await);
        let made = |kind: &str| fake.events().iter().filter(|(_, known)| known == kind).count();
        assert_eq!(made("customer.created"), 1);
        let is_made = |call: &Call| (call.method.as_str(), call.path.as_str()) == ("POST", "/v1/checkout/sessions");
        let tries: Vec<_> = fake.calls().into_iter().filter(is_made).collect();
        assert_eq!(tries.len(), 2);
        assert_eq!(tries[0].idempotency_key, tries[1].idempotency_key);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_only_looks_at_a_link_makes_nothing() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let looks = [
            (Method::HEAD, None),
            (Method::GET, Some(("purpose", "prefetch"))),
            (Method::GET, Some(("sec-purpose", "prefetch;prerender"))),
        ];
        for (method, header) in looks {
            let answer = ask(app, method, &path, header).await;
            assert!(answer.status == 200 && answer.headers["cache-control"] == "no-store", "{}", answer.text);
        }
        assert_eq!(fake.call_count(""), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_ends_with_its_day_and_is_nothing_when_altered() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let token = path.strip_prefix("/upgrade/").unwrap();
        for (index, letter) in token.char_indices() {
            let other = if letter == 'A' { 'B' } else { 'A' };
            let altered = format!("/upgrade/{}{other}{}", &token[..index], &token[index + 1..]);
            let answer = open(app, &altered).await;
            answer.problem(404, "link_invalid");
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
        // What leads there does not lead back.
        open(app, &format!("/billing/return/{token}")).await.problem(404, "link_invalid");
        app.advance(TimeDelta::hours(24) - TimeDelta::seconds(1));
        led_to(&open(app, &path).await);
        app.advance(TimeDelta::seconds(1));
        let asked = fake.call_count("");
        open(app, &path).await.problem(410, "link_expired");
        assert_eq!(fake.call_count(""), asked);
    })
    .await;
}

/// Prices, and how many of each.
type Items<'a> = &'a [(&'a str, Option<u64>)];

const HOME: &str = "nothing of its own";

/// What a page of the portal is opened for.
async fn offered(app: &TestApp, to: &str) -> &'static str {
    assert!(to.contains("/portal/"), "{to}");
    let page = app.send(app.client.get(to)).await;
    assert_eq!(page.status, 200, "{}", page.text);
    ["<h2>Change to", "<h2>Your card"].into_iter().find(|what| page.text.contains(what)).unwrap_or(HOME)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_confirmed_in_the_portal_is_there_on_return() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let customer = fake.create_customer(&[("user_id", "u")]);
        app.put("/v1/users/u", json!({"stripe_customer": customer})).await.ok();
        let subscription = fake.subscribe(&customer, &[("price_free", Some(3))], "active");
        let to = led_to(&open(app, &path).await);
        let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        let form = client.post(&to).header("content-type", "application/x-www-form-urlencoded").body("action=flow");
        let confirmed = app.send(form).await;
        assert_eq!(confirmed.status, 303, "{}", confirmed.text);
        let page = open(app, &below_us(confirmed.headers["location"].to_str().unwrap())).await;
        assert!(page.text.contains("Your plan is pro"), "{}", page.text);
        let item = &fake.object(&subscription, Generation::Basil)["items"]["data"][0];
        assert_eq!((&item["price"]["id"], &item["quantity"]), (&json!("price_pro"), &json!(3)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_is_sent_to_the_portal_and_never_to_checkout() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let cases: [(&str, &str, Items<'_>, &str); 6] = [
            ("active", "active", &[("price_free", Some(3))], "<h2>Change to"),
            ("trialing", "trialing", &[("price_free", Some(1))], "<h2>Change to"),
            ("paused", "paused", &[("price_free", Some(1))], HOME),
            ("two-items", "active", &[("price_free", Some(1)), ("price_addon", Some(1))], HOME),
            ("unpaid", "unpaid", &[("price_pro", Some(1))], "<h2>Your card"),
            ("incomplete", "incomplete", &[("price_pro", Some(1))], "<h2>Your card"),
        ];
        fake.create_price("price_addon", "prod_price_free", spendgate::fake_stripe::PriceSpec::monthly(100));
        for (user, status, items, expected) in cases {
            let path = blocked(app, user).await;
            let customer = fake.create_customer(&[("user_id", user)]);
            app.put(&format!("/v1/users/{user}"), json!({"stripe_customer": customer})).await.ok();
            let subscription = fake.subscribe(&customer, items, "active");
            fake.set_status(&subscription, status);
            let to = led_to(&open(app, &path).await);
            assert_eq!(offered(app, &to).await, expected, "{user}");
        }
        // One who has what the link sells, or more, is not led down.
        let path = blocked(app, "has-more").await;
        let customer = fake.create_customer(&[("user_id", "has-more")]);
        app.put("/v1/users/has-more", json!({"stripe_customer": customer})).await.ok();
        let subscription = fake.subscribe(&customer, &[("price_enterprise", Some(1))], "active");
        assert_eq!(offered(app, &led_to(&open(app, &path).await)).await, HOME);
        // Once it is past due he pays first.
        fake.set_card(&customer, Card::Declined);
        fake.advance_period(&subscription);
        assert_eq!(offered(app, &led_to(&open(app, &path).await)).await, "<h2>Your card");
        assert_eq!(fake.call_count("POST /v1/checkout/sessions"), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_that_changes_nothing_is_shown_and_one_that_is_not_there_is_replaced() {
    for database in Database::ALL {
        for (portal, expected) in [
            (Portal { configured: true, updates: false, prices: None }, "/portal/"),
            (Portal { configured: false, updates: false, prices: None }, "/upgrade?from="),
        ] {
            let story = Story::begin(database, Options { portal, ..Options::default() }).await;
            let (app, fake) = (&story.app, &story.fake);
            let path = blocked(app, "u").await;
            let customer = fake.create_customer(&[("user_id", "u")]);
            app.put("/v1/users/u", json!({"stripe_customer": customer})).await.ok();
            fake.subscribe(&customer, &[("price_free", Some(1))], "active");
            let to = led_to(&open(app, &path).await);
            assert!(to.contains(expected), "{to}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_who_was_deleted_is_made_anew() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        led_to(&open(app, &path).await);
        let first = app.user("u").await["stripe_customer"].as_str().unwrap().to_owned();
        fake.delete_customer(&first);
        let to = led_to(&open(app, &path).await);
        let second = app.user("u").await["stripe_customer"].as_str().unwrap().to_owned();
        assert_ne!(first, second);
        assert_eq!(fake.object(last_part(&to), Generation::Basil)["customer"], json!(second));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_stripe_is_down_nobody_is_sent_on_and_checks_answer_as_before() {
    on_each_story(Options::default(), async |story| {
        let (app, fake) = (&story.app, &story.fake);
        let path = blocked(app, "u").await;
        let before = app.check("u").await;
        fake.turn(|knobs| (knobs.chance_per_mille, knobs.chances) = (1000, vec![Fault::BadGateway]));
        let answer = open(app, &path).await;
        answer.problem(503, "stripe_unreachable");
        assert!(answer.headers.contains_key("retry-after"));
        assert_eq!(app.check("u").await, before);
        fake.turn(|knobs| knobs.chance_per_mille = 0);
        let to = led_to(&open(app, &path).await);
        // He is back while Stripe is down: the page says what is known.
        let back = below_us(&fake.pay_checkout(last_part(&to)));
        fake.turn(|knobs| knobs.chance_per_mille = 1000);
        let page = open(app, &back).await;
        assert!(page.status == 200 && page.text.contains("Your plan is free"), "{}", page.text);
        fake.turn(|knobs| knobs.chance_per_mille = 0);
        story.settle().await;
        assert_eq!(story.tier("u").await, "pro");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_opened_without_end_is_stopped_for_a_minute() {
    on_each_story(Options::default(), async |story| {
        let app = &story.app;
        let path = blocked(app, "u").await;
        for _ in 0..20 {
            led_to(&open(app, &path).await);
        }
        let answer = open(app, &path).await;
        answer.problem(429, "too_many_requests");
        assert_eq!(answer.headers["retry-after"], "60");
        let other = blocked(app, "another").await;
        led_to(&open(app, &other).await);
        app.advance(TimeDelta::minutes(1));
        led_to(&open(app, &path).await);
    })
    .await;
}
