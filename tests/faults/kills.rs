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
