//! What a decision rests on: who set the tier or bought it, every budget's own verdict, and what fills them.

use chrono::{DateTime, Utc};

use crate::domain::catalogue::Catalogue;
use crate::domain::decide::{Budget, Decision, Source, decide};
use crate::domain::explanation::{Estimate, estimate};
use crate::domain::grants::Grant;
use crate::domain::judge::{Ask, Caller, rules_tried};
use crate::domain::operation::Hold;
use crate::domain::rules::Tried;
use crate::domain::subscription::Explained;
use crate::domain::user::{TierSource, UserId};
use crate::meter::{Meter, View};
use crate::store::inbox::{self, Received};
use crate::store::ledger::{self, Spender, StoredEntry};
use crate::store::requests::{self, Question};
use crate::store::{Connection, StoreError, accounts, holds};

/// Entries that are shown; the list of usage has all.
pub const ENTRIES_MAX: usize = 20;
/// Holds that are shown; the list of holds has all.
pub const HOLDS_MAX: usize = 20;
/// Subscriptions that are shown, the one that decides first.
const SUBSCRIPTIONS_MAX: usize = 20;

/// What a decision rests on, beside the view of the user that it was made from.
#[derive(Debug)]
pub struct Grounds<'a> {
    /// Of the model that was asked for.
    pub estimate: Estimate<'a>,
    /// What each of the view's budgets would say alone, in their order.
    pub verdicts: Vec<Decision>,
    /// The grants that can be drawn on, the one that ends earliest first.
    pub grants: Vec<&'a Grant>,
    pub rules: Vec<Tried<'a>>,
    /// The key that set the tier by hand.
    pub set_by: Option<String>,
    pub stripe: Option<Stripe<'a>>,
    /// What is held of the user's budgets, or of his account's where it shares them; the next to expire first.
    pub holds: Vec<Hold>,
    pub more_holds: bool,
    /// The last entries that count in an open window, and who booked them.
    pub entries: Vec<(UserId, StoredEntry)>,
}

/// The Stripe customer who pays for the user.
#[derive(Debug)]
pub struct Stripe<'a> {
    pub customer: &'a str,
    pub is_deleted: bool,
    pub subscriptions: Vec<Explained<'a>>,
    /// When our record of him was last written.
    pub written_at: Option<DateTime<Utc>>,
    /// The latest event that the record follows; whatever was written later came from asking Stripe.
    pub last_event: Option<Received>,
    /// `None` where Stripe never was to be asked.
    pub question: Option<Question>,
}

/// The grounds of what is answered to `ask` from `view`, at `now`.
pub async fn grounds<'a>(
    meter: &Meter,
    catalogue: &'a Catalogue,
    user: &'a UserId,
    view: &'a View<'a>,
    ask: &Ask,
    now: DateTime<Utc>,
) -> Result<Grounds<'a>, StoreError> {
    let (standing, profile) = (&view.standing, &view.payer.profile);
    let estimate = estimate(catalogue, standing.tier, ask, now);
    let amount = estimate.amount.unwrap_or_default();
    let verdicts = view.budgets.iter().map(|budget| decide(std::slice::from_ref(budget), amount)).collect();
    let caller = Caller { user, account: profile.account.as_ref(), tier: standing.tier };
    let rules = rules_tried(catalogue, caller, &view.budgets, ask, now);
    let grants = view.payer.grants.iter().flat_map(|grants| grants.open(now)).collect();
    let account = view.payer.pool(standing);
    let spender = account.map_or(Spender::User(user), Spender::Account);
    let mut db = match account {
        Some(account) => meter.reader_of_account(account).await?,
        None => meter.reader_of(std::slice::from_ref(user)).await?,
    };
    let manual = profile.manual.as_ref().filter(|_| standing.source == TierSource::Manual);
    let set_by = match manual {
        Some(manual) => accounts::changed_by(&mut db, user, manual.set_at).await?,
        None => None,
    };
    let stripe = match profile.stripe_customer.as_deref() {
        Some(customer) => {
            let mut subscriptions = profile.customer.explained(catalogue, now);
            subscriptions.truncate(SUBSCRIPTIONS_MAX);
            Some(stripe(&mut db, customer, profile.customer.is_deleted(), subscriptions).await?)
        }
        None => None,
    };
    let mut holds = holds::next_to_expire(&mut db, spender, now, at_most(HOLDS_MAX + 1)).await?;
    let more_holds = HOLDS_MAX < holds.len();
    holds.truncate(HOLDS_MAX);
    let entries = match first_moment(&view.budgets) {
        Some(from) => ledger::last_entries(&mut db, spender, from, at_most(ENTRIES_MAX)).await?,
        None => Vec::new(),
    };
    Ok(Grounds { estimate, verdicts, grants, rules, set_by, stripe, holds, more_holds, entries })
}

async fn stripe<'a>(
    db: &mut Connection,
    customer: &'a str,
    is_deleted: bool,
    subscriptions: Vec<Explained<'a>>,
) -> Result<Stripe<'a>, StoreError> {
    Ok(Stripe {
        customer,
        is_deleted,
        subscriptions,
        written_at: accounts::customer_written_at(db, customer).await?,
        last_event: inbox::last_applied(db, customer).await?,
        question: requests::question(db, customer).await?,
    })
}

/// Those of a user's `budgets` that an entry fills, his own or (`of_another`) that of another user of his account: whose window holds its
/// time. Caps are each user's own.
pub fn counting(budgets: &[Budget], time: DateTime<Utc>, of_another: bool) -> impl Iterator<Item = &Budget> {
    budgets.iter().filter(move |budget| budget.window.contains(time) && !(of_another && budget.source == Source::Cap))
}

/// When the first of the open windows began; `None` where no budget limits the user.
fn first_moment(budgets: &[Budget]) -> Option<DateTime<Utc>> {
    budgets.iter().map(|budget| budget.window.start.max(DateTime::UNIX_EPOCH)).min()
}

fn at_most(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
