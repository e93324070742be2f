//! What the client makes at Stripe, and what it reads of how the account is set up.

use serde_json::json;
use spendgate::fake_stripe::{Generation, Options, Portal, PriceSpec};
use spendgate::stripe::client::{Checkout, EndpointChange, Idempotency, PortalFlow, StripeError};
use spendgate::stripe::registration::{API_VERSION, EVENTS};

use crate::stripe_client::{noon, stripe};

const ONCE: Idempotency<'static> = Idempotency::Salt("of the tests");

#[tokio::test]
async fn a_checkout_that_is_paid_makes_a_subscription_that_names_its_user() {
    let (fake, stripe) = stripe(Options::default()).await;
    let user = "ü/1 & co=2";
    let customer = stripe.create_customer(user, Some("Ada & Co"), ONCE).await.unwrap();
    assert_eq!(fake.object(&customer, Generation::Basil)["name"], "Ada & Co");
    let checkout = Checkout {
        customer: &customer,
        price: "Large plan/2",
        user_id: user,
        success_url: "https://a.test/done?x={CHECKOUT_SESSION_ID}",
        cancel_url: "https://a.test/",
    };
    let session = stripe.create_checkout_session(checkout, ONCE).await.unwrap();
    assert_eq!(stripe.create_checkout_session(checkout, ONCE).await.unwrap(), session, "the same change again is the same session");
    assert!(session.url.ends_with(&format!("/checkout/{}", session.id)) && session.expires_at > Some(noon()));
    assert_eq!(fake.object(&session.id, Generation::Basil)["client_reference_id"], user);
    fake.pay_checkout(&session.id);
    let found = stripe.subscriptions_of(&customer, noon()).await.unwrap();
    assert_eq!((found[0].user_hint.as_deref(), found[0].items[0].quantity), (Some(user), Some(1)));
    assert_eq!(found[0].items[0].price.as_deref(), Some("Large plan/2"));
    // The longest name of a user is longer than what Stripe takes as a reference.
    let long = "x".repeat(255);
    let session = stripe.create_checkout_session(Checkout { user_id: &long, ..checkout }, ONCE).await.unwrap();
    assert_eq!(fake.object(&session.id, Generation::Basil)["client_reference_id"], json!(null));
}

#[tokio::test]
async fn the_portal_is_opened_at_home_and_for_one_purpose() {
    let (fake, stripe) = stripe(Options::default()).await;
    let customer = fake.create_customer(&[]);
    fake.subscribe(&customer, &[("small-monthly", Some(2))], "active");
    let subscription = stripe.subscriptions_of(&customer, noon()).await.unwrap().remove(0);
    let confirm = PortalFlow::SubscriptionUpdateConfirm {
        subscription: &subscription.id,
        item: &subscription.items[0].id,
        price: "Large plan/2",
        quantity: subscription.items[0].quantity,
    };
    for flow in [PortalFlow::Home, PortalFlow::PaymentMethodUpdate, confirm] {
        let url = stripe.create_portal_session(&customer, "https://a.test/back", flow, ONCE).await.unwrap();
        assert!(url.contains("/portal/bps_"), "{flow:?}: {url}");
    }
    let sent = fake.calls().pop().unwrap().body;
    let sent: Vec<_> = form_urlencoded::parse(sent.as_bytes()).collect();
    let said = |name: &str| sent.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_ref());
    assert_eq!(said("flow_data[after_completion][redirect][return_url]"), Some("https://a.test/back"));
    assert_eq!(said("flow_data[subscription_update_confirm][items][0][quantity]"), Some("2"));
}

#[tokio::test]
async fn a_portal_that_nobody_configured_makes_no_session() {
    let portal = Portal { configured: false, updates: false, prices: None };
    let (fake, stripe) = stripe(Options { portal, ..Options::default() }).await;
    let customer = fake.create_customer(&[]);
    let error = stripe.create_portal_session(&customer, "https://a.test", PortalFlow::Home, ONCE).await.unwrap_err();
    assert!(matches!(error, StripeError::Refused { status: 400, .. }), "{error}");
    assert!(stripe.portal_configurations().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_account_sells_is_read() {
    let (fake, stripe) = stripe(Options { page_max: 1, ..Options::default() }).await;
    let once = PriceSpec { recurring: None, active: false, ..PriceSpec::monthly(100) };
    fake.create_price("once", "prod_1", once);
    let price = stripe.price("small-monthly").await.unwrap().unwrap();
    assert_eq!((price.id.as_str(), price.active, price.recurring), ("small-monthly", true, true));
    assert_eq!((price.lookup_key, price.product.as_deref()), (None, Some("prod_1")));
    let prices = stripe.prices_by_lookup_keys(&["large"]).await.unwrap();
    assert_eq!((prices[0].id.as_str(), prices[0].lookup_key.as_deref()), ("Large plan/2", Some("large")));
    let price = stripe.price("once").await.unwrap().unwrap();
    assert!(!price.active && !price.recurring);
    assert_eq!(stripe.price("none").await, Ok(None));
    assert!(stripe.product("prod_1").await.unwrap().unwrap().active);
    assert_eq!(stripe.product("prod_none").await, Ok(None));
    let keys: Vec<String> = (0..11).map(|number| format!("key_{number}")).collect();
    for key in &keys {
        fake.create_price(&format!("price_of_{key}"), "prod_1", PriceSpec { lookup_key: Some(key), ..PriceSpec::monthly(100) });
    }
    let asked: Vec<&str> = keys.iter().map(String::as_str).chain(["nobody's"]).collect();
    let mut found: Vec<String> = stripe.prices_by_lookup_keys(&asked).await.unwrap().into_iter().filter_map(|one| one.lookup_key).collect();
    found.sort_by_key(|key| keys.iter().position(|known| known == key));
    assert_eq!(found, keys);
    let configurations = stripe.portal_configurations().await.unwrap();
    assert!(configurations[0].active && configurations[0].is_default && configurations[0].updates_subscriptions);
    let account = stripe.account().await.unwrap();
    assert_eq!((account.id.as_str(), account.livemode), ("acct_1Fake", Some(true)));
}

#[tokio::test]
async fn endpoints_are_made_changed_and_deleted_and_their_secret_is_told_once() {
    let (fake, stripe) = stripe(Options { page_max: 1, ..Options::default() }).await;
    let url = "https://a.test/webhooks/stripe";
    let (made, secret) = stripe.create_webhook_endpoint(url, &EVENTS, API_VERSION, ONCE).await.unwrap();
    assert_eq!((made.url.as_str(), made.enabled, made.api_version.as_deref()), (url, true, Some(API_VERSION)));
    assert_eq!(made.events, EVENTS);
    assert_eq!(fake.secrets(&made.id), [secret.reveal()]);
    assert_eq!(format!("{secret:?}"), "SigningSecret(…)");
    let change = EndpointChange { events: Some(&["price.created"]), enabled: Some(false), ..EndpointChange::default() };
    let changed = stripe.update_webhook_endpoint(&made.id, change, ONCE).await.unwrap();
    assert_eq!((changed.url.as_str(), changed.enabled, changed.events), (url, false, vec!["price.created".to_owned()]));
    let change = EndpointChange { url: Some("https://b.test/webhooks/stripe"), ..EndpointChange::default() };
    assert_eq!(stripe.update_webhook_endpoint("we_none", change, ONCE).await, Err(StripeError::NotFound));
    let (other, _) = stripe.create_webhook_endpoint("https://b.test/webhooks/stripe", &["*"], API_VERSION, ONCE).await.unwrap();
    let listed: Vec<String> = stripe.webhook_endpoints().await.unwrap().into_iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(listed, [other.id.as_str(), &made.id]);
    stripe.delete_webhook_endpoint(&made.id).await.unwrap();
    stripe.delete_webhook_endpoint(&made.id).await.unwrap();
    assert_eq!(stripe.webhook_endpoints().await.unwrap().len(), 1);
}
