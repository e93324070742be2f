//! Tier + budgets + request → one of four actions. Exact whole-number arithmetic; a decision is a table.

use std::cmp::{Ordering, Reverse};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::catalogue::{Percent, Thresholds};
use super::money::Money;
use super::period::{Period, Window, rfc3339};

/// What the caller should do. Severity grows downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Go on.
    Allow,
    /// Go on, and tell somebody: the user nears the limit.
    Warn,
    /// Go on with the cheaper model that the answer names.
    Degrade,
    /// Do not make the call.
    Block,
}

impl Action {
    pub const ALL: [Self; 4] = [Self::Allow, Self::Warn, Self::Degrade, Self::Block];

    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Warn => "WARN",
            Self::Degrade => "DEGRADE",
            Self::Block => "BLOCK",
        }
    }
}

/// Why. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    WithinBudget,
    WarnThreshold,
    DegradeThreshold,
    /// What is used has reached the block threshold.
    BudgetExhausted,
    /// There is something left, but not enough for this estimate.
    EstimateExceedsBudget,
    /// The tier does not include this model.
    ModelNotInTier,
    /// The model has no price, and its cost was to be worked out.
    UnknownModel,
    /// By the price book the model costs nothing, so no budget stands in its way.
    FreeModel,
    /// A cap of the user's own stops it, whatever his tier allows.
    CapReached,
    /// One of the operator's own rules.
    Rule,
    /// The store could not be read, or does not confirm writes: the answer is the tier's `on_store_down`.
    StoreUnavailable,
}

/// Whose spend a budget limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    User,
    /// All users of one account together.
    Account,
    Global,
}

/// Who set a budget. Where several bind alike, the first one is named: paying more does not lift a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The user himself.
    Cap,
    Tier,
    /// The operator, for all users together.
    Global,
}

/// Which budget decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Binding {
    pub scope: Scope,
    pub period: Period,
    pub source: Source,
}

/// One limit with its counters, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub scope: Scope,
    pub period: Period,
    pub source: Source,
    /// With what is granted.
    pub limit: Money,
    /// What grants add to it in this window.
    pub granted: Money,
    /// The limit with which the next window begins, as things stand.
    pub fresh_limit: Money,
    pub spent: Money,
    /// Promised to calls that are still running.
    pub held: Money,
    pub window: Window,
    pub thresholds: Thresholds,
}

impl Budget {
    /// Spent plus held.
    pub fn used(&self) -> i128 {
        i128::from(self.spent.nanos()) + i128::from(self.held.nanos())
    }

    pub fn remaining(&self) -> Money {
        self.limit.less(self.used())
    }

    /// Tenths of a percent of the limit, rounded down: 99.99 % is not 100 %. A limit of 0 is always full.
    pub fn used_permille(&self) -> i128 {
        match self.limit.nanos() {
            0 => 1000,
            limit => self.used() * 1000 / i128::from(limit),
        }
    }

    /// Whether what is used has reached this part of the limit.
    pub(super) fn has_reached(&self, percent: Percent) -> bool {
        self.compare(self.used(), percent).is_ge()
    }

    fn judge(&self, estimate: Money) -> Verdict<'_> {
        let used = self.used();
        let projected = used + i128::from(estimate.nanos());
        let reached = |amount: i128, at: Option<Percent>| at.map(|percent| self.compare(amount, percent));
        let blocked = match (reached(used, self.thresholds.block), reached(projected, self.thresholds.block)) {
            // Nothing may be spent, whatever the policy.
            _ if self.limit == Money::ZERO => Some(Reason::BudgetExhausted),
            (Some(Ordering::Equal | Ordering::Greater), _) => Some(Reason::BudgetExhausted),
            (_, Some(Ordering::Greater)) => Some(Reason::EstimateExceedsBudget),
            (Some(Ordering::Less) | None, Some(Ordering::Less | Ordering::Equal) | None) => None,
        };
        let due = |at: Option<Percent>| reached(projected, at).is_some_and(Ordering::is_ge);
        let (action, reason) = match blocked {
            Some(reason) => (Action::Block, reason),
            None if due(self.thresholds.degrade) => (Action::Degrade, Reason::DegradeThreshold),
            None if due(self.thresholds.warn) => (Action::Warn, Reason::WarnThreshold),
            None => (Action::Allow, Reason::WithinBudget),
        };
        let is_cap = action == Action::Block && self.source == Source::Cap;
        let reason = if is_cap { Reason::CapReached } else { reason };
        Verdict { action, reason, budget: self, estimate }
    }

    pub fn binding(&self) -> Binding {
        Binding { scope: self.scope, period: self.period, source: self.source }
    }

    /// The largest estimate that this budget does not block.
    fn most(&self) -> Option<Money> {
        if self.limit == Money::ZERO {
            return Some(Money::ZERO);
        }
        let block = i128::from(self.thresholds.block?.0);
        // What is at most the threshold, and whole: rounded down.
        let room = i128::from(self.limit.nanos()) * block / 10_000 - self.used();
        let nanos = i64::try_from(room.max(0)).unwrap_or(i64::MAX);
        Money::from_nanos(nanos)
    }

    /// How `amount` compares to `percent` of the limit, with nothing rounded.
    fn compare(&self, amount: i128, percent: Percent) -> Ordering {
        (amount * 10_000).cmp(&(i128::from(self.limit.nanos()) * i128::from(percent.0)))
    }

    /// Whether a fresh window would let `estimate` through.
    fn fits_when_fresh(&self, estimate: Money) -> bool {
        Self { limit: self.fresh_limit, spent: Money::ZERO, held: Money::ZERO, ..*self }.judge(estimate).action != Action::Block
    }
}

struct Verdict<'a> {
    action: Action,
    reason: Reason,
    budget: &'a Budget,
    estimate: Money,
}

impl Verdict<'_> {
    /// When waiting helps: `None` where a fresh window would block as well, or where none comes.
    fn retry_at(&self) -> Option<DateTime<Utc>> {
        self.budget.window.end.filter(|_| self.budget.fits_when_fresh(self.estimate))
    }

    /// Which verdict binds: the most severe; among blocks the one that lasts longest, so that `retry_at` is the truth;
    /// and of those that last as long one that paying more does not lift; among others the fullest budget. What is left is told apart by
    /// scope, period and source, so that the order of budgets says nothing.
    fn order(&self, other: &Self) -> Ordering {
        let stays = |verdict: &Self| verdict.budget.source != Source::Tier;
        let resets = |verdict: &Self| verdict.retry_at().map_or((true, None), |end| (false, Some(end)));
        let place = |verdict: &Self| Reverse(verdict.budget.binding());
        let specific = match self.action {
            Action::Block => resets(self).cmp(&resets(other)).then_with(|| stays(self).cmp(&stays(other))),
            Action::Allow | Action::Warn | Action::Degrade => fuller(self.budget, other.budget),
        };
        self.action.cmp(&other.action).then(specific).then_with(|| place(self).cmp(&place(other)))
    }
}

/// Compares used / limit without a division; a limit of 0 is full.
fn fuller(left: &Budget, right: &Budget) -> Ordering {
    let limit = |budget: &Budget| i128::from(budget.limit.nanos());
    match (limit(left), limit(right)) {
        (0, 0) => Ordering::Equal,
        (0, _) => Ordering::Greater,
        (_, 0) => Ordering::Less,
        (left_limit, right_limit) => {
            // Two products of two `i64`s and a little more fit an `i128`.
            (left.used() * right_limit).cmp(&(right.used() * left_limit))
        }
    }
}

/// The answer to "may this user spend this much?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub reason: Reason,
    /// The budget that decided; `None` where none has anything to say.
    pub binding: Option<Binding>,
    /// One sentence for people.
    pub message: String,
    /// On BLOCK: when the binding budget resets, where waiting helps.
    pub retry_at: Option<DateTime<Utc>>,
}

/// Judges `estimate` against every budget; the most severe verdict wins, whatever the order of `budgets`.
pub fn decide(budgets: &[Budget], estimate: Money) -> Decision {
    let verdicts = budgets.iter().map(|budget| budget.judge(estimate));
    let Some(verdict) = verdicts.max_by(Verdict::order) else {
        let message = "No budget limits this user.".to_owned();
        return Decision { action: Action::Allow, reason: Reason::WithinBudget, binding: None, message, retry_at: None };
    };
    let budget = verdict.budget;
    let (binding, retry_at) = match verdict.action {
        Action::Allow => (None, None),
        Action::Warn | Action::Degrade => (Some(budget.binding()), None),
        Action::Block => (Some(budget.binding()), verdict.retry_at()),
    };
    let message = message(&verdict, estimate, retry_at);
    Decision { action: verdict.action, reason: verdict.reason, binding, message, retry_at }
}

/// The largest estimate that would not be answered BLOCK, where a budget bounds it; 0 where nothing is left.
pub fn most(budgets: &[Budget]) -> Option<Money> {
    budgets.iter().filter_map(Budget::most).min()
}

/// Nothing is known, so nothing may be spent.
pub fn store_unavailable() -> Decision {
    Decision {
        action: Action::Block,
        reason: Reason::StoreUnavailable,
        binding: None,
        message: "Budgets cannot be read at the moment; nothing may be spent until they can.".to_owned(),
        retry_at: None,
    }
}

/// Nothing is known either, and the tier lets calls pass all the same.
pub fn passes_without_store(tier: &str) -> Decision {
    Decision {
        action: Action::Allow,
        message: format!("The store is not available; the tier `{tier}` lets calls pass meanwhile, and what they cost may not be counted."),
        ..store_unavailable()
    }
}

fn message(verdict: &Verdict<'_>, estimate: Money, retry_at: Option<DateTime<Utc>>) -> String {
    let budget = verdict.budget;
    let kind = match (budget.scope, budget.period) {
        (Scope::User, Period::Daily) if budget.source == Source::Cap => "The user's own daily cap",
        (Scope::User, Period::Weekly) if budget.source == Source::Cap => "The user's own weekly cap",
        (Scope::User, Period::Monthly) if budget.source == Source::Cap => "The user's own monthly cap",
        (Scope::User, Period::Billing) if budget.source == Source::Cap => "The user's own cap of the billing period",
        (Scope::User, Period::Total) if budget.source == Source::Cap => "The user's own total cap",
        (Scope::User, Period::Daily) => "Daily budget",
        (Scope::User, Period::Weekly) => "Weekly budget",
        (Scope::User, Period::Monthly) => "Monthly budget",
        (Scope::User, Period::Billing) => "Budget of the billing period",
        (Scope::User, Period::Total) => "Total budget",
        (Scope::Account, Period::Daily) => "Daily budget of the account",
        (Scope::Account, Period::Weekly) => "Weekly budget of the account",
        (Scope::Account, Period::Monthly) => "Monthly budget of the account",
        (Scope::Account, Period::Billing) => "Budget of the account's billing period",
        (Scope::Account, Period::Total) => "Total budget of the account",
        (Scope::Global, Period::Daily) => "Daily budget of all users together",
        (Scope::Global, Period::Weekly) => "Weekly budget of all users together",
        (Scope::Global, Period::Monthly | Period::Billing) => "Monthly budget of all users together",
        (Scope::Global, Period::Total) => "Total budget of all users together",
    };
    let limit = budget.limit;
    let resets = || match retry_at {
        Some(at) => format!("it resets at {}.", rfc3339(at)),
        None if budget.window.end.is_some() => "waiting for its reset would not help.".to_owned(),
        None => "it does not reset.".to_owned(),
    };
    let used_up = || format!("{kind} of {limit} is used up; {}", resets());
    match verdict.reason {
        Reason::WithinBudget => "Within budget.".to_owned(),
        Reason::WarnThreshold | Reason::DegradeThreshold => {
            let permille = budget.used_permille();
            format!("{kind} of {limit} is {}.{} % used, {} left.", permille / 10, permille % 10, budget.remaining())
        }
        Reason::BudgetExhausted => used_up(),
        Reason::CapReached if budget.remaining() == Money::ZERO => used_up(),
        Reason::EstimateExceedsBudget | Reason::CapReached => {
            format!("{kind} of {limit} has {} left, and this request needs {estimate}; {}", budget.remaining(), resets())
        }
        // No budget says any of these.
        Reason::ModelNotInTier | Reason::UnknownModel | Reason::FreeModel | Reason::Rule | Reason::StoreUnavailable => String::new(),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
