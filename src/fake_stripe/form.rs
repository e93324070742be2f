//! Form-encoded parameters with Stripe's brackets: `items[0][price]=p`, `metadata[user_id]=u`, `expand[]=customer`.

use std::collections::BTreeMap;

use super::answer::ApiError;

/// A request with more pairs is refused: nobody needs them.
const PAIRS_MAX: usize = 1000;

/// Parameters by path: `items[0][price]` is at `["items", "0", "price"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pairs: Vec<(Vec<String>, String)>,
}

impl Form {
    /// Reads a query or a body. Escapes that are not UTF-8 become replacement characters.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let pairs: Vec<_> =
            form_urlencoded::parse(text.as_bytes()).take(PAIRS_MAX + 1).map(|(key, value)| (path(&key), value.into_owned())).collect();
        if PAIRS_MAX < pairs.len() {
            return Err(ApiError::invalid("", format!("Too many parameters: at most {PAIRS_MAX} are read.")));
        }
        Ok(Self { pairs })
    }

    /// What both say; where both say something of one name, `other` has the last word.
    pub fn and(mut self, other: Self) -> Self {
        self.pairs.extend(other.pairs);
        self
    }

    /// The last value of a parameter without brackets.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.at(&[name])
    }

    /// The last value at a path.
    pub fn at(&self, wanted: &[&str]) -> Option<&str> {
        let here = |path: &[String]| path.len() == wanted.len() && path.iter().zip(wanted).all(|(a, b)| a == b);
        self.pairs.iter().rev().find(|(path, _)| here(path)).map(|(_, value)| value.as_str())
    }

    /// The value, where it is there and not empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// The value of a parameter that must be there.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.filled(name).ok_or_else(|| ApiError::missing(name))
    }

    /// Whether anything is said of `name`, with brackets or without.
    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(path, _)| path.first().is_some_and(|first| first == name))
    }

    /// What stands in the brackets of `name`: `name[a][b]` is at `a[b]` of it.
    pub fn below(&self, name: &str) -> Self {
        let inner = self.pairs.iter().filter_map(|(path, value)| match path.split_first() {
            Some((first, rest)) if first == name && !rest.is_empty() => Some((rest.to_vec(), value.clone())),
            Some(_) | None => None,
        });
        Self { pairs: inner.collect() }
    }

    /// The values of `name[]` or `name[0]`, `name[1]`, … in their order.
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut listed: Vec<(usize, String)> = Vec::new();
        for (path, value) in &self.below(name).pairs {
            if let [index] = path.as_slice() {
                listed.push((index.parse().unwrap_or(listed.len()), value.clone()));
            }
        }
        listed.sort_by_key(|(index, _)| *index);
        listed.into_iter().map(|(_, value)| value).collect()
    }

    /// The objects of a list: of `name[0][price]` and `name[0][quantity]` one with `price` and `quantity`. Without numbers
    /// (`name[][price]`) a new one begins where a field comes again.
    pub fn rows(&self, name: &str) -> Vec<Self> {
        let mut rows: BTreeMap<usize, Self> = BTreeMap::new();
        let mut unnumbered = 0;
        for (path, value) in &self.below(name).pairs {
            let Some((index, field)) = path.split_first().filter(|(_, field)| !field.is_empty()) else { continue };
            let index = index.parse().unwrap_or_else(|_| {
                if rows.get(&unnumbered).is_some_and(|row| row.pairs.iter().any(|(known, _)| known == field)) {
                    unnumbered += 1;
                }
                unnumbered
            });
            rows.entry(index).or_default().pairs.push((field.to_vec(), value.clone()));
        }
        rows.into_values().collect()
    }

    /// The pairs of a map such as `metadata[key]=value`, in the order in which they came.
    pub fn map(&self, name: &str) -> Vec<(String, String)> {
        let below = self.below(name).pairs.into_iter();
        below.filter_map(|(path, value)| if let [key] = path.as_slice() { Some((key.clone(), value)) } else { None }).collect()
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.filled(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(ApiError::invalid(name, format!("Invalid boolean: {other}"))),
        }
    }

    pub fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.filled(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::not_an_integer(name, text))
    }

    pub fn quantity(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.filled(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::not_an_integer(name, text))
    }

    /// Refuses parameters that are not in `known`, as Stripe does. Every endpoint takes `expand`.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        let mut names = self.pairs.iter().filter_map(|(path, _)| path.first());
        let stranger = names.find(|name| *name != "expand" && !known.contains(&name.as_str()));
        stranger.map_or(Ok(()), |name| Err(ApiError::unknown(name)))
    }
}

/// `a[b][]` → `a`, `b`, nothing. A key whose brackets do not close is a name as it stands.
fn path(key: &str) -> Vec<String> {
    let whole = || vec![key.to_owned()];
    let Some((name, brackets)) = key.split_once('[') else { return whole() };
    let Some(brackets) = brackets.strip_suffix(']') else { return whole() };
    let mut path = vec![name.to_owned()];
    for part in brackets.split("][") {
        if part.contains(['[', ']']) {
            return whole();
        }
        path.push(part.to_owned());
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Form {
        Form::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn brackets_make_a_path() {
        let check = |key: &str, expected: &[&str]| assert_eq!(path(key), expected, "{key}");
        check("customer", &["customer"]);
        check("expand[]", &["expand", ""]);
        check("items[0][price]", &["items", "0", "price"]);
        check("items[0][price", &["items[0][price"]);
        check("a[b[c]]", &["a[b[c]]"]);
        check("a]", &["a]"]);
        check("", &[""]);
    }

    #[test]
    fn lists_come_in_the_order_of_their_numbers() {
        assert_eq!(form("expand[]=a&expand[]=b").list("expand"), ["a", "b"]);
        assert_eq!(form("types%5B1%5D=b&types%5B0%5D=a").list("types"), ["a", "b"]);
        assert_eq!(form("types[10]=c&types[9]=b").list("types"), ["b", "c"]);
        assert!(form("types=a").list("types").is_empty());
    }

    #[test]
    fn rows_are_read_with_numbers_and_without() {
        for text in [
            "items[0][price]=a&items[0][quantity]=2&items[1][price]=b",
            "items[][price]=a&items[][quantity]=2&items[][price]=b",
            "items[1][price]=b&items[0][quantity]=2&items[0][price]=a",
        ] {
            let rows = form(text).rows("items");
            assert_eq!(rows.len(), 2, "{text}");
            assert_eq!((rows[0].get("price"), rows[0].get("quantity")), (Some("a"), Some("2")), "{text}");
            assert_eq!((rows[1].get("price"), rows[1].get("quantity")), (Some("b"), None), "{text}");
        }
        let flow = form("flow_data[subscription_update_confirm][items][0][price]=p");
        let items = flow.below("flow_data").below("subscription_update_confirm").rows("items");
        assert_eq!(items[0].get("price"), Some("p"));
    }

    #[test]
    fn values_are_judged_by_name() {
        let form = form("a=true&b=yes&c=12&d=1x&e=&metadata[k]=v+w&metadata[l]=");
        assert_eq!(form.boolean("a").ok(), Some(Some(true)));
        assert!(form.boolean("b").is_err() && form.integer("d").is_err());
        assert_eq!(form.integer("c").ok(), Some(Some(12)));
        assert_eq!((form.get("e"), form.filled("e")), (Some(""), None));
        assert_eq!(form.map("metadata"), [("k".to_owned(), "v w".to_owned()), ("l".to_owned(), String::new())]);
        assert!(form.only(&["a", "b", "c", "d", "e", "metadata"]).is_ok());
        assert!(form.only(&["a", "b", "c", "d", "e"]).is_err());
    }
}
