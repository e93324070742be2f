//! A user's own caps: hard limits of his own spend, beside whatever his tier allows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::alerts::{Mark, Marks};
use super::book::Book;
use super::catalogue::{Budgets, Policy};
use super::decide::{Budget, Scope, Source};
use super::money::Money;
use super::period::{BillingPeriod, Period};

/// At least one. A cap of 0 stops all spending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps(Budgets);

impl Caps {
    /// `None` where there is no cap.
    pub fn new(limits: BTreeMap<Period, Money>) -> Option<Self> {
        let thresholds = Policy::Strict.thresholds();
        // Whoever set it knows how far he is; that it stops him is what his operator may want to hear.
        let alerts = Marks::new(vec![Mark::Block]);
        (!limits.is_empty()).then_some(Self(Budgets { scope: Scope::User, per_seat: false, limits, thresholds, alerts }))
    }

    pub fn as_budgets(&self) -> &Budgets {
        &self.0
    }

    pub fn limits(&self) -> &BTreeMap<Period, Money> {
        &self.0.limits
    }

    /// Filled by what `book` counts of him; `None` where the store must be asked.
    pub fn budgets(&self, book: &Book, billing: Option<BillingPeriod>, now: DateTime<Utc>) -> Option<Vec<Budget>> {
        let mut budgets = book.budgets(&self.0, 1, billing, now)?;
        budgets.iter_mut().for_each(|budget| budget.source = Source::Cap);
        Some(budgets)
    }

    /// Whether `book` counts every window that they need.
    pub fn are_counted(&self, book: &Book, billing: Option<BillingPeriod>, now: DateTime<Utc>) -> bool {
        book.counts(&self.0, billing, now)
    }
}
