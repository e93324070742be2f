//! Looks users up for all checks that wait, in one question.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Mutex, mpsc};

use super::{Ask, Kept, Known, KnownOfAll, Seen, Shared, distinct, members};
use crate::domain::book::Book;
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::Payer;
use crate::domain::user::{AccountId, UserId};
use crate::store::batch::{self, RowVersion};
use crate::store::{Connection, StoreError};

/// Users in one question; more only lengthen the slowest answer.
const USERS_MAX: usize = 2048;
/// A database that takes longer does not answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Answers until nobody can ask any more.
pub async fn run(shared: Arc<Shared>, waiting: Arc<Mutex<mpsc::Receiver<Ask>>>) {
    let mut kept = Kept::default();
    loop {
        let mut turn = waiting.lock().await;
        let Some(first) = turn.recv().await else { return };
        let (mut count, mut asks) = (first.users.len(), vec![first]);
        while count < USERS_MAX {
            let Ok(ask) = turn.try_recv() else { break };
            count += ask.users.len();
            asks.push(ask);
        }
        // Whoever was told that it took too long has no use for an answer.
        asks.retain(|ask| !ask.answer.is_closed());
        let mut turn = Some(turn);
        // All have one catalogue, unless another one began to hold between two of them.
        while let Some(catalogue) = asks.first().map(|ask| ask.catalogue.clone()) {
            let (together, others) = asks.into_iter().partition(|ask| Arc::ptr_eq(&ask.catalogue, &catalogue));
            asks = others;
            answer(&shared, &mut kept, &catalogue, together, turn.take()).await;
        }
    }
}

/// Answers those who ask by one catalogue.
async fn answer<T>(shared: &Shared, kept: &mut Kept, catalogue: &Arc<Catalogue>, asks: Vec<Ask>, turn: T) {
    let users = distinct(asks.iter().flat_map(|ask| ask.users.iter().cloned()));
    let seen = match tokio::time::timeout(TIMEOUT, shared.see(kept, catalogue, &users, turn)).await {
        Ok(seen) => seen,
        Err(_) => Err(StoreError::late()),
    };
    let seen = seen.map_err(Arc::new);
    for ask in asks {
        let of = |users: &[UserId]| match &seen {
            Ok(seen) => users.iter().map(|user| seen.get(user).cloned().ok_or_else(|| Arc::new(StoreError::torn()))).collect(),
            Err(error) => Err(error.clone()),
        };
        // A caller that went away has no use for the answer.
        let _ = ask.answer.send(of(&ask.users));
    }
}

/// Looks up again who is asked for often and will be too old in a moment, many at once; until nobody can ask any more.
pub async fn run_ahead(shared: Arc<Shared>, mut aging: mpsc::Receiver<UserId>) {
    let mut kept = Kept::default();
    let gather = shared.max_staleness.to_std().unwrap_or_default() / 8;
    while let Some(first) = aging.recv().await {
        tokio::time::sleep(gather).await;
        let mut users = vec![first];
        while users.len() < USERS_MAX {
            let Ok(user) = aging.try_recv() else { break };
            users.push(user);
        }
        // Where it fails they are too old in a moment, and whoever asks is told.
        let catalogue = shared.catalogue.load_full();
        let _ = tokio::time::timeout(TIMEOUT, shared.see(&mut kept, &catalogue, &distinct(users), ())).await;
    }
}

impl Shared {
    /// Whoever has the turn asks; the others gather meanwhile, so that one question serves many. `turn` goes on before anything is looked up
    /// that memory does not have.
    async fn see<T>(
        &self,
        kept: &mut Kept,
        catalogue: &Arc<Catalogue>,
        users: &[UserId],
        turn: T,
    ) -> Result<HashMap<UserId, Seen>, StoreError> {
        let mut db = kept.take(self).await?;
        let (now, generation) = (self.now(), kept.generation());
        let standings = batch::standings(&mut db, users).await?;
        drop(turn);
        let mut payers: HashMap<UserId, Arc<Payer>> = HashMap::with_capacity(users.len());
        let mut versions: HashMap<AccountId, RowVersion> = HashMap::new();
        let mut missing = Vec::new();
        for user in users {
            let Some(standing) = standings.get(user) else {
                payers.insert(user.clone(), Arc::new(self.unknown(catalogue, now)));
                continue;
            };
            match self.known(catalogue, user, |version| *version == standing.version, generation, now) {
                Some(known) => {
                    if TimeDelta::zero() < self.max_staleness {
                        self.keep_user(user, Known::new(standing.version, now, generation, known.value.clone()));
                    }
                    payers.insert(user.clone(), known.value.clone());
                    versions.extend(standing.account.clone());
                }
                None => missing.push(user.clone()),
            }
        }
        payers.extend(self.load(catalogue, &missing, &mut versions, now).await?);
        let pools = self.pools(catalogue, &payers, &versions, generation, now).await?;
        let all = match &catalogue.global {
            None => None,
            Some(_) => {
                let book = Arc::new(self.read_all(catalogue, &mut db, Vec::new(), now).await?);
                *self.all.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(KnownOfAll { as_of: now, catalogue: catalogue.clone(), book: book.clone() });
                Some(book)
            }
        };
        kept.give_back(db);
        let see = |(user, payer): (UserId, Arc<Payer>)| {
            let standing = payer.profile.standing(catalogue, now);
            let pool = payer.pool(&standing).and_then(|account| pools.get(account)).cloned();
            (user, Seen { payer: payer.clone(), pool, all: all.clone(), now })
        };
        Ok(payers.into_iter().map(see).collect())
    }

    /// Reads users whose version memory does not have. All statements see one moment, so the version goes with what is read.
    async fn load(
        &self,
        catalogue: &Catalogue,
        users: &[UserId],
        versions: &mut HashMap<AccountId, RowVersion>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<UserId, Arc<Payer>>, StoreError> {
        if users.is_empty() {
            return Ok(HashMap::new());
        }
        // If another server is used from here on, nobody believes what is kept.
        let generation = self.cluster.generation();
        let mut tx = self.store.begin_read().await?;
        let db = tx.connection()?;
        let standings = batch::standings(db, users).await?;
        let payers = self.read_payers(db, catalogue, users, generation, now).await?;
        tx.commit().await?;
        let keep = |(user, payer): (UserId, Payer)| {
            let payer = Arc::new(payer);
            if let Some(standing) = standings.get(&user) {
                self.keep_user(&user, Known::new(standing.version, now, generation, payer.clone()));
                versions.extend(standing.account.clone());
            }
            (user, payer)
        };
        Ok(payers.into_iter().map(keep).collect())
    }

    /// The accounts whose users share their budgets.
    async fn pools(
        &self,
        catalogue: &Catalogue,
        payers: &HashMap<UserId, Arc<Payer>>,
        versions: &HashMap<AccountId, RowVersion>,
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<HashMap<AccountId, Arc<Book>>, StoreError> {
        let sharing = |payer: &&Payer| payer.pool(&payer.profile.standing(catalogue, now)).is_some();
        let members = members(payers.values().map(|payer| &**payer).filter(sharing));
        let mut pools = HashMap::with_capacity(members.len());
        for (account, members) in members {
            let known = versions.get(account).and_then(|version| {
                self.known_account(catalogue, account, *version, &members, generation, now).map(|book| (*version, book))
            });
            let (version, book) = match known {
                Some(known) => known,
                None => self.load_account(catalogue, account, &members, generation, now).await?,
            };
            self.keep_account(account, Known::new(version, now, generation, book.clone()));
            pools.insert(account.clone(), book);
        }
        Ok(pools)
    }

    async fn load_account(
        &self,
        catalogue: &Catalogue,
        account: &AccountId,
        members: &[&Payer],
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<(RowVersion, Arc<Book>), StoreError> {
        let billing: Vec<_> = members.iter().map(|payer| payer.profile.standing(catalogue, now).grant.billing).collect();
        let mut tx = self.store.begin_read().await?;
        let db: &mut Connection = tx.connection()?;
        let version = batch::account_version(db, account).await?.unwrap_or_default();
        let book = self.read_account(db, account, &billing, generation, now).await?;
        tx.commit().await?;
        Ok((version, Arc::new(book)))
    }
}
