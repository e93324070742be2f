//! What is judged without the interpreter is what the interpreter says.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value as Json, json};

use super::super::facts::Facts;
use super::super::tests::Request;
use super::super::when::{When, checked};
use super::*;

const TEXTS: [&str; 5] = ["user.id", "user.account", "tier.name", "model", "provider"];
const NUMBERS: [&str; 12] = [
    "tier.rank",
    "input_tokens",
    "output_tokens",
    "estimate",
    "budgets.daily.used_pct",
    "budgets.daily.remaining",
    "budgets.monthly.spent",
    "budgets.weekly.limit",
    "global.daily.held",
    "now.getHours()",
    "now.getMinutes()",
    "now.getDayOfWeek()",
];
const CONSTANTS: [&str; 12] =
    ["0", "1", "3", "30", "1200", "9223372036854775807", "0.1", "0.05", "1.0", "3.0", "1e308", "9223372036854775807.0"];
const STRINGS: [&str; 8] = ["''", "'u_42'", "'gpt-4o'", "'gpt'", "'4o'", "'free'", "'acme'", "'ü'"];
const COMPARISONS: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
/// Of other forms, among them some that are no truth, and some that cannot be judged.
const OTHERS: [&str; 9] = [
    "metadata.a",
    "metadata.a == 'x'",
    "metadata.missing == 'x'",
    "metadata.b > 1",
    "size(model) > 3",
    "1 / (input_tokens - 1200) > 0",
    "metadata.exists(k, k == 'a')",
    "(metadata.c ? true : false)",
    "1 < tier.rank",
];

fn leaf() -> impl Strategy<Value = String> {
    let text = (select(&TEXTS[..]), select(&STRINGS[..]));
    prop_oneof![
        (select(&NUMBERS[..]), select(&COMPARISONS[..]), select(&CONSTANTS[..])).prop_map(|(n, is, c)| format!("{n} {is} {c}")),
        (text.clone(), select(&["==", "!="][..])).prop_map(|((t, s), is)| format!("{t} {is} {s}")),
        (text, select(&["startsWith", "endsWith", "contains"][..])).prop_map(|((t, s), of)| format!("{t}.{of}({s})")),
        (select(&TEXTS[..]), proptest::collection::vec(select(&STRINGS[..]), 0..4)).prop_map(|(t, l)| format!("{t} in [{}]", l.join(", "))),
        (select(&["'a'", "'b'", "'missing'", "'daily'", "'total'"][..]), select(&["metadata", "budgets", "global"][..]))
            .prop_map(|(key, of)| format!("{key} in {of}")),
        select(&["a", "b", "missing"][..]).prop_map(|field| format!("has(metadata.{field})")),
        select(&OTHERS[..]).prop_map(ToOwned::to_owned),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    leaf().prop_recursive(3, 12, 2, |part| {
        prop_oneof![
            (part.clone(), part.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (part.clone(), part.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            part.prop_map(|a| format!("!({a})")),
        ]
    })
}

fn metadata() -> impl Strategy<Value = Map<String, Json>> {
    let value = select(vec![json!("x"), json!(true), json!(false), json!(2), json!(null), json!({"x": 1}), json!("y".repeat(5000))]);
    proptest::collection::btree_map("[a-c]", value, 0..4).prop_map(|map| map.into_iter().collect())
}

fn judged(test: &Test, facts: &Facts<'_>) -> Result<bool, Failure> {
    let lookup = Lookup::new(facts);
    test.judge(&Interpreter::new(&lookup))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_is_judged_at_once_is_what_the_interpreter_says(
        text in condition(),
        metadata in metadata(),
        model in select(vec![None, Some("gpt-4o"), Some("o1")]),
        year in select(vec![2026, 9999, 10_000]),
    ) {
        let mut request = Request::with(Json::Object(metadata));
        request.model = model;
        request.now = request.now.with_year(year).unwrap_or(request.now);
        // Some have kinds that do not go together, and are refused when they are read.
        if let Ok((expression, _)) = checked(&text) {
            let (test, whole) = (Test::of(&expression), Test::Interpreted(expression));
            prop_assert_eq!(judged(&test, &request.facts()), judged(&whole, &request.facts()), "{} as {:?}", text, test);
        }
    }
}

#[test]
fn the_common_forms_need_no_interpreter() {
    let common = [
        "estimate > 1",
        "tier.name == 'pro' && estimate > 0.05",
        "now.getHours() > 22 || now.getDayOfWeek() == 0",
        "'daily' in budgets && budgets.daily.used_pct > 95.0",
        "model.startsWith('o1') && tier.name != 'enterprise'",
        "!(has(metadata.feature) && input_tokens >= 100000)",
        "user.account in ['acme', 'globex']",
    ];
    fn is_interpreted(test: &Test) -> bool {
        match test {
            Test::And(parts) | Test::Or(parts) => parts.iter().any(is_interpreted),
            Test::Not(part) => is_interpreted(part),
            Test::Interpreted(_) => true,
            Test::Text(..) | Test::Number(..) | Test::HasBudget(..) | Test::HasField(_) => false,
        }
    }
    for text in common {
        let when = When::compile(text).unwrap_or_else(|why| panic!("{text} {why}"));
        assert!(!is_interpreted(when.test()), "{text}: {:?}", when.test());
    }
}
