//! Whole nano-dollars.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

/// How many nano-dollars a dollar has.
pub const NANOS_PER_DOLLAR: i64 = 1_000_000_000;

/// The largest amount that a single record or limit may have: one billion dollars. Nine of them still fit an `i64`.
const MAX_NANOS: i64 = 1_000_000_000 * NANOS_PER_DOLLAR;

/// The same, for what has no sign.
const DECIMALS: u64 = 1_000_000_000;

/// `9223372036.854775807`
const DECIMAL_BYTES_MAX: usize = 20;

/// More text than any amount needs; a longer one is refused unread.
const TEXT_MAX: usize = 64;

/// An amount of the one configured currency (US dollars) in whole nano-dollars, never negative.
///
/// One amount that came from outside is at most $1 000 000 000; a sum may be up to `i64::MAX` nano-dollars (some
/// $9.2 billion), and whoever adds must say what happens beyond ([`Money::checked_add`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(i64);

/// Why a text is not an amount. The sentence says what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    #[error("is not an amount; write dollars as a decimal such as 0.03 or \"0.03\"")]
    Malformed,
    #[error("is negative; an amount is 0 or more, and a correction is its own operation")]
    Negative,
    #[error("has more than nine decimals; amounts are whole nano-dollars, so round to nine decimals")]
    TooFine,
    #[error("is more than 1000000000; one amount is at most one billion dollars")]
    TooLarge,
}

impl Money {
    pub const ZERO: Self = Self(0);

    /// Negative amounts are not money here: a correction is its own kind of row.
    pub fn from_nanos(nanos: i64) -> Option<Self> {
        (0 <= nanos).then_some(Self(nanos))
    }

    /// Nothing for a sum from which more was taken than it has.
    pub fn at_least_nothing(nanos: i64) -> Self {
        Self(nanos.max(0))
    }

    pub fn nanos(self) -> i64 {
        self.0
    }

    /// `None` where the sum would pass `i64::MAX` nano-dollars.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The product, or the most that can be counted.
    pub fn times(self, factor: u64) -> Self {
        Self(i64::try_from(factor).ok().and_then(|factor| self.0.checked_mul(factor)).unwrap_or(i64::MAX))
    }

    /// The sum, or the most that can be counted.
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left of `self` when `used` is taken from it: never below zero.
    pub fn less(self, used: i128) -> Self {
        let left = (i128::from(self.0) - used).clamp(0, i128::from(i64::MAX));
        Self(i64::try_from(left).unwrap_or(i64::MAX))
    }

    /// Reads dollars from their decimal text: digits, optionally a point and decimals, optionally a power of ten (the
    /// whole grammar of a JSON number, since some languages write 0.0000001 as `1e-7`). Exact: no float is involved.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        if TEXT_MAX < text.len() {
            return Err(MoneyError::Malformed);
        }
        let (unsigned, negative) = match text.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, read_exponent(exponent)?),
            None => (unsigned, 0),
        };
        let (whole, decimals) = match mantissa.split_once('.') {
            Some((_, "")) => return Err(MoneyError::Malformed),
            Some(parts) => parts,
            None => (mantissa, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(decimals) {
            return Err(MoneyError::Malformed);
        }
        let nanos = scale(whole, decimals, exponent)?;
        if negative && nanos != 0 {
            return Err(MoneyError::Negative);
        }
        Ok(Self(nanos))
    }

    /// The shortest decimal text: `0`, `0.1`, `29`, `0.000000001`. [`Money::parse`] reads it back as the same amount,
    /// where it is not larger than one amount may be.
    pub fn decimal(self) -> String {
        self.with_decimal(str::to_owned)
    }

    /// The nearest double, read from the decimal text: for the operator's own rules, whose language has no other fraction.
    pub fn dollars(self) -> f64 {
        self.with_decimal(|text| text.parse().unwrap_or(f64::INFINITY))
    }

    /// [`Money::decimal`] without a place of its own in memory: a check writes a dozen of them.
    fn with_decimal<T>(self, take: impl FnOnce(&str) -> T) -> T {
        let mut digits = [b'0'; DECIMAL_BYTES_MAX];
        let (mut whole, mut nanos) = (self.0.unsigned_abs() / DECIMALS, self.0.unsigned_abs() % DECIMALS);
        let point = DECIMAL_BYTES_MAX - 10;
        let mut end = if nanos == 0 { point } else { point + 10 };
        for place in (point + 1..end).rev() {
            digits[place] = digit(nanos);
            nanos /= 10;
        }
        while end != point && digits[end - 1] == b'0' {
            end -= 1;
        }
        digits[point] = b'.';
        let mut start = point - 1;
        digits[start] = digit(whole);
        whole /= 10;
        while whole != 0 {
            start -= 1;
            digits[start] = digit(whole);
            whole /= 10;
        }
        take(str::from_utf8(&digits[start..end]).unwrap_or("0"))
    }
}

/// The last decimal digit.
fn digit(of: u64) -> u8 {
    b"0123456789"[usize::try_from(of % 10).unwrap_or_default()]
}

/// `$0.10`, `$29.00`, `$0.000000001`: at least two decimals, for people.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0 / NANOS_PER_DOLLAR, self.0 % NANOS_PER_DOLLAR);
        let decimals = format!("{nanos:09}");
        let kept = decimals.trim_end_matches('0').len().max(2);
        write!(f, "${whole}.{}", &decimals[..kept])
    }
}

/// A JSON number, written from the decimal text.
impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_decimal(|text| serde_json::from_str::<&RawValue>(text).map_err(S::Error::custom)?.serialize(serializer))
    }
}

/// A JSON number or string, read from its text. It works where `serde_json` reads the value straight from text; buffered
/// data (untagged enums, flattened structs) has already gone through a float and is refused.
impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        Self::parse(inner).map_err(D::Error::custom)
    }
}

/// More digits than this in an exponent cannot be an amount in range, whatever the mantissa.
const EXPONENT_DIGITS_MAX: usize = 3;

fn read_exponent(text: &str) -> Result<i32, MoneyError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || EXPONENT_DIGITS_MAX < digits.len() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(MoneyError::Malformed);
    }
    text.parse().map_err(|_| MoneyError::Malformed)
}

/// `whole.decimals × 10^exponent` dollars, in nano-dollars.
fn scale(whole: &str, decimals: &str, exponent: i32) -> Result<i64, MoneyError> {
    let digits = format!("{whole}{decimals}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    let trailing_zeros = digits.len() - digits.trim_end_matches('0').len();
    let length = |count: usize| i32::try_from(count).map_err(|_| MoneyError::TooLarge);
    // The amount is `significant × 10^power` nano-dollars.
    let power = exponent + 9 - length(decimals.len())? + length(trailing_zeros)?;
    if power < 0 {
        return Err(MoneyError::TooFine);
    }
    // MAX_NANOS has 19 digits.
    if 19 < length(significant.len())? + power {
        return Err(MoneyError::TooLarge);
    }
    let factor = 10_i128.checked_pow(power.unsigned_abs()).ok_or(MoneyError::TooLarge)?;
    let nanos = significant.parse::<i128>().ok().and_then(|value| value.checked_mul(factor)).ok_or(MoneyError::TooLarge)?;
    match i64::try_from(nanos) {
        Ok(nanos) if nanos <= MAX_NANOS => Ok(nanos),
        _ => Err(MoneyError::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_exactly_from_their_text() {
        let check = |text: &str, expected: Result<i64, MoneyError>| {
            assert_eq!(Money::parse(text).map(Money::nanos), expected, "{text:?}");
        };
        check("0", Ok(0));
        check("0.1", Ok(100_000_000));
        check("0.30", Ok(300_000_000));
        check("29", Ok(29_000_000_000));
        check("0.000000001", Ok(1));
        check("1e-9", Ok(1));
        check("1E3", Ok(1_000_000_000_000));
        check("0.5e+1", Ok(5_000_000_000));
        check("1000000000", Ok(MAX_NANOS));
        check("1000000000.0000000000000", Ok(MAX_NANOS));
        check("-0", Ok(0));
        check("0e999", Ok(0));
        check("1000000000.000000001", Err(MoneyError::TooLarge));
        check("1e10", Err(MoneyError::TooLarge));
        check("9e999", Err(MoneyError::TooLarge));
        check("0.0000000001", Err(MoneyError::TooFine));
        check("0.30000000000000004", Err(MoneyError::TooFine));
        check("1e-999", Err(MoneyError::TooFine));
        check("-0.01", Err(MoneyError::Negative));
        for text in ["", "-", ".5", "5.", "1e", "1e1234", "NaN", "inf", "0x10", "1_000", "1,5", " 1", "1 ", "+1", "--1", "1.2.3", "٣"] {
            check(text, Err(MoneyError::Malformed));
        }
    }

    #[test]
    fn json_numbers_and_strings_are_the_same_amount() {
        for text in ["0.03", "\"0.03\"", "3e-2", "\"3e-2\""] {
            assert_eq!(serde_json::from_str::<Money>(text).map(Money::nanos).ok(), Some(30_000_000), "{text}");
        }
        for text in ["null", "true", "[]", "{}", "\"\"", "\"\\u0030\"", "\"0.03"] {
            assert!(serde_json::from_str::<Money>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_see_at_least_two_decimals() {
        let shown = |text: &str| Money::parse(text).map(|money| money.to_string()).unwrap_or_default();
        assert_eq!(shown("0.1"), "$0.10");
        assert_eq!(shown("29"), "$29.00");
        assert_eq!(shown("0.105"), "$0.105");
    }

    proptest! {
        #[test]
        fn an_amount_survives_its_own_text(nanos in 0..=MAX_NANOS) {
            let money = Money(nanos);
            prop_assert_eq!(Money::parse(&money.decimal()), Ok(money));
            let json = serde_json::to_string(&money).unwrap_or_default();
            prop_assert_eq!(serde_json::from_str::<Money>(&json).ok(), Some(money));
        }

        #[test]
        fn no_text_makes_a_panic(text in "[-+0-9.eE]{0,40}") {
            let _ = Money::parse(&text);
        }
    }
}
