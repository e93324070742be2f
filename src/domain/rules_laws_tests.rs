//! No text and no metadata makes rules panic.

use proptest::prelude::*;

use super::*;

const GOOD: [&str; 9] = [
    "tier.name == \"free\" && estimate > 0.05",
    "now.getHours() < 6 && 'agent' in metadata",
    "has(metadata.a) && metadata.a.exists(x, x == 'b' || x.startsWith('c'))",
    "budgets.exists(p, budgets[p].used_pct > 95.0) ? estimate * 2.0 > 1 : tier.rank in [1, 2]",
    "metadata.all(k, metadata[k] != metadata.a)",
    "int(metadata.a) / int(metadata.b) > 1 || metadata.a < metadata.b",
    "size(metadata.a.filter(x, x in metadata.b)) > 2 && string(metadata.c) == '1'",
    "now - timestamp(metadata.a) > duration('1h') || bool(metadata.b) || metadata.a.b[0]['c'] == null",
    "metadata.a[metadata.b] == metadata.c || double(metadata.a) > 1e308 && metadata.a.contains(metadata.b)",
];

fn json_values() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        "[a-c0-9:TZ.-]{0,12}".prop_map(Json::from),
        "\\PC{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_reading_panic(text in "\\PC{0,60}") {
        prop_assert_ne!(When::compile(&text).err().unwrap_or_default(), PANICKED);
    }

    #[test]
    fn no_spoiled_expression_makes_the_reading_or_judging_panic(
        good in proptest::sample::select(GOOD.to_vec()),
        spoils in proptest::collection::vec(
            (any::<proptest::sample::Index>(), "[()\\[\\]{}?:!.,+*/%&|<>='\"a-z0-9 -]{0,3}", 0_usize..4), 0..4),
    ) {
        let mut chars: Vec<char> = good.chars().collect();
        for (at, put, take) in spoils {
            let at = at.index(chars.len() + 1);
            let end = (at + take).min(chars.len());
            chars.splice(at..end, put.chars());
        }
        let text: String = chars.into_iter().collect();
        match When::compile(&text) {
            Err(why) => prop_assert_ne!(why, PANICKED),
            Ok(when) => {
                let rules = Rules::new(vec![Rule::new("one".to_owned(), when, Action::Warn, None)]).unwrap_or_default();
                let _ = rules.judge(&Request::with(json!({ "a": ["b", 1], "b": "c" })).facts());
            }
        }
    }

    #[test]
    fn no_metadata_makes_the_judging_panic(map in proptest::collection::btree_map("[a-d]", json_values(), 0..5)) {
        static CONDITIONS: LazyLock<Vec<Rules>> = LazyLock::new(|| GOOD.iter().map(|when| rules(&[("one", when, Action::Warn)])).collect());
        let request = Request::with(Json::Object(map.into_iter().collect()));
        for rules in CONDITIONS.iter() {
            let verdict = rules.judge(&request.facts());
            prop_assert!(verdict.is_none_or(|verdict| verdict.failed == (verdict.action == Action::Block)));
        }
    }

    #[test]
    fn an_amount_is_the_double_nearest_to_it(nanos in 0..=i64::MAX) {
        let money = Money::from_nanos(nanos).unwrap_or_default();
        prop_assert_eq!(Some(money.dollars()), money.decimal().parse().ok());
    }
}
