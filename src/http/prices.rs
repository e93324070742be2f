//! What models cost, and which were asked for that have no price.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::App;
use super::auth::{Bearer, Scope, require};
use super::body::{Name, Params, Time};
use super::error::{ErrorCode, Problem};
use super::view::Moment;
use crate::domain::pricing::Rates;

/// So many models without a price are told apart; callers may invent more.
const UNPRICED_MAX: usize = 100;

/// The models that were asked for and have no price, since the service began. Nobody's silence: each is logged at its first time.
#[derive(Debug, Default)]
pub struct Unpriced(Mutex<BTreeMap<String, Seen>>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    times: u64,
    last: DateTime<Utc>,
}

impl Unpriced {
    pub fn saw(&self, model: &str, now: DateTime<Utc>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get_mut(model) {
            (known.times, known.last) = (known.times + 1, now);
        } else if seen.len() < UNPRICED_MAX {
            seen.insert(model.to_owned(), Seen { times: 1, last: now });
            warn!(model, "the model {model:?} has no price; add it to prices.yaml");
        }
    }
}

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
        let seen = app.unpriced.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unpriced = seen.into_iter().map(|(model, seen)| UnpricedView { model, times: seen.times, last_asked_at: Moment(seen.last) });
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
