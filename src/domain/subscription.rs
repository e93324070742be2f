//! What Stripe's subscriptions grant: status, items, rank, grace.
//!
//! Where Stripe is asked, its answer is all there is ([`Customer::as_asked`]). Without asking, all that is known of a customer is what
//! events said, in any order and any number. So a customer is then a fold over notices in which order does not matter
//! ([`Customer::after`]): a newer word replaces an older one, an end is final, and a tie within a second goes to the later stage of a
//! subscription's life.

mod explained;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::catalogue::{Catalogue, ItemNames, PausedCollection, Tier};
use super::period::BillingPeriod;
pub use explained::{Explained, NamedBy};

/// More subscriptions of one customer are not remembered: the ended ones that we heard of longest ago are forgotten first.
const SUBSCRIPTIONS_MAX: usize = 500;

/// Stripe's status of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Status {
    Incomplete,
    IncompleteExpired,
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Paused,
    Canceled,
    /// One that Stripe made after this was written.
    Unknown(String),
}

impl From<String> for Status {
    fn from(name: String) -> Self {
        match name.as_str() {
            "incomplete" => Self::Incomplete,
            "incomplete_expired" => Self::IncompleteExpired,
            "trialing" => Self::Trialing,
            "active" => Self::Active,
            "past_due" => Self::PastDue,
            "unpaid" => Self::Unpaid,
            "paused" => Self::Paused,
            "canceled" => Self::Canceled,
            _ => Self::Unknown(name),
        }
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.name().to_owned()
    }
}

impl Status {
    pub fn name(&self) -> &str {
        match self {
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::Canceled => "canceled",
            Self::Unknown(name) => name,
        }
    }

    /// Stripe never leaves these again.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Canceled | Self::IncompleteExpired => true,
            Self::Incomplete | Self::Trialing | Self::Active | Self::PastDue | Self::Unpaid | Self::Paused | Self::Unknown(_) => false,
        }
    }

    /// How late in a subscription's life a status comes, to settle ties within a second.
    fn stage(&self) -> u8 {
        match self {
            Self::Incomplete => 0,
            Self::Trialing => 1,
            Self::Unknown(_) | Self::Active => 2,
            Self::PastDue => 3,
            Self::Paused | Self::Unpaid => 4,
            Self::IncompleteExpired | Self::Canceled => 5,
        }
    }
}

/// Which kind of event said it, to settle ties within a second: a creation comes first, an announcement tells of nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    Creation,
    Announcement,
    Change,
}

/// One line of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub price: Option<String>,
    pub lookup_key: Option<String>,
    /// The price's own metadata `tier`.
    pub metadata_tier: Option<String>,
    pub product: Option<String>,
    /// Absent on metered items.
    pub quantity: Option<u64>,
    pub period_start: Option<DateTime<Utc>>,
    pub period_end: Option<DateTime<Utc>>,
}

impl Item {
    fn names(&self) -> ItemNames<'_> {
        ItemNames {
            price: self.price.as_deref(),
            lookup_key: self.lookup_key.as_deref(),
            metadata_tier: self.metadata_tier.as_deref(),
            product: self.product.as_deref(),
        }
    }
}

/// A subscription as one event showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub status: Status,
    pub occasion: Occasion,
    /// The event's `created`: good enough to order payloads where Stripe is not asked, not good enough where it is.
    pub said_at: DateTime<Utc>,
    pub items: Vec<Item>,
    pub cancel_at: Option<DateTime<Utc>>,
    pub cancel_at_period_end: bool,
    pub collection_paused: bool,
    /// Stripe did not send all items.
    pub has_more_items: bool,
}

/// Where in a subscription's life a word belongs.
type LifeStage = (DateTime<Utc>, u8, Occasion);

impl Snapshot {
    fn life_stage(&self) -> LifeStage {
        (self.said_at, self.status.stage(), self.occasion)
    }

    /// Whether this shows the subscription later in its life than `other` does.
    fn is_later_than(&self, other: &Self) -> bool {
        match (other.status.is_final(), self.status.is_final()) {
            (true, false) => false,
            (false, true) => true,
            (true, true) | (false, false) => other.life_stage() <= self.life_stage(),
        }
    }

    /// The dearest tier among the items, and the item that buys it.
    fn best_item<'c>(&self, catalogue: &'c Catalogue) -> Option<(&Item, &'c Tier)> {
        let mapped = self.items.iter().filter_map(|item| Some((item, catalogue.tier_of(item.names())?)));
        mapped.max_by_key(|(_, tier)| tier.rank)
    }

    /// The quantity of all items that buy this tier; 1 where none names one.
    fn seats(&self, tier: &Tier, catalogue: &Catalogue) -> u64 {
        let buys = |item: &&Item| catalogue.tier_of(item.names()).is_some_and(|bought| bought.name == tier.name);
        self.items.iter().filter(buys).filter_map(|item| item.quantity).reduce(u64::saturating_add).unwrap_or(1)
    }

    /// The dearest tier that its items buy, whether it is paid or not.
    pub fn tier<'c>(&self, catalogue: &'c Catalogue) -> Option<&'c Tier> {
        self.best_item(catalogue).map(|(_, tier)| tier)
    }

    fn ends_at(&self) -> Option<DateTime<Utc>> {
        let at_period_end = || self.items.iter().filter_map(|item| item.period_end).max();
        self.cancel_at.or_else(|| if self.cancel_at_period_end { at_period_end() } else { None })
    }
}

/// What a subscription was worth when last we understood it: to be kept where we do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Worth {
    tier: Option<String>,
    #[serde(default = "one")]
    seats: u64,
    at: LifeStage,
}

fn one() -> u64 {
    1
}

/// All that is remembered of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Subscription {
    latest: Option<Snapshot>,
    /// When an invoice of it was last said to be paid.
    paid_at: Option<DateTime<Utc>>,
    worth: Option<Worth>,
    /// When we first saw it past due. An invoice that is paid does not end it: only a snapshot does, so that small payments
    /// buy no second grace.
    past_due_since: Option<DateTime<Utc>>,
}

impl Subscription {
    /// The status, with a payment that came after the latest snapshot: it makes whole what only waited for money.
    fn status(&self) -> Option<Status> {
        let latest = self.latest.as_ref()?;
        let paid_since = self.paid_at.is_some_and(|paid_at| latest.said_at < paid_at);
        let waits_for_money = matches!(latest.status, Status::PastDue | Status::Incomplete);
        Some(if waits_for_money && paid_since { Status::Active } else { latest.status.clone() })
    }

    fn ended_long_ago_first(&self) -> (bool, Option<DateTime<Utc>>) {
        let latest = self.latest.as_ref();
        (!latest.is_some_and(|shown| shown.status.is_final()), latest.map(|shown| shown.said_at))
    }
}

/// What one event says about a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Subscription { subscription: String, snapshot: Snapshot },
    InvoicePaid { subscription: String, said_at: DateTime<Utc> },
    Deleted,
}

/// One Stripe customer, as far as events told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    subscriptions: BTreeMap<String, Subscription>,
    deleted: bool,
}

/// What a notice did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is now the latest word.
    Latest,
    /// It is older than what we know, or comes after the end.
    Stale,
}

impl Customer {
    /// The customer after `notice`, which arrived at `now`.
    pub fn after(&self, notice: &Notice, catalogue: &Catalogue, now: DateTime<Utc>) -> (Self, Change) {
        let mut customer = self.clone();
        let change = match notice {
            Notice::Deleted => {
                customer.deleted = true;
                Change::Latest
            }
            Notice::InvoicePaid { subscription, said_at } => {
                let known = customer.subscriptions.entry(subscription.clone()).or_default();
                let newer = known.paid_at.is_none_or(|paid_at| paid_at < *said_at);
                let latest = newer && known.latest.as_ref().is_none_or(|shown| shown.said_at < *said_at);
                if newer {
                    known.paid_at = Some(*said_at);
                }
                if latest { Change::Latest } else { Change::Stale }
            }
            Notice::Subscription { subscription, snapshot } => {
                let known = customer.subscriptions.entry(subscription.clone()).or_default();
                if let Some(worth) = worth(snapshot, catalogue)
                    && known.worth.as_ref().is_none_or(|before| before.at <= worth.at)
                {
                    known.worth = Some(worth);
                }
                let later = known.latest.as_ref().is_none_or(|shown| snapshot.is_later_than(shown));
                if later {
                    known.latest = Some(snapshot.clone());
                }
                if later { Change::Latest } else { Change::Stale }
            }
        };
        customer.note_past_due(now);
        customer.forget_the_oldest();
        let change = if self.deleted { Change::Stale } else { change };
        (customer, change)
    }

    /// The customer after Stripe itself was asked: these are its subscriptions, and there are no others. What Stripe does not keep stays:
    /// since when one is past due, and what it was worth when last we understood it.
    pub fn as_asked(&self, deleted: bool, shown: Vec<(String, Snapshot)>, catalogue: &Catalogue, now: DateTime<Utc>) -> Self {
        let mut customer = Self { subscriptions: BTreeMap::new(), deleted };
        for (id, snapshot) in shown {
            let before = self.subscriptions.get(&id);
            let worth = worth(&snapshot, catalogue).or_else(|| before.and_then(|known| known.worth.clone()));
            let past_due_since = before.and_then(|known| known.past_due_since);
            customer.subscriptions.insert(id, Subscription { latest: Some(snapshot), paid_at: None, worth, past_due_since });
        }
        customer.note_past_due(now);
        customer.forget_the_oldest();
        customer
    }

    /// Whether Stripe shows this subscription as we know it. A list may cut its items short: then those that it shows count.
    pub fn agrees(&self, subscription: &str, shown: &Snapshot) -> bool {
        let Some(known) = self.subscriptions.get(subscription).and_then(|known| known.latest.as_ref()) else { return false };
        let items = match shown.has_more_items {
            true => known.items.get(..shown.items.len()),
            false => Some(known.items.as_slice()),
        };
        let rest = |snapshot: &Snapshot| (snapshot.cancel_at, snapshot.cancel_at_period_end, snapshot.collection_paused);
        items == Some(&shown.items) && known.status == shown.status && rest(known) == rest(shown)
    }

    /// The ids of the subscriptions that are not over, as far as we know.
    pub fn running(&self) -> impl Iterator<Item = &str> {
        let over = |known: &Subscription| known.latest.as_ref().is_none_or(|latest| latest.status.is_final());
        self.subscriptions.iter().filter(move |(_, known)| !self.deleted && !over(known)).map(|(id, _)| id.as_str())
    }

    /// When each one was first seen past due; an end of it is noted as well.
    fn note_past_due(&mut self, now: DateTime<Utc>) {
        for known in self.subscriptions.values_mut() {
            known.past_due_since = match known.latest.as_ref().map(|latest| &latest.status) {
                Some(Status::PastDue) => known.past_due_since.or(Some(now)),
                Some(Status::Unknown(_)) => known.past_due_since,
                Some(
                    Status::Incomplete
                    | Status::IncompleteExpired
                    | Status::Trialing
                    | Status::Active
                    | Status::Unpaid
                    | Status::Paused
                    | Status::Canceled,
                )
                | None => None,
            };
        }
    }

    fn forget_the_oldest(&mut self) {
        while SUBSCRIPTIONS_MAX < self.subscriptions.len() {
            let oldest = self.subscriptions.iter().min_by_key(|(_, known)| known.ended_long_ago_first());
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { return };
            self.subscriptions.remove(&id);
        }
    }

    /// What the customer pays for at `now`.
    pub fn grant<'c>(&self, catalogue: &'c Catalogue, now: DateTime<Utc>) -> Grant<'c> {
        let grants = || self.subscriptions.values().filter_map(|known| self.grant_of(known, catalogue, now));
        let best = grants().max_by_key(Grant::by_worth).unwrap_or_default();
        let buys_the_same = |grant: &Grant<'_>| grant.tier.is_some() && grant.tier.map(|tier| tier.rank) == best.tier.map(|tier| tier.rank);
        let seats = grants().filter(buys_the_same).map(|grant| grant.seats).reduce(u64::saturating_add);
        Grant { seats: seats.unwrap_or(best.seats), ..best }
    }

    fn grant_of<'c>(&self, known: &Subscription, catalogue: &'c Catalogue, now: DateTime<Utc>) -> Option<Grant<'c>> {
        let latest = known.latest.as_ref()?;
        let status = if self.deleted { Status::Canceled } else { known.status()? };
        let kept = || known.worth.as_ref().and_then(|worth| Some((catalogue.tier(worth.tier.as_deref()?)?, worth.seats)));
        let best = latest.best_item(catalogue);
        let bought = match best {
            Some((_, tier)) => Some((tier, latest.seats(tier, catalogue))),
            // Nothing maps: an operator forgot a price. No items at all is Stripe's own way to say "nothing".
            None if latest.items.is_empty() => None,
            None => kept(),
        };
        let suspended = latest.collection_paused && catalogue.paused_collection == PausedCollection::Suspend;
        let grace_ends_at = known
            .past_due_since
            .zip(bought)
            .and_then(|(since, (tier, _))| since.checked_add_signed(TimeDelta::days(i64::from(tier.grace_days))));
        let tier = match status {
            Status::Trialing | Status::Active => bought.filter(|_| !suspended),
            Status::PastDue => bought.filter(|_| !suspended && grace_ends_at.is_some_and(|end| now < end)),
            // What the user had: not more, where that had ended.
            Status::Unknown(_) => kept().filter(|_| !suspended && grace_ends_at.is_none_or(|end| now < end)),
            Status::Incomplete | Status::IncompleteExpired | Status::Unpaid | Status::Paused | Status::Canceled => None,
        };
        // What was never paid for, or is over, has no period.
        let pays = matches!(status, Status::Trialing | Status::Active | Status::PastDue | Status::Unknown(_));
        let is_owed = matches!(status, Status::PastDue | Status::Unpaid | Status::Incomplete);
        let item = best.map(|(item, _)| item).or(latest.items.first()).filter(|_| pays);
        Some(Grant {
            tier: tier.map(|(tier, _)| tier),
            owed: bought.filter(|_| is_owed && tier.is_none()).map(|(tier, _)| tier),
            grace_ends_at: grace_ends_at.filter(|_| status == Status::PastDue),
            status: Some(status),
            ends_at: latest.ends_at(),
            billing: item.and_then(|item| BillingPeriod::new(item.period_start?, item.period_end?)),
            seats: tier.or(bought).map_or(1, |(_, seats)| seats),
            said_at: Some(latest.said_at),
        })
    }

    /// What is wrong with what we know of `subscription`, for the operator; empty where nothing is.
    pub fn doubts(&self, subscription: &str, catalogue: &Catalogue) -> Vec<Doubt> {
        let Some(known) = self.subscriptions.get(subscription) else { return Vec::new() };
        let (Some(latest), Some(status)) = (known.latest.as_ref(), known.status()) else { return Vec::new() };
        let mut doubts = Vec::new();
        let buys = matches!(status, Status::Trialing | Status::Active | Status::PastDue | Status::Unknown(_));
        let mapped = latest.best_item(catalogue).is_some();
        if buys && !latest.items.is_empty() && !mapped {
            let prices = latest.items.iter().filter_map(|item| item.price.clone());
            let kept = known.worth.as_ref().and_then(|worth| worth.tier.clone());
            doubts.push(Doubt::UnmappedPrice { prices: prices.collect(), kept });
        }
        if buys && (latest.items.is_empty() || latest.has_more_items) {
            doubts.push(Doubt::MissingItems { shown: latest.items.len() });
        }
        if let Status::Unknown(status) = status {
            doubts.push(Doubt::UnknownStatus { status });
        }
        doubts
    }
}

/// What a customer pays for. The default is nobody's: no subscription, no tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant<'c> {
    /// `None` leaves the user on the default tier.
    pub tier: Option<&'c Tier>,
    /// What he would have, had he paid what is due.
    pub owed: Option<&'c Tier>,
    pub status: Option<Status>,
    /// When a cancellation that was asked for takes effect. Access is full until the status changes.
    pub ends_at: Option<DateTime<Utc>>,
    /// When a subscription that is past due loses its tier.
    pub grace_ends_at: Option<DateTime<Utc>>,
    pub billing: Option<BillingPeriod>,
    /// The quantity that is paid for, of all subscriptions that buy this tier; 1 where Stripe names none.
    pub seats: u64,
    said_at: Option<DateTime<Utc>>,
}

impl Grant<'_> {
    /// Among several subscriptions the one with the highest tier decides, or the highest that is owed; of those the one with the most
    /// seats, and the latest that we heard of.
    fn by_worth(&self) -> impl Ord + use<> {
        let rank = |tier: Option<&Tier>| tier.map(|tier| tier.rank);
        let is_over = self.status.as_ref().is_none_or(Status::is_final);
        (rank(self.tier), rank(self.owed), !is_over, self.seats, self.said_at)
    }
}

/// A matter for the operator: it does not change what the user may do, but somebody should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Paid for, but no tier of the catalogue is bought by any of its prices.
    UnmappedPrice {
        prices: Vec<String>,
        kept: Option<String>,
    },
    UnknownStatus {
        status: String,
    },
    /// Paid for, but without items, or not with all of them.
    MissingItems {
        shown: usize,
    },
}

/// What `snapshot` is worth; `None` where we do not understand it.
fn worth(snapshot: &Snapshot, catalogue: &Catalogue) -> Option<Worth> {
    let tier = match snapshot.status {
        Status::Trialing | Status::Active | Status::PastDue => Some(snapshot.best_item(catalogue)?.1),
        Status::Incomplete | Status::IncompleteExpired | Status::Unpaid | Status::Paused | Status::Canceled => None,
        Status::Unknown(_) => return None,
    };
    let seats = tier.map_or(1, |tier| snapshot.seats(tier, catalogue));
    Some(Worth { tier: tier.map(|tier| tier.name.clone()), seats, at: snapshot.life_stage() })
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
