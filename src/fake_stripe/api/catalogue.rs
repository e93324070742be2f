//! `/v1/prices`, `/v1/products`

use serde_json::Value;

use super::super::answer::ApiError;
use super::super::list::{Times, page};
use super::super::objects::{Metadata, Price, Product, Recurring};
use super::super::render::View;
use super::super::world::{NewPrice, World, missing, set_metadata};
use super::{Asked, only_and_paging, shown};

/// More lookup keys in one request are refused by Stripe.
const LOOKUP_KEYS_MAX: usize = 10;

pub fn prices(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["lookup_keys", "active", "product", "type", "currency", "created", "recurring"])?;
    let times = Times::read(form, "created")?;
    let (keys, active) = (form.list("lookup_keys"), form.boolean("active")?);
    if LOOKUP_KEYS_MAX < keys.len() {
        return Err(ApiError::invalid("lookup_keys", format!("You can only specify up to {LOOKUP_KEYS_MAX} lookup_keys.")));
    }
    let kind = |price: &Price| if price.recurring.is_some() { "recurring" } else { "one_time" };
    let mut found: Vec<_> = view.objects.prices.newest_first().collect();
    found.retain(|(_, price)| {
        times.contain(price.created)
            && (keys.is_empty() || price.lookup_key.as_ref().is_some_and(|key| keys.contains(key)))
            && active.is_none_or(|active| price.active == active)
            && form.filled("product").is_none_or(|product| price.product == product)
            && form.filled("type").is_none_or(|wanted| kind(price) == wanted)
    });
    page(form, "/v1/prices", view.page_max, &view.objects.prices, found, |price: &Price| view.price(price))
}

pub fn price(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    let base = world.base();
    let view = world.view(asked.generation, &base);
    world.objects.prices.get(id).map(|price| view.price(price)).ok_or_else(|| missing::<Price>(id))
}

pub fn create_price(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&[
        "currency",
        "unit_amount",
        "product",
        "product_data",
        "recurring",
        "lookup_key",
        "transfer_lookup_key",
        "metadata",
        "active",
        "nickname",
        "tax_behavior",
        "billing_scheme",
    ])?;
    form.required("currency")?;
    let unit_amount = form.integer("unit_amount")?.ok_or_else(|| ApiError::missing("unit_amount"))?;
    let recurring = form.below("recurring");
    let recurring = if form.has("recurring") {
        let interval = recurring.required("interval").map_err(|_| ApiError::missing("recurring[interval]"))?;
        if !["day", "week", "month", "year"].contains(&interval) {
            let message = "Invalid recurring[interval]: must be one of day, month, week, or year";
            return Err(ApiError::invalid("recurring[interval]", message));
        }
        let count = recurring.quantity("interval_count")?.unwrap_or(1);
        let count = u32::try_from(count).map_err(|_| ApiError::invalid("recurring[interval_count]", "Invalid integer"))?;
        Some(Recurring { interval: interval.to_owned(), count, metered: recurring.get("usage_type") == Some("metered") })
    } else {
        None
    };
    let (active, lookup_key) = (form.boolean("active")?.unwrap_or(true), form.filled("lookup_key"));
    if let Some(key) = lookup_key {
        free_lookup_key(world, key, "", form.boolean("transfer_lookup_key")?.unwrap_or(false))?;
    }
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, form.map("metadata"));
    let made;
    let product = match form.filled("product") {
        Some(product) => product,
        None => {
            let data = form.below("product_data");
            let name = data.required("name").map_err(|_| ApiError::missing("product"))?;
            made = world.create_product(None, name, Metadata::new());
            made.as_str()
        }
    };
    let id = world.create_price(NewPrice { id: None, product, lookup_key, metadata, unit_amount, recurring, active })?;
    shown(world, asked, &id)
}

pub fn change_price(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&["active", "metadata", "nickname", "lookup_key", "transfer_lookup_key", "tax_behavior"])?;
    world.objects.prices.get(id).ok_or_else(|| missing::<Price>(id))?;
    let active = form.boolean("active")?;
    if let Some(key) = form.filled("lookup_key") {
        free_lookup_key(world, key, id, form.boolean("transfer_lookup_key")?.unwrap_or(false))?;
    }
    world.change_price(id, |price| {
        price.active = active.unwrap_or(price.active);
        if form.has("lookup_key") {
            price.lookup_key = form.filled("lookup_key").map(str::to_owned);
        }
        set_metadata(&mut price.metadata, form.map("metadata"));
    })?;
    shown(world, asked, id)
}

/// Takes the key from whoever has it where the caller says so; else it must be free.
fn free_lookup_key(world: &mut World, key: &str, except: &str, transfer: bool) -> Result<(), ApiError> {
    if !transfer {
        return world.lookup_key_is_free(key, except);
    }
    let has_it = |price: &Price| price.lookup_key.as_deref() == Some(key);
    let holder = world.objects.prices.newest_first().find(|(_, price)| has_it(price)).map(|(_, price)| price.id.clone());
    holder.map_or(Ok(()), |holder| world.change_price(&holder, |price| price.lookup_key = None))
}

pub fn products(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["active", "ids", "created", "url", "shippable", "type"])?;
    let times = Times::read(form, "created")?;
    let (ids, active) = (form.list("ids"), form.boolean("active")?);
    let mut found: Vec<_> = view.objects.products.newest_first().collect();
    found.retain(|(_, product)| {
        times.contain(product.created)
            && (ids.is_empty() || ids.contains(&product.id))
            && active.is_none_or(|active| product.active == active)
    });
    page(form, "/v1/products", view.page_max, &view.objects.products, found, |product: &Product| view.product(product))
}

pub fn product(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    let base = world.base();
    let view = world.view(asked.generation, &base);
    world.objects.products.get(id).map(|product| view.product(product)).ok_or_else(|| missing::<Product>(id))
}

pub fn create_product(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&["id", "name", "description", "metadata", "active", "type"])?;
    let name = form.required("name")?;
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, form.map("metadata"));
    if let Some(id) = form.filled("id").filter(|id| world.objects.products.get(id).is_some()) {
        return Err(ApiError::invalid("id", format!("Product already exists: {id}")));
    }
    let id = world.create_product(form.filled("id"), name, metadata);
    shown(world, asked, &id)
}
