//! Places pods on nodes without a cluster: the same rounds over the same books, for whoever wants to know beforehand,
//! and for the bench.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::config::Config;
use crate::ledger::Ledger;
use crate::plan::{Step, View, plan};

/// Where a pod would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To this node.
    Node(String),
    /// Nowhere; the text says why.
    Nowhere(String),
}

/// Where pods without a node would go, one after the other, given these nodes and the pods that are on them.
pub fn place(nodes: &[Node], pods: &[Arc<Pod>], config: &Config, now: Timestamp) -> BTreeMap<Key, Place> {
    let ledger = Ledger::default();
    for node in nodes {
        ledger.books().node(node.metadata.name.as_deref().unwrap_or_default(), Some(node));
    }
    for pod in pods {
        ledger.books().pod(&key_of(&**pod), Some(Arc::clone(pod)));
    }
    let mut placed = BTreeMap::new();
    loop {
        let view = ledger.view(View { strategy: config.strategy, ..View::default() });
        if view.pending.is_empty() {
            return placed;
        }
        for step in plan(&view, now).steps {
            let (ask, place) = match step {
                Step::Bind { ask, node, .. } | Step::Claim { ask, node, .. } => {
                    ledger.assume(&ask, &node);
                    (ask, Place::Node(node))
                }
                Step::Explain(told) => {
                    ledger.park(&told.ask, told.causes);
                    (told.ask, Place::Nowhere(told.message))
                }
                Step::Park { ask, causes } => {
                    ledger.park(&ask, causes);
                    continue;
                }
                Step::Withdraw { .. } => continue,
            };
            placed.insert(Key::clone(&ask.key), place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_pod_is_placed_or_told_why_not_over_many_rounds() {
        let node = |n: usize| {
            json!({"metadata": {"name": format!("n{n}")},
            "status": {"allocatable": {"cpu": "32", "memory": "64Gi", "pods": "300"}}})
        };
        let nodes: Vec<Node> = (0..4).map(|n| serde_json::from_value(node(n)).expect("a node")).collect();
        let pod = |n: usize| {
            json!({"metadata": {"name": format!("p{n}"), "namespace": "default", "uid": format!("u{n}")},
            "spec": {"containers": [{"name": "c", "image": "x"}]}})
        };
        let pods: Vec<Arc<Pod>> =
            (0..1300).map(|n| Arc::new(serde_json::from_value(pod(n)).expect("a pod"))).collect();
        let placed = place(&nodes, &pods, &Config::default(), Timestamp::UNIX_EPOCH);
        let on = |name: &str| placed.values().filter(|place| **place == Place::Node(name.to_owned())).count();
        assert_eq!([on("n0"), on("n1"), on("n2"), on("n3")], [300; 4]);
        let full = "0/4 nodes are available: 4 Too many pods.";
        let told = |place: &&Place| matches!(place, Place::Nowhere(why) if why.starts_with(full));
        assert_eq!(placed.values().filter(told).count(), 100);
    }
}
