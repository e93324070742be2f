//! What a call cost that was made: as its caller says, or worked out from its tokens.

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use super::catalogue::{Catalogue, Percent, Tier};
use super::models::UnknownModel;
use super::money::Money;
use super::operation::{Consumption, Used};
use super::pricing::{Applied, Parts, Price, PriceBook, Rates, Tokens};

/// The price of a model in a tier: its own, or (then `true`) that of the model which it is priced as.
pub(super) fn price<'b>(
    prices: &'b PriceBook,
    tier: &Tier,
    model: &str,
    provider: Option<&str>,
    time: DateTime<Utc>,
) -> Option<(Price<'b>, bool)> {
    let own = prices.price(model, provider, time).map(|price| (price, false));
    own.or_else(|| match &tier.unknown_model {
        UnknownModel::PriceAs(other) => prices.price(other, None, time).map(|price| (price, true)),
        UnknownModel::Refuse | UnknownModel::Flag => None,
    })
}

/// What is kept of a call beside its cost and its two sums of tokens, as a JSON object.
#[derive(Serialize)]
struct Detail<'a> {
    #[serde(flatten)]
    parts: Parts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pricing: Option<Pricing<'a>>,
    /// It has no price, and counts nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unpriced: bool,
}

/// The prices that were applied, in dollars per million tokens.
#[derive(Debug, Serialize)]
pub struct Pricing<'a> {
    /// As the price book calls it.
    model: &'a str,
    /// It has no price of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    price_as: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_from: Option<NaiveDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    above_input_tokens: Option<i64>,
    #[serde(flatten)]
    rates: &'a Rates,
    markup_pct: Percent,
}

impl<'a> Pricing<'a> {
    pub(super) fn new(price: &Price<'a>, price_as: bool, applied: &Applied<'a>, markup: Percent) -> Self {
        Self {
            model: &price.model.name,
            price_as,
            valid_from: applied.valid_from.map(|from| from.date_naive()),
            above_input_tokens: applied.above,
            rates: applied.rates,
            markup_pct: markup,
        }
    }

    /// As the price book calls it.
    pub fn model(&self) -> &'a str {
        self.model
    }
}

/// A model that has no price, in a tier that refuses such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpriced {
    pub model: String,
}

/// What is to be booked for `used`, by a user of `tier`, for a call at `time`. A cost that the caller gave is the cost.
pub(super) fn consumption(catalogue: &Catalogue, tier: &Tier, used: &Used, time: DateTime<Utc>) -> Result<Consumption, Unpriced> {
    let (cost, pricing, unpriced) = match used.cost {
        Some(cost) => (cost, None, false),
        None => {
            let tokens = used.tokens();
            let model = used.model.as_deref().unwrap_or_default();
            match price(&catalogue.prices, tier, model, used.provider.as_deref(), time) {
                Some((price, price_as)) => {
                    let applied = price.apply(&tokens, tier.markup);
                    (applied.cost, Some(Pricing::new(&price, price_as, &applied, tier.markup)), false)
                }
                // Where no model is named there is nothing to look at, and nothing that the tier lets pass.
                None if tier.unknown_model == UnknownModel::Flag && !model.is_empty() => (Money::ZERO, None, true),
                None => return Err(Unpriced { model: model.to_owned() }),
            }
        }
    };
    let parts = used.parts.as_deref().copied().unwrap_or_default();
    let is_plain = pricing.is_none() && !unpriced && parts == Parts::NONE;
    // Numbers and names: nothing of it refuses to be written.
    let detail = if is_plain { None } else { serde_json::to_string(&Detail { parts, pricing, unpriced }).ok() };
    Ok(Consumption {
        cost,
        model: used.model.clone(),
        provider: used.provider.clone(),
        input_tokens: used.input_tokens,
        output_tokens: used.output_tokens,
        metadata: used.metadata.clone(),
        detail,
    })
}

impl Used {
    fn tokens(&self) -> Tokens {
        Tokens {
            input: self.input_tokens.unwrap_or_default(),
            output: self.output_tokens.unwrap_or_default(),
            parts: self.parts.as_deref().copied().unwrap_or_default(),
        }
    }
}
