//! The secret that opens Stripe's API.

use std::fmt;

use reqwest::header::HeaderValue;

/// A secret (`sk_…`) or restricted (`rk_…`) key of Stripe's API. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
    livemode: bool,
}

/// Why a text is no key that this service could use. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    #[error("is a publishable key (pk_); use a secret (sk_) or restricted (rk_) one")]
    Publishable,
    #[error("must begin with sk_live_, sk_test_, rk_live_ or rk_test_")]
    Unknown,
    #[error("has a blank or another character that no key has")]
    Unprintable,
}

impl ApiKey {
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        let livemode = match text.split('_').collect::<Vec<_>>().as_slice() {
            ["sk" | "rk", "live", rest, ..] if !rest.is_empty() => true,
            ["sk" | "rk", "test", rest, ..] if !rest.is_empty() => false,
            ["pk", ..] => return Err(NotAKey::Publishable),
            _ => return Err(NotAKey::Unknown),
        };
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(NotAKey::Unprintable);
        }
        Ok(Self { text: text.to_owned(), livemode })
    }

    /// Whether it moves real money; else it is one of a sandbox or of test mode.
    pub fn livemode(&self) -> bool {
        self.livemode
    }

    /// The `Authorization` header, marked so that no log of a header shows it.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.text)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// `text` without this key, where something repeats it.
    pub(super) fn hidden_in(&self, text: &str) -> String {
        text.replace(&self.text, "(the key)")
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.livemode { "ApiKey(live …)" } else { "ApiKey(test …)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_knows_its_mode_and_is_never_shown() {
        let check = |text: &str, livemode| {
            let key = ApiKey::parse(text);
            assert_eq!(key.as_ref().map(ApiKey::livemode), Ok(livemode), "{text}");
            assert!(!format!("{key:?}").contains("abc"));
        };
        check("sk_live_abc", true);
        check("rk_live_abc_def", true);
        check("sk_test_abc", false);
        check("rk_test_abc", false);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let check = |text: &str, why| assert_eq!(ApiKey::parse(text).err(), Some(why), "{text}");
        check("pk_live_abc", NotAKey::Publishable);
        check("sk_live", NotAKey::Unknown);
        check("sk_live_", NotAKey::Unknown);
        check("whsec_abc", NotAKey::Unknown);
        check("", NotAKey::Unknown);
        check("sk_test_a b", NotAKey::Unprintable);
        check("sk_test_a\nb", NotAKey::Unprintable);
    }
}
