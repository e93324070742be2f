//! The truth, how it is changed, and the events that tell of it.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::answer::{Answer, ApiError};
use super::billing::UPDATED;
use super::delivery::Pending;
use super::knobs::{Calls, Knobs};
use super::objects::{Card, Customer, Event, Metadata, Objects, Price, Product, Recurring, Shapes, Subscription};
use super::render::View;
use super::shelf::{Kept, Shelf};
use super::{Clock, Generation, Options};

const METADATA_KEYS_MAX: usize = 50;

/// The world as it was before a change.
struct Past {
    objects: Objects,
    events: usize,
}

/// What a key was used for first, and what was answered.
pub struct Used {
    pub request: String,
    pub answer: Answer,
    pub at: DateTime<Utc>,
}

/// All of it. Who changes it holds the lock of [`super::FakeStripe`], and calls [`World::remember`] first.
pub struct World {
    pub options: Options,
    pub objects: Objects,
    pub events: Shelf<Event>,
    pub pending: VecDeque<Pending>,
    pub knobs: Knobs,
    pub calls: Calls,
    /// By idempotency key.
    pub used: HashMap<String, Used>,
    /// Chance of its own for what goes wrong, so that knobs do not change ids.
    pub luck: fastrand::Rng,
    /// The request that is being answered, and its idempotency key.
    pub request: Option<(String, Option<String>)>,
    /// Where the last caller found us.
    pub host: String,
    past: VecDeque<Past>,
    clock: Clock,
    rng: fastrand::Rng,
}

/// How a product's price is made.
#[derive(Clone, Debug)]
pub struct NewPrice<'a> {
    /// `None`: Stripe thinks one up.
    pub id: Option<&'a str>,
    pub product: &'a str,
    pub lookup_key: Option<&'a str>,
    pub metadata: Metadata,
    /// Cents.
    pub unit_amount: i64,
    /// `None`: sold once.
    pub recurring: Option<Recurring>,
    pub active: bool,
}

impl World {
    pub fn new(options: Options, clock: Clock, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            options,
            objects: Objects::default(),
            events: Shelf::default(),
            pending: VecDeque::new(),
            knobs: Knobs::default(),
            calls: Calls::default(),
            used: HashMap::new(),
            luck: rng.fork(),
            request: None,
            host: "127.0.0.1:12111".to_owned(),
            past: VecDeque::new(),
            clock,
            rng,
        }
    }

    /// By Stripe's clock, which may be wrong.
    pub fn now(&self) -> DateTime<Utc> {
        (self.clock)() + self.knobs.skew()
    }

    /// By the clock that was given.
    pub fn true_now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    pub fn seconds(&self) -> i64 {
        self.now().timestamp()
    }

    pub fn id(&mut self, prefix: &str, length: usize) -> String {
        let random = std::iter::repeat_with(|| self.rng.alphanumeric()).take(length);
        prefix.chars().chain(random).collect()
    }

    /// Where our pages are.
    pub fn base(&self) -> String {
        self.options.public_url.clone().unwrap_or_else(|| format!("http://{}", self.host))
    }

    /// Keeps the world as it is now for those who read stale lists.
    pub fn remember(&mut self) {
        let most = self.knobs.stale_changes;
        if most == 0 {
            self.past.clear();
            return;
        }
        self.past.push_back(Past { objects: self.objects.clone(), events: self.events.len() });
        while most < self.past.len() {
            self.past.pop_front();
        }
    }

    /// The world as it is.
    pub fn view<'a>(&'a self, generation: Generation, base: &'a str) -> View<'a> {
        View {
            objects: &self.objects,
            truth: &self.objects,
            events: &self.events,
            events_until: self.events.len(),
            generation,
            livemode: self.options.livemode(),
            base,
            items_max: self.options.items_max,
            page_max: self.options.page_max,
            now: self.seconds(),
        }
    }

    /// The world as lists show it.
    pub fn stale_view<'a>(&'a self, generation: Generation, base: &'a str) -> View<'a> {
        let view = self.view(generation, base);
        match self.past.front().filter(|_| 0 < self.knobs.stale_changes) {
            Some(past) => View { objects: &past.objects, events_until: past.events, ..view },
            None => view,
        }
    }

    /// The object of this id, in the words of both generations.
    pub fn shapes(&self, id: &str) -> Option<Shapes> {
        let base = self.base();
        let acacia = self.view(Generation::Acacia, &base).any(id)?;
        let basil = self.view(Generation::Basil, &base).any(id)?;
        Some(Shapes { acacia, basil })
    }

    /// Tells that `kind` happened to the object of this id, which looked like `before`.
    pub fn emit(&mut self, kind: &str, id: &str, before: Option<&Shapes>) {
        let Some(object) = self.shapes(id) else { return };
        let previous =
            before.map(|before| Shapes { acacia: changed(&before.acacia, &object.acacia), basil: changed(&before.basil, &object.basil) });
        self.tell(kind, object, previous);
    }

    /// Adds an event and queues it for whoever wants it. Gives its id.
    pub fn tell(&mut self, kind: &str, object: Shapes, previous: Option<Shapes>) -> String {
        let id = self.id("evt_1", 23);
        let event =
            Event { id: id.clone(), created: self.seconds(), kind: kind.to_owned(), object, previous, request: self.request.clone() };
        self.events.add(event);
        let wanting = self.objects.endpoints.newest_first().filter(|(_, endpoint)| endpoint.wants(kind));
        let endpoints: Vec<String> = wanting.map(|(_, endpoint)| endpoint.id.clone()).collect();
        let due = self.true_now();
        self.pending.extend(endpoints.into_iter().map(|endpoint| Pending { event: id.clone(), endpoint, attempts: 0, due }));
        id
    }

    pub fn create_customer(&mut self, customer: Customer) -> String {
        let id = self.id("cus_", 14);
        let created = self.seconds();
        self.objects.customers.add(Customer { id: id.clone(), created, ..customer });
        self.emit("customer.created", &id, None);
        id
    }

    /// Changes a customer, and tells of it if anything that is shown changed.
    pub fn change_customer(&mut self, id: &str, change: impl FnOnce(&mut Customer)) -> Result<(), ApiError> {
        let before = self.shapes(id);
        let customer = self.objects.customers.get_mut(id).filter(|customer| !customer.deleted);
        change(customer.ok_or_else(|| missing::<Customer>(id))?);
        if before != self.shapes(id) {
            self.emit("customer.updated", id, before.as_ref());
        }
        Ok(())
    }

    /// Deletes a customer and ends his subscriptions, as Stripe does.
    pub fn delete_customer(&mut self, id: &str) -> Result<(), ApiError> {
        self.customer(id)?;
        let owned = self.objects.subscriptions.of(Some(id)).into_iter();
        let running: Vec<String> = owned.filter(|(_, one)| !one.is_over()).map(|(_, one)| one.id.clone()).collect();
        for subscription in running {
            self.cancel(&subscription)?;
        }
        let last = self.shapes(id);
        if let Some(customer) = self.objects.customers.get_mut(id) {
            customer.deleted = true;
        }
        // The event shows the customer as he was.
        if let Some(last) = last {
            self.tell("customer.deleted", last, None);
        }
        Ok(())
    }

    /// A customer who is not deleted.
    pub fn customer(&self, id: &str) -> Result<&Customer, ApiError> {
        self.objects.customers.get(id).filter(|customer| !customer.deleted).ok_or_else(|| missing::<Customer>(id))
    }

    pub fn set_card(&mut self, id: &str, card: Card) -> Result<(), ApiError> {
        self.change_customer(id, |customer| customer.card = card)
    }

    /// Without an id Stripe thinks one up.
    pub fn create_product(&mut self, id: Option<&str>, name: &str, metadata: Metadata) -> String {
        let id = id.map_or_else(|| self.id("prod_", 14), str::to_owned);
        let (created, name) = (self.seconds(), name.to_owned());
        self.objects.products.add(Product { id: id.clone(), created, name, active: true, metadata, default_price: None });
        self.emit("product.created", &id, None);
        id
    }

    pub fn create_price(&mut self, price: NewPrice<'_>) -> Result<String, ApiError> {
        if self.objects.products.get(price.product).is_none() {
            return Err(ApiError::no_such(Product::NOUN, price.product, "product"));
        }
        let lookup_key = price.lookup_key.map(str::to_owned);
        if let Some(key) = &lookup_key {
            self.lookup_key_is_free(key, "")?;
        }
        let id = price.id.map_or_else(|| self.id("price_1", 23), str::to_owned);
        let created = self.seconds();
        let NewPrice { product, metadata, unit_amount, recurring, active, .. } = price;
        let product = product.to_owned();
        self.objects.prices.add(Price { id: id.clone(), created, product, lookup_key, metadata, unit_amount, recurring, active });
        self.emit("price.created", &id, None);
        Ok(id)
    }

    pub fn set_default_price(&mut self, product: &str, price: &str) -> Result<(), ApiError> {
        let before = self.shapes(product);
        let sells = self.objects.prices.get(price).is_some_and(|price| price.product == product);
        let known = self.objects.products.get_mut(product).ok_or_else(|| missing::<Product>(product))?;
        if !sells {
            return Err(ApiError::no_such(Price::NOUN, price, "default_price"));
        }
        known.default_price = Some(price.to_owned());
        self.emit("product.updated", product, before.as_ref());
        Ok(())
    }

    pub fn change_price(&mut self, id: &str, change: impl FnOnce(&mut Price)) -> Result<(), ApiError> {
        let before = self.shapes(id);
        change(self.objects.prices.get_mut(id).ok_or_else(|| missing::<Price>(id))?);
        if before != self.shapes(id) {
            self.emit("price.updated", id, before.as_ref());
        }
        Ok(())
    }

    /// No two prices share a lookup key; `except` may have it.
    pub fn lookup_key_is_free(&self, key: &str, except: &str) -> Result<(), ApiError> {
        let mut prices = self.objects.prices.newest_first();
        let taken = prices.find(|(_, price)| price.lookup_key.as_deref() == Some(key) && price.id != except);
        taken.map_or(Ok(()), |(_, price)| {
            let message = format!("A price (`{}`) already uses that lookup key.", price.id);
            Err(ApiError::invalid("lookup_key", message))
        })
    }

    /// Changes a subscription and tells of it as `kind`; `customer.subscription.updated` only if something changed.
    pub fn change_subscription(&mut self, id: &str, kind: &str, change: impl FnOnce(&mut Subscription)) -> Result<(), ApiError> {
        let before = self.shapes(id);
        change(self.objects.subscriptions.get_mut(id).ok_or_else(|| missing::<Subscription>(id))?);
        // Only an update says what was before.
        if kind != UPDATED {
            self.emit(kind, id, None);
        } else if before != self.shapes(id) {
            self.emit(kind, id, before.as_ref());
        }
        Ok(())
    }

    pub fn subscription(&self, id: &str) -> Result<&Subscription, ApiError> {
        self.objects.subscriptions.get(id).ok_or_else(|| missing::<Subscription>(id))
    }
}

/// The object of a path is not there.
pub fn missing<T: Kept>(id: &str) -> ApiError {
    ApiError::not_found(T::NOUN, id)
}

/// Sets what is given and removes what is given empty, as Stripe does with metadata.
pub fn set_metadata(metadata: &mut Metadata, given: Vec<(String, String)>) {
    for (key, value) in given {
        if value.is_empty() {
            metadata.remove(&key);
        } else if metadata.len() < METADATA_KEYS_MAX || metadata.contains_key(&key) {
            metadata.insert(key, value);
        }
    }
}

/// The fields that `after` has otherwise, as they were.
fn changed(before: &Value, after: &Value) -> Value {
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else { return Value::Null };
    let fields = before.iter().filter(|(key, value)| after.get(*key) != Some(*value));
    Value::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn previous_attributes_are_what_differs() {
        let before = json!({"id": "sub_1", "status": "active", "cancel_at": null});
        let after = json!({"id": "sub_1", "status": "past_due", "cancel_at": null});
        assert_eq!(changed(&before, &after), json!({"status": "active"}));
    }

    #[test]
    fn an_empty_value_removes_metadata() {
        let mut metadata = Metadata::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        set_metadata(&mut metadata, vec![("a".to_owned(), String::new()), ("c".to_owned(), "3".to_owned())]);
        assert_eq!(metadata.into_iter().collect::<Vec<_>>(), [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())]);
    }
}
