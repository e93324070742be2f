//! `spendgate plan`: the differences, and whom they affect, before anything holds.

use std::fs;
use std::path::Path;

use chrono::{SubsecRound, Utc};

use crate::app::{TIERS, on_each_database};
use crate::cli::{folder, run};
use crate::stripe::paying;

fn put(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_what_changes_and_for_whom_and_changes_nothing() {
    on_each_database(TIERS, async |app| {
        // The command runs on the real clock.
        app.set_clock(&Utc::now().trunc_subsecs(6).to_rfc3339());
        for number in 0..25 {
            app.spend(&format!("a{number}"), &format!("u{number:02}"), "0.05").await;
        }
        app.spend("b", "v", "0.10").await;
        for event in paying("payer", "price_pro").into_iter().chain(paying("other", "price_enterprise")) {
            app.apply(event).await;
        }
        app.spend("c", "payer", "0.99").await;
        let seen = async || (app.get("/v1/users?limit=1000").await.text, app.get("/v1/tiers").await.text);
        let before = seen().await;
        let database = app.database().url();
        let plan = |args: &[&str]| {
            let (code, out, err) = run(app.folder.path(), &[&["plan"], args].concat(), &[("DATABASE_URL", &database)]);
            assert_eq!(code, 0, "{out}{err}");
            out
        };
        put(app.folder.path(), "tiers.yaml", TIERS);
        let lower = TIERS.replace("daily: 0.10", "daily: 0.05").replace("  pro:", "  plus:").replace("daily: 1.00", "daily: 1.50");
        put(app.folder.path(), "lower.yaml", &lower);
        let out = plan(&["--tiers", "lower.yaml"]);
        for line in [
            "  tiers.free.budgets.daily: $0.10 -> $0.05",
            "28 users are known:",
            "  tier free, 26 users now:",
            "  tier pro, 1 users now:",
            "    1 get the tier plus: payer",
            "    1 get other limits: payer",
            "    1 WARN -> ALLOW: payer",
        ] {
            assert!(out.lines().any(|told| told == line), "{line} is not in\n{out}");
        }
        let named: Vec<String> = (0..20).map(|number| format!("u{number:02}")).collect();
        assert!(out.contains(&format!("    25 ALLOW -> BLOCK: {}, and 5 more\n", named.join(", "))), "{out}");
        assert!(out.contains("    26 get other limits: ") && !out.contains("tier enterprise"), "{out}");

        put(app.folder.path(), "same.yaml", &TIERS.replace("daily: 0.10", "daily: 0.100"));
        assert_eq!(plan(&["--tiers", "same.yaml"]), "nothing changes\n");
        put(app.folder.path(), "higher.yaml", &TIERS.replace("grace_days: 30", "grace_days: 31"));
        let out = plan(&["--tiers", "higher.yaml"]);
        assert!(out.contains("grace_days: 30 -> 31") && out.contains("28 users are known; none of them is affected now"), "{out}");
        put(app.folder.path(), "few.yaml", "models: { gpt-4o-mini: { input: 1, output: 1 } }");
        assert!(plan(&["--prices", "few.yaml"]).contains("models.gpt-4o: gone, was "));
        assert_eq!(seen().await, before, "nothing was written, and the service goes on as before");
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[test]
fn a_faulty_plan_is_refused_as_the_file_would_be() {
    let folder = folder();
    put(folder.path(), "new.yaml", &TIERS.replace("weekly:", "weakly:"));
    let (code, _, err) = run(folder.path(), &["plan", "--tiers", "new.yaml"], &[]);
    assert_eq!(code, 2);
    assert!(err.contains("new.yaml:") && err.contains("`weakly` is not a period"), "{err}");
    put(folder.path(), "new.yaml", &TIERS.replace("weekly: 5", "weekly: 6"));
    let (code, out, _) = run(folder.path(), &["plan", "--tiers", "new.yaml"], &[]);
    assert_eq!(code, 0);
    assert!(out.contains("tiers.pro.budgets.weekly: $5.00 -> $6.00") && out.contains("there is no database yet"), "{out}");
    assert_eq!(run(folder.path(), &["plan"], &[]).0, 2, "it needs a file");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}
