//! A commit of which nobody knows whether it happened.

use std::collections::HashSet;

use super::writer::Replies;
use crate::domain::changes::Changes;
use crate::domain::ledger::Ledger;
use crate::domain::operation::{EntryKind, Hold};

/// A batch whose commit was sent and not answered.
pub(super) struct Doubt {
    pub changes: Changes,
    pub replies: Replies,
    /// The holds that it found.
    pub found: HashSet<String>,
}

/// What a batch has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    Nothing,
    /// What somebody is to be told, which goes to tables of its own: no proof that usage can be written.
    Notes,
    Usage,
}

impl Wrote {
    pub fn of(changes: &Changes) -> Self {
        match changes {
            _ if changes.is_empty() => Self::Nothing,
            Changes { entries, holds, corrections, .. } if entries.is_empty() && holds.is_empty() && corrections.is_empty() => Self::Notes,
            _ => Self::Usage,
        }
    }
}

impl Doubt {
    /// Whether it was committed, by what is there now. A batch is there as a whole or not at all, so one of its rows tells, if it was not
    /// there before: a record, or a hold that it made. Where it has none, each operation finds by its hold that it was done.
    pub fn is_done(&self, ledger: &Ledger) -> bool {
        let booked = self.changes.entries.iter().any(|entry| {
            let known = ledger.booked.get(&(entry.kind, entry.id.clone()));
            entry.kind != EntryKind::Capture && known == Some(&entry.booked)
        });
        let made = |hold: &&Hold| !self.found.contains(&*hold.id);
        let same = |hold: &Hold| {
            let known = ledger.holds.get(&*hold.id);
            known.is_some_and(|known| (known.created_at, known.fingerprint) == (hold.created_at, hold.fingerprint))
        };
        booked || self.changes.holds.iter().filter(made).any(same)
    }
}
