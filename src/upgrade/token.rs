//! Links that say who may buy what until when, and cannot be altered.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::user::{USER_ID_BYTES_MAX, UserId};

const VERSION: u8 = 1;
const SECONDS_PER_HOUR: i64 = 3600;
/// Half of the digest: nobody guesses 128 bits, and the link is 22 letters shorter.
const MAC_BYTES: usize = 16;
/// Version, expiry, the length of the tier's name.
const HEAD_BYTES: usize = 7;
/// With the longest user's id and the longest tier's name.
const TOKEN_BYTES_MAX: usize = HEAD_BYTES + USER_ID_BYTES_MAX + 255 + MAC_BYTES;
/// The same in base64; a longer text is none of ours.
const TOKEN_CHARS_MAX: usize = TOKEN_BYTES_MAX.div_ceil(3) * 4;

/// What a link is for. One that is good for one thing is nothing to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Leads to where more is bought.
    Upgrade,
    /// Leads back from there.
    Return,
}

impl Purpose {
    /// What is signed before everything else.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Upgrade => b"spendgate link: upgrade\0",
            Self::Return => b"spendgate link: return\0",
        }
    }
}

/// What a link says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub user: UserId,
    /// The name of the tier that he would buy.
    pub target: String,
}

/// Why a link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the link is not one that was given out here, or not as it was given")]
    Invalid,
    #[error("the link has expired")]
    Expired,
}

/// Signs links. It is never shown.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    fn mac(&self, purpose: Purpose, body: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(purpose.label());
        mac.update(body);
        Some(mac)
    }

    /// Writes behind `url` a token that is good for `hours` from the full hour before `from`, so that whoever asks twice within an hour gets the same one.
    /// `None` where a name is longer than any can be, or the time is none that a token can hold.
    pub fn sign(&self, url: [&str; 2], purpose: Purpose, claim: (&UserId, &str), from: DateTime<Utc>, hours: u32) -> Option<String> {
        let (user, target) = (claim.0.as_str().as_bytes(), claim.1.as_bytes());
        let expiry = u32::try_from(from.timestamp().div_euclid(SECONDS_PER_HOUR)).ok()?.checked_add(hours)?;
        let length = u16::try_from(target.len()).ok()?;
        // It is written where every check that blocks waits for it, so the one allocation is the URL itself.
        let mut token = [0; TOKEN_BYTES_MAX];
        let mut end = 0;
        let mut write = |token: &mut [u8], part: &[u8]| {
            let place = token.get_mut(end..end + part.len())?;
            place.copy_from_slice(part);
            end += part.len();
            Some(end)
        };
        for part in [&[VERSION][..], &expiry.to_be_bytes(), &length.to_be_bytes(), target] {
            write(&mut token, part)?;
        }
        let body = write(&mut token, user)?;
        let mac = self.mac(purpose, token.get(..body)?)?.finalize().into_bytes();
        let whole = write(&mut token, mac.get(..MAC_BYTES)?)?;
        let mut text = String::with_capacity(url[0].len() + url[1].len() + whole.div_ceil(3) * 4);
        text.extend(url);
        URL_SAFE_NO_PAD.encode_string(token.get(..whole)?, &mut text);
        Some(text)
    }

    /// What a token says. It is believed before it is read, and its time is looked at last.
    pub fn read(&self, purpose: Purpose, token: &str, now: DateTime<Utc>) -> Result<Claim, TokenError> {
        if TOKEN_CHARS_MAX < token.len() {
            return Err(TokenError::Invalid);
        }
        // The decoder takes one text only for the same bytes.
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| TokenError::Invalid)?;
        let body = bytes.len().checked_sub(MAC_BYTES).ok_or(TokenError::Invalid)?;
        let (body, signature) = bytes.split_at_checked(body).ok_or(TokenError::Invalid)?;
        let mac = self.mac(purpose, body).ok_or(TokenError::Invalid)?;
        // It takes the same time wherever the first difference is.
        mac.verify_truncated_left(signature).map_err(|_| TokenError::Invalid)?;
        let (expiry, claim) = parts(body).ok_or(TokenError::Invalid)?;
        if i64::from(expiry).saturating_mul(SECONDS_PER_HOUR) <= now.timestamp() {
            return Err(TokenError::Expired);
        }
        Ok(claim)
    }
}

fn parts(body: &[u8]) -> Option<(u32, Claim)> {
    let (version, rest) = body.split_first()?;
    let (expiry, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (target, user) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let target = String::from_utf8(target.to_vec()).ok()?;
    let user = UserId::parse(std::str::from_utf8(user).ok()?).ok()?;
    (*version == VERSION).then_some((u32::from_be_bytes(*expiry), Claim { user, target }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_768_219_200 + seconds, 0).unwrap_or_default()
    }

    fn user(text: &str) -> UserId {
        UserId::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_token_says_what_was_signed_until_its_hour() {
        let key = Key::new([1; 32]);
        let sign = |seconds: i64| key.sign(["", ""], Purpose::Upgrade, (&user("Zoë|1"), "pro"), at(seconds), 24).unwrap_or_default();
        assert_eq!(sign(0), sign(3599));
        assert_ne!(sign(0), sign(3600));
        let claim = Claim { user: user("Zoë|1"), target: "pro".to_owned() };
        let check = |seconds: i64, expected: Result<Claim, TokenError>| {
            assert_eq!(key.read(Purpose::Upgrade, &sign(0), at(seconds)), expected, "{seconds}");
        };
        check(0, Ok(claim.clone()));
        check(24 * 3600 - 1, Ok(claim));
        check(24 * 3600, Err(TokenError::Expired));
    }

    #[test]
    fn the_longest_names_fit_and_longer_ones_make_no_token() {
        let key = Key::new([1; 32]);
        let (user, most) = (user(&"u".repeat(255)), "t".repeat(255));
        let sign = |target: &str| key.sign(["https://a.test", "/upgrade/"], Purpose::Upgrade, (&user, target), at(0), 24);
        let url = sign(&most).unwrap_or_default();
        let token = url.strip_prefix("https://a.test/upgrade/").unwrap_or_default();
        assert_eq!(key.read(Purpose::Upgrade, token, at(0)), Ok(Claim { user: user.clone(), target: most.clone() }));
        assert_eq!(sign(&format!("{most}t")), None);
    }

    #[test]
    fn a_token_is_nothing_under_another_key_for_another_purpose_or_altered() {
        let key = Key::new([1; 32]);
        let token = key.sign(["", ""], Purpose::Upgrade, (&user("u"), "pro"), at(0), 24).unwrap_or_default();
        assert_eq!(Key::new([2; 32]).read(Purpose::Upgrade, &token, at(0)), Err(TokenError::Invalid));
        assert_eq!(key.read(Purpose::Return, &token, at(0)), Err(TokenError::Invalid));
        for altered in ["", "AQ", &token[1..], &token[..token.len() - 1], &format!("{token}A"), &format!("{token}=")] {
            assert_eq!(key.read(Purpose::Upgrade, altered, at(0)), Err(TokenError::Invalid), "{altered}");
        }
    }
}
