//! The catalogue, as the operator wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::App;
use super::auth::{self, Bearer, require};
use super::body::{NoParams, Params};
use super::error::Problem;
use crate::domain::catalogue::{Budgets, Percent, Tier};
use crate::domain::decide::Scope;
use crate::domain::money::Money;
use crate::domain::period::Period;

#[derive(Debug, Serialize, ToSchema)]
struct ThresholdsView {
    #[schema(value_type = Option<Percent>)]
    warn: Option<Box<RawValue>>,
    #[schema(value_type = Option<Percent>)]
    degrade: Option<Box<RawValue>>,
    #[schema(value_type = Option<Percent>)]
    block: Option<Box<RawValue>>,
}

impl From<&Budgets> for ThresholdsView {
    fn from(budgets: &Budgets) -> Self {
        let number = |percent: Option<Percent>| {
            let Percent(hundredths) = percent?;
            let text = match hundredths % 100 {
                0 => (hundredths / 100).to_string(),
                decimals => format!("{}.{decimals:02}", hundredths / 100),
            };
            RawValue::from_string(text).ok()
        };
        let thresholds = &budgets.thresholds;
        Self { warn: number(thresholds.warn), degrade: number(thresholds.degrade), block: number(thresholds.block) }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct DegradeView<'c> {
    models: &'c BTreeMap<String, String>,
    default: Option<&'c str>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TierView<'c> {
    tier: &'c str,
    rank: i64,
    monthly_price: Money,
    budgets: &'c BTreeMap<Period, Money>,
    /// Whose spend they limit: each user's, or that of an account's users together.
    scope: Scope,
    /// Whether the quantity that a subscription buys multiplies them.
    per_seat: bool,
    thresholds: ThresholdsView,
    degrade_to: DegradeView<'c>,
    /// What its users are told while the store is away: `block` or `allow`.
    on_store_down: &'static str,
    grace_days: u32,
    prices: &'c [String],
    lookup_keys: &'c [String],
    products: &'c [String],
}

impl<'c> From<&'c Tier> for TierView<'c> {
    fn from(tier: &'c Tier) -> Self {
        Self {
            tier: &tier.name,
            rank: tier.rank,
            monthly_price: tier.monthly_price,
            budgets: &tier.budgets.limits,
            scope: tier.budgets.scope,
            per_seat: tier.budgets.per_seat,
            thresholds: ThresholdsView::from(&tier.budgets),
            degrade_to: DegradeView { models: &tier.fallbacks.by_model, default: tier.fallbacks.default.as_deref() },
            on_store_down: tier.on_store_down.name(),
            grace_days: tier.grace_days,
            prices: &tier.sold_as.prices,
            lookup_keys: &tier.sold_as.lookup_keys,
            products: &tier.sold_as.products,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct GlobalView<'c> {
    budgets: &'c BTreeMap<Period, Money>,
    thresholds: ThresholdsView,
}

#[derive(Debug, Serialize, ToSchema)]
struct CatalogueView<'c> {
    default_tier: &'c str,
    tiers: Vec<TierView<'c>>,
    global: Option<GlobalView<'c>>,
    /// All tiers come on one page.
    next_cursor: Option<String>,
}

/// `GET /v1/tiers`, in ascending rank.
#[utoipa::path(
    get, path = "/v1/tiers", tag = "catalogue", operation_id = "list_tiers",
    responses((status = 200, description = "all tiers", body = CatalogueView<'static>)),
    security(("bearer" = ["check"])),
)]
pub async fn list(State(app): State<Arc<App>>, key: Bearer, Params(NoParams {}): Params<NoParams>) -> Result<Response, Problem> {
    require(&app, &key, auth::Scope::Check).await?;
    let catalogue = &app.catalogue.load();
    let global = catalogue.global.as_ref();
    let view = CatalogueView {
        default_tier: &catalogue.default_tier().name,
        tiers: catalogue.tiers().iter().map(TierView::from).collect(),
        global: global.map(|budgets| GlobalView { budgets: &budgets.limits, thresholds: ThresholdsView::from(budgets) }),
        next_cursor: None,
    };
    Ok(Json(view).into_response())
}
