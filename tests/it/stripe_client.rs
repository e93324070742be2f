//! The client of Stripe's API against a Stripe that pages, refuses, stalls and loses its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use spendgate::domain::subscription::Notice;
use spendgate::fake_stripe::knobs::Fault;
use spendgate::fake_stripe::objects::Card;
use spendgate::fake_stripe::{FakeStripe, Generation, Options, PriceSpec};
use spendgate::stripe::client::{Client, Idempotency, Patience, PortalFlow, StripeError};
use spendgate::stripe::event::{Content, Event};
use spendgate::stripe::key::ApiKey;

use crate::app::NOON;

/// Tries at once, and so long that no machine is too slow.
const QUICK: Patience = Patience {
    deadline: Duration::from_secs(120),
    answer: Duration::from_secs(60),
    pause: Duration::from_millis(1),
    pause_max: Duration::from_millis(1),
    ..Patience::BACKGROUND
};
const KEY: &str = "sk_live_of_the_tests";

pub fn noon() -> DateTime<Utc> {
    NOON.parse().unwrap()
}

/// Serves on loopback, and gives the URL.
pub async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

pub fn client(key: &str, url: &str) -> Client {
    Client::new(ApiKey::parse(key).unwrap(), url, 1).unwrap().with(QUICK)
}

/// A fake with two prices of one product, and a client of it.
pub async fn stripe(options: Options) -> (FakeStripe, Client) {
    let options = Options { keys: vec![KEY.to_owned()], ..options };
    let fake = FakeStripe::new(options, Arc::new(noon), 1);
    fake.create_product("prod_1", &[]);
    fake.create_price("small-monthly", "prod_1", PriceSpec::monthly(500));
    fake.create_price("Large plan/2", "prod_1", PriceSpec { lookup_key: Some("large"), ..PriceSpec::monthly(2900) });
    let url = serve(fake.router()).await;
    (fake, client(KEY, &url))
}

/// A server that answers everything with this, and how often it did.
async fn answering(status: u16, body: impl Into<Vec<u8>>) -> (Client, Arc<AtomicUsize>) {
    let (body, asked) = (body.into(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let router = Router::new().fallback(move |_: Uri| {
        count.fetch_add(1, Ordering::Relaxed);
        let body = axum::body::Body::from(body.clone());
        async move { axum::response::Response::builder().status(status).header("location", "/elsewhere").body(body).unwrap() }
    });
    (client(KEY, &serve(router).await), asked)
}

#[tokio::test]
async fn customers_are_read_deleted_ones_too() {
    let (fake, stripe) = stripe(Options::default()).await;
    let (named, gone) = (fake.create_customer(&[("user_id", "u")]), fake.create_customer(&[]));
    fake.delete_customer(&gone);
    let found = stripe.customer(&named).await.unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.deleted, found.user_hint.as_deref()), (named.as_str(), false, Some("u")));
    assert!(stripe.customer(&gone).await.unwrap().unwrap().deleted);
    assert_eq!(stripe.customer("cus_nobody").await, Ok(None));
    assert_eq!(stripe.customer("../account").await, Ok(None));
    assert_eq!(stripe.subscriptions_of("cus_nobody", noon()).await, Err(StripeError::NotFound));
    assert_eq!(fake.calls()[0].stripe_version.as_deref(), Some("2026-03-25.dahlia"));
    assert_eq!(stripe.server_time(), Some(noon()));
}

#[tokio::test]
async fn all_subscriptions_come_with_all_items_however_small_the_pages() {
    let (fake, stripe) = stripe(Options { page_max: 1, items_max: 1, ..Options::default() }).await;
    let (customer, other) = (fake.create_customer(&[]), fake.create_customer(&[]));
    let items = [("small-monthly", Some(2)), ("Large plan/2", Some(1)), ("small-monthly", Some(3))];
    let mut expected: Vec<String> = ["active", "past_due", "canceled"]
        .iter()
        .map(|status| fake.subscribe_with(&customer, &items, status, &[("user_id", "u")]))
        .collect();
    expected.reverse();
    fake.subscribe(&other, &items, "active");
    let found = stripe.subscriptions_of(&customer, noon()).await.unwrap();
    assert_eq!(found.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), expected);
    for one in &found {
        let lines: Vec<_> = one.items.iter().map(|item| (item.price.as_deref().unwrap(), item.quantity)).collect();
        assert_eq!(lines, items);
        assert!(one.items.iter().all(|item| item.id.starts_with("si_")));
        let snapshot: Vec<_> = one.snapshot.items.iter().map(|item| (item.price.as_deref().unwrap(), item.quantity)).collect();
        assert_eq!((snapshot, one.snapshot.has_more_items, one.snapshot.said_at), (items.to_vec(), false, noon()));
        assert_eq!((one.user_hint.as_deref(), one.created, one.customer.as_str()), (Some("u"), Some(noon()), customer.as_str()));
    }
    assert!(found[2].latest_invoice.as_ref().unwrap().starts_with("in_"));
    assert!(stripe.subscriptions_of(&fake.create_customer(&[]), noon()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_subscription_reads_as_it_does_in_an_event_of_either_generation() {
    let fake = stripe(Options::default()).await.0;
    let customer = fake.create_customer(&[]);
    let subscription = fake.subscribe(&customer, &[("Large plan/2", Some(2))], "trialing");
    fake.cancel_at_period_end(&subscription, true);
    fake.pause_collection(&subscription, Some("void"));
    for generation in [Generation::Acacia, Generation::Basil] {
        let object = fake.object(&subscription, generation);
        let event =
            json!({"id": "evt_1", "type": "customer.subscription.updated", "created": noon().timestamp(), "data": {"object": object}});
        let event = Event::from_json(event.to_string().as_bytes(), noon()).unwrap();
        let Content::Notice { notice: Notice::Subscription { snapshot, .. }, .. } = event.content else { panic!("a notice") };
        let list = json!({"object": "list", "data": [object], "has_more": false});
        let (stripe, _) = answering(200, list.to_string()).await;
        let found = stripe.subscriptions_of(&customer, noon()).await.unwrap();
        assert_eq!(found[0].snapshot, snapshot, "{generation:?}");
        assert!(snapshot.items[0].period_end.is_some() && snapshot.cancel_at_period_end && snapshot.collection_paused);
    }
}

#[tokio::test]
async fn everything_is_listed_page_by_page_for_reconciliation() {
    let (fake, stripe) = stripe(Options { page_max: 2, items_max: 1, ..Options::default() }).await;
    let customers: Vec<String> = (0..3).map(|_| fake.create_customer(&[])).collect();
    for customer in &customers {
        fake.subscribe(customer, &[("small-monthly", Some(1)), ("Large plan/2", Some(1))], "canceled");
    }
    let first = stripe.customers_page(None).await.unwrap();
    assert_eq!((first.items.len(), first.next.as_ref()), (2, Some(&customers[1])));
    let second = stripe.customers_page(first.next.as_deref()).await.unwrap();
    assert_eq!((second.items[0].id.as_str(), second.next), (customers[0].as_str(), None));
    let first = stripe.subscriptions_page(None, noon()).await.unwrap();
    let second = stripe.subscriptions_page(first.next.as_deref(), noon()).await.unwrap();
    let all: Vec<&str> = first.items.iter().chain(&second.items).map(|one| one.customer.as_str()).collect();
    assert_eq!(all, [customers[2].as_str(), &customers[1], &customers[0]]);
    assert!(second.next.is_none() && first.items.iter().all(|one| one.snapshot.has_more_items && one.items.len() == 1));
}

#[tokio::test]
async fn events_are_listed_as_stripe_wrote_them_newest_first() {
    let (fake, stripe) = stripe(Options { page_max: 2, ..Options::default() }).await;
    for _ in 0..3 {
        fake.create_customer(&[]);
    }
    let told: Vec<String> = fake.events().into_iter().map(|(id, _)| id).rev().collect();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = stripe.events_page(noon(), after.as_deref()).await.unwrap();
        let events = page.items.iter().map(|event| Event::from_json(event.get().as_bytes(), noon()).unwrap());
        found.extend(events.map(|event| event.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, told);
    assert!(stripe.events_page(noon() + TimeDelta::seconds(1), None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn what_may_pass_is_tried_four_times() {
    let faults = [
        Fault::TooManyRequests { retry_after: Some(0) },
        Fault::TooManyRequests { retry_after: None },
        Fault::ServerError,
        Fault::BadGateway,
        Fault::KeyInUse,
        Fault::AnswerLost,
    ];
    for fault in faults {
        let (fake, stripe) = stripe(Options::default()).await;
        let customer = fake.create_customer(&[]);
        fake.script(3, fault, "GET /v1/customers");
        assert!(stripe.customer(&customer).await.unwrap().is_some(), "{fault:?}");
        fake.script(4, fault, "GET /v1/customers");
        let error = stripe.customer(&customer).await.unwrap_err();
        assert!(matches!(error, StripeError::Unreachable(_)), "{fault:?}: {error}");
        assert_eq!(fake.call_count("GET /v1/customers"), 8, "{fault:?}");
    }
}

#[tokio::test]
async fn what_would_not_change_is_not_tried_again() {
    let (fake, stripe) = stripe(Options::default()).await;
    fake.script(1, Fault::Forbidden, "");
    let error = stripe.account().await.unwrap_err();
    assert!(matches!(error, StripeError::Refused { status: 403, .. }), "{error}");
    let error = stripe.create_portal_session("cus_nobody", "https://a.test", PortalFlow::Home, Idempotency::Salt("s")).await.unwrap_err();
    let StripeError::Refused { status, code, message } = error else { panic!("{error}") };
    assert_eq!((status, code.as_deref(), message.as_str()), (400, Some("resource_missing"), "No such customer: 'cus_nobody'"));
    assert_eq!(fake.calls().len(), 2);
}

#[tokio::test]
async fn a_wait_that_ends_after_the_deadline_is_not_begun() {
    let (fake, stripe) = stripe(Options::default()).await;
    fake.script(1, Fault::TooManyRequests { retry_after: Some(3600) }, "");
    assert!(matches!(stripe.account().await, Err(StripeError::Unreachable(_))));
    fake.script(1, Fault::TooManyRequests { retry_after: Some(u32::MAX) }, "");
    assert!(matches!(stripe.account().await, Err(StripeError::Unreachable(_))));
    assert_eq!(fake.calls().len(), 2);
}

#[tokio::test]
async fn who_never_answers_is_waited_for_until_the_deadline() {
    let (fake, stripe) = stripe(Options::default()).await;
    fake.script(100, Fault::Hang, "");
    let brief = stripe.with(Patience { deadline: Duration::from_millis(200), answer: Duration::from_secs(3600), ..QUICK });
    let answer = tokio::time::timeout(Duration::from_secs(60), brief.account()).await.expect("the deadline is not for one try alone");
    assert!(matches!(answer, Err(StripeError::Unreachable(_))));
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let error = client(KEY, &url).account().await.unwrap_err();
    assert!(matches!(&error, StripeError::Unreachable(why) if why.contains("no connection")), "{error}");
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_made_once() {
    for fault in [Fault::AnswerLost, Fault::AnswerLostInGateway, Fault::AnswerHangs] {
        let (fake, stripe) = stripe(Options::default()).await;
        fake.script(2, fault, "POST /v1/customers");
        // So many tries that even a slow machine answers one of them in time.
        let stripe = stripe.with(Patience { answer: Duration::from_millis(300), tries: 300, ..QUICK });
        let made = stripe.create_customer("u", Some("Ada"), Idempotency::Salt("s")).await.unwrap();
        assert_eq!(fake.events().iter().filter(|(_, kind)| kind == "customer.created").count(), 1, "{fault:?}");
        let again = stripe.create_customer("u", Some("Ada"), Idempotency::Salt("s")).await.unwrap();
        assert_eq!((&again, stripe.customer(&made).await.unwrap().unwrap().user_hint.as_deref()), (&made, Some("u")));
        let keys: Vec<_> = fake.calls().into_iter().filter(|call| call.method == "POST").map(|call| call.idempotency_key).collect();
        assert!(3 < keys.len() && keys.iter().all(|key| key.is_some() && *key == keys[0]), "{keys:?}");
    }
}

#[tokio::test]
async fn a_fault_that_stripe_keeps_under_a_key_is_an_error_under_this_key_only() {
    let (fake, stripe) = stripe(Options::default()).await;
    fake.script(1, Fault::ServerErrorKept, "POST /v1/customers");
    for _ in 0..2 {
        let error = stripe.create_customer("u", None, Idempotency::Key("a")).await.unwrap_err();
        assert!(matches!(error, StripeError::Unreachable(_)), "{error}");
    }
    assert_eq!(fake.call_count("POST /v1/customers"), 8);
    stripe.create_customer("u", None, Idempotency::Key("b")).await.unwrap();
}

#[tokio::test]
async fn objects_of_the_other_mode_are_refused() {
    let options = Options { keys: vec!["sk_live_a".to_owned(), "rk_test_b".to_owned()], ..Options::default() };
    let fake = FakeStripe::new(options, Arc::new(noon), 1);
    fake.create_product("prod_1", &[]);
    fake.create_price("p", "prod_1", PriceSpec { lookup_key: Some("k"), ..PriceSpec::monthly(500) });
    let customer = fake.create_customer(&[]);
    fake.subscribe(&customer, &[("p", Some(1))], "active");
    let url = serve(fake.router()).await;
    let stripe = client("rk_test_b", &url);
    let wrong = Err(StripeError::WrongMode);
    assert_eq!(stripe.customer(&customer).await.map(|_| ()), wrong);
    assert_eq!(stripe.subscriptions_of(&customer, noon()).await.map(|_| ()), wrong);
    assert_eq!(stripe.customers_page(None).await.map(|_| ()), wrong);
    assert_eq!(stripe.events_page(noon(), None).await.map(|_| ()), wrong);
    assert_eq!(stripe.price("p").await.map(|_| ()), wrong);
    assert_eq!(stripe.prices_by_lookup_keys(&["k"]).await.map(|_| ()), wrong);
    assert_eq!(stripe.account().await.map(|_| ()), wrong);
    assert!(client("sk_live_a", &url).customer(&customer).await.unwrap().is_some());
}

#[tokio::test]
async fn no_secret_is_told() {
    let (fake, _) = stripe(Options::default()).await;
    let key = "sk_live_0123456789secret";
    let stripe = client(key, &serve(fake.router()).await);
    let error = stripe.account().await.unwrap_err();
    assert!(matches!(error, StripeError::Refused { status: 401, .. }), "{error}");
    let (echo, _) = answering(400, json!({"error": {"message": format!("what is {KEY}?")}}).to_string()).await;
    let echoed = echo.account().await.unwrap_err();
    for told in [format!("{error} {error:?} {stripe:?}"), format!("{echoed} {echoed:?} {echo:?}")] {
        assert!(!told.contains("sk_live") && !told.contains("6789secret") && !told.contains("of_the_tests"), "{told}");
    }
    assert_eq!(fake.calls().len(), 1);
}

#[tokio::test]
async fn answers_that_make_no_sense_are_errors_and_not_nothing() {
    let check = async |body: String| {
        let (stripe, asked) = answering(200, body.clone()).await;
        let error = stripe.subscriptions_of("cus_1", noon()).await.unwrap_err();
        assert!(matches!(error, StripeError::Unreadable(_)), "{body}: {error}");
        assert_eq!(asked.load(Ordering::Relaxed), 1, "{body}");
    };
    for body in ["", "<html>", "[]", "{}", r#"{"data": {}}"#, r#"{"data": [1]}"#, r#"{"data": [{"id": "a/b"}]}"#] {
        check(body.to_owned()).await;
    }
    // Of another customer; of a customer whose name would lead elsewhere; more, but not from where.
    check(json!({"data": [{"id": "sub_1", "customer": "cus_2"}]}).to_string()).await;
    check(json!({"data": [{"id": "sub_1", "customer": "../x"}]}).to_string()).await;
    check(json!({"data": [], "has_more": true}).to_string()).await;
    check(format!(r#"{{"data": [], "filler": "{}"}}"#, "x".repeat(16 * 1024 * 1024))).await;
    let (stripe, _) = answering(200, "{}").await;
    assert!(matches!(stripe.customer("cus_1").await, Err(StripeError::Unreadable(_))));
    assert!(matches!(stripe.events_page(noon(), None).await, Err(StripeError::Unreadable(_))));
    // A wrong base URL does not say of a customer that he is gone, and a redirect leads nobody elsewhere.
    for status in [302, 404] {
        let error = answering(status, "<html>").await.0.customer("cus_1").await.unwrap_err();
        assert!(matches!(error, StripeError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_list_that_never_ends_is_given_up() {
    let endless = |count: usize| json!({"data": vec![json!({"id": "bpc_1"}); count], "has_more": true}).to_string();
    let (stripe, asked) = answering(200, endless(500)).await;
    assert!(matches!(stripe.portal_configurations().await, Err(StripeError::Unreadable(_))));
    assert_eq!(asked.load(Ordering::Relaxed), 5);
    // One by one it would take too long: the deadline is for all pages together.
    let (stripe, asked) = answering(200, endless(1)).await;
    let error = stripe.with(Patience { deadline: Duration::from_millis(500), ..QUICK }).portal_configurations().await.unwrap_err();
    assert!(matches!(error, StripeError::Unreachable(_)), "{error}");
    assert!(asked.load(Ordering::Relaxed) < 100);
}

#[tokio::test]
async fn an_invoice_leads_to_its_page_while_it_is_open() {
    let (fake, stripe) = stripe(Options::default()).await;
    let customer = fake.create_customer(&[]);
    let subscription = fake.subscribe(&customer, &[("small-monthly", None)], "active");
    let invoice = async || stripe.subscriptions_of(&customer, noon()).await.unwrap()[0].latest_invoice.clone().unwrap();
    assert_eq!(stripe.invoice_url(&invoice().await).await, Ok(None), "it is paid");
    fake.set_card(&customer, Card::Declined);
    fake.advance_period(&subscription);
    let url = stripe.invoice_url(&invoice().await).await.unwrap().unwrap();
    assert!(url.starts_with("http://") && url.contains("/invoice/in_"), "{url}");
    assert_eq!(stripe.invoice_url("in_none").await, Ok(None));
}
