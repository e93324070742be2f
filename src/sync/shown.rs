//! Events applied as they show, where Stripe is not asked: guarded by `domain::subscription` against their order.

use chrono::{DateTime, Utc};

use super::binding::{Touched, bound, owner, read_hint};
use super::telling::{self, Whose};
use super::{doubt_alert, tier_sentence, unbound};
use crate::domain::catalogue::Catalogue;
use crate::domain::subscription::{Change, Notice};
use crate::store::accounts::{self, StoredCustomer};
use crate::store::inbox::{Effect, EventState};
use crate::store::{Connection, StoreError};
use crate::stripe::event::Event;

/// Applies what an event says of a customer, and binds the customer where the event may say to whom.
pub(super) async fn apply(
    db: &mut Connection,
    catalogue: &Catalogue,
    event: &Event,
    customer: &str,
    notice: Option<&Notice>,
    now: DateTime<Utc>,
) -> Result<(Effect, Touched), StoreError> {
    let before = accounts::customer(db, customer).await?.unwrap_or_default();
    let mut alerts = Vec::new();
    let hint = read_hint(trusted_hint(event), &mut alerts);
    let user_id = bound(db, &before, (customer, before.state.is_deleted()), hint, &mut alerts, now).await?;
    let account = before.account.clone();
    let (state, change) = match notice {
        Some(notice) => before.state.after(notice, catalogue, now),
        None => (before.state.clone(), Change::Latest),
    };
    if let Some(Notice::Subscription { subscription, .. }) = notice {
        let doubts = state.doubts(subscription, catalogue);
        alerts.extend(doubts.iter().map(|doubt| doubt_alert(subscription, doubt)));
        telling::unmapped(db, Whose { customer, subscription, user_id: user_id.as_ref() }, &doubts, now).await?;
    }
    let after = StoredCustomer { account, user_id, state };
    if after != before || notice.is_none() {
        accounts::put_customer(db, customer, &after, now).await?;
    }
    let sentence = sentence(catalogue, event, customer, &before, &after, change, now);
    let touched = Touched::of(db, &after).await?;
    let state = match (change, owner(&after)) {
        (Change::Stale, _) => EventState::Stale,
        (Change::Latest, None) => EventState::Kept,
        (Change::Latest, Some(_)) => EventState::Applied,
    };
    Ok((Effect { state, sentence, alerts }, touched))
}

/// Whom the event names as the customer's user, where it may: metadata of customers and subscriptions is the operator's own.
/// A Checkout session's `client_reference_id` can be written by the buyer (Payment Links), so it binds nobody.
fn trusted_hint(event: &Event) -> Option<&str> {
    event.facts.user_hint.as_deref().filter(|_| !event.kind.starts_with("checkout.session."))
}

fn sentence(
    catalogue: &Catalogue,
    event: &Event,
    customer: &str,
    before: &StoredCustomer,
    after: &StoredCustomer,
    change: Change,
    now: DateTime<Utc>,
) -> String {
    let tier = tier_sentence(catalogue, before, after, now);
    match (owner(after), change) {
        (_, Change::Stale) => format!("Older than what is known of customer {customer}: {tier}."),
        (Some(owner), Change::Latest) => format!("Customer {customer} ({}): {tier}.", owner.named()),
        (None, Change::Latest) => {
            let hint = event.facts.user_hint.as_deref().map(|hint| format!(" It hints at user {hint}.")).unwrap_or_default();
            format!("{}: {tier}.{hint}", unbound(customer))
        }
    }
}
