//! `spendgate demo`: the real server, real events, real money amounts; only the users are made up.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::replay::{client, post};
use super::serve::{Server, Signals};
use super::table::table;
use super::{Machine, built_in_catalogue, read_config, say};
use crate::alerts::Settings as AlertSettings;
use crate::config::{Authentication, Config, Listen, StripeConfig};
use crate::domain::money::Money;
use crate::store::Address;
use crate::stripe::signature::Secret;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the table instead of going on to serve.
    #[arg(long)]
    exit: bool,
}

/// The events of `fixtures/demo`, in the order in which Stripe would send them.
macro_rules! events {
    ($($name:literal),* $(,)?) => { [$(($name, include_bytes!(concat!("../../fixtures/demo/", $name, ".json")).as_slice())),*] };
}

const BEFORE: [(&str, &[u8]); 5] = events![
    "01_customer_created_free",
    "02_customer_created_pro",
    "03_subscription_created_pro",
    "04_customer_created_enterprise",
    "05_subscription_created_enterprise",
];
const UPGRADE: [(&str, &[u8]); 3] = events!["06_checkout_completed_upgrade", "07_subscription_created_upgrade", "08_invoice_paid_upgrade"];

/// Who spends how much, step by step.
const SPENDING: [(&str, &[&str]); 3] =
    [("u_free", &["0", "0.05", "0.03", "0.02"]), ("u_pro", &["0", "0.60", "0.30", "0.10"]), ("u_enterprise", &["0", "30", "15", "10"])];

struct Demo<'a> {
    client: reqwest::Client,
    url: String,
    key: String,
    secret: Secret,
    machine: &'a Machine,
    rows: Vec<Vec<String>>,
    records: u32,
}

pub async fn run(args: Args, machine: Machine) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let folder = tempfile::tempdir()?;
    let secret = format!("whsec_{}", hex::encode((machine.random)()?));
    let secret = Secret::new(&secret).context("a secret")?;
    let config = read_config(&machine)?;
    let config = Config {
        database: Address::Sqlite(folder.path().join("spendgate.db")),
        data_dir: folder.path().to_owned(),
        webhook_secrets: vec![secret.clone()],
        tiers_file: None,
        prices_file: None,
        admin_api_key: None,
        public_url: None,
        tls: None,
        authentication: Authentication::Required,
        // What happens here concerns nobody.
        alerts: AlertSettings::default(),
        stripe: StripeConfig { api_key: None, ..config.stripe },
        ..config
    };
    let server = start(config, &machine).await?;
    let key = server.new_admin_key.clone().context("a new database has a new key")?;
    let url = format!("http://{}", server.address);
    say(format_args!("Spendgate {} runs on {url}, with its database in {}.\n", env!("CARGO_PKG_VERSION"), folder.path().display()));
    let mut demo = Demo { client: client()?, url, key, secret, machine: &machine, rows: Vec::new(), records: 0 };
    demo.play().await?;
    say(table(&demo.rows));
    if args.exit {
        return server.stop().await;
    }
    let (url, key) = (&demo.url, &demo.key);
    say(format_args!("\nIt goes on serving (Ctrl-C ends it, and the temporary database with it). Try:"));
    say(format_args!("  curl -H 'Authorization: Bearer {key}' '{url}/v1/users/u_pro/enforcement?model=gpt-4o&estimated_cost=0.03'"));
    say(format_args!(
        "  curl -H 'Authorization: Bearer {key}' -d '{{\"id\": \"call-1\", \"user_id\": \"u_42\", \"cost\": 0.03}}' {url}/v1/usage"
    ));
    say(format_args!("  curl -H 'Authorization: Bearer {key}' {url}/v1/users"));
    signals.told().await;
    server.stop().await
}

/// Where the usual port is taken, any other will do. The demo asks over TCP, wherever the service would listen.
async fn start(config: Config, machine: &Machine) -> anyhow::Result<Server> {
    let wanted = config.listen_addr.tcp().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let free = std::net::TcpListener::bind(wanted).is_ok();
    let listen_addr = Listen::Tcp(if free { wanted } else { SocketAddr::new(wanted.ip(), 0) });
    Server::start(&Config { listen_addr, ..config }, built_in_catalogue()?, machine).await
}

impl Demo<'_> {
    async fn play(&mut self) -> anyhow::Result<()> {
        self.rows.push(["USER", "TIER", "SPENT TODAY", "ANSWER", "THEN"].map(str::to_owned).to_vec());
        for (name, body) in BEFORE {
            self.deliver(name, body).await?;
        }
        for (user, steps) in SPENDING {
            for cost in steps {
                self.spend(user, cost).await?;
                self.check(user).await?;
            }
        }
        for (name, body) in UPGRADE {
            self.deliver(name, body).await?;
        }
        self.rows.push(["u_free", "", "", "", "pays for pro at Stripe, whose events arrive"].map(str::to_owned).to_vec());
        self.check("u_free").await
    }

    async fn deliver(&self, name: &str, body: &[u8]) -> anyhow::Result<()> {
        let url = format!("{}/webhooks/stripe", self.url);
        match post(&self.client, &url, &self.secret, body, self.machine).await? {
            (200, _) => Ok(()),
            (status, answer) => bail!("{name} was answered {status}: {answer}"),
        }
    }

    async fn spend(&mut self, user: &str, cost: &str) -> anyhow::Result<()> {
        if cost == "0" {
            return Ok(());
        }
        self.records += 1;
        let body = json!({"id": format!("demo-{}", self.records), "user_id": user, "cost": cost, "model": "gpt-4o"});
        let request = self.client.post(format!("{}/v1/usage", self.url)).bearer_auth(&self.key).body(body.to_string());
        let response = request.send().await?;
        if !response.status().is_success() {
            bail!("usage was answered {}", response.text().await?);
        }
        Ok(())
    }

    async fn check(&mut self, user: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1/users/{user}/enforcement?model=gpt-4o", self.url);
        let response = self.client.get(url).bearer_auth(&self.key).send().await?;
        let answer: Value = serde_json::from_slice(&response.bytes().await?)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
        let daily = answer["budgets"].as_array().into_iter().flatten().find(|budget| budget["period"] == "daily");
        let dollars = |value: &Value| Money::parse(&value.to_string()).map(|money| money.to_string()).unwrap_or_default();
        let spent = daily.map(|budget| format!("{} of {}", dollars(&budget["spent"]), dollars(&budget["limit"])));
        let action = text(&answer["action"]);
        let then = match action.as_str() {
            "ALLOW" => format!("go on with {}", text(&answer["model"])),
            "WARN" => format!("go on with {}. {}", text(&answer["model"]), text(&answer["message"])),
            "DEGRADE" => format!("go on with {}. {}", text(&answer["model"]), text(&answer["message"])),
            _ => format!("{} Upgrade at {}", text(&answer["message"]), text(&answer["upgrade_url"])),
        };
        self.rows.push(vec![user.to_owned(), text(&answer["tier"]), spent.unwrap_or_default(), action, then]);
        Ok(())
    }
}
