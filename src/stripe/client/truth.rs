//! What customers have, as Stripe says when it is asked.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use stripe_billing::subscription::{ListSubscription, ListSubscriptionStatus, RetrieveSubscription};
use stripe_billing::subscription_item::ListSubscriptionItem;
use stripe_core::customer::{ListCustomer, RetrieveCustomer};
use stripe_core::event::ListEvent;
use stripe_types::RangeQueryTs;

use super::call::{Call, segment};
use super::{Client, Object, PAGE_SIZE, Page, StripeError, found, next_after, object};
use crate::domain::subscription::{Occasion, Snapshot};
use crate::stripe::read::{flag, id, metadata, named, reference, seconds, text};
use crate::stripe::subscription::{shown, snapshot};

/// A customer, as Stripe knows him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCustomer {
    pub id: String,
    pub deleted: bool,
    /// Metadata `user_id`.
    pub user_hint: Option<String>,
}

/// A subscription, as Stripe knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSubscription {
    pub id: String,
    pub customer: String,
    pub created: Option<DateTime<Utc>>,
    /// Where it says `has_more_items`, `items` is incomplete too.
    pub snapshot: Snapshot,
    /// Metadata `user_id`.
    pub user_hint: Option<String>,
    pub items: Vec<RemoteItem>,
    pub latest_invoice: Option<String>,
}

/// One line of a subscription, by the names that a change of it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteItem {
    pub id: String,
    pub price: Option<String>,
    /// Absent on metered items.
    pub quantity: Option<u64>,
}

impl Client {
    /// A deleted customer is there, as deleted.
    pub async fn customer(&self, customer: &str) -> Result<Option<RemoteCustomer>, StripeError> {
        let Ok(segment) = segment(customer) else { return Ok(None) };
        let asked = self.object(&Call::ask(&RetrieveCustomer::new(segment)), self.deadline()).await;
        found(asked)?.as_ref().map(read_customer).transpose()
    }

    /// All subscriptions of a customer with all their items, ended ones too, the newest first; `now` becomes the `said_at` of
    /// their snapshots. `NotFound` where there is no such customer.
    pub async fn subscriptions_of(&self, customer: &str, now: DateTime<Utc>) -> Result<Vec<RemoteSubscription>, StripeError> {
        let until = self.deadline();
        let listed = self.pages(None, until, |after| list_subscriptions(Some(customer), after)).await;
        let listed = listed.map_err(|error| if error.is_missing() { StripeError::NotFound } else { error })?;
        let mut subscriptions = Vec::with_capacity(listed.len());
        for mut object in listed {
            self.complete_items(&mut object, until).await?;
            let subscription = read_subscription(&object, now)?;
            if subscription.customer != customer {
                return Err(StripeError::Unreadable("a list of one customer's subscriptions has another's in it"));
            }
            subscriptions.push(subscription);
        }
        Ok(subscriptions)
    }

    /// One subscription, as it shows itself; `now` becomes the `said_at` of its snapshot.
    pub async fn subscription(&self, now: DateTime<Utc>, subscription: &str) -> Result<Option<RemoteSubscription>, StripeError> {
        let Ok(segment) = segment(subscription) else { return Ok(None) };
        let asked = self.object(&Call::ask(&RetrieveSubscription::new(segment)), self.deadline()).await;
        found(asked)?.as_ref().map(|object| read_subscription(object, now)).transpose()
    }

    /// One page of all customers that are not deleted, the newest first.
    pub async fn customers_page(&self, after: Option<&str>) -> Result<Page<RemoteCustomer>, StripeError> {
        let request = ListCustomer::new().limit(PAGE_SIZE);
        let request = after.into_iter().fold(request, ListCustomer::starting_after);
        let page = self.page(&Call::ask(&request), self.deadline()).await?;
        Ok(page.read(read_customer))
    }

    /// One page of all subscriptions, ended ones too, the newest first. Items beyond those that Stripe shows at once are not
    /// fetched; the snapshot says so.
    pub async fn subscriptions_page(&self, after: Option<&str>, now: DateTime<Utc>) -> Result<Page<RemoteSubscription>, StripeError> {
        let page = self.page(&list_subscriptions(None, after), self.deadline()).await?;
        Ok(page.read(|object| read_subscription(object, now)))
    }

    /// One page of the events since `since`, inclusive, the newest first, each as Stripe wrote it. Stripe lists those of the last
    /// 30 days, of every type: it filters by twenty types at most, and more are registered.
    pub async fn events_page(&self, since: DateTime<Utc>, after: Option<&str>) -> Result<Page<Box<RawValue>>, StripeError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Box<RawValue>>,
            #[serde(default)]
            has_more: Value,
        }
        let request = ListEvent::new().limit(PAGE_SIZE).created(RangeQueryTs::gte(since.timestamp()));
        let request = after.into_iter().fold(request, ListEvent::starting_after);
        let body = self.transport.send(&Call::ask(&request), self.patience, self.deadline()).await?;
        let list: List = serde_json::from_slice(&body).map_err(|_| StripeError::Unreadable("it is not a list of events"))?;
        let mut last = None;
        for event in &list.data {
            let event = object(serde_json::from_str(event.get()))?;
            self.check_mode(&event)?;
            last = Some(event);
        }
        let next = next_after(list.has_more == Value::Bool(true), last.as_ref())?;
        Ok(Page { items: list.data, unread: 0, next })
    }

    /// Fetches the items that a subscription does not show itself, and puts them beside the others.
    async fn complete_items(&self, subscription: &mut Object, until: tokio::time::Instant) -> Result<(), StripeError> {
        let Some(name) = text(subscription, "id") else { return Ok(()) };
        let Some(list) = subscription.get_mut("items").and_then(Value::as_object_mut).filter(|list| flag(list, "has_more")) else {
            return Ok(());
        };
        let Some(Value::Array(items)) = list.get_mut("data") else { return Ok(()) };
        let last = items.last().and_then(Value::as_object).and_then(|item| text(item, "id"));
        let rest = self.pages(last, until, |after| {
            let request = ListSubscriptionItem::new(&name).limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListSubscriptionItem::starting_after))
        });
        items.extend(rest.await?.into_iter().map(Value::Object));
        list.insert("has_more".to_owned(), Value::Bool(false));
        Ok(())
    }
}

impl Page<Object> {
    /// One odd object does not hide the others.
    fn read<T>(self, read: impl Fn(&Object) -> Result<T, StripeError>) -> Page<T> {
        let items: Vec<T> = self.items.iter().filter_map(|object| read(object).ok()).collect();
        Page { unread: self.items.len() - items.len(), items, next: self.next }
    }
}

fn list_subscriptions(customer: Option<&str>, after: Option<&str>) -> Call {
    let request = ListSubscription::new().status(ListSubscriptionStatus::All).limit(PAGE_SIZE);
    let request = customer.into_iter().fold(request, ListSubscription::customer);
    Call::ask(&after.into_iter().fold(request, ListSubscription::starting_after))
}

fn read_customer(object: &Object) -> Result<RemoteCustomer, StripeError> {
    let id = object.get("id").and_then(id).ok_or(StripeError::Unreadable("a customer has no id"))?;
    Ok(RemoteCustomer { id, deleted: flag(object, "deleted"), user_hint: metadata(object, "user_id") })
}

fn read_subscription(object: &Object, now: DateTime<Utc>) -> Result<RemoteSubscription, StripeError> {
    let customer = reference(object, "customer").ok().flatten();
    let shown = shown(object);
    let told = (shown.status(), Occasion::Change);
    Ok(RemoteSubscription {
        id: object.get("id").and_then(id).ok_or(StripeError::Unreadable("a subscription has no id"))?,
        customer: customer.ok_or(StripeError::Unreadable("a subscription names no customer"))?,
        created: seconds(object, "created"),
        snapshot: snapshot(object, &shown, told, now),
        user_hint: metadata(object, "user_id"),
        items: items(object),
        // One that is odd is one that nobody can be sent to.
        latest_invoice: reference(object, "latest_invoice").ok().flatten(),
    })
}

fn items(subscription: &Object) -> Vec<RemoteItem> {
    let listed = subscription.get("items").and_then(|items| items.get("data")).and_then(Value::as_array);
    let item = |item: &Object| {
        let price = item.get("price").filter(|price| !price.is_null()).or_else(|| item.get("plan"));
        Some(RemoteItem {
            id: item.get("id").and_then(id)?,
            price: price.and_then(named),
            quantity: item.get("quantity").and_then(Value::as_u64),
        })
    };
    listed.into_iter().flatten().filter_map(Value::as_object).filter_map(item).collect()
}
