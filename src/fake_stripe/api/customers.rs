//! `/v1/customers`

use serde_json::{Value, json};

use super::super::answer::ApiError;
use super::super::list::{Times, page};
use super::super::objects::{Customer, Metadata};
use super::super::render::View;
use super::super::world::{World, missing, set_metadata};
use super::{Asked, only_and_paging, shown};

const FIELDS: [&str; 9] =
    ["email", "name", "description", "metadata", "phone", "address", "preferred_locales", "invoice_settings", "tax_exempt"];

pub fn list(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    only_and_paging(form, &["email", "created"])?;
    let times = Times::read(form, "created")?;
    let mut found: Vec<_> = view.objects.customers.newest_first().collect();
    found.retain(|(_, customer)| {
        let named = form.filled("email").is_none_or(|email| customer.email.as_deref() == Some(email));
        !customer.deleted && named && times.contain(customer.created)
    });
    page(form, "/v1/customers", view.page_max, &view.objects.customers, found, |customer: &Customer| view.customer(customer))
}

pub fn create(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&FIELDS)?;
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, form.map("metadata"));
    let text = |name: &str| form.filled(name).map(str::to_owned);
    let customer = Customer { email: text("email"), name: text("name"), description: text("description"), metadata, ..Customer::default() };
    let id = world.create_customer(customer);
    shown(world, asked, &id)
}

/// A deleted customer is shown too, as deleted.
pub fn show(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    world.objects.customers.get(id).ok_or_else(|| missing::<Customer>(id))?;
    shown(world, asked, id)
}

pub fn change(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&FIELDS)?;
    world.change_customer(id, |customer| {
        let text = |name: &str, old: Option<String>| if form.has(name) { form.filled(name).map(str::to_owned) } else { old };
        customer.email = text("email", customer.email.take());
        customer.name = text("name", customer.name.take());
        customer.description = text("description", customer.description.take());
        // `metadata=` removes all of it.
        if form.get("metadata") == Some("") {
            customer.metadata.clear();
        }
        set_metadata(&mut customer.metadata, form.map("metadata"));
    })?;
    shown(world, asked, id)
}

pub fn delete(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    asked.form.only(&[])?;
    world.delete_customer(id)?;
    Ok(json!({"id": id, "object": "customer", "deleted": true}))
}
