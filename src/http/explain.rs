//! Why a check is answered as it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::auth::{self, Bearer, require};
use super::body::{Params, UserPath};
use super::enforcement::Query;
use super::error::{ErrorCode, Problem};
use super::holds::HoldView;
use super::usage::EntryView;
use super::view::{BudgetView, DecisionView, Moment, judged};
use crate::domain::catalogue::Percent;
use crate::domain::decide::{Action, Binding, Budget, Decision, Reason, Scope, Source};
use crate::domain::explanation::{Estimate, reached_at};
use crate::domain::grants::Grant;
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::rules::Tried;
use crate::domain::subscription::{Explained, NamedBy, Status};
use crate::domain::user::{AccountId, TierSource, UserId};
use crate::explain::{Grounds, Stripe, counting, grounds};
use crate::meter::View;
use crate::store::inbox::{Alert, EventState, Received};
use crate::store::ledger::StoredEntry;
use crate::store::requests::Question;

#[derive(Debug, Serialize, ToSchema)]
struct ExplanationView<'a> {
    decision: DecisionView<'a>,
    /// Whether anything was ever said of this user.
    known: bool,
    tier: TierView<'a>,
    estimate: &'a Estimate<'a>,
    /// Those of the decision, in its order.
    budgets: Vec<JudgedView>,
    grants: Vec<GrantView>,
    /// Every rule of the tier, and what it says of this request.
    rules: Vec<Tried<'a>>,
    holds: Vec<HoldView>,
    more_holds: bool,
    entries: Vec<CountedView>,
}

/// A grant that can be drawn on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedGrant)]
struct GrantView {
    id: String,
    period: Period,
    amount: Money,
    used: Money,
    remaining: Money,
    ends_at: Moment,
}

impl From<&Grant> for GrantView {
    fn from(grant: &Grant) -> Self {
        let (id, period, ends_at) = (grant.id.to_string(), grant.period, Moment(grant.ends_at));
        Self { id, period, amount: grant.amount, used: grant.used, remaining: grant.left(), ends_at }
    }
}

/// The tier, and where it comes from.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedTier)]
struct TierView<'a> {
    name: &'a str,
    source: TierSource,
    /// Whose spend its budgets limit.
    scope: Scope,
    /// How many times over he has its budgets.
    seats: u64,
    account_id: Option<&'a AccountId>,
    manual: Option<ManualView<'a>>,
    /// Whoever pays for him, also where that buys nothing.
    stripe: Option<StripeView<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ManualView<'a> {
    reason: &'a str,
    set_at: Moment,
    ends_at: Option<Moment>,
    key_id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedStripe)]
struct StripeView<'a> {
    customer: &'a str,
    deleted: bool,
    /// The one that decides comes first.
    subscriptions: Vec<SubscriptionView<'a>>,
    written_at: Option<Moment>,
    last_event: Option<EventView>,
    question: Option<QuestionView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedSubscription)]
struct SubscriptionView<'a> {
    subscription: &'a str,
    decides: bool,
    status: Option<String>,
    /// What it grants now.
    grants: Option<&'a str>,
    /// What it buys, whether it is paid or not, and by which name of its item.
    buys: Option<&'a str>,
    bought_by: Option<NamedBy>,
    price: Option<&'a str>,
    lookup_key: Option<&'a str>,
    product: Option<&'a str>,
    quantity: Option<u64>,
    period_start: Option<Moment>,
    period_end: Option<Moment>,
    past_due_since: Option<Moment>,
    grace_ends_at: Option<Moment>,
    ends_at: Option<Moment>,
    pause_collection: bool,
    /// When Stripe said it.
    said_at: Moment,
    paid_at: Option<Moment>,
}

impl<'a> From<&Explained<'a>> for SubscriptionView<'a> {
    fn from(explained: &Explained<'a>) -> Self {
        let (grant, item) = (&explained.grant, explained.item);
        Self {
            subscription: explained.subscription,
            decides: explained.decides,
            status: grant.status.as_ref().map(Status::name).map(str::to_owned),
            grants: grant.tier.map(|tier| tier.name.as_str()),
            buys: explained.buys.map(|(tier, _)| tier.name.as_str()),
            bought_by: explained.buys.map(|(_, by)| by),
            price: item.and_then(|item| item.price.as_deref()),
            lookup_key: item.and_then(|item| item.lookup_key.as_deref()),
            product: item.and_then(|item| item.product.as_deref()),
            quantity: item.and_then(|item| item.quantity),
            period_start: item.and_then(|item| item.period_start).map(Moment),
            period_end: item.and_then(|item| item.period_end).map(Moment),
            past_due_since: explained.past_due_since.map(Moment),
            grace_ends_at: grant.grace_ends_at.map(Moment),
            ends_at: grant.ends_at.map(Moment),
            pause_collection: explained.collection_paused,
            said_at: Moment(explained.said_at),
            paid_at: explained.paid_at.map(Moment),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedEvent)]
struct EventView {
    event_id: String,
    #[serde(rename = "type")]
    kind: String,
    applied_at: Moment,
    state: EventState,
    effect: String,
    alerts: Vec<Alert>,
}

impl From<Received> for EventView {
    fn from(event: Received) -> Self {
        let effect = event.effect;
        Self {
            event_id: event.event_id,
            kind: event.kind,
            applied_at: Moment(event.applied_at),
            state: effect.state,
            effect: effect.sentence,
            alerts: effect.alerts,
        }
    }
}

/// How it stands with asking Stripe.
#[derive(Debug, Serialize, ToSchema)]
struct QuestionView {
    /// Its answer is our record; 0 before the first.
    answered: i64,
    tries: i64,
    due_at: Option<Moment>,
    given_up_at: Option<Moment>,
    error: Option<String>,
}

impl From<Question> for QuestionView {
    fn from(question: Question) -> Self {
        Self {
            answered: question.answered,
            tries: question.tries,
            due_at: question.due_at.map(Moment),
            given_up_at: question.given_up_at.map(Moment),
            error: question.error,
        }
    }
}

impl<'a> From<Stripe<'a>> for StripeView<'a> {
    fn from(stripe: Stripe<'a>) -> Self {
        Self {
            customer: stripe.customer,
            deleted: stripe.is_deleted,
            subscriptions: stripe.subscriptions.iter().map(SubscriptionView::from).collect(),
            written_at: stripe.written_at.map(Moment),
            last_event: stripe.last_event.map(EventView::from),
            question: stripe.question.map(QuestionView::from),
        }
    }
}

/// A part of a limit from which on something is due.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = ReachedThreshold)]
struct ThresholdView {
    pct: Percent,
    amount: Money,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReachedThresholds)]
struct ThresholdsView {
    warn: Option<ThresholdView>,
    degrade: Option<ThresholdView>,
    block: Option<ThresholdView>,
}

/// What this budget would say alone.
#[derive(Debug, Serialize, ToSchema)]
struct VerdictView {
    action: Action,
    reason: Reason,
    message: String,
    retry_at: Option<Moment>,
}

/// A budget, with what it says by itself.
#[derive(Debug, Serialize, ToSchema)]
struct JudgedView {
    #[serde(flatten)]
    budget: BudgetView,
    starts_at: Option<Moment>,
    /// What is used, with this request's estimate.
    projected: Money,
    thresholds: ThresholdsView,
    verdict: VerdictView,
    /// Whether it is the one that decided.
    binding: bool,
}

impl JudgedView {
    fn of(budget: &Budget, verdict: Decision, estimate: Money, binding: Option<Binding>) -> Self {
        let threshold = |pct: Option<Percent>| pct.map(|pct| ThresholdView { pct, amount: reached_at(budget.limit, pct) });
        let thresholds = &budget.thresholds;
        Self {
            budget: BudgetView::from(budget),
            // What never resets has no beginning either.
            starts_at: budget.window.end.map(|_| Moment(budget.window.start)),
            projected: budget.spent.saturating_add(budget.held).saturating_add(estimate),
            thresholds: ThresholdsView {
                warn: threshold(thresholds.warn),
                degrade: threshold(thresholds.degrade),
                block: threshold(thresholds.block),
            },
            verdict: VerdictView {
                action: verdict.action,
                reason: verdict.reason,
                message: verdict.message,
                retry_at: verdict.retry_at.map(Moment),
            },
            binding: binding == Some(budget.binding()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct PlaceView {
    scope: Scope,
    period: Period,
    source: Source,
}

/// An entry, and the budgets that it fills.
#[derive(Debug, Serialize, ToSchema)]
struct CountedView {
    user_id: UserId,
    #[serde(flatten)]
    entry: EntryView,
    counts_in: Vec<PlaceView>,
}

impl CountedView {
    /// By the budgets of `user`.
    fn of((user_id, entry): (UserId, StoredEntry), user: &UserId, budgets: &[Budget]) -> Self {
        let place = |budget: &Budget| PlaceView { scope: budget.scope, period: budget.period, source: budget.source };
        let counts_in = counting(budgets, entry.time, user_id != *user).map(place).collect();
        Self { user_id, counts_in, entry: EntryView::from(entry) }
    }
}

/// `GET /v1/users/{user_id}/explain`, with the parameters of a check.
#[utoipa::path(
    get, path = "/v1/users/{user_id}/explain", tag = "checks", operation_id = "explain",
    params(("user_id" = UserId, Path, description = "the application's own id, percent-encoded"), Query),
    responses((status = 200, description = "the decision, and what it rests on", body = ExplanationView<'static>)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::MissingField]))),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    key: Bearer,
    UserPath(user): UserPath,
    Params(query): Params<Query>,
) -> Result<Response, Problem> {
    require(&app, &key, auth::Scope::Check).await?;
    let ask = query.ask()?;
    let now = app.now();
    let catalogue = app.catalogue.load_full();
    let view = app.meter.view(&catalogue, &user, now).await?;
    let judgement = judged(&app, &user, &view, &ask, now);
    let binding = judgement.decision.binding;
    let grounds = grounds(&app.meter, &catalogue, &user, &view, &ask, now).await?;
    let decision = DecisionView::of(&app, &user, &view.standing, &view.budgets, judgement);
    Ok(answer(&user, decision, &view, binding, grounds, now))
}

fn answer(
    user: &UserId,
    decision: DecisionView<'_>,
    view: &View<'_>,
    binding: Option<Binding>,
    grounds: Grounds<'_>,
    now: DateTime<Utc>,
) -> Response {
    let (standing, profile) = (&view.standing, &view.payer.profile);
    let Grounds { estimate, verdicts, grants, rules, set_by, stripe, holds, more_holds, entries } = grounds;
    let amount = estimate.amount.unwrap_or_default();
    let judged = view.budgets.iter().zip(verdicts);
    let manual = profile.manual.as_ref().filter(|_| standing.source == TierSource::Manual);
    let manual = manual.map(|manual| ManualView {
        reason: &manual.reason,
        set_at: Moment(manual.set_at),
        ends_at: manual.ends_at.map(Moment),
        key_id: set_by,
    });
    Json(ExplanationView {
        decision,
        known: view.payer.exists,
        tier: TierView {
            name: &standing.tier.name,
            source: standing.source,
            scope: standing.tier.budgets.scope,
            seats: standing.seats,
            account_id: profile.account.as_ref(),
            manual,
            stripe: stripe.map(StripeView::from),
        },
        estimate: &estimate,
        budgets: judged.map(|(budget, verdict)| JudgedView::of(budget, verdict, amount, binding)).collect(),
        grants: grants.into_iter().map(GrantView::from).collect(),
        rules,
        holds: holds.iter().map(|hold| HoldView::of(hold, now)).collect(),
        more_holds,
        entries: entries.into_iter().map(|entry| CountedView::of(entry, user, &view.budgets)).collect(),
    })
    .into_response()
}
