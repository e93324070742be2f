//! What tests do to Stripe by hand. An id that is not there is the test's own mistake, so these methods panic, in the test's
//! name; who comes over HTTP gets an error instead.

use chrono::TimeDelta;
use serde_json::Value;

use super::answer::ApiError;
use super::billing::{Beginning, ItemChange, Line};
use super::knobs::{Call, Fault, Knobs};
use super::objects::{Card, Customer, Metadata, Recurring, Shapes};
use super::world::NewPrice;
use super::{FakeStripe, Generation};

/// How a price is made by hand: `PriceSpec { lookup_key: Some("pro_monthly"), ..PriceSpec::monthly(2900) }`.
#[derive(Clone, Debug)]
pub struct PriceSpec<'a> {
    pub lookup_key: Option<&'a str>,
    pub metadata: &'a [(&'a str, &'a str)],
    /// Cents.
    pub unit_amount: i64,
    /// `None`: sold once.
    pub recurring: Option<Recurring>,
    pub active: bool,
}

impl PriceSpec<'_> {
    pub fn monthly(unit_amount: i64) -> Self {
        Self { lookup_key: None, metadata: &[], unit_amount, recurring: Some(Recurring::every("month")), active: true }
    }
}

#[track_caller]
fn must<T>(done: Result<T, ApiError>) -> T {
    done.unwrap_or_else(|error| panic!("the fake Stripe refuses: {error}"))
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn lines(items: &[(&str, Option<u64>)]) -> Vec<Line> {
    items.iter().map(|(price, quantity)| ((*price).to_owned(), *quantity)).collect()
}

impl FakeStripe {
    /// Gives the customer's id.
    pub fn create_customer(&self, pairs: &[(&str, &str)]) -> String {
        let customer = Customer { metadata: metadata(pairs), card: Card::Good, ..Customer::default() };
        self.change(|world| world.create_customer(customer))
    }

    #[track_caller]
    pub fn set_customer_metadata(&self, customer: &str, pairs: &[(&str, &str)]) {
        must(self.change(|world| world.change_customer(customer, |customer| customer.metadata = metadata(pairs))));
    }

    /// Ends the customer's subscriptions too.
    #[track_caller]
    pub fn delete_customer(&self, customer: &str) {
        must(self.change(|world| world.delete_customer(customer)));
    }

    /// Whether the next charge succeeds.
    #[track_caller]
    pub fn set_card(&self, customer: &str, card: Card) {
        must(self.change(|world| world.set_card(customer, card)));
    }

    pub fn create_product(&self, id: &str, pairs: &[(&str, &str)]) {
        self.change(|world| world.create_product(Some(id), id, metadata(pairs)));
    }

    #[track_caller]
    pub fn set_default_price(&self, product: &str, price: &str) {
        must(self.change(|world| world.set_default_price(product, price)));
    }

    #[track_caller]
    pub fn create_price(&self, id: &str, product: &str, spec: PriceSpec<'_>) {
        let price = NewPrice {
            id: Some(id),
            product,
            lookup_key: spec.lookup_key,
            metadata: metadata(spec.metadata),
            unit_amount: spec.unit_amount,
            recurring: spec.recurring,
            active: spec.active,
        };
        must(self.change(|world| world.create_price(price)));
    }

    /// Gives the subscription's id. Any status; `active` is paid, and `trialing` ends in 14 days.
    #[track_caller]
    pub fn subscribe(&self, customer: &str, items: &[(&str, Option<u64>)], status: &str) -> String {
        self.subscribe_with(customer, items, status, &[])
    }

    #[track_caller]
    pub fn subscribe_with(&self, customer: &str, items: &[(&str, Option<u64>)], status: &str, pairs: &[(&str, &str)]) -> String {
        let done = self.change(|world| {
            let trial_end = (status == "trialing").then(|| (world.now() + TimeDelta::days(14)).timestamp());
            let beginning = Beginning { status: status.to_owned(), metadata: metadata(pairs), trial_end, cancel_at_period_end: false };
            world.subscribe(customer, &lines(items), beginning)
        });
        must(done)
    }

    /// Puts these items in the place of all that were. The first ones keep their ids.
    #[track_caller]
    pub fn change_items(&self, subscription: &str, items: &[(&str, Option<u64>)]) {
        let done = self.change(|world| {
            let known: Vec<String> = world.subscription(subscription)?.items.iter().map(|item| item.id.clone()).collect();
            let wanted = items.iter().enumerate().map(|(index, (price, quantity))| ItemChange {
                id: known.get(index).cloned(),
                price: Some((*price).to_owned()),
                quantity: *quantity,
                deleted: false,
            });
            let gone = known.iter().skip(items.len()).map(|id| ItemChange { id: Some(id.clone()), deleted: true, ..ItemChange::default() });
            let changes: Vec<ItemChange> = wanted.chain(gone).collect();
            let after = world.items_after(subscription, &changes)?;
            world.change_subscription(subscription, super::billing::UPDATED, |known| known.items = after)
        });
        must(done);
    }

    /// Any text: Stripe adds statuses.
    #[track_caller]
    pub fn set_status(&self, subscription: &str, status: &str) {
        must(self.change(|world| world.set_status(subscription, status)));
    }

    #[track_caller]
    pub fn cancel(&self, subscription: &str) {
        must(self.change(|world| world.cancel(subscription)));
    }

    #[track_caller]
    pub fn cancel_at_period_end(&self, subscription: &str, cancel: bool) {
        must(self.change(|world| world.cancel_at_period_end(subscription, cancel)));
    }

    /// With a behavior such as `void` it is paused, with none it goes on. The status stays what it is.
    #[track_caller]
    pub fn pause_collection(&self, subscription: &str, behavior: Option<&str>) {
        let behavior = behavior.map(str::to_owned);
        must(self.change(|world| {
            world.change_subscription(subscription, super::billing::UPDATED, |subscription| subscription.paused = behavior)
        }));
    }

    /// What the passing of a period does: renew and charge, or end. The clock is not moved.
    #[track_caller]
    pub fn advance_period(&self, subscription: &str) {
        must(self.change(|world| world.advance_period(subscription)));
    }

    /// Items that the subscription would have, were they paid for.
    #[track_caller]
    pub fn offer_update(&self, subscription: &str, items: &[(&str, Option<u64>)]) {
        let changes: Vec<ItemChange> = lines(items)
            .into_iter()
            .map(|(price, quantity)| ItemChange { price: Some(price), quantity, ..ItemChange::default() })
            .collect();
        let done = self.change(|world| {
            let known = world.subscription(subscription)?.items.len();
            let items = world.items_after(subscription, &changes)?.split_off(known);
            world.offer(subscription, items)
        });
        must(done);
    }

    /// The pending update was paid for, or not in time.
    #[track_caller]
    pub fn settle_update(&self, subscription: &str, applied: bool) {
        must(self.change(|world| world.settle(subscription, applied)));
    }

    /// Plans other items for after the current period. Gives the schedule's id.
    #[track_caller]
    pub fn schedule(&self, subscription: &str, items: &[(&str, Option<u64>)]) -> String {
        must(self.change(|world| world.schedule(subscription, &lines(items))))
    }

    #[track_caller]
    pub fn release_schedule(&self, schedule: &str) {
        must(self.change(|world| world.release_schedule(schedule)));
    }

    /// Pays at a checkout session's page; gives where the buyer is sent.
    #[track_caller]
    pub fn pay_checkout(&self, session: &str) -> String {
        must(self.change(|world| world.complete_checkout(session)))
    }

    /// An event of any kind that shows an object as it is now. Nothing is told of an object that is not there.
    pub fn emit(&self, kind: &str, id: &str) {
        self.change(|world| world.emit(kind, id, None));
    }

    /// An event of any kind and content. Gives its id.
    pub fn emit_raw(&self, kind: &str, object: Value) -> String {
        self.change(|world| world.tell(kind, Shapes { acacia: object.clone(), basil: object }, None))
    }

    /// Makes a new signing secret; the ones before go on signing for `overlap`.
    #[track_caller]
    pub fn roll_secret(&self, endpoint: &str, overlap: TimeDelta) -> String {
        must(self.change(|world| world.roll_secret(endpoint, overlap)))
    }

    /// The object of this id as the API would show it now; null where there is none.
    pub fn object(&self, id: &str, generation: Generation) -> Value {
        let world = self.lock();
        let base = world.base();
        world.view(generation, &base).any(id).unwrap_or_default()
    }

    /// The ids of a customer's subscriptions, the newest first.
    pub fn subscriptions(&self, customer: &str) -> Vec<String> {
        self.lock().objects.subscriptions.of(Some(customer)).into_iter().map(|(_, one)| one.id.clone()).collect()
    }

    /// Id and type of every event so far, the oldest first.
    pub fn events(&self) -> Vec<(String, String)> {
        let world = self.lock();
        (0..world.events.len()).filter_map(|place| world.events.at(place)).map(|event| (event.id.clone(), event.kind.clone())).collect()
    }

    /// The secrets of an endpoint that sign now, the newest last.
    pub fn secrets(&self, endpoint: &str) -> Vec<String> {
        let world = self.lock();
        let now = world.seconds();
        let known = world.objects.endpoints.get(endpoint).map(|endpoint| endpoint.secrets.as_slice()).unwrap_or_default();
        known.iter().filter(|secret| secret.ends_at.is_none_or(|ends| now < ends)).map(|secret| secret.text.clone()).collect()
    }

    /// Turns knobs.
    pub fn turn(&self, turn: impl FnOnce(&mut Knobs)) {
        turn(&mut self.lock().knobs);
    }

    /// The next `times` calls whose `METHOD /path` begins with `on` meet `fault`.
    pub fn script(&self, times: usize, fault: Fault, on: &str) {
        self.turn(|knobs| knobs.script(times, fault, on));
    }

    /// How many calls came whose `METHOD /path` begins so; all where `start` is empty.
    pub fn call_count(&self, start: &str) -> u64 {
        self.lock().calls.count(start)
    }

    /// The last calls, the oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.recent().cloned().collect()
    }

    /// The most calls within any second by the given clock.
    pub fn most_calls_in_a_second(&self) -> usize {
        self.lock().calls.most_in_a_second()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::fake_stripe::Options;

    fn fake() -> FakeStripe {
        let at = chrono::DateTime::from_timestamp(1_768_219_200, 0).unwrap_or_default();
        let fake = FakeStripe::new(Options::default(), Arc::new(move || at), 1);
        fake.create_product("prod_1", &[]);
        fake.create_price("price_small", "prod_1", PriceSpec::monthly(500));
        fake.create_price("price_large", "prod_1", PriceSpec::monthly(2900));
        fake
    }

    /// The kinds of event since the `from`th.
    fn kinds(fake: &FakeStripe, from: usize) -> Vec<String> {
        fake.events().into_iter().skip(from).map(|(_, kind)| kind).collect()
    }

    #[test]
    fn an_active_subscription_is_created_and_paid() {
        let fake = fake();
        let before = fake.events().len();
        let customer = fake.create_customer(&[("user_id", "u_1")]);
        let subscription = fake.subscribe(&customer, &[("price_small", Some(2))], "active");
        let expected =
            ["customer.created", "customer.subscription.created", "invoice.finalized", "invoice.paid", "invoice.payment_succeeded"];
        assert_eq!(kinds(&fake, before), expected);
        let shown = fake.object(&subscription, Generation::Basil);
        assert_eq!((&shown["status"], &shown["quantity"]), (&json!("active"), &json!(2)));
        assert_eq!(fake.object(shown["latest_invoice"].as_str().unwrap_or_default(), Generation::Basil)["amount_paid"], 1000);
    }

    #[test]
    fn a_change_that_changes_nothing_is_not_told() {
        let fake = fake();
        let customer = fake.create_customer(&[]);
        let subscription = fake.subscribe(&customer, &[("price_small", None)], "active");
        let before = fake.events().len();
        fake.set_status(&subscription, "active");
        fake.change_items(&subscription, &[("price_small", Some(1))]);
        assert!(kinds(&fake, before).is_empty());
        fake.change_items(&subscription, &[("price_large", Some(1)), ("price_small", None)]);
        fake.set_status(&subscription, "a_new_status");
        assert_eq!(kinds(&fake, before), ["customer.subscription.updated"; 2]);
    }

    #[test]
    fn a_declined_card_makes_a_subscription_past_due_until_it_is_mended() {
        let fake = fake();
        let customer = fake.create_customer(&[]);
        let subscription = fake.subscribe(&customer, &[("price_small", None)], "active");
        fake.set_card(&customer, Card::Declined);
        fake.advance_period(&subscription);
        assert_eq!(fake.object(&subscription, Generation::Acacia)["status"], "past_due");
        must(fake.change(|world| world.mend_payment(&customer)));
        assert_eq!(fake.object(&subscription, Generation::Acacia)["status"], "active");
    }

    #[test]
    fn what_ends_with_its_period_ends() {
        let fake = fake();
        let customer = fake.create_customer(&[]);
        let subscription = fake.subscribe(&customer, &[("price_small", None)], "active");
        fake.cancel_at_period_end(&subscription, true);
        let end = fake.object(&subscription, Generation::Acacia)["current_period_end"].clone();
        assert_eq!(fake.object(&subscription, Generation::Acacia)["cancel_at"], end);
        fake.advance_period(&subscription);
        assert_eq!(fake.object(&subscription, Generation::Acacia)["status"], "canceled");
        assert_eq!(fake.events().last().map(|(_, kind)| kind.as_str()), Some("customer.subscription.deleted"));
    }

    #[test]
    fn lists_show_the_world_before_the_last_changes() {
        let fake = fake();
        fake.turn(|knobs| knobs.stale_changes = 2);
        for _ in 0..3 {
            fake.create_customer(&[]);
        }
        let world = fake.lock();
        assert_eq!(world.stale_view(Generation::Basil, "").objects.customers.len(), 1);
        assert_eq!(world.view(Generation::Basil, "").objects.customers.len(), 3);
    }
}
