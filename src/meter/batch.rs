//! A batch of operations: what it names, and how each is done.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::{Present, Reply, Request, WriteError};
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::{DayOfModel, Ledger, Payer, SpentIn};
use crate::domain::operation::{EntryKind, Hold, Judged, Operation, Outcome};
use crate::domain::user::{AccountId, UserId};

/// Records in one commit; more only lengthens the slowest answer.
pub const BATCH_MAX: usize = 4096;

/// Does one operation of a batch.
pub fn step(ledger: &mut Ledger, request: &Request, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Reply, WriteError> {
    let outcome = ledger.step(&request.operation, catalogue, now)?;
    let (Operation::Hold(ask), Some(present)) = (&request.operation, &request.present) else {
        return Ok(Reply { outcome, answer: None });
    };
    let answer = match &outcome {
        Outcome::Held { hold, judged: None, .. } => hold.answer.clone(),
        Outcome::Held { hold, judged: Some(judged), .. } => {
            let answer = present_with(catalogue, ledger, present, Some(hold), &ask.user_id, judged, now);
            if let Some(hold) = ledger.holds.get_mut(&ask.id) {
                hold.answer.clone_from(&answer);
            }
            answer
        }
        Outcome::NotHeld { judged } => present_with(catalogue, ledger, present, None, &ask.user_id, judged, now),
        Outcome::Recorded(_) | Outcome::Ended { .. } | Outcome::Extended(_) | Outcome::Corrected(_) | Outcome::Told => String::new(),
    };
    Ok(Reply { outcome, answer: Some(answer) })
}

fn present_with(
    catalogue: &Catalogue,
    ledger: &Ledger,
    present: &Present,
    hold: Option<&Hold>,
    user: &UserId,
    judged: &Judged,
    now: DateTime<Utc>,
) -> String {
    let profile = ledger.payers.get(user).map(|payer| payer.profile.clone()).unwrap_or_default();
    present(hold, &profile.standing(catalogue, now), judged)
}

pub fn size(operation: &Operation) -> usize {
    match operation {
        Operation::Record(usages) => usages.len(),
        Operation::Hold(_)
        | Operation::Capture { .. }
        | Operation::Release { .. }
        | Operation::Extend { .. }
        | Operation::Correct(_)
        | Operation::Tell { .. } => 1,
    }
}

/// The hold that an operation names.
pub fn hold_id(operation: &Operation) -> Option<&str> {
    match operation {
        Operation::Hold(ask) => Some(&ask.id),
        Operation::Capture { hold_id, .. } | Operation::Release { hold_id } | Operation::Extend { hold_id, .. } => Some(hold_id),
        Operation::Record(_) | Operation::Correct(_) | Operation::Tell { .. } => None,
    }
}

/// The ids under which an operation may find that it was booked before.
pub fn entry_ids(operation: &Operation) -> Vec<(EntryKind, &str)> {
    match operation {
        Operation::Record(usages) => usages.iter().map(|usage| (EntryKind::Usage, usage.id.as_str())).collect(),
        Operation::Correct(correction) => vec![(EntryKind::Correction, &correction.id)],
        // A hold knows its own end.
        Operation::Hold(_) | Operation::Capture { .. } | Operation::Release { .. } | Operation::Extend { .. } | Operation::Tell { .. } => {
            Vec::new()
        }
    }
}

pub fn users(batch: &[Request], holds: &HashMap<String, Hold>) -> HashSet<UserId> {
    let of = |request: &Request| match &request.operation {
        Operation::Record(usages) => usages.iter().map(|usage| usage.user_id.clone()).collect(),
        Operation::Hold(ask) => vec![ask.user_id.clone()],
        Operation::Correct(correction) => vec![correction.user_id.clone()],
        Operation::Tell { user_id, .. } => vec![user_id.clone()],
        Operation::Capture { hold_id, .. } | Operation::Release { hold_id } | Operation::Extend { hold_id, .. } => {
            holds.get(hold_id).map(|hold| hold.user_id.clone()).into_iter().collect()
        }
    };
    batch.iter().flat_map(of).collect()
}

/// Every account that a batch may touch.
pub fn accounts(payers: &HashMap<UserId, Payer>, holds: &HashMap<String, Hold>, days: &HashMap<DayOfModel, SpentIn>) -> HashSet<AccountId> {
    let of_users = payers.values().filter_map(|payer| payer.profile.account.clone());
    let of_days = days.values().flat_map(|spent| spent.keys().flatten().cloned());
    of_users.chain(of_days).chain(holds.values().filter_map(|hold| hold.account.clone())).collect()
}

/// Whether anybody waits for it. What only tells may wait itself, and is no sign that the store hangs.
pub fn is_awaited(batch: &[Request]) -> bool {
    batch.iter().any(|request| !matches!(request.operation, Operation::Tell { .. }))
}

/// Of whom something is to be remembered: what was booked or held, or what was told.
pub fn changed_users(ledger: &Ledger) -> HashSet<UserId> {
    let by_entries = ledger.entries.iter().map(|entry| entry.user_id.clone());
    let by_holds = ledger.touched_holds.iter().filter_map(|id| ledger.holds.get(id)).map(|hold| hold.user_id.clone());
    let by_alerts = ledger.alerts.iter().filter_map(|alert| alert.user_id.clone());
    by_entries.chain(by_holds).chain(by_alerts).collect()
}
