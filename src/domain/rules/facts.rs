//! What a rule sees of one request, worked out only where a rule looks.

use std::sync::OnceLock;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use cel::common::types::{CelDouble, CelInt, CelMap, CelString, CelTimestamp};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use chrono::{DateTime, Datelike, Utc};
use serde_json::{Map, Value};

use super::super::catalogue::Tier;
use super::super::decide::Budget;
use super::super::money::Money;
use super::super::user::{AccountId, UserId};
use super::budgets::{self, BudgetsVal, Whose};
use super::metadata;

/// One request and who makes it: borrowed, so that it costs nothing to hand over.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `user.id`
    pub user: &'a UserId,
    /// `user.account`: `""` where he stands alone.
    pub account: Option<&'a AccountId>,
    /// `tier.name`, `tier.rank`
    pub tier: &'a Tier,
    /// `model`: `""` where none is named.
    pub model: Option<&'a str>,
    /// `provider`: `""` where none is named.
    pub provider: Option<&'a str>,
    /// `estimate`, in dollars.
    pub estimate: Money,
    /// `input_tokens`: 0 where not given.
    pub input_tokens: i64,
    /// `output_tokens`: 0 where not given.
    pub output_tokens: i64,
    /// Every budget that the decision sees, of all scopes: `global` has those for all users together, `budgets` the others.
    pub budgets: &'a [Budget],
    /// `metadata`: `{}` where there is none.
    pub metadata: Option<&'a Map<String, Value>>,
    /// `now`, in UTC.
    pub now: DateTime<Utc>,
}

/// Answers the interpreter's questions. A name with a dot is asked for whole before its first part.
pub(super) struct Lookup<'a> {
    facts: &'a Facts<'a>,
    /// Lent to the interpreter, which would else get a copy of its own each time that it asks.
    names: Names<'a>,
    /// Its decimal text is read once, however many rules ask.
    estimate: OnceLock<CelDouble>,
    now: OnceLock<CelTimestamp>,
    /// `Some(None)`: it is too large to be judged.
    metadata: OnceLock<Option<CelMap<'a>>>,
    /// How often the interpreter asked.
    #[cfg(test)]
    pub asked: AtomicU64,
}

/// What is there already.
struct Names<'a> {
    user: CelString<'a>,
    account: CelString<'a>,
    tier: CelString<'a>,
    rank: CelInt,
    model: CelString<'a>,
    provider: CelString<'a>,
    input_tokens: CelInt,
    output_tokens: CelInt,
    budgets: BudgetsVal<'a>,
    global: BudgetsVal<'a>,
}

impl<'a> Names<'a> {
    fn of(facts: &'a Facts<'a>) -> Self {
        Self {
            user: facts.user.as_str().into(),
            account: facts.account.map_or("", AccountId::as_str).into(),
            tier: facts.tier.name.as_str().into(),
            rank: facts.tier.rank.into(),
            model: facts.model.unwrap_or_default().into(),
            provider: facts.provider.unwrap_or_default().into(),
            input_tokens: facts.input_tokens.into(),
            output_tokens: facts.output_tokens.into(),
            budgets: BudgetsVal { budgets: facts.budgets, whose: Whose::Users },
            global: BudgetsVal { budgets: facts.budgets, whose: Whose::Everybodys },
        }
    }
}

impl<'a> Lookup<'a> {
    pub fn new(facts: &'a Facts<'a>) -> Self {
        Self {
            facts,
            names: Names::of(facts),
            estimate: OnceLock::new(),
            now: OnceLock::new(),
            metadata: OnceLock::new(),
            #[cfg(test)]
            asked: AtomicU64::new(0),
        }
    }

    pub fn metadata_is_too_large(&self) -> bool {
        self.metadata.get().is_some_and(Option::is_none)
    }

    pub fn facts(&self) -> &'a Facts<'a> {
        self.facts
    }

    pub fn estimate(&self) -> f64 {
        *self.celled_estimate().inner()
    }

    fn celled_estimate(&self) -> &CelDouble {
        self.estimate.get_or_init(|| self.facts.estimate.dollars().into())
    }

    /// `None` where it is too large.
    pub fn metadata(&self) -> Option<&CelMap<'a>> {
        self.metadata.get_or_init(|| metadata::value(self.facts.metadata)).as_ref()
    }

    /// CEL's times are of these years, and arithmetic on others would leave what can be counted.
    pub fn now(&self) -> Option<DateTime<Utc>> {
        Some(self.facts.now).filter(|now| (1..=9999).contains(&now.year()))
    }

    pub fn budget(&self, whose: Whose, period: &str) -> Option<&'a Budget> {
        BudgetsVal { budgets: self.facts.budgets, whose }.of(period)
    }

    /// `budgets.daily.spent`
    pub fn budget_number(&self, name: &str) -> Option<f64> {
        let (whose, period, field) = budget_number(name)?;
        budgets::number(self.budget(whose, period)?, field)
    }
}

impl VariableResolver for Lookup<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        #[cfg(test)]
        self.asked.fetch_add(1, Ordering::Relaxed);
        let names = &self.names;
        let value: &'b dyn Val = match name {
            "user.id" => &names.user,
            "user.account" => &names.account,
            "tier.name" => &names.tier,
            "tier.rank" => &names.rank,
            "model" => &names.model,
            "provider" => &names.provider,
            "estimate" => self.celled_estimate(),
            "input_tokens" => &names.input_tokens,
            "output_tokens" => &names.output_tokens,
            "budgets" => &names.budgets,
            "global" => &names.global,
            "metadata" => self.metadata()?,
            "now" => {
                let now = Self::now(self)?;
                self.now.get_or_init(|| now.fixed_offset().into())
            }
            _ => return self.budget_number(name).map(|number| CowVal::owned(CelDouble::from(number))),
        };
        Some(CowVal::Borrowed(value))
    }
}

/// Whether [`Lookup`] knows it as a whole, dots and all.
pub(super) fn is_name(name: &str) -> bool {
    let known = ["user.id", "user.account", "tier.name", "tier.rank"];
    known.contains(&name) || budget_number(name).is_some_and(|(_, _, field)| budgets::FIELDS.contains(&field))
}

/// `budgets.daily.spent` taken apart.
pub(super) fn budget_number(name: &str) -> Option<(Whose, &str, &str)> {
    let (root, rest) = name.split_once('.')?;
    let whose = match root {
        "budgets" => Whose::Users,
        "global" => Whose::Everybodys,
        _ => return None,
    };
    let (period, field) = rest.split_once('.')?;
    Some((whose, period, field))
}
