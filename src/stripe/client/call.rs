//! One request, ready to be sent, and sent again.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use stripe_client_core::{RequestBuilder, StripeMethod, StripeRequest};

use super::StripeError;

/// Stripe takes keys of up to 255 characters.
const KEY_BYTES_MAX: usize = 255;
/// A longer name is none that Stripe gives.
const NAME_BYTES_MAX: usize = 255;
/// What stands in a path as it is. Ids of Stripe's own making have nothing else.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'@').remove(b':').remove(b'+');

/// Under which key Stripe keeps what it answers to a change, so that a second try has no second effect. Every try of a call
/// has the same key, and so has every later call that says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotency<'a> {
    /// This key. Stripe refuses it with another body.
    Key(&'a str),
    /// A key made from path, body and this salt: another body makes another key.
    Salt(&'a str),
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub method: StripeMethod,
    /// With the query, below the base URL.
    pub path: String,
    pub body: Option<String>,
    /// Every POST has one. GET and DELETE have the same effect however often they come.
    pub idempotency_key: Option<String>,
}

impl Call {
    /// A request that changes nothing, or deletes.
    pub fn ask(request: &impl StripeRequest) -> Self {
        Self::plain(request.build())
    }

    /// A POST. It must not have two entries of metadata: they stand in a `HashMap` and would come in another order each time,
    /// which is another body under the same key.
    pub fn change(request: &impl StripeRequest, idempotency: Idempotency<'_>) -> Self {
        let call = Self::plain(request.build());
        let key = match idempotency {
            Idempotency::Key(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                key.to_owned()
            }
            // What cannot stand in a header has a digest that can.
            Idempotency::Key(key) => digest(&["key", key]),
            Idempotency::Salt(salt) => digest(&["salt", salt, &call.path, call.body.as_deref().unwrap_or_default()]),
        };
        Self { idempotency_key: Some(key), ..call }
    }

    /// A GET that the request builders do not have: `/account` is of another crate, and the one of `/invoices/{id}` has 15 000
    /// lines.
    pub fn get(path: impl Into<String>) -> Self {
        Self::plain(RequestBuilder::new(StripeMethod::Get, path))
    }

    fn plain(request: RequestBuilder) -> Self {
        let query = request.query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
        Self { method: request.method, path: format!("/v1{}{query}", request.path), body: request.body, idempotency_key: None }
    }
}

/// `name` as one segment of a path, which the builders do not escape. Names that would lead elsewhere, or that Stripe cannot
/// have given, are names of nothing.
pub(super) fn segment(name: &str) -> Result<String, StripeError> {
    if name.is_empty() || name == "." || name == ".." || NAME_BYTES_MAX < name.len() || name.chars().any(char::is_control) {
        return Err(StripeError::NotFound);
    }
    Ok(utf8_percent_encode(name, SEGMENT).to_string())
}

/// A key that is the same for the same parts, and for no others.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that what ends one part cannot begin the next.
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    format!("spendgate-{}", hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use stripe_core::customer::{CreateCustomer, ListCustomer, RetrieveCustomer};

    use super::*;

    #[test]
    fn a_call_is_what_the_builder_says() {
        let call = Call::ask(&ListCustomer::new().limit(100).starting_after("cus_1"));
        assert_eq!((call.path.as_str(), call.body, call.idempotency_key), ("/v1/customers?limit=100&starting_after=cus_1", None, None));
        assert_eq!(Call::ask(&RetrieveCustomer::new("cus_1")).path, "/v1/customers/cus_1");
        let metadata = HashMap::from([("user_id".to_owned(), "a&b=c".to_owned())]);
        let call = Call::change(&CreateCustomer::new().metadata(metadata), Idempotency::Key("k"));
        assert_eq!(call.body.map(|body| body.replace("%5B", "[").replace("%5D", "]")).as_deref(), Some("metadata[user_id]=a%26b%3Dc"));
    }

    #[test]
    fn a_key_is_the_same_for_the_same_change_and_for_no_other() {
        let key = |name: &str, idempotency| Call::change(&CreateCustomer::new().name(name), idempotency).idempotency_key;
        assert_eq!(key("a", Idempotency::Salt("s")), key("a", Idempotency::Salt("s")));
        assert_ne!(key("a", Idempotency::Salt("s")), key("b", Idempotency::Salt("s")));
        assert_ne!(key("a", Idempotency::Salt("s")), key("a", Idempotency::Salt("t")));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_eq!(key("a", Idempotency::Key("mine")).as_deref(), Some("mine"));
        for given in ["", "two words", "é", &"x".repeat(256)] {
            let key = key("a", Idempotency::Key(given)).unwrap_or_default();
            assert!(key.starts_with("spendgate-") && key.len() == 74, "{given}: {key}");
        }
    }

    #[test]
    fn a_name_is_one_segment_of_a_path_or_of_nothing() {
        let check = |name: &str, expected: &str| assert_eq!(segment(name).as_deref(), Ok(expected), "{name}");
        check("cus_1", "cus_1");
        check("Gold plan/1", "Gold%20plan%2F1");
        check("a?b#c%2e", "a%3Fb%23c%252e");
        check("é", "%C3%A9");
        for name in ["", ".", "..", "a\nb", &"x".repeat(256)] {
            assert_eq!(segment(name), Err(StripeError::NotFound), "{name}");
        }
    }
}
