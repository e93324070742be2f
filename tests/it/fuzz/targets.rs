//! What is fuzzed: each function takes whatever bytes there are, tells whether they were accepted, and panics where a promise is broken.
//! `tests/it/fuzz.rs` runs them over saved and changed inputs on each push; `fuzz/` has libFuzzer look for new ones.

use std::sync::OnceLock;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde_json::Value;
use spendgate::config::Config;
use spendgate::domain::catalogue::{Catalogue, Tier};
use spendgate::domain::decide::{Action, Budget, Scope, Source};
use spendgate::domain::difference::differences;
use spendgate::domain::glob::Glob;
use spendgate::domain::money::Money;
use spendgate::domain::period::{BillingPeriod, Period, rfc3339};
use spendgate::domain::pricing::{Parts, PriceBook, Tokens};
use spendgate::domain::rules::{Facts, Rule, Rules, STEPS_MAX, When};
use spendgate::domain::user::UserId;
use spendgate::domain::yaml::Problem;
use spendgate::domain::{prices_file, tiers_file};
use spendgate::stripe::event::Event;
use spendgate::stripe::signature::{self, Secret};

/// Name and function.
pub type Target = (&'static str, fn(&[u8]) -> bool);

pub const TARGETS: [Target; 9] = [
    ("signature", signature),
    ("event", event),
    ("amount", amount),
    ("tiers", tiers),
    ("prices", prices),
    ("rule", rule),
    ("glob", glob),
    ("period", period),
    ("settings", settings),
];

const NOW: i64 = 1_768_219_200;
/// Dollars to nano-dollars, and the largest amount: $1 000 000 000.
const DECIMALS: i64 = 9;
const MAX_NANOS: i128 = 1_000_000_000_000_000_000;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(NOW, 0).unwrap()
}

/// The price book that goes with the built-in tiers, small enough to be read again and again.
fn book() -> &'static PriceBook {
    static BOOK: OnceLock<PriceBook> = OnceLock::new();
    BOOK.get_or_init(|| {
        prices_file::read("models: { gpt-4o: { input: 2.5, output: 10 }, gpt-4o-mini: { input: 0.15, output: 0.6 } }").unwrap()
    })
}

/// Whether `header` has exactly one time, of now give or take five minutes, and the one right signature for it: written apart from the
/// code, so that the two can differ.
pub fn is_signed(header: &str, body: &[u8], secret: &Secret, now: DateTime<Utc>) -> bool {
    let parts: Vec<&str> = header.split(',').map(str::trim).collect();
    let times: Vec<&str> = parts.iter().filter_map(|part| part.strip_prefix("t=")).collect();
    let [time] = times[..] else { return false };
    let Some(at) = time.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)) else { return false };
    let good = secret.sign(body, at);
    let (told, v1) = good.split_once(',').unwrap();
    let names_it = parts.iter().any(|part| part.starts_with("v1=") && part.eq_ignore_ascii_case(v1));
    told == format!("t={time}") && names_it && (now - at).abs() <= TimeDelta::seconds(300)
}

/// A header, a line end, and a body. `{t}` stands for the time, `{v1}`, `{old}` and `{other}` for signatures: right, too old, and of
/// another secret. Without them no fuzzer would ever find one that is right.
pub fn signature(data: &[u8]) -> bool {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (Ok(header), body) = (std::str::from_utf8(&data[..end]), data.get(end + 1..).unwrap_or_default()) else { return false };
    let (secret, other) = (Secret::new("whsec_of_the_fuzz").unwrap(), Secret::new("whsec_of_the_fuzz2").unwrap());
    let hex = |secret: &Secret, at| secret.sign(body, at).split_once("v1=").unwrap().1.to_owned();
    let header = header
        .replace("{t}", &NOW.to_string())
        .replace("{v1}", &hex(&secret, now()))
        .replace("{old}", &hex(&secret, now() - TimeDelta::seconds(301)))
        .replace("{other}", &hex(&other, now()));
    let accepted = signature::verify(&header, body, std::slice::from_ref(&secret), now()).is_ok();
    let right = is_signed(&header, body, &secret, now());
    let bounded =
        header.len() <= signature::HEADER_BYTES_MAX && header.split(',').filter(|part| part.trim().starts_with("v1=")).count() <= 16;
    assert!(!accepted || right, "believed, and not signed: {header:?}");
    assert!(accepted || !right || !bounded, "signed, and not believed: {header:?}");
    accepted
}

/// A body as Stripe might post it.
pub fn event(data: &[u8]) -> bool {
    let Ok(event) = Event::from_json(data, now()) else { return false };
    let body: Value = serde_json::from_slice(data).unwrap();
    assert_eq!(Some(event.id.as_str()), body["id"].as_str(), "the id is the body's own");
    assert_eq!(Some(event.kind.as_str()), body["type"].as_str(), "the type is the body's own");
    let texts = [Some(&event.id), Some(&event.kind), event.account.as_ref(), event.facts.customer.as_ref(), event.facts.user_hint.as_ref()];
    for text in texts.into_iter().flatten() {
        assert!(!text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control), "{text:?}");
    }
    assert!(DateTime::parse_from_rfc3339(&rfc3339(event.created)).is_ok(), "its time can be written");
    let again = Event::from_json(data, now()).unwrap();
    assert_eq!(event, again, "the same bytes are the same event");
    let told = &body["created"];
    let is_dated = told.as_i64().is_some() || told.as_str().is_some_and(|text| text.parse::<DateTime<Utc>>().is_ok());
    let later = Event::from_json(data, now() + TimeDelta::days(1)).unwrap();
    assert_eq!(later.created == event.created, is_dated, "only an event without a time is dated by its arrival");
    true
}

/// The nano-dollars of a decimal text, digit by digit; `None` where it is not an amount.
pub fn nanos_of(text: &str) -> Option<i128> {
    if 64 < text.len() {
        return None;
    }
    let (negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || 3 < digits.len() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let written = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !written(whole) || !written(decimals) {
        return None;
    }
    // The weight of the first digit, as a power of ten nano-dollars.
    let mut weight = i64::try_from(whole.len()).unwrap() - 1 + exponent.parse::<i64>().unwrap() + DECIMALS;
    let mut nanos = 0_i128;
    for digit in whole.bytes().chain(decimals.bytes()) {
        let digit = i128::from(digit - b'0');
        if digit != 0 {
            // Beyond these lies less than one nano-dollar, or more than an amount may be.
            let factor = u32::try_from(weight).ok().filter(|weight| *weight <= 18)?;
            nanos += digit * 10_i128.pow(factor);
        }
        weight -= 1;
    }
    (nanos <= MAX_NANOS && !(negative && nanos != 0)).then_some(nanos)
}

/// An amount of money as text.
pub fn amount(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let read = Money::parse(text);
    assert_eq!(read.ok().map(|money| i128::from(money.nanos())), nanos_of(text), "{text:?}");
    let quoted = serde_json::from_str::<Money>(&Value::from(text).to_string());
    assert!(quoted.is_err() || quoted.ok() == read.ok(), "in quotes it is the same amount: {text:?}");
    if let Ok(number) = serde_json::from_str::<Money>(text) {
        let bare = text.trim_matches([' ', '\t', '\r', '\n']);
        let bare = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(bare);
        assert_eq!(nanos_of(bare), Some(i128::from(number.nanos())), "in a body it is the same amount: {text:?}");
    }
    let Ok(money) = read else { return false };
    assert_eq!(Money::parse(&money.decimal()), Ok(money), "what is written is read back");
    assert_eq!(Money::parse(money.to_string().trim_start_matches('$')), Ok(money), "what people see too");
    assert_eq!(serde_json::to_string(&money).unwrap(), money.decimal());
    true
}

#[track_caller]
fn check_faults(text: &str, faults: &[Problem]) {
    assert!(!faults.is_empty(), "a refused file has a fault");
    for fault in faults {
        assert!(
            1 <= fault.line && fault.line <= text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1,
            "{fault}: no such line"
        );
        assert!(!fault.message.is_empty(), "{fault:?}");
    }
}

/// A tiers.yaml.
pub fn tiers(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match (tiers_file::read(text, book().clone()), tiers_file::read(text, book().clone())) {
        (Ok(read), Ok(again)) => {
            assert!(differences(&read, &again).is_empty(), "an accepted file reads the same again");
            assert!(read.tier(&read.default_tier().name).is_some());
            for tier in read.tiers() {
                assert!(tier.rules.steps() <= STEPS_MAX, "{}", tier.name);
                let user = UserId::parse("fuzz\"<>&\u{1f600}").unwrap();
                let url = read.upgrade_url.fill("https://spend.example.com", &tier.name, &tier.name, &user);
                assert!(url.bytes().all(|byte| byte.is_ascii_graphic()), "{url}");
            }
            true
        }
        (Err(faults), Err(again)) => {
            check_faults(text, &faults);
            assert_eq!(faults, again);
            false
        }
        (read, _) => panic!("one text, two answers; the first: {:?}", read.map(|_| ())),
    }
}

/// A prices.yaml.
pub fn prices(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let book = match prices_file::read(text) {
        Ok(book) => book,
        Err(faults) => {
            check_faults(text, &faults);
            return false;
        }
    };
    let parts = Parts { cached_input: 1, cache_write: 2, audio_input: 3, reasoning: 4, audio_output: 5, images: 6 };
    for tokens in [Tokens { input: 0, output: 0, parts: Parts::NONE }, Tokens { input: 1_000_000_000, output: 1_000_000_000, parts }] {
        for (name, _) in book.names().take(20) {
            // A pattern is asked for as the name that it is.
            if let Some(price) = book.price(name, None, now()) {
                let free = spendgate::domain::catalogue::Percent(0);
                assert!(price.cost(&tokens, free) <= price.cost(&tokens, spendgate::domain::catalogue::Percent(100_000)), "a markup adds");
            }
        }
    }
    true
}

fn tier() -> &'static Tier {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    let read =
        || tiers_file::read("default_tier: free\ntiers: { free: { rank: 0, budgets: { daily: 0.10 }, policy: strict } }", book().clone());
    CATALOGUE.get_or_init(|| read().unwrap()).default_tier()
}

/// The condition of a rule.
pub fn rule(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let when = match When::compile(text) {
        Ok(when) => when,
        Err(why) => {
            assert!(!why.is_empty() && why.len() < 2000, "{why}");
            return false;
        }
    };
    let again = When::compile(when.source()).expect("what was read is read again");
    assert_eq!(again.steps(), when.steps());
    let steps = when.steps();
    let Ok(rules) = Rules::new(vec![Rule::new("fuzz".to_owned(), when, Action::Block, None)]) else {
        assert!(STEPS_MAX < steps, "refused with {steps} steps");
        return false;
    };
    assert!(rules.steps() <= STEPS_MAX);
    let metadata: Value =
        serde_json::json!({"agent": true, "n": -1, "list": [1, "two", null, {"three": 3.5}], "text": "a".repeat(200), "": {}});
    let user = UserId::parse("u|\u{1f600}").unwrap();
    let budget = Budget {
        scope: Scope::User,
        period: Period::Daily,
        source: Source::Tier,
        limit: Money::parse("0.1").unwrap(),
        granted: Money::ZERO,
        fresh_limit: Money::parse("0.1").unwrap(),
        spent: Money::parse("0.05").unwrap(),
        held: Money::ZERO,
        window: Period::Daily.window(now(), None),
        thresholds: spendgate::domain::catalogue::Policy::Strict.thresholds(),
    };
    for (metadata, budgets) in [(None, &[][..]), (metadata.as_object(), std::slice::from_ref(&budget))] {
        let facts = Facts {
            user: &user,
            account: None,
            tier: tier(),
            model: Some("gpt-4o"),
            provider: None,
            estimate: Money::parse("0.03").unwrap(),
            input_tokens: i64::MAX,
            output_tokens: 0,
            budgets,
            metadata,
            now: now(),
        };
        let verdict = rules.judge(&facts);
        assert_eq!(verdict, rules.judge(&facts), "one request, one verdict");
        assert!(verdict.is_none_or(|verdict| verdict.action == Action::Block && verdict.rule == "fuzz"));
    }
    true
}

/// A pattern, a line end, and a name.
pub fn glob(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let (pattern, name) = text.split_once('\n').unwrap_or((text, text));
    let matches = Glob::new(pattern).matches(name);
    assert_eq!(matches, matches_slowly(pattern.as_bytes(), name.as_bytes()), "{pattern:?} {name:?}");
    if Glob::new(pattern).is_exact() {
        assert_eq!(matches, pattern == name);
    }
    matches
}

/// By the book: row by row, whether the pattern so far matches the name so far.
fn matches_slowly(pattern: &[u8], name: &[u8]) -> bool {
    let mut row = vec![false; name.len() + 1];
    row[0] = true;
    for part in pattern {
        let mut next = vec![false; name.len() + 1];
        for end in 0..=name.len() {
            next[end] = match part {
                b'*' => row[end] || (end != 0 && next[end - 1]),
                byte => end != 0 && row[end - 1] && name[end - 1] == *byte,
            };
        }
        row = next;
    }
    row[name.len()]
}

/// The name of a period or a time, or twenty-four bytes that are three moments.
pub fn period(data: &[u8]) -> bool {
    let named = std::str::from_utf8(data).ok().and_then(|text| {
        let period = Period::parse(text);
        assert!(period.is_none_or(|period| period.name() == text));
        period.map(|_| true)
    });
    let time = std::str::from_utf8(data).ok().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    // As the doors take it: a later one cannot be written.
    let time = time.filter(|time| time.to_utc().year() <= 9999);
    if let Some(time) = time {
        assert_eq!(DateTime::parse_from_rfc3339(&rfc3339(time.to_utc())).map(|read| read.to_utc()), Ok(time.to_utc()), "{time}");
    }
    let moment = |at: usize| {
        let bytes = data.get(at..at + 8)?.try_into().ok()?;
        // Whatever the bytes, it is a time of the calendar: one in whole seconds, or the last ones that there are.
        DateTime::from_timestamp_millis(i64::from_le_bytes(bytes) % 8_000_000_000_000_000)
    };
    if let (Some(at), Some(start), Some(end)) = (time.map(|time| time.to_utc()).or(moment(0)), moment(8), moment(16)) {
        let billing = BillingPeriod::new(start, end);
        for period in Period::ALL {
            let window = period.window(at, billing);
            // The calendar ends somewhere, and the last windows with it.
            assert!(window.contains(at) || at.timestamp().abs() > 200_000_000_000, "{period:?} {at} {billing:?} {window:?}");
        }
        return billing.is_some();
    }
    named.unwrap_or(time.is_some())
}

/// Settings, as `NAME=value` in lines.
pub fn settings(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    match Config::read(lookup) {
        Ok(config) => {
            let shown = format!("{config:?}");
            for (_, secret) in pairs.iter().filter(|(name, _)| ["ADMIN_API_KEY", "STRIPE_API_KEY"].contains(name)) {
                assert!(secret.trim().len() < 16 || !shown.contains(secret.trim()), "a secret is shown");
            }
            true
        }
        Err(error) => {
            let told = error.to_string();
            assert!(told.starts_with(error.name) && pairs.iter().any(|(name, _)| *name == error.name), "{told}");
            false
        }
    }
}
