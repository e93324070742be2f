use proptest::prelude::*;

use super::*;
use crate::domain::catalogue::Policy;

const NOW: &str = "2026-01-05T12:00:00Z";

fn money(text: &str) -> Money {
    Money::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn budget(period: Period, policy: Policy, limit: &str, spent: &str) -> Budget {
    let now = NOW.parse().unwrap_or_else(|_| panic!("a time"));
    let window = period.window(now, None);
    Budget {
        scope: Scope::User,
        period,
        source: Source::Tier,
        limit: money(limit),
        granted: Money::ZERO,
        fresh_limit: money(limit),
        spent: money(spent),
        held: Money::ZERO,
        window,
        thresholds: policy.thresholds(),
    }
}

#[test]
fn policies_act_at_their_thresholds_exactly() {
    use Action::{Allow, Block, Degrade, Warn};
    let check = |policy: Policy, spent: &str, estimate: &str, expected: Action| {
        let decision = decide(&[budget(Period::Daily, policy, "0.10", spent)], money(estimate));
        assert_eq!(decision.action, expected, "{policy:?}, {spent} spent, {estimate} asked");
    };
    check(Policy::Strict, "0", "0", Allow);
    check(Policy::Strict, "0.079999999", "0", Allow);
    check(Policy::Strict, "0.08", "0", Warn);
    check(Policy::Strict, "0.079999999", "0.000000001", Warn);
    // What fits the remainder to the last nano-dollar goes through, and one more does not.
    check(Policy::Strict, "0.09", "0.01", Warn);
    check(Policy::Strict, "0.09", "0.010000001", Block);
    check(Policy::Strict, "0.10", "0", Block);
    check(Policy::Strict, "0.105", "0", Block);
    check(Policy::Graceful, "0.08", "0", Warn);
    check(Policy::Graceful, "0.09", "0", Degrade);
    check(Policy::Graceful, "0.09", "0.01", Degrade);
    check(Policy::Graceful, "0.10", "0", Block);
    check(Policy::Soft, "0.089999999", "0", Allow);
    check(Policy::Soft, "0.09", "0", Warn);
    check(Policy::Soft, "0.10", "0", Degrade);
    check(Policy::Soft, "100", "0", Degrade);
    check(Policy::Monitor, "0.09", "0", Warn);
    check(Policy::Monitor, "100", "0", Warn);
}

#[test]
fn a_limit_of_nothing_lets_nothing_be_spent() {
    for policy in Policy::ALL {
        let decision = decide(&[budget(Period::Daily, policy, "0", "0")], Money::ZERO);
        assert_eq!((decision.action, decision.reason, decision.retry_at), (Action::Block, Reason::BudgetExhausted, None));
    }
}

#[test]
fn no_budget_means_no_limit() {
    let decision = decide(&[], money("1000000000"));
    assert_eq!((decision.action, decision.binding), (Action::Allow, None));
}

#[test]
fn a_block_says_when_waiting_helps() {
    let daily = budget(Period::Daily, Policy::Strict, "0.10", "0.105");
    let monthly = budget(Period::Monthly, Policy::Strict, "1", "1");
    let day = decide(&[daily], Money::ZERO);
    assert_eq!(day.message, "Daily budget of $0.10 is used up; it resets at 2026-01-06T00:00:00Z.");
    assert_eq!(day.retry_at, daily.window.end);
    // Where both are used up, the later reset is the one to wait for.
    let both = decide(&[daily, monthly], Money::ZERO);
    assert_eq!((both.binding, both.retry_at), (Some(monthly.binding()), monthly.window.end));
    // A request that is larger than the whole limit never fits.
    let fresh = budget(Period::Daily, Policy::Strict, "0.10", "0");
    let large = decide(&[fresh], money("0.11"));
    assert_eq!((large.action, large.reason, large.retry_at), (Action::Block, Reason::EstimateExceedsBudget, None));
    // Nor does it where another budget alone would let it through tomorrow.
    let never = decide(&[fresh, monthly], money("0.11"));
    assert_eq!((never.binding, never.retry_at), (Some(fresh.binding()), None));
    let total = decide(&[budget(Period::Total, Policy::Strict, "1", "1")], Money::ZERO);
    assert_eq!((total.action, total.retry_at), (Action::Block, None));
}

#[test]
fn used_percent_is_never_rounded_up() {
    let check = |limit: &str, spent: &str, expected: i128| {
        assert_eq!(budget(Period::Daily, Policy::Strict, limit, spent).used_permille(), expected);
    };
    check("0.10", "0.105", 1050);
    check("0.10", "0.099999999", 999);
    check("0.10", "0", 0);
    check("0", "0", 1000);
}

fn percent() -> impl Strategy<Value = Option<Percent>> {
    proptest::option::of((0_u32..=15_000).prop_map(Percent))
}

fn budgets() -> impl Strategy<Value = Vec<Budget>> {
    let one = (0..5_usize, any::<bool>(), 0..=2_000_i64, 0..=2_500_i64, 0..=500_i64, [percent(), percent(), percent()]);
    let one = one.prop_map(|(period, global, limit, spent, held, at)| {
        let nanos = |nanos: i64| Money::from_nanos(nanos).unwrap_or_default();
        let mut given: Vec<Percent> = at.iter().copied().flatten().collect();
        given.sort();
        let mut given = given.into_iter();
        let [warn, degrade, block] = at.map(|present| present.and_then(|_| given.next()));
        Budget {
            scope: if global { Scope::Global } else { Scope::User },
            source: if global { Source::Global } else { Source::Tier },
            limit: nanos(limit),
            fresh_limit: nanos(limit),
            spent: nanos(spent),
            held: nanos(held),
            thresholds: Thresholds { warn, degrade, block },
            ..budget(Period::ALL[period], Policy::Strict, "0", "0")
        }
    });
    proptest::collection::vec(one, 0..8).prop_map(|mut budgets| {
        budgets.sort_by_key(|budget| (budget.scope, budget.period));
        budgets.dedup_by_key(|budget| (budget.scope, budget.period));
        budgets
    })
}

#[test]
fn under_a_limit_of_0_nothing_fits_whatever_the_policy() {
    for policy in [Policy::Strict, Policy::Monitor] {
        let budgets = [budget(Period::Daily, Policy::Strict, "1", "0"), budget(Period::Weekly, policy, "0", "0")];
        assert_eq!(most(&budgets), Some(Money::ZERO));
        assert_eq!(decide(&budgets, Money::ZERO).action, Action::Block);
    }
}

proptest! {
    #[test]
    fn spending_more_is_never_judged_milder(budgets in budgets(), which in any::<prop::sample::Index>(), estimate in 0..=1_000_i64, more in 0..=1_000_i64) {
        prop_assume!(!budgets.is_empty());
        let nanos = |nanos: i64| Money::from_nanos(nanos).unwrap_or_default();
        let before = decide(&budgets, nanos(estimate));
        let mut spent = budgets.clone();
        let index = which.index(spent.len());
        spent[index].spent = nanos(spent[index].spent.nanos() + more);
        prop_assert!(before.action <= decide(&spent, nanos(estimate)).action);
        prop_assert!(before.action <= decide(&budgets, nanos(estimate + more)).action);
    }

    #[test]
    fn a_decision_does_not_depend_on_the_order_of_budgets(
        (budgets, shuffled) in budgets().prop_flat_map(|budgets| (Just(budgets.clone()), Just(budgets).prop_shuffle())),
        estimate in 0..=1_000_i64,
    ) {
        let estimate = Money::from_nanos(estimate).unwrap_or_default();
        prop_assert_eq!(decide(&budgets, estimate), decide(&shuffled, estimate));
    }

    #[test]
    fn what_is_let_through_under_a_hard_limit_fits_it(limit in 0..=2_000_i64, spent in 0..=2_500_i64, estimate in 0..=1_000_i64) {
        let nanos = |nanos: i64| Money::from_nanos(nanos).unwrap_or_default();
        let budget = Budget { limit: nanos(limit), spent: nanos(spent), ..budget(Period::Daily, Policy::Strict, "0", "0") };
        let blocked = decide(&[budget], nanos(estimate)).action == Action::Block;
        prop_assert_eq!(blocked, limit <= spent || limit < spent + estimate);
    }

    #[test]
    fn the_most_that_fits_does_and_one_nano_dollar_more_does_not(budgets in budgets()) {
        if let Some(most) = most(&budgets) {
            let over = Money::from_nanos(most.nanos() + 1).unwrap_or_default();
            prop_assert_eq!(decide(&budgets, over).action, Action::Block);
            if most != Money::ZERO {
                prop_assert!(decide(&budgets, most).action < Action::Block);
            }
        }
    }
}
