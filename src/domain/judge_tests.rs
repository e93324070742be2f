use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::domain::catalogue::Percent;
use crate::domain::decide::{Scope, Source};
use crate::domain::period::Period;
use crate::domain::{prices_file, tiers_file};

const PRICES: &str = "models:\n  big: { input: 10, output: 30 }\n  mid: { input: 1, output: 3, aliases: [mid-*] }\n  \
    small: { input: 0.1, output: 0.3 }\n  free: { input: 0, output: 0 }\n  twist: { input: 20, output: 0.1 }\n";

fn catalogue(tier: &str) -> Catalogue {
    let prices = prices_file::read(PRICES).unwrap_or_else(|problems| panic!("{problems:?}"));
    let text = format!("default_tier: t\ntiers:\n  t: {{ rank: 0, budgets: {{ daily: 1 }}, policy: graceful, {tier} }}\n");
    tiers_file::read(&text, prices).unwrap_or_else(|problems| panic!("{problems:?}"))
}

static USER: LazyLock<UserId> = LazyLock::new(|| UserId::parse("u").unwrap_or_else(|error| panic!("{error}")));

fn caller(catalogue: &Catalogue) -> Caller<'_> {
    Caller { user: &USER, account: None, tier: catalogue.default_tier() }
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_768_219_200, 0).unwrap_or_default()
}

fn money(dollars: &str) -> Money {
    Money::parse(dollars).unwrap_or_else(|error| panic!("{error}"))
}

fn budgets(catalogue: &Catalogue, spent: &str) -> Vec<Budget> {
    let (limits, window) = (&catalogue.default_tier().budgets, Period::Daily.window(now(), None));
    let limit = money("1");
    vec![Budget {
        scope: Scope::User,
        period: Period::Daily,
        source: Source::Tier,
        limit,
        granted: Money::ZERO,
        fresh_limit: limit,
        spent: money(spent),
        held: Money::ZERO,
        window,
        thresholds: limits.thresholds,
    }]
}

fn call(model: &str, input: i64, output: i64) -> Ask {
    Ask { model: Some(model.to_owned()), tokens: Some(Tokens { input, output, ..Tokens::default() }), ..Ask::default() }
}

/// Action, reason, model and estimate of a call by a user of a tier who has spent so much of a dollar.
fn judged(tier: &str, spent: &str, call: &Ask) -> (Action, Reason, String, String) {
    let catalogue = catalogue(tier);
    let judged = judge(&catalogue, caller(&catalogue), &budgets(&catalogue, spent), call, now());
    (judged.decision.action, judged.decision.reason, judged.model.unwrap_or_default(), judged.estimate.decimal())
}

#[track_caller]
fn check(tier: &str, spent: &str, call: &Ask, expected: (Action, Reason, &str, &str)) {
    let (action, reason, model, estimate) = expected;
    assert_eq!(judged(tier, spent, call), (action, reason, model.to_owned(), estimate.to_owned()), "{tier} {spent} {call:?}");
}

const STEPS: &str = "degrade_to: { big: mid, mid: small, default: small }";

#[test]
fn tokens_are_judged_by_what_they_cost() {
    check(STEPS, "0", &call("big", 1000, 1000), (Action::Allow, Reason::WithinBudget, "big", "0.04"));
    check(STEPS, "0.97", &call("big", 1000, 1000), (Action::Block, Reason::EstimateExceedsBudget, "big", "0.04"));
    check(
        "degrade_to: { default: small }, markup_pct: 25",
        "0",
        &call("big", 1000, 1000),
        (Action::Allow, Reason::WithinBudget, "big", "0.05"),
    );
    // What the caller reckons himself counts.
    let own = Ask { cost: Some(money("0.5")), ..call("big", 1000, 1000) };
    check(STEPS, "0.2", &own, (Action::Allow, Reason::WithinBudget, "big", "0.5"));
}

#[test]
fn degrade_names_the_first_cheaper_model_and_what_it_costs() {
    check(STEPS, "0.9", &call("big", 1000, 1000), (Action::Degrade, Reason::DegradeThreshold, "mid", "0.004"));
    check(STEPS, "0.9", &call("mid-2", 1000, 1000), (Action::Degrade, Reason::DegradeThreshold, "small", "0.0004"));
    check(STEPS, "0.9", &call("small", 1000, 1000), (Action::Degrade, Reason::DegradeThreshold, "small", "0.0004"));
    // By their tokens one is cheaper for one call, and dearer for another.
    let twist = "degrade_to: { mid: twist, default: small }";
    check(twist, "0.9", &call("mid", 10, 10_000), (Action::Degrade, Reason::DegradeThreshold, "twist", "0.0012"));
    check(twist, "0.9", &call("mid", 1000, 10), (Action::Degrade, Reason::DegradeThreshold, "small", "0.000103"));
}

#[test]
fn a_model_that_the_tier_does_not_include_is_replaced_or_blocked() {
    let replaced = "models: { deny: [big] }, degrade_to: { default: small }";
    check(replaced, "0", &call("big", 1000, 1000), (Action::Degrade, Reason::ModelNotInTier, "small", "0.0004"));
    check(replaced, "1", &call("big", 1000, 1000), (Action::Block, Reason::ModelNotInTier, "big", "0.04"));
    check(replaced, "0", &call("mid", 1000, 1000), (Action::Allow, Reason::WithinBudget, "mid", "0.004"));
    let strict = "policy: strict, models: { allow: [small, mid*] }".replace("policy: strict, ", "thresholds: { degrade: null }, ");
    check(&strict, "0", &call("big", 1, 1), (Action::Block, Reason::ModelNotInTier, "big", "0.00004"));
    check(&strict, "0", &call("mid-7", 1000, 1000), (Action::Allow, Reason::WithinBudget, "mid-7", "0.004"));
}

#[test]
fn a_model_without_a_price_never_costs_nothing_in_silence() {
    check(STEPS, "0", &call("new", 1000, 1000), (Action::Block, Reason::UnknownModel, "new", "0"));
    let as_big = "degrade_to: { default: small }, unknown_model: { price_as: big }";
    check(as_big, "0", &call("new", 1000, 1000), (Action::Allow, Reason::WithinBudget, "new", "0.04"));
    let (catalogue, ask) = (catalogue("degrade_to: { default: small }, unknown_model: flag"), call("new", 1000, 1000));
    let flagged = judge(&catalogue, caller(&catalogue), &budgets(&catalogue, "0"), &ask, now());
    assert_eq!((flagged.decision.action, flagged.is_unpriced), (Action::Allow, true));
    // Whoever says what it costs needs no price.
    let own = Ask { cost: Some(money("0.5")), ..call("new", 1000, 1000) };
    check(STEPS, "0", &own, (Action::Allow, Reason::WithinBudget, "new", "0.5"));
}

#[test]
fn a_degrade_target_fits_what_is_left_also_where_what_was_asked_for_has_no_price() {
    // Nothing is known of `new`, so it counts nothing; `small` would need more than is left.
    let flags = "degrade_to: { default: small }, unknown_model: flag";
    check(flags, "0.95", &call("new", 1000, 1_000_000), (Action::Degrade, Reason::DegradeThreshold, "new", "0"));
    check(flags, "0.95", &call("new", 1000, 1000), (Action::Degrade, Reason::DegradeThreshold, "small", "0.0004"));
    // `new` costs what `mid` does, so `twist` is no cheaper for a call with much input.
    let as_mid = "degrade_to: { default: twist }, unknown_model: { price_as: mid }";
    check(as_mid, "0.95", &call("new", 1000, 10), (Action::Degrade, Reason::DegradeThreshold, "new", "0.00103"));
    // A free fallback is there however full the budget is.
    let free = "models: { deny: [big] }, degrade_to: { default: free }";
    check(free, "1", &call("big", 1000, 1000), (Action::Degrade, Reason::ModelNotInTier, "free", "0"));
}

#[test]
fn a_model_that_costs_nothing_is_never_in_the_way_of_a_budget() {
    check(STEPS, "2", &call("free", 1000, 1000), (Action::Allow, Reason::FreeModel, "free", "0"));
    check(STEPS, "2", &Ask { model: Some("free".to_owned()), ..Ask::default() }, (Action::Allow, Reason::FreeModel, "free", "0"));
    check(STEPS, "2", &call("small", 1000, 1000), (Action::Block, Reason::BudgetExhausted, "small", "0.0004"));
}

#[test]
fn what_can_be_afforded_is_told_for_the_model_that_is_named() {
    let (catalogue, most) = (catalogue(STEPS), |spent: &str, ask: &Ask, catalogue: &Catalogue| {
        judge(catalogue, caller(catalogue), &budgets(catalogue, spent), ask, now()).max_affordable_output_tokens
    });
    // $0.05 is left; 1000 tokens into `mid` take $0.001 of it, and each that comes out $0.000003.
    assert_eq!(most("0.95", &call("big", 1000, 1000), &catalogue), Some(16_333));
    assert_eq!(most("0.95", &call("big", 1000, 100_000), &catalogue), Some(1333));
    assert_eq!(most("0", &call("big", 1000, 1000), &catalogue), None);
}

proptest! {
    #[test]
    fn a_degrade_target_is_never_dearer_and_is_allowed(
        spent in 900_i64..1000, input in 0_i64..3000, output in 0_i64..3000, by_model in "(big|mid|small|twist|free)",
        from in "(big|mid|small|twist)", default in "(small|mid|twist|free)", asked in "(big|mid|small|twist|free)", denied in "(none|big|mid|twist)",
    ) {
        let prices = prices_file::read(PRICES).unwrap_or_else(|problems| panic!("{problems:?}"));
        let text = format!(
            "default_tier: t\ntiers:\n  t: {{ rank: 0, budgets: {{ daily: 1 }}, policy: graceful, models: {{ deny: [{denied}] }}, \
             degrade_to: {{ {from}: {by_model}, default: {default} }} }}\n"
        );
        // What makes no sense is refused at the start.
        if let Ok(catalogue) = tiers_file::read(&text, prices) {
            let ask = call(&asked, input, output);
            let spent = Money::from_nanos(spent * 1_000_000).unwrap_or_default().decimal();
            let judged = judge(&catalogue, caller(&catalogue), &budgets(&catalogue, &spent), &ask, now());
            if judged.decision.action == Action::Degrade {
                let cost = |model: &str| {
                    let price = catalogue.prices.price(model, None, now());
                    price.map(|price| price.cost(&Tokens { input, output, ..Tokens::default() }, Percent(0)))
                };
                let target = judged.model.unwrap_or_default();
                prop_assert!(cost(&target) <= cost(&asked), "{} for {}", target, asked);
                prop_assert!(target != denied);
                prop_assert_eq!(Some(judged.estimate), cost(&target));
                prop_assert!(judged.estimate <= most(&budgets(&catalogue, &spent)).unwrap_or_default());
            }
        }
    }
}
