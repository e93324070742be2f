//! What differs between two catalogues, by the keys of the files that describe them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::alerts::Marks;
use super::catalogue::{Budgets, Catalogue, Percent, SoldAs, Thresholds, Tier};
use super::decide::Scope;
use super::glob::Glob;
use super::models::UnknownModel;
use super::money::Money;
use super::pricing::{Model, Rates};

/// One thing that another catalogue says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// As it is written in the files: `tiers.pro.budgets.daily`.
    pub what: String,
    /// `None`: it was not there.
    pub before: Option<String>,
    /// `None`: it is gone.
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{}: {before} -> {after}", self.what),
            (None, Some(after)) => write!(f, "{}: new, {after}", self.what),
            (Some(before), None) => write!(f, "{}: gone, was {before}", self.what),
            (None, None) => write!(f, "{}", self.what),
        }
    }
}

/// Values by key. What is absent says nothing.
type Said = BTreeMap<String, String>;

/// What `after` says otherwise than `before`: what holds for all, then the tiers in the order of their names, then the models.
pub fn differences(before: &Catalogue, after: &Catalogue) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut found, "", &of_all(before), &of_all(after));
    let named = |tiers: &'_ [Tier]| tiers.iter().map(|tier| (tier.name.clone(), of_tier(tier))).collect::<BTreeMap<_, _>>();
    each(&mut found, "tiers", &named(before.tiers()), &named(after.tiers()));
    each(&mut found, "models", &of_models(before), &of_models(after));
    found
}

/// Compares things that have names; one that only one side has is told in one line.
fn each(found: &mut Vec<Difference>, kind: &str, before: &BTreeMap<String, Said>, after: &BTreeMap<String, Said>) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => compare(found, &format!("{kind}.{name}."), before, after),
            (before, after) => {
                found.push(Difference { what: format!("{kind}.{name}"), before: before.map(summary), after: after.map(summary) });
            }
        }
    }
}

fn compare(found: &mut Vec<Difference>, prefix: &str, before: &Said, after: &Said) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let (before, after) = (before.get(key), after.get(key));
        if before != after {
            found.push(Difference { what: format!("{prefix}{key}"), before: before.cloned(), after: after.cloned() });
        }
    }
}

fn summary(said: &Said) -> String {
    said.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join("; ")
}

fn of_all(catalogue: &Catalogue) -> Said {
    let mut said = Said::new();
    let mut say = |key: &str, value: String| drop(said.insert(key.to_owned(), value));
    say("default_tier", catalogue.default_tier().name.clone());
    say("upgrade_url", catalogue.upgrade_url.as_str().to_owned());
    say("pause_collection", catalogue.paused_collection.name().to_owned());
    if let Some(url) = &catalogue.contact_url {
        say("contact_url", url.clone());
    }
    if let Some(day) = catalogue.prices.as_of {
        say("as_of", day.to_string());
    }
    if let Some(budgets) = &catalogue.global {
        said.extend(of_budgets(budgets).into_iter().map(|(key, value)| (format!("global.{key}"), value)));
    }
    said
}

fn of_budgets(budgets: &Budgets) -> Said {
    // Named one by one, so that what is added to them is told as well.
    let Budgets { scope, per_seat, limits, thresholds, alerts } = budgets;
    let mut said: Said = limits.iter().map(|(period, limit)| (format!("budgets.{}", period.name()), limit.to_string())).collect();
    let Thresholds { warn, degrade, block } = thresholds;
    for (key, percent) in [("warn", warn), ("degrade", degrade), ("block", block)] {
        said.extend(percent.map(|percent| (format!("thresholds.{key}"), format!("{percent} %"))));
    }
    // What is told where a file says nothing is said by none.
    if *alerts != Marks::default() {
        said.insert("alerts".to_owned(), alerts.to_string());
    }
    match scope {
        Scope::User => drop(said.insert("scope".to_owned(), "user".to_owned())),
        Scope::Account => drop(said.insert("scope".to_owned(), "account".to_owned())),
        Scope::Global => {}
    }
    if *per_seat {
        said.insert("per_seat".to_owned(), "true".to_owned());
    }
    said
}

fn of_tier(tier: &Tier) -> Said {
    let Tier { name: _, rank, monthly_price, budgets, on_store_down, grace_days, fallbacks, models, unknown_model, markup, sold_as, rules } =
        tier;
    let mut said = of_budgets(budgets);
    said.extend(fallbacks.by_model.iter().map(|(model, cheaper)| (format!("degrade_to.{model}"), cheaper.clone())));
    said.extend(fallbacks.default.iter().map(|model| ("degrade_to.default".to_owned(), model.clone())));
    let mut say = |key: &str, value: String| drop(said.insert(key.to_owned(), value));
    say("rank", rank.to_string());
    say("monthly_price", monthly_price.to_string());
    say("on_store_down", on_store_down.name().to_owned());
    say("grace_days", grace_days.to_string());
    if let Some(allow) = &models.allow {
        say("models.allow", globs(allow));
    }
    if !models.deny.is_empty() {
        say("models.deny", globs(&models.deny));
    }
    match unknown_model {
        UnknownModel::Refuse => say("unknown_model", "refuse".to_owned()),
        UnknownModel::PriceAs(model) => say("unknown_model", format!("price_as {model}")),
        UnknownModel::Flag => say("unknown_model", "flag".to_owned()),
    }
    if *markup != Percent(0) {
        say("markup_pct", format!("{markup} %"));
    }
    for rule in rules.iter() {
        let (action, when, message) = (rule.action().name(), rule.when(), rule.message());
        say(&format!("rules.{}", rule.name()), format!("{action} when {when}: {message}"));
    }
    let SoldAs { prices, lookup_keys, products } = sold_as;
    for (key, names) in [("prices", prices), ("lookup_keys", lookup_keys), ("products", products)] {
        if !names.is_empty() {
            say(key, list(names.iter().map(String::as_str)));
        }
    }
    said
}

fn globs(globs: &[Glob]) -> String {
    list(globs.iter().map(Glob::as_str))
}

/// In an order of its own: that of the file says nothing.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

fn of_models(catalogue: &Catalogue) -> BTreeMap<String, Said> {
    let mut models: BTreeMap<String, Said> = catalogue.prices.models().iter().map(|model| (model.name.clone(), of_prices(model))).collect();
    let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, model) in catalogue.prices.names() {
        if name != model.name {
            names.entry(&model.name).or_default().insert(name);
        }
    }
    for (model, names) in names {
        if let Some(said) = models.get_mut(model) {
            said.insert("aliases".to_owned(), list(names.into_iter()));
        }
    }
    models
}

fn of_prices(model: &Model) -> Said {
    let Model { name: _, provider, prices } = model;
    let mut said: Said = provider.iter().map(|provider| ("provider".to_owned(), provider.clone())).collect();
    for prices in prices {
        let from = prices.valid_from.map(|from| format!(" from {}", from.date_naive())).unwrap_or_default();
        said.insert(format!("prices{from}"), rates(&prices.base));
        for (more_than, above) in &prices.above {
            said.insert(format!("prices{from} above {more_than} tokens"), rates(above));
        }
    }
    said
}

/// Without those that are as their base.
fn rates(rates: &Rates) -> String {
    let Rates { input, cached_input, cache_write, audio_input, output, reasoning, audio_output, image, request } = *rates;
    let given = [
        ("cached_input", cached_input, input),
        ("cache_write", cache_write, input),
        ("audio_input", audio_input, input),
        ("reasoning", reasoning, output),
        ("audio_output", audio_output, output),
        ("image", image, Money::ZERO),
        ("request", request, Money::ZERO),
    ];
    let others = given.iter().filter(|(_, own, base)| own != base).map(|(key, own, _)| format!(", {key} {own}"));
    format!("input {input}, output {output}{}", others.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{prices_file, tiers_file};

    const PRICES: &str = "models: { a: { input: 1, output: 2 }, b: { input: 1, output: 2, aliases: [b-*] } }";
    const TIERS: &str = "
default_tier: free
tiers:
  free: { rank: 0, budgets: { daily: 0.10 }, policy: strict }
  pro: { rank: 10, budgets: { daily: 1, weekly: 5 }, policy: soft, degrade_to: { default: a }, prices: [p1, p2] }
";

    fn told(tiers: &str, prices: &str) -> Vec<String> {
        let read = |tiers: &str, prices: &str| {
            let prices = prices_file::read(prices).unwrap_or_else(|problems| panic!("{problems:?}"));
            tiers_file::read(tiers, prices).unwrap_or_else(|problems| panic!("{problems:?}"))
        };
        differences(&read(TIERS, PRICES), &read(tiers, prices)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_only_written_otherwise_is_no_difference() {
        let written =
            TIERS.replace("[p1, p2]", "[p2, p1]").replace("0.10", "0.1").replace("default_tier: free\n", "# x\ndefault_tier: 'free'\n");
        assert_eq!(told(&written, PRICES), Vec::<String>::new());
        let prices = "models: { b: { output: 2, input: 1.0, aliases: [b-*] }, a: { input: 1, output: 2, cached_input: 1 } }";
        assert_eq!(told(TIERS, prices), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_a_file_says_otherwise_is_told_by_its_key() {
        let check = |from: &str, to: &str, expected: &[&str]| {
            assert!(TIERS.contains(from) || PRICES.contains(from), "{from}");
            assert_eq!(told(&TIERS.replace(from, to), &PRICES.replace(from, to)), expected, "{from} -> {to}");
        };
        check("daily: 1,", "daily: 2.50,", &["tiers.pro.budgets.daily: $1.00 -> $2.50"]);
        check(", weekly: 5", "", &["tiers.pro.budgets.weekly: gone, was $5.00"]);
        check(", weekly: 5", ", weekly: 5, total: 9", &["tiers.pro.budgets.total: new, $9.00"]);
        check("policy: soft", "policy: soft, thresholds: { block: 120 }", &["tiers.pro.thresholds.block: new, 120 %"]);
        check("policy: soft", "policy: soft, thresholds: { warn: 82.5 }", &["tiers.pro.thresholds.warn: 90 % -> 82.5 %"]);
        check("rank: 10", "rank: 11", &["tiers.pro.rank: 10 -> 11"]);
        check("rank: 10", "rank: 10, monthly_price: 29", &["tiers.pro.monthly_price: $0.00 -> $29.00"]);
        check("policy: soft", "policy: soft, alerts: [75, block]", &["tiers.pro.alerts: new, block, 75"]);
        check("policy: soft", "policy: soft, alerts: none", &["tiers.pro.alerts: new, none"]);
        check("rank: 10", "rank: 10, scope: account", &["tiers.pro.scope: user -> account"]);
        check("rank: 10", "rank: 10, per_seat: true", &["tiers.pro.per_seat: new, true"]);
        check("rank: 10", "rank: 10, on_store_down: allow", &["tiers.pro.on_store_down: block -> allow"]);
        check("rank: 10", "rank: 10, grace_days: 0", &["tiers.pro.grace_days: 7 -> 0"]);
        check(
            "rank: 10",
            "rank: 10, models: { allow: [a*], deny: [b] }",
            &["tiers.pro.models.allow: new, a*", "tiers.pro.models.deny: new, b"],
        );
        check("rank: 10", "rank: 10, unknown_model: flag", &["tiers.pro.unknown_model: refuse -> flag"]);
        check("rank: 10", "rank: 10, unknown_model: { price_as: b }", &["tiers.pro.unknown_model: refuse -> price_as b"]);
        check("rank: 10", "rank: 10, markup_pct: 20", &["tiers.pro.markup_pct: new, 20 %"]);
        check("default: a", "default: a, b: a", &["tiers.pro.degrade_to.b: new, a"]);
        check("default: a", "default: b", &["tiers.pro.degrade_to.default: a -> b"]);
        check("[p1, p2]", "[p2]", &["tiers.pro.prices: p1, p2 -> p2"]);
        check("[p1, p2]", "[p1, p2], lookup_keys: [k], products: [x]", &["tiers.pro.lookup_keys: new, k", "tiers.pro.products: new, x"]);
        check("default_tier: free", "default_tier: pro", &["default_tier: free -> pro"]);
        check("default_tier: free", "default_tier: free\nupgrade_url: /upgrade", &["upgrade_url: /upgrade?from={tier} -> /upgrade"]);
        check("default_tier: free", "default_tier: free\ncontact_url: mailto:a@b", &["contact_url: new, mailto:a@b"]);
        check("default_tier: free", "default_tier: free\npause_collection: suspend", &["pause_collection: keep -> suspend"]);
        let global = "default_tier: free\nglobal: { budgets: { daily: 5 }, policy: strict }";
        let added = ["global.budgets.daily: new, $5.00", "global.thresholds.block: new, 100 %", "global.thresholds.warn: new, 80 %"];
        check("default_tier: free", global, &added);
        check("a: { input: 1", "a: { input: 3", &["models.a.prices: input $1.00, output $2.00 -> input $3.00, output $2.00"]);
        check("b-*", "b-2*", &["models.b.aliases: b-* -> b-2*"]);
        check("models: {", "as_of: 2026-01-01\nmodels: {", &["as_of: new, 2026-01-01"]);
        check(", b: { input", ", c: { input: 0 }, b: { input", &["models.c: new, prices input $0.00, output $0.00"]);
    }

    #[test]
    fn a_tier_that_comes_or_goes_is_one_difference() {
        let with = format!("{TIERS}  max: {{ rank: 20, budgets: {{ total: 7 }}, policy: monitor }}\n");
        let summary = "budgets.total $7.00; grace_days 7; monthly_price $0.00; on_store_down block; rank 20; scope user; thresholds.warn 90 %; unknown_model refuse";
        assert_eq!(told(&with, PRICES), [format!("tiers.max: new, {summary}")]);
        let without: String = TIERS.lines().filter(|line| !line.contains("pro:")).map(|line| format!("{line}\n")).collect();
        let told = told(&without, PRICES);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("tiers.pro: gone, was "), "{told:?}");
    }
}
