//! Input that is odd, and never the service's own fault.

use serde_json::{Value, json};

use crate::app::{TIERS, on_each_database};

/// Postgres stores no NUL character in a text, and SQLite does: what cannot be stored everywhere is refused, or left out, everywhere.
#[tokio::test]
async fn a_nul_character_anywhere_is_never_the_services_own_fault() {
    on_each_database(TIERS, async |app| {
        let nul = "a\u{0}b";
        let posts = [
            ("/v1/usage", json!({"id": nul, "user_id": "u", "cost": 0})),
            ("/v1/usage", json!({"id": "i1", "user_id": nul, "cost": 0})),
            ("/v1/usage", json!({"id": "i2", "user_id": "u", "cost": 0, "model": nul})),
            ("/v1/usage", json!({"id": "i3", "user_id": "u", "cost": 0, "provider": nul})),
            ("/v1/usage", json!({"id": "i4", "user_id": "u", "cost": 0, "metadata": {nul: nul}})),
            ("/v1/holds", json!({"id": nul, "user_id": "u", "estimated_cost": 0.01})),
            ("/v1/holds", json!({"id": "h", "user_id": "u", "estimated_cost": 0.01, "model": nul})),
            ("/v1/corrections", json!({"id": nul, "user_id": "u", "amount": 0.01, "time": "2026-01-12T09:00:00Z", "reason": nul})),
        ];
        for (path, body) in posts {
            let answer = app.post(path, &body).await;
            assert!(answer.status < 500, "{body}: {}", answer.text);
        }
        for path in ["/v1/holds/a%00b/release", "/v1/holds/a%00b/capture", "/v1/holds/a%00b/extend", "/v1/events/a%00b/replay"] {
            let answer = app.post(path, json!({"cost": 0, "ttl_seconds": 60})).await;
            assert!(answer.status < 500, "{path}: {}", answer.text);
        }
        app.post("/v1/usage", json!({"id": "others", "user_id": "u", "cost": 0})).await.ok();
        let puts = [
            ("/v1/users/u", json!({"tier": "pro", "reason": nul})),
            ("/v1/users/u", json!({"stripe_customer": nul, "reason": "r"})),
            ("/v1/accounts/acme", json!({"stripe_customer": nul})),
            ("/v1/accounts/a%00b", json!({"stripe_customer": "cus_1"})),
            ("/v1/users/a%00b", json!({"tier": "pro", "reason": "r"})),
        ];
        for (path, body) in puts {
            let answer = app.put(path, &body).await;
            assert!(answer.status < 500, "{path} {body}: {}", answer.text);
        }
        for path in ["/v1/users?after=a%00b", "/v1/holds?user_id=a%00b", "/v1/holds/a%00b", "/v1/events?customer=a%00b", "/v1/events/a%00b", "/v1/events?type=a%00b", "/v1/users?cursor=YQBi", "/v1/holds?cursor=YQBi"] {
            let answer = app.get(path).await;
            assert!(answer.status < 500, "{path}: {}", answer.text);
        }
        let event = |id: &str, kind: &str, object: Value| {
            json!({"id": id, "object": "event", "type": kind, "created": 1_768_219_200, "livemode": false, "api_version": nul, "data": {"object": object}})
        };
        let subscription = |status: &str, price: &str, user: &str| {
            json!({
                "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status, "metadata": {"user_id": user},
                "items": {"data": [{"id": nul, "price": {"id": price, "lookup_key": nul, "product": nul}, "quantity": 1}]},
            })
        };
        let events = [
            event(nul, "customer.updated", json!({"id": "cus_1", "object": "customer"})),
            event("evt_1", nul, json!({"id": "cus_1"})),
            event("evt_2", "customer.created", json!({"id": nul, "object": "customer"})),
            event("evt_3", "customer.created", json!({"id": "cus_2", "object": "customer", "metadata": {"user_id": nul}})),
            event("evt_4", "customer.subscription.created", subscription(nul, "price_pro", "u")),
            event("evt_5", "customer.subscription.updated", subscription("active", nul, nul)),
        ];
        for event in events {
            let answer = app.deliver(event.to_string().as_bytes()).await;
            assert!(answer.status < 500, "{event}: {}", answer.text);
        }
    })
    .await;
}
