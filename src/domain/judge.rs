//! Tier + budgets + a call → what to do. `decide` judges amounts; here stands what a call is: its model, what it may cost, and
//! which model to take instead.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::catalogue::{Catalogue, OnStoreDown, Tier};
use super::cost::price;
use super::decide::{Action, Budget, Decision, Reason, decide, most, passes_without_store, store_unavailable};
use super::models::UnknownModel;
use super::money::Money;
use super::pricing::{Price, PriceBook, Tokens};
use super::rules::{Facts, Tried};
use super::user::{AccountId, UserId};

/// A call that a caller asks about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    pub model: Option<String>,
    pub provider: Option<String>,
    /// What it may cost, as the caller reckons. Where he does, tokens are not priced.
    pub cost: Option<Money>,
    /// What it may use.
    pub tokens: Option<Tokens>,
    /// What the caller says of it, for the operator's rules.
    pub metadata: Option<Map<String, Value>>,
}

/// Who makes it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub user: &'a UserId,
    /// `None`: he stands alone.
    pub account: Option<&'a AccountId>,
    pub tier: &'a Tier,
}

/// The answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub decision: Decision,
    /// What the call may cost: with the model that is named here, where the tokens tell.
    pub estimate: Money,
    /// The model to use: on DEGRADE the cheaper one, else the one that was asked for.
    pub model: Option<String>,
    /// The provider that was named with it; none where it is another model.
    pub provider: Option<String>,
    /// How many tokens may come out of that model for what is left, where tokens were given and something bounds them.
    pub max_affordable_output_tokens: Option<i64>,
    /// It has no price, and the tier lets it pass all the same.
    pub is_unpriced: bool,
    /// The rule that decided.
    pub rule: Option<RuleName>,
}

/// One of the operator's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    pub name: String,
    /// It could not be judged, so its answer is the strict one.
    pub failed: bool,
}

/// What a call may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Estimate {
    Costs(Money),
    /// By the price book no call of this model costs anything.
    Free,
    /// It has no price, and that is let pass.
    Flagged,
    /// It has no price.
    Unknown,
}

impl Estimate {
    fn amount(self) -> Money {
        match self {
            Self::Costs(amount) => amount,
            Self::Free | Self::Flagged | Self::Unknown => Money::ZERO,
        }
    }
}

struct Judge<'a> {
    prices: &'a PriceBook,
    tier: &'a Tier,
    budgets: &'a [Budget],
    ask: &'a Ask,
    now: DateTime<Utc>,
}

/// Judges a call by the user's tier and its budgets.
pub fn judge(catalogue: &Catalogue, caller: Caller<'_>, budgets: &[Budget], ask: &Ask, now: DateTime<Utc>) -> Judgement {
    let tier = caller.tier;
    let judge = Judge { prices: &catalogue.prices, tier, budgets, ask, now };
    let judged = match &ask.model {
        Some(model) if !tier.models.allows(model, ask.provider.as_deref(), judge.prices) => judge.not_in_tier(model),
        model => judge.in_tier(model.as_deref()),
    };
    if tier.rules.is_empty() { judged } else { judge.by_rules(judged, caller) }
}

/// Judges a call while the store is away, by the tier's `on_store_down`. `budgets` are what is known of them all the same, which may be
/// nothing. Where calls pass, what is known to forbid this one still does: an outage gives nobody another tier's models.
pub fn judge_without_store(catalogue: &Catalogue, caller: Caller<'_>, budgets: &[Budget], ask: &Ask, now: DateTime<Utc>) -> Judgement {
    match caller.tier.on_store_down {
        OnStoreDown::Block => Judgement {
            decision: store_unavailable(),
            estimate: ask.cost.unwrap_or_default(),
            model: ask.model.clone(),
            provider: ask.provider.clone(),
            max_affordable_output_tokens: None,
            is_unpriced: false,
            rule: None,
        },
        OnStoreDown::Allow => {
            let mut judged = judge(catalogue, caller, budgets, ask, now);
            match judged.decision.action {
                Action::Allow => judged.decision = passes_without_store(&caller.tier.name),
                Action::Warn | Action::Degrade | Action::Block => {
                    judged.decision.message.push_str(" The store is not available at the moment.");
                }
            }
            judged
        }
    }
}

/// What each of the tier's rules says of a call.
pub fn rules_tried<'c>(catalogue: &Catalogue, caller: Caller<'c>, budgets: &[Budget], ask: &Ask, now: DateTime<Utc>) -> Vec<Tried<'c>> {
    let judge = Judge { prices: &catalogue.prices, tier: caller.tier, budgets, ask, now };
    caller.tier.rules.tried(&judge.facts(caller))
}

/// What a call may cost by its tokens with `model`, where they were given and it has a price (or needs none).
pub fn cost_by_tokens(catalogue: &Catalogue, tier: &Tier, ask: &Ask, model: &str, now: DateTime<Utc>) -> Option<Money> {
    let ask = Ask { cost: None, ..ask.clone() };
    ask.tokens.as_ref()?;
    match (Judge { prices: &catalogue.prices, tier, budgets: &[], ask: &ask, now }).estimate(Some(model)) {
        Estimate::Costs(amount) => Some(amount),
        Estimate::Free => Some(Money::ZERO),
        Estimate::Flagged | Estimate::Unknown => None,
    }
}

impl Judge<'_> {
    fn estimate(&self, model: Option<&str>) -> Estimate {
        let (Some(model), None) = (model, self.ask.cost) else { return Estimate::Costs(self.ask.cost.unwrap_or_default()) };
        let price = price(self.prices, self.tier, model, self.provider_of(model), self.now);
        match (price, &self.ask.tokens) {
            (Some((price, _)), _) if price.is_free() => Estimate::Free,
            (Some((price, _)), Some(tokens)) => Estimate::Costs(price.cost(tokens, self.tier.markup)),
            (None, Some(_)) if self.tier.unknown_model == UnknownModel::Flag => Estimate::Flagged,
            (None, Some(_)) => Estimate::Unknown,
            (Some(_) | None, None) => Estimate::Costs(Money::ZERO),
        }
    }

    /// The provider that was named goes with the model that was named; another one may be somebody else's.
    fn provider_of(&self, model: &str) -> Option<&str> {
        self.ask.provider.as_deref().filter(|_| self.ask.model.as_deref() == Some(model))
    }

    fn in_tier(&self, model: Option<&str>) -> Judgement {
        let estimate = self.estimate(model);
        let decision = match estimate {
            Estimate::Unknown => unknown_model(model.unwrap_or_default()),
            Estimate::Free => free_model(),
            Estimate::Costs(_) | Estimate::Flagged => decide(self.budgets, estimate.amount()),
        };
        if decision.action != Action::Degrade {
            return self.judgement(decision, estimate, model);
        }
        self.degraded(decision, estimate, model)
    }

    fn degraded(&self, decision: Decision, estimate: Estimate, model: Option<&str>) -> Judgement {
        let is_cheaper = |target: &&str| model.is_none_or(|model| !self.is_dearer(target, model) && !self.costs_as_much(target, model));
        let target = self.targets(model).filter(is_cheaper).find(|target| self.is_payable(target));
        match target {
            Some(target) => self.judgement(decision, self.estimate(Some(target)), Some(target)),
            // What was asked for is a fallback itself, or nothing is cheaper.
            None => self.judgement(decision, estimate, model),
        }
    }

    fn facts<'f>(&'f self, caller: Caller<'f>) -> Facts<'f> {
        let (ask, tokens) = (self.ask, self.ask.tokens.unwrap_or_default());
        Facts {
            user: caller.user,
            account: caller.account,
            tier: self.tier,
            model: ask.model.as_deref(),
            provider: ask.provider.as_deref(),
            estimate: self.estimate(ask.model.as_deref()).amount(),
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            budgets: self.budgets,
            metadata: ask.metadata.as_ref(),
            now: self.now,
        }
    }

    /// What the operator's rules make of it: they may only be stricter. Of two that block the rule binds, since no reset lifts it.
    fn by_rules(&self, judged: Judgement, caller: Caller<'_>) -> Judgement {
        let ask = self.ask;
        let asked = self.estimate(ask.model.as_deref());
        let facts = self.facts(caller);
        let Some(verdict) = self.tier.rules.judge(&facts) else { return judged };
        let stricter = judged.decision.action < verdict.action || verdict.action == Action::Block;
        if !stricter {
            return judged;
        }
        let rule = Some(RuleName { name: verdict.rule.to_owned(), failed: verdict.failed });
        let (action, message) = (verdict.action, verdict.message.into_owned());
        let decision = Decision { action, reason: Reason::Rule, binding: None, message, retry_at: None };
        // What the rule says is said of the model that was asked for.
        let model = ask.model.as_deref();
        let ruled = if action == Action::Degrade { self.degraded(decision, asked, model) } else { self.judgement(decision, asked, model) };
        Judgement { rule, ..ruled }
    }

    /// What the tier does not include is replaced by what it names instead, where that can be paid.
    fn not_in_tier(&self, model: &str) -> Judgement {
        let tier = &self.tier.name;
        let mut targets = self.targets(Some(model)).filter(|target| !self.is_dearer(target, model));
        let (action, instead) = match targets.find(|target| self.is_payable(target)) {
            Some(target) => (Action::Degrade, Some(target)),
            None => (Action::Block, None),
        };
        let message = match instead {
            Some(target) => format!("The model `{model}` is not in the tier `{tier}`; use `{target}`."),
            None => format!("The model `{model}` is not in the tier `{tier}`."),
        };
        let decision = Decision { action, reason: Reason::ModelNotInTier, binding: None, message, retry_at: None };
        self.judgement(decision, self.estimate(instead.or(Some(model))), instead.or(Some(model)))
    }

    /// Whether the budgets let a call of it through.
    fn is_payable(&self, target: &str) -> bool {
        match self.estimate(Some(target)) {
            Estimate::Free => true,
            estimate @ (Estimate::Costs(_) | Estimate::Flagged | Estimate::Unknown) => {
                decide(self.budgets, estimate.amount()).action != Action::Block
            }
        }
    }

    /// Whom the tier names instead of `model`, in the order of its steps, as far as it may use them and they have a price where one is
    /// needed.
    fn targets<'m>(&'m self, model: Option<&'m str>) -> impl Iterator<Item = &'m str> {
        let allowed = |target: &&str| self.tier.models.allows(target, None, self.prices);
        self.tier.fallbacks.instead_of(model).filter(allowed).filter(|target| self.estimate(Some(target)) != Estimate::Unknown)
    }

    /// Whether `target` costs more than `model` for this call; where no tokens tell, by their prices. Of models that the book does not have,
    /// the operator knows better.
    fn is_dearer(&self, target: &str, model: &str) -> bool {
        self.compare(target, model, |target, model| model < target, |target, model| target.model.is_dearer_than(model.model))
    }

    fn costs_as_much(&self, target: &str, model: &str) -> bool {
        self.compare(target, model, |target, model| model <= target, |_, _| false)
    }

    fn compare(
        &self,
        target: &str,
        model: &str,
        by_cost: impl Fn(Money, Money) -> bool,
        by_price: impl Fn(Price<'_>, Price<'_>) -> bool,
    ) -> bool {
        let price = |model: &str| price(self.prices, self.tier, model, self.provider_of(model), self.now).map(|(price, _)| price);
        let Some((target, model)) = price(target).zip(price(model)) else { return false };
        match &self.ask.tokens {
            Some(tokens) => by_cost(target.cost(tokens, self.tier.markup), model.cost(tokens, self.tier.markup)),
            None => by_price(target, model),
        }
    }

    fn judgement(&self, decision: Decision, estimate: Estimate, model: Option<&str>) -> Judgement {
        let max_affordable_output_tokens = match (decision.action, decision.reason) {
            (Action::Degrade, _) | (Action::Block, Reason::EstimateExceedsBudget | Reason::CapReached) => self.most_output(model),
            (Action::Allow | Action::Warn | Action::Block, _) => None,
        };
        let (estimate, is_unpriced) = (estimate.amount(), estimate == Estimate::Flagged);
        let provider = model.and_then(|model| self.provider_of(model)).map(str::to_owned);
        Judgement { decision, estimate, model: model.map(str::to_owned), provider, max_affordable_output_tokens, is_unpriced, rule: None }
    }

    fn most_output(&self, model: Option<&str>) -> Option<i64> {
        let (model, tokens, budget) = (model?, self.ask.tokens.as_ref()?, most(self.budgets)?);
        let (price, _) = price(self.prices, self.tier, model, self.provider_of(model), self.now)?;
        price.most_output(tokens, budget, self.tier.markup)
    }
}

fn unknown_model(model: &str) -> Decision {
    let message = format!("The model `{model}` has no price, so its cost is not known; give estimated_cost, or add it to prices.yaml.");
    Decision { action: Action::Block, reason: Reason::UnknownModel, binding: None, message, retry_at: None }
}

fn free_model() -> Decision {
    let message = "The model costs nothing.".to_owned();
    Decision { action: Action::Allow, reason: Reason::FreeModel, binding: None, message, retry_at: None }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
