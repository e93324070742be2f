//! A connection that the pool of a Postgres lends. A server that is gone without a word answers never, and nothing tells a caller who waits
//! for it: so nobody waits for ever, and a connection whose answer somebody did not wait for is not lent again.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::time::error::Elapsed;

use super::StoreError;

/// The database ends any statement of ours before; a commit that waits for its standby it does not end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection, until it is dropped.
#[derive(Debug)]
pub struct Lent {
    connection: PoolConnection<Postgres>,
    patience: Duration,
    /// Something was sent, and its answer is not here.
    awaits: bool,
    /// Somebody keeps it, and it goes back with his word only.
    is_kept: bool,
}

impl Lent {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self { connection, patience: PATIENCE, awaits: false, is_kept: false }
    }

    /// What follows takes as long as it takes.
    pub(super) fn take_your_time(&mut self) {
        self.patience = Duration::MAX;
    }

    /// From here on it is closed when it is dropped, unless it was `trusted` again.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    pub fn trust(&mut self) {
        self.is_kept = false;
    }

    /// To be sent on, and how long to wait for the answer, which goes to [`Lent::answered`].
    pub(super) fn sends(&mut self) -> (&mut PgConnection, Duration) {
        self.awaits = true;
        (&mut self.connection, self.patience)
    }

    pub(super) fn answered<T>(&mut self, answer: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, StoreError> {
        let answer = answer.map_err(|_| StoreError::late())?;
        self.awaits = false;
        Ok(answer?)
    }

    /// Closes it, which rolls back what it had begun.
    pub(super) fn close(mut self) {
        self.keep();
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.awaits || self.is_kept {
            self.connection.close_on_drop();
        }
    }
}
