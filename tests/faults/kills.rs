//! Killed at any instant under load, the next start has every acknowledged write, once.

use crate::load::Load;
use crate::service::Service;
use crate::{SEED, short_or_long};

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_a_kill_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(SEED);
    let load = Load::new();
    let mut service = Service::start(folder.path(), &[]);
    let mut lost = 0;
    for kill in 0..short_or_long(4, 20) {
        let callers = load.start(&service);
        let deep = random.usize(40..600);
        load.until(|told| deep <= told.acknowledged.len()).await;
        load.begins();
        service.kill();
        callers.ended().await;
        service = Service::start(folder.path(), &[]);
        lost += load.check(&service, &format!("kill {kill}")).await.lost;
    }
    // The control: what was in flight may be there or not. If nothing ever was lost, the kills came when nothing was done.
    assert!(0 < lost, "the harness is void: no kill caught anything in flight");
}

/// What is drawn on a grant is durable in the commit of the entry that drew it: never one without the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_grants_gave_survives_a_kill_with_what_was_spent() {
    const LIMIT: u64 = 10;
    const GRANT: u64 = 600;
    let folder = tempfile::tempdir().unwrap();
    // Nothing is refused, so that every write of the load is taken.
    let tiers = format!("default_tier: free\ntiers:\n  free: {{ rank: 0, budgets: {{ total: 0.{LIMIT:09} }}, policy: monitor }}\n");
    let file = folder.path().join("tiers.yaml");
    std::fs::write(&file, tiers).unwrap();
    let environment = [("TIERS_FILE", file.as_path())];
    let mut random = fastrand::Rng::with_seed(SEED);
    let load = Load::new();
    let mut service = Service::start(folder.path(), &environment);
    load.grant(&service, GRANT).await;
    let mut used_up = Vec::new();
    for kill in 0..short_or_long(4, 20) {
        let callers = load.start(&service);
        let deep = random.usize(40..600);
        load.until(|told| deep <= told.acknowledged.len()).await;
        load.begins();
        service.kill();
        callers.ended().await;
        service = Service::start(folder.path(), &environment);
        used_up.push(load.check_grants(&service, LIMIT, GRANT).await);
        load.check(&service, &format!("kill {kill}")).await;
        load.check_grants(&service, LIMIT, GRANT).await;
    }
    // The control: a grant that was never used up, or at once, would tell little.
    assert!(used_up.first() == Some(&0) && used_up.last() != Some(&0), "the harness is void: {used_up:?} grants were used up");
}
