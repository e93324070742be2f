//! `spendgate replay`

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;

use super::{Machine, Misconfigured, read_config, say};
use crate::stripe::signature::Secret;

const MANIFEST: &str = "manifest.json";

/// Posts each file's bytes as they are, with a signature of this moment. A folder's manifest.json (a list of {"file", "http"}) says
/// which answer each file should have; without one it is 200. Ends with 1 where an answer differs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Event files, or folders of them (*.json).
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Where the service takes webhooks.
    #[arg(long, default_value = "http://127.0.0.1:8080/webhooks/stripe")]
    url: String,
    /// The endpoint's signing secret; the first of `STRIPE_WEBHOOK_SECRETS` where it is not given.
    #[arg(long)]
    secret: Option<String>,
    /// Post in random order.
    #[arg(long)]
    shuffle: bool,
    /// The random order of --shuffle; the same number gives the same order.
    #[arg(long)]
    seed: Option<u64>,
    /// Post everything so many times.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
}

struct Delivery {
    path: PathBuf,
    body: Vec<u8>,
    /// The expected status, and whether any 2xx will do instead.
    expected: u16,
    or_success: bool,
}

pub async fn run(args: Args, machine: &Machine) -> anyhow::Result<ExitCode> {
    let secret = match args.secret.as_deref() {
        Some(text) => Secret::new(text),
        None => read_config(machine)?.webhook_secrets.first().cloned(),
    };
    let secret = secret.ok_or_else(|| Misconfigured("give --secret whsec_…, or set STRIPE_WEBHOOK_SECRETS".to_owned()))?;
    let mut deliveries = Vec::new();
    for path in &args.paths {
        deliveries.extend(read(path)?);
    }
    if deliveries.is_empty() {
        bail!("there are no *.json files in {}", args.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "));
    }
    let mut order: Vec<usize> = (0..args.repeat).flat_map(|_| 0..deliveries.len()).collect();
    if args.shuffle {
        let seed = match args.seed {
            Some(seed) => seed,
            None => u64::from(u32::from_le_bytes((machine.random)()?[..4].try_into()?)),
        };
        say(format_args!("order of --seed {seed}"));
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
    }
    let client = client()?;
    let mut faults = 0_u32;
    for index in &order {
        let delivery = &deliveries[*index];
        let (status, answer) = post(&client, &args.url, &secret, &delivery.body, machine).await?;
        let good = status == delivery.expected || (delivery.or_success && (200..300).contains(&status));
        if !good {
            faults += 1;
        }
        let verdict = if good { String::new() } else { format!("  ← {} was expected", delivery.expected) };
        let told = answer.get("code").and_then(Value::as_str).unwrap_or(if answer["duplicate"] == true { "duplicate" } else { "received" });
        let event = serde_json::from_slice::<Value>(&delivery.body).unwrap_or_default();
        let kind = event.get("type").and_then(Value::as_str).unwrap_or("-");
        say(format_args!("{status} {told:<14} {kind} ({}){verdict}", delivery.path.display()));
    }
    say(format_args!("{} posted, {} not as expected", order.len(), faults));
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An HTTP client that speaks TLS where the URL asks for it.
pub fn client() -> anyhow::Result<reqwest::Client> {
    // A second call finds the provider installed; that is all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let deadline = std::time::Duration::from_secs(30);
    Ok(reqwest::Client::builder().timeout(deadline).user_agent(concat!("spendgate/", env!("CARGO_PKG_VERSION"))).build()?)
}

/// Signs and posts one body, as Stripe would.
pub async fn post(client: &reqwest::Client, url: &str, secret: &Secret, body: &[u8], machine: &Machine) -> anyhow::Result<(u16, Value)> {
    let signature = secret.sign(body, (machine.clock)());
    let request = client.post(url).header("stripe-signature", signature).header("content-type", "application/json").body(body.to_vec());
    let response = request.send().await.with_context(|| format!("{url} does not answer; is `spendgate serve` running?"))?;
    let status = response.status().as_u16();
    let answer = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
    Ok((status, answer))
}

fn read(path: &Path) -> anyhow::Result<Vec<Delivery>> {
    let named = |path: &Path| format!("{} cannot be read", path.display());
    if !path.is_dir() {
        let body = fs::read(path).with_context(|| named(path))?;
        return Ok(vec![Delivery { path: path.to_owned(), body, expected: 200, or_success: false }]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| named(path))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "json") && file.file_name().is_some_and(|name| name != MANIFEST) {
            files.push(file);
        }
    }
    files.sort();
    let expected = read_manifest(&path.join(MANIFEST))?;
    let delivery = |file: PathBuf| {
        let body = fs::read(&file).with_context(|| named(&file))?;
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (expected, or_success) = expected.get(name).copied().unwrap_or((200, false));
        Ok(Delivery { path: file, body, expected, or_success })
    };
    files.into_iter().map(delivery).collect()
}

fn read_manifest(path: &Path) -> anyhow::Result<HashMap<String, (u16, bool)>> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let fault = || format!("{} is not a list of {{\"file\", \"http\"}}", path.display());
    let records: Vec<Value> = serde_json::from_slice(&fs::read(path)?).with_context(fault)?;
    let record = |record: &Value| {
        let file = record.get("file")?.as_str()?.to_owned();
        let status = u16::try_from(record.get("http")?.as_u64()?).ok()?;
        let note = record.get("note").and_then(Value::as_str).unwrap_or_default();
        Some((file, (status, note.contains("200"))))
    };
    records.iter().map(record).collect::<Option<_>>().with_context(fault)
}
