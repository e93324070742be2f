//! The files are read again while the service runs: all or nothing, and from the very next check on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::TimeDelta;
use serde_json::{Value, json};
use spendgate::config::Config;

use crate::app::{ADMIN_KEY, Answer, Database, TestApp};
use crate::cli::folder;
use crate::stripe::paying;

const TIERS: &str = "
default_tier: free
tiers:
  free: { rank: 0, budgets: { daily: 0.10 }, policy: strict }
  pro: { rank: 10, budgets: { daily: 1 }, policy: soft, degrade_to: { default: cheap }, prices: [price_pro] }
";
const PRICES: &str = "models: { cheap: { input: 1, output: 1 }, dear: { input: 1000, output: 1000 } }";

/// Runs a test on each database, with both files in its folder; what memory believes on Postgres is believed for a minute.
async fn on_each(tiers: &str, max_staleness: TimeDelta, test: impl AsyncFn(&mut TestApp)) {
    for database in Database::ALL {
        let files = |config: Config| {
            let (tiers_file, prices_file) = (config.data_dir.join("tiers.yaml"), config.data_dir.join("prices.yaml"));
            Config { tiers_file: Some(tiers_file), prices_file: Some(prices_file), max_staleness, ..config }
        };
        let mut app = TestApp::start(database, tiers, files).await;
        write(&app, tiers, PRICES);
        reload(&app).await.ok();
        test(&mut app).await;
        app.stop().await;
    }
}

fn write(app: &TestApp, tiers: &str, prices: &str) {
    fs::write(app.folder.path().join("tiers.yaml"), tiers).unwrap();
    fs::write(app.folder.path().join("prices.yaml"), prices).unwrap();
}

async fn reload(app: &TestApp) -> Answer {
    app.post("/v1/admin/reload", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_read_again_hold_from_the_very_next_check() {
    for staleness in [0, 60] {
        on_each(TIERS, TimeDelta::seconds(staleness), async |app| {
            for event in paying("payer", "price_pro") {
                app.apply(event).await;
            }
            app.spend("a", "u", "0.10").await;
            assert_eq!(app.check("u").await["action"], "BLOCK");
            assert_eq!(app.check("payer").await["tier"], "pro");
            let tokens = json!({"id": "t1", "user_id": "v", "model": "cheap", "input_tokens": 1000, "output_tokens": 0});
            assert_eq!(app.post("/v1/usage", tokens).await.ok()["cost"], 0.001);

            let other = "
default_tier: free
tiers:
  free: { rank: 0, budgets: { daily: 0.25, billing: 3 }, policy: strict }
  max: { rank: 20, budgets: { daily: 7 }, policy: strict, prices: [price_pro] }
";
            write(app, other, &PRICES.replace("cheap: { input: 1,", "cheap: { input: 2,"));
            let answer = reload(app).await.ok();
            assert_eq!((&answer["tiers"], &answer["models"]), (&json!(2), &json!(2)));
            let changed = answer["changed"].as_array().unwrap();
            let what: Vec<&str> = changed.iter().map(|changed| changed["what"].as_str().unwrap()).collect();
            let expected = ["tiers.free.budgets.billing", "tiers.free.budgets.daily", "tiers.max", "tiers.pro", "models.cheap.prices"];
            assert_eq!(what, expected, "{answer}");
            assert_eq!(changed[1], json!({"what": "tiers.free.budgets.daily", "before": "$0.10", "after": "$0.25"}));
            assert_eq!((&changed[2]["before"], &changed[3]["after"]), (&Value::Null, &Value::Null));

            let seen = app.check("u").await;
            assert_eq!((&seen["action"], &seen["budgets"].as_array().unwrap().len()), (&json!("ALLOW"), &2), "{seen}");
            assert_eq!(seen["budgets"][1]["spent"], 0.1, "a budget that is new counts what was spent: {seen}");
            assert_eq!(app.check("payer").await["tier"], "max");
            let tokens = json!({"id": "t2", "user_id": "v", "model": "cheap", "input_tokens": 1000, "output_tokens": 0});
            assert_eq!(app.post("/v1/usage", tokens).await.ok()["cost"], 0.002);
            assert_eq!(app.get("/v1/tiers").await.ok()["tiers"][1]["tier"], "max");
            let hold = json!({"id": "h", "user_id": "payer", "estimated_cost": 6});
            assert_eq!(app.post("/v1/holds", hold).await.ok()["hold"]["state"], "open");

            // Who pays for a tier that is gone, and whose price buys no other, has the default one.
            write(app, TIERS.split("  pro:").next().unwrap(), PRICES);
            reload(app).await.ok();
            let seen = app.check("payer").await;
            assert_eq!((&seen["tier"], &seen["action"]), (&json!("free"), &json!("BLOCK")), "{seen}");
            assert_eq!(reload(app).await.ok()["changed"], json!([]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_file_changes_nothing_and_neither_does_the_good_one_beside_it() {
    on_each(TIERS, TimeDelta::zero(), async |app| {
        let before = (app.get("/v1/tiers").await.ok(), app.get("/v1/prices?model=cheap").await.ok());
        let prices = PRICES.replace("cheap: { input: 1,", "cheap: { input: 2,");
        let check = async |place: &str| {
            let problem = reload(app).await.problem(422, "catalogue_refused");
            assert!(problem["detail"].as_str().unwrap().contains(place), "{problem}");
            assert_eq!((app.get("/v1/tiers").await.ok(), app.get("/v1/prices?model=cheap").await.ok()), before);
        };
        write(app, &TIERS.replace("daily: 0.10", "dayly: 0.20"), &prices);
        check("tiers.yaml:4:31: `dayly` is not a period; did you mean `daily`?").await;
        write(app, &TIERS.replace("daily: 0.10", "daily: 0.20"), &prices.replace("output", "outptu"));
        check("prices.yaml:1:").await;
        write(app, &TIERS.replace("default: cheap", "default: dear, dear: cheap, cheap: dear"), &prices);
        check("leads from").await;
        fs::remove_file(app.folder.path().join("tiers.yaml")).unwrap();
        check("TIERS_FILE").await;
        write(app, TIERS, &prices);
        assert_eq!(reload(app).await.ok()["changed"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_start_would_refuse_is_refused_while_it_runs() {
    for database in Database::ALL {
        let files = |config: Config| Config { tiers_file: Some(config.data_dir.join("tiers.yaml")), retention_days: Some(90), ..config };
        let mut app = TestApp::start(database, TIERS, files).await;
        fs::write(app.folder.path().join("tiers.yaml"), TIERS.replace("daily: 0.10", "billing: 3").replace("cheap", "gpt-4o-mini"))
            .unwrap();
        let problem = reload(&app).await.problem(422, "catalogue_refused");
        assert!(problem["detail"].as_str().unwrap().contains("RETENTION_DAYS"), "{problem}");
        assert_eq!(app.check("u").await["budgets"][0]["period"], "daily");
        app.stop().await;
    }
}

/// Two catalogues that have nothing in common.
fn one_of_two(letter: char) -> String {
    match letter {
        'a' => "
default_tier: free-a
tiers:
  free-a: { rank: 0, budgets: { daily: 1 }, policy: strict }
  pro-a: { rank: 10, monthly_price: 1, budgets: { daily: 11 }, policy: strict, prices: [price_a] }
"
        .to_owned(),
        _ => "
default_tier: free-b
global: { budgets: { total: 1000 }, policy: strict }
tiers:
  free-b: { rank: 0, scope: account, budgets: { billing: 2, weekly: 3 }, policy: strict }
  pro-b: { rank: 10, monthly_price: 2, budgets: { daily: 22 }, policy: strict, prices: [price_b] }
"
        .to_owned(),
    }
}

/// By which of the two an answer was made; fails where it was made by both.
fn made_by(answer: &Value) -> char {
    let budgets: Vec<String> = answer["budgets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|budget| format!("{} {} {}", budget["scope"], budget["period"], budget["limit"]))
        .collect();
    let shown =
        (answer["tier"].as_str().unwrap(), answer["upgrade"]["tier"].as_str().unwrap(), answer["upgrade"]["monthly_price"].to_string());
    let spent = answer["budgets"].as_array().unwrap().iter().all(|budget| budget["spent"] == 5);
    assert!(spent, "each window counts all that was spent: {answer}");
    match (shown.0, shown.1, shown.2.as_str(), budgets.join(", ").replace('"', "").as_str()) {
        ("free-a", "pro-a", "1.00" | "1", "user daily 1" | "user daily 1.00") => 'a',
        ("free-b", "pro-b", "2.00" | "2", rest) if rest.matches("account").count() == 2 && rest.contains("global total 1000") => 'b',
        _ => panic!("a mixture: {answer}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_beside_a_reload_is_made_by_half_of_each_catalogue() {
    const RELOADS: usize = 40;
    const CHECKERS: usize = 4;
    for staleness in [0, 60] {
        on_each(&one_of_two('a'), TimeDelta::seconds(staleness), async |app| {
            app.put("/v1/accounts/acme", "{}").await;
            for user in 0..CHECKERS {
                let put = app.put(&format!("/v1/accounts/acme/users/u{user}"), "{}").await;
                assert!(put.status < 300, "{}", put.text);
            }
            // All of it by one of them, so that whoever shares has spent as much as who does not.
            app.spend("all", "u0", "5").await;
            let (app, done) = (&*app, &AtomicBool::new(false));
            let checker = |number: usize| async move {
                let mut seen = String::new();
                loop {
                    // Once more after the last reload.
                    let is_last = done.load(Ordering::SeqCst);
                    let turn = seen.len();
                    let answer = match number % 3 {
                        0 => app.check("u0").await,
                        1 => app.post("/v1/enforcement", json!([{"user_id": "u0"}, {"user_id": "u0"}])).await.ok()["results"][1].clone(),
                        _ => {
                            let hold = json!({"id": format!("h{number}-{turn}"), "user_id": "u0", "estimated_cost": 1});
                            app.post("/v1/holds", hold).await.ok()
                        }
                    };
                    seen.push(made_by(&answer));
                    if is_last {
                        break;
                    }
                }
                seen
            };
            let reloads = async {
                for turn in 0..RELOADS {
                    write(app, &one_of_two(if turn % 2 == 0 { 'b' } else { 'a' }), PRICES);
                    reload(app).await.ok();
                }
                done.store(true, Ordering::SeqCst);
            };
            let (seen, ()) = tokio::join!(futures_util::future::join_all((0..CHECKERS).map(checker)), reloads);
            assert!(seen.iter().all(|seen| seen.ends_with('a')), "the last one holds at the end: {seen:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_all_that_comes_back_counts_what_was_spent_without_it() {
    let with = |period: &str| format!("{TIERS}\nglobal: {{ budgets: {{ {period}: 5 }}, policy: strict }}\n");
    for staleness in [0, 60] {
        on_each(&with("daily"), TimeDelta::seconds(staleness), async |app| {
            let all = async || app.check("u").await["budgets"][1]["spent"].clone();
            app.spend("a", "v", "1").await;
            assert_eq!(all().await, 1);
            write(app, TIERS, PRICES);
            reload(app).await.ok();
            app.spend("b", "v", "2").await;
            assert_eq!(all().await, Value::Null);
            write(app, &with("total"), PRICES);
            reload(app).await.ok();
            assert_eq!(all().await, 3);
            app.spend("c", "w", "2").await;
            if staleness == 0 || !app.is_postgres() {
                assert_eq!(app.check("x").await["action"], "BLOCK");
            }
            let hold = app.post("/v1/holds", json!({"id": "h", "user_id": "x", "estimated_cost": 0.01})).await.ok();
            assert_eq!(hold["binding"]["scope"], "global", "{hold}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_files_again_and_a_faulty_one_ends_nothing() {
    let folder = folder();
    let put = |tiers: &str| fs::write(folder.path().join("tiers.yaml"), tiers.replace("cheap", "gpt-4o-mini")).unwrap();
    put(TIERS);
    let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
        .current_dir(folder.path())
        .env_clear()
        .envs([("LISTEN_ADDR", "127.0.0.1:0"), ("ADMIN_API_KEY", ADMIN_KEY), ("LOG_FORMAT", "text")])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut told = |what: &str| log.by_ref().find(|line| line.contains(what)).unwrap_or_else(|| panic!("the log does not tell {what}"));
    let listens = told("listening on http://");
    let url = listens.split("listening on ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let limit = async || {
        let request = TestApp::client().get(format!("{url}/v1/tiers")).bearer_auth(ADMIN_KEY);
        let tiers: Value = serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap();
        tiers["tiers"][0]["budgets"]["daily"].clone()
    };
    assert_eq!(limit().await, 0.1);
    let signal = |name: &str| Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();

    put(&TIERS.replace("0.10", "0.25"));
    signal("-HUP");
    told("changed: tiers.free.budgets.daily: $0.10 -> $0.25");
    assert_eq!(limit().await, 0.25);

    put(&TIERS.replace("daily: 0.10", "dayly: 0.30"));
    signal("-HUP");
    told("are refused; what held goes on");
    told("tiers.yaml:4:31: `dayly` is not a period");
    // It is not replaced by what is built in while it is not there.
    fs::remove_file(folder.path().join("tiers.yaml")).unwrap();
    signal("-HUP");
    told("TIERS_FILE: tiers.yaml cannot be read");
    assert_eq!(limit().await, 0.25);
    signal("-TERM");
    told("stopped");
    assert!(child.wait().unwrap().success());
}
