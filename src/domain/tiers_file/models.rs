//! What a tier says of models.

use marked_yaml::types::Span;

use super::{leads_back, percent};
use crate::domain::catalogue::{Percent, Tier};
use crate::domain::glob::Glob;
use crate::domain::models::{Models, UnknownModel};
use crate::domain::pricing::PriceBook;
use crate::domain::yaml::{Fields, Reader};

impl Reader {
    pub(super) fn models(&mut self, fields: &Fields<'_>) -> Option<Models> {
        let Some(node) = fields.get("models").copied() else { return Some(Models::default()) };
        let lists = self.fields(node, "`models`", &["allow", "deny"])?;
        let mut list = |key: &str| {
            let node = lists.get(key).copied()?;
            Some(self.names(node, key).into_iter().map(|name| Glob::new(name.as_str())).collect::<Vec<_>>())
        };
        let (allow, deny) = (list("allow"), list("deny").unwrap_or_default());
        if allow.as_ref().is_some_and(Vec::is_empty) {
            self.problem(node.span(), "`allow` is empty, so no model could be used; name some, or leave it out to allow all");
        }
        Some(Models { allow, deny })
    }

    pub(super) fn unknown_model(&mut self, fields: &Fields<'_>) -> Option<UnknownModel> {
        let Some(node) = fields.get("unknown_model").copied() else { return Some(UnknownModel::Refuse) };
        if node.as_mapping().is_some() {
            let fields = self.fields(node, "`unknown_model`", &["price_as"])?;
            let Some(model) = fields.get("price_as").copied() else {
                self.problem(node.span(), "`unknown_model` needs `price_as`, the model at whose price unknown ones are booked");
                return None;
            };
            return self.name(model, "price_as").map(UnknownModel::PriceAs);
        }
        self.parsed(node, "unknown_model", |text| match text {
            "refuse" => Ok(UnknownModel::Refuse),
            "flag" => Ok(UnknownModel::Flag),
            _ => Err("must be refuse (no price, no call), flag (it counts $0, and is told) or { price_as: a model }".to_owned()),
        })
    }

    pub(super) fn markup(&mut self, fields: &Fields<'_>) -> Option<Percent> {
        fields.get("markup_pct").map_or(Some(Percent(0)), |node| self.parsed(node, "markup_pct", percent))
    }

    /// What a tier says of models has to agree with itself and with the price book.
    pub(super) fn models_of(&mut self, tier: &Tier, span: &Span, prices: &PriceBook) {
        let name = &tier.name;
        if let UnknownModel::PriceAs(model) = &tier.unknown_model
            && prices.model(model, None).is_none()
        {
            self.problem(span, format!("tier `{name}`: `price_as: {model}` is not in prices.yaml; name a model that is"));
        }
        let fallbacks = &tier.fallbacks;
        for target in fallbacks.by_model.values().chain(&fallbacks.default) {
            if !tier.models.allows(target, None, prices) {
                self.problem(span, format!("tier `{name}`: `degrade_to` names `{target}`, which its own `models` do not allow"));
            }
        }
        for (from, target) in fallbacks.by_model.iter().filter(|(from, _)| !leads_back(&fallbacks.by_model, from)) {
            if prices.model(from, None).zip(prices.model(target, None)).is_some_and(|(from, target)| target.is_dearer_than(from)) {
                let message = format!("tier `{name}`: `degrade_to` leads from `{from}` to `{target}`, which prices.yaml says is dearer");
                self.problem(span, message);
            }
        }
    }
}
