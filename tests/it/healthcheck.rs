//! `spendgate healthcheck`, as a container's runtime calls it.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::app::{TIERS, on_each_database};
use crate::cli::{folder, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_ends_with_0_while_the_service_is_ready_and_with_1_once_it_is_not() {
    on_each_database(TIERS, async |app| {
        let (folder, address) = (folder(), app.address().to_string());
        // A proxy that is not there is not asked.
        let environment = [("LISTEN_ADDR", address.as_str()), ("HTTP_PROXY", "http://127.0.0.1:1"), ("ALL_PROXY", "http://127.0.0.1:1")];
        let (code, out, err) = run(folder.path(), &["healthcheck"], &environment);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains(r#""status":"ready""#), "{out}");
        app.stop().await;
        let (code, out, err) = run(folder.path(), &["healthcheck"], &environment);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("/readyz does not answer"), "{err}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "it leaves nothing behind");
        app.restart_after_stop().await;
    })
    .await;
}

#[test]
fn an_answer_that_is_not_ready_ends_with_1_and_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let read = stream.read(&mut [0; 4096]).unwrap();
        assert_ne!(read, 0);
        stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\nconnection: close\r\n\r\nnot yet").unwrap();
    });
    let (code, out, err) = run(folder().path(), &["healthcheck"], &[("LISTEN_ADDR", &address)]);
    other.join().unwrap();
    assert_eq!((code, out.trim()), (1, "not yet"), "{err}");
    assert_eq!(run(folder().path(), &["healthcheck"], &[("LISTEN_ADDR", "nowhere")]).0, 2);
}
