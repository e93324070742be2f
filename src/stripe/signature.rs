//! Is it really Stripe? Source: <https://docs.stripe.com/webhooks#verify-manually>.

use std::fmt;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How far the delivery's `t` may be from our clock, either way. It bounds replays of a recorded request; it says nothing of
/// the event's own `created`, which may be days old.
pub const TOLERANCE_SECONDS: i64 = 300;
/// A header of two secrets has some 200 bytes.
pub const HEADER_BYTES_MAX: usize = 4096;
/// Stripe signs once for each active secret of the endpoint; while secrets are rolled there are a few.
const SIGNATURES_MAX: usize = 16;

/// A webhook endpoint's signing secret (`whsec_…`). It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `None` where the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn mac(&self, timestamp: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).ok()?;
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        Some(mac)
    }

    /// The `Stripe-Signature` header for `body` sent at `at`: what Stripe would send, for replays and tests.
    pub fn sign(&self, body: &[u8], at: DateTime<Utc>) -> String {
        let timestamp = at.timestamp().to_string();
        let signature = self.mac(&timestamp, body).map(|mac| hex::encode(mac.finalize().into_bytes()));
        format!("t={timestamp},v1={}", signature.unwrap_or_default())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a delivery is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the Stripe-Signature header is not of the form t=<seconds>,v1=<hex>")]
    Malformed,
    #[error("the delivery's time differs from this machine's clock by {0} s, more than 300 s; check the clock, or sign again")]
    Stale(i64),
    #[error("no v1 signature matches the body under any of the configured secrets; check STRIPE_WEBHOOK_SECRETS")]
    Mismatch,
}

/// Checks the header against the raw bytes of the body. Any `v1` under any of `secrets` will do; `v0` never counts.
pub fn verify(header: &str, body: &[u8], secrets: &[Secret], now: DateTime<Utc>) -> Result<(), SignatureError> {
    if HEADER_BYTES_MAX < header.len() {
        return Err(SignatureError::Malformed);
    }
    let mut timestamp = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        match part.trim().split_once('=') {
            // A second `t` would let the signed time and the judged time differ.
            Some(("t", value)) if timestamp.replace(value).is_some() => return Err(SignatureError::Malformed),
            Some(("v1", value)) => signatures.push(value),
            _ => {}
        }
    }
    let timestamp = timestamp.ok_or(SignatureError::Malformed)?;
    if signatures.is_empty() || SIGNATURES_MAX < signatures.len() || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SignatureError::Malformed);
    }
    let sent_at: i64 = timestamp.parse().map_err(|_| SignatureError::Malformed)?;
    let signatures: Vec<Vec<u8>> = signatures.iter().filter_map(|signature| hex::decode(signature).ok()).collect();
    let matches = |secret: &Secret| {
        // The body is read once for each secret; `verify_slice` takes the same time wherever the first difference is.
        let mac = secret.mac(timestamp, body);
        mac.is_some_and(|mac| signatures.iter().any(|signature| mac.clone().verify_slice(signature).is_ok()))
    };
    if !secrets.iter().any(matches) {
        return Err(SignatureError::Mismatch);
    }
    let difference = now.timestamp().saturating_sub(sent_at).saturating_abs();
    if TOLERANCE_SECONDS < difference {
        return Err(SignatureError::Stale(difference));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap_or_default()
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap_or_else(|| panic!("a secret"))
    }

    #[test]
    fn a_signature_is_stripes_own() {
        // Computed with: printf '1700000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_test
        let expected = "t=1700000000,v1=c89214b5b5da833daed6f0b8c5bb6bd58cea9022bd80ccc78230f3942d632925";
        assert_eq!(secret("whsec_test").sign(BODY, at(0)), expected);
    }

    #[test]
    fn headers_are_judged() {
        let (old, new) = (secret("whsec_old"), secret("whsec_new"));
        let secrets = [old.clone(), new.clone()];
        let v1 = |secret: &Secret| secret.sign(BODY, at(0)).split_once("v1=").map(|(_, hex)| hex.to_owned()).unwrap_or_default();
        let (by_old, by_new, by_other) = (v1(&old), v1(&new), v1(&secret("whsec_other")));
        let check = |header: &str, expected: Result<(), SignatureError>| {
            assert_eq!(verify(header, BODY, &secrets, at(0)), expected, "{header}");
        };
        check(&format!("t=1700000000,v1={by_old}"), Ok(()));
        check(&format!("t=1700000000, v1={by_new}"), Ok(()));
        check(&format!("v1={by_other},v0=abc,v1={by_new},t=1700000000"), Ok(()));
        check(&format!("t=1700000000,v1={by_other}"), Err(SignatureError::Mismatch));
        check(&format!("t=1700000000,v0={by_old}"), Err(SignatureError::Malformed));
        check(&format!("t=1700000000,t=1700000000,v1={by_old}"), Err(SignatureError::Malformed));
        check(&format!("t=1700000001,v1={by_old}"), Err(SignatureError::Mismatch));
        check(&format!("t=-1700000000,v1={by_old}"), Err(SignatureError::Malformed));
        check(&format!("t=99999999999999999999,v1={by_old}"), Err(SignatureError::Malformed));
        check(&format!("t=1700000000,v1={}", &by_old[..63]), Err(SignatureError::Mismatch));
        check(&format!("t=1700000000{}", format!(",v1={by_old}").repeat(17)), Err(SignatureError::Malformed));
        check(&format!("t=1700000000,v1={by_old},x={}", "a".repeat(HEADER_BYTES_MAX)), Err(SignatureError::Malformed));
        for header in ["", "t", "t=", "v1=", "t=1700000000", "t=1700000000,v1=", "nonsense"] {
            assert!(verify(header, BODY, &secrets, at(0)).is_err(), "{header}");
        }
    }

    #[test]
    fn a_delivery_is_believed_for_five_minutes_either_way() {
        let secrets = [secret("whsec_test")];
        let header = secrets[0].sign(BODY, at(0));
        for seconds in [-300, 0, 300] {
            assert_eq!(verify(&header, BODY, &secrets, at(seconds)), Ok(()));
        }
        for seconds in [-301, 301] {
            assert_eq!(verify(&header, BODY, &secrets, at(seconds)), Err(SignatureError::Stale(301)));
        }
    }

    proptest! {
        #[test]
        fn a_changed_body_or_header_is_never_believed(index in any::<prop::sample::Index>(), change in 1..=255_u8) {
            let secrets = [secret("whsec_test")];
            let header = secrets[0].sign(BODY, at(0));
            let mut body = BODY.to_vec();
            let position = index.index(body.len());
            body[position] ^= change;
            prop_assert!(verify(&header, &body, &secrets, at(0)).is_err());
            let mut forged = header.clone().into_bytes();
            let position = index.index(forged.len());
            forged[position] ^= change;
            // Hex digits mean the same in capitals.
            if let Ok(forged) = String::from_utf8(forged) && !forged.eq_ignore_ascii_case(&header) {
                prop_assert!(verify(&forged, BODY, &secrets, at(0)).is_err());
            }
        }

        #[test]
        fn no_header_makes_a_panic(header in "[tv01=,a-f0-9 ]{0,80}") {
            let _ = verify(&header, BODY, &[secret("whsec_test")], at(0));
        }
    }
}
