//! What kinds of values conditions are made of, and which of them go together: CEL's own rules as far as they are known before a request
//! comes. A value of the metadata is of any kind until then.

/// What a part of a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Int,
    Double,
    Text,
    Time,
    Span,
    /// A value of the metadata, whatever it is.
    Any,
    /// The metadata itself.
    Object,
    Budgets,
    Budget,
    Ints,
    Doubles,
    Texts,
    /// A list of whatever.
    Anys,
}

impl Kind {
    /// As it is called in a sentence.
    pub fn told(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Int => "a whole number (int)",
            Self::Double => "a number (double)",
            Self::Text => "a text",
            Self::Time => "a time",
            Self::Span => "a duration",
            Self::Any => "a value of the metadata",
            Self::Object => "the metadata as a whole",
            Self::Budgets => "all budgets",
            Self::Budget => "a budget",
            Self::Ints | Self::Doubles | Self::Texts | Self::Anys => "a list",
        }
    }

    /// The kind of what a loop over it goes through; `None` where there is none.
    pub fn item(self) -> Option<Self> {
        match self {
            Self::Ints => Some(Self::Int),
            Self::Doubles => Some(Self::Double),
            Self::Texts | Self::Object | Self::Budgets => Some(Self::Text),
            Self::Anys | Self::Any => Some(Self::Any),
            Self::Null | Self::Bool | Self::Int | Self::Double | Self::Text | Self::Time | Self::Span | Self::Budget => None,
        }
    }

    /// A list of it.
    pub fn listed(self) -> Self {
        match self {
            Self::Int => Self::Ints,
            Self::Double => Self::Doubles,
            Self::Text => Self::Texts,
            Self::Null
            | Self::Bool
            | Self::Time
            | Self::Span
            | Self::Any
            | Self::Object
            | Self::Budgets
            | Self::Budget
            | Self::Ints
            | Self::Doubles
            | Self::Texts
            | Self::Anys => Self::Anys,
        }
    }

    pub fn is_truth(self) -> bool {
        matches!(self, Self::Bool | Self::Any)
    }

    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Any)
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Double)
    }

    fn is_list(self) -> bool {
        matches!(self, Self::Ints | Self::Doubles | Self::Texts | Self::Anys)
    }

    /// What the metadata may hold.
    fn is_json(self) -> bool {
        matches!(self, Self::Null | Self::Bool | Self::Int | Self::Double | Self::Text | Self::Any) || self.is_list()
    }
}

/// Whether `==` may ever find the two alike. Numbers of both kinds are compared by their value.
pub(super) fn may_equal(left: Kind, right: Kind) -> bool {
    let single = !matches!(left, Kind::Object | Kind::Budgets | Kind::Budget);
    (left == right && single)
        || (left.is_number() && right.is_number())
        || (left.is_list() && right.is_list())
        || (left == Kind::Any && right.is_json())
        || (left.is_json() && right == Kind::Any)
}

/// Whether `<` and its like work. Numbers of both kinds are compared by their value.
pub(super) fn may_order(left: Kind, right: Kind) -> bool {
    let ordered = |kind: Kind| kind.is_number() || matches!(kind, Kind::Text | Kind::Any);
    (left.is_number() && right.is_number())
        || (left == right && matches!(left, Kind::Text | Kind::Time | Kind::Span | Kind::Any))
        || (left == Kind::Any && ordered(right))
        || (ordered(left) && right == Kind::Any)
}

/// The kind of `left operator right`; `None` where CEL has no such operator.
pub(super) fn arithmetic(operator: &str, left: Kind, right: Kind) -> Option<Kind> {
    match (operator, left, right) {
        ("+" | "-" | "*" | "/" | "%", Kind::Int, Kind::Int) => Some(Kind::Int),
        ("+" | "-" | "*" | "/", Kind::Double, Kind::Double) => Some(Kind::Double),
        ("+" | "-", Kind::Time, Kind::Span) | ("+", Kind::Span, Kind::Time) => Some(Kind::Time),
        ("+" | "-", Kind::Span, Kind::Span) | ("-", Kind::Time, Kind::Time) => Some(Kind::Span),
        _ => None,
    }
}

/// What would be right where [`arithmetic`] has nothing.
pub(super) fn instead_of_arithmetic(operator: &str, left: Kind, right: Kind) -> String {
    if left == Kind::Any || right == Kind::Any {
        return format!("`{operator}` must know the kind of a value of the metadata; write int(…) or double(…) around it");
    }
    if left.is_number() && right.is_number() && operator != "%" {
        return format!("`{operator}` does not mix int and double in CEL; write 2.0 for 2, or double(…) around the int");
    }
    if left == Kind::Text || left.is_list() {
        return format!("`{operator}` does not join texts or lists here; compare the parts");
    }
    format!("`{operator}` does not work with {} and {}", left.told(), right.told())
}

/// Whether `left in right` can be asked.
pub(super) fn may_contain(left: Kind, right: Kind) -> bool {
    match right {
        Kind::Budgets | Kind::Object => left.is_text(),
        Kind::Ints | Kind::Doubles => left.is_number() || left == Kind::Any,
        Kind::Texts => left.is_text(),
        Kind::Anys | Kind::Any => left.is_json() && !left.is_list(),
        Kind::Null | Kind::Bool | Kind::Int | Kind::Double | Kind::Text | Kind::Time | Kind::Span | Kind::Budget => false,
    }
}

/// The kind of `of[by]`; `None` where there is no such thing.
pub(super) fn indexed(of: Kind, by: Kind) -> Option<Kind> {
    match of {
        Kind::Budgets => by.is_text().then_some(Kind::Budget),
        Kind::Object => by.is_text().then_some(Kind::Any),
        Kind::Any => matches!(by, Kind::Text | Kind::Int | Kind::Any).then_some(Kind::Any),
        Kind::Ints | Kind::Doubles | Kind::Texts | Kind::Anys => matches!(by, Kind::Int | Kind::Any).then(|| of.item()).flatten(),
        Kind::Null | Kind::Bool | Kind::Int | Kind::Double | Kind::Text | Kind::Time | Kind::Span | Kind::Budget => None,
    }
}

/// The kind of `a` and `b` where either may come.
pub(super) fn either(a: Kind, b: Kind) -> Option<Kind> {
    let json = a.is_json() && b.is_json();
    if a == b { Some(a) } else { (json && (a == Kind::Any || b == Kind::Any)).then_some(Kind::Any) }
}

/// The kind of a conversion; `None` where there is none.
pub(super) fn converted(name: &str, from: Kind) -> Option<Kind> {
    match (name, from) {
        ("int", Kind::Int | Kind::Double | Kind::Text | Kind::Any | Kind::Time) => Some(Kind::Int),
        ("double", Kind::Int | Kind::Double | Kind::Text | Kind::Any) => Some(Kind::Double),
        ("string", Kind::Bool | Kind::Int | Kind::Double | Kind::Text | Kind::Any | Kind::Time | Kind::Span) => Some(Kind::Text),
        ("bool", Kind::Bool | Kind::Text | Kind::Any) => Some(Kind::Bool),
        ("timestamp", Kind::Time | Kind::Int | Kind::Text | Kind::Any) => Some(Kind::Time),
        ("duration", Kind::Text) => Some(Kind::Span),
        _ => None,
    }
}
