//! The way to pay more: signed links that are made without asking Stripe, and what happens when somebody opens one.
//!
//! Nothing is made at Stripe for a link that nobody opens, and nothing twice for one that is opened twice.

mod slots;
mod token;
mod way;

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::warn;

use crate::domain::catalogue::Tier;
use crate::domain::user::UserId;
use crate::store::{StoreError, accounts};
use crate::stripe::client::{Checkout, CheckoutSession, Client, Idempotency, Patience, PortalFlow, StripeError};
use crate::sync::asking::{AskError, Asker};
use crate::sync::{self, Owner, Touched};
use slots::{Openings, Page, Selling, Session, Slots};
pub use token::{Claim, Key, Purpose, TokenError};
use way::{Way, way};

/// How long a link leads on.
const LINK_HOURS: u32 = 24;
/// How long the way back from Stripe is open: a checkout session is open for a day, and the link of a session may be a day old.
const RETURN_HOURS: u32 = 72;
/// A checkout session that ends so soon is not handed out again.
const MARGIN: TimeDelta = TimeDelta::minutes(10);
/// How long a session of the portal is handed out: Stripe ends those that nobody opened after some minutes.
const PORTAL_SECONDS: i64 = 60;
const SECONDS_PER_DAY: i64 = 86_400;
/// How often within a day a session that another one ended is made anew; beyond, people see our own page of plans.
const ANEW_MAX: usize = 8;

/// Why nobody is sent on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("links were opened too often within a minute")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stripe(#[from] StripeError),
}

/// Where somebody who opened a link is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A page of Stripe's.
    Stripe(String),
    /// Stripe has no page for him: the target is not sold any more, or the portal is not set up.
    Plans,
}

/// Makes links, and follows them.
pub struct Upgrades {
    asker: Arc<Asker>,
    key: Key,
    /// Without a slash at its end.
    public_url: String,
    slots: Slots,
    openings: Openings,
}

impl fmt::Debug for Upgrades {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrades").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

impl Upgrades {
    pub fn new(asker: Arc<Asker>, key: Key, public_url: String) -> Self {
        Self { asker, key, public_url, slots: Slots::default(), openings: Openings::default() }
    }

    /// The link for a user to a tier. It neither waits nor writes.
    pub fn link(&self, user: &UserId, target: &str, now: DateTime<Utc>) -> Option<String> {
        self.key.sign([&self.public_url, "/upgrade/"], Purpose::Upgrade, (user, target), now, LINK_HOURS)
    }

    /// What a link says, without following it.
    pub fn read(&self, purpose: Purpose, token: &str, now: DateTime<Utc>) -> Result<Claim, TokenError> {
        self.key.read(purpose, token, now)
    }

    /// Follows a link: asks Stripe what there is, and gives the page that is right for it. To be run to its end: what is made at Stripe
    /// is written down here.
    pub async fn open(&self, claim: &Claim, now: DateTime<Utc>) -> Result<Destination, UpgradeError> {
        let catalogue = &self.asker.catalogue.load_full();
        let Some(target) = catalogue.tier(&claim.target) else { return Ok(Destination::Plans) };
        self.count(claim, now)?;
        let slot = self.slots.of(&self.payer(&claim.user).await?).ok_or(UpgradeError::TooMany)?;
        // One at a time for each payer, so that what the first one made is there for the second: users of one account who each made
        // a session could buy the same twice.
        let mut slot = slot.lock().await;
        let client = self.asker.client.with(Patience::INTERACTIVE);
        let customer = match self.customer(&client, &claim.user, now).await {
            // Perhaps the key is another account's, or of the other mode.
            Err(UpgradeError::Stripe(error)) if error.is_final() => {
                warn!("Stripe has no customer for a user who wants more: {error}");
                return Ok(Destination::Plans);
            }
            customer => customer?,
        };
        let way = way(&client.subscriptions_of(&customer, now).await?, catalogue, target);
        let ours = format!("{}/billing/return/", self.public_url);
        let back = self.back(claim, now);
        let visit = Visit { client: &client, customer: &customer, user: &claim.user, target, back, ours: &ours, now };
        if let Some(page) = slot.known(&claim.target, &customer, &way, now)
            && visit.stands(&page).await?
        {
            return Ok(Destination::Stripe(page.url));
        }
        let made = match visit.session(&way).await {
            // What the portal does not let him change he may change by hand.
            Err(error) if error.is_final() && matches!(way, Way::Change { .. } | Way::Pay { .. }) => {
                warn!(%customer, "the portal does not do what was asked, so {customer} is sent to its home: {error}");
                visit.portal(PortalFlow::Home).await.map(Some)
            }
            made => made,
        };
        match made {
            Ok(Some(page)) => {
                let url = page.url.clone();
                slot.keep(Session { target: claim.target.clone(), customer, way, page }, now);
                Ok(Destination::Stripe(url))
            }
            Ok(None) => Ok(Destination::Plans),
            Err(error) if error.is_final() => {
                warn!(%customer, "Stripe has no page for {customer}: {error}");
                Ok(Destination::Plans)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what Stripe says of the user's customer our record, since he is back before the webhook is.
    pub async fn returned(&self, claim: &Claim, now: DateTime<Utc>) -> Result<(), UpgradeError> {
        self.count(claim, now)?;
        let Some(customer) = self.bound(&claim.user).await? else { return Ok(()) };
        match self.asker.now(&customer).await {
            Ok(()) => Ok(()),
            Err(AskError::Store(error)) => Err(error.into()),
            Err(AskError::Stripe(error)) => Err(error.into()),
            Err(AskError::NoSuch) => Err(StripeError::NotFound.into()),
        }
    }

    /// The same all day: under one idempotency key Stripe takes one body.
    fn back(&self, claim: &Claim, now: DateTime<Utc>) -> String {
        let since = now - TimeDelta::seconds(now.timestamp().rem_euclid(SECONDS_PER_DAY));
        let url = [&*self.public_url, "/billing/return/"];
        let signed = self.key.sign(url, Purpose::Return, (&claim.user, &claim.target), since, RETURN_HOURS);
        signed.unwrap_or_else(|| self.public_url.clone())
    }

    fn count(&self, claim: &Claim, now: DateTime<Utc>) -> Result<(), UpgradeError> {
        if self.openings.count(&claim.user, now) { Ok(()) } else { Err(UpgradeError::TooMany) }
    }

    /// Who pays for a user: the account that he belongs to, else he himself.
    async fn payer(&self, user: &UserId) -> Result<Owner, StoreError> {
        let mut reader = self.asker.store.reader().await?;
        let known = accounts::users(&mut reader, std::slice::from_ref(user)).await?.remove(user);
        Ok(known.and_then(|known| known.profile.account).map_or_else(|| Owner::User(user.clone()), Owner::Account))
    }

    /// The customer who pays for a user: his account's, else his own.
    async fn bound(&self, user: &UserId) -> Result<Option<String>, StoreError> {
        let mut reader = self.asker.store.reader().await?;
        let known = accounts::users(&mut reader, std::slice::from_ref(user)).await?.remove(user);
        Ok(known.and_then(|known| known.profile.stripe_customer))
    }

    /// The customer who pays for a user; made where there is none, and where it was deleted.
    async fn customer(&self, client: &Client, user: &UserId, now: DateTime<Utc>) -> Result<String, UpgradeError> {
        let known = self.bound(user).await?;
        if let Some(known) = &known {
            let remote = client.customer(known).await?.ok_or(StripeError::NotFound)?;
            if !remote.deleted {
                return Ok(remote.id);
            }
        }
        // The same key however often it is tried: one customer for one user, and another one only after that one was deleted.
        let once = format!("upgrade customer {user} after {}", known.as_deref().unwrap_or("none"));
        let made = client.create_customer(user.as_str(), None, Idempotency::Key(&once)).await?;
        let mut tx = self.asker.store.begin().await?;
        let db = tx.connection()?;
        let found = accounts::users(db, std::slice::from_ref(user)).await?.remove(user);
        let found = found.and_then(|found| found.profile.stripe_customer);
        if let Some(found) = found.filter(|found| known.as_ref() != Some(found)) {
            // Somebody bound one meanwhile; the one that was made has nothing.
            return Ok(found);
        }
        // A new one in the place of an account's pays for the account: bound to the user it would pay for nobody, since the account's
        // comes first.
        let before = match &known {
            Some(known) => accounts::customer(db, known).await?.and_then(|known| known.account),
            None => None,
        };
        let owner = before.map_or_else(|| Owner::User(user.clone()), Owner::Account);
        if sync::bind(db, &owner, &made, false, now).await?.is_err() {
            warn!(customer = %made, "the customer {made} that was made for a user is bound to somebody else already");
            return Err(StripeError::Unreadable("a new customer is somebody else's").into());
        }
        let touched = match &owner {
            Owner::User(user) => Touched::Users(vec![user.clone()]),
            Owner::Account(account) => Touched::members(db, account).await?,
        };
        let done = tx.commit().await;
        // Where the outcome is unknown memory forgets everybody.
        (self.asker.tell)(if done.is_ok() { &touched } else { &Touched::Many });
        done?;
        Ok(made)
    }
}

/// One opening of a link.
struct Visit<'a> {
    client: &'a Client,
    customer: &'a str,
    user: &'a UserId,
    target: &'a Tier,
    /// Where he comes back to, and how all such places begin.
    back: String,
    ours: &'a str,
    now: DateTime<Utc>,
}

impl Visit<'_> {
    /// The page for a way; `None` where Stripe does not sell the target.
    async fn session(&self, way: &Way) -> Result<Option<Page>, StripeError> {
        let flow = match way {
            Way::Home => PortalFlow::Home,
            Way::Pay { invoice } => {
                let open = match invoice {
                    Some(invoice) => self.client.invoice_url(invoice).await?,
                    None => None,
                };
                match open {
                    Some(url) => return Ok(Some(Page { url, until: self.now + TimeDelta::seconds(PORTAL_SECONDS), checkout: None })),
                    None => PortalFlow::PaymentMethodUpdate,
                }
            }
            Way::Checkout { ended } => return self.checkout(*ended).await,
            Way::Change { subscription, item, quantity } => {
                let Some(price) = self.price().await? else { return self.portal(PortalFlow::Home).await.map(Some) };
                let flow = PortalFlow::SubscriptionUpdateConfirm { subscription, item, price: &price, quantity: *quantity };
                return self.portal(flow).await.map(Some);
            }
        };
        self.portal(flow).await.map(Some)
    }

    /// Whether a page that was made before is still the right one: a checkout that is open, and sells what the target is sold as by now.
    async fn stands(&self, page: &Page) -> Result<bool, StripeError> {
        let Some(Selling { session, price }) = &page.checkout else { return Ok(true) };
        Ok(self.price().await?.as_ref() == Some(price) && self.client.is_checkout_open(session).await?)
    }

    async fn checkout(&self, ended: usize) -> Result<Option<Page>, StripeError> {
        let Some(price) = self.price().await? else { return Ok(None) };
        // One that was made for another user of the account, or on the day before, serves as well; whoever looks at it stays there.
        let open = self.client.open_checkout_sessions(self.customer, &price).await?;
        let session = match open.into_iter().find(|session| session.expires_at.is_some_and(|ends| self.now + MARGIN < ends)) {
            Some(session) => session,
            None => self.new_checkout(&price, ended).await?,
        };
        self.client.end_other_checkouts(self.customer, &session.id, self.ours).await?;
        let until = session.expires_at.map_or(self.now, |ends| ends - MARGIN);
        Ok(Some(Page { url: session.url, until, checkout: Some(Selling { session: session.id, price }) }))
    }

    async fn new_checkout(&self, price: &str, ended: usize) -> Result<CheckoutSession, StripeError> {
        let checkout =
            Checkout { customer: self.customer, price, user_id: self.user.as_str(), success_url: &self.back, cancel_url: &self.back };
        // One a day, also over a restart; and another one once what was bought with it has ended.
        let mut salt = format!("{} {ended}", self.now.timestamp().div_euclid(SECONDS_PER_DAY));
        for _ in 0..ANEW_MAX {
            let session = self.client.create_checkout_session(checkout, Idempotency::Salt(&salt)).await?;
            if self.client.is_checkout_open(&session.id).await? {
                return Ok(session);
            }
            // Stripe answered what it had answered to the key before another session ended this one.
            salt = format!("{salt} after {}", session.id);
        }
        Err(StripeError::Unreadable("every checkout session of today has ended"))
    }

    async fn portal(&self, flow: PortalFlow<'_>) -> Result<Page, StripeError> {
        let salt = self.now.timestamp().div_euclid(PORTAL_SECONDS).to_string();
        let url = self.client.create_portal_session(self.customer, &self.back, flow, Idempotency::Salt(&salt)).await?;
        Ok(Page { url, until: self.now + TimeDelta::seconds(PORTAL_SECONDS), checkout: None })
    }

    /// What buys the target: its first price, else the first of its lookup keys that a price in use has, else what its first product
    /// costs.
    async fn price(&self) -> Result<Option<String>, StripeError> {
        let sold_as = &self.target.sold_as;
        if let Some(price) = sold_as.prices.first() {
            return Ok(Some(price.clone()));
        }
        if sold_as.lookup_keys.is_empty() {
            return match sold_as.products.first() {
                Some(product) => self.price_of(product).await,
                None => Ok(None),
            };
        }
        let keys: Vec<&str> = sold_as.lookup_keys.iter().map(String::as_str).collect();
        let mut prices = self.client.prices_by_lookup_keys(&keys).await?;
        prices.retain(|price| price.active && price.recurring);
        let of_key = |key: &str| prices.iter().find(|price| price.lookup_key.as_deref() == Some(key));
        Ok(keys.into_iter().find_map(of_key).map(|price| price.id.clone()))
    }

    /// The product's default price where it recurs, else the newest that does.
    async fn price_of(&self, product: &str) -> Result<Option<String>, StripeError> {
        let default = self.client.product(product).await?.and_then(|product| product.default_price);
        let mut prices = self.client.prices_of_product(product).await?;
        prices.retain(|price| price.active && price.recurring);
        let chosen = prices.iter().find(|price| Some(&price.id) == default.as_ref()).or(prices.first());
        Ok(chosen.map(|price| price.id.clone()))
    }
}
