//! What a batch finds when it has locked whom it concerns: what it is judged by.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use super::{Shared, members};
use crate::domain::book::{Book, SpentByDay};
use crate::domain::catalogue::Catalogue;
use crate::domain::ledger::{DayOfModel, Ledger, Payer, SpentIn, day};
use crate::domain::money::Money;
use crate::domain::operation::{Hold, Operation};
use crate::domain::user::{AccountId, UserId};
use crate::meter::Request;
use crate::store::batch::{self, RowVersion, UserVersion};
use crate::store::{Connection, StoreError, ledger};

impl Shared {
    /// The users of a batch, from memory where it has the version that is locked, and the versions by which they are known. What pays for
    /// them is asked for too: it decides what is admitted, what tokens cost, and what grants are drawn on.
    pub(super) async fn payers(
        &self,
        db: &mut Connection,
        catalogue: &Catalogue,
        users: &[UserId],
        rows: &HashMap<UserId, RowVersion>,
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<(HashMap<UserId, Payer>, HashMap<UserId, (UserVersion, DateTime<Utc>)>), StoreError> {
        // First, so that what is read after it is at least as new.
        let standings = batch::standings(db, users).await?;
        let (mut payers, mut versions) = (HashMap::with_capacity(users.len()), HashMap::with_capacity(users.len()));
        let mut missing = Vec::new();
        for user in users {
            if !rows.contains_key(user) {
                payers.insert(user.clone(), self.unknown(catalogue, now));
                continue;
            }
            let standing = standings.get(user);
            let is_right = |version: &UserVersion| standing.is_some_and(|standing| *version == standing.version);
            match self.known(catalogue, user, is_right, generation, now) {
                Some(known) => {
                    versions.insert(user.clone(), (known.version, now));
                    payers.insert(user.clone(), Payer::clone(&known.value));
                }
                None => {
                    versions.extend(standing.map(|standing| (user.clone(), (standing.version, now))));
                    missing.push(user.clone());
                }
            }
        }
        if !missing.is_empty() {
            payers.extend(self.read_payers(db, catalogue, &missing, generation, now).await?);
        }
        Ok((payers, versions))
    }

    pub(super) async fn locked_pools(
        &self,
        db: &mut Connection,
        catalogue: &Catalogue,
        accounts: &[AccountId],
        payers: &HashMap<UserId, Payer>,
        generation: u64,
        now: DateTime<Utc>,
    ) -> Result<(HashMap<AccountId, Book>, HashMap<AccountId, RowVersion>), StoreError> {
        if accounts.is_empty() {
            return Ok((HashMap::new(), HashMap::new()));
        }
        let versions = batch::lock_accounts(db, accounts).await?;
        let members = members(payers.values());
        let mut pools = HashMap::with_capacity(accounts.len());
        for account in accounts {
            let members = members.get(account).map(Vec::as_slice).unwrap_or_default();
            let known =
                versions.get(account).and_then(|version| self.known_account(catalogue, account, *version, members, generation, now));
            let pool = match known {
                Some(pool) => Book::clone(&pool),
                None => {
                    let billing: Vec<_> = members.iter().map(|payer| payer.profile.standing(catalogue, now).grant.billing).collect();
                    self.read_account(db, account, &billing, generation, now).await?
                }
            };
            pools.insert(account.clone(), pool);
        }
        Ok((pools, versions))
    }

    /// What all have spent, where the batch may be refused by it: then no other one admits anything until it is committed.
    pub(super) async fn all_for(
        &self,
        db: &mut Connection,
        catalogue: &Catalogue,
        admits: bool,
        held: &HashMap<String, Hold>,
        now: DateTime<Utc>,
    ) -> Result<Book, StoreError> {
        if catalogue.global.is_none() || !admits {
            return Ok(Book::new(now, &SpentByDay::new(), Money::ZERO, []));
        }
        batch::lock_all(db).await?;
        let open = held.values().filter(|hold| hold.is_open(now)).map(Hold::promise).collect();
        let mut all = self.read_all(catalogue, db, open, now).await?;
        self.put_told(&mut all);
        Ok(all)
    }
}

/// A ledger in which nothing else is known.
pub(super) fn empty(payers: HashMap<UserId, Payer>, all: Book) -> Ledger {
    Ledger {
        booked: HashMap::new(),
        holds: HashMap::new(),
        payers,
        accounts: HashMap::new(),
        all,
        days: HashMap::new(),
        entries: Vec::new(),
        touched_holds: BTreeSet::new(),
        corrections: Vec::new(),
        draws: Vec::new(),
        alerts: Vec::new(),
    }
}

/// The sums that a batch's corrections would lower.
pub(super) async fn days(db: &mut Connection, batch: &[Request]) -> Result<HashMap<DayOfModel, SpentIn>, StoreError> {
    let mut days = HashMap::new();
    for request in batch {
        if let Operation::Correct(correction) = &request.operation {
            let of = (correction.user_id.clone(), day(correction.time), correction.model.clone().unwrap_or_default());
            let spent = ledger::day_of_model(db, &of).await?;
            days.insert(of, spent);
        }
    }
    Ok(days)
}
