//! Which objects belong to whom, and what was done to them that the caches do not show yet.
//!
//! Invariant: an index entry is what the cache said at the last change of that object.
//! Invariant: what is pending only ever makes a controller wait; it is forgotten when the cache shows it, or after
//! `PATIENCE`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Cache, Key, Object, key_of};
use tokio::time::Instant;

use crate::pods::{controller, uid};
use crate::step::Done;

/// How long a created object may take to be seen, before a controller stops to count on it: it may have been deleted
/// before it was looked at.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The objects of one kind by the uid of their controller; those without a controller are found under no uid.
pub(crate) struct Owned<K> {
    cache: Cache<K>,
    index: Arc<Mutex<Index>>,
}

impl<K> Clone for Owned<K> {
    fn clone(&self) -> Self {
        Owned { cache: self.cache.clone(), index: Arc::clone(&self.index) }
    }
}

type Index = BTreeMap<(String, String), BTreeSet<Key>>;

impl<K: Object> Owned<K> {
    /// Follows a cache.
    pub(crate) fn follow(cache: Cache<K>) -> Owned<K> {
        let index: Arc<Mutex<Index>> = Arc::default();
        let (seen, into) = (cache.clone(), Arc::clone(&index));
        cache.listen(move |object: &Arc<K>| {
            let key = key_of(&**object);
            let live = seen.get(&key).map(|live| place(&*live));
            let told = place(&**object);
            let mut index = locked(&into);
            if live.as_ref() != Some(&told)
                && let Some(keys) = index.get_mut(&told)
            {
                keys.remove(&key);
                if keys.is_empty() {
                    index.remove(&told);
                }
            }
            if let Some(live) = live {
                index.entry(live).or_default().insert(key);
            }
        });
        Owned { cache, index }
    }

    /// What the owner controls, and what nobody controls in its namespace.
    pub(crate) fn by(&self, namespace: &str, owner: &str) -> Vec<Arc<K>> {
        let mut found = self.controlled(namespace, owner);
        found.extend(self.controlled(namespace, ""));
        found
    }

    /// What the owner controls.
    pub(crate) fn controlled(&self, namespace: &str, owner: &str) -> Vec<Arc<K>> {
        let keys =
            locked(&self.index).get(&(namespace.to_owned(), owner.to_owned())).cloned().unwrap_or_default();
        let snapshot = self.cache.snapshot();
        keys.iter().filter_map(|key| snapshot.get(key).cloned()).collect()
    }

    /// The names that begin so.
    pub(crate) fn names(&self, namespace: &str, begin: &str) -> BTreeSet<String> {
        let from = Key::new(namespace, begin);
        let snapshot = self.cache.snapshot();
        let names = snapshot.range(from..).map(|(key, _)| key);
        names
            .take_while(|key| key.namespace == namespace && key.name.starts_with(begin))
            .map(|key| key.name.clone())
            .collect()
    }
}

fn place<K: Object>(object: &K) -> (String, String) {
    let meta = object.meta();
    let owner = controller(meta).map(|owner| owner.uid.clone()).unwrap_or_default();
    (meta.namespace.clone().unwrap_or_default(), owner)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sets of keys cannot be left half written by a panic in between.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was asked of the cluster and may not be in the caches yet, per key of a controller.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    keys: Mutex<BTreeMap<Key, Waits>>,
}

#[derive(Debug, Default)]
struct Waits {
    created: BTreeMap<String, Instant>,
    deleted: BTreeSet<String>,
    refused: Option<String>,
    written: Option<u64>,
}

/// The names that were created and are not seen yet, the uids that were deleted and still look alive, and why the last
/// creation was refused.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Unseen {
    /// Names.
    pub(crate) coming: BTreeSet<String>,
    /// Uids.
    pub(crate) leaving: BTreeSet<String>,
    /// What the cluster said, if nothing was created since.
    pub(crate) refused: Option<String>,
}

impl Pending {
    /// What the cluster has accepted for the key.
    pub(crate) fn done(&self, key: &Key, done: Done<'_>) {
        match done {
            Done::Created { name } => self.created(key, name),
            Done::Deleted { uid } => {
                locked(&self.keys).entry(key.clone()).or_default().deleted.insert(uid.to_owned());
            }
            // Versions of one server are numbers that only grow.
            Done::Written { version } => {
                locked(&self.keys).entry(key.clone()).or_default().written = version.parse().ok();
            }
        }
    }

    /// Whether the key's own object was written and is not seen so yet: what else is seen may be newer than it.
    pub(crate) fn behind(&self, key: &Key, seen: Option<&str>) -> bool {
        let mut keys = locked(&self.keys);
        let Some(waits) = keys.get_mut(key) else { return false };
        let seen = seen.and_then(|version| version.parse::<u64>().ok());
        let behind = waits.written.zip(seen).is_some_and(|(written, seen)| seen < written);
        if !behind {
            waits.written = None;
        }
        behind
    }

    /// An object was created for the key.
    fn created(&self, key: &Key, name: &str) {
        let until = Instant::now() + PATIENCE;
        let mut keys = locked(&self.keys);
        let waits = keys.entry(key.clone()).or_default();
        waits.created.insert(name.to_owned(), until);
        waits.refused = None;
    }

    /// An object of the key was refused.
    pub(crate) fn refused(&self, key: &Key, why: String) {
        locked(&self.keys).entry(key.clone()).or_default().refused = Some(why);
    }

    /// The key is gone.
    pub(crate) fn forget(&self, key: &Key) {
        locked(&self.keys).remove(key);
    }

    /// What is not seen yet, given what is.
    pub(crate) fn unseen<K: Object>(&self, key: &Key, seen: &[Arc<K>], names: &BTreeSet<String>) -> Unseen {
        let mut keys = locked(&self.keys);
        let Some(waits) = keys.get_mut(key) else { return Unseen::default() };
        let now = Instant::now();
        waits.created.retain(|name, until| *until > now && !names.contains(name));
        let alive: BTreeSet<&str> = seen
            .iter()
            .map(|object| object.meta())
            .filter(|meta| meta.deletion_timestamp.is_none())
            .map(uid)
            .collect();
        waits.deleted.retain(|uid| alive.contains(uid.as_str()));
        let unseen = Unseen {
            coming: waits.created.keys().cloned().collect(),
            leaving: waits.deleted.clone(),
            refused: waits.refused.clone(),
        };
        if unseen == Unseen::default() && waits.written.is_none() {
            keys.remove(key);
        }
        unseen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_waited_for_until_it_or_something_newer_is_seen() {
        let (pending, key) = (Pending::default(), Key::new("default", "a"));
        assert!(!pending.behind(&key, Some("7")));
        pending.done(&key, Done::Written { version: "9" });
        let unseen = pending.unseen::<k8s_openapi::api::core::v1::Pod>(&key, &[], &BTreeSet::new());
        assert_eq!(unseen, Unseen::default());
        assert!(pending.behind(&key, Some("8")));
        assert!(!pending.behind(&key, Some("10")));
        assert!(!pending.behind(&key, Some("8")), "seen once is seen");
    }
}
