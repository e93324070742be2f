//! The JSON Schemas say what the reader says, as far as a schema can.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use marked_yaml::{LoaderOptions, Node, parse_yaml_with_options};
use serde_json::{Value, json};
use spendgate::domain::{prices_file, tiers_file};

use crate::app::{TIERS, prices};
use crate::cli::{folder, run};

/// Files that are refused for what no schema can see: names that refer to each other, digits that a float does not keep, and YAML itself.
const UNSEEN: [&str; 17] = [
    "anchor",
    "default_unknown",
    "degrade_in_a_circle",
    "float_trap",
    "key_twice",
    "not_a_mapping",
    "not_yaml",
    "price_claimed_twice",
    "rank_shared",
    "rule_degrades_without_model",
    "rule_name_twice",
    "rule_not_a_condition",
    "rule_not_cel",
    "rule_too_much_work",
    "rule_unknown_name",
    "second_document",
    "thresholds_descend",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(root().join(format!("schemas/{name}.schema.json"))).unwrap()).unwrap()
}

fn validator(name: &str) -> Validator {
    jsonschema::draft202012::new(&schema(name)).unwrap()
}

/// As an editor reads YAML. `None` where it is none.
fn read(text: &str) -> Option<Value> {
    let options = LoaderOptions::default().error_on_duplicate_keys(true);
    parse_yaml_with_options(0, text, options).ok().map(|node| value(&node))
}

fn value(node: &Node) -> Value {
    match node {
        Node::Mapping(mapping) => mapping.iter().map(|(key, node)| (key.as_str().to_owned(), value(node))).collect(),
        Node::Sequence(items) => items.iter().map(value).collect(),
        Node::Scalar(scalar) => {
            let text = || json!(scalar.as_str());
            let plain = scalar.may_coerce().then(|| serde_json::from_str(scalar.as_str()).ok()).flatten();
            plain.filter(|value: &Value| value.is_number() || value.is_boolean() || value.is_null()).unwrap_or_else(text)
        }
    }
}

#[track_caller]
fn passes(validator: &Validator, text: &str) {
    let value = read(text).unwrap();
    let faults: Vec<String> = validator.iter_errors(&value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:#?}\n{text:.200}");
}

#[test]
fn what_the_reader_takes_the_schema_takes() {
    let (tiers, books) = (validator("tiers"), validator("prices"));
    passes(&tiers, TIERS);
    passes(&books, &fs::read_to_string(root().join("prices.yaml")).unwrap());
    // What is only told in comments is taken too.
    let uncommented = TIERS
        .replace("# global:\n#   budgets", "global:\n  budgets")
        .replace("#   policy: strict", "  policy: strict")
        .replace("    # thresholds: {", "    thresholds: {")
        .replace("    # alerts: [", "    alerts: [")
        .replace("    # models: {", "    models: {")
        .replace("    # unknown_model: refuse", "    unknown_model: { price_as: gpt-4o }")
        .replace("    # markup_pct: 20", "    markup_pct: 20.5")
        .replace("    # on_store_down: block", "    on_store_down: allow")
        .replace("    # scope: user", "    scope: account")
        .replace("    # per_seat: false", "    per_seat: true");
    assert!(8 <= uncommented.lines().filter(|line| !TIERS.lines().any(|other| other == *line)).count());
    tiers_file::read(&uncommented, prices()).unwrap();
    passes(&tiers, &uncommented);
    for tier in [
        "{ rank: -1, budgets: {}, policy: monitor }",
        "{ rank: 0, budgets: { daily: '0.10', total: 1e-7 }, thresholds: { block: 82.25 } }",
        "{ rank: 0, budgets: {}, policy: soft, thresholds: { degrade: null }, alerts: none }",
        "{ rank: 0, budgets: {}, policy: monitor, alerts: [] }",
        "{ rank: 0, budgets: {}, policy: monitor, alerts: [1, warn, '82.25', 1000] }",
        "{ rank: 0, budgets: {}, policy: monitor, unknown_model: flag, degrade_to: { a: b }, models: { deny: [] } }",
    ] {
        let text = format!(
            "default_tier: t\nupgrade_url: https://x.example/{{tier}}?to={{to}}\ncontact_url: https://x.example\ntiers:\n  t: {tier}\n"
        );
        tiers_file::read(&text, prices()).unwrap_or_else(|problems| panic!("{problems:?}"));
        passes(&tiers, &text);
    }
    for model in [
        "{ input: 1, output: 2, above: [{ input_tokens: 200000, input: 2 }] }",
        "{ image: 0.04 }",
        "{ provider: openai, aliases: [b-*], prices: [{ valid_from: 2024-10-02, input: 2.50 }, { valid_from: 2025-01-01, request: 0 }] }",
    ] {
        let text = format!("as_of: 2026-01-01\nsources: [x]\nmodels:\n  a: {model}\n");
        prices_file::read(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        passes(&books, &text);
    }
}

#[test]
fn what_is_refused_for_its_structure_the_schema_refuses_too() {
    let tiers = validator("tiers");
    for entry in fs::read_dir(root().join("fixtures/tiers")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let seen = read(&fs::read_to_string(&path).unwrap()).is_some_and(|value| !tiers.is_valid(&value));
        assert_eq!(seen, !UNSEEN.contains(&name), "{name}");
    }
    let books = validator("prices");
    for model in [
        "{}",
        "{ provider: x }",
        "{ inptu: 1 }",
        "{ input: -1 }",
        "{ input: [1] }",
        "{ input: 1, prices: [{ valid_from: 2024-10-02, input: 1 }] }",
        "{ prices: [] }",
        "{ prices: [{ input: 1 }] }",
        "{ prices: [{ valid_from: yesterday, input: 1 }] }",
        "{ input: 1, above: [{ input: 2 }] }",
        "{ input: 1, above: [{ input_tokens: 0, input: 2 }] }",
        "{ input: 1, aliases: x }",
    ] {
        let text = format!("models:\n  a: {model}\n");
        assert!(prices_file::read(&text).is_err(), "{model}");
        assert!(!books.is_valid(&read(&text).unwrap()), "{model}");
    }
}

/// The keys that the reader names where it is given one that it does not know.
fn known(faults: Vec<String>) -> BTreeSet<String> {
    let told = faults.into_iter().find(|told| told.contains("`zzz`")).unwrap();
    let list = told.rsplit_once("use one of ").unwrap_or_else(|| panic!("{told}")).1.to_owned();
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_schemas_have_every_key_that_the_reader_knows_and_no_other() {
    let of_tiers = |text: &str| {
        let text = text.replace('~', "tiers: { t: { rank: 0, budgets: {}, policy: strict } }");
        let problems = tiers_file::read(&text, prices()).expect_err("it has an unknown key");
        known(problems.iter().map(ToString::to_string).collect())
    };
    let of_prices =
        |text: &str| known(prices_file::read(text).expect_err("it has an unknown key").iter().map(ToString::to_string).collect());
    let check = |schema: &Value, pointer: &str, reader: BTreeSet<String>| {
        let keys: BTreeSet<String> =
            schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, reader, "{pointer}");
    };
    let tiers = schema("tiers");
    check(&tiers, "/properties", of_tiers("default_tier: t\nzzz: 1\n~"));
    check(&tiers, "/properties/global/properties", of_tiers("default_tier: t\nglobal: { budgets: {}, policy: strict, zzz: 1 }\n~"));
    let tier = |fields: &str| of_tiers(&format!("default_tier: t\ntiers: {{ t: {{ rank: 0, {fields} }} }}"));
    check(&tiers, "/$defs/tier/properties", tier("budgets: {}, policy: strict, zzz: 1"));
    check(&tiers, "/$defs/tier/properties/budgets/properties", tier("budgets: { zzz: 1 }, policy: strict"));
    check(&tiers, "/$defs/thresholds/properties", tier("budgets: {}, policy: strict, thresholds: { zzz: 1 }"));
    check(&tiers, "/$defs/tier/properties/models/properties", tier("budgets: {}, policy: strict, models: { zzz: 1 }"));
    let priced = tier("budgets: {}, policy: strict, unknown_model: { price_as: gpt-4o, zzz: 1 }");
    check(&tiers, "/$defs/tier/properties/unknown_model/anyOf/1/properties", priced);
    let books = schema("prices");
    check(&books, "/properties", of_prices("zzz: 1\nmodels: {}"));
    check(&books, "/$defs/model/properties", of_prices("models: { a: { input: 1, zzz: 1 } }"));
    let dated = of_prices("models: { a: { prices: [{ valid_from: 2024-10-02, input: 1, zzz: 1 }] } }");
    check(&books, "/$defs/model/properties/prices/items/properties", dated);
    let above = of_prices("models: { a: { input: 1, above: [{ input_tokens: 1, zzz: 1 }] } }");
    check(&books, "/$defs/above/items/properties", above);
}

#[test]
fn the_command_prints_them_and_the_files_name_them() {
    let folder = folder();
    for name in ["tiers", "prices"] {
        let (code, out, err) = run(folder.path(), &["schema", name], &[]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), schema(name));
        let file = fs::read_to_string(root().join(format!("{name}.yaml"))).unwrap();
        let named = file.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=").unwrap();
        assert!(Path::new(&root().join(named)).exists(), "{named}");
    }
}
