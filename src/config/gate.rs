//! What gateways send, and what they are answered.

use axum::http::{HeaderName, header};

use super::{ConfigError, fault};

/// What no header of ours may be called: the key stands there, or HTTP itself needs it.
const RESERVED: [HeaderName; 6] =
    [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::COOKIE];
/// With it begin the headers of our answers, and the key's.
const OURS: &str = "x-spendgate-";
/// A gateway takes one of these for a refusal.
const BLOCK_STATUSES: [u16; 3] = [402, 403, 429];

/// How `/v1/gate` is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    pub user_header: HeaderName,
    pub model_header: HeaderName,
    pub cost_header: HeaderName,
    /// The status of a BLOCK.
    pub block_status: u16,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            user_header: HeaderName::from_static("x-user-id"),
            model_header: HeaderName::from_static("x-model"),
            cost_header: HeaderName::from_static("x-estimated-cost"),
            block_status: 402,
        }
    }
}

impl GateConfig {
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let default = Self::default();
        let gate = Self {
            user_header: named("GATE_USER_HEADER", get("GATE_USER_HEADER"), default.user_header)?,
            model_header: named("GATE_MODEL_HEADER", get("GATE_MODEL_HEADER"), default.model_header)?,
            cost_header: named("GATE_COST_HEADER", get("GATE_COST_HEADER"), default.cost_header)?,
            block_status: block_status(get("GATE_BLOCK_STATUS"), default.block_status)?,
        };
        if gate.model_header == gate.user_header {
            return Err(fault("GATE_MODEL_HEADER", "is the header of the user already; each has its own"));
        }
        if gate.cost_header == gate.user_header || gate.cost_header == gate.model_header {
            return Err(fault("GATE_COST_HEADER", "is the header of the user or of the model already; each has its own"));
        }
        Ok(gate)
    }
}

fn named(name: &'static str, value: Option<String>, default: HeaderName) -> Result<HeaderName, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    let header = HeaderName::from_bytes(value.as_bytes()).ok();
    let header = header.filter(|header| !RESERVED.contains(header) && !header.as_str().starts_with(OURS));
    header.ok_or_else(|| fault(name, "must be the name of a header such as X-User-Id, and not one that HTTP or Spendgate itself uses"))
}

fn block_status(value: Option<String>, default: u16) -> Result<u16, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    let status = value.parse().ok().filter(|status| BLOCK_STATUSES.contains(status));
    status.ok_or_else(|| fault("GATE_BLOCK_STATUS", "must be 402, 403 or 429"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<GateConfig, ConfigError> {
        GateConfig::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn headers_are_named_and_those_that_others_need_are_refused_by_the_setting() {
        let gate = read(&[("GATE_USER_HEADER", "X-Auth-Request-User"), ("GATE_BLOCK_STATUS", "403")]);
        let expected =
            GateConfig { user_header: HeaderName::from_static("x-auth-request-user"), block_status: 403, ..GateConfig::default() };
        assert_eq!(gate, Ok(expected));
        let check = |pairs: &[(&str, &str)], name: &str| {
            assert_eq!(read(pairs).err().map(|error| error.name), Some(name), "{pairs:?}");
        };
        check(&[("GATE_USER_HEADER", "X User")], "GATE_USER_HEADER");
        check(&[("GATE_USER_HEADER", "Authorization")], "GATE_USER_HEADER");
        check(&[("GATE_MODEL_HEADER", "X-Spendgate-Key")], "GATE_MODEL_HEADER");
        check(&[("GATE_COST_HEADER", "host")], "GATE_COST_HEADER");
        check(&[("GATE_MODEL_HEADER", "x-user-id")], "GATE_MODEL_HEADER");
        check(&[("GATE_COST_HEADER", "X-Model")], "GATE_COST_HEADER");
        check(&[("GATE_BLOCK_STATUS", "500")], "GATE_BLOCK_STATUS");
        check(&[("GATE_BLOCK_STATUS", "200")], "GATE_BLOCK_STATUS");
    }
}
