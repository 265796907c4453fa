//! Starts the controllers of the cluster itself: those that look after namespaces, nodes and volumes rather than after
//! workloads.
//!
//! Invariant: what a controller needs from the machine comes with `Parts`; nothing here reaches into another room.

use std::sync::Arc;

use client::{Caches, Clock, Key, key_of};
use k8s_openapi::api::core::v1::Namespace;
use reconcile::{Queue, Tasks};

use crate::serviceaccount::{Accounts, ROOT_CA};
use crate::wakes::{resource, spawn, wake_itself};

/// What the controllers of the cluster need.
#[derive(Clone)]
pub struct Parts {
    /// The caches of one door.
    pub caches: Caches,
    /// The time.
    pub clock: Clock,
    /// The certificate by which the API server is known, as PEM.
    pub root_ca: Arc<str>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Starts the controllers of the cluster. Stopped by stopping the tasks.
pub fn start(parts: &Parts, tasks: &Tasks) {
    accounts(parts, tasks);
}

fn accounts(parts: &Parts, tasks: &Tasks) {
    let metadata = |kind: &str| {
        let kind = api::kinds::by_kind("v1", kind).expect("a kind of the core that is always served");
        parts.caches.metadata(&resource(kind))
    };
    let (namespaces, queue) = (parts.caches.of::<Namespace>(), Queue::new());
    let (accounts, maps) = (metadata("ServiceAccount"), metadata("ConfigMap"));
    wake_itself(&namespaces, &queue);
    for (cache, name) in [(&accounts, "default"), (&maps, ROOT_CA)] {
        let queue = queue.clone();
        cache.listen(move |object| {
            let key = key_of(&**object);
            if key.name == name {
                queue.wake(Key::new("", key.namespace));
            }
        });
    }
    let synced = (namespaces.clone(), accounts.clone(), maps);
    let client = parts.caches.client();
    let controller = Accounts::new(client, namespaces, accounts, Arc::clone(&parts.root_ca));
    spawn(tasks, parts.clock, &queue, controller, async move {
        synced.0.synced().await;
        synced.1.synced().await;
        synced.2.synced().await;
    });
}
