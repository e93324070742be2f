//! Old rows go, their sums stay.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::app::{Database, TIERS, TestApp};

async fn entries(app: &TestApp, user: &str) -> usize {
    app.get(&format!("/v1/users/{user}/usage")).await.ok()["entries"].as_array().unwrap().len()
}

async fn sums(app: &TestApp) -> Value {
    app.get("/v1/users/u/usage?group_by=day,model").await.ok()["sums"].clone()
}

#[tokio::test]
async fn rows_older_than_the_days_to_keep_are_rolled_into_daily_sums_and_every_sum_stays() {
    for database in Database::ALL {
        let mut app = TestApp::start(database, TIERS, |config| spendgate::config::Config { retention_days: Some(35), ..config }).await;
        app.put("/v1/accounts/acme/users/u", "").await.ok();
        for number in 0..30 {
            let model = if number % 2 == 0 { "gpt-4o" } else { "o1" };
            let body = json!({"id": format!("old-{number}"), "user_id": "u", "cost": 0.001, "model": model, "input_tokens": 7});
            app.post("/v1/usage", body).await.ok();
        }
        for (id, user) in [("captured", "u"), ("released", "v"), ("expired", "w")] {
            app.post("/v1/holds", json!({"id": id, "user_id": user, "estimated_cost": 0.01})).await.ok();
        }
        app.post("/v1/holds/captured/capture", json!({"cost": 0.02})).await.ok();
        app.post("/v1/holds/released/release", "").await.ok();
        let before = sums(&app).await;
        app.advance(TimeDelta::days(20));
        // Recorded late: his own time is old, but the row is young.
        let late = json!({"id": "late", "user_id": "u", "cost": 0.001, "time": "2026-01-12T10:00:00Z", "model": "gpt-4o"});
        app.post("/v1/usage", &late).await.ok();
        app.restart().await;
        assert_eq!(entries(&app, "u").await, 32, "nothing is old enough yet");
        app.advance(TimeDelta::days(20));
        app.restart().await;
        // The service looks for old rows by itself when it starts.
        while 1 < entries(&app, "u").await {
            tokio::task::yield_now().await;
        }
        while app.get("/v1/holds").await.ok()["holds"] != json!([]) {
            tokio::task::yield_now().await;
        }
        let mut expected = before;
        let of_gpt = expected.as_array_mut().unwrap().iter_mut().find(|sum| sum["model"] == "gpt-4o").unwrap();
        (of_gpt["spent"], of_gpt["entries"]) = (json!(0.016), json!(16));
        assert_eq!(sums(&app).await, expected);
        assert_eq!(app.user("u").await["lifetime"], json!({"spent": 0.051, "entries": 32}));
        assert_eq!(app.get("/v1/accounts/acme").await.ok()["lifetime"], json!({"spent": 0.051, "entries": 32}));
        assert_eq!(app.post("/v1/usage", &late).await.ok()["repeated"], true);
        let told = app.verify();
        assert!(told.contains(" 0 disagreements"), "{told}");
        app.stop().await;
    }
}
