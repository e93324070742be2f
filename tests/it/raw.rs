//! A connection as bytes, for what no client library would send.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::app::{ADMIN_KEY, TestApp};

/// No measure: only so that a failure ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// The head of a request with the admin key, without its end.
pub fn head(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n")
}

/// A whole request.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!("{}{headers}content-length: {}\r\n\r\n{body}", head(method, path), body.len())
}

/// A check.
pub fn check() -> String {
    format!("{}\r\n", head("GET", "/v1/users/u/enforcement"))
}

/// An answer, as it came.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }
}

pub struct Raw<S = TcpStream> {
    pub stream: S,
    unread: Vec<u8>,
}

impl Raw {
    pub async fn to(app: &TestApp) -> Self {
        Self::over(TcpStream::connect(app.address()).await.unwrap())
    }

    /// One whose kernel takes next to nothing that it does not read itself.
    pub async fn small(app: &TestApp) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        socket.set_send_buffer_size(4096).unwrap();
        Self::over(socket.connect(app.address()).await.unwrap())
    }

    /// One that has sent this already.
    pub async fn begun(app: &TestApp, bytes: &str) -> Self {
        let mut raw = Self::to(app).await;
        raw.send(bytes).await;
        raw
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Sends it again and again, at this pace, until the other side has cut the connection or has answered.
    pub async fn drip(&mut self, bytes: &str, pace: Duration) {
        let mut pace = tokio::time::interval(pace);
        let dripping = async {
            let mut byte = [0; 1];
            loop {
                tokio::select! {
                    read = self.stream.read(&mut byte) => {
                        self.unread.extend(byte.iter().take(read.unwrap_or_default()));
                        return;
                    }
                    _ = pace.tick() => {
                        if self.stream.write_all(bytes.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, dripping).await.expect("the other side lets everything happen");
    }

    async fn more(&mut self) -> usize {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        // One that was reset is cut too.
        read.expect("neither an answer nor an end comes").unwrap_or_default()
    }

    /// The next answer. `None` where the connection ends without one.
    pub async fn answer(&mut self) -> Option<RawAnswer> {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if self.more().await == 0 {
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let mut answer = RawAnswer { status: head[9..12].parse().unwrap(), head, body: String::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.unread.len() < length {
            assert_ne!(self.more().await, 0, "the answer broke off: {}", answer.head);
        }
        answer.body = String::from_utf8(self.unread.drain(..length).collect()).unwrap();
        Some(answer)
    }

    /// The next answer's status, where there is one.
    pub async fn status(&mut self) -> Option<u16> {
        self.answer().await.map(|answer| answer.status)
    }

    /// Waits until the connection is cut, and gives what still came.
    pub async fn until_cut(&mut self) -> String {
        String::from_utf8(self.until_cut_as_bytes().await).unwrap()
    }

    pub async fn until_cut_as_bytes(&mut self) -> Vec<u8> {
        while self.more().await != 0 {}
        std::mem::take(&mut self.unread)
    }

    /// Whether it is still served.
    pub async fn is_served(&mut self) -> bool {
        self.stream.write_all(check().as_bytes()).await.is_ok() && self.status().await == Some(200)
    }
}
