//! Grants: more budget, once, until an end; exact to the nano-dollar, and what is drawn stays drawn.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::app::{ADMIN_KEY, Database, Node, TIERS, TestApp, on_each_database};

fn body(id: &str, amount: &str, period: &str, ends_at: &str) -> Value {
    json!({"id": id, "amount": amount, "period": period, "ends_at": ends_at, "reason": "an apology"})
}

async fn give(app: &TestApp, user: &str, id: &str, amount: &str) -> Value {
    app.post(&format!("/v1/users/{user}/grants"), body(id, amount, "daily", "2026-01-20T00:00:00Z")).await.ok()
}

/// Used, remaining and state of each grant of a user, by its id.
async fn grants(app: &TestApp, user: &str) -> Value {
    let list = app.get(&format!("/v1/users/{user}/grants")).await.ok();
    let told = |grant: &Value| (grant["id"].as_str().unwrap().to_owned(), json!([grant["used"], grant["remaining"], grant["state"]]));
    Value::Object(list["grants"].as_array().unwrap().iter().map(told).collect())
}

async fn revoke(app: &TestApp, user: &str, id: &str) -> crate::app::Answer {
    app.send(app.client.delete(app.url(&format!("/v1/users/{user}/grants/{id}"))).bearer_auth(ADMIN_KEY)).await
}

/// Action, limit, what of it is granted, and what remains of the first budget.
async fn first(app: &TestApp, user: &str) -> Value {
    let check = app.check(user).await;
    let budget = &check["budgets"][0];
    json!([check["action"], budget["limit"], budget["granted"], budget["remaining"]])
}

fn hold(id: &str, user: &str, cost: &str) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost})
}

#[tokio::test]
async fn a_grant_adds_to_the_budget_until_it_is_used_up_and_not_each_day() {
    on_each_database(TIERS, async |app| {
        app.spend("a", "u", "0.1").await;
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.1, null, 0]));
        let given = give(app, "u", "g", "0.05").await;
        assert_eq!(
            given,
            json!({"id": "g", "user_id": "u", "period": "daily", "amount": 0.05, "used": 0, "remaining": 0.05, "state": "open",
                "created_at": "2026-01-12T12:00:00Z", "ends_at": "2026-01-20T00:00:00Z", "revoked_at": null, "reason": "an apology",
                "repeated": false})
        );
        assert_eq!(first(app, "u").await, json!(["ALLOW", 0.15, 0.05, 0.05]));
        app.spend("b", "u", "0.02").await;
        assert_eq!(
            (first(app, "u").await, grants(app, "u").await),
            (json!(["WARN", 0.15, 0.05, 0.03]), json!({"g": [0.02, 0.03, "open"]}))
        );
        app.restart().await;
        assert_eq!(
            (first(app, "u").await, grants(app, "u").await),
            (json!(["WARN", 0.15, 0.05, 0.03]), json!({"g": [0.02, 0.03, "open"]}))
        );
        app.set_clock("2026-01-13T12:00:00Z");
        assert_eq!(first(app, "u").await, json!(["ALLOW", 0.13, 0.03, 0.13]));
        app.spend("c", "u", "0.15").await;
        assert_eq!((first(app, "u").await, grants(app, "u").await), (json!(["BLOCK", 0.13, 0.03, 0]), json!({"g": [0.05, 0, "used_up"]})));
        let blocked = app.check("u").await;
        assert_eq!((&blocked["reason"], &blocked["binding"]["source"]), (&json!("budget_exhausted"), &json!("tier")));
        assert!(blocked["upgrade_url"].is_string(), "whoever is granted something can buy more all the same");
        app.set_clock("2026-01-14T12:00:00Z");
        assert_eq!(first(app, "u").await, json!(["ALLOW", 0.1, null, 0.1]));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn the_grant_that_ends_earliest_is_drawn_first_and_ends_by_the_clock() {
    on_each_database(TIERS, async |app| {
        let path = "/v1/users/u/grants";
        app.post(path, body("late", "0.05", "daily", "2026-01-12T15:00:00Z")).await.ok();
        app.post(path, body("early", "0.05", "daily", "2026-01-12T14:00:00Z")).await.ok();
        app.spend("a", "u", "0.12").await;
        assert_eq!(grants(app, "u").await, json!({"early": [0.02, 0.03, "open"], "late": [0, 0.05, "open"]}));
        app.set_clock("2026-01-12T14:00:00Z");
        assert_eq!(first(app, "u").await, json!(["ALLOW", 0.17, 0.07, 0.05]));
        app.spend("b", "u", "0.04").await;
        assert_eq!(grants(app, "u").await, json!({"early": [0.02, 0, "ended"], "late": [0.04, 0.01, "open"]}));
        app.set_clock("2026-01-12T15:00:00Z");
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.16, 0.06, 0]));
        // Late usage of an open window draws no more on what has ended, and a restart changes nothing.
        app.restart().await;
        app.spend("c", "u", "0.01").await;
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.16, 0.06, 0]));
        // A clock that was set back: what was open then is open.
        app.set_clock("2026-01-12T14:30:00Z");
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.17, 0.07, 0]));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn what_is_revoked_gives_no_more_and_keeps_what_it_gave() {
    on_each_database(TIERS, async |app| {
        give(app, "u", "g", "0.05").await;
        app.spend("a", "u", "0.12").await;
        let told = revoke(app, "u", "g").await.ok();
        assert_eq!((&told["used"], &told["remaining"], &told["state"]), (&json!(0.02), &json!(0), &json!("revoked")));
        assert_eq!(told["revoked_at"], "2026-01-12T12:00:00Z");
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.12, 0.02, 0]));
        app.spend("b", "u", "0.01").await;
        app.advance(TimeDelta::seconds(1));
        assert_eq!(revoke(app, "u", "g").await.ok(), told, "once more is as once");
        revoke(app, "u", "none").await.problem(404, "grant_not_found");
        revoke(app, "v", "g").await.problem(404, "grant_not_found");
        let changes: Vec<Value> =
            app.column("SELECT change FROM audit ORDER BY seq").await.iter().map(|change| serde_json::from_str(change).unwrap()).collect();
        let made = json!({"grant": "g", "from": null, "to": {"amount": "0.05", "period": "daily", "ends_at": "2026-01-20T00:00:00Z"}});
        assert_eq!(changes, [made, json!({"grant": "g", "from": "open", "to": "revoked"})]);
        assert_eq!(app.column("SELECT reason FROM audit WHERE reason IS NOT NULL").await, ["an apology"]);
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn a_correction_gives_back_what_the_window_drew() {
    on_each_database(TIERS, async |app| {
        give(app, "u", "g", "0.05").await;
        app.spend("a", "u", "0.14").await;
        let correct = async |id: &str, amount: &str, time: &str| {
            let correction = json!({"id": id, "user_id": "u", "amount": amount, "reason": "too much", "time": time});
            app.post("/v1/corrections", correction).await.ok()
        };
        correct("c", "0.03", "2026-01-12T12:00:00Z").await;
        assert_eq!(
            (first(app, "u").await, grants(app, "u").await),
            (json!(["ALLOW", 0.15, 0.05, 0.04]), json!({"g": [0.01, 0.04, "open"]}))
        );
        correct("c", "0.03", "2026-01-12T12:00:00Z").await;
        assert_eq!(grants(app, "u").await, json!({"g": [0.01, 0.04, "open"]}), "a repeat gives back nothing more");
        // A window that has closed keeps what it drew.
        app.set_clock("2026-01-13T12:00:00Z");
        correct("d", "0.01", "2026-01-12T12:00:00Z").await;
        assert_eq!(grants(app, "u").await, json!({"g": [0.01, 0.04, "open"]}));
        app.restart().await;
        assert_eq!(first(app, "u").await, json!(["ALLOW", 0.14, 0.04, 0.14]));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn a_grant_of_every_period_counts_in_its_own_windows() {
    let tiers = "default_tier: free\ntiers:\n  free:\n    rank: 0\n    policy: strict\n    \
        budgets: { daily: 0.1, weekly: 0.1, monthly: 0.1, billing: 0.1, total: 0.1 }\n";
    on_each_database(tiers, async |app| {
        for period in ["daily", "weekly", "monthly", "billing", "total"] {
            app.post("/v1/users/u/grants", body(period, "0.05", period, "2026-03-01T00:00:00Z")).await.ok();
        }
        app.spend("a", "u", "0.12").await;
        app.restart().await;
        let of = async || {
            let check = app.check("u").await;
            check["budgets"].as_array().unwrap().iter().map(|budget| budget["limit"].to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of().await, "0.15 0.15 0.15 0.15 0.15");
        app.set_clock("2026-01-13T12:00:00Z");
        assert_eq!(of().await, "0.13 0.15 0.15 0.15 0.15");
        app.set_clock("2026-01-19T12:00:00Z");
        assert_eq!(of().await, "0.13 0.13 0.15 0.15 0.15");
        app.set_clock("2026-02-01T12:00:00Z");
        assert_eq!(of().await, "0.13 0.13 0.13 0.13 0.15");
        app.set_clock("2026-03-01T12:00:00Z");
        assert_eq!(of().await, "0.1 0.1 0.1 0.1 0.12");
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn the_same_grant_again_is_one_and_another_under_its_id_is_refused() {
    on_each_database(TIERS, async |app| {
        let first_time = give(app, "u", "g", "0.05").await;
        app.spend("a", "u", "0.12").await;
        app.restart().await;
        let mut again = give(app, "u", "g", "5e-2").await;
        assert_eq!((&again["repeated"], &again["used"]), (&json!(true), &json!(0.02)));
        for field in ["repeated", "used", "remaining"] {
            again[field] = first_time[field].clone();
        }
        assert_eq!(again, first_time);
        for (field, other) in [("amount", "0.06"), ("period", "weekly"), ("ends_at", "2026-01-21T00:00:00Z"), ("reason", "another")] {
            let mut changed = body("g", "0.05", "daily", "2026-01-20T00:00:00Z");
            changed[field] = json!(other);
            assert_eq!(app.post("/v1/users/u/grants", changed).await.problem(409, "id_reused")["field"], "id");
        }
        // Another user may have one of the same name; and a repeat is one, also when it has ended.
        assert_eq!(give(app, "v", "g", "0.05").await["repeated"], json!(false));
        app.set_clock("2026-01-21T00:00:00Z");
        assert_eq!(give(app, "u", "g", "0.05").await["state"], "ended");
        assert_eq!(app.column("SELECT CAST(COUNT(*) AS TEXT) FROM audit").await, ["2"]);
    })
    .await;
}

#[tokio::test]
async fn grants_that_would_be_of_no_use_are_refused_by_field() {
    let tiers = format!("{TIERS}\n  team: {{ rank: 30, budgets: {{ daily: 1 }}, policy: strict, scope: account }}\n");
    on_each_database(&tiers, async |app| {
        let good = body("g", "0.05", "daily", "2026-01-20T00:00:00Z");
        let check = async |field: &str, value: Value, code: &str| {
            let mut changed = good.clone();
            changed[field] = value.clone();
            assert_eq!(app.post("/v1/users/u/grants", changed).await.problem(422, code)["field"], field, "{field} {value}");
        };
        check("amount", json!(0), "invalid_field").await;
        check("amount", json!(-1), "invalid_field").await;
        check("period", json!("dayly"), "invalid_field").await;
        check("ends_at", json!("2026-01-12T12:00:00Z"), "invalid_field").await;
        check("ends_at", json!("tomorrow"), "invalid_field").await;
        check("reason", json!(""), "invalid_field").await;
        check("id", json!("a\nb"), "invalid_field").await;
        check("currency", json!("EUR"), "unknown_field").await;
        for field in ["id", "amount", "period", "ends_at", "reason"] {
            let mut less = good.clone();
            less.as_object_mut().unwrap().remove(field);
            assert_eq!(app.post("/v1/users/u/grants", less).await.problem(422, "missing_field")["field"], field);
        }
        let mut weekly = good.clone();
        weekly["period"] = json!("weekly");
        let problem = app.post("/v1/users/u/grants", weekly).await.problem(422, "invalid_field");
        assert_eq!(problem["detail"], "`period` names no budget of tier `free`, which has no weekly one; use one of daily");
        // Where an account's users share the budgets, none of them is this user's own.
        app.put("/v1/accounts/acme/users/u", "").await.ok();
        app.put("/v1/users/u", json!({"tier": "team", "reason": "test"})).await.ok();
        let problem = app.post("/v1/users/u/grants", &good).await.problem(409, "budget_is_shared");
        assert!(problem["detail"].as_str().unwrap().contains("the account `acme`"), "{problem}");
        assert_eq!(app.get("/v1/users/u/grants").await.ok(), json!({"grants": [], "next_cursor": null}));
        app.put("/v1/users/u", json!({"tier": null, "reason": "test"})).await.ok();
        for number in 0..100 {
            give(app, "u", &format!("g{number}"), "0.000000001").await;
        }
        app.post("/v1/users/u/grants", &good).await.problem(409, "too_many_grants");
        revoke(app, "u", "g0").await.ok();
        app.post("/v1/users/u/grants", &good).await.ok();
    })
    .await;
}

#[tokio::test]
async fn the_list_pages_the_latest_first() {
    on_each_database(TIERS, async |app| {
        for number in 0..7 {
            give(app, "u", &format!("g{number}"), "0.01").await;
            if number % 2 == 0 {
                app.advance(TimeDelta::seconds(1));
            }
        }
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = app.get(&format!("/v1/users/u/grants?limit=2{cursor}")).await.ok();
            ids.extend(page["grants"].as_array().unwrap().iter().map(|grant| grant["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(ids, ["g6", "g5", "g4", "g3", "g2", "g1", "g0"]);
        app.get("/v1/users/u/grants?cursor=%25").await.problem(422, "invalid_field");
    })
    .await;
}

/// How many of many holds that come at once are admitted.
async fn admitted(nodes: &[&TestApp], user: &str, count: usize) -> usize {
    let ask = |number: usize| {
        let node = nodes[number % nodes.len()];
        async move { node.post("/v1/holds", hold(&format!("{user}-{number}"), user, "0.01")).await.ok() }
    };
    join_all((0..count).map(ask)).await.iter().filter(|answer| answer["hold"].is_object()).count()
}

async fn capture_all(nodes: &[&TestApp], user: &str, count: usize) {
    let capture = |number: usize| {
        let node = nodes[number % nodes.len()];
        async move { node.post(&format!("/v1/holds/{user}-{number}/capture"), json!({"cost": "0.01"})).await.status }
    };
    let done = join_all((0..count).map(capture)).await;
    assert!(done.iter().all(|status| [200, 404].contains(status)), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_at_once_never_pass_the_limit_and_what_is_granted() {
    on_each_database(TIERS, async |app| {
        give(app, "u", "g", "0.04").await;
        give(app, "u", "h", "0.03").await;
        assert_eq!(admitted(&[app], "u", 60).await, 17);
        assert_eq!(grants(app, "u").await, json!({"g": [0, 0.04, "open"], "h": [0, 0.03, "open"]}), "a hold draws nothing yet");
        capture_all(&[app], "u", 60).await;
        assert_eq!(grants(app, "u").await, json!({"g": [0.04, 0, "used_up"], "h": [0.03, 0, "used_up"]}));
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.17, 0.07, 0]));
        app.restart().await;
        assert_eq!(first(app, "u").await, json!(["BLOCK", 0.17, 0.07, 0]));
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

async fn two() -> (TestApp, Node) {
    let one = TestApp::start(Database::Postgres, TIERS, |config| config).await;
    let other = one.node(|config| config).await;
    (one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_as_exact_on_many_nodes() {
    let (one, other) = two().await;
    for round in 0..5 {
        let user = format!("u{round}");
        // The other one remembers him as he was.
        one.put(&format!("/v1/users/{user}/caps"), json!({})).await.ok();
        other.check(&user).await;
        give(&one, &user, "g", "0.07").await;
        assert_eq!(first(&other, &user).await, json!(["ALLOW", 0.17, 0.07, 0.17]));
        assert_eq!(admitted(&[&one, &other], &user, 40).await, 17);
        capture_all(&[&other, &one], &user, 40).await;
        assert_eq!(grants(&other, &user).await, json!({"g": [0.07, 0, "used_up"]}));
        assert_eq!(first(&one, &user).await, json!(["BLOCK", 0.17, 0.07, 0]));
    }
    assert!(one.verify().contains(" 0 disagreements"));
}

/// Usage is added without asking for anything before, while nothing more need be known of its user.
#[tokio::test(flavor = "multi_thread")]
async fn usage_draws_on_the_grant_that_another_node_has_made_meanwhile() {
    let (one, other) = two().await;
    for (number, node) in [(0, &one), (1, &one), (2, &*other), (3, &*other)] {
        node.spend(&format!("before-{number}"), "u", "0.03").await;
    }
    give(&other, "u", "g", "0.5").await;
    let spend = |number: usize| {
        let node = if number.is_multiple_of(2) { &one } else { &*other };
        async move { node.spend(&format!("after-{number}"), "u", "0.01").await }
    };
    join_all((0..20).map(spend)).await;
    assert_eq!(grants(&one, "u").await, json!({"g": [0.22, 0.28, "open"]}));
    // What is revoked on one node is drawn on no more by the other.
    revoke(&one, "u", "g").await.ok();
    join_all((20..40).map(spend)).await;
    assert_eq!(grants(&other, "u").await, json!({"g": [0.22, 0, "revoked"]}));
    assert!(one.verify().contains(" 0 disagreements"));
}

#[tokio::test]
async fn what_is_drawn_more_or_less_than_it_should_be_is_found() {
    on_each_database(TIERS, async |app| {
        give(app, "u", "g", "0.05").await;
        app.spend("a", "u", "0.12").await;
        app.restart().await;
        app.execute("UPDATE grants SET used = used + 1").await;
        let told = app.verify();
        assert!(told.contains("what is used of grant g of user u: the counter says 20000001, its rows make 20000000"), "{told}");
        app.execute("UPDATE grants SET used = used - 1, amount = 1").await;
        let told = app.verify();
        assert!(told.contains("what is used of grant g of user u, of its amount: the counter says 20000000, its rows make 1"), "{told}");
        app.execute("DELETE FROM grants").await;
        assert!(app.verify().contains("the counter says nothing, its rows make 20000000"));
    })
    .await;
}
