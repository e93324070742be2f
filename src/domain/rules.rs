//! The operator's own rules: a condition in CEL, what to do where it holds, and what to say. Compiled when `tiers.yaml` is read,
//! bounded in size, depth and work; nothing passes a rule that cannot be judged.
//!
//! `docs/RULES.md` tells operators what a condition sees and what it may say, decision 14 why it is so.

mod budgets;
mod check;
mod facts;
mod kinds;
mod metadata;
mod quick;
mod when;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::{Env, ExecutionError};

pub use self::facts::Facts;
use self::facts::Lookup;
pub use self::metadata::{METADATA_BYTES_MAX, METADATA_VALUES_MAX};
use self::quick::Interpreter;
pub use self::when::{EXPRESSION_BYTES_MAX, When};
use serde::Serialize;

use super::decide::Action;

/// Rules that are judged for one check: more are a program, and that belongs into the application.
pub const RULES_MAX: usize = 64;
/// The work that all rules of one check may take at worst, in steps: about one look at one value each.
pub const STEPS_MAX: u64 = 20_000;
pub const RULE_NAME_BYTES_MAX: usize = 64;
pub const RULE_MESSAGE_BYTES_MAX: usize = 500;

/// What expressions may call, without macros (those are the parser's) and without optional values.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::default().with_optional_support(false).with_stdlib()));

/// One rule of the operator.
#[derive(Clone)]
pub struct Rule {
    name: String,
    when: When,
    action: Action,
    message: String,
}

impl Rule {
    /// `name` and `message` are what [`rule_name`] and [`rule_message`] let through; without a message it says its name.
    pub fn new(name: String, when: When, action: Action, message: Option<String>) -> Self {
        let message = message.unwrap_or_else(|| format!("The rule `{name}` applies."));
        Self { name, when, action, message }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The condition's text.
    pub fn when(&self) -> &str {
        self.when.source()
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn action(&self) -> Action {
        self.action
    }

    fn holds(&self, by: &Interpreter<'_, '_>) -> Result<bool, Failure> {
        self.when.test().judge(by)
    }
}

/// By its text: two rules of one text do the same.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let texts = (&self.name, self.when.source(), &self.message);
        self.action == other.action && texts == (&other.name, other.when.source(), &other.message)
    }
}

impl Eq for Rule {}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} when {}", self.name, self.action, self.when.source())
    }
}

/// The rules of one tier, in the order in which they are judged. Never changed; a clone shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct Rules(Arc<[Rule]>);

impl Default for Rules {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

/// What came of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TriedOutcome {
    Applies,
    DoesNotApply,
    /// It could not be judged, so it blocks.
    Failed,
}

/// One rule that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tried<'r> {
    pub rule: &'r str,
    pub when: &'r str,
    pub action: Action,
    pub outcome: TriedOutcome,
}

/// What the rules say of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'r> {
    pub action: Action,
    /// The name of the rule that decided.
    pub rule: &'r str,
    pub message: Cow<'r, str>,
    /// The rule could not be judged, so its answer is the strict one. The caller counts it, and tells somebody.
    pub failed: bool,
}

impl Rules {
    /// `Err` is a sentence for the operator: together they are too many, or too much work.
    pub fn new(rules: Vec<Rule>) -> Result<Self, String> {
        if RULES_MAX < rules.len() {
            return Err(format!("{} rules are judged for one check; at most {RULES_MAX} may be", rules.len()));
        }
        let steps = rules.iter().fold(0_u64, |sum, rule| sum.saturating_add(rule.when.steps()));
        if STEPS_MAX < steps {
            let dearest = rules.iter().max_by_key(|rule| rule.when.steps()).map_or("", Rule::name);
            return Err(format!(
                "the rules of one check may take {steps} steps at worst; at most {STEPS_MAX} may be, and `{dearest}` takes the most"
            ));
        }
        Ok(Self(rules.into()))
    }

    /// These, and `own` after them.
    pub fn followed_by(&self, own: &Self) -> Result<Self, String> {
        if own.is_empty() {
            return Ok(self.clone());
        }
        Self::new(self.0.iter().chain(own.0.iter()).cloned().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// The work that they may take at worst; at most [`STEPS_MAX`].
    pub fn steps(&self) -> u64 {
        self.0.iter().map(|rule| rule.when.steps()).sum()
    }

    /// The most severe of the rules that apply, the first in their order among equals; `None` where none applies. A rule that cannot
    /// be judged counts as one that blocks. Nothing is more severe than BLOCK, so there it ends: what comes after it is not judged.
    pub fn judge(&self, facts: &Facts<'_>) -> Option<Verdict<'_>> {
        if self.is_empty() {
            return None;
        }
        self.judge_by(&Lookup::new(facts))
    }

    /// What each rule says, the strict ones too that a check would not come to any more.
    pub fn tried(&self, facts: &Facts<'_>) -> Vec<Tried<'_>> {
        let lookup = Lookup::new(facts);
        let by = Interpreter::new(&lookup);
        let outcome = |rule: &Rule| match rule.holds(&by) {
            Ok(true) => TriedOutcome::Applies,
            Ok(false) => TriedOutcome::DoesNotApply,
            Err(_) => TriedOutcome::Failed,
        };
        let tried = |rule| Tried { rule: Rule::name(rule), when: rule.when.source(), action: rule.action, outcome: outcome(rule) };
        self.0.iter().map(tried).collect()
    }

    fn judge_by(&self, lookup: &Lookup<'_>) -> Option<Verdict<'_>> {
        let by = Interpreter::new(lookup);
        let mut worst: Option<Verdict<'_>> = None;
        for rule in self.0.iter() {
            let verdict = match rule.holds(&by) {
                Ok(false) => continue,
                Ok(true) => Verdict { action: rule.action, rule: &rule.name, message: Cow::Borrowed(&rule.message), failed: false },
                Err(failure) => {
                    let hidden = failure == Failure::Missing && lookup.metadata_is_too_large();
                    let why = if hidden { Failure::LargeMetadata } else { failure };
                    let message = Cow::Owned(format!("The rule `{}` could not be judged: {why}.", rule.name));
                    Verdict { action: Action::Block, rule: &rule.name, message, failed: true }
                }
            };
            if worst.as_ref().is_none_or(|worst| worst.action < verdict.action) {
                worst = Some(verdict);
            }
            if worst.as_ref().is_some_and(|worst| worst.action == Action::Block) {
                break;
            }
        }
        worst
    }
}

/// Why a rule could not be judged. It names nothing of the request: the message may be shown to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("what it asks for is not there; guard it with has(…) or `in`")]
    Missing,
    #[error("a value is not of the kind that it works with")]
    Kind,
    #[error("a number is divided by zero")]
    DivisionByZero,
    #[error("a number or a time is out of range")]
    Overflow,
    #[error("a value cannot be converted")]
    Conversion,
    #[error("it is neither true nor false")]
    NotATruth,
    #[error("the metadata has more than {METADATA_VALUES_MAX} values, or is too deep or too long")]
    LargeMetadata,
    #[error("its evaluation failed")]
    Other,
}

impl Failure {
    fn of(error: &ExecutionError) -> Self {
        use ExecutionError as E;
        // Not a `match`: most kinds of error cannot come from what the check lets through, and new ones may appear.
        if matches!(error, E::NoSuchKey(_) | E::IndexOutOfBounds(_) | E::UndeclaredReference(_)) {
            Self::Missing
        } else if matches!(error, E::DivisionByZero(_) | E::RemainderByZero(_)) {
            Self::DivisionByZero
        } else if matches!(error, E::Overflow(..)) {
            Self::Overflow
        } else if matches!(error, E::FunctionError { .. }) {
            Self::Conversion
        } else if matches!(
            error,
            E::NoSuchOverload(_)
                | E::UnexpectedType { .. }
                | E::ValuesNotComparable(..)
                | E::UnsupportedBinaryOperator(..)
                | E::UnsupportedKeyType(_)
                | E::UnsupportedTargetType { .. }
                | E::UnsupportedIndex(..)
                | E::NotSupportedAsMethod { .. }
        ) {
            Self::Kind
        } else {
            Self::Other
        }
    }
}

/// What a rule may be called. `Err` is what follows the faulty name in a sentence for the operator.
pub fn rule_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.is_empty() || RULE_NAME_BYTES_MAX < text.len() || !text.bytes().all(plain) {
        return Err(format!("must have 1 to {RULE_NAME_BYTES_MAX} of the characters a to z, 0 to 9 and _"));
    }
    Ok(text.to_owned())
}

/// What a rule may say. `Err` as above.
pub fn rule_message(text: &str) -> Result<String, String> {
    if text.is_empty() || RULE_MESSAGE_BYTES_MAX < text.len() || text.chars().any(char::is_control) {
        return Err(format!("must have 1 to {RULE_MESSAGE_BYTES_MAX} bytes and no control characters"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
