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

/// What is asked: each connection goes through the steps of a turn one after the other, and each step is a request that counts.
#[derive(Debug)]
pub struct Load {
    key: String,
    kind: Kind,
    users: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bare,
    Check,
    /// So many checks in a request.
    Checks {
        users: usize,
    },
    Usage {
        records: usize,
    },
    Update,
    /// A hold and its capture.
    Hold,
}

fn record(random: &mut fastrand::Rng, users: usize) -> String {
    let (id, user) = (random.u128(..), random.usize(..users));
    format!("{{\"id\":\"{id:032x}\",\"user_id\":\"user-{user}\",\"cost\":0.000000001,\"model\":\"gpt-4o\"}}")
}

impl Load {
    pub fn bare() -> Self {
        Self { key: String::new(), kind: Kind::Bare, users: 1 }
    }

    pub fn check(key: &str, users: usize) -> Self {
        Self { key: key.to_owned(), kind: Kind::Check, users }
    }

    /// Lists of checks, so many in each.
    pub fn checks(key: &str, users: usize, asked: usize) -> Self {
        Self { key: key.to_owned(), kind: Kind::Checks { users: asked }, users }
    }

    /// Records with random ids, as callers without order among them would send.
    pub fn usage(key: &str, users: usize, records: usize) -> Self {
        Self { key: key.to_owned(), kind: Kind::Usage { records }, users }
    }

    /// Records for the baseline that does one statement for each.
    pub fn update(users: usize) -> Self {
        Self { key: String::new(), kind: Kind::Update, users }
    }

    /// Holds with random ids, each captured at once.
    pub fn hold(key: &str, users: usize) -> Self {
        Self { key: key.to_owned(), kind: Kind::Hold, users }
    }

    fn turn(&self, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
        match self.kind {
            Kind::Bare => vec![b"GET / HTTP/1.1\r\nhost: load\r\n\r\n".to_vec()],
            Kind::Check => {
                let path = format!("/v1/users/user-{}/enforcement?model=gpt-4o&estimated_cost=0.03", random.usize(..self.users));
                vec![format!("GET {path} HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {}\r\n\r\n", self.key).into_bytes()]
            }
            Kind::Checks { users: asked } => {
                let one = |_| {
                    let user = random.usize(..self.users);
                    format!("{{\"user_id\":\"user-{user}\",\"model\":\"gpt-4o\",\"estimated_cost\":0.03}}")
                };
                let list: Vec<String> = (0..asked).map(one).collect();
                vec![self.post("/v1/enforcement", &format!("[{}]", list.join(",")))]
            }
            Kind::Update => vec![self.post("/update", &record(random, self.users))],
            Kind::Usage { records: 1 } => vec![self.post("/v1/usage", &record(random, self.users))],
            Kind::Usage { records } => {
                let list: Vec<String> = (0..records).map(|_| record(random, self.users)).collect();
                vec![self.post("/v1/usage", &format!("[{}]", list.join(",")))]
            }
            Kind::Hold => {
                let (id, user) = (random.u128(..), random.usize(..self.users));
                let hold =
                    format!("{{\"id\":\"{id:032x}\",\"user_id\":\"user-{user}\",\"estimated_cost\":0.000000002,\"model\":\"gpt-4o\"}}");
                vec![self.post("/v1/holds", &hold), self.post(&format!("/v1/holds/{id:032x}/capture"), "{\"cost\":0.000000001}")]
            }
        }
    }

    fn post(&self, path: &str, body: &str) -> Vec<u8> {
        let (key, length) = (&self.key, body.len());
        format!("POST {path} HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
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
        write!(f, ", {} not answered 2xx", self.refused)
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
                for request in load.turn(&mut random) {
                    if !(200..300).contains(&connection.ask(&request).await?) {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    latencies.record(due.elapsed().as_micros() as u64)?;
                    due = match pace {
                        Pace::Closed => Instant::now(),
                        Pace::Open(_) => due + interval,
                    };
                }
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
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
            });
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
