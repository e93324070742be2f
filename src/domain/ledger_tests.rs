use std::collections::HashMap;

use super::*;
use crate::domain::book::SpentByDay;
use crate::domain::changes::{sums, sums_of_all};
use crate::domain::pricing::{Parts, PriceBook};
use crate::domain::tiers_file;

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap_or_else(|error| panic!("{error}"))
}

fn money(dollars: &str) -> Money {
    Money::parse(dollars).unwrap_or_else(|error| panic!("{error}"))
}

fn usage(id: &str, who: &str, dollars: &str) -> Usage {
    let used = Used { cost: Some(money(dollars)), ..Used::default() };
    Usage { id: id.to_owned(), user_id: user(who), time: None, used }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_768_219_200 + seconds, 0).unwrap_or_default()
}

fn catalogue() -> Catalogue {
    let text = "default_tier: free\nglobal: { budgets: { total: 5 }, policy: strict }\n\
        tiers:\n  free: { rank: 0, budgets: { daily: 1 }, policy: strict }\n";
    tiers_file::read(text, PriceBook::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn ledger() -> Ledger {
    let book = || Book::new(at(0), &SpentByDay::new(), Money::ZERO, []);
    let payer = || Payer { profile: Profile::default().shared(), exists: false, entries: 0, book: book(), grants: None };
    Ledger {
        booked: HashMap::new(),
        holds: HashMap::new(),
        payers: ["u", "v", "w"].map(|name| (user(name), payer())).into(),
        accounts: HashMap::new(),
        all: book(),
        days: HashMap::new(),
        entries: Vec::new(),
        touched_holds: BTreeSet::new(),
        corrections: Vec::new(),
        draws: Vec::new(),
        alerts: Vec::new(),
    }
}

fn record(ledger: &mut Ledger, usages: &[Usage], seconds: i64) -> Result<Vec<Receipt>, Refusal> {
    let outcome = ledger.step(&Operation::Record(usages.to_vec()), &catalogue(), at(seconds))?;
    let Outcome::Recorded(receipts) = outcome else { panic!("{outcome:?}") };
    Ok(receipts)
}

fn ask(id: &str, who: &str, dollars: &str, if_short: IfShort) -> Operation {
    let (id, user_id, estimate) = (id.to_owned(), user(who), money(dollars));
    Operation::Hold(HoldAsk { id, user_id, call: Ask { cost: Some(estimate), ..Ask::default() }, ttl: TimeDelta::seconds(60), if_short })
}

fn hold(ledger: &mut Ledger, operation: &Operation, seconds: i64) -> Option<Money> {
    match ledger.step(operation, &catalogue(), at(seconds)) {
        Ok(Outcome::Held { hold, .. }) => Some(hold.amount),
        Ok(Outcome::NotHeld { .. }) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_repeat_is_answered_like_the_first_and_books_nothing() {
    let mut ledger = ledger();
    let first = record(&mut ledger, &[usage("a", "u", "1")], 100).unwrap_or_default();
    let again = record(&mut ledger, &[usage("a", "u", "1.00")], 200).unwrap_or_default();
    assert_eq!(ledger.entries.len(), 1);
    assert_eq!((first[0].repeated, again[0].repeated), (false, true));
    assert_eq!((first[0].time, first[0].recorded_at), (again[0].time, again[0].recorded_at));
}

#[test]
fn a_request_is_booked_whole_or_not_at_all() {
    let mut ledger = ledger();
    assert!(record(&mut ledger, &[usage("a", "u", "1")], 100).is_ok());
    let refused = record(&mut ledger, &[usage("b", "u", "1"), usage("a", "u", "2")], 200);
    assert_eq!(refused, Err(Refusal::IdReused { index: 1, id: "a".to_owned() }));
    assert_eq!((ledger.entries.len(), ledger.all.total()), (1, money("1")));
    let within = record(&mut ledger, &[usage("c", "u", "1"), usage("c", "u", "1"), usage("c", "v", "1")], 300);
    assert_eq!(within, Err(Refusal::IdReused { index: 2, id: "c".to_owned() }));
}

#[test]
fn a_total_that_cannot_be_counted_is_refused_and_is_no_matter_to_others() {
    let mut ledger = ledger();
    for number in 0..9 {
        assert!(record(&mut ledger, &[usage(&format!("a{number}"), "u", "1000000000")], 100).is_ok());
    }
    let refused = record(&mut ledger, &[usage("b", "v", "0.1"), usage("c", "u", "1000000000")], 100);
    assert_eq!(refused, Err(Refusal::TotalOutOfRange { index: 1 }));
    assert!(record(&mut ledger, &[usage("e", "w", "1000000000")], 100).is_ok());
    assert_eq!(sums_of_all(&ledger.entries).values().map(|sum| sum.spent).collect::<Vec<_>>(), [i64::MAX]);
}

#[test]
fn every_part_of_a_body_is_in_its_fingerprint() {
    let plain = usage("a", "u", "1");
    let with = |change: fn(&mut Used)| {
        let mut changed = plain.clone();
        change(&mut changed.used);
        changed
    };
    let others = [
        usage("a", "v", "1"),
        usage("a", "u", "1.000000001"),
        Usage { time: Some(at(1)), ..plain.clone() },
        with(|used| used.model = Some("m".to_owned())),
        with(|used| used.provider = Some("m".to_owned())),
        with(|used| used.input_tokens = Some(1)),
        with(|used| used.output_tokens = Some(1)),
        with(|used| used.metadata = Some("{}".to_owned())),
        with(|used| used.parts = Some(Box::new(Parts { cached_input: 1, ..Parts::NONE }))),
    ];
    for other in others {
        let mut ledger = ledger();
        assert!(record(&mut ledger, std::slice::from_ref(&plain), 0).is_ok());
        assert!(record(&mut ledger, std::slice::from_ref(&other), 0).is_err(), "{other:?}");
    }
}

#[test]
fn holds_are_admitted_to_the_last_nano_dollar_of_every_limit() {
    let mut ledger = ledger();
    assert!(record(&mut ledger, &[usage("a", "u", "0.4")], 0).is_ok());
    assert_eq!(hold(&mut ledger, &ask("h1", "u", "0.5", IfShort::Refuse), 0), Some(money("0.5")));
    assert_eq!(hold(&mut ledger, &ask("h2", "u", "0.100000001", IfShort::Refuse), 0), None);
    assert_eq!(hold(&mut ledger, &ask("h2", "u", "0.100000001", IfShort::Reduce), 0), Some(money("0.1")));
    assert_eq!(hold(&mut ledger, &ask("h3", "u", "0.1", IfShort::Reduce), 0), None, "nothing is left to reduce to");
    // The first hold again, under its id: nothing more is held.
    assert_eq!(hold(&mut ledger, &ask("h1", "u", "0.5", IfShort::Refuse), 1), Some(money("0.5")));
    // Expired, it makes room; nobody has to do anything.
    assert_eq!(hold(&mut ledger, &ask("h4", "u", "0.6", IfShort::Refuse), 60), Some(money("0.6")));
    // The limit of all together: 5 in all, 0.4 spent and 0.6 held by u.
    assert!(record(&mut ledger, &[usage("b", "v", "3.5")], 60).is_ok());
    assert_eq!(hold(&mut ledger, &ask("h5", "w", "0.6", IfShort::Reduce), 60), Some(money("0.5")));
}

#[test]
fn a_hold_ends_once() {
    let mut ledger = ledger();
    let (catalogue, cost) = (catalogue(), |dollars: &str| Used { cost: Some(money(dollars)), ..Used::default() });
    let capture = |id: &str, dollars: &str| Operation::Capture { hold_id: id.to_owned(), used: cost(dollars) };
    let release = |id: &str| Operation::Release { hold_id: id.to_owned() };
    let extend = |id: &str| Operation::Extend { hold_id: id.to_owned(), ttl: TimeDelta::seconds(100) };
    hold(&mut ledger, &ask("h", "u", "0.5", IfShort::Refuse), 0);
    hold(&mut ledger, &ask("r", "u", "0.2", IfShort::Refuse), 0);
    hold(&mut ledger, &ask("late", "u", "0.2", IfShort::Refuse), 0);
    let mut done = |operation: &Operation, seconds: i64| match ledger.step(operation, &catalogue, at(seconds)) {
        Ok(Outcome::Ended { repeated, .. }) => {
            if repeated {
                "again"
            } else {
                "ended"
            }
        }
        Ok(Outcome::Extended(_)) => "extended",
        Err(Refusal::HoldEnded(_)) => "over",
        Err(Refusal::NoSuchHold(_)) => "none",
        other => panic!("{other:?}"),
    };
    assert_eq!(done(&extend("h"), 10), "extended");
    assert_eq!(done(&capture("h", "0.3"), 100), "ended");
    assert_eq!(done(&capture("h", "0.3"), 100), "again");
    assert_eq!(done(&capture("h", "0.4"), 100), "over");
    assert_eq!(done(&release("h"), 100), "over");
    assert_eq!(done(&extend("h"), 100), "over");
    assert_eq!(done(&release("r"), 30), "ended");
    assert_eq!(done(&release("r"), 30), "again");
    assert_eq!(done(&capture("r", "0.1"), 30), "over");
    assert_eq!(done(&release("late"), 60), "over");
    assert_eq!(done(&extend("late"), 60), "over");
    assert_eq!(done(&capture("late", "0.25"), 60), "ended");
    assert_eq!(done(&capture("none", "0.25"), 60), "none");
    let payer = &ledger.payers[&user("u")];
    assert_eq!((payer.book.total(), payer.book.held(at(100)), payer.entries), (money("0.55"), Money::ZERO, 2));
}

#[test]
fn a_correction_takes_back_what_is_there_and_no_more() {
    let mut ledger = ledger();
    assert!(record(&mut ledger, &[usage("a", "u", "0.4")], 0).is_ok());
    let correction = |id: &str, dollars: &str| {
        let (id, reason, key_id) = (id.to_owned(), "a mistake".to_owned(), "key_1".to_owned());
        Operation::Correct(Correction { id, user_id: user("u"), amount: money(dollars), time: at(0), model: None, reason, key_id })
    };
    let mut correct = |id: &str, dollars: &str| ledger.step(&correction(id, dollars), &catalogue(), at(5));
    assert_eq!(correct("c", "0.5"), Err(Refusal::NotSoMuch { available: money("0.4") }));
    assert!(matches!(correct("c", "0.3"), Ok(Outcome::Corrected(Receipt { repeated: false, .. }))));
    assert!(matches!(correct("c", "0.3"), Ok(Outcome::Corrected(Receipt { repeated: true, .. }))));
    assert!(matches!(correct("c", "0.2"), Err(Refusal::IdReused { .. })));
    assert_eq!(correct("d", "0.2"), Err(Refusal::NotSoMuch { available: money("0.1") }));
    assert_eq!(ledger.payers[&user("u")].book.total(), money("0.1"));
    assert_eq!(sums(&ledger.entries).values().map(|sum| sum.spent).sum::<i64>(), money("0.1").nanos());
}

/// A batch whose outcome is unknown is looked for by what it changed, so what changes nothing must not be among it.
#[test]
fn an_extension_that_is_shorter_than_what_is_left_changes_nothing() {
    let mut ledger = ledger();
    hold(&mut ledger, &ask("h", "u", "0.1", IfShort::Refuse), 0);
    ledger.touched_holds.clear();
    let mut extend = |seconds: i64| {
        let operation = Operation::Extend { hold_id: "h".to_owned(), ttl: TimeDelta::seconds(seconds) };
        let outcome = ledger.step(&operation, &catalogue(), at(10));
        let Ok(Outcome::Extended(hold)) = outcome else { panic!("{outcome:?}") };
        (hold.expires_at, ledger.changes(at(10)).is_empty())
    };
    assert_eq!([extend(20), extend(50)], [(at(60), true), (at(60), true)]);
    assert_eq!(extend(51), (at(61), false));
}
