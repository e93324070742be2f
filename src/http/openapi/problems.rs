//! Which problems a door can answer: its own codes, and those that follow from what it reads. The statuses are those of the one table
//! in `http::error`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Ref, Type};
use utoipa::openapi::{Content, RefOr};

use crate::http::error::ErrorCode;

/// The extension that names a door's own codes, and then all of them.
const CODES: &str = "x-problem-codes";
/// Whether its problems are pages, too, since people open it.
const PAGE: &str = "x-problem-page";

/// What any door may answer, whatever is asked of it: too much is in flight.
const ANY: [ErrorCode; 1] = [ErrorCode::Busy];
/// Whoever needs a key is asked for it, and his scopes.
const WITH_KEY: [ErrorCode; 5] = [
    ErrorCode::Unauthorized,
    ErrorCode::ForbiddenScope,
    ErrorCode::StoreUnavailable,
    // Their parameters are all read by name.
    ErrorCode::UnknownField,
    ErrorCode::InvalidField,
];
const WITH_BODY: [ErrorCode; 7] = [
    ErrorCode::UnsupportedEncoding,
    ErrorCode::MalformedJson,
    ErrorCode::BodyTimeout,
    ErrorCode::BodyTooLarge,
    ErrorCode::MissingField,
    ErrorCode::UnknownField,
    ErrorCode::InvalidField,
];

/// Adds the answers of `operation` that are problems.
pub fn describe(path: &str, operation: &mut Operation) {
    let mut extensions = operation.extensions.take().unwrap_or_default();
    let mut codes: Vec<ErrorCode> = ANY.to_vec();
    if let Some(own) = extensions.remove(CODES) {
        codes.extend(serde_json::from_value::<Vec<ErrorCode>>(own).unwrap_or_default());
    }
    let is_page = extensions.remove(PAGE).is_some();
    let needs_key = operation.security.as_ref().is_some_and(|security| security.iter().any(|needed| *needed != Default::default()));
    if needs_key {
        codes.extend(WITH_KEY);
    }
    if needs_key && operation.request_body.is_some() {
        codes.extend(WITH_BODY);
    }
    // What is not text cannot be in a path, and names nothing; a user's id says so by its own name.
    if path.split('{').skip(1).any(|part| !part.starts_with("user_id}")) {
        codes.push(ErrorCode::NotFound);
    }
    let mut by_status: BTreeMap<u16, BTreeMap<String, ErrorCode>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status().as_u16()).or_default().insert(name(code), code);
    }
    let names: Vec<Value> = by_status.values().flat_map(|codes| codes.keys()).map(|name| json!(name)).collect();
    for (status, codes) in by_status {
        let problem = response(status, &codes, is_page);
        match operation.responses.responses.get_mut(&status.to_string()) {
            // The door itself may answer this status with something else, told apart by its content type.
            Some(RefOr::T(own)) => {
                own.description = format!("{}; {}", own.description, problem.description);
                own.content.extend(problem.content);
            }
            Some(RefOr::Ref(_)) | None => drop(operation.responses.responses.insert(status.to_string(), RefOr::T(problem))),
        }
    }
    if !names.is_empty() {
        extensions.insert(CODES.to_owned(), Value::Array(names));
    }
    operation.extensions = Some(extensions).filter(|extensions| !extensions.is_empty());
}

fn name(code: ErrorCode) -> String {
    let name = json!(code);
    name.as_str().unwrap_or_default().to_owned()
}

fn response(status: u16, codes: &BTreeMap<String, ErrorCode>, is_page: bool) -> Response {
    let told: Vec<String> = codes.iter().map(|(name, code)| format!("`{name}`: {}", code.title())).collect();
    let its_codes = ObjectBuilder::new()
        .property("code", ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes.keys().cloned())))
        .property("status", ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some([status])));
    let schema = AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(its_codes);
    let response = ResponseBuilder::new().description(told.join("; ")).content("application/problem+json", Content::new(Some(schema)));
    match is_page {
        true => response.content("text/html", Content::new(Some(ObjectBuilder::new().schema_type(Type::String)))).build(),
        false => response.build(),
    }
}
