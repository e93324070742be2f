//! The house keeps its order: which room may use which, and what exists in one room only.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 500;

/// Room → the rooms that it may use. `main` and `cli` may use all.
const DOORS: [(&str, &[&str]); 16] = [
    ("lib", &[]),
    ("config", &["alerts", "telemetry", "store", "stripe"]),
    ("domain", &[]),
    ("telemetry", &["domain"]),
    ("current", &["telemetry", "domain"]),
    ("stripe", &["domain"]),
    ("store", &["domain"]),
    ("fake_stripe", &["stripe"]),
    ("alerts", &["store", "domain"]),
    ("meter", &["current", "telemetry", "store", "domain"]),
    ("sync", &["current", "telemetry", "store", "stripe", "domain"]),
    ("upgrade", &["current", "sync", "store", "stripe", "domain"]),
    ("explain", &["meter", "store", "domain"]),
    ("simulate", &["store", "domain"]),
    ("http", &["alerts", "current", "explain", "simulate", "upgrade", "meter", "sync", "store", "stripe", "telemetry", "domain"]),
    (
        "cli",
        &[
            "alerts",
            "config",
            "telemetry",
            "current",
            "fake_stripe",
            "http",
            "explain",
            "simulate",
            "upgrade",
            "meter",
            "sync",
            "store",
            "stripe",
            "domain",
        ],
    ),
];

/// What is written in these rooms only.
const ONLY_IN: [(&str, &[&str]); 8] = [
    ("StatusCode", &["http"]),
    ("sqlx::query", &["store"]),
    ("SELECT ", &["store"]),
    ("INSERT INTO", &["store"]),
    // The fake plays the other side.
    ("cancel_at_period_end\")", &["stripe", "fake_stripe"]),
    ("\"client_reference_id\"", &["stripe", "fake_stripe"]),
    ("Utc::now", &["main"]),
    ("std::env", &["main"]),
];

pub struct Source {
    /// The first folder or file below `src`, without its ending.
    pub room: String,
    path: PathBuf,
    pub text: String,
}

pub fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).unwrap();
                let room = below.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { room, path, text });
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// The rooms that a file names: `crate::room`, and each of `crate::{room, …}`.
fn rooms_used(text: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for after in text.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                let list = &list[..list.find(';').unwrap_or(list.len())];
                let mut depth = 0;
                let mut start = true;
                for (index, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' => start = depth == 0,
                        c if start && c.is_alphanumeric() => {
                            rooms.push(name(&list[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => rooms.push(name(after)),
        }
    }
    rooms
}

#[test]
fn rooms_use_only_the_rooms_that_they_may() {
    for source in sources("src").iter().filter(|source| source.room != "main") {
        let (_, allowed) = DOORS
            .iter()
            .find(|(room, _)| *room == source.room)
            .unwrap_or_else(|| panic!("{}: a room without a line in DOORS", source.path.display()));
        for used in rooms_used(&source.text) {
            let allowed = used == source.room || allowed.contains(&used.as_str());
            assert!(allowed, "{}: {} must not use {used}", source.path.display(), source.room);
        }
    }
}

#[test]
fn the_search_for_used_rooms_finds_them() {
    let text = "use crate::store::{Store, keys};\nuse crate::{sync, http::auth::{a, b}};\nlet x = crate::meter::Meter;";
    assert_eq!(rooms_used(text), ["store", "sync", "http", "meter"]);
}

#[test]
fn what_belongs_in_one_room_is_in_no_other() {
    for source in sources("src") {
        for (what, rooms) in ONLY_IN {
            let inside = rooms.contains(&source.room.as_str());
            assert!(inside || !source.text.contains(what), "{}: `{what}` belongs in {rooms:?}", source.path.display());
        }
    }
}

#[test]
fn the_domain_waits_for_nothing_and_reads_nothing() {
    for source in sources("src").iter().filter(|source| source.room == "domain") {
        for what in ["async ", ".await", "tokio", "std::fs", "std::net", "sqlx", "axum", "tracing"] {
            assert!(!source.text.contains(what), "{}: `{what}`", source.path.display());
        }
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    for source in sources("src").iter().chain(&sources("tests")).chain(&sources("benches")) {
        let lines = source.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; it is perhaps two rooms in one", source.path.display());
    }
}

#[test]
fn every_setting_is_in_the_example_and_every_example_is_a_setting() {
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example")).unwrap();
    let config: String = sources("src")
        .iter()
        .filter(|source| ["config", "main"].contains(&source.room.as_str()))
        .map(|source| source.text.clone())
        .collect();
    let told: Vec<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    for name in &told {
        assert!(config.contains(&format!("\"{name}\"")), ".env.example tells of {name}, which is not read");
    }
    for part in config.split("get(\"").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(told.contains(&name), "{name} is not in .env.example");
    }
}
