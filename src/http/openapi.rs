//! The description of the doors in OpenAPI 3.1, made from the handlers themselves.
//!
//! A new door is described where it stands:
//! 1. `#[utoipa::path(post, path = "…", tag = "…", operation_id = "…", request_body = …, responses((status = 200, description = "…",
//!    body = …)), security(("bearer" = ["write"])))]` above the handler, with the scope that it requires; `security(())` where none is needed.
//!    Its doc comment becomes the description.
//! 2. `ToSchema` on what it reads and answers, `IntoParams` on a query. A name that another view has too gets `#[schema(as = …)]`. What
//!    [`crate::domain`] and [`crate::store`] say is described in [`shapes`], so that those rooms know nothing of this one.
//! 3. `extensions(("x-problem-codes" = json!([ErrorCode::…])))` for the codes that are its own. Those that follow from needing a key, from
//!    parameters and from a body are added by [`problems`], with their statuses.
//! 4. `.routes(routes!(module::handler))` in `http::doors`; handlers of one path stand in one line.
//!
//! A new code of an error needs nothing here. `tests/it/openapi.rs` names what is missing, and every answer of every test is held to
//! the description.

pub mod pages;
mod problems;
pub mod shapes;

use std::sync::LazyLock;

use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::server::Server;
use utoipa::openapi::{Components, Object, RefOr};

use super::body::{Name, Time};
use super::call::Tokens;
use super::error::Problem;
use crate::domain::decide::Action;
use crate::domain::user::{AccountId, UserId};
use crate::store::inbox::EventState;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Spendgate",
        description = "Keeps an AI product's users inside the spending limits that their Stripe plan buys. Amounts are dollars, read exactly from \
                       their decimal text; times are RFC 3339 in UTC; a field or parameter that is not known is refused by name; errors are \
                       RFC 9457 problems with a stable `code`.",
    ),
    tags(
        (name = "checks", description = "May this user spend this much? One of ALLOW, WARN, DEGRADE and BLOCK"),
        (name = "holds", description = "The two-phase way to spend: reserve the estimate, settle the actual"),
        (name = "usage", description = "What was spent"),
        (name = "users", description = "What is known of users, their own caps, and grants"),
        (name = "accounts", description = "Whom Stripe bills for several users"),
        (name = "catalogue", description = "Tiers and prices"),
        (name = "keys", description = "Who may ask, and for what"),
        (name = "stripe", description = "What Stripe said, and what it did"),
        (name = "upgrade", description = "The way to pay more; pages for people"),
        (name = "alerts", description = "What somebody should hear of without asking"),
        (name = "operation", description = "Is it alive, is it ready? And this description"),
    ),
    // Those that only parameters name.
    components(schemas(
        Problem, UserId, AccountId, Name, Time, Tokens, Action, EventState,
        shapes::Amount, shapes::Limit, shapes::Cursor, shapes::HoldState, shapes::Grouping, pages::Part,
    )),
)]
struct Head;

/// What stands before the doors.
pub fn head() -> utoipa::openapi::OpenApi {
    let mut head = Head::openapi();
    head.servers = Some(vec![Server::new("/")]);
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "An API key, `sg_…`. Each door names the scope that it needs; `admin` may do everything. `spendgate keys create` makes one.",
    ));
    let components = head.components.get_or_insert_with(Components::new);
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    head
}

/// The description as it is served.
static DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // It is made of texts and numbers, which refuse nothing.
    serde_json::to_vec(&finished(super::doors().into_openapi())).unwrap_or_default()
});

fn finished(mut api: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    for (path, item) in &mut api.paths.paths {
        for operation in operations(item) {
            tell(operation);
            problems::describe(path, operation);
        }
    }
    for schema in api.components.iter_mut().flat_map(|components| components.schemas.values_mut()) {
        require_what_is_null(schema);
    }
    api
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}

/// The summary is the operation's name; the description what the handler's comment says behind its method and path.
fn tell(operation: &mut Operation) {
    let parts = [operation.summary.take(), operation.description.take()];
    let comment = parts.into_iter().flatten().collect::<Vec<_>>().join(" ").replace('\n', " ");
    let words = match comment.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
        Some((door, rest)) if door.contains(" /") => rest.trim_start_matches([':', ',', '.', ' ']),
        _ => comment.as_str(),
    };
    operation.summary = operation.operation_id.as_deref().map(|name| capital(&name.replace('_', " ")));
    operation.description = Some(capital(words)).filter(|words| !words.is_empty());
}

fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// In answers what may be null is always there; what may be absent is never null. Requests, which know all their fields, may leave out
/// what may be null.
fn require_what_is_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => require(object),
        Schema::AllOf(all) => all.items.iter_mut().for_each(require_what_is_null),
        Schema::OneOf(one) => one.items.iter_mut().for_each(require_what_is_null),
        Schema::AnyOf(any) => any.items.iter_mut().for_each(require_what_is_null),
        Schema::Array(_) | _ => {}
    }
}

fn require(object: &mut Object) {
    if matches!(object.additional_properties.as_deref(), Some(AdditionalProperties::FreeForm(false))) {
        return;
    }
    let null = |name: &String| object.properties.get(name).is_some_and(is_nullable) && !object.required.contains(name);
    let names: Vec<String> = object.properties.keys().filter(|name| null(name)).cloned().collect();
    object.required.extend(names);
}

fn is_nullable(schema: &RefOr<Schema>) -> bool {
    let holds_null = |kind: &SchemaType| match kind {
        SchemaType::Type(kind) => *kind == Type::Null,
        SchemaType::Array(kinds) => kinds.contains(&Type::Null),
        SchemaType::AnyValue => false,
    };
    match schema {
        RefOr::T(Schema::Object(object)) => holds_null(&object.schema_type),
        RefOr::T(Schema::Array(array)) => holds_null(&array.schema_type),
        RefOr::T(Schema::OneOf(one)) => one.items.iter().any(is_nullable),
        RefOr::Ref(_) | RefOr::T(_) => false,
    }
}
