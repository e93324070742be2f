//! What the operator should hear of, and nobody else would tell: each is logged at its first time, counted, and an alert once a day.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::json;
use tokio::sync::mpsc;

use crate::alerts::Teller;
use crate::domain::alert::{Alert, AlertKind};
use crate::store::{Store, StoreError, outbox};

/// So many names are told apart; callers may invent more.
const NAMES_MAX: usize = 100;
/// Alerts that wait for the store. What comes beyond is not told today.
const WAITING_MAX: usize = 2 * NAMES_MAX;

/// Since the service began.
#[derive(Debug)]
pub struct Notices {
    /// Models that were asked for and have no price.
    pub unpriced: Tally,
    /// Rules that could not be judged.
    pub failed_rules: Tally,
    alerts: mpsc::Sender<Alert>,
}

#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, Seen>>);

/// How often, and when last.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub times: u64,
    pub last: DateTime<Utc>,
    /// The day of the latest alert.
    told_on: NaiveDate,
}

/// Whether a name is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    First,
    FirstOfTheDay,
}

impl Tally {
    /// `tell` is called for a name that is new, or new on this day.
    fn saw(&self, name: &str, now: DateTime<Utc>, tell: impl FnOnce(News)) {
        let today = now.date_naive();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = if let Some(known) = seen.get_mut(name) {
            (known.times, known.last) = (known.times + 1, now);
            let is_news = known.told_on < today;
            known.told_on = known.told_on.max(today);
            is_news.then_some(News::FirstOfTheDay)
        } else if seen.len() < NAMES_MAX {
            seen.insert(name.to_owned(), Seen { times: 1, last: now, told_on: today });
            Some(News::First)
        } else if let Some(old) = seen.iter().min_by_key(|(_, seen)| seen.last).filter(|(_, seen)| seen.last.date_naive() < today) {
            // Nobody has asked for it today.
            let old = old.0.clone();
            seen.remove(&old);
            seen.insert(name.to_owned(), Seen { times: 1, last: now, told_on: today });
            Some(News::First)
        } else {
            None
        };
        drop(seen);
        if let Some(news) = news {
            tell(news);
        }
    }

    pub fn all(&self) -> BTreeMap<String, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Notices {
    /// What is to be raised comes out of the receiver, for [`raise`].
    pub fn new() -> (Self, mpsc::Receiver<Alert>) {
        let (alerts, waiting) = mpsc::channel(WAITING_MAX);
        (Self { unpriced: Tally::default(), failed_rules: Tally::default(), alerts }, waiting)
    }

    pub fn saw_unpriced(&self, model: &str, now: DateTime<Utc>) {
        self.unpriced.saw(model, now, |news| {
            let message = format!("The model {model:?} has no price; add it to prices.yaml");
            if news == News::First {
                tracing::warn!(model, "{message}");
            }
            self.raise(AlertKind::UnpricedModel, model, message, json!({"model": model}), now);
        });
    }

    pub fn saw_failed_rule(&self, rule: &str, message: &str, now: DateTime<Utc>) {
        self.failed_rules.saw(rule, now, |news| {
            if news == News::First {
                tracing::warn!(rule, "checks are blocked by a rule that fails: {message}");
            }
            let told = format!("Checks are blocked by a rule that fails: {message}");
            self.raise(AlertKind::RuleFailed, rule, told, json!({"rule": rule, "error": message}), now);
        });
    }

    /// Whoever is answered does not wait for it.
    fn raise(&self, kind: AlertKind, name: &str, message: String, details: serde_json::Value, now: DateTime<Utc>) {
        let key = format!("{} {name}", now.date_naive());
        // A rule's error may quote what a caller sent, and Postgres takes no text with it.
        let message = message.replace('\0', " ");
        // Where nothing is taken any more, the service stops or the store is away.
        let _ = self.alerts.try_send(Alert { kind, key, user_id: None, message, details: details.to_string(), at: now });
    }
}

/// How long after a failure an alert is written again: it is told once a day, so it would be missed.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Writes what comes, each in a transaction of its own, until it is dropped.
pub async fn raise(store: Store, mut alerts: mpsc::Receiver<Alert>, teller: Arc<Teller>) {
    while let Some(alert) = alerts.recv().await {
        while let Err(error) = write(&store, &alert).await {
            tracing::error!(%error, "an alert could not be noted yet: {}: {error}", alert.message);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        teller.wake();
    }
}

async fn write(store: &Store, alert: &Alert) -> Result<(), StoreError> {
    let mut tx = store.begin_aside().await?;
    outbox::raise(tx.connection()?, std::slice::from_ref(alert)).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_name_that_was_not_asked_for_today_makes_room_for_a_new_one() {
        let (tally, today) = (Tally::default(), DateTime::UNIX_EPOCH);
        let saw = |name: &str, at: DateTime<Utc>| {
            let mut told = None;
            tally.saw(name, at, |news| told = Some(news));
            told
        };
        for number in 0..NAMES_MAX {
            assert_eq!(saw(&format!("old-{number}"), today), Some(News::First));
        }
        assert_eq!(saw("one-more", today), None, "it stays bounded");
        let tomorrow = today + TimeDelta::days(1);
        assert_eq!(saw("old-0", tomorrow), Some(News::FirstOfTheDay));
        assert_eq!((saw("new", tomorrow), saw("new", tomorrow)), (Some(News::First), None));
        assert!(tally.all().len() == NAMES_MAX && tally.all().contains_key("old-0"));
    }
}
