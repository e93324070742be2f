//! `spendgate healthcheck`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::{Machine, read_config, say};
use crate::config::Listen;

/// Shorter than the times after which whoever asks (Docker, Compose, Kubernetes) gives up by itself, so that the reason is told.
const DEADLINE: Duration = Duration::from_secs(3);

/// Asks the service on this machine whether it is ready, for images that have no curl. Ends with 0 where it is, else with 1; with 2 where
/// a setting is wrong. `LISTEN_ADDR` says where it listens.
pub async fn run(machine: &Machine) -> anyhow::Result<ExitCode> {
    let config = read_config(machine)?;
    let (host, socket) = match &config.listen_addr {
        Listen::Tcp(address) => (reachable(*address).to_string(), None),
        Listen::Unix(path) => ("localhost".to_owned(), Some(path.clone())),
    };
    let scheme = if config.tls.is_some() && socket.is_none() { "https" } else { "http" };
    let url = format!("{scheme}://{host}/readyz");
    // A second call finds the provider installed; that is all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The question stays on this machine, whatever proxy the environment names.
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
    let client = match socket {
        Some(path) => client.unix_socket(path),
        // The certificate names the service, not this machine, and whoever answers here is not told anything.
        None => client.tls_danger_accept_invalid_certs(true),
    };
    let client = client.build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    let ready = response.status().is_success();
    let answer = response.text().await.with_context(|| format!("{url} broke off"))?;
    say(answer);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a service that listens at `address` is reached from the same machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    let ip = if address.ip().is_unspecified() { loopback } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_listens_everywhere_is_asked_on_loopback() {
        let check = |listens: &str, asked: &str| {
            let listens: SocketAddr = listens.parse().unwrap_or_else(|_| panic!("{listens}"));
            assert_eq!(reachable(listens).to_string(), asked);
        };
        check("0.0.0.0:8080", "127.0.0.1:8080");
        check("[::]:80", "[::1]:80");
        check("127.0.0.1:8080", "127.0.0.1:8080");
        check("10.1.2.3:9000", "10.1.2.3:9000");
    }
}
