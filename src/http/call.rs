//! What callers say of a call: its model, its cost or its tokens.

use serde::Deserialize;

use super::body::Name;
use super::error::{ErrorCode, Problem};
use super::usage::Metadata;
use crate::domain::judge::Ask;
use crate::domain::money::Money;
use crate::domain::operation::Used;
use crate::domain::pricing::{self, Parts};

/// More tokens than any call has.
const TOKENS_MAX: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Tokens(i64);

impl TryFrom<i64> for Tokens {
    type Error = String;

    fn try_from(tokens: i64) -> Result<Self, String> {
        let good = (0..=TOKENS_MAX).contains(&tokens);
        if good { Ok(Self(tokens)) } else { Err(format!("is out of range; a number of tokens is 0 to {TOKENS_MAX}")) }
    }
}

/// The tokens of a call as they were sent, each where it was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub input: Option<Tokens>,
    pub output: Option<Tokens>,
    pub cached_input: Option<Tokens>,
    pub cache_write: Option<Tokens>,
    pub audio_input: Option<Tokens>,
    pub reasoning: Option<Tokens>,
    pub audio_output: Option<Tokens>,
    pub images: Option<Tokens>,
}

/// Gives a struct of a body the fields of tokens, and `counts` to read them: serde's `flatten` would read amounts as floats.
macro_rules! with_tokens {
    ($(#[$meta:meta])* $seen:vis struct $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        $seen struct $name {
            $($(#[$of_field])* $field: $type,)*
            input_tokens: Option<$crate::http::call::Tokens>,
            output_tokens: Option<$crate::http::call::Tokens>,
            cached_input_tokens: Option<$crate::http::call::Tokens>,
            cache_write_tokens: Option<$crate::http::call::Tokens>,
            audio_input_tokens: Option<$crate::http::call::Tokens>,
            reasoning_tokens: Option<$crate::http::call::Tokens>,
            audio_output_tokens: Option<$crate::http::call::Tokens>,
            images: Option<$crate::http::call::Tokens>,
        }

        impl $name {
            fn counts(&self) -> $crate::http::call::Counts {
                $crate::http::call::Counts {
                    input: self.input_tokens,
                    output: self.output_tokens,
                    cached_input: self.cached_input_tokens,
                    cache_write: self.cache_write_tokens,
                    audio_input: self.audio_input_tokens,
                    reasoning: self.reasoning_tokens,
                    audio_output: self.audio_output_tokens,
                    images: self.images,
                }
            }
        }
    };
}
pub(super) use with_tokens;

/// A field, and what is wrong with it.
pub type Fault = (ErrorCode, &'static str, String);

/// Names the field with `prefix` before it.
pub fn problem((code, field, why): Fault, prefix: &str) -> Problem {
    Problem::field(code, &format!("{prefix}{field}"), why)
}

fn number(tokens: Option<Tokens>) -> i64 {
    tokens.map_or(0, |tokens| tokens.0)
}

impl Counts {
    fn is_given(&self) -> bool {
        let all = [
            self.input,
            self.output,
            self.cached_input,
            self.cache_write,
            self.audio_input,
            self.reasoning,
            self.audio_output,
            self.images,
        ];
        all.iter().any(Option::is_some)
    }

    fn parts(&self) -> Result<Parts, Fault> {
        let parts = Parts {
            cached_input: number(self.cached_input),
            cache_write: number(self.cache_write),
            audio_input: number(self.audio_input),
            reasoning: number(self.reasoning),
            audio_output: number(self.audio_output),
            images: number(self.images),
        };
        // A provider that counts its cached tokens beside the others would be priced too low in silence.
        if number(self.input) < parts.of_input() {
            let (all, some) = (number(self.input), parts.of_input());
            let why = format!("is {all}, and {some} cached, written or audio tokens are to be among them; it counts all input");
            return Err((ErrorCode::InvalidField, "input_tokens", why));
        }
        if number(self.output) < parts.of_output() {
            let (all, some) = (number(self.output), parts.of_output());
            let why = format!("is {all}, and {some} reasoning or audio tokens are to be among them; it counts all output");
            return Err((ErrorCode::InvalidField, "output_tokens", why));
        }
        Ok(parts)
    }

    fn tokens(&self) -> Result<Option<pricing::Tokens>, Fault> {
        let tokens = pricing::Tokens { input: number(self.input), output: number(self.output), parts: self.parts()? };
        Ok(self.is_given().then_some(tokens))
    }

    /// What was used. Without a cost there are a model and tokens to work it out from; `model_elsewhere` says whether the model is known
    /// otherwise.
    pub fn used(
        &self,
        cost: Option<Money>,
        model: Option<Name>,
        provider: Option<Name>,
        metadata: Option<String>,
        model_elsewhere: bool,
    ) -> Result<Used, Fault> {
        if cost.is_none() && !(self.is_given() && (model.is_some() || model_elsewhere)) {
            let why = "is missing; give it, or `model` and tokens to work it out from".to_owned();
            return Err((ErrorCode::MissingField, "cost", why));
        }
        let parts = self.parts()?;
        Ok(Used {
            cost,
            model: model.map(|name| name.0),
            provider: provider.map(|name| name.0),
            input_tokens: self.input.map(|tokens| tokens.0),
            output_tokens: self.output.map(|tokens| tokens.0),
            parts: (parts != Parts::NONE).then(|| Box::new(parts)),
            metadata,
        })
    }

    /// What is asked about.
    pub fn ask(&self, cost: Option<Money>, model: Option<Name>, provider: Option<Name>, metadata: Option<Metadata>) -> Result<Ask, Fault> {
        let tokens = self.tokens()?;
        if cost.is_none() && tokens.is_some() && model.is_none() {
            let why = "is missing; tokens are priced by it (or give estimated_cost)".to_owned();
            return Err((ErrorCode::MissingField, "model", why));
        }
        // It was an object a moment ago.
        let metadata = metadata.and_then(|metadata| serde_json::from_str(&metadata.0).ok());
        Ok(Ask { model: model.map(|name| name.0), provider: provider.map(|name| name.0), cost, tokens, metadata })
    }
}
