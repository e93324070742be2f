//! What answers look like.

use chrono::{DateTime, SubsecRound, Utc};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::Write;
use utoipa::ToSchema;

use super::App;
use crate::domain::catalogue::{Catalogue, Percent, Tier};
use crate::domain::decide::{Action, Binding, Budget, Decision, Reason, Scope, Source};
use crate::domain::judge::{Ask, Caller, Judgement, judge, judge_without_store};
use crate::domain::money::Money;
use crate::domain::period::{Period, with_rfc3339};
use crate::domain::subscription::Status;
use crate::domain::user::{Standing, UserId};
use crate::meter::View;

/// RFC 3339 in UTC, to the microsecond at most.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub DateTime<Utc>);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_rfc3339(self.0.trunc_subsecs(6), |text| serializer.serialize_str(text))
    }
}

/// The digits of an `i128`, a point and a decimal.
const PERMILLE_BYTES_MAX: usize = 48;

/// Tenths of a percent, written as percent: `1050` is `105.0`.
#[derive(Clone, Copy, Debug)]
struct Permille(i128);

impl Serialize for Permille {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A number of one decimal, which a float would write as it likes. Most fit 64 bits, which are quicker to write.
        let mut text = [0; PERMILLE_BYTES_MAX];
        let mut rest = text.as_mut_slice();
        let written = match i64::try_from(self.0) {
            Ok(permille) => write!(rest, "{}.{}", permille / 10, permille % 10),
            Err(_) => write!(rest, "{}.{}", self.0 / 10, self.0 % 10),
        };
        written.map_err(S::Error::custom)?;
        let unused = rest.len();
        let text = text.get(..PERMILLE_BYTES_MAX - unused).unwrap_or_default();
        serde_json::from_slice::<&RawValue>(text).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// One budget at one moment.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct BudgetView {
    scope: Scope,
    period: Period,
    source: Source,
    /// With what is granted.
    limit: Money,
    /// What grants add to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    granted: Option<Money>,
    spent: Money,
    held: Money,
    pub remaining: Money,
    #[schema(value_type = Percent)]
    used_pct: Permille,
    resets_at: Option<Moment>,
}

impl From<&Budget> for BudgetView {
    fn from(budget: &Budget) -> Self {
        Self {
            scope: budget.scope,
            period: budget.period,
            source: budget.source,
            limit: budget.limit,
            granted: Some(budget.granted).filter(|granted| *granted != Money::ZERO),
            spent: budget.spent,
            held: budget.held,
            remaining: budget.remaining(),
            used_pct: Permille(budget.used_permille()),
            resets_at: budget.window.end.map(Moment),
        }
    }
}

/// What the user would have for more money.
#[derive(Debug, Serialize, ToSchema)]
pub struct Upgrade<'c> {
    tier: &'c str,
    monthly_price: Money,
    budgets: &'c BTreeMap<Period, Money>,
}

/// What Stripe says of the user's subscription.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct SubscriptionView {
    status: Option<String>,
    ends_at: Option<Moment>,
}

impl From<&Standing<'_>> for SubscriptionView {
    fn from(standing: &Standing<'_>) -> Self {
        let grant = &standing.grant;
        Self { status: grant.status.as_ref().map(Status::name).map(str::to_owned), ends_at: grant.ends_at.map(Moment) }
    }
}

/// The answer to a check.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionView<'c> {
    user_id: UserId,
    pub tier: &'c str,
    pub action: Action,
    pub reason: Reason,
    binding: Option<Binding>,
    /// The operator's rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    rule: Option<String>,
    message: String,
    pub budgets: Vec<BudgetView>,
    /// The model to use: on DEGRADE the cheaper one, else the one that was asked for.
    pub model: Option<String>,
    /// How many tokens that model may put out for what is left, where tokens were given and a budget bounds them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    max_affordable_output_tokens: Option<i64>,
    /// The model has no price: what it uses counts nothing until it has one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unpriced: bool,
    pub retry_at: Option<Moment>,
    pub upgrade_url: Option<String>,
    upgrade: Option<Upgrade<'c>>,
    contact_url: Option<&'c str>,
    subscription: SubscriptionView,
}

impl<'c> DecisionView<'c> {
    pub fn of_view(app: &App, user: &UserId, view: &View<'c>, call: &Ask, now: DateTime<Utc>) -> Self {
        let judged = judged(app, user, view, call, now);
        app.meter.tell_refused(user, view, &judged.decision, judged.estimate, now);
        Self::of(app, user, &view.standing, &view.budgets, judged)
    }

    pub fn of(app: &App, user: &UserId, standing: &Standing<'c>, budgets: &[Budget], judged: Judgement) -> Self {
        let tier = standing.tier;
        let Judgement { decision, model, provider, max_affordable_output_tokens, is_unpriced, rule, .. } = judged;
        if let Some(rule) = rule.as_ref().filter(|rule| rule.failed) {
            app.notices.saw_failed_rule(&rule.name, &decision.message, app.now());
        }
        if is_unpriced || decision.reason == Reason::UnknownModel {
            app.notices.saw_unpriced(model.as_deref().unwrap_or_default(), app.now());
        }
        let more = More::of(app, user, standing, &decision, model.as_deref(), provider.as_deref());
        Self {
            user_id: user.clone(),
            tier: &tier.name,
            action: decision.action,
            reason: decision.reason,
            binding: decision.binding,
            rule: rule.map(|rule| rule.name),
            message: decision.message,
            budgets: budgets.iter().map(BudgetView::from).collect(),
            model,
            max_affordable_output_tokens,
            unpriced: is_unpriced,
            retry_at: decision.retry_at.map(Moment),
            upgrade_url: more.url,
            upgrade: more.upgrade,
            contact_url: more.contact_url,
            subscription: SubscriptionView::from(standing),
        }
    }

    /// His budgets cannot be read: the policy of the tier that he had when he was last seen here decides, else the default tier's.
    pub fn unread(app: &App, catalogue: &'c Catalogue, user: &UserId, call: &Ask) -> Self {
        let (profile, now) = (app.meter.last_known(user).unwrap_or_default(), app.now());
        let standing = profile.standing(catalogue, now);
        let caller = Caller { user, account: profile.account.as_ref(), tier: standing.tier };
        Self::of(app, user, &standing, &[], judge_without_store(catalogue, caller, &[], call, now))
    }

    /// Counts that this is answered.
    pub fn counted(self, app: &App) -> Self {
        app.telemetry.decisions.saw(self.tier, self.action, self.reason);
        self
    }
}

/// What the budgets say; but while nothing can be written what is spent is not counted, so where one of them blocks, the tier's policy for
/// that decides.
pub fn judged(app: &App, user: &UserId, view: &View<'_>, call: &Ask, now: DateTime<Utc>) -> Judgement {
    let hard = view.budgets.iter().any(|budget| budget.thresholds.block.is_some());
    let caller = Caller { user, account: view.payer.profile.account.as_ref(), tier: view.standing.tier };
    let judge = if hard && !app.meter.is_writable(now) { judge_without_store } else { judge };
    judge(view.standing.catalogue, caller, &view.budgets, call, now)
}

/// The way to spend more, where there is one.
#[derive(Debug, Default)]
struct More<'c> {
    url: Option<String>,
    upgrade: Option<Upgrade<'c>>,
    contact_url: Option<&'c str>,
}

impl<'c> More<'c> {
    fn of(app: &App, user: &UserId, standing: &Standing<'c>, decision: &Decision, model: Option<&str>, provider: Option<&str>) -> Self {
        let (catalogue, tier) = (standing.catalogue, standing.tier);
        // No tier lifts a budget of all users together, nor the user's own cap, so nobody is sent to pay for one.
        let source = decision.binding.map(|binding| binding.source);
        let own = source == Some(Source::Tier);
        let lacks_model = decision.reason == Reason::ModelNotInTier;
        // Whoever did not pay has the tier back once he does; only a link of ours leads to where that is done.
        let owed = standing.grant.owed.filter(|owed| tier.rank < owed.rank && leads_on(app, catalogue));
        let includes = |tier: &&Tier| model.is_none_or(|model| tier.models.allows(model, provider, &catalogue.prices));
        let next = if lacks_model {
            // A tier that does not include the model either would be bought for nothing.
            catalogue.upgrades_from(tier).find(includes)
        } else {
            owed.or_else(|| catalogue.upgrades_from(tier).next()).filter(|_| own)
        };
        match (decision.action, next) {
            (Action::Block, Some(next)) => Self {
                url: Some(link(app, user, standing, next)),
                upgrade: Some(Upgrade { tier: &next.name, monthly_price: next.monthly_price, budgets: &next.budgets.limits }),
                contact_url: None,
            },
            (Action::Block, None) if source == Some(Source::Cap) => Self::default(),
            (Action::Block, None) => Self { contact_url: catalogue.contact_url.as_deref(), ..Self::default() },
            (Action::Allow | Action::Warn | Action::Degrade, _) => Self::default(),
        }
    }
}

/// Where the user buys `next`. With a Stripe key and no page of the operator's own it is a link that leads on to Stripe, made here and
/// now without asking it.
fn link(app: &App, user: &UserId, standing: &Standing<'_>, next: &Tier) -> String {
    let upgrades = app.upgrades.as_ref().filter(|_| leads_on(app, standing.catalogue));
    let signed = upgrades.and_then(|upgrades| upgrades.link(user, &next.name, app.now()));
    signed.unwrap_or_else(|| standing.catalogue.upgrade_url.fill(&app.public_url, &standing.tier.name, &next.name, user))
}

/// Whether links lead on to Stripe.
fn leads_on(app: &App, catalogue: &Catalogue) -> bool {
    app.upgrades.is_some() && catalogue.upgrade_url.is_below_us()
}
