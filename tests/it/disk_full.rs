//! A disk that fills up and has room again: refused while it is full, back at once, and nothing acknowledged is lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use spendgate::config::Config;
use spendgate::store::Address;
use tempfile::TempDir;

use crate::app::{Database, TIERS, TestApp};

/// A small disk of its own; `None` where this process may not mount one. In CI it must.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        assert!(std::env::var_os("CI").is_none(), "no disk could be mounted");
        eprintln!("no disk could be mounted (it takes root): a full disk is not tested");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What cannot be unmounted now is unmounted when nobody uses it any more.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn batch(number: usize) -> Value {
    Value::from_iter((0..50).map(|part| json!({"id": format!("b{number}-{part}"), "user_id": "u", "cost": "0.000000001"})))
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 1_500_000]).unwrap();
    let on_disk = |config: Config| Config { database: Address::Sqlite(disk.path().join("test.db")), ..config };
    let mut app = TestApp::start(Database::Sqlite, TIERS, on_disk).await;
    let mut acknowledged = Vec::new();
    // The control: a disk of three megabytes must be full before a thousand batches are on it, or nothing was tested.
    let full = async {
        for number in 0..1000 {
            let answer = app.post("/v1/usage", batch(number)).await;
            if answer.status != 200 {
                answer.problem(503, "store_unavailable");
                return Some(number);
            }
            acknowledged.push(number);
        }
        None
    };
    let refused = full.await.expect("the harness is void: the disk did not fill");
    assert_eq!(app.check("u").await["reason"], "store_unavailable");
    for number in refused..refused + 3 {
        app.post("/v1/usage", batch(number)).await.problem(503, "store_unavailable");
    }
    fs::remove_file(filler).unwrap();
    // The very first write after there is room again.
    app.post("/v1/usage", batch(refused)).await.ok();
    acknowledged.push(refused);
    assert_eq!(app.check("u").await["reason"], "within_budget");
    // Another connection, in another process, sees every acknowledged row once.
    let told = app.verify();
    assert!(told.contains(&format!("{} entries", acknowledged.len() * 50)) && told.contains(" 0 disagreements"), "{told}");
    app.restart().await;
    for number in acknowledged {
        let answer = app.post("/v1/usage", batch(number)).await.ok();
        assert!(answer["results"].as_array().unwrap().iter().all(|result| result["repeated"] == true), "batch {number}");
    }
    app.stop().await;
}
