//! Pods placed per second by the scheduler's rounds alone, on simulated nodes; `cargo bench -p scheduler`.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{Config, Place, place};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{:>6} {:>7}  {:<14} {:>9} {:>10}", "nodes", "pods", "asks for", "pods/s", "µs per pod");
    for (nodes, pods) in
        [(1, 100), (1, 10_000), (100, 100), (100, 1_000), (100, 10_000), (5_000, 100), (5_000, 10_000)]
    {
        for kind in ["resources", "anti-affinity", "affinity", "spread"] {
            // One pod per host is all that anti-affinity leaves.
            if kind == "anti-affinity" && pods > nodes {
                continue;
            }
            measure(nodes, pods, kind)?;
        }
    }
    Ok(())
}

fn measure(nodes: usize, pods: usize, kind: &str) -> Result<(), serde_json::Error> {
    let all: Vec<Node> = (0..nodes).map(node).collect::<Result<_, _>>()?;
    let asking: Vec<Arc<Pod>> = (0..pods).map(|n| pod(n, kind).map(Arc::new)).collect::<Result<_, _>>()?;
    let begin = Instant::now();
    let placed = place(&all, &asking, &Config::default(), Timestamp::UNIX_EPOCH);
    let took = begin.elapsed().as_secs_f64();
    let on_nodes = placed.values().filter(|place| matches!(place, Place::Node(_))).count();
    assert_eq!(on_nodes, pods, "every pod finds a node");
    let (rate, each) = (pods as f64 / took, took * 1e6 / pods as f64);
    println!("{nodes:>6} {pods:>7}  {kind:<14} {rate:>9.0} {each:>10.1}");
    Ok(())
}

fn node(n: usize) -> Result<Node, serde_json::Error> {
    serde_json::from_value(json!({
        "metadata": {"name": format!("node-{n:04}"), "labels": {
            "kubernetes.io/hostname": format!("node-{n:04}"), "topology.kubernetes.io/zone": format!("z{}", n % 3)}},
        "status": {"allocatable": {"cpu": "2000", "memory": "8000Gi", "pods": "20000"}},
    }))
}

fn pod(n: usize, kind: &str) -> Result<Pod, serde_json::Error> {
    let mut pod = json!({
        "metadata": {"name": format!("pod-{n:05}"), "namespace": "default", "uid": format!("uid-{n}"),
            "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "web:1", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]},
        "status": {"phase": "Pending"},
    });
    let web = json!({"matchLabels": {"app": "web"}});
    let term = |key: &str| -> Value {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key, "labelSelector": web}]})
    };
    match kind {
        "anti-affinity" => {
            pod["spec"]["affinity"] = json!({"podAntiAffinity": term("kubernetes.io/hostname")})
        }
        "affinity" => pod["spec"]["affinity"] = json!({"podAffinity": term("topology.kubernetes.io/zone")}),
        "spread" => {
            let spread = json!({"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1,
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": web});
            pod["spec"]["topologySpreadConstraints"] = json!([spread]);
        }
        _ => {}
    }
    serde_json::from_value(pod)
}
