//! `spendgate check-config`

use super::serve::{read_tls, retention};
use super::{Machine, read_catalogue, read_config, say};

pub fn run(machine: &Machine) -> anyhow::Result<()> {
    let config = read_config(machine)?;
    let (catalogue, sources) = read_catalogue(&config)?;
    retention(&config, &catalogue)?;
    read_tls(&config)?;
    say(format_args!("{}: {} tiers, the default is {}", sources.tiers, catalogue.tiers().len(), catalogue.default_tier().name));
    for tier in catalogue.tiers() {
        let limits: Vec<String> = tier.budgets.limits.iter().map(|(period, limit)| format!("{limit} {}", period.name())).collect();
        let limits = if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") };
        say(format_args!("  {} (rank {}): {limits}", tier.name, tier.rank));
        if tier.sold_as.is_nothing() && tier.name != catalogue.default_tier().name {
            say("    nothing at Stripe buys it; it can be set by hand only");
        }
    }
    let of_day = catalogue.prices.as_of.map(|day| format!(", as of {day}")).unwrap_or_default();
    say(format_args!("{}: prices of {} models{of_day}", sources.prices, catalogue.prices.models().len()));
    if config.webhook_secrets.is_empty() {
        say("STRIPE_WEBHOOK_SECRETS is not set: no webhook will be taken");
    }
    say("the settings are good");
    Ok(())
}
