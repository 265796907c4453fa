//! A disk that fails: nothing is promised that is not so, and the store goes on when it works again.

use std::{fs, path::Path};

use store::{
    Change, Config, Durability, Error, Store,
    fjall_disk::FjallDisk,
    memory_disk::{Appends, Failure, MemoryDisk},
};

use crate::{delete, open, put};

use Durability::{Journalled, Synced};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_fails_the_change_and_leaves_memory_as_it_was() {
    for failure in [Failure::Full, Failure::LateError] {
        let disk = MemoryDisk::default();
        let store = open(disk.clone(), &Config::default());
        let held = store.commit(put("/core/pods/a", "1", Synced)).await.unwrap();
        let mut watch = store.watch("/core/pods/", held.modified).unwrap();
        disk.fail(failure);
        for change in [
            put("/core/pods/a", "2", Synced),
            put("/core/pods/b", "2", Synced),
            delete("/core/pods/a", Synced),
        ] {
            let refused = store.commit(change).await.unwrap_err();
            assert!(matches!(refused, Error::Disk { .. }), "{refused}");
        }
        assert_eq!(store.revision(), held.modified);
        assert_eq!(store.snapshot().get("/core/pods/a").unwrap().value, "1");
        assert_eq!(store.snapshot().count("/"), 1);

        disk.fail(Failure::None);
        let next = store.commit(put("/core/pods/c", "3", Synced)).await.unwrap();
        assert!(next.modified > held.modified + 3, "numbers that may be on the disk are not used again");
        let events = watch.next().await.unwrap();
        assert_eq!(events.iter().map(|event| event.entry.modified).collect::<Vec<_>>(), [next.modified]);
        let disk = disk.after_crash();
        assert_eq!(
            contents(open(disk, &Config::default())),
            [("/core/pods/a", "1"), ("/core/pods/c", "3")].map(owned)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn journalled_changes_wait_in_memory_for_a_failed_disk() {
    let disk = MemoryDisk::default();
    let store = open(disk.clone(), &Config::default());
    store.commit(put("/core/pods/a", "1", Synced)).await.unwrap();
    disk.fail(Failure::Full);
    store.commit(put("/core/pods/a", "2", Journalled)).await.unwrap();
    store.commit(put("/core/pods/b", "2", Journalled)).await.unwrap();
    store.commit(delete("/core/pods/b", Journalled)).await.unwrap();
    store.commit(put("/core/pods/c", "2", Journalled)).await.unwrap();
    let refused = store.commit(put("/core/pods/c", "3", Synced)).await;
    assert!(matches!(refused, Err(Error::Disk { .. })));
    disk.fail(Failure::None);
    store.commit(put("/core/pods/d", "4", Synced)).await.unwrap();
    let found = disk.after_crash();
    let expected = [("/core/pods/a", "2"), ("/core/pods/c", "2"), ("/core/pods/d", "4")].map(owned);
    assert_eq!(contents(store), expected);
    assert_eq!(contents(open(found, &Config::default())), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journalled_change_with_no_number_left_fails_on_a_failed_disk() {
    let disk = MemoryDisk::default();
    disk.fail(Failure::Full);
    let store = open(disk.clone(), &Config::default());
    let refused = store.commit(put("/core/pods/a", "1", Journalled)).await;
    assert!(matches!(refused, Err(Error::Disk { .. })), "no revision was reserved yet");
    disk.fail(Failure::None);
    store.commit(put("/core/pods/a", "1", Journalled)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_only_journalled_changes_and_repeats_no_revision() {
    let mut disk = MemoryDisk::default();
    let mut newest = 0;
    for _ in 0..5 {
        let store = open(disk.clone(), &Config::default());
        assert!(store.revision() >= newest);
        let synced = store.commit(put("/core/pods/a", "synced", Synced)).await.unwrap();
        assert!(synced.modified > newest);
        newest = store.commit(put("/core/pods/a", "journalled", Journalled)).await.unwrap().modified;
        assert_eq!(contents(store.clone()), [("/core/pods/a", "journalled")].map(owned));
        disk = disk.after_crash();
        let store = open(disk.clone(), &Config::default());
        assert!(store.revision() >= newest);
        assert_eq!(contents(store), [("/core/pods/a", "synced")].map(owned));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_arrive_together_share_one_write() {
    let disk = MemoryDisk::default();
    let store = open(disk.clone(), &Config::default());
    let changes = (0..200).map(|number| {
        let store = store.clone();
        async move { store.commit(put(&format!("/core/pods/{number}"), "v", Synced)).await.unwrap() }
    });
    futures::future::join_all(changes).await;
    let Appends { synced, failed, .. } = disk.appends();
    assert!(synced < 200 && failed == 0, "{synced} writes for 200 changes");
    // Reading and watching write nothing, nor does closing when all is durable.
    let _watch = store.watch("/", store.revision()).unwrap();
    assert_eq!(store.snapshot().count("/"), 200);
    store.close().await;
    assert_eq!(disk.appends(), Appends { synced, ..Appends::default() });
}

/// Needs root: the full disk is a real one, a tmpfs of four megabytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_until_there_is_space_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = SmallDisk::mount(dir.path(), "size=4m") else { return };
    let place = dir.path().join("store");
    let store = open(FjallDisk::open(&place).unwrap(), &Config::default());
    let text = "x".repeat(10_000);
    for round in 0..3 {
        let before = store.commit(put("/core/pods/before", &format!("{round}"), Synced)).await.unwrap();
        let ballast = dir.path().join("ballast");
        fill(&ballast);
        let refused = refused_in_the_end(&store, || put("/core/pods/new", &text, Synced)).await;
        let message = format!("{refused}: {}", std::error::Error::source(&refused).unwrap());
        assert!(message.contains(place.to_str().unwrap()), "{message}");
        assert_eq!(store.snapshot().get("/core/pods/before").unwrap().modified, before.modified);
        store.commit(put("/core/leases/one", &format!("{round}"), Journalled)).await.unwrap();

        fs::remove_file(&ballast).unwrap();
        store.commit(put("/core/pods/after", &format!("{round}"), Synced)).await.unwrap();
    }
    let live = contents(store.clone());
    assert_eq!(live.len(), 3 + usize::from(live.iter().any(|(key, _)| key == "/core/pods/new")));
    store.close().await;
    assert_eq!(contents(open(FjallDisk::open(&place).unwrap(), &Config::default())), live);
    drop(mount);
}

/// Needs root, as above. Here it is not the journal that finds no space but fjall's own thread, moving old changes
/// out of it: the engine then refuses everything until it is opened again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_while_the_engine_tidies_up_is_no_end_either() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = SmallDisk::mount(dir.path(), "size=24m") else { return };
    let place = dir.path().join("store");
    let store = open(FjallDisk::open(&place).unwrap(), &Config::default());
    let ballast = dir.path().join("ballast");
    fs::write(&ballast, vec![1; 19 << 20]).unwrap();
    let mut taken = Vec::new();
    // More than the engine keeps in memory, but too much for the disk to hold twice.
    for number in 0..43 {
        taken.push((format!("/core/pods/{number:03}"), "x".repeat(100_000)));
        store.commit(put(&taken[number].0, &taken[number].1, Synced)).await.unwrap();
    }
    for number in 0..200 {
        // Refused only while what the engine is moving takes the last space.
        let (key, text) = (format!("/core/pods/small-{number:03}"), "x".repeat(100));
        if store.commit(put(&key, &text, Synced)).await.is_ok() {
            taken.push((key, text));
        }
    }
    fs::remove_file(&ballast).unwrap();
    for number in 0..20 {
        taken.push((format!("/core/pods/z{number:02}"), "x".repeat(100_000)));
        let (key, text) = taken.last().unwrap();
        store.commit(put(key, text, Synced)).await.unwrap();
    }
    assert!(contents(store.clone()) == taken);
    store.close().await;
    assert!(contents(open(FjallDisk::open(&place).unwrap(), &Config::default())) == taken);
    drop(mount);
}

/// Commits until the disk is full; what is accepted before (there may be some room left in a page) is fine.
async fn refused_in_the_end(store: &Store<usize>, change: impl Fn() -> Change<usize>) -> Error<usize> {
    for _ in 0..100 {
        if let Err(error) = store.commit(change()).await {
            return error;
        }
    }
    panic!("a full disk took 100 changes");
}

fn fill(ballast: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(dir: &'a Path, size: &str) -> Option<SmallDisk<'a>> {
        use nix::mount::{MsFlags, mount};
        match mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(size)) {
            Ok(()) => Some(SmallDisk(dir)),
            Err(nix::errno::Errno::EPERM) => {
                eprintln!("not checked: a tmpfs needs root");
                None
            }
            Err(error) => panic!("mount a tmpfs on {}: {error}", dir.display()),
        }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Detached, so that it goes even while a failed test still holds files in it.
        let _gone = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn contents(store: Store<usize>) -> Vec<(String, String)> {
    let snapshot = store.snapshot();
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    snapshot.range("/", None).map(|entry| (entry.key.to_string(), text(&entry.value))).collect()
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}
