//! The API over HTTPS: creates, a long list, a watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::node::Node;
use crate::wire::{Api, block_on};
use crate::{Figure, millis, peers};

const SPAN: Duration = Duration::from_secs(3);
const RUNS: usize = 3;
const PODS: usize = 5000;
const EVENTS: usize = 300;

pub(crate) fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"text": "x".repeat(1000)},
    })
}

/// A pod that is never scheduled: what is measured is the API.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"schedulingGates": [{"name": "example.org/never"}], "containers": [{"name": "a", "image": "kubia:1"}]},
    })
}

pub(crate) fn measure() -> Vec<Figure> {
    let node = Node::empty();
    let mut figures = Vec::new();
    let mut etcd = peers::Etcd::start();
    for (clients, aim) in [(1, 2000.0), (16, 10_000.0)] {
        let runs: Vec<f64> = (0..RUNS).map(|run| block_on(creates(&node, clients, run))).collect();
        let peer = etcd
            .as_mut()
            .map(|etcd| ("etcd, put over its gateway".to_owned(), block_on(etcd.puts(clients, SPAN))));
        let name = format!("creates of 1 KB, {clients} client{}", if clients == 1 { "" } else { "s" });
        // More is better here: the peer's ratio says how much of ours it does.
        figures.push(Figure::new(name, "1/s", runs).aim(aim).peer(peer));
    }
    figures.push(Figure::new("watch: create to event, median", "ms", block_on(latency(&node))));
    // A node of its own: what the creates left is not part of these.
    drop(node);
    let node = Node::empty();
    block_on(fill(&node, PODS));
    let (plain, bytes) = block_on(lists(&node));
    figures.push(Figure::new(format!("list of {PODS} pods"), "ms", plain).aim(20.0));
    figures.push(Figure::new(format!("list of {PODS} pods, size"), "MB", vec![bytes]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = resident.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
    figures.push(Figure::new(format!("daemon resident with {PODS} pods"), "MiB", vec![kib / 1024.0]));
    figures
}

/// Creates per second.
pub(crate) async fn creates(node: &Node, clients: usize, run: usize) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let work = (0..clients).map(|client| {
        let (api, done) = (Api::another(node), done.clone());
        async move {
            let mut at = 0;
            while begin.elapsed() < SPAN {
                let name = format!("c-{clients}-{run}-{client}-{at}");
                api.create("/api/v1/namespaces/default/configmaps", &config_map(&name)).await;
                done.fetch_add(1, Ordering::Relaxed);
                at += 1;
            }
        }
    });
    join_all(work).await;
    rate(done.load(Ordering::Relaxed), begin.elapsed())
}

fn rate(count: usize, span: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / span.as_secs_f64()
}

async fn latency(node: &Node) -> Vec<f64> {
    let path = "/api/v1/namespaces/default/configmaps?labelSelector=app%3Dbench";
    let (api, mut watch) = (Api::another(node), Api::another(node).watch(path).await);
    let mut runs = Vec::new();
    for at in 0..EVENTS {
        let name = format!("watched-{at}");
        let object = config_map(&name);
        let begin = Instant::now();
        let (seen, ()) = tokio::join!(
            async {
                while watch.next().await["object"]["metadata"]["name"] != name.as_str() {}
                begin.elapsed()
            },
            api.create("/api/v1/namespaces/default/configmaps", &object),
        );
        runs.push(millis(seen));
    }
    runs
}

/// So many pods, made by sixteen clients.
pub(crate) async fn fill(node: &Node, pods: usize) {
    let work = (0..16).map(|client| {
        let api = Api::another(node);
        async move {
            for at in (client..pods).step_by(16) {
                api.create("/api/v1/namespaces/default/pods", &pod(&format!("p-{at}"))).await;
            }
        }
    });
    join_all(work).await;
}

pub(crate) async fn lists(node: &Node) -> (Vec<f64>, f64) {
    let api = Api::another(node);
    let (mut runs, mut bytes) = (Vec::new(), 0);
    for _ in 0..9 {
        let begin = Instant::now();
        let (code, body) = api.get("/api/v1/pods").await.unwrap();
        runs.push(millis(begin.elapsed()));
        assert_eq!(code, 200);
        bytes = body.len();
    }
    (runs, f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1e6)
}
