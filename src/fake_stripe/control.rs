//! `/_fake`: what people do to Stripe by hand, with curl. Form-encoded in, JSON out; no key is asked for, so this belongs on
//! loopback only.

use std::time::Duration;

use axum::response::Response;
use chrono::TimeDelta;
use serde_json::{Value, json};

use super::answer::{Answer, ApiError};
use super::billing::{Beginning, Line};
use super::door::{Sent, json as json_response};
use super::form::Form;
use super::knobs::Fault;
use super::objects::{Card, Metadata};
use super::world::World;
use super::{FakeStripe, Generation};

/// How long the old secret goes on signing where nothing is said.
const OVERLAP_SECONDS: i64 = 86_400;
/// Nobody waits longer for an answer.
const LATENCY_MILLIS_MAX: u64 = 600_000;
const SCRIPT_LINES_MAX: u64 = 10_000;

pub fn answer(fake: &FakeStripe, sent: &Sent) -> Response {
    let answered = sent.form().and_then(|form| {
        let segments = sent.segments();
        match (sent.method.as_str(), segments.as_slice()) {
            ("GET", []) => Ok(fake.lock().state()),
            // Knobs are not of the world: turning one is no change that a stale list would count.
            ("POST", ["knobs"]) => fake.lock().turn_by(&form),
            ("POST", path) => fake.change(|world| world.act(path, &form, &sent.path)),
            _ => Err(ApiError::no_such_path(&sent.method, &sent.path)),
        }
    });
    json_response(&answered.map_or_else(|error| error.answer(), |value| Answer::ok(&value)))
}

impl World {
    fn state(&self) -> Value {
        let endpoints = self.objects.endpoints.newest_first().filter(|(_, endpoint)| !endpoint.deleted);
        let endpoints = endpoints.map(|(_, endpoint)| json!({"id": endpoint.id, "url": endpoint.url, "enabled": endpoint.enabled}));
        let knobs = &self.knobs;
        json!({
            "now": self.now().to_rfc3339(), "customers": self.objects.customers.len(), "products": self.objects.products.len(),
            "prices": self.objects.prices.len(), "subscriptions": self.objects.subscriptions.len(),
            "invoices": self.objects.invoices.len(), "events": self.events.len(), "endpoints": endpoints.collect::<Vec<_>>(),
            "deliveries_waiting": self.pending.len(),
            "calls": self.calls.by_path(), "most_calls_in_a_second": self.calls.most_in_a_second(),
            "knobs": {
                "latency_ms": u64::try_from(knobs.latency.as_millis()).unwrap_or(u64::MAX), "stale_changes": knobs.stale_changes,
                "clock_ahead_seconds": knobs.skew().num_seconds(), "calls_per_second_max": knobs.calls_per_second_max,
                "script": knobs.script.iter().map(|line| format!("{:?} {}", line.fault, line.on)).collect::<Vec<_>>(),
                "chance_per_mille": knobs.chance_per_mille,
            },
        })
    }

    fn turn_by(&mut self, form: &Form) -> Result<Value, ApiError> {
        form.only(&[
            "latency_ms",
            "stale_changes",
            "clock_ahead_seconds",
            "clock_behind_seconds",
            "calls_per_second_max",
            "next",
            "times",
            "on",
            "chance_per_mille",
            "chance",
            "reset",
        ])?;
        if form.boolean("reset")? == Some(true) {
            self.knobs = super::knobs::Knobs::default();
        }
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(millis) = form.quantity("latency_ms")? {
            self.knobs.latency = Duration::from_millis(millis.min(LATENCY_MILLIS_MAX));
        }
        if let Some(changes) = form.quantity("stale_changes")? {
            self.knobs.stale_changes = size(changes);
        }
        if let Some(seconds) = form.quantity("clock_ahead_seconds")? {
            self.knobs.clock_ahead = Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        }
        if let Some(seconds) = form.quantity("clock_behind_seconds")? {
            self.knobs.clock_behind = Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        }
        if form.has("calls_per_second_max") {
            self.knobs.calls_per_second_max = form.quantity("calls_per_second_max")?.map(size);
        }
        if let Some(chance) = form.quantity("chance_per_mille")? {
            self.knobs.chance_per_mille = u32::try_from(chance.min(1000)).unwrap_or(1000);
        }
        let fault =
            |param: &str, name: &str| Fault::named(name).ok_or_else(|| ApiError::invalid(param, format!("There is no fault {name}")));
        if form.has("chance") {
            self.knobs.chances = form.list("chance").iter().map(|name| fault("chance", name)).collect::<Result<_, _>>()?;
        }
        if let Some(name) = form.filled("next") {
            let times = size(form.quantity("times")?.unwrap_or(1).min(SCRIPT_LINES_MAX));
            self.knobs.script(times, fault("next", name)?, form.get("on").unwrap_or_default());
        }
        Ok(self.state())
    }

    fn act(&mut self, path: &[&str], form: &Form, whole: &str) -> Result<Value, ApiError> {
        match path {
            ["customers", id, "subscriptions"] => {
                form.only(&["price", "quantity", "status", "items", "metadata"])?;
                let rows = form.rows("items");
                let single =
                    form.filled("price").map(|price| -> Result<Line, ApiError> { Ok((price.to_owned(), form.quantity("quantity")?)) });
                let listed =
                    rows.iter().map(|row| -> Result<Line, ApiError> { Ok((row.required("price")?.to_owned(), row.quantity("quantity")?)) });
                let lines = single.into_iter().chain(listed).collect::<Result<Vec<Line>, _>>()?;
                if lines.is_empty() {
                    return Err(ApiError::missing("price"));
                }
                let metadata: Metadata = form.map("metadata").into_iter().collect();
                let status = form.filled("status").unwrap_or("active").to_owned();
                self.customer(id)?;
                // Who pays has a card that is good.
                if status == "active" {
                    self.set_card(id, Card::Good)?;
                }
                let subscription = self.subscribe(id, &lines, Beginning { status, metadata, ..Beginning::default() })?;
                self.told(&subscription)
            }
            ["customers", id, "card"] => {
                form.only(&["card"])?;
                match form.required("card")? {
                    "good" => self.mend_payment(id)?,
                    "declined" => self.set_card(id, Card::Declined)?,
                    "none" => self.set_card(id, Card::Missing)?,
                    _ => return Err(ApiError::invalid("card", "card is good, declined or none")),
                }
                self.told(id)
            }
            ["subscriptions", id, "status"] => {
                form.only(&["status"])?;
                self.set_status(id, form.required("status")?)?;
                self.told(id)
            }
            ["subscriptions", id, "advance"] => {
                self.advance_period(id)?;
                self.told(id)
            }
            ["subscriptions", id, "schedule"] => {
                form.only(&["price", "quantity"])?;
                let line = (form.required("price")?.to_owned(), form.quantity("quantity")?);
                let schedule = self.schedule(id, &[line])?;
                self.told(&schedule)
            }
            ["listen"] => {
                form.only(&["url", "secret", "api_version"])?;
                let secret = form.filled("secret").unwrap_or("whsec_fake").to_owned();
                let id = self.listen(form.required("url")?, &secret, form.filled("api_version"));
                Ok(json!({"id": id, "secret": secret}))
            }
            ["endpoints", id, "roll"] => {
                form.only(&["overlap_seconds"])?;
                let overlap = form.integer("overlap_seconds")?.unwrap_or(OVERLAP_SECONDS).clamp(0, 7 * OVERLAP_SECONDS);
                let secret = self.roll_secret(id, TimeDelta::seconds(overlap))?;
                Ok(json!({"id": id, "secret": secret}))
            }
            _ => Err(ApiError::no_such_path("POST", whole)),
        }
    }

    /// The object of this id, as the account sees it.
    fn told(&self, id: &str) -> Result<Value, ApiError> {
        let generation: Generation = self.options.generation;
        let base = self.base();
        self.view(generation, &base).any(id).ok_or_else(|| ApiError::not_found("object", id))
    }
}
