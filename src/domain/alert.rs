//! What somebody should be told, once each, whatever the number of nodes.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::user::UserId;

/// What an alert is about. Its name is part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertKind {
    /// A budget is used up to a threshold.
    BudgetThreshold,
    /// An event of Stripe's could not be acted on.
    DeadLetter,
    /// A customer pays for a price that no tier names.
    UnmappedPrice,
    /// A customer names a user who is bound to another one: perhaps somebody pays and has nothing of it.
    BindingConflict,
    /// The record was not what Stripe says.
    Drift,
    /// A model was asked for that has no price.
    UnpricedModel,
    /// A rule of the operator's could not be judged, and blocks.
    RuleFailed,
    /// The operator asked for it, to see whether alerts arrive.
    Test,
}

impl AlertKind {
    pub const ALL: [Self; 8] = [
        Self::BudgetThreshold,
        Self::DeadLetter,
        Self::UnmappedPrice,
        Self::BindingConflict,
        Self::Drift,
        Self::UnpricedModel,
        Self::RuleFailed,
        Self::Test,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::BudgetThreshold => "budget_threshold",
            Self::DeadLetter => "dead_letter",
            Self::UnmappedPrice => "unmapped_price",
            Self::BindingConflict => "binding_conflict",
            Self::Drift => "drift",
            Self::UnpricedModel => "unpriced_model",
            Self::RuleFailed => "rule_failed",
            Self::Test => "test",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What receivers know it by: from the general to the particular, as Standard Webhooks wants it. Part of the API too.
    pub fn event_type(self) -> &'static str {
        match self {
            Self::BudgetThreshold => "budget.threshold",
            Self::DeadLetter => "stripe.dead_letter",
            Self::UnmappedPrice => "stripe.unmapped_price",
            Self::BindingConflict => "stripe.binding_conflict",
            Self::Drift => "stripe.drift",
            Self::UnpricedModel => "model.unpriced",
            Self::RuleFailed => "rule.failed",
            Self::Test => "alert.test",
        }
    }
}

/// So many of a digest's bytes are an id: nobody is asked for an id of ours that he could make collide.
const ID_BYTES: usize = 16;

/// One thing to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub kind: AlertKind,
    /// What makes it one: what comes again under the same key is told already.
    pub key: String,
    /// Whom it is about.
    pub user_id: Option<UserId>,
    /// One sentence for people.
    pub message: String,
    /// A JSON object for programs.
    pub details: String,
    pub at: DateTime<Utc>,
}

impl Alert {
    /// The same on every node for the same kind and key.
    pub fn id(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.kind.name());
        hasher.update([0]);
        hasher.update(&self.key);
        let digest = hasher.finalize();
        format!("alert_{}", hex::encode(&digest[..ID_BYTES]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_named_by_its_kind_and_key_alone() {
        let alert = |kind, key: &str, message: &str| {
            let (key, message) = (key.to_owned(), message.to_owned());
            Alert { kind, key, user_id: None, message, details: "{}".to_owned(), at: DateTime::UNIX_EPOCH }.id()
        };
        let id = alert(AlertKind::Drift, "a", "one");
        assert_eq!(id.len(), "alert_".len() + 2 * ID_BYTES);
        assert_eq!(id, alert(AlertKind::Drift, "a", "another"));
        assert_ne!(id, alert(AlertKind::Drift, "b", "one"));
        assert_ne!(id, alert(AlertKind::DeadLetter, "a", "one"));
    }
}
