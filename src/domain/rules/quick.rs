//! The forms that most conditions have, judged without the interpreter: a comparison of a name with a constant, `in`, `has`, the beginning
//! of a text, and what `&&`, `||` and `!` make of them. Each other part is left to the interpreter, and all means what the interpreter says
//! it means; a property holds it to that.

use std::cell::OnceCell;
use std::cmp::Ordering;

use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};
use cel::common::traits::Container;
use cel::common::types::{CelBool, CelString};
use cel::common::value::Val;
use cel::objects::Value;
use cel::{Context, IdedExpr};
use chrono::{Datelike, Timelike};

use super::budgets::Whose;
use super::facts::{Lookup, budget_number, is_name};
use super::{ENV, Failure};

/// A condition, or a part of one that is true or false.
#[derive(Clone, Debug)]
pub(super) enum Test {
    And(Box<[Self; 2]>),
    Or(Box<[Self; 2]>),
    Not(Box<Self>),
    Text(Text, OfText),
    Number(Number, Comparison, Constant),
    /// Whether such a budget is there.
    HasBudget(Whose, String),
    /// Whether the metadata has such a field.
    HasField(CelString<'static>),
    Interpreted(IdedExpr),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Text {
    User,
    Account,
    Tier,
    Model,
    Provider,
}

#[derive(Clone, Debug)]
pub(super) enum OfText {
    Is(String),
    IsNot(String),
    IsOneOf(Vec<String>),
    Starts(String),
    Ends(String),
    Contains(String),
}

#[derive(Clone, Debug)]
pub(super) enum Number {
    Rank,
    InputTokens,
    OutputTokens,
    Estimate,
    /// By its whole name.
    OfBudget(String),
    Hour,
    Minute,
    DayOfWeek,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Constant {
    Whole(i64),
    Decimal(f64),
}

/// The interpreter, made where it is needed first.
pub(super) struct Interpreter<'l, 'a> {
    pub lookup: &'l Lookup<'a>,
    context: OnceCell<Context<'l, 'l>>,
}

impl<'l, 'a> Interpreter<'l, 'a> {
    pub fn new(lookup: &'l Lookup<'a>) -> Self {
        Self { lookup, context: OnceCell::new() }
    }

    fn judge(&self, expression: &IdedExpr) -> Result<bool, Failure> {
        let context = self.context.get_or_init(|| {
            let mut context = Context::with_env(ENV.clone());
            context.set_variable_resolver(self.lookup);
            context
        });
        let value = Value::resolve_val(expression, context).map_err(|error| Failure::of(&error))?;
        let value: &dyn Val = value.as_ref();
        value.downcast_ref::<CelBool>().map(|truth| *truth.inner()).ok_or(Failure::NotATruth)
    }
}

impl Test {
    /// Of a condition that the check has let through.
    pub fn of(expression: &IdedExpr) -> Self {
        Self::known(expression).unwrap_or_else(|| Self::Interpreted(expression.clone()))
    }

    /// `None` where it has another form.
    fn known(expression: &IdedExpr) -> Option<Self> {
        match &expression.expr {
            Expr::Call(call) => match (&call.target, call.args.as_slice()) {
                (None, [one]) if call.func_name == operators::LOGICAL_NOT => Some(Self::Not(Box::new(Self::part(one)?))),
                (None, [one, other]) => Self::of_two(&call.func_name, one, other),
                (Some(target), [constant]) => Some(Self::Text(text(target)?, of_text(&call.func_name, string(constant)?)?)),
                (None | Some(_), _) => None,
            },
            Expr::Select(select) if select.test && is_metadata(&select.operand) => {
                Some(Self::HasField(CelString::from(select.field.clone())))
            }
            Expr::Select(_)
            | Expr::Unspecified
            | Expr::Comprehension(_)
            | Expr::Ident(_)
            | Expr::List(_)
            | Expr::Literal(_)
            | Expr::Map(_)
            | Expr::Struct(_) => None,
        }
    }

    fn of_two(operator: &str, one: &IdedExpr, other: &IdedExpr) -> Option<Self> {
        match operator {
            operators::LOGICAL_AND => Some(Self::And(Box::new([Self::part(one)?, Self::part(other)?]))),
            operators::LOGICAL_OR => Some(Self::Or(Box::new([Self::part(one)?, Self::part(other)?]))),
            operators::IN => Self::within(one, other),
            _ => {
                let comparison = comparison(operator)?;
                if let Some(name) = text(one) {
                    let constant = string(other)?.to_owned();
                    return match comparison {
                        Comparison::Equal => Some(Self::Text(name, OfText::Is(constant))),
                        Comparison::NotEqual => Some(Self::Text(name, OfText::IsNot(constant))),
                        Comparison::Less | Comparison::AtMost | Comparison::More | Comparison::AtLeast => None,
                    };
                }
                Some(Self::Number(number(one)?, comparison, constant(other)?))
            }
        }
    }

    fn within(item: &IdedExpr, list: &IdedExpr) -> Option<Self> {
        match (&list.expr, string(item)) {
            (Expr::Ident(_), Some(field)) if is_metadata(list) => Some(Self::HasField(CelString::from(field.to_owned()))),
            (Expr::Ident(name), Some(period)) => {
                let whose = match name.as_str() {
                    "budgets" => Whose::Users,
                    "global" => Whose::Everybodys,
                    _ => return None,
                };
                Some(Self::HasBudget(whose, period.to_owned()))
            }
            (Expr::List(list), None) if list.optional_indices.is_empty() => {
                let constants = list.elements.iter().map(|element| string(element).map(ToOwned::to_owned));
                Some(Self::Text(text(item)?, OfText::IsOneOf(constants.collect::<Option<_>>()?)))
            }
            _ => None,
        }
    }

    /// A part of `&&`, `||` and `!`, which is true or false by its form: what else stands there may be no truth at all, and what comes of
    /// that is the interpreter's.
    fn part(expression: &IdedExpr) -> Option<Self> {
        Self::known(expression).or_else(|| is_truth(expression).then(|| Self::Interpreted(expression.clone())))
    }

    pub fn judge(&self, by: &Interpreter<'_, '_>) -> Result<bool, Failure> {
        let (lookup, facts) = (by.lookup, by.lookup.facts());
        match self {
            // What is false stays false beside a part that cannot be judged: CEL's own rule.
            Self::And(parts) => Self::joined(parts, by, false),
            Self::Or(parts) => Self::joined(parts, by, true),
            Self::Not(part) => part.judge(by).map(|truth| !truth),
            Self::Text(name, is) => {
                let text = match name {
                    Text::User => facts.user.as_str(),
                    Text::Account => facts.account.map_or("", |account| account.as_str()),
                    Text::Tier => &facts.tier.name,
                    Text::Model => facts.model.unwrap_or_default(),
                    Text::Provider => facts.provider.unwrap_or_default(),
                };
                Ok(match is {
                    OfText::Is(constant) => text == constant,
                    OfText::IsNot(constant) => text != constant,
                    OfText::IsOneOf(constants) => constants.iter().any(|constant| text == constant),
                    OfText::Starts(constant) => text.starts_with(constant.as_str()),
                    OfText::Ends(constant) => text.ends_with(constant.as_str()),
                    OfText::Contains(constant) => text.contains(constant.as_str()),
                })
            }
            Self::Number(name, comparison, constant) => {
                let ordering = match name.value(lookup)? {
                    Constant::Whole(number) => constant.beside(number),
                    Constant::Decimal(number) => number.partial_cmp(&constant.decimal()),
                };
                // Neither a number of ours nor a constant is not a number.
                Ok(comparison.is(ordering.ok_or(Failure::Kind)?))
            }
            Self::HasBudget(whose, period) => Ok(lookup.budget(*whose, period).is_some()),
            Self::HasField(field) => {
                let metadata = lookup.metadata().ok_or(Failure::Missing)?;
                metadata.contains(field).map_err(|error| Failure::of(&error))
            }
            Self::Interpreted(expression) => by.judge(expression),
        }
    }

    /// `decisive` is what one of two parts makes of both.
    fn joined([one, other]: &[Self; 2], by: &Interpreter<'_, '_>, decisive: bool) -> Result<bool, Failure> {
        let one = one.judge(by);
        if one == Ok(decisive) {
            return one;
        }
        match other.judge(by)? {
            truth if truth == decisive => Ok(truth),
            _ => one,
        }
    }
}

impl Number {
    fn value(&self, lookup: &Lookup<'_>) -> Result<Constant, Failure> {
        let facts = lookup.facts();
        let now = || lookup.now().ok_or(Failure::Missing);
        Ok(match self {
            Self::Rank => Constant::Whole(facts.tier.rank),
            Self::InputTokens => Constant::Whole(facts.input_tokens),
            Self::OutputTokens => Constant::Whole(facts.output_tokens),
            Self::Estimate => Constant::Decimal(lookup.estimate()),
            Self::OfBudget(name) => Constant::Decimal(lookup.budget_number(name).ok_or(Failure::Missing)?),
            Self::Hour => Constant::Whole(now()?.hour().into()),
            Self::Minute => Constant::Whole(now()?.minute().into()),
            Self::DayOfWeek => Constant::Whole(now()?.weekday().num_days_from_sunday().into()),
        })
    }
}

impl Comparison {
    fn is(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::More => ordering.is_gt(),
            Self::AtLeast => ordering.is_ge(),
        }
    }
}

impl Constant {
    #[expect(clippy::cast_precision_loss, reason = "so the interpreter compares whole numbers with decimal ones")]
    fn decimal(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Decimal(number) => number,
        }
    }

    /// How `number` stands to it.
    fn beside(self, number: i64) -> Option<Ordering> {
        match self {
            Self::Whole(constant) => Some(number.cmp(&constant)),
            Self::Decimal(constant) => Self::Whole(number).decimal().partial_cmp(&constant),
        }
    }
}

fn is_metadata(expression: &IdedExpr) -> bool {
    matches!(&expression.expr, Expr::Ident(name) if name == "metadata")
}

fn is_truth(expression: &IdedExpr) -> bool {
    let Expr::Call(CallExpr { func_name, target: None, .. }) = &expression.expr else { return false };
    let truths = [operators::LOGICAL_AND, operators::LOGICAL_OR, operators::LOGICAL_NOT, operators::IN];
    truths.contains(&func_name.as_str()) || comparison(func_name).is_some()
}

fn comparison(operator: &str) -> Option<Comparison> {
    match operator {
        operators::EQUALS => Some(Comparison::Equal),
        operators::NOT_EQUALS => Some(Comparison::NotEqual),
        operators::LESS => Some(Comparison::Less),
        operators::LESS_EQUALS => Some(Comparison::AtMost),
        operators::GREATER => Some(Comparison::More),
        operators::GREATER_EQUALS => Some(Comparison::AtLeast),
        _ => None,
    }
}

fn text(expression: &IdedExpr) -> Option<Text> {
    let Expr::Ident(name) = &expression.expr else { return None };
    match name.as_str() {
        "user.id" => Some(Text::User),
        "user.account" => Some(Text::Account),
        "tier.name" => Some(Text::Tier),
        "model" => Some(Text::Model),
        "provider" => Some(Text::Provider),
        _ => None,
    }
}

fn of_text(method: &str, constant: &str) -> Option<OfText> {
    let constant = constant.to_owned();
    match method {
        "startsWith" => Some(OfText::Starts(constant)),
        "endsWith" => Some(OfText::Ends(constant)),
        "contains" => Some(OfText::Contains(constant)),
        _ => None,
    }
}

fn number(expression: &IdedExpr) -> Option<Number> {
    if let Expr::Ident(name) = &expression.expr {
        return match name.as_str() {
            "tier.rank" => Some(Number::Rank),
            "input_tokens" => Some(Number::InputTokens),
            "output_tokens" => Some(Number::OutputTokens),
            "estimate" => Some(Number::Estimate),
            name => (is_name(name) && budget_number(name).is_some()).then(|| Number::OfBudget(name.to_owned())),
        };
    }
    let Expr::Call(CallExpr { func_name, target: Some(target), args }) = &expression.expr else { return None };
    let of_now = args.is_empty() && matches!(&target.expr, Expr::Ident(name) if name == "now");
    match func_name.as_str() {
        "getHours" if of_now => Some(Number::Hour),
        "getMinutes" if of_now => Some(Number::Minute),
        "getDayOfWeek" if of_now => Some(Number::DayOfWeek),
        _ => None,
    }
}

fn string(expression: &IdedExpr) -> Option<&str> {
    let Expr::Literal(LiteralValue::String(constant)) = &expression.expr else { return None };
    Some(constant.inner())
}

fn constant(expression: &IdedExpr) -> Option<Constant> {
    let Expr::Literal(literal) = &expression.expr else { return None };
    match literal {
        LiteralValue::Int(constant) => Some(Constant::Whole(*constant.inner())),
        LiteralValue::Double(constant) => Some(Constant::Decimal(*constant.inner())),
        LiteralValue::Boolean(_) | LiteralValue::Bytes(_) | LiteralValue::Null | LiteralValue::String(_) | LiteralValue::UInt(_) => None,
    }
}

#[cfg(test)]
#[path = "quick_tests.rs"]
mod tests;
