//! `/v1/checkout/sessions`, `/v1/billing_portal`

use serde_json::{Value, json};

use super::super::answer::ApiError;
use super::super::billing::Line;
use super::super::form::Form;
use super::super::list::{Times, list as page_of, page};
use super::super::objects::{Checkout, Customer, Flow, Metadata, PortalSession, Price};
use super::super::render::View;
use super::super::shelf::Kept;
use super::super::world::{World, missing, set_metadata};
use super::{Asked, PORTAL_CONFIGURATION, filter_customer, only_and_paging, shown};

/// How long a checkout session is open, unless it says otherwise.
const OPEN_SECONDS: i64 = 86_400;
const OPEN_SECONDS_MIN: i64 = 1800;

pub fn list(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["customer", "subscription", "status", "created"])?;
    let times = Times::read(form, "created")?;
    let customer = filter_customer(view, form)?;
    let mut found: Vec<_> = view.objects.checkouts.newest_first().collect();
    found.retain(|(_, session)| {
        times.contain(session.created)
            && customer.is_none_or(|customer| session.customer.as_deref() == Some(customer))
            && form.filled("subscription").is_none_or(|wanted| session.subscription.as_deref() == Some(wanted))
            && form.filled("status").is_none_or(|wanted| session.status == wanted)
    });
    page(form, "/v1/checkout/sessions", view.page_max, &view.objects.checkouts, found, |session: &Checkout| view.checkout(session))
}

pub fn show(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    world.objects.checkouts.get(id).ok_or_else(|| missing::<Checkout>(id))?;
    shown(world, asked, id)
}

pub fn expire(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    world.expire_checkout(id)?;
    shown(world, asked, id)
}

pub fn create_checkout(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&[
        "mode",
        "customer",
        "customer_email",
        "client_reference_id",
        "line_items",
        "success_url",
        "cancel_url",
        "metadata",
        "subscription_data",
        "expires_at",
        "allow_promotion_codes",
        "automatic_tax",
        "billing_address_collection",
        "customer_update",
        "locale",
        "payment_method_collection",
        "payment_method_types",
        "tax_id_collection",
        "ui_mode",
    ])?;
    if form.required("mode")? != "subscription" {
        return Err(ApiError::invalid("mode", "The fake Stripe sells subscriptions only: mode must be subscription."));
    }
    let success_url = good_url(form.required("success_url")?, "success_url")?;
    let cancel_url = form.filled("cancel_url").map(|url| good_url(url, "cancel_url")).transpose()?;
    if form.filled("customer").is_some() && form.filled("customer_email").is_some() {
        let message = "You may only specify one of these parameters: customer, customer_email.";
        return Err(ApiError::invalid("customer", message));
    }
    if let Some(customer) = form.filled("customer") {
        world.customer(customer).map_err(|_| ApiError::no_such(Customer::NOUN, customer, "customer"))?;
    }
    let rows = form.rows("line_items");
    if rows.is_empty() {
        return Err(ApiError::missing("line_items"));
    }
    let lines = rows.iter().enumerate().map(|(index, row)| sold(world, index, row)).collect::<Result<Vec<Line>, _>>()?;
    let now = world.seconds();
    let expires_at = form.integer("expires_at")?.unwrap_or(now.saturating_add(OPEN_SECONDS));
    if expires_at < now.saturating_add(OPEN_SECONDS_MIN) || now.saturating_add(OPEN_SECONDS) < expires_at {
        let message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.";
        return Err(ApiError::invalid("expires_at", message));
    }
    let data = form.below("subscription_data");
    let (mut metadata, mut subscription_metadata) = (Metadata::new(), Metadata::new());
    set_metadata(&mut metadata, form.map("metadata"));
    set_metadata(&mut subscription_metadata, data.map("metadata"));
    let prefix = if world.options.livemode() { "cs_live_" } else { "cs_test_" };
    let id = world.id(prefix, 58);
    world.objects.checkouts.add(Checkout {
        id: id.clone(),
        created: now,
        customer: form.filled("customer").map(str::to_owned),
        customer_email: form.filled("customer_email").map(str::to_owned),
        client_reference_id: form.filled("client_reference_id").map(str::to_owned),
        metadata,
        subscription_metadata,
        trial_days: data.integer("trial_period_days")?,
        lines,
        success_url,
        cancel_url,
        status: "open",
        subscription: None,
        invoice: None,
        expires_at,
    });
    shown(world, asked, &id)
}

/// A line of what is sold: an active price that recurs.
fn sold(world: &World, index: usize, row: &Form) -> Result<Line, ApiError> {
    row.only(&["price", "quantity", "adjustable_quantity", "tax_rates"])?;
    let at = format!("line_items[{index}][price]");
    let price = row.filled("price").ok_or_else(|| ApiError::missing(&at))?;
    let known = world.objects.prices.get(price).ok_or_else(|| ApiError::no_such(Price::NOUN, price, &at))?;
    if !known.active {
        return Err(ApiError::invalid(&at, "The price specified is inactive. This field only accepts active prices."));
    }
    let Some(recurring) = &known.recurring else {
        let message = "You must provide at least one recurring price in `subscription` mode when using prices.";
        return Err(ApiError::invalid(&at, message));
    };
    let quantity = row.quantity("quantity")?;
    if quantity.is_none() && !recurring.metered {
        return Err(ApiError::missing(&format!("line_items[{index}][quantity]")));
    }
    Ok((price.to_owned(), quantity))
}

pub fn create_portal(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&["customer", "return_url", "flow_data", "configuration", "locale", "on_behalf_of"])?;
    let customer = form.required("customer")?;
    world.customer(customer).map_err(|_| ApiError::no_such(Customer::NOUN, customer, "customer"))?;
    if !world.options.portal.configured {
        let message = "No configuration provided and your test mode default configuration has not been created. Provide a configuration \
                       or create your default by saving your customer portal settings in test mode at \
                       https://dashboard.stripe.com/test/settings/billing/portal.";
        return Err(ApiError::invalid("", message));
    }
    let return_url = form.filled("return_url").map(|url| good_url(url, "return_url")).transpose()?;
    let flow = if form.has("flow_data") { Some(flow(world, customer, &form.below("flow_data"))?) } else { None };
    let (id, created) = (world.id("bps_1", 23), world.seconds());
    let session = PortalSession { id, created, customer: customer.to_owned(), return_url, flow };
    let base = world.base();
    let value = world.view(asked.generation, &base).portal(&session);
    world.objects.portals.add(session);
    Ok(value)
}

fn flow(world: &World, customer: &str, data: &Form) -> Result<Flow, ApiError> {
    data.only(&["type", "after_completion", "subscription_update_confirm"])?;
    let after = data.below("after_completion").below("redirect");
    let then = after.filled("return_url").map(|url| good_url(url, "flow_data[after_completion][redirect][return_url]")).transpose()?;
    let kind = data.filled("type").ok_or_else(|| ApiError::missing("flow_data[type]"))?;
    match kind {
        "payment_method_update" => Ok(Flow::PaymentMethodUpdate { then }),
        "subscription_update_confirm" => {
            const AT: &str = "flow_data[subscription_update_confirm]";
            let wanted = data.below(kind);
            wanted.only(&["subscription", "items", "discounts"])?;
            let needed = |form: &Form, name: &str, at: &str| form.filled(name).map(str::to_owned).ok_or_else(|| ApiError::missing(at));
            let subscription = needed(&wanted, "subscription", &format!("{AT}[subscription]"))?;
            let rows = wanted.rows("items");
            let [row] = rows.as_slice() else {
                return Err(ApiError::invalid(&format!("{AT}[items]"), "Currently, only up to one may be specified."));
            };
            let item = needed(row, "id", &format!("{AT}[items][0][id]"))?;
            let price = needed(row, "price", &format!("{AT}[items][0][price]"))?;
            let quantity = row.quantity("quantity")?;
            world.portal_can_change(customer, &subscription, &item, &price, quantity)?;
            Ok(Flow::SubscriptionUpdateConfirm { subscription, item, price, quantity, then })
        }
        _ => {
            let message = "Invalid flow_data[type]: the fake Stripe knows payment_method_update and subscription_update_confirm";
            Err(ApiError::invalid("flow_data[type]", message))
        }
    }
}

pub fn configurations(world: &World) -> Result<Value, ApiError> {
    let portal = &world.options.portal;
    let configuration = json!({
        "id": PORTAL_CONFIGURATION, "object": "billing_portal.configuration", "active": true, "application": null,
        "business_profile": {"headline": null, "privacy_policy_url": null, "terms_of_service_url": null}, "created": 0,
        "default_return_url": null,
        "features": {
            "customer_update": {"allowed_updates": [], "enabled": false}, "invoice_history": {"enabled": true},
            "payment_method_update": {"enabled": true},
            "subscription_cancel": {"enabled": true, "mode": "at_period_end"},
            "subscription_update": {
                "default_allowed_updates": ["price"], "enabled": portal.updates, "proration_behavior": "always_invoice",
                "products": products(world),
            },
        },
        "is_default": true, "livemode": world.options.livemode(), "login_page": {"enabled": false, "url": null}, "metadata": {},
        "updated": 0,
    });
    let data = if portal.configured { vec![configuration] } else { Vec::new() };
    Ok(page_of("/v1/billing_portal/configurations", &data, false))
}

/// What the portal lets customers change to, by product.
fn products(world: &World) -> Vec<Value> {
    let allowed = |price: &Price| {
        let named = world.options.portal.prices.as_ref().is_none_or(|prices| prices.contains(&price.id));
        price.active && price.recurring.is_some() && named
    };
    let products = world.objects.products.newest_first().map(|(_, product)| {
        let prices = world.objects.prices.newest_first().filter(|(_, price)| price.product == product.id && allowed(price));
        let prices: Vec<&str> = prices.map(|(_, price)| price.id.as_str()).collect();
        json!({"product": product.id, "prices": prices})
    });
    products.collect()
}

fn good_url(url: &str, param: &str) -> Result<String, ApiError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let good = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && url.chars().all(|c| c.is_ascii_graphic());
    if good {
        return Ok(url.to_owned());
    }
    Err(ApiError { code: Some("url_invalid"), ..ApiError::invalid(param, "Not a valid URL") })
}
