//! Reads the text of `prices.yaml` into a [`PriceBook`], or says everything that is wrong with it.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use marked_yaml::Node;
use marked_yaml::types::{MarkedScalarNode, Span};

use super::glob::Glob;
use super::money::Money;
use super::pricing::{Model, PriceBook, Prices, Rates};
use super::yaml::{self, Fields, Problem, Reader};

/// A model's own keys beside its prices.
const MODEL_KEYS: [&str; 3] = ["provider", "aliases", "prices"];
const RATE_KEYS: [&str; 9] =
    ["input", "output", "cached_input", "cache_write", "reasoning", "audio_input", "audio_output", "image", "request"];

/// The book that `text` describes, or all its faults in the order of the file.
pub fn read(text: &str) -> Result<PriceBook, Vec<Problem>> {
    yaml::read(text, Reader::price_book)
}

/// Rates as they are written: what is absent is as another one.
#[derive(Clone, Copy, Default)]
struct Written {
    given: [Option<Money>; RATE_KEYS.len()],
}

impl Written {
    /// What is written here, and where nothing is, what is written in `base`.
    fn over(self, base: Self) -> Self {
        let mut given = base.given;
        for (below, own) in given.iter_mut().zip(self.given) {
            *below = own.or(*below);
        }
        Self { given }
    }

    fn rates(self) -> Rates {
        let [input, output, cached_input, cache_write, reasoning, audio_input, audio_output, image, request] = self.given;
        let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
        Rates {
            input,
            output,
            cached_input: cached_input.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
            audio_input: audio_input.unwrap_or(input),
            reasoning: reasoning.unwrap_or(output),
            audio_output: audio_output.unwrap_or(output),
            image: image.unwrap_or_default(),
            request: request.unwrap_or_default(),
        }
    }
}

impl Reader {
    fn price_book(&mut self, root: &Node) -> Option<PriceBook> {
        let fields = self.fields(root, "the file", &["as_of", "sources", "providers", "models"])?;
        let as_of = fields.get("as_of").and_then(|node| self.parsed(node, "as_of", date));
        if let Some(node) = fields.get("sources") {
            self.names(node, "sources");
        }
        let providers = fields.get("providers").map(|node| self.providers(node)).unwrap_or_default();
        let Some(node) = fields.get("models").copied() else {
            self.problem(&Span::new_blank(), "`models` is missing; describe each model's prices below it");
            return None;
        };
        let mut known: HashMap<String, (String, usize)> = HashMap::new();
        let mut models = Vec::new();
        for (name, node) in self.mapping(node, "models")? {
            models.extend(self.model(name, node, &mut known));
        }
        Some(PriceBook::new(as_of, providers, models))
    }

    /// Each provider's other names.
    fn providers(&mut self, node: &Node) -> HashMap<String, String> {
        let mut known: HashMap<String, String> = HashMap::new();
        for (provider, node) in self.mapping(node, "providers").into_iter().flatten() {
            for alias in self.names(node, provider.as_str()) {
                if known.insert(alias.as_str().to_ascii_lowercase(), provider.as_str().to_owned()).is_some() {
                    self.problem(alias.span(), format!("`{}` is another provider's name already", alias.as_str()));
                }
            }
        }
        known
    }

    fn model(&mut self, name: &MarkedScalarNode, node: &Node, known: &mut HashMap<String, (String, usize)>) -> Option<(Model, Vec<Glob>)> {
        let label = format!("model `{}`", name.as_str());
        let keys: Vec<&str> = MODEL_KEYS.into_iter().chain(RATE_KEYS).chain(["above"]).collect();
        let fields = self.fields(node, &label, &keys)?;
        let provider = fields.get("provider").and_then(|node| self.name(node, "provider"));
        let aliases = fields.get("aliases").map(|node| self.names(node, "aliases")).unwrap_or_default();
        let mut names = Vec::new();
        for alias in [name].into_iter().chain(aliases) {
            let line = alias.span().start().map_or(0, |at| at.line());
            match known.get(alias.as_str()) {
                Some((other, first)) => {
                    let message = format!("`{}` names model `{other}` in line {first} already; each name has one price", alias.as_str());
                    self.problem(alias.span(), message);
                }
                None => {
                    known.insert(alias.as_str().to_owned(), (name.as_str().to_owned(), line));
                    names.push(Glob::new(alias.as_str()));
                }
            }
        }
        let prices = match fields.get("prices").copied() {
            None => vec![self.prices(&fields, &label, name.span(), None)?],
            Some(node) => {
                if let Some(key) = RATE_KEYS.into_iter().chain(["above"]).find(|key| fields.contains_key(key)) {
                    self.problem(node.span(), format!("{label} has `prices` and `{key}` beside it; write `{key}` within each of `prices`"));
                }
                self.dated(node, &label)?
            }
        };
        Some((Model { name: name.as_str().to_owned(), provider, prices }, names))
    }

    fn dated(&mut self, node: &Node, label: &str) -> Option<Vec<Prices>> {
        let Some(items) = node.as_sequence().filter(|items| !items.is_empty()) else {
            self.problem(node.span(), "`prices` must be a list, as in `prices: [{ valid_from: 2024-10-02, input: 2.50, output: 10.00 }]`");
            return None;
        };
        let mut dated: Vec<Prices> = Vec::new();
        for item in items.iter() {
            let keys: Vec<&str> = RATE_KEYS.into_iter().chain(["above", "valid_from"]).collect();
            let fields = self.fields(item, "`prices`", &keys)?;
            let Some(node) = fields.get("valid_from").copied() else {
                self.problem(item.span(), format!("{label}: prices without `valid_from`; give the day from which they hold"));
                return None;
            };
            let from = self.parsed(node, "valid_from", date)?.and_time(NaiveTime::MIN).and_utc();
            if dated.iter().any(|before| before.valid_from == Some(from)) {
                self.problem(node.span(), format!("{label} has two prices from that day; keep one"));
            }
            dated.push(self.prices(&fields, label, item.span(), Some(from))?);
        }
        dated.sort_by_key(|prices| prices.valid_from);
        Some(dated)
    }

    fn prices(&mut self, fields: &Fields<'_>, label: &str, span: &Span, valid_from: Option<DateTime<Utc>>) -> Option<Prices> {
        if RATE_KEYS.iter().all(|key| !fields.contains_key(key)) {
            self.problem(
                span,
                format!("{label} has no price; give `input` and `output` in dollars per million tokens, or 0 where it is free"),
            );
            return None;
        }
        let base = self.written(fields)?;
        let mut above: Vec<(i64, Rates)> = Vec::new();
        if let Some(node) = fields.get("above").copied() {
            let Some(items) = node.as_sequence() else {
                self.problem(node.span(), "`above` must be a list, as in `above: [{ input_tokens: 200000, input: 4.00, output: 15.00 }]`");
                return None;
            };
            for item in items.iter() {
                let keys: Vec<&str> = RATE_KEYS.into_iter().chain(["input_tokens"]).collect();
                let fields = self.fields(item, "`above`", &keys)?;
                let Some(node) = fields.get("input_tokens").copied() else {
                    self.problem(item.span(), "`above` needs `input_tokens`: calls with more input than that have these prices");
                    return None;
                };
                let more_than = self.parsed(node, "input_tokens", |text| match text.parse::<i64>() {
                    Ok(count) if 0 < count => Ok(count),
                    _ => Err("must be a whole number of tokens, 1 or more".to_owned()),
                })?;
                if above.iter().any(|(other, _)| *other == more_than) {
                    self.problem(node.span(), format!("{label} has two prices above {more_than} tokens; keep one"));
                }
                above.push((more_than, self.written(&fields)?.over(base).rates()));
            }
        }
        above.sort_by_key(|(more_than, _)| *more_than);
        Some(Prices { valid_from, base: base.rates(), above })
    }

    fn written(&mut self, fields: &Fields<'_>) -> Option<Written> {
        let mut written = Written::default();
        for (key, place) in RATE_KEYS.into_iter().zip(&mut written.given) {
            if let Some(node) = fields.get(key) {
                *place = Some(self.money(node, key)?);
            }
        }
        Some(written)
    }
}

fn date(text: &str) -> Result<NaiveDate, String> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| "must be a day such as 2024-10-02".to_owned())
}
