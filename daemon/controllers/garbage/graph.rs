//! Who owns whom: the metadata of every object of every kind, by uid.
//!
//! Invariant: a node is what the cache of its kind said last; whoever a change could set free is woken after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::kinds::Kind;
use client::{Cache, key_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use reconcile::Queue;

use super::place;
use crate::step::Place;

/// What ownership needs to know of an object.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Its row in the table.
    pub(crate) kind: &'static Kind,
    /// `None`: of the cluster.
    pub(crate) namespace: Option<String>,
    /// `metadata.name`.
    pub(crate) name: String,
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// `metadata.resourceVersion`.
    pub(crate) resource_version: Option<String>,
    /// `metadata.ownerReferences`.
    pub(crate) owners: Vec<OwnerReference>,
    /// `metadata.finalizers`.
    pub(crate) finalizers: Vec<String>,
    /// Whether it has a deletion timestamp.
    pub(crate) deleting: bool,
}

impl Node {
    /// From an object's metadata.
    pub(crate) fn new(kind: &'static Kind, meta: &ObjectMeta) -> Node {
        Node {
            kind,
            namespace: meta.namespace.clone().filter(|_| kind.namespaced),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Whether this finalizer holds it.
    pub(crate) fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|one| one == finalizer)
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        place(self.kind, self.namespace.clone(), self.name.clone())
    }
}

/// All nodes and the edges between them.
#[derive(Default)]
pub(crate) struct Graph {
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    nodes: BTreeMap<String, Arc<Node>>,
    dependents: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Keeps the objects of one kind in the graph, and wakes whom their changes concern.
    pub(crate) fn follow<K>(self: &Arc<Self>, kind: &'static Kind, cache: &Cache<K>, wakes: Queue<String>)
    where
        K: Resource + Send + Sync + 'static,
    {
        let (graph, seen) = (Arc::clone(self), cache.clone());
        cache.listen(move |object: &Arc<K>| {
            let told = object.meta().uid.clone().unwrap_or_default();
            // An object of the same name may be there already: then the one that was told is gone.
            let live = seen.get(&key_of(&**object)).filter(|live| live.meta().uid.as_deref() == Some(&told));
            let node = live.map(|live| Node::new(kind, live.meta()));
            for uid in graph.changed(&told, node) {
                wakes.wake(uid);
            }
        });
    }

    /// One object.
    pub(crate) fn node(&self, uid: &str) -> Option<Arc<Node>> {
        self.parts().nodes.get(uid).cloned()
    }

    /// Those that name it as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Arc<Node>> {
        let parts = self.parts();
        let uids = parts.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| parts.nodes.get(uid).cloned()).collect()
    }

    /// Those that name an owner of this kind which is not in the graph.
    pub(crate) fn unowned(&self, kind: &Kind) -> Vec<String> {
        let parts = self.parts();
        let missing = |owner: &OwnerReference| {
            let (group, _) = api::kinds::split_api_version(&owner.api_version);
            owner.kind == kind.kind && group == kind.group && !parts.nodes.contains_key(&owner.uid)
        };
        let unowned = parts.nodes.values().filter(|node| node.owners.iter().any(missing));
        unowned.map(|node| node.uid.clone()).collect()
    }

    /// Takes over a change. The answer is whom to look at.
    fn changed(&self, uid: &str, node: Option<Node>) -> BTreeSet<String> {
        let mut parts = self.parts();
        let before = parts.nodes.remove(uid);
        let mut concerned = BTreeSet::new();
        for owner in before.iter().flat_map(|node| &node.owners) {
            if let Some(all) = parts.dependents.get_mut(&owner.uid) {
                all.remove(uid);
                if all.is_empty() {
                    parts.dependents.remove(&owner.uid);
                }
            }
            // An owner may have waited for this one.
            if parts.nodes.get(&owner.uid).is_some_and(|owner| owner.deleting) {
                concerned.insert(owner.uid.clone());
            }
        }
        let stays = node.as_ref().is_some_and(|node| !node.deleting);
        if !stays {
            concerned.extend(parts.dependents.get(uid).into_iter().flatten().cloned());
        }
        if let Some(node) = node {
            for owner in &node.owners {
                parts.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            }
            let edges_changed = before.as_ref().is_none_or(|before| before.owners != node.owners);
            if node.deleting || (edges_changed && !node.owners.is_empty()) {
                concerned.insert(uid.to_owned());
            }
            parts.nodes.insert(uid.to_owned(), Arc::new(node));
        }
        concerned
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
