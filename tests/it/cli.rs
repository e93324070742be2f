//! The command line, as a person or a script meets it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::app::{TIERS, WEBHOOK_SECRET, on_each_database};
use crate::stripe::paying;

fn spendgate(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spendgate"));
    command.args(args).current_dir(folder).env_clear().envs(environment.iter().copied());
    command
}

pub fn run(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = spendgate(folder, args, environment).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_demo_shows_all_four_answers_and_ends() {
    let folder = folder();
    let (code, out, err) = run(folder.path(), &["demo", "--exit"], &[("LISTEN_ADDR", "127.0.0.1:0")]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let answers = |user: &str| {
        let rows = out.lines().filter(|line| line.starts_with(user));
        let words = rows.filter_map(|line| ["ALLOW", "WARN", "DEGRADE", "BLOCK"].into_iter().find(|word| line.contains(*word)));
        words.collect::<Vec<_>>()
    };
    assert_eq!(answers("u_free "), ["ALLOW", "ALLOW", "WARN", "BLOCK", "ALLOW"], "{out}");
    assert_eq!(answers("u_pro "), ["ALLOW", "ALLOW", "WARN", "DEGRADE"], "{out}");
    assert_eq!(answers("u_enterprise "), ["ALLOW", "ALLOW", "WARN", "WARN"], "{out}");
    assert!(out.contains("/upgrade?from=free") && out.contains("gpt-4o-mini"), "{out}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the demo leaves nothing behind");
}

#[test]
fn a_first_start_makes_a_key_shows_it_once_and_ends_on_sigterm() {
    let folder = folder();
    let start = || {
        let mut child =
            spendgate(folder.path(), &[], &[("LISTEN_ADDR", "127.0.0.1:0")]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let told: Vec<String> = lines.take_while(|line| !line.contains("curl")).collect();
        (child, told.join("\n"))
    };
    let (mut first, told) = start();
    assert!(told.contains("shown this once: sg_") && told.contains("listens on http://127.0.0.1:"), "{told}");
    // A second process is refused while the first one owns the file.
    let (code, _, err) = run(folder.path(), &["serve"], &[("LISTEN_ADDR", "127.0.0.1:0")]);
    assert_eq!(code, 1, "it may be over in a moment");
    assert!(err.contains("served by another process"), "{err}");
    let terminate = |child: &std::process::Child| Command::new("kill").arg(child.id().to_string()).status().unwrap();
    terminate(&first);
    assert!(first.wait().unwrap().success());
    let (mut second, told) = start();
    assert!(!told.contains("sg_"), "{told}");
    terminate(&second);
    assert!(second.wait().unwrap().success());
}

#[test]
fn settings_that_make_no_sense_end_with_2_and_the_name() {
    let folder = folder();
    for (name, value) in [
        ("LISTEN_ADDR", "nowhere"),
        ("DATABASE_URL", "postgres://x"),
        ("STRIPE_WEBHOOK_SECRETS", "x"),
        ("ADMIN_API_KEY", "x"),
        ("RUST_LOG", "==="),
        ("TIERS_FILE", "missing.yaml"),
    ] {
        for command in ["serve", "check-config"] {
            let (code, _, err) = run(folder.path(), &[command], &[(name, value)]);
            assert_eq!(code, 2, "{command} with {name}={value}: {err}");
            assert!(err.contains(name), "{err}");
        }
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    std::fs::write(folder.path().join(".env"), "LISTEN_ADDR=nowhere\n").unwrap();
    let (code, _, err) = run(folder.path(), &["check-config"], &[]);
    assert_eq!(code, 2, ".env is read: {err}");
}

#[test]
fn check_config_tells_faults_as_file_line_column() {
    let folder = folder();
    assert_eq!(run(folder.path(), &["check-config"], &[]).0, 0);
    std::fs::write(folder.path().join("tiers.yaml"), TIERS.replace("weekly:", "weakly:")).unwrap();
    for command in ["check-config", "serve"] {
        let (code, _, err) = run(folder.path(), &[command], &[]);
        assert_eq!(code, 2);
        let line = TIERS.lines().position(|line| line.contains("weekly:")).unwrap() + 1;
        assert!(err.contains(&format!("tiers.yaml:{line}:7: `weakly` is not a period; did you mean `weekly`?")), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_posts_files_and_folders_as_stripe_would() {
    on_each_database(TIERS, async |app| {
        // The command signs with the real clock.
        app.set_clock(&chrono::Utc::now().to_rfc3339());
        let folder = folder();
        for (number, event) in paying("u", "price_pro").into_iter().enumerate() {
            std::fs::write(folder.path().join(format!("{number}.json")), event.to_string()).unwrap();
        }
        let url = app.url("/webhooks/stripe");
        let args = ["replay", ".", "--url", &url, "--secret", WEBHOOK_SECRET, "--shuffle", "--repeat", "3"];
        let (code, out, err) = run(folder.path(), &args, &[]);
        assert_eq!(code, 0, "{out}{err}");
        assert_eq!(out.matches("200 received").count(), 2, "{out}");
        assert_eq!(out.matches("200 duplicate").count(), 4, "{out}");
        assert_eq!(app.check("u").await["tier"], "pro");
        std::fs::write(folder.path().join("bad.json"), "[]").unwrap();
        let (code, out, _) = run(folder.path(), &["replay", "bad.json", "--url", &url, "--secret", WEBHOOK_SECRET], &[]);
        assert_eq!(code, 1, "{out}");
        assert!(out.contains("400 not_an_event") && out.contains("200 was expected"), "{out}");
        std::fs::write(folder.path().join("manifest.json"), r#"[{"file": "bad.json", "http": 400}]"#).unwrap();
        let (code, out, _) = run(folder.path(), &["replay", ".", "--url", &url, "--secret", WEBHOOK_SECRET], &[]);
        assert_eq!(code, 0, "{out}");
        assert_eq!(run(folder.path(), &["replay", "."], &[]).0, 2);
        assert_eq!(run(folder.path(), &["replay"], &[]).0, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_a_user_beside_the_running_service_and_ends_with_3_when_blocked() {
    on_each_database(TIERS, async |app| {
        app.set_clock(&chrono::Utc::now().to_rfc3339());
        let database = app.database().url();
        let status = |user: &str| run(app.folder.path(), &["status", user], &[("DATABASE_URL", &database)]);
        let (code, out, err) = status("u");
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("nothing is known") && out.contains("ALLOW"), "{out}");
        app.spend("a", "u", "0.10").await;
        let (code, out, _) = status("u");
        assert_eq!(code, 3, "{out}");
        assert!(out.contains("free (the default)") && out.contains("100.0 %") && out.contains("BLOCK"), "{out}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_answers_as_a_check_does_by_the_operators_rules_too() {
    let tiers =
        TIERS.replacen("tiers:\n", "rules:\n  - { name: closed, when: \"true\", action: BLOCK, message: We are closed. }\ntiers:\n", 1);
    on_each_database(&tiers, async |app| {
        std::fs::write(app.folder.path().join("tiers.yaml"), &tiers).unwrap();
        let (code, out, err) = run(app.folder.path(), &["status", "u"], &[("DATABASE_URL", &app.database().url())]);
        assert_eq!((code, app.check("u").await["action"].as_str()), (3, Some("BLOCK")), "{out}{err}");
        assert!(out.contains("BLOCK: We are closed."), "{out}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_leaves_a_schema_of_another_version_as_it_is() {
    on_each_database(TIERS, async |app| {
        let database = app.database().url();
        let seen = async |app: &crate::app::TestApp| app.column("SELECT CAST(MAX(version) AS TEXT) FROM _sqlx_migrations").await;
        let newest = seen(app).await;
        std::fs::write(app.folder.path().join("other.yaml"), TIERS.replace("daily: 0.10", "daily: 0.20")).unwrap();
        let commands = [
            &["status", "u"][..],
            &["explain", "u"],
            &["verify"],
            &["plan", "--tiers", "other.yaml"],
            &["simulate", "--tiers", "other.yaml"],
            &["keys", "list"],
        ];
        for (change, told) in [
            ("UPDATE _sqlx_migrations SET version = 999 WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)", "of a later version"),
            ("DELETE FROM _sqlx_migrations WHERE version = 999", "make a backup first"),
        ] {
            app.execute(change).await;
            let before = seen(app).await;
            assert_ne!(before, newest);
            for command in commands {
                let (code, out, err) = run(app.folder.path(), command, &[("DATABASE_URL", &database)]);
                assert!(code == 1 && err.contains(told), "{command:?}: {code} {out}{err}");
            }
            assert_eq!(seen(app).await, before, "nothing was brought up to date");
        }
        app.execute("DROP TABLE _sqlx_migrations").await;
        let (code, _, err) = run(app.folder.path(), &["verify"], &[("DATABASE_URL", &database)]);
        assert!(code == 1 && err.contains("no tables yet"), "{err}");
    })
    .await;
}

#[test]
fn a_key_is_not_made_where_no_service_would_know_it() {
    let folder = folder();
    let (code, _, err) = run(folder.path(), &["keys", "create", "--name", "app"], &[]);
    assert!(code == 1 && err.contains("there is no database at"), "{err}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn check_config_refuses_what_a_start_refuses_of_how_long_rows_are_kept() {
    let folder = folder();
    let tiers = "default_tier: free\ntiers:\n  free: { rank: 0, budgets: { billing: 1 }, policy: strict }\n";
    std::fs::write(folder.path().join("tiers.yaml"), tiers).unwrap();
    for command in ["check-config", "serve"] {
        let (code, _, err) = run(folder.path(), &[command], &[("RETENTION_DAYS", "400")]);
        assert!(code == 2 && err.contains("RETENTION_DAYS"), "{command}: {err}");
    }
}

#[test]
fn a_start_that_fails_keeps_the_first_key_for_the_next_one_and_nobody_need_know_whom_the_machine_trusts() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, out, err) = run(folder.path(), &["serve"], &[("LISTEN_ADDR", &address)]);
    assert!(code == 1 && err.contains("is in use") && !out.contains("sg_"), "{code} {out}{err}");
    drop(taken);
    std::fs::write(folder.path().join("nobody.pem"), "").unwrap();
    let nobody = folder.path().join("nobody.pem");
    let environment = [("LISTEN_ADDR", "127.0.0.1:0"), ("SSL_CERT_FILE", nobody.to_str().unwrap()), ("SSL_CERT_DIR", "/nowhere")];
    let mut child = spendgate(folder.path(), &[], &environment).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let told: Vec<String> = lines.take_while(|line| !line.contains("curl")).collect();
    assert!(told.join("\n").contains("shown this once: sg_"), "{told:?}");
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
}
