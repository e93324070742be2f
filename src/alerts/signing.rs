//! What is sent, signed by Standard Webhooks 1.0 (<https://www.standardwebhooks.com>).

use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::Sha256;

use crate::domain::period::rfc3339;
use crate::store::outbox::Told;

const PREFIX: &str = "whsec_";
/// As the specification has it.
const BYTES: RangeInclusive<usize> = 24..=64;

/// What an endpoint's receiver has too. It is never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// `whsec_` and base64.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
        BYTES.contains(&bytes.len()).then_some(Self(bytes))
    }

    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    alert_id: &'a str,
    user_id: Option<&'a str>,
    message: &'a str,
    details: Option<&'a RawValue>,
}

/// The same at every try.
pub fn body(alert: &Told) -> Vec<u8> {
    let data = Data {
        alert_id: &alert.alert_id,
        user_id: alert.user_id.as_deref(),
        message: &alert.message,
        details: serde_json::from_str(&alert.details).ok(),
    };
    let body = Body { kind: alert.kind.event_type(), timestamp: rfc3339(alert.created_at), data };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The headers of a try at `now`: a signature under each secret, so that a receiver that has one of them takes it.
pub fn headers(secrets: &[Secret], id: &str, body: &[u8], now: DateTime<Utc>) -> [(&'static str, String); 3] {
    let timestamp = now.timestamp().to_string();
    let signatures: Vec<String> = secrets.iter().filter_map(|secret| secret.sign(id, &timestamp, body)).collect();
    [("webhook-id", id.to_owned()), ("webhook-timestamp", timestamp), ("webhook-signature", signatures.join(" "))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_example_has_its_signature() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let now = DateTime::from_timestamp(1_614_265_330, 0).unwrap();
        let [id, timestamp, signature] = headers(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#, now);
        assert_eq!((id.1.as_str(), timestamp.1.as_str()), ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"));
        assert_eq!(signature.1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_has_24_to_64_bytes() {
        let of = |bytes: usize| Secret::parse(&format!("whsec_{}", STANDARD.encode(vec![7; bytes])));
        assert!(of(23).is_none() && of(24).is_some() && of(64).is_some() && of(65).is_none());
        assert!(Secret::parse(&STANDARD.encode([7; 24])).is_none());
    }
}
