//! Connections: bounded in number and in the time that their heads may take. `axum::serve` would wait for half a request line
//! for ever.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::telemetry::Level;

/// Connections at once; beyond, the next one waits in the listener's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// How long the head of a request may take, the wait for the next one on an idle connection included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long what is in flight may take once the service is told to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// A pause after the listener failed (no file handles left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves what `answer` answers until `stop` is ready, then finishes what is in flight. `open` says how many connections there are.
pub async fn serve<A, F>(listener: TcpListener, open: Arc<Level>, answer: A, stop: impl Future<Output = ()>) -> io::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
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
        // Answers are small: waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let service = service_fn(answer.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        while connections.try_join_next().is_some() {}
        let counted = open.enter();
        connections.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended: {error}");
            }
            drop((place, counted));
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, graceful.shutdown()).await.is_err() {
        warn!("connections were still open after {} s, and are cut", SHUTDOWN_TIMEOUT.as_secs());
    }
    connections.shutdown().await;
    Ok(())
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}
