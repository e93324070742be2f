//! What models cost, and which were asked for that have no price.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{Name, Params, Time};
use super::error::{ErrorCode, Problem};
use super::openapi::shapes::Day;
use super::view::Moment;
use crate::domain::pricing::Rates;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Query {
    model: Option<Name>,
    provider: Option<Name>,
    /// The moment whose prices are shown; now, where it is not given.
    time: Option<Time>,
}

#[derive(Debug, Serialize, ToSchema)]
struct AboveView {
    input_tokens: i64,
    #[serde(flatten)]
    rates: Rates,
}

/// A model's prices, in dollars per million tokens, per picture and per request.
#[derive(Debug, Serialize, ToSchema)]
struct PriceView {
    /// As the price book calls it.
    model: String,
    provider: Option<String>,
    #[schema(value_type = Option<Day>)]
    valid_from: Option<NaiveDate>,
    #[serde(flatten)]
    rates: Rates,
    above: Vec<AboveView>,
}

#[derive(Debug, Serialize, ToSchema)]
struct UnpricedView {
    model: String,
    times: u64,
    last_asked_at: Moment,
}

#[derive(Debug, Serialize, ToSchema)]
struct BookView {
    #[schema(value_type = Option<Day>)]
    as_of: Option<NaiveDate>,
    models: usize,
    /// Those that were asked for since the service began.
    unpriced: Vec<UnpricedView>,
}

/// The book, or one model of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Prices {
    Model(PriceView),
    Book(BookView),
}

/// `GET /v1/prices`: the book, or with `model` what that model costs.
#[utoipa::path(
    get, path = "/v1/prices", tag = "catalogue", operation_id = "show_prices",
    params(Query),
    responses((status = 200, description = "the book, or one model of it", body = Prices)),
    security(("bearer" = ["check"])),
    extensions(("x-problem-codes" = json!([ErrorCode::PriceNotFound]))),
)]
pub async fn show(State(app): State<Arc<App>>, key: Bearer, Params(query): Params<Query>) -> Result<Response, Problem> {
    require(&app, &key, Scope::Check).await?;
    let catalogue = app.catalogue.load_full();
    let book = &catalogue.prices;
    let Some(Name(model)) = query.model else {
        let unpriced = app.notices.unpriced.all().into_iter().map(|(model, seen)| UnpricedView {
            model,
            times: seen.times,
            last_asked_at: Moment(seen.last),
        });
        return Ok(
            Json(Prices::Book(BookView { as_of: book.as_of, models: book.models().len(), unpriced: unpriced.collect() })).into_response()
        );
    };
    let provider = query.provider.map(|name| name.0);
    let time = query.time.map_or_else(|| app.now(), |time| time.0);
    let Some(price) = book.price(&model, provider.as_deref(), time) else {
        let detail = format!("the model `{model}` has no price; add it to prices.yaml");
        return Err(Problem::new(ErrorCode::PriceNotFound, detail));
    };
    let prices = price.prices;
    Ok(Json(Prices::Model(PriceView {
        model: price.model.name.clone(),
        provider: price.model.provider.clone(),
        valid_from: prices.valid_from.map(|from| from.date_naive()),
        rates: prices.base,
        above: prices.above.iter().map(|(input_tokens, rates)| AboveView { input_tokens: *input_tokens, rates: *rates }).collect(),
    }))
    .into_response())
}
