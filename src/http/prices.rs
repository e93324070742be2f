//! What models cost, and which were asked for that have no price.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{Name, Params, Time};
use super::error::{ErrorCode, Problem};
use super::view::Moment;
use crate::domain::pricing::Rates;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    model: Option<Name>,
    provider: Option<Name>,
    /// The moment whose prices are shown; now, where it is not given.
    time: Option<Time>,
}

#[derive(Debug, Serialize)]
struct AboveView {
    input_tokens: i64,
    #[serde(flatten)]
    rates: Rates,
}

/// A model's prices, in dollars per million tokens, per picture and per request.
#[derive(Debug, Serialize)]
struct PriceView {
    /// As the price book calls it.
    model: String,
    provider: Option<String>,
    valid_from: Option<NaiveDate>,
    #[serde(flatten)]
    rates: Rates,
    above: Vec<AboveView>,
}

#[derive(Debug, Serialize)]
struct UnpricedView {
    model: String,
    times: u64,
    last_asked_at: Moment,
}

#[derive(Debug, Serialize)]
struct BookView {
    as_of: Option<NaiveDate>,
    models: usize,
    /// Those that were asked for since the service began.
    unpriced: Vec<UnpricedView>,
}

/// `GET /v1/prices`: the book, or with `model` what that model costs.
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
        return Ok(Json(BookView { as_of: book.as_of, models: book.models().len(), unpriced: unpriced.collect() }).into_response());
    };
    let provider = query.provider.map(|name| name.0);
    let time = query.time.map_or_else(|| app.now(), |time| time.0);
    let Some(price) = book.price(&model, provider.as_deref(), time) else {
        let detail = format!("the model `{model}` has no price; add it to prices.yaml");
        return Err(Problem::new(ErrorCode::PriceNotFound, detail));
    };
    let prices = price.prices;
    Ok(Json(PriceView {
        model: price.model.name.clone(),
        provider: price.model.provider.clone(),
        valid_from: prices.valid_from.map(|from| from.date_naive()),
        rates: prices.base,
        above: prices.above.iter().map(|(input_tokens, rates)| AboveView { input_tokens: *input_tokens, rates: *rates }).collect(),
    })
    .into_response())
}
