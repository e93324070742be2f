//! Holds every answer that a test gets to the description at `/openapi.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::app::Answer;

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// The description as it is served, and the schemas that were needed of it.
pub struct Description {
    pub document: Value,
    /// With the parts of each one's path.
    doors: Vec<(Door, Vec<String>)>,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
    /// What was held to it already, by a digest.
    held: Mutex<HashSet<u64>>,
}

/// A method and the template of a path.
pub type Door = (String, String);

impl Description {
    /// All services of one build have the same.
    pub async fn of(url: &str, client: &reqwest::Client) -> &'static Self {
        static DESCRIPTION: OnceCell<Description> = OnceCell::const_new();
        DESCRIPTION
            .get_or_init(async || {
                let text = client.get(url).send().await.unwrap().text().await.unwrap();
                Self::new(serde_json::from_str(&text).unwrap())
            })
            .await
    }

    fn new(document: Value) -> Self {
        let mut doors = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let described = METHODS.into_iter().filter(|method| item.get(*method).is_some());
            doors.extend(described.map(|method| ((method.to_owned(), path.clone()), path.split('/').map(str::to_owned).collect())));
        }
        // One that is written out comes before one with a part that varies.
        doors.sort_by_key(|((_, path), _): &(Door, Vec<String>)| path.matches('{').count());
        Self { document, doors, validators: Mutex::default(), held: Mutex::default() }
    }

    pub fn doors(&self) -> impl Iterator<Item = (&Door, &Value)> {
        self.doors.iter().map(|(door, _)| (door, &self.document["paths"][&door.1][&door.0]))
    }

    /// The door that `path` leads to.
    pub fn door(&self, method: &str, path: &str) -> Option<(&Door, &Value)> {
        let parts: Vec<&str> = path.split('/').collect();
        let leads = |template: &[String]| {
            let same = |(part, of): (&&str, &String)| part == of || of.starts_with('{') && !part.is_empty();
            template.len() == parts.len() && parts.iter().zip(template).all(same)
        };
        let method = method.to_ascii_lowercase();
        let (door, _) = self.doors.iter().find(|((of, _), template)| *of == method && leads(template))?;
        Some((door, &self.document["paths"][&door.1][&door.0]))
    }

    /// Checks what the door `method path` answered: its status, its content type, and its body; and that nothing is in it that is not
    /// described.
    #[track_caller]
    pub fn hold(&self, method: &str, path: &str, answer: &Answer) {
        // Whatever method and path the call on its way has, the gate answers as it does to GET; and what has another method is no door.
        let (method, path) = if path == "/v1/gate" || path.starts_with("/v1/gate/") { ("GET", "/v1/gate") } else { (method, path) };
        let told = |what: &str| format!("{method} {path}: {what}: {} {}", answer.status, answer.text);
        let Some((door, operation)) = self.door(method, path) else {
            assert!([404, 405].contains(&answer.status), "{}", told("is not in the description"));
            return;
        };
        if answer.status == 405 && door.1 != path {
            return;
        }
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{}", told("a status that is not described"));
        let content_type = answer.headers.get("content-type").map(|value| value.to_str().unwrap().split(';').next().unwrap());
        let Some(content) = response.get("content") else {
            assert!(answer.text.is_empty(), "{}", told("a body that is not described"));
            return;
        };
        let schema = content.get(content_type.unwrap_or_default()).map(|content| &content["schema"]);
        let schema = schema.unwrap_or_else(|| panic!("{}", told("a content type that is not described")));
        if !content_type.is_some_and(|kind| kind.ends_with("json")) {
            return;
        }
        let mut digest = DefaultHasher::new();
        (door, answer.status, content_type, &answer.text).hash(&mut digest);
        if !self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.finish()) {
            return;
        }
        let body = answer.json();
        let key = format!("{door:?} {} {content_type:?}", answer.status);
        let validator = self.validator(key, schema);
        let faults: Vec<String> = validator.iter_errors(&body).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{}", told(&faults.join("; ")));
        let mut unknown = BTreeSet::new();
        self.undescribed(&[schema], &body, "", &mut unknown);
        assert!(unknown.is_empty(), "{}", told(&format!("{unknown:?} are not described")));
    }

    fn validator(&self, key: String, schema: &Value) -> Arc<Validator> {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        validators.entry(key).or_insert_with(|| Arc::new(self.compiled(schema))).clone()
    }

    /// A schema of the description, which refers to others of it.
    pub fn compiled(&self, schema: &Value) -> Validator {
        let root = json!({"allOf": [schema], "components": self.document["components"]});
        jsonschema::draft202012::options().should_validate_formats(true).build(&root).unwrap()
    }

    /// What `schema` says stands for, each of several alternatives too.
    fn parts<'s>(&'s self, schema: &'s Value, parts: &mut Vec<&'s Value>) {
        if let Some(to) = schema["$ref"].as_str() {
            let target = self.document.pointer(to.trim_start_matches('#'));
            self.parts(target.unwrap_or_else(|| panic!("{to} is nowhere")), parts);
        }
        for of in ["allOf", "oneOf", "anyOf"] {
            schema[of].as_array().into_iter().flatten().for_each(|part| self.parts(part, parts));
        }
        parts.push(schema);
    }

    /// The names in `value` that none of `schemas` knows: an answer that says more than its description is a description that is old.
    fn undescribed(&self, schemas: &[&Value], value: &Value, place: &str, unknown: &mut BTreeSet<String>) {
        let mut parts = Vec::new();
        schemas.iter().for_each(|schema| self.parts(schema, &mut parts));
        match value {
            Value::Object(fields) => {
                // An object of the caller's own names nothing.
                if parts.iter().all(|part| part.get("properties").is_none() && part.get("additionalProperties").is_none()) {
                    return;
                }
                for (name, value) in fields {
                    let named = parts.iter().filter_map(|part| part["properties"].get(name));
                    let others = parts.iter().filter_map(|part| part.get("additionalProperties")).filter(|other| other.is_object());
                    let known: Vec<&Value> = named.chain(others).collect();
                    let place = format!("{place}/{name}");
                    if known.is_empty() {
                        unknown.insert(place);
                    } else {
                        self.undescribed(&known, value, &place, unknown);
                    }
                }
            }
            Value::Array(items) => {
                let of: Vec<&Value> = parts.iter().filter_map(|part| part.get("items")).collect();
                items.iter().for_each(|item| self.undescribed(&of, item, &format!("{place}/0"), unknown));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// Which doors were answered, by the address of the service: whether well, and whether with a problem.
#[derive(Default)]
pub struct Seen(Mutex<BTreeMap<(String, Door), [bool; 2]>>);

pub static SEEN: Seen = Seen(Mutex::new(BTreeMap::new()));

impl Seen {
    pub fn note(&self, service: &str, door: Door, answer: &Answer) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry((service.to_owned(), door)).or_default()[usize::from(400 <= answer.status)] = true;
    }

    /// How a door of this service was answered.
    pub fn answers(&self, service: &str, door: &Door) -> [bool; 2] {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(service.to_owned(), door.clone())).copied().unwrap_or_default()
    }
}
