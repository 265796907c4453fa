//! The store as its users see it, on both disks.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

mod crash;
mod full;
mod watch;

use store::{Change, Config, Durability, Expect, Store, Template, Write};
use store::{conformance, fjall_disk::FjallDisk, memory_disk::MemoryDisk};

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_in_memory_passes_the_suite() {
    conformance::run(|| {
        let disk = MemoryDisk::default();
        Box::new(move || Box::new(disk.clone()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fjall_disk_passes_the_suite() {
    conformance::run(|| {
        let dir = tempfile::tempdir().unwrap();
        Box::new(move || Box::new(FjallDisk::open(&dir.path().join("store")).unwrap()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_in_use_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let _first = FjallDisk::open(dir.path()).unwrap();
    let second = FjallDisk::open(dir.path()).err().unwrap().to_string();
    assert!(second.contains(dir.path().to_str().unwrap()) && second.contains("another process"), "{second}");
}

/// A store whose heads are the length of their values.
fn open(disk: impl store::disk::Disk + 'static, config: &Config) -> Store<usize> {
    Store::open(Box::new(disk), |_, value| value.len(), config).unwrap()
}

fn put(key: &str, value: &str, durability: Durability) -> Change<usize> {
    let write = Write::Put { value: Template::plain(value.to_owned()), head: value.len() };
    Change { key: key.into(), expect: Expect::Any, write, durability }
}

fn delete(key: &str, durability: Durability) -> Change<usize> {
    let write = Write::Delete { last: Template::plain("last") };
    Change { key: key.into(), expect: Expect::Any, write, durability }
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}
