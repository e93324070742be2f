//! Where alerts go, as the operator wrote it.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::Url;

use super::network::{self, Network, is_public};
use super::signing::Secret;

/// A setting, and not a list of subscribers.
const ENDPOINTS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 32;
/// The old one and the new one, while one is being rolled.
const SECRETS_MAX: usize = 2;
/// Who has a URL here reads Slack's format.
const SLACK_HOST: &str = "hooks.slack.com";
const SLACK_PREFIX: &str = "slack+";

/// What an endpoint reads.
#[derive(Clone, Debug)]
pub enum Format {
    /// Standard Webhooks, signed with each of these.
    Standard(Vec<Secret>),
    /// An incoming webhook of Slack's, or of one who reads the same.
    Slack,
}

/// One receiver. Neither its URL, which may hold a secret, nor its secrets are ever shown.
#[derive(Clone)]
pub struct Endpoint {
    pub name: String,
    pub(super) url: Url,
    pub(super) format: Format,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Which of the settings is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Webhooks,
    Secrets,
    Networks,
}

/// What is wrong, without the value.
pub type Fault = (Setting, String);

/// Reads `127.0.0.0/8,10.1.2.0/24`.
pub fn networks(text: &str) -> Result<Vec<Network>, Fault> {
    let one = |part| {
        let why = "each is an address or a network whose other bits are 0, as in 10.1.2.0/24; several are separated by commas";
        Network::parse(part).ok_or_else(|| (Setting::Networks, why.to_owned()))
    };
    parts(text).map(one).collect()
}

/// Reads `ops=https://…,chat=slack+https://…` and the secrets of those that are signed for.
pub fn endpoints(webhooks: &str, secrets: &str, allowed: &[Network]) -> Result<Vec<Endpoint>, Fault> {
    let mut secrets = read_secrets(secrets)?;
    let mut found: Vec<Endpoint> = Vec::new();
    for part in parts(webhooks) {
        let (name, url) = named(part, Setting::Webhooks)?;
        if found.iter().any(|other| other.name == name) {
            return Err((Setting::Webhooks, format!("{name} is named twice")));
        }
        found.push(endpoint(name, url, secrets.remove(name).unwrap_or_default(), allowed)?);
    }
    if ENDPOINTS_MAX < found.len() {
        return Err((Setting::Webhooks, format!("names more than {ENDPOINTS_MAX} endpoints")));
    }
    match secrets.keys().next() {
        Some(stray) => Err((Setting::Secrets, format!("{stray} is not one of ALERT_WEBHOOKS"))),
        None => Ok(found),
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn named(part: &str, setting: Setting) -> Result<(&str, &str), Fault> {
    let is_name = |name: &str| {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(known)
    };
    let split = part.split_once('=').filter(|(name, _)| is_name(name));
    let example = match setting {
        Setting::Secrets => "ops=whsec_…",
        Setting::Webhooks | Setting::Networks => "ops=https://hooks.example.com/spend",
    };
    let why = || format!("each is a name of a-z, 0-9, _ and -, = and its value, as in {example}; several are separated by commas");
    split.ok_or_else(|| (setting, why()))
}

fn read_secrets(text: &str) -> Result<BTreeMap<&str, Vec<Secret>>, Fault> {
    let mut secrets: BTreeMap<&str, Vec<Secret>> = BTreeMap::new();
    for part in parts(text) {
        let (name, secret) = named(part, Setting::Secrets)?;
        let why = || format!("that of {name} must be whsec_ and 24 to 64 random bytes in base64, as from `openssl rand -base64 32`");
        let secret = Secret::parse(secret).ok_or_else(|| (Setting::Secrets, why()))?;
        let of_name = secrets.entry(name).or_default();
        of_name.push(secret);
        if SECRETS_MAX < of_name.len() {
            return Err((Setting::Secrets, format!("{name} has more than {SECRETS_MAX}; name the new one and the old one")));
        }
    }
    Ok(secrets)
}

fn endpoint(name: &str, text: &str, secrets: Vec<Secret>, allowed: &[Network]) -> Result<Endpoint, Fault> {
    let fault = |why: &str| (Setting::Webhooks, format!("{name} {why}"));
    let (text, slack) = match text.strip_prefix(SLACK_PREFIX) {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let url: Url = text.parse().map_err(|_| fault("has no URL such as https://hooks.example.com/spend"))?;
    let host = url.host_str().unwrap_or_default();
    let address = network::literal(host);
    let is_allowed = address.is_some_and(|address| allowed.iter().any(|network| network.contains(address)));
    match url.scheme() {
        "https" => {}
        // Of a name it is seen when it is connected to.
        "http" if is_allowed || (address.is_none() && !allowed.is_empty()) => {}
        "http" => return Err(fault("must be https, unless its address is in ALERT_ALLOWED_NETWORKS")),
        _ => return Err(fault("must be an https URL")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("has a user or a password in its URL, which is not sent"));
    }
    if url.fragment().is_some() {
        return Err(fault("has a # in its URL, behind which nothing is sent"));
    }
    if host.is_empty() || address.is_some_and(|address| !is_public(address) && !is_allowed) {
        return Err(fault("is at an address that is not public; ALERT_ALLOWED_NETWORKS names those that are meant"));
    }
    let format = match (slack || host == SLACK_HOST, secrets.is_empty()) {
        (true, true) => Format::Slack,
        (true, false) => return Err((Setting::Secrets, format!("{name} reads Slack's format, which is not signed"))),
        (false, false) => Format::Standard(secrets),
        (false, true) => return Err((Setting::Secrets, format!("there is none for {name}"))),
    };
    Ok(Endpoint { name: name.to_owned(), url, format })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read(webhooks: &str, secrets: &str, allowed: &str) -> Result<Vec<Endpoint>, Fault> {
        endpoints(webhooks, secrets, &networks(allowed)?)
    }

    #[test]
    fn endpoints_are_read_with_their_secrets() {
        let secrets = format!("ops={SECRET}, ops={SECRET},local={SECRET}, name={SECRET}");
        let webhooks = "ops=https://hooks.example.com:8443/a?b=c, slack=https://hooks.slack.com/services/T/B/x,\
             chat=slack+https://chat.example.com/hooks/1,local=http://127.0.0.1:9/x,name=http://receiver.internal/";
        let found = read(webhooks, &secrets, "127.0.0.0/8").unwrap();
        let told = found.iter().map(|endpoint| {
            let secrets = match &endpoint.format {
                Format::Standard(secrets) => secrets.len(),
                Format::Slack => 0,
            };
            (endpoint.name.as_str(), secrets)
        });
        assert_eq!(told.collect::<Vec<_>>(), [("ops", 2), ("slack", 0), ("chat", 0), ("local", 1), ("name", 1)]);
        assert!(read("", "", "").unwrap().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_setting_and_no_value_is_repeated() {
        let signed = format!("a={SECRET}");
        let check = |webhooks: &str, secrets: &str, allowed: &str, setting: Setting| {
            let (which, why) = read(webhooks, secrets, allowed).unwrap_err();
            assert_eq!(which, setting, "{webhooks} {secrets} {allowed}: {why}");
            let shows = ["hidden", "MfKQ9r8"].iter().any(|secret| why.contains(secret));
            assert!(!shows, "{why}");
        };
        for webhooks in [
            "https://hooks.example.com/hidden",
            "a=hidden",
            "a=//hidden",
            "a=ftp://hidden.example.com/",
            "a=file:///hidden",
            "a=https:///",
            "A=https://hidden.example.com/",
            "=https://hidden.example.com/",
            "abcdefghijklmnopqrstuvwxyz0123456=https://hidden.example.com/",
            "a=http://hidden.example.com/",
            "a=https://user:hidden@example.com/",
            "a=https://hidden@example.com/",
            "a=https://example.com/#hidden",
            "a=https://127.0.0.1/hidden",
            "a=https://0x7f.1/hidden",
            "a=https://2130706433/hidden",
            "a=https://[::ffff:127.0.0.1]/hidden",
            "a=https://169.254.169.254/hidden",
            "a=slack+http://8.8.8.8/hidden",
            "a=https://hidden.example.com/,a=https://hidden.example.com/",
        ] {
            check(webhooks, &signed, "", Setting::Webhooks);
        }
        let many: Vec<String> = (0..17).map(|number| format!("a{number}=https://hooks.slack.com/hidden")).collect();
        check(&many.join(","), "", "", Setting::Webhooks);
        check("a=http://10.0.0.1/hidden", &signed, "10.0.1.0/24", Setting::Webhooks);
        let of_a = "a=https://hidden.example.com/";
        for secrets in [
            "",
            "hidden",
            "a=hidden",
            "a=whsec_",
            "a=whsec_hidden",
            "a=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
            "a=whsec_aGlkZGVu",
            &format!("{signed},b={SECRET}"),
            &format!("{signed},{signed},{signed}"),
        ] {
            check(of_a, secrets, "", Setting::Secrets);
        }
        check("a=https://hooks.slack.com/hidden", &signed, "", Setting::Secrets);
        for allowed in ["hidden", "127.0.0.1/8", "10.0.0.0/8 192.168.0.0/16"] {
            check("", "", allowed, Setting::Networks);
        }
        assert!(!format!("{:?}", read("a=https://example.com/hidden", &signed, "").unwrap()).contains("hidden"));
    }
}
