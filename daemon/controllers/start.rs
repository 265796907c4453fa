//! Starts the controllers of workloads: which change wakes which of them for which key.
//!
//! Invariant: a controller's own indexes listen before its wakes do, so that a woken round finds them current.
//! Invariant: no round runs before every cache it reads has its first list.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use api::kinds::Kind;
use client::{Cache, Caches, Clock, Key, key_of};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use reconcile::{Queue, Reconciler, Tasks};

use crate::cronjob::{CronJobs, cron_of};
use crate::daemonset::{self, DaemonSets, what_fits};
use crate::defined::Defined;
use crate::deployment::Deployments;
use crate::endpoints::EndpointsOfServices;
use crate::endpointslice::mirror::{Mirrors, mirrored_for};
use crate::endpointslice::{EndpointSlices, selects, service_of, zone_of};
use crate::garbage::{Garbage, Graph};
use crate::job::{Jobs, job_of_free};
use crate::namespace::{Namespaces, can};
use crate::owned::Owned;
use crate::pods::selected;
use crate::replicas::Replicas;
use crate::resourcequota::{Quotas, of_namespace};
use crate::statefulset::{self, StatefulSets, claims_begin};
use crate::step::Door;
use crate::wakes::{each_in, resource, spawn, wake_adopters, wake_itself, wake_owner};

/// Starts all controllers of workloads over the caches of one door. Stopped by stopping the tasks.
pub fn start(caches: &Caches, tasks: &Tasks, clock: Clock) {
    let of = Kinds::new(caches);
    let client = Door::new(caches, clock, tasks.token());
    let room = Room { client, tasks, clock, synced: of.synced().boxed().shared(), of: &of };
    room.sets();
    room.deployments();
    room.stateful_sets();
    room.daemon_sets();
    room.jobs();
    room.cron_jobs();
    room.services();
    room.mirrors();
    room.all_kinds(caches);
}

/// What every controller is started with.
struct Room<'a> {
    client: Door,
    tasks: &'a Tasks,
    clock: Clock,
    synced: Shared<BoxFuture<'static, ()>>,
    of: &'a Kinds,
}

impl Room<'_> {
    fn spawn<R: Reconciler>(&self, queue: &Queue<R::Key>, controller: R) {
        spawn(self.tasks, self.clock, queue, controller, self.synced.clone());
    }

    fn sets(&self) {
        let of = self.of;
        let queue = Queue::new();
        self.spawn(&queue, Replicas::new(self.client.clone(), of.sets.clone(), of.pods_by_owner.clone()));
        wake_itself(&of.sets, &queue);
        wake_owner(&of.pods, "ReplicaSet", &queue);
        wake_adopters(&of.pods, &of.sets, &queue, |set, meta| {
            set.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
        });
        let queue = Queue::new();
        let pods = of.pods_by_owner.clone();
        self.spawn(&queue, Replicas::new(self.client.clone(), of.controllers.clone(), pods));
        wake_itself(&of.controllers, &queue);
        wake_owner(&of.pods, "ReplicationController", &queue);
        wake_adopters(&of.pods, &of.controllers, &queue, |set, meta| {
            let selector = set.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let labels = meta.labels.as_ref();
            selector.is_some_and(|wanted| {
                wanted.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
            })
        });
    }

    fn deployments(&self) {
        let of = self.of;
        let queue = Queue::new();
        let (sets, pods) = (of.sets_by_owner.clone(), of.pods_by_owner.clone());
        self.spawn(&queue, Deployments::new(self.client.clone(), of.deployments.clone(), sets, pods));
        wake_itself(&of.deployments, &queue);
        wake_owner(&of.sets, "Deployment", &queue);
        wake_adopters(&of.sets, &of.deployments, &queue, |deployment, meta| {
            deployment.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
        });
    }

    fn stateful_sets(&self) {
        let of = self.of;
        let queue = Queue::new();
        let caches = statefulset::Caches {
            sets: of.stateful_sets.clone(),
            pods: of.pods_by_owner.clone(),
            revisions: of.revisions_by_owner.clone(),
            claims: of.claims.clone(),
        };
        self.spawn(&queue, StatefulSets::new(self.client.clone(), caches));
        wake_itself(&of.stateful_sets, &queue);
        wake_owner(&of.pods, "StatefulSet", &queue);
        wake_owner(&of.revisions, "StatefulSet", &queue);
        wake_adopters(&of.pods, &of.stateful_sets, &queue, |set, meta| {
            set.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
        });
        wake_claimants(of, &queue);
    }

    fn daemon_sets(&self) {
        let of = self.of;
        let queue = Queue::new();
        let caches = daemonset::Caches {
            sets: of.daemon_sets.clone(),
            pods: of.pods_by_owner.clone(),
            revisions: of.revisions_by_owner.clone(),
            nodes: of.nodes.clone(),
        };
        self.spawn(&queue, DaemonSets::new(self.client.clone(), caches));
        wake_itself(&of.daemon_sets, &queue);
        wake_owner(&of.pods, "DaemonSet", &queue);
        wake_owner(&of.revisions, "DaemonSet", &queue);
        wake_adopters(&of.pods, &of.daemon_sets, &queue, |set, meta| {
            set.spec.as_ref().is_some_and(|spec| selected(&spec.selector, meta))
        });
        wake_by_nodes(of, &queue);
    }

    fn jobs(&self) {
        let of = self.of;
        let queue = Queue::new();
        let jobs = Jobs::new(self.client.clone(), of.jobs.clone(), of.pods.clone(), of.pods_by_owner.clone());
        self.spawn(&queue, jobs);
        wake_itself(&of.jobs, &queue);
        wake_owner(&of.pods, "Job", &queue);
        wake_adopters(&of.pods, &of.jobs, &queue, |job, meta| {
            let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|selector| selected(selector, meta))
        });
        // A pod that a Job still holds, though it does not control it any more, is let go by that Job's key.
        of.pods.listen(move |pod| {
            if let Some(job) = job_of_free(pod) {
                queue.wake(Key::new(pod.metadata.namespace.clone().unwrap_or_default(), job));
            }
        });
    }

    fn cron_jobs(&self) {
        let of = self.of;
        let queue = Queue::new();
        let jobs = Owned::follow(of.jobs.clone());
        self.spawn(&queue, CronJobs::new(self.client.clone(), of.cron_jobs.clone(), jobs));
        wake_itself(&of.cron_jobs, &queue);
        of.jobs.listen(move |job| {
            if let Some(cron) = cron_of(job) {
                queue.wake(Key::new(job.metadata.namespace.clone().unwrap_or_default(), cron));
            }
        });
    }

    fn services(&self) {
        let of = self.of;
        let queue = Queue::new();
        let (services, pods, slices) = (of.services.clone(), of.pods.clone(), of.slices.clone());
        let controller = EndpointSlices::new(self.client.clone(), services, pods, slices, of.nodes.clone());
        self.spawn(&queue, controller);
        wake_itself(&of.services, &queue);
        let older = Queue::new();
        let (services, pods, endpoints) = (of.services.clone(), of.pods.clone(), of.endpoints.clone());
        self.spawn(&older, EndpointsOfServices::new(self.client.clone(), services, pods, endpoints));
        wake_itself(&of.services, &older);
        wake_itself(&of.endpoints, &older);
        let (wakes, services) = (queue.clone(), of.services.clone());
        of.pods.listen(move |pod| {
            each_in(&services, pod.metadata.namespace.as_deref(), |key, service| {
                if selects(service, &pod.metadata) {
                    wakes.wake(key.clone());
                    older.wake(key.clone());
                }
            });
        });
        wake_by_zones(of, &queue);
        of.slices.listen(move |slice| {
            if let Some(service) = service_of(slice) {
                queue.wake(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
            }
        });
    }

    fn mirrors(&self) {
        let of = self.of;
        let queue = Queue::new();
        let (endpoints, services, slices) = (of.endpoints.clone(), of.services.clone(), of.slices.clone());
        self.spawn(&queue, Mirrors::new(self.client.clone(), endpoints, services, slices));
        wake_itself(&of.endpoints, &queue);
        wake_itself(&of.services, &queue);
        of.slices.listen(move |slice| {
            if let Some(service) = mirrored_for(slice) {
                queue.wake(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service));
            }
        });
    }

    /// Garbage and namespaces look at every kind.
    fn all_kinds(&self, caches: &Caches) {
        let of = self.of;
        let (graph, uids, namespaces) = (Arc::<Graph>::default(), Queue::new(), Queue::new());
        let quotas = Queue::new();
        self.spawn(&quotas, Quotas::new(self.client.clone(), of.quotas.clone()));
        let mut synced: Vec<BoxFuture<'static, ()>> = vec![self.synced.clone().boxed()];
        wake_itself(&of.namespaces, &namespaces);
        for kind in api::kinds::stored_kinds().filter(|kind| can(kind, "watch") && can(kind, "delete")) {
            let wakes = Wakes { uids: &uids, namespaces: &namespaces, quotas: &quotas, of };
            match (kind.group.as_str(), kind.kind.as_str()) {
                // Nobody owns events and events own nobody, and there are many.
                ("" | "events.k8s.io", "Event") => {}
                ("apps", "Deployment") => follow(&graph, kind, &of.deployments, wakes),
                ("apps", "ReplicaSet") => follow(&graph, kind, &of.sets, wakes),
                ("apps", "StatefulSet") => follow(&graph, kind, &of.stateful_sets, wakes),
                ("apps", "DaemonSet") => follow(&graph, kind, &of.daemon_sets, wakes),
                ("apps", "ControllerRevision") => follow(&graph, kind, &of.revisions, wakes),
                ("", "ReplicationController") => follow(&graph, kind, &of.controllers, wakes),
                ("", "PersistentVolumeClaim") => follow(&graph, kind, &of.claims, wakes),
                ("", "Pod") => follow(&graph, kind, &of.pods, wakes),
                ("", "Node") => follow(&graph, kind, &of.nodes, wakes),
                ("batch", "Job") => follow(&graph, kind, &of.jobs, wakes),
                ("batch", "CronJob") => follow(&graph, kind, &of.cron_jobs, wakes),
                ("", "ResourceQuota") => follow(&graph, kind, &of.quotas, wakes),
                ("", "Service") => follow(&graph, kind, &of.services, wakes),
                ("", "Endpoints") => follow(&graph, kind, &of.endpoints, wakes),
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
        let defined = Arc::<Defined>::default();
        let (users, of_users) = (Arc::clone(&graph), of.clone());
        let queues = (uids.clone(), namespaces.clone(), quotas);
        let tasks = self.tasks.clone();
        defined.follow(caches, move |kind, cache| {
            let (uids, namespaces, quotas) = &queues;
            follow(&users, kind, cache, Wakes { uids, namespaces, quotas, of: &of_users });
            // An owner may have come and gone before the first list.
            let (cache, graph, uids) = (cache.clone(), Arc::clone(&users), uids.clone());
            tasks.spawn("unowned", move |stop| async move {
                tokio::select! {
                    biased;
                    // Cancel-safe: a token stays cancelled.
                    () = stop.cancelled() => {}
                    // Cancel-safe: it only waits for the list to be there.
                    () = cache.synced() => graph.unowned(kind).into_iter().for_each(|uid| uids.wake(uid)),
                }
            });
        });
        let garbage = Garbage::new(self.client.clone(), graph, Arc::clone(&defined));
        spawn(self.tasks, self.clock, &uids, garbage, synced.clone());
        let controller = Namespaces::new(self.client.clone(), of.namespaces.clone(), defined);
        spawn(self.tasks, self.clock, &namespaces, controller, synced);
    }
}

/// The kinds that are read whole. Every other one is known by its metadata only.
#[derive(Clone)]
struct Kinds {
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    sets_by_owner: Owned<ReplicaSet>,
    controllers: Cache<ReplicationController>,
    stateful_sets: Cache<StatefulSet>,
    daemon_sets: Cache<DaemonSet>,
    revisions: Cache<ControllerRevision>,
    revisions_by_owner: Owned<ControllerRevision>,
    claims: Cache<PersistentVolumeClaim>,
    nodes: Cache<Node>,
    quotas: Cache<ResourceQuota>,
    pods: Cache<Pod>,
    pods_by_owner: Owned<Pod>,
    jobs: Cache<Job>,
    cron_jobs: Cache<CronJob>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    endpoints: Cache<Endpoints>,
    namespaces: Cache<Namespace>,
}

impl Kinds {
    fn new(caches: &Caches) -> Kinds {
        Kinds {
            deployments: caches.of(),
            sets: caches.of(),
            sets_by_owner: Owned::follow(caches.of()),
            controllers: caches.of(),
            stateful_sets: caches.of(),
            daemon_sets: caches.of(),
            revisions: caches.of(),
            revisions_by_owner: Owned::follow(caches.of()),
            claims: caches.of(),
            nodes: caches.of(),
            quotas: caches.of(),
            pods: caches.of(),
            pods_by_owner: Owned::follow(caches.of()),
            jobs: caches.of(),
            cron_jobs: caches.of(),
            services: caches.of(),
            slices: caches.of(),
            endpoints: caches.of(),
            namespaces: caches.of(),
        }
    }

    fn synced(&self) -> impl Future<Output = ()> + Send + 'static {
        let of = self.clone();
        async move {
            of.deployments.synced().await;
            of.sets.synced().await;
            of.controllers.synced().await;
            of.stateful_sets.synced().await;
            of.daemon_sets.synced().await;
            of.revisions.synced().await;
            of.claims.synced().await;
            of.nodes.synced().await;
            of.quotas.synced().await;
            of.pods.synced().await;
            of.jobs.synced().await;
            of.cron_jobs.synced().await;
            of.services.synced().await;
            of.slices.synced().await;
            of.endpoints.synced().await;
            of.namespaces.synced().await;
        }
    }
}

/// Whom a change of any object concerns.
#[derive(Clone, Copy)]
struct Wakes<'a> {
    uids: &'a Queue<String>,
    namespaces: &'a Queue<Key>,
    quotas: &'a Queue<Key>,
    of: &'a Kinds,
}

fn follow<K: Resource + Send + Sync + 'static>(
    graph: &Arc<Graph>,
    kind: &'static Kind,
    cache: &Cache<K>,
    wakes: Wakes<'_>,
) {
    graph.follow(kind, cache, wakes.uids.clone());
    let (namespaces, known) = (wakes.namespaces.clone(), wakes.of.namespaces.clone());
    let (quotas, bounds) = (wakes.quotas.clone(), wakes.of.quotas.clone());
    cache.listen(move |object| {
        let key = Key::new("", object.meta().namespace.clone().unwrap_or_default());
        of_namespace(&bounds, &key.name).into_iter().for_each(|quota| quotas.wake(quota));
        // Only one that is on its way out cares what is in it.
        if known.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            namespaces.wake(key);
        }
    });
}

/// A claim wakes the StatefulSet whose claims are named so.
fn wake_claimants(of: &Kinds, queue: &Queue<Key>) {
    let (queue, sets) = (queue.clone(), of.stateful_sets.clone());
    of.claims.listen(move |claim| {
        let named = crate::pods::name(&claim.metadata);
        each_in(&sets, claim.metadata.namespace.as_deref(), |key, set| {
            if claims_begin(set).iter().any(|begin| named.starts_with(begin)) {
                queue.wake(key.clone());
            }
        });
    });
}

/// A node whose labels or taints change, that comes or goes, wakes every DaemonSet.
fn wake_by_nodes(of: &Kinds, queue: &Queue<Key>) {
    let (queue, sets) = (queue.clone(), of.daemon_sets.clone());
    on_change(&of.nodes, what_fits, move || {
        for set in sets.snapshot().keys() {
            queue.wake(set.clone());
        }
    });
}

/// A node that says another zone wakes every Service.
fn wake_by_zones(of: &Kinds, queue: &Queue<Key>) {
    let (queue, services) = (queue.clone(), of.services.clone());
    on_change(&of.nodes, zone_of, move || {
        for service in services.snapshot().keys() {
            queue.wake(service.clone());
        }
    });
}

/// Calls when what matters of some object is not what it was: most changes, such as heartbeats, change nothing of it.
fn on_change<K, M>(
    cache: &Cache<K>,
    matters: impl Fn(&K) -> M + Send + 'static,
    mut call: impl FnMut() + Send + 'static,
) where
    K: Resource + Send + Sync + 'static,
    M: PartialEq + Clone + Send + 'static,
{
    let (seen, mut known) = (cache.clone(), BTreeMap::<Key, M>::new());
    cache.listen(move |object| {
        let key = key_of(&**object);
        let live = seen.get(&key).map(|object| matters(&object));
        let before = match live.clone() {
            Some(matters) => known.insert(key, matters),
            None => known.remove(&key),
        };
        if before != live {
            call();
        }
    });
}
