//! What is taken on every node, kept current change by change, so that a round costs what is pending and not what runs.
//!
//! Invariant: a pod is counted once: as bound when the cache shows its node, as assumed from the moment its binding was
//! asked for until then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Key, key_of};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::cluster::{NodeView, Used};
use crate::demand::Demand;
use crate::plan::{View, priority};

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    used: BTreeMap<String, Used>,
    bound: BTreeMap<Key, Entry>,
    pending: BTreeMap<Key, Arc<Pod>>,
    assumed: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    node: String,
    demand: Demand,
    priority: i32,
}

impl Ledger {
    /// Takes over what a pod is now. The answer is whether a round could come out differently.
    pub(crate) fn changed(&self, told: &Arc<Pod>, pods: &Cache<Pod>) -> bool {
        let key = key_of(&**told);
        let live = pods.get(&key);
        self.books().update(key, live)
    }

    /// Counts a pod on a node before its binding is asked for, unless it is no longer a pod that waits.
    pub(crate) fn assume(&self, pod: &Pod, node: &str, demand: &Demand) {
        let entry = Entry { node: node.to_owned(), demand: demand.clone(), priority: priority(pod) };
        let mut books = self.books();
        let waits =
            books.pending.get(&key_of(pod)).is_some_and(|known| known.metadata.uid == pod.metadata.uid);
        if let Some(uid) = pod.metadata.uid.clone().filter(|_| waits) {
            books.assumed.insert(uid, entry);
        }
    }

    /// The binding did not come to be.
    pub(crate) fn forget(&self, pod: &Pod) {
        if let Some(uid) = &pod.metadata.uid {
            self.books().assumed.remove(uid);
        }
    }

    /// The nodes with what is taken, and the pods that wait.
    pub(crate) fn view<'a>(&self, nodes: impl Iterator<Item = &'a Arc<Node>>) -> View {
        let books = self.books();
        let view = |node: &Arc<Node>| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let mut used = books.used.get(name).cloned().unwrap_or_default();
            for entry in books.assumed.values().filter(|entry| entry.node == name) {
                used.take(&entry.demand, entry.priority);
            }
            NodeView::new(Arc::clone(node), used)
        };
        let waits =
            |pod: &&Arc<Pod>| !pod.metadata.uid.as_ref().is_some_and(|uid| books.assumed.contains_key(uid));
        View {
            nodes: nodes.map(view).collect(),
            pending: books.pending.values().filter(waits).cloned().collect(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn update(&mut self, key: Key, live: Option<Arc<Pod>>) -> bool {
        let before = self.bound.remove(&key);
        if let Some(entry) = &before
            && let Some(used) = self.used.get_mut(&entry.node)
        {
            used.give(&entry.demand, entry.priority);
        }
        let waited = self.pending.remove(&key);
        if let Some(uid) = waited.as_ref().and_then(|pod| pod.metadata.uid.as_ref())
            && live.as_ref().is_none_or(|live| live.metadata.uid.as_ref() != Some(uid) || is_bound(live))
        {
            self.assumed.remove(uid);
        }
        let Some(pod) = live else { return before.is_some() || waited.is_some() };
        let status = pod.status.as_ref();
        let ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        let spec = pod.spec.as_ref();
        match spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()) {
            Some(node) => {
                if ended {
                    return before.is_some();
                }
                let entry = Entry { node, demand: Demand::of(&pod), priority: priority(&pod) };
                self.used.entry(entry.node.clone()).or_default().take(&entry.demand, entry.priority);
                // A pod that stays where it is changes nothing for others, unless it takes less than before.
                let freed =
                    before.is_some_and(|before| before.node != entry.node || before.demand != entry.demand);
                self.bound.insert(key, entry);
                freed
            }
            None => {
                let ours = spec.is_some_and(|spec| {
                    spec.scheduler_name.as_deref().is_none_or(|name| name == "default-scheduler")
                });
                if ours && !ended && pod.metadata.deletion_timestamp.is_none() {
                    self.pending.insert(key, pod);
                    return true;
                }
                before.is_some()
            }
        }
    }
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}
