//! Who is told of alerts.

use super::{ConfigError, fault};
use crate::alerts::{Fault, Setting, Settings, endpoints, networks};

/// Each of the three as it is set.
pub(super) fn read(webhooks: Option<String>, secrets: Option<String>, allowed: Option<String>) -> Result<Settings, ConfigError> {
    let told = |(setting, why): Fault| match setting {
        Setting::Webhooks => fault("ALERT_WEBHOOKS", why),
        Setting::Secrets => fault("ALERT_WEBHOOK_SECRETS", why),
        Setting::Networks => fault("ALERT_ALLOWED_NETWORKS", why),
    };
    let allowed = networks(&allowed.unwrap_or_default()).map_err(told)?;
    let endpoints = endpoints(&webhooks.unwrap_or_default(), &secrets.unwrap_or_default(), &allowed).map_err(told)?;
    Ok(Settings { endpoints, allowed, ..Settings::default() })
}
