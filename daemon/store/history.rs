//! What readers share with the writer: the present, and per bucket the recent past with a bell for its watchers.
//!
//! Keys are sorted into buckets by their first two segments, so by kind of object: a change touches one bucket and
//! wakes only those who watch in it, however many watch elsewhere.
//!
//! Invariant: only the writer publishes. The present is replaced before an event shows in a bucket, so whoever has
//! seen an event finds it in the next snapshot.
//! Invariant: all events ≤ `horizon` are in their buckets (or compacted away), in the order of their revisions.
//! Invariant: a bell rings after the horizon was raised, so whoever wakes sees what woke it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::{Config, Event, EventKind, Revision, Snapshot, present::Present};

/// Segments of a key that name its bucket.
const BUCKET_SEGMENTS: usize = 2;
/// What an event costs besides the bytes it alone keeps alive: itself, its parsed heads, its key. An estimate.
const EVENT_OVERHEAD_BYTES: usize = 512;

/// Everything the handles, watchers and the writer have in common.
pub(crate) struct Shared<H> {
    present: RwLock<Present<H>>,
    buckets: RwLock<BTreeMap<Arc<str>, Arc<Bucket<H>>>>,
    horizon: AtomicU64,
    /// Rings at every publication, for those who watch more than one bucket.
    any: watch::Sender<()>,
    /// The store opened with this revision; nothing before it is known.
    start: Revision,
    closed: AtomicBool,
    limits: Limits,
    /// Sum of all logs' bytes; only the writer takes this lock.
    bytes: Mutex<usize>,
}

struct Limits {
    events: usize,
    bytes: usize,
}

/// The recent past of the keys that share their first segments.
pub(crate) struct Bucket<H> {
    log: RwLock<Log<H>>,
    bell: watch::Sender<()>,
}

struct Log<H> {
    events: VecDeque<Event<H>>,
    bytes: usize,
    /// Revision of the newest event that is no longer kept.
    compacted: Revision,
}

/// Events found for a reader, or how far back it could have asked.
pub(crate) enum Found<H> {
    /// In order; `more` says that the limit cut them off.
    Events {
        events: Vec<Event<H>>,
        more: bool,
    },
    Compacted {
        oldest: Revision,
    },
}

impl<H> Shared<H> {
    pub(crate) fn new(present: Present<H>, config: &Config) -> Shared<H> {
        let start = present.revision;
        Shared {
            present: RwLock::new(present),
            buckets: RwLock::default(),
            horizon: AtomicU64::new(start),
            any: watch::Sender::new(()),
            start,
            closed: AtomicBool::new(false),
            limits: Limits { events: config.history_events, bytes: config.history_bytes },
            bytes: Mutex::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot<H> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        Snapshot { map: present.map.clone(), revision: present.revision }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.present.read().unwrap_or_else(PoisonError::into_inner).revision
    }

    /// All events up to here are in their buckets.
    pub(crate) fn horizon(&self) -> Revision {
        self.horizon.load(Ordering::Acquire)
    }

    /// Shows the new present and its events to readers, then wakes those concerned.
    pub(crate) fn publish(&self, present: Present<H>, events: Vec<Event<H>>) {
        let revision = present.revision;
        let replaced =
            std::mem::replace(&mut *self.present.write().unwrap_or_else(PoisonError::into_inner), present);
        let mut touched = BTreeMap::<Arc<str>, Arc<Bucket<H>>>::new();
        let mut grown = 0;
        for event in events {
            let name = bucket_of(&event.entry.key);
            let bucket = match touched.get(name) {
                Some(bucket) => bucket.clone(),
                None => {
                    let bucket = self.bucket(name);
                    touched.insert(Arc::from(name), bucket.clone());
                    bucket
                }
            };
            grown += bucket.push(event);
        }
        self.compact(&touched, grown);
        self.horizon.store(revision, Ordering::Release);
        for bucket in touched.values() {
            bucket.bell.send_replace(());
        }
        if self.any.receiver_count() > 0 {
            self.any.send_replace(());
        }
        // Freed only now: what hangs on the old map alone may be large, and nobody should wait for it.
        drop(replaced);
    }

    /// Lets the oldest events go until the limits hold again.
    fn compact(&self, touched: &BTreeMap<Arc<str>, Arc<Bucket<H>>>, grown: usize) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *bytes += grown;
        for bucket in touched.values() {
            *bytes -= bucket.shrink(|log| log.events.len() > self.limits.events);
        }
        if *bytes <= self.limits.bytes {
            return;
        }
        let target = self.limits.bytes / 8 * 7;
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        while *bytes > target {
            let Some(largest) = buckets.values().max_by_key(|bucket| bucket.bytes()) else { return };
            let half = largest.bytes() / 2;
            let excess = *bytes - target;
            let keep = largest.bytes().saturating_sub(excess).max(half);
            let freed = largest.shrink(|log| log.bytes > keep);
            if freed == 0 {
                return;
            }
            *bytes -= freed;
        }
    }

    /// The bucket with this name, made when there is none yet.
    pub(crate) fn bucket(&self, name: &str) -> Arc<Bucket<H>> {
        if let Some(bucket) = self.buckets.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return bucket.clone();
        }
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(Arc::from(name)).or_insert_with(|| Arc::new(Bucket::new(self.start))).clone()
    }

    /// Every bucket there is.
    pub(crate) fn buckets(&self) -> Vec<Arc<Bucket<H>>> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A bell that rings at every publication.
    pub(crate) fn any_bell(&self) -> watch::Receiver<()> {
        self.any.subscribe()
    }

    /// Nothing will be published any more: wakes every watcher to learn it.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for bucket in self.buckets() {
            bucket.bell.send_replace(());
        }
        self.any.send_replace(());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The first revision that a watch of everything may start after.
    pub(crate) fn start(&self) -> Revision {
        self.start
    }
}

impl<H> Bucket<H> {
    fn new(start: Revision) -> Bucket<H> {
        Bucket {
            log: RwLock::new(Log { events: VecDeque::new(), bytes: 0, compacted: start }),
            bell: watch::Sender::new(()),
        }
    }

    /// A bell that rings when this bucket has new events.
    pub(crate) fn bell(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    /// At most `limit` events of keys under `prefix` with `after` < revision ≤ `until`.
    pub(crate) fn find(&self, prefix: &str, after: Revision, until: Revision, limit: usize) -> Found<H> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        if log.compacted > after {
            return Found::Compacted { oldest: log.compacted };
        }
        let first = log.events.partition_point(|event| event.entry.modified <= after);
        let mut hits = log
            .events
            .range(first..)
            .take_while(|event| event.entry.modified <= until)
            .filter(|event| event.entry.key.starts_with(prefix));
        let events = hits.by_ref().take(limit).cloned().collect();
        Found::Events { events, more: hits.next().is_some() }
    }

    /// Adds an event and gives the bytes it costs.
    fn push(&self, event: Event<H>) -> usize {
        let cost = cost_bytes(&event);
        let mut log = self.log.write().unwrap_or_else(PoisonError::into_inner);
        log.bytes += cost;
        log.events.push_back(event);
        cost
    }

    /// Drops the oldest events while `too_much` holds and gives the bytes freed.
    fn shrink(&self, too_much: impl Fn(&Log<H>) -> bool) -> usize {
        let mut log = self.log.write().unwrap_or_else(PoisonError::into_inner);
        let before = log.bytes;
        while too_much(&log) {
            let Some(event) = log.events.pop_front() else { break };
            log.bytes -= cost_bytes(&event);
            log.compacted = event.entry.modified;
        }
        before - log.bytes
    }

    fn bytes(&self) -> usize {
        self.log.read().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

/// The name of the bucket that a key, or every key under a prefix, belongs to; "" without enough segments.
pub(crate) fn bucket_of(key: &str) -> &str {
    let rooted = usize::from(key.starts_with('/'));
    match key[rooted..].match_indices('/').nth(BUCKET_SEGMENTS - 1) {
        Some((at, _)) => &key[..=rooted + at],
        None => "",
    }
}

/// Bytes that only the past keeps alive: a put holds the value it replaced (its own is the present's, or counted by
/// the event that replaces it), a deletion holds both.
fn cost_bytes<H>(event: &Event<H>) -> usize {
    let replaced = event.previous.as_ref().map_or(0, |previous| previous.value.len());
    let last = match event.kind {
        EventKind::Put => 0,
        EventKind::Delete => event.entry.value.len(),
    };
    EVENT_OVERHEAD_BYTES + replaced + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_named_by_the_first_two_segments() {
        let cases = [
            ("/apps/deployments/default/web", "/apps/deployments/"),
            ("/apps/deployments/", "/apps/deployments/"),
            ("//pods/default/web", "//pods/"),
            ("/apps/deployments", ""),
            ("core/nodes/one", "core/nodes/"),
            ("/core/", ""),
            ("", ""),
        ];
        for (key, bucket) in cases {
            assert_eq!(bucket_of(key), bucket, "{key}");
        }
    }
}
