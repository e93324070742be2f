//! TLS: which connections are made, with which certificate, and which files are refused.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use spendgate::config::TlsFiles;
use spendgate::http::serve::Limits;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::app::{Database, TIERS, TestApp};
use crate::cli::{folder, run};
use crate::raw::{Raw, check, request};

fn certificate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

/// Writes a certificate and its key, and gives the certificate.
fn put(folder: &Path) -> CertificateDer<'static> {
    let made = certificate();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

async fn start(folder: &Path, limits: Limits) -> TestApp {
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    TestApp::start_within(limits, Database::Sqlite, TIERS, |mut config| {
        config.tls = Some(files.clone());
        config
    })
    .await
}

/// A client that trusts this certificate alone.
async fn connect(
    app: &TestApp,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<Raw<TlsStream<TcpStream>>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let mut config = config.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(app.address()).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await.map(Raw::over)
}

#[tokio::test]
async fn over_tls_the_same_is_answered_and_without_it_nothing() {
    let folder = folder();
    let cert = put(folder.path());
    let mut app = start(folder.path(), Limits::default()).await;
    for version in rustls::ALL_VERSIONS {
        let mut raw = connect(&app, &cert, &[version]).await.unwrap();
        let (_, session) = raw.stream.get_ref();
        assert_eq!((session.protocol_version(), session.alpn_protocol()), (Some(version.version), Some(&b"http/1.1"[..])));
        for _ in 0..3 {
            assert!(raw.is_served().await);
        }
        raw.send(&[check(), check()].concat()).await;
        assert_eq!((raw.status().await, raw.status().await), (Some(200), Some(200)));
    }
    let mut plain = Raw::begun(&app, &check()).await;
    assert!(!plain.until_cut_as_bytes().await.starts_with(b"HTTP"));
    let stranger = certificate();
    assert!(connect(&app, stranger.cert.der(), rustls::ALL_VERSIONS).await.is_err(), "it is not this certificate");
    app.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut() {
    let folder = folder();
    let cert = put(folder.path());
    let mut app =
        start(folder.path(), Limits { handshake: Duration::from_millis(400), head: Duration::from_secs(3600), ..Limits::default() }).await;
    let mut shaken = connect(&app, &cert, rustls::ALL_VERSIONS).await.unwrap();
    let mut silent = Raw::to(&app).await;
    assert!(silent.until_cut_as_bytes().await.is_empty());
    let mut half = Raw::to(&app).await;
    half.send("\u{16}\u{3}\u{1}").await;
    assert!(half.until_cut_as_bytes().await.is_empty());
    assert!(shaken.is_served().await);
    app.stop().await;
}

#[tokio::test]
async fn a_new_certificate_holds_from_the_next_connection_on_and_a_wrong_one_changes_nothing() {
    let folder = folder();
    let first = put(folder.path());
    let mut app = start(folder.path(), Limits::default()).await;
    let mut before = connect(&app, &first, rustls::ALL_VERSIONS).await.unwrap();
    assert!(before.is_served().await);
    let reload = request("POST", "/v1/admin/reload", "", "");

    let second = put(folder.path());
    assert!(connect(&app, &second, rustls::ALL_VERSIONS).await.is_err(), "nobody has told it to read the files again");
    before.send(&reload).await;
    assert_eq!(before.status().await, Some(200));
    assert!(connect(&app, &second, rustls::ALL_VERSIONS).await.unwrap().is_served().await);
    assert!(connect(&app, &first, rustls::ALL_VERSIONS).await.is_err());

    let (key, cert) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    let good = std::fs::read_to_string(&key).unwrap();
    for (file, text, setting) in [
        (&key, certificate().signing_key.serialize_pem(), "TLS_KEY_FILE"),
        (&key, "nothing".to_owned(), "TLS_KEY_FILE"),
        (&cert, "nothing".to_owned(), "TLS_CERT_FILE"),
    ] {
        std::fs::write(file, text).unwrap();
        before.send(&reload).await;
        let refused = before.answer().await.unwrap();
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert!(refused.body.contains("catalogue_refused") && refused.body.contains(setting), "{}", refused.body);
        assert!(connect(&app, &second, rustls::ALL_VERSIONS).await.unwrap().is_served().await, "what held goes on");
        std::fs::write(&key, &good).unwrap();
    }
    app.stop().await;
}

#[test]
fn files_that_do_not_serve_are_refused_by_name_at_the_start() {
    let folder = folder();
    put(folder.path());
    std::fs::write(folder.path().join("other.pem"), certificate().signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(folder.path().join("broken.pem"), broken).unwrap();
    let cases = [
        ("cert.pem", "other.pem", "TLS_KEY_FILE"),
        ("cert.pem", "empty.pem", "TLS_KEY_FILE"),
        ("cert.pem", "missing.pem", "TLS_KEY_FILE"),
        ("cert.pem", "cert.pem", "TLS_KEY_FILE"),
        ("empty.pem", "key.pem", "TLS_CERT_FILE"),
        ("missing.pem", "key.pem", "TLS_CERT_FILE"),
        ("broken.pem", "key.pem", "TLS_CERT_FILE"),
        ("key.pem", "key.pem", "TLS_CERT_FILE"),
        ("cert.pem", "", "TLS_KEY_FILE"),
        ("", "key.pem", "TLS_CERT_FILE"),
    ];
    for command in ["serve", "check-config"] {
        for (cert, key, setting) in cases {
            let environment = [("TLS_CERT_FILE", cert), ("TLS_KEY_FILE", key), ("LISTEN_ADDR", "127.0.0.1:0")];
            let (code, _, err) = run(folder.path(), &[command], &environment);
            assert_eq!(code, 2, "{command} {cert} {key}: {err}");
            assert!(err.contains(&format!("{setting}: ")), "{command} {cert} {key}: {err}");
            assert!(!err.contains("MIG") && !err.contains("MIIB"), "nothing of a key is told: {err}");
        }
    }
    let (code, out, err) = run(folder.path(), &["check-config"], &[("TLS_CERT_FILE", "cert.pem"), ("TLS_KEY_FILE", "key.pem")]);
    assert_eq!(code, 0, "{out}{err}");
}
