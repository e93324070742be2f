//! What Stripe keeps, as far as somebody who sells subscriptions sees it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::shelf::{Kept, Shelf};

pub type Metadata = BTreeMap<String, String>;

/// Everything but events.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub customers: Shelf<Customer>,
    pub products: Shelf<Product>,
    pub prices: Shelf<Price>,
    pub subscriptions: Shelf<Subscription>,
    pub invoices: Shelf<Invoice>,
    pub schedules: Shelf<Schedule>,
    pub checkouts: Shelf<Checkout>,
    pub portals: Shelf<PortalSession>,
    pub endpoints: Shelf<Endpoint>,
}

/// What happens when a customer is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Card {
    /// There is no payment method.
    #[default]
    Missing,
    Good,
    Declined,
}

#[derive(Clone, Debug, Default)]
pub struct Customer {
    pub id: String,
    pub created: i64,
    pub email: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub metadata: Metadata,
    pub deleted: bool,
    pub card: Card,
}

#[derive(Clone, Debug)]
pub struct Product {
    pub id: String,
    pub created: i64,
    pub name: String,
    pub active: bool,
    pub metadata: Metadata,
    /// The price that the dashboard shows for it.
    pub default_price: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Price {
    pub id: String,
    pub created: i64,
    pub product: String,
    pub lookup_key: Option<String>,
    pub metadata: Metadata,
    /// Cents.
    pub unit_amount: i64,
    /// `None`: sold once.
    pub recurring: Option<Recurring>,
    pub active: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurring {
    /// `day`, `week`, `month` or `year`.
    pub interval: String,
    pub count: u32,
    /// Metered items have no quantity.
    pub metered: bool,
}

impl Recurring {
    pub fn every(interval: &str) -> Self {
        Self { interval: interval.to_owned(), count: 1, metered: false }
    }
}

#[derive(Clone, Debug)]
pub struct Item {
    pub id: String,
    pub created: i64,
    pub price: String,
    pub quantity: Option<u64>,
    pub period_start: i64,
    pub period_end: i64,
}

#[derive(Clone, Debug)]
pub struct Subscription {
    pub id: String,
    pub created: i64,
    pub customer: String,
    /// Any text: Stripe adds statuses.
    pub status: String,
    pub metadata: Metadata,
    pub items: Vec<Item>,
    pub trial_end: Option<i64>,
    pub cancel_at: Option<i64>,
    pub cancel_at_period_end: bool,
    pub canceled_at: Option<i64>,
    pub ended_at: Option<i64>,
    /// `pause_collection`'s behavior.
    pub paused: Option<String>,
    pub schedule: Option<String>,
    /// The items that it would have, were they paid for.
    pub pending: Option<Vec<Item>>,
    pub latest_invoice: Option<String>,
}

impl Subscription {
    pub fn is_over(&self) -> bool {
        ["canceled", "incomplete_expired"].contains(&self.status.as_str())
    }

    /// Before basil a subscription had one period; its items' are the same.
    pub fn period(&self) -> (i64, i64) {
        self.items.first().map_or((self.created, self.created), |item| (item.period_start, item.period_end))
    }
}

#[derive(Clone, Debug)]
pub struct Invoice {
    pub id: String,
    pub created: i64,
    pub customer: String,
    pub subscription: Option<String>,
    /// `draft`, `open`, `paid`, `void`, `uncollectible`
    pub status: String,
    pub amount: i64,
    pub billing_reason: &'static str,
    /// Price, quantity, amount.
    pub lines: Vec<(String, Option<u64>, i64)>,
    pub period: (i64, i64),
    pub attempts: u32,
    pub paid_at: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct Phase {
    pub start: i64,
    pub end: i64,
    pub items: Vec<(String, Option<u64>)>,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    pub id: String,
    pub created: i64,
    pub customer: String,
    pub subscription: Option<String>,
    pub released_subscription: Option<String>,
    /// `not_started`, `active`, `completed`, `released`, `canceled`
    pub status: &'static str,
    pub phases: Vec<Phase>,
    pub ended_at: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct Checkout {
    pub id: String,
    pub created: i64,
    pub customer: Option<String>,
    pub customer_email: Option<String>,
    pub client_reference_id: Option<String>,
    pub metadata: Metadata,
    pub subscription_metadata: Metadata,
    pub trial_days: Option<i64>,
    pub lines: Vec<(String, Option<u64>)>,
    pub success_url: String,
    pub cancel_url: Option<String>,
    /// `open`, `complete`, `expired`
    pub status: &'static str,
    pub subscription: Option<String>,
    pub invoice: Option<String>,
    pub expires_at: i64,
}

#[derive(Clone, Debug)]
pub struct PortalSession {
    pub id: String,
    pub created: i64,
    pub customer: String,
    pub return_url: Option<String>,
    pub flow: Option<Flow>,
}

#[derive(Clone, Debug)]
pub enum Flow {
    PaymentMethodUpdate { then: Option<String> },
    SubscriptionUpdateConfirm { subscription: String, item: String, price: String, quantity: Option<u64>, then: Option<String> },
}

impl Flow {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PaymentMethodUpdate { .. } => "payment_method_update",
            Self::SubscriptionUpdateConfirm { .. } => "subscription_update_confirm",
        }
    }

    /// Where `after_completion` leads.
    pub fn then(&self) -> Option<&str> {
        match self {
            Self::PaymentMethodUpdate { then } | Self::SubscriptionUpdateConfirm { then, .. } => then.as_deref(),
        }
    }
}

/// A webhook endpoint, or somebody who listens as `stripe listen` does.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub id: String,
    pub created: i64,
    pub url: String,
    pub enabled_events: Vec<String>,
    pub api_version: Option<String>,
    pub description: Option<String>,
    pub metadata: Metadata,
    pub enabled: bool,
    pub deleted: bool,
    /// The API shows it; a listener it does not show.
    pub listed: bool,
    /// The newest last. Each that has not ended signs.
    pub secrets: Vec<SigningSecret>,
}

impl Endpoint {
    pub fn wants(&self, kind: &str) -> bool {
        self.enabled && !self.deleted && self.enabled_events.iter().any(|wanted| wanted == "*" || wanted == kind)
    }
}

#[derive(Clone, Debug)]
pub struct SigningSecret {
    pub text: String,
    /// `None`: until it is rolled.
    pub ends_at: Option<i64>,
}

/// An object in the words of both API generations.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    pub acacia: Value,
    pub basil: Value,
}

/// What was told when it happened; the object may have changed since.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub created: i64,
    pub kind: String,
    pub object: Shapes,
    pub previous: Option<Shapes>,
    /// The request that caused it, and its idempotency key.
    pub request: Option<(String, Option<String>)>,
}

macro_rules! kept {
    ($($kind:ident $noun:literal $(of $owner:ident)?;)*) => { $(
        impl Kept for $kind {
            const NOUN: &'static str = $noun;

            fn id(&self) -> &str {
                &self.id
            }

            $(fn owner(&self) -> Option<&str> {
                Some(&self.$owner)
            })?
        }
    )* };
}

kept! {
    Customer "customer";
    Product "product";
    Price "price";
    Subscription "subscription" of customer;
    Invoice "invoice" of customer;
    Schedule "subscription_schedule" of customer;
    Checkout "checkout.session";
    PortalSession "billing_portal.session";
    Endpoint "webhook endpoint";
    Event "event";
}
