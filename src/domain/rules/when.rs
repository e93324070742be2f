//! The text of a condition, read, bounded and checked.

use std::{fmt, thread};

use cel::IdedExpr;
use cel::common::ast::{Expr, SelectExpr};
use cel::parser::{ParseError, Parser};

use super::check::Checker;
use super::facts::is_name;
use super::quick::Test;

/// The longest expression.
pub const EXPRESSION_BYTES_MAX: usize = 1024;
/// The parser goes down a dozen functions for each bracket. Those in texts are counted as well: no reading of texts here can differ from
/// the parser's.
const BRACKETS_MAX: usize = 32;
/// A parser without optimization takes some 200 KiB of stack for each bracket, and a thread of a test or a server has 2 MiB in all.
/// What is not touched costs nothing.
const STACK_BYTES: usize = 32 * 1024 * 1024;
/// The parser's own words are told up to here.
const FAULT_CHARS_MAX: usize = 120;
pub(super) const PANICKED: &str = "the parser gives up on this expression; write it in another way";

/// A condition that is known to be well formed, of bounded work, and true or false (or a value of the metadata, which may be).
#[derive(Clone)]
pub struct When {
    source: String,
    test: Test,
    steps: u64,
}

impl When {
    /// `Err` is a sentence for the operator.
    pub fn compile(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is empty; write a condition such as estimate > 0.05".to_owned());
        }
        if EXPRESSION_BYTES_MAX < text.len() {
            return Err(format!("has {} bytes; at most {EXPRESSION_BYTES_MAX} may be", text.len()));
        }
        let brackets = text.bytes().filter(|byte| b"([{".contains(byte)).count();
        if BRACKETS_MAX < brackets {
            return Err(format!("has {brackets} opening brackets; at most {BRACKETS_MAX} may be"));
        }
        if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
            return Err("has a control character".to_owned());
        }
        thread::scope(|scope| {
            let reader = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || Self::read(text));
            match reader {
                Ok(reader) => reader.join().unwrap_or_else(|_| Err(PANICKED.to_owned())),
                Err(error) => Err(format!("cannot be read at the moment: {error}")),
            }
        })
    }

    fn read(text: &str) -> Result<Self, String> {
        let (expression, steps) = checked(text)?;
        Ok(Self { source: text.to_owned(), test: Test::of(&expression), steps })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The work that it may take at worst.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn test(&self) -> &Test {
        &self.test
    }
}

/// An expression as the interpreter has it, and the work that it is at worst.
pub(super) fn checked(text: &str) -> Result<(IdedExpr, u64), String> {
    let parser = Parser::new().enable_optional_syntax(false);
    let (mut expression, source) = parser.parse_with_source_info(text).map_err(|errors| syntax(errors.errors.first()))?;
    let steps = Checker::new(&source).condition(&expression)?;
    join_names(&mut expression);
    Ok((expression, steps))
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// What the parser says first, without what else it would have taken: that is half of the language.
fn syntax(error: Option<&ParseError>) -> String {
    let Some(error) = error else { return PANICKED.to_owned() };
    if error.msg.contains("Recursion limit") {
        return "lies too deep in itself; make several rules of it".to_owned();
    }
    let said = error.msg.trim_start_matches("Syntax error: ").split(" expecting ").next().unwrap_or_default();
    let said: String = said.chars().filter(|c| !c.is_control()).take(FAULT_CHARS_MAX).collect();
    match error.pos {
        (1, column) => format!("is not CEL: {said} (at character {column})"),
        (line, column) => format!("is not CEL: {said} (line {line} of the expression, character {column})"),
    }
}

/// Makes one name of `tier.name` and `budgets.daily.spent`, which the interpreter would take apart and put together each time. It means the
/// same: no loop gives its items a name of these. Only what the check has let through comes here.
fn join_names(at: &mut IdedExpr) {
    match &mut at.expr {
        Expr::Select(select) => match whole_name(select) {
            Some(name) => at.expr = Expr::Ident(name),
            None => join_names(&mut select.operand),
        },
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| join_names(target));
            call.args.iter_mut().for_each(join_names);
        }
        Expr::Comprehension(comprehension) => {
            join_names(&mut comprehension.iter_range);
            join_names(&mut comprehension.loop_step);
        }
        Expr::Ident(_) | Expr::List(_) | Expr::Literal(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

fn whole_name(select: &SelectExpr) -> Option<String> {
    let mut name = format!(".{}", select.field);
    let mut of = &select.operand.expr;
    let mut test = select.test;
    while let Expr::Select(select) = of {
        name = format!(".{}{name}", select.field);
        test |= select.test;
        of = &select.operand.expr;
    }
    let Expr::Ident(root) = of else { return None };
    Some(format!("{root}{name}")).filter(|name| !test && is_name(name))
}
