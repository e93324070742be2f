//! Objects as JSON, in the words of an API generation.

use serde_json::{Value, json};

use super::Generation;
use super::objects::{Checkout, Customer, Endpoint, Event, Invoice, Item, Objects, PortalSession, Price, Product, Schedule, Subscription};
use super::shelf::Shelf;

/// What somebody sees who reads: objects and events as they are, or as they were.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub objects: &'a Objects,
    /// Objects as they are, also for who sees them as they were: whether a filter's customer exists is not stale.
    pub truth: &'a Objects,
    pub events: &'a Shelf<Event>,
    /// Events from here on are not seen yet.
    pub events_until: usize,
    pub generation: Generation,
    pub livemode: bool,
    /// Where our pages are.
    pub base: &'a str,
    /// How many items a subscription shows; the rest is at `/v1/subscription_items`.
    pub items_max: usize,
    /// No page has more.
    pub page_max: usize,
    pub now: i64,
}

impl View<'_> {
    /// The object of this id, of whatever kind. `None` where there is none.
    pub fn any(&self, id: &str) -> Option<Value> {
        let objects = self.objects;
        let value = objects.customers.get(id).map(|object| self.customer(object));
        let value = value.or_else(|| objects.subscriptions.get(id).map(|object| self.subscription(object)));
        let value = value.or_else(|| objects.invoices.get(id).map(|object| self.invoice(object)));
        let value = value.or_else(|| objects.checkouts.get(id).map(|object| self.checkout(object)));
        let value = value.or_else(|| objects.schedules.get(id).map(|object| self.schedule(object)));
        let value = value.or_else(|| objects.prices.get(id).map(|object| self.price(object)));
        value.or_else(|| objects.products.get(id).map(|object| self.product(object)))
    }

    pub fn customer(&self, customer: &Customer) -> Value {
        if customer.deleted {
            return json!({"id": customer.id, "object": "customer", "deleted": true});
        }
        json!({
            "id": customer.id, "object": "customer", "address": null, "balance": 0, "created": customer.created, "currency": null,
            "default_source": null, "delinquent": false, "description": customer.description, "discount": null,
            "email": customer.email, "invoice_prefix": "FAKE0001",
            "invoice_settings": {"custom_fields": null, "default_payment_method": null, "footer": null, "rendering_options": null},
            "livemode": self.livemode, "metadata": customer.metadata, "name": customer.name, "next_invoice_sequence": 1,
            "phone": null, "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null,
        })
    }

    pub fn product(&self, product: &Product) -> Value {
        json!({
            "id": product.id, "object": "product", "active": product.active, "attributes": [], "created": product.created,
            "default_price": product.default_price, "description": null, "images": [], "livemode": self.livemode, "marketing_features": [],
            "metadata": product.metadata, "name": product.name, "package_dimensions": null, "shippable": null,
            "statement_descriptor": null, "tax_code": null, "type": "service", "unit_label": null, "updated": product.created, "url": null,
        })
    }

    pub fn price(&self, price: &Price) -> Value {
        let recurring = price.recurring.as_ref().map(|recurring| {
            let usage = if recurring.metered { "metered" } else { "licensed" };
            json!({
                "interval": recurring.interval, "interval_count": recurring.count, "meter": null, "trial_period_days": null,
                "usage_type": usage,
            })
        });
        json!({
            "id": price.id, "object": "price", "active": price.active, "billing_scheme": "per_unit", "created": price.created,
            "currency": "usd", "custom_unit_amount": null, "livemode": self.livemode, "lookup_key": price.lookup_key,
            "metadata": price.metadata, "nickname": null, "product": price.product, "recurring": recurring,
            "tax_behavior": "unspecified", "tiers_mode": null, "transform_quantity": null,
            "type": if price.recurring.is_some() { "recurring" } else { "one_time" },
            "unit_amount": price.unit_amount, "unit_amount_decimal": price.unit_amount.to_string(),
        })
    }

    /// What a price was called before there were prices. Stripe still sends it.
    fn plan(&self, price: &Price) -> Value {
        let Some(recurring) = &price.recurring else { return Value::Null };
        let usage = if recurring.metered { "metered" } else { "licensed" };
        json!({
            "id": price.id, "object": "plan", "active": price.active, "amount": price.unit_amount,
            "amount_decimal": price.unit_amount.to_string(), "billing_scheme": "per_unit", "created": price.created, "currency": "usd",
            "interval": recurring.interval, "interval_count": recurring.count, "livemode": self.livemode, "metadata": price.metadata,
            "meter": null, "nickname": null, "product": price.product, "tiers_mode": null, "transform_usage": null,
            "trial_period_days": null, "usage_type": usage,
        })
    }

    pub fn item(&self, subscription: &str, item: &Item) -> Value {
        let price = self.objects.prices.get(&item.price);
        let mut value = json!({
            "id": item.id, "object": "subscription_item", "billing_thresholds": null, "created": item.created, "metadata": {},
            "plan": price.map(|price| self.plan(price)), "price": price.map(|price| self.price(price)), "subscription": subscription,
            "tax_rates": [],
        });
        // A metered item has no quantity at all, not one that is null.
        if let Some(quantity) = item.quantity {
            value["quantity"] = json!(quantity);
        }
        match self.generation {
            Generation::Acacia => {}
            Generation::Basil => {
                value["current_period_start"] = json!(item.period_start);
                value["current_period_end"] = json!(item.period_end);
                value["discounts"] = json!([]);
            }
        }
        value
    }

    pub fn subscription(&self, subscription: &Subscription) -> Value {
        let id = subscription.id.as_str();
        let items: Vec<Value> = subscription.items.iter().take(self.items_max).map(|item| self.item(id, item)).collect();
        let pause = subscription.paused.as_ref().map(|behavior| json!({"behavior": behavior, "resumes_at": null}));
        let pending = subscription.pending.as_ref().map(|items| {
            let items: Vec<Value> = items.iter().map(|item| self.item(id, item)).collect();
            let expires_at = subscription.created.saturating_add(23 * 3600);
            json!({
                "billing_cycle_anchor": null, "expires_at": expires_at, "subscription_items": items, "trial_end": null,
                "trial_from_plan": null,
            })
        });
        let quiet = json!({
            "application": null, "application_fee_percent": null,
            "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
            "billing_cycle_anchor_config": null, "billing_thresholds": null,
            "cancellation_details": {"comment": null, "feedback": null, "reason": null}, "collection_method": "charge_automatically",
            "currency": "usd", "days_until_due": null, "default_payment_method": null, "default_source": null, "default_tax_rates": [],
            "description": null, "discounts": [], "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
            "next_pending_invoice_item_invoice": null, "on_behalf_of": null,
            "payment_settings": {"payment_method_options": null, "payment_method_types": null, "save_default_payment_method": "off"},
            "pending_invoice_item_interval": null, "pending_setup_intent": null, "test_clock": null, "transfer_data": null,
            "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        });
        let told = json!({
            "id": id, "object": "subscription", "billing_cycle_anchor": subscription.created, "cancel_at": subscription.cancel_at,
            "cancel_at_period_end": subscription.cancel_at_period_end, "canceled_at": subscription.canceled_at,
            "created": subscription.created, "customer": subscription.customer, "ended_at": subscription.ended_at,
            "items": {
                "object": "list", "data": items, "has_more": self.items_max < subscription.items.len(),
                "total_count": subscription.items.len(), "url": format!("/v1/subscription_items?subscription={id}"),
            },
            "latest_invoice": subscription.latest_invoice, "livemode": self.livemode, "metadata": subscription.metadata,
            "pause_collection": pause, "pending_update": pending, "schedule": subscription.schedule,
            "start_date": subscription.created, "status": subscription.status, "trial_end": subscription.trial_end,
            "trial_start": subscription.trial_end.map(|_| subscription.created),
        });
        let mut value = joined(told, quiet);
        let only = if let [only] = subscription.items.as_slice() { Some(only) } else { None };
        value["plan"] = json!(only.and_then(|item| self.objects.prices.get(&item.price)).map(|price| self.plan(price)));
        value["quantity"] = json!(only.and_then(|item| item.quantity));
        match self.generation {
            Generation::Acacia => {
                let (start, end) = subscription.period();
                value["current_period_start"] = json!(start);
                value["current_period_end"] = json!(end);
                value["discount"] = Value::Null;
            }
            Generation::Basil => {
                value["billing_mode"] = json!({"flexible": null, "type": "classic", "updated_at": null});
            }
        }
        value
    }

    pub fn invoice(&self, invoice: &Invoice) -> Value {
        let (start, end) = invoice.period;
        let paid = if invoice.status == "paid" { invoice.amount } else { 0 };
        let attempted = 0 < invoice.attempts || invoice.paid_at.is_some();
        let line = |(index, (price, quantity, amount)): (usize, &(String, Option<u64>, i64))| {
            let mut line = json!({
                "id": format!("il_{}_{index}", invoice.id), "object": "line_item", "amount": amount, "currency": "usd",
                "description": null, "discountable": true, "discounts": [], "livemode": self.livemode, "metadata": {},
                "period": {"start": start, "end": end}, "quantity": quantity,
            });
            match self.generation {
                Generation::Acacia => {
                    line["price"] = json!(self.objects.prices.get(price).map(|price| self.price(price)));
                    line["subscription"] = json!(invoice.subscription);
                    line["type"] = json!("subscription");
                }
                Generation::Basil => {
                    let product = self.objects.prices.get(price).map(|price| price.product.as_str());
                    line["pricing"] = json!({"price_details": {"price": price, "product": product}, "type": "price_details"});
                }
            }
            line
        };
        let lines: Vec<Value> = invoice.lines.iter().enumerate().map(line).collect();
        let money = json!({
            "account_country": "US", "account_name": "Fake", "amount_due": invoice.amount,
            "amount_paid": paid, "amount_remaining": invoice.amount.saturating_sub(paid), "attempt_count": invoice.attempts,
            "attempted": attempted, "auto_advance": invoice.status == "open", "currency": "usd", "default_payment_method": null,
            "discounts": [], "due_date": null, "ending_balance": 0, "next_payment_attempt": null, "starting_balance": 0,
            "subtotal": invoice.amount, "total": invoice.amount,
        });
        let told = json!({
            "id": invoice.id, "object": "invoice", "billing_reason": invoice.billing_reason,
            "collection_method": "charge_automatically", "created": invoice.created, "customer": invoice.customer, "description": null,
            "hosted_invoice_url": format!("{}/invoice/{}", self.base, invoice.id), "invoice_pdf": null,
            "lines": {"object": "list", "data": lines, "has_more": false, "url": format!("/v1/invoices/{}/lines", invoice.id)},
            "livemode": self.livemode, "metadata": {}, "number": null, "period_end": end, "period_start": start,
            "status": invoice.status,
            "status_transitions": {
                "finalized_at": invoice.created, "marked_uncollectible_at": null, "paid_at": invoice.paid_at, "voided_at": null,
            },
        });
        let mut value = joined(told, money);
        match self.generation {
            Generation::Acacia => {
                value["subscription"] = json!(invoice.subscription);
                value["paid"] = json!(invoice.status == "paid");
                value["charge"] = Value::Null;
                value["payment_intent"] = Value::Null;
            }
            Generation::Basil => {
                let parent = invoice.subscription.as_ref().map(|subscription| {
                    let metadata = self.objects.subscriptions.get(subscription).map(|subscription| &subscription.metadata);
                    let details = json!({"metadata": metadata, "subscription": subscription});
                    json!({"quote_details": null, "subscription_details": details, "type": "subscription_details"})
                });
                value["parent"] = json!(parent);
            }
        }
        value
    }

    pub fn schedule(&self, schedule: &Schedule) -> Value {
        let phase = |phase: &super::objects::Phase| {
            let items = phase.items.iter().map(|(price, quantity)| json!({"price": price, "plan": price, "quantity": quantity}));
            json!({"start_date": phase.start, "end_date": phase.end, "items": items.collect::<Vec<_>>(), "metadata": {}})
        };
        let current = schedule.phases.iter().find(|phase| phase.start <= self.now && self.now < phase.end);
        let current = current.filter(|_| schedule.status == "active");
        let at = |status: &str| schedule.ended_at.filter(|_| schedule.status == status);
        json!({
            "id": schedule.id, "object": "subscription_schedule", "application": null, "canceled_at": at("canceled"),
            "completed_at": at("completed"), "created": schedule.created,
            "current_phase": current.map(|phase| json!({"start_date": phase.start, "end_date": phase.end})),
            "customer": schedule.customer,
            "default_settings": {"billing_cycle_anchor": "automatic", "collection_method": "charge_automatically"},
            "end_behavior": "release", "livemode": self.livemode, "metadata": {},
            "phases": schedule.phases.iter().map(phase).collect::<Vec<_>>(), "released_at": at("released"),
            "released_subscription": schedule.released_subscription, "status": schedule.status, "subscription": schedule.subscription,
            "test_clock": null,
        })
    }

    pub fn checkout(&self, checkout: &Checkout) -> Value {
        let amount = |(price, quantity): &(String, Option<u64>)| {
            let price = self.objects.prices.get(price);
            super::billing::amount(price.map_or(0, |price| price.unit_amount), *quantity)
        };
        let total = checkout.lines.iter().map(amount).fold(0, i64::saturating_add);
        let url = (checkout.status == "open").then(|| format!("{}/checkout/{}", self.base, checkout.id));
        let quiet = json!({
            "after_expiration": null, "allow_promotion_codes": null,
            "automatic_tax": {"enabled": false, "liability": null, "provider": null, "status": null},
            "billing_address_collection": null, "client_secret": null, "consent": null, "consent_collection": null, "custom_fields": [],
            "custom_text": {"after_submit": null, "shipping_address": null, "submit": null, "terms_of_service_acceptance": null},
            "customer_creation": null, "customer_details": null, "invoice_creation": null, "locale": null, "payment_intent": null,
            "payment_link": null, "payment_method_options": null, "phone_number_collection": {"enabled": false},
            "recovered_from": null, "setup_intent": null, "shipping_address_collection": null, "shipping_cost": null,
            "shipping_options": [], "submit_type": null,
        });
        let told = json!({
            "id": checkout.id, "object": "checkout.session", "amount_subtotal": total, "amount_total": total,
            "cancel_url": checkout.cancel_url, "client_reference_id": checkout.client_reference_id, "created": checkout.created,
            "currency": "usd", "customer": checkout.customer, "customer_email": checkout.customer_email,
            "expires_at": checkout.expires_at, "invoice": checkout.invoice, "livemode": self.livemode, "metadata": checkout.metadata,
            "mode": "subscription", "payment_method_collection": "always", "payment_method_types": ["card"],
            "payment_status": if checkout.status == "complete" { "paid" } else { "unpaid" }, "status": checkout.status,
            "subscription": checkout.subscription, "success_url": checkout.success_url,
            "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}, "ui_mode": "hosted", "url": url,
        });
        joined(told, quiet)
    }

    pub fn portal(&self, session: &PortalSession) -> Value {
        let flow = session.flow.as_ref().map(|flow| {
            let then =
                flow.then().map_or(json!({"type": "portal_homepage"}), |url| json!({"type": "redirect", "redirect": {"return_url": url}}));
            json!({"type": flow.kind(), "after_completion": then})
        });
        json!({
            "id": session.id, "object": "billing_portal.session", "configuration": super::api::PORTAL_CONFIGURATION,
            "created": session.created, "customer": session.customer, "flow": flow, "livemode": self.livemode, "locale": null,
            "on_behalf_of": null, "return_url": session.return_url, "url": format!("{}/portal/{}", self.base, session.id),
        })
    }

    /// Without its secret, which only the answer to its making has.
    pub fn endpoint(&self, endpoint: &Endpoint) -> Value {
        json!({
            "id": endpoint.id, "object": "webhook_endpoint", "api_version": endpoint.api_version, "application": null,
            "created": endpoint.created, "description": endpoint.description, "enabled_events": endpoint.enabled_events,
            "livemode": self.livemode, "metadata": endpoint.metadata,
            "status": if endpoint.enabled { "enabled" } else { "disabled" }, "url": endpoint.url,
        })
    }

    /// An event for who speaks `version`, which decides how its object looks.
    pub fn event(&self, event: &Event, version: &str, pending_webhooks: usize) -> Value {
        let shape = |shapes: &super::objects::Shapes| match Generation::of(version) {
            Generation::Acacia => shapes.acacia.clone(),
            Generation::Basil => shapes.basil.clone(),
        };
        let mut data = json!({"object": shape(&event.object)});
        if let Some(previous) = &event.previous {
            data["previous_attributes"] = shape(previous);
        }
        let (request, key) = event.request.as_ref().map_or((None, None), |(request, key)| (Some(request), key.as_ref()));
        json!({
            "id": event.id, "object": "event", "api_version": version, "created": event.created, "data": data,
            "livemode": self.livemode, "pending_webhooks": pending_webhooks, "request": {"id": request, "idempotency_key": key},
            "type": event.kind,
        })
    }
}

/// Both as one object. Long ones are written in two parts: `json!` goes one level deeper for each field, and there is a limit.
fn joined(mut value: Value, more: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (value.as_object_mut(), more) {
        fields.extend(more);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A view of a subscription of three items of which two are shown.
    fn shown(generation: Generation) -> Value {
        let mut objects = Objects::default();
        let item = |id: &str, quantity| Item {
            id: id.to_owned(),
            created: 0,
            price: "small-monthly".to_owned(),
            quantity,
            period_start: 10,
            period_end: 20,
        };
        objects.prices.add(Price {
            id: "small-monthly".to_owned(),
            created: 0,
            product: "prod_1".to_owned(),
            lookup_key: Some("small".to_owned()),
            metadata: super::super::objects::Metadata::new(),
            unit_amount: 500,
            recurring: Some(super::super::objects::Recurring::every("month")),
            active: true,
        });
        let subscription = Subscription {
            id: "sub_1".to_owned(),
            created: 0,
            customer: "cus_1".to_owned(),
            status: "active".to_owned(),
            metadata: super::super::objects::Metadata::new(),
            items: vec![item("si_1", Some(2)), item("si_2", None), item("si_3", Some(1))],
            trial_end: None,
            cancel_at: None,
            cancel_at_period_end: false,
            canceled_at: None,
            ended_at: None,
            paused: None,
            schedule: None,
            pending: None,
            latest_invoice: None,
        };
        let events = Shelf::default();
        let base = "http://stripe.test";
        let view = View {
            objects: &objects,
            truth: &objects,
            events: &events,
            events_until: 0,
            generation,
            livemode: false,
            base,
            items_max: 2,
            page_max: 100,
            now: 15,
        };
        view.subscription(&subscription)
    }

    #[test]
    fn the_period_stands_where_the_generation_puts_it() {
        let (acacia, basil) = (shown(Generation::Acacia), shown(Generation::Basil));
        assert_eq!((&acacia["current_period_end"], acacia["items"]["data"][0].get("current_period_end")), (&json!(20), None));
        assert_eq!((basil.get("current_period_end"), &basil["items"]["data"][0]["current_period_end"]), (None, &json!(20)));
    }

    #[test]
    fn items_beyond_the_most_are_left_for_another_request() {
        let subscription = shown(Generation::Basil);
        assert_eq!(subscription["items"]["data"].as_array().map(Vec::len), Some(2));
        assert_eq!((&subscription["items"]["has_more"], &subscription["items"]["total_count"]), (&json!(true), &json!(3)));
        assert_eq!(subscription["items"]["data"][0]["quantity"], 2);
        assert!(subscription["items"]["data"][1].get("quantity").is_none());
    }

    #[test]
    fn what_is_in_both_parts_of_an_object_is_there() {
        let subscription = shown(Generation::Acacia);
        assert_eq!((&subscription["status"], &subscription["collection_method"]), (&json!("active"), &json!("charge_automatically")));
    }
}
