//! What is counted against limits, for one user or for all together: the spend of the windows that are open, and what is held.
//!
//! There is one for every user that memory knows, so what few of them have (holds, a subscription's own window) stands apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::alerts::Told;
use super::catalogue::Budgets;
use super::decide::{Budget, Scope, Source};
use super::ledger::day;
use super::money::Money;
use super::period::{BillingPeriod, Period, Window};

/// What was spent on each day (days since 1970-01-01 UTC).
pub type SpentByDay = HashMap<i64, Money>;

const CALENDAR: [Period; 3] = [Period::Daily, Period::Weekly, Period::Monthly];

/// The days that the calendar's windows at `now` cover: first, and one past the last.
pub fn days_of_calendar(now: DateTime<Utc>) -> (i64, i64) {
    let windows = CALENDAR.map(|period| period.window(now, None));
    let first = windows.iter().map(|window| day(window.start)).min();
    let end = windows.iter().filter_map(|window| window.end.map(day)).max();
    (first.unwrap_or_default(), end.unwrap_or(i64::MAX))
}

/// The day on which a window begins. Every time that `chrono` knows is within 100 million days of 1970.
fn first_day(window: Window) -> i32 {
    i32::try_from(day(window.start)).unwrap_or(i32::MIN)
}

/// A promise that is not kept yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHold {
    pub id: Arc<str>,
    pub amount: Money,
    pub expires_at: DateTime<Utc>,
}

/// Counters and holds as they were at `as_of`, kept up since. Asked for an earlier moment it says nothing: what had expired then
/// is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    as_of: DateTime<Utc>,
    /// The windows that are open, in the order of [`CALENDAR`], each told by its first day.
    first_days: [i32; CALENDAR.len()],
    spent: [Money; CALENDAR.len()],
    total: Money,
    /// `None` where there is nothing of it.
    rest: Option<Box<Rest>>,
}

/// What most books do not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rest {
    /// The windows of subscriptions, which days do not tell, in nano-dollars: a correction may take back at the edge of one what was spent
    /// just before it, and it counts as nothing then, until as much is spent.
    billing: Vec<(Window, i64)>,
    holds: BTreeMap<(DateTime<Utc>, Arc<str>), Money>,
    /// Where in `holds` each one is: whoever ends a hold need not know to the last digit when it would have expired.
    expiries: HashMap<Arc<str>, DateTime<Utc>>,
    /// The sum of `holds`.
    promised: Money,
    /// What somebody was told of windows that are open.
    told: Vec<Told>,
}

impl Book {
    /// The calendar's windows at `now`, from sums by day that cover them, and the holds that are open and not expired.
    pub fn new(now: DateTime<Utc>, days: &SpentByDay, total: Money, holds: impl IntoIterator<Item = OpenHold>) -> Self {
        let windows = CALENDAR.map(|period| period.window(now, None));
        let spent = windows.map(|window| {
            let (first, end) = (day(window.start), window.end.map_or(i64::MAX, day));
            let within = days.iter().filter(|(day, _)| first <= **day && **day < end);
            within.fold(Money::ZERO, |sum, (_, spent)| sum.saturating_add(*spent))
        });
        let mut book = Self { as_of: now, first_days: windows.map(first_day), spent, total, rest: None };
        for hold in holds {
            book.hold(&hold);
        }
        book
    }

    /// The window of a subscription, which sums by day alone do not give, and what was spent in it less what was taken back, in nano-dollars.
    pub fn count_billing(&mut self, window: Window, nanos: i64) {
        self.rest.get_or_insert_default().billing.push((window, nanos));
    }

    pub fn total(&self) -> Money {
        self.total
    }

    /// `window` is one of this period's. `None` where the store must be asked: another one was open when this was read.
    pub fn spent(&self, period: Period, window: Window) -> Option<Money> {
        match period {
            Period::Total => Some(self.total),
            Period::Billing => {
                let billing = &self.rest.as_ref()?.billing;
                billing.iter().find(|(counted, _)| *counted == window).map(|(_, nanos)| Money::at_least_nothing(*nanos))
            }
            Period::Daily | Period::Weekly | Period::Monthly => {
                let place = CALENDAR.iter().position(|counted| *counted == period)?;
                let counted = *self.first_days.get(place)? == first_day(window);
                self.spent.get(place).copied().filter(|_| counted)
            }
        }
    }

    /// What is promised to calls that are still running at `now`.
    pub fn held(&self, now: DateTime<Utc>) -> Money {
        let Some(rest) = &self.rest else { return Money::ZERO };
        let expired = rest.holds.iter().take_while(|((expires_at, _), _)| *expires_at <= now);
        let expired: i128 = expired.map(|(_, amount)| i128::from(amount.nanos())).sum();
        rest.promised.less(expired)
    }

    /// Every budget of `budgets`, `seats` times over, at `now`; `None` where the store must be asked.
    pub fn budgets(&self, budgets: &Budgets, seats: u64, billing: Option<BillingPeriod>, now: DateTime<Utc>) -> Option<Vec<Budget>> {
        if now < self.as_of {
            return None;
        }
        let held = self.held(now);
        let one = |(period, limit): (&Period, &Money)| {
            let window = period.window(now, billing);
            let spent = self.spent(*period, window)?;
            let (scope, limit, thresholds) = (budgets.scope, limit.times(seats), budgets.thresholds);
            let source = if scope == Scope::Global { Source::Global } else { Source::Tier };
            let (granted, fresh_limit) = (Money::ZERO, limit);
            Some(Budget { scope, period: *period, source, limit, granted, fresh_limit, spent, held, window, thresholds })
        };
        budgets.limits.iter().map(one).collect()
    }

    /// Whether [`Book::budgets`] would know every one of `budgets`.
    pub fn counts(&self, budgets: &Budgets, billing: Option<BillingPeriod>, now: DateTime<Utc>) -> bool {
        let mut periods = budgets.limits.keys();
        self.as_of <= now && periods.all(|period| self.spent(*period, period.window(now, billing)).is_some())
    }

    /// Whether what is used may have reached any mark of `budgets`, so that a closer look is of use. It does not ask which windows are open:
    /// most users are far below, and that is seen at once.
    pub fn may_reach(&self, budgets: &Budgets, seats: u64, now: DateTime<Utc>) -> bool {
        let Some(lowest) = budgets.alerts.lowest(budgets.thresholds) else { return false };
        let held = i128::from(self.held(now).nanos());
        budgets.limits.iter().any(|(period, limit)| {
            let spent = match period {
                Period::Total => self.total,
                Period::Billing => {
                    let most = self.rest.iter().flat_map(|rest| &rest.billing).map(|(_, nanos)| *nanos).max();
                    most.map(Money::at_least_nothing).unwrap_or_default()
                }
                Period::Daily | Period::Weekly | Period::Monthly => {
                    let place = CALENDAR.iter().position(|counted| counted == period);
                    place.and_then(|place| self.spent.get(place)).copied().unwrap_or_default()
                }
            };
            let used = i128::from(spent.nanos()) + held;
            0 < used && i128::from(limit.times(seats).nanos()) * i128::from(lowest.0) <= used * 10_000
        })
    }

    /// What somebody was told of it, as far as it is remembered.
    pub fn told(&self) -> &[Told] {
        self.rest.as_ref().map_or(&[], |rest| &rest.told)
    }

    /// Remembers until its window ends that somebody was told.
    pub fn tell(&mut self, told: Told) {
        self.rest.get_or_insert_default().told.push(told);
    }

    /// Whether `cost` more can be counted at all.
    pub fn can_add(&self, cost: Money) -> bool {
        self.total.checked_add(cost).is_some()
    }

    /// Adds to every window that was open at `time`, up to the most that can be counted.
    pub fn add(&mut self, cost: Money, time: DateTime<Utc>) {
        self.change(time, cost.nanos());
    }

    /// Takes from every window that was open at `time`; nothing falls below zero.
    pub fn take(&mut self, amount: Money, time: DateTime<Utc>) {
        self.change(time, -amount.nanos());
    }

    fn change(&mut self, time: DateTime<Utc>, nanos: i64) {
        let change = |sum: Money| sum.less(-i128::from(nanos));
        self.total = change(self.total);
        for ((period, counted), spent) in CALENDAR.iter().zip(self.first_days).zip(&mut self.spent) {
            if counted == first_day(period.window(time, None)) {
                *spent = change(*spent);
            }
        }
        let billing = self.rest.iter_mut().flat_map(|rest| &mut rest.billing);
        for (_, counted) in billing.filter(|(window, _)| window.contains(time)) {
            *counted = counted.saturating_add(nanos);
        }
    }

    /// Whether `amount` more can be held at all.
    pub fn can_hold(&self, amount: Money) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.promised.checked_add(amount).is_some())
    }

    /// The caller has asked [`Book::can_hold`].
    pub fn hold(&mut self, hold: &OpenHold) {
        let rest = self.rest.get_or_insert_default();
        rest.end_hold(&hold.id);
        rest.promised = rest.promised.saturating_add(hold.amount);
        rest.holds.insert((hold.expires_at, hold.id.clone()), hold.amount);
        rest.expiries.insert(hold.id.clone(), hold.expires_at);
    }

    /// Ends a hold; one that is not here had expired.
    pub fn end_hold(&mut self, id: &Arc<str>) {
        if let Some(rest) = &mut self.rest {
            rest.end_hold(id);
        }
    }

    /// Forgets what has expired by `now`, and with it how things stood before.
    pub fn prune(&mut self, now: DateTime<Utc>) {
        if let Some(rest) = &mut self.rest {
            rest.prune(now);
        }
        self.rest.take_if(|rest| rest.is_empty());
        self.as_of = self.as_of.max(now);
    }
}

impl Rest {
    fn end_hold(&mut self, id: &Arc<str>) {
        let Some(expires_at) = self.expiries.remove(id) else { return };
        if let Some(amount) = self.holds.remove(&(expires_at, id.clone())) {
            self.promised = self.promised.less(i128::from(amount.nanos()));
        }
    }

    fn prune(&mut self, now: DateTime<Utc>) {
        while let Some(((_, id), _)) = self.holds.first_key_value().filter(|((expires_at, _), _)| *expires_at <= now) {
            let id = id.clone();
            self.end_hold(&id);
        }
        self.told.retain(|told| told.is_open(now));
    }

    fn is_empty(&self) -> bool {
        self.billing.is_empty() && self.holds.is_empty() && self.told.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::alerts::Marks;
    use crate::domain::catalogue::Policy;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_768_219_200 + seconds, 0).unwrap_or_default()
    }

    fn nanos(nanos: i64) -> Money {
        Money::from_nanos(nanos).unwrap_or_default()
    }

    fn hold(id: &str, amount: i64, expires: i64) -> OpenHold {
        OpenHold { id: id.into(), amount: nanos(amount), expires_at: at(expires) }
    }

    #[test]
    fn what_is_held_ends_at_its_expiry_without_anybody_doing_anything() {
        let mut book = Book::new(at(0), &SpentByDay::new(), Money::ZERO, [hold("a", 5, 10), hold("b", 7, 20)]);
        let held = |book: &Book| [0, 9, 10, 19, 20].map(|seconds| book.held(at(seconds)).nanos());
        assert_eq!(held(&book), [12, 12, 7, 7, 0]);
        book.end_hold(&"b".into());
        book.end_hold(&"b".into());
        assert_eq!(held(&book), [5, 5, 0, 0, 0]);
        book.hold(&hold("a", 6, 10));
        assert_eq!(held(&book), [6, 6, 0, 0, 0]);
    }

    #[test]
    fn a_book_that_has_forgotten_says_nothing_of_the_time_before() {
        let budgets = Budgets {
            scope: Scope::User,
            per_seat: false,
            limits: BTreeMap::from([(Period::Daily, nanos(10))]),
            thresholds: Policy::Strict.thresholds(),
            alerts: Marks::default(),
        };
        let mut book = Book::new(at(0), &SpentByDay::new(), Money::ZERO, [hold("a", 5, 10)]);
        book.prune(at(15));
        assert_eq!(book.budgets(&budgets, 1, None, at(14)), None);
        let judged = book.budgets(&budgets, 3, None, at(15)).unwrap_or_default();
        assert_eq!(judged.first().map(|budget| (budget.held, budget.limit)), Some((Money::ZERO, nanos(30))));
    }

    #[test]
    fn what_is_added_and_taken_counts_in_the_windows_of_its_time() {
        let mut book = Book::new(at(0), &SpentByDay::new(), nanos(100), []);
        let daily = Period::Daily.window(at(0), None);
        let monthly = Period::Monthly.window(at(0), None);
        book.add(nanos(5), at(0));
        book.add(nanos(7), at(-86_400));
        book.take(nanos(2), at(0));
        assert_eq!(book.spent(Period::Daily, daily), Some(nanos(3)));
        assert_eq!(book.spent(Period::Monthly, monthly), Some(nanos(10)));
        assert_eq!(book.total(), nanos(110));
        assert_eq!(book.spent(Period::Daily, Period::Daily.window(at(86_400), None)), None);
    }
}
