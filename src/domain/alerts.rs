//! Of which budgets somebody is told: what is used is compared with the marks of its limit after each step that adds to it.
//!
//! A mark that is reached is told whenever it is not known to be told already, not only where it is passed: so none is missed that was
//! passed unseen. That it is told once is the outbox's own matter, by the key; what a book remembers only spares it the question.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::alert::{Alert, AlertKind};
use super::book::Book;
use super::catalogue::{Budgets, Catalogue, Percent, Thresholds};
use super::decide::{Action, Binding, Budget, Decision, Reason, Scope, Source, decide};
use super::ledger::{Ledger, Payer};
use super::money::Money;
use super::period::{Period, Window, rfc3339};
use super::user::{AccountId, Standing, UserId};

/// A point of a limit of which somebody is told when what is used reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Where the policy warns, degrades, blocks; a policy that never does has no such mark.
    Warn,
    Degrade,
    Block,
    At(Percent),
}

impl Mark {
    pub fn percent(self, thresholds: Thresholds) -> Option<Percent> {
        match self {
            Self::Warn => thresholds.warn,
            Self::Degrade => thresholds.degrade,
            Self::Block => thresholds.block,
            Self::At(percent) => Some(percent),
        }
    }
}

/// `warn`, `degrade`, `block`, `75`.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Warn => f.write_str("warn"),
            Self::Degrade => f.write_str("degrade"),
            Self::Block => f.write_str("block"),
            Self::At(percent) => percent.fmt(f),
        }
    }
}

/// All marks of some budgets, in an order of their own; none is twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// More tell nobody anything.
    pub const MAX: usize = 32;

    pub fn new(mut marks: Vec<Mark>) -> Self {
        marks.sort_unstable();
        marks.dedup();
        Self(marks)
    }

    fn has(&self, mark: Mark) -> bool {
        self.0.contains(&mark)
    }

    pub fn iter(&self) -> impl Iterator<Item = Mark> {
        self.0.iter().copied()
    }

    /// Below it none is reached. `None`: none ever is.
    pub fn lowest(&self, thresholds: Thresholds) -> Option<Percent> {
        self.iter().filter_map(|mark| mark.percent(thresholds)).min()
    }
}

/// Where a file says nothing.
impl Default for Marks {
    fn default() -> Self {
        Self(vec![Mark::Warn, Mark::Degrade, Mark::Block])
    }
}

/// `warn, degrade, block`, or `none`.
impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.iter().map(|mark| mark.to_string()).collect::<Vec<_>>().join(", "))
    }
}

/// What a book remembers of what was told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    source: Source,
    period: Period,
    window: Window,
    mark: Mark,
}

impl Told {
    /// Afterwards it is of no use any more.
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        self.window.end.is_none_or(|end| now < end)
    }
}

/// A mark that is reached and not known to be told.
#[derive(Clone, Copy, Debug)]
struct Due {
    budget: Budget,
    mark: Mark,
    percent: Percent,
}

impl Due {
    fn told(&self) -> Told {
        Told { source: self.budget.source, period: self.budget.period, window: self.budget.window, mark: self.mark }
    }
}

/// Those of `marks` that `budget` has reached, as far as `book`, which fills it, does not know them to be told. A limit of 0 is full from
/// the beginning; that is no news before anything is used.
fn due<'m>(budget: &Budget, marks: &'m Marks, book: &Book) -> impl Iterator<Item = Due> + use<'m> {
    let budget = *budget;
    let reached = marks.iter().filter_map(move |mark| Some(Due { budget, mark, percent: mark.percent(budget.thresholds)? }));
    let told = book.told().to_vec();
    reached.filter(move |due| 0 < budget.used() && budget.has_reached(due.percent) && !told.contains(&due.told()))
}

/// What is due of the budgets of his tier, which `pool` fills where there is one, and of his own caps.
fn due_of(payer: &Payer, pool: Option<&Book>, standing: &Standing<'_>, now: DateTime<Utc>) -> Vec<Due> {
    let (tier, caps) = (&standing.tier.budgets, payer.profile.caps.as_deref());
    let filling = pool.unwrap_or(&payer.book);
    // Grants only add to a limit, so what is below the marks without them is below them with them.
    let of_tier = filling.may_reach(tier, standing.seats, now);
    let of_caps = caps.is_some_and(|caps| payer.book.may_reach(caps.as_budgets(), 1, now));
    if !of_tier && !of_caps {
        return Vec::new();
    }
    let budgets = payer.budgets(pool, standing, now).unwrap_or_default();
    let of = |budget: &Budget| match (budget.source, caps) {
        (Source::Cap, Some(caps)) => due(budget, &caps.as_budgets().alerts, &payer.book).collect(),
        (Source::Tier, _) => due(budget, &tier.alerts, filling).collect(),
        (Source::Cap | Source::Global, _) => Vec::new(),
    };
    budgets.iter().flat_map(of).collect()
}

/// Whether anything is due of a user whose spend counts for himself alone.
pub fn is_due(payer: &Payer, catalogue: &Catalogue, now: DateTime<Utc>) -> bool {
    !due_of(payer, None, &payer.profile.standing(catalogue, now), now).is_empty()
}

/// What is due of all users together.
fn due_of_all(all: &Book, limits: &Budgets, now: DateTime<Utc>) -> Vec<Due> {
    if !all.may_reach(limits, 1, now) {
        return Vec::new();
    }
    let budgets = all.budgets(limits, 1, None, now).unwrap_or_default();
    budgets.iter().flat_map(|budget| due(budget, &limits.alerts, all)).collect()
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug)]
enum Holder<'h> {
    User(&'h UserId, Option<&'h AccountId>),
    Account(&'h AccountId),
    All,
}

impl Holder<'_> {
    /// Everything but his name has no space in it and the name is the last, so no two keys are the same by accident or by design.
    fn key(self, told: &Told) -> String {
        let kind = match self {
            Self::User(..) => "user",
            Self::Account(_) => "account",
            Self::All => "all",
        };
        let source = match told.source {
            Source::Cap => "cap",
            Source::Tier => "tier",
            Source::Global => "global",
        };
        let start = start(told.window).unwrap_or_else(|| "ever".to_owned());
        let rest = match self {
            Self::User(user, _) => format!(" {user}"),
            Self::Account(account) => format!(" {account}"),
            Self::All => String::new(),
        };
        format!("{kind} {source} {} {start} {}{rest}", told.period.name(), told.mark)
    }
}

/// `None` where it has been open for ever.
fn start(window: Window) -> Option<String> {
    window.end.map(|_| rfc3339(window.start))
}

#[derive(Serialize)]
struct WindowDetails {
    start: Option<String>,
    end: Option<String>,
}

/// What an alert says to programs.
#[derive(Serialize)]
struct Details<'a> {
    user_id: Option<&'a str>,
    account_id: Option<&'a str>,
    tier: Option<&'a str>,
    scope: Scope,
    source: Source,
    period: Period,
    window: WindowDetails,
    threshold: String,
    percent: Percent,
    limit: Money,
    spent: Money,
    held: Money,
    used_pct: Percent,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Money>,
}

/// Hundredths of a percent, as far as they can be counted.
fn used(budget: &Budget) -> Percent {
    Percent(u32::try_from(budget.used_permille().saturating_mul(10)).unwrap_or(u32::MAX))
}

/// What a tier or a user himself calls it.
fn called(budget: &Budget, tier: Option<&str>) -> String {
    let period = match budget.period {
        Period::Daily => "daily",
        Period::Weekly => "weekly",
        Period::Monthly => "monthly",
        Period::Billing => "billing period's",
        Period::Total => "total",
    };
    let limit = budget.limit;
    match (budget.source, tier) {
        (Source::Cap, _) => format!("the {period} cap of {limit} of the user's own"),
        (Source::Tier, Some(tier)) => format!("the {period} budget of {limit} (tier {tier})"),
        (Source::Tier | Source::Global, _) => format!("the {period} budget of {limit}"),
    }
}

/// What happens next, for people.
fn resets(budget: &Budget) -> String {
    budget.window.end.map_or_else(|| "it does not reset.".to_owned(), |end| format!("it resets at {}.", rfc3339(end)))
}

/// A call that a budget did not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    binding: Binding,
    reason: Reason,
    estimate: Money,
}

impl Refused {
    /// `None` where no budget decided, or nobody wants to be told of it.
    pub fn of(decision: &Decision, estimate: Money, standing: &Standing<'_>) -> Option<Self> {
        let by_budget = matches!(decision.reason, Reason::BudgetExhausted | Reason::EstimateExceedsBudget | Reason::CapReached);
        let binding = decision.binding.filter(|_| decision.action == Action::Block && by_budget)?;
        let wanted = match binding.source {
            Source::Cap => true,
            Source::Tier => standing.tier.budgets.alerts.has(Mark::Block),
            Source::Global => standing.catalogue.global.as_ref().is_some_and(|limits| limits.alerts.has(Mark::Block)),
        };
        wanted.then_some(Self { binding, reason: decision.reason, estimate })
    }

    /// Whether it is the limit of all users together.
    pub fn is_of_all(&self) -> bool {
        self.binding.source == Source::Global
    }

    /// Whether the budget is filled by what all users of an account spend.
    pub fn is_of_tier(&self) -> bool {
        self.binding.source == Source::Tier
    }

    /// The mark of the budget that refused, where it refuses still. A limit of 0 is no news before anything is used.
    fn due(&self, budgets: &[Budget]) -> Option<Due> {
        let budget = *budgets.iter().find(|budget| budget.binding() == self.binding)?;
        let refuses = decide(&[budget], self.estimate).action == Action::Block && (budget.limit != Money::ZERO || 0 < budget.used());
        let percent = budget.thresholds.block.filter(|_| refuses)?;
        Some(Due { budget, mark: Mark::Block, percent })
    }

    /// Whether `told` of the book that fills the budget has it.
    pub fn is_told(&self, budgets: &[Budget], told: &[Told]) -> bool {
        self.due(budgets).is_none_or(|due| told.contains(&due.told()))
    }
}

fn alert(due: &Due, holder: Holder<'_>, tier: Option<&str>, action: Action, refused: Option<&Refused>, now: DateTime<Utc>) -> Alert {
    let budget = &due.budget;
    let (who, user, account) = match holder {
        Holder::User(user, account) => (format!("{user} has"), Some(user), account),
        Holder::Account(account) => (format!("The account {account} has"), None, Some(account)),
        Holder::All => ("All users together have".to_owned(), None, None),
    };
    let (what, resets) = (called(budget, tier), resets(budget));
    let message = match refused.filter(|_| !budget.has_reached(due.percent)) {
        None => format!("{who} used {} % of {what}; {resets}", used(budget)),
        Some(Refused { estimate, .. }) => {
            format!("{who} {} left of {what}, and a call of {estimate} was refused; {resets}", budget.remaining())
        }
    };
    let details = Details {
        user_id: user.map(UserId::as_str),
        account_id: account.map(AccountId::as_str),
        tier,
        scope: budget.scope,
        source: budget.source,
        period: budget.period,
        window: WindowDetails { start: start(budget.window), end: budget.window.end.map(rfc3339) },
        threshold: due.mark.to_string(),
        percent: due.percent,
        limit: budget.limit,
        spent: budget.spent,
        held: budget.held,
        used_pct: used(budget),
        action,
        reason: refused.map(|refused| refused.reason),
        estimate: refused.map(|refused| refused.estimate),
    };
    // Nothing in it can fail to be written.
    let details = serde_json::to_string(&details).unwrap_or_else(|_| "{}".to_owned());
    Alert { kind: AlertKind::BudgetThreshold, key: holder.key(&due.told()), user_id: user.cloned(), message, details, at: now }
}

impl Ledger {
    /// Notes what is to be told of the budgets of `user` after something of his was booked or held.
    pub fn tell(&mut self, user: &UserId, catalogue: &Catalogue, now: DateTime<Utc>) {
        let Some(payer) = self.payers.get(user) else { return };
        let standing = payer.profile.standing(catalogue, now);
        let pool = match payer.pool(&standing).map(|account| self.accounts.get(account)) {
            None => None,
            Some(Some(pool)) => Some(pool),
            // It is not the account in which this was spent, and says nothing new.
            Some(None) => return,
        };
        let due = due_of(payer, pool, &standing, now);
        if due.is_empty() {
            return;
        }
        let action = decide(&payer.budgets(pool, &standing, now).unwrap_or_default(), Money::ZERO).action;
        let (profile, tier) = (payer.profile.clone(), &*standing.tier.name);
        let account = profile.account.as_ref();
        let pooled = account.filter(|_| pool.is_some());
        for due in &due {
            let holder = match (due.budget.source, pooled) {
                (Source::Tier, Some(account)) => Holder::Account(account),
                (Source::Tier, None) | (Source::Cap | Source::Global, _) => Holder::User(user, account),
            };
            self.note(due, holder, Some(tier), action, None, now);
        }
    }

    /// Notes what is to be told of all users together, where all is what they spent.
    pub fn tell_of_all(&mut self, catalogue: &Catalogue, now: DateTime<Utc>) {
        let Some(limits) = &catalogue.global else { return };
        let due = due_of_all(&self.all, limits, now);
        if due.is_empty() {
            return;
        }
        let action = decide(&self.all.budgets(limits, 1, None, now).unwrap_or_default(), Money::ZERO).action;
        for due in &due {
            self.note(due, Holder::All, None, action, None, now);
        }
    }

    /// Notes that a call was refused, where nobody was told yet that its budget blocks. Of users whom nobody knows nothing is noted: who
    /// asks for a million of them leaves no trace.
    pub fn tell_refused(&mut self, user: &UserId, refused: &Refused, catalogue: &Catalogue, now: DateTime<Utc>) {
        let Some(payer) = self.payers.get(user).filter(|payer| payer.exists || refused.is_of_all()) else { return };
        let standing = payer.profile.standing(catalogue, now);
        let profile = payer.profile.clone();
        let account = profile.account.as_ref();
        let pooled = payer.pool(&standing).is_some();
        let (holder, tier) = match (refused.binding.source, account.filter(|_| pooled)) {
            (Source::Global, _) => (Holder::All, None),
            (Source::Tier, Some(account)) => (Holder::Account(account), Some(&*standing.tier.name)),
            (Source::Tier, None) | (Source::Cap, _) => (Holder::User(user, account), Some(&*standing.tier.name)),
        };
        let budgets = self.budgets(user, catalogue, now).unwrap_or_default();
        let book = match holder {
            Holder::User(..) => Some(&payer.book),
            Holder::Account(account) => self.accounts.get(account),
            Holder::All => Some(&self.all),
        };
        let is_told = book.is_none_or(|book| refused.is_told(&budgets, book.told()));
        if let Some(due) = refused.due(&budgets).filter(|_| !is_told) {
            self.note(&due, holder, tier, Action::Block, Some(refused), now);
        }
    }

    fn note(&mut self, due: &Due, holder: Holder<'_>, tier: Option<&str>, action: Action, refused: Option<&Refused>, now: DateTime<Utc>) {
        let told = due.told();
        self.alerts.push(alert(due, holder, tier, action, refused, now));
        let book = match holder {
            Holder::User(user, _) => self.payers.get_mut(user).map(|payer| &mut payer.book),
            Holder::Account(account) => self.accounts.get_mut(account),
            Holder::All => Some(&mut self.all),
        };
        if let Some(book) = book {
            book.tell(told);
        }
    }
}

#[cfg(test)]
#[path = "alerts_tests.rs"]
mod tests;
