//! The community's map of prices, as `LiteLLM` keeps it (`model_prices_and_context_window.json`): dollars for one token.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::value::RawValue;

use super::money::{Money, MoneyError};

/// What describes the format itself.
const SAMPLE: &str = "sample_spec";
/// Its names, and ours.
const PER_TOKEN: [(&str, &str); 7] = [
    ("input_cost_per_token", "input"),
    ("output_cost_per_token", "output"),
    ("cache_read_input_token_cost", "cached_input"),
    ("cache_creation_input_token_cost", "cache_write"),
    ("input_cost_per_audio_token", "audio_input"),
    ("output_cost_per_audio_token", "audio_output"),
    ("output_cost_per_reasoning_token", "reasoning"),
];
const PER_PIECE: [(&str, &str); 2] = [("output_cost_per_image", "image"), ("input_cost_per_request", "request")];
/// Prices of long calls have the number in their names.
const ABOVE: [(&str, i64); 4] =
    [("_above_128k_tokens", 128_000), ("_above_200k_tokens", 200_000), ("_above_256k_tokens", 256_000), ("_above_272k_tokens", 272_000)];

/// A book, and what was not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The text of a `prices.yaml`.
    pub text: String,
    pub models: usize,
    /// Models whose prices the book cannot say: by the second, by the page, or not at all.
    pub left_out: usize,
    /// Models that by the map cost nothing. Whether that is true is for a person to say, so they are left out too.
    pub free: Vec<String>,
    /// Prices that were rounded to nine decimals.
    pub rounded: usize,
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// `Err` is a sentence.
pub fn import(text: &str) -> Result<Imported, String> {
    let map: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| format!("this is not the map of prices that LiteLLM keeps: {error}"))?;
    let mut imported = Imported {
        text: "# Made by `spendgate prices import` from the map that LiteLLM keeps. Dollars for a million tokens.\nmodels:\n".to_owned(),
        models: 0,
        left_out: 0,
        free: Vec::new(),
        rounded: 0,
    };
    for (name, raw) in map.iter().filter(|(name, _)| *name != SAMPLE) {
        let fields: Fields<'_> =
            serde_json::from_str(raw.get()).map_err(|error| format!("`{name}` is not described by an object: {error}"))?;
        imported.add(name, &fields)?;
    }
    if imported.models == 0 {
        return Err("it has no model with a price for tokens".to_owned());
    }
    Ok(imported)
}

impl Imported {
    fn add(&mut self, name: &str, fields: &Fields<'_>) -> Result<(), String> {
        let prices = self.prices(name, fields, "")?;
        let has_tokens = prices.iter().any(|(key, _)| matches!(*key, "input" | "output"));
        if !has_tokens || name.contains('*') || name.chars().any(char::is_control) {
            self.left_out += 1;
            return Ok(());
        }
        if prices.iter().all(|(_, price)| *price == Money::ZERO) {
            self.free.push(name.to_owned());
            return Ok(());
        }
        let mut above = Vec::new();
        for (suffix, more_than) in ABOVE {
            let long = self.prices(name, fields, suffix)?;
            if !long.is_empty() {
                above.push(format!("{{ input_tokens: {more_than}, {} }}", written(&long)));
            }
        }
        let provider = fields.get("litellm_provider").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        // Writing to a string does not fail.
        let _ = write!(self.text, "  {}: {{ ", quoted(name));
        if let Some(provider) = provider.filter(|provider| !provider.is_empty()) {
            let _ = write!(self.text, "provider: {}, ", quoted(&provider));
        }
        self.text.push_str(&written(&prices));
        if !above.is_empty() {
            let _ = write!(self.text, ", above: [{}]", above.join(", "));
        }
        self.text.push_str(" }\n");
        self.models += 1;
        Ok(())
    }

    fn prices(&mut self, name: &str, fields: &Fields<'_>, suffix: &str) -> Result<Vec<(&'static str, Money)>, String> {
        let pieces = if suffix.is_empty() { PER_PIECE.as_slice() } else { &[] };
        let per = PER_TOKEN.iter().map(|names| (names, 6)).chain(pieces.iter().map(|names| (names, 0)));
        let mut prices = Vec::new();
        for ((theirs, ours), power) in per {
            let key = format!("{theirs}{suffix}");
            if let Some(raw) = fields.get(&key).filter(|raw| raw.get() != "null") {
                let price = self.scaled(raw.get(), power).map_err(|error| format!("`{name}`: `{key}` {error}"))?;
                prices.push((*ours, price));
            }
        }
        Ok(prices)
    }

    /// `text` × 10^`power`, exactly where nine decimals hold it.
    fn scaled(&mut self, text: &str, power: i32) -> Result<Money, MoneyError> {
        let text = text.trim_matches('"');
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i32 = exponent.parse().map_err(|_| MoneyError::Malformed)?;
        let text = format!("{mantissa}e{}", exponent.saturating_add(power));
        match Money::parse(&text) {
            Err(MoneyError::TooFine) => {
                // A float that somebody printed with all its digits: the nearest one with nine decimals was meant.
                self.rounded += 1;
                let nearest: f64 = text.parse().map_err(|_| MoneyError::Malformed)?;
                Money::parse(&format!("{nearest:.9}"))
            }
            read => read,
        }
    }
}

fn written(prices: &[(&str, Money)]) -> String {
    let written: Vec<String> = prices.iter().map(|(key, price)| format!("{key}: {}", price.decimal())).collect();
    written.join(", ")
}

/// A JSON string is one of YAML too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catalogue::Percent;
    use crate::domain::prices_file;
    use crate::domain::pricing::{Parts, Tokens};

    #[test]
    fn the_communitys_map_is_read_exactly() {
        let map = r#"{
            "sample_spec": {"input_cost_per_token": 0.0000000000, "litellm_provider": "one of …"},
            "gpt-4o": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05, "cache_read_input_token_cost": 1.25e-06, "litellm_provider": "openai", "mode": "chat", "supports_vision": true},
            "gemini/pro": {"input_cost_per_token": 0.00000125, "output_cost_per_token": 0.00001, "input_cost_per_token_above_200k_tokens": 2.5e-06, "litellm_provider": "gemini"},
            "odd \"name\": x": {"input_cost_per_token": 3.7499999999999997e-07, "output_cost_per_token": null},
            "local": {"input_cost_per_token": 0, "output_cost_per_token": 0.0},
            "speech": {"input_cost_per_second": 0.0001},
            "any/*": {"input_cost_per_token": 1e-06}
        }"#;
        let imported = import(map).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((imported.models, imported.left_out, imported.rounded, &*imported.free), (3, 2, 1, &["local".to_owned()][..]));
        let book = prices_file::read(&imported.text).unwrap_or_else(|problems| panic!("{problems:?}\n{}", imported.text));
        let cost = |model: &str, input: i64, cached_input: i64, output: i64| {
            let price = book.price(model, None, chrono::DateTime::UNIX_EPOCH).unwrap_or_else(|| panic!("{model}"));
            price.cost(&Tokens { input, output, parts: Parts { cached_input, ..Parts::NONE } }, Percent(0)).decimal()
        };
        assert_eq!(cost("gpt-4o", 1_000_000, 500_000, 100_000), "2.875");
        assert_eq!(cost("gemini/pro", 200_000, 0, 0), "0.25");
        assert_eq!(cost("gemini/pro", 200_001, 0, 1), "0.5000125");
        assert_eq!(cost("odd \"name\": x", 1_000_000, 0, 0), "0.375");
        assert!(import("{}").is_err());
        assert!(import("[1]").is_err());
        assert_eq!(
            import(r#"{"a": {"input_cost_per_token": -1}}"#).map_err(|why| why.contains("`a`: `input_cost_per_token` is negative")),
            Err(true)
        );
    }
}
