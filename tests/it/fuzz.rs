//! What libFuzzer looks for (`tests/fuzz.sh`), on each push: saved inputs, and as many changed ones. No input makes a panic or breaks what
//! `targets.rs` says of it.

pub mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::targets::{TARGETS, Target};

/// Changed inputs of each target; libFuzzer tries a million.
const CASES: u32 = 1000;
/// Inputs of the attack that a change may put in.
const DICTIONARY: [&str; 24] = [
    "\0",
    "\u{feff}",
    "\u{2028}",
    "\u{202e}",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\ud800",
    "1e400",
    "-0",
    "-9223372036854775808",
    "18446744073709551616",
    "0.0000000001",
    "NaN",
    ",",
    "=",
    "t=",
    "v1=",
    "*",
    "null",
    "&a *a",
    "!!binary x",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every saved input of a target: its own, and what other tests have of its kind.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let more = match target {
        "event" => Some("fixtures/demo"),
        "tiers" => Some("fixtures/tiers"),
        _ => None,
    };
    let folders = [Some(format!("fuzz/corpus/{target}")), more.map(str::to_owned)];
    let files = folders.into_iter().flatten().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One change of an input.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Cut(Index, Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
    /// The end of another input.
    Splice(Index, Index, Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<Index>;
    let word = proptest::sample::select(&DICTIONARY[..]).prop_map(|word| word.as_bytes().to_vec());
    let change = prop_oneof![
        (index(), 1..=255_u8).prop_map(|(at, change)| Change::Flip(at, change)),
        (index(), index()).prop_map(|(from, to)| Change::Cut(from, to)),
        (index(), index()).prop_map(|(from, to)| Change::Repeat(from, to)),
        (index(), prop_oneof![word, proptest::collection::vec(any::<u8>(), 1..8)]).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (index(), index(), index()).prop_map(|(at, other, from)| Change::Splice(at, other, from)),
    ];
    proptest::collection::vec(change, 0..4)
}

fn changed(corpus: &[Vec<u8>], seed: Index, changes: &[Change]) -> Vec<u8> {
    let mut input = seed.get(corpus).clone();
    for change in changes {
        let place = |at: &Index| at.index(input.len() + 1);
        let stretch = |a: &Index, b: &Index| place(a).min(place(b))..place(a).max(place(b));
        match change {
            Change::Flip(at, _) if input.is_empty() => drop(at.index(1)),
            Change::Flip(at, change) => {
                let at = at.index(input.len());
                input[at] ^= change;
            }
            Change::Cut(from, to) => drop(input.drain(stretch(from, to))),
            Change::Repeat(from, to) => {
                let (again, end) = (input[stretch(from, to)].to_vec(), stretch(from, to).end);
                input.splice(end..end, again);
            }
            Change::Insert(at, bytes) => {
                let at = place(at);
                input.splice(at..at, bytes.iter().copied());
            }
            Change::Splice(at, other, from) => {
                let other = other.get(corpus);
                let (at, from) = (place(at), from.index(other.len() + 1));
                input.splice(at.., other[from..].iter().copied());
            }
        }
    }
    input
}

/// The same inputs on each run: what is new is found by libFuzzer, at no one's expense.
fn check((name, target): Target) {
    let corpus = corpus(name);
    let accepted = corpus.iter().filter(|input| target(input)).count();
    assert!(
        0 < accepted && accepted < corpus.len(),
        "{name}: {accepted} of {} saved inputs are accepted; there must be both",
        corpus.len()
    );
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config { cases: CASES, failure_persistence: None, ..Config::default() }, rng);
    let tried = runner.run(&(any::<Index>(), changes()), |(seed, changes)| {
        target(&changed(&corpus, seed, &changes));
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

#[test]
fn no_header_is_believed_that_is_not_signed() {
    check(TARGETS[0]);
}

#[test]
fn no_body_is_taken_for_another_event() {
    check(TARGETS[1]);
}

#[test]
fn no_text_is_taken_for_another_amount() {
    check(TARGETS[2]);
}

#[test]
fn tiers_files_are_read_alike_or_refused_with_a_line() {
    check(TARGETS[3]);
}

#[test]
fn price_books_are_read_or_refused_with_a_line() {
    check(TARGETS[4]);
}

#[test]
fn rules_are_bounded_whatever_they_say() {
    check(TARGETS[5]);
}

#[test]
fn globs_match_what_they_say() {
    check(TARGETS[6]);
}

#[test]
fn every_moment_lies_in_its_window() {
    check(TARGETS[7]);
}

#[test]
fn settings_are_read_or_refused_by_name() {
    check(TARGETS[8]);
}

#[test]
fn every_target_is_fuzzed_and_has_inputs() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let script = fs::read_to_string(root().join("tests/fuzz.sh")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no {name}");
        assert!(root().join(format!("fuzz/fuzz_targets/{name}.rs")).exists(), "{name}");
        assert!(script.contains(name), "tests/fuzz.sh leaves {name} out");
        assert!(corpus(name).iter().all(|input| input.len() <= 64 * 1024), "{name}: inputs are small");
    }
}
