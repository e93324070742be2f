//! Why Stripe did not do or say what was asked.

use super::super::key::ApiKey;

/// The longest message of Stripe's that is passed on.
const MESSAGE_CHARS_MAX: usize = 300;
/// How the secrets begin that Stripe's messages may repeat, masked or whole.
const SECRETS: [&str; 5] = ["sk_", "rk_", "pk_", "ek_", "whsec_"];

/// What a caller can act on. No message has a secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    /// What was asked for is not there.
    #[error("Stripe knows no such object")]
    NotFound,
    /// The request was understood and will not be done; asking again would not help.
    #[error("Stripe refuses (status {status}{}): {message}", code.as_ref().map(|code| format!(", {code}")).unwrap_or_default())]
    Refused { status: u16, code: Option<String>, message: String },
    /// No answer that counts, however often it was tried within the deadline. Whether a change was made is not known; the same
    /// change under the same idempotency key settles it.
    #[error("Stripe cannot be reached: {0}")]
    Unreachable(String),
    /// An object of live mode for a key of test mode, or the other way round.
    #[error("Stripe answers with objects of the other mode than that of the key")]
    WrongMode,
    /// An answer that makes no sense here.
    #[error("Stripe's answer cannot be read: {0}")]
    Unreadable(&'static str),
}

impl StripeError {
    /// Whether asking again would not help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::NotFound | Self::Refused { .. } | Self::WrongMode | Self::Unreadable(_) => true,
            Self::Unreachable(_) => false,
        }
    }

    /// Whether the key itself is not taken, whatever it is asked for.
    pub fn is_of_the_key(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }

    /// Whether Stripe says that something does not exist, in whatever way.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::NotFound => true,
            Self::Refused { code, .. } => code.as_deref() == Some("resource_missing"),
            Self::Unreachable(_) | Self::WrongMode | Self::Unreadable(_) => false,
        }
    }
}

/// `text` on one line, of bounded length, without this key or anything that looks like a secret of Stripe's.
pub(super) fn told(text: &str, key: &ApiKey) -> String {
    let text = key.hidden_in(text);
    let mut told = String::new();
    for word in text.split_inclusive(|c: char| !is_of_a_name(c)) {
        let name = word.trim_end_matches(|c: char| !is_of_a_name(c));
        let rest = word.strip_prefix(name).unwrap_or_default();
        told.push_str(if SECRETS.iter().any(|start| name.starts_with(start)) { "(a secret)" } else { name });
        told.extend(rest.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    told.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// A key is masked with `*`.
fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '*'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::parse("sk_test_abc-def").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn messages_are_short_and_free_of_secrets() {
        let check = |text: &str, expected: &str| assert_eq!(told(text, &key()), expected, "{text}");
        check("No such customer: 'cus_1'", "No such customer: 'cus_1'");
        check("Invalid API Key provided: sk_test_********1234", "Invalid API Key provided: (a secret)");
        check("got sk_test_abc-def, twice (sk_test_abc-def)", "got (the key), twice ((the key))");
        check("whsec_1 and\r\nrk_live_2", "(a secret) and  (a secret)");
        check("tasks_1 ask_2", "tasks_1 ask_2");
        check("", "");
        assert_eq!(told(&"é".repeat(5000), &key()).chars().count(), MESSAGE_CHARS_MAX);
    }
}
