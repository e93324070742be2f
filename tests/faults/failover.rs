//! The primary of a Postgres dies under load, and a standby takes its place: nothing that was acknowledged is lost, and the nodes go on by
//! themselves.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::door::{Door, cents};
use crate::load::Load;
use crate::lossy::Lossy;
use crate::servers::Server;
use crate::service::Service;

pub const DATABASE: &str = "spendgate";
const SYNCHRONOUS: &str = "synchronous_standby_names = 'follower'";

/// A primary and who follows it.
pub fn cluster(synchronous: bool) -> (Server, Server) {
    let primary = Server::make(&["shared_buffers = 32MB", "wal_keep_size = 256MB"]);
    primary.sql(&format!("CREATE DATABASE {DATABASE}"));
    let follower = primary.follower("follower");
    if synchronous {
        primary.set(&[SYNCHRONOUS]);
        primary.reload();
    }
    let state = if synchronous { "sync" } else { "async" };
    while primary.sql("SELECT sync_state FROM pg_stat_replication") != state {
        std::thread::yield_now();
    }
    (primary, follower)
}

pub fn node(folder: &Path, hosts: [&Server; 2]) -> Service {
    let url = format!("postgres://postgres@{},{}/{DATABASE}", hosts[0].host(), hosts[1].host());
    Service::start(folder, &[("DATABASE_URL", Path::new(&url))])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_dies_under_load_loses_nothing_and_nodes_go_over_to_the_standby() {
    let (primary, follower) = cluster(true);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // Nobody tells them which host is which.
    let (one, other) = (node(folders[0].path(), [&primary, &follower]), node(folders[1].path(), [&follower, &primary]));
    let load = Load::new();
    let callers = [load.start(&one), load.start(&other)];
    load.until(|told| 400 <= told.acknowledged.len()).await;
    load.begins();
    primary.kill();
    follower.promote();
    let promoted = std::time::Instant::now();
    load.until_more(200).await;
    eprintln!("{:?} after the promotion 200 more writes were acknowledged", promoted.elapsed());
    for callers in callers {
        callers.stop().await;
    }
    load.check(&one, "after the failover").await;
    assert_eq!(one.verify(), other.verify());
    // The old primary comes back, and does not know that it was replaced: nobody writes to it. It would wait for its standby for ever, so it
    // is told not to: what is written to it would be acknowledged, and would be missing.
    primary.set(&["synchronous_standby_names = ''"]);
    primary.start();
    let callers = [load.start(&one), load.start(&other)];
    load.until(|told| 200 <= told.acknowledged.len()).await;
    for callers in callers {
        callers.stop().await;
    }
    load.check(&other, "beside the old primary").await;
}

/// The control: a standby that may be behind loses what was acknowledged. If it did not, the test above would show nothing.
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "are gone")]
async fn the_control_a_standby_that_nobody_waits_for_loses_acknowledged_writes() {
    let (primary, follower) = cluster(false);
    let folder = tempfile::tempdir().unwrap();
    let service = node(folder.path(), [&primary, &follower]);
    let load = Load::new();
    let callers = load.start(&service);
    load.until(|told| 100 <= told.acknowledged.len()).await;
    primary.cut_followers();
    load.until_more(100).await;
    load.begins();
    primary.kill();
    follower.promote();
    load.until_more(20).await;
    callers.stop().await;
    load.check(&service, "after the failover").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_has_exactly_one_effect() {
    let (_server, lossy) = Lossy::server();
    let (folder, url) = (tempfile::tempdir().unwrap(), lossy.url());
    let service = Service::start(folder.path(), &[("DATABASE_URL", Path::new(&url))]);
    let load = Load::new();
    let callers = load.start(&service);
    load.until(|told| 50 <= told.acknowledged.len()).await;
    lossy.per_mille.store(30, Ordering::Relaxed);
    load.until_more(600).await;
    lossy.per_mille.store(0, Ordering::Relaxed);
    callers.stop().await;
    load.check(&service, "after lost answers").await;
    let lost = lossy.lost.load(Ordering::Relaxed);
    assert!(10 < lost, "the harness is void: {lost} answers were lost");
}

/// A batch that is found to be done was not followed by memory; within `MAX_STALENESS_MS` nobody would ask for what came of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_answer_was_lost_shows_in_the_very_next_check_though_memory_answers() {
    let (_server, lossy) = Lossy::server();
    let (folder, url) = (tempfile::tempdir().unwrap(), lossy.url());
    let settings = [("DATABASE_URL", Path::new(&url)), ("MAX_STALENESS_MS", Path::new("60000"))];
    let service = Service::start(folder.path(), &settings);
    let door = Door::of(&service);
    assert!(door.puts("/v1/users/u", &json!({"tier": "enterprise", "reason": "test"})).await);
    lossy.per_mille.store(30, Ordering::Relaxed);
    let mut held = 0;
    while held < 200 {
        let ask = json!({"id": format!("h-{held}"), "user_id": "u", "estimated_cost": 0.01});
        // Where even the tries again are lost, it is asked again under its id.
        if !door.posts("/v1/holds", &ask).await {
            continue;
        }
        held += 1;
        let check = door.get("/v1/users/u/enforcement").await;
        if check["reason"] != "store_unavailable" {
            assert_eq!(cents(&check["budgets"][0]["held"]), held, "after {} lost answers", lossy.lost.load(Ordering::Relaxed));
        }
    }
    let lost = lossy.lost.load(Ordering::Relaxed);
    assert!(10 < lost, "the harness is void: {lost} answers were lost");
}
