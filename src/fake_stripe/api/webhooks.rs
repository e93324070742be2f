//! `/v1/webhook_endpoints`

use serde_json::{Value, json};

use super::super::answer::ApiError;
use super::super::list::page;
use super::super::objects::{Endpoint, Metadata, SigningSecret};
use super::super::render::View;
use super::super::world::{World, missing, set_metadata};
use super::{Asked, only_and_paging};

/// Stripe's own bound, for each mode.
const ENDPOINTS_MAX: usize = 16;

fn listed<'a>(world: &'a World, id: &str) -> Result<&'a Endpoint, ApiError> {
    let known = world.objects.endpoints.get(id).filter(|endpoint| endpoint.listed && !endpoint.deleted);
    known.ok_or_else(|| missing::<Endpoint>(id))
}

pub fn list(view: &View<'_>, asked: &Asked<'_>) -> Result<Value, ApiError> {
    only_and_paging(asked.form, &[])?;
    let mut found: Vec<_> = view.objects.endpoints.newest_first().collect();
    found.retain(|(_, endpoint)| endpoint.listed && !endpoint.deleted);
    let endpoints = &view.objects.endpoints;
    page(asked.form, "/v1/webhook_endpoints", view.page_max, endpoints, found, |endpoint: &Endpoint| view.endpoint(endpoint))
}

pub fn show(world: &World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let base = world.base();
    Ok(world.view(asked.generation, &base).endpoint(listed(world, id)?))
}

pub fn create(world: &mut World, asked: &Asked<'_>) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&["url", "enabled_events", "api_version", "description", "metadata", "connect"])?;
    let url = good_url(form.required("url")?)?;
    let enabled_events = good_events(form.list("enabled_events"))?;
    let many = world.objects.endpoints.newest_first().filter(|(_, one)| one.listed && !one.deleted).count();
    if ENDPOINTS_MAX <= many {
        let message = format!("You have reached the maximum of {ENDPOINTS_MAX} webhook endpoints.");
        return Err(ApiError::invalid("", message));
    }
    let mut metadata = Metadata::new();
    set_metadata(&mut metadata, form.map("metadata"));
    let text = world.id("whsec_", 32);
    let endpoint = Endpoint {
        id: world.id("we_1", 23),
        created: world.seconds(),
        url,
        enabled_events,
        api_version: form.filled("api_version").map(str::to_owned),
        description: form.filled("description").map(str::to_owned),
        metadata,
        enabled: true,
        deleted: false,
        listed: true,
        secrets: vec![SigningSecret { text: text.clone(), ends_at: None }],
    };
    let base = world.base();
    let mut value = world.view(asked.generation, &base).endpoint(&endpoint);
    value["secret"] = json!(text);
    world.objects.endpoints.add(endpoint);
    Ok(value)
}

pub fn change(world: &mut World, asked: &Asked<'_>, id: &str) -> Result<Value, ApiError> {
    let form = asked.form;
    form.only(&["url", "enabled_events", "disabled", "description", "metadata"])?;
    listed(world, id)?;
    let url = form.filled("url").map(good_url).transpose()?;
    let enabled_events = if form.has("enabled_events") { Some(good_events(form.list("enabled_events"))?) } else { None };
    let disabled = form.boolean("disabled")?;
    let endpoint = world.objects.endpoints.get_mut(id).ok_or_else(|| missing::<Endpoint>(id))?;
    endpoint.url = url.unwrap_or_else(|| endpoint.url.clone());
    endpoint.enabled = disabled.map_or(endpoint.enabled, |disabled| !disabled);
    if let Some(enabled_events) = enabled_events {
        endpoint.enabled_events = enabled_events;
    }
    if form.has("description") {
        endpoint.description = form.filled("description").map(str::to_owned);
    }
    set_metadata(&mut endpoint.metadata, form.map("metadata"));
    show(world, asked, id)
}

pub fn delete(world: &mut World, id: &str) -> Result<Value, ApiError> {
    listed(world, id)?;
    if let Some(endpoint) = world.objects.endpoints.get_mut(id) {
        endpoint.deleted = true;
    }
    Ok(json!({"id": id, "object": "webhook_endpoint", "deleted": true}))
}

/// Stripe itself also refuses loopback, since it could not reach it; we can.
fn good_url(url: &str) -> Result<String, ApiError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(url.to_owned()),
        _ => Err(ApiError::invalid("url", "Invalid URL: An explicit scheme (such as https) must be provided.")),
    }
}

fn good_events(events: Vec<String>) -> Result<Vec<String>, ApiError> {
    if events.is_empty() {
        return Err(ApiError::missing("enabled_events"));
    }
    let well_formed = |kind: &String| kind == "*" || (kind.contains('.') && !kind.contains('*'));
    if let Some(kind) = events.iter().find(|kind| !well_formed(kind)) {
        return Err(ApiError::invalid("enabled_events", format!("Invalid enabled_events: {kind} is not an event type")));
    }
    Ok(events)
}
