//! Every file below `golden/` is a case: nodes and pods, and in its second document the round that follows.
//! `UPDATE=1` writes the second documents anew.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::path::PathBuf;
use std::sync::Arc;

use client::key_of;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::ask::Ask;
use crate::class::Classes;
use crate::demand::Demand;
use crate::ledger::Ledger;
use crate::node::Used;
use crate::plan::{Nomination, Step, View, plan};
use crate::volumes::{Choice, Storage};

const NOW: &str = "2026-11-24T01:00:00Z";

/// `{repeat: 3, object: ..}` stands for three objects in which `<n>` is 0, 1, 2.
fn repeated(object: &Value) -> Vec<Value> {
    let Some(times) = object["repeat"].as_u64() else { return vec![object.clone()] };
    let text = object["object"].to_string();
    (0..times).map(|n| serde_json::from_str(&text.replace("<n>", &n.to_string())).unwrap()).collect()
}

fn view(case: &Value) -> View {
    let objects: Vec<Value> = case["objects"].as_array().unwrap().iter().flat_map(repeated).collect();
    let ledger = Ledger::default();
    for node in all::<Node>(&objects, "Node") {
        ledger.books().node(node.metadata.name.as_ref().unwrap(), Some(&node));
    }
    for pod in all::<Pod>(&objects, "Pod") {
        ledger.books().pod(&key_of(&*pod), Some(pod));
    }
    ledger.view(View {
        namespaces: map(&objects, "Namespace"),
        storage: Storage {
            claims: map(&objects, "PersistentVolumeClaim"),
            volumes: map(&objects, "PersistentVolume"),
            classes: map(&objects, "StorageClass"),
        },
        budgets: map(&objects, "PodDisruptionBudget"),
        strategy: serde_json::from_value(case["strategy"].clone()).unwrap_or_default(),
        ..View::default()
    })
}

fn all<K: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<Arc<K>> {
    let these = objects.iter().filter(|object| object["kind"] == kind);
    these.map(|object| Arc::new(serde_json::from_value(object.clone()).unwrap())).collect()
}

fn map<K: DeserializeOwned + kube::Resource>(
    objects: &[Value],
    kind: &str,
) -> imbl::OrdMap<client::Key, Arc<K>> {
    all::<K>(objects, kind).into_iter().map(|object| (key_of(&*object), object)).collect()
}

fn shown(step: &Step) -> Value {
    let name = |ask: &Ask| ask.key.name.clone();
    match step {
        Step::Bind { ask, node } => json!(format!("{} -> {node}", name(ask))),
        Step::Claim { ask, node, choices } => {
            let choice = |choice: &Choice| match choice {
                Choice::Volume { volume, claim } => format!("{} for {}", key_of(&**volume), key_of(&**claim)),
                Choice::Make { claim } => format!("a new one for {}", key_of(&**claim)),
            };
            json!({format!("{} on {node}", name(ask)): choices.iter().map(choice).collect::<Vec<_>>()})
        }
        Step::Explain(told) => {
            let mut why = json!({"reason": told.reason, "message": told.message});
            match &told.nomination {
                Nomination::Node(node) => why["nominated"] = json!(node),
                Nomination::Clear if told.ask.nominated().is_some() => why["nominated"] = Value::Null,
                _ => {}
            }
            if !told.victims.is_empty() {
                why["victims"] = json!(told.victims.iter().map(|victim| name(victim)).collect::<Vec<_>>());
            }
            json!({ name(&told.ask): why })
        }
        Step::Park { ask, .. } => json!(format!("{} waits", name(ask))),
        Step::Withdraw { ask } => json!(format!("{} is promised nothing", name(ask))),
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
    let amounts = Demand::of(&pod).amounts;
    assert_eq!((amounts.cpu, amounts.memory), (1010, 1 << 30));
}

#[test]
fn what_a_pod_took_comes_back_when_it_leaves() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
        {"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}], "resources": {"requests": {"cpu": "300m"}}},
    ]}}))
    .unwrap();
    let mut classes = Classes::default();
    let mut read = |name: &str| {
        let mut pod = pod.clone();
        pod.metadata.name = Some(name.to_owned());
        Arc::new(Ask::read(&Arc::new(pod), |class| classes.join(class)))
    };
    let (first, second) = (read("first"), read("second"));
    let mut used = Used::default();
    let told = |used: &Used| format!("{used:?}");
    let nothing = told(&used);
    used.take(&first);
    let once = told(&used);
    used.take(&second);
    used.give(&second);
    assert_eq!(told(&used), once);
    used.give(&first);
    assert_eq!(told(&used), nothing);
}
