//! A disk that fails the Nth write or sync: refused while it fails, back within a second, and nothing acknowledged is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::load::Load;
use crate::service::Service;
use crate::{SEED, run, short_or_long, unable};

/// Which calls fail; sums of them are both. As in `failing_io.c`, where every number here has its meaning.
const WRITES: u64 = 1;
const SYNCS: u64 = 2;
const TRUNCATIONS: u64 = 4;
/// How Linux calls an error of the device, and a full disk.
const EIO: u64 = 5;
const ENOSPC: u64 = 28;

const ARMED_AT: u64 = 0;
const ORDER_AT: u64 = 8;
const LEFT_AT: u64 = 24;
const FAILED_AT: u64 = 40;
const CONTROL_BYTES: u64 = 64;

/// Refusals after which a disk that fails until it is mended has failed for long enough.
const REFUSALS: usize = 40;

/// What fails, and when.
#[derive(Clone, Copy, Debug)]
struct Order {
    kinds: u64,
    /// 1 is the very next call.
    nth: u64,
    /// How many calls fail from there on; `None` is until the disk is mended.
    times: Option<u64>,
    error: u64,
}

const ORDERS: [Order; 6] = [
    Order { kinds: SYNCS, nth: 1, times: Some(1), error: EIO },
    Order { kinds: WRITES, nth: 1, times: Some(1), error: EIO },
    Order { kinds: SYNCS, nth: 8, times: Some(3), error: EIO },
    Order { kinds: WRITES, nth: 301, times: Some(5), error: ENOSPC },
    Order { kinds: SYNCS, nth: 1, times: None, error: EIO },
    Order { kinds: WRITES + SYNCS + TRUNCATIONS, nth: 2, times: None, error: EIO },
];

fn any_order(random: &mut fastrand::Rng) -> Order {
    let kinds = [WRITES, SYNCS, WRITES + SYNCS][random.usize(0..3)];
    // A commit is one sync, and dozens of writes.
    let nth = random.u64(1..if kinds == SYNCS { 100 } else { 5000 });
    Order { kinds, nth, times: Some(random.u64(1..6)), error: [EIO, ENOSPC][random.usize(0..2)] }
}

/// The library that is preloaded into the service, and the file by which it is told what to do.
struct FailingDisk {
    library: PathBuf,
    control: PathBuf,
    words: File,
}

impl FailingDisk {
    /// `None` where there is no C compiler that makes a library of it.
    fn make(folder: &Path) -> Option<Self> {
        let (library, control) = (folder.join("failing_io.so"), folder.join("control"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/failing_io.c");
        let made = run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]));
        made.map_err(|why| unable(&format!("errors of the disk need a C compiler, on Linux: {why}"))).ok()?;
        let words = File::options().read(true).write(true).create_new(true).open(&control).unwrap();
        words.set_len(CONTROL_BYTES).unwrap();
        Some(Self { library, control, words })
    }

    fn start(&self, data: &Path) -> Service {
        Service::start(data, &[("LD_PRELOAD", &self.library), ("FAIL_CONTROL", &self.control), ("FAIL_IN", data)])
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.words.read_exact_at(&mut word, at).unwrap();
        u64::from_ne_bytes(word)
    }

    fn order(&self, order: Order) {
        self.mend();
        let times = order.times.unwrap_or(u64::from(u32::MAX));
        let words = [order.kinds, order.nth - 1, times, order.error, 0, 0].map(u64::to_ne_bytes);
        self.words.write_all_at(words.as_flattened(), ORDER_AT).unwrap();
        // Last, so that nothing follows half an order.
        self.words.write_all_at(&1_u64.to_ne_bytes(), ARMED_AT).unwrap();
    }

    fn mend(&self) {
        self.words.write_all_at(&0_u64.to_ne_bytes(), ARMED_AT).unwrap();
    }

    /// How many calls have failed by the last order.
    fn failed(&self) -> u64 {
        self.word(FAILED_AT)
    }

    /// Whether an order has been carried out. Calls beyond it count below zero.
    fn is_done(&self) -> bool {
        self.word(LEFT_AT).cast_signed() <= 0
    }

    /// Waits for the end of an order, which the load brings nearer with each call.
    async fn done(&self, order: Order) {
        for _ in 0..30_000 {
            if self.is_done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the harness is void: {order:?} was not carried out");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_is_told_and_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // As the kernel tells the paths of open files.
    let data = folder.path().canonicalize().unwrap().join("data");
    fs::create_dir(&data).unwrap();
    let Some(disk) = FailingDisk::make(folder.path()) else { return };
    let mut random = fastrand::Rng::with_seed(SEED);
    let load = Load::new();
    let mut service = disk.start(&data);
    let more = short_or_long(0, 30);
    let orders: Vec<Order> = ORDERS.into_iter().chain((0..more).map(|_| any_order(&mut random))).collect();
    let mut refused = 0;
    for order in orders {
        let callers = load.start(&service);
        let deep = random.usize(20..120);
        load.until(|told| deep <= told.acknowledged.len()).await;
        load.begins();
        disk.order(order);
        match order.times {
            Some(_) => disk.done(order).await,
            None => load.until(|told| REFUSALS <= told.refused.len()).await,
        }
        disk.mend();
        load.is_taken_again(&service).await;
        callers.stop().await;
        // The control of each: the disk has failed as it was told to.
        let failed = disk.failed();
        assert!(order.times.map_or(0 < failed, |times| times == failed), "the harness is void: {order:?} failed {failed} calls");
        load.is_seen_beside(&service);
        service.kill();
        service = disk.start(&data);
        refused += load.check(&service, &format!("{order:?}")).await.refused;
    }
    // The control of all: an error that nobody was told of was perhaps none.
    assert!(0 < refused, "the harness is void: no request was refused");
}
