//! Whom the application calls by `user_id`, and where his tier comes from.

use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::caps::Caps;
use super::catalogue::{Catalogue, Tier};
use super::subscription::{Customer, Grant};

/// The longest `user_id`, in bytes of UTF-8.
pub const USER_ID_BYTES_MAX: usize = 255;

/// The application's own name for a user: 1 to 255 bytes of UTF-8 without control characters, compared byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct UserId(Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    #[error("is empty; a user_id has 1 to 255 bytes")]
    Empty,
    #[error("is longer than 255 bytes of UTF-8")]
    TooLong,
    #[error("has a control character; a user_id is text without control characters")]
    Control,
}

impl UserId {
    pub fn parse(text: &str) -> Result<Self, UserIdError> {
        if text.is_empty() {
            Err(UserIdError::Empty)
        } else if USER_ID_BYTES_MAX < text.len() {
            Err(UserIdError::TooLong)
        } else if text.chars().any(char::is_control) {
            Err(UserIdError::Control)
        } else {
            Ok(Self(text.into()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserId {
    type Error = UserIdError;

    fn try_from(text: String) -> Result<Self, UserIdError> {
        Self::parse(&text)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whom Stripe bills for several users. The same rules as for a user's id; a user and an account of one name have nothing to do with
/// each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AccountId(UserId);

impl AccountId {
    pub fn parse(text: &str) -> Result<Self, UserIdError> {
        UserId::parse(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tier that the operator set by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManualTier {
    pub tier: String,
    pub reason: String,
    pub set_at: DateTime<Utc>,
    /// When it ends; `None` is until it is cleared.
    pub ends_at: Option<DateTime<Utc>>,
}

/// What decides a user's tier. The default is a user of whom nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub manual: Option<ManualTier>,
    /// `None`: he stands alone.
    pub account: Option<AccountId>,
    /// His account's, where it has one; else his own.
    pub stripe_customer: Option<String>,
    pub customer: Customer,
    /// Boxed, since most users have none.
    pub caps: Option<Box<Caps>>,
}

/// Where a tier comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierSource {
    Manual,
    Stripe,
    Default,
}

/// A user's tier at one moment.
#[derive(Clone, Debug)]
pub struct Standing<'c> {
    /// By which he is judged.
    pub catalogue: &'c Catalogue,
    pub tier: &'c Tier,
    pub source: TierSource,
    pub grant: Grant<'c>,
    /// How many times over he has the tier's budgets.
    pub seats: u64,
}

/// The profile of everybody of whom nothing is known.
static UNKNOWN: LazyLock<Arc<Profile>> = LazyLock::new(Arc::default);

impl Profile {
    /// The same place in memory for all of whom nothing is known.
    pub fn shared(self) -> Arc<Self> {
        if self == **UNKNOWN { UNKNOWN.clone() } else { Arc::new(self) }
    }

    /// What the operator set by hand wins until it ends; then what Stripe's subscriptions grant; then the default tier.
    pub fn standing<'c>(&self, catalogue: &'c Catalogue, now: DateTime<Utc>) -> Standing<'c> {
        let grant = self.customer.grant(catalogue, now);
        let manual = self.manual.as_ref().filter(|manual| manual.ends_at.is_none_or(|end| now < end));
        let by_hand = manual.and_then(|manual| catalogue.tier(&manual.tier)).map(|tier| (tier, TierSource::Manual));
        let paid = grant.tier.map(|tier| (tier, TierSource::Stripe));
        let (tier, source) = by_hand.or(paid).unwrap_or((catalogue.default_tier(), TierSource::Default));
        let seats = if tier.budgets.per_seat && source == TierSource::Stripe { grant.seats } else { 1 };
        Standing { catalogue, tier, source, grant, seats }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_use_out_there_are_taken_and_others_named() {
        let check = |text: &str, expected: Result<(), UserIdError>| {
            assert_eq!(UserId::parse(text).map(|_| ()), expected, "{text:?}");
        };
        check("auth0|5f7c8ec7c33c6c004bbafe82", Ok(()));
        check("ada@example.com", Ok(()));
        check("Zoë/../'; DROP TABLE users; --", Ok(()));
        check(&"x".repeat(255), Ok(()));
        check("", Err(UserIdError::Empty));
        check(&"x".repeat(256), Err(UserIdError::TooLong));
        check(&"é".repeat(128), Err(UserIdError::TooLong));
        check("a\0b", Err(UserIdError::Control));
        check("a\nb", Err(UserIdError::Control));
        check("a\u{85}b", Err(UserIdError::Control));
    }
}
