//! A primary that was replaced and lives on: its connections are as good as before, and it takes whatever it is sent. No node sends it
//! anything any more, and none believes what it said.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::door::{Door, cents};
use crate::failover::{DATABASE, cluster, node};
use crate::load::Load;
use crate::servers::{Server, host};
use crate::service::Service;

/// A node that has not gone over by then never does.
const STAYS_AFTER: Duration = Duration::from_secs(60);

/// One address that leads to a server, and may be moved to another: whoever is connected stays where he was.
struct Address(tempfile::TempDir);

impl Address {
    fn of(server: &Server) -> Self {
        let address = Self(tempfile::tempdir().unwrap());
        address.leads_to(server);
        address
    }

    fn leads_to(&self, server: &Server) {
        let (new, here) = (self.0.path().join("new"), self.0.path().join(".s.PGSQL.5432"));
        symlink(server.socket(), &new).unwrap();
        std::fs::rename(new, here).unwrap();
    }

    fn node(&self, folder: &Path) -> Service {
        let url = format!("postgres://postgres@{}/{DATABASE}", host(self.0.path()));
        Service::start(folder, &[("DATABASE_URL", Path::new(&url))])
    }
}

/// Waits until a follower has all that its primary has.
fn has_followed(primary: &Server) {
    while primary.sql("SELECT COUNT(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()") != "1" {
        std::thread::yield_now();
    }
}

/// Waits until what a node takes from its pool leads to `server`. What it sends elsewhere until then is not acknowledged to anybody here.
async fn has_gone_over(door: &Door, server: &Server) {
    let goes_over = async {
        for number in 0_u64.. {
            let done = door.puts(&format!("/v1/users/other-{number}"), &json!({"tier": "pro", "reason": "test"})).await;
            let there = format!("SELECT COUNT(*) FROM users WHERE user_id = 'other-{number}'");
            if done && server.sql_in(DATABASE, &there) == "1" {
                return;
            }
        }
    };
    tokio::time::timeout(STAYS_AFTER, goes_over).await.expect("it stays with the server that was replaced");
}

/// How many rows of the ledger a server has.
fn rows(server: &Server) -> String {
    server.sql_in(DATABASE, "SELECT (SELECT COUNT(*) FROM usage), (SELECT COUNT(*) FROM holds)")
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_primary_that_was_replaced_and_lives_on_are_not_used_again() {
    let (primary, follower) = cluster(false);
    let folder = tempfile::tempdir().unwrap();
    let service = node(folder.path(), [&primary, &follower]);
    goes_over_for_good(&service, &primary, &follower, || ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_where_one_address_leads_to_another_server_by_and_by() {
    let (primary, follower) = cluster(false);
    let (folder, address) = (tempfile::tempdir().unwrap(), Address::of(&primary));
    let service = address.node(folder.path());
    goes_over_for_good(&service, &primary, &follower, || address.leads_to(&follower)).await;
}

/// After the follower is the primary, and whatever else `moves` the service, nothing reaches the old one any more.
async fn goes_over_for_good(service: &Service, primary: &Server, follower: &Server, moves: impl FnOnce()) {
    let (door, load) = (Door::of(service), Load::new());
    // All who keep a connection have one now.
    let callers = load.start(service);
    load.until(|told| 300 <= told.acknowledged.len()).await;
    callers.stop().await;
    load.check(service, "before").await;
    has_followed(primary);
    follower.promote();
    moves();
    has_gone_over(&door, follower).await;
    let (old, new) = (rows(primary), rows(follower));
    let callers = load.start(service);
    load.until(|told| 300 <= told.acknowledged.len()).await;
    callers.stop().await;
    // The writers by what they wrote, the readers by what they see.
    assert_eq!(rows(primary), old);
    assert_ne!(rows(follower), new);
    load.check(service, "beside the one that was replaced").await;
    for number in 1..=9 {
        door.post("/v1/usage", &json!({"id": format!("late-{number}"), "user_id": "late", "cost": "0.01"})).await;
        assert_eq!(cents(&door.get("/v1/users/late").await["lifetime"]["spent"]), number);
    }
    // The control: it would have taken them.
    primary.sql_in(DATABASE, "CREATE TABLE it_takes_writes ()");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_primary_said_that_was_replaced_is_not_believed_of_the_other_at_the_same_version() {
    let (primary, follower) = cluster(false);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let service = node(folders[0].path(), [&primary, &follower]);
    let door = Door::of(&service);
    let spend = async |door: &Door, id: &str, cost: &str| door.post("/v1/usage", &json!({"id": id, "user_id": "u", "cost": cost})).await;
    let spent = async |door: &Door| cents(&door.get("/v1/users/u").await["lifetime"]["spent"]);
    let version = |server: &Server| server.sql_in(DATABASE, "SELECT version FROM users WHERE user_id = 'u'");
    spend(&door, "first", "0.01").await;
    has_followed(&primary);
    primary.cut_followers();
    spend(&door, "lost", "0.02").await;
    assert_eq!(spent(&door).await, 3);
    follower.promote();
    has_gone_over(&door, &follower).await;
    let other = node(folders[1].path(), [&follower, &primary]);
    // Who remembers a user only adds, as was done there.
    drop(Door::of(&other).get("/v1/users/u/enforcement").await);
    spend(&Door::of(&other), "there", "0.04").await;
    // The control: only the server tells one from the other.
    assert_eq!(version(&primary), version(&follower));
    assert_eq!(spent(&door).await, 5);
    // Nor by who writes: what comes of it is what is there.
    spend(&door, "more", "0.03").await;
    assert_eq!(spent(&door).await, 8);
}
