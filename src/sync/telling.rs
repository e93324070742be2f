//! What the operator is told of what Stripe says, or does not say.

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::domain::alert::{Alert, AlertKind};
use crate::domain::subscription::Doubt;
use crate::domain::user::UserId;
use crate::store::reconciliation::{Fault, Run};
use crate::store::requests::Ticket;
use crate::store::{Connection, StoreError, outbox};
use crate::stripe::event::Event;

/// Whose subscription it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whose<'a> {
    pub customer: &'a str,
    pub subscription: &'a str,
    pub user_id: Option<&'a UserId>,
}

/// Prices that no tier names, once a day for each: one that was forgotten may have thousands of subscriptions.
pub(super) async fn unmapped(db: &mut Connection, whose: Whose<'_>, doubts: &[Doubt], now: DateTime<Utc>) -> Result<(), StoreError> {
    let Whose { customer, subscription, user_id } = whose;
    for doubt in doubts {
        let Doubt::UnmappedPrice { prices, kept } = doubt else { continue };
        let mut sorted = prices.clone();
        sorted.sort_unstable();
        let named = sorted.join(", ");
        let follows = match kept {
            Some(tier) => format!("tier {tier} is kept"),
            None => "the default tier holds".to_owned(),
        };
        let alert = Alert {
            kind: AlertKind::UnmappedPrice,
            key: format!("{} {named}", now.date_naive()),
            user_id: user_id.cloned(),
            message: format!(
                "Subscription {subscription} of customer {customer} pays for {named}, which no tier of tiers.yaml names: {follows}."
            ),
            details: json!({"customer": customer, "subscription": subscription, "prices": sorted, "kept_tier": kept}).to_string(),
            at: now,
        };
        outbox::raise(db, &[alert]).await?;
    }
    Ok(())
}

/// A customer who names a user that is another's, once a day.
pub(super) async fn conflict(
    db: &mut Connection,
    customer: &str,
    user: &UserId,
    message: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let alert = Alert {
        kind: AlertKind::BindingConflict,
        key: format!("{} {customer} {user}", now.date_naive()),
        user_id: Some(user.clone()),
        message: message.to_owned(),
        details: json!({"customer": customer, "user_id": user}).to_string(),
        at: now,
    };
    outbox::raise(db, &[alert]).await
}

/// Somebody about whom Stripe was asked in vain. Each time that it is given up is told.
pub(super) async fn given_up(
    db: &mut Connection,
    subject: &str,
    ticket: Ticket,
    message: &str,
    error: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let details = json!({"subject": subject, "error": error}).to_string();
    let (key, message) = (format!("asked {subject} {ticket}"), message.to_owned());
    outbox::raise(db, &[Alert { kind: AlertKind::DeadLetter, key, user_id: None, message, details, at: now }]).await
}

/// An event of a kind that concerns us, without what it needs.
pub(super) async fn unreadable(db: &mut Connection, event: &Event, why: &str, now: DateTime<Utc>) -> Result<(), StoreError> {
    let (id, kind) = (&event.id, &event.kind);
    let alert = Alert {
        kind: AlertKind::DeadLetter,
        key: format!("event {id}"),
        user_id: None,
        message: format!("Event {id} ({kind}) could not be acted on: {why}"),
        details: json!({"event_id": id, "type": kind, "error": why}).to_string(),
        at: now,
    };
    outbox::raise(db, &[alert]).await
}

/// What a comparison found, all of it at once: `GET /v1/reconciliation` has the names.
pub(super) async fn drift(db: &mut Connection, run: &Run, now: DateTime<Utc>) -> Result<(), StoreError> {
    let Run { number, checked, drifted, missed_events, faults, unread, .. } = run;
    let mut found: Vec<String> = Vec::new();
    if (*drifted, *missed_events) != (0, 0) {
        found.push(format!(
            "found {drifted} customers who differed and {missed_events} events that had not come, and Stripe is asked about them"
        ));
    }
    for Fault { phase, what } in faults {
        found.push(format!("could not read all of Stripe's list of {}: {what}", phase.name()));
    }
    if *unread != 0 {
        found.push(format!("could not read {unread} objects of Stripe's lists"));
    }
    if found.is_empty() {
        return Ok(());
    }
    let details = json!({
        "run": number, "checked": checked, "drifted": drifted, "missed_events": missed_events, "faults": faults, "unread": unread,
    });
    let alert = Alert {
        kind: AlertKind::Drift,
        key: format!("run {number}"),
        user_id: None,
        message: format!("The comparison with Stripe {}; GET /v1/reconciliation has more.", found.join("; it ")),
        details: details.to_string(),
        at: now,
    };
    outbox::raise(db, &[alert]).await
}
