//! The `rules:` of the file, at its top and in tiers.

use marked_yaml::Node;
use marked_yaml::types::Span;

use super::super::catalogue::Tier;
use super::super::decide::Action;
use super::super::rules::{Rule, Rules, When, rule_message, rule_name};
use super::super::yaml::{Reader, instead};

impl Reader {
    /// What is faulty is told, and left out.
    pub(super) fn rules(&mut self, node: Option<&Node>) -> Rules {
        let Some(node) = node else { return Rules::default() };
        let Some(list) = node.as_sequence() else {
            self.problem(node.span(), "`rules` must be a list of name, when, action and message");
            return Rules::default();
        };
        let rules = list.iter().filter_map(|node| self.rule(node)).collect();
        self.bounded(Rules::new(rules), node.span())
    }

    /// The file's own rules go before those of each tier.
    pub(super) fn put_first(&mut self, rules: &Rules, tiers: &mut [(Tier, Span)]) {
        for (tier, span) in tiers {
            tier.rules = self.bounded(rules.followed_by(&tier.rules), span);
            let degrading = tier.rules.iter().find(|rule| rule.action() == Action::Degrade);
            if let Some(rule) = degrading.filter(|_| tier.fallbacks.default.is_none()) {
                let message = format!("rule `{}` degrades, so tier `{}` needs `degrade_to` with a `default`", rule.name(), tier.name);
                self.problem(span, message);
            }
        }
    }

    fn bounded(&mut self, rules: Result<Rules, String>, span: &Span) -> Rules {
        rules.unwrap_or_else(|why| {
            self.problem(span, why);
            Rules::default()
        })
    }

    fn rule(&mut self, node: &Node) -> Option<Rule> {
        let fields = self.fields(node, "a rule", &["name", "when", "action", "message"])?;
        // A block mapping begins, says the parser, at its first colon.
        let first = node.as_mapping().and_then(|mapping| mapping.keys().next());
        let span = first.map_or(*node.span(), |key| *key.span());
        let mut needed = |key: &str, what: &str| {
            let found = fields.get(key).copied();
            if found.is_none() {
                self.problem(&span, format!("a rule has no `{key}`; give {what}"));
            }
            found
        };
        let name = needed("name", "it a name of its own");
        let when = needed("when", "a condition such as estimate > 0.05");
        let action = needed("action", "one of WARN, DEGRADE, BLOCK");
        let name = name.and_then(|node| Some((self.parsed(node, "name", rule_name)?, node)));
        if let Some((name, node)) = &name {
            let line = node.span().start().map_or(0, |at| at.line());
            if let Some(first) = self.rule_lines.insert(name.clone(), line) {
                self.problem(node.span(), format!("rule `{name}` is there already, in line {first}; names are unique within the file"));
            }
        }
        let when = when.and_then(|node| self.when(node));
        let action = action.and_then(|node| self.parsed(node, "action", action_named));
        let message = match fields.get("message").copied() {
            Some(node) => Some(self.parsed(node, "message", rule_message)?),
            None => None,
        };
        Some(Rule::new(name?.0, when?, action?, message))
    }

    fn when(&mut self, node: &Node) -> Option<When> {
        let scalar = self.scalar(node, "when")?;
        match When::compile(scalar.as_str()) {
            Ok(when) => Some(when),
            Err(why) => {
                self.problem(scalar.span(), format!("`when`: {why}"));
                None
            }
        }
    }
}

fn action_named(text: &str) -> Result<Action, String> {
    let names = [Action::Warn, Action::Degrade, Action::Block].map(Action::name);
    let found = Action::ALL.into_iter().find(|action| action.name() == text && names.contains(&text));
    found.ok_or_else(|| format!("is not an action of rules; {}", instead(text, &names)))
}
