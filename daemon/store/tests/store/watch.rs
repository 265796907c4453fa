//! Watchers against a model: whatever the timing, each sees exactly the history.

use std::{collections::BTreeMap, sync::Arc};

use store::{Config, Durability, Error, Event, EventKind, Revision, Store, memory_disk::MemoryDisk};
use tokio::{sync::Notify, task::JoinSet};

use crate::{Dice, delete, open, put};

const PREFIXES: [&str; 6] =
    ["/", "/core/", "/core/pods/", "/core/pods/a/", "/apps/deployments/", "/core/pods/a/1"];

type Change = (Revision, EventKind, String);

/// What one watcher saw: stretches of history, each from after its first revision up to its second.
struct Seen {
    prefix: &'static str,
    stretches: Vec<(Revision, Revision, Vec<Change>)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_watcher_sees_exactly_the_history() {
    let mut compactions = 0;
    for seed in 0..16 {
        let mut dice = Dice(seed);
        // From a history that forgets almost at once to one that forgets nothing.
        let config = Config {
            history_events: [4, 20, 100, 100_000][dice.roll(4) as usize],
            history_bytes: [4 << 10, 64 << 10, 64 << 20][dice.roll(3) as usize],
            ..Config::default()
        };
        compactions += check(seed, &config).await;
    }
    assert!(compactions > 0, "no watcher ever fell behind");
}

/// Gives the number of times that a watcher was told to list again.
async fn check(seed: u64, config: &Config) -> usize {
    let store = open(MemoryDisk::default(), config);
    let start = store.revision();
    let mut writers = JoinSet::new();
    for number in 0..4 {
        writers.spawn(write(store.clone(), Dice(seed * 1000 + number)));
    }
    let mut watchers = JoinSet::new();
    for number in 0..24 {
        let dice = Dice(seed * 1000 + 500 + number);
        watchers.spawn(watch(store.clone(), PREFIXES[number as usize % PREFIXES.len()], start, dice));
    }
    let mut history: Vec<Change> = writers.join_all().await.concat();
    history.sort_by_key(|change| change.0);
    assert!(history.windows(2).all(|pair| pair[0].0 < pair[1].0), "revisions are unique");
    let end = store.revision();
    assert_eq!(history.last().unwrap().0, end);
    store.close().await;

    let mut compactions = 0;
    for seen in watchers.join_all().await {
        let matching = |change: &&Change| change.2.starts_with(seen.prefix);
        compactions += seen.stretches.len() - 1;
        assert_eq!(seen.stretches.last().unwrap().1, end, "seed {seed}, {}: stopped early", seen.prefix);
        for (from, to, changes) in &seen.stretches {
            let expected: Vec<_> = history
                .iter()
                .filter(matching)
                .filter(|change| change.0 > *from && change.0 <= *to)
                .cloned()
                .collect();
            assert_eq!(changes, &expected, "seed {seed}, {} from {from} to {to}", seen.prefix);
        }
    }
    compactions
}

async fn write(store: Store<usize>, mut dice: Dice) -> Vec<Change> {
    let mut done = Vec::new();
    for _ in 0..250 {
        let kind =
            ["/core/pods/a/", "/core/pods/b/", "/apps/deployments/", "/core/nodes/"][dice.roll(4) as usize];
        let key = format!("{kind}{}", dice.roll(5));
        let durability = [Durability::Synced, Durability::Journalled][dice.roll(2) as usize];
        let (change, kind) = match dice.roll(4) {
            0 => (delete(&key, durability), EventKind::Delete),
            _ => (put(&key, &"v".repeat(dice.roll(500) as usize), durability), EventKind::Put),
        };
        match store.commit(change).await {
            Ok(entry) => done.push((entry.modified, kind, key)),
            Err(Error::Absent { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    done
}

/// Watches from a moment of its own until the store closes; told to, it lists and watches from there.
async fn watch(store: Store<usize>, prefix: &'static str, start: Revision, mut dice: Dice) -> Seen {
    for _ in 0..dice.roll(200) {
        tokio::task::yield_now().await;
    }
    let mut seen = Seen { prefix, stretches: Vec::new() };
    let mut from = [start, store.revision()][dice.roll(2) as usize];
    loop {
        let mut changes = Vec::new();
        let (progress, error) = match store.watch(prefix, from) {
            Err(error) => (from, error),
            Ok(mut watch) => {
                let error = loop {
                    match watch.next().await {
                        Ok(events) => {
                            let snapshot = store.snapshot();
                            events.iter().for_each(|event| check_event(event, &mut changes, &snapshot));
                        }
                        Err(error) => break error,
                    }
                    for _ in 0..dice.roll(30) {
                        tokio::task::yield_now().await;
                    }
                };
                (watch.progress(), error)
            }
        };
        seen.stretches.push((from, progress, changes));
        match error {
            Error::Closed => return seen,
            Error::Compacted { oldest, .. } => {
                assert!(oldest > progress, "{oldest} was still kept for a watcher at {progress}");
                from = store.snapshot().revision();
            }
            error => panic!("{error}"),
        }
    }
}

fn check_event(event: &Event<usize>, changes: &mut Vec<Change>, snapshot: &store::Snapshot<usize>) {
    assert!(snapshot.revision() >= event.entry.modified, "an event came before its snapshot");
    if let Some(previous) = &event.previous {
        assert!(previous.modified < event.entry.modified);
        assert_eq!(previous.created, event.entry.created);
    }
    changes.push((event.entry.modified, event.kind, event.entry.key.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_and_its_snapshot_make_the_present() {
    let store = open(MemoryDisk::default(), &Config::default());
    let mut writers = JoinSet::new();
    for number in 0..4 {
        writers.spawn(write(store.clone(), Dice(number)));
    }
    tokio::task::yield_now().await;
    let snapshot = store.snapshot();
    let mut present: BTreeMap<Arc<str>, Revision> =
        snapshot.range("/", None).map(|entry| (entry.key.clone(), entry.modified)).collect();
    let mut watch = store.watch("/", snapshot.revision()).unwrap();
    writers.join_all().await;
    store.clone().close().await;
    while let Ok(events) = watch.next().await {
        for event in events {
            match event.kind {
                EventKind::Put => present.insert(event.entry.key, event.entry.modified),
                EventKind::Delete => present.remove(&event.entry.key),
            };
        }
    }
    let end: BTreeMap<_, _> =
        store.snapshot().range("/", None).map(|entry| (entry.key.clone(), entry.modified)).collect();
    assert_eq!(present, end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_told_to_list_again_while_quiet_kinds_keep_their_past() {
    let config = Config { history_events: 10, ..Config::default() };
    let store = open(MemoryDisk::default(), &config);
    let node = store.commit(put("/core/nodes/one", "1", Durability::Synced)).await.unwrap();
    let mut slow = store.watch("/core/pods/", node.modified).unwrap();
    for number in 0..50 {
        store.commit(put("/core/pods/one", &number.to_string(), Durability::Synced)).await.unwrap();
    }
    let told = slow.next().await.unwrap_err();
    let Error::Compacted { oldest, .. } = told else { panic!("{told}") };
    assert_eq!(oldest, store.revision() - 10);
    let mut again = store.watch("/core/pods/", oldest).unwrap();
    assert_eq!(again.next().await.unwrap().len(), 10);
    let mut nodes = store.watch("/core/nodes/", node.modified - 1).unwrap();
    assert_eq!(nodes.next().await.unwrap()[0].entry.modified, node.modified);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_past_gives_way_to_the_limit_of_bytes() {
    let config = Config { history_bytes: 100_000, ..Config::default() };
    let store = open(MemoryDisk::default(), &config);
    let start = store.revision();
    store.commit(put("/core/nodes/one", "1", Durability::Synced)).await.unwrap();
    let text = "x".repeat(2_000);
    for _ in 0..500 {
        store.commit(put("/core/pods/one", &text, Durability::Synced)).await.unwrap();
    }
    let Err(Error::Compacted { oldest, .. }) = store.watch("/core/pods/", start) else {
        panic!("all was kept")
    };
    let kept = store.watch("/core/pods/", oldest).unwrap().next().await.unwrap();
    let bytes: usize =
        kept.iter().filter_map(|event| event.previous.as_ref()).map(|held| held.value.len()).sum();
    assert!((40_000..100_000).contains(&bytes), "{bytes} bytes of the past are kept");
    assert_eq!(store.watch("/core/nodes/", start).unwrap().next().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_watcher_is_woken_by_its_own_kind_only() {
    let store = open(MemoryDisk::default(), &Config::default());
    let (reached, wakes) = (Arc::new(Notify::new()), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let mut watch = store.watch("/core/nodes/", store.revision()).unwrap();
    let task = tokio::spawn({
        let (reached, wakes) = (reached.clone(), wakes.clone());
        async move {
            let mut next = std::pin::pin!(watch.next());
            let counted = std::future::poll_fn(|context| {
                wakes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                reached.notify_one();
                next.as_mut().poll(context)
            });
            counted.await.unwrap().len()
        }
    });
    reached.notified().await;
    for number in 0..100 {
        store.commit(put(&format!("/core/pods/{number}"), "v", Durability::Synced)).await.unwrap();
    }
    assert_eq!(wakes.load(std::sync::atomic::Ordering::SeqCst), 1, "only the first look");
    store.commit(put("/core/nodes/one", "v", Durability::Synced)).await.unwrap();
    assert_eq!(task.await.unwrap(), 1);
}
