//! Asks Stripe: reads the truth, makes sessions, registers the endpoint. async-stripe says how requests are written; how they
//! are sent, and how answers are read, is ours.

mod call;
mod error;
mod pace;
mod sessions;
mod setup;
mod transport;
mod truth;

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use call::Idempotency;
pub use error::StripeError;
pub use pace::Lane;
pub use sessions::{Checkout, CheckoutSession, PortalFlow};
pub use setup::{Account, EndpointChange, PortalConfiguration, Price, Product, SigningSecret, WebhookEndpoint};
pub use transport::Patience;
pub use truth::{RemoteCustomer, RemoteItem, RemoteSubscription};

use self::call::Call;
use self::pace::Pace;
use self::transport::Transport;
use super::key::ApiKey;
use super::read::{flag, text};

/// Stripe's own most.
const PAGE_SIZE: i64 = 100;
/// No list that is read to its end has more objects; a customer has some subscriptions, and a subscription twenty items at most.
const OBJECTS_MAX: usize = 2000;

/// The client could not be made. Where it could, no call fails for this reason.
#[derive(Debug, thiserror::Error)]
#[error("the client for Stripe's API cannot be made: {0}")]
pub struct NoClient(String);

/// Asks Stripe in the name of one key. Clones share connections and pace.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    patience: Patience,
}

/// A part of a list, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Objects of the page that could not be read, and are not among the items.
    pub unread: usize,
    /// What to give as `after` for the next page; `None` is the end.
    pub next: Option<String>,
}

type Object = Map<String, Value>;

impl Client {
    /// `base` is where Stripe's API is; `seed` spreads the pauses between tries.
    pub fn new(key: ApiKey, base: &str, seed: u64) -> Result<Self, NoClient> {
        Ok(Self { transport: Arc::new(Transport::new(key, base, seed)?), patience: Patience::BACKGROUND })
    }

    /// A client that sends so many calls a second, instead of four fifths of what Stripe takes. To be called before it is cloned: clones
    /// share their pace.
    pub fn paced(mut self, per_second: u32) -> Self {
        if let Some(transport) = Arc::get_mut(&mut self.transport) {
            transport.pace = Pace::of(per_second);
        }
        self
    }

    /// The same client for calls with other patience.
    pub fn with(&self, patience: Patience) -> Self {
        Self { transport: self.transport.clone(), patience }
    }

    pub fn livemode(&self) -> bool {
        self.transport.key.livemode()
    }

    /// Stripe's own clock, in whole seconds, as of the latest answer; `None` before the first.
    pub fn server_time(&self) -> Option<DateTime<Utc>> {
        self.transport.server_time()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.patience.deadline
    }

    /// The object that a call is answered with.
    async fn object(&self, call: &Call, until: Instant) -> Result<Object, StripeError> {
        let body = self.transport.send(call, self.patience, until).await?;
        let object = object(serde_json::from_slice(&body))?;
        self.check_mode(&object)?;
        Ok(object)
    }

    /// The page that a call is answered with.
    async fn page(&self, call: &Call, until: Instant) -> Result<Page<Object>, StripeError> {
        let mut list = self.object(call, until).await?;
        let Some(Value::Array(data)) = list.remove("data") else { return Err(StripeError::Unreadable("it is not a list")) };
        let items = data.into_iter().map(|item| object(Ok(item))).collect::<Result<Vec<_>, _>>()?;
        items.iter().try_for_each(|item| self.check_mode(item))?;
        let next = next_after(flag(&list, "has_more"), items.last())?;
        Ok(Page { items, unread: 0, next })
    }

    /// All pages of a list, from `first` on. `call` asks for what comes after an object.
    async fn pages(&self, first: Option<String>, until: Instant, call: impl Fn(Option<&str>) -> Call) -> Result<Vec<Object>, StripeError> {
        let (mut found, mut after) = (Vec::new(), first);
        // A page that is not the last has an object at least.
        while found.len() <= OBJECTS_MAX {
            let page = self.page(&call(after.as_deref()), until).await?;
            found.extend(page.items);
            if page.next.is_none() {
                return Ok(found);
            }
            after = page.next;
        }
        Err(StripeError::Unreadable("a list has more than 2000 objects"))
    }

    fn check_mode(&self, object: &Object) -> Result<(), StripeError> {
        match object.get("livemode").and_then(Value::as_bool) {
            Some(livemode) if livemode != self.livemode() => Err(StripeError::WrongMode),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transport { key, base, .. } = &*self.transport;
        f.debug_struct("Client").field("key", key).field("base", base).field("patience", &self.patience).finish()
    }
}

fn object(value: serde_json::Result<Value>) -> Result<Object, StripeError> {
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(StripeError::Unreadable("it is not an object")),
        Err(_) => Err(StripeError::Unreadable("it is not JSON")),
    }
}

/// The cursor of the page after one that ends with `last`.
fn next_after(has_more: bool, last: Option<&Object>) -> Result<Option<String>, StripeError> {
    match last.and_then(|last| text(last, "id")) {
        _ if !has_more => Ok(None),
        None => Err(StripeError::Unreadable("a page does not say where the next one begins")),
        next => Ok(next),
    }
}

/// `None` where it is not there.
fn found<T>(answer: Result<T, StripeError>) -> Result<Option<T>, StripeError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(StripeError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
