//! What the API answers: JSON, or an error in Stripe's own shape.

use serde_json::{Value, json};

/// Why Stripe refuses. The words are Stripe's where we know them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    pub status: u16,
    pub kind: &'static str,
    pub code: Option<&'static str>,
    pub message: String,
    pub param: Option<String>,
}

impl ApiError {
    fn new(status: u16, code: Option<&'static str>, message: String, param: &str) -> Self {
        let param = (!param.is_empty()).then(|| param.to_owned());
        Self { status, kind: "invalid_request_error", code, message, param }
    }

    /// A parameter whose value makes no sense.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, None, message.into(), param)
    }

    pub fn not_an_integer(param: &str, text: &str) -> Self {
        Self::new(400, Some("parameter_invalid_integer"), format!("Invalid integer: {text}"), param)
    }

    pub fn missing(param: &str) -> Self {
        Self::new(400, Some("parameter_missing"), format!("Missing required param: {param}."), param)
    }

    pub fn unknown(param: &str) -> Self {
        Self::new(400, Some("parameter_unknown"), format!("Received unknown parameter: {param}"), param)
    }

    /// The object in the path is not there.
    pub fn not_found(noun: &str, id: &str) -> Self {
        Self::new(404, Some("resource_missing"), format!("No such {noun}: '{id}'"), "id")
    }

    /// An object that a parameter names is not there: 400, since the path itself was right.
    pub fn no_such(noun: &str, id: &str, param: &str) -> Self {
        Self::new(400, Some("resource_missing"), format!("No such {noun}: '{id}'"), param)
    }

    pub fn no_such_path(method: &str, path: &str) -> Self {
        let message = format!("Unrecognized request URL ({method}: {path}). The fake Stripe may not know it; Stripe may.");
        Self::new(404, None, message, "")
    }

    /// `key` is `None` where none was sent.
    pub fn wrong_key(key: Option<&str>) -> Self {
        let message = match key {
            None => "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth \
                     (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
                .to_owned(),
            Some(key) => format!("Invalid API Key provided: {}", masked(key)),
        };
        Self::new(401, None, message, "")
    }

    pub fn forbidden() -> Self {
        let message = "The provided key does not have the required permissions for this endpoint.".to_owned();
        Self::new(403, Some("more_permissions_required"), message, "")
    }

    pub fn card_declined() -> Self {
        Self { kind: "card_error", ..Self::new(402, Some("card_declined"), "Your card was declined.".to_owned(), "") }
    }

    /// Stripe answers 400 here; its 409 is for a key that another request is just using.
    pub fn key_used_otherwise(key: &str) -> Self {
        let message = format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other \
             than '{key}' if you meant to execute a different request."
        );
        Self { kind: "idempotency_error", ..Self::new(400, None, message, "") }
    }

    pub fn key_in_use() -> Self {
        let message = "There is currently another in-progress request using this Stripe-Idempotency-Key. Try again later.".to_owned();
        Self { kind: "idempotency_error", ..Self::new(409, Some("idempotency_key_in_use"), message, "") }
    }

    pub fn too_many() -> Self {
        let message = "Too many requests hit the API too quickly. We recommend an exponential backoff of your requests.".to_owned();
        Self::new(429, Some("rate_limit"), message, "")
    }

    pub fn of_the_server() -> Self {
        let message = "Sorry! There was an error while talking to one of our backends.".to_owned();
        Self { kind: "api_error", ..Self::new(500, None, message, "") }
    }

    pub fn json(&self) -> Value {
        let mut error = json!({"type": self.kind, "message": self.message});
        if let Some(code) = self.code {
            error["code"] = json!(code);
            error["doc_url"] = json!(format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-")));
        }
        if let Some(param) = &self.param {
            error["param"] = json!(param);
        }
        json!({"error": error})
    }

    pub fn answer(&self) -> Answer {
        Answer { status: self.status, body: pretty(&self.json()), replayed: false }
    }
}

/// An answer, ready to be sent, and to be kept under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// It was given before, under the same idempotency key.
    pub replayed: bool,
}

impl Answer {
    pub fn ok(value: &Value) -> Self {
        Self { status: 200, body: pretty(value), replayed: false }
    }
}

/// Indented, as Stripe writes; a JSON value can always be written.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A key's kind and its last characters, as Stripe shows it.
fn masked(key: &str) -> String {
    let count = key.chars().count();
    let shown = |index: usize| index < 8 || count < index + 5;
    key.chars().enumerate().map(|(index, c)| if shown(index) { c } else { '*' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_stripes_shape() {
        let error = ApiError::not_found("customer", "cus_1").json();
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert_eq!(error["error"]["code"], "resource_missing");
        assert_eq!(error["error"]["message"], "No such customer: 'cus_1'");
        assert!(ApiError::of_the_server().json()["error"].get("code").is_none());
    }

    #[test]
    fn a_key_is_told_masked() {
        assert_eq!(masked("sk_test_abcdefgh1234"), "sk_test_********1234");
        assert_eq!(masked(""), "");
    }
}
