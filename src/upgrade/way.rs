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
    /// He has one that is not paid and none that is; before anything else he pays. Of a subscription that Stripe does not charge by itself any more it
    /// is the invoice that he pays: another card alone would change nothing.
    Pay { invoice: Option<String> },
    /// Somebody has to look: the portal shows what there is.
    Home,
}

/// The way from the subscriptions of a customer to a tier. A second subscription is never the answer: whatever is not known to have
/// ended counts as live.
pub fn way(subscriptions: &[RemoteSubscription], catalogue: &Catalogue, target: &Tier) -> Way {
    let live: Vec<_> = subscriptions.iter().filter(|known| !known.snapshot.status.is_final()).collect();
    let uses = live.iter().any(|known| is_in_use(&known.snapshot.status) && known.snapshot.tier(catalogue).is_some());
    // The newest of those whose debt weighs most. Beside a tier that is paid a debt is an old one, or a purchase that was given up.
    if let Some(owed) =
        live.iter().filter(|known| !uses && 0 < debt(&known.snapshot.status)).rev().max_by_key(|known| debt(&known.snapshot.status))
    {
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

/// How much a debt weighs: a tier that is about to be lost, one that is lost, one that was never had. Nothing is owed at 0.
fn debt(status: &Status) -> u8 {
    match status {
        Status::PastDue => 3,
        Status::Unpaid => 2,
        Status::Incomplete => 1,
        Status::Trialing | Status::Active | Status::Paused | Status::Canceled | Status::IncompleteExpired | Status::Unknown(_) => 0,
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

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::pricing::PriceBook;
    use crate::domain::subscription::{Item, Occasion, Snapshot};
    use crate::domain::tiers_file;
    use crate::stripe::client::RemoteItem;

    const TIERS: &str = "default_tier: free\ntiers:\n  \
        free: { rank: 0, budgets: { daily: 0.10 }, policy: strict }\n  \
        pro: { rank: 1, budgets: { daily: 1 }, policy: strict, prices: [price_pro] }\n  \
        top: { rank: 2, budgets: { daily: 9 }, policy: strict, prices: [price_top] }\n";

    fn subscription(id: &str, status: &str, price: &str) -> RemoteSubscription {
        let snapshot = Snapshot {
            status: Status::from(status.to_owned()),
            occasion: Occasion::Change,
            said_at: DateTime::default(),
            items: vec![Item { price: Some(price.to_owned()), ..Item::default() }],
            cancel_at: None,
            cancel_at_period_end: false,
            collection_paused: false,
            has_more_items: false,
        };
        let items = vec![RemoteItem { id: format!("si_{id}"), price: Some(price.to_owned()), quantity: Some(1) }];
        let (customer, latest_invoice) = ("cus_1".to_owned(), Some(format!("in_{id}")));
        RemoteSubscription { id: id.to_owned(), customer, created: None, snapshot, user_hint: None, items, latest_invoice }
    }

    /// To the tier `top`, of subscriptions as `status price`, the newest first.
    fn way_of(subscriptions: &[&str]) -> Way {
        let catalogue = tiers_file::read(TIERS, PriceBook::default()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let one = |(number, text): (usize, &&str)| {
            let (status, price) = text.split_once(' ').unwrap();
            subscription(&format!("sub_{number}"), status, price)
        };
        let subscriptions: Vec<_> = subscriptions.iter().enumerate().map(one).collect();
        way(&subscriptions, &catalogue, catalogue.tier("top").unwrap())
    }

    fn pays(invoice: Option<&str>) -> Way {
        Way::Pay { invoice: invoice.map(str::to_owned) }
    }

    #[test]
    fn whoever_has_none_that_lives_buys_and_whoever_has_one_changes_it() {
        assert_eq!(way_of(&[]), Way::Checkout { ended: 0 });
        assert_eq!(way_of(&["canceled price_pro", "incomplete_expired price_top"]), Way::Checkout { ended: 2 });
        let change = Way::Change { subscription: "sub_1".to_owned(), item: "si_sub_1".to_owned(), quantity: Some(1) };
        assert_eq!(way_of(&["canceled price_pro", "active price_pro"]), change);
        for home in ["active price_top", "paused price_pro", "a_status_of_2027 price_pro"] {
            assert_eq!(way_of(&[home]), Way::Home, "{home}");
        }
    }

    #[test]
    fn whoever_owes_pays_first_and_the_debt_that_weighs_most() {
        assert_eq!(way_of(&["past_due price_pro"]), pays(None));
        assert_eq!(way_of(&["unpaid price_pro"]), pays(Some("in_sub_0")));
        assert_eq!(way_of(&["incomplete price_top", "unpaid price_pro"]), pays(Some("in_sub_1")));
        assert_eq!(way_of(&["incomplete price_top", "past_due price_pro"]), pays(None));
        assert_eq!(way_of(&["incomplete price_top", "incomplete price_top"]), pays(Some("in_sub_0")), "the newest");
    }

    #[test]
    fn whoever_pays_for_one_is_not_sent_to_an_old_debt_nor_to_a_purchase_that_he_gave_up() {
        for other in ["unpaid price_pro", "incomplete price_top", "past_due price_pro", "active price_pro"] {
            assert_eq!(way_of(&["active price_pro", other]), Way::Home, "{other}");
            assert_eq!(way_of(&[other, "trialing price_pro"]), Way::Home, "{other}");
        }
        assert_eq!(way_of(&["active price_of_support", "past_due price_pro"]), pays(None), "what buys no tier is no tier");
    }
}
