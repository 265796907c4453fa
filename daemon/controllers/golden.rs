//! Every file below `golden/` is a case: what is there and when, and in its second document the plan that follows.
//! `UPDATE=1` writes the second documents anew.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

mod cluster;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::Plan;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::garbage::{self, Node, Owner};
use crate::owned::Unseen;
use crate::pods::{controller, name, uid};
use crate::step::{Note, Part, Place, Step, seconds};
use crate::{
    cronjob, daemonset, deployment, endpoints, endpointslice, job, namespace, replicas, statefulset,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    now: Timestamp,
    #[serde(default)]
    coming: Vec<String>,
    #[serde(default)]
    leaving: Vec<String>,
    #[serde(default)]
    refused: Option<String>,
    /// For garbage: the names of owners that are gone or wait.
    #[serde(default)]
    absent: Vec<String>,
    #[serde(default)]
    elsewhere: Vec<String>,
    #[serde(default)]
    misplaced: Vec<String>,
    #[serde(default)]
    waiting: Vec<String>,
    objects: Vec<Value>,
}

impl Case {
    fn all<K: DeserializeOwned>(&self, kind: &str) -> Vec<Arc<K>> {
        let of_kind = self.objects.iter().filter(|object| object["kind"] == kind);
        of_kind.map(|object| Arc::new(serde_json::from_value(object.clone()).unwrap())).collect()
    }

    fn one<K: DeserializeOwned>(&self, kind: &str) -> Option<Arc<K>> {
        self.all(kind).into_iter().next()
    }

    fn unseen(&self) -> Unseen {
        Unseen {
            coming: self.coming.iter().cloned().collect(),
            leaving: self.leaving.iter().cloned().collect(),
            refused: self.refused.clone(),
        }
    }
}

/// `{repeat: 3, object: ..}` stands for three objects in which `<n>` is 0, 1, 2.
fn repeated(objects: Vec<Value>) -> Vec<Value> {
    let repeat = |object: Value| match object["repeat"].as_u64() {
        None => vec![object],
        Some(times) => {
            let text = object["object"].to_string();
            (0..times).map(|n| serde_json::from_str(&text.replace("<n>", &n.to_string())).unwrap()).collect()
        }
    };
    objects.into_iter().flat_map(repeat).collect()
}

fn check(path: &str, shown: impl Fn(&Case) -> Value) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{path}.yaml"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let (input, expected) = text.split_once("\n---\n").unwrap_or((text.trim_end(), ""));
    let mut yaml: serde_yaml::Value = serde_yaml::from_str(input).unwrap();
    yaml.apply_merge().unwrap();
    let mut value: Value = serde_json::to_value(yaml).unwrap();
    value.as_object_mut().unwrap().retain(|key, _| !key.starts_with("x-"));
    let mut case: Case = serde_json::from_value(value).unwrap();
    case.objects = repeated(case.objects);
    let found = serde_yaml::to_string(&shown(&case)).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, format!("{input}\n---\n{found}")).unwrap();
    } else {
        assert_eq!(found, expected, "plan of {path} (UPDATE=1 rewrites)");
    }
}

fn shown(plan: &Plan<Step>) -> Value {
    let mut shown = json!({"steps": plan.steps.iter().map(step).collect::<Vec<_>>()});
    if let Some(again) = plan.again {
        shown["again"] = json!(again.to_string());
    }
    shown
}

fn step(step: &Step) -> Value {
    let with_event = |mut shown: Value, note: &Option<Note>| {
        if let Some(note) = note {
            shown["event"] = event(note);
        }
        shown
    };
    match step {
        Step::Create { at, object, note } => with_event(json!({"create": place(at), "object": object}), note),
        Step::Put { at, part: Part::Status, object } => json!({"status": place(at), "is": object["status"]}),
        Step::Put { at, part, object } => json!({format!("put {part:?}"): place(at), "object": object}),
        Step::Patch { at, patch, note, .. } => with_event(json!({"patch": place(at), "with": patch}), note),
        Step::Delete { at, uid, propagation, note } => with_event(
            json!({"delete": place(at), "uid": uid, "propagation": format!("{propagation:?}")}),
            note,
        ),
        Step::Record(note) => json!({"event": event(note)}),
        Step::Together(steps) => json!({"together": steps.iter().map(self::step).collect::<Vec<_>>()}),
    }
}

fn place(at: &Place) -> Value {
    json!(at.to_string())
}

fn event(note: &Note) -> Value {
    let kind = if note.warning { "Warning" } else { "Normal" };
    json!(format!("{kind} {} {} {}: {}", seconds(note.at), note.component, note.reason, note.message))
}

/// Runs every case of a folder, so that a file without a test cannot be.
fn check_all(folder: &str, plan: impl Fn(&Case) -> Plan<Step>) {
    check_each(folder, |case| shown(&plan(case)));
}

fn check_each(folder: &str, shown: impl Fn(&Case) -> Value) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(folder);
    let mut cases: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case in {}", dir.display());
    for case in cases {
        let stem = case.file_stem().unwrap().to_str().unwrap().to_owned();
        check(&format!("{folder}/{stem}"), &shown);
    }
}

fn owned_or_free<K: kube::Resource>(objects: Vec<Arc<K>>, owner: &str) -> Vec<Arc<K>> {
    let of = |object: &Arc<K>| controller(object.meta()).is_none_or(|known| known.uid == owner);
    objects.into_iter().filter(of).collect()
}

#[test]
fn replica_sets_are_kept_as_documented() {
    check_all("replicaset", |case| {
        let set: Option<Arc<ReplicaSet>> = case.one("ReplicaSet");
        let pods: Vec<Arc<Pod>> = case.all("Pod");
        let owner = set.as_ref().map(|set| uid(&set.metadata).to_owned()).unwrap_or_default();
        let view = replicas::View {
            taken: pods.iter().map(|pod| name(&pod.metadata).to_owned()).collect(),
            pods: owned_or_free(pods, &owner),
            set,
            unseen: case.unseen(),
        };
        replicas::plan(&view, case.now)
    });
}

#[test]
fn deployments_roll_as_documented() {
    check_all("deployment", |case| {
        let deployment: Option<Arc<Deployment>> = case.one("Deployment");
        let owner = deployment.as_ref().map(|one| uid(&one.metadata).to_owned()).unwrap_or_default();
        let sets = owned_or_free(case.all::<ReplicaSet>("ReplicaSet"), &owner);
        deployment::plan(&deployment::View { deployment, sets, pods: case.all("Pod") }, case.now)
    });
}

#[test]
fn replication_controllers_are_kept_as_documented() {
    check_all("replicationcontroller", |case| {
        let set: Option<Arc<ReplicationController>> = case.one("ReplicationController");
        let pods: Vec<Arc<Pod>> = case.all("Pod");
        let owner = set.as_ref().map(|set| uid(&set.metadata).to_owned()).unwrap_or_default();
        let view = replicas::View {
            taken: pods.iter().map(|pod| name(&pod.metadata).to_owned()).collect(),
            pods: owned_or_free(pods, &owner),
            set,
            unseen: case.unseen(),
        };
        replicas::plan(&view, case.now)
    });
}

#[test]
fn stateful_sets_keep_their_order_as_documented() {
    check_all("statefulset", |case| {
        let set: Option<Arc<StatefulSet>> = case.one("StatefulSet");
        let owner = set.as_ref().map(|set| uid(&set.metadata).to_owned()).unwrap_or_default();
        let claims: Vec<Arc<PersistentVolumeClaim>> = case.all("PersistentVolumeClaim");
        let view = statefulset::View {
            set,
            pods: owned_or_free(case.all("Pod"), &owner),
            revisions: owned_or_free(case.all("ControllerRevision"), &owner),
            claims: claims.into_iter().map(|one| (name(&one.metadata).to_owned(), one)).collect(),
            unseen: case.unseen(),
        };
        statefulset::plan(&view, case.now)
    });
}

#[test]
fn daemon_sets_are_on_their_nodes_as_documented() {
    check_all("daemonset", |case| {
        let set: Option<Arc<DaemonSet>> = case.one("DaemonSet");
        let owner = set.as_ref().map(|set| uid(&set.metadata).to_owned()).unwrap_or_default();
        let pods: Vec<Arc<Pod>> = case.all("Pod");
        let view = daemonset::View {
            set,
            taken: pods.iter().map(|pod| name(&pod.metadata).to_owned()).collect(),
            pods: owned_or_free(pods, &owner),
            revisions: owned_or_free(case.all("ControllerRevision"), &owner),
            nodes: case.all("Node"),
            unseen: case.unseen(),
        };
        daemonset::plan(&view, case.now)
    });
}

#[test]
fn cron_jobs_run_on_time_as_documented() {
    check_all("cronjob", |case| {
        let view = cronjob::View {
            cron: case.one("CronJob"),
            jobs: case.all("Job"),
            unseen: case.unseen(),
            ..cronjob::View::default()
        };
        cronjob::plan(&view, case.now)
    });
}

#[test]
fn jobs_run_and_count_as_documented() {
    check_all("job", |case| {
        let job: Option<Arc<Job>> = case.one("Job");
        let owner = job.as_ref().map(|job| uid(&job.metadata).to_owned()).unwrap_or_default();
        let all: Vec<Arc<Pod>> = case.all("Pod");
        let (pods, strays): (Vec<_>, Vec<_>) = all
            .iter()
            .cloned()
            .partition(|pod| controller(&pod.metadata).is_none_or(|known| known.uid == owner));
        let taken = all.iter().map(|pod| name(&pod.metadata).to_owned()).collect();
        job::plan(&job::View { job, pods, strays, taken, unseen: case.unseen(), behind: false }, case.now)
    });
}

#[test]
fn endpoint_slices_say_where_the_pods_are() {
    check_all("endpointslice", |case| {
        let service: Option<Arc<Service>> = case.one("Service");
        let pods: Vec<Arc<Pod>> = case.all("Pod");
        let selected = |pod: &Arc<Pod>| {
            service.as_ref().is_some_and(|service| endpointslice::selects(service, &pod.metadata))
        };
        let pods = pods.into_iter().filter(selected).collect();
        let slices = case.all::<EndpointSlice>("EndpointSlice");
        let nodes: Vec<Arc<k8s_openapi::api::core::v1::Node>> = case.all("Node");
        let zones = nodes
            .iter()
            .filter_map(|node| Some((name(&node.metadata).to_owned(), endpointslice::zone_of(node)?)))
            .collect();
        endpointslice::plan(&endpointslice::View { service, pods, slices, zones }, case.now)
    });
}

#[test]
fn endpoints_say_where_the_pods_are() {
    check_all("endpoints", |case| {
        let service: Option<Arc<Service>> = case.one("Service");
        let pods: Vec<Arc<Pod>> = case.all("Pod");
        let selected = |pod: &Arc<Pod>| {
            service.as_ref().is_some_and(|service| endpointslice::selects(service, &pod.metadata))
        };
        let pods = pods.into_iter().filter(selected).collect();
        endpoints::plan(&endpoints::View { service, pods, known: case.one("Endpoints") }, case.now)
    });
}

#[test]
fn endpoints_of_services_without_selector_are_mirrored() {
    check_all("endpointslicemirroring", |case| {
        let view = endpointslice::mirror::View {
            endpoints: case.one("Endpoints"),
            service: case.one("Service"),
            slices: case.all("EndpointSlice"),
        };
        endpointslice::mirror::plan(&view, case.now)
    });
}

fn node(object: &Value) -> Node {
    let meta = serde_json::from_value(object["metadata"].clone()).unwrap();
    let kind = api::kinds::by_kind(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    Node::new(kind.unwrap(), &meta)
}

#[test]
fn what_is_owned_goes_with_its_owners() {
    check_all("garbage", |case| {
        // The first object is the one that is looked at, the others are what it owns.
        let node_of = |object: &Value| Arc::new(node(object));
        let first = node_of(&case.objects[0]);
        let states = [
            (&case.absent, Owner::Absent),
            (&case.waiting, Owner::Waiting),
            (&case.elsewhere, Owner::Elsewhere),
            (&case.misplaced, Owner::Misplaced),
        ];
        let state = |uid: &String| {
            states.iter().find(|(uids, _)| uids.contains(uid)).map_or(Owner::Present, |(_, state)| *state)
        };
        let owners = first.owners.iter().map(|owner| (owner.clone(), state(&owner.uid))).collect();
        let dependents = case.objects[1..].iter().map(node_of).collect();
        garbage::plan(&garbage::View { node: Some(first), owners, dependents }, case.now)
    });
}

#[test]
fn a_namespace_goes_when_it_is_empty() {
    check_all("namespace", |case| {
        let namespace: Option<Arc<Namespace>> = case.one("Namespace");
        let rest = case.objects.iter().filter(|object| object["kind"] != "Namespace");
        namespace::plan(&namespace::View { namespace, content: rest.map(node).collect() }, case.now)
    });
}
