//! What happens at the pages that Stripe hosts: paying at checkout, changing a plan or a card in the portal.

use super::answer::ApiError;
use super::billing::{Beginning, ItemChange, UPDATED};
use super::objects::{Card, Checkout, Customer, Flow, Price, Subscription};
use super::shelf::Kept;
use super::world::{World, missing};

const PLACEHOLDER: &str = "{CHECKOUT_SESSION_ID}";
const SECONDS_PER_DAY: i64 = 86_400;

impl World {
    /// The buyer pays. Gives where he is sent then.
    pub fn complete_checkout(&mut self, id: &str) -> Result<String, ApiError> {
        self.expire_what_is_due();
        let session = self.objects.checkouts.get(id).ok_or_else(|| missing::<Checkout>(id))?.clone();
        let redirect = session.success_url.replace(PLACEHOLDER, id);
        match session.status {
            "open" => {}
            // The buyer pressed twice.
            "complete" => return Ok(redirect),
            _ => return Err(ApiError::invalid("", "This Checkout Session has expired.")),
        }
        let customer = match &session.customer {
            Some(customer) => customer.clone(),
            None => self.create_customer(Customer { email: session.customer_email.clone(), ..Customer::default() }),
        };
        self.set_card(&customer, Card::Good)?;
        let trial_end = session.trial_days.map(|days| self.seconds().saturating_add(days.saturating_mul(SECONDS_PER_DAY)));
        let status = if trial_end.is_some() { "trialing" } else { "active" }.to_owned();
        let beginning = Beginning { status, metadata: session.subscription_metadata.clone(), trial_end, cancel_at_period_end: false };
        let subscription = self.subscribe(&customer, &session.lines, beginning)?;
        let invoice = self.subscription(&subscription)?.latest_invoice.clone();
        if let Some(session) = self.objects.checkouts.get_mut(id) {
            session.status = "complete";
            session.customer = Some(customer);
            session.subscription = Some(subscription);
            session.invoice = invoice;
        }
        self.emit("checkout.session.completed", id, None);
        Ok(redirect)
    }

    pub fn expire_checkout(&mut self, id: &str) -> Result<(), ApiError> {
        let session = self.objects.checkouts.get_mut(id).ok_or_else(|| missing::<Checkout>(id))?;
        if session.status != "open" {
            let message = format!("Only Checkout Sessions with a status in [\"open\"] can be expired. This one is {}.", session.status);
            return Err(ApiError::invalid("", message));
        }
        session.status = "expired";
        self.emit("checkout.session.expired", id, None);
        Ok(())
    }

    /// Expires the sessions whose time is over.
    pub fn expire_what_is_due(&mut self) {
        let now = self.seconds();
        let open = self.objects.checkouts.newest_first().filter(|(_, session)| session.status == "open" && session.expires_at <= now);
        let due: Vec<String> = open.map(|(_, session)| session.id.clone()).collect();
        for id in due {
            // It was open a moment ago, and nobody else has the lock.
            let _ = self.expire_checkout(&id);
        }
    }

    pub fn cancel_at_period_end(&mut self, id: &str, cancel: bool) -> Result<(), ApiError> {
        let now = self.seconds();
        self.change_subscription(id, UPDATED, |subscription| {
            subscription.cancel_at_period_end = cancel;
            subscription.cancel_at = cancel.then(|| subscription.period().1);
            subscription.canceled_at = cancel.then_some(now);
        })
    }

    /// Why the portal would not change this subscription to this price; the words are near to Stripe's.
    pub fn portal_can_change(&self, customer: &str, id: &str, item: &str, price: &str, quantity: Option<u64>) -> Result<(), ApiError> {
        const AT: &str = "flow_data[subscription_update_confirm]";
        let refused = |why: &str| {
            Err(ApiError::invalid(&format!("{AT}[subscription]"), format!("This subscription cannot be updated because {why}.")))
        };
        let known = self.objects.subscriptions.get(id).filter(|known| known.customer == customer);
        let known = known.ok_or_else(|| ApiError::no_such(Subscription::NOUN, id, &format!("{AT}[subscription]")))?;
        if !self.options.portal.updates {
            return refused("the subscription update feature in the portal configuration is disabled");
        }
        if !["active", "trialing"].contains(&known.status.as_str()) {
            return refused(&format!("its status is {}", known.status));
        }
        if known.schedule.is_some() {
            return refused("it is managed by a subscription schedule");
        }
        if known.pending.is_some() {
            return refused("it has a pending update");
        }
        let [only] = known.items.as_slice() else {
            return refused("it has multiple items");
        };
        if only.id != item {
            return Err(ApiError::no_such("subscription item", item, &format!("{AT}[items][0][id]")));
        }
        let target = self.objects.prices.get(price);
        let at = format!("{AT}[items][0][price]");
        let target = target.ok_or_else(|| ApiError::no_such(Price::NOUN, price, &at))?;
        if !target.active || target.recurring.is_none() {
            return Err(ApiError::invalid(&at, format!("The price `{price}` is not active, or not recurring.")));
        }
        let allowed = self.options.portal.prices.as_ref().is_none_or(|prices| prices.iter().any(|known| known == price));
        if !allowed {
            return Err(ApiError::invalid(&at, format!("The price `{price}` is not in the portal configuration's list of products.")));
        }
        if only.price == price && quantity.is_none_or(|quantity| only.quantity == Some(quantity)) {
            return Err(ApiError::invalid(AT, "There are no changes to confirm: the item has this price and quantity already."));
        }
        Ok(())
    }

    /// The customer confirms a change in the portal, and pays for it; where his card is declined nothing changes.
    pub fn confirm_change(&mut self, subscription: &str, change: ItemChange) -> Result<(), ApiError> {
        let customer = self.subscription(subscription)?.customer.clone();
        if self.customer(&customer)?.card == Card::Declined {
            return Err(ApiError::card_declined());
        }
        let items = self.items_after(subscription, &[change])?;
        self.set_card(&customer, Card::Good)?;
        self.change_subscription(subscription, UPDATED, |known| known.items = items)?;
        self.charge(subscription, "subscription_update")?;
        Ok(())
    }

    /// Does what a portal session's flow is for. Gives where the customer is sent then.
    pub fn finish_flow(&mut self, session: &str) -> Result<Option<String>, ApiError> {
        let missing_session = || ApiError::not_found("billing_portal.session", session);
        let session = self.objects.portals.get(session).ok_or_else(missing_session)?.clone();
        let Some(flow) = &session.flow else { return Ok(session.return_url) };
        match flow {
            Flow::PaymentMethodUpdate { .. } => self.mend_payment(&session.customer)?,
            Flow::SubscriptionUpdateConfirm { subscription, item, price, quantity, .. } => {
                self.portal_can_change(&session.customer, subscription, item, price, *quantity)?;
                let (id, price) = (Some(item.clone()), Some(price.clone()));
                self.confirm_change(subscription, ItemChange { id, price, quantity: *quantity, deleted: false })?;
            }
        }
        Ok(flow.then().map(str::to_owned).or(session.return_url))
    }
}
