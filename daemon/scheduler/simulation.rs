//! The scheduler against the real API server over a store in memory, with a door that refuses writes and loses answers.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Head, Server, User};
use client::faults::{Faults, Faulty};
use client::{Cache, Caches, Clock};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use reconcile::Tasks;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const HARD: Faults = Faults { refuse_every: 7, lose_every: 5 };
const NONE: Faults = Faults { refuse_every: 0, lose_every: 0 };
const PATIENCE: Duration = Duration::from_secs(40);

struct World {
    server: Server,
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
        crate::start(&caches, &self.tasks, Clock::Wall);
    }

    async fn node(&self, name: &str, cpu: &str) {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "200"}}});
        self.nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
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
