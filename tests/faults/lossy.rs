//! Stands between the service and its Postgres: it loses answers, or says nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::servers::{Server, host};

/// What a silent server answers no more to anybody, though who connects anew comes as far as this.
const WRITES: &[u8] = b"INSERT INTO ";
const PROBE: &[u8] = b"INSERT INTO probe";

/// The server did what was asked, and nobody is told.
pub struct Lossy {
    folder: tempfile::TempDir,
    /// Of a thousand answers so many are lost, and their connections with them.
    pub per_mille: AtomicU32,
    pub lost: AtomicU32,
    /// Odd while nothing that was connected before is answered any more, nor any write: as where a machine is gone without a word. It
    /// was silent so often, twice.
    pub silences: AtomicU32,
    /// Probes that were never answered.
    pub probes: AtomicU32,
}

impl Lossy {
    /// A server of its own, and what stands before it.
    pub fn server() -> (Server, Arc<Self>) {
        let server = Server::make(&["shared_buffers = 32MB"]);
        server.sql("CREATE DATABASE spendgate");
        let lossy = Self::before(&server);
        (server, lossy)
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/spendgate", host(self.folder.path()))
    }

    fn before(server: &Server) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let zero = AtomicU32::default;
        let lossy = Arc::new(Self { folder, per_mille: zero(), lost: zero(), silences: zero(), probes: zero() });
        let (between, behind) = (lossy.clone(), server.socket());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (between, server) = (between.clone(), UnixStream::connect(&behind).await.unwrap());
                // A connection that ends, or is ended, is no fault here.
                tokio::spawn(async move { between.carry(client, server).await });
            }
        });
        lossy
    }

    async fn carry(&self, mut client: UnixStream, mut server: UnixStream) -> std::io::Result<()> {
        let connected_in = self.silences.load(Ordering::Relaxed);
        let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                size = client.read(&mut asked) => match size? {
                    0 => return Ok(()),
                    size => {
                        let silences = self.silences.load(Ordering::Relaxed);
                        let has = |text: &[u8]| asked[..size].windows(text.len()).any(|bytes| bytes == text);
                        if silences % 2 == 1 && (has(WRITES) || connected_in != silences) {
                            self.probes.fetch_add(u32::from(has(PROBE)), Ordering::Relaxed);
                            // Both ends stay open, and hear nothing.
                            std::future::pending::<()>().await;
                        }
                        server.write_all(&asked[..size]).await?;
                    }
                },
                size = server.read(&mut answered) => match size? {
                    0 => return Ok(()),
                    _ if fastrand::u32(0..1000) < self.per_mille.load(Ordering::Relaxed) => {
                        self.lost.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    size => client.write_all(&answered[..size]).await?,
                },
            }
        }
    }
}
