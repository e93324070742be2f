use proptest::prelude::*;

use super::*;
use crate::domain::pricing::Parts;
use crate::domain::subscription::Customer;
use crate::domain::user::ManualTier;
use crate::domain::{prices_file, tiers_file};

const PRICES: &str = "models: { gpt-4o: { input: 2.5, output: 10 }, mini: { input: 0.15, output: 0.6 }, local: { input: 0, output: 0 } }";
const TIERS: &str = "default_tier: free\n\
    tiers:\n  \
      free: { rank: 0, budgets: { daily: 0.10 }, policy: strict }\n  \
      soft: { rank: 1, budgets: { daily: 0.10 }, policy: soft, degrade_to: { default: mini } }\n  \
      team: { rank: 2, budgets: { daily: 0.10 }, policy: strict, scope: account }\n";

fn catalogue(tiers: &str) -> Catalogue {
    let prices = prices_file::read(PRICES).unwrap_or_else(|problems| panic!("{problems:?}"));
    tiers_file::read(tiers, prices).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|_| panic!("{text} is a time"))
}

fn money(text: &str) -> Money {
    Money::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn call(name: &str, cost: &str, at: &str) -> Recorded {
    let (kind, model) = (EntryKind::Usage, Some("gpt-4o".to_owned()));
    Recorded {
        user: user(name),
        account: None,
        kind,
        cost: money(cost),
        time: time(at),
        model,
        provider: None,
        tokens: None,
        metadata: None,
    }
}

fn in_tier(tier: &str) -> Profile {
    let set_at = time("2026-01-01T00:00:00Z");
    let manual = Some(ManualTier { tier: tier.to_owned(), reason: String::new(), set_at, ends_at: None });
    Profile { manual, account: None, stripe_customer: None, customer: Customer::default(), caps: None }
}

/// All calls of users who have this profile.
fn run<'c>(catalogue: &'c Catalogue, profile: &Profile, calls: &[Recorded]) -> Simulation<'c> {
    let mut simulation = Simulation::new(catalogue, Some(Counters::default()), time("2026-02-01T00:00:00Z"));
    for call in calls {
        if !simulation.has_met(&call.user) {
            simulation.meet(call.user.clone(), profile, Counters::default());
        }
        simulation.run(call);
    }
    simulation
}

fn of<'c>(simulation: &Simulation<'c>, name: &str) -> OfUser<'c> {
    simulation.of_user(&user(name)).unwrap_or_else(|| panic!("{name} was met"))
}

#[test]
fn what_is_blocked_fills_no_window_and_the_next_day_begins_anew() {
    let catalogue = catalogue(TIERS);
    let calls = [
        call("u", "0.07", "2026-01-12T10:00:00Z"),
        call("u", "0.05", "2026-01-12T11:00:00Z"),
        // It fits, since the one before was not made.
        call("u", "0.03", "2026-01-12T12:00:00Z"),
        call("u", "0.01", "2026-01-12T23:59:59Z"),
        call("u", "0.01", "2026-01-13T00:00:00Z"),
    ];
    let simulation = run(&catalogue, &Profile::default(), &calls);
    let told = of(&simulation, "u");
    let tally = told.tally;
    assert_eq!((told.tier, told.tier_source, told.worst), ("free", TierSource::Default, Action::Block));
    assert_eq!((tally.calls, tally.allow.calls, tally.warn.calls, tally.block.calls), (5, 2, 1, 2));
    assert_eq!((tally.spent, tally.would_have_spent, tally.block.cost), (money("0.17"), money("0.11"), money("0.06")));
    let first = tally.block.first.unwrap_or_else(|| panic!("there is one"));
    assert_eq!((first.at, first.reason), (time("2026-01-12T11:00:00Z"), Reason::EstimateExceedsBudget));
    assert_eq!(first.binding, Some(Binding { scope: Scope::User, period: Period::Daily, source: Source::Tier }));
    assert_eq!(simulation.total(), tally);
    let tiers = simulation.tiers();
    assert_eq!(tiers.iter().map(|tier| (tier.tier, tier.users, tier.warned, tier.blocked)).collect::<Vec<_>>(), [("free", 1, 1, 1)]);
}

#[test]
fn a_degraded_call_costs_what_the_cheaper_model_costs_where_its_tokens_are_known() {
    let catalogue = catalogue(TIERS);
    let tokens = |call: Recorded| Recorded { tokens: Some(Tokens { input: 10_000, output: 10_000, parts: Parts::NONE }), ..call };
    let calls = [
        call("u", "0.09", "2026-01-12T10:00:00Z"),
        // (10 000 × 2.5 + 10 000 × 10) / 10⁶ there, (10 000 × 0.15 + 10 000 × 0.6) / 10⁶ here.
        tokens(call("u", "0.125", "2026-01-12T11:00:00Z")),
        call("u", "0.005", "2026-01-12T12:00:00Z"),
        // Nothing is cheaper than what is itself the cheaper one.
        Recorded { model: Some("mini".to_owned()), ..call("u", "0.01", "2026-01-12T13:00:00Z") },
    ];
    let tally = of(&run(&catalogue, &in_tier("soft"), &calls), "u").tally;
    assert_eq!((tally.warn.calls, tally.degrade.calls, tally.block.calls), (1, 3, 0));
    assert_eq!((tally.saved_by_degrading, tally.degraded_at_unknown_cost), (money("0.1175"), 1));
    assert_eq!((tally.spent, tally.would_have_spent), (money("0.23"), money("0.1125")));
}

#[test]
fn users_of_one_account_fill_its_budget_together_and_whoever_stands_alone_fills_his_own() {
    let catalogue = catalogue(TIERS);
    let account = AccountId::parse("acme").unwrap_or_else(|error| panic!("{error}"));
    let shared = |call: Recorded| Recorded { account: Some(account.clone()), ..call };
    let calls = [
        shared(call("u", "0.06", "2026-01-12T10:00:00Z")),
        shared(call("v", "0.06", "2026-01-12T11:00:00Z")),
        call("w", "0.06", "2026-01-12T12:00:00Z"),
        shared(call("u", "0.04", "2026-01-12T13:00:00Z")),
    ];
    let simulation = run(&catalogue, &in_tier("team"), &calls);
    let blocked = |name: &str| of(&simulation, name).tally.block.calls;
    assert_eq!(["u", "v", "w"].map(blocked), [0, 1, 0]);
    assert_eq!(of(&simulation, "v").tally.block.first.and_then(|first| first.binding).map(|binding| binding.scope), Some(Scope::Account));
}

#[test]
fn a_budget_of_all_together_is_judged_where_everybody_comes() {
    let catalogue = catalogue(&format!("{TIERS}global: {{ budgets: {{ daily: 0.1 }}, policy: strict }}\n"));
    let calls = [call("u", "0.06", "2026-01-12T10:00:00Z"), call("v", "0.06", "2026-01-12T11:00:00Z")];
    let simulation = run(&catalogue, &Profile::default(), &calls);
    assert_eq!((of(&simulation, "u").worst, of(&simulation, "v").worst), (Action::Allow, Action::Block));
    let mut alone = Simulation::new(&catalogue, None, time("2026-02-01T00:00:00Z"));
    for call in &calls {
        alone.meet(call.user.clone(), &Profile::default(), Counters::default());
        alone.run(call);
    }
    assert_eq!(of(&alone, "v").worst, Action::Allow);
}

#[test]
fn a_correction_gives_room_again_and_is_no_call() {
    let catalogue = catalogue(TIERS);
    let correction = Recorded { kind: EntryKind::Correction, ..call("u", "0.05", "2026-01-12T11:00:00Z") };
    let calls = [call("u", "0.1", "2026-01-12T10:00:00Z"), correction, call("u", "0.05", "2026-01-12T12:00:00Z")];
    let tally = of(&run(&catalogue, &Profile::default(), &calls), "u").tally;
    assert_eq!((tally.calls, tally.block.calls, tally.corrected), (2, 0, money("0.05")));
}

#[test]
fn what_was_spent_before_the_beginning_is_in_the_windows_that_were_open() {
    let catalogue = catalogue(TIERS);
    let mut before = Counters::default();
    let window = Period::Daily.window(time("2026-01-12T00:00:00Z"), None);
    before.begin(Period::Daily, window, money("0.08"));
    let mut simulation = Simulation::new(&catalogue, None, time("2026-02-01T00:00:00Z"));
    simulation.meet(user("u"), &Profile::default(), before);
    simulation.run(&call("u", "0.03", "2026-01-12T10:00:00Z"));
    simulation.run(&call("u", "0.03", "2026-01-13T10:00:00Z"));
    let tally = of(&simulation, "u").tally;
    assert_eq!((tally.block.calls, tally.allow.calls), (1, 1));
}

#[test]
fn a_model_that_costs_nothing_is_never_blocked_and_a_tier_that_is_gone_is_told() {
    let catalogue = catalogue(TIERS);
    let free = Recorded { model: Some("local".to_owned()), ..call("u", "0", "2026-01-12T11:00:00Z") };
    let nothing = call("u", "0", "2026-01-12T12:00:00Z");
    let simulation = run(&catalogue, &in_tier("gone"), &[call("u", "0.1", "2026-01-12T10:00:00Z"), free, nothing]);
    let told = of(&simulation, "u");
    assert_eq!((told.tier, told.tally.allow.calls, told.tally.block.calls), ("free", 1, 1));
    assert_eq!(simulation.unknown_tiers(), &BTreeMap::from([("gone".to_owned(), 1)]));
}

proptest! {
    /// Whatever the calls, a budget that blocks is never passed, and what would have been spent is what was less what was not.
    #[test]
    fn no_day_of_a_strict_tier_passes_its_limit(calls in proptest::collection::vec((0_i64..60_000_000, 0_i64..20_000), 0..60)) {
        let catalogue = catalogue(TIERS);
        let mut at = time("2026-01-12T00:00:00Z");
        let mut days: BTreeMap<chrono::NaiveDate, Money> = BTreeMap::new();
        let mut simulation = Simulation::new(&catalogue, None, at);
        simulation.meet(user("u"), &Profile::default(), Counters::default());
        let mut would = Money::ZERO;
        for (nanos, seconds) in calls {
            at += chrono::TimeDelta::seconds(seconds);
            let cost = Money::from_nanos(nanos).unwrap_or_default();
            simulation.run(&Recorded { cost, time: at, ..call("u", "0", "2026-01-12T00:00:00Z") });
            let after = of(&simulation, "u").tally.would_have_spent;
            let day = days.entry(at.date_naive()).or_default();
            *day = day.saturating_add(after.less(i128::from(would.nanos())));
            would = after;
        }
        prop_assert!(days.values().all(|spent| *spent <= money("0.1")), "{:?}", days);
        let tally = of(&simulation, "u").tally;
        prop_assert_eq!(tally.spent.less(i128::from(tally.block.cost.nanos())), tally.would_have_spent);
        prop_assert_eq!(tally.calls, tally.allow.calls + tally.warn.calls + tally.degrade.calls + tally.block.calls);
    }
}
