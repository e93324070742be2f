//! Ten thousand signatures that are almost right.

use chrono::TimeDelta;
use fastrand::Rng;
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::HeaderValue;
use serde_json::json;
use sha2::Sha256;
use spendgate::stripe::signature::Secret;

use super::{SEED, goes_on};
use crate::app::{Answer, TIERS, TestApp, WEBHOOK_SECRET, on_each_database};
use crate::fuzz::targets::is_signed;
use crate::stripe::{customer, paying};

const FORGERIES: usize = 10_000;
/// Side by side, as a flood would come.
const AT_ONCE: usize = 50;

struct Forgery {
    headers: Vec<Vec<u8>>,
    body: Vec<u8>,
}

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

/// HMAC-SHA-256 of whatever, in hex.
fn mac(key: &str, of: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    of.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// The text with one byte of it changed.
fn flipped(rng: &mut Rng, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let at = rng.usize(..bytes.len());
    bytes[at] ^= 1 << rng.u8(..8);
    bytes
}

fn forge(rng: &mut Rng, app: &TestApp, body: &[u8]) -> Forgery {
    let (now, right) = (app.now(), secret(WEBHOOK_SECRET));
    let good = right.sign(body, now);
    let (t, v1) = good.split_once(",v1=").unwrap();
    let time = &t[2..];
    let header = match rng.u8(..24) {
        0 | 1 => flipped(rng, &good),
        2 => good.as_bytes()[..rng.usize(..good.len())].to_vec(),
        3 => {
            let scheme = ["v0", "v2", "V1", "v1 ", "v10", "v", "sha256", "hmac", ""][rng.usize(..9)];
            format!("{t},{scheme}={v1}").into_bytes()
        }
        4 => {
            // Another time, with the signature of the right one.
            let other = now + TimeDelta::seconds(rng.i64(1..400) * if rng.bool() { 1 } else { -1 });
            format!("t={},v1={v1}", other.timestamp()).into_bytes()
        }
        5 => {
            // Well signed, at another time.
            let off = TimeDelta::seconds(rng.i64(301..1_000_000_000) * if rng.bool() { 1 } else { -1 });
            right.sign(body, now + off).into_bytes()
        }
        6 => {
            let other = now.timestamp() - rng.i64(..1000);
            let doubles = [format!("{t},{good}"), format!("t={other},{good}"), format!("{good},t={other}"), format!("{good},t=")];
            doubles[rng.usize(..4)].clone().into_bytes()
        }
        7 => {
            let bytes = mac(WEBHOOK_SECRET, &[time.as_bytes(), b".", body]);
            use base64::Engine;
            let base64 = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let octal: String = bytes.iter().map(|byte| format!("{byte:03o}")).collect();
            let escaped: String = v1.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let odd =
                [base64, octal, escaped, format!("0x{v1}"), format!("\"{v1}\""), format!("{v1}=="), format!("{v1}00"), hex::encode(v1)];
            format!("{t},v1={}", odd[rng.usize(..8)]).into_bytes()
        }
        8 => format!("{good},x={}", "a".repeat(rng.usize(4096..9000))).into_bytes(),
        9 => format!("{t}{}", format!(",v1={v1}").repeat(rng.usize(17..60))).into_bytes(),
        10 => {
            let other = [format!("{WEBHOOK_SECRET} "), WEBHOOK_SECRET[6..].to_owned(), format!("{WEBHOOK_SECRET}\0x"), "whsec_".to_owned()];
            secret(&other[rng.usize(..4)]).sign(body, now).into_bytes()
        }
        11 => {
            // What is signed is put together in another way.
            let parts: [&[&[u8]]; 5] = [
                &[body],
                &[time.as_bytes(), body],
                &[time.as_bytes(), b",", body],
                &[body, b".", time.as_bytes()],
                &[time.as_bytes(), b"."],
            ];
            format!("{t},v1={}", hex::encode(mac(WEBHOOK_SECRET, parts[rng.usize(..5)]))).into_bytes()
        }
        12 => {
            let at = rng.usize(..v1.len());
            format!("{t},v1={} {}", &v1[..at], &v1[at..]).into_bytes()
        }
        13 => {
            let joins = [";", "&", " ", ",,", "\t", "|", "\u{a0}"];
            format!("{t}{}v1={v1}", joins[rng.usize(..7)]).into_bytes()
        }
        14 => {
            // A number that is written in another way.
            let times = [
                format!("+{time}"),
                format!("0{time}"),
                format!("{time}.0"),
                format!("{time}e0"),
                format!("-{time}"),
                format!(" {time}"),
                format!("{time}000"),
            ];
            format!("t={},v1={v1}", times[rng.usize(..7)]).into_bytes()
        }
        15 => (0..rng.usize(..200)).map(|_| rng.u8(32..127)).collect(),
        16 => (0..rng.usize(..200)).map(|_| rng.u8(128..=255)).collect(),
        17 => format!("{t},v1={}", (0..64).map(|_| b"0123456789abcdef"[rng.usize(..16)] as char).collect::<String>()).into_bytes(),
        18 => format!("{t},v1={}", &v1[..2 * rng.usize(..32)]).into_bytes(),
        19 => {
            // The right one of two headers does not count.
            let other = if rng.bool() { good.clone() } else { format!("{t},v1={}", "0".repeat(64)) };
            let headers = if rng.bool() { vec![good.clone(), other] } else { vec![other, good.clone()] };
            return Forgery { headers: headers.into_iter().map(String::into_bytes).collect(), body: body.to_vec() };
        }
        20 => return Forgery { headers: Vec::new(), body: body.to_vec() },
        _ => {
            // The right signature, of another body.
            let mut other = body.to_vec();
            match rng.u8(..5) {
                0 => other.push(*b"\n ,}".get(rng.usize(..4)).unwrap()),
                1 => drop(other.pop()),
                2 => other.splice(..0, *b"\xef\xbb\xbf").for_each(drop),
                3 => other = serde_json::to_vec_pretty(&serde_json::from_slice::<serde_json::Value>(body).unwrap()).unwrap(),
                _ => {
                    let at = rng.usize(..other.len());
                    other[at] ^= 1 << rng.u8(..8);
                }
            }
            return Forgery { headers: vec![good.into_bytes()], body: other };
        }
    };
    Forgery { headers: vec![header], body: body.to_vec() }
}

async fn post(app: &TestApp, forgery: &Forgery) -> Answer {
    let mut request = app.client.post(app.url("/webhooks/stripe"));
    for header in &forgery.headers {
        // What no header may have, no client can send.
        request = request.header("stripe-signature", HeaderValue::from_bytes(header).unwrap_or(HeaderValue::from_static("t=1")));
    }
    app.send(request.body(forgery.body.clone())).await
}

#[tokio::test]
async fn of_ten_thousand_signatures_that_are_almost_right_none_is_believed() {
    on_each_database(TIERS, async |app| {
        let event = customer("customer.created", 0, "cus_forged", Some("forged"));
        let body = event.to_string().into_bytes();
        let (mut rng, right) = (Rng::with_seed(SEED), secret(WEBHOOK_SECRET));
        let mut codes = std::collections::BTreeMap::<String, usize>::new();
        let mut sent = 0;
        while sent < FORGERIES {
            let mut forgeries = Vec::new();
            while forgeries.len() < AT_ONCE {
                let forgery = forge(&mut rng, app, &body);
                // Some changes change nothing: hex digits in capitals are the same number, a blank may stand before a part.
                let is_right = match &forgery.headers[..] {
                    [header] => std::str::from_utf8(header)
                        .is_ok_and(|header| header.len() <= 4096 && is_signed(header, &forgery.body, &right, app.now())),
                    _ => false,
                };
                let many = forgery.headers.iter().any(|header| 16 < header.windows(3).filter(|part| part == b"v1=").count());
                if !is_right || many {
                    forgeries.push(forgery);
                }
            }
            for (answer, forgery) in join_all(forgeries.iter().map(|forgery| post(app, forgery))).await.iter().zip(&forgeries) {
                assert_eq!(
                    answer.status,
                    400,
                    "{:?}: {}",
                    forgery.headers.iter().map(|header| String::from_utf8_lossy(header)).collect::<Vec<_>>(),
                    answer.text
                );
                *codes.entry(answer.json()["code"].as_str().unwrap().to_owned()).or_default() += 1;
            }
            sent += AT_ONCE;
        }
        // Each way to fail was tried, and none had to do with what is in the body.
        let told: Vec<&str> = codes.keys().map(String::as_str).collect();
        assert_eq!(told, ["signature_invalid", "signature_missing", "signature_stale"], "{codes:?}");
        assert_eq!(app.get("/v1/events").await.ok()["events"], json!([]), "nothing was stored");
        assert_eq!(app.user("forged").await["known"], json!(false));
        // The control: the right signature is believed, and the event counts.
        app.apply(event).await;
        for event in paying("forged", "price_pro") {
            app.apply(event).await;
        }
        assert_eq!(app.user("forged").await["known"], json!(true));
        goes_on(app).await;
    })
    .await;
}
