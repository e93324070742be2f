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

    /// A model has many names: as it was asked for, with its provider (where none is said, the price book's) and without, and as the price
    /// book calls it. One that is denied
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
        let listed = prices.model(model, provider);
        let in_book = listed.map(|listed| listed.name.as_str());
        // Where nobody says whose it is, it is its that the price book says.
        let own = listed.and_then(|listed| listed.provider.as_deref()).filter(|_| provider.is_none() && parts.is_none());
        let of_own = |name: Option<&str>| own.zip(name).map(|(own, name)| format!("{own}/{name}"));
        let (own_as_asked, own_as_listed) = (of_own(Some(model)), of_own(in_book));
        let with = [&with_provider, &as_listed, &said_as_listed, &own_as_asked, &own_as_listed].map(Option::as_deref);
        let names = [Some(model), without, in_book].into_iter().chain(with).flatten();
        let among = |globs: &[Glob]| names.clone().any(|name| globs.iter().any(|glob| glob.matches(name)));
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
        check(&denies, "gpt-4o", None, false);
        check(&denies, "gpt-4o-2024-08-06", None, false);
        check(&denies, "gpt-4o", Some("azure"), true);
        check(&denies, "azure/gpt-4o", None, true);
        check(&denies, "o1", None, true);
        let allows = Models { allow: Some(globs(&["openai/*"])), deny: Vec::new() };
        check(&allows, "gpt-4o", None, true);
        check(&allows, "o1", None, false);
    }
}
