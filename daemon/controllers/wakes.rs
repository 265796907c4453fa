//! How controllers are run, and how a change wakes those it concerns.
//!
//! Invariant: a wake says which key to look at, never what happened.

use std::future::Future;
use std::sync::Arc;

use api::kinds::Kind;
use client::{Cache, Clock, Key, key_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ApiResource;
use reconcile::{Backoff, Queue, Reconciler, Tasks, Work};

use crate::pods::controller;

/// Keys a controller works on at once.
const AT_ONCE: usize = 16;

/// Runs a controller once every cache it reads has its first list.
pub(crate) fn spawn<R: Reconciler>(
    tasks: &Tasks,
    clock: Clock,
    queue: &Queue<R::Key>,
    reconciler: R,
    synced: impl Future<Output = ()> + Send + 'static,
) {
    let work = Work {
        reconciler: Arc::new(reconciler),
        queue: queue.clone(),
        now: clock.teller(),
        at_once: AT_ONCE,
        backoff: Backoff::default(),
    };
    tasks.spawn(R::NAME, |stop| async move {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: only waits for what other tasks do.
            () = synced => {}
        }
        work.run(stop).await;
    });
}

/// How a kind of the table is asked for.
pub(crate) fn resource(kind: &Kind) -> ApiResource {
    ApiResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
    }
}
/// A change of an object wakes its own key.
pub(crate) fn wake_itself<K: Resource + Send + Sync + 'static>(cache: &Cache<K>, queue: &Queue<Key>) {
    let queue = queue.clone();
    cache.listen(move |object| queue.wake(key_of(&**object)));
}

/// A change of what is controlled wakes its controller.
pub(crate) fn wake_owner<K: Resource + Send + Sync + 'static>(
    cache: &Cache<K>,
    kind: &'static str,
    queue: &Queue<Key>,
) {
    let queue = queue.clone();
    cache.listen(move |object| {
        let meta = object.meta();
        if let Some(owner) = controller(meta).filter(|owner| owner.kind == kind) {
            queue.wake(Key::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()));
        }
    });
}

/// What nobody controls wakes those who would take it.
pub(crate) fn wake_adopters<K, O>(
    objects: &Cache<K>,
    owners: &Cache<O>,
    queue: &Queue<Key>,
    takes: impl Fn(&O, &ObjectMeta) -> bool + Send + 'static,
) where
    K: Resource + Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    let (queue, owners) = (queue.clone(), owners.clone());
    objects.listen(move |object| {
        let meta = object.meta();
        if controller(meta).is_some() {
            return;
        }
        each_in(&owners, meta.namespace.as_deref(), |key, owner| {
            if takes(owner, meta) {
                queue.wake(key.clone());
            }
        });
    });
}

/// Shows every object of a namespace.
pub(crate) fn each_in<K: Send + Sync + 'static>(
    cache: &Cache<K>,
    namespace: Option<&str>,
    mut see: impl FnMut(&Key, &K),
) {
    let namespace = namespace.unwrap_or_default();
    let snapshot = cache.snapshot();
    let from = snapshot.range(Key::new(namespace, "")..);
    for (key, object) in from.take_while(|(key, _)| key.namespace == namespace) {
        see(key, object);
    }
}
