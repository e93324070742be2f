//! What strangers may do with connections, and what they cannot: each attack beside its control.

use std::time::Duration;

use serde_json::json;
use spendgate::http::serve::Limits;
use tokio::io::AsyncWriteExt;

use crate::app::{Database, TIERS, TestApp, on_each_database};
use crate::raw::{Raw, check, head, request};

/// Short where a test waits for it to pass.
const SHORT: Duration = Duration::from_millis(400);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);
const PACE: Duration = Duration::from_millis(20);

/// All that a test does not wait for is long.
const PATIENT: Limits = Limits {
    connections: 10_000,
    handshake: LONG,
    head: LONG,
    idle: LONG,
    body: LONG,
    body_stall: LONG,
    send_buffer: 128 * 1024,
    write_stall: LONG,
    answer: LONG,
    shutdown: LONG,
};

async fn within(limits: Limits) -> TestApp {
    TestApp::start_within(limits, Database::Sqlite, TIERS, |config| config).await
}

fn usage(id: &str) -> String {
    json!({"id": id, "user_id": "u", "cost": 0.01}).to_string()
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_is_cut_and_an_idle_connection_is_not() {
    let mut app = within(Limits { head: SHORT, ..PATIENT }).await;
    let mut idle = Raw::begun(&app, &check()).await;
    assert_eq!(idle.status().await, Some(200));
    let mut silent = Raw::to(&app).await;
    assert_eq!(silent.until_cut().await, "");
    let mut half = Raw::begun(&app, "GET /healthz HTTP/1.1\r\nhost: x\r\n").await;
    assert_eq!(half.until_cut().await, "");
    let mut dripping = Raw::begun(&app, "GET /healthz HTTP/1.1\r\nx: ").await;
    dripping.drip("x", PACE).await;
    assert_eq!(dripping.until_cut().await, "");
    let mut second = Raw::begun(&app, &check()).await;
    assert_eq!(second.status().await, Some(200));
    second.send("GET /hea").await;
    assert_eq!(second.until_cut().await, "");
    assert!(idle.is_served().await, "it waited longer than any head may take");
    app.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let mut app = within(Limits { idle: SHORT, ..PATIENT }).await;
    let mut idle = Raw::begun(&app, &check()).await;
    assert_eq!(idle.status().await, Some(200));
    assert_eq!(idle.until_cut().await, "");
    app.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_or_takes_too_long_is_answered_408() {
    for (limits, stops) in [(Limits { body_stall: SHORT, ..PATIENT }, true), (Limits { body: SHORT, ..PATIENT }, false)] {
        let mut app = within(limits).await;
        for path in ["/v1/usage", "/v1/enforcement", "/webhooks/stripe", "/v1/holds"] {
            let mut slow = Raw::begun(&app, &format!("{}content-length: 60000\r\n\r\n{{\"id\":", head("POST", path))).await;
            if !stops {
                slow.drip(" ", PACE).await;
            }
            let answer = slow.answer().await.unwrap();
            assert_eq!(answer.status, 408, "{path}: {}", answer.body);
            assert!(answer.body.contains("\"code\":\"body_timeout\""), "{}", answer.body);
            slow.until_cut().await;
        }
        let mut whole = Raw::begun(&app, &request("POST", "/v1/usage", "", &usage("a"))).await;
        assert_eq!(whole.status().await, Some(200));
        app.stop().await;
    }
}

/// Asks and takes no answer, until it is cut: then nothing more can be sent.
async fn ask_and_take_nothing(app: &TestApp) {
    let mut slow = Raw::small(app).await;
    let checks = check().repeat(16);
    let asking = async { while slow.stream.write_all(checks.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("nobody cuts it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_that_take_nothing_are_cut_and_checks_are_answered_meanwhile() {
    let mut app = within(Limits { write_stall: Duration::from_secs(2), send_buffer: 4096, ..PATIENT }).await;
    let mut quick = Raw::to(&app).await;
    let quick = async {
        for _ in 0..100 {
            assert!(quick.is_served().await);
        }
        app.post("/v1/usage", usage("a")).await.ok();
    };
    let slow = futures_util::future::join_all((0..1000).map(|_| ask_and_take_nothing(&app)));
    tokio::join!(slow, quick);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_cut_and_one_that_takes_what_it_asked_for_is_not() {
    for limits in [Limits { write_stall: SHORT, ..PATIENT }, Limits { answer: SHORT, ..PATIENT }] {
        let mut app = within(Limits { send_buffer: 4096, ..limits }).await;
        ask_and_take_nothing(&app).await;
        let mut quick = Raw::begun(&app, &check().repeat(500)).await;
        for _ in 0..500 {
            assert_eq!(quick.status().await, Some(200));
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn half_open_connections_take_places_only_until_they_are_cut() {
    // The last place serves whoever comes, one after the other.
    let mut app = within(Limits { connections: 8, ..PATIENT }).await;
    let mut half_open = Vec::new();
    for _ in 0..7 {
        half_open.push(Raw::begun(&app, "GET /").await);
    }
    for _ in 0..3 {
        let mut other = Raw::begun(&app, &check().replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(other.status().await, Some(200));
        other.until_cut().await;
    }
    drop(half_open);
    app.stop().await;
    // With none left the next one waits until one of them is cut.
    let mut app = within(Limits { connections: 8, head: SHORT, ..PATIENT }).await;
    let mut half_open = Vec::new();
    for _ in 0..8 {
        half_open.push(Raw::begun(&app, "GET /").await);
    }
    let mut other = Raw::begun(&app, &check()).await;
    assert_eq!(other.status().await, Some(200));
    app.stop().await;
}

#[tokio::test]
async fn idle_connections_make_room_where_there_is_none_and_stay_where_there_is() {
    let mut app = within(Limits { connections: 20, head: SHORT, ..PATIENT }).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut one = Raw::begun(&app, &check()).await;
        assert_eq!(one.status().await, Some(200));
        idle.push(one);
    }
    let mut other = Raw::begun(&app, &check()).await;
    assert_eq!(other.status().await, Some(200));
    drop((idle, other));
    app.stop().await;
}

#[tokio::test]
async fn a_length_that_is_not_so_is_refused_or_ends_the_connection() {
    on_each_database(TIERS, async |app| {
        let body = usage("a");
        let post = head("POST", "/v1/usage");
        let heads = [
            "content-length: -1",
            "content-length: +5",
            "content-length: 5, 6",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 99999999999999999999999",
            "content-length: 0x10",
            "transfer-encoding: gzip",
            "transfer-encoding: chunked, gzip",
        ];
        for length in heads {
            let mut raw = Raw::begun(app, &format!("{post}{length}\r\n\r\n{body}")).await;
            let status = raw.status().await;
            assert!(matches!(status, Some(400)), "{length}: {status:?}");
            raw.until_cut().await;
        }
        for chunks in ["zz\r\n{}\r\n0\r\n\r\n", "ffffffffffffffffff\r\n{", "-1\r\n{}\r\n", "2\r\n{}xx0\r\n\r\n"] {
            let mut raw = Raw::begun(app, &format!("{post}transfer-encoding: chunked\r\n\r\n{chunks}")).await;
            let status = raw.status().await;
            assert_eq!(status, Some(400), "{chunks}");
            raw.until_cut().await;
        }
        // Less than was said.
        let mut short = Raw::begun(app, &format!("{post}content-length: {}\r\n\r\n{body}", body.len() + 5)).await;
        short.stream.shutdown().await.unwrap();
        assert_ne!(short.status().await, Some(200));
        // More than was said: what is left over is no request.
        let mut long = Raw::begun(app, &format!("{post}content-length: {}\r\n\r\n{body}", body.len() - 1)).await;
        assert_eq!(long.status().await, Some(400));
        assert_ne!(long.status().await, Some(200));
        assert_eq!(app.get("/v1/users/u/usage").await.ok()["entries"], json!([]), "nothing of all that was booked");
        let chunks = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let mut right = Raw::begun(app, &format!("{post}{chunks}")).await;
        assert_eq!(right.status().await, Some(200));
        assert!(right.is_served().await);
    })
    .await;
}

#[tokio::test]
async fn a_body_without_end_is_refused_when_it_is_too_large() {
    let mut app = within(PATIENT).await;
    for path in ["/v1/enforcement", "/webhooks/stripe"] {
        let mut raw = Raw::begun(&app, &format!("{}transfer-encoding: chunked\r\n\r\n", head("POST", path))).await;
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        while raw.stream.write_all(chunk.as_bytes()).await.is_ok() {}
        app.check("u").await;
    }
    let mut raw = Raw::begun(&app, &format!("{}content-length: 99999999999\r\n\r\n{{", head("POST", "/v1/enforcement"))).await;
    assert_eq!(raw.status().await, Some(413));
    raw.until_cut().await;
    app.stop().await;
}

#[tokio::test]
async fn a_long_head_is_refused_and_a_reasonable_one_is_not() {
    let mut app = within(PATIENT).await;
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let cases = [
        (format!("x: {}\r\n", "a".repeat(16 * 1024)), 200),
        (format!("x: {}\r\n", "a".repeat(33 * 1024)), 431),
        (many(90), 200),
        (many(101), 431),
    ];
    for (headers, status) in cases {
        let mut raw = Raw::begun(&app, &check().replace("\r\n\r\n", &format!("\r\n{headers}\r\n"))).await;
        assert_eq!(raw.status().await, Some(status), "{headers:.20}");
        assert_eq!(raw.is_served().await, status == 200);
    }
    let mut long = Raw::begun(&app, &head("GET", &format!("/v1/users/{}/enforcement", "u".repeat(40_000)))).await;
    assert_eq!(long.status().await, Some(431));
    app.stop().await;
}

#[tokio::test]
async fn requests_that_are_sent_at_once_are_answered_in_their_order() {
    on_each_database(TIERS, async |app| {
        let usage = |id: &str| request("POST", "/v1/usage", "", &usage(id));
        let mut raw =
            Raw::begun(app, &[usage("a"), check(), usage("b"), "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()].concat()).await;
        for expected in ["\"id\":\"a\"", "\"spent\":0.01", "\"id\":\"b\"", "\"not_found\""] {
            let answer = raw.answer().await.unwrap();
            assert!(answer.body.contains(expected), "{expected}: {}", answer.body);
        }
        assert!(raw.is_served().await);
    })
    .await;
}

#[tokio::test]
async fn who_asks_before_he_sends_a_body_is_told_to_go_on_or_why_not() {
    on_each_database(TIERS, async |app| {
        let body = usage("a");
        let asks = |head: String| format!("{head}content-length: {}\r\nexpect: 100-continue\r\n\r\n", body.len());
        let mut raw = Raw::begun(app, &asks(head("POST", "/v1/usage"))).await;
        assert_eq!(raw.status().await, Some(100));
        raw.send(&body).await;
        assert_eq!(raw.status().await, Some(200));
        let mut stranger = Raw::begun(app, &asks("POST /v1/usage HTTP/1.1\r\nhost: x\r\n".to_owned())).await;
        assert_eq!(stranger.status().await, Some(401));
    })
    .await;
}

#[tokio::test]
async fn what_is_in_flight_is_finished_when_the_service_stops_and_idle_connections_are_closed() {
    for database in Database::ALL {
        let mut app = TestApp::start_within(PATIENT, database, TIERS, |config| config).await;
        let mut idle = Raw::begun(&app, &check()).await;
        assert_eq!(idle.status().await, Some(200));
        let body = usage("a");
        let asks = format!("{}content-length: {}\r\nexpect: 100-continue\r\n\r\n", head("POST", "/v1/usage"), body.len());
        let mut in_flight = Raw::begun(&app, &asks).await;
        assert_eq!(in_flight.status().await, Some(100));
        let address = app.address();
        let finishing = async {
            assert_eq!(idle.until_cut().await, "");
            assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody new is let in");
            in_flight.send(&body).await;
            assert_eq!(in_flight.status().await, Some(200));
            assert_eq!(in_flight.until_cut().await, "");
        };
        tokio::join!(app.stop(), finishing);
        app.restart_after_stop().await;
        assert_eq!(app.get("/v1/users/u/usage").await.ok()["entries"][0]["id"], "a");
        app.stop().await;
    }
}
