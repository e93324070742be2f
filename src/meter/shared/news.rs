//! Tells other nodes what changed, where they answer from memory for a while (`MAX_STALENESS_MS`). News only make them fresher than they
//! must be; where some are lost, everything that was kept is forgotten.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::mpsc;
use tracing::warn;

use super::Shared;
use crate::domain::changes::Changes;
use crate::domain::user::UserId;
use crate::store::news::{self, Heard};
use crate::store::{Connection, StoreError};

/// Users whose record changed and nobody was told of yet; beyond, everything is told to be forgotten.
const TELLING_MAX: usize = 1024;
/// A pause after the database could not be told, or heard.
const PAUSE: Duration = Duration::from_millis(200);

/// Where news go.
#[derive(Debug)]
pub struct News {
    /// `None` where nobody keeps anything.
    tell: Option<mpsc::Sender<Heard>>,
    /// Tells this node's batches from those of others.
    node: u64,
}

impl News {
    /// Nobody is told where nobody keeps anything.
    pub fn new(max_staleness: TimeDelta) -> (Self, Option<mpsc::Receiver<Heard>>) {
        let node = fastrand::u64(..);
        if max_staleness <= TimeDelta::zero() {
            return (Self { tell: None, node }, None);
        }
        let (tell, telling) = mpsc::channel(TELLING_MAX);
        (Self { tell: Some(tell), node }, Some(telling))
    }

    pub fn user(&self, user: &UserId) {
        self.tell(Heard::Users(vec![user.clone()]));
    }

    pub fn all(&self) {
        self.tell(Heard::All);
    }

    fn tell(&self, news: Heard) {
        if let Some(tell) = &self.tell {
            // Where too many wait, what is kept elsewhere ages by itself.
            let _ = tell.try_send(news);
        }
    }

    /// Told with the commit of a batch.
    pub async fn in_batch(&self, db: &mut Connection, changes: &Changes) -> Result<(), StoreError> {
        match self.tell {
            Some(_) => news::tell(db, &Heard::Spent(self.node, changes.users().cloned().collect())).await,
            None => Ok(()),
        }
    }
}

/// Tells what is to be told, until it is dropped.
pub async fn tell(shared: Arc<Shared>, mut telling: mpsc::Receiver<Heard>) {
    while let Some(heard) = telling.recv().await {
        let told = async { news::tell(&mut shared.store.reader().await?, &heard).await };
        if let Err(error) = told.await {
            warn!(%error, "other nodes could not be told of a change; they see it within MAX_STALENESS_MS: {error}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Forgets what others tell of, until it is dropped.
pub async fn listen(shared: Arc<Shared>) {
    loop {
        let listened = async {
            let mut listener = shared.cluster.listen().await?;
            // What was told before is not heard.
            shared.forget_what_is_kept();
            loop {
                match listener.hear().await? {
                    Heard::Users(users) => users.iter().for_each(|user| shared.users.forget(user)),
                    // This node's writer keeps what came of its own batch.
                    Heard::Spent(node, _) if node == shared.news.node => {}
                    // Who pays for them did not change, and what was told of them stays told.
                    Heard::Spent(_, users) => users.iter().for_each(|user| shared.users.doubt(user)),
                    Heard::All => shared.forget_what_is_kept(),
                }
            }
        };
        let lost: Result<(), StoreError> = listened.await;
        shared.forget_what_is_kept();
        if let Err(error) = lost {
            warn!(%error, "what other nodes change is not heard at the moment: {error}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
