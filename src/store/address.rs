//! Where the database is: a file, or the hosts of a Postgres of which one is the primary.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// Hosts that are asked who is the primary; more are a mistake.
const HOSTS_MAX: usize = 8;

/// What `DATABASE_URL` says.
#[derive(Clone, Debug)]
pub enum Address {
    Sqlite(PathBuf),
    Postgres(Hosts),
}

/// The hosts of one Postgres.
#[derive(Clone)]
pub struct Hosts {
    pub(super) options: Vec<PgConnectOptions>,
    names: Vec<String>,
    database: String,
    /// The URL, to be handed on; it may hold a password.
    url: String,
}

/// It is no address. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be sqlite:<path of a file>, as in sqlite:data/spendgate.db, or postgres://user:password@host:5432/database; several hosts, of which one is the primary, are separated by commas{0}"
)]
pub struct AddressError(String);

impl Address {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:")) {
            let good = !path.is_empty() && !path.starts_with(":memory:") && !path.contains('?');
            return if good { Ok(Self::Sqlite(PathBuf::from(path))) } else { Err(AddressError(String::new())) };
        }
        Hosts::parse(text).map(Self::Postgres)
    }

    /// The SQLite file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }

    /// As `DATABASE_URL` has it; it may hold a password.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(hosts) => hosts.url.clone(),
        }
    }
}

/// Without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(hosts) => write!(f, "{hosts}"),
        }
    }
}

impl Hosts {
    fn parse(text: &str) -> Result<Self, AddressError> {
        let no_url = || AddressError(String::new());
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")).ok_or_else(no_url)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        let names: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let database = path.trim_start_matches('/').split('?').next().unwrap_or_default().to_owned();
        if HOSTS_MAX < names.len() || names.iter().any(String::is_empty) || database.is_empty() {
            return Err(AddressError(format!("; it needs a database's name, and one to {HOSTS_MAX} hosts")));
        }
        let options = names.iter().map(|host| {
            // What is wrong may be quoted from the text.
            PgConnectOptions::from_str(&format!("postgres://{user}{at}{host}{path}")).map_err(|_| no_url())
        });
        Ok(Self { options: options.collect::<Result<_, _>>()?, names, database, url: text.to_owned() })
    }

    pub(super) fn name(&self, host: usize) -> &str {
        self.names.get(host).map_or("", String::as_str)
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database {} at {}", self.database, self.names.join(", "))
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hosts({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_and_the_password_is_not_shown() {
        let Ok(Address::Postgres(hosts)) = Address::parse("postgres://spend:s%40cr,et@a:5433,b,[::1]:5434/gate?sslmode=disable") else {
            panic!("it is an address")
        };
        let told: Vec<_> =
            hosts.options.iter().map(|one| (one.get_host().to_owned(), one.get_port(), one.get_username().to_owned())).collect();
        let expected = [("a", 5433), ("b", 5432), ("[::1]", 5434)].map(|(host, port)| (host.to_owned(), port, "spend".to_owned()));
        assert_eq!(told, expected);
        assert_eq!(hosts.to_string(), "database gate at a:5433, b, [::1]:5434");
        assert!(!format!("{hosts:?}").contains("cr,et"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["mysql://x", "sqlite::memory:", "sqlite:", "sqlite:x?mode=ro", "postgres://u@h", "postgres://h,,i/d", "postgres://h:x/d"]
        {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
