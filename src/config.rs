//! The environment, read once, parsed at the door. `.env.example` says what each variable is for.

mod alerts;
mod door;
mod gate;
pub mod watching;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use chrono::TimeDelta;

use crate::alerts::Settings as AlertSettings;
pub use door::{Authentication, Listen, TlsFiles};
use door::{authentication, listen_addr, tls};

use crate::store::Address;
use crate::stripe::client::Patience;
use crate::stripe::key::ApiKey;
use crate::stripe::signature::Secret;
pub use gate::GateConfig;

/// An admin key given from outside must be as hard to guess as one of ours.
const ADMIN_KEY_BYTES_MIN: usize = 32;
/// A longer header would not be read.
const ADMIN_KEY_BYTES_MAX: usize = 256;
/// A month and some days: an id that is repeated within them is known.
const RETENTION_DAYS_MIN: u32 = 35;
const RETENTION_DAYS_MAX: u32 = 36_500;
/// What no event told is known after so long at the latest; one run of ten thousand customers takes minutes.
const RECONCILE_EVERY: TimeDelta = TimeDelta::hours(6);
/// Events are listed for 30 days only.
const RECONCILE_MINUTES: RangeInclusive<i64> = 5..=30 * 24 * 60;
/// Reading one customer takes two calls.
const CALLS_PER_SECOND_MIN: u32 = 2;
const CALLS_PER_SECOND_MAX: u32 = 1000;
/// Who answers from older memory enforces nothing.
const STALENESS_MS_MAX: i64 = 60_000;
/// Whoever asks before each model call waits no longer.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
const STORE_TIMEOUT_MS: RangeInclusive<u64> = 10..=60_000;
const DATABASE_FILE: &str = "spendgate.db";
const STRIPE_API_BASE: &str = "https://api.stripe.com";

/// What the operator set, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen_addr: Listen,
    /// Where TLS is spoken.
    pub tls: Option<TlsFiles>,
    pub authentication: Authentication,
    /// Where metrics and health are read without a key; `None` is nowhere.
    pub metrics_addr: Option<SocketAddr>,
    pub data_dir: PathBuf,
    pub database: Address,
    /// `None`: `./tiers.yaml` where it is there, else the built-in catalogue.
    pub tiers_file: Option<PathBuf>,
    /// `None`: prices.yaml in the folder where the service runs, else the built-in one.
    pub prices_file: Option<PathBuf>,
    /// Empty: no delivery can be verified, so none is taken.
    pub webhook_secrets: Vec<Secret>,
    pub stripe: StripeConfig,
    /// How long usage is kept row by row; `None` is for ever.
    pub retention_days: Option<u32>,
    /// How old may be what a check is answered by, where other nodes write too.
    pub max_staleness: TimeDelta,
    /// How long a check waits for the store before it counts as down.
    pub store_timeout: Duration,
    /// How gateways ask.
    pub gate: GateConfig,
    pub admin_api_key: Option<AdminKey>,
    /// Without a slash at its end; `None` is where the service turns out to listen.
    pub public_url: Option<String>,
    /// Where people go who are back from Stripe; `None` is a page of the service's own.
    pub return_url: Option<String>,
    pub alerts: AlertSettings,
}

/// How Stripe is known. With a key it is asked; without one, what events show is applied.
#[derive(Clone, Debug)]
pub struct StripeConfig {
    pub api_key: Option<ApiKey>,
    /// Without a slash at its end.
    pub api_base: String,
    /// `None`: what leaves room for others under Stripe's limits.
    pub calls_per_second: Option<u32>,
    /// How long one question may take; not a setting.
    pub patience: Patience,
    /// How often everything is compared with Stripe; `None` is at a start and on demand only.
    pub reconcile_every: Option<TimeDelta>,
    /// Whether this process compares by itself; not a setting. Tests take each step by hand.
    pub compares: bool,
}

impl Default for StripeConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            api_base: STRIPE_API_BASE.to_owned(),
            calls_per_second: None,
            patience: Patience::BACKGROUND,
            reconcile_every: Some(RECONCILE_EVERY),
            compares: true,
        }
    }
}

impl StripeConfig {
    /// `Some(true)`: a live key is set; `Some(false)`: one of a sandbox or of test mode.
    pub fn livemode(&self) -> Option<bool> {
        self.api_key.as_ref().map(ApiKey::livemode)
    }
}

/// A key given from outside. It is never shown.
#[derive(Clone)]
pub struct AdminKey(pub String);

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminKey(…)")
    }
}

/// A value that makes no sense. The value itself is not repeated: it may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}")]
pub struct ConfigError {
    pub name: &'static str,
    pub why: String,
}

fn fault(name: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError { name, why: why.into() }
}

impl Config {
    /// `lookup` is the environment. A variable that is set to nothing counts as not set.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let data_dir = PathBuf::from(get("DATA_DIR").unwrap_or_else(|| "data".to_owned()));
        let listen_addr = listen_addr(get("LISTEN_ADDR"))?;
        Ok(Self {
            tls: tls(get("TLS_CERT_FILE"), get("TLS_KEY_FILE"), &listen_addr)?,
            authentication: authentication(get("AUTHENTICATION"), &listen_addr)?,
            listen_addr,
            metrics_addr: metrics_addr(get("METRICS_ADDR"))?,
            database: database(get("DATABASE_URL"), &data_dir)?,
            data_dir,
            tiers_file: get("TIERS_FILE").map(PathBuf::from),
            prices_file: get("PRICES_FILE").map(PathBuf::from),
            webhook_secrets: webhook_secrets(get("STRIPE_WEBHOOK_SECRETS"))?,
            stripe: StripeConfig {
                api_key: api_key(get("STRIPE_API_KEY"))?,
                api_base: url("STRIPE_API_BASE", get("STRIPE_API_BASE"))?.unwrap_or_else(|| STRIPE_API_BASE.to_owned()),
                calls_per_second: calls_per_second(get("STRIPE_CALLS_PER_SECOND"))?,
                reconcile_every: reconcile_every(get("RECONCILE_EVERY"))?,
                ..StripeConfig::default()
            },
            retention_days: retention_days(get("RETENTION_DAYS"))?,
            max_staleness: max_staleness(get("MAX_STALENESS_MS"))?,
            store_timeout: store_timeout(get("STORE_TIMEOUT_MS"))?,
            gate: GateConfig::read(get)?,
            admin_api_key: admin_api_key(get("ADMIN_API_KEY"))?,
            public_url: url("PUBLIC_URL", get("PUBLIC_URL"))?,
            return_url: url("RETURN_URL", get("RETURN_URL"))?,
            alerts: alerts::read(get("ALERT_WEBHOOKS"), get("ALERT_WEBHOOK_SECRETS"), get("ALERT_ALLOWED_NETWORKS"))?,
        })
    }
}

fn metrics_addr(value: Option<String>) -> Result<Option<SocketAddr>, ConfigError> {
    let why = "must be an address and a port, as in 127.0.0.1:9090; leave it out to serve metrics to those who have a key only";
    value.map(|value| value.parse().map_err(|_| fault("METRICS_ADDR", why))).transpose()
}

fn database(value: Option<String>, data_dir: &std::path::Path) -> Result<Address, ConfigError> {
    let Some(value) = value else { return Ok(Address::Sqlite(data_dir.join(DATABASE_FILE))) };
    Address::parse(&value).map_err(|why| fault("DATABASE_URL", why.to_string()))
}

fn webhook_secrets(value: Option<String>) -> Result<Vec<Secret>, ConfigError> {
    let value = value.unwrap_or_default();
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            // Not a placeholder, which everybody knows.
            let is_of_a_secret = |c: char| c.is_ascii_alphanumeric() || "_-+/=".contains(c);
            let well_formed = part.strip_prefix("whsec_").is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_of_a_secret));
            let secret = Secret::new(part).filter(|_| well_formed);
            secret.ok_or_else(|| {
                fault(
                    "STRIPE_WEBHOOK_SECRETS",
                    "each secret is whsec_ and letters and digits behind it; Stripe shows it beside the endpoint, several are separated by commas",
                )
            })
        })
        .collect()
}

fn api_key(value: Option<String>) -> Result<Option<ApiKey>, ConfigError> {
    value.map(|text| ApiKey::parse(&text).map_err(|why| fault("STRIPE_API_KEY", why.to_string()))).transpose()
}

fn calls_per_second(value: Option<String>) -> Result<Option<u32>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let calls = value.parse().ok().filter(|calls| (CALLS_PER_SECOND_MIN..=CALLS_PER_SECOND_MAX).contains(calls));
    let why = || format!("must be a whole number from {CALLS_PER_SECOND_MIN} to {CALLS_PER_SECOND_MAX}");
    calls.map(Some).ok_or_else(|| fault("STRIPE_CALLS_PER_SECOND", why()))
}

fn reconcile_every(value: Option<String>) -> Result<Option<TimeDelta>, ConfigError> {
    let Some(value) = value else { return Ok(Some(RECONCILE_EVERY)) };
    if value == "never" {
        return Ok(None);
    }
    let minutes = [("m", 1), ("h", 60), ("d", 24 * 60)].into_iter().find_map(|(unit, minutes)| {
        let count: i64 = value.strip_suffix(unit)?.parse().ok()?;
        count.checked_mul(minutes)
    });
    let every = minutes.filter(|minutes| RECONCILE_MINUTES.contains(minutes)).map(TimeDelta::minutes);
    every.map(Some).ok_or_else(|| fault("RECONCILE_EVERY", "must be a time such as 30m, 6h or 1d, from 5m to 30d, or never"))
}

fn retention_days(value: Option<String>) -> Result<Option<u32>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let days = value.parse().ok().filter(|days| (RETENTION_DAYS_MIN..=RETENTION_DAYS_MAX).contains(days));
    let why = || format!("must be a whole number of days from {RETENTION_DAYS_MIN} to {RETENTION_DAYS_MAX}; leave it out to keep all rows");
    days.map(Some).ok_or_else(|| fault("RETENTION_DAYS", why()))
}

fn max_staleness(value: Option<String>) -> Result<TimeDelta, ConfigError> {
    let Some(value) = value else { return Ok(TimeDelta::zero()) };
    let milliseconds = value.parse().ok().filter(|milliseconds| (0..=STALENESS_MS_MAX).contains(milliseconds));
    let why = || format!("must be a whole number of milliseconds from 0 to {STALENESS_MS_MAX}");
    milliseconds.map(TimeDelta::milliseconds).ok_or_else(|| fault("MAX_STALENESS_MS", why()))
}

fn store_timeout(value: Option<String>) -> Result<Duration, ConfigError> {
    let Some(value) = value else { return Ok(STORE_TIMEOUT) };
    let milliseconds = value.parse().ok().filter(|milliseconds| STORE_TIMEOUT_MS.contains(milliseconds));
    let why = || format!("must be a whole number of milliseconds from {} to {}", STORE_TIMEOUT_MS.start(), STORE_TIMEOUT_MS.end());
    milliseconds.map(Duration::from_millis).ok_or_else(|| fault("STORE_TIMEOUT_MS", why()))
}

fn admin_api_key(value: Option<String>) -> Result<Option<AdminKey>, ConfigError> {
    match value {
        Some(key) if !(ADMIN_KEY_BYTES_MIN..=ADMIN_KEY_BYTES_MAX).contains(&key.len()) || !key.chars().all(|c| c.is_ascii_graphic()) => {
            let why = format!(
                "must have {ADMIN_KEY_BYTES_MIN} to {ADMIN_KEY_BYTES_MAX} visible ASCII characters; `openssl rand -hex 32` makes a good one"
            );
            Err(fault("ADMIN_API_KEY", why))
        }
        key => Ok(key.map(AdminKey)),
    }
}

/// An origin, perhaps with a path; without the slash at its end.
fn url(name: &'static str, value: Option<String>) -> Result<Option<String>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let good = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['?', '#', '@']))
        && value.chars().all(|c| c.is_ascii_graphic());
    if good {
        Ok(Some(value.trim_end_matches('/').to_owned()))
    } else {
        Err(fault(name, "must be a URL such as https://spend.example.com"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn an_empty_environment_works() {
        for pairs in [&[][..], &[("LISTEN_ADDR", ""), ("STRIPE_API_KEY", " ")][..]] {
            let config = read(pairs).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8080");
            assert_eq!(config.database.file(), Some(Path::new("data/spendgate.db")));
            assert!(config.webhook_secrets.is_empty() && config.stripe.api_key.is_none() && config.public_url.is_none());
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name_and_not_repeated() {
        let check = |name: &'static str, value: &str| {
            let error = read(&[(name, value)]).err();
            assert_eq!(error.as_ref().map(|error| error.name), Some(name), "{value}");
            let told = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(!told.contains(value), "{told}");
        };
        check("LISTEN_ADDR", "localhost");
        check("LISTEN_ADDR", "127.0.0.1:99999");
        check("LISTEN_ADDR", &format!("unix:/{}", "s".repeat(90)));
        check("AUTHENTICATION", "none");
        check("METRICS_ADDR", "localhost:metrics");
        check("DATABASE_URL", "mysql://x");
        check("DATABASE_URL", "postgres://user:password@db");
        check("DATABASE_URL", "sqlite::memory:");
        check("STRIPE_WEBHOOK_SECRETS", "whsec_good,wrong-one");
        check("STRIPE_WEBHOOK_SECRETS", "whsec_...");
        check("STRIPE_API_KEY", "pk_live_123");
        check("STRIPE_API_KEY", "sk_something");
        check("STRIPE_API_KEY", "sk_test_with a blank");
        check("STRIPE_API_BASE", "api.stripe.com/v1");
        check("RETENTION_DAYS", "34");
        check("RETENTION_DAYS", "never");
        check("RECONCILE_EVERY", "6 hours");
        check("RECONCILE_EVERY", "1m");
        check("RECONCILE_EVERY", "99999999999999999d");
        check("STRIPE_CALLS_PER_SECOND", "1001");
        check("MAX_STALENESS_MS", "60001");
        check("MAX_STALENESS_MS", "-1");
        check("STORE_TIMEOUT_MS", "9");
        check("STORE_TIMEOUT_MS", "1 s");
        check("ADMIN_API_KEY", "short-key");
        check("PUBLIC_URL", "shop.example.net");
        check("PUBLIC_URL", "https://spend.example.com/?x");
        check("RETURN_URL", "//evil.example");
        check("ALERT_WEBHOOKS", "ops=https://127.0.0.1/x");
        check("ALERT_WEBHOOK_SECRETS", "ops=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        check("ALERT_ALLOWED_NETWORKS", "10.0.0.1/8");
        check("RETURN_URL", "https://app.example.com@evil.example");
    }

    #[test]
    fn values_are_read() {
        let config = read(&[
            ("DATA_DIR", "/var/lib/spendgate"),
            ("STRIPE_WEBHOOK_SECRETS", "whsec_a, whsec_b,"),
            ("STRIPE_API_KEY", "rk_test_abc_def"),
            ("PUBLIC_URL", "https://spend.example.com/"),
            ("RETENTION_DAYS", "90"),
        ]);
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.database.file(), Some(Path::new("/var/lib/spendgate/spendgate.db")));
        assert_eq!((config.webhook_secrets.len(), config.retention_days), (2, Some(90)));
        assert_eq!(config.stripe.livemode(), Some(false));
        assert_eq!(config.public_url.as_deref(), Some("https://spend.example.com"));
        assert!(!format!("{config:?}").contains("whsec_a") && !format!("{config:?}").contains("abc_def"));
    }
}
