//! Every file below `golden/` is a case: nodes and pods, and in its second document the round that follows.
//! `UPDATE=1` writes the second documents anew.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cluster::{NodeView, Used};
use crate::demand::Demand;
use crate::plan::{Step, View, plan, priority};

const NOW: &str = "2026-11-24T01:00:00Z";

/// `{repeat: 3, object: ..}` stands for three objects in which `<n>` is 0, 1, 2.
fn repeated(object: &Value) -> Vec<Value> {
    let Some(times) = object["repeat"].as_u64() else { return vec![object.clone()] };
    let text = object["object"].to_string();
    (0..times).map(|n| serde_json::from_str(&text.replace("<n>", &n.to_string())).unwrap()).collect()
}

fn view(case: &Value) -> View {
    let objects: Vec<Value> = case["objects"].as_array().unwrap().iter().flat_map(repeated).collect();
    let of_kind =
        |kind: &str| objects.iter().filter(|object| object["kind"] == kind).cloned().collect::<Vec<_>>();
    let pods: Vec<Arc<Pod>> =
        of_kind("Pod").into_iter().map(|pod| Arc::new(serde_json::from_value(pod).unwrap())).collect();
    let on = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let nodes = of_kind("Node").into_iter().map(|node| {
        let node: Arc<Node> = Arc::new(serde_json::from_value(node).unwrap());
        let mut used = Used::default();
        for pod in pods.iter().filter(|pod| on(pod) == node.metadata.name) {
            used.take(&Demand::of(pod), priority(pod));
        }
        NodeView::new(node, used)
    });
    View { nodes: nodes.collect(), pending: pods.iter().filter(|pod| on(pod).is_none()).cloned().collect() }
}

fn shown(step: &Step) -> Value {
    match step {
        Step::Bind { pod, node, .. } => json!(format!("{} -> {node}", pod.metadata.name.as_deref().unwrap())),
        Step::Explain { pod, reason, message, .. } => {
            json!({pod.metadata.name.as_deref().unwrap(): {"reason": reason, "message": message}})
        }
    }
}

fn check(file: &PathBuf) {
    let text = std::fs::read_to_string(file).unwrap();
    let (input, expected) = text.split_once("\n---\n").unwrap_or((text.trim_end(), ""));
    let case: Value =
        serde_yaml::from_str(input).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let now: Timestamp = NOW.parse().unwrap();
    let steps: Vec<Value> = plan(&view(&case), now).steps.iter().map(shown).collect();
    let found = serde_yaml::to_string(&steps).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, format!("{input}\n---\n{found}")).unwrap();
    } else {
        assert_eq!(found, expected, "round of {} (UPDATE=1 rewrites)", file.display());
    }
}

#[test]
fn pods_get_the_nodes_that_are_documented() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut cases: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case in {}", dir.display());
    cases.iter().for_each(check);
}

#[test]
fn a_demand_is_the_larger_of_init_and_run_with_sidecars_in_both() {
    let pod: Pod = serde_json::from_value(json!({"spec": {
        "overhead": {"cpu": "10m"},
        "initContainers": [
            {"name": "first", "resources": {"requests": {"cpu": "500m"}}},
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "second", "resources": {"requests": {"cpu": "900m", "memory": "1Gi"}}},
        ],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "300m", "memory": "64Mi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "200m"}}},
        ],
    }}))
    .unwrap();
    let demand = Demand::of(&pod);
    let amount = |name: &str| demand.amounts[name].to_string();
    assert_eq!((amount("cpu").as_str(), amount("memory").as_str()), ("1010m", "1Gi"));
}

#[test]
fn what_a_pod_took_comes_back_when_it_leaves() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
        {"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}], "resources": {"requests": {"cpu": "300m"}}},
    ]}}))
    .unwrap();
    let (demand, mut used) = (Demand::of(&pod), Used::default());
    used.take(&demand, 5);
    used.take(&demand, 5);
    used.give(&demand, 5);
    let mut once = Used::default();
    once.take(&demand, 5);
    assert_eq!(used, once);
    used.give(&demand, 5);
    assert_eq!(used, Used::default());
}
