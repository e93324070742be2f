//! Every door, and what it takes to open it. `tests/it/auth.rs` holds this table to the router: a door without a line here fails it, and
//! so does one that opens for anybody else.

use axum::http::Method;

use super::auth::Scope;

/// What opens a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it shows nothing of anybody.
    Nothing,
    /// The signature of whoever sends.
    Signature,
    /// The signed link that the path holds.
    Link,
    /// A key that has this scope.
    Key(Scope),
}

/// A method, a path as the router has it, and what opens it.
pub type Door = (Method, &'static str, Need);

const CHECK: Need = Need::Key(Scope::Check);
const WRITE: Need = Need::Key(Scope::Write);
const ADMIN: Need = Need::Key(Scope::Admin);

pub const DOORS: &[Door] = &[
    (Method::GET, "/v1/users/{user_id}/enforcement", CHECK),
    // With `"hold": true` it needs `write` too.
    (Method::POST, "/v1/enforcement", CHECK),
    // By whatever method the call on its way has.
    (Method::GET, "/v1/gate", CHECK),
    (Method::POST, "/v1/gate", CHECK),
    (Method::PUT, "/v1/gate", CHECK),
    (Method::DELETE, "/v1/gate", CHECK),
    (Method::PATCH, "/v1/gate", CHECK),
    (Method::OPTIONS, "/v1/gate", CHECK),
    (Method::GET, "/v1/users/{user_id}/explain", CHECK),
    (Method::POST, "/v1/usage", WRITE),
    (Method::POST, "/v1/corrections", ADMIN),
    (Method::GET, "/v1/holds", CHECK),
    (Method::POST, "/v1/holds", WRITE),
    (Method::GET, "/v1/holds/{hold_id}", CHECK),
    (Method::POST, "/v1/holds/{hold_id}/capture", WRITE),
    (Method::POST, "/v1/holds/{hold_id}/release", WRITE),
    (Method::POST, "/v1/holds/{hold_id}/extend", WRITE),
    (Method::GET, "/v1/users", ADMIN),
    (Method::GET, "/v1/users/{user_id}", CHECK),
    (Method::PUT, "/v1/users/{user_id}", ADMIN),
    (Method::GET, "/v1/users/{user_id}/usage", CHECK),
    (Method::GET, "/v1/users/{user_id}/caps", CHECK),
    (Method::PUT, "/v1/users/{user_id}/caps", WRITE),
    (Method::GET, "/v1/users/{user_id}/grants", CHECK),
    (Method::POST, "/v1/users/{user_id}/grants", ADMIN),
    (Method::DELETE, "/v1/users/{user_id}/grants/{grant_id}", ADMIN),
    (Method::GET, "/v1/accounts/{account_id}", CHECK),
    (Method::PUT, "/v1/accounts/{account_id}", ADMIN),
    (Method::PUT, "/v1/accounts/{account_id}/users/{user_id}", ADMIN),
    (Method::DELETE, "/v1/accounts/{account_id}/users/{user_id}", ADMIN),
    (Method::GET, "/v1/tiers", CHECK),
    (Method::GET, "/v1/prices", CHECK),
    (Method::POST, "/v1/simulate", ADMIN),
    (Method::GET, "/v1/keys", ADMIN),
    (Method::POST, "/v1/keys", ADMIN),
    (Method::DELETE, "/v1/keys/{key_id}", ADMIN),
    (Method::POST, "/v1/keys/{key_id}/rotate", ADMIN),
    (Method::GET, "/v1/alerts", ADMIN),
    (Method::POST, "/v1/alerts/test", ADMIN),
    (Method::GET, "/v1/alerts/{alert_id}", ADMIN),
    (Method::POST, "/v1/alerts/{alert_id}/redeliver", ADMIN),
    (Method::GET, "/v1/events", ADMIN),
    (Method::GET, "/v1/events/{event_id}", ADMIN),
    (Method::POST, "/v1/events/{event_id}/replay", ADMIN),
    (Method::POST, "/v1/admin/reload", ADMIN),
    (Method::GET, "/v1/reconciliation", ADMIN),
    (Method::POST, "/v1/reconciliation", ADMIN),
    (Method::POST, "/webhooks/stripe", Need::Signature),
    (Method::GET, "/upgrade", Need::Nothing),
    (Method::GET, "/upgrade/{token}", Need::Link),
    (Method::GET, "/billing/return/{token}", Need::Link),
    (Method::GET, "/healthz", Need::Nothing),
    (Method::GET, "/readyz", Need::Nothing),
    (Method::GET, "/metrics", CHECK),
    (Method::GET, "/openapi.json", Need::Nothing),
    (Method::GET, "/docs", Need::Nothing),
    (Method::GET, "/docs/{part}", Need::Nothing),
];
