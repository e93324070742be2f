//! How the account is set up: what it sells, where its events go, what its portal allows.

use std::fmt;

use serde_json::Value;
use stripe_billing::billing_portal_configuration::ListBillingPortalConfiguration;
use stripe_misc::webhook_endpoint::{
    CreateWebhookEndpoint, CreateWebhookEndpointEnabledEvents, DeleteWebhookEndpoint, ListWebhookEndpoint, UpdateWebhookEndpoint,
    UpdateWebhookEndpointEnabledEvents,
};
use stripe_product::price::{ListPrice, RetrievePrice};
use stripe_product::product::RetrieveProduct;
use stripe_shared::ApiVersion;

use super::call::{Call, Idempotency, segment};
use super::{Client, Object, PAGE_SIZE, StripeError, found};
use crate::stripe::read::{flag, id, named, text};

/// Stripe takes no more in one request.
const LOOKUP_KEYS_MAX: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    /// Most accounts do not say.
    pub livemode: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    pub id: String,
    pub active: bool,
    /// Whether it is paid again and again, as subscriptions need it.
    pub recurring: bool,
    pub lookup_key: Option<String>,
    pub product: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub id: String,
    pub active: bool,
    /// The price that the operator chose among the product's.
    pub default_price: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalConfiguration {
    pub id: String,
    pub active: bool,
    pub is_default: bool,
    /// Customers may change their plan.
    pub updates_subscriptions: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookEndpoint {
    pub id: String,
    pub url: String,
    pub enabled: bool,
    pub events: Vec<String>,
    /// `None`: that of the account, which moves when somebody moves it.
    pub api_version: Option<String>,
}

/// The secret of an endpoint that was just made, which Stripe tells once.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(String);

impl SigningSecret {
    /// The secret itself, to be shown to the one person who asked for it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// What is changed of an endpoint; the rest stays. Its API version cannot be changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointChange<'a> {
    pub url: Option<&'a str>,
    pub events: Option<&'a [&'a str]>,
    pub enabled: Option<bool>,
}

impl Client {
    /// The account of the key. Restricted keys may be refused this while they may do all that they need to.
    pub async fn account(&self) -> Result<Account, StripeError> {
        let account = self.object(&Call::get("/account"), self.deadline()).await?;
        let id = account.get("id").and_then(id).ok_or(StripeError::Unreadable("an account has no id"))?;
        Ok(Account { id, livemode: account.get("livemode").and_then(Value::as_bool) })
    }

    /// A price id is an arbitrary text.
    pub async fn price(&self, price: &str) -> Result<Option<Price>, StripeError> {
        let Ok(segment) = segment(price) else { return Ok(None) };
        let asked = self.object(&Call::ask(&RetrievePrice::new(segment)), self.deadline()).await;
        found(asked)?.as_ref().map(read_price).transpose()
    }

    /// The prices that have one of these lookup keys, active or not. A key that no price has is missing in the answer.
    pub async fn prices_by_lookup_keys(&self, keys: &[&str]) -> Result<Vec<Price>, StripeError> {
        let until = self.deadline();
        let mut prices = Vec::new();
        for keys in keys.chunks(LOOKUP_KEYS_MAX) {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let listed = self.pages(None, until, |after| {
                let request = ListPrice::new().lookup_keys(keys.clone()).limit(PAGE_SIZE);
                Call::ask(&after.into_iter().fold(request, ListPrice::starting_after))
            });
            for object in listed.await? {
                prices.push(read_price(&object)?);
            }
        }
        Ok(prices)
    }

    pub async fn product(&self, product: &str) -> Result<Option<Product>, StripeError> {
        let Ok(segment) = segment(product) else { return Ok(None) };
        let asked = self.object(&Call::ask(&RetrieveProduct::new(segment)), self.deadline()).await;
        let Some(object) = found(asked)? else { return Ok(None) };
        let id = text(&object, "id").ok_or(StripeError::Unreadable("a product has no id"))?;
        let default_price = object.get("default_price").and_then(named);
        Ok(Some(Product { id, active: flag(&object, "active"), default_price }))
    }

    /// The prices of a product that are active, the newest first.
    pub async fn prices_of_product(&self, product: &str) -> Result<Vec<Price>, StripeError> {
        let listed = self.pages(None, self.deadline(), |after| {
            let request = ListPrice::new().product(product).active(true).limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListPrice::starting_after))
        });
        listed.await?.iter().map(read_price).collect()
    }

    pub async fn portal_configurations(&self) -> Result<Vec<PortalConfiguration>, StripeError> {
        let listed = self.pages(None, self.deadline(), |after| {
            let request = ListBillingPortalConfiguration::new().limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListBillingPortalConfiguration::starting_after))
        });
        listed.await?.iter().map(read_configuration).collect()
    }

    pub async fn webhook_endpoints(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        let listed = self.pages(None, self.deadline(), |after| {
            let request = ListWebhookEndpoint::new().limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListWebhookEndpoint::starting_after))
        });
        listed.await?.iter().map(read_endpoint).collect()
    }

    /// The secret comes with this answer and never again.
    pub async fn create_webhook_endpoint(
        &self,
        url: &str,
        events: &[&str],
        api_version: &str,
        once: Idempotency<'_>,
    ) -> Result<(WebhookEndpoint, SigningSecret), StripeError> {
        let events: Vec<_> = events.iter().map(|event| event_to_create(event)).collect();
        let version = api_version.parse().unwrap_or_else(|_| ApiVersion::Unknown(api_version.to_owned()));
        let request = CreateWebhookEndpoint::new(events, url).api_version(version);
        let made = self.object(&Call::change(&request, once), self.deadline()).await?;
        let secret = text(&made, "secret").ok_or(StripeError::Unreadable("a new endpoint has no secret"))?;
        Ok((read_endpoint(&made)?, SigningSecret(secret)))
    }

    pub async fn update_webhook_endpoint(
        &self,
        endpoint: &str,
        change: EndpointChange<'_>,
        once: Idempotency<'_>,
    ) -> Result<WebhookEndpoint, StripeError> {
        let mut request = UpdateWebhookEndpoint::new(segment(endpoint)?);
        if let Some(url) = change.url {
            request = request.url(url);
        }
        if let Some(events) = change.events {
            request = request.enabled_events(events.iter().map(|event| event_to_update(event)).collect::<Vec<_>>());
        }
        if let Some(enabled) = change.enabled {
            request = request.disabled(!enabled);
        }
        read_endpoint(&self.object(&Call::change(&request, once), self.deadline()).await?)
    }

    /// One that is not there is as good as deleted.
    pub async fn delete_webhook_endpoint(&self, endpoint: &str) -> Result<(), StripeError> {
        let Ok(segment) = segment(endpoint) else { return Ok(()) };
        found(self.object(&Call::ask(&DeleteWebhookEndpoint::new(segment)), self.deadline()).await).map(|_| ())
    }
}

/// Every text is the name of an event, if perhaps of one that the builders do not know.
fn event_to_create(name: &str) -> CreateWebhookEndpointEnabledEvents {
    name.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn event_to_update(name: &str) -> UpdateWebhookEndpointEnabledEvents {
    name.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn read_price(object: &Object) -> Result<Price, StripeError> {
    Ok(Price {
        id: text(object, "id").ok_or(StripeError::Unreadable("a price has no id"))?,
        active: flag(object, "active"),
        recurring: object.get("recurring").is_some_and(Value::is_object),
        lookup_key: text(object, "lookup_key"),
        product: object.get("product").and_then(named),
    })
}

fn read_configuration(object: &Object) -> Result<PortalConfiguration, StripeError> {
    let update = object.get("features").and_then(|features| features.get("subscription_update")).and_then(Value::as_object);
    Ok(PortalConfiguration {
        id: text(object, "id").ok_or(StripeError::Unreadable("a portal configuration has no id"))?,
        active: flag(object, "active"),
        is_default: flag(object, "is_default"),
        updates_subscriptions: update.is_some_and(|update| flag(update, "enabled")),
    })
}

fn read_endpoint(object: &Object) -> Result<WebhookEndpoint, StripeError> {
    let events = object.get("enabled_events").and_then(Value::as_array);
    Ok(WebhookEndpoint {
        id: object.get("id").and_then(id).ok_or(StripeError::Unreadable("an endpoint has no id"))?,
        url: object.get("url").and_then(Value::as_str).unwrap_or_default().to_owned(),
        enabled: text(object, "status").as_deref() == Some("enabled"),
        events: events.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        api_version: text(object, "api_version"),
    })
}
