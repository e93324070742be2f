//! The way to pay more: the page of plans, the links that lead on to Stripe, and the page that people come back to.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;
use tracing::{error, warn};
use utoipa::IntoParams;

use super::App;
use super::body::{Params, PathText};
use super::error::{ErrorCode, Problem};
use crate::domain::catalogue::Tier;
use crate::domain::user::UserId;
use crate::upgrade::{Claim, Destination, Purpose, TokenError, UpgradeError, Upgrades};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Query {
    from: Option<String>,
}

/// How long somebody waits for the page that he is led to, all questions to Stripe together. What is under way goes on,
/// and is there for who opens the link again.
const WAIT_MAX: Duration = Duration::from_secs(5);
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// `GET /upgrade`: the plans above the user's own. It is served only where tiers.yaml sends users here.
#[utoipa::path(
    get, path = "/upgrade", tag = "upgrade", operation_id = "show_plans",
    params(Query),
    responses((status = 200, description = "the plans, for people", content_type = "text/html", body = String)),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::NotFound, ErrorCode::InvalidField]))),
)]
pub async fn page(State(app): State<Arc<App>>, Params(query): Params<Query>) -> Result<Response, Problem> {
    let catalogue = &app.catalogue.load();
    if !catalogue.upgrade_url.is_below_us() {
        return Err(Problem::new(ErrorCode::NotFound, "tiers.yaml sends users to another page"));
    }
    let rank = query.from.as_deref().and_then(|name| catalogue.tier(name)).map_or(i64::MIN, |tier| tier.rank);
    let above = catalogue.tiers().iter().filter(|tier| rank < tier.rank && !tier.sold_as.is_nothing());
    let rows: String = above.map(row).collect();
    let contact =
        catalogue.contact_url.as_deref().map(|url| format!("<p><a href=\"{}\">Talk to us</a></p>", escaped(url))).unwrap_or_default();
    let body = format!(
        "<h1>You have reached the limit of your plan</h1><p>These plans give you more:</p>\
         <table><tr><th>Plan<th>A month<th>Budgets</tr>{rows}</table>{contact}"
    );
    Ok(html("Plans", &body))
}

/// `GET /upgrade/{token}`: leads on to the page of Stripe's that is right for whoever opens it. Whatever only looks at the link makes
/// nothing.
#[utoipa::path(
    get, path = "/upgrade/{token}", tag = "upgrade", operation_id = "follow_upgrade",
    params(("token" = String, Path, description = "what was signed here")),
    responses(
        (status = 200, description = "a page with the same link, for whoever only looks", content_type = "text/html", body = String),
        (status = 303, description = "on to Stripe"),
    ),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::LinkInvalid, ErrorCode::LinkExpired, ErrorCode::TooManyRequests, ErrorCode::StripeUnreachable, ErrorCode::StoreUnavailable])), ("x-problem-page" = json!(true))),
)]
pub async fn open(State(app): State<Arc<App>>, method: Method, headers: HeaderMap, PathText(token): PathText) -> Response {
    let opened = async {
        let (upgrades, claim) = read(&app, Purpose::Upgrade, &token)?;
        if method == Method::HEAD || is_prefetch(&headers) {
            // Only what was signed here is repeated.
            let link = format!("<p><a href=\"{}/upgrade/{token}\">Go on</a></p>", escaped(&app.public_url));
            return Ok(html("Upgrade", &format!("<h1>Upgrade your plan</h1>{link}")));
        }
        let (now, user) = (app.now(), claim.user.clone());
        let done = to_its_end(async move { upgrades.open(&claim, now).await }).await?;
        let to = match done.map_err(problem)? {
            Destination::Stripe(url) => url,
            Destination::Plans => plans(&app, &user).await?,
        };
        let to = HeaderValue::try_from(to).map_err(|_| interrupted())?;
        Ok((StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response())
    };
    opened.await.map_or_else(|problem: Problem| unseen(told(problem, &headers)), unseen)
}

/// `GET /billing/return/{token}`: where people come back to. They are faster than the webhook, so Stripe is asked at once; where it
/// does not answer the page says what is known. `RETURN_URL`, where it is set, stands in for the page.
#[utoipa::path(
    get, path = "/billing/return/{token}", tag = "upgrade", operation_id = "come_back",
    params(("token" = String, Path, description = "what was signed here")),
    responses(
        (status = 200, description = "the plan that the user has now, for people", content_type = "text/html", body = String),
        (status = 303, description = "on to RETURN_URL"),
    ),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::LinkInvalid, ErrorCode::LinkExpired, ErrorCode::StripeUnreachable, ErrorCode::StoreUnavailable])), ("x-problem-page" = json!(true))),
)]
pub async fn returned(State(app): State<Arc<App>>, method: Method, headers: HeaderMap, PathText(token): PathText) -> Response {
    let shown = async {
        let (upgrades, claim) = read(&app, Purpose::Return, &token)?;
        let user = claim.user.clone();
        if method != Method::HEAD && !is_prefetch(&headers) {
            let now = app.now();
            match to_its_end(async move { upgrades.returned(&claim, now).await }).await {
                Ok(Err(UpgradeError::Stripe(error))) => warn!("Stripe could not be asked about a user who is back from it: {error}"),
                Ok(done) => done.map_err(problem)?,
                Err(_) => warn!("Stripe does not answer in time about a user who is back from it"),
            }
            if let Some(to) = &app.return_url {
                let to = HeaderValue::try_from(to).map_err(|_| interrupted())?;
                return Ok((StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response());
            }
        }
        let catalogue = app.catalogue.load_full();
        let view = app.meter.view(&catalogue, &user, app.now()).await?;
        let tier = escaped(&view.standing.tier.name);
        Ok(html(
            "Your plan",
            &format!("<h1>Your plan is {tier}</h1><p>If this is not yet what you chose, load this page again in a moment.</p>"),
        ))
    };
    shown.await.map_or_else(|problem: Problem| unseen(told(problem, &headers)), unseen)
}

/// What a link says, and who follows it.
fn read(app: &App, purpose: Purpose, token: &str) -> Result<(Arc<Upgrades>, Claim), Problem> {
    let nothing = || Problem::new(ErrorCode::LinkInvalid, "without a Stripe key no links are given out");
    let upgrades = app.upgrades.clone().ok_or_else(nothing)?;
    let claim = upgrades.read(purpose, token, app.now()).map_err(|error| problem(error.into()))?;
    Ok((upgrades, claim))
}

/// Our own page of plans, for who cannot be sent to Stripe.
async fn plans(app: &App, user: &UserId) -> Result<String, Problem> {
    let catalogue = app.catalogue.load();
    let view = app.meter.view(&catalogue, user, app.now()).await?;
    let tier = &view.standing.tier.name;
    Ok(catalogue.upgrade_url.fill(&app.public_url, tier, tier, user))
}

/// Whether a browser only looks ahead.
fn is_prefetch(headers: &HeaderMap) -> bool {
    let names = ["purpose", "sec-purpose", "x-purpose", "x-moz"];
    let said = names.iter().flat_map(|name| headers.get_all(*name)).filter_map(|value| value.to_str().ok());
    said.map(str::to_ascii_lowercase).any(|said| said.contains("prefetch") || said.contains("prerender") || said.contains("preview"))
}

/// Does it to its end also where the caller goes away or has waited enough: what is made at Stripe is to be written down.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
    match tokio::time::timeout(WAIT_MAX, tokio::spawn(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) | Err(_) => Err(interrupted()),
    }
}

fn interrupted() -> Problem {
    Problem::new(ErrorCode::StripeUnreachable, "this takes longer than it should; open the link again in a moment")
}

fn problem(error: UpgradeError) -> Problem {
    match error {
        UpgradeError::Token(TokenError::Invalid) => {
            Problem::new(ErrorCode::LinkInvalid, format!("{}; go back to where it was shown for a new one", TokenError::Invalid))
        }
        UpgradeError::Token(TokenError::Expired) => {
            Problem::new(ErrorCode::LinkExpired, "the link has expired; go back to where it was shown for a new one")
        }
        UpgradeError::TooMany => Problem::new(ErrorCode::TooManyRequests, "the link was opened too often; open it again in a minute"),
        UpgradeError::Store(error) => error.into(),
        UpgradeError::Stripe(error) => {
            error!(%error, "nobody could be sent on to buy more: {error}");
            Problem::new(ErrorCode::StripeUnreachable, "Stripe, where plans are bought, does not answer; open the link again in a moment")
        }
    }
}

/// A problem as a page, since browsers open links; who asks for JSON gets it as from every other door.
fn told(problem: Problem, headers: &HeaderMap) -> Response {
    let accepts =
        |kind: &str| headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains(kind));
    let page = html(problem.title, &format!("<h1>{}</h1><p>{}.</p>", escaped(problem.title), escaped(&problem.detail)));
    let answer = problem.into_response();
    if accepts("json") && !accepts("text/html") {
        return answer;
    }
    let (mut head, _) = answer.into_parts();
    let (page, body) = page.into_parts();
    head.headers.extend(page.headers);
    Response::from_parts(head, body)
}

/// An answer that no cache keeps, and from which no other site learns the link.
fn unseen(answer: impl IntoResponse) -> Response {
    let mut answer = answer.into_response();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// A page of ours; `body` is HTML.
fn html(title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title>\
         <style>body{{font:16px system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}}td,th{{padding:.4rem 1rem .4rem 0;text-align:left}}</style>\
         {body}</html>"
    );
    let headers: [(HeaderName, &str); 3] =
        [(header::CACHE_CONTROL, "no-store"), (header::CONTENT_SECURITY_POLICY, POLICY), (header::REFERRER_POLICY, "no-referrer")];
    (headers, Html(html)).into_response()
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
