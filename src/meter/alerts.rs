//! Checks that were answered BLOCK, so that somebody is told though nothing was booked.

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use super::{Meter, QUEUE_MAX, Request, View};
use crate::domain::alerts::Refused;
use crate::domain::decide::Decision;
use crate::domain::money::Money;
use crate::domain::operation::Operation;
use crate::domain::user::UserId;
use crate::store::Backend;

impl Meter {
    /// Sees to it that somebody is told where a budget refused a call and memory does not know that anybody was. Nobody waits for it: where
    /// much is queued it is dropped, and the next such check tells. Of users whom nobody knows nothing is written.
    pub fn tell_refused(&self, user: &UserId, view: &View<'_>, decision: &Decision, estimate: Money, now: DateTime<Utc>) {
        let Some(refused) = Refused::of(decision, estimate, &view.standing) else { return };
        if !(view.payer.exists || refused.is_of_all()) || self.knows_told(view, &refused) || self.queue.capacity() <= QUEUE_MAX / 2 {
            return;
        }
        // It could not be noted either.
        if !self.is_writable(now) {
            return;
        }
        let (answer, _) = oneshot::channel();
        let operation = Operation::Tell { user_id: user.clone(), refused };
        // Where the queue is full by now, the next check tells.
        let _ = self.queue.try_send(Request { operation, present: None, answer });
    }

    fn knows_told(&self, view: &View<'_>, refused: &Refused) -> bool {
        let shown = match &self.kept {
            Backend::Sqlite(shown) => shown,
            Backend::Postgres(reading) => return reading.shared.knows_told(view, refused),
        };
        let account = view.payer.pool(&view.standing).filter(|_| refused.is_of_tier());
        match account {
            _ if refused.is_of_all() => shown.all.get(&()).is_some_and(|all| refused.is_told(&view.budgets, all.told())),
            Some(account) => shown.accounts.get(account).is_some_and(|pool| refused.is_told(&view.budgets, pool.told())),
            None => refused.is_told(&view.budgets, view.payer.book.told()),
        }
    }
}
