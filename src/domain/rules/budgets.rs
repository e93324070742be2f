//! `budgets` and `global` as CEL's values: a map from period to a map of five numbers, each worked out only where a rule asks for it.

use std::sync::{Arc, LazyLock};

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as Items};
use cel::common::types::{CelDouble, CelString, MAP_TYPE, Type};
use cel::common::value::{CowVal, Val};

use super::super::decide::{Budget, Scope};
use super::super::period::Period;

/// What is known of a budget.
pub(super) const FIELDS: [&str; 5] = ["limit", "spent", "held", "remaining", "used_pct"];

static PERIODS: LazyLock<[CelString<'static>; 5]> = LazyLock::new(|| Period::ALL.map(|period| CelString::from(period.name())));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The user's own, and his account's.
    Users,
    /// Those for all users together.
    Everybodys,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetsVal<'a> {
    pub budgets: &'a [Budget],
    pub whose: Whose,
}

#[derive(Clone, Copy, Debug)]
struct BudgetVal<'a>(&'a Budget);

impl<'a> BudgetsVal<'a> {
    /// Where several limit the same period, the one that has the least left.
    pub fn of(&self, period: &str) -> Option<&'a Budget> {
        let ours = |budget: &&Budget| match budget.scope {
            Scope::User | Scope::Account => self.whose == Whose::Users,
            Scope::Global => self.whose == Whose::Everybodys,
        };
        self.budgets.iter().filter(ours).filter(|budget| budget.period.name() == period).min_by_key(|budget| budget.remaining())
    }
}

/// The text of a key; a key of another kind is no key here.
fn key(key: &dyn Val) -> Result<&str, ExecutionError> {
    let text = key.downcast_ref::<CelString<'_>>();
    text.map(CelString::inner).ok_or_else(|| ExecutionError::no_such_overload("_[_]", Vec::new()))
}

fn missing(name: &str) -> ExecutionError {
    ExecutionError::NoSuchKey(Arc::new(name.to_owned()))
}

impl Val for BudgetsVal<'_> {
    fn get_type(&self) -> &Type {
        Self::cel_type()
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Container for BudgetsVal<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        key(value).map(|period| self.of(period).is_some())
    }
}

impl Indexer for BudgetsVal<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let period = key(index)?;
        self.of(period).map(|budget| CowVal::owned(BudgetVal(budget))).ok_or_else(|| missing(period))
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl Iterable for BudgetsVal<'_> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Items<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Periods(PERIODS.iter().filter(|period| self.of(period.inner()).is_some())))
    }
}

struct Periods<I>(I);

impl<'b, 'v, I: Iterator<Item = &'static CelString<'static>>> Items<'b, 'v> for Periods<I> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|period| period as &dyn Val)
    }
}

impl Val for BudgetVal<'_> {
    fn get_type(&self) -> &Type {
        Self::cel_type()
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Indexer for BudgetVal<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let field = key(index)?;
        number(self.0, field).map(|number| CowVal::owned(CelDouble::from(number))).ok_or_else(|| missing(field))
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

/// One of [`FIELDS`].
pub(super) fn number(budget: &Budget, field: &str) -> Option<f64> {
    match field {
        "limit" => Some(budget.limit.dollars()),
        "spent" => Some(budget.spent.dollars()),
        "held" => Some(budget.held.dollars()),
        "remaining" => Some(budget.remaining().dollars()),
        "used_pct" => Some(percent(budget.used_permille())),
        _ => None,
    }
}

/// The nearest double to the decimal text, as the answers write it.
fn percent(permille: i128) -> f64 {
    format!("{}.{}", permille / 10, permille % 10).parse().unwrap_or(f64::INFINITY)
}
