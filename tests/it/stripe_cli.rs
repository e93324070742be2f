//! `spendgate stripe register` and `spendgate stripe doctor`, against a Stripe of our own.

use std::sync::Arc;
use std::time::Duration;

use spendgate::fake_stripe::knobs::Fault;
use spendgate::fake_stripe::{FakeStripe, Options, Portal, PriceSpec};
use spendgate::stripe::client::{EndpointChange, Idempotency, WebhookEndpoint};
use spendgate::stripe::registration::{API_VERSION, EVENTS};

use crate::cli::{folder, run};
use crate::stripe_client::{client, serve};

const KEY: &str = "sk_test_of_the_tests";
const URL: &str = "https://spend.example.com/webhooks/stripe";
const ONCE: Idempotency<'static> = Idempotency::Salt("of the tests");

struct Stripe {
    fake: FakeStripe,
    base: String,
}

impl Stripe {
    /// One whose clock is that of this machine, since a command has no other.
    async fn start(options: Options) -> Self {
        let fake = FakeStripe::new(Options { keys: vec![KEY.to_owned()], ..options }, Arc::new(chrono::Utc::now), 1);
        let base = serve(fake.router()).await;
        Self { fake, base }
    }

    /// With everything that the tiers of the repository are bought by.
    fn stock(self) -> Self {
        self.fake.create_product("prod_1", &[]);
        for price in ["price_free", "price_pro", "price_enterprise"] {
            self.fake.create_price(price, "prod_1", PriceSpec::monthly(2900));
        }
        for key in ["pro_monthly", "pro_yearly", "enterprise_monthly", "enterprise_yearly"] {
            let id = format!("price_of_{key}");
            self.fake.create_price(&id, "prod_1", PriceSpec { lookup_key: Some(key), ..PriceSpec::monthly(2900) });
        }
        self
    }

    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
        let mut environment = vec![("STRIPE_API_KEY", KEY), ("STRIPE_API_BASE", self.base.as_str())];
        environment.extend(more);
        let args: Vec<&str> = ["stripe"].iter().chain(args).copied().collect();
        run(folder().path(), &args, &environment)
    }

    fn register(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(&[&["register", "--url", URL], args].concat(), &[]);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        out
    }

    fn doctor(&self, more: &[(&str, &str)]) -> (i32, String) {
        let environment = [&[("STRIPE_WEBHOOK_SECRETS", "whsec_1"), ("PUBLIC_URL", "https://spend.example.com")], more].concat();
        let (code, out, err) = self.run(&["doctor"], &environment);
        assert_eq!(err, "", "{out}");
        (code, out)
    }

    async fn endpoints(&self) -> Vec<WebhookEndpoint> {
        client(KEY, &self.base).webhook_endpoints().await.unwrap()
    }
}

/// The lines that begin so.
fn lines<'a>(out: &'a str, start: &str) -> Vec<&'a str> {
    out.lines().filter(|line| line.starts_with(start)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn register_makes_an_endpoint_once_and_mends_it_when_it_is_not_as_it_should_be() {
    let stripe = Stripe::start(Options { page_max: 1, ..Options::default() }).await;
    let told = stripe.register(&[]);
    let made = stripe.endpoints().await.remove(0);
    assert_eq!((made.url.as_str(), made.enabled, made.api_version.as_deref()), (URL, true, Some(API_VERSION)));
    assert_eq!(made.events, EVENTS);
    assert!(told.contains(&format!("\n  STRIPE_WEBHOOK_SECRETS={}\n", stripe.fake.secrets(&made.id)[0])), "{told}");
    let told = stripe.register(&[]);
    assert!(told.contains("as it should be") && !told.contains("whsec_"), "{told}");
    assert_eq!(stripe.endpoints().await.first(), Some(&made));
    let spoilt = EndpointChange { events: Some(&["price.created", "charge.updated"]), enabled: Some(false), ..EndpointChange::default() };
    client(KEY, &stripe.base).update_webhook_endpoint(&made.id, spoilt, ONCE).await.unwrap();
    let told = stripe.register(&[]);
    assert!(told.contains("enabled again") && told.contains("invoice.paid") && told.contains("reads it: charge.updated"), "{told}");
    assert_eq!(stripe.endpoints().await.first(), Some(&made));
    // Whoever disables it again and again is mended again and again: each run is a change of its own.
    client(KEY, &stripe.base).update_webhook_endpoint(&made.id, spoilt, Idempotency::Salt("again")).await.unwrap();
    stripe.register(&[]);
    assert_eq!(stripe.endpoints().await, [made], "and no second one was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn register_replaces_what_cannot_be_changed() {
    let stripe = Stripe::start(Options::default()).await;
    let (old, _) = client(KEY, &stripe.base).create_webhook_endpoint(URL, &EVENTS, "2024-12-18.acacia", ONCE).await.unwrap();
    let elsewhere = "https://other.example.com/webhooks/stripe";
    let (other, _) = client(KEY, &stripe.base).create_webhook_endpoint(elsewhere, &EVENTS, API_VERSION, ONCE).await.unwrap();
    let told = stripe.register(&[]);
    assert!(told.contains("2024-12-18.acacia") && told.contains("--replace"), "{told}");
    let told = stripe.register(&["--replace"]);
    assert!(told.contains(&format!("{} is deleted", old.id)) && told.contains("STRIPE_WEBHOOK_SECRETS=whsec_"), "{told}");
    let found = stripe.endpoints().await;
    assert_eq!((found.len(), found[1].id.as_str(), found[0].api_version.as_deref()), (2, other.id.as_str(), Some(API_VERSION)));
    assert!(found[0].id != old.id);
    // The secret of a new endpoint is told even where the old one then cannot be deleted.
    stripe.fake.script(1, Fault::Forbidden, "DELETE /v1/webhook_endpoints");
    let (code, out, err) = stripe.run(&["register", "--url", URL, "--replace"], &[]);
    let made = stripe.endpoints().await.remove(0);
    assert!(code == 1 && out.contains(&format!("STRIPE_WEBHOOK_SECRETS={}", stripe.fake.secrets(&made.id)[0])), "{out}{err}");
    assert!(err.contains(&format!("{} cannot be deleted", found[0].id)), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_set_wrong_ends_with_2() {
    let stripe = Stripe::start(Options::default()).await;
    for url in ["http://spend.example.com/webhooks/stripe", "https://spend.example.com/", "nowhere"] {
        let (code, _, err) = stripe.run(&["register", "--url", url], &[]);
        assert!(code == 2 && err.contains("--url"), "{url}: {err}");
    }
    let (code, _, err) = stripe.run(&["register"], &[]);
    assert!(code == 2 && err.contains("PUBLIC_URL"), "{err}");
    let (code, _, err) = run(folder().path(), &["stripe", "doctor"], &[]);
    assert!(code == 2 && err.contains("STRIPE_API_KEY"), "{err}");
    assert_eq!(stripe.fake.call_count(""), 0);
    // A loopback URL is for trying things out.
    let (code, out, err) = stripe.run(&["register", "--url", "http://127.0.0.1:8080/webhooks/stripe"], &[]);
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_nothing_where_all_is_well() {
    let stripe = Stripe::start(Options::default()).await.stock();
    stripe.register(&[]);
    let (code, out) = stripe.doctor(&[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("faults: 0, warnings: 0\n"), "{out}");
    assert_eq!(lines(&out, "ok ").len(), 14, "{out}");
    for what in [
        "test mode, account acct_1Fake",
        "clock",
        "endpoint",
        "version",
        "secrets",
        "price_enterprise buys tier enterprise",
        "portal",
        "the service may read customers, subscriptions, events",
    ] {
        assert!(out.contains(what), "{what}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_of_every_fault_at_once_and_what_to_do() {
    let portal = Portal { configured: false, updates: false, prices: None };
    let stripe = Stripe::start(Options { portal, ..Options::default() }).await;
    stripe.fake.create_product("prod_1", &[]);
    stripe.fake.create_price("price_free", "prod_1", PriceSpec { recurring: None, ..PriceSpec::monthly(0) });
    stripe.fake.create_price("price_pro", "prod_1", PriceSpec { active: false, ..PriceSpec::monthly(2900) });
    stripe.fake.turn(|knobs| knobs.clock_ahead = Duration::from_secs(400));
    let (code, out) = stripe.doctor(&[("STRIPE_WEBHOOK_SECRETS", "")]);
    assert_eq!(code, 1, "{out}");
    let faults = lines(&out, "FAULT").join("\n");
    for told in [
        "s behind Stripe's: from 300 s on events are refused",
        "there is none whose URL is https://spend.example.com/webhooks/stripe: make it with `spendgate stripe register",
        "STRIPE_WEBHOOK_SECRETS is not set",
        "price_free of tier free is paid once",
        "lookup key pro_monthly of tier pro does not exist",
        "pro cannot be bought",
        "price_enterprise of tier enterprise does not exist: make it at Stripe in test mode, or correct built-in tiers.yaml",
        "enterprise cannot be bought",
        "save its settings at https://dashboard.stripe.com/test/settings/billing/portal",
    ] {
        assert!(faults.contains(told), "{told}: {out}");
    }
    assert_eq!(lines(&out, "FAULT").len(), 12, "{out}");
    assert!(lines(&out, "warn")[0].contains("price_pro of tier pro is archived"), "{out}");
    assert!(out.ends_with("faults: 12, warnings: 1\n"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_what_a_restricted_key_may_not_read() {
    let stripe = Stripe::start(Options::default()).await.stock();
    stripe.register(&[]);
    stripe.fake.script(1, Fault::Forbidden, "GET /v1/subscriptions");
    let (code, out) = stripe.doctor(&[]);
    let faults = lines(&out, "FAULT").join("\n");
    assert!(code == 1 && faults.contains("subscriptions: Stripe refuses (status 403") && !faults.contains("customers"), "{out}");
    assert!(out.contains("the service may read customers, events"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_judges_the_endpoint() {
    let stripe = Stripe::start(Options::default()).await.stock();
    stripe.register(&[]);
    let id = stripe.endpoints().await.remove(0).id;
    let change = async |change: EndpointChange<'_>| {
        client(KEY, &stripe.base).update_webhook_endpoint(&id, change, ONCE).await.unwrap();
        stripe.doctor(&[])
    };
    let without: Vec<&str> = EVENTS.into_iter().filter(|kind| *kind != "invoice.paid").collect();
    let (code, out) = change(EndpointChange { events: Some(&without), ..EndpointChange::default() }).await;
    assert!(code == 1 && lines(&out, "FAULT")[0].contains("does not get invoice.paid: `spendgate stripe register`"), "{out}");
    let (code, out) = change(EndpointChange { events: Some(&["*"]), ..EndpointChange::default() }).await;
    assert!(code == 0 && lines(&out, "warn")[0].contains("every event there is"), "{out}");
    let (code, out) = change(EndpointChange { enabled: Some(false), ..EndpointChange::default() }).await;
    assert!(code == 1 && lines(&out, "FAULT")[0].contains("is disabled"), "{out}");
    client(KEY, &stripe.base).create_webhook_endpoint(URL, &EVENTS, "2024-12-18.acacia", ONCE).await.unwrap();
    let (code, out) = stripe.doctor(&[("PUBLIC_URL", "https://other.example.com")]);
    assert!(code == 1 && lines(&out, "FAULT")[0].contains("none whose URL is https://other.example.com"), "{out}");
    let (_, out) = stripe.doctor(&[("PUBLIC_URL", "")]);
    assert_eq!((lines(&out, "ok     endpoint").len(), lines(&out, "FAULT  endpoint").len()), (1, 1), "each one is judged: {out}");
    let (_, out) = stripe.doctor(&[]);
    let warnings = lines(&out, "warn").join("\n");
    assert!(warnings.contains("sends 2024-12-18.acacia, not") && warnings.contains("there are 2 of this URL"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_warns_of_a_clock_before_it_is_a_fault() {
    let stripe = Stripe::start(Options::default()).await.stock();
    stripe.register(&[]);
    stripe.fake.turn(|knobs| knobs.clock_behind = Duration::from_secs(150));
    let (code, out) = stripe.doctor(&[]);
    assert_eq!(code, 0, "{out}");
    assert!(lines(&out, "warn")[0].contains("s ahead of Stripe's"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_goes_on_where_a_restricted_key_may_not_read_everything() {
    let stripe = Stripe::start(Options::default()).await.stock();
    stripe.register(&[]);
    stripe.fake.script(1, Fault::Forbidden, "GET /v1/account");
    let (code, out) = stripe.doctor(&[]);
    assert!(code == 0 && out.contains("may not read the account, and need not") && lines(&out, "ok     clock").len() == 1, "{out}");
    stripe.fake.script(1, Fault::Forbidden, "GET /v1/prices/price_pro");
    let (code, out) = stripe.doctor(&[]);
    let faults = lines(&out, "FAULT");
    assert!(code == 1 && faults.len() == 1 && faults[0].contains("a restricted key needs the permission"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_stops_where_stripe_does_not_know_the_key() {
    let stripe = Stripe::start(Options::default()).await.stock();
    let key = "sk_test_0123456789";
    let (code, out) = stripe.doctor(&[("STRIPE_API_KEY", key)]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("no longer, a key of Stripe's") && !out.contains("6789"), "{out}");
    assert_eq!(stripe.fake.call_count(""), 1);
    // Where nobody listens.
    let (code, out) = stripe.doctor(&[("STRIPE_API_KEY", "sk_live_x"), ("STRIPE_API_BASE", "http://127.0.0.1:1")]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("cannot be reached") && out.contains("https://status.stripe.com"), "{out}");
}
