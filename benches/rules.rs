//! What the operator's own rules cost on top of a decision, and the worst that the bounds let through.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;

use chrono::{DateTime, Utc};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Map, Value, json};
use spendgate::domain::catalogue::Policy;
use spendgate::domain::decide::{Action, Budget, Scope, decide};
use spendgate::domain::money::Money;
use spendgate::domain::period::Period;
use spendgate::domain::rules::{Facts, Rule, Rules, When};
use spendgate::domain::tiers_file;
use spendgate::domain::user::UserId;

const ORDINARY: [&str; 10] = [
    "tier.name == 'free' && estimate > 0.05",
    "now.getHours() < 6 && 'agent' in metadata",
    "'daily' in budgets && budgets.daily.used_pct > 95.0",
    "estimate > 1",
    "model == 'gpt-4o' && tier.rank < 10",
    "model.startsWith('o1') && tier.name != 'enterprise'",
    "input_tokens > 100000",
    "user.id == 'u_13'",
    "has(metadata.feature) && metadata.feature == 'batch' && now.getDayOfWeek() == 0",
    "user.account in ['acme', 'globex', 'initech'] && estimate > 0.5",
];

/// Each fills the bound on steps alone, or as often as it fits; each goes through its whole range.
const WORST: [(&str, &str, usize); 11] = [
    ("each looked for in a list", "metadata.l.all(x, !(x in metadata.m))", 1),
    ("each compared with a list", "metadata.l.all(x, x != metadata.l)", 1),
    ("a list looked for in a list", "!(metadata.l in metadata.m)", 1),
    ("two long lists compared, each time", "metadata.l.all(x, metadata.m != metadata.k)", 1),
    ("a long text searched, each time", "metadata.l.all(x, !metadata.t.contains(metadata.u))", 3),
    ("a long text made a number, each time", "metadata.l.all(x, double(metadata.n) > 0.0)", 3),
    ("a short look at each", "metadata.l.all(x, estimate >= 0.0)", 14),
    ("denied twelve times", "metadata.l.all(x, !(!(!(!(!(!(!(!(!(!(!(!(x == 7)))))))))))))", 3),
    ("a field that is not there", "metadata.l.all(x, x.a == 1 || true)", 12),
    ("a long list compared with a number", "metadata.l.all(x, 3 < metadata.l || true)", 1),
    ("a number sought by a long list", "metadata.l.all(x, metadata.l in metadata || true)", 1),
];

fn rules(list: &[(String, &str)]) -> Rules {
    let rule = |(name, when): &(String, &str)| Rule::new(name.clone(), When::compile(when).unwrap(), Action::Warn, None);
    Rules::new(list.iter().map(rule).collect()).unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn benches(criterion: &mut Criterion) {
    let now: DateTime<Utc> = "2026-01-12T12:00:00Z".parse().unwrap();
    let budget = |period: Period| Budget {
        scope: Scope::User,
        period,
        limit: Money::parse("20").unwrap(),
        spent: Money::parse("7.5").unwrap(),
        held: Money::ZERO,
        window: period.window(now, None),
        thresholds: Policy::Soft.thresholds(),
    };
    let budgets = [Period::Daily, Period::Weekly, Period::Monthly].map(budget);
    let estimate = Money::parse("0.03").unwrap();
    let catalogue = tiers_file::read(include_str!("../tiers.yaml")).unwrap();
    let user = UserId::parse("u_42").unwrap();
    let little = object(json!({ "feature": "chat", "session": "s_1234", "retries": 0 }));
    let facts = Facts {
        user: &user,
        account: None,
        tier: catalogue.tier("pro").unwrap(),
        model: Some("gpt-4o"),
        provider: None,
        estimate,
        input_tokens: 1_200,
        output_tokens: 300,
        budgets: &budgets,
        metadata: None,
        now,
    };
    let mut check = |name: &str, rules: &Rules, metadata: &Map<String, Value>| {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let decision = decide(black_box(&budgets), black_box(estimate));
                let verdict = rules.judge(&Facts { metadata: Some(black_box(metadata)), ..facts });
                assert!(verdict.is_none_or(|verdict| !verdict.failed));
                decision
            });
        });
    };
    let named = |list: &[&'static str]| list.iter().enumerate().map(|(index, when)| (format!("r{index}"), *when)).collect::<Vec<_>>();
    check("rules/none", &Rules::default(), &little);
    check("rules/ten", &rules(&named(&ORDINARY)), &little);

    let (half, text) = (60, 1_900);
    let list = |last: u64| (0..half).map(|item| if item + 1 == half { last } else { 7 }).collect::<Vec<_>>();
    let number = format!("0.{}", "1".repeat(text));
    let compared = object(json!({ "l": vec![8; half], "m": list(2) }));
    let other = [vec![7; 39], vec![6]].concat();
    let twins = object(json!({ "l": vec![8; 40], "m": vec![7; 40], "k": other }));
    let ranged = object(json!({ "l": vec![7; 120], "t": "ab".repeat(text / 2), "u": "b".repeat(100) }));
    let converted = object(json!({ "l": vec![7; 120], "n": number }));
    for (name, when, times) in WORST {
        let list = rules(&named(&vec![when; times]));
        let metadata = match name {
            "two long lists compared, each time" => &twins,
            "each looked for in a list" | "a list looked for in a list" => &compared,
            "a long text made a number, each time" => &converted,
            _ => &ranged,
        };
        check(&format!("rules/worst: {name} ({} steps)", list.steps()), &list, metadata);
    }
}

criterion_group!(group, benches);
criterion_main!(group);
