//! From a saved file to pods that are ready, and from an edit to what it asks for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::Node;
use crate::wire::{Api, Watch, block_on};
use crate::{Figure, millis, peers};

const COUNTS: [(usize, usize, f64); 3] = [(1, 9, 60.0), (20, 5, 300.0), (100, 3, 1500.0)];
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb";

fn deployment(replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers: [{{name: web, image: 'busybox:1', command: [sleep, '100000']}}]\n"
    )
}

fn config_map(value: usize) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: edited}}\ndata: {{value: '{value}'}}\n")
}

pub(crate) fn measure() -> Vec<Figure> {
    let node = Node::new();
    node.save("edited.yaml", &config_map(0));
    let mut node = node;
    node.up();
    node.load_busybox();
    node.good();
    let mut figures = Vec::new();
    for (count, runs, aim) in COUNTS {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let (made, gone) = block_on(round(&node, count));
            up.push(made);
            down.push(gone);
        }
        let peer = peers::podman(count);
        let pods = if count == 1 { "pod" } else { "pods" };
        let name = format!("{count} {pods}: save to all ready");
        figures.push(Figure::new(name, "ms", up).aim(aim).peer(peer.as_ref().map(|peer| peer.up.clone())));
        let name = format!("{count} {pods}: file deleted to all gone");
        figures.push(Figure::new(name, "ms", down).peer(peer.map(|peer| peer.down)));
    }
    figures.push(Figure::new("edit: save to live value", "ms", block_on(edits(&node))));
    figures.push(Figure::new("edit: 3 to 5 replicas, save to ready", "ms", block_on(scales(&node))));
    figures
}

/// Follows pods until so many are ready, or, for none, until all are gone.
async fn reach(watch: &mut Watch, count: usize, known: &mut BTreeSet<String>, ready: &mut BTreeSet<String>) {
    while !(ready.len() == count && (count > 0 || known.is_empty())) {
        let next = tokio::time::timeout(Duration::from_secs(120), watch.next()).await;
        let event = next.expect("the pods follow within two minutes");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let gone = event["type"] == "DELETED";
        if gone {
            known.remove(&name)
        } else {
            known.insert(name.clone())
        };
        if !gone && is_ready(&event["object"]) {
            ready.insert(name)
        } else {
            ready.remove(&name)
        };
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let holds = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    pod["metadata"]["deletionTimestamp"].is_null() && conditions.is_some_and(|list| list.iter().any(holds))
}

/// Makes so many pods and takes them away again; milliseconds of both.
pub(crate) async fn round(node: &Node, count: usize) -> (f64, f64) {
    let mut watch = Api::of(node).watch(PODS).await;
    let (mut known, mut ready) = (BTreeSet::new(), BTreeSet::new());
    let begin = Instant::now();
    node.save("web.yaml", &deployment(count));
    reach(&mut watch, count, &mut known, &mut ready).await;
    let made = begin.elapsed();
    let begin = Instant::now();
    std::fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    reach(&mut watch, 0, &mut known, &mut ready).await;
    (millis(made), millis(begin.elapsed()))
}

async fn edits(node: &Node) -> Vec<f64> {
    let mut watch = Api::of(node)
        .watch("/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3Dedited")
        .await;
    let mut runs = Vec::new();
    for value in 1..=9 {
        let wanted = Value::from(value.to_string());
        let begin = Instant::now();
        node.save("edited.yaml", &config_map(value));
        while watch.next().await["object"]["data"]["value"] != wanted {}
        runs.push(millis(begin.elapsed()));
    }
    runs
}

async fn scales(node: &Node) -> Vec<f64> {
    let mut watch = Api::of(node).watch(PODS).await;
    let (mut known, mut ready) = (BTreeSet::new(), BTreeSet::new());
    let mut runs = Vec::new();
    for _ in 0..5 {
        node.save("web.yaml", &deployment(3));
        reach(&mut watch, 3, &mut known, &mut ready).await;
        let begin = Instant::now();
        node.save("web.yaml", &deployment(5));
        reach(&mut watch, 5, &mut known, &mut ready).await;
        runs.push(millis(begin.elapsed()));
    }
    std::fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    reach(&mut watch, 0, &mut known, &mut ready).await;
    runs
}
