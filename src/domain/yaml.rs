//! Reads YAML that people write: every fault is told with its line, its column, what is wrong, and what would be right.

use std::collections::HashMap;
use std::fmt;

use marked_yaml::types::{MarkedScalarNode, Span};
use marked_yaml::{LoadError, LoaderOptions, Node, parse_yaml_with_options};

use super::money::Money;

/// A larger file is refused unread: a catalogue of a thousand tiers is smaller, and so is a book of five thousand models.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
pub(super) const NAME_BYTES_MAX: usize = 255;
/// A word this alike (Jaro-Winkler, 0 to 1) is worth asking about.
const ALIKE: f64 = 0.8;

/// One fault of the file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// Without the file's name, which the caller knows: `12:5: …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// What `text` describes, by `understand`, or all its faults in the order of the file.
pub(super) fn read<T>(text: &str, understand: impl FnOnce(&mut Reader, &Node) -> Option<T>) -> Result<T, Vec<Problem>> {
    if FILE_BYTES_MAX < text.len() {
        let message = format!("the file has {} bytes; at most {FILE_BYTES_MAX} are read", text.len());
        return Err(vec![Problem { line: 1, column: 1, message }]);
    }
    if let Some((line, _)) = text
        .lines()
        .enumerate()
        .skip_while(|(_, line)| line.starts_with('#') || line.trim().is_empty())
        .skip(1)
        .find(|(_, line)| *line == "---" || *line == "...")
    {
        let message = "a second document begins here, which would not be read; keep one".to_owned();
        return Err(vec![Problem { line: line + 1, column: 1, message }]);
    }
    let options = LoaderOptions::default().error_on_duplicate_keys(true);
    let root = parse_yaml_with_options(0, text, options).map_err(|error| vec![unreadable(&error)])?;
    let mut reader = Reader { problems: Vec::new(), rule_lines: HashMap::new() };
    match understand(&mut reader, &root) {
        Some(understood) if reader.problems.is_empty() => Ok(understood),
        _ => {
            reader.problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(reader.problems)
        }
    }
}

fn unreadable(error: &LoadError) -> Problem {
    let (at, message) = match error {
        LoadError::TopLevelMustBeMapping(at) => (*at, "the file must be a mapping from names to values".to_owned()),
        LoadError::TopLevelMustBeSequence(at) => (*at, "the file must be a mapping".to_owned()),
        LoadError::UnexpectedAnchor(at) => (*at, "anchors and aliases (&, *) are not read here; write the value out".to_owned()),
        LoadError::MappingKeyMustBeScalar(at) => (*at, "a key must be a plain word".to_owned()),
        LoadError::UnexpectedTag(at) => (*at, "tags (!) are not read here; remove it".to_owned()),
        LoadError::ScanError(at, fault) => (*at, format!("this is not YAML: {}", fault.info())),
        LoadError::DuplicateKey(keys) => {
            let first = keys.prev_key.span().start().map_or(0, |at| at.line());
            let message = format!("`{}` is given twice, first in line {first}; keep one", keys.key.as_str());
            return Problem { message, ..place(keys.key.span()) };
        }
    };
    Problem { line: at.line(), column: at.column(), message }
}

fn place(span: &Span) -> Problem {
    let (line, column) = span.start().map_or((1, 1), |at| (at.line(), at.column()));
    Problem { line, column, message: String::new() }
}

/// The values of a mapping by key; the keys are known ones.
pub(super) type Fields<'a> = HashMap<&'a str, &'a Node>;

/// Goes on after a fault, so that the operator sees all of them at once.
pub(super) struct Reader {
    problems: Vec<Problem>,
    /// The names of rules, and the line of each.
    pub(super) rule_lines: HashMap<String, usize>,
}

impl Reader {
    pub(super) fn problem(&mut self, span: &Span, message: impl Into<String>) {
        self.problems.push(Problem { message: message.into(), ..place(span) });
    }

    pub(super) fn names<'a>(&mut self, node: &'a Node, key: &str) -> Vec<&'a MarkedScalarNode> {
        let Some(items) = node.as_sequence() else {
            self.problem(node.span(), format!("`{key}` must be a list, as in `{key}: [one, two]`"));
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in items.iter() {
            if self.name(item, key).is_some() {
                names.extend(item.as_scalar());
            }
        }
        names
    }

    pub(super) fn name(&mut self, node: &Node, key: &str) -> Option<String> {
        self.parsed(node, key, |text| {
            if text.is_empty() || NAME_BYTES_MAX < text.len() || text.chars().any(char::is_control) {
                return Err(format!("must have 1 to {NAME_BYTES_MAX} bytes and no control characters"));
            }
            Ok(text.to_owned())
        })
    }

    pub(super) fn money(&mut self, node: &Node, key: &str) -> Option<Money> {
        self.parsed(node, key, |text| Money::parse(text).map_err(|error| error.to_string()))
    }

    pub(super) fn parsed<T>(&mut self, node: &Node, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let scalar = self.scalar(node, key)?;
        match parse(scalar.as_str()) {
            Ok(value) => Some(value),
            Err(why) => {
                self.problem(scalar.span(), format!("`{key}: {}` {why}", scalar.as_str()));
                None
            }
        }
    }

    pub(super) fn scalar<'a>(&mut self, node: &'a Node, key: &str) -> Option<&'a MarkedScalarNode> {
        if node.as_scalar().is_none() {
            self.problem(node.span(), format!("`{key}` must be a single value"));
        }
        node.as_scalar()
    }

    pub(super) fn mapping<'a>(
        &mut self,
        node: &'a Node,
        key: &str,
    ) -> Option<impl Iterator<Item = (&'a MarkedScalarNode, &'a Node)> + use<'a>> {
        if node.as_mapping().is_none() {
            self.problem(node.span(), format!("`{key}` must be a mapping, as in `{key}: {{ name: value }}`"));
        }
        node.as_mapping().map(|mapping| mapping.iter())
    }

    /// The mapping's values by key. An unknown key is a fault, since a misspelt limit would be no limit.
    pub(super) fn fields<'a>(&mut self, node: &'a Node, label: &str, known: &[&str]) -> Option<Fields<'a>> {
        let Some(mapping) = node.as_mapping() else {
            self.problem(node.span(), format!("{label} must be a mapping of {}", known.join(", ")));
            return None;
        };
        for (key, _) in mapping.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            self.problem(key.span(), format!("{label} has no key `{}`; {}", key.as_str(), instead(key.as_str(), known)));
        }
        Some(mapping.iter().map(|(key, node)| (key.as_str(), node)).collect())
    }
}

/// What would be right instead of `word`.
pub(super) fn instead(word: &str, known: &[&str]) -> String {
    let alike = known.iter().map(|name| (strsim::jaro_winkler(word, name), *name)).max_by(|a, b| a.0.total_cmp(&b.0));
    let list = known.join(", ");
    match alike {
        Some((likeness, name)) if ALIKE <= likeness => format!("did you mean `{name}`? Known are {list}"),
        _ => format!("use one of {list}"),
    }
}
