//! What the operator's own rules cost.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use crate::client::{self, Load, Pace};
use crate::median;
use crate::service::{Bare, Service};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of each turn.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What operators write; none of them applies to the checks that are driven.
const TEN: [&str; 10] = [
    "estimate > 1",
    "tier.name == 'pro' && estimate > 0.05",
    "now.getHours() > 24 && 'agent' in metadata",
    "'daily' in budgets && budgets.daily.used_pct > 99999.0",
    "model == 'o1' && tier.rank < 10",
    "model.startsWith('o1') && tier.name != 'enterprise'",
    "input_tokens > 100000",
    "user.id == 'u_13'",
    "has(metadata.feature) && metadata.feature == 'batch'",
    "user.account in ['acme', 'globex', 'initech']",
];

pub async fn compare(args: Args) -> Result<()> {
    let plain = "default_tier: free\ntiers:\n  free: { rank: 0, budgets: { daily: 100000, monthly: 1000000 }, policy: strict }\n";
    let mut ruled = format!("{plain}rules:\n");
    for (place, when) in TEN.iter().enumerate() {
        writeln!(ruled, "  - {{ name: rule_{place}, when: \"{when}\", action: WARN }}")?;
    }
    let folder = tempfile::tempdir()?;
    let service = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Service::start_with(&[("TIERS_FILE", &path.to_string_lossy())])
    };
    let (bare, plain, ruled) = (Bare::start(None)?, service("plain.yaml", plain)?, service("ruled.yaml", &ruled)?);
    plain.meet(0..1000).await?;
    ruled.meet(0..1000).await?;
    let turns =
        [(bare.address, Load::bare()), (plain.address, Load::check(&plain.key, 1000)), (ruled.address, Load::check(&ruled.key, 1000))];
    let mut rates = turns.each_ref().map(|_| Vec::new());
    for round in 0..=args.rounds {
        for (place, (address, load)) in turns.iter().enumerate() {
            let report = client::run(*address, load, 64, Pace::Closed, Duration::from_secs(args.seconds)).await?;
            // The first round warms up.
            if 0 < round {
                rates[place].push(report.rate());
            }
        }
    }
    let [bare, plain, ruled] = rates.each_mut().map(|rates| median(rates));
    println!("a check without rules {:.3} of the bare handler, with ten {:.3}: × {:.2}", plain / bare, ruled / bare, plain / ruled);
    Ok(())
}
