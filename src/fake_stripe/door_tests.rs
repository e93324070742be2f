use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::fake_stripe::{Options, Portal, PriceSpec};

fn fake_with(options: Options) -> FakeStripe {
    let at = DateTime::from_timestamp(1_768_219_200, 0).unwrap_or_default();
    let fake = FakeStripe::new(options, Arc::new(move || at), 1);
    fake.create_product("prod_1", &[]);
    fake.create_price("price_small", "prod_1", PriceSpec { lookup_key: Some("small"), ..PriceSpec::monthly(500) });
    fake.create_price("price_large", "prod_1", PriceSpec::monthly(2900));
    fake
}

fn fake() -> FakeStripe {
    fake_with(Options::default())
}

fn sent(method: &str, url: &str, body: &str) -> Sent {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    Sent {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body: body.to_owned(),
        key: Some("sk_test_fake".to_owned()),
        idempotency_key: None,
        stripe_version: None,
        host: None,
    }
}

fn ask(fake: &FakeStripe, sent: &Sent) -> (u16, Value, bool) {
    let mut world = fake.lock();
    world.remember();
    let answer = world.answer(sent, "req_1");
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_default(), answer.replayed)
}

fn ok(fake: &FakeStripe, method: &str, url: &str, body: &str) -> Value {
    let (status, value, _) = ask(fake, &sent(method, url, body));
    assert_eq!(status, 200, "{method} {url} {body}: {value}");
    value
}

fn refused(fake: &FakeStripe, method: &str, url: &str, body: &str) -> (u16, Value) {
    let (status, value, _) = ask(fake, &sent(method, url, body));
    assert_ne!(status, 200, "{method} {url} {body}: {value}");
    (status, value["error"].clone())
}

#[test]
fn keys_are_read_from_both_schemes() {
    assert_eq!(api_key("Bearer sk_test_1").as_deref(), Some("sk_test_1"));
    // sk_test_1: and nothing behind the colon.
    assert_eq!(api_key("Basic c2tfdGVzdF8xOg==").as_deref(), Some("sk_test_1"));
    assert_eq!(api_key("Digest x"), None);
}

#[test]
fn a_wrong_key_is_401_and_what_is_not_there_404() {
    let fake = fake();
    let stranger = Sent { key: Some("sk_test_other".to_owned()), ..sent("GET", "/v1/customers", "") };
    assert_eq!(ask(&fake, &stranger).0, 401);
    let nobody = Sent { key: None, ..sent("GET", "/v1/customers", "") };
    assert_eq!(ask(&fake, &nobody).0, 401);
    let (status, error) = refused(&fake, "GET", "/v1/customers/cus_none", "");
    assert_eq!((status, &error["code"]), (404, &json!("resource_missing")));
    let (status, error) = refused(&fake, "GET", "/v1/subscriptions?customer=cus_none", "");
    assert_eq!((status, &error["param"]), (400, &json!("customer")));
    assert_eq!(refused(&fake, "GET", "/v1/nonsense", "").0, 404);
    assert_eq!(refused(&fake, "POST", "/v1/customers", "nonsense=1").1["code"], "parameter_unknown");
}

#[test]
fn the_same_key_and_parameters_have_one_effect() {
    let fake = fake();
    let keyed = |body: &str| Sent { idempotency_key: Some("key-1".to_owned()), ..sent("POST", "/v1/customers", body) };
    let (_, first, replayed) = ask(&fake, &keyed("name=a"));
    assert!(!replayed);
    let (status, second, replayed) = ask(&fake, &keyed("name=a"));
    assert_eq!((status, &second, replayed), (200, &first, true));
    let (status, error, _) = ask(&fake, &keyed("name=b"));
    assert_eq!((status, &error["error"]["type"]), (400, &json!("idempotency_error")));
    assert_eq!(ok(&fake, "GET", "/v1/customers", "")["data"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_request_that_was_refused_does_not_use_its_key_up() {
    let fake = fake();
    let keyed = |body: &str| Sent { idempotency_key: Some("key-1".to_owned()), ..sent("POST", "/v1/customers", body) };
    assert_eq!(ask(&fake, &keyed("nonsense=1")).0, 400);
    assert_eq!(ask(&fake, &keyed("name=a")).0, 200);
}

#[test]
fn pages_of_one_meet_every_subscription() {
    let fake = fake_with(Options { page_max: 1, ..Options::default() });
    let customer = fake.create_customer(&[]);
    let mut expected: Vec<String> = (0..4).map(|_| fake.subscribe(&customer, &[("price_small", None)], "active")).collect();
    expected.reverse();
    fake.cancel(&expected[1]);
    let mut seen = Vec::new();
    loop {
        let after = seen.last().map(|id: &String| format!("&starting_after={id}")).unwrap_or_default();
        let page = ok(&fake, "GET", &format!("/v1/subscriptions?customer={customer}&status=all&limit=100{after}"), "");
        seen.extend(page["data"].as_array().into_iter().flatten().filter_map(|one| one["id"].as_str().map(str::to_owned)));
        if page["has_more"] != true {
            break;
        }
    }
    assert_eq!(seen, expected);
    let fake_page = ok(&fake, "GET", &format!("/v1/subscriptions?customer={customer}&status=canceled"), "");
    assert_eq!(fake_page["data"][0]["id"], json!(expected[1]));
}

#[test]
fn a_checkout_makes_a_subscription_and_a_portal_changes_it() {
    let fake = fake();
    let customer = ok(&fake, "POST", "/v1/customers", "metadata[user_id]=u_1");
    let customer = customer["id"].as_str().unwrap_or_default();
    let body = format!(
        "mode=subscription&customer={customer}&line_items[0][price]=price_small&line_items[0][quantity]=1&client_reference_id=u_1\
         &success_url=https%3A%2F%2Fspend.test%2Fdone%3Fs%3D%7BCHECKOUT_SESSION_ID%7D"
    );
    let session = ok(&fake, "POST", "/v1/checkout/sessions", &body);
    let id = session["id"].as_str().unwrap_or_default();
    assert!(session["url"].as_str().is_some_and(|url| url.ends_with(&format!("/checkout/{id}"))));
    assert_eq!(fake.pay_checkout(id), format!("https://spend.test/done?s={id}"));
    let session = ok(&fake, "GET", &format!("/v1/checkout/sessions/{id}?expand[]=subscription"), "");
    assert_eq!((&session["status"], &session["subscription"]["status"]), (&json!("complete"), &json!("active")));
    let subscription = session["subscription"]["id"].as_str().unwrap_or_default();
    let item = session["subscription"]["items"]["data"][0]["id"].as_str().unwrap_or_default();
    let flow = "flow_data[subscription_update_confirm]";
    let confirm = |price: &str| {
        format!(
            "customer={customer}&return_url=https://spend.test/back&flow_data[type]=subscription_update_confirm\
             &{flow}[subscription]={subscription}&{flow}[items][0][id]={item}&{flow}[items][0][price]={price}"
        )
    };
    assert_eq!(refused(&fake, "POST", "/v1/billing_portal/sessions", &confirm("price_small")).0, 400);
    let portal = ok(&fake, "POST", "/v1/billing_portal/sessions", &confirm("price_large"));
    let then = fake.change(|world| world.finish_flow(portal["id"].as_str().unwrap_or_default()));
    assert_eq!(then.ok().flatten().as_deref(), Some("https://spend.test/back"));
    let changed = ok(&fake, "GET", &format!("/v1/subscriptions/{subscription}"), "");
    assert_eq!(changed["items"]["data"][0]["price"]["id"], "price_large");
}

#[test]
fn a_portal_that_nobody_set_up_makes_no_session() {
    let fake = fake_with(Options { portal: Portal { configured: false, updates: true, prices: None }, ..Options::default() });
    let customer = fake.create_customer(&[]);
    assert_eq!(refused(&fake, "POST", "/v1/billing_portal/sessions", &format!("customer={customer}")).0, 400);
}

#[test]
fn an_endpoint_tells_its_secret_once_and_gets_its_own_version() {
    let fake = fake();
    let body = "url=http://localhost/hook&enabled_events[]=customer.subscription.created&api_version=2024-06-20";
    let endpoint = ok(&fake, "POST", "/v1/webhook_endpoints", body);
    assert!(endpoint["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    let listed = ok(&fake, "GET", "/v1/webhook_endpoints", "");
    assert!(listed["data"][0].get("secret").is_none());
    let customer = fake.create_customer(&[]);
    fake.subscribe(&customer, &[("price_small", None)], "active");
    let deliveries = fake.calm_deliveries();
    assert_eq!(deliveries.len(), 1);
    let event: Value = serde_json::from_slice(&deliveries[0].body).unwrap_or_default();
    assert_eq!(event["api_version"], "2024-06-20");
    assert!(event["data"]["object"]["current_period_end"].is_i64());
}

#[test]
fn a_version_decides_how_objects_look() {
    let fake = fake();
    let customer = fake.create_customer(&[]);
    let subscription = fake.subscribe(&customer, &[("price_small", None)], "active");
    let path = format!("/v1/subscriptions/{subscription}");
    let old = Sent { stripe_version: Some("2024-04-10".to_owned()), ..sent("GET", &path, "") };
    assert!(ask(&fake, &old).1["current_period_end"].is_i64());
    let new = Sent { stripe_version: Some("2026-03-25.dahlia".to_owned()), ..sent("GET", &path, "") };
    assert!(ask(&fake, &new).1.get("current_period_end").is_none());
}
