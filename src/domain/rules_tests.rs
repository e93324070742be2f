use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value as Json, json};

use super::when::PANICKED;
use super::*;
use crate::domain::catalogue::{Catalogue, Percent, Thresholds};
use crate::domain::decide::{Budget, Scope, Source};
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::pricing::PriceBook;
use crate::domain::tiers_file;
use crate::domain::user::{AccountId, UserId};

const TIERS: &str = "default_tier: free\ntiers:\n  free: { rank: 3, budgets: { daily: 1 }, policy: strict }\n";

/// A request that tests change a little.
pub(super) struct Request {
    pub(super) user: UserId,
    pub(super) account: Option<AccountId>,
    pub(super) catalogue: Catalogue,
    pub(super) model: Option<&'static str>,
    pub(super) estimate: Money,
    pub(super) budgets: Vec<Budget>,
    pub(super) metadata: Map<String, Json>,
    pub(super) now: DateTime<Utc>,
}

impl Request {
    fn new() -> Self {
        let now = "2026-01-07T03:30:00Z".parse().unwrap_or_default();
        let budget = |scope: Scope, period: Period, limit: &str, spent: &str| Budget {
            scope,
            period,
            source: if scope == Scope::Global { Source::Global } else { Source::Tier },
            limit: money(limit),
            granted: Money::ZERO,
            fresh_limit: money(limit),
            spent: money(spent),
            held: money("0.05"),
            window: period.window(now, None),
            thresholds: Thresholds { warn: Some(Percent::whole(80)), degrade: None, block: Some(Percent::whole(100)) },
        };
        Self {
            user: UserId::parse("u_42").unwrap_or_else(|error| panic!("{error}")),
            account: None,
            catalogue: tiers_file::read(TIERS, PriceBook::default()).unwrap_or_else(|problems| panic!("{problems:?}")),
            model: Some("gpt-4o"),
            estimate: money("0.1"),
            budgets: vec![
                budget(Scope::User, Period::Daily, "1", "0.9"),
                budget(Scope::User, Period::Monthly, "20", "1"),
                budget(Scope::Account, Period::Daily, "0.98", "0.9"),
                budget(Scope::Global, Period::Daily, "500", "499.95"),
            ],
            metadata: Map::new(),
            now,
        }
    }

    pub(super) fn with(metadata: Json) -> Self {
        let Json::Object(metadata) = metadata else { panic!("an object") };
        Self { metadata, ..Self::new() }
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            user: &self.user,
            account: self.account.as_ref(),
            tier: self.catalogue.default_tier(),
            model: self.model,
            provider: None,
            estimate: self.estimate,
            input_tokens: 1_200,
            output_tokens: 0,
            budgets: &self.budgets,
            metadata: Some(&self.metadata),
            now: self.now,
        }
    }
}

fn money(text: &str) -> Money {
    Money::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn rule(name: &str, when: &str, action: Action) -> Rule {
    let when = When::compile(when).unwrap_or_else(|why| panic!("{when}: {why}"));
    Rule::new(name.to_owned(), when, action, None)
}

fn rules(list: &[(&str, &str, Action)]) -> Rules {
    let list = list.iter().map(|(name, when, action)| rule(name, when, *action)).collect();
    Rules::new(list).unwrap_or_else(|why| panic!("{why}"))
}

/// `Some(true)` where the condition holds, `None` where it cannot be judged.
fn holds(when: &str, request: &Request) -> Option<bool> {
    match rules(&[("one", when, Action::Warn)]).judge(&request.facts()) {
        None => Some(false),
        Some(verdict) if verdict.failed => None,
        Some(_) => Some(true),
    }
}

fn refused(when: &str) -> String {
    When::compile(when).err().unwrap_or_else(|| panic!("{when} is let through"))
}

#[test]
fn every_name_says_what_the_request_is() {
    let request = Request::new();
    for when in [
        "user.id == 'u_42'",
        "user.account == ''",
        "tier.name == 'free' && tier.rank == 3",
        "model == 'gpt-4o' && model.startsWith('gpt-') && model.endsWith('4o') && model.contains('-')",
        "provider == '' && size(model) == 6 && model.size() == 6",
        "input_tokens == 1200 && output_tokens == 0",
        "now.getHours() == 3 && now.getMinutes() == 30 && now.getDayOfWeek() == 3 && now.getFullYear() == 2026",
        "now.getHours('Europe/Berlin') == 4 && now.getHours('-05:00') == 22",
        "now > timestamp('2026-01-01T00:00:00Z') && now - timestamp('2026-01-01T00:00:00Z') > duration('24h')",
        "budgets.monthly.limit == 20 && budgets.monthly.spent == 1 && budgets.monthly.held == 0.05",
        "budgets.monthly.remaining == 18.95 && budgets.monthly.used_pct == 5.2",
        "budgets['monthly'].limit == 20.0",
        "global.daily.limit == 500 && global.daily.remaining == 0.0 && global.daily.used_pct == 100.0",
        "'daily' in budgets && !('weekly' in budgets) && 'daily' in global && !('monthly' in global)",
        "has(budgets.daily) && !has(budgets.total) && has(budgets.monthly.limit)",
        "budgets.exists(period, budgets[period].used_pct > 95.0) && !budgets.all(period, budgets[period].used_pct > 95.0)",
        "size(metadata) == 0 && !has(metadata.agent) && !('agent' in metadata)",
        "estimate < 1 ? true : false",
        "user.id in ['u_1', 'u_42'] && tier.rank in [1, 2, 3]",
    ] {
        assert_eq!(holds(when, &request), Some(true), "{when}");
    }
    let account = AccountId::parse("acme").ok();
    assert_eq!(holds("user.account == 'acme'", &Request { account, ..Request::new() }), Some(true));
    let unnamed = Request { model: None, ..Request::new() };
    assert_eq!(holds("model == ''", &unnamed), Some(true));
}

#[test]
fn where_several_budgets_have_a_period_the_one_with_the_least_left_is_seen() {
    assert_eq!(holds("budgets.daily.limit == 0.98 && budgets.daily.remaining == 0.03", &Request::new()), Some(true));
}

#[test]
fn dollars_compare_with_whole_numbers_and_decimals_as_they_are_written() {
    for (estimate, when, expected) in [
        ("1.000000001", "estimate > 1", true),
        ("1", "estimate > 1", false),
        ("1", "estimate == 1 && estimate >= 1 && 1 <= estimate && 1 == estimate", true),
        ("0.1", "estimate == 0.1", true),
        ("0.3", "estimate == 0.3", true),
        ("0.05", "estimate > 0.05", false),
        ("0.050000001", "estimate > 0.05", true),
        ("0.25", "estimate * 2.0 == 0.5 && estimate + estimate == 0.5 && -estimate < 0", true),
        ("3", "tier.rank < 3.5 && estimate == tier.rank", true),
    ] {
        let request = Request { estimate: money(estimate), ..Request::new() };
        assert_eq!(holds(when, &request), Some(expected), "{estimate}: {when}");
    }
    let nano = Money::from_nanos(9_007_199_254_740_993).unwrap_or_default();
    assert_eq!(nano.dollars().to_string(), "9007199.254740993");
}

#[test]
fn metadata_is_what_was_sent() {
    let request = Request::with(json!({
        "agent": "night-crawler", "retries": 3, "score": 0.5, "dry": false, "none": null, "tools": ["browser", "shell"],
        "deep": { "er": [1, 2, { "x": "y" }] }, "odd key": 1,
    }));
    for (when, expected) in [
        ("metadata.agent == 'night-crawler'", Some(true)),
        ("'agent' in metadata && has(metadata.agent)", Some(true)),
        ("metadata.agent.startsWith('night')", Some(true)),
        ("metadata.retries > 2 && metadata.retries < 3.5", Some(true)),
        ("int(metadata.retries) * 2 == 6 && double(metadata.score) + 0.5 == 1.0", Some(true)),
        ("metadata.dry", Some(false)),
        ("!metadata.dry && metadata.none == null", Some(true)),
        ("metadata['odd key'] == 1", Some(true)),
        ("metadata.deep.er[2].x == 'y'", Some(true)),
        ("metadata.tools.exists(t, t == 'shell')", Some(true)),
        ("'shell' in metadata.tools", Some(true)),
        ("metadata.tools.all(t, t in ['browser', 'shell', 'mail'])", Some(true)),
        ("metadata.tools.exists_one(t, t == 'shell')", Some(true)),
        ("size(metadata.tools.filter(t, t != 'shell')) == 1", Some(true)),
        ("metadata.exists(key, key.startsWith('ret'))", Some(true)),
        // CEL's own answer for what cannot be alike: false, without a word.
        ("metadata.retries == '3'", Some(false)),
        // What cannot be judged.
        ("metadata.missing == 1", None),
        ("metadata.agent > 1", None),
        ("metadata.agent", None),
        ("int(metadata.agent) > 1", None),
        ("metadata.agent.startsWith(metadata.retries)", None),
        ("metadata.tools[5] == 'x'", None),
        ("tier.rank % int('0') == 1", None),
        ("tier.rank / (int(metadata.retries) - 3) == 1", None),
        ("9223372036854775807 + tier.rank > 0", None),
        ("budgets.weekly.spent > 1", None),
        ("metadata.retries.exists(t, t == 1)", None),
        // What is not needed is not asked, and an error beside what decides says nothing: CEL's own rule.
        ("false && metadata.missing == 1", Some(false)),
        ("metadata.missing == 1 && false", Some(false)),
        ("metadata.missing == 1 || true", Some(true)),
        ("has(metadata.missing) && metadata.missing == 1", Some(false)),
    ] {
        assert_eq!(holds(when, &request), expected, "{when}");
    }
}

#[test]
fn a_rule_that_cannot_be_judged_blocks_and_tells_nothing_of_the_request() {
    let cases = [
        ("metadata.secret_key == 1", "what it asks for is not there; guard it with has(…) or `in`"),
        ("metadata[metadata.token] == 1", "what it asks for is not there; guard it with has(…) or `in`"),
        ("metadata.token > 1", "a value is not of the kind that it works with"),
        ("int(metadata.token) > 1", "a value cannot be converted"),
        ("1 / (tier.rank - 3) == 1", "a number is divided by zero"),
        ("-9223372036854775807 - tier.rank < 0", "a number or a time is out of range"),
        ("metadata.token", "it is neither true nor false"),
    ];
    for (when, why) in cases {
        let list = rules(&[("fragile", when, Action::Warn)]);
        let request = Request::with(json!({ "token": "sk-secret" }));
        let verdict = list.judge(&request.facts()).unwrap_or_else(|| panic!("{when}"));
        assert_eq!((verdict.action, verdict.rule, verdict.failed), (Action::Block, "fragile", true), "{when}");
        assert_eq!(verdict.message, format!("The rule `fragile` could not be judged: {why}."), "{when}");
    }
}

#[test]
fn the_most_severe_rule_that_applies_speaks_and_the_first_among_equals() {
    let request = Request::new();
    let check = |list: &[(&str, &str, Action)], expected: Option<(Action, &str, bool)>| {
        let list = rules(list);
        let verdict = list.judge(&request.facts());
        assert_eq!(verdict.map(|verdict| (verdict.action, verdict.rule, verdict.failed)), expected);
    };
    let (yes, no, broken) = ("estimate > 0.05", "estimate > 5", "metadata.x == 1");
    check(&[], None);
    check(&[("a", no, Action::Block)], None);
    check(&[("a", yes, Action::Warn), ("b", yes, Action::Degrade), ("c", no, Action::Block)], Some((Action::Degrade, "b", false)));
    check(&[("a", yes, Action::Degrade), ("b", yes, Action::Degrade)], Some((Action::Degrade, "a", false)));
    check(&[("a", yes, Action::Block), ("b", broken, Action::Warn)], Some((Action::Block, "a", false)));
    check(&[("a", broken, Action::Warn), ("b", yes, Action::Block)], Some((Action::Block, "a", true)));
    check(&[("a", yes, Action::Degrade), ("b", broken, Action::Warn)], Some((Action::Block, "b", true)));
}

#[test]
fn a_rule_says_its_message_or_its_name() {
    let when = || When::compile("true").unwrap_or_else(|why| panic!("{why}"));
    let said = |message: Option<&str>| {
        let rule = Rule::new("no_agents".to_owned(), when(), Action::Warn, message.map(str::to_owned));
        let rules = Rules::new(vec![rule]).unwrap_or_default();
        let verdict = rules.judge(&Request::new().facts()).map(|verdict| verdict.message.into_owned());
        verdict.unwrap_or_default()
    };
    assert_eq!(said(Some("Agents sleep at night.")), "Agents sleep at night.");
    assert_eq!(said(None), "The rule `no_agents` applies.");
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would_be_right() {
    for (when, told) in [
        ("", "is empty"),
        ("estimate >", "is not CEL:"),
        ("estimate > 0.05 &&& true", "is not CEL:"),
        ("\"abc", "is not CEL:"),
        ("estimte > 1", "`estimte` is not known; did you mean `estimate`?"),
        (".estimate > 1", "`.estimate` is not known"),
        ("tier == 'free'", "`tier` is no value by itself; use tier.name or tier.rank"),
        ("tier.nmae == 'free'", "`tier.nmae` is not known; did you mean `tier.name`?"),
        ("has(user.account)", "`user.account` needs no has(…)"),
        ("user.id.length > 1", "a text has no `length`"),
        ("budgets.dayly.spent > 1", "`dayly` is not a period; did you mean `daily`?"),
        ("'dayly' in budgets && budgets.daily.spent > 1.0", "`dayly` is not a period; did you mean `daily`?"),
        ("'montly' in global", "`montly` is not a period; did you mean `monthly`?"),
        ("global['montly'].used_pct > 90.0", "`montly` is not a period; did you mean `monthly`?"),
        ("budgets.daily.used > 1", "a budget has no `used`"),
        ("budgets == 1", "`==` never finds all budgets and a whole number (int) alike"),
        ("estimate", "is a number (double); a condition must be true or false"),
        ("model == 3", "`==` never finds a text and a whole number (int) alike"),
        ("estimate == '0.05'", "never finds a number (double) and a text alike"),
        ("model > 3", "`>` does not compare a text with a whole number (int)"),
        ("estimate * 2 > 1", "does not mix int and double in CEL; write 2.0 for 2"),
        ("metadata.n + 1 > 2", "write int(…) or double(…) around it"),
        ("model + 'x' == 'y'", "does not join texts or lists"),
        ("estimate && true", "`&&` joins conditions, not a number (double)"),
        ("!model", "`!` denies conditions, not a text"),
        ("model.matches('^(a+)+$')", "regular expressions are not used in rules"),
        ("matches(model, 'x')", "regular expressions are not used in rules"),
        ("model.startWith('x')", "`startWith` is not a function of rules; did you mean `startsWith`?"),
        ("sizeof(model) > 1", "`sizeof` is not a function of rules"),
        ("dyn(model) == 'x'", "`dyn` is not a function of rules"),
        ("now.getHours('Europe/Atlantis') == 1", "unknown time zone"),
        ("now > timestamp('yesterday')", "timestamp"),
        ("now - now > duration(metadata.d)", "`duration` does not convert"),
        ("[1, 2].map(x, x * 2) == [2, 4]", "`map` is not used in rules"),
        ("metadata.a.exists(x, metadata.b.exists(y, x == y))", "cannot stand within another"),
        ("metadata.a.exists(model, model == 'x')", "`model` is the name of something else"),
        ("estimate in [0.1, estimate]", "only constants are written in lists"),
        ("{'a': 1}.a == 1", "maps and objects are not written in rules"),
        ("estimate > 1u", "write 1 for 1u"),
        ("model == b'x'", "bytes are not used in rules"),
        ("metadata.?x == 1", "is not CEL:"),
        ("estimate in budgets", "`in` does not look for a number (double) in all budgets"),
        ("model[0] == 'g'", "has no place that is named by"),
        ("estimate.exists(x, true)", "is nothing to go through"),
        ("type(estimate) == double", "`type` is not a function of rules"),
    ] {
        let why = refused(when);
        assert!(why.contains(told), "{when}: {why}");
    }
}

#[test]
fn a_fault_says_at_which_character_it_is() {
    let check = |when: &str, place: &str| assert!(refused(when).ends_with(place), "{when}: {}", refused(when));
    check("model == 'é' && estimte > 1", "(at character 17)");
    check("model == 'é' )", "(at character 14)");
    check("estimate > 1 &&\n  )", "(line 2 of the expression, character 3)");
}

#[test]
fn what_is_too_large_or_too_deep_is_refused_and_the_parser_stands_it() {
    let nested = |open: &str, inner: &str, close: &str, times: usize| format!("{}{inner}{}", open.repeat(times), close.repeat(times));
    for (when, told) in [
        (format!("model == '{}'", "x".repeat(EXPRESSION_BYTES_MAX)), "bytes; at most"),
        (nested("(", "true", ")", 33), "opening brackets; at most"),
        ("(".repeat(33), "opening brackets; at most"),
        (format!("model == '{}'", "(".repeat(33)), "opening brackets; at most"),
        (nested("[", "1", "]", 32), "lies deeper than"),
        (nested("{1:", "1", "}", 32), "maps and objects"),
        ("(".repeat(32), "is not CEL:"),
        ("[{(".repeat(10), "is not CEL:"),
        (format!("metadata{}", ".a".repeat(500)), "lies deeper than"),
        (format!("1{} > 0", "+1".repeat(500)), "lies deeper than"),
        (format!("true{}", "&&true".repeat(168)), "parts; make several rules"),
        (format!("{}true", "true?true:".repeat(30)), "lies deeper than"),
        (format!("{}true", "true?true:".repeat(100)), "lies too deep in itself"),
        (format!("{}true", "!".repeat(1001)), ""),
        (format!("{}1 == 1", "-".repeat(1000)), ""),
        (format!("{}true", "!-".repeat(500)), "is not CEL:"),
        (nested("a{a:", "1", "}", 32), ""),
        ("a.".repeat(512), "is not CEL:"),
        ("a\0b".to_owned(), "control character"),
    ] {
        let read = When::compile(&when);
        match read {
            Ok(_) => assert_eq!(told, "", "{when}"),
            Err(why) => assert!(why.contains(told) && why != PANICKED, "{when}: {why}"),
        }
    }
    // The deepest that is let through is judged on the stack of whoever asks.
    let deep = nested("(", "estimate > 1 || model == metadata.a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s", ")", 31);
    assert_eq!(holds(&deep, &Request::new()), None);
}

/// The dearest conditions that come through, and how many names of the request each asks for in one round of its loop.
const DEAREST: [(&str, u64); 9] = [
    ("metadata.l.all(x, x != metadata.l)", 1),
    ("metadata.l.all(x, !(x in metadata.m))", 1),
    ("metadata.l.all(x, x != metadata.m && estimate >= 0.0)", 3),
    ("metadata.l.all(x, 3 < metadata.l || true)", 2),
    ("metadata.l.all(x, !user.id.contains(model) && !model.contains(user.id) && string(estimate) != user.id)", 4),
    ("size(metadata.l.filter(x, x == metadata.m || estimate >= 0.0)) >= 0", 2),
    ("metadata.l.all(x, metadata.m != metadata.l)", 4),
    ("metadata.l.exists_one(x, estimate > 1.0)", 1),
    ("metadata.l.filter(x, estimate >= 0.0).all(y, estimate >= 0.0)", 2),
];

fn worst_request() -> Request {
    let half = 63;
    Request::with(json!({ "l": vec![7; half], "m": vec![8; half] }))
}

#[test]
fn the_dearest_rules_ask_no_more_often_than_their_steps_say() {
    let request = worst_request();
    for (when, each_round) in DEAREST {
        let list = rules(&[("worst", when, Action::Warn)]);
        let facts = request.facts();
        let lookup = Lookup::new(&facts);
        let _ = list.judge_by(&lookup);
        let asked = lookup.asked.load(Ordering::Relaxed);
        // Every loop went through all of its range: what is counted is the work at worst, not a short cut.
        assert!(63 * each_round <= asked, "{when}: asked {asked} times only");
        assert!(asked <= list.steps(), "{when}: asked {asked} times, and {} steps", list.steps());
        assert!(METADATA_VALUES_MAX * each_round <= list.steps() && list.steps() <= STEPS_MAX, "{when}: {} steps", list.steps());
    }
}

#[test]
fn rules_are_bounded_in_number_and_in_work() {
    let cheap = |count: usize| (0..count).map(|number| rule(&format!("r{number}"), "estimate > 1", Action::Warn)).collect::<Vec<_>>();
    assert!(Rules::new(cheap(RULES_MAX)).is_ok());
    assert!(Rules::new(cheap(RULES_MAX + 1)).is_err_and(|why| why.contains("65 rules are judged for one check; at most 64")));
    let dear = |count: usize| (0..count).map(|number| rule(&format!("r{number}"), DEAREST[1].0, Action::Warn)).collect::<Vec<_>>();
    let one = Rules::new(dear(1)).map(|rules| rules.steps()).unwrap_or_default();
    assert!((METADATA_VALUES_MAX * METADATA_VALUES_MAX..=STEPS_MAX).contains(&one), "{one}");
    assert!(Rules::new(dear(2)).is_err_and(|why| why.contains("steps at worst; at most 20000") && why.contains("`r")));
    let (top, own) = (Rules::new(cheap(40)).unwrap_or_default(), Rules::new(cheap(40)).unwrap_or_default());
    assert!(top.followed_by(&own).is_err());
    assert!(top.followed_by(&Rules::default()).is_ok_and(|rules| rules == top));
}

#[test]
fn metadata_that_is_too_large_stops_only_rules_that_look_at_it() {
    let wide = json!({ "l": (0..128).collect::<Vec<_>>() });
    let long = json!({ "l": "x".repeat(METADATA_BYTES_MAX) });
    let deep = (0..20).fold(json!(1), |inner, _| json!([inner]));
    for metadata in [wide, long, json!({ "l": deep })] {
        let request = Request::with(metadata);
        assert_eq!(holds("estimate > 0.05", &request), Some(true));
        let list = rules(&[("looks", "has(metadata.l)", Action::Warn)]);
        let verdict = list.judge(&request.facts());
        let message = verdict.map(|verdict| verdict.message.into_owned()).unwrap_or_default();
        assert!(message.contains("the metadata has more than 128 values, or is too deep or too long"), "{message}");
    }
    let just = Request::with(json!({ "l": (0..127).collect::<Vec<_>>() }));
    assert_eq!(holds("size(metadata.l) == 127", &just), Some(true));
}

#[test]
fn a_check_asks_for_nothing_that_no_rule_names() {
    let list = rules(&[("a", "size(model) > 3 && string(estimate) == 'x'", Action::Warn)]);
    let request = Request::new();
    let facts = request.facts();
    let lookup = Lookup::new(&facts);
    assert_eq!(list.judge_by(&lookup), None);
    assert_eq!(lookup.asked.load(Ordering::Relaxed), 2);
}

#[test]
fn a_clock_beyond_all_calendars_makes_a_failure_and_no_panic() {
    for now in [DateTime::<Utc>::MAX_UTC, DateTime::<Utc>::MIN_UTC] {
        let request = Request { now, ..Request::new() };
        assert_eq!(holds("now.getDayOfYear() > 1", &request), None);
        assert_eq!(holds("now + duration('2540400h') > timestamp('2026-01-01T00:00:00Z')", &request), None);
    }
    let late = Request { now: "9999-12-31T23:59:59Z".parse().unwrap_or_default(), ..Request::new() };
    assert_eq!(holds("now + duration('2540400h') > timestamp('2026-01-01T00:00:00Z')", &late), None);
    assert_eq!(holds("now.getHours('+23:59') >= 0 && now.getDayOfYear('Pacific/Kiritimati') >= 0", &late), Some(true));
}

#[path = "rules_laws_tests.rs"]
mod laws;
