//! What every `Disk` must do, alone and under the store; each implementation runs all of it in its tests.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    Change, Config, Durability, Entry, Error, EventKind, Expect, Revision, Store, Template, Write,
    disk::{Disk, Group, Record, Stored},
};

/// One place where a disk keeps its bytes: every call opens it again, the one before having been dropped.
pub type Place = Box<dyn Fn() -> Box<dyn Disk>>;

/// Runs the suite; `fresh` makes a new empty place at each call.
///
/// # Panics
/// At the first thing that is not as it must be.
pub async fn run(fresh: impl Fn() -> Place) {
    an_empty_disk_holds_nothing(&fresh());
    the_last_record_of_a_key_counts(&fresh());
    a_journalled_group_survives_the_process(&fresh());
    many_groups_are_read_back(&fresh());
    expectations_are_checked(&fresh()).await;
    a_numbered_value_holds_its_revision(&fresh()).await;
    a_reopened_store_goes_on_where_it_was(&fresh()).await;
    a_watch_gives_every_change_in_order(&fresh()).await;
    a_snapshot_stays_as_it_was(&fresh()).await;
    a_closed_store_says_so(&fresh()).await;
}

fn an_empty_disk_holds_nothing(place: &Place) {
    assert_eq!(load(place), (BTreeMap::new(), 0));
    assert_eq!(load(place), (BTreeMap::new(), 0), "also when it is opened again");
}

fn the_last_record_of_a_key_counts(place: &Place) {
    let mut disk = place();
    let long = vec![b'x'; 1 << 20];
    let records = vec![
        put("/a", b"1", 1),
        put("/b", b"", 2),
        put("/a", b"3", 3),
        put("/c", b"4", 4),
        put("/ü\n", &long, 5),
    ];
    append(&mut *disk, records, Some(70), Durability::Synced);
    append(&mut *disk, vec![gone("/c"), gone("/never"), put("/b", b"6", 6)], None, Durability::Synced);
    append(&mut *disk, vec![gone("/b"), put("/b", b"8", 8)], None, Durability::Synced);
    drop(disk);
    let expected = [put("/a", b"3", 3), put("/b", b"8", 8), put("/ü\n", &long, 5)];
    let expected = expected.into_iter().map(|record| (record.key, record.stored.expect("a put"))).collect();
    assert_eq!(load(place), (expected, 70));
}

fn a_journalled_group_survives_the_process(place: &Place) {
    let mut disk = place();
    append(&mut *disk, vec![put("/a", b"1", 1)], Some(9), Durability::Synced);
    append(&mut *disk, vec![put("/a", b"2", 2), put("/b", b"3", 3)], None, Durability::Journalled);
    append(&mut *disk, vec![], None, Durability::Synced);
    append(&mut *disk, vec![gone("/a")], None, Durability::Journalled);
    drop(disk);
    let (keys, ceiling) = load(place);
    assert_eq!(keys.keys().map(|key| &**key).collect::<Vec<_>>(), ["/b"]);
    assert_eq!(ceiling, 9);
}

fn many_groups_are_read_back(place: &Place) {
    let mut disk = place();
    let value = vec![b'v'; 4096];
    for number in 1..=1500 {
        let key = format!("/core/pods/{}", number % 1000);
        append(&mut *disk, vec![put(&key, &value, number)], Some(number), Durability::Journalled);
    }
    drop(disk);
    let (keys, ceiling) = load(place);
    assert_eq!((keys.len(), ceiling), (1000, 1500));
    for (key, stored) in keys {
        let number: u64 = key.rsplit('/').next().expect("a name").parse().expect("a number");
        let newest = if number <= 500 { number + 1000 } else { number };
        let newest = if number == 0 { 1000 } else { newest };
        assert_eq!(stored.modified, newest, "{key}");
        assert_eq!(stored.value, value, "{key}");
    }
}

async fn expectations_are_checked(place: &Place) {
    let store = open(place);
    let key = "/core/pods/one";
    let missing = store.commit(put_change(key, Expect::At(7), b"no")).await;
    assert!(matches!(missing, Err(Error::Conflict { current: None, .. })), "{missing:?}");
    let missing = store.commit(delete_change(key, Expect::Any)).await;
    assert!(matches!(missing, Err(Error::Absent { .. })), "{missing:?}");
    let first = commit(&store, put_change(key, Expect::Absent, b"1")).await;
    let twice = store.commit(put_change(key, Expect::Absent, b"no")).await;
    assert!(
        matches!(twice, Err(Error::Conflict { current: Some(held), .. }) if held.modified == first.modified)
    );
    let second = commit(&store, put_change(key, Expect::At(first.modified), b"2")).await;
    assert_eq!(second.created, first.created);
    assert!(second.modified > first.modified);
    for stale in
        [put_change(key, Expect::At(first.modified), b"no"), delete_change(key, Expect::At(first.modified))]
    {
        let stale = store.commit(stale).await;
        assert!(matches!(stale, Err(Error::Conflict { current: Some(held), .. }) if held.value == "2"));
    }
    let third = commit(&store, put_change(key, Expect::Any, b"3")).await;
    commit(&store, delete_change(key, Expect::At(third.modified))).await;
    assert!(store.snapshot().get(key).is_none());
    let again = commit(&store, put_change(key, Expect::Absent, b"4")).await;
    assert_eq!(again.created, again.modified);
    store.close().await;
}

async fn a_numbered_value_holds_its_revision(place: &Place) {
    let store = open(place);
    let template = Template::numbered("{\"resourceVersion\":\"", "\"}");
    let write = Write::Put { value: template.clone(), head: 0 };
    let change =
        Change { key: "/core/pods/one".into(), expect: Expect::Any, write, durability: Durability::Synced };
    let entry = commit(&store, change).await;
    assert_eq!(entry.value, format!("{{\"resourceVersion\":\"{}\"}}", entry.modified));
    let write = Write::Delete { last: template };
    let change = Change {
        key: "/core/pods/one".into(),
        expect: Expect::Any,
        write,
        durability: Durability::Journalled,
    };
    let last = commit(&store, change).await;
    assert_eq!(last.value, format!("{{\"resourceVersion\":\"{}\"}}", last.modified));
    assert!(last.modified > entry.modified);
    assert_eq!(last.created, entry.created);
    store.close().await;
}

async fn a_reopened_store_goes_on_where_it_was(place: &Place) {
    let store = open(place);
    assert!(store.revision() > 0, "Kubernetes gives the revision 0 another meaning");
    let kept = commit(&store, put_change("/core/pods/kept", Expect::Any, b"kept")).await;
    commit(&store, put_change("/core/pods/gone", Expect::Any, b"gone")).await;
    commit(&store, delete_change("/core/pods/gone", Expect::Any)).await;
    let mut lease = put_change("/coordination/leases/one", Expect::Any, b"lease");
    lease.durability = Durability::Journalled;
    let lease = commit(&store, lease).await;
    store.close().await;
    let mut seen = lease.modified;
    for _ in 0..2 {
        let store = open(place);
        assert!(store.revision() >= seen);
        let snapshot = store.snapshot();
        assert_eq!(keys(&snapshot, ""), ["/coordination/leases/one", "/core/pods/kept"]);
        let found = snapshot.get("/core/pods/kept").expect("it was committed");
        assert_eq!((found.created, found.modified, &found.value), (kept.created, kept.modified, &kept.value));
        assert_eq!(*found.head, 4, "the head is parsed again");
        let before = store.watch("/core/pods/", kept.modified);
        assert!(matches!(before, Err(Error::Compacted { .. })), "the past before the start is not kept");
        let mut watch = store.watch("/core/pods/", store.revision()).expect("the present can be watched");
        let passing = commit(&store, put_change("/core/pods/passing", Expect::Absent, b"passing")).await;
        assert!(passing.modified > snapshot.revision());
        assert_eq!(revisions(&mut watch, 1).await, [passing.modified]);
        seen =
            commit(&store, delete_change("/core/pods/passing", Expect::At(passing.modified))).await.modified;
        store.close().await;
    }
}

async fn a_watch_gives_every_change_in_order(place: &Place) {
    let store = open(place);
    let start = store.revision();
    let mut pods = store.watch("/core/pods/", start).expect("the present can be watched");
    let mut one = store.watch("/core/pods/a/", start).expect("the present can be watched");
    let mut all = store.watch("/", start).expect("the present can be watched");
    let created = commit(&store, put_change("/core/pods/a/x", Expect::Any, b"1")).await;
    let other = commit(&store, put_change("/core/nodes/n", Expect::Any, b"n")).await;
    let changed = commit(&store, put_change("/core/pods/a/x", Expect::Any, b"2")).await;
    let second = commit(&store, put_change("/core/pods/b/y", Expect::Any, b"y")).await;
    let deleted = commit(&store, delete_change("/core/pods/a/x", Expect::Any)).await;

    let a = [created.modified, changed.modified, deleted.modified];
    assert_eq!(revisions(&mut one, 3).await, a);
    assert_eq!(
        revisions(&mut all, 5).await,
        [created.modified, other.modified, changed.modified, second.modified, deleted.modified]
    );
    let mut events = Vec::new();
    while events.len() < 4 {
        events.extend(pods.next().await.expect("more changes"));
    }
    let kinds: Vec<_> = events.iter().map(|event| (event.kind, event.previous.is_some())).collect();
    let (put, delete) = (EventKind::Put, EventKind::Delete);
    assert_eq!(kinds, [(put, false), (put, true), (put, false), (delete, true)]);
    assert_eq!(events[1].previous.as_ref().expect("it existed").value, "1");
    assert_eq!(events[3].entry.value, "last");
    assert_eq!(events[3].previous.as_ref().expect("it existed").value, "2");
    assert_eq!(pods.progress(), store.revision());

    let mut late = store.watch("/core/pods/", created.modified).expect("recent changes are kept");
    assert_eq!(revisions(&mut late, 3).await, [changed.modified, second.modified, deleted.modified]);
    let lease = commit(&store, put_change("/coordination/leases/l", Expect::Any, b"l")).await;
    assert_eq!(late.progress(), lease.modified, "what does not concern a watch is seen at once");
    store.close().await;
}

async fn a_snapshot_stays_as_it_was(place: &Place) {
    let store = open(place);
    for name in ["/core/pods/a/1", "/core/pods/a/2", "/core/pods/b/1", "/core/podsets/x"] {
        commit(&store, put_change(name, Expect::Any, b"v")).await;
    }
    let snapshot = store.snapshot();
    commit(&store, delete_change("/core/pods/a/1", Expect::Any)).await;
    commit(&store, put_change("/core/pods/a/3", Expect::Any, b"v")).await;
    assert_eq!(keys(&snapshot, "/core/pods/"), ["/core/pods/a/1", "/core/pods/a/2", "/core/pods/b/1"]);
    assert_eq!(snapshot.count("/core/pods/a/"), 2);
    assert!(snapshot.revision() < store.revision());
    let page: Vec<_> =
        snapshot.range("/core/pods/", Some("/core/pods/a/1")).map(|entry| &*entry.key).collect();
    assert_eq!(page, ["/core/pods/a/2", "/core/pods/b/1"]);
    let none = snapshot.range("/core/pods/", Some("/core/pods/b/1")).count();
    let every = snapshot.range("/core/pods/", Some("/core/")).count();
    assert_eq!((none, every), (0, 3));
    store.close().await;
}

async fn a_closed_store_says_so(place: &Place) {
    let store = open(place);
    let other = store.clone();
    let mut watch = store.watch("/core/pods/", store.revision()).expect("the present can be watched");
    commit(&store, put_change("/core/pods/a", Expect::Any, b"v")).await;
    store.close().await;
    assert_eq!(watch.next().await.expect("the change before the end").len(), 1);
    assert!(matches!(watch.next().await, Err(Error::Closed)));
    let late = other.commit(put_change("/core/pods/b", Expect::Any, b"v")).await;
    assert!(matches!(late, Err(Error::Closed)));
    assert_eq!(other.snapshot().count("/"), 1);
    open(place).close().await;
}

fn open(place: &Place) -> Store<usize> {
    Store::open(place(), |_, value| value.len(), &Config::default()).expect("open the store")
}

async fn commit(store: &Store<usize>, change: Change<usize>) -> Entry<usize> {
    let key = change.key.clone();
    let entry = store.commit(change).await.expect("commit");
    let revision = store.snapshot().revision();
    assert!(revision >= entry.modified, "{key} was answered before it was published");
    entry
}

async fn revisions(watch: &mut crate::Watch<usize>, count: usize) -> Vec<Revision> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(watch.next().await.expect("more changes").iter().map(|event| event.entry.modified));
    }
    seen
}

fn keys<'a>(snapshot: &'a crate::Snapshot<usize>, prefix: &str) -> Vec<&'a str> {
    snapshot.range(prefix, None).map(|entry| &*entry.key).collect()
}

fn put_change(key: &str, expect: Expect, value: &[u8]) -> Change<usize> {
    let write = Write::Put { value: Template::plain(Bytes::copy_from_slice(value)), head: value.len() };
    Change { key: key.into(), expect, write, durability: Durability::Synced }
}

fn delete_change(key: &str, expect: Expect) -> Change<usize> {
    let write = Write::Delete { last: Template::plain("last") };
    Change { key: key.into(), expect, write, durability: Durability::Synced }
}

fn load(place: &Place) -> (BTreeMap<Arc<str>, Stored>, Revision) {
    let mut keys = BTreeMap::new();
    let ceiling = place().load(&mut |key, stored| {
        assert!(keys.insert(key, stored).is_none(), "a key is given once");
    });
    (keys, ceiling.expect("load the disk"))
}

fn append(disk: &mut dyn Disk, records: Vec<Record>, ceiling: Option<Revision>, durability: Durability) {
    disk.append(&Group { records, ceiling }, durability).expect("append to the disk");
}

fn put(key: &str, value: &[u8], modified: Revision) -> Record {
    let stored = Stored { value: Bytes::copy_from_slice(value), created: 1, modified };
    Record { key: key.into(), stored: Some(stored) }
}

fn gone(key: &str) -> Record {
    Record { key: key.into(), stored: None }
}
