//! The processes that are driven.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::Path as Path_;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
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

/// The baselines in a process of their own: a handler that answers 300 static bytes, and one that does what is done first: a transaction
/// for each request.
pub struct Bare {
    pub address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Bare {
    pub fn start(postgres: Option<&str>) -> Result<Self> {
        let address = free_address()?;
        let folder = folder()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg(address.to_string()).arg(folder.path().join("bare.db")).args(postgres);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { address, _process: Process(child), _folder: folder })
    }
}

fn folder() -> Result<TempDir> {
    Ok(tempfile::tempdir_in(std::env::current_dir()?.join("target"))?)
}

#[derive(Deserialize)]
struct Record {
    id: String,
    user_id: String,
}

/// What is done first on Postgres: a statement for each request, on a pool of sixteen.
async fn statements(postgres: Option<&str>) -> Result<Router> {
    let Some(url) = postgres else { return Ok(Router::new()) };
    let pool = PgPoolOptions::new().max_connections(16).connect(url).await?;
    let told = |done: Result<i64, sqlx::Error>| match done {
        Ok(spent) => (StatusCode::OK, spent.to_string()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let (reads, writes) = (pool.clone(), pool);
    let read = move |Path_(user): Path_<String>| async move {
        let select = "SELECT spent FROM spent WHERE user_id = $1";
        told(sqlx::query_scalar(select).bind(user).fetch_one(&reads).await)
    };
    let write = move |body: String| async move {
        let Ok(record) = serde_json::from_str::<Record>(&body) else { return (StatusCode::BAD_REQUEST, String::new()) };
        let add = "UPDATE spent SET spent = spent + 1 WHERE user_id = $1 RETURNING spent";
        told(sqlx::query_scalar(add).bind(record.user_id).fetch_one(&writes).await)
    };
    Ok(Router::new().route("/v1/users/{user}/enforcement", get(read)).route("/update", post(write)))
}

pub async fn serve_bare(address: SocketAddr, database: &Path, postgres: Option<&str>) -> Result<()> {
    const BODY: &str = match std::str::from_utf8(&[b'x'; 300]) {
        Ok(body) => body,
        Err(_) => "",
    };
    let options = SqliteConnectOptions::new().filename(database).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    sqlx::query("CREATE TABLE usage (id TEXT PRIMARY KEY, user_id TEXT, cost INTEGER)").execute(&pool).await?;
    sqlx::query("CREATE TABLE spent (user_id TEXT PRIMARY KEY, spent INTEGER)").execute(&pool).await?;
    let record = move |body: String| async move {
        let done = async {
            let record: Record = serde_json::from_str(&body)?;
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("INSERT INTO usage VALUES ($1, $2, 1)").bind(record.id).bind(&record.user_id).execute(&mut *tx).await?;
            let add = "INSERT INTO spent VALUES ($1, 1) ON CONFLICT (user_id) DO UPDATE SET spent = spent + 1 RETURNING spent";
            let spent: i64 = sqlx::query_scalar(add).bind(record.user_id).fetch_one(&mut *tx).await?;
            tx.commit().await?;
            Ok::<_, anyhow::Error>(spent.to_string())
        };
        done.await.map_err(|error| error.to_string())
    };
    let router = statements(postgres).await?.route("/", get(async || BODY)).route("/v1/usage", post(record));
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("ready");
    axum::serve(listener, router).await?;
    Ok(())
}

/// The release binary with its default settings, on a database of its own.
pub struct Service {
    pub address: SocketAddr,
    pub key: String,
    process: Process,
    folder: TempDir,
    settings: Vec<(String, String)>,
}

impl Service {
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// With these settings beside its own.
    pub fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::start_in(folder()?, settings)
    }

    fn start_in(folder: TempDir, settings: Vec<(String, String)>) -> Result<Self> {
        let address = free_address()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_spendgate"))
            .current_dir(folder.path())
            .env("LISTEN_ADDR", address.to_string())
            .env("ADMIN_API_KEY", KEY)
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { address, key: KEY.to_owned(), process: Process(child), folder, settings })
    }

    /// Ends the process as SIGTERM does, and starts another one on the same data.
    pub fn restart(mut self) -> Result<Self> {
        Command::new("kill").arg(self.process.0.id().to_string()).status()?;
        self.process.0.wait()?;
        Self::start_in(self.folder, self.settings)
    }

    /// What the process has in memory, in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Waits until nothing of an earlier turn is left to do: a list is answered when the tables have what is durable.
    pub async fn rest(&self) -> Result<()> {
        let request = reqwest::Client::new().get(format!("http://{}/v1/users?limit=1", self.address)).bearer_auth(KEY);
        request.send().await?.error_for_status()?;
        Ok(())
    }

    /// Makes `user-{number}` known for each of `users`, a thousand in a request.
    pub async fn meet(&self, users: Range<usize>) -> Result<()> {
        let client = client()?;
        for start in users.clone().step_by(1000) {
            let one = |user: usize| format!("{{\"id\":\"meet-{user}\",\"user_id\":\"user-{user}\",\"cost\":0.01}}");
            let body: Vec<String> = (start..users.end.min(start + 1000)).map(one).collect();
            let request = client.post(format!("http://{}/v1/usage", self.address)).bearer_auth(KEY).body(format!("[{}]", body.join(",")));
            request.send().await?.error_for_status()?;
        }
        Ok(())
    }
}

/// For requests that are not measured.
pub fn client() -> Result<reqwest::Client> {
    // It wants a TLS provider also where it does not speak TLS; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?)
}
