//! The page that an upgrade URL leads to where the operator has none of his own.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;

use super::App;
use super::body::Params;
use super::error::{ErrorCode, Problem};
use crate::domain::catalogue::Tier;

#[derive(Debug, Deserialize)]
pub struct Query {
    from: Option<String>,
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// `GET /upgrade`: the plans above the user's own. It is served only where tiers.yaml sends users here.
pub async fn page(State(app): State<Arc<App>>, Params(query): Params<Query>) -> Result<Response, Problem> {
    let catalogue = &app.catalogue;
    if !catalogue.upgrade_url.is_below_us() {
        return Err(Problem::new(ErrorCode::NotFound, "tiers.yaml sends users to another page"));
    }
    let rank = query.from.as_deref().and_then(|name| catalogue.tier(name)).map_or(i64::MIN, |tier| tier.rank);
    let above = catalogue.tiers().iter().filter(|tier| rank < tier.rank && !tier.sold_as.is_nothing());
    let rows: String = above.map(row).collect();
    let contact =
        catalogue.contact_url.as_deref().map(|url| format!("<p><a href=\"{}\">Talk to us</a></p>", escaped(url))).unwrap_or_default();
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Plans</title>\
         <style>body{{font:16px system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}}td,th{{padding:.4rem 1rem .4rem 0;text-align:left}}</style>\
         <h1>You have reached the limit of your plan</h1><p>These plans give you more:</p>\
         <table><tr><th>Plan<th>A month<th>Budgets</tr>{rows}</table>{contact}</html>"
    );
    let headers: [(HeaderName, &str); 3] =
        [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_SECURITY_POLICY, POLICY), (header::REFERRER_POLICY, "no-referrer")];
    Ok((headers, Html(html)).into_response())
}

fn row(tier: &Tier) -> String {
    let mut budgets = String::new();
    for (period, limit) in &tier.budgets.limits {
        // Writing to a String cannot fail.
        let _ = write!(budgets, "{limit} {} ", period.name());
    }
    format!("<tr><td>{}<td>{}<td>{}</tr>", escaped(&tier.name), tier.monthly_price, budgets.trim_end())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
