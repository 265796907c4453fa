//! Controllers and scheduler over the real API server and its disk, on simulated nodes; `cargo bench -p workloads`.
//!
//! One process holds all of it, the simulated kubelets too; processor time and memory are that process's. What a cluster
//! held is not given back: memory counts for the first line of a run, so name one group (`-- deployment`).

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apiserver::{Head, Server, User};
use client::{Cache, Caches, Clock, Object};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use reconcile::Tasks;
use serde_json::{Value, json};
use store::fjall_disk::FjallDisk;
use tokio::sync::Notify;

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Done {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{:<52} {:>10} {:>12} {:>9}", "figure", "seconds", "CPU ms each", "RSS MiB");
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    threads.block_on(async {
        if is_wanted("deployment") {
            for replicas in [100, 1_000, 10_000] {
                deployment(replicas).await?;
            }
        }
        if is_wanted("many") {
            many(1_000).await?;
        }
        if is_wanted("placing") {
            for nodes in [1, 100, 5_000] {
                for near in [false, true] {
                    placing(nodes, 5_000, near).await?;
                }
            }
        }
        if is_wanted("latency") {
            latency(300).await?;
        }
        Ok(())
    })
}

/// A cluster of its own.
struct World {
    client: Client,
    caches: Caches,
    controllers: Tasks,
    scheduler: Tasks,
    _disk: tempfile::TempDir,
}

impl World {
    async fn new(nodes: usize) -> Done<World> {
        let disk = tempfile::tempdir()?;
        let store = store::Store::open(
            Box::new(FjallDisk::open(&disk.path().join("store"))?),
            Head::parse,
            &store::Config::default(),
        )
        .map_err(|error| error.to_string())?;
        let server = Server::open(store, &apiserver::Config::default(), Clock::Wall.teller()).await?;
        let client = client::door(server.door(User::room("bench")));
        workloads::nodes(&client, nodes).await?;
        let controllers = Tasks::new();
        // As in the node: one set of caches for all rooms.
        let caches = Caches::new(client.clone(), controllers.token());
        let parts = controllers::cluster::Parts {
            caches: caches.clone(),
            clock: Clock::Wall,
            node: "none".to_owned(),
            volumes: disk.path().join("volumes"),
            listening: Arc::new(BTreeSet::new),
            signer: Arc::new(|_| Err("nothing is signed here".to_owned())),
            root_ca: "none".into(),
        };
        controllers::cluster::start(&parts, &controllers);
        controllers::start(&caches, &controllers, Clock::Wall);
        workloads::kubelets(&client, &caches.of(), Clock::Wall);
        let world = World { client, caches, controllers, scheduler: Tasks::new(), _disk: disk };
        world.caches.of::<Pod>().synced().await;
        Ok(world)
    }

    fn schedule(&self) {
        scheduler::start(&self.caches, &self.scheduler, Clock::Wall, &scheduler::Config::default());
    }

    async fn end(&self) {
        self.scheduler.stop(Duration::from_secs(5)).await;
        self.controllers.stop(Duration::from_secs(5)).await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Waits until what a change adds up to is this.
    async fn until<K>(&self, count: usize, counts: impl Fn(&K) -> bool) -> Done
    where
        K: Object + Resource<DynamicType = ()>,
    {
        let cache: Cache<K> = self.caches.of();
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        cache.listen(move |_| told.notify_one());
        let wait = async {
            while cache.snapshot().values().filter(|object| counts(object)).count() != count {
                changed.notified().await;
                // Counting is not what is measured.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, wait).await?)
    }
}

/// What something took, for so many objects.
struct Took {
    begin: Instant,
    cpu: Duration,
}

impl Took {
    fn begin() -> Took {
        Took { begin: Instant::now(), cpu: cpu() }
    }

    fn told(self, name: &str, each: usize) {
        let span = self.begin.elapsed().as_secs_f64();
        let cpu = (cpu() - self.cpu).as_secs_f64() * 1e3 / each as f64;
        println!("{name:<52} {span:>10.3} {cpu:>12.3} {:>9.1}", resident());
    }
}

/// What this process has used of the processors, from `/proc`: in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn set(kind: &str, name: &str, replicas: usize, affinity: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"affinity": affinity, "containers": [{"name": "c", "image": "web:1",
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]},
            },
        },
    })
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

fn rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == Some(replicas)
        && status.replicas == Some(replicas)
        && status.available_replicas == Some(replicas)
}

/// One Deployment: made, rolled, deleted.
async fn deployment(replicas: usize) -> Done {
    let world = World::new(100).await?;
    world.schedule();
    let wanted = i32::try_from(replicas)?;
    let (api, web) = (world.api::<Deployment>(), set("Deployment", "web", replicas, &Value::Null));
    let took = Took::begin();
    api.create(&PostParams::default(), &serde_json::from_value(web)?).await?;
    world.until(replicas, is_bound).await?;
    took.told(&format!("1 Deployment of {replicas}: all pods bound"), replicas);
    let took = Took::begin();
    world.until(1, |one: &Deployment| rolled_out(one, wanted)).await?;
    took.told(&format!("1 Deployment of {replicas}: and then all available"), replicas);
    if replicas <= 1_000 {
        let took = Took::begin();
        let newer =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "web:2"}]}}}});
        api.patch("web", &PatchParams::default(), &Patch::Strategic(newer)).await?;
        world
            .until(1, |one: &Deployment| one.metadata.generation == Some(2) && rolled_out(one, wanted))
            .await?;
        took.told(&format!("1 Deployment of {replicas}: rolling update"), replicas);
        world.until(replicas, |_: &Pod| true).await?;
    }
    let took = Took::begin();
    api.delete("web", &DeleteParams::background()).await?;
    world.until(0, |_: &Pod| true).await?;
    took.told(&format!("1 Deployment of {replicas}: deleted, all pods gone"), replicas);
    world.end().await;
    Ok(())
}

/// Many Deployments of one pod each.
async fn many(count: usize) -> Done {
    let world = World::new(100).await?;
    world.schedule();
    let took = Took::begin();
    for at in 0..count {
        let one = set("Deployment", &format!("web-{at:04}"), 1, &Value::Null);
        world.api::<Deployment>().create(&PostParams::default(), &serde_json::from_value(one)?).await?;
    }
    world.until(count, is_bound).await?;
    took.told(&format!("{count} Deployments of 1: all pods bound"), count);
    world.end().await;
    Ok(())
}

/// Pods that wait already when the scheduler starts.
async fn placing(nodes: usize, pods: usize, near: bool) -> Done {
    let world = World::new(nodes).await?;
    let term = json!({"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": "web"}}});
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let affinity = if near { affinity } else { Value::Null };
    let web = set("ReplicaSet", "web", pods, &affinity);
    world.api::<ReplicaSet>().create(&PostParams::default(), &serde_json::from_value(web)?).await?;
    world.until(pods, |_: &Pod| true).await?;
    // What they started is over.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let took = Took::begin();
    world.schedule();
    world.until(pods, is_bound).await?;
    let rate = pods as f64 / took.begin.elapsed().as_secs_f64();
    let how = if near { "with pod affinity" } else { "plain" };
    took.told(&format!("{pods} pods onto {nodes} nodes, {how}: {rate:.0}/s"), pods);
    world.end().await;
    Ok(())
}

/// From one change to the next object written: a set that asks for one pod more, and a pod that asks for a node.
async fn latency(count: usize) -> Done {
    let world = World::new(10).await?;
    world.schedule();
    let web = set("ReplicaSet", "web", 0, &Value::Null);
    world.api::<ReplicaSet>().create(&PostParams::default(), &serde_json::from_value(web)?).await?;
    let seen: Arc<Mutex<(Option<Instant>, Option<Instant>)>> = Arc::default();
    let (heard, arrived) = (Arc::clone(&seen), Arc::new(Notify::new()));
    let told = Arc::clone(&arrived);
    world.caches.of::<Pod>().listen(move |pod| {
        let now = Instant::now();
        let mut times = heard.lock().expect("nobody panics with it");
        if times.0.is_none() {
            times.0 = Some(now);
        }
        if is_bound(pod) && times.1.is_none() {
            times.1 = Some(now);
            told.notify_one();
        }
    });
    let (mut made, mut bound) = (Vec::new(), Vec::new());
    for at in 1..=count {
        world
            .until(at - 1, |pod: &Pod| {
                pod.status.as_ref().is_some_and(|one| one.phase.as_deref() == Some("Running"))
            })
            .await?;
        // The counts of the one before are written.
        tokio::time::sleep(Duration::from_millis(20)).await;
        *seen.lock().expect("nobody panics with it") = (None, None);
        let more = json!({"spec": {"replicas": at}});
        let begin = Instant::now();
        world.api::<ReplicaSet>().patch("web", &PatchParams::default(), &Patch::Merge(more)).await?;
        tokio::time::timeout(PATIENCE, arrived.notified()).await?;
        if let (Some(first), Some(then)) = *seen.lock().expect("nobody panics with it") {
            made.push(first.duration_since(begin).as_secs_f64() * 1e3);
            bound.push(then.duration_since(first).as_secs_f64() * 1e3);
        }
    }
    for (name, mut spans) in
        [("set asked for one more, to its pod seen", made), ("pod seen to pod seen bound", bound)]
    {
        spans.sort_by(f64::total_cmp);
        let rank = |share: usize| spans[(spans.len() * share / 100).min(spans.len() - 1)];
        println!("{name}: median {:.2} ms, p99 {:.2} ms", rank(50), rank(99));
    }
    world.end().await;
    Ok(())
}
