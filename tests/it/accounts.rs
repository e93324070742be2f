//! Accounts: several users whom Stripe bills together.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::app::{ADMIN_KEY, TestApp, on_each_database};
use crate::stripe::{subscription, updated};

/// A tier whose users share its budgets, one whose users do not, and one that is bought by the seat.
const TIERS: &str = "default_tier: free\n\
    tiers:\n  \
      free: { rank: 0, budgets: { daily: 0.10 }, policy: strict, scope: account }\n  \
      alone: { rank: 1, budgets: { daily: 0.10 }, policy: strict }\n  \
      team: { rank: 2, budgets: { daily: 1.00, billing: 20.00 }, policy: strict, scope: account, per_seat: true, prices: [price_team] }\n";

async fn join(app: &TestApp, account: &str, users: &[&str]) {
    for user in users {
        app.put(&format!("/v1/accounts/{account}/users/{user}"), "").await.ok();
    }
}

async fn leave(app: &TestApp, account: &str, user: &str) -> u16 {
    let request = TestApp::client().delete(app.url(&format!("/v1/accounts/{account}/users/{user}")));
    app.send(request.bearer_auth(ADMIN_KEY)).await.status
}

/// Action, spent and held of the daily budget.
async fn daily(app: &TestApp, user: &str) -> Value {
    let check = app.check(user).await;
    let budget = check["budgets"].as_array().unwrap().iter().find(|budget| budget["period"] == "daily").unwrap();
    json!([check["action"], budget["scope"], budget["limit"], budget["spent"], budget["held"]])
}

fn ask(id: &str, user: &str, cost: f64) -> Value {
    json!({"id": id, "user_id": user, "estimated_cost": cost})
}

#[tokio::test]
async fn users_of_one_account_share_its_budget_and_others_do_not() {
    on_each_database(TIERS, async |app| {
        app.spend("before", "u", "0.05").await;
        join(app, "acme", &["u", "v"]).await;
        // What he spent before he joined is his own.
        assert_eq!(daily(app, "u").await, json!(["ALLOW", "account", 0.1, 0, 0]));
        app.spend("a", "u", "0.04").await;
        assert_eq!(app.post("/v1/holds", ask("h", "v", 0.05)).await.ok()["reason"], "warn_threshold");
        for user in ["u", "v"] {
            assert_eq!(daily(app, user).await, json!(["WARN", "account", 0.1, 0.04, 0.05]), "{user}");
        }
        let refused = app.post("/v1/holds", ask("i", "u", 0.02)).await.ok();
        assert_eq!((&refused["hold"], &refused["binding"]["scope"]), (&Value::Null, &json!("account")));
        assert!(refused["message"].as_str().unwrap().starts_with("Daily budget of the account of $0.10 has $0.01 left"), "{refused}");
        // A user and an account of one name have nothing to do with each other, and who stands alone is an account by himself.
        assert_eq!(daily(app, "acme").await, json!(["ALLOW", "account", 0.1, 0, 0]));
        // A tier whose budgets are each user's own, set by hand for one of them: he still fills the account's.
        app.put("/v1/users/v", json!({"tier": "alone", "reason": "test"})).await.ok();
        assert_eq!(daily(app, "v").await, json!(["ALLOW", "user", 0.1, 0, 0.05]));
        app.post("/v1/holds/h/capture", json!({"cost": 0.06})).await.ok();
        assert_eq!(daily(app, "v").await, json!(["ALLOW", "user", 0.1, 0.06, 0]));
        assert_eq!(daily(app, "u").await, json!(["BLOCK", "account", 0.1, 0.1, 0]));
        let account = app.get("/v1/accounts/acme").await.ok();
        assert_eq!((&account["users"], &account["lifetime"]), (&json!(["u", "v"]), &json!({"spent": 0.1, "entries": 2})));
        app.restart().await;
        assert_eq!(daily(app, "u").await, json!(["BLOCK", "account", 0.1, 0.1, 0]));
        assert_eq!(app.user("u").await["account_id"], "acme");
        // Who leaves stands alone again, with all that he ever spent; what he holds still counts where he promised it.
        app.put("/v1/users/v", json!({"tier": null, "reason": "test"})).await.ok();
        assert_eq!(leave(app, "acme", "u").await, 200);
        assert_eq!(leave(app, "acme", "u").await, 404);
        assert_eq!(daily(app, "u").await, json!(["WARN", "account", 0.1, 0.09, 0]));
        assert_eq!(daily(app, "v").await, json!(["BLOCK", "account", 0.1, 0.1, 0]));
        assert!(app.verify().contains(" 0 disagreements"), "{}", app.verify());
    })
    .await;
}

#[tokio::test]
async fn sixty_four_at_once_never_pass_the_limit_that_users_share_and_reach_it() {
    on_each_database(TIERS, async |app| {
        let app = &*app;
        for round in 0..5 {
            let account = format!("team{round}");
            let users: Vec<String> = (0..8).map(|number| format!("{account}-{number}")).collect();
            join(app, &account, &users.iter().map(String::as_str).collect::<Vec<_>>()).await;
            let posts = (0..64).map(|number| app.post("/v1/holds", ask(&format!("{round}-{number}"), &users[number % 8], 0.003)));
            let admitted = join_all(posts).await.iter().filter(|answer| answer.ok()["hold"].is_object()).count();
            assert_eq!(admitted, 33, "round {round}");
            // One of them leaves while his calls run: their cost is the account's all the same.
            assert_eq!(leave(app, &account, &users[0]).await, 200);
            let paths: Vec<String> = (0..64).map(|number| format!("/v1/holds/{round}-{number}/capture")).collect();
            let captures = paths.iter().map(|path| app.post(path, json!({"cost": 0.003})));
            assert_eq!(join_all(captures).await.iter().filter(|answer| answer.status == 200).count(), 33);
            assert_eq!(daily(app, &users[1]).await, json!(["WARN", "account", 0.1, 0.099, 0]));
        }
        assert!(app.verify().contains(" 0 disagreements"));
    })
    .await;
}

#[tokio::test]
async fn a_quantity_multiplies_the_budget_of_a_tier_that_is_sold_by_the_seat() {
    on_each_database(TIERS, async |app| {
        join(app, "acme", &["u", "v"]).await;
        let mut team = subscription("cus_acme", "active", "price_team");
        team["items"]["data"][0]["quantity"] = json!(3);
        app.apply(updated(1, team.clone())).await;
        assert_eq!(app.check("u").await["tier"], "free");
        app.put("/v1/accounts/acme", json!({"stripe_customer": "cus_acme"})).await.ok();
        assert_eq!(daily(app, "v").await, json!(["ALLOW", "account", 3, 0, 0]));
        app.spend("a", "u", "2.5").await;
        assert_eq!(daily(app, "v").await, json!(["WARN", "account", 3, 2.5, 0]));
        // The next check of every one of them sees a change of seats.
        team["items"]["data"][0]["quantity"] = json!(2);
        app.apply(updated(2, team)).await;
        for user in ["u", "v"] {
            assert_eq!(daily(app, user).await, json!(["BLOCK", "account", 2, 2.5, 0]), "{user}");
        }
        let billing = app.check("v").await["budgets"].as_array().unwrap().iter().find(|budget| budget["period"] == "billing").cloned();
        assert_eq!(billing.map(|budget| (budget["limit"].clone(), budget["spent"].clone())), Some((json!(40), json!(2.5))));
        // A tier set by hand has no seats.
        app.put("/v1/users/u", json!({"tier": "team", "reason": "test"})).await.ok();
        assert_eq!(daily(app, "u").await, json!(["BLOCK", "account", 1, 2.5, 0]));
        app.put("/v1/users/w", json!({"stripe_customer": "cus_acme"})).await.problem(409, "customer_bound");
        app.put("/v1/accounts/acme", json!({"stripe_customer": null})).await.ok();
        assert_eq!(app.check("v").await["tier"], "free");
        app.put("/v1/accounts/acme", "{}").await.problem(422, "missing_field");
        app.get("/v1/accounts/nobody").await.problem(404, "account_not_found");
    })
    .await;
}

#[tokio::test]
async fn a_correction_takes_from_where_it_was_spent() {
    on_each_database(TIERS, async |app| {
        let correct =
            |id: &str, user: &str, amount: f64| json!({"id": id, "user_id": user, "amount": amount, "reason": "test", "time": app.now()});
        app.spend("alone", "u", "0.08").await;
        join(app, "acme", &["u", "v"]).await;
        app.spend("a", "v", "0.09").await;
        app.spend("b", "u", "0.01").await;
        // He was alone when he spent it: the account's limit does not give way.
        app.post("/v1/corrections", correct("c", "u", 0.08)).await.ok();
        assert_eq!(daily(app, "u").await, json!(["BLOCK", "account", 0.1, 0.1, 0]));
        app.post("/v1/corrections", correct("d", "u", 0.02)).await.problem(422, "invalid_field");
        // It was spent in the account, though he has left it.
        assert_eq!(leave(app, "acme", "v").await, 200);
        app.post("/v1/corrections", correct("e", "v", 0.05)).await.ok();
        for _ in 0..2 {
            assert_eq!(daily(app, "u").await, json!(["ALLOW", "account", 0.1, 0.05, 0]));
            assert_eq!(daily(app, "v").await, json!(["ALLOW", "account", 0.1, 0.04, 0]));
            app.restart().await;
        }
        assert!(app.verify().contains(" 0 disagreements"), "{}", app.verify());
    })
    .await;
}

#[tokio::test]
async fn an_account_that_has_spent_all_that_can_be_counted_is_refused_more_and_stops_nobody() {
    on_each_database(TIERS, async |app| {
        join(app, "acme", &["u", "v"]).await;
        for number in 0..9 {
            let user = if number % 2 == 0 { "u" } else { "v" };
            app.spend(&format!("r{number}"), user, "1000000000").await;
        }
        let body = json!({"id": "more", "user_id": "v", "cost": "1000000000"});
        app.post("/v1/usage", &body).await.problem(422, "invalid_field");
        app.restart().await;
        app.post("/v1/usage", &body).await.problem(422, "invalid_field");
        app.spend("other", "w", "0.01").await;
        assert!(app.verify().contains(" 0 disagreements"), "{}", app.verify());
    })
    .await;
}
