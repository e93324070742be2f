//! Goes through a condition before any request comes: do its names exist, do its kinds go together, and how much work is it at worst?

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, ListExpr, LiteralValue, SelectExpr, SourceInfo, operators};
use cel::{Context, IdedExpr};

use super::super::period::Period;
use super::super::yaml::instead;
use super::ENV;
use super::budgets::FIELDS;
use super::kinds::{self, Kind};
use super::metadata::METADATA_VALUES_MAX;

/// Names, calls, operators and constants in one condition.
const NODES_MAX: usize = 256;
/// How deep they may lie in each other: whoever judges goes down with them.
const DEPTH_MAX: usize = 24;
/// What a look through one text of 4096 bytes costs (`contains`, `size`, a conversion), in steps.
const TEXT_STEPS: u64 = 16;
/// What a comparison or a negation costs, in steps: the interpreter makes the words of its fault beforehand.
const COMPARED_STEPS: u64 = 2;
/// What a loop costs for each item, beside its condition, in steps.
const LOOP_STEPS: u64 = 4;

/// Every name, with its kind.
const NAMES: [(&str, Kind); 13] = [
    ("user.id", Kind::Text),
    ("user.account", Kind::Text),
    ("tier.name", Kind::Text),
    ("tier.rank", Kind::Int),
    ("model", Kind::Text),
    ("provider", Kind::Text),
    ("estimate", Kind::Double),
    ("input_tokens", Kind::Int),
    ("output_tokens", Kind::Int),
    ("budgets", Kind::Budgets),
    ("global", Kind::Budgets),
    ("metadata", Kind::Object),
    ("now", Kind::Time),
];

const CALENDAR: [&str; 10] = [
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];
const CONVERSIONS: [&str; 6] = ["int", "double", "string", "bool", "timestamp", "duration"];
const OF_TEXTS: [&str; 3] = ["contains", "startsWith", "endsWith"];

/// What is known of a part of the condition.
#[derive(Clone, Copy)]
struct Part {
    kind: Kind,
    /// The work at worst.
    steps: u64,
    /// The values that it may have, those within others among them. The item of a loop counts as one: all of them together have no more
    /// than what the loop goes through.
    items: u64,
    is_literal: bool,
}

impl Part {
    fn new(kind: Kind, steps: u64) -> Self {
        let items = match kind {
            Kind::Any | Kind::Object | Kind::Anys => METADATA_VALUES_MAX,
            Kind::Budgets => 5,
            Kind::Null
            | Kind::Bool
            | Kind::Int
            | Kind::Double
            | Kind::Text
            | Kind::Time
            | Kind::Span
            | Kind::Budget
            | Kind::Ints
            | Kind::Doubles
            | Kind::Texts => 1,
        };
        Self { kind, steps, items, is_literal: false }
    }

    /// What is copied into a fault where its kind does not fit after all.
    fn of_unknown_kind(&self) -> u64 {
        if self.kind == Kind::Any { self.items } else { 0 }
    }
}

/// What is told of a fault.
type Told = String;

pub(super) struct Checker<'s> {
    source: &'s SourceInfo,
    nodes: usize,
    /// The name that the loop around gives to its items, and their kind.
    item: Option<(String, Kind)>,
}

impl<'s> Checker<'s> {
    pub fn new(source: &'s SourceInfo) -> Self {
        Self { source, nodes: 0, item: None }
    }

    /// The work that the whole condition is at worst.
    pub fn condition(&mut self, expression: &IdedExpr) -> Result<u64, Told> {
        let whole = self.part(expression, 1)?;
        if !whole.kind.is_truth() {
            return Err(format!("is {}; a condition must be true or false", whole.kind.told()));
        }
        Ok(whole.steps)
    }

    /// Says where.
    fn fault<T>(&self, at: &IdedExpr, message: impl AsRef<str>) -> Result<T, Told> {
        let message = message.as_ref();
        let start = self.source.offset_for(at.id).and_then(|(start, _)| usize::try_from(start).ok());
        Err(match start.and_then(|start| self.source.source.get(..start)) {
            Some(before) => format!("{message} (at character {})", before.chars().count() + 1),
            None => message.to_owned(),
        })
    }

    fn part(&mut self, expr: &IdedExpr, depth: usize) -> Result<Part, Told> {
        self.nodes += 1;
        if NODES_MAX < self.nodes {
            return Err(format!("has more than {NODES_MAX} parts; make several rules of it"));
        }
        if DEPTH_MAX < depth {
            return self.fault(expr, format!("lies deeper than {DEPTH_MAX} in others; make several rules of it"));
        }
        match &expr.expr {
            Expr::Literal(literal) => self.literal(expr, literal),
            Expr::Ident(name) => self.name(expr, name),
            Expr::Select(select) => self.select(expr, select, depth),
            Expr::Call(call) => self.call(expr, call, depth),
            Expr::List(list) => self.list(expr, list, depth),
            Expr::Comprehension(comprehension) => self.comprehension(expr, comprehension, depth),
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => self.fault(expr, "maps and objects are not written in rules"),
        }
    }

    fn literal(&self, expr: &IdedExpr, literal: &LiteralValue) -> Result<Part, Told> {
        let kind = match literal {
            LiteralValue::Boolean(_) => Kind::Bool,
            LiteralValue::Double(_) => Kind::Double,
            LiteralValue::Int(_) => Kind::Int,
            LiteralValue::Null => Kind::Null,
            LiteralValue::String(_) => Kind::Text,
            LiteralValue::Bytes(_) => return self.fault(expr, "bytes are not used in rules; write a text"),
            LiteralValue::UInt(_) => return self.fault(expr, "unsigned numbers are not used in rules; write 1 for 1u"),
        };
        Ok(Part { is_literal: true, ..Part::new(kind, 1) })
    }

    fn name(&self, expr: &IdedExpr, name: &str) -> Result<Part, Told> {
        if let Some((_, kind)) = self.item.as_ref().filter(|(item, _)| item == name) {
            return Ok(Part { items: 1, ..Part::new(*kind, 1) });
        }
        if let Some((_, kind)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Part::new(*kind, 1));
        }
        if is_root(name) {
            let fields: Vec<&str> = NAMES.iter().map(|(known, _)| *known).filter(|known| begins_with(known, name)).collect();
            return self.fault(expr, format!("`{name}` is no value by itself; use {}", fields.join(" or ")));
        }
        let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).chain(["user", "tier"]).collect();
        self.fault(expr, format!("`{name}` is not known; {}", instead(name, &known)))
    }

    fn select(&mut self, expr: &IdedExpr, select: &SelectExpr, depth: usize) -> Result<Part, Told> {
        let field = select.field.as_str();
        if let Expr::Ident(root) = &select.operand.expr
            && is_root(root)
        {
            let whole = format!("{root}.{field}");
            if select.test {
                return self.fault(expr, format!("`{whole}` needs no has(…): it is always there, and empty where there is none"));
            }
            return self.name(expr, &whole);
        }
        let of = self.part(&select.operand, depth + 1)?;
        let kind = match of.kind {
            Kind::Any | Kind::Object => Kind::Any,
            Kind::Budgets => match Period::parse(field) {
                Some(_) => Kind::Budget,
                None => return self.fault(expr, format!("`{field}` is not a period; {}", instead(field, &Period::ALL.map(Period::name)))),
            },
            Kind::Budget if FIELDS.contains(&field) => Kind::Double,
            Kind::Budget => return self.fault(expr, format!("a budget has no `{field}`; {}", instead(field, &FIELDS))),
            Kind::Null
            | Kind::Bool
            | Kind::Int
            | Kind::Double
            | Kind::Text
            | Kind::Time
            | Kind::Span
            | Kind::Ints
            | Kind::Doubles
            | Kind::Texts
            | Kind::Anys => return self.fault(expr, format!("{} has no `{field}`", of.kind.told())),
        };
        let whole = Part::new(if select.test { Kind::Bool } else { kind }, of.steps + 1);
        Ok(Part { items: whole.items.min(of.items), ..whole })
    }

    fn list(&mut self, expr: &IdedExpr, list: &ListExpr, depth: usize) -> Result<Part, Told> {
        let mut kinds: Vec<Kind> = Vec::new();
        for element in &list.elements {
            let part = self.part(element, depth + 1)?;
            if !part.is_literal {
                return self.fault(element, "only constants are written in lists; join conditions with || instead");
            }
            kinds.push(part.kind);
        }
        let one = kinds.first().copied().filter(|first| kinds.iter().all(|kind| kind == first));
        let Ok(items) = u64::try_from(kinds.len()) else { return self.fault(expr, "has too many elements") };
        Ok(Part { items, ..Part::new(one.map_or(Kind::Anys, Kind::listed), items + 1) })
    }

    /// `exists`, `all`, `exists_one` and `filter`, which the parser has turned into loops.
    fn comprehension(&mut self, expr: &IdedExpr, comprehension: &ComprehensionExpr, depth: usize) -> Result<Part, Told> {
        if self.item.is_some() {
            return self.fault(expr, "a loop (exists, all, …) cannot stand within another");
        }
        let Some(loops) = Loop::of(comprehension) else {
            return self.fault(expr, "`map` is not used in rules; use exists, all, exists_one or filter");
        };
        let range = self.part(&comprehension.iter_range, depth + 1)?;
        let Some(item) = range.kind.item() else {
            return self.fault(expr, format!("{} is nothing to go through", range.kind.told()));
        };
        let name = comprehension.iter_var.clone();
        if is_root(&name) || NAMES.iter().any(|(known, _)| *known == name) {
            return self.fault(expr, format!("`{name}` is the name of something else; call the item in another way"));
        }
        self.item = Some((name, item));
        let condition = self.part(loops.condition, depth + 4);
        self.item = None;
        let condition = condition?;
        if !condition.kind.is_truth() {
            return self.fault(loops.condition, format!("is {}; a condition must be true or false", condition.kind.told()));
        }
        // Going through it takes a copy of each item, with whatever is in it.
        let each = condition.steps.saturating_add(LOOP_STEPS);
        let steps = range.steps.saturating_add(range.items).saturating_add(range.items.saturating_mul(each));
        let kind = if loops.keeps { item.listed() } else { Kind::Bool };
        Ok(Part { items: range.items, ..Part::new(kind, steps) })
    }

    /// A budget is asked for by the name of a period: another one is never there, and whoever wrote it would not be told.
    fn period(&self, name: &IdedExpr, of: &Part) -> Result<(), Told> {
        let Expr::Literal(LiteralValue::String(text)) = &name.expr else { return Ok(()) };
        let text = text.inner();
        if of.kind != Kind::Budgets || Period::parse(text).is_some() {
            return Ok(());
        }
        self.fault(name, format!("`{text}` is not a period; {}", instead(text, &Period::ALL.map(Period::name))))
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr, depth: usize) -> Result<Part, Told> {
        let name = call.func_name.as_str();
        let target = match &call.target {
            Some(target) => Some(self.part(target, depth + 1)?),
            None => None,
        };
        let args = call.args.iter().map(|arg| self.part(arg, depth + 1)).collect::<Result<Vec<_>, _>>()?;
        let below = target.iter().chain(&args).fold(1_u64, |sum, part| sum.saturating_add(part.steps));
        let of = |kind: Kind, more: u64| Ok(Part::new(kind, below.saturating_add(more)));
        match (name, args.as_slice(), call.args.as_slice()) {
            (operators::IN, [_, budgets], [period, _]) | (operators::INDEX, [budgets, _], [_, period]) => self.period(period, budgets)?,
            _ => {}
        }
        match (name, target, args.as_slice()) {
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                let kind = kinds::either(yes.kind, no.kind).filter(|_| condition.kind.is_truth());
                match kind {
                    Some(kind) => Ok(Part { items: yes.items.max(no.items), ..Part::new(kind, below) }),
                    None => self.fault(expr, "`? :` needs a condition, and both its answers of one kind"),
                }
            }
            (operators::LOGICAL_AND | operators::LOGICAL_OR, None, [left, right]) => {
                match [left, right].into_iter().find(|part| !part.kind.is_truth()) {
                    None => of(Kind::Bool, 0),
                    Some(part) => self.fault(expr, format!("`{}` joins conditions, not {}", sign(name), part.kind.told())),
                }
            }
            (operators::LOGICAL_NOT, None, [part]) if part.kind.is_truth() => of(Kind::Bool, COMPARED_STEPS),
            (operators::LOGICAL_NOT, None, [part]) => self.fault(expr, format!("`!` denies conditions, not {}", part.kind.told())),
            (operators::NEGATE, None, [Part { kind: kind @ (Kind::Int | Kind::Double), .. }]) => of(*kind, COMPARED_STEPS),
            (operators::NEGATE, None, [part]) => self.fault(expr, format!("`-` does not work with {}", part.kind.told())),
            (operators::EQUALS | operators::NOT_EQUALS, None, [left, right]) => {
                if kinds::may_equal(left.kind, right.kind) {
                    // A list is compared item by item; beside a number the other side is copied into a fault.
                    let copied = if left.kind == Kind::Text { 0 } else { right.of_unknown_kind() };
                    return of(Kind::Bool, left.items.min(right.items).max(copied));
                }
                let message = format!("`{}` never finds {} and {} alike", sign(name), left.kind.told(), right.kind.told());
                self.fault(expr, message)
            }
            (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, None, [left, right]) => {
                if kinds::may_order(left.kind, right.kind) {
                    return of(Kind::Bool, COMPARED_STEPS + left.of_unknown_kind() + right.of_unknown_kind());
                }
                self.fault(expr, format!("`{}` does not compare {} with {}", sign(name), left.kind.told(), right.kind.told()))
            }
            (operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, None, [left, right]) => {
                match kinds::arithmetic(sign(name), left.kind, right.kind) {
                    Some(kind) => of(kind, 0),
                    None => self.fault(expr, kinds::instead_of_arithmetic(sign(name), left.kind, right.kind)),
                }
            }
            (operators::IN, None, [left, right]) => {
                if !kinds::may_contain(left.kind, right.kind) {
                    return self.fault(expr, format!("`in` does not look for {} in {}", left.kind.told(), right.kind.told()));
                }
                // A map is asked by the key's hash, a list is gone through, each item as by `==`.
                let looked = match right.kind {
                    Kind::Object | Kind::Budgets if left.is_literal => 0,
                    Kind::Object | Kind::Budgets => TEXT_STEPS + left.of_unknown_kind(),
                    Kind::Texts => right.items,
                    Kind::Ints | Kind::Doubles | Kind::Anys | Kind::Any => right.items.saturating_mul(left.of_unknown_kind().max(1)),
                    Kind::Null | Kind::Bool | Kind::Int | Kind::Double | Kind::Text | Kind::Time | Kind::Span | Kind::Budget => 0,
                };
                of(Kind::Bool, looked)
            }
            (operators::INDEX, None, [left, right]) => match kinds::indexed(left.kind, right.kind) {
                Some(kind) => {
                    // A list goes whole into the fault of a place that is no whole number, which only a value of unknown kind can be.
                    let copied = if right.kind == Kind::Any { left.items } else { 0 };
                    let hash = if right.is_literal { 0 } else { TEXT_STEPS + copied };
                    let whole = Part::new(kind, below.saturating_add(hash));
                    Ok(Part { items: whole.items.min(left.items), ..whole })
                }
                None => self.fault(expr, format!("{} has no place that is named by {}", left.kind.told(), right.kind.told())),
            },
            ("size", None, [part]) => self.size(expr, part, below),
            ("size", Some(part), []) => self.size(expr, &part, below),
            (name, Some(text), [what]) if OF_TEXTS.contains(&name) => {
                if text.kind.is_text() && what.kind.is_text() {
                    return of(Kind::Bool, TEXT_STEPS);
                }
                self.fault(expr, format!("`{name}` looks for a text in a text, not for {} in {}", what.kind.told(), text.kind.told()))
            }
            (name, None, [part]) if CONVERSIONS.contains(&name) => match kinds::converted(name, part.kind) {
                Some(Kind::Span) if !part.is_literal => self.fault(expr, "`duration` takes a constant, as in duration(\"24h\")"),
                Some(kind @ (Kind::Time | Kind::Span)) if part.is_literal => {
                    self.constant(expr, expr)?;
                    of(kind, TEXT_STEPS)
                }
                Some(kind) => of(kind, TEXT_STEPS),
                None => self.fault(expr, format!("`{name}` does not convert {}", part.kind.told())),
            },
            (name, Some(Part { kind: Kind::Time, .. }), args) if CALENDAR.contains(&name) => match args {
                [] => of(Kind::Int, 0),
                [zone] if zone.is_literal && zone.kind == Kind::Text => {
                    self.constant(expr, &at_some_time(call))?;
                    of(Kind::Int, TEXT_STEPS)
                }
                _ => self.fault(expr, format!("`{name}` takes nothing, or a time zone such as \"Europe/Berlin\"")),
            },
            _ => self.unknown_call(expr, name, target),
        }
    }

    fn size(&self, expr: &IdedExpr, part: &Part, below: u64) -> Result<Part, Told> {
        match part.kind {
            Kind::Text | Kind::Any | Kind::Object | Kind::Ints | Kind::Doubles | Kind::Texts | Kind::Anys => {
                Ok(Part::new(Kind::Int, below.saturating_add(TEXT_STEPS)))
            }
            Kind::Null | Kind::Bool | Kind::Int | Kind::Double | Kind::Time | Kind::Span | Kind::Budgets | Kind::Budget => {
                self.fault(expr, format!("{} has no size", part.kind.told()))
            }
        }
    }

    /// What a call with nothing but constants gives is known now.
    fn constant(&self, at: &IdedExpr, call: &IdedExpr) -> Result<(), Told> {
        let context = Context::with_env(ENV.clone());
        match cel::objects::Value::resolve_val(call, &context) {
            Ok(_) => Ok(()),
            Err(error) => self.fault(at, format!("{error}")),
        }
    }

    fn unknown_call<T>(&self, expr: &IdedExpr, name: &str, target: Option<Part>) -> Result<T, Told> {
        if name == "matches" {
            return self.fault(expr, "regular expressions are not used in rules; use startsWith, endsWith or contains");
        }
        let known: Vec<&str> = if target.is_some() {
            let loops = ["size", operators::EXISTS, operators::ALL, operators::EXISTS_ONE, operators::FILTER];
            OF_TEXTS.into_iter().chain(CALENDAR).chain(loops).collect()
        } else {
            CONVERSIONS.into_iter().chain(["size", operators::HAS]).collect()
        };
        if known.contains(&name) {
            let on = target.map_or(String::new(), |part| format!(" of {}", part.kind.told()));
            return self.fault(expr, format!("`{name}`{on} is not called like this; docs/RULES.md shows how"));
        }
        self.fault(expr, format!("`{}` is not a function of rules; {}", sign(name), instead(name, &known)))
    }
}

/// What the parser made of a loop.
struct Loop<'e> {
    /// What is asked of each item.
    condition: &'e IdedExpr,
    /// Whether it keeps the items, or only says whether there are such.
    keeps: bool,
}

impl<'e> Loop<'e> {
    fn of(comprehension: &'e ComprehensionExpr) -> Option<Self> {
        let Expr::Call(step) = &comprehension.loop_step.expr else { return None };
        match (step.func_name.as_str(), step.args.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [_, condition]) => Some(Self { condition, keeps: false }),
            (operators::CONDITIONAL, [condition, step, _]) => match &comprehension.accu_init.expr {
                Expr::List(_) => is_kept(step, &comprehension.iter_var).then_some(Self { condition, keeps: true }),
                Expr::Literal(_) => Some(Self { condition, keeps: false }),
                Expr::Unspecified
                | Expr::Call(_)
                | Expr::Comprehension(_)
                | Expr::Ident(_)
                | Expr::Map(_)
                | Expr::Select(_)
                | Expr::Struct(_) => None,
            },
            _ => None,
        }
    }
}

/// Whether `step` adds the item itself to the result: `@result + [item]`.
fn is_kept(step: &IdedExpr, item: &str) -> bool {
    let Expr::Call(call) = &step.expr else { return false };
    let Some(Expr::List(added)) = call.args.get(1).map(|arg| &arg.expr) else { return false };
    matches!(added.elements.as_slice(), [one] if one.expr == Expr::Ident(item.to_owned()))
}

/// The same call of some time: whether a time zone is known does not depend on the time.
fn at_some_time(call: &CallExpr) -> IdedExpr {
    let some = Expr::Literal(LiteralValue::Int(0.into()));
    let time = CallExpr { func_name: "timestamp".to_owned(), target: None, args: vec![IdedExpr { id: 0, expr: some }] };
    let target = Some(Box::new(IdedExpr { id: 0, expr: Expr::Call(time) }));
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { target, ..call.clone() }) }
}

fn begins_with(name: &str, root: &str) -> bool {
    name.split_once('.').is_some_and(|(first, _)| first == root)
}

fn is_root(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| begins_with(known, name))
}

/// An operator as it is written: `_<=_` is `<=`.
fn sign(name: &str) -> &str {
    name.trim_matches('_')
}
