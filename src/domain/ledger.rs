//! One step of the ledger: what is + operation + now → what shall be + the answer. Pure, so that the meter can run it for many
//! callers before one commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::alert::Alert;
use super::alerts::Refused;
use super::book::Book;
use super::catalogue::Catalogue;
use super::changes::Changes;
use super::cost::{self, Unpriced};
use super::decide::{Action, Budget, Reason, Scope, most};
use super::grants::{Draw, Grants};
use super::judge::{Ask, Caller, cost_by_tokens, judge};
use super::money::Money;
use super::operation::{
    Booked, Consumption, Correction, Entry, EntryKind, Hold, HoldAsk, HoldEnd, IfShort, Judged, Operation, Outcome, Receipt, Refusal,
    Usage, Used,
};
use super::user::{AccountId, Profile, Standing, UserId};

/// One user, as far as the ledger needs him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payer {
    /// One for all of whom nothing is known: most users have none of their own.
    pub profile: Arc<Profile>,
    /// Whether the store knows him at all.
    pub exists: bool,
    pub entries: i64,
    pub book: Book,
    /// Boxed, since most users have none.
    pub grants: Option<Box<Grants>>,
}

impl Payer {
    /// The account whose users share the budgets of his tier, where they do.
    pub fn pool(&self, standing: &Standing<'_>) -> Option<&AccountId> {
        self.profile.account.as_ref().filter(|_| standing.tier.budgets.scope == Scope::Account)
    }

    /// The budgets of his tier at `now`, filled by what `pool` counts, or by his own spend and raised by what he was granted; then his own
    /// caps, filled by his own spend. `None` where the store must be asked. A user who stands alone is an account by himself.
    pub fn budgets(&self, pool: Option<&Book>, standing: &Standing<'_>, now: DateTime<Utc>) -> Option<Vec<Budget>> {
        let billing = standing.grant.billing;
        let mut budgets = pool.unwrap_or(&self.book).budgets(&standing.tier.budgets, standing.seats, billing, now)?;
        if let Some(grants) = self.grants.as_ref().filter(|_| pool.is_none()) {
            grants.raise(&mut budgets, now);
        }
        if let Some(caps) = &self.profile.caps {
            budgets.extend(caps.budgets(&self.book, billing, now)?);
        }
        Some(budgets)
    }

    /// Whether `pool`, or what he spent himself, counts every window that is open at `now`.
    pub fn counts(&self, pool: Option<&Book>, standing: &Standing<'_>, now: DateTime<Utc>) -> bool {
        pool.unwrap_or(&self.book).counts(&standing.tier.budgets, standing.grant.billing, now) && self.counts_caps(standing, now)
    }

    /// Whether what he spent himself counts every window of his own caps that is open at `now`.
    pub fn counts_caps(&self, standing: &Standing<'_>, now: DateTime<Utc>) -> bool {
        self.profile.caps.as_ref().is_none_or(|caps| caps.are_counted(&self.book, standing.grant.billing, now))
    }

    /// What an entry that is in his book by now draws on his grants, or gives back.
    fn draws(&mut self, entry: &Entry, catalogue: &Catalogue, now: DateTime<Utc>) -> Vec<Draw> {
        if self.grants.is_none() {
            return Vec::new();
        }
        let profile = self.profile.clone();
        let standing = profile.standing(catalogue, now);
        // Where the budgets are the account's, grants wait until they are his own.
        if self.pool(&standing).is_some() {
            return Vec::new();
        }
        // His book counts these windows: whoever loads him sees to it.
        let limits = &standing.tier.budgets;
        let budgets = self.book.budgets(limits, standing.seats, standing.grant.billing, now).unwrap_or_default();
        let (user, amount, time) = (&entry.user_id, entry.consumption.cost, entry.booked.time);
        let mut draws = Vec::new();
        if let Some(grants) = &mut self.grants {
            for budget in budgets.iter().filter(|budget| budget.window.contains(time)) {
                draws.extend(match entry.kind {
                    EntryKind::Usage | EntryKind::Capture => grants.draw(budget, user, now),
                    EntryKind::Correction => grants.give_back(budget, user, amount),
                });
            }
        }
        draws
    }
}

/// A day's sum of one user and one model (empty where none was named).
pub type DayOfModel = (UserId, i64, String);

/// What one user spent in each account, and (`None`) alone.
pub type SpentIn = BTreeMap<Option<AccountId>, i64>;

/// What is, as far as a batch needs it, and what shall be: the state between the database before and after.
#[derive(Debug)]
pub struct Ledger {
    /// The rows known under the ids that the batch names.
    pub booked: HashMap<(EntryKind, String), Booked>,
    /// The holds that the batch names.
    pub holds: HashMap<String, Hold>,
    /// Every user that the batch names.
    pub payers: HashMap<UserId, Payer>,
    /// Every account that these users belong to, and that holds which the batch names were made in.
    pub accounts: HashMap<AccountId, Book>,
    /// All users together.
    pub all: Book,
    /// The sums that the batch's corrections would lower, in nano-dollars, told apart by the account that they were spent in.
    pub days: HashMap<DayOfModel, SpentIn>,
    /// What the batch adds, in the order in which it was accepted.
    pub entries: Vec<Entry>,
    /// Which holds it made or changed.
    pub touched_holds: BTreeSet<String>,
    pub corrections: Vec<Correction>,
    /// What the entries drew on grants.
    pub draws: Vec<Draw>,
    /// What somebody is to be told.
    pub alerts: Vec<Alert>,
}

impl Ledger {
    /// Does one operation, all of it or nothing.
    pub fn step(&mut self, operation: &Operation, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
        match operation {
            Operation::Record(usages) => self.record(usages, catalogue, now).map(Outcome::Recorded),
            Operation::Hold(ask) => self.hold(ask, catalogue, now),
            Operation::Capture { hold_id, used } => self.capture(hold_id, used, catalogue, now),
            Operation::Release { hold_id } => self.release(hold_id, now),
            Operation::Extend { hold_id, ttl } => self.extend(hold_id, *ttl, now),
            Operation::Correct(correction) => self.correct(correction, catalogue, now).map(Outcome::Corrected),
            Operation::Tell { user_id, refused } => {
                self.tell_refused(user_id, refused, catalogue, now);
                Ok(Outcome::Told)
            }
        }
    }

    fn record(&mut self, usages: &[Usage], catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Vec<Receipt>, Refusal> {
        let mut receipts = Vec::with_capacity(usages.len());
        let mut fresh: HashMap<&str, Booked> = HashMap::new();
        let mut spent: HashMap<&UserId, Money> = HashMap::new();
        let mut spent_in: HashMap<AccountId, Money> = HashMap::new();
        let mut entries = Vec::new();
        for (index, usage) in usages.iter().enumerate() {
            let fingerprint = usage.used.fingerprint(Some(&usage.user_id), usage.time);
            let before = self.booked.get(&(EntryKind::Usage, usage.id.clone())).or_else(|| fresh.get(usage.id.as_str())).copied();
            let booked = match before {
                Some(booked) if booked.fingerprint == fingerprint => booked,
                Some(_) => return Err(Refusal::IdReused { index, id: usage.id.clone() }),
                None => {
                    let time = usage.time.unwrap_or(now);
                    let consumption = self.consumption(&usage.user_id, &usage.used, index, time, catalogue, now)?;
                    let cost = consumption.cost;
                    let total = spent.entry(&usage.user_id).or_insert(self.payer(&usage.user_id)?.book.total());
                    *total = total.checked_add(cost).ok_or(Refusal::TotalOutOfRange { index })?;
                    let unpriced = consumption.is_unpriced();
                    let booked = Booked { fingerprint, cost, unpriced, time, recorded_at: now };
                    fresh.insert(&usage.id, booked);
                    let (id, user_id) = (usage.id.clone(), usage.user_id.clone());
                    let account = self.account_of(&user_id)?;
                    if let Some(account) = &account {
                        let pool = self.accounts.get(account).ok_or(Refusal::OutOfDate)?;
                        let total = spent_in.entry(account.clone()).or_insert(pool.total());
                        *total = total.checked_add(cost).ok_or(Refusal::TotalOutOfRange { index })?;
                    }
                    entries.push(Entry { kind: EntryKind::Usage, id, user_id, account, consumption, booked });
                    booked
                }
            };
            receipts.push(receipt(&usage.id, &usage.user_id, booked, before.is_some()));
        }
        for entry in entries {
            self.book(entry, catalogue, now)?;
        }
        Ok(receipts)
    }

    fn hold(&mut self, ask: &HoldAsk, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
        if let Some(hold) = self.holds.get(&ask.id) {
            if hold.fingerprint != ask.fingerprint() {
                return Err(Refusal::IdReused { index: 0, id: ask.id.clone() });
            }
            return Ok(Outcome::Held { hold: Box::new(hold.clone()), judged: None, repeated: true });
        }
        let budgets = self.budgets(&ask.user_id, catalogue, now)?;
        let profile = self.payer(&ask.user_id)?.profile.clone();
        let standing = profile.standing(catalogue, now);
        let caller = Caller { user: &ask.user_id, account: profile.account.as_ref(), tier: standing.tier };
        let mut judgement = judge(catalogue, caller, &budgets, &ask.call, now);
        let is_short = matches!(judgement.decision.reason, Reason::EstimateExceedsBudget | Reason::CapReached);
        if is_short
            && ask.if_short == IfShort::Reduce
            && let Some(left) = most(&budgets).filter(|left| *left != Money::ZERO)
        {
            // What is held for less than was asked is judged by what is held.
            judgement = judge(catalogue, caller, &budgets, &Ask { cost: Some(left), ..ask.call.clone() }, now);
            let named = judgement.model.as_deref().filter(|_| ask.call.cost.is_none());
            // A cheaper model that is named instead may need less than that.
            if let Some(cost) = named.and_then(|model| cost_by_tokens(catalogue, caller.tier, &ask.call, model, now)) {
                judgement.estimate = cost.min(left);
            }
        }
        let amount = judgement.estimate;
        if judgement.decision.action == Action::Block {
            if let Some(refused) = Refused::of(&judgement.decision, amount, &standing) {
                self.tell_refused(&ask.user_id, &refused, catalogue, now);
            }
            return Ok(Outcome::NotHeld { judged: Box::new(Judged { judgement, budgets }) });
        }
        let payer = self.payers.get_mut(&ask.user_id).ok_or(Refusal::OutOfDate)?;
        let account = payer.profile.account.clone();
        let pool = account.as_ref().and_then(|account| self.accounts.get(account));
        let room = payer.book.can_hold(amount) && pool.is_none_or(|pool| pool.can_hold(amount));
        if !room || (catalogue.global.is_some() && !self.all.can_hold(amount)) {
            return Err(Refusal::TotalOutOfRange { index: 0 });
        }
        let hold = Hold {
            id: ask.id.as_str().into(),
            user_id: ask.user_id.clone(),
            account,
            amount,
            model: judgement.model.clone(),
            provider: judgement.provider.clone(),
            created_at: now,
            expires_at: now + ask.ttl,
            fingerprint: ask.fingerprint(),
            end: None,
            answer: String::new(),
        };
        payer.exists = true;
        self.in_each_book(&hold.user_id, hold.account.as_ref(), |book| book.hold(&hold.promise()))?;
        self.touched_holds.insert(ask.id.clone());
        self.holds.insert(ask.id.clone(), hold.clone());
        self.tell(&hold.user_id, catalogue, now);
        Ok(Outcome::Held { hold: Box::new(hold), judged: Some(Box::new(Judged { judgement, budgets })), repeated: false })
    }

    /// A late capture books the cost all the same: it was spent.
    fn capture(&mut self, hold_id: &str, used: &Used, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
        let hold = self.holds.get(hold_id).ok_or_else(|| Refusal::NoSuchHold(hold_id.to_owned()))?.clone();
        let fingerprint = used.fingerprint(None, None);
        let used = match used.model {
            Some(_) => used.clone(),
            None => Used { model: hold.model.clone(), provider: used.provider.clone().or(hold.provider.clone()), ..used.clone() },
        };
        match hold.end {
            Some(HoldEnd::Captured { fingerprint: first, cost, .. }) if first == fingerprint => {
                // A hold does not remember it, and a price that was made since then would have been another cost.
                let again = || self.consumption(&hold.user_id, &used, 0, now, catalogue, now);
                let unpriced = used.cost.is_none() && cost == Money::ZERO && again().is_ok_and(|again| again.is_unpriced());
                return Ok(Outcome::Ended { hold: Box::new(hold), repeated: true, unpriced });
            }
            Some(_) => return Err(Refusal::HoldEnded(Box::new(hold))),
            None => {}
        }
        let consumption = self.consumption(&hold.user_id, &used, 0, now, catalogue, now)?;
        let pool = hold.account.as_ref().and_then(|account| self.accounts.get(account));
        if !self.payer(&hold.user_id)?.book.can_add(consumption.cost) || pool.is_some_and(|pool| !pool.can_add(consumption.cost)) {
            return Err(Refusal::TotalOutOfRange { index: 0 });
        }
        let end = HoldEnd::Captured { cost: consumption.cost, at: now, fingerprint };
        let hold = self.end_hold(hold, end)?;
        let unpriced = consumption.is_unpriced();
        let booked = Booked { fingerprint, cost: consumption.cost, unpriced, time: now, recorded_at: now };
        let (id, user_id, account) = (hold_id.to_owned(), hold.user_id.clone(), hold.account.clone());
        self.book(Entry { kind: EntryKind::Capture, id, user_id, account, consumption, booked }, catalogue, now)?;
        Ok(Outcome::Ended { hold: Box::new(hold), repeated: false, unpriced })
    }

    fn release(&mut self, hold_id: &str, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
        let hold = self.holds.get(hold_id).ok_or_else(|| Refusal::NoSuchHold(hold_id.to_owned()))?.clone();
        match hold.end {
            Some(HoldEnd::Released { .. }) => Ok(Outcome::Ended { hold: Box::new(hold), repeated: true, unpriced: false }),
            None if hold.is_open(now) => {
                let hold = self.end_hold(hold, HoldEnd::Released { at: now })?;
                Ok(Outcome::Ended { hold: Box::new(hold), repeated: false, unpriced: false })
            }
            None | Some(HoldEnd::Captured { .. }) => Err(Refusal::HoldEnded(Box::new(hold))),
        }
    }

    /// A hold is never made shorter.
    fn extend(&mut self, hold_id: &str, ttl: TimeDelta, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
        let mut hold = self.holds.get(hold_id).ok_or_else(|| Refusal::NoSuchHold(hold_id.to_owned()))?.clone();
        if !hold.is_open(now) {
            return Err(Refusal::HoldEnded(Box::new(hold)));
        }
        if now + ttl <= hold.expires_at {
            return Ok(Outcome::Extended(Box::new(hold)));
        }
        hold.expires_at = now + ttl;
        // A book that has the hold already takes it at its new place.
        self.in_each_book(&hold.user_id, hold.account.as_ref(), |book| book.hold(&hold.promise()))?;
        self.touched_holds.insert(hold_id.to_owned());
        self.holds.insert(hold_id.to_owned(), hold.clone());
        Ok(Outcome::Extended(Box::new(hold)))
    }

    fn correct(&mut self, correction: &Correction, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Receipt, Refusal> {
        let (consumption, fingerprint) = (correction.consumption(), correction.fingerprint());
        let key = (EntryKind::Correction, correction.id.clone());
        if let Some(booked) = self.booked.get(&key) {
            if booked.fingerprint != fingerprint {
                return Err(Refusal::IdReused { index: 0, id: correction.id.clone() });
            }
            return Ok(receipt(&correction.id, &correction.user_id, *booked, true));
        }
        let account = self.corrected_account(correction)?;
        let booked = Booked { fingerprint, cost: correction.amount, unpriced: false, time: correction.time, recorded_at: now };
        let (id, user_id) = (correction.id.clone(), correction.user_id.clone());
        self.book(Entry { kind: EntryKind::Correction, id, user_id, account, consumption, booked }, catalogue, now)?;
        self.corrections.push(correction.clone());
        Ok(receipt(&correction.id, &correction.user_id, booked, false))
    }

    /// Where what is to be taken back was spent: in the account that the user belongs to, else wherever there is as much.
    fn corrected_account(&self, correction: &Correction) -> Result<Option<AccountId>, Refusal> {
        let of = (correction.user_id.clone(), day(correction.time), correction.model.clone().unwrap_or_default());
        let mut spent = self.days.get(&of).cloned().unwrap_or_default();
        let same = |entry: &&Entry| {
            (&entry.user_id, day(entry.booked.time), entry.consumption.model.as_deref().unwrap_or("")) == (&of.0, of.1, &*of.2)
        };
        for entry in self.entries.iter().filter(same) {
            let (nanos, sum) = (entry.consumption.cost.nanos(), spent.entry(entry.account.clone()).or_default());
            *sum = sum.saturating_add(if entry.kind == EntryKind::Correction { -nanos } else { nanos });
        }
        let own = self.payer(&correction.user_id)?.profile.account.clone();
        let places = [&own].into_iter().chain(spent.keys());
        let enough = |place: &&Option<AccountId>| spent.get(*place).is_some_and(|sum| correction.amount.nanos() <= *sum);
        match places.into_iter().find(enough) {
            Some(Some(account)) if !self.accounts.contains_key(account) => Err(Refusal::OutOfDate),
            Some(account) => Ok(account.clone()),
            None => {
                let available = spent.values().copied().max().and_then(Money::from_nanos).unwrap_or_default();
                Err(Refusal::NotSoMuch { available })
            }
        }
    }

    fn payer(&self, user: &UserId) -> Result<&Payer, Refusal> {
        self.payers.get(user).ok_or(Refusal::OutOfDate)
    }

    /// What `used` comes to for this user, by the prices of `time`.
    fn consumption(
        &self,
        user: &UserId,
        used: &Used,
        index: usize,
        time: DateTime<Utc>,
        catalogue: &Catalogue,
        now: DateTime<Utc>,
    ) -> Result<Consumption, Refusal> {
        let tier = self.payer(user)?.profile.standing(catalogue, now).tier;
        let consumption = cost::consumption(catalogue, tier, used, time);
        consumption.map_err(|Unpriced { model }| Refusal::Unpriced { index, model })
    }

    /// The account in which this user spends; its book is here.
    fn account_of(&self, user: &UserId) -> Result<Option<AccountId>, Refusal> {
        let account = &self.payer(user)?.profile.account;
        let known = account.as_ref().is_none_or(|account| self.accounts.contains_key(account));
        if known { Ok(account.clone()) } else { Err(Refusal::OutOfDate) }
    }

    /// Does something to every book that counts what this user spends.
    fn in_each_book(&mut self, user: &UserId, account: Option<&AccountId>, work: impl Fn(&mut Book)) -> Result<(), Refusal> {
        let own = self.payers.get_mut(user).ok_or(Refusal::OutOfDate)?;
        let pool = account.map(|account| self.accounts.get_mut(account).ok_or(Refusal::OutOfDate)).transpose()?;
        [Some(&mut own.book), pool, Some(&mut self.all)].into_iter().flatten().for_each(work);
        Ok(())
    }

    /// The budgets of the user's tier and his own caps, then those of all users together.
    pub(super) fn budgets(&self, user: &UserId, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Vec<Budget>, Refusal> {
        let payer = self.payer(user)?;
        let standing = payer.profile.standing(catalogue, now);
        let pool = payer.pool(&standing).map(|account| self.accounts.get(account).ok_or(Refusal::OutOfDate)).transpose()?;
        let mut budgets = payer.budgets(pool, &standing, now).ok_or(Refusal::OutOfDate)?;
        if let Some(limits) = &catalogue.global {
            budgets.extend(self.all.budgets(limits, 1, None, now).ok_or(Refusal::OutOfDate)?);
        }
        Ok(budgets)
    }

    fn end_hold(&mut self, mut hold: Hold, end: HoldEnd) -> Result<Hold, Refusal> {
        self.in_each_book(&hold.user_id, hold.account.as_ref(), |book| book.end_hold(&hold.id))?;
        hold.end = Some(end);
        self.touched_holds.insert(hold.id.to_string());
        self.holds.insert(hold.id.to_string(), hold.clone());
        Ok(hold)
    }

    /// The caller has seen that it fits.
    fn book(&mut self, entry: Entry, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<(), Refusal> {
        let (cost, time) = (entry.consumption.cost, entry.booked.time);
        self.in_each_book(&entry.user_id, entry.account.as_ref(), |book| match entry.kind {
            EntryKind::Usage | EntryKind::Capture => book.add(cost, time),
            EntryKind::Correction => book.take(cost, time),
        })?;
        if let Some(payer) = self.payers.get_mut(&entry.user_id) {
            payer.exists = true;
            payer.entries += 1;
            self.draws.extend(payer.draws(&entry, catalogue, now));
        }
        if entry.kind != EntryKind::Correction {
            self.tell(&entry.user_id, catalogue, now);
        }
        self.booked.insert((entry.kind, entry.id.clone()), entry.booked);
        self.entries.push(entry);
        Ok(())
    }

    /// What is to be written, if anything is.
    pub fn changes(&self, at: DateTime<Utc>) -> Changes {
        let holds = self.touched_holds.iter().filter_map(|id| self.holds.get(id)).cloned().collect();
        let (entries, corrections) = (self.entries.clone(), self.corrections.clone());
        Changes { at, entries, holds, corrections, draws: self.draws.clone(), alerts: self.alerts.clone() }
    }
}

fn receipt(id: &str, user: &UserId, booked: Booked, repeated: bool) -> Receipt {
    let (id, user_id) = (id.to_owned(), user.clone());
    Receipt { id, user_id, cost: booked.cost, time: booked.time, recorded_at: booked.recorded_at, unpriced: booked.unpriced, repeated }
}

const SECONDS_PER_DAY: i64 = 86_400;

/// Days since 1970-01-01, UTC.
pub fn day(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(SECONDS_PER_DAY)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
