//! Stripe's API: the table of what is at which path.

mod catalogue;
mod customers;
mod sessions;
mod subscriptions;
mod webhooks;

use serde_json::{Value, json};

use super::Generation;
use super::answer::ApiError;
use super::form::Form;
use super::list::{PAGING, Times, expand, page};
use super::objects::{Customer, Event, Invoice, Schedule};
use super::render::View;
use super::shelf::{Kept, Shelf};
use super::world::{World, missing};

/// The one configuration of the portal.
pub const PORTAL_CONFIGURATION: &str = "bpc_fake_default";
/// Stripe lists events for so long.
const EVENTS_LISTED_SECONDS: i64 = 30 * 86_400;

/// What is asked of the API, by somebody whose key is good.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Of the path below `/v1`.
    pub segments: &'a [&'a str],
    pub form: &'a Form,
    pub generation: Generation,
}

/// Answers from the world, or changes it and shows what came of it.
pub fn answer(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    world.expire_what_is_due();
    let base = world.base();
    let mut value = match (asked.method, asked.segments) {
        ("GET", ["account"]) => account(world, asked),
        ("GET", ["customers"]) => customers::list(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["customers"]) => customers::create(world, asked),
        ("GET", ["customers", id]) => customers::show(world, asked, id),
        ("POST", ["customers", id]) => customers::change(world, asked, id),
        ("DELETE", ["customers", id]) => customers::delete(world, asked, id),
        ("GET", ["subscriptions"]) => subscriptions::list(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["subscriptions"]) => subscriptions::create(world, asked),
        ("GET", ["subscriptions", id]) => subscriptions::show(world, asked, id),
        ("POST", ["subscriptions", id]) => subscriptions::change(world, asked, id),
        ("DELETE", ["subscriptions", id]) => subscriptions::cancel(world, asked, id),
        ("GET", ["subscription_items"]) => subscriptions::items(&world.stale_view(asked.generation, &base), asked),
        ("GET", ["subscription_schedules"]) => schedules(&world.stale_view(asked.generation, &base), asked),
        ("GET", ["prices"]) => catalogue::prices(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["prices"]) => catalogue::create_price(world, asked),
        ("GET", ["prices", id]) => catalogue::price(world, asked, id),
        ("POST", ["prices", id]) => catalogue::change_price(world, asked, id),
        ("GET", ["products"]) => catalogue::products(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["products"]) => catalogue::create_product(world, asked),
        ("GET", ["products", id]) => catalogue::product(world, asked, id),
        ("GET", ["events"]) => events(&world.stale_view(asked.generation, &base), asked),
        ("GET", ["events", id]) => event(world, asked, id),
        ("GET", ["webhook_endpoints"]) => webhooks::list(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["webhook_endpoints"]) => webhooks::create(world, asked),
        ("GET", ["webhook_endpoints", id]) => webhooks::show(world, asked, id),
        ("POST", ["webhook_endpoints", id]) => webhooks::change(world, asked, id),
        ("DELETE", ["webhook_endpoints", id]) => webhooks::delete(world, id),
        ("GET", ["checkout", "sessions"]) => sessions::list(&world.stale_view(asked.generation, &base), asked),
        ("POST", ["checkout", "sessions"]) => sessions::create_checkout(world, asked),
        ("GET", ["checkout", "sessions", id]) => sessions::show(world, asked, id),
        ("POST", ["checkout", "sessions", id, "expire"]) => sessions::expire(world, asked, id),
        ("POST", ["billing_portal", "sessions"]) => sessions::create_portal(world, asked),
        ("GET", ["billing_portal", "configurations"]) => sessions::configurations(world),
        ("GET", ["invoices"]) => invoices(&world.stale_view(asked.generation, &base), asked),
        ("GET", ["invoices", id]) => {
            asked.form.only(&[])?;
            let view = world.view(asked.generation, &base);
            world.objects.invoices.get(id).map(|invoice| view.invoice(invoice)).ok_or_else(|| missing::<Invoice>(id))
        }
        _ => Err(ApiError::no_such_path(asked.method, asked.path)),
    }?;
    expand(&mut value, asked.form, &world.view(asked.generation, &base))?;
    Ok(value)
}

/// The parameters of a list: its own, and those for paging.
fn only_and_paging(form: &Form, own: &[&str]) -> Result<(), ApiError> {
    let known: Vec<&str> = own.iter().chain(&PAGING).copied().collect();
    form.only(&known)
}

/// The customer that a list is filtered by; he must have existed.
fn filter_customer<'a>(view: &View<'_>, form: &'a Form) -> Result<Option<&'a str>, ApiError> {
    let Some(customer) = form.filled("customer") else { return Ok(None) };
    let known = view.truth.customers.get(customer);
    known.map(|_| Some(customer)).ok_or_else(|| ApiError::no_such(Customer::NOUN, customer, "customer"))
}

/// The object of this id, which was just made or changed.
fn shown(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let base = world.base();
    world.view(asked.generation, &base).any(id).ok_or_else(|| ApiError::not_found("object", id))
}

fn account(world: &World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    Ok(json!({
        "id": "acct_1Fake", "object": "account", "business_profile": {"name": "Fake", "support_email": null}, "business_type": null,
        "charges_enabled": true, "country": "US", "created": 0, "default_currency": "usd", "details_submitted": true, "email": null,
        "livemode": world.options.keys.first().is_some_and(|key| key.contains("_live_")), "metadata": {}, "payouts_enabled": true,
        "settings": {"dashboard": {"display_name": "Fake", "timezone": "Etc/UTC"}}, "type": "standard",
    }))
}

fn invoices(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["customer", "status", "subscription", "created", "collection_method"])?;
    let times = Times::read(form, "created")?;
    let (status, subscription) = (form.filled("status"), form.filled("subscription"));
    let mut found = view.objects.invoices.of(filter_customer(view, form)?);
    found.retain(|(_, invoice)| {
        times.contain(invoice.created)
            && status.is_none_or(|status| invoice.status == status)
            && subscription.is_none_or(|subscription| invoice.subscription.as_deref() == Some(subscription))
    });
    page(form, "/v1/invoices", view.page_max, &view.objects.invoices, found, |invoice: &Invoice| view.invoice(invoice))
}

fn schedules(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["customer", "scheduled", "created", "canceled_at", "completed_at", "released_at"])?;
    let times = Times::read(form, "created")?;
    let mut found = view.objects.schedules.of(filter_customer(view, form)?);
    found.retain(|(_, schedule)| times.contain(schedule.created));
    page(form, "/v1/subscription_schedules", view.page_max, &view.objects.schedules, found, |schedule: &Schedule| view.schedule(schedule))
}

fn events(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["type", "types", "created", "delivery_success"])?;
    let times = Times::read(form, "created")?;
    let types = form.list("types");
    let mut found: Vec<(usize, &Event)> = view.events.newest_first().collect();
    found.retain(|(place, event)| {
        *place < view.events_until
            && is_listed(event, view.now)
            && times.contain(event.created)
            && form.filled("type").is_none_or(|kind| is_of(&event.kind, kind))
            && (types.is_empty() || types.iter().any(|kind| is_of(&event.kind, kind)))
    });
    let events: &Shelf<Event> = view.events;
    page(form, "/v1/events", view.page_max, events, found, |event: &Event| view.event(event, view.generation.version(), 0))
}

fn event(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    let base = world.base();
    let view = world.view(asked.generation, &base);
    let known = world.events.get(id).filter(|event| is_listed(event, view.now));
    known.map(|event| view.event(event, asked.generation.version(), 0)).ok_or_else(|| missing::<Event>(id))
}

fn is_listed(event: &Event, now: i64) -> bool {
    now.saturating_sub(EVENTS_LISTED_SECONDS) < event.created
}

/// `customer.*` is every type that begins with `customer.`
fn is_of(kind: &str, wanted: &str) -> bool {
    kind == wanted || wanted.strip_suffix('*').is_some_and(|start| kind.starts_with(start))
}
