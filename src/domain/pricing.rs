//! What a call costs: model + tokens → cost, exactly.
//!
//! A price is dollars per million tokens, in whole nano-dollars. Products and sums are whole numbers of a millionth of a
//! nano-dollar and less; one rounding at the end, upwards, makes whole nano-dollars of them, so that nothing is free that has a price.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use super::catalogue::Percent;
use super::glob::Glob;
use super::money::Money;

/// A price is for so many tokens.
const MILLION: i128 = 1_000_000;
/// All of something, in hundredths of a percent.
const WHOLE: i128 = 10_000;

/// What a call used, or may use. `input` counts all tokens that go in, cached ones, written ones and audio among them; `output` all
/// that come out, reasoning and audio among them (as `gen_ai.usage.input_tokens` of OpenTelemetry's conventions does).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: i64,
    pub output: i64,
    pub parts: Parts,
}

impl Tokens {
    /// What an entry keeps of them: its two sums, and a JSON object that has the others in it. `None` where it keeps none.
    pub fn recorded(input: Option<i64>, output: Option<i64>, detail: Option<&str>) -> Option<Self> {
        let parts: Parts = detail.and_then(|detail| serde_json::from_str(detail).ok()).unwrap_or_default();
        let is_given = input.is_some() || output.is_some() || parts != Parts::NONE;
        is_given.then_some(Self { input: input.unwrap_or_default(), output: output.unwrap_or_default(), parts })
    }
}

/// Tokens that have a price of their own, and what is not counted in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// Of the input: read from the provider's cache.
    #[serde(rename = "cached_input_tokens", skip_serializing_if = "is_nothing")]
    pub cached_input: i64,
    /// Of the input: written to the provider's cache.
    #[serde(rename = "cache_write_tokens", skip_serializing_if = "is_nothing")]
    pub cache_write: i64,
    /// Of the input.
    #[serde(rename = "audio_input_tokens", skip_serializing_if = "is_nothing")]
    pub audio_input: i64,
    /// Of the output.
    #[serde(rename = "reasoning_tokens", skip_serializing_if = "is_nothing")]
    pub reasoning: i64,
    /// Of the output.
    #[serde(rename = "audio_output_tokens", skip_serializing_if = "is_nothing")]
    pub audio_output: i64,
    /// Pictures that were made.
    #[serde(skip_serializing_if = "is_nothing")]
    pub images: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_nothing(count: &i64) -> bool {
    *count == 0
}

impl Parts {
    pub const NONE: Self = Self { cached_input: 0, cache_write: 0, audio_input: 0, reasoning: 0, audio_output: 0, images: 0 };

    pub fn of_input(&self) -> i64 {
        self.cached_input.saturating_add(self.cache_write).saturating_add(self.audio_input)
    }

    pub fn of_output(&self) -> i64 {
        self.reasoning.saturating_add(self.audio_output)
    }
}

/// Dollars per million tokens of each kind, per picture, and per request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    pub input: Money,
    pub cached_input: Money,
    pub cache_write: Money,
    pub audio_input: Money,
    pub output: Money,
    pub reasoning: Money,
    pub audio_output: Money,
    pub image: Money,
    pub request: Money,
}

impl Rates {
    fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// What one more token of the kinds that are there costs at most.
    fn dearest_output(&self, parts: &Parts) -> Money {
        let reasoning = (0 < parts.reasoning).then_some(self.reasoning);
        let audio = (0 < parts.audio_output).then_some(self.audio_output);
        [reasoning, audio].into_iter().flatten().fold(self.output, Money::max)
    }

    /// In millionths of a nano-dollar, with nothing rounded. Additive over what was used, but for the price of the request itself.
    fn exact(&self, tokens: &Tokens) -> i128 {
        let parts = &tokens.parts;
        let amounts = [
            (tokens.input.saturating_sub(parts.of_input()), self.input),
            (parts.cached_input, self.cached_input),
            (parts.cache_write, self.cache_write),
            (parts.audio_input, self.audio_input),
            (tokens.output.saturating_sub(parts.of_output()), self.output),
            (parts.reasoning, self.reasoning),
            (parts.audio_output, self.audio_output),
        ];
        let by_tokens: i128 = amounts.iter().map(|(count, rate)| i128::from((*count).max(0)) * i128::from(rate.nanos())).sum();
        let by_image = i128::from(parts.images) * i128::from(self.image.nanos()) * MILLION;
        by_tokens + by_image + i128::from(self.request.nanos()) * MILLION
    }
}

/// What a model costs from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    /// `None`: always.
    pub valid_from: Option<DateTime<Utc>>,
    pub base: Rates,
    /// Whole calls whose input has more tokens than this, in ascending order.
    pub above: Vec<(i64, Rates)>,
}

impl Prices {
    fn rates(&self, input_tokens: i64) -> (Option<i64>, &Rates) {
        let above = self.above.iter().rev().find(|(more_than, _)| *more_than < input_tokens);
        above.map_or((None, &self.base), |(more_than, rates)| (Some(*more_than), rates))
    }
}

/// One model in the book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Whose model it is; `None`: whoever serves it.
    pub provider: Option<String>,
    /// In ascending order of their dates; not empty.
    pub prices: Vec<Prices>,
}

impl Model {
    /// The prices of that moment; before the first ones, those.
    fn at(&self, time: DateTime<Utc>) -> Option<&Prices> {
        let begun = |prices: &&Prices| prices.valid_from.is_none_or(|from| from <= time);
        self.prices.iter().rev().find(begun).or(self.prices.first())
    }

    /// Whether its newest prices are nowhere below those of `other`, and somewhere above.
    pub fn is_dearer_than(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (self.prices.last(), other.prices.last()) else { return false };
        let pairs = [(own.base.input, others.base.input), (own.base.output, others.base.output), (own.base.request, others.base.request)];
        pairs.iter().all(|(own, other)| other <= own) && pairs.iter().any(|(own, other)| other < own)
    }

    fn is_of(&self, provider: Option<&str>) -> bool {
        self.provider.as_deref().zip(provider).is_none_or(|(own, asked)| own.eq_ignore_ascii_case(asked))
    }
}

/// What every model costs. Made by `prices_file::read` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceBook {
    /// The day of which its prices are.
    pub as_of: Option<NaiveDate>,
    /// All names of providers, in small letters, and the ones that models are listed under.
    providers: HashMap<String, String>,
    models: Vec<Model>,
    exact: HashMap<String, usize>,
    /// The ones that say more come first.
    globs: Vec<(Glob, usize)>,
}

/// The price of a call at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Price<'b> {
    pub model: &'b Model,
    pub prices: &'b Prices,
}

/// What was applied to a call.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'b> {
    pub cost: Money,
    pub rates: &'b Rates,
    pub valid_from: Option<DateTime<Utc>>,
    /// The number of input tokens beyond which these rates hold, where that is why they do.
    pub above: Option<i64>,
}

impl<'b> Price<'b> {
    /// The cost of a call with `markup` on top, rounded up to a whole nano-dollar.
    pub fn apply(&self, tokens: &Tokens, markup: Percent) -> Applied<'b> {
        let (above, rates) = self.prices.rates(tokens.input);
        let marked_up = rates.exact(tokens) * (WHOLE + i128::from(markup.0));
        let unit = MILLION * WHOLE;
        let nanos = i64::try_from((marked_up + unit - 1) / unit).unwrap_or(i64::MAX);
        Applied { cost: Money::from_nanos(nanos).unwrap_or_default(), rates, valid_from: self.prices.valid_from, above }
    }

    pub fn cost(&self, tokens: &Tokens, markup: Percent) -> Money {
        self.apply(tokens, markup).cost
    }

    /// Whether no call of it costs anything.
    pub fn is_free(&self) -> bool {
        self.prices.base.is_free() && self.prices.above.iter().all(|(_, rates)| rates.is_free())
    }

    /// How many tokens may come out of a call with this input for `budget`, whichever they are of the kinds that `tokens` names: text, and
    /// reasoning or sound where it has some. `None` where their number does not matter, or is past counting. Negative never: 0 where the
    /// input alone costs more.
    pub fn most_output(&self, tokens: &Tokens, budget: Money, markup: Percent) -> Option<i64> {
        let fixed = Tokens { output: 0, parts: Parts { reasoning: 0, audio_output: 0, ..tokens.parts }, ..*tokens };
        let (_, rates) = self.prices.rates(tokens.input);
        let dearest = rates.dearest_output(&tokens.parts);
        let each = i128::from(dearest.nanos()) * (WHOLE + i128::from(markup.0));
        let room = i128::from(budget.nanos()) * MILLION * WHOLE - rates.exact(&fixed) * (WHOLE + i128::from(markup.0));
        if each == 0 {
            return (room < 0).then_some(0);
        }
        Some(i64::try_from(room.max(0) / each).unwrap_or(i64::MAX))
    }
}

impl PriceBook {
    /// `names` are those that each model is known by, its own among them. The caller has seen that no name stands twice.
    pub(super) fn new(as_of: Option<NaiveDate>, providers: HashMap<String, String>, models: Vec<(Model, Vec<Glob>)>) -> Self {
        let mut book = Self { as_of, providers, ..Self::default() };
        for provider in models.iter().filter_map(|(model, _)| model.provider.clone()) {
            book.providers.entry(provider.to_ascii_lowercase()).or_insert(provider);
        }
        for (place, (model, names)) in models.into_iter().enumerate() {
            for name in names {
                if name.is_exact() {
                    book.exact.insert(name.as_str().to_owned(), place);
                } else {
                    book.globs.push((name, place));
                }
            }
            book.models.push(model);
        }
        book.globs.sort_by(|(one, _), (other, _)| other.weight().cmp(&one.weight()).then_with(|| one.cmp(other)));
        book
    }

    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// Every name and pattern, with the model that it names.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Model)> {
        let exact = self.exact.iter().map(|(name, place)| (name.as_str(), *place));
        exact.chain(self.globs.iter().map(|(glob, place)| (glob.as_str(), *place))).map(|(name, place)| (name, &self.models[place]))
    }

    /// The model of this name: as `provider/name` where that stands in the book, else by its name alone. A name that says its provider
    /// itself (`openai/gpt-4o`) is read so.
    pub fn model(&self, name: &str, provider: Option<&str>) -> Option<&Model> {
        let provider = provider.map(|provider| self.provider(provider));
        if let Some(provider) = provider
            && let Some(model) = self.named(&format!("{provider}/{name}"), Some(provider))
        {
            return Some(model);
        }
        self.named(name, provider).or_else(|| {
            let (said, rest) = name.split_once('/')?;
            let same = provider.is_none_or(|provider| self.provider(said).eq_ignore_ascii_case(provider));
            if same { self.model(rest, Some(said)) } else { None }
        })
    }

    /// The name of a provider that models are listed under.
    pub fn provider<'a>(&'a self, name: &'a str) -> &'a str {
        self.providers.get(&name.to_ascii_lowercase()).map_or(name, String::as_str)
    }

    fn named(&self, name: &str, provider: Option<&str>) -> Option<&Model> {
        let exact = self.exact.get(name).map(|place| &self.models[*place]).filter(|model| model.is_of(provider));
        exact.or_else(|| {
            let globs = self.globs.iter().filter(|(glob, _)| glob.matches(name));
            globs.map(|(_, place)| &self.models[*place]).find(|model| model.is_of(provider))
        })
    }

    /// What a call of this model costs at `time`; `None` where nobody knows.
    pub fn price(&self, name: &str, provider: Option<&str>, time: DateTime<Utc>) -> Option<Price<'_>> {
        let model = self.model(name, provider)?;
        Some(Price { model, prices: model.at(time)? })
    }
}

#[cfg(test)]
#[path = "pricing_tests.rs"]
mod tests;
