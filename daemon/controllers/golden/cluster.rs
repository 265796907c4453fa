//! Cases of the controllers of the cluster itself.

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;

use super::*;
use crate::storage::{self, Act, Ground};
use crate::tainteviction;
use crate::{disruption, eventttl, horizontal, loadbalancer, nodelifecycle, podgc, serviceaccount};

#[test]
fn every_namespace_has_an_account_and_the_certificate() {
    check_all("serviceaccount", |case| {
        let root_ca: Option<Arc<ConfigMap>> = case.one("ConfigMap");
        let view = serviceaccount::View {
            namespace: case.one("Namespace"),
            account: case.objects.iter().any(|object| object["kind"] == "ServiceAccount"),
            root_ca: root_ca.map(Arc::unwrap_or_clone),
            certificate: "the certificate".into(),
        };
        serviceaccount::plan(&view, case.now)
    });
}

fn ground() -> Arc<Ground> {
    Arc::new(Ground { node: "n1".to_owned(), directory: "/data/volumes".into() })
}

fn acts(plan: Plan<Act>) -> Value {
    let act = |act: &Act| match act {
        Act::Cluster(one) => step(one),
        Act::Make(path) => json!({"make directory": path}),
        Act::Remove(path) => json!({"remove directory": path}),
    };
    json!(plan.steps.iter().map(act).collect::<Vec<_>>())
}

fn keyed<K: kube::Resource>(objects: Vec<Arc<K>>) -> imbl::OrdMap<client::Key, Arc<K>> {
    objects.into_iter().map(|object| (client::key_of(&*object), object)).collect()
}

#[test]
fn claims_get_their_volumes() {
    check_each("persistentvolumeclaim", |case| {
        let view = storage::claim::View {
            claim: case.one::<PersistentVolumeClaim>("PersistentVolumeClaim"),
            volumes: keyed(case.all::<PersistentVolume>("PersistentVolume")),
            classes: keyed(case.all::<StorageClass>("StorageClass")),
            ground: ground(),
            told: case.absent.first().cloned(),
        };
        acts(storage::claim::plan(&view, case.now))
    });
}

#[test]
fn volumes_say_what_they_are_and_go_with_their_claims() {
    check_each("persistentvolume", |case| {
        let view = storage::volume::View {
            volume: case.one("PersistentVolume"),
            claim: case.one("PersistentVolumeClaim"),
            ground: ground(),
        };
        acts(storage::volume::plan(&view, case.now))
    });
}

#[test]
fn claims_and_volumes_in_use_stay() {
    check_all("storage-protection", |case| {
        let view = storage::protection::View {
            claim: case.one("PersistentVolumeClaim"),
            volume: case.one("PersistentVolume"),
            pods: case.all("Pod"),
        };
        storage::protection::plan(&view, case.now)
    });
}

#[test]
fn a_pod_gets_the_claims_that_it_declares() {
    check_all("ephemeral-volume", |case| {
        let view =
            storage::ephemeral::View { pod: case.one("Pod"), claims: case.all("PersistentVolumeClaim") };
        storage::ephemeral::plan(&view, case.now)
    });
}

#[test]
fn the_first_class_is_the_default_unless_there_is_one() {
    check_all("storageclass", |case| storage::first_class(&case.all("StorageClass")));
}

fn raw<'a>(case: &'a Case, kind: &str) -> impl Iterator<Item = &'a Value> {
    let kind = kind.to_owned();
    case.objects.iter().filter(move |object| object["kind"] == kind.as_str())
}

#[test]
fn budgets_count_what_may_be_disrupted() {
    check_all("disruption", |case| {
        let budget: Option<Arc<PodDisruptionBudget>> = case.one("PodDisruptionBudget");
        let means =
            |pod: &Arc<Pod>| budget.as_ref().is_some_and(|budget| disruption::means(budget, &pod.metadata));
        let pods = case.all::<Pod>("Pod").into_iter().filter(means).collect();
        let scale = |object: &Value| {
            let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
            (uid, i32::try_from(object["spec"]["replicas"].as_i64().unwrap()).unwrap())
        };
        let scales = raw(case, "Deployment").map(scale).collect();
        disruption::plan(&disruption::View { budget, pods, scales }, case.now)
    });
}

#[test]
fn load_balancers_are_the_nodes_themselves() {
    check_all("loadbalancer", |case| {
        let taken = raw(case, "Taken").map(|one| {
            let port = u16::try_from(one["port"].as_u64().unwrap()).unwrap();
            (("TCP".to_owned(), port), one["by"].as_str().unwrap().to_owned())
        });
        let view = loadbalancer::View {
            service: case.one("Service"),
            addresses: vec!["192.0.2.1".to_owned()],
            taken: taken.collect(),
            told: case.absent.first().cloned(),
        };
        loadbalancer::plan(&view, case.now)
    });
}

#[test]
fn pods_without_a_node_are_collected() {
    check_all("podgc", |case| {
        let lost = case.waiting.first().map(|since| since.parse().unwrap());
        let surplus = !case.absent.is_empty();
        podgc::plan(
            &podgc::View { pod: case.one("Pod"), lost, out_of_service: !case.elsewhere.is_empty(), surplus },
            case.now,
        )
    });
}

#[test]
fn events_go_after_an_hour() {
    check_all("eventttl", |case| {
        let events = raw(case, "Event").map(|event| serde_json::from_value(event.clone()).unwrap());
        eventttl::plan(&events.collect::<Vec<_>>(), case.now)
    });
}

fn past(case: &Case) -> horizontal::Past {
    let pairs = |object: &Value, key: &str| -> Vec<(Timestamp, i32)> {
        serde_json::from_value(object[key].clone()).unwrap_or_default()
    };
    let one = raw(case, "Past").next().cloned().unwrap_or_default();
    horizontal::Past { recommendations: pairs(&one, "recommendations"), changes: pairs(&one, "changes") }
}

#[test]
fn autoscalers_follow_the_load_as_documented() {
    check_each("horizontal", |case| {
        let metrics = raw(case, "PodMetrics")
            .map(|one| (one["metadata"]["name"].as_str().unwrap().to_owned(), horizontal::Usage::read(one)));
        let usage = match case.absent.first() {
            Some(why) => Err(why.clone()),
            None => Ok(metrics.collect()),
        };
        let scale = raw(case, "Scale").next().cloned();
        let view = horizontal::View {
            scaler: case.one("HorizontalPodAutoscaler"),
            scale: Some(scale.ok_or_else(|| "deployments.apps \"web\" not found".to_owned())),
            pods: case.all("Pod"),
            usage,
            past: past(case),
        };
        let act = |act: &horizontal::Act| match act {
            horizontal::Act::Cluster(one) => step(one),
            horizontal::Act::Recommended(_, count) => json!({"recommended": count}),
            horizontal::Act::Scaled(_, by) => json!({"scaled by": by}),
        };
        json!(horizontal::plan(&view, case.now).steps.iter().map(act).collect::<Vec<_>>())
    });
}

#[test]
fn pods_leave_nodes_whose_taints_they_do_not_tolerate() {
    check_all("tainteviction", |case| {
        let node: Option<Arc<k8s_openapi::api::core::v1::Node>> = case.one("Node");
        let view = tainteviction::View {
            pod: case.one("Pod"),
            taints: node.map(|node| tainteviction::no_execute(&node)).unwrap_or_default(),
            seen: case.waiting.first().map(|since| since.parse().unwrap()),
            spared: !case.absent.is_empty(),
        };
        tainteviction::plan(&view, case.now)
    });
}

#[test]
fn silent_nodes_are_unknown_and_those_in_trouble_tainted() {
    check_all("nodelifecycle", |case| {
        let view = nodelifecycle::View {
            node: case.one("Node"),
            heard: case.waiting.first().map(|since| since.parse().unwrap()),
            ready: case.all("Pod"),
        };
        nodelifecycle::plan(&view, case.now)
    });
}
