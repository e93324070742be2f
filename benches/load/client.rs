//! A small HTTP/1.1 client: it must cost less than what it measures.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// When the next request goes out.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As soon as the one before is answered.
    Closed,
    /// So many a second, on a fixed clock, whether or not the ones before are answered: nothing is left out of the latencies.
    Open(u64),
}

/// What is asked.
#[derive(Debug)]
pub struct Load {
    head: String,
    body: fn(&mut fastrand::Rng, usize, usize) -> String,
    path: fn(&mut fastrand::Rng, usize) -> String,
    users: usize,
    records: usize,
}

fn user(random: &mut fastrand::Rng, users: usize) -> usize {
    random.usize(..users.max(1))
}

fn record(random: &mut fastrand::Rng, users: usize) -> String {
    let (id, user) = (random.u128(..), user(random, users));
    format!("{{\"id\":\"{id:032x}\",\"user_id\":\"user-{user}\",\"cost\":0.000000001,\"model\":\"gpt-4o\"}}")
}

impl Load {
    pub fn bare() -> Self {
        Self {
            head: "GET / HTTP/1.1\r\nhost: load\r\n\r\n".to_owned(),
            body: |_, _, _| String::new(),
            path: |_, _| String::new(),
            users: 0,
            records: 0,
        }
    }

    pub fn check(key: &str, users: usize) -> Self {
        let path = |random: &mut fastrand::Rng, users: usize| {
            format!("/v1/users/user-{}/enforcement?model=gpt-4o&estimated_cost=0.03", user(random, users))
        };
        Self { head: format!("authorization: Bearer {key}\r\n"), body: |_, _, _| String::new(), path, users, records: 0 }
    }

    /// Records with random ids, as callers without order among them would send.
    pub fn usage(key: &str, users: usize, records: usize) -> Self {
        let body = |random: &mut fastrand::Rng, users: usize, records: usize| match records {
            1 => record(random, users),
            _ => format!("[{}]", (0..records).map(|_| record(random, users)).collect::<Vec<_>>().join(",")),
        };
        Self { head: format!("authorization: Bearer {key}\r\n"), body, path: |_, _| String::new(), users, records }
    }

    fn request(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        if self.head.starts_with("GET") {
            return self.head.clone().into_bytes();
        }
        if self.records == 0 {
            return format!("GET {} HTTP/1.1\r\nhost: load\r\n{}\r\n", (self.path)(random, self.users), self.head).into_bytes();
        }
        let body = (self.body)(random, self.users, self.records);
        format!("POST /v1/usage HTTP/1.1\r\nhost: load\r\n{}content-length: {}\r\n\r\n{body}", self.head, body.len()).into_bytes()
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Report {
    seconds: f64,
    latencies: Histogram<u64>,
    refused: u64,
}

impl Report {
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    pub fn millis(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} requests/s", self.rate())?;
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            write!(f, ", p{} {:.2} ms", quantile * 100.0, self.millis(quantile))?;
        }
        write!(f, ", {} not answered 200", self.refused)
    }
}

/// Asks over `connections` for `time`.
pub async fn run(address: SocketAddr, load: &Load, connections: usize, pace: Pace, time: Duration) -> Result<Report> {
    let refused = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let end = start + time;
    let tasks = (0..connections).map(|number| {
        let refused = refused.clone();
        async move {
            let mut connection = Connection::open(address).await?;
            let mut random = fastrand::Rng::new();
            let mut latencies = Histogram::<u64>::new(3)?;
            // Connections take turns on the common clock.
            let interval = match pace {
                Pace::Closed => Duration::ZERO,
                Pace::Open(rate) => Duration::from_secs_f64(connections as f64 / rate as f64),
            };
            let mut due = start + interval.mul_f64(number as f64 / connections as f64);
            loop {
                match pace {
                    Pace::Closed => due = Instant::now(),
                    Pace::Open(_) => tokio::time::sleep_until(due).await,
                }
                if end <= due {
                    return Ok::<_, anyhow::Error>(latencies);
                }
                if connection.ask(&load.request(&mut random)).await? != 200 {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                latencies.record(due.elapsed().as_micros() as u64)?;
                due += interval;
            }
        }
    });
    let mut latencies = Histogram::<u64>::new(3)?;
    for done in futures_util::future::try_join_all(tasks).await? {
        latencies.add(done)?;
    }
    Ok(Report { seconds: start.elapsed().as_secs_f64(), latencies, refused: refused.load(Ordering::Relaxed) })
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("{address} does not answer"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a request and gives the answer's status.
    async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed before the answer's end");
            }
            let Some(head) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.buffer[..head])?;
            let length =
                text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let end = head + 4 + length.context("an answer without content-length")?;
            let status = text.get(9..12).context("a status")?.parse()?;
            while self.buffer.len() < end {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    bail!("the connection was closed before the answer's end");
                }
            }
            return Ok(status);
        }
    }
}
