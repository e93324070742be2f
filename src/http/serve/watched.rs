//! A connection that is cut when the other side takes too long: hyper waits for a writer's end for ever, and counts the time between two
//! requests as if it were a slow head.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Limits;
use super::alarm::Alarm;

/// The part of all places that are kept free by letting idle connections go early.
const CROWDED_PART: usize = 10;

/// How many heads came, and how many of them were answered: odd while an answer is under way, even while a head is awaited. One task
/// writes and reads it.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<AtomicUsize>);

/// Lasts as long as an answer is under way.
#[derive(Debug)]
pub struct Answering(Turn);

impl Turn {
    /// To be called when a head is complete.
    pub fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    fn number(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads and writes what `stream` does, in time.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    limits: Limits,
    /// The places of all connections: where few are left, who does nothing is let go early.
    places: Arc<Semaphore>,
    turn: Turn,
    reading: Reading,
    writing: Writing,
}

#[derive(Debug, Default)]
struct Reading {
    /// The turn that the rest is about.
    turn: usize,
    /// Whether something of a head has come.
    begun: bool,
    /// Since when a head, or its rest, is awaited.
    since: Option<Instant>,
    alarm: Alarm,
}

#[derive(Debug, Default)]
struct Writing {
    /// Since when nothing was taken.
    stalled: Option<Instant>,
    /// Since when not all was taken.
    clogged: Option<Instant>,
    alarm: Alarm,
}

impl<S> Watched<S> {
    pub fn new(stream: S, limits: Limits, places: Arc<Semaphore>, turn: Turn) -> Self {
        // Who connects wants to ask something: his first head has begun.
        let reading = Reading { begun: true, ..Reading::default() };
        Self { stream, limits, places, turn, reading, writing: Writing::default() }
    }

    /// Whether a head is awaited; what is known of an earlier turn is forgotten. While an answer is under way what comes is its body,
    /// which is waited for where it is read.
    fn awaits_head(&mut self) -> bool {
        let turn = self.turn.number();
        if self.reading.turn != turn {
            (self.reading.turn, self.reading.begun, self.reading.since) = (turn, false, None);
        }
        turn.is_multiple_of(2)
    }

    fn came(&mut self) {
        if self.awaits_head() && !self.reading.begun {
            (self.reading.begun, self.reading.since) = (true, None);
        }
    }

    /// What is to be done where nothing came.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let limits = self.limits;
        let crowded = self.places.available_permits() < limits.connections / CROWDED_PART;
        let (awaits_head, now) = (self.awaits_head(), Instant::now());
        let reading = &mut self.reading;
        // Seen again before it is due, since it may become crowded; and since nobody reads when an answer has ended, only while it is
        // under way.
        let seen_at = now + limits.head.min(limits.idle);
        if !awaits_head {
            // In the future: it does not ring.
            reading.alarm.rings(seen_at, context);
            return Poll::Pending;
        }
        let since = *reading.since.get_or_insert(now);
        let due = since + if reading.begun || crowded { limits.head } else { limits.idle };
        if !reading.alarm.rings(due.min(seen_at), context) {
            return Poll::Pending;
        }
        if reading.begun {
            return Poll::Ready(Err(late("the head of a request")));
        }
        // As if the other side had closed it, so that it ends in order.
        Poll::Ready(Ok(()))
    }

    fn take<T>(&mut self, taken: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match taken {
            Poll::Ready(taken) => {
                self.writing.stalled = None;
                Poll::Ready(taken)
            }
            Poll::Pending => {
                let (writing, now) = (&mut self.writing, Instant::now());
                let stalled = *writing.stalled.get_or_insert(now);
                let clogged = *writing.clogged.get_or_insert(now);
                if writing.alarm.rings((stalled + self.limits.write_stall).min(clogged + self.limits.answer), context) {
                    return Poll::Ready(Err(late("taking an answer")));
                }
                Poll::Pending
            }
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took too long"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending => this.wait(context),
            Poll::Ready(read) => {
                if before < buffer.filled().len() {
                    this.came();
                }
                Poll::Ready(read)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let taken = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.take(taken, context)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let taken = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.take(taken, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when all was written: nothing is left that somebody must take.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let taken = Pin::new(&mut this.stream).poll_flush(context);
        let flushed = ready!(this.take(taken, context));
        this.writing.clogged = None;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let taken = Pin::new(&mut this.stream).poll_shutdown(context);
        this.take(taken, context)
    }
}
