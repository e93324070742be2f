//! The processes that are driven.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use tempfile::TempDir;

const KEY: &str = "load-key-0123456789abcdef0123456789abcdef";

/// A process that ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The bare handler in a process of its own.
pub struct Bare {
    pub address: SocketAddr,
    _process: Process,
}

impl Bare {
    pub fn start() -> Result<Self> {
        let address = free_address()?;
        let mut child = Command::new(std::env::current_exe()?).args(["bare", &address.to_string()]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { address, _process: Process(child) })
    }
}

pub async fn serve_bare(address: SocketAddr) -> Result<()> {
    const BODY: &str = match std::str::from_utf8(&[b'x'; 300]) {
        Ok(body) => body,
        Err(_) => "",
    };
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("ready");
    axum::serve(listener, Router::new().route("/", get(async || BODY))).await?;
    Ok(())
}

/// The release binary with its default settings, on a database of its own.
pub struct Service {
    pub address: SocketAddr,
    pub key: String,
    _process: Process,
    _folder: TempDir,
}

impl Service {
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir_in(std::env::current_dir()?.join("target"))?;
        let address = free_address()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder.path())
            .env("LISTEN_ADDR", address.to_string())
            .env("ADMIN_API_KEY", KEY)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { address, key: KEY.to_owned(), _process: Process(child), _folder: folder })
    }

    /// Makes `user-0` to `user-{users - 1}` known, a thousand in a request.
    pub async fn meet(&self, users: usize) -> Result<()> {
        // The client wants a TLS provider also where it does not speak TLS; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        for start in (0..users).step_by(1000) {
            let one = |user: usize| format!("{{\"id\":\"meet-{user}\",\"user_id\":\"user-{user}\",\"cost\":0.01}}");
            let body: Vec<String> = (start..users.min(start + 1000)).map(one).collect();
            let request = client.post(format!("http://{}/v1/usage", self.address)).bearer_auth(KEY).body(format!("[{}]", body.join(",")));
            request.send().await?.error_for_status()?;
        }
        Ok(())
    }
}
