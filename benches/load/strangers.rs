//! What it leaves behind to ask about a million users whom nobody knows.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::service::{Service, client};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 1_000_000)]
    users: usize,
}

/// In one request.
const AT_ONCE: usize = 1000;

pub async fn ask(args: Args) -> Result<()> {
    let service = Service::start()?;
    let client = client()?;
    let ask = async |from: usize, to: usize| {
        for start in (from..to).step_by(AT_ONCE) {
            let one = |user: usize| format!("{{\"user_id\":\"stranger-{user}\"}}");
            let body: Vec<String> = (start..to.min(start + AT_ONCE)).map(one).collect();
            let request = client.post(format!("http://{}/v1/enforcement", service.address));
            request.bearer_auth(&service.key).body(format!("[{}]", body.join(","))).send().await?.error_for_status()?;
        }
        Ok::<_, anyhow::Error>(())
    };
    // What is there once is there after some of them.
    let some = args.users / 20;
    ask(0, some).await?;
    let before = service.resident()?;
    ask(some, args.users).await?;
    let after = service.resident()?;
    let users = client.get(format!("http://{}/v1/users", service.address)).bearer_auth(&service.key).send().await?;
    let users: Value = serde_json::from_str(&users.error_for_status()?.text().await?)?;
    ensure!(users["users"].as_array().is_some_and(Vec::is_empty), "strangers have become users: {users}");
    println!("{} strangers asked about, none of them has a row", args.users);
    println!("{} MB in memory after {some} of them, {} MB after all", before >> 20, after >> 20);
    Ok(())
}
