//! Which models a tier includes, and what one without a price is worth.

use super::glob::Glob;
use super::pricing::PriceBook;

/// Lists of names and patterns. What is denied is denied, whatever is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Models {
    /// `None`: all.
    pub allow: Option<Vec<Glob>>,
    pub deny: Vec<Glob>,
}

/// What is done about a model that the price book does not have, where its cost is to be worked out from tokens. It never costs
/// nothing in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownModel {
    Refuse,
    /// It costs what this model costs.
    PriceAs(String),
    /// It counts nothing, and is told.
    Flag,
}

impl Models {
    pub fn is_everything(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }

    /// A model has many names: as it was asked for, with its provider and without, and as the price book calls it. One that is denied
    /// under any of them is denied; otherwise one that is allowed under any of them is allowed.
    pub fn allows(&self, model: &str, provider: Option<&str>, prices: &PriceBook) -> bool {
        if self.is_everything() {
            return true;
        }
        let with_provider = provider.map(|provider| format!("{provider}/{model}"));
        let as_listed = provider.map(|provider| format!("{}/{model}", prices.provider(provider)));
        let parts = model.split_once('/');
        let said_as_listed = parts.map(|(said, rest)| format!("{}/{rest}", prices.provider(said)));
        let without = parts.map(|(_, rest)| rest);
        let in_book = prices.model(model, provider).map(|model| model.name.as_str());
        let names = [Some(model), with_provider.as_deref(), as_listed.as_deref(), said_as_listed.as_deref(), without, in_book];
        let among = |globs: &[Glob]| names.iter().flatten().any(|name| globs.iter().any(|glob| glob.matches(name)));
        !among(&self.deny) && self.allow.as_deref().is_none_or(among)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::prices_file;

    #[test]
    fn a_model_is_denied_under_any_of_its_names_and_allowed_under_one() {
        let book = "models: { gpt-4o: { provider: openai, aliases: [gpt-4o-2024-*, chatgpt-4o-latest], input: 2.5, output: 10 } }";
        let book = prices_file::read(book).unwrap_or_else(|problems| panic!("{problems:?}"));
        let globs = |patterns: &[&str]| patterns.iter().map(|pattern| Glob::new(*pattern)).collect::<Vec<_>>();
        let check = |models: &Models, model: &str, provider: Option<&str>, expected: bool| {
            assert_eq!(models.allows(model, provider, &book), expected, "{model} of {provider:?} by {models:?}");
        };
        let denies = Models { allow: None, deny: globs(&["gpt-4o"]) };
        check(&denies, "gpt-4o", None, false);
        check(&denies, "gpt-4o-2024-08-06", None, false);
        check(&denies, "chatgpt-4o-latest", Some("openai"), false);
        check(&denies, "openai/gpt-4o", None, false);
        check(&denies, "gpt-4o-mini", None, true);
        let allows = Models { allow: Some(globs(&["gpt-4o*", "groq/*"])), deny: globs(&["*-preview"]) };
        check(&allows, "gpt-4o-mini", None, true);
        check(&allows, "gpt-4o-preview", None, false);
        check(&allows, "llama", Some("groq"), true);
        check(&allows, "llama", Some("together"), false);
        check(&allows, "groq/llama", None, true);
        let denies = Models { allow: None, deny: globs(&["openai/*"]) };
        check(&denies, "o1", Some("OpenAI"), false);
        check(&denies, "OpenAI/o1", None, false);
    }
}
