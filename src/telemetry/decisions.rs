//! Decisions by tier, action and reason. A check pays some nanoseconds: a look at the tiers that are known, and one addition.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{LANES, lane};
use crate::domain::decide::{Action, Reason};

/// Tier names in the files of one process's life; what comes later is counted together.
const TIERS_MAX: usize = 200;
/// The name of those.
const OTHER: &str = "(other)";
const ACTIONS: usize = 4;
const REASONS: usize = 11;

fn action_place(action: Action) -> usize {
    match action {
        Action::Allow => 0,
        Action::Warn => 1,
        Action::Degrade => 2,
        Action::Block => 3,
    }
}

/// Where a reason is counted, and its name as answers have it.
fn reason_place(reason: Reason) -> (usize, &'static str) {
    match reason {
        Reason::WithinBudget => (0, "within_budget"),
        Reason::WarnThreshold => (1, "warn_threshold"),
        Reason::DegradeThreshold => (2, "degrade_threshold"),
        Reason::BudgetExhausted => (3, "budget_exhausted"),
        Reason::EstimateExceedsBudget => (4, "estimate_exceeds_budget"),
        Reason::ModelNotInTier => (5, "model_not_in_tier"),
        Reason::UnknownModel => (6, "unknown_model"),
        Reason::FreeModel => (7, "free_model"),
        Reason::CapReached => (8, "cap_reached"),
        Reason::Rule => (9, "rule"),
        Reason::StoreUnavailable => (10, "store_unavailable"),
    }
}

/// Every reason, in the order of its place.
const ALL_REASONS: [Reason; REASONS] = [
    Reason::WithinBudget,
    Reason::WarnThreshold,
    Reason::DegradeThreshold,
    Reason::BudgetExhausted,
    Reason::EstimateExceedsBudget,
    Reason::ModelNotInTier,
    Reason::UnknownModel,
    Reason::FreeModel,
    Reason::CapReached,
    Reason::Rule,
    Reason::StoreUnavailable,
];

/// The share of one lane.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Share([[AtomicU64; REASONS]; ACTIONS]);

#[derive(Debug)]
struct OfTier {
    name: String,
    shares: [Share; LANES],
}

impl OfTier {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), shares: std::array::from_fn(|_| Share::default()) }
    }

    fn add(&self, action: Action, reason: Reason) {
        let cell = self.shares.get(lane()).and_then(|share| share.0.get(action_place(action))?.get(reason_place(reason).0));
        if let Some(cell) = cell {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Since the service began.
#[derive(Debug, Default)]
pub struct Decisions {
    tiers: ArcSwap<Vec<Arc<OfTier>>>,
    learning: Mutex<()>,
}

/// How often something was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub tier: String,
    pub action: Action,
    pub reason: &'static str,
    pub times: u64,
}

impl Decisions {
    /// `tier` is a name of the catalogue.
    pub fn saw(&self, tier: &str, action: Action, reason: Reason) {
        // Tiers are few, so looking through them is quicker than a hash.
        match self.tiers.load().iter().find(|of| of.name == tier) {
            Some(of) => of.add(action, reason),
            None => self.learn(tier).add(action, reason),
        }
    }

    /// A tier that was not decided for before, as after a start or a reload.
    fn learn(&self, tier: &str) -> Arc<OfTier> {
        let _turn = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.tiers.load_full();
        let tier = if known.len() < TIERS_MAX { tier } else { OTHER };
        if let Some(of) = known.iter().find(|of| of.name == tier) {
            return of.clone();
        }
        let of = Arc::new(OfTier::new(tier));
        self.tiers.store(Arc::new(known.iter().cloned().chain([of.clone()]).collect()));
        of
    }

    /// What was decided at all.
    pub fn all(&self) -> Vec<Decided> {
        let mut all = Vec::new();
        for of in self.tiers.load().iter() {
            for action in Action::ALL {
                for reason in ALL_REASONS {
                    let (place, name) = reason_place(reason);
                    let cells = of.shares.iter().filter_map(|share| share.0.get(action_place(action))?.get(place));
                    let times = cells.map(|cell| cell.load(Ordering::Relaxed)).sum();
                    if 0 < times {
                        all.push(Decided { tier: of.name.clone(), action, reason: name, times });
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_and_the_name_that_answers_have() {
        for (place, reason) in ALL_REASONS.into_iter().enumerate() {
            let (at, name) = reason_place(reason);
            assert_eq!((at, serde_json::json!(name)), (place, serde_json::json!(reason)));
        }
    }

    #[test]
    fn decisions_are_counted_by_tier_action_and_reason_and_names_are_bounded() {
        let decisions = Decisions::default();
        decisions.saw("free", Action::Block, Reason::Rule);
        decisions.saw("free", Action::Block, Reason::Rule);
        decisions.saw("pro", Action::Allow, Reason::WithinBudget);
        let decided = |tier: &str, action, reason, times| Decided { tier: tier.to_owned(), action, reason, times };
        assert_eq!(decisions.all(), [decided("free", Action::Block, "rule", 2), decided("pro", Action::Allow, "within_budget", 1)]);
        for number in 0..TIERS_MAX * 2 {
            decisions.saw(&format!("tier-{number}"), Action::Allow, Reason::WithinBudget);
        }
        let all = decisions.all();
        assert_eq!(all.len(), TIERS_MAX + 1);
        assert_eq!(all.last(), Some(&decided(OTHER, Action::Allow, "within_budget", 202)));
    }
}
