//! The life of a subscription: made, changed, paid for or not, ended.

use chrono::{DateTime, Days, Months};

use super::answer::ApiError;
use super::objects::{Card, Customer, Invoice, Item, Metadata, Phase, Price, Recurring, Schedule, Subscription};
use super::shelf::Kept;
use super::world::{World, missing};

pub const UPDATED: &str = "customer.subscription.updated";
const CREATED: &str = "customer.subscription.created";
const DELETED: &str = "customer.subscription.deleted";
/// Stripe's own bound.
const ITEMS_MAX: usize = 20;

/// What a subscription is made of: a price, and how many of it.
pub type Line = (String, Option<u64>);

/// What changes about items: a known one has its id.
#[derive(Clone, Debug, Default)]
pub struct ItemChange {
    pub id: Option<String>,
    pub price: Option<String>,
    pub quantity: Option<u64>,
    pub deleted: bool,
}

/// How a subscription begins.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    pub status: String,
    pub metadata: Metadata,
    pub trial_end: Option<i64>,
    pub cancel_at_period_end: bool,
}

/// Cents; what cannot be counted is the most that can.
pub fn amount(unit_amount: i64, quantity: Option<u64>) -> i64 {
    unit_amount.saturating_mul(i64::try_from(quantity.unwrap_or(1)).unwrap_or(i64::MAX))
}

/// When the period that begins at `start` ends.
pub fn period_end(start: i64, recurring: &Recurring) -> i64 {
    let count = recurring.count;
    let begins = DateTime::from_timestamp(start, 0);
    let ends = begins.and_then(|begins| match recurring.interval.as_str() {
        "day" => begins.checked_add_days(Days::new(u64::from(count))),
        "week" => begins.checked_add_days(Days::new(u64::from(count) * 7)),
        "year" => begins.checked_add_months(Months::new(count.saturating_mul(12))),
        _ => begins.checked_add_months(Months::new(count)),
    });
    ends.map_or(start, |ends| ends.timestamp())
}

impl World {
    /// Makes a subscription of any status; what it owes is invoiced: paid where it is active, open where it is not.
    pub fn subscribe(&mut self, customer: &str, lines: &[Line], beginning: Beginning) -> Result<String, ApiError> {
        self.customer(customer).map_err(|_| ApiError::no_such(Customer::NOUN, customer, "customer"))?;
        if ITEMS_MAX < lines.len() {
            return Err(ApiError::invalid("items", format!("A subscription may have at most {ITEMS_MAX} items.")));
        }
        let items = lines.iter().map(|(price, quantity)| self.new_item(price, *quantity)).collect::<Result<Vec<_>, _>>()?;
        let id = self.id("sub_1", 23);
        let created = self.seconds();
        let status = beginning.status;
        self.objects.subscriptions.add(Subscription {
            id: id.clone(),
            created,
            customer: customer.to_owned(),
            metadata: beginning.metadata,
            items,
            trial_end: beginning.trial_end,
            cancel_at: None,
            cancel_at_period_end: beginning.cancel_at_period_end,
            canceled_at: None,
            ended_at: (status == "canceled").then_some(created),
            paused: None,
            schedule: None,
            pending: None,
            latest_invoice: None,
            status: status.clone(),
        });
        // The first invoice is there when the subscription is told of; what became of it is told after.
        let invoice = match status.as_str() {
            "trialing" | "paused" => None,
            "active" => Some(self.add_invoice(&id, "paid", "subscription_create")?),
            _ => Some(self.add_invoice(&id, "open", "subscription_create")?),
        };
        self.emit(CREATED, &id, None);
        if let Some(invoice) = invoice {
            self.tell_of_invoice(&invoice);
        }
        Ok(id)
    }

    fn new_item(&mut self, price: &str, quantity: Option<u64>) -> Result<Item, ApiError> {
        let known = self.objects.prices.get(price).ok_or_else(|| ApiError::no_such(Price::NOUN, price, "items[0][price]"))?;
        let Some(recurring) = known.recurring.clone() else {
            let message = format!(
                "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring` ({price})."
            );
            return Err(ApiError::invalid("items[0][price]", message));
        };
        let created = self.seconds();
        let quantity = if recurring.metered { None } else { Some(quantity.unwrap_or(1)) };
        let period_end = period_end(created, &recurring);
        Ok(Item { id: self.id("si_", 14), created, price: price.to_owned(), quantity, period_start: created, period_end })
    }

    /// The items as they would be after `changes`. A price of another interval begins a new period.
    pub fn items_after(&mut self, id: &str, changes: &[ItemChange]) -> Result<Vec<Item>, ApiError> {
        let mut items = self.subscription(id)?.items.clone();
        for change in changes {
            let Some(item_id) = &change.id else {
                let price = change.price.as_deref().ok_or_else(|| ApiError::missing("items[0][price]"))?;
                items.push(self.new_item(price, change.quantity)?);
                continue;
            };
            let Some(place) = items.iter().position(|item| item.id == *item_id) else {
                return Err(ApiError::no_such("subscription item", item_id, "items[0][id]"));
            };
            if change.deleted {
                items.remove(place);
                continue;
            }
            let old = items[place].clone();
            let interval = |price: &str| self.objects.prices.get(price).and_then(|price| price.recurring.clone());
            let was = interval(&old.price);
            let quantity = change.quantity.or(old.quantity);
            items[place] = match &change.price {
                Some(price) => {
                    let is_same = was == interval(price);
                    let fresh = self.new_item(price, quantity)?;
                    let (period_start, period_end) =
                        if is_same { (old.period_start, old.period_end) } else { (fresh.period_start, fresh.period_end) };
                    Item { id: old.id, created: old.created, period_start, period_end, ..fresh }
                }
                None => Item { quantity, ..old },
            };
        }
        Ok(items)
    }

    /// Asks the customer to pay for what the subscription is now. False where his card is declined.
    pub fn charge(&mut self, id: &str, reason: &'static str) -> Result<bool, ApiError> {
        let customer = self.subscription(id)?.customer.clone();
        let paid = self.customer(&customer)?.card == Card::Good;
        let invoice = self.add_invoice(id, if paid { "paid" } else { "open" }, reason)?;
        self.tell_of_invoice(&invoice);
        Ok(paid)
    }

    fn add_invoice(&mut self, subscription: &str, status: &str, billing_reason: &'static str) -> Result<String, ApiError> {
        let id = self.id("in_1", 23);
        let created = self.seconds();
        let known = self.subscription(subscription)?.clone();
        let lines = known.items.iter().map(|item| {
            let unit = self.objects.prices.get(&item.price).map_or(0, |price| price.unit_amount);
            (item.price.clone(), item.quantity, amount(unit, item.quantity))
        });
        let lines: Vec<_> = lines.collect();
        self.objects.invoices.add(Invoice {
            id: id.clone(),
            created,
            period: known.period(),
            customer: known.customer,
            subscription: Some(known.id),
            status: status.to_owned(),
            amount: lines.iter().map(|(_, _, amount)| *amount).fold(0, i64::saturating_add),
            billing_reason,
            lines,
            attempts: 1,
            paid_at: (status == "paid").then_some(created),
        });
        if let Some(subscription) = self.objects.subscriptions.get_mut(subscription) {
            subscription.latest_invoice = Some(id.clone());
        }
        Ok(id)
    }

    fn tell_of_invoice(&mut self, id: &str) {
        let paid = self.objects.invoices.get(id).is_some_and(|invoice| invoice.status == "paid");
        self.emit("invoice.finalized", id, None);
        if paid {
            self.emit("invoice.paid", id, None);
            self.emit("invoice.payment_succeeded", id, None);
        } else {
            self.emit("invoice.payment_failed", id, None);
        }
    }

    /// Pays an open invoice; where it was the last, its subscription is active again.
    pub fn pay_invoice(&mut self, id: &str) -> Result<(), ApiError> {
        let now = self.seconds();
        let invoice = self.objects.invoices.get_mut(id).ok_or_else(|| missing::<Invoice>(id))?;
        if invoice.status != "open" {
            return Err(ApiError::invalid("", "Invoice is already paid"));
        }
        invoice.status = "paid".to_owned();
        invoice.paid_at = Some(now);
        invoice.attempts = invoice.attempts.saturating_add(1);
        let (customer, subscription) = (invoice.customer.clone(), invoice.subscription.clone());
        self.emit("invoice.paid", id, None);
        self.emit("invoice.payment_succeeded", id, None);
        let Some(subscription) = subscription else { return Ok(()) };
        let mut invoices = self.objects.invoices.of(Some(&customer)).into_iter();
        let owes = invoices.any(|(_, other)| other.status == "open" && other.subscription.as_ref() == Some(&subscription));
        let waits = ["past_due", "unpaid", "incomplete"].contains(&self.subscription(&subscription)?.status.as_str());
        if waits && !owes { self.set_status(&subscription, "active") } else { Ok(()) }
    }

    /// The customer gives a card that is good; what he owes is paid.
    pub fn mend_payment(&mut self, customer: &str) -> Result<(), ApiError> {
        self.set_card(customer, Card::Good)?;
        let open = self.objects.invoices.of(Some(customer)).into_iter().filter(|(_, invoice)| invoice.status == "open");
        let open: Vec<String> = open.map(|(_, invoice)| invoice.id.clone()).collect();
        open.iter().rev().try_for_each(|invoice| self.pay_invoice(invoice))
    }

    /// Any status; with the events that Stripe sends for it.
    pub fn set_status(&mut self, id: &str, status: &str) -> Result<(), ApiError> {
        let now = self.seconds();
        let was = self.subscription(id)?.status.clone();
        let kind = if status == "canceled" { DELETED } else { UPDATED };
        self.change_subscription(id, kind, |subscription| {
            subscription.status = status.to_owned();
            if subscription.is_over() {
                subscription.canceled_at = subscription.canceled_at.or(Some(now));
                subscription.ended_at = Some(now);
            }
        })?;
        if status == "paused" {
            self.emit("customer.subscription.paused", id, None);
        } else if was == "paused" && status == "active" {
            self.emit("customer.subscription.resumed", id, None);
        }
        Ok(())
    }

    pub fn cancel(&mut self, id: &str) -> Result<(), ApiError> {
        self.set_status(id, "canceled")
    }

    /// What the passing of a period does: it ends what was to end, renews the rest, and asks for the money.
    pub fn advance_period(&mut self, id: &str) -> Result<(), ApiError> {
        let subscription = self.subscription(id)?;
        if subscription.cancel_at_period_end {
            return self.cancel(id);
        }
        let (customer, first) = (subscription.customer.clone(), subscription.items.iter().map(|item| item.period_end).min());
        let paid = self.customer(&customer)?.card == Card::Good;
        let price = |item: &Item| self.objects.prices.get(&item.price).and_then(|price| price.recurring.clone());
        let ends: Vec<(String, i64)> = subscription
            .items
            .iter()
            .filter(|item| Some(item.period_end) == first)
            .filter_map(|item| Some((item.id.clone(), period_end(item.period_end, &price(item)?))))
            .collect();
        self.change_subscription(id, UPDATED, |subscription| {
            for item in &mut subscription.items {
                if let Some((_, end)) = ends.iter().find(|(id, _)| *id == item.id) {
                    (item.period_start, item.period_end) = (item.period_end, *end);
                }
            }
            subscription.status = if paid { "active" } else { "past_due" }.to_owned();
        })?;
        self.charge(id, "subscription_cycle")?;
        Ok(())
    }

    /// The items that it would have, were they paid for; or what became of them.
    pub fn offer(&mut self, id: &str, items: Vec<Item>) -> Result<(), ApiError> {
        self.change_subscription(id, UPDATED, |subscription| subscription.pending = Some(items))
    }

    pub fn settle(&mut self, id: &str, applied: bool) -> Result<(), ApiError> {
        let kind = if applied { "applied" } else { "expired" };
        self.change_subscription(id, &format!("customer.subscription.pending_update_{kind}"), |subscription| {
            if let Some(items) = subscription.pending.take().filter(|_| applied) {
                subscription.items = items;
            }
        })
    }

    /// Plans other items for after the current period.
    pub fn schedule(&mut self, subscription: &str, lines: &[Line]) -> Result<String, ApiError> {
        let known = self.subscription(subscription)?.clone();
        let (id, created) = (self.id("sub_sched_1", 23), self.seconds());
        let (start, end) = known.period();
        let next = period_end(end, &Recurring::every("month"));
        let now_items = known.items.iter().map(|item| (item.price.clone(), item.quantity)).collect();
        let phases = vec![Phase { start, end, items: now_items }, Phase { start: end, end: next, items: lines.to_vec() }];
        self.objects.schedules.add(Schedule {
            id: id.clone(),
            created,
            customer: known.customer,
            subscription: Some(known.id),
            released_subscription: None,
            status: "active",
            phases,
            ended_at: None,
        });
        self.emit("subscription_schedule.created", &id, None);
        self.change_subscription(subscription, UPDATED, |subscription| subscription.schedule = Some(id.clone()))?;
        Ok(id)
    }

    /// Lets go of a subscription: it goes on as it is, and what was planned does not come.
    pub fn release_schedule(&mut self, id: &str) -> Result<(), ApiError> {
        let now = self.seconds();
        let before = self.shapes(id);
        let schedule = self.objects.schedules.get_mut(id).ok_or_else(|| missing::<Schedule>(id))?;
        schedule.status = "released";
        schedule.ended_at = Some(now);
        schedule.released_subscription = schedule.subscription.take();
        let subscription = schedule.released_subscription.clone();
        self.emit("subscription_schedule.released", id, before.as_ref());
        let Some(subscription) = subscription else { return Ok(()) };
        self.change_subscription(&subscription, UPDATED, |subscription| subscription.schedule = None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().unwrap_or_default().timestamp()
    }

    #[test]
    fn periods_end_by_the_calendar() {
        let check = |start: &str, interval: &str, count: u32, end: &str| {
            let recurring = Recurring { interval: interval.to_owned(), count, metered: false };
            assert_eq!(period_end(at(start), &recurring), at(end), "{start} {count} {interval}");
        };
        check("2026-01-12T12:00:00Z", "month", 1, "2026-02-12T12:00:00Z");
        check("2026-01-31T00:00:00Z", "month", 1, "2026-02-28T00:00:00Z");
        check("2026-01-12T12:00:00Z", "month", 3, "2026-04-12T12:00:00Z");
        check("2024-02-29T00:00:00Z", "year", 1, "2025-02-28T00:00:00Z");
        check("2026-01-12T12:00:00Z", "week", 2, "2026-01-26T12:00:00Z");
        check("2026-01-12T12:00:00Z", "day", 1, "2026-01-13T12:00:00Z");
    }

    #[test]
    fn amounts_are_bounded() {
        assert_eq!((amount(500, Some(3)), amount(500, None)), (1500, 500));
        assert_eq!(amount(500, Some(u64::MAX)), i64::MAX);
    }
}
