//! Connections: bounded in number, and in the time that each part of an exchange may take. `axum::serve` would wait for half a request
//! line for ever.

mod alarm;
mod stream;
pub mod tls;
mod watched;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::telemetry::Level;
pub(super) use alarm::Alarm;
pub use stream::{Listener, Stream};
use tls::Tls;
use watched::{Turn, Watched};

/// The longest head, its first line included; a longer one is answered 431. (More than 100 headers are too: hyper's own bound, which costs
/// less than another one.)
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// What is read from a connection at once, and with it what one holds that does nothing.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A pause after the listener failed (no file handles left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections there are, and how long each part of an exchange may take. These are not settings: tests wait less.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At once; beyond, the next one waits in the listener's queue. While nine tenths are taken, those that idle longer than `head` are
    /// closed.
    pub connections: usize,
    /// A TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a head to its last one; on a new connection, from its beginning.
    pub head: Duration,
    /// Between two requests. Longer than what load balancers and clients have, who then close it themselves and lose no request.
    pub idle: Duration,
    /// A whole body, and the time within it in which nothing comes.
    pub body: Duration,
    pub body_stall: Duration,
    /// What the kernel keeps of answers that nobody takes, in bytes; it takes twice that for its own needs. Its own bound would be
    /// megabytes for each connection.
    pub send_buffer: u32,
    /// How long somebody may take nothing of what is written for him. The kernel tells of room only once a third of its buffer is free,
    /// so a slow line is quiet for longer than it seems.
    pub write_stall: Duration,
    /// How long he may take for all of an answer.
    pub answer: Duration,
    /// What is in flight once the service is told to stop.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(5),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(10),
            body_stall: Duration::from_secs(5),
            send_buffer: 128 * 1024,
            write_stall: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            shutdown: Duration::from_secs(30),
        }
    }
}

/// Serves what `answer` answers until `stop` is ready, then finishes what is in flight. `open` says how many connections there are.
pub async fn serve<A, F>(
    listener: Listener,
    tls: Option<Tls>,
    limits: Limits,
    open: Arc<Level>,
    answer: A,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    // The time of heads is watched below, where it can be told from the time between them.
    builder.header_read_timeout(None).max_header_size(HEAD_BYTES_MAX).max_buf_size(BUFFER_BYTES_MAX);
    let mut stop = std::pin::pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "no connection could be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (builder, places, answer, tls, watcher) = (builder.clone(), places.clone(), answer.clone(), tls.clone(), graceful.watcher());
        let counted = open.enter();
        connections.spawn(async move {
            let stream = match tls {
                None => stream,
                Some(tls) => match tls.shake_hands(stream, limits.handshake).await {
                    Ok(stream) => stream,
                    Err(error) => return debug!(%error, "a TLS handshake failed: {error}"),
                },
            };
            let turn = Turn::default();
            let stream = Watched::new(stream, limits, places, turn.clone());
            let service = service_fn(move |request| {
                let (answering, answered) = (turn.begin(), answer(request));
                async move {
                    let answered = answered.await;
                    drop(answering);
                    answered
                }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                debug!(%error, "a connection ended: {error}");
            }
            drop((place, counted));
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.shutdown, graceful.shutdown()).await.is_err() {
        warn!("connections were still open after {} s, and are cut", limits.shutdown.as_secs());
    }
    connections.shutdown().await;
    Ok(())
}

async fn accept(listener: &Listener, places: &Arc<Semaphore>) -> io::Result<(Stream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let stream = listener.accept().await?;
    Ok((stream, place))
}
