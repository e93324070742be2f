//! Grants: more budget for one user, once, until an end. What he spends beyond his tier's limit in a window draws on them, on the one that
//! ends earliest first. What is drawn stays drawn: the next window begins with what is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::decide::Budget;
use super::money::Money;
use super::period::Period;
use super::user::UserId;

/// Open grants of one user; more are a list that nobody keeps in mind.
pub const OPEN_MAX: usize = 100;

/// One grant, as far as limits need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub id: Arc<str>,
    /// Which of the tier's budgets it adds to.
    pub period: Period,
    pub ends_at: DateTime<Utc>,
    pub is_revoked: bool,
    pub amount: Money,
    /// What all windows drew, never more than `amount`.
    pub used: Money,
    /// What single windows drew, each told by its start; those that closed long ago may be missing.
    pub drawn: BTreeMap<DateTime<Utc>, Money>,
}

impl Grant {
    pub fn left(&self) -> Money {
        self.amount.less(i128::from(self.used.nanos()))
    }

    /// Whether it can be drawn on at `now`, if anything is left.
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        !self.is_revoked && now < self.ends_at
    }

    fn drawn_in(&self, window_start: DateTime<Utc>) -> Money {
        self.drawn.get(&window_start).copied().unwrap_or_default()
    }

    fn draw(&mut self, amount: Money, window_start: DateTime<Utc>) {
        self.used = self.used.saturating_add(amount);
        let drawn = self.drawn.entry(window_start).or_default();
        *drawn = drawn.saturating_add(amount);
    }

    fn give_back(&mut self, amount: Money, window_start: DateTime<Utc>) {
        let amount_nanos = i128::from(amount.nanos());
        self.used = self.used.less(amount_nanos);
        if let Some(drawn) = self.drawn.get_mut(&window_start) {
            *drawn = drawn.less(amount_nanos);
        }
    }
}

/// A change of what one window drew on one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    pub user_id: UserId,
    pub grant: Arc<str>,
    pub window_start: DateTime<Utc>,
    /// Nano-dollars; below zero they were given back.
    pub nanos: i64,
}

/// What draws come to, by user, grant and the start of the window.
pub fn sums_of_draws<'d>(draws: impl IntoIterator<Item = &'d Draw>) -> BTreeMap<(&'d UserId, &'d str, DateTime<Utc>), i64> {
    let mut sums: BTreeMap<(&UserId, &str, DateTime<Utc>), i64> = BTreeMap::new();
    for draw in draws {
        let sum = sums.entry((&draw.user_id, &*draw.grant, draw.window_start)).or_default();
        *sum = sum.saturating_add(draw.nanos);
    }
    sums
}

/// The grants of one user that are open or were drawn on by windows that are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// When the last one ends that he was ever given: from then on nothing is drawn.
    until: DateTime<Utc>,
    /// The one that ends earliest first.
    in_order: Vec<Grant>,
}

impl Grants {
    pub fn new(until: DateTime<Utc>, mut grants: Vec<Grant>) -> Self {
        grants.sort_by(|one, other| (one.ends_at, &one.id).cmp(&(other.ends_at, &other.id)));
        Self { until, in_order: grants }
    }

    pub fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    /// Those that can be drawn on at `now`, the one that ends earliest first.
    pub fn open(&self, now: DateTime<Utc>) -> impl Iterator<Item = &Grant> {
        self.in_order.iter().filter(move |grant| grant.is_open(now) && grant.left() != Money::ZERO)
    }

    /// Whether what is spent at `now` may have to be drawn.
    pub fn may_draw(&self, now: DateTime<Utc>) -> bool {
        now < self.until
    }

    fn drawn(&self, budget: &Budget) -> Money {
        let of_period = self.in_order.iter().filter(|grant| grant.period == budget.period);
        of_period.fold(Money::ZERO, |sum, grant| sum.saturating_add(grant.drawn_in(budget.window.start)))
    }

    fn left(&self, period: Period, at: DateTime<Utc>) -> Money {
        let open = self.in_order.iter().filter(|grant| grant.period == period && grant.is_open(at));
        open.fold(Money::ZERO, |sum, grant| sum.saturating_add(grant.left()))
    }

    /// Adds to the limits of a tier what their windows drew, and what can still be drawn at `now`. Drawing moves from the one to the other,
    /// so a limit does not change by what is spent.
    pub fn raise(&self, budgets: &mut [Budget], now: DateTime<Utc>) {
        for budget in budgets {
            budget.granted = self.drawn(budget).saturating_add(self.left(budget.period, now));
            budget.limit = budget.limit.saturating_add(budget.granted);
            let next = budget.window.end.map_or(Money::ZERO, |end| self.left(budget.period, end));
            budget.fresh_limit = budget.fresh_limit.saturating_add(next);
        }
    }

    /// Draws what is spent beyond the limit of `budget` (the tier's own, not raised) and was not drawn yet, as far as grants last.
    pub fn draw(&mut self, budget: &Budget, user: &UserId, now: DateTime<Utc>) -> Vec<Draw> {
        let covered = i128::from(budget.limit.nanos()) + i128::from(self.drawn(budget).nanos());
        let mut beyond = budget.spent.less(covered);
        let mut draws = Vec::new();
        for grant in self.in_order.iter_mut().filter(|grant| grant.period == budget.period && grant.is_open(now)) {
            let amount = beyond.min(grant.left());
            if amount != Money::ZERO {
                beyond = beyond.less(i128::from(amount.nanos()));
                grant.draw(amount, budget.window.start);
                draws.push(grant_draw(grant, user, budget, amount.nanos()));
            }
        }
        draws
    }

    /// Gives back of a correction of `amount` what the window of `budget` no longer needs, to the grant that ends latest first.
    pub fn give_back(&mut self, budget: &Budget, user: &UserId, amount: Money) -> Vec<Draw> {
        let beyond = budget.spent.less(i128::from(budget.limit.nanos()));
        let mut too_much = self.drawn(budget).less(i128::from(beyond.nanos())).min(amount);
        let mut draws = Vec::new();
        for grant in self.in_order.iter_mut().rev().filter(|grant| grant.period == budget.period) {
            let amount = too_much.min(grant.drawn_in(budget.window.start));
            if amount != Money::ZERO {
                too_much = too_much.less(i128::from(amount.nanos()));
                grant.give_back(amount, budget.window.start);
                draws.push(grant_draw(grant, user, budget, -amount.nanos()));
            }
        }
        draws
    }
}

fn grant_draw(grant: &Grant, user: &UserId, budget: &Budget, nanos: i64) -> Draw {
    Draw { user_id: user.clone(), grant: grant.id.clone(), window_start: budget.window.start, nanos }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
