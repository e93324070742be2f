//! `/v1/subscriptions`, `/v1/subscription_items`

use serde_json::Value;

use super::super::answer::ApiError;
use super::super::billing::{Beginning, ItemChange, Line, UPDATED};
use super::super::form::Form;
use super::super::list::{Times, limit, list as page_of, page};
use super::super::objects::{Card, Metadata, Subscription};
use super::super::render::View;
use super::super::shelf::Kept;
use super::super::world::{World, missing, set_metadata};
use super::{Asked, filter_customer, only_and_paging, shown};

const SECONDS_PER_DAY: i64 = 86_400;
/// What Stripe takes beside what we act on; we take it and leave it.
const IDLE: [&str; 9] = [
    "automatic_tax",
    "billing_mode",
    "collection_method",
    "currency",
    "description",
    "default_payment_method",
    "off_session",
    "payment_settings",
    "trial_settings",
];

pub fn list(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["customer", "status", "price", "created", "collection_method"])?;
    let times = Times::read(form, "created")?;
    let mut found = view.objects.subscriptions.of(filter_customer(view, form)?);
    found.retain(|(_, known)| {
        let status = match form.filled("status") {
            // Without a status Stripe leaves out the canceled ones.
            None => known.status != "canceled",
            Some("all") => true,
            Some("ended") => known.is_over(),
            Some(status) => known.status == status,
        };
        let priced = form.filled("price").is_none_or(|price| known.items.iter().any(|item| item.price == price));
        status && priced && times.contain(known.created)
    });
    page(form, "/v1/subscriptions", view.page_max, &view.objects.subscriptions, found, |known: &Subscription| view.subscription(known))
}

pub fn show(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    world.subscription(id)?;
    shown(world, asked, id)
}

/// All items of a subscription, the ones that it does not show itself too.
pub fn items(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["subscription"])?;
    let id = form.required("subscription")?;
    let known = view.objects.subscriptions.get(id);
    let known = known.ok_or_else(|| ApiError::no_such(Subscription::NOUN, id, "subscription"))?;
    let start = match form.filled("starting_after") {
        None => 0,
        Some(after) => {
            let place = known.items.iter().position(|item| item.id == after);
            place.ok_or_else(|| ApiError::no_such("subscription item", after, "starting_after"))?.saturating_add(1)
        }
    };
    if form.has("ending_before") {
        return Err(ApiError::invalid("ending_before", "The fake Stripe lists items forward only."));
    }
    let limit = limit(form)?.min(view.page_max.max(1));
    let data: Vec<Value> = known.items.iter().skip(start).take(limit).map(|item| view.item(id, item)).collect();
    Ok(page_of("/v1/subscription_items", &data, start.saturating_add(limit) < known.items.len()))
}

pub fn create(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    let own = ["customer", "items", "metadata", "trial_period_days", "trial_end", "payment_behavior", "cancel_at_period_end"];
    form.only(&own.iter().chain(&IDLE).copied().collect::<Vec<_>>())?;
    let customer = form.required("customer")?;
    let rows = form.rows("items");
    if rows.is_empty() {
        return Err(ApiError::missing("items"));
    }
    let lines = rows.iter().map(line).collect::<Result<Vec<Line>, _>>()?;
    let days = form.integer("trial_period_days")?.map(|days| world.seconds().saturating_add(days.saturating_mul(SECONDS_PER_DAY)));
    let trial_end = form.integer("trial_end")?.or(days);
    let card = world.customer(customer).map(|customer| customer.card).unwrap_or_default();
    let status = match (trial_end, card, form.filled("payment_behavior")) {
        (Some(_), _, _) => "trialing",
        (None, Card::Good, _) => "active",
        (None, Card::Declined, Some("error_if_incomplete")) => return Err(ApiError::card_declined()),
        (None, _, Some("default_incomplete")) | (None, Card::Declined, _) => "incomplete",
        (None, Card::Missing, _) => {
            let message = "This customer has no attached payment source or default payment method. Please consider adding a default \
                           payment method.";
            return Err(ApiError { code: Some("resource_missing"), ..ApiError::invalid("", message) });
        }
    };
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, form.map("metadata"));
    let cancel_at_period_end = form.boolean("cancel_at_period_end")?.unwrap_or(false);
    let beginning = Beginning { status: status.to_owned(), metadata, trial_end, cancel_at_period_end };
    let id = world.subscribe(customer, &lines, beginning)?;
    shown(world, asked, &id)
}

fn line(row: &Form) -> Result<Line, ApiError> {
    row.only(&["price", "plan", "quantity", "metadata"])?;
    let price = row.filled("price").or_else(|| row.filled("plan")).ok_or_else(|| ApiError::missing("items[0][price]"))?;
    Ok((price.to_owned(), row.quantity("quantity")?))
}

pub fn change(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let form = asked.form;
    let own = [
        "items",
        "metadata",
        "cancel_at_period_end",
        "cancel_at",
        "pause_collection",
        "proration_behavior",
        "trial_end",
        "payment_behavior",
        "billing_cycle_anchor",
    ];
    form.only(&own.iter().chain(&IDLE).copied().collect::<Vec<_>>())?;
    if world.subscription(id)?.is_over() {
        let message = "A canceled subscription can only update its cancellation_details and metadata.";
        return Err(ApiError::invalid("", message));
    }
    let changes = form.rows("items").iter().map(item_change).collect::<Result<Vec<_>, _>>()?;
    let (cancel_at, at_period_end) = (form.integer("cancel_at")?, form.boolean("cancel_at_period_end")?);
    if !changes.is_empty() {
        let items = world.items_after(id, &changes)?;
        let customer = world.subscription(id)?.customer.clone();
        let declined = world.customer(&customer)?.card == Card::Declined;
        let at_once = form.filled("proration_behavior") == Some("always_invoice");
        if declined && form.filled("payment_behavior") == Some("pending_if_incomplete") {
            world.offer(id, items)?;
            world.charge(id, "subscription_update")?;
        } else {
            world.change_subscription(id, UPDATED, |known| known.items = items)?;
            if at_once && !world.charge(id, "subscription_update")? {
                world.set_status(id, "past_due")?;
            }
        }
    }
    if let Some(cancel) = at_period_end {
        world.cancel_at_period_end(id, cancel)?;
    }
    let trial_end = form
        .filled("trial_end")
        .filter(|end| *end != "now")
        .map(|end| end.parse::<i64>().map_err(|_| ApiError::not_an_integer("trial_end", end)));
    let trial_end = trial_end.transpose()?;
    world.change_subscription(id, UPDATED, |known| {
        if form.has("cancel_at") {
            known.cancel_at = cancel_at;
        }
        // `pause_collection=` goes on.
        if form.has("pause_collection") {
            known.paused = form.below("pause_collection").filled("behavior").map(str::to_owned);
        }
        if trial_end.is_some() {
            known.trial_end = trial_end;
        }
        set_metadata(&mut known.metadata, form.map("metadata"));
    })?;
    if form.filled("trial_end") == Some("now") && world.subscription(id)?.status == "trialing" {
        let paid = world.charge(id, "subscription_cycle")?;
        world.set_status(id, if paid { "active" } else { "past_due" })?;
    }
    shown(world, asked, id)
}

fn item_change(row: &Form) -> Result<ItemChange, ApiError> {
    row.only(&["id", "price", "plan", "quantity", "deleted", "metadata", "clear_usage"])?;
    Ok(ItemChange {
        id: row.filled("id").map(str::to_owned),
        price: row.filled("price").or_else(|| row.filled("plan")).map(str::to_owned),
        quantity: row.quantity("quantity")?,
        deleted: row.boolean("deleted")?.unwrap_or(false),
    })
}

/// What is over already is not found, as at Stripe.
pub fn cancel(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&["invoice_now", "prorate", "cancellation_details"])?;
    if world.subscription(id)?.is_over() {
        return Err(missing::<Subscription>(id));
    }
    world.cancel(id)?;
    shown(world, asked, id)
}
