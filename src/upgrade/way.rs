//! Which page of Stripe's is the right one: a table.

use crate::domain::catalogue::{Catalogue, Tier};
use crate::domain::subscription::Status;
use crate::stripe::client::RemoteSubscription;

/// Where somebody who wants more is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// He has no live subscription. `ended` is how many he had: whoever comes back buys anew.
    Checkout { ended: usize },
    /// He has one, with one item that can be changed.
    Change { subscription: String, item: String, quantity: Option<u64> },
    /// He has one that is not paid; before anything else he pays. Of a subscription that Stripe does not charge by itself any more it
    /// is the invoice that he pays: another card alone would change nothing.
    Pay { invoice: Option<String> },
    /// Somebody has to look: the portal shows what there is.
    Home,
}

/// The way from the subscriptions of a customer to a tier. A second subscription is never the answer: whatever is not known to have
/// ended counts as live.
pub fn way(subscriptions: &[RemoteSubscription], catalogue: &Catalogue, target: &Tier) -> Way {
    let live: Vec<_> = subscriptions.iter().filter(|known| !known.snapshot.status.is_final()).collect();
    if let Some(owed) = live.iter().find(|known| owes(&known.snapshot.status)) {
        let invoice = owed.latest_invoice.clone().filter(|_| owed.snapshot.status != Status::PastDue);
        return Way::Pay { invoice };
    }
    // An old link must not lead down, nor to what he has.
    if live.iter().any(|known| known.snapshot.tier(catalogue).is_some_and(|tier| target.rank <= tier.rank)) {
        return Way::Home;
    }
    match live.as_slice() {
        [] => Way::Checkout { ended: subscriptions.len() },
        [only] => match only.items.as_slice() {
            [item] if is_in_use(&only.snapshot.status) && !only.snapshot.has_more_items => {
                Way::Change { subscription: only.id.clone(), item: item.id.clone(), quantity: item.quantity }
            }
            _ => Way::Home,
        },
        [_, _, ..] => Way::Home,
    }
}

fn owes(status: &Status) -> bool {
    match status {
        Status::PastDue | Status::Unpaid | Status::Incomplete => true,
        Status::Trialing | Status::Active | Status::Paused | Status::Canceled | Status::IncompleteExpired | Status::Unknown(_) => false,
    }
}

/// The portal changes no others.
fn is_in_use(status: &Status) -> bool {
    match status {
        Status::Trialing | Status::Active => true,
        Status::PastDue
        | Status::Unpaid
        | Status::Incomplete
        | Status::Paused
        | Status::Canceled
        | Status::IncompleteExpired
        | Status::Unknown(_) => false,
    }
}
