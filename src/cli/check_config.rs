//! `spendgate check-config`

use super::{Machine, read_catalogue, read_config, say};

pub fn run(machine: &Machine) -> anyhow::Result<()> {
    let config = read_config(machine)?;
    let (catalogue, source) = read_catalogue(&config)?;
    say(format_args!("{source}: {} tiers, the default is {}", catalogue.tiers().len(), catalogue.default_tier().name));
    for tier in catalogue.tiers() {
        let limits: Vec<String> = tier.budgets.limits.iter().map(|(period, limit)| format!("{limit} {}", period.name())).collect();
        let limits = if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") };
        say(format_args!("  {} (rank {}): {limits}", tier.name, tier.rank));
        if tier.sold_as.is_nothing() && tier.name != catalogue.default_tier().name {
            say("    nothing at Stripe buys it; it can be set by hand only");
        }
    }
    if config.webhook_secrets.is_empty() {
        say("STRIPE_WEBHOOK_SECRETS is not set: no webhook will be taken");
    }
    say("the settings are good");
    Ok(())
}
