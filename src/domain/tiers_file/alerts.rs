//! Of which marks of its limits a tier, or all together, is told.

use super::{PERCENT_MAX, percent};
use crate::domain::alerts::{Mark, Marks};
use crate::domain::catalogue::Percent;
use crate::domain::yaml::{Fields, Reader};

impl Reader {
    /// `None` where it is faulty.
    pub(super) fn alerts(&mut self, fields: &Fields<'_>) -> Option<Marks> {
        let Some(node) = fields.get("alerts").copied() else { return Some(Marks::default()) };
        if node.as_scalar().is_some_and(|scalar| scalar.as_str() == "none") {
            return Some(Marks::new(Vec::new()));
        }
        let Some(list) = node.as_sequence() else {
            self.problem(node.span(), "`alerts` must be a list such as [warn, degrade, block, 75], or none");
            return None;
        };
        if Marks::MAX < list.len() {
            self.problem(node.span(), format!("`alerts` has {} marks; at most {} are of use", list.len(), Marks::MAX));
            return None;
        }
        let mut marks = Vec::with_capacity(list.len());
        for node in list.iter() {
            let mark = self.parsed(node, "alerts", mark)?;
            if marks.contains(&mark) {
                self.problem(node.span(), format!("`alerts: {mark}` is there twice; each mark is told once"));
                return None;
            }
            marks.push(mark);
        }
        Some(Marks::new(marks))
    }
}

fn mark(text: &str) -> Result<Mark, String> {
    match text {
        "warn" => Ok(Mark::Warn),
        "degrade" => Ok(Mark::Degrade),
        "block" => Ok(Mark::Block),
        _ => match percent(text) {
            Ok(at) if Percent::whole(1) <= at => Ok(Mark::At(at)),
            Ok(_) | Err(_) => {
                let what = format!("must be warn, degrade, block, or a percentage of the limit from 1 to {PERCENT_MAX}");
                Err(format!("{what} with at most two decimals"))
            }
        },
    }
}
