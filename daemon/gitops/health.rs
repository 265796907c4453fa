//! The health of one object: Kubernetes' own signs, and below them what a person would look for next.
//!
//! Invariant: a superset of the documented rules: a Service needs a ready endpoint, a workload none of whose pods can
//! run is degraded at once, and a message names the pod and its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::health::{Health, HealthCode};
use api::select::Labels;
use client::Key;
use imbl::OrdMap;
use kube::api::DynamicObject;
use serde_json::Value;

/// What is around an object.
#[derive(Default)]
pub(crate) struct Around {
    pub(crate) pods: OrdMap<Key, Arc<DynamicObject>>,
    /// Namespace and name of services that have a ready endpoint.
    pub(crate) served: Arc<BTreeSet<(String, String)>>,
}

/// Namespace and name of the services that have a ready endpoint.
pub(crate) fn served(slices: &OrdMap<Key, Arc<DynamicObject>>) -> BTreeSet<(String, String)> {
    let ready = |endpoint: &Value| endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    let served = slices.iter().filter_map(|(key, slice)| {
        let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        let any = slice.data["endpoints"].as_array()?.iter().any(ready);
        any.then(|| (key.namespace.clone(), service.clone()))
    });
    served.collect()
}

/// Kinds whose pods tell more than they do themselves.
pub(crate) fn has_pods(kind: &str) -> bool {
    matches!(
        kind,
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Job"
    )
}

/// Kinds whose health needs a look at pods or endpoints.
pub(crate) fn looks_around(kind: &str) -> bool {
    has_pods(kind) || matches!(kind, "Service" | "Ingress" | "PersistentVolumeClaim")
}

/// The health of an object, given the verdict of its own kind's rule.
pub(crate) fn assess(kind: &str, own: Option<Health>, object: &DynamicObject, around: &Around) -> Health {
    let own = own.unwrap_or(Health { code: HealthCode::Healthy, message: String::new() });
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let better = match (kind, own.code) {
        ("Service", HealthCode::Healthy) => service(object, namespace, around),
        ("Ingress", HealthCode::Healthy) => ingress(object, namespace, around),
        ("PersistentVolumeClaim", HealthCode::Progressing) => claim(object, namespace, around),
        (kind, HealthCode::Progressing | HealthCode::Degraded) if has_pods(kind) => {
            Some(workload(own.clone(), kind, object, namespace, around))
        }
        _ => None,
    };
    better.unwrap_or(own)
}

fn service(object: &DynamicObject, namespace: &str, around: &Around) -> Option<Health> {
    let spec = &object.data["spec"];
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    let name = object.metadata.name.clone().unwrap_or_default();
    if !selects || spec["type"] == "ExternalName" || around.served.contains(&(namespace.to_owned(), name)) {
        return None;
    }
    Some(Health { code: HealthCode::Progressing, message: "no ready endpoint".to_owned() })
}

/// A route whose Service has no ready endpoint answers nobody.
fn ingress(object: &DynamicObject, namespace: &str, around: &Around) -> Option<Health> {
    let spec = &object.data["spec"];
    let rules = spec["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let paths = rules.iter().flat_map(|rule| rule["http"]["paths"].as_array().into_iter().flatten());
    let backends = paths.map(|path| &path["backend"]).chain([&spec["defaultBackend"]]);
    let mut names = backends.filter_map(|backend| backend["service"]["name"].as_str());
    let dark = names.find(|name| !around.served.contains(&(namespace.to_owned(), (*name).to_owned())))?;
    let message = format!("service {dark}, which it leads to, has no ready endpoint");
    Some(Health { code: HealthCode::Progressing, message })
}

/// A claim that nobody uses yet may wait for its first pod: waiting for it would wait for ever.
fn claim(object: &DynamicObject, namespace: &str, around: &Around) -> Option<Health> {
    let pending = matches!(object.data["status"]["phase"].as_str(), Some("Pending") | None);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let uses = |pod: &DynamicObject| {
        let volumes = pod.data["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
        volumes.iter().any(|known| known["persistentVolumeClaim"]["claimName"] == name)
    };
    if !pending || object.metadata.deletion_timestamp.is_some() || in_namespace(around, namespace).any(uses) {
        return None;
    }
    Some(Health { code: HealthCode::Healthy, message: "no pod uses it yet".to_owned() })
}

fn in_namespace<'a>(around: &'a Around, namespace: &'a str) -> impl Iterator<Item = &'a DynamicObject> {
    let from = Key::new(namespace, "");
    let here = around.pods.range(from..).take_while(move |(key, _)| key.namespace == namespace);
    here.map(|(_, pod)| &**pod)
}

/// The pods that a workload selects and that are not going away.
pub(crate) fn pods_of<'a>(
    kind: &str,
    object: &DynamicObject,
    namespace: &'a str,
    around: &'a Around,
) -> Vec<&'a DynamicObject> {
    let selector = &object.data["spec"]["selector"];
    let labels = match kind {
        "ReplicationController" | "Service" => Labels::from_map(selector),
        _ => Labels::from_selector(selector),
    };
    let Ok(labels) = labels else { return Vec::new() };
    let none = BTreeMap::new();
    let fits = |pod: &&DynamicObject| {
        labels.matches(pod.metadata.labels.as_ref().unwrap_or(&none))
            && pod.metadata.deletion_timestamp.is_none()
    };
    in_namespace(around, namespace).filter(fits).collect()
}

fn workload(own: Health, kind: &str, object: &DynamicObject, namespace: &str, around: &Around) -> Health {
    let pods = pods_of(kind, object, namespace, around);
    let troubles: Vec<(bool, String)> = pods.iter().filter_map(|pod| trouble(pod)).collect();
    let failing = troubles.iter().find(|(failing, _)| *failing);
    let Some((_, first)) = failing.or(troubles.first()) else { return own };
    // A Job tries again by itself: only its own verdict ends it.
    let all_failing =
        kind != "Job" && troubles.len() == pods.len() && troubles.iter().all(|(failing, _)| *failing);
    let code = if all_failing { HealthCode::Degraded } else { own.code };
    let message = if own.message.is_empty() { first.clone() } else { format!("{}; {first}", own.message) };
    Health { code, message }
}

/// What keeps a pod from being ready: whether it fails rather than starts, and the sentence.
pub(crate) fn trouble(pod: &DynamicObject) -> Option<(bool, String)> {
    let mut value = pod.data.clone();
    value["apiVersion"] = "v1".into();
    value["kind"] = "Pod".into();
    let health = api::health::assess(&value)?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let unscheduled = pod.data["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions.iter().any(|known| known["type"] == "PodScheduled" && known["status"] == "False")
    });
    match health.code {
        HealthCode::Degraded => Some((true, format!("pod {name}: {}", health.message))),
        HealthCode::Progressing if unscheduled => Some((false, format!("pod {name}: {}", health.message))),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn around(pods: Vec<Value>) -> Around {
        let pods = pods.into_iter().map(|pod| {
            let pod = object(pod);
            (Key::new("default", pod.metadata.name.clone().unwrap()), Arc::new(pod))
        });
        Around {
            pods: pods.collect(),
            served: Arc::new(BTreeSet::from([("default".to_owned(), "web".to_owned())])),
        }
    }

    fn pod(name: &str, status: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}}, "status": status})
    }

    #[test]
    fn a_service_without_a_ready_endpoint_is_not_healthy() {
        let service = |name: &str, spec: Value| {
            object(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec}))
        };
        let selects = json!({"selector": {"app": "web"}});
        let code = |object: DynamicObject| assess("Service", None, &object, &around(vec![])).code;
        assert_eq!(code(service("web", selects.clone())), HealthCode::Healthy);
        assert_eq!(code(service("other", selects)), HealthCode::Progressing);
        assert_eq!(code(service("other", json!({}))), HealthCode::Healthy);
        assert_eq!(
            code(service("other", json!({"type": "ExternalName", "selector": {"a": "b"}}))),
            HealthCode::Healthy
        );
    }

    #[test]
    fn a_workload_whose_pods_all_fail_is_degraded_at_once_and_says_which() {
        let deployment = object(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}}));
        let progressing = Some(Health { code: HealthCode::Progressing, message: "0 of 2 ready".to_owned() });
        let pull = json!({"containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image x"}}}]});
        let fine = json!({"phase": "Running"});
        let both = around(vec![pod("a", pull.clone()), pod("b", pull.clone())]);
        let health = assess("Deployment", progressing.clone(), &deployment, &both);
        assert_eq!(health.code, HealthCode::Degraded);
        assert_eq!(health.message, "0 of 2 ready; pod a: container c: ImagePullBackOff: no such image x");
        let one = around(vec![pod("a", pull), pod("b", fine)]);
        let health = assess("Deployment", progressing, &deployment, &one);
        assert_eq!(health.code, HealthCode::Progressing);
        assert!(health.message.contains("ImagePullBackOff"));
    }

    #[test]
    fn a_route_to_nobody_and_a_claim_without_a_pod_are_told_apart() {
        let ingress = |service: &str| {
            object(
                json!({"metadata": {"name": "i", "namespace": "default"}, "spec": {"rules": [{"http": {"paths": [{"backend": {"service": {"name": service}}}]}}]}}),
            )
        };
        let code = |service: &str| assess("Ingress", None, &ingress(service), &around(vec![])).code;
        assert_eq!((code("web"), code("nobody")), (HealthCode::Healthy, HealthCode::Progressing));
        let claim = object(
            json!({"metadata": {"name": "data", "namespace": "default"}, "status": {"phase": "Pending"}}),
        );
        let own = Some(Health { code: HealthCode::Progressing, message: String::new() });
        let verdict =
            |pods: Vec<Value>| assess("PersistentVolumeClaim", own.clone(), &claim, &around(pods)).code;
        assert_eq!(verdict(vec![]), HealthCode::Healthy);
        let mut user = pod("a", json!({}));
        user["spec"] = json!({"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]});
        assert_eq!(verdict(vec![user]), HealthCode::Progressing);
    }

    #[test]
    fn a_crash_counts_at_once_and_memory_is_named() {
        let set = object(
            json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}),
        );
        let own = Some(Health { code: HealthCode::Progressing, message: "0 of 1 ready".to_owned() });
        let oom = json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 1,
            "state": {"running": {}}, "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]});
        let health = assess("StatefulSet", own, &set, &around(vec![pod("web-0", oom)]));
        assert_eq!(health.code, HealthCode::Degraded);
        assert!(health.message.contains("out of memory (exit code 137)"), "{}", health.message);
    }
}
