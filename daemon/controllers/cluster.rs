//! Starts the controllers of the cluster itself: those that look after namespaces, nodes and volumes rather than after
//! workloads.
//!
//! Invariant: what a controller needs from the machine comes with `Parts`; nothing here reaches into another room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use client::{Cache, Caches, Clock, Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::StorageClass;
use reconcile::{Queue, Tasks};

use crate::certificate::Certificates;
use crate::disruption::{self, Disruptions, means};
use crate::eventttl::{All, EventTtl};
use crate::horizontal::Scalers;
use crate::loadbalancer::{LoadBalancers, all_ours};
use crate::nodelifecycle::{self, NodeLifecycle, is_out};
use crate::podgc::{PodGarbage, node_of, out_of_service};
use crate::pods;
use crate::serviceaccount::{Accounts, ROOT_CA};
use crate::step::Door;
use crate::storage::claim::Claims;
use crate::storage::ephemeral::{Ephemeral, declares};
use crate::storage::protection::{Protection, claims_of};
use crate::storage::volume::Volumes;
use crate::storage::{FirstClass, Ground, Seen};
use crate::tainteviction::{TaintEviction, no_execute};
use crate::wakes::{each_in, resource, spawn, wake_itself};

/// A protocol, as Services name it, and a port.
pub type Port = (String, u16);

/// What this machine listens on, as a function that looks.
pub type Listening = Arc<dyn Fn() -> BTreeSet<Port> + Send + Sync>;

/// A certificate that is to be signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Signing {
    /// The request, as PEM.
    pub request: String,
    /// Who is to sign it.
    pub signer: String,
    /// What it is to be good for.
    pub usages: Vec<String>,
    /// Now.
    pub now: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// Signs with the cluster's CA, whose key stays where it is; or says why not.
pub type Signer = Arc<dyn Fn(&Signing) -> Result<String, String> + Send + Sync>;

/// What the controllers of the cluster need.
#[derive(Clone)]
pub struct Parts {
    /// The caches of one door.
    pub caches: Caches,
    /// The time.
    pub clock: Clock,
    /// The name of this node.
    pub node: String,
    /// Where this node keeps the volumes that it makes.
    pub volumes: PathBuf,
    /// What this machine listens on: ports that no Service may take.
    pub listening: Listening,
    /// Signs certificates.
    pub signer: Signer,
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
    let door = Door::new(&parts.caches, parts.clock, tasks.token());
    accounts(parts, &door, tasks);
    storage(parts, &door, tasks);
    disruptions(parts, &door, tasks);
    load_balancers(parts, &door, tasks);
    pod_garbage(parts, &door, tasks);
    nodes(parts, &door, tasks);
    taints(parts, &door, tasks);
    scalers(parts, &door, tasks);
    events(parts, &door, tasks);
    certificates(parts, &door, tasks);
}

fn accounts(parts: &Parts, door: &Door, tasks: &Tasks) {
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
    let client = door.clone();
    let controller = Accounts::new(client, namespaces, accounts, Arc::clone(&parts.root_ca));
    spawn(tasks, parts.clock, &queue, controller, async move {
        synced.0.synced().await;
        synced.1.synced().await;
        synced.2.synced().await;
    });
}

fn storage(parts: &Parts, door: &Door, tasks: &Tasks) {
    let caches = &parts.caches;
    let seen = Seen {
        client: door.clone(),
        claims: caches.of::<PersistentVolumeClaim>(),
        volumes: caches.of::<PersistentVolume>(),
        classes: caches.of::<StorageClass>(),
        pods: caches.of(),
        ground: Arc::new(Ground { node: parts.node.clone(), directory: parts.volumes.clone() }),
    };
    let (claims, volumes, protection) = (Queue::new(), Queue::new(), Queue::new());
    let (ephemeral, first) = (Queue::new(), Queue::new());
    for queue in [&claims, &protection] {
        wake_itself(&seen.claims, queue);
    }
    for queue in [&volumes, &protection] {
        wake_itself(&seen.volumes, queue);
    }
    let (wakes, known) = (claims.clone(), seen.claims.clone());
    seen.volumes.listen(move |volume| match claim_of(volume) {
        Some(claim) => wakes.wake(claim),
        // A volume that is free is of interest to every claim that has none.
        None => unbound(&known).for_each(|key| wakes.wake(key)),
    });
    let (wakes, known) = (claims.clone(), seen.claims.clone());
    seen.classes.listen(move |_| unbound(&known).for_each(|key| wakes.wake(key)));
    let (wakes, known) = (volumes.clone(), seen.volumes.clone());
    seen.claims.listen(move |claim| {
        let key = key_of(&**claim);
        for (name, volume) in &known.snapshot() {
            if claim_of(volume).as_ref() == Some(&key) {
                wakes.wake(name.clone());
            }
        }
    });
    let wakes = protection.clone();
    seen.pods.listen(move |pod| {
        for claim in claims_of(pod) {
            wakes.wake(Key::new(pod.metadata.namespace.clone().unwrap_or_default(), claim));
        }
    });
    let wakes = ephemeral.clone();
    seen.pods.listen(move |pod| {
        if declares(pod) {
            wakes.wake(key_of(&**pod));
        }
    });
    spawn(tasks, parts.clock, &ephemeral, Ephemeral(seen.clone()), seen.clone().synced());
    first.wake(crate::storage::first_class_key());
    spawn(tasks, parts.clock, &first, FirstClass(seen.clone()), seen.clone().synced());
    spawn(tasks, parts.clock, &claims, Claims::new(seen.clone()), seen.clone().synced());
    spawn(tasks, parts.clock, &volumes, Volumes(seen.clone()), seen.clone().synced());
    spawn(tasks, parts.clock, &protection, Protection(seen.clone()), seen.synced());
}

fn claim_of(volume: &PersistentVolume) -> Option<Key> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(claim.namespace.clone()?, claim.name.clone()?))
}

/// The claims that have no volume.
fn unbound(claims: &Cache<PersistentVolumeClaim>) -> impl Iterator<Item = Key> + use<> {
    claims.snapshot().into_iter().filter_map(|(key, claim)| {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        (phase != Some("Bound")).then_some(key)
    })
}

fn disruptions(parts: &Parts, door: &Door, tasks: &Tasks) {
    let caches = &parts.caches;
    let seen = disruption::Seen {
        budgets: caches.of(),
        pods: caches.of(),
        sets: caches.of(),
        deployments: caches.of(),
        stateful: caches.of(),
        controllers: caches.of(),
    };
    let queue = Queue::new();
    wake_itself(&seen.budgets, &queue);
    let (wakes, budgets) = (queue.clone(), seen.budgets.clone());
    seen.pods.listen(move |pod| {
        each_in(&budgets, pod.metadata.namespace.as_deref(), |key, budget| {
            if means(budget, &pod.metadata) {
                wakes.wake(key.clone());
            }
        });
    });
    // How many pods there should be follows from those who make them.
    wake_beside(&seen.sets, &seen.budgets, &queue);
    wake_beside(&seen.deployments, &seen.budgets, &queue);
    wake_beside(&seen.stateful, &seen.budgets, &queue);
    wake_beside(&seen.controllers, &seen.budgets, &queue);
    spawn(tasks, parts.clock, &queue, Disruptions::new(door.clone(), seen.clone()), seen.synced());
}

/// A change of an object wakes all of another kind in its namespace.
fn wake_beside<K, O>(objects: &Cache<K>, others: &Cache<O>, queue: &Queue<Key>)
where
    K: kube::Resource + Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    let (wakes, others) = (queue.clone(), others.clone());
    objects.listen(move |object| {
        each_in(&others, object.meta().namespace.as_deref(), |key, _| wakes.wake(key.clone()));
    });
}

fn load_balancers(parts: &Parts, door: &Door, tasks: &Tasks) {
    let (services, nodes) = (parts.caches.of::<Service>(), parts.caches.of::<Node>());
    let queue = Queue::new();
    wake_itself(&services, &queue);
    let (wakes, known) = (queue.clone(), services.clone());
    // A port that is given back may be what another waits for.
    services.listen(move |_| all_ours(&known).into_iter().for_each(|key| wakes.wake(key)));
    let (wakes, known) = (queue.clone(), services.clone());
    nodes.listen(move |_| all_ours(&known).into_iter().for_each(|key| wakes.wake(key)));
    let synced = (services.clone(), nodes.clone());
    let client = door.clone();
    let controller = LoadBalancers::new(client, services, nodes, Arc::clone(&parts.listening));
    spawn(tasks, parts.clock, &queue, controller, async move {
        synced.0.synced().await;
        synced.1.synced().await;
    });
}

fn pod_garbage(parts: &Parts, door: &Door, tasks: &Tasks) {
    let (pods, nodes) = (parts.caches.of::<Pod>(), parts.caches.of::<Node>());
    let queue = Queue::new();
    let (wakes, known) = (queue.clone(), nodes.clone());
    pods.listen(move |pod| {
        let leaving = pods::terminating(pod);
        let homeless = match node_of(pod) {
            Some(node) => match known.get(&Key::new("", node)) {
                Some(node) => leaving && out_of_service(&node),
                None => true,
            },
            None => leaving,
        };
        if homeless || pods::finished(pod) {
            wakes.wake(key_of(&**pod));
        }
    });
    let (wakes, known) = (queue.clone(), pods.clone());
    let there = nodes.clone();
    nodes.listen(move |node| {
        if there.get(&key_of(&**node)).is_some_and(|node| !out_of_service(&node)) {
            return;
        }
        for (key, pod) in &known.snapshot() {
            if node_of(pod) == node.metadata.name.as_deref() {
                wakes.wake(key.clone());
            }
        }
    });
    let synced = (pods.clone(), nodes.clone());
    let controller = PodGarbage::new(door.clone(), pods, nodes, parts.clock);
    spawn(tasks, parts.clock, &queue, controller, async move {
        synced.0.synced().await;
        synced.1.synced().await;
    });
}

fn nodes(parts: &Parts, door: &Door, tasks: &Tasks) {
    let caches = &parts.caches;
    let seen = nodelifecycle::Seen {
        ours: parts.node.clone(),
        nodes: caches.of(),
        leases: caches.of(),
        pods: caches.of(),
    };
    let queue = Queue::new();
    wake_itself(&seen.nodes, &queue);
    let wakes = queue.clone();
    seen.leases.listen(move |lease| {
        let key = key_of(&**lease);
        if key.namespace == nodelifecycle::LEASES {
            wakes.wake(Key::new("", key.name));
        }
    });
    let (wakes, known) = (queue.clone(), seen.nodes.clone());
    seen.pods.listen(move |pod| {
        let node = node_of(pod).map(|node| Key::new("", node));
        if let Some(node) = node.filter(|node| known.get(node).is_some_and(|node| is_out(&node))) {
            wakes.wake(node);
        }
    });
    let controller = NodeLifecycle::new(door.clone(), seen.clone(), parts.clock);
    spawn(tasks, parts.clock, &queue, controller, seen.synced());
}

fn taints(parts: &Parts, door: &Door, tasks: &Tasks) {
    let (pods, nodes) = (parts.caches.of::<Pod>(), parts.caches.of::<Node>());
    let queue = Queue::new();
    let (wakes, known) = (queue.clone(), nodes.clone());
    pods.listen(move |pod| {
        let node = node_of(pod).and_then(|node| known.get(&Key::new("", node)));
        if node.is_some_and(|node| !no_execute(&node).is_empty()) {
            wakes.wake(key_of(&**pod));
        }
    });
    let (wakes, known, there) = (queue.clone(), pods.clone(), nodes.clone());
    let mut tainted = BTreeMap::new();
    nodes.listen(move |node| {
        let key = key_of(&**node);
        let now = there.get(&key).map(|node| no_execute(&node)).filter(|taints| !taints.is_empty());
        let before = match now.clone() {
            Some(taints) => tainted.insert(key.clone(), taints),
            None => tainted.remove(&key),
        };
        if before == now {
            return;
        }
        for (pod, on) in &known.snapshot() {
            if node_of(on) == Some(&key.name) {
                wakes.wake(pod.clone());
            }
        }
    });
    let synced = (pods.clone(), nodes.clone());
    let controller = TaintEviction::new(door.clone(), pods, nodes, parts.clock);
    spawn(tasks, parts.clock, &queue, controller, async move {
        synced.0.synced().await;
        synced.1.synced().await;
    });
}

fn scalers(parts: &Parts, door: &Door, tasks: &Tasks) {
    let scalers = parts.caches.of::<HorizontalPodAutoscaler>();
    let (pods, queue) = (parts.caches.of::<Pod>(), Queue::new());
    wake_itself(&scalers, &queue);
    let synced = (scalers.clone(), pods.clone());
    spawn(tasks, parts.clock, &queue, Scalers::new(door.clone(), scalers, pods), async move {
        synced.0.synced().await;
        synced.1.synced().await;
    });
}

fn events(parts: &Parts, door: &Door, tasks: &Tasks) {
    let queue = Queue::new();
    queue.wake(All);
    spawn(tasks, parts.clock, &queue, EventTtl(door.clone()), async {});
}

fn certificates(parts: &Parts, door: &Door, tasks: &Tasks) {
    let (requests, queue) = (parts.caches.of::<CertificateSigningRequest>(), Queue::new());
    wake_itself(&requests, &queue);
    let synced = requests.clone();
    let controller = Certificates::new(door.clone(), requests, Arc::clone(&parts.signer));
    spawn(tasks, parts.clock, &queue, controller, async move { synced.synced().await });
}
