//! Starts the controllers: which change wakes which of them for which key.
//!
//! Invariant: a controller's own indexes listen before its wakes do, so that a woken round finds them current.
//! Invariant: no round runs before every cache it reads has its first list.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use api::kinds::Kind;
use client::{Cache, Caches, Clock, Key, key_of};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ApiResource;
use reconcile::{Backoff, Queue, Reconciler, Tasks, Work};

use crate::deployment::Deployments;
use crate::endpointslice::{EndpointSlices, selects, service_of};
use crate::garbage::{Garbage, Graph};
use crate::job::{Jobs, job_of_free};
use crate::namespace::{Namespaces, can};
use crate::pods::{controller, selected};
use crate::replicaset::ReplicaSets;

/// Keys a controller works on at once.
const AT_ONCE: usize = 16;

/// Starts all controllers over the caches of one door. Stopped by stopping the tasks.
pub fn start(caches: &Caches, tasks: &Tasks, clock: Clock) {
    let client = caches.client();
    let of = Kinds {
        deployments: caches.of(),
        sets: caches.of(),
        pods: caches.of(),
        jobs: caches.of(),
        services: caches.of(),
        slices: caches.of(),
        namespaces: caches.of(),
    };
    let sets = Queue::new();
    spawn(
        tasks,
        clock,
        &sets,
        ReplicaSets::new(client.clone(), of.sets.clone(), of.pods.clone()),
        of.synced(),
    );
    wake_itself(&of.sets, &sets);
    wake_owner(&of.pods, "ReplicaSet", &sets);
    wake_adopters(&of.pods, &of.sets, &sets, |set, meta| {
        set.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
    });

    let deployments = Queue::new();
    let controller =
        Deployments::new(client.clone(), of.deployments.clone(), of.sets.clone(), of.pods.clone());
    spawn(tasks, clock, &deployments, controller, of.synced());
    wake_itself(&of.deployments, &deployments);
    wake_owner(&of.sets, "Deployment", &deployments);
    wake_adopters(&of.sets, &of.deployments, &deployments, |deployment, meta| {
        deployment.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
    });

    let jobs = Queue::new();
    spawn(tasks, clock, &jobs, Jobs::new(client.clone(), of.jobs.clone(), of.pods.clone()), of.synced());
    wake_itself(&of.jobs, &jobs);
    wake_owner(&of.pods, "Job", &jobs);
    wake_adopters(&of.pods, &of.jobs, &jobs, |job, meta| {
        let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|selector| selected(selector, meta))
    });
    wake_lost_jobs(&of.pods, &jobs);

    let services = Queue::new();
    let controller =
        EndpointSlices::new(client.clone(), of.services.clone(), of.pods.clone(), of.slices.clone());
    spawn(tasks, clock, &services, controller, of.synced());
    wake_services(&of, &services);

    start_of_all_kinds(caches, &of, tasks, clock);
}

/// Garbage and namespaces look at every kind.
fn start_of_all_kinds(caches: &Caches, of: &Kinds, tasks: &Tasks, clock: Clock) {
    let (graph, uids, namespaces) = (Arc::<Graph>::default(), Queue::new(), Queue::new());
    let mut synced: Vec<BoxFuture<'static, ()>> = vec![of.synced().boxed()];
    wake_itself(&of.namespaces, &namespaces);
    for kind in api::kinds::stored_kinds().filter(|kind| can(kind, "watch") && can(kind, "delete")) {
        let wakes = (&uids, &namespaces, &of.namespaces);
        match (kind.group.as_str(), kind.kind.as_str()) {
            // Nobody owns events and events own nobody, and there are many.
            ("", "Event") => {}
            ("apps", "Deployment") => follow(&graph, kind, &of.deployments, wakes),
            ("apps", "ReplicaSet") => follow(&graph, kind, &of.sets, wakes),
            ("", "Pod") => follow(&graph, kind, &of.pods, wakes),
            ("batch", "Job") => follow(&graph, kind, &of.jobs, wakes),
            ("", "Service") => follow(&graph, kind, &of.services, wakes),
            ("discovery.k8s.io", "EndpointSlice") => follow(&graph, kind, &of.slices, wakes),
            ("", "Namespace") => follow(&graph, kind, &of.namespaces, wakes),
            _ => {
                let cache = caches.metadata(&resource(kind));
                follow(&graph, kind, &cache, wakes);
                synced.push(async move { cache.synced().await }.boxed());
            }
        }
    }
    let synced = async move {
        join_all(synced).await;
    }
    .shared();
    spawn(tasks, clock, &uids, Garbage::new(caches.client(), graph), synced.clone());
    spawn(tasks, clock, &namespaces, Namespaces::new(caches.client(), of.namespaces.clone()), synced);
}

#[derive(Clone)]
struct Kinds {
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    jobs: Cache<Job>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    namespaces: Cache<Namespace>,
}

impl Kinds {
    fn synced(&self) -> impl Future<Output = ()> + Send + 'static {
        let of = self.clone();
        async move {
            of.deployments.synced().await;
            of.sets.synced().await;
            of.pods.synced().await;
            of.jobs.synced().await;
            of.services.synced().await;
            of.slices.synced().await;
            of.namespaces.synced().await;
        }
    }
}

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

fn follow<K: Resource + Send + Sync + 'static>(
    graph: &Arc<Graph>,
    kind: &'static Kind,
    cache: &Cache<K>,
    (uids, namespaces, known): (&Queue<String>, &Queue<Key>, &Cache<Namespace>),
) {
    graph.follow(kind, cache, uids.clone());
    let (namespaces, known) = (namespaces.clone(), known.clone());
    cache.listen(move |object| {
        let key = Key::new("", object.meta().namespace.clone().unwrap_or_default());
        // Only one that is on its way out cares what is in it.
        if known.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            namespaces.wake(key);
        }
    });
}

/// A change of an object wakes its own key.
pub(crate) fn wake_itself<K: Resource + Send + Sync + 'static>(cache: &Cache<K>, queue: &Queue<Key>) {
    let queue = queue.clone();
    cache.listen(move |object| queue.wake(key_of(&**object)));
}

/// A change of what is controlled wakes its controller.
fn wake_owner<K: Resource + Send + Sync + 'static>(cache: &Cache<K>, kind: &'static str, queue: &Queue<Key>) {
    let queue = queue.clone();
    cache.listen(move |object| {
        let meta = object.meta();
        if let Some(owner) = controller(meta).filter(|owner| owner.kind == kind) {
            queue.wake(Key::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()));
        }
    });
}

/// What nobody controls wakes those who would take it.
fn wake_adopters<K, O>(
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
        for (key, owner) in in_namespace(&owners, meta.namespace.as_deref()) {
            if takes(&owner, meta) {
                queue.wake(key);
            }
        }
    });
}

/// A pod that a Job still holds, though it does not control it any more, is let go by that Job's key.
fn wake_lost_jobs(pods: &Cache<Pod>, queue: &Queue<Key>) {
    let queue = queue.clone();
    pods.listen(move |pod| {
        if let Some(job) = job_of_free(pod) {
            queue.wake(Key::new(pod.metadata.namespace.clone().unwrap_or_default(), job));
        }
    });
}

fn wake_services(of: &Kinds, queue: &Queue<Key>) {
    wake_itself(&of.services, queue);
    let (wakes, services) = (queue.clone(), of.services.clone());
    of.pods.listen(move |pod| {
        for (key, service) in in_namespace(&services, pod.metadata.namespace.as_deref()) {
            if selects(&service, &pod.metadata) {
                wakes.wake(key);
            }
        }
    });
    let wakes = queue.clone();
    of.slices.listen(move |slice| {
        if let Some(service) = service_of(slice) {
            wakes.wake(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
        }
    });
}

fn in_namespace<K: Send + Sync + 'static>(
    cache: &Cache<K>,
    namespace: Option<&str>,
) -> BTreeMap<Key, Arc<K>> {
    let namespace = namespace.unwrap_or_default();
    let snapshot = cache.snapshot();
    snapshot
        .range(Key::new(namespace, "")..)
        .take_while(|(key, _)| key.namespace == namespace)
        .map(|(key, object)| (key.clone(), Arc::clone(object)))
        .collect()
}
