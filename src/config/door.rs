//! Where the service listens, and whom it lets in.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{ConfigError, fault};

/// The kernel takes 107, and while a socket is made it is in a folder of its own.
const SOCKET_PATH_BYTES_MAX: usize = 90;

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    /// A socket in the file system, which its permissions guard.
    Unix(PathBuf),
}

impl Listen {
    /// Whether only this machine gets there.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A certificate with its chain, and its key; both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    Required,
    /// Whoever gets to the service may do everything.
    Off,
}

pub(super) fn listen_addr(value: Option<String>) -> Result<Listen, ConfigError> {
    let value = value.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let why =
        "must be an address and a port, as in 127.0.0.1:8080 or [::]:8080, or unix: and a path, as in unix:/run/spendgate/spendgate.sock";
    match value.strip_prefix("unix:") {
        None => value.parse().map(Listen::Tcp).map_err(|_| fault("LISTEN_ADDR", why)),
        Some("") => Err(fault("LISTEN_ADDR", why)),
        Some(path) if SOCKET_PATH_BYTES_MAX < path.len() => {
            Err(fault("LISTEN_ADDR", format!("the path of a socket must not be longer than {SOCKET_PATH_BYTES_MAX} bytes")))
        }
        Some(path) => Ok(Listen::Unix(PathBuf::from(path))),
    }
}

pub(super) fn tls(cert: Option<String>, key: Option<String>, listen_addr: &Listen) -> Result<Option<TlsFiles>, ConfigError> {
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(fault("TLS_KEY_FILE", "must be set where TLS_CERT_FILE is")),
        (None, Some(_)) => Err(fault("TLS_CERT_FILE", "must be set where TLS_KEY_FILE is")),
        (Some(_), Some(_)) if listen_addr.tcp().is_none() => {
            Err(fault("TLS_CERT_FILE", "is not for a Unix socket, which nobody listens in on; leave it out, or listen on an address"))
        }
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: PathBuf::from(cert), key: PathBuf::from(key) })),
    }
}

pub(super) fn authentication(value: Option<String>, listen_addr: &Listen) -> Result<Authentication, ConfigError> {
    match value.as_deref() {
        None | Some("required") => Ok(Authentication::Required),
        Some("off") if listen_addr.is_local() => Ok(Authentication::Off),
        Some("off") => {
            Err(fault("AUTHENTICATION", "off is only for a LISTEN_ADDR that is loopback or a Unix socket: everybody would be an admin"))
        }
        Some(_) => Err(fault("AUTHENTICATION", "must be `required` or, where only this machine gets to the service, `off`")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused_by_name() {
        let check = |name: &'static str, pairs: &[(&str, &str)]| {
            assert_eq!(read(pairs).err().map(|error| error.name), Some(name), "{pairs:?}");
        };
        check("TLS_KEY_FILE", &[("TLS_CERT_FILE", "cert.pem")]);
        check("TLS_CERT_FILE", &[("TLS_KEY_FILE", "key.pem")]);
        check("TLS_CERT_FILE", &[("TLS_CERT_FILE", "c"), ("TLS_KEY_FILE", "k"), ("LISTEN_ADDR", "unix:/run/s.sock")]);
        for public in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80", "[2001:db8::1]:80"] {
            check("AUTHENTICATION", &[("AUTHENTICATION", "off"), ("LISTEN_ADDR", public)]);
        }
        for local in ["127.0.0.1:8080", "127.9.9.9:80", "[::1]:8080", "unix:/run/s.sock"] {
            let config = read(&[("AUTHENTICATION", "off"), ("LISTEN_ADDR", local)]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((config.authentication, config.listen_addr.to_string().as_str()), (Authentication::Off, local));
        }
    }
}
