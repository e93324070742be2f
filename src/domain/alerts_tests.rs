use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{Datelike, TimeDelta};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::book::{OpenHold, SpentByDay};
use crate::domain::caps::Caps;
use crate::domain::judge::Ask;
use crate::domain::ledger::day;
use crate::domain::operation::{Correction, HoldAsk, IfShort, Operation, Outcome, Refusal, Usage, Used};
use crate::domain::pricing::PriceBook;
use crate::domain::tiers_file;
use crate::domain::user::Profile;

fn user() -> UserId {
    UserId::parse("u").unwrap_or_else(|error| panic!("{error}"))
}

fn nanos(nanos: i64) -> Money {
    Money::from_nanos(nanos).unwrap_or_default()
}

/// A Monday, in the middle of the day and of the month.
fn noon() -> DateTime<Utc> {
    "2026-01-12T12:00:00Z".parse().unwrap_or_default()
}

fn catalogue(tier: &str, top: &str) -> Catalogue {
    let text = format!("default_tier: free\n{top}\ntiers:\n  free: {{ rank: 0, degrade_to: {{ default: m }}, {tier} }}\n");
    tiers_file::read(&text, PriceBook::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn empty_book(now: DateTime<Utc>) -> Book {
    Book::new(now, &SpentByDay::new(), Money::ZERO, [])
}

fn ledger(profile: Profile) -> Ledger {
    let account = profile.account.clone();
    let payer = Payer { profile: profile.shared(), exists: true, entries: 0, book: empty_book(noon()), grants: None };
    Ledger {
        booked: HashMap::new(),
        holds: HashMap::new(),
        payers: HashMap::from([(user(), payer)]),
        accounts: account.into_iter().map(|account| (account, empty_book(noon()))).collect(),
        all: empty_book(noon()),
        days: HashMap::new(),
        entries: Vec::new(),
        touched_holds: BTreeSet::new(),
        corrections: Vec::new(),
        draws: Vec::new(),
        alerts: Vec::new(),
    }
}

fn spend(id: &str, cost: i64, time: Option<DateTime<Utc>>) -> Operation {
    let used = Used { cost: Some(nanos(cost)), ..Used::default() };
    Operation::Record(vec![Usage { id: id.to_owned(), user_id: user(), time, used }])
}

fn hold(id: &str, cost: i64, ttl: TimeDelta) -> Operation {
    let call = Ask { cost: Some(nanos(cost)), ..Ask::default() };
    Operation::Hold(HoldAsk { id: id.to_owned(), user_id: user(), call, ttl, if_short: IfShort::Refuse })
}

fn correct(id: &str, amount: i64, time: DateTime<Utc>) -> Operation {
    let (id, reason, key_id) = (id.to_owned(), "a mistake".to_owned(), "key_1".to_owned());
    Operation::Correct(Correction { id, user_id: user(), amount: nanos(amount), time, model: None, reason, key_id })
}

/// What is told by one operation, by what it told of.
fn told(ledger: &mut Ledger, operation: &Operation, catalogue: &Catalogue, now: DateTime<Utc>) -> Vec<String> {
    ledger.step(operation, catalogue, now).unwrap_or_else(|error| panic!("{error}"));
    ledger.tell_of_all(catalogue, now);
    ledger.alerts.drain(..).map(|alert| alert.key).collect()
}

const DAY: &str = "2026-01-12T00:00:00Z";

#[test]
fn each_mark_is_told_when_it_is_reached_and_never_again() {
    let catalogue = catalogue("budgets: { daily: 0.0000001 }, policy: graceful, alerts: [warn, degrade, block, 50, 120]", "");
    let mut ledger = ledger(Profile::default());
    let key = |mark: &str| format!("user tier daily {DAY} {mark} u");
    let mut check = |id: &str, cost: i64, marks: &[&str]| {
        let expected: Vec<String> = marks.iter().map(|mark| key(mark)).collect();
        assert_eq!(told(&mut ledger, &spend(id, cost, None), &catalogue, noon()), expected, "{id}");
    };
    check("a", 49, &[]);
    check("b", 1, &["50"]);
    check("c", 30, &["warn"]);
    check("d", 5, &[]);
    check("e", 20, &["degrade", "block"]);
    check("e", 20, &[]);
    check("f", 100, &["120"]);
    check("g", 100, &[]);
}

#[test]
fn an_alert_says_to_people_and_programs_what_is_used_of_what() {
    let account = AccountId::parse("acme").ok();
    let catalogue = catalogue("budgets: { daily: 1 }, policy: strict", "global: { budgets: { total: 1 }, policy: strict }");
    let mut ledger = ledger(Profile { account, ..Profile::default() });
    told(&mut ledger, &hold("h", 100_000_000, TimeDelta::hours(1)), &catalogue, noon());
    let done = ledger.step(&spend("a", 725_500_000, None), &catalogue, noon());
    assert!(done.is_ok());
    ledger.tell_of_all(&catalogue, noon());
    let [alert, of_all] = &*ledger.alerts else { panic!("{:?}", ledger.alerts) };
    assert_eq!(alert.message, "u has used 82.5 % of the daily budget of $1.00 (tier free); it resets at 2026-01-13T00:00:00Z.");
    assert_eq!((&alert.user_id, alert.at), (&Some(user()), noon()));
    let read = |alert: &Alert| serde_json::from_str::<Value>(&alert.details).unwrap_or_default();
    let expected = json!({
        "user_id": "u", "account_id": "acme", "tier": "free", "scope": "user", "source": "tier", "period": "daily",
        "window": {"start": DAY, "end": "2026-01-13T00:00:00Z"}, "threshold": "warn", "percent": 80, "limit": 1,
        "spent": 0.7255, "held": 0.1, "used_pct": 82.5, "action": "WARN",
    });
    assert_eq!(read(alert), expected);
    assert_eq!(of_all.message, "All users together have used 82.5 % of the total budget of $1.00; it does not reset.");
    let of_all_details = read(of_all);
    assert_eq!(of_all_details["window"], json!({"start": null, "end": null}));
    assert_eq!((&of_all.user_id, &of_all_details["user_id"], &of_all_details["tier"]), (&None, &Value::Null, &Value::Null));
    assert_eq!(of_all.key, "all global total ever warn");
}

#[test]
fn what_lowers_spend_or_falls_into_a_closed_window_tells_nothing() {
    let milder = catalogue("budgets: { daily: 0.001 }, policy: strict", "");
    let catalogue = catalogue("budgets: { daily: 0.0000001, weekly: 0.01 }, policy: strict", "");
    let mut ledger = ledger(Profile::default());
    assert_eq!(told(&mut ledger, &spend("yesterday", 1_000_000, Some(noon() - TimeDelta::days(1))), &catalogue, noon()), [""; 0]);
    // The tier that holds when something is spent judges it, and not the one that holds when it is taken back.
    assert_eq!(told(&mut ledger, &hold("h", 90, TimeDelta::hours(1)), &milder, noon()), [""; 0]);
    assert_eq!(told(&mut ledger, &spend("a", 90, None), &milder, noon()), [""; 0]);
    let days = HashMap::from([((user(), day(noon()), String::new()), BTreeMap::from([(None, 90)]))]);
    ledger.days = days;
    assert_eq!(told(&mut ledger, &correct("c", 1, noon()), &catalogue, noon()), [""; 0]);
    assert_eq!(told(&mut ledger, &Operation::Release { hold_id: "h".to_owned() }, &catalogue, noon()), [""; 0]);
    assert_eq!(told(&mut ledger, &spend("b", 0, None), &catalogue, noon()), [format!("user tier daily {DAY} warn u")]);
}

#[test]
fn a_limit_of_nothing_tells_nothing_until_something_is_used() {
    let catalogue = catalogue("budgets: { daily: 0 }, policy: strict, alerts: [block]", "");
    let mut ledger = ledger(Profile::default());
    assert_eq!(told(&mut ledger, &spend("a", 0, None), &catalogue, noon()), [""; 0]);
    assert_eq!(told(&mut ledger, &spend("b", 1, None), &catalogue, noon()), [format!("user tier daily {DAY} block u")]);
}

#[test]
fn nothing_is_told_where_nothing_shall_be() {
    let catalogue = catalogue(
        "budgets: { daily: 0.0000001 }, policy: strict, alerts: none",
        "global: { budgets: { daily: 0 }, policy: strict, alerts: [] }",
    );
    assert_eq!(told(&mut ledger(Profile::default()), &spend("a", 1_000, None), &catalogue, noon()), [""; 0]);
}

#[test]
fn a_users_own_cap_is_told_when_it_stops_him_and_a_shared_budget_by_its_account() {
    let account = AccountId::parse("acme").ok();
    let caps = Caps::new(BTreeMap::from([(Period::Total, nanos(95))])).map(Box::new);
    let catalogue = catalogue("budgets: { daily: 0.0000001 }, scope: account, policy: strict", "");
    let mut ledger = ledger(Profile { account, caps, ..Profile::default() });
    let first = told(&mut ledger, &spend("a", 90, None), &catalogue, noon());
    assert_eq!(first, [format!("account tier daily {DAY} warn acme")]);
    ledger.step(&spend("b", 5, None), &catalogue, noon()).unwrap_or_else(|error| panic!("{error}"));
    let [alert] = &*ledger.alerts else { panic!("{:?}", ledger.alerts) };
    assert_eq!(alert.key, "user cap total ever block u");
    assert_eq!(alert.message, "u has used 100 % of the total cap of $0.000000095 of the user's own; it does not reset.");
}

#[test]
fn the_first_refusal_by_a_budget_is_told_and_what_nobody_used_or_knows_is_not() {
    let nothing = catalogue("budgets: { daily: 0 }, policy: strict", "");
    let silent = catalogue("budgets: { daily: 0.0000001 }, policy: strict, alerts: [warn]", "");
    let catalogue = catalogue("budgets: { daily: 0.0000001 }, policy: strict", "");
    let refused = |known: &mut Ledger, cost: i64| told(known, &hold("h", cost, TimeDelta::hours(1)), &catalogue, noon());
    let mut known = ledger(Profile::default());
    assert_eq!(refused(&mut known, 101), [format!("user tier daily {DAY} block u")]);
    assert_eq!(refused(&mut known, 102), [""; 0]);
    assert!(known.changes(noon()).is_empty());
    // What fills it afterwards is told by the marks that are left.
    assert_eq!(told(&mut known, &spend("a", 100, None), &catalogue, noon()), [format!("user tier daily {DAY} warn u")]);
    let mut unknown = ledger(Profile::default());
    unknown.payers.values_mut().for_each(|payer| payer.exists = false);
    assert_eq!(refused(&mut unknown, 101), [""; 0]);
    assert_eq!(told(&mut ledger(Profile::default()), &hold("h", 1, TimeDelta::hours(1)), &nothing, noon()), [""; 0]);
    assert_eq!(told(&mut ledger(Profile::default()), &hold("h", 101, TimeDelta::hours(1)), &silent, noon()), [""; 0]);
}

/// By what sorts of names could be mistaken for each other.
#[test]
fn no_two_budgets_share_a_key() {
    let window = Period::Daily.window(noon(), None);
    let names = ["a", "a b", "b", "warn b", "daily 2026-01-12T00:00:00Z warn b", "%20b", "account", ""];
    let mut keys = BTreeSet::new();
    let (mut count, sources) = (0, [Source::Cap, Source::Tier]);
    for name in names.iter().filter_map(|name| UserId::parse(name).ok()) {
        let Ok(account) = AccountId::parse(name.as_str()) else { continue };
        for (source, mark) in sources.iter().flat_map(|source| [Mark::Warn, Mark::At(Percent::whole(50))].map(|mark| (*source, mark))) {
            let told = Told { source, period: Period::Daily, window, mark };
            keys.insert(Holder::User(&name, None).key(&told));
            keys.insert(Holder::Account(&account).key(&told));
            count += 2;
        }
    }
    assert_eq!(keys.len(), count);
}

#[derive(Clone, Debug)]
enum Step {
    Spend { cost: i64, minutes_ago: Option<i64> },
    Hold { cost: i64, minutes: i64 },
    Capture { hold: usize, cost: i64 },
    Release { hold: usize },
    Correct { amount: i64 },
    Clock { minutes: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40_i64, proptest::option::of(0..3_000_i64)).prop_map(|(cost, minutes_ago)| Step::Spend { cost, minutes_ago }),
        3 => (1..40_i64, 1..2_000_i64).prop_map(|(cost, minutes)| Step::Hold { cost, minutes }),
        2 => (0..8_usize, 0..40_i64).prop_map(|(hold, cost)| Step::Capture { hold, cost }),
        1 => (0..8_usize).prop_map(|hold| Step::Release { hold }),
        1 => (1..40_i64).prop_map(|amount| Step::Correct { amount }),
        3 => (0..2_000_i64).prop_map(|minutes| Step::Clock { minutes }),
    ]
}

/// Everything by brute force: no counter, every sum over all rows.
#[derive(Default)]
struct Plain {
    rows: Vec<(i64, DateTime<Utc>)>,
    /// How much, until when, and whether it has ended.
    holds: Vec<(i64, DateTime<Utc>, bool)>,
}

/// The beginning of a key, the limit, and the marks in percent of it.
type Limited = (&'static str, i64, &'static [(&'static str, i64)]);

const DAILY: Limited = ("user tier daily", 50, &[("warn", 80), ("degrade", 90), ("block", 100), ("50", 50)]);
const MONTHLY: Limited = ("user tier monthly", 150, DAILY.2);
const CAP: Limited = ("user cap weekly", 90, &[("block", 100)]);
const OF_ALL: Limited = ("all global total", 300, &[("warn", 90), ("70", 70)]);

impl Plain {
    fn held(&self, now: DateTime<Utc>) -> i64 {
        self.holds.iter().filter(|(_, until, ended)| !ended && now < *until).map(|(cost, ..)| cost).sum()
    }

    fn spent(&self, from: i64, to: i64) -> i64 {
        self.rows.iter().filter(|(_, time)| from <= day(*time) && day(*time) < to).map(|(cost, _)| cost).sum()
    }

    /// All marks that are reached now.
    fn reached(&self, now: DateTime<Utc>) -> Vec<String> {
        let today = day(now);
        let week = today - i64::from(now.weekday().num_days_from_monday());
        let month = today - i64::from(now.day0());
        let next_month = month + i64::from(now.date_naive().num_days_in_month());
        let start = |day: i64| rfc3339(DateTime::from_timestamp(day * 86_400, 0).unwrap_or_default());
        let windows = [
            (DAILY, start(today), " u", self.spent(today, today + 1)),
            (MONTHLY, start(month), " u", self.spent(month, next_month)),
            (CAP, start(week), " u", self.spent(week, week + 7)),
            (OF_ALL, "ever".to_owned(), "", self.spent(i64::MIN, i64::MAX)),
        ];
        let of = |(limited, start, name, spent): &(Limited, String, &str, i64)| {
            let (begin, limit, marks) = limited;
            let used = (spent + self.held(now)) * 100;
            let reached = marks.iter().filter(|(_, percent)| 0 < used && limit * percent <= used);
            reached.map(|(mark, _)| format!("{begin} {start} {mark}{name}")).collect::<Vec<_>>()
        };
        windows.iter().flat_map(of).collect()
    }

    /// As the store gives it.
    fn book(&self, now: DateTime<Utc>) -> Book {
        let mut days = SpentByDay::new();
        for (cost, time) in &self.rows {
            let sum = days.entry(day(*time)).or_default();
            *sum = nanos(sum.nanos() + cost);
        }
        let open = self.holds.iter().enumerate().filter(|(_, (_, until, ended))| !ended && now < *until);
        let hold = |(number, (cost, until, _)): (usize, &(i64, DateTime<Utc>, bool))| OpenHold {
            id: format!("h{number}").into(),
            amount: nanos(*cost),
            expires_at: *until,
        };
        Book::new(now, &days, nanos(self.spent(i64::MIN, i64::MAX)), open.map(hold))
    }
}

/// The mark of the budget that the answer names, where it refused.
fn refusing(outcome: &Result<Outcome, Refusal>, now: DateTime<Utc>) -> Option<String> {
    let Ok(Outcome::NotHeld { judged }) = outcome else { panic!("{outcome:?}") };
    let binding = judged.judgement.decision.binding?;
    let budget = judged.budgets.iter().find(|budget| budget.binding() == binding)?;
    let begin = match binding.source {
        Source::Cap => "user cap",
        Source::Tier => "user tier",
        Source::Global => return None,
    };
    let start = rfc3339(binding.period.window(now, None).start);
    assert!(budget.window.contains(now));
    Some(format!("{begin} {} {start} block u", binding.period.name()))
}

/// Runs a story; gives every key that was told, as often as it was, and all marks that were ever reached. Where `forgets`, what was told
/// is forgotten whenever the clock moves, as after a restart.
fn run(steps: &[Step], forgets: bool) -> (Vec<String>, BTreeSet<String>) {
    let catalogue = catalogue(
        "budgets: { daily: 0.00000005, monthly: 0.00000015 }, policy: graceful, alerts: [warn, degrade, block, 50]",
        "global: { budgets: { total: 0.0000003 }, policy: monitor, alerts: [warn, block, 70] }",
    );
    let caps = Caps::new(BTreeMap::from([(Period::Weekly, nanos(90))])).map(Box::new);
    let mut ledger = ledger(Profile { caps, ..Profile::default() });
    let (mut plain, mut now, mut keys, mut expected) = (Plain::default(), noon(), Vec::new(), BTreeSet::new());
    for (number, step) in steps.iter().enumerate() {
        let id = format!("e{number}");
        let adds = match step {
            Step::Clock { minutes } => {
                now += TimeDelta::minutes(*minutes);
                let again = |old: &Book| {
                    let mut book = plain.book(now);
                    old.told().iter().filter(|_| !forgets).for_each(|told| book.tell(*told));
                    book.prune(now);
                    book
                };
                ledger.all = again(&ledger.all);
                ledger.payers.values_mut().for_each(|payer| payer.book = again(&payer.book));
                false
            }
            Step::Spend { cost, minutes_ago } => {
                let time = minutes_ago.map(|minutes| now - TimeDelta::minutes(minutes));
                let done = ledger.step(&spend(&id, *cost, time), &catalogue, now).is_ok();
                plain.rows.push((*cost, time.unwrap_or(now)));
                done
            }
            Step::Hold { cost, minutes } => {
                let (id, ttl) = (format!("h{}", plain.holds.len()), TimeDelta::minutes(*minutes));
                let outcome = ledger.step(&hold(&id, *cost, ttl), &catalogue, now);
                let is_held = matches!(outcome, Ok(Outcome::Held { .. }));
                if is_held {
                    plain.holds.push((*cost, now + ttl, false));
                } else {
                    expected.extend(refusing(&outcome, now));
                }
                is_held
            }
            Step::Capture { hold, cost } => {
                let used = Used { cost: Some(nanos(*cost)), ..Used::default() };
                let done = ledger.step(&Operation::Capture { hold_id: format!("h{hold}"), used }, &catalogue, now).is_ok();
                let is_first = plain.holds.get(*hold).is_some_and(|(.., ended)| !ended);
                if done && is_first {
                    plain.holds[*hold].2 = true;
                    plain.rows.push((*cost, now));
                }
                done && is_first
            }
            Step::Release { hold } => {
                if ledger.step(&Operation::Release { hold_id: format!("h{hold}") }, &catalogue, now).is_ok() {
                    plain.holds[*hold].2 = true;
                }
                false
            }
            Step::Correct { amount } => {
                let spent = plain.spent(day(now), day(now) + 1);
                ledger.entries.clear();
                ledger.days = HashMap::from([((user(), day(now), String::new()), BTreeMap::from([(None, spent)]))]);
                if ledger.step(&correct(&id, *amount, now), &catalogue, now).is_ok() {
                    plain.rows.push((-amount, now));
                }
                false
            }
        };
        ledger.tell_of_all(&catalogue, now);
        if adds {
            expected.extend(plain.reached(now));
        } else {
            // All together are looked at whoever does what; that tells what no clock may take from them.
            expected.extend(plain.reached(now).into_iter().filter(|key| key.starts_with("all ")));
        }
        keys.extend(ledger.alerts.drain(..).map(|alert| alert.key));
    }
    (keys, expected)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_mark_that_was_ever_reached_is_told_once_and_no_other(steps in proptest::collection::vec(step(), 1..60)) {
        let (told, expected) = run(&steps, false);
        let once: BTreeSet<String> = told.iter().cloned().collect();
        prop_assert_eq!(once.len(), told.len(), "something is told twice: {:?}", told);
        prop_assert_eq!(once, expected);
    }

    #[test]
    fn who_forgets_what_he_told_tells_the_same(steps in proptest::collection::vec(step(), 1..60)) {
        let (told, expected) = run(&steps, true);
        prop_assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}
