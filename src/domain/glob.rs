//! Names with `*` in them, each of which stands for any text.

/// A pattern over names. Without a `*` it is the name itself; names are compared byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(String);

impl Glob {
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one name and no more.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// How much of a name it says: the one that says more is asked first.
    pub fn weight(&self) -> usize {
        self.0.bytes().filter(|byte| *byte != b'*').count()
    }

    /// In time that grows with the product of both lengths at most: no pattern makes it run away.
    pub fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        // What stands behind the last `*` is the end; what stands between two is taken where it comes first.
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let Some((_, behind)) = name.split_once(part) else { return false };
            name = behind;
        }
        name.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} {name}");
        };
        check("gpt-4o", "gpt-4o", true);
        check("gpt-4o", "gpt-4o-mini", false);
        check("gpt-4o-2024-*", "gpt-4o-2024-08-06", true);
        check("gpt-4o-2024-*", "gpt-4o-mini-2024-07-18", false);
        check("*", "", true);
        check("*-mini", "gpt-4o-mini", true);
        check("*-mini", "gpt-4o-mini-2", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "acb", false);
        check("aba*aba", "aba", false);
        check("aba*aba", "abaaba", true);
        check("**", "x", true);
        check("a*a*a*a*a*b", &"a".repeat(255), false);
    }
}
