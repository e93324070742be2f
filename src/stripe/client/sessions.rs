//! Where a customer is sent: checkout, portal, invoice.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use stripe_billing::billing_portal_session::{
    CreateBillingPortalSession, CreateBillingPortalSessionFlowData, CreateBillingPortalSessionFlowDataAfterCompletion,
    CreateBillingPortalSessionFlowDataAfterCompletionRedirect, CreateBillingPortalSessionFlowDataAfterCompletionType,
    CreateBillingPortalSessionFlowDataSubscriptionUpdateConfirm, CreateBillingPortalSessionFlowDataSubscriptionUpdateConfirmItems,
    CreateBillingPortalSessionFlowDataType,
};
use stripe_checkout::checkout_session::{
    CreateCheckoutSession, CreateCheckoutSessionLineItems, CreateCheckoutSessionSubscriptionData, ExpireCheckoutSession,
    ListCheckoutSession, RetrieveCheckoutSession,
};
use stripe_core::customer::CreateCustomer;
use stripe_shared::{CheckoutSessionMode, CheckoutSessionStatus};

use super::call::{Call, Idempotency, segment};
use super::{Client, Object, PAGE_SIZE, StripeError, found};
use crate::stripe::read::{id, metadata, seconds, text};

/// Stripe's own most for `client_reference_id`.
const CLIENT_REFERENCE_CHARS_MAX: usize = 200;
/// Under which name a session of ours says what it sells: a list of sessions does not show their lines.
const PRICE: &str = "spendgate_price";
/// Those of checkout sessions have some 500 bytes.
const URL_BYTES_MAX: usize = 4096;

/// What a checkout session sells to whom: one price, once, as a subscription.
#[derive(Clone, Copy, Debug)]
pub struct Checkout<'a> {
    pub customer: &'a str,
    pub price: &'a str,
    /// Whose subscription it will be.
    pub user_id: &'a str,
    pub success_url: &'a str,
    pub cancel_url: &'a str,
}

/// A page where a subscription is bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutSession {
    pub id: String,
    pub url: String,
    pub expires_at: Option<DateTime<Utc>>,
}

/// What the billing portal is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortalFlow<'a> {
    Home,
    /// Only the means of payment; then back.
    PaymentMethodUpdate,
    /// Only this change of a subscription, which the customer confirms; then back.
    SubscriptionUpdateConfirm {
        subscription: &'a str,
        item: &'a str,
        price: &'a str,
        /// `None` leaves it to Stripe, which metered prices need.
        quantity: Option<u64>,
    },
}

impl Client {
    /// Makes a customer who is this user, and gives the customer's id.
    pub async fn create_customer(&self, user_id: &str, name: Option<&str>, once: Idempotency<'_>) -> Result<String, StripeError> {
        let request = CreateCustomer::new().metadata(user(user_id));
        let request = name.into_iter().fold(request, CreateCustomer::name);
        let customer = self.object(&Call::change(&request, once), self.deadline()).await?;
        customer.get("id").and_then(id).ok_or(StripeError::Unreadable("a customer has no id"))
    }

    pub async fn create_checkout_session(&self, checkout: Checkout<'_>, once: Idempotency<'_>) -> Result<CheckoutSession, StripeError> {
        let line = CreateCheckoutSessionLineItems {
            price: Some(checkout.price.to_owned()),
            quantity: Some(1),
            ..CreateCheckoutSessionLineItems::new()
        };
        let subscription = CreateCheckoutSessionSubscriptionData {
            metadata: Some(user(checkout.user_id)),
            ..CreateCheckoutSessionSubscriptionData::new()
        };
        let mut request = CreateCheckoutSession::new()
            .mode(CheckoutSessionMode::Subscription)
            .customer(checkout.customer)
            .line_items(vec![line])
            .success_url(checkout.success_url)
            .cancel_url(checkout.cancel_url)
            .metadata(HashMap::from([(PRICE.to_owned(), checkout.price.to_owned())]))
            .subscription_data(subscription);
        // The subscription says it too; this only lets people see it at Stripe.
        if checkout.user_id.chars().count() <= CLIENT_REFERENCE_CHARS_MAX {
            request = request.client_reference_id(checkout.user_id);
        }
        let session = self.object(&Call::change(&request, once), self.deadline()).await?;
        read_session(&session)
    }

    /// The sessions of ours in which this customer can still buy this price, whoever they were made for.
    pub async fn open_checkout_sessions(&self, customer: &str, price: &str) -> Result<Vec<CheckoutSession>, StripeError> {
        let listed = self.pages(None, self.deadline(), |after| {
            let request = ListCheckoutSession::new().customer(customer).status(CheckoutSessionStatus::Open).limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListCheckoutSession::starting_after))
        });
        let ours = listed.await?.into_iter().filter(|session| metadata(session, PRICE).as_deref() == Some(price));
        ours.map(|session| read_session(&session)).collect()
    }

    /// Whether a session can still be paid. What Stripe answers to a key that was used before is the session as it was then.
    pub async fn is_checkout_open(&self, session: &str) -> Result<bool, StripeError> {
        let Ok(segment) = segment(session) else { return Ok(false) };
        let session = found(self.object(&Call::ask(&RetrieveCheckoutSession::new(segment)), self.deadline()).await)?;
        Ok(session.is_some_and(|session| text(&session, "status").as_deref() == Some("open")))
    }

    /// Ends the customer's other checkouts of a subscription that are open and lead back to `ours`, all but `keep`: whoever paid two of
    /// them would subscribe twice. `Refused` where one of them was paid meanwhile.
    pub async fn end_other_checkouts(&self, customer: &str, keep: &str, ours: &str) -> Result<(), StripeError> {
        let until = self.deadline();
        let open = self.pages(None, until, |after| {
            let request = ListCheckoutSession::new().customer(customer).status(CheckoutSessionStatus::Open).limit(PAGE_SIZE);
            Call::ask(&after.into_iter().fold(request, ListCheckoutSession::starting_after))
        });
        for session in open.await? {
            let sells = text(&session, "mode").as_deref() == Some("subscription");
            let is_ours = session.get("success_url").and_then(Value::as_str).is_some_and(|url| url.starts_with(ours));
            let Some(other) = session.get("id").and_then(id).filter(|id| id != keep && sells && is_ours) else { continue };
            let request = ExpireCheckoutSession::new(other.as_str());
            self.object(&Call::change(&request, Idempotency::Salt("another was opened")), until).await?;
        }
        Ok(())
    }

    /// Gives the URL where this customer, whoever opens it, finds the portal.
    pub async fn create_portal_session(
        &self,
        customer: &str,
        return_url: &str,
        flow: PortalFlow<'_>,
        once: Idempotency<'_>,
    ) -> Result<String, StripeError> {
        let request = CreateBillingPortalSession::new().customer(customer).return_url(return_url);
        let request = flow_data(flow, return_url).into_iter().fold(request, CreateBillingPortalSession::flow_data);
        let session = self.object(&Call::change(&request, once), self.deadline()).await?;
        url(&session, "url").ok_or(StripeError::Unreadable("a portal session leads nowhere"))
    }

    /// Where an invoice that is open can be paid; `None` where it is not there or not open.
    pub async fn invoice_url(&self, invoice: &str) -> Result<Option<String>, StripeError> {
        let Ok(segment) = segment(invoice) else { return Ok(None) };
        let invoice = found(self.object(&Call::get(format!("/invoices/{segment}")), self.deadline()).await)?;
        let open = invoice.filter(|invoice| text(invoice, "status").as_deref() == Some("open"));
        Ok(open.and_then(|invoice| url(&invoice, "hosted_invoice_url")))
    }
}

fn read_session(session: &Object) -> Result<CheckoutSession, StripeError> {
    Ok(CheckoutSession {
        id: session.get("id").and_then(id).ok_or(StripeError::Unreadable("a checkout session has no id"))?,
        url: url(session, "url").ok_or(StripeError::Unreadable("a checkout session leads nowhere"))?,
        expires_at: seconds(session, "expires_at"),
    })
}

/// The one entry of metadata that customers and subscriptions are given.
fn user(user_id: &str) -> HashMap<String, String> {
    HashMap::from([("user_id".to_owned(), user_id.to_owned())])
}

fn flow_data(flow: PortalFlow<'_>, return_url: &str) -> Option<CreateBillingPortalSessionFlowData> {
    let (kind, confirm) = match flow {
        PortalFlow::Home => return None,
        PortalFlow::PaymentMethodUpdate => (CreateBillingPortalSessionFlowDataType::PaymentMethodUpdate, None),
        PortalFlow::SubscriptionUpdateConfirm { subscription, item, price, quantity } => {
            let item = CreateBillingPortalSessionFlowDataSubscriptionUpdateConfirmItems {
                price: Some(price.to_owned()),
                quantity,
                ..CreateBillingPortalSessionFlowDataSubscriptionUpdateConfirmItems::new(item)
            };
            let confirm = CreateBillingPortalSessionFlowDataSubscriptionUpdateConfirm::new(vec![item], subscription);
            (CreateBillingPortalSessionFlowDataType::SubscriptionUpdateConfirm, Some(confirm))
        }
    };
    let then = CreateBillingPortalSessionFlowDataAfterCompletion {
        redirect: Some(CreateBillingPortalSessionFlowDataAfterCompletionRedirect::new(return_url)),
        ..CreateBillingPortalSessionFlowDataAfterCompletion::new(CreateBillingPortalSessionFlowDataAfterCompletionType::Redirect)
    };
    Some(CreateBillingPortalSessionFlowData {
        after_completion: Some(then),
        subscription_update_confirm: confirm,
        ..CreateBillingPortalSessionFlowData::new(kind)
    })
}

/// A URL that can stand in a `Location` header.
fn url(object: &Object, key: &str) -> Option<String> {
    let url = object.get(key).and_then(Value::as_str)?;
    let leads_out = url.starts_with("https://") || url.starts_with("http://");
    let good = leads_out && url.len() <= URL_BYTES_MAX && url.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| url.to_owned())
}
