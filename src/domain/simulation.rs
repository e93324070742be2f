//! The recorded usage again, under another catalogue: what each call would have been answered, and what would have been spent.
//!
//! Calls come in the order of their time, and what a call costs here fills the windows that the next one meets: one that is blocked
//! fills none, one that is degraded costs what the cheaper model costs. Nothing but calls is simulated: who has which tier is as
//! it is now, nobody holds anything or has a grant, and whoever is blocked does not try again.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::caps::Caps;
use super::catalogue::{Budgets, Catalogue, Tier};
use super::cost::price;
use super::decide::{Action, Binding, Budget, Reason, Scope, Source};
use super::judge::{Ask, Caller, Judgement, judge};
use super::money::Money;
use super::operation::EntryKind;
use super::period::{BillingPeriod, Period, Window};
use super::pricing::Tokens;
use super::user::{AccountId, Profile, Standing, TierSource, UserId};

/// An entry of the ledger, as far as it is judged again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub user: UserId,
    /// The account that he belonged to when it was booked.
    pub account: Option<AccountId>,
    pub kind: EntryKind,
    pub cost: Money,
    pub time: DateTime<Utc>,
    pub model: Option<String>,
    pub provider: Option<String>,
    /// Where they are known.
    pub tokens: Option<Tokens>,
    /// The caller's own JSON object.
    pub metadata: Option<String>,
}

/// What was spent in the windows that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters([Option<(Window, Money)>; Period::ALL.len()]);

impl Counters {
    /// Begins a window with what was spent in it before.
    pub fn begin(&mut self, period: Period, window: Window, spent: Money) {
        if let Some((_, open)) = Period::ALL.iter().zip(&mut self.0).find(|(one, _)| **one == period) {
            *open = Some((window, spent));
        }
    }

    /// Lets the windows that hold `at` be the open ones. Time goes forward only.
    fn open(&mut self, at: DateTime<Utc>, billing: Option<BillingPeriod>) {
        for (period, open) in Period::ALL.into_iter().zip(&mut self.0) {
            let is_open = match open {
                // Users of one account who are paid for separately have periods of their own: the last one to spend has his counted.
                Some((window, _)) if period == Period::Billing => *window == period.window(at, billing),
                Some((window, _)) => window.contains(at),
                None => false,
            };
            if !is_open {
                *open = Some((period.window(at, billing), Money::ZERO));
            }
        }
    }

    fn change(&mut self, change: impl Fn(Money) -> Money) {
        for (_, spent) in self.0.iter_mut().flatten() {
            *spent = change(*spent);
        }
    }

    fn budgets<'a>(&'a self, budgets: &'a Budgets, source: Source, seats: u64) -> impl Iterator<Item = Budget> + 'a {
        budgets.limits.iter().filter_map(move |(period, limit)| {
            let (_, open) = Period::ALL.iter().zip(&self.0).find(|(one, _)| *one == period)?;
            let (window, spent) = (*open)?;
            let (scope, thresholds) = (budgets.scope, budgets.thresholds);
            let (period, limit, nothing) = (*period, limit.times(seats), Money::ZERO);
            Some(Budget { scope, period, source, limit, granted: nothing, fresh_limit: limit, spent, held: nothing, window, thresholds })
        })
    }
}

/// The first call that would have been answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct First {
    pub at: DateTime<Utc>,
    pub reason: Reason,
    pub binding: Option<Binding>,
}

/// The calls that would have been answered with one action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    pub calls: u64,
    /// What they cost as recorded.
    pub cost: Money,
    pub first: Option<First>,
}

impl Told {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.cost = self.cost.saturating_add(other.cost);
        self.first = match (self.first, other.first) {
            (Some(own), Some(others)) if others.at < own.at => Some(others),
            (own, others) => own.or(others),
        };
    }
}

/// What calls would have come to. Sums stop at the most that can be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub calls: u64,
    /// What was spent as recorded.
    pub spent: Money,
    /// What would have been.
    pub would_have_spent: Money,
    /// What corrections took back of what was spent; they are not calls.
    pub corrected: Money,
    pub allow: Told,
    pub warn: Told,
    pub degrade: Told,
    /// What these cost would not have been spent, and these calls would not have been made.
    pub block: Told,
    /// Of the degraded calls those for which nobody knows what the cheaper model would have cost: they count as they were.
    pub degraded_at_unknown_cost: u64,
    /// What the others would have cost less.
    pub saved_by_degrading: Money,
}

impl Tally {
    pub fn worst(&self) -> Action {
        let told = [(Action::Block, &self.block), (Action::Degrade, &self.degrade), (Action::Warn, &self.warn)];
        told.into_iter().find(|(_, told)| 0 < told.calls).map_or(Action::Allow, |(action, _)| action)
    }

    fn told(&mut self, action: Action) -> &mut Told {
        match action {
            Action::Allow => &mut self.allow,
            Action::Warn => &mut self.warn,
            Action::Degrade => &mut self.degrade,
            Action::Block => &mut self.block,
        }
    }

    fn count(&mut self, call: &Recorded, judgement: &Judgement, would_cost: Option<Money>) {
        let decision = &judgement.decision;
        let first = First { at: call.time, reason: decision.reason, binding: decision.binding };
        self.told(decision.action).add(&Told { calls: 1, cost: call.cost, first: Some(first) });
        self.calls += 1;
        self.spent = self.spent.saturating_add(call.cost);
        self.would_have_spent = self.would_have_spent.saturating_add(would_cost.unwrap_or(call.cost));
        if decision.action == Action::Degrade {
            match would_cost {
                Some(cost) => self.saved_by_degrading = self.saved_by_degrading.saturating_add(call.cost.less(i128::from(cost.nanos()))),
                None => self.degraded_at_unknown_cost += 1,
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.spent = self.spent.saturating_add(other.spent);
        self.would_have_spent = self.would_have_spent.saturating_add(other.would_have_spent);
        self.corrected = self.corrected.saturating_add(other.corrected);
        self.allow.add(&other.allow);
        self.warn.add(&other.warn);
        self.degrade.add(&other.degrade);
        self.block.add(&other.block);
        self.degraded_at_unknown_cost += other.degraded_at_unknown_cost;
        self.saved_by_degrading = self.saved_by_degrading.saturating_add(other.saved_by_degrading);
    }
}

/// A user in the simulation.
#[derive(Debug)]
struct Simulated<'c> {
    tier: &'c Tier,
    source: TierSource,
    seats: u64,
    billing: Option<BillingPeriod>,
    caps: Option<Box<Caps>>,
    counters: Counters,
    tally: Tally,
}

/// What one user's calls would have come to.
#[derive(Clone, Debug, Serialize)]
pub struct OfUser<'c> {
    pub user_id: UserId,
    pub tier: &'c str,
    pub tier_source: TierSource,
    pub worst: Action,
    #[serde(flatten)]
    pub tally: Tally,
}

/// What the calls of all users of one tier would have come to.
#[derive(Clone, Debug, Serialize)]
pub struct OfTier<'c> {
    pub tier: &'c str,
    pub users: u64,
    /// Those who would have been told so at least once.
    pub warned: u64,
    pub degraded: u64,
    pub blocked: u64,
    #[serde(flatten)]
    pub tally: Tally,
}

/// Recorded calls under a catalogue. In memory is a state for every user and account that has calls, whatever their number.
#[derive(Debug)]
pub struct Simulation<'c> {
    catalogue: &'c Catalogue,
    /// The moment whose tiers everybody has.
    now: DateTime<Utc>,
    users: HashMap<UserId, Simulated<'c>>,
    accounts: HashMap<AccountId, Counters>,
    /// `None` where not everybody's calls come, so that a budget of all together says nothing.
    all: Option<Counters>,
    unknown_tiers: BTreeMap<String, u64>,
}

impl<'c> Simulation<'c> {
    /// `all` is what everybody spent in the windows that are open at the beginning, where everybody's calls come.
    pub fn new(catalogue: &'c Catalogue, all: Option<Counters>, now: DateTime<Utc>) -> Self {
        let (users, accounts) = (HashMap::new(), HashMap::new());
        Self { catalogue, now, users, accounts, all, unknown_tiers: BTreeMap::new() }
    }

    pub fn catalogue(&self) -> &'c Catalogue {
        self.catalogue
    }

    pub fn has_met(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    pub fn has_met_account(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
    }

    /// The tier of somebody with this profile, and what goes with it.
    pub fn standing(&self, profile: &Profile) -> Standing<'c> {
        profile.standing(self.catalogue, self.now)
    }

    /// Makes a user known, with what he spent before in the windows that are open at the beginning.
    pub fn meet(&mut self, user: UserId, profile: &Profile, counters: Counters) {
        let Standing { tier, source, grant, seats, .. } = self.standing(profile);
        let by_hand = profile.manual.as_ref().filter(|manual| manual.ends_at.is_none_or(|end| self.now < end));
        if let Some(manual) = by_hand.filter(|manual| self.catalogue.tier(&manual.tier).is_none()) {
            *self.unknown_tiers.entry(manual.tier.clone()).or_default() += 1;
        }
        let (billing, caps, tally) = (grant.billing, profile.caps.clone(), Tally::default());
        self.users.insert(user, Simulated { tier, source, seats, billing, caps, counters, tally });
    }

    /// The same for an account.
    pub fn meet_account(&mut self, account: AccountId, counters: Counters) {
        self.accounts.insert(account, counters);
    }

    /// Judges the next call. Of a user who was not met nothing is counted.
    pub fn run(&mut self, call: &Recorded) {
        let Some(user) = self.users.get_mut(&call.user) else { return };
        user.counters.open(call.time, user.billing);
        let mut pool = call.account.clone().map(|account| self.accounts.entry(account).or_default());
        if let Some(pool) = &mut pool {
            pool.open(call.time, user.billing);
        }
        if let Some(all) = &mut self.all {
            all.open(call.time, None);
        }
        let each = [Some(&mut user.counters), pool, self.all.as_mut()];
        if call.kind == EntryKind::Correction {
            user.tally.corrected = user.tally.corrected.saturating_add(call.cost);
            each.into_iter().flatten().for_each(|counters| counters.change(|spent| spent.less(i128::from(call.cost.nanos()))));
            return;
        }
        let budgets: Vec<Budget> = {
            let [own, pool, all] = &each;
            let shared = pool.as_deref().filter(|_| user.tier.budgets.scope == Scope::Account);
            let of_tier = shared.or(own.as_deref()).map(|counters| counters.budgets(&user.tier.budgets, Source::Tier, user.seats));
            let caps = user.caps.as_ref().zip(own.as_deref()).map(|(caps, own)| own.budgets(caps.as_budgets(), Source::Cap, 1));
            let of_all =
                self.catalogue.global.as_ref().zip(all.as_deref()).map(|(budgets, counters)| counters.budgets(budgets, Source::Global, 1));
            of_tier.into_iter().flatten().chain(caps.into_iter().flatten()).chain(of_all.into_iter().flatten()).collect()
        };
        let caller = Caller { user: &call.user, account: call.account.as_ref(), tier: user.tier };
        let judgement = judge(self.catalogue, caller, &budgets, &ask(self.catalogue, user.tier, call), call.time);
        let would_cost = would_cost(self.catalogue, user.tier, call, &judgement);
        user.tally.count(call, &judgement, would_cost);
        let counted = would_cost.unwrap_or(call.cost);
        each.into_iter().flatten().for_each(|counters| counters.change(|spent| spent.saturating_add(counted)));
    }

    /// What one user's calls would have come to; `None` where there are none.
    pub fn of_user(&self, user: &UserId) -> Option<OfUser<'c>> {
        self.users.get(user).map(|simulated| simulated.told(user))
    }

    /// Those who would have been told anything but ALLOW: the worst off first.
    pub fn users(&self) -> Vec<OfUser<'c>> {
        let all = self.users.iter().filter(|(_, simulated)| simulated.tally.worst() != Action::Allow);
        let mut users: Vec<OfUser<'c>> = all.map(|(user, simulated)| simulated.told(user)).collect();
        let severity = |user: &OfUser<'_>| (user.worst, user.tally.block.cost, user.tally.block.calls, user.tally.spent);
        users.sort_by(|one, other| severity(other).cmp(&severity(one)).then_with(|| one.user_id.cmp(&other.user_id)));
        users
    }

    /// By tier in ascending rank, those that somebody has who made calls.
    pub fn tiers(&self) -> Vec<OfTier<'c>> {
        let mut tiers: BTreeMap<i64, OfTier<'c>> = BTreeMap::new();
        for simulated in self.users.values() {
            let (name, tally) = (simulated.tier.name.as_str(), Tally::default());
            let empty = OfTier { tier: name, users: 0, warned: 0, degraded: 0, blocked: 0, tally };
            let tier = tiers.entry(simulated.tier.rank).or_insert(empty);
            let told = |told: &Told| u64::from(0 < told.calls);
            tier.users += 1;
            tier.warned += told(&simulated.tally.warn);
            tier.degraded += told(&simulated.tally.degrade);
            tier.blocked += told(&simulated.tally.block);
            tier.tally.add(&simulated.tally);
        }
        tiers.into_values().collect()
    }

    /// All calls together.
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.users.values().for_each(|simulated| total.add(&simulated.tally));
        total
    }

    /// Tiers that were set by hand and that the catalogue does not have, each with how many have it.
    pub fn unknown_tiers(&self) -> &BTreeMap<String, u64> {
        &self.unknown_tiers
    }
}

impl<'c> Simulated<'c> {
    fn told(&self, user: &UserId) -> OfUser<'c> {
        let (tier, tier_source, tally) = (self.tier.name.as_str(), self.source, self.tally);
        OfUser { user_id: user.clone(), tier, tier_source, worst: tally.worst(), tally }
    }
}

/// The call as its caller would have asked about it, had he known what it was to cost. One of a model that costs nothing is asked about by
/// its model: no budget stands in its way.
fn ask(catalogue: &Catalogue, tier: &Tier, call: &Recorded) -> Ask {
    let own_price = || price(&catalogue.prices, tier, call.model.as_deref()?, call.provider.as_deref(), call.time);
    let is_free = call.cost == Money::ZERO && own_price().is_some_and(|(price, _)| price.is_free());
    // Only rules look at it.
    let metadata = call.metadata.as_deref().filter(|_| !tier.rules.is_empty()).and_then(|text| serde_json::from_str(text).ok());
    let cost = Some(call.cost).filter(|_| !is_free);
    Ask { model: call.model.clone(), provider: call.provider.clone(), cost, tokens: call.tokens, metadata }
}

/// What it would have cost; `None` where nobody knows what the cheaper model would have.
fn would_cost(catalogue: &Catalogue, tier: &Tier, call: &Recorded, judgement: &Judgement) -> Option<Money> {
    match judgement.decision.action {
        Action::Allow | Action::Warn => Some(call.cost),
        Action::Block => Some(Money::ZERO),
        // Nothing is cheaper: it would have gone on as it was.
        Action::Degrade if judgement.model == call.model => Some(call.cost),
        Action::Degrade => {
            let (price, _) = price(&catalogue.prices, tier, judgement.model.as_deref()?, None, call.time)?;
            Some(price.cost(call.tokens.as_ref()?, tier.markup))
        }
    }
}

#[cfg(test)]
#[path = "simulation_tests.rs"]
mod tests;
