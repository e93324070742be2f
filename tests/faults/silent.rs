//! A machine that is gone without a word: nobody is told that what was sent is answered never.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::load::Load;
use crate::lossy::Lossy;
use crate::service::Service;

/// The service gives up after ten seconds, whatever was sent before.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// A probe takes three seconds at most, and so does each connection of before that it is given.
const TRIED_WITHIN: Duration = Duration::from_secs(120);
/// Between two looks at what the service has sent.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_whether_the_store_is_back_does_not_wait_for_one_that_is_gone() {
    let (_server, lossy) = Lossy::server();
    let (folder, url) = (tempfile::tempdir().unwrap(), lossy.url());
    let service = Service::start(folder.path(), &[("DATABASE_URL", Path::new(&url))]);
    let load = Load::that_waits(ANSWERED_WITHIN);
    let callers = load.start(&service);
    load.until(|told| 100 <= told.acknowledged.len()).await;
    load.begins();
    lossy.silences.fetch_add(1, Ordering::Relaxed);
    load.until(|told| !told.refused.is_empty()).await;
    callers.stop().await;
    // More of them than the service has writers: all of them tried.
    let tried = async {
        while lossy.probes.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(TRIED_WITHIN, tried).await.expect("who tries waits for what is gone");
    lossy.silences.fetch_add(1, Ordering::Relaxed);
    let callers = load.start(&service);
    load.until_more(300).await;
    callers.stop().await;
    load.check(&service, "after the silence").await;
}
