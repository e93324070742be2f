//! All tiers, and the prices that buy them. A [`Catalogue`] exists only when it makes sense as a whole
//! (`tiers_file::read` says what does not).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

use super::alerts::Marks;
use super::decide::Scope;
use super::models::{Models, UnknownModel};
use super::money::Money;
use super::period::Period;
use super::pricing::PriceBook;
use super::rules::Rules;
use super::user::UserId;

/// What is left unescaped in a template's values: RFC 3986's unreserved characters.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A named plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub name: String,
    /// The higher rank wins where a customer pays for several tiers. No two tiers share one.
    pub rank: i64,
    /// What the plan costs a month, for people to read.
    pub monthly_price: Money,
    pub budgets: Budgets,
    /// What its users are told while the store is away.
    pub on_store_down: OnStoreDown,
    /// The days a subscription that is past due keeps this tier, from when we first saw it so.
    pub grace_days: u32,
    pub fallbacks: Fallbacks,
    /// Which models it includes.
    pub models: Models,
    /// What a model that the price book does not have is worth.
    pub unknown_model: UnknownModel,
    /// What is added to the price of a call whose cost is worked out from its tokens.
    pub markup: Percent,
    pub sold_as: SoldAs,
    /// The file's own, then the tier's.
    pub rules: Rules,
}

/// What at Stripe buys a tier. A price id is an arbitrary string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SoldAs {
    pub prices: Vec<String>,
    pub lookup_keys: Vec<String>,
    pub products: Vec<String>,
}

impl SoldAs {
    pub fn is_nothing(&self) -> bool {
        self.prices.is_empty() && self.lookup_keys.is_empty() && self.products.is_empty()
    }
}

/// Limits for one scope, and what happens as they fill. A period that is absent has no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Whose spend they limit.
    pub scope: Scope,
    /// Whether the quantity that a subscription buys multiplies them.
    pub per_seat: bool,
    pub limits: BTreeMap<Period, Money>,
    pub thresholds: Thresholds,
    /// Of which marks of them somebody is told.
    pub alerts: Marks,
}

/// Hundredths of a percent of the limit, so that `82.5` is a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    pub const fn whole(percent: u32) -> Self {
        Self(percent * 100)
    }
}

/// `20`, `82.5`, `0.25`, without the sign.
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, hundredths) if hundredths % 10 == 0 => write!(f, "{whole}.{}", hundredths / 10),
            (whole, hundredths) => write!(f, "{whole}.{hundredths:02}"),
        }
    }
}

/// A JSON number, written from its text.
impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// From which part of the limit on an action is due; `None` means never. They do not descend: warn ≤ degrade ≤ block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub warn: Option<Percent>,
    pub degrade: Option<Percent>,
    pub block: Option<Percent>,
}

/// The presets reproduce the behaviour of cascadeflow 1.2.0's built-in callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Strict,
    Graceful,
    Soft,
    Monitor,
}

impl Policy {
    pub const ALL: [Self; 4] = [Self::Strict, Self::Graceful, Self::Soft, Self::Monitor];

    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Graceful => "graceful",
            Self::Soft => "soft",
            Self::Monitor => "monitor",
        }
    }

    pub fn thresholds(self) -> Thresholds {
        let at = |percent: u32| Some(Percent::whole(percent));
        match self {
            Self::Strict => Thresholds { warn: at(80), degrade: None, block: at(100) },
            Self::Graceful => Thresholds { warn: at(80), degrade: at(90), block: at(100) },
            Self::Soft => Thresholds { warn: at(90), degrade: at(100), block: None },
            Self::Monitor => Thresholds { warn: at(90), degrade: None, block: None },
        }
    }
}

/// The cheaper model to go on with on DEGRADE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallbacks {
    pub by_model: BTreeMap<String, String>,
    pub default: Option<String>,
}

impl Fallbacks {
    /// The models to use instead of `requested`, step by step, and then the one for every model. None for a model that is itself a
    /// fallback: it stays as it is.
    pub fn instead_of<'a>(&'a self, requested: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        let first = requested.and_then(|model| self.by_model.get(model));
        let steps = std::iter::successors(first, |cheaper| self.by_model.get(*cheaper)).take(self.by_model.len());
        let is = |model: &str| self.default.as_deref() == Some(model) || self.by_model.values().any(|cheaper| cheaper == model);
        let stays = first.is_none() && requested.is_some_and(is);
        steps.map(String::as_str).chain(self.default.as_deref().filter(|_| !stays))
    }
}

/// What a subscription whose `pause_collection` is set (its status stays active) is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedCollection {
    Keep,
    Suspend,
}

impl PausedCollection {
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Suspend => "suspend",
        }
    }
}

/// What a check is answered while the store cannot be read, or does not confirm what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreDown {
    /// No limit can be held, so nothing may be spent.
    Block,
    /// Calls pass, and what they cost may never be counted.
    Allow,
}

impl OnStoreDown {
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
        }
    }
}

/// Where a blocked user can buy more: a URL with `{tier}` (the one he has), `{to}` (the one that he would buy) and
/// `{user_id}` to be filled in. It begins with `https://`, `http://`, or with `/` below the service's own public URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlTemplate(String);

impl UrlTemplate {
    /// The one page that this service serves itself.
    const OUR_PAGE: &str = "/upgrade";
    pub const PLACEHOLDERS: [&'static str; 3] = ["tier", "to", "user_id"];

    /// `Err` is a sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let host = ["https://", "http://"].iter().find_map(|start| text.strip_prefix(start));
        let elsewhere = host.is_some_and(|host| host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
        let ours = text.split(['?', '#']).next() == Some(Self::OUR_PAGE);
        if !elsewhere && !ours {
            return Err("must begin with https:// or http:// and a host, or be /upgrade, the page below PUBLIC_URL".to_owned());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("has white space; percent-encode it".to_owned());
        }
        for part in text.split('{').skip(1) {
            let name = part.split_once('}').map(|(name, _)| name);
            if !name.is_some_and(|name| Self::PLACEHOLDERS.contains(&name)) {
                return Err("has an unknown placeholder; {tier}, {to} and {user_id} are filled in".to_owned());
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it leads to this service itself.
    pub fn is_below_us(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The URL itself; what is filled in is percent-encoded. `public_url` has no slash at its end.
    pub fn fill(&self, public_url: &str, tier: &str, to: &str, user_id: &UserId) -> String {
        let encoded = |value: &str| utf8_percent_encode(value, VALUE).to_string();
        let base = if self.is_below_us() { public_url } else { "" };
        let mut url = base.to_owned();
        for (index, part) in self.0.split('{').enumerate() {
            match part.split_once('}').filter(|_| 0 < index) {
                Some(("tier", rest)) => url.extend([&encoded(tier), rest]),
                Some(("to", rest)) => url.extend([&encoded(to), rest]),
                Some(("user_id", rest)) => url.extend([&encoded(user_id.as_str()), rest]),
                Some(_) | None => url.push_str(part),
            }
        }
        url
    }
}

/// All tiers, and what models cost. Made by `tiers_file::read` only.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub prices: PriceBook,
    tiers: Vec<Tier>,
    default: usize,
    by_price: HashMap<String, usize>,
    by_lookup_key: HashMap<String, usize>,
    by_product: HashMap<String, usize>,
    pub global: Option<Budgets>,
    pub paused_collection: PausedCollection,
    pub upgrade_url: UrlTemplate,
    pub contact_url: Option<String>,
}

/// How one item of a subscription may name its tier, in the order in which it is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct ItemNames<'a> {
    pub price: Option<&'a str>,
    pub lookup_key: Option<&'a str>,
    pub metadata_tier: Option<&'a str>,
    pub product: Option<&'a str>,
}

impl Catalogue {
    /// `tiers` is not empty, its names and ranks are unique, and `default` is the place of one of them.
    pub(super) fn new(mut tiers: Vec<Tier>, default_tier: &str, global: Option<Budgets>, links: Links, prices: PriceBook) -> Option<Self> {
        tiers.sort_by_key(|tier| tier.rank);
        let default = tiers.iter().position(|tier| tier.name == default_tier)?;
        let index = |names: fn(&SoldAs) -> &Vec<String>| {
            let places = tiers.iter().enumerate();
            places.flat_map(|(place, tier)| names(&tier.sold_as).iter().map(move |name| (name.clone(), place))).collect()
        };
        Some(Self {
            by_price: index(|sold| &sold.prices),
            by_lookup_key: index(|sold| &sold.lookup_keys),
            by_product: index(|sold| &sold.products),
            prices,
            tiers,
            default,
            global,
            paused_collection: links.paused_collection,
            upgrade_url: links.upgrade_url,
            contact_url: links.contact_url,
        })
    }

    /// In ascending rank.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    pub fn default_tier(&self) -> &Tier {
        &self.tiers[self.default]
    }

    pub fn tier(&self, name: &str) -> Option<&Tier> {
        self.tiers.iter().find(|tier| tier.name == name)
    }

    /// The tier that an item of a subscription buys: by price id, else lookup key, else the price's metadata, else the
    /// product. `None` is an add-on, or a price that the operator forgot.
    pub fn tier_of(&self, item: ItemNames<'_>) -> Option<&Tier> {
        let known = |index: &HashMap<String, usize>, name: Option<&str>| name.and_then(|name| index.get(name)).copied();
        known(&self.by_price, item.price)
            .or_else(|| known(&self.by_lookup_key, item.lookup_key))
            .map(|place| &self.tiers[place])
            .or_else(|| item.metadata_tier.and_then(|name| self.tier(name)))
            .or_else(|| known(&self.by_product, item.product).map(|place| &self.tiers[place]))
    }

    /// The higher tiers that can be bought, the next one first.
    pub fn upgrades_from(&self, tier: &Tier) -> impl Iterator<Item = &Tier> {
        let rank = tier.rank;
        self.tiers.iter().filter(move |other| rank < other.rank && !other.sold_as.is_nothing())
    }

    /// Whether any budget of any tier follows the subscription's own period.
    pub fn uses(&self, period: Period) -> bool {
        self.tiers.iter().any(|tier| tier.budgets.limits.contains_key(&period))
    }
}

/// What a catalogue says beside tiers.
#[derive(Clone, Debug)]
pub struct Links {
    pub upgrade_url: UrlTemplate,
    pub contact_url: Option<String>,
    pub paused_collection: PausedCollection,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_into_a_template_is_percent_encoded() {
        let user = UserId::parse("a|b&c=\"{tier}\"é").unwrap_or_else(|error| panic!("{error}"));
        let template = UrlTemplate::parse("/upgrade?from={tier}&u={user_id}&to={to}").unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(
            template.fill("https://spend.example.com", "free tier", "pro", &user),
            "https://spend.example.com/upgrade?from=free%20tier&u=a%7Cb%26c%3D%22%7Btier%7D%22%C3%A9&to=pro"
        );
        assert!(UrlTemplate::parse("javascript:alert(1)").is_err());
        assert!(UrlTemplate::parse("https://x.example/{teir}").is_err());
        assert!(UrlTemplate::parse("https://x.example/{tier").is_err());
        assert!(UrlTemplate::parse("https://x.example/\r\nSet-Cookie: a").is_err());
    }

    #[test]
    fn a_fallback_is_never_degraded_further() {
        let fallbacks =
            Fallbacks { by_model: BTreeMap::from([("gpt-4o".to_owned(), "gpt-4o-mini".to_owned())]), default: Some("tiny".to_owned()) };
        let check = |requested: Option<&str>, expected: &[&str]| {
            assert_eq!(fallbacks.instead_of(requested).collect::<Vec<_>>(), expected, "{requested:?}");
        };
        check(Some("gpt-4o"), &["gpt-4o-mini", "tiny"]);
        check(Some("gpt-4o-mini"), &[]);
        check(Some("tiny"), &[]);
        check(Some("other"), &["tiny"]);
        check(None, &["tiny"]);
    }
}
