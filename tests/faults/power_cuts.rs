//! The power goes under load. A kill leaves to the kernel what was written; a power cut takes what no sync has brought to the disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tempfile::TempDir;

use crate::load::Load;
use crate::service::Service;
use crate::{SEED, run, short_or_long, unable};

/// Sparse: it takes what is written to it.
const DISK_BYTES: u64 = 256 << 20;
/// The file system's own timer (five seconds where it is not said) would save what nobody has synced.
const MOUNT_OPTIONS: &str = "loop,commit=300";
/// `EXT4_IOC_SHUTDOWN` with `NOLOGFLUSH`: from here on nothing reaches the disk, the file system's own journal neither.
const CUT: &str = r#"
    open(my $disk, "<", $ARGV[0]) or die "$ARGV[0]: $!\n";
    my $how = pack("L", 2);
    defined(ioctl($disk, 0x8004587d, $how)) or die "EXT4_IOC_SHUTDOWN: $!\n";
"#;
/// Commits of the control: some three hundred pages, far from the thousand at which SQLite moves them and syncs by itself.
const COMMITS: i64 = 300;

/// A disk of its own, whose power can be cut.
struct Disk(TempDir);

impl Disk {
    /// `None` where this process may not mount one.
    fn make() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        File::create(disk.image()).unwrap().set_len(DISK_BYTES).unwrap();
        fs::create_dir(disk.path()).unwrap();
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image())).and_then(|()| disk.mount());
        made.map_err(|why| unable(&format!("a power cut needs a disk of its own (root, a loop device, mkfs.ext4): {why}"))).ok()?;
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("disk.img")
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", MOUNT_OPTIONS]).args([self.image(), self.path()]))
    }

    fn cut(&self) {
        // The ioctl takes a line of C or, as here, of Perl: this crate has no unsafe code.
        run(Command::new("perl").args(["-e", CUT]).arg(self.path())).unwrap();
        File::create(self.path().join("after")).expect_err("the harness is void: the disk works without power");
    }

    /// The file system is mounted as after a reboot: from what is on the disk. All its files must be closed.
    fn power_on(&self) {
        run(Command::new("umount").arg(self.path())).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What cannot be unmounted now is unmounted when nobody uses it any more; the loop device goes with it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_a_power_cut_once() {
    let Some(disk) = Disk::make() else { return };
    let mut random = fastrand::Rng::with_seed(SEED);
    let load = Load::new();
    let mut service = Service::start(&disk.path(), &[]);
    for cut in 0..short_or_long(2, 10) {
        let callers = load.start(&service);
        let deep = random.usize(40..600);
        load.until(|told| deep <= told.acknowledged.len()).await;
        load.begins();
        service.freeze();
        disk.cut();
        service.kill();
        callers.ended().await;
        disk.power_on();
        service = Service::start(&disk.path(), &[]);
        load.check(&service, &format!("power cut {cut}")).await;
    }
}

async fn open(path: &Path, synchronous: SqliteSynchronous) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    SqlitePoolOptions::new().max_connections(1).connect_with(options.synchronous(synchronous)).await.unwrap()
}

/// How many of its acknowledged commits SQLite loses by a power cut.
async fn lost(disk: &Disk, synchronous: SqliteSynchronous) -> i64 {
    let path = disk.path().join("control.db");
    // The table is on the disk in any case: closing moves it out of the log, and syncs.
    let made = open(&path, SqliteSynchronous::Full).await;
    sqlx::query("CREATE TABLE written (number INTEGER PRIMARY KEY) STRICT").execute(&made).await.unwrap();
    made.close().await;
    let writer = open(&path, synchronous).await;
    for number in 0..COMMITS {
        sqlx::query("INSERT INTO written (number) VALUES ($1)").bind(number).execute(&writer).await.unwrap();
    }
    disk.cut();
    writer.close().await;
    disk.power_on();
    let reader = open(&path, SqliteSynchronous::Full).await;
    let there: i64 = sqlx::query_scalar("SELECT count(*) FROM written").fetch_one(&reader).await.unwrap();
    reader.close().await;
    COMMITS - there
}

/// The control: without a sync at each commit (`synchronous=NORMAL`) a power cut takes commits, or it was none; with it, it takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    for (synchronous, loses) in [(SqliteSynchronous::Normal, true), (SqliteSynchronous::Full, false)] {
        let Some(disk) = Disk::make() else { return };
        let lost = lost(&disk, synchronous).await;
        assert_eq!(0 < lost, loses, "the harness is void: {lost} of {COMMITS} commits were lost");
    }
}
