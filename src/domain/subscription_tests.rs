use proptest::prelude::*;

use super::*;
use crate::domain::pricing::PriceBook;
use crate::domain::tiers_file;

fn catalogue(extra: &str) -> Catalogue {
    let text = format!(
        "default_tier: free\n{extra}tiers:\n  \
         free: {{ rank: 0, budgets: {{ daily: 0.10 }}, policy: strict, prices: [price_free] }}\n  \
         pro: {{ rank: 1, budgets: {{ daily: 1 }}, policy: strict, prices: [price_pro], grace_days: 3 }}\n  \
         top: {{ rank: 2, budgets: {{ daily: 9 }}, policy: strict, lookup_keys: [top_monthly], products: [prod_top] }}\n"
    );
    tiers_file::read(&text, PriceBook::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap_or_default()
}

fn item(price: &str) -> Item {
    Item { price: Some(price.to_owned()), ..Item::default() }
}

fn shown(status: &str, prices: &[&str], seconds: i64) -> Snapshot {
    Snapshot {
        status: Status::from(status.to_owned()),
        occasion: Occasion::Change,
        said_at: at(seconds),
        items: prices.iter().map(|price| item(price)).collect(),
        cancel_at: None,
        cancel_at_period_end: false,
        collection_paused: false,
        has_more_items: false,
    }
}

fn said(snapshot: Snapshot) -> Notice {
    Notice::Subscription { subscription: "sub_1".to_owned(), snapshot }
}

fn told(notices: &[Notice], catalogue: &Catalogue) -> Customer {
    notices.iter().fold(Customer::default(), |customer, notice| customer.after(notice, catalogue, at(1_000)).0)
}

fn tier_after(notices: &[Notice]) -> Option<String> {
    let catalogue = catalogue("");
    told(notices, &catalogue).grant(&catalogue, at(1_000)).tier.map(|tier| tier.name.clone())
}

#[test]
fn statuses_give_the_access_that_stripe_md_says() {
    let check = |status: &str, expected: Option<&str>| {
        assert_eq!(tier_after(&[said(shown(status, &["price_pro"], 0))]).as_deref(), expected, "{status}");
    };
    check("trialing", Some("pro"));
    check("active", Some("pro"));
    check("past_due", Some("pro"));
    for status in ["unpaid", "canceled", "incomplete", "incomplete_expired", "paused", "a_status_of_2027"] {
        check(status, None);
    }
}

#[test]
fn an_unknown_status_keeps_the_tier_and_is_a_doubt() {
    let notices = [said(shown("active", &["price_pro"], 0)), said(shown("a_status_of_2027", &["price_pro"], 1))];
    assert_eq!(tier_after(&notices).as_deref(), Some("pro"));
    let catalogue = catalogue("");
    let doubts = told(&notices, &catalogue).doubts("sub_1", &catalogue);
    assert_eq!(doubts, [Doubt::UnknownStatus { status: "a_status_of_2027".to_owned() }]);
}

#[test]
fn an_unknown_status_never_raises() {
    let odd = |seconds: i64| said(shown("a_status_of_2027", &["price_pro"], seconds));
    let (active, unpaid) = (said(shown("active", &["price_pro"], 0)), said(shown("unpaid", &["price_pro"], 1)));
    assert_eq!(tier_after(&[active.clone(), unpaid.clone(), odd(2)]), None);
    assert_eq!(tier_after(&[odd(2), unpaid, active.clone()]), None);
    // Nor does it begin the grace of a debt anew.
    let catalogue = catalogue("");
    let due = [active, said(shown("past_due", &["price_pro"], 1)), odd(2)];
    let customer = told(&due, &catalogue);
    let tier_at = |seconds: i64| customer.grant(&catalogue, at(seconds)).tier.map(|tier| tier.name.as_str());
    assert_eq!((tier_at(1_000), tier_at(1_000 + 3 * 86_400)), (Some("pro"), None));
}

#[test]
fn what_was_never_paid_for_or_is_over_has_no_billing_period() {
    let catalogue = catalogue("");
    let period_of = |status: &str| {
        let paid = Item { period_start: Some(at(0)), period_end: Some(at(1_000_000)), ..item("price_pro") };
        let customer = told(&[said(Snapshot { items: vec![paid], ..shown(status, &[], 0) })], &catalogue);
        customer.grant(&catalogue, at(1_000)).billing
    };
    for status in ["trialing", "active", "past_due"] {
        assert!(period_of(status).is_some(), "{status}");
    }
    for status in ["incomplete", "incomplete_expired", "unpaid", "canceled", "paused"] {
        assert_eq!(period_of(status), None, "{status}");
    }
}

#[test]
fn items_that_are_missing_are_a_doubt() {
    let catalogue = catalogue("");
    let none = told(&[said(shown("active", &[], 0))], &catalogue);
    assert_eq!(none.doubts("sub_1", &catalogue), [Doubt::MissingItems { shown: 0 }]);
    let some = told(&[said(Snapshot { has_more_items: true, ..shown("active", &["price_pro"], 0) })], &catalogue);
    assert_eq!(some.doubts("sub_1", &catalogue), [Doubt::MissingItems { shown: 1 }]);
}

#[test]
fn an_unmapped_price_keeps_the_tier_in_any_order_and_is_a_doubt() {
    let pro = said(shown("active", &["price_pro"], 0));
    let lost = said(shown("active", &["price_forgotten"], 1));
    assert_eq!(tier_after(&[pro.clone(), lost.clone()]).as_deref(), Some("pro"));
    assert_eq!(tier_after(&[lost.clone(), pro]).as_deref(), Some("pro"));
    assert_eq!(tier_after(std::slice::from_ref(&lost)), None);
    let catalogue = catalogue("");
    let doubts = told(&[lost], &catalogue).doubts("sub_1", &catalogue);
    assert_eq!(doubts, [Doubt::UnmappedPrice { prices: vec!["price_forgotten".to_owned()], kept: None }]);
}

#[test]
fn an_end_is_final_whatever_comes_after() {
    let gone = said(shown("canceled", &["price_pro"], 5));
    let alive = said(shown("active", &["price_pro"], 9));
    let older = said(shown("active", &["price_pro"], 1));
    assert_eq!(tier_after(&[older.clone(), gone.clone()]), None);
    assert_eq!(tier_after(&[gone.clone(), older]), None);
    assert_eq!(tier_after(&[gone.clone(), alive.clone()]), None);
    assert_eq!(tier_after(&[alive, gone]), None);
}

#[test]
fn a_tie_within_a_second_goes_to_the_later_stage_of_life() {
    let active = said(shown("active", &["price_pro"], 5));
    let trialing = said(Snapshot { occasion: Occasion::Announcement, ..shown("trialing", &["price_free"], 5) });
    let announced = said(Snapshot { occasion: Occasion::Announcement, ..shown("active", &["price_free"], 5) });
    let created = said(Snapshot { occasion: Occasion::Creation, ..shown("active", &["price_free"], 5) });
    for earlier in [trialing, announced, created] {
        assert_eq!(tier_after(&[active.clone(), earlier.clone()]).as_deref(), Some("pro"), "{earlier:?}");
        assert_eq!(tier_after(&[earlier.clone(), active.clone()]).as_deref(), Some("pro"), "{earlier:?}");
    }
}

#[test]
fn the_highest_rank_of_all_subscriptions_and_items_wins() {
    let by_lookup_key = Item { lookup_key: Some("top_monthly".to_owned()), ..item("price_new") };
    let second = Snapshot { items: vec![item("price_addon"), by_lookup_key], ..shown("active", &[], 0) };
    let second = Notice::Subscription { subscription: "sub_2".to_owned(), snapshot: second };
    assert_eq!(tier_after(&[said(shown("active", &["price_pro"], 3)), second.clone()]).as_deref(), Some("top"));
    let gone = Notice::Subscription { subscription: "sub_2".to_owned(), snapshot: shown("canceled", &["price_pro"], 9) };
    assert_eq!(tier_after(&[second, said(shown("active", &["price_pro"], 3)), gone]).as_deref(), Some("pro"));
}

/// Items by their prices and quantities.
fn seats_for(status: &str, items: &[(&str, Option<u64>)], seconds: i64) -> Snapshot {
    let item = |(price, quantity): &(&str, Option<u64>)| Item { quantity: *quantity, ..item(price) };
    Snapshot { items: items.iter().map(item).collect(), ..shown(status, &[], seconds) }
}

#[test]
fn seats_are_all_that_is_paid_for_of_the_tier_whatever_stands_last() {
    let catalogue = catalogue("");
    let seats = |notices: &[Notice]| told(notices, &catalogue).grant(&catalogue, at(1_000)).seats;
    let of = |items: &[(&str, Option<u64>)]| seats(&[said(seats_for("active", items, 0))]);
    assert_eq!(of(&[("price_pro", Some(10))]), 10);
    assert_eq!(of(&[("price_pro", Some(10)), ("price_pro", None)]), 10, "a metered item has none");
    assert_eq!(of(&[("price_pro", None)]), 1);
    assert_eq!(of(&[("price_pro", Some(10)), ("price_pro", Some(5)), ("price_free", Some(100)), ("price_addon", Some(500))]), 15);
    assert_eq!(of(&[("price_pro", Some(u64::MAX)), ("price_pro", Some(u64::MAX))]), u64::MAX);
    let second = |status: &str, seconds: i64| Notice::Subscription {
        subscription: "sub_2".to_owned(),
        snapshot: seats_for(status, &[("price_pro", Some(1))], seconds),
    };
    let first = said(seats_for("active", &[("price_pro", Some(50))], 5));
    for seconds in [0, 5, 9] {
        assert_eq!(seats(&[first.clone(), second("active", seconds)]), 51, "{seconds}");
        assert_eq!(seats(&[first.clone(), second("incomplete", seconds)]), 50, "{seconds}");
    }
}

#[test]
fn what_is_not_understood_keeps_its_seats_and_never_raises_them() {
    let catalogue = catalogue("");
    let grants = |then: Snapshot| {
        let customer = told(&[said(seats_for("active", &[("price_pro", Some(10))], 0)), said(then)], &catalogue);
        let grant = customer.grant(&catalogue, at(1_000));
        (grant.tier.map(|tier| tier.name.clone()), grant.seats)
    };
    assert_eq!(grants(seats_for("active", &[("price_forgotten", Some(12))], 1)), (Some("pro".to_owned()), 10));
    assert_eq!(grants(seats_for("a_status_of_2027", &[("price_pro", Some(99))], 1)), (Some("pro".to_owned()), 10));
}

#[test]
fn of_subscriptions_that_buy_nothing_the_one_that_is_owed_shows_then_one_that_may_still_begin() {
    let catalogue = catalogue("");
    let of = |subscription: &str, snapshot: Snapshot| Notice::Subscription { subscription: subscription.to_owned(), snapshot };
    let unpaid = of("sub_1", shown("unpaid", &["price_pro"], 0));
    let expired = of("sub_2", shown("incomplete_expired", &["price_pro"], 5));
    let customer = told(&[unpaid, expired.clone()], &catalogue);
    assert_eq!(customer.grant(&catalogue, at(1_000)).owed.map(|tier| tier.name.as_str()), Some("pro"));
    let paused = of("sub_1", shown("paused", &["price_pro"], 0));
    assert_eq!(told(&[paused, expired], &catalogue).grant(&catalogue, at(1_000)).status, Some(Status::Paused));
}

#[test]
fn a_price_is_asked_by_id_then_lookup_key_then_metadata_then_product() {
    let catalogue = catalogue("");
    let full =
        ItemNames { price: Some("price_pro"), lookup_key: Some("top_monthly"), metadata_tier: Some("free"), product: Some("prod_top") };
    let name = |names: ItemNames<'_>| catalogue.tier_of(names).map(|tier| tier.name.as_str());
    assert_eq!(name(full), Some("pro"));
    assert_eq!(name(ItemNames { price: Some("price_other"), ..full }), Some("top"));
    assert_eq!(name(ItemNames { price: None, lookup_key: None, ..full }), Some("free"));
    assert_eq!(name(ItemNames { price: None, lookup_key: None, metadata_tier: Some(""), ..full }), Some("top"));
    assert_eq!(name(ItemNames { price: Some("x"), ..ItemNames::default() }), None);
}

#[test]
fn grace_is_counted_from_when_we_first_saw_the_debt() {
    let catalogue = catalogue("");
    let due = said(shown("past_due", &["price_pro"], 0));
    let first = Customer::default().after(&due, &catalogue, at(1_000)).0;
    let again = first.after(&said(shown("past_due", &["price_pro"], 9)), &catalogue, at(90_000)).0;
    let tier_at = |seconds: i64| again.grant(&catalogue, at(seconds)).tier.map(|tier| tier.name.as_str());
    let three_days = 3 * 86_400;
    assert_eq!(tier_at(1_000 + three_days - 1), Some("pro"));
    assert_eq!(tier_at(1_000 + three_days), None);
    let paid = Notice::InvoicePaid { subscription: "sub_1".to_owned(), said_at: at(100_000) };
    let settled = again.after(&paid, &catalogue, at(100_000)).0;
    assert_eq!(settled.grant(&catalogue, at(1_000 + three_days)).tier.map(|tier| tier.name.as_str()), Some("pro"));
    // It was an older invoice: the debt goes on, and its grace does not begin anew.
    let still_due = settled.after(&said(shown("past_due", &["price_pro"], 100_001)), &catalogue, at(100_001)).0;
    assert_eq!(still_due.grant(&catalogue, at(1_000 + three_days)).tier, None);
}

#[test]
fn a_paused_collection_does_as_the_operator_says() {
    let paused = said(Snapshot { collection_paused: true, ..shown("active", &["price_pro"], 0) });
    let check = |extra: &str, expected: Option<&str>| {
        let catalogue = catalogue(extra);
        let customer = told(std::slice::from_ref(&paused), &catalogue);
        assert_eq!(customer.grant(&catalogue, at(1_000)).tier.map(|tier| tier.name.as_str()), expected, "{extra}");
    };
    check("", Some("pro"));
    check("pause_collection: keep\n", Some("pro"));
    check("pause_collection: suspend\n", None);
}

#[test]
fn no_items_buy_nothing_and_a_deleted_customer_has_nothing() {
    assert_eq!(tier_after(&[said(shown("active", &["price_pro"], 0)), said(shown("active", &[], 1))]), None);
    assert_eq!(tier_after(&[said(shown("active", &["price_pro"], 0)), Notice::Deleted]), None);
    assert_eq!(tier_after(&[Notice::Deleted, said(shown("active", &["price_pro"], 9))]), None);
}

#[test]
fn a_customer_with_very_many_subscriptions_stays_bounded_and_keeps_the_live_one() {
    let catalogue = catalogue("");
    let mut customer = told(&[said(shown("active", &["price_pro"], 0))], &catalogue);
    for number in 0..SUBSCRIPTIONS_MAX + 20 {
        let snapshot = shown("canceled", &["price_pro"], 10);
        let notice = Notice::Subscription { subscription: format!("sub_old_{number}"), snapshot };
        customer = customer.after(&notice, &catalogue, at(1_000)).0;
    }
    assert_eq!(customer.subscriptions.len(), SUBSCRIPTIONS_MAX);
    assert_eq!(customer.grant(&catalogue, at(1_000)).tier.map(|tier| tier.name.as_str()), Some("pro"));
}

/// A life as Stripe would tell it: ascending seconds, statuses that may follow each other, prices that change.
fn life() -> impl Strategy<Value = Vec<Notice>> {
    let step = (
        1..5_i64,
        prop::sample::select(vec!["active", "past_due", "unpaid", "paused"]),
        prop::sample::select(vec!["price_pro", "price_free", "price_lost"]),
    );
    (proptest::collection::vec(step, 1..8), any::<bool>()).prop_map(|(steps, ends)| {
        let mut seconds = 0;
        let mut notices = vec![said(Snapshot { occasion: Occasion::Creation, ..shown("incomplete", &["price_pro"], 0) })];
        for (pause, status, price) in steps {
            seconds += pause;
            notices.push(said(shown(status, &[price], seconds)));
        }
        if ends {
            notices.push(said(shown("canceled", &["price_pro"], seconds)));
        }
        notices
    })
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_ends_in_the_same_tier(
        (life, delivered) in life().prop_flat_map(|life| {
            let twice: Vec<Notice> = life.iter().chain(&life).cloned().collect();
            (Just(life), Just(twice).prop_shuffle())
        })
    ) {
        prop_assert_eq!(tier_after(&life), tier_after(&delivered));
    }
}
