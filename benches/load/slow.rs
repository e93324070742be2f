//! How long checks take while a thousand connections ask and take no answer.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{self, Load, Pace};
use crate::median;
use crate::service::Service;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Connections that take nothing.
    #[arg(long, default_value_t = 1000)]
    readers: usize,
    /// Of each turn.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// How often each takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Checks a second.
    #[arg(long, default_value_t = 2000)]
    rate: u64,
}

/// A connection that asks until its answers are stuck: they fill the kernel's buffers on both sides, and the service waits to write.
async fn stuck(service: &Service) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // The kernel makes the least of it.
    socket.set_recv_buffer_size(1)?;
    let mut stream = socket.connect(service.address).await?;
    let path = "/v1/enforcement";
    let body = format!("[{}]", vec!["{\"user_id\":\"user-1\"}"; 100].join(","));
    let (key, length) = (&service.key, body.len());
    let ask = format!("POST {path} HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(ask.repeat(6).as_bytes()).await?;
    Ok(stream)
}

/// Connections that the service has not cut.
async fn left(readers: &mut [TcpStream]) -> usize {
    let mut left = 0;
    for reader in readers {
        // What was sent to it may be read after the end too, but an end is an end.
        let mut bytes = vec![0; 64 * 1024];
        let read = tokio::time::timeout(Duration::from_millis(10), async { while 0 < reader.read(&mut bytes).await.unwrap_or(0) {} });
        left += usize::from(read.await.is_err());
    }
    left
}

pub async fn compare(args: Args) -> Result<()> {
    let service = Service::start()?;
    service.meet(0..1000).await?;
    let checks = Load::check(&service.key, 1000);
    let time = Duration::from_secs(args.seconds);
    let (mut quiet, mut slow) = (Vec::new(), Vec::new());
    let before = service.resident()?;
    let mut most = 0;
    for round in 0..=args.rounds {
        let alone = client::run(service.address, &checks, 16, Pace::Open(args.rate), time).await?;
        let mut readers = Vec::new();
        for _ in 0..args.readers {
            readers.push(stuck(&service).await.context("a slow reader could not connect")?);
        }
        let beside = client::run(service.address, &checks, 16, Pace::Open(args.rate), time).await?;
        most = most.max(service.resident()?);
        // The first round warms up.
        if 0 < round {
            println!("quiet {alone}\nslow  {beside}");
            quiet.push(alone.millis(0.99));
            slow.push(beside.millis(0.99));
        }
        drop(readers);
    }
    let mut readers = Vec::new();
    for _ in 0..args.readers {
        readers.push(stuck(&service).await?);
    }
    // Nobody may take nothing for longer than 20 s.
    tokio::time::sleep(Duration::from_secs(25)).await;
    println!("{} of {} slow readers are left after 25 s", left(&mut readers).await, args.readers);
    println!("{} MB in memory before, {} MB at the most", before >> 20, most >> 20);
    let (quiet, slow) = (median(&mut quiet), median(&mut slow));
    println!("p99 of checks: quiet {quiet:.2} ms, with {} slow readers {slow:.2} ms: × {:.2}", args.readers, slow / quiet);
    Ok(())
}
