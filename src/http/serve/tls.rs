//! TLS: a certificate and its key from two files, which may be replaced while we run.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::info;

use super::stream::Stream;

/// The setting that names the certificate.
pub const CERT: &str = "TLS_CERT_FILE";
/// The setting that names its key.
pub const KEY: &str = "TLS_KEY_FILE";

/// What is wrong with one of the files, by the name of its setting. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {}: {why}", .file.display())]
pub struct TlsFault {
    setting: &'static str,
    file: PathBuf,
    why: String,
}

/// What connections are made safe with.
#[derive(Clone)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: Arc<ArcSwap<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cert", &self.cert).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Tls {
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsFault> {
        let current = Arc::new(ArcSwap::from_pointee(read(cert, key)?));
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current })
    }

    /// Reads both files again, for connections that come from now on. What is wrong changes nothing.
    pub fn read_again(&self) -> Result<(), TlsFault> {
        self.current.store(Arc::new(read(&self.cert, &self.key)?));
        info!("the certificate in {} was read again", self.cert.display());
        Ok(())
    }

    pub(super) async fn shake_hands(&self, stream: Stream, within: Duration) -> io::Result<Stream> {
        let shaken = timeout(within, TlsAcceptor::from(self.current.load_full()).accept(stream)).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
        Ok(Stream::Tls(Box::new(shaken.map_err(late)??)))
    }
}

fn read(cert: &Path, key: &Path) -> Result<ServerConfig, TlsFault> {
    let fault = |setting, file: &Path, why: String| TlsFault { setting, file: file.to_owned(), why };
    let of_cert = |why: String| fault(CERT, cert, why);
    let of_key = |why: String| fault(KEY, key, why);
    let text = std::fs::read(cert).map_err(|error| of_cert(error.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|_| of_cert("is not PEM".to_owned()))?;
    if chain.is_empty() {
        return Err(of_cert("has no certificate; it is to begin with -----BEGIN CERTIFICATE-----".to_owned()));
    }
    let text = std::fs::read(key).map_err(|error| of_key(error.to_string()))?;
    // What the library says of a key may repeat a part of it.
    let private = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| of_key("has no private key; it is to begin with -----BEGIN PRIVATE KEY-----".to_owned()))?;
    // TLS 1.2 and 1.3: nothing older exists here.
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| of_cert(error.to_string()))?;
    let config = config.with_no_client_auth().with_single_cert(chain, private);
    let mut config = config.map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            return of_key(format!("is not the key of the certificate in {}", cert.display()));
        }
        of_cert(format!("does not serve with the key in {}: {error}", key.display()))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
