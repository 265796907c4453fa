//! The controllers against the real API server over a store in memory, with a door that refuses writes and loses
//! answers, caches that come late and restarts in between. A small kubelet plays the node.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

mod cluster;
mod workloads;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::{Head, Server, User};
use client::faults::{Faults, Faulty};
use client::{Cache, Caches, Clock, Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use reconcile::Tasks;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::pods;

const HARD: Faults = Faults { refuse_every: 7, lose_every: 5 };
/// What the API server is known by.
const CERTIFICATE: &str = "a certificate";
const NONE: Faults = Faults { refuse_every: 0, lose_every: 0 };
/// Everything here is done in well under a second; a test that needs this long does not converge.
const PATIENCE: Duration = Duration::from_secs(40);
/// Under a paused clock time leaps whenever only the store's thread is at work, so there the wait is longer than
/// anything that is waited for.
const PAUSED_PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

struct World {
    server: Server,
    client: Client,
    seen: Caches,
    stop: CancellationToken,
    faults: Faults,
    clock: Clock,
    tasks: Tasks,
    volumes: tempfile::TempDir,
}

impl World {
    async fn new(faults: Faults) -> World {
        World::at(Clock::Wall, faults).await
    }

    async fn at(clock: Clock, faults: Faults) -> World {
        let disk = Box::new(store::memory_disk::MemoryDisk::default());
        let store = store::Store::open(disk, Head::parse, &store::Config::default());
        let store = store.unwrap_or_else(|error| panic!("{error}"));
        let config = apiserver::Config::default();
        let server = Server::open(store, &config, clock.teller()).await.unwrap();
        let client = client::door(server.door(User::room("test")));
        let n1 = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &n1).await.unwrap();
        let stop = CancellationToken::new();
        let seen = Caches::new(client.clone(), stop.clone());
        kubelet(&client, &seen, clock);
        let volumes = tempfile::tempdir().unwrap();
        let mut world = World { server, client, seen, stop, faults, clock, tasks: Tasks::new(), volumes };
        world.restart().await;
        world
    }

    /// Ends the controllers wherever they are and starts new ones with empty caches.
    async fn restart(&mut self) {
        self.tasks.stop(Duration::from_millis(200)).await;
        self.tasks = Tasks::new();
        let door = Faulty::new(self.server.door(User::room("controllers")), self.faults);
        let caches = Caches::new(client::door(door), self.stop.clone());
        crate::start(&caches, &self.tasks, self.clock);
        let parts = crate::cluster::Parts {
            caches,
            clock: self.clock,
            node: "n1".to_owned(),
            volumes: self.volumes.path().to_owned(),
            listening: Arc::new(|| BTreeSet::from([("TCP".to_owned(), 22)])),
            signer: Arc::new(|asked| match asked.request.as_str() {
                "good" => Ok(CERTIFICATE.to_owned()),
                _ => Err("it is not good".to_owned()),
            }),
            root_ca: CERTIFICATE.into(),
        };
        crate::cluster::start(&parts, &self.tasks);
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create<K>(&self, object: Value)
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>(&namespace).create(&PostParams::default(), &object).await.unwrap();
    }

    /// Waits until a cache holds what is wanted; woken by each change, never by a timer.
    async fn until<K>(&self, what: &str, holds: impl Fn(&[Arc<K>]) -> bool + Send + Sync + 'static)
    where
        K: client::Object + Resource<DynamicType = ()>,
    {
        let cache: Cache<K> = self.seen.of();
        cache.synced().await;
        let changed = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&changed);
        cache.listen(move |_| told.notify_one());
        let wait = async {
            while !holds(&cache.snapshot().values().cloned().collect::<Vec<_>>()) {
                changed.notified().await;
            }
        };
        let patience = if matches!(self.clock, Clock::Wall) { PATIENCE } else { PAUSED_PATIENCE };
        if tokio::time::timeout(patience, wait).await.is_err() {
            let pods = self.dump::<Pod>().await;
            panic!("{what} did not come to be; there is {}\nand pods {pods}", self.dump::<K>().await);
        }
    }

    async fn dump<K: client::Object + Resource<DynamicType = ()>>(&self) -> String {
        self.seen.of::<K>().snapshot().values().map(|object| format!("\n{object:?}")).collect()
    }

    /// Returns when nothing was written for a while: a controller that is content writes nothing.
    async fn quiet(&self) {
        let wait = async {
            let mut last = 0;
            loop {
                let now = self.server.revision();
                if now == last {
                    return;
                }
                last = now;
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the controllers never stop writing");
    }
}

/// Runs pods: ready soon after they are there; `exit-0` and `exit-1` end; what is deleted goes soon.
fn kubelet(client: &Client, seen: &Caches, clock: Clock) {
    let pods: Cache<Pod> = seen.of();
    let (wakes, mut woken) = tokio::sync::mpsc::unbounded_channel();
    pods.listen(move |pod| {
        let _ = wakes.send(key_of(&**pod));
    });
    let client = client.clone();
    tokio::spawn(async move {
        // What it writes is not repeated when it is refused, so it must not be refused for being too much at once.
        let turns = Arc::new(tokio::sync::Semaphore::new(64));
        while let Some(key) = woken.recv().await {
            let turn = Arc::clone(&turns).acquire_owned().await;
            let round = run(client.clone(), pods.clone(), key, clock);
            tokio::spawn(async move {
                round.await;
                drop(turn);
            });
        }
    });
}

async fn run(client: Client, pods: Cache<Pod>, key: Key, clock: Clock) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let Some(pod) = pods.get(&key) else { return };
    let status = |status: Value| {
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        let (api, name) = (api.clone(), key.name.clone());
        // A refusal means that the pod changed meanwhile, and then there is another wake.
        async move { drop(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await) }
    };
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
    let now = || clock.now().to_string();
    let ended = |phase: &str, code: i32| {
        json!({"phase": phase, "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()}],
            "containerStatuses": [{"name": "c", "image": image, "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "finishedAt": now()}}}]})
    };
    if pods::terminating(&pod) {
        tokio::time::sleep(Duration::from_millis(15)).await;
        if !pods::finished(&pod) {
            status(ended("Failed", 143)).await;
        }
        drop(api.delete(&key.name, &DeleteParams::default().grace_period(0)).await);
    } else if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": key.name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": wanted_node(&pod)}});
        let path = format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name);
        let request = http::Request::post(path).header("content-type", "application/json");
        drop(client.request::<Value>(request.body(binding.to_string().into_bytes()).unwrap()).await);
    } else if pods::phase(&pod) == "Pending" {
        tokio::time::sleep(Duration::from_millis(10)).await;
        match image.as_str() {
            "exit-0" => status(ended("Succeeded", 0)).await,
            "exit-1" => status(ended("Failed", 1)).await,
            "never-ready" => status(json!({"phase": "Running"})).await,
            _ => {
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": now()}]);
                let ip = format!("10.1.0.{}", 1 + crate::names::hash(key.name.as_bytes()) % 250);
                let ips = json!([{"ip": ip}]);
                status(json!({"phase": "Running", "podIP": ip, "podIPs": ips, "conditions": ready})).await;
            }
        }
    }
}

/// The node that the pod names, as daemons do; the first one for others.
fn wanted_node(pod: &Pod) -> String {
    let spec = serde_json::to_value(&pod.spec).unwrap();
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let named = &required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0];
    named.as_str().unwrap_or("n1").to_owned()
}

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

fn job(completions: i32, image: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "work", "namespace": "default"},
        "spec": {
            "completions": completions,
            "parallelism": 4,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}},
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

/// As `kubectl rollout status` sees it.
fn rolled_out(deployment: &Deployment, image: &str) -> bool {
    let spec = deployment.spec.as_ref().unwrap();
    let status = deployment.status.clone().unwrap_or_default();
    spec.template.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image)
        && status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == spec.replicas
        && status.replicas == spec.replicas
        && status.available_replicas == spec.replicas
}

async fn set_image(world: &World, image: &str) {
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    let api = world.api::<Deployment>("default");
    api.patch("web", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
}

fn is_up(pod: &Pod) -> bool {
    pods::active(pod) && pods::ready(pod)
}

/// Watches the least pods that were up and the most that were there, from now on.
fn promise(world: &World) -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let pods: Cache<Pod> = world.seen.of();
    let (least, most) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicUsize::new(0)));
    let (seen, low, high) = (pods.clone(), Arc::clone(&least), Arc::clone(&most));
    pods.listen(move |_| {
        let snapshot = seen.snapshot();
        low.fetch_min(snapshot.values().filter(|pod| is_up(pod)).count(), Ordering::Relaxed);
        high.fetch_max(snapshot.values().filter(|pod| pods::active(pod)).count(), Ordering::Relaxed);
    });
    (least, most)
}

#[tokio::test]
async fn a_rollout_under_faults_keeps_its_promise_and_ends_converged() {
    let mut world = World::new(HARD).await;
    world.create::<Deployment>(deployment(8, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    world.until::<Pod>("8 pods", |all| all.iter().filter(|pod| is_up(pod)).count() == 8).await;
    let (least, most) = promise(&world);
    set_image(&world, "v2").await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        world.restart().await;
    }
    // A newer template overtakes the one that may still be rolling.
    set_image(&world, "v3").await;
    world.until::<Deployment>("v3", |all| all.iter().any(|one| rolled_out(one, "v3"))).await;
    world.quiet().await;
    let (least, most) = (least.load(Ordering::Relaxed), most.load(Ordering::Relaxed));
    assert!(least >= 6, "maxUnavailable 25 % of 8: 6 were promised, {least} were up");
    assert!(most <= 10, "maxSurge 25 % of 8: 10 were allowed, {most} were there");
    let sets = world.api::<ReplicaSet>("default").list(&Default::default()).await.unwrap();
    let sizes: BTreeSet<i32> = sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect();
    assert_eq!(sizes, BTreeSet::from([0, 8]));
}

#[tokio::test]
async fn a_template_that_never_gets_ready_takes_no_more_than_was_allowed() {
    let mut world = World::new(HARD).await;
    world.create::<Deployment>(deployment(4, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    let (least, _) = promise(&world);
    set_image(&world, "never-ready").await;
    world.quiet().await;
    world.restart().await;
    world.quiet().await;
    assert_eq!(least.load(Ordering::Relaxed), 3);
    set_image(&world, "v1").await;
    world.until::<Deployment>("v1 again", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    let back = world.api::<Deployment>("default").get("web").await.unwrap();
    assert_eq!(back.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "3");
    let sets = world.api::<ReplicaSet>("default").list(&Default::default()).await.unwrap();
    assert_eq!(sets.items.len(), 2, "the set of the template that was gone back to is used again");
}

#[tokio::test]
async fn pods_that_are_deleted_or_too_many_are_made_right_at_once() {
    let world = World::new(HARD).await;
    world.create::<Deployment>(deployment(3, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    let up = |count: usize| {
        move |all: &[Arc<Pod>]| all.iter().filter(|pod| is_up(pod)).count() == count && all.len() == count
    };
    world.until::<Pod>("3 pods", up(3)).await;
    let pods = world.api::<Pod>("default");
    let one = pods.list(&Default::default()).await.unwrap().items[0].metadata.clone();
    pods.delete(one.name.as_deref().unwrap(), &DeleteParams::default()).await.unwrap();
    let gone = one.uid.unwrap();
    world
        .until::<Pod>("another pod", move |all| {
            all.len() == 3 && all.iter().all(|pod| is_up(pod) && pods::uid(&pod.metadata) != gone)
        })
        .await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    world.api::<Deployment>("default").patch("web", &PatchParams::default(), &scale).await.unwrap();
    world.until::<Pod>("1 pod", up(1)).await;
    world.quiet().await;
}

#[tokio::test]
async fn every_success_of_a_job_is_counted_once() {
    let mut world = World::new(HARD).await;
    let made = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&made);
    world.seen.of::<Pod>().listen(move |pod| {
        seen.lock().unwrap().insert(pods::uid(&pod.metadata).to_owned());
    });
    world.create::<Job>(job(12, "exit-0", json!({}))).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        world.restart().await;
    }
    let complete = |all: &[Arc<Job>]| {
        let conditions = all.iter().filter_map(|job| job.status.as_ref()?.conditions.clone()).flatten();
        conditions.into_iter().any(|condition| condition.type_ == "Complete" && condition.status == "True")
    };
    world.until::<Job>("completion", complete).await;
    world.quiet().await;
    let status = world.api::<Job>("default").get("work").await.unwrap().status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(12), None, None));
    assert_eq!(made.lock().unwrap().len(), 12, "no pod more than was asked for");
    let pods = world.api::<Pod>("default").list(&Default::default()).await.unwrap();
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()), "a finished Job holds no pod");
}

#[tokio::test]
async fn an_indexed_job_completes_each_index() {
    let world = World::new(HARD).await;
    world.create::<Job>(job(6, "exit-0", json!({"completionMode": "Indexed"}))).await;
    let complete = |all: &[Arc<Job>]| {
        all.iter().any(|job| job.status.as_ref().is_some_and(|status| status.completion_time.is_some()))
    };
    world.until::<Job>("completion", complete).await;
    let status = world.api::<Job>("default").get("work").await.unwrap().status.unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0-5"), Some(6)));
}

#[tokio::test]
async fn a_job_that_fails_too_often_fails_with_all_its_pods_counted() {
    let world = World::new(HARD).await;
    world.create::<Job>(job(4, "exit-1", json!({"backoffLimit": 0}))).await;
    let failed = |all: &[Arc<Job>]| {
        let conditions = all.iter().filter_map(|job| job.status.as_ref()?.conditions.clone()).flatten();
        conditions.into_iter().any(|condition| condition.type_ == "Failed" && condition.status == "True")
    };
    world.until::<Job>("failure", failed).await;
    world.quiet().await;
    let status = world.api::<Job>("default").get("work").await.unwrap().status.unwrap();
    assert_eq!((status.failed, status.active), (Some(4), None));
    let pods = world.api::<Pod>("default").list(&Default::default()).await.unwrap();
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()));
}

#[tokio::test]
async fn a_service_lists_exactly_the_pods_that_are_up() {
    let world = World::new(HARD).await;
    world.create::<Deployment>(deployment(5, "v1")).await;
    world
        .create::<k8s_openapi::api::core::v1::Service>(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .await;
    let ready = |slices: &[Arc<EndpointSlice>]| {
        let all = slices.iter().filter(|slice| slice.metadata.name.as_deref().unwrap().starts_with("web"));
        let endpoints = all.flat_map(|slice| slice.endpoints.clone().unwrap_or_default());
        endpoints.filter(|one| one.conditions.as_ref().and_then(|all| all.ready) == Some(true)).count()
    };
    world.until::<EndpointSlice>("5 endpoints", move |all| ready(all) == 5).await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 2}}));
    world.api::<Deployment>("default").patch("web", &PatchParams::default(), &scale).await.unwrap();
    world.until::<EndpointSlice>("2 endpoints", move |all| ready(all) == 2).await;
    world
        .api::<k8s_openapi::api::core::v1::Service>("default")
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    world.until::<EndpointSlice>("no slice", |all| all.is_empty()).await;
}

async fn deleted(params: DeleteParams) -> World {
    let world = World::new(HARD).await;
    world.create::<Deployment>(deployment(3, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    world.api::<Deployment>("default").delete("web", &params).await.unwrap();
    world.until::<Deployment>("no deployment", |all| all.is_empty()).await;
    world
}

#[tokio::test]
async fn a_deleted_deployment_takes_everything_below_it_along() {
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        let world = deleted(params).await;
        world.until::<ReplicaSet>("no set", |all| all.is_empty()).await;
        world.until::<Pod>("no pod", |all| all.is_empty()).await;
        world.quiet().await;
    }
}

#[tokio::test]
async fn an_orphaned_set_stays_and_is_taken_by_the_next_deployment() {
    let world = deleted(DeleteParams::orphan()).await;
    world.quiet().await;
    let sets = world.api::<ReplicaSet>("default").list(&Default::default()).await.unwrap();
    assert!(sets.items[0].metadata.owner_references.is_none());
    world.create::<Deployment>(deployment(3, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    let after = world.api::<ReplicaSet>("default").list(&Default::default()).await.unwrap();
    let uids = |sets: &kube::core::ObjectList<ReplicaSet>| {
        sets.iter().map(|set| set.metadata.uid.clone()).collect::<Vec<_>>()
    };
    assert_eq!(uids(&after), uids(&sets));
}

#[tokio::test]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let world = World::new(HARD).await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let shop: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    let mut web = deployment(3, "v1");
    web["metadata"]["namespace"] = json!("shop");
    world.create::<Deployment>(web).await;
    world.create::<ConfigMap>(json!({"metadata": {"name": "c", "namespace": "shop"}})).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    world
        .until::<Namespace>("no shop", |all| {
            all.iter().all(|one| one.metadata.name.as_deref() != Some("shop"))
        })
        .await;
    world.until::<Pod>("no pod", |all| all.is_empty()).await;
    world.quiet().await;
}

#[tokio::test]
async fn without_faults_a_converged_cluster_is_left_alone() {
    let mut world = World::new(NONE).await;
    world.create::<Deployment>(deployment(3, "v1")).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    world.quiet().await;
    let before = world.server.revision();
    world.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.server.revision(), before, "a restart of the controllers wrote something");
}

fn paused() -> Clock {
    Clock::paused_at("2026-11-24T00:00:00Z".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_failing_job_waits_longer_after_each_failure() {
    let world = World::at(paused(), NONE).await;
    let mut work = job(1, "exit-1", json!({"backoffLimit": 4}));
    work["spec"]["parallelism"] = json!(1);
    world.create::<Job>(work).await;
    let failed = |all: &[Arc<Job>]| {
        let conditions = all.iter().filter_map(|job| job.status.as_ref()?.conditions.clone()).flatten();
        conditions.into_iter().any(|condition| condition.type_ == "Failed" && condition.status == "True")
    };
    world.until::<Job>("failure", failed).await;
    let pods = world.api::<Pod>("default").list(&Default::default()).await.unwrap();
    let mut made: Vec<Timestamp> =
        pods.iter().map(|pod| pod.metadata.creation_timestamp.as_ref().unwrap().0).collect();
    made.sort();
    let waits: Vec<i64> = made.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect();
    assert_eq!(waits.len(), 4);
    for (wait, least) in waits.iter().zip([10, 20, 40, 80]) {
        assert!(*wait >= least, "waited {waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_without_progress_is_late_after_its_deadline() {
    let world = World::at(paused(), NONE).await;
    let mut web = deployment(2, "never-ready");
    web["spec"]["progressDeadlineSeconds"] = json!(60);
    world.create::<Deployment>(web).await;
    let late = |all: &[Arc<Deployment>]| {
        let conditions = all.iter().filter_map(|one| one.status.as_ref()?.conditions.clone()).flatten();
        conditions.into_iter().any(|known| known.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    };
    world.until::<Deployment>("lateness", late).await;
    set_image(&world, "v1").await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_available_only_after_min_ready_seconds() {
    let world = World::at(paused(), NONE).await;
    let begin = world.clock.now();
    let mut web = deployment(2, "v1");
    web["spec"]["minReadySeconds"] = json!(120);
    world.create::<Deployment>(web).await;
    world.until::<Deployment>("v1", |all| all.iter().any(|one| rolled_out(one, "v1"))).await;
    assert!(world.clock.now().duration_since(begin).as_secs() >= 119);
}

#[tokio::test(start_paused = true)]
async fn a_finished_job_goes_after_its_time_to_live() {
    let world = World::at(paused(), NONE).await;
    world.create::<Job>(job(2, "exit-0", json!({"ttlSecondsAfterFinished": 300}))).await;
    let done = |all: &[Arc<Job>]| {
        all.iter().any(|job| job.status.as_ref().is_some_and(|s| s.completion_time.is_some()))
    };
    world.until::<Job>("completion", done).await;
    world.until::<Job>("no job", |all| all.is_empty()).await;
    world.until::<Pod>("no pod", |all| all.is_empty()).await;
}
