//! The scheduler against the real API server over a store in memory, with a door that refuses writes and loses answers.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Head, Server, User};
use client::faults::{Faults, Faulty};
use client::{Cache, Caches, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use reconcile::Tasks;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const HARD: Faults = Faults { refuse_every: 7, lose_every: 5 };
const NONE: Faults = Faults { refuse_every: 0, lose_every: 0 };
const PATIENCE: Duration = Duration::from_secs(40);

struct World {
    server: Server,
    client: kube::Client,
    nodes: Api<Node>,
    pods: Api<Pod>,
    events: Api<Event>,
    seen: Cache<Pod>,
    faults: Faults,
    tasks: Tasks,
}

impl World {
    async fn new(faults: Faults) -> World {
        let disk = Box::new(store::memory_disk::MemoryDisk::default());
        let store = store::Store::open(disk, Head::parse, &store::Config::default());
        let store = store.unwrap_or_else(|error| panic!("{error}"));
        let config = apiserver::Config::default();
        let server = Server::open(store, &config, Arc::new(Timestamp::now)).await.unwrap();
        let client = client::door(server.door(User::room("test")));
        let mut world = World {
            server,
            client: client.clone(),
            nodes: Api::all(client.clone()),
            pods: Api::namespaced(client.clone(), "default"),
            events: Api::namespaced(client.clone(), "default"),
            seen: Caches::new(client, CancellationToken::new()).of(),
            faults,
            tasks: Tasks::new(),
        };
        world.restart().await;
        world
    }

    /// Ends the scheduler wherever it is and starts a new one with empty books.
    async fn restart(&mut self) {
        self.tasks.stop(Duration::from_millis(200)).await;
        self.tasks = Tasks::new();
        let door = Faulty::new(self.server.door(User::room("scheduler")), self.faults);
        let caches = Caches::new(client::door(door), CancellationToken::new());
        crate::start(&caches, &self.tasks, Clock::Wall, &crate::Config::default());
    }

    async fn node(&self, name: &str, cpu: &str) {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "200"}}});
        self.nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn labelled(&self, name: &str, label: &str, value: &str, spec: Value) {
        let mut pod = json!({"metadata": {"name": name, "labels": {label: value}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}});
        spec.as_object().unwrap().iter().for_each(|(key, value)| pod["spec"][key] = value.clone());
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    async fn pod(&self, name: &str, cpu: &str, spec: Value) {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}}]},
        });
        spec.as_object().unwrap().iter().for_each(|(key, value)| pod["spec"][key] = value.clone());
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// Waits until the pods are as wanted; woken by each change, never by a timer.
    async fn until(&self, what: &str, holds: impl Fn(&[Arc<Pod>]) -> bool) {
        let changed = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&changed);
        self.seen.listen(move |_| told.notify_one());
        let wait = async {
            while !holds(&self.seen.snapshot().values().cloned().collect::<Vec<_>>()) {
                changed.notified().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("{what} did not come to be; there is {:?}", self.seen.snapshot());
        }
    }

    /// Returns when nothing was written for a while.
    async fn quiet(&self) {
        let mut last = 0;
        while self.server.revision() != last {
            last = self.server.revision();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn unschedulable(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    scheduled.message.as_deref().filter(|_| scheduled.reason.as_deref() == Some("Unschedulable"))
}

fn bound(count: usize) -> impl Fn(&[Arc<Pod>]) -> bool {
    move |pods| pods.iter().filter(|pod| node_of(pod).is_some()).count() == count
}

#[tokio::test]
async fn no_node_is_booked_twice_whatever_fails() {
    let mut world = World::new(HARD).await;
    for name in ["n1", "n2", "n3"] {
        world.node(name, "1").await;
    }
    // Each node has room for ten of these: thirty fit, five do not.
    for n in 0..35 {
        world.pod(&format!("p-{n:02}"), "100m", json!({})).await;
        if n % 12 == 5 {
            world.restart().await;
        }
    }
    world
        .until("30 bound pods, 5 waiting", |pods| {
            bound(30)(pods) && pods.iter().filter(|pod| unschedulable(pod).is_some()).count() == 5
        })
        .await;
    world.quiet().await;
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for pod in world.pods.list(&Default::default()).await.unwrap() {
        *on.entry(node_of(&pod).unwrap_or("none").to_owned()).or_default() += 1;
    }
    let even = |name: &str| (name.to_owned(), 10);
    assert_eq!(on, BTreeMap::from([even("n1"), even("n2"), even("n3"), ("none".to_owned(), 5)]));
}

#[tokio::test]
async fn a_waiting_pod_is_placed_when_another_leaves_or_a_node_changes() {
    let world = World::new(HARD).await;
    world.pod("first", "800m", json!({})).await;
    let says = |text: &'static str| {
        move |pods: &[Arc<Pod>]| {
            pods.iter().any(|pod| unschedulable(pod).is_some_and(|message| message.starts_with(text)))
        }
    };
    world.until("no node", says("no nodes available to schedule pods")).await;
    world.node("n1", "1").await;
    world.until("first", bound(1)).await;
    world.pod("second", "800m", json!({})).await;
    world.until("second waits", says("0/1 nodes are available: 1 Insufficient cpu.")).await;
    world.pods.delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    world.until("second", |pods| pods.len() == 1 && bound(1)(pods)).await;
    world.pod("third", "100m", json!({"nodeSelector": {"disk": "ssd"}})).await;
    world
        .until(
            "third waits",
            says("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        )
        .await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    world.nodes.patch("n1", &PatchParams::default(), &label).await.unwrap();
    world.until("third", bound(2)).await;
    world.quiet().await;
}

#[tokio::test]
async fn events_say_where_a_pod_went_and_why_it_could_not() {
    let world = World::new(NONE).await;
    world.node("n1", "1").await;
    world.pod("small", "100m", json!({})).await;
    world.pod("large", "64", json!({})).await;
    world.until("both", |pods| bound(1)(pods) && pods.iter().any(|pod| unschedulable(pod).is_some())).await;
    world.quiet().await;
    let events = world.events.list(&Default::default()).await.unwrap();
    let told: BTreeMap<String, String> =
        events.into_iter().map(|event| (event.reason.unwrap(), event.message.unwrap())).collect();
    assert_eq!(told["Scheduled"], "Successfully assigned default/small to n1");
    assert!(told["FailedScheduling"].starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{told:?}");
}

#[tokio::test]
async fn pods_of_other_schedulers_and_gated_pods_are_left_alone() {
    let world = World::new(NONE).await;
    world.node("n1", "1").await;
    world.pod("other", "100m", json!({"schedulerName": "mine"})).await;
    world.pod("gated", "100m", json!({"schedulingGates": [{"name": "example.com/wait"}]})).await;
    world.pod("plain", "100m", json!({})).await;
    world.until("plain", bound(1)).await;
    world.quiet().await;
    assert!(bound(1)(&world.seen.snapshot().values().cloned().collect::<Vec<_>>()));
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    world.pods.patch("gated", &PatchParams::default(), &open).await.unwrap();
    world.until("gated", bound(2)).await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_room_of_a_less_important_one() {
    let mut world = World::new(HARD).await;
    world.node("n1", "1").await;
    world.node("n2", "1").await;
    for (name, value) in [("low", 1), ("later", 10), ("mid", 50), ("high", 100)] {
        let class = json!({"metadata": {"name": name}, "value": value});
        let class: PriorityClass = serde_json::from_value(class).unwrap();
        Api::all(world.client.clone()).create(&PostParams::default(), &class).await.unwrap();
    }
    world.pod("low", "800m", json!({"priorityClassName": "low"})).await;
    world.pod("mid", "800m", json!({"priorityClassName": "mid"})).await;
    world.until("both", bound(2)).await;
    let grace = json!({"priorityClassName": "high", "terminationGracePeriodSeconds": 0});
    world.pod("high", "500m", grace).await;
    let promised = |pods: &[Arc<Pod>]| {
        pods.iter().any(|pod| {
            pod.metadata.name.as_deref() == Some("high")
                && pod.status.as_ref().is_some_and(|status| status.nominated_node_name.is_some())
        })
    };
    let leaving = |pods: &[Arc<Pod>]| pods.iter().any(|pod| pod.metadata.deletion_timestamp.is_some());
    world.until("high is promised a node", promised).await;
    world.until("low is on its way out", leaving).await;
    world.restart().await;
    // What comes later and matters less does not get what others left for it.
    world.pod("later", "100m", json!({"priorityClassName": "later"})).await;
    let low = world.pods.get("low").await.unwrap();
    let told = low.status.unwrap().conditions.unwrap();
    let target = told.iter().find(|one| one.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("PreemptionByScheduler"));
    world.pods.delete("low", &DeleteParams::default().grace_period(0)).await.unwrap();
    world
        .until("high", |pods| {
            pods.iter().any(|pod| pod.metadata.name.as_deref() == Some("high") && node_of(pod).is_some())
        })
        .await;
    world.until("all", bound(3)).await;
    world.quiet().await;
    let mid = world.pods.get("mid").await.unwrap();
    assert!(mid.metadata.deletion_timestamp.is_none(), "one victim was enough");
    let events = world.events.list(&Default::default()).await.unwrap();
    let told = events.iter().find(|event| event.reason.as_deref() == Some("Preempted")).unwrap();
    let message = told.message.clone().unwrap();
    assert!(message.starts_with("Preempted by pod ") && message.contains(" on node n"), "{message}");
    assert_eq!(told.involved_object.name.as_deref(), Some("low"));
}

/// The promises of affinity hold at every moment, not only at the end.
#[tokio::test]
async fn pods_that_must_not_be_together_never_are_while_calls_fail_and_the_scheduler_restarts() {
    let mut world = World::new(HARD).await;
    for n in 0..20 {
        world.node(&format!("n{n}"), "2").await;
    }
    let broken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (count, seen) = (Arc::clone(&broken), world.seen.clone());
    world.seen.listen(move |_| {
        let mut on: BTreeMap<String, usize> = BTreeMap::new();
        for pod in seen.snapshot().values() {
            if let Some(node) = node_of(pod) {
                *on.entry(node.to_owned()).or_default() += 1;
            }
        }
        count.fetch_max(on.values().copied().max().unwrap_or(0), std::sync::atomic::Ordering::Relaxed);
    });
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "name", "labelSelector": {"matchLabels": {"app": "one-each"}}}]}}});
    for n in 0..20 {
        let label = Patch::Merge(json!({"metadata": {"labels": {"name": format!("n{n}")}}}));
        world.nodes.patch(&format!("n{n}"), &PatchParams::default(), &label).await.unwrap();
    }
    for n in 0..25 {
        world.labelled(&format!("p{n:02}"), "app", "one-each", apart.clone()).await;
        if n % 10 == 5 {
            world.restart().await;
        }
    }
    world.until("one per node", bound(20)).await;
    world
        .until("the others say why", |pods| {
            let says = |pod: &&Arc<Pod>| {
                unschedulable(pod)
                    .is_some_and(|text| text.contains("20 node(s) didn't match pod anti-affinity rules"))
            };
            pods.iter().filter(says).count() == 5
        })
        .await;
    // One leaves, one comes; and it costs nothing but that.
    let gone = world.seen.snapshot().values().find(|pod| node_of(pod).is_some()).cloned().unwrap();
    world
        .pods
        .delete(gone.metadata.name.as_deref().unwrap(), &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    world.until("again one per node", |pods| pods.len() == 24 && bound(20)(pods)).await;
    world.quiet().await;
    assert_eq!(broken.load(std::sync::atomic::Ordering::Relaxed), 1, "pods on one node at most");
}

#[tokio::test]
async fn a_pod_waits_for_its_volume_and_for_whom_it_wants_to_be_beside() {
    let world = World::new(HARD).await;
    world.node("n1", "1").await;
    let mounts = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    world.pod("a", "100m", mounts).await;
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "name", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    world.pod("b", "100m", near).await;
    let says = |text: &'static str| {
        move |pods: &[Arc<Pod>]| {
            pods.iter().any(|pod| unschedulable(pod).is_some_and(|told| told.contains(text)))
        }
    };
    world.until("a waits", says("persistentvolumeclaim \"data\" not found")).await;
    world.until("b waits", says("node(s) didn't match pod affinity rules")).await;
    world.quiet().await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"name": "n1"}}}));
    world.nodes.patch("n1", &PatchParams::default(), &label).await.unwrap();
    world.labelled("db", "app", "db", json!({})).await;
    world.until("b and the database", bound(2)).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), "default");
    let claim = serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "late", "resources": {"requests": {"storage": "1Gi"}}}}));
    let claim: PersistentVolumeClaim = claim.unwrap();
    let late = serde_json::from_value(json!({"metadata": {"name": "late"}, "provisioner": "example.com/p",
        "volumeBindingMode": "WaitForFirstConsumer"}));
    let late: StorageClass = late.unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &late).await.unwrap();
    claims.create(&PostParams::default(), &claim).await.unwrap();
    // The claim is told the node; the pod waits until there is a volume.
    let selected = async {
        loop {
            let live = claims.get("data").await.unwrap();
            if live.metadata.annotations.is_some_and(|all| all["volume.kubernetes.io/selected-node"] == "n1")
            {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, selected).await.expect("the claim is told the node");
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "v1"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "late", "capacity": {"storage": "1Gi"},
        "hostPath": {"path": "/x"}}}))
    .unwrap();
    Api::all(world.client.clone()).create(&PostParams::default(), &volume).await.unwrap();
    let done = Patch::Merge(json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v1"}}));
    claims.patch("data", &PatchParams::default(), &done).await.unwrap();
    world.until("a", bound(3)).await;
    world.quiet().await;
}

/// Not a figure to hold anyone to, but a burst that takes a second has lost its one round.
#[tokio::test]
async fn a_burst_of_pods_is_placed_in_few_rounds() {
    let world = World::new(NONE).await;
    world.node("n1", "64").await;
    for n in 0..100 {
        world.pod(&format!("p-{n}"), "100m", json!({"nodeSelector": {"ready": "yes"}})).await;
    }
    world
        .until("100 waiting", |pods| pods.iter().filter(|pod| unschedulable(pod).is_some()).count() == 100)
        .await;
    world.quiet().await;
    let begin = Instant::now();
    let label = Patch::Merge(json!({"metadata": {"labels": {"ready": "yes"}}}));
    world.nodes.patch("n1", &PatchParams::default(), &label).await.unwrap();
    world.until("100 bound", bound(100)).await;
    println!("100 pods bound in {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
}
