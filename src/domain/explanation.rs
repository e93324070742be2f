//! What a decision rests on, in amounts that people can check.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::catalogue::{Catalogue, Percent, Tier};
use super::cost::{Pricing, price};
use super::judge::Ask;
use super::models::UnknownModel;
use super::money::Money;

/// Where an estimate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The caller said it.
    Given,
    /// It was worked out from tokens.
    Tokens,
    /// Nothing was said of it, so it is nothing.
    Nothing,
}

/// What a call may cost, and how that is known.
#[derive(Debug, Serialize)]
pub struct Estimate<'a> {
    /// `None`: the model has no price.
    pub amount: Option<Money>,
    pub basis: Basis,
    /// The prices that were applied, where it was worked out.
    pub pricing: Option<Pricing<'a>>,
}

/// What `ask` may cost with the model that it names, as `judge` judges it.
pub fn estimate<'a>(catalogue: &'a Catalogue, tier: &'a Tier, ask: &Ask, now: DateTime<Utc>) -> Estimate<'a> {
    if let Some(cost) = ask.cost {
        return Estimate { amount: Some(cost), basis: Basis::Given, pricing: None };
    }
    let Some(tokens) = &ask.tokens else { return Estimate { amount: Some(Money::ZERO), basis: Basis::Nothing, pricing: None } };
    let model = ask.model.as_deref().unwrap_or_default();
    match price(&catalogue.prices, tier, model, ask.provider.as_deref(), now) {
        Some((price, price_as)) => {
            let applied = price.apply(tokens, tier.markup);
            let pricing = Some(Pricing::new(&price, price_as, &applied, tier.markup));
            Estimate { amount: Some(applied.cost), basis: Basis::Tokens, pricing }
        }
        None => {
            let amount = (tier.unknown_model == UnknownModel::Flag).then_some(Money::ZERO);
            Estimate { amount, basis: Basis::Tokens, pricing: None }
        }
    }
}

/// The least amount that is `percent` of `limit` or more.
pub fn reached_at(limit: Money, percent: Percent) -> Money {
    let exact = i128::from(limit.nanos()) * i128::from(percent.0);
    let nanos = i64::try_from((exact + 9_999) / 10_000).unwrap_or(i64::MAX);
    Money::from_nanos(nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_the_least_amount_that_reaches_it() {
        let check = |limit: i64, percent: Percent, expected: i64| {
            let limit = Money::from_nanos(limit).unwrap_or_default();
            assert_eq!(reached_at(limit, percent).nanos(), expected, "{percent} % of {limit}");
        };
        check(100_000_000, Percent::whole(80), 80_000_000);
        check(0, Percent::whole(100), 0);
        check(1, Percent::whole(80), 1);
        check(3, Percent(3333), 1);
        check(i64::MAX, Percent::whole(1000), i64::MAX);
    }
}
