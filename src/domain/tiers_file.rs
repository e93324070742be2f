//! Reads the text of `tiers.yaml` into a [`Catalogue`], or says everything that is wrong with it: line, column, what is
//! wrong, and what would be right.

mod alerts;
mod models;
mod rules;

use std::collections::{BTreeMap, HashMap};

use marked_yaml::Node;
use marked_yaml::types::{MarkedScalarNode, Span};

use super::catalogue::{
    Budgets, Catalogue, Fallbacks, Links, OnStoreDown, PausedCollection, Percent, Policy, SoldAs, Thresholds, Tier, UrlTemplate,
};
use super::decide::Scope;
use super::money::Money;
use super::period::Period;
use super::pricing::PriceBook;
use super::yaml::{self, Fields, NAME_BYTES_MAX, Problem, Reader, instead};

const GRACE_DAYS_DEFAULT: u32 = 7;
const GRACE_DAYS_MAX: u32 = 3650;
/// Ten times the limit: a threshold beyond is a slip of the keyboard.
const PERCENT_MAX: u32 = 1000;
const UPGRADE_URL_DEFAULT: &str = "/upgrade?from={tier}";

/// The catalogue that `text` describes beside `prices`, or all its faults in the order of the file.
pub fn read(text: &str, prices: PriceBook) -> Result<Catalogue, Vec<Problem>> {
    yaml::read(text, |reader, root| reader.catalogue(root, prices))
}

impl Reader {
    fn catalogue(&mut self, root: &Node, prices: PriceBook) -> Option<Catalogue> {
        const KEYS: &[&str] = &["default_tier", "upgrade_url", "contact_url", "pause_collection", "global", "rules", "tiers"];
        let fields = self.fields(root, "the file", KEYS)?;
        let rules = self.rules(fields.get("rules").copied());
        let mut tiers = self.tiers(fields.get("tiers").copied());
        self.put_first(&rules, &mut tiers);
        let names = fields.get("tiers").and_then(|node| node.as_mapping()).map(|tiers| tiers.keys().map(|name| name.as_str()).collect());
        let default_tier = self.default_tier(fields.get("default_tier").copied(), names.unwrap_or_default());
        let global = fields.get("global").and_then(|node| self.global(node, &tiers));
        let upgrade_url = match fields.get("upgrade_url").copied() {
            Some(node) => self.parsed(node, "upgrade_url", UrlTemplate::parse),
            None => UrlTemplate::parse(UPGRADE_URL_DEFAULT).ok(),
        };
        let contact_url = fields.get("contact_url").and_then(|node| self.parsed(node, "contact_url", contact_url));
        let paused_collection = match fields.get("pause_collection").copied() {
            Some(node) => self.parsed(node, "pause_collection", |text| match text {
                "keep" => Ok(PausedCollection::Keep),
                "suspend" => Ok(PausedCollection::Suspend),
                _ => Err("must be keep (a paused collection keeps the tier) or suspend (the default tier holds)".to_owned()),
            })?,
            None => PausedCollection::Keep,
        };
        let links = Links { upgrade_url: upgrade_url?, contact_url, paused_collection };
        for (tier, span) in &tiers {
            self.models_of(tier, span, &prices);
        }
        Catalogue::new(tiers.into_iter().map(|(tier, _)| tier).collect(), &default_tier?, global, links, prices)
    }

    /// `names` are all tiers that the file describes, faulty ones included: one fault is told once.
    fn default_tier(&mut self, node: Option<&Node>, names: Vec<&str>) -> Option<String> {
        let Some(node) = node else {
            self.problem(&Span::new_blank(), "`default_tier` is missing; name the tier of users who pay for nothing");
            return None;
        };
        let name = self.scalar(node, "default_tier")?.as_str().to_owned();
        if !names.is_empty() && !names.contains(&name.as_str()) {
            let message = format!("`default_tier: {name}` is not a tier; use one of {}", names.join(", "));
            self.problem(node.span(), message);
        }
        Some(name)
    }

    fn tiers(&mut self, node: Option<&Node>) -> Vec<(Tier, Span)> {
        let Some(node) = node else {
            self.problem(&Span::new_blank(), "`tiers` is missing; describe at least one tier below it");
            return Vec::new();
        };
        let Some(mapping) = node.as_mapping() else {
            self.problem(node.span(), "`tiers` must be a mapping from each tier's name to its description");
            return Vec::new();
        };
        if mapping.is_empty() {
            self.problem(node.span(), "`tiers` is empty; describe at least one tier");
        }
        let mut claims = Claims::default();
        let mut tiers: Vec<(Tier, Span)> = Vec::new();
        for (name, node) in mapping.iter() {
            let Some(tier) = self.tier(name, node, &mut claims) else { continue };
            if let Some((other, _)) = tiers.iter().find(|(other, _)| other.rank == tier.rank) {
                let message = format!(
                    "tier `{}` has the rank {} of tier `{}`; give each tier its own, the dearer the higher",
                    tier.name, tier.rank, other.name
                );
                self.problem(name.span(), message);
            }
            tiers.push((tier, *name.span()));
        }
        tiers
    }

    fn tier(&mut self, name: &MarkedScalarNode, node: &Node, claims: &mut Claims) -> Option<Tier> {
        const KEYS: &[&str] = &[
            "rank",
            "monthly_price",
            "budgets",
            "scope",
            "per_seat",
            "policy",
            "thresholds",
            "alerts",
            "degrade_to",
            "models",
            "unknown_model",
            "markup_pct",
            "rules",
            "on_store_down",
            "grace_days",
            "prices",
            "lookup_keys",
            "products",
        ];
        let label = format!("tier `{}`", name.as_str());
        if name.is_empty() || NAME_BYTES_MAX < name.len() || name.chars().any(char::is_control) {
            self.problem(name.span(), "a tier's name has 1 to 255 bytes and no control characters");
        }
        let fields = self.fields(node, &label, KEYS)?;
        let rank = match fields.get("rank").copied() {
            Some(node) => self.parsed(node, "rank", |text| text.parse::<i64>().map_err(|_| "must be a whole number".to_owned())),
            None => {
                self.problem(name.span(), format!("{label} has no `rank`; give a whole number, higher for the dearer tier"));
                None
            }
        };
        let monthly_price = fields.get("monthly_price").map(|node| self.money(node, "monthly_price"));
        let scope = match fields.get("scope").copied() {
            None => Some(Scope::User),
            Some(node) => self.parsed(node, "scope", |text| match text {
                "user" => Ok(Scope::User),
                "account" => Ok(Scope::Account),
                _ => Err("must be `user` (each user has the budgets) or `account` (its users share them)".to_owned()),
            }),
        };
        let per_seat = match fields.get("per_seat").copied() {
            None => Some(false),
            Some(node) => self.parsed(node, "per_seat", |text| text.parse::<bool>().map_err(|_| "must be `true` or `false`".to_owned())),
        };
        let budgets = self.budgets(&fields, &label, name.span());
        let budgets = budgets.and_then(|budgets| Some(Budgets { scope: scope?, per_seat: per_seat?, ..budgets }));
        let fallbacks = fields.get("degrade_to").and_then(|node| self.fallbacks(node)).unwrap_or_default();
        if budgets.as_ref().is_some_and(|budgets| budgets.thresholds.degrade.is_some()) && fallbacks.default.is_none() {
            let message = format!("{label} degrades, so `degrade_to` needs a `default`: the model to go on with where no other is named");
            self.problem(name.span(), message);
        }
        let (models, unknown_model, markup) = (self.models(&fields), self.unknown_model(&fields), self.markup(&fields));
        let on_store_down = match fields.get("on_store_down").copied() {
            None => Some(OnStoreDown::Block),
            Some(node) => self.parsed(node, "on_store_down", |text| match text {
                "block" => Ok(OnStoreDown::Block),
                "allow" => Ok(OnStoreDown::Allow),
                _ => Err("must be block (nothing may be spent while the store is away) or allow (calls pass, and may never be counted)"
                    .to_owned()),
            }),
        };
        let grace_days = match fields.get("grace_days").copied() {
            Some(node) => self.parsed(node, "grace_days", |text| match text.parse() {
                Ok(days) if days <= GRACE_DAYS_MAX => Ok(days),
                _ => Err(format!("must be a whole number of days from 0 to {GRACE_DAYS_MAX}")),
            })?,
            None => GRACE_DAYS_DEFAULT,
        };
        let rules = self.rules(fields.get("rules").copied());
        let mut list = |key: &'static str, kind: &'static str| {
            let names = fields.get(key).map(|node| self.names(node, key)).unwrap_or_default();
            names.into_iter().filter_map(|node| self.claim(claims, kind, node, name.as_str())).collect::<Vec<_>>()
        };
        let sold_as = SoldAs {
            prices: list("prices", "price"),
            lookup_keys: list("lookup_keys", "lookup key"),
            products: list("products", "product"),
        };
        let monthly_price = monthly_price.unwrap_or(Some(Money::ZERO))?;
        Some(Tier {
            name: name.as_str().to_owned(),
            rank: rank?,
            monthly_price,
            budgets: budgets?,
            on_store_down: on_store_down?,
            grace_days,
            fallbacks,
            models: models?,
            unknown_model: unknown_model?,
            markup: markup?,
            sold_as,
            rules,
        })
    }

    /// A price buys one tier only.
    fn claim(&mut self, claims: &mut Claims, kind: &'static str, node: &MarkedScalarNode, tier: &str) -> Option<String> {
        let id = node.as_str().to_owned();
        let line = node.span().start().map_or(0, |at| at.line());
        if let Some((other, first)) = claims.0.get(&(kind, id.clone())) {
            let message = format!("{kind} `{id}` is claimed by tier `{other}` in line {first} already; it can buy one tier only");
            self.problem(node.span(), message);
            return None;
        }
        claims.0.insert((kind, id.clone()), (tier.to_owned(), line));
        Some(id)
    }

    fn global(&mut self, node: &Node, tiers: &[(Tier, Span)]) -> Option<Budgets> {
        let fields = self.fields(node, "`global`", &["budgets", "policy", "thresholds", "alerts"])?;
        let budgets = Budgets { scope: Scope::Global, ..self.budgets(&fields, "`global`", node.span())? };
        if budgets.limits.contains_key(&Period::Billing) {
            self.problem(node.span(), "`global` has no subscription, so it has no `billing` period; use monthly");
        }
        for (tier, span) in tiers.iter().filter(|(tier, _)| tier.fallbacks.default.is_none()) {
            if budgets.thresholds.degrade.is_some() {
                let message = format!("`global` degrades, so tier `{}` needs `degrade_to` with a `default`", tier.name);
                self.problem(span, message);
            }
        }
        Some(budgets)
    }

    fn budgets(&mut self, fields: &Fields<'_>, label: &str, span: &Span) -> Option<Budgets> {
        let mut limits = BTreeMap::new();
        match fields.get("budgets").copied() {
            None => self.problem(span, format!("{label} has no `budgets`; give limits such as `daily: 1.00`, or `{{}}` for none")),
            Some(node) => {
                for (name, value) in self.mapping(node, "budgets")? {
                    let Some(period) = Period::parse(name.as_str()) else {
                        let names = Period::ALL.map(Period::name);
                        let message = format!("`{}` is not a period; {}", name.as_str(), instead(name.as_str(), &names));
                        self.problem(name.span(), message);
                        continue;
                    };
                    if let Some(limit) = self.money(value, name.as_str()) {
                        limits.insert(period, limit);
                    }
                }
            }
        }
        let (thresholds, alerts) = (self.thresholds(fields, label, span), self.alerts(fields));
        Some(Budgets { scope: Scope::User, per_seat: false, limits, thresholds: thresholds?, alerts: alerts? })
    }

    fn thresholds(&mut self, fields: &Fields<'_>, label: &str, span: &Span) -> Option<Thresholds> {
        let preset = match fields.get("policy").copied() {
            Some(node) => {
                let policy = self.parsed(node, "policy", |text| {
                    let names = Policy::ALL.map(Policy::name);
                    let found = Policy::ALL.into_iter().find(|policy| policy.name() == text);
                    found.ok_or_else(|| format!("is not a policy; {}", instead(text, &names)))
                })?;
                policy.thresholds()
            }
            None if fields.get("thresholds").and_then(|node| node.as_mapping()).is_some_and(|at| !at.is_empty()) => {
                Thresholds { warn: None, degrade: None, block: None }
            }
            None => {
                let message = format!("{label} has no `policy`; use one of strict, graceful, soft, monitor, or write `thresholds`");
                self.problem(span, message);
                return None;
            }
        };
        let Some(node) = fields.get("thresholds").copied() else { return Some(preset) };
        let overrides = self.fields(node, "`thresholds`", &["warn", "degrade", "block"])?;
        let mut at = |key: &str, inherited: Option<Percent>| match overrides.get(key).copied() {
            Some(node) => self.percent(node, key),
            None => Some(inherited),
        };
        let (warn, degrade, block) = (at("warn", preset.warn), at("degrade", preset.degrade), at("block", preset.block));
        let thresholds = Thresholds { warn: warn?, degrade: degrade?, block: block? };
        let given = [("warn", thresholds.warn), ("degrade", thresholds.degrade), ("block", thresholds.block)];
        let mut before: Option<(&str, Percent)> = None;
        for (name, percent) in given.into_iter().filter_map(|(name, percent)| Some((name, percent?))) {
            if let Some((milder, lower)) = before.filter(|(_, lower)| percent < *lower) {
                let message = format!(
                    "{label}: thresholds descend: `{milder}` at {lower} % comes after `{name}` at {percent} %; \
                     they must ascend from warn over degrade to block"
                );
                self.problem(node.span(), message);
                return None;
            }
            before = Some((name, percent));
        }
        Some(thresholds)
    }

    /// `Some(None)` is a written `null`: never.
    fn percent(&mut self, node: &Node, key: &str) -> Option<Option<Percent>> {
        if node.as_scalar().is_some_and(|scalar| scalar.may_coerce() && matches!(scalar.as_str(), "null" | "~" | "")) {
            return Some(None);
        }
        self.parsed(node, key, |text| percent(text).map_err(|why| why + ", or null")).map(Some)
    }

    fn fallbacks(&mut self, node: &Node) -> Option<Fallbacks> {
        let mut fallbacks = Fallbacks::default();
        for (model, value) in self.mapping(node, "degrade_to")? {
            let Some(cheaper) = self.name(value, model.as_str()) else { continue };
            if model.as_str() == "default" {
                fallbacks.default = Some(cheaper);
            } else {
                fallbacks.by_model.insert(model.as_str().to_owned(), cheaper);
            }
        }
        if let Some(model) = fallbacks.by_model.keys().find(|model| leads_back(&fallbacks.by_model, model)) {
            self.problem(node.span(), format!("`degrade_to` leads from `{model}` back to itself; each step must be cheaper"));
        }
        Some(fallbacks)
    }
}

/// Which tier claimed a price (lookup key, product) first, and in which line.
#[derive(Default)]
struct Claims(HashMap<(&'static str, String), (String, usize)>);

/// Whether following the fallbacks from `model` comes back to it.
fn leads_back(by_model: &BTreeMap<String, String>, model: &str) -> bool {
    let steps = std::iter::successors(by_model.get(model), |cheaper| by_model.get(*cheaper));
    steps.take(by_model.len()).any(|cheaper| cheaper == model)
}

fn contact_url(text: &str) -> Result<String, String> {
    let rest = ["https://", "http://", "mailto:"].iter().find_map(|start| text.strip_prefix(start));
    if rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Ok(text.to_owned());
    }
    Err("must begin with https://, http:// or mailto: and have no white space".to_owned())
}

fn percent(text: &str) -> Result<Percent, String> {
    let fault = || format!("must be a percentage from 0 to {PERCENT_MAX} with at most two decimals");
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || 2 < decimals.len() {
        return Err(fault());
    }
    let hundredths = format!("{decimals:0<2}").parse::<u32>().map_err(|_| fault())?;
    match whole.parse::<u32>() {
        Ok(whole) if whole < PERCENT_MAX || (whole == PERCENT_MAX && hundredths == 0) => Ok(Percent(whole * 100 + hundredths)),
        _ => Err(fault()),
    }
}
