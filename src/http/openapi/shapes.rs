//! How values of other rooms look in JSON. What is here is described, never made: the tests hold it to what is really answered.
#![expect(dead_code, reason = "these types say what other types look like")]

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{AnyOfBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, Ref, Schema, SchemaFormat, Type};
use utoipa::openapi::{ArrayBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::alert::AlertKind;
use crate::domain::catalogue::Percent;
use crate::domain::cost::Pricing;
use crate::domain::decide::{Action, Binding, Reason, Scope, Source};
use crate::domain::difference::Difference;
use crate::domain::explanation::{Basis, Estimate};
use crate::domain::money::Money;
use crate::domain::period::Period;
use crate::domain::pricing::Rates;
use crate::domain::rules::{Tried, TriedOutcome};
use crate::domain::simulation::OfUser;
use crate::domain::subscription::NamedBy;
use crate::domain::user::{AccountId, TierSource, UserId};
use crate::http::auth::{Scope as KeyScope, Scopes as KeyScopes};
use crate::http::body::{Name, Time};
use crate::http::call::Tokens;
use crate::http::enforcement::Question;
use crate::http::error::Problem;
use crate::http::events::ShownView;
use crate::http::holds::{HoldView, STATES, TTL_MAX, Ttl};
use crate::http::key_book::{LIFETIME_SECONDS, OVERLAP_SECONDS};
use crate::http::keys::{Lifetime, Overlap};
use crate::http::usage::{MANY_MAX, Metadata, Record};
use crate::http::view::{DecisionView, Moment};
use crate::store::inbox::{Alert, EventState};
use crate::store::outbox::State as Progress;
use crate::store::reconciliation::{Drift, Fault, Phase};

/// Text without control characters, as all ids and names are.
const TEXT: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// The same, and not empty.
const ID: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";
const ID_TOLD: &str = "1 to 255 bytes of UTF-8 without control characters";
const AMOUNT_MAX: u32 = 1_000_000_000;

fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn id(told: &str) -> ObjectBuilder {
    string().min_length(Some(1)).max_length(Some(255)).pattern(Some(ID)).description(Some(told))
}

fn integer(least: u32, most: u32) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(most))
}

fn format(format: KnownFormat) -> ObjectBuilder {
    string().format(Some(SchemaFormat::KnownFormat(format)))
}

/// A bound that is far below what the document can say.
fn seconds(bound: &i64) -> u32 {
    u32::try_from(*bound).unwrap_or(u32::MAX)
}

/// As serde writes them.
fn names(all: impl IntoIterator<Item = impl Serialize>) -> ObjectBuilder {
    string().enum_values(Some(all.into_iter().map(|one| json!(one)).collect::<Vec<Value>>()))
}

/// Says how a type looks, and by which name it stands in the document.
macro_rules! looks {
    ($($type:ty, $name:literal: $schema:expr;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    )*};
}

looks! {
    UserId, "UserId": id("the application's own id of a user: 1 to 255 bytes of UTF-8 without control characters, compared byte for byte");
    AccountId, "AccountId": id(ID_TOLD);
    Name, "Name": id(ID_TOLD);
    Metadata, "Metadata": ObjectBuilder::new().description(Some("an object of the caller's own, of at most 4096 bytes"));
    Time, "Time": format(KnownFormat::DateTime).description(Some("from 1970 on"));
    Moment, "Moment": format(KnownFormat::DateTime);
    Tokens, "Tokens": integer(0, AMOUNT_MAX);
    KeyScopes, "Scopes": ArrayBuilder::new().items(names(KeyScope::ALL.map(KeyScope::name))).min_items(Some(1));
    Lifetime, "KeyLifetime": integer(seconds(LIFETIME_SECONDS.start()), seconds(LIFETIME_SECONDS.end())).description(Some("seconds"));
    Overlap, "KeyOverlap": integer(seconds(OVERLAP_SECONDS.start()), seconds(OVERLAP_SECONDS.end())).description(Some("seconds"));
    Ttl, "Ttl": integer(1, TTL_MAX).description(Some("seconds"));
    Money, "Money": ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).description(Some("dollars"));
    Percent, "Percent": ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0));
    Action, "Action": names(Action::ALL);
    Reason, "Reason": names([
        Reason::WithinBudget, Reason::WarnThreshold, Reason::DegradeThreshold, Reason::BudgetExhausted, Reason::EstimateExceedsBudget,
        Reason::ModelNotInTier, Reason::UnknownModel, Reason::FreeModel, Reason::CapReached, Reason::Rule, Reason::StoreUnavailable,
    ]);
    Scope, "Scope": names([Scope::User, Scope::Account, Scope::Global]);
    Source, "Source": names([Source::Cap, Source::Tier, Source::Global]);
    Period, "Period": names(Period::ALL);
    TierSource, "TierSource": names([TierSource::Manual, TierSource::Stripe, TierSource::Default]);
    TriedOutcome, "TriedOutcome": names([TriedOutcome::Applies, TriedOutcome::DoesNotApply, TriedOutcome::Failed]);
    NamedBy, "NamedBy": names([NamedBy::Price, NamedBy::LookupKey, NamedBy::Metadata, NamedBy::Product, NamedBy::Kept]);
    Basis, "Basis": names([Basis::Given, Basis::Tokens, Basis::Nothing]);
    EventState, "EventState": names(EventState::ALL.map(EventState::name));
    Phase, "Phase": names(Phase::ALL.map(Phase::name));
    Amount, "Amount": OneOfBuilder::new()
        .item(ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(AMOUNT_MAX)))
        .item(string().pattern(Some(r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$")))
        .description(Some("dollars, 0 to 1000000000, read exactly from their decimal text, of at most nine decimals"));
    Limit, "Limit": integer(1, 1000).description(Some("how many at most; 50 where it is not said"));
    Cursor, "Cursor": string().pattern(Some(TEXT)).description(Some("`next_cursor` of the page before, as it is"));
    Grouping, "Grouping": names(["day", "model", "day,model"]);
    AlertKindName, "AlertKind": names(AlertKind::ALL.map(AlertKind::name));
    AlertState, "AlertState": names(Progress::ALL.map(Progress::name));
    HoldState, "HoldState": names(STATES);
    GrantState, "GrantState": names(["open", "used_up", "ended", "revoked"]);
    EntryKindName, "EntryKind": names(["usage", "capture", "correction"]);
    Day, "Day": format(KnownFormat::Date);
    ModelOrNone, "ModelOrNone": ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some("null is usage that named none"));
}

/// An amount that a caller says.
pub struct Amount;
/// Of a page.
pub struct Limit;
pub struct Cursor;
/// Of sums.
pub struct Grouping;
pub struct HoldState;
pub struct AlertKindName;
/// Of an alert, and of its way to one endpoint.
pub struct AlertState;
pub struct GrantState;
pub struct EntryKindName;
pub struct Day;
pub struct ModelOrNone;

/// Says that a body is one object, or a list of them.
macro_rules! one_or_many {
    ($($many:ident: $one:ty;)*) => {$(
        pub struct $many;

        impl PartialSchema for $many {
            fn schema() -> RefOr<Schema> {
                let one = Ref::from_schema_name(<$one>::name());
                let many = ArrayBuilder::new().items(one.clone()).min_items(Some(1)).max_items(Some(MANY_MAX));
                OneOfBuilder::new().item(one).item(many).into()
            }
        }

        impl ToSchema for $many {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                schemas.push((<$one>::name().into_owned(), <$one>::schema()));
                <$one>::schemas(schemas);
            }
        }
    )*};
}

one_or_many! {
    Questions: Question;
    Records: Record;
}

/// Says that a type looks as another one does, which is described here.
macro_rules! looks_like {
    ($($type:ty: $shape:ty;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                <$shape>::schema()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                <$shape>::name()
            }

            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                <$shape>::schemas(schemas);
            }
        }
    )*};
}

looks_like! {
    Binding: BindingShape;
    Rates: RatesShape;
    Pricing<'_>: PricingShape;
    Estimate<'_>: EstimateShape;
    Tried<'_>: TriedShape;
    Difference: DifferenceShape;
    Drift: DriftShape;
    Fault: FaultShape;
    Alert: AlertShape;
    OfUser<'_>: OfUserShape;
}

/// Which budget decided.
#[derive(ToSchema)]
#[schema(as = Binding)]
struct BindingShape {
    scope: Scope,
    period: Period,
    source: Source,
}

/// Dollars per million tokens of each kind, per picture, and per request.
#[derive(ToSchema)]
#[schema(as = Rates)]
struct RatesShape {
    input: Money,
    cached_input: Money,
    cache_write: Money,
    audio_input: Money,
    output: Money,
    reasoning: Money,
    audio_output: Money,
    image: Money,
    request: Money,
}

/// The prices that were applied.
#[derive(ToSchema)]
#[schema(as = Pricing)]
struct PricingShape {
    /// As the price book calls it.
    model: String,
    /// It has no price of its own.
    #[schema(required = false)]
    price_as: bool,
    #[schema(required = false)]
    valid_from: Day,
    #[schema(required = false)]
    above_input_tokens: u64,
    #[serde(flatten)]
    rates: RatesShape,
    markup_pct: Percent,
}

#[derive(ToSchema)]
#[schema(as = Estimate)]
struct EstimateShape {
    /// Null: the model has no price.
    amount: Option<Money>,
    basis: Basis,
    pricing: Option<PricingShape>,
}

/// One rule that was tried.
#[derive(ToSchema)]
#[schema(as = TriedRule)]
struct TriedShape {
    rule: String,
    when: String,
    action: Action,
    outcome: TriedOutcome,
}

#[derive(ToSchema)]
#[schema(as = Difference)]
struct DifferenceShape {
    /// As it is written in the files: `tiers.pro.budgets.daily`.
    what: String,
    /// Null: it was not there.
    before: Option<String>,
    /// Null: it is gone.
    after: Option<String>,
}

/// A customer whom we knew otherwise than Stripe does.
#[derive(ToSchema)]
#[schema(as = Drift)]
struct DriftShape {
    customer: String,
    what: String,
}

/// A list of Stripe's that could not be read to its end.
#[derive(ToSchema)]
#[schema(as = ListFault)]
struct FaultShape {
    phase: Phase,
    what: String,
}

/// Something that somebody should look at.
#[derive(ToSchema)]
#[schema(as = Alert)]
struct AlertShape {
    /// A stable name, as `unmapped_price`.
    code: String,
    detail: String,
}

#[derive(ToSchema)]
struct FirstTold {
    at: Moment,
    reason: Reason,
    binding: Option<BindingShape>,
}

/// The calls that would have been answered with one action.
#[derive(ToSchema)]
struct Told {
    calls: u64,
    /// What they cost as recorded.
    cost: Money,
    first: Option<FirstTold>,
}

#[derive(ToSchema)]
#[schema(as = Simulated)]
struct OfUserShape {
    user_id: UserId,
    tier: String,
    tier_source: TierSource,
    worst: Action,
    calls: u64,
    spent: Money,
    would_have_spent: Money,
    /// What corrections took back of what was spent.
    corrected: Money,
    allow: Told,
    warn: Told,
    degrade: Told,
    block: Told,
    degraded_at_unknown_cost: u64,
    saved_by_degrading: Money,
}

/// Tokens of other kinds, and the prices that were applied; each where there is something to say.
#[derive(ToSchema)]
pub struct EntryDetail {
    #[schema(required = false)]
    cached_input_tokens: u64,
    #[schema(required = false)]
    cache_write_tokens: u64,
    #[schema(required = false)]
    audio_input_tokens: u64,
    #[schema(required = false)]
    reasoning_tokens: u64,
    #[schema(required = false)]
    audio_output_tokens: u64,
    #[schema(required = false)]
    images: u64,
    #[schema(required = false)]
    pricing: PricingShape,
    /// It has no price, and counts nothing.
    #[schema(required = false)]
    unpriced: bool,
}

/// A decision, and what was reserved by it.
#[derive(ToSchema)]
pub struct Reservation {
    /// Whether it was answered before.
    repeated: bool,
    /// Null where it was not admitted.
    hold: Option<HoldView>,
    #[serde(flatten)]
    decision: DecisionView<'static>,
}

/// Answers to a list: each a decision, one that was reserved by, or the problem in its place.
pub struct Answers;

/// A decision, one that was reserved by, or a list of them.
pub struct Answered;

impl PartialSchema for Answers {
    fn schema() -> RefOr<Schema> {
        let one = AnyOfBuilder::new()
            .item(Ref::from_schema_name(DecisionView::name()))
            .item(Ref::from_schema_name(Reservation::name()))
            .item(Ref::from_schema_name(Problem::name()));
        ObjectBuilder::new().property("results", ArrayBuilder::new().items(RefOr::T(Schema::from(one)))).required("results").into()
    }
}

impl ToSchema for Answers {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Answers")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend([
            (DecisionView::name().into_owned(), DecisionView::schema()),
            (Reservation::name().into_owned(), Reservation::schema()),
            (Problem::name().into_owned(), Problem::schema()),
        ]);
        DecisionView::schemas(schemas);
        Reservation::schemas(schemas);
        Problem::schemas(schemas);
    }
}

impl PartialSchema for Answered {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new()
            .item(Ref::from_schema_name(DecisionView::name()))
            .item(Ref::from_schema_name(Reservation::name()))
            .item(Ref::from_schema_name(Answers::name()))
            .into()
    }
}

impl ToSchema for Answered {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Answered")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Answers::name().into_owned(), Answers::schema()));
        Answers::schemas(schemas);
    }
}

/// What an event shows of a subscription, where it shows one.
pub struct MaybeShown;

impl PartialSchema for MaybeShown {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new().item(Ref::from_schema_name(ShownView::name())).item(ObjectBuilder::new()).into()
    }
}

impl ToSchema for MaybeShown {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ShownView::name().into_owned(), ShownView::schema()));
        ShownView::schemas(schemas);
    }
}

/// The process answers.
#[derive(ToSchema)]
pub struct Alive {
    status: String,
}

#[derive(ToSchema)]
struct StripeSync {
    /// `asked` or, without a key, `payload`.
    mode: String,
    #[schema(required = false)]
    waiting: i64,
    #[schema(required = false)]
    given_up: i64,
}

/// The store answers, and how Stripe is listened to.
#[derive(ToSchema)]
pub struct Ready {
    status: String,
    /// `writable`.
    store: String,
    /// The migration that the database has.
    schema: u64,
    webhook: String,
    stripe_sync: StripeSync,
    retried_batches: u64,
    failed_rules: std::collections::BTreeMap<String, u64>,
    tiers: u64,
}
