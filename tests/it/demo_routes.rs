//! The two routes of the demo: from spending to an answer, and from a Stripe event to an answer.

use serde_json::json;

use crate::app::{TIERS, on_each_database};
use crate::stripe::paying;

#[tokio::test]
async fn a_free_user_is_warned_then_blocked_with_the_way_to_pay_and_paying_unblocks_at_once() {
    on_each_database(TIERS, async |app| {
        assert_eq!(app.check("u_free").await["action"], "ALLOW");
        app.spend("f1", "u_free", "0.08").await;
        assert_eq!(app.check("u_free").await["action"], "WARN");
        app.spend("f2", "u_free", "0.025").await;
        let blocked = app.check("u_free").await;
        assert_eq!(
            blocked,
            json!({
                "user_id": "u_free", "tier": "free", "action": "BLOCK",
                "reason": "budget_exhausted", "binding": {"scope": "user", "period": "daily", "source": "tier"},
                "message": "Daily budget of $0.10 is used up; it resets at 2026-01-13T00:00:00Z.",
                "budgets": [{
                    "scope": "user", "period": "daily", "source": "tier", "limit": 0.1, "spent": 0.105, "held": 0, "remaining": 0,
                    "used_pct": 105.0, "resets_at": "2026-01-13T00:00:00Z"
                }],
                "model": "gpt-4o", "retry_at": "2026-01-13T00:00:00Z",
                "upgrade_url": "https://spend.example.com/upgrade?from=free",
                "upgrade": {"tier": "pro", "monthly_price": 29, "budgets": {"daily": 1, "weekly": 5, "monthly": 20}},
                "contact_url": null,
                "subscription": {"status": null, "ends_at": null}
            })
        );
        for event in paying("u_free", "price_pro") {
            app.deliver(event.to_string().as_bytes()).await.ok();
        }
        let unblocked = app.check("u_free").await;
        assert_eq!((&unblocked["tier"], &unblocked["action"]), (&json!("pro"), &json!("ALLOW")));
        assert_eq!(unblocked["subscription"]["status"], "active");
    })
    .await;
}

#[tokio::test]
async fn a_pro_user_is_warned_then_sent_to_the_cheaper_model_and_an_enterprise_user_only_warned() {
    on_each_database(TIERS, async |app| {
        for event in paying("u_pro", "price_pro").into_iter().chain(paying("u_big", "price_enterprise")) {
            app.deliver(event.to_string().as_bytes()).await.ok();
        }
        app.spend("p1", "u_pro", "0.899999999").await;
        assert_eq!(app.check("u_pro").await["action"], "ALLOW");
        app.spend("p2", "u_pro", "0.000000001").await;
        assert_eq!(app.check("u_pro").await["action"], "WARN");
        app.spend("p3", "u_pro", "0.1").await;
        let degraded = app.check("u_pro").await;
        assert_eq!((&degraded["action"], &degraded["model"]), (&json!("DEGRADE"), &json!("gpt-4o-mini")));
        app.spend("e1", "u_big", "45").await;
        assert_eq!(app.check("u_big").await["action"], "WARN");
        app.spend("e2", "u_big", "4000").await;
        let warned = app.check("u_big").await;
        assert_eq!((&warned["action"], &warned["model"]), (&json!("WARN"), &json!("gpt-4o")));
    })
    .await;
}
