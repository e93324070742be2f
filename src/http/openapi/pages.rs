//! The description itself, and a page to read and try it: everything that it loads is in the binary.

use std::sync::{Arc, LazyLock};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::DOCUMENT;
use crate::http::body::{NoParams, Params, PathText};
use crate::http::error::{ErrorCode, Problem};

/// It may be kept, and is asked for again each time: the next version of the service says something else under the same address.
const KEEP: &str = "no-cache";
/// Swagger UI sets styles in its elements, and draws its arrows from `data:`; it is sent nowhere but here.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Addresses are relative, so that it works below whatever path a proxy puts before it.
const PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Spendgate</title>\
                    <link rel=stylesheet href=\"docs/swagger-ui.css\"><link rel=icon href=\"data:,\"><div id=swagger-ui></div>\
                    <script src=\"docs/swagger-ui-bundle.js\"></script><script src=\"docs/start.js\"></script></html>";
/// No validator of somebody else's is asked, and a key that was typed in is forgotten with the page.
const START: &str = "SwaggerUIBundle({url: 'openapi.json', dom_id: '#swagger-ui', validatorUrl: null, deepLinking: true, \
                     tryItOutEnabled: true, persistAuthorization: false, queryConfigEnabled: false, docExpansion: 'list'});\n";

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(bytes)[..16]))
}

/// An answer that is sent once to who keeps it.
fn kept(headers: &HeaderMap, etag: &str, content_type: &'static str, bytes: &'static [u8]) -> Response {
    let mut sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let known = sent.any(|known| matches!(known.trim().trim_start_matches("W/"), "*") || known.trim().trim_start_matches("W/") == etag);
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, content_type)], bytes).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEEP));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// `GET /openapi.json`: this description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operation", operation_id = "describe",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), (status = 304, description = "it is what `If-None-Match` names")),
    security(()),
    extensions(("x-problem-codes" = json!([ErrorCode::UnknownField, ErrorCode::InvalidField]))),
)]
pub async fn document(headers: HeaderMap, Params(NoParams {}): Params<NoParams>) -> Response {
    static ETAG: LazyLock<String> = LazyLock::new(|| etag(&DOCUMENT));
    kept(&headers, &ETAG, "application/json", &DOCUMENT)
}

/// `GET /docs`: a page to read this description, and to try it with a key.
#[utoipa::path(
    get, path = "/docs", tag = "operation", operation_id = "read_description",
    responses((status = 200, description = "Swagger UI", content_type = "text/html", body = String)),
    security(()),
)]
pub async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, KEEP),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(PAGE)).into_response()
}

/// What the page loads.
#[derive(Clone, Copy, Debug, ToSchema)]
pub enum Part {
    #[schema(rename = "swagger-ui.css")]
    Style,
    #[schema(rename = "swagger-ui-bundle.js")]
    Bundle,
    #[schema(rename = "start.js")]
    Start,
}

impl Part {
    fn named(name: &str) -> Option<Self> {
        match name {
            "swagger-ui.css" => Some(Self::Style),
            "swagger-ui-bundle.js" => Some(Self::Bundle),
            "start.js" => Some(Self::Start),
            _ => None,
        }
    }
}

/// Part of Swagger UI, and its name by its bytes.
struct Kept {
    bytes: Vec<u8>,
    etag: String,
}

fn read(name: &str) -> Kept {
    let file = utoipa_swagger_ui::serve(name, Arc::new(utoipa_swagger_ui::Config::default())).ok().flatten();
    let bytes = file.map(|file| file.bytes.into_owned()).unwrap_or_default();
    Kept { etag: etag(&bytes), bytes }
}

/// `GET /docs/{part}`: what the page loads.
#[utoipa::path(
    get, path = "/docs/{part}", tag = "operation", operation_id = "load_description_page",
    params(("part" = Part, Path)),
    responses(
        (status = 200, description = "as it is in the binary", content((String = "text/css"), (String = "text/javascript"))),
        (status = 304, description = "it is what `If-None-Match` names"),
    ),
    security(()),
)]
pub async fn part(headers: HeaderMap, PathText(name): PathText) -> Result<Response, Problem> {
    static STYLE: LazyLock<Kept> = LazyLock::new(|| read("swagger-ui.css"));
    static BUNDLE: LazyLock<Kept> = LazyLock::new(|| read("swagger-ui-bundle.js"));
    static START_ETAG: LazyLock<String> = LazyLock::new(|| etag(START.as_bytes()));
    Ok(match Part::named(&name) {
        Some(Part::Style) => kept(&headers, &STYLE.etag, "text/css", &STYLE.bytes),
        Some(Part::Bundle) => kept(&headers, &BUNDLE.etag, "text/javascript", &BUNDLE.bytes),
        Some(Part::Start) => kept(&headers, &START_ETAG, "text/javascript", START.as_bytes()),
        None => return Err(Problem::new(ErrorCode::NotFound, "the page at /docs loads no such file")),
    })
}
