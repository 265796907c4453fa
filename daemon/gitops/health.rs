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
    pub(crate) served: BTreeSet<(String, String)>,
}

impl Around {
    /// Looks through pods and endpoint slices once.
    pub(crate) fn new(
        pods: OrdMap<Key, Arc<DynamicObject>>,
        slices: &OrdMap<Key, Arc<DynamicObject>>,
    ) -> Around {
        let ready = |endpoint: &Value| endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
        let served = slices.iter().filter_map(|(key, slice)| {
            let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
            let any = slice.data["endpoints"].as_array()?.iter().any(ready);
            any.then(|| (key.namespace.clone(), service.clone()))
        });
        Around { pods, served: served.collect() }
    }
}

/// Kinds whose pods tell more than they do themselves.
pub(crate) fn has_pods(kind: &str) -> bool {
    matches!(kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job")
}

/// The health of an object, given the verdict of its own kind's rule.
pub(crate) fn assess(kind: &str, own: Option<Health>, object: &DynamicObject, around: &Around) -> Health {
    let own = own.unwrap_or(Health { code: HealthCode::Healthy, message: String::new() });
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    if own.code == HealthCode::Healthy && kind == "Service" {
        return service(object, namespace, around).unwrap_or(own);
    }
    if matches!(own.code, HealthCode::Progressing | HealthCode::Degraded) && has_pods(kind) {
        return workload(own, object, namespace, around);
    }
    own
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

fn workload(own: Health, object: &DynamicObject, namespace: &str, around: &Around) -> Health {
    let Ok(labels) = Labels::from_selector(&object.data["spec"]["selector"]) else { return own };
    let from = Key::new(namespace, "");
    let mine =
        around.pods.range(from..).take_while(|(key, _)| key.namespace == namespace).filter(|(_, pod)| {
            let none = BTreeMap::new();
            labels.matches(pod.metadata.labels.as_ref().unwrap_or(&none))
                && pod.metadata.deletion_timestamp.is_none()
        });
    let pods: Vec<&DynamicObject> = mine.map(|(_, pod)| &**pod).collect();
    let troubles: Vec<(bool, String)> = pods.iter().filter_map(|pod| trouble(pod)).collect();
    let failing = troubles.iter().find(|(failing, _)| *failing);
    let Some((_, first)) = failing.or(troubles.first()) else { return own };
    let all_failing = troubles.len() == pods.len() && troubles.iter().all(|(failing, _)| *failing);
    let code = if all_failing { HealthCode::Degraded } else { own.code };
    let message = if own.message.is_empty() { first.clone() } else { format!("{}; {first}", own.message) };
    Health { code, message }
}

/// What keeps a pod from being ready: whether it fails rather than starts, and the sentence.
fn trouble(pod: &DynamicObject) -> Option<(bool, String)> {
    let status = &pod.data["status"];
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let say = |reason: &str, message: &str| match message {
        "" => format!("pod {name}: {reason}"),
        _ => format!("pod {name}: {reason}: {message}"),
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let containers =
        ["initContainerStatuses", "containerStatuses"].iter().filter_map(|list| status[*list].as_array());
    for container in containers.flatten() {
        let waiting = &container["state"]["waiting"];
        let reason = text(&waiting["reason"]);
        if reason.starts_with("Err") || reason.ends_with("Error") || reason.ends_with("BackOff") {
            let mut message = text(&waiting["message"]);
            if message.is_empty() {
                message = last_end(container);
            }
            return Some((true, say(&reason, &message)));
        }
    }
    if status["phase"] == "Failed" {
        return Some((true, say("Failed", &text(&status["message"]))));
    }
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let unscheduled =
        conditions.iter().find(|known| known["type"] == "PodScheduled" && known["status"] == "False");
    if let Some(condition) = unscheduled {
        return Some((false, say(&text(&condition["reason"]), &text(&condition["message"]))));
    }
    None
}

fn last_end(container: &Value) -> String {
    let last = &container["lastState"]["terminated"];
    match (last["reason"].as_str(), last["exitCode"].as_i64()) {
        (Some("OOMKilled"), _) => "killed for using more memory than its limit".to_owned(),
        (_, Some(code)) => format!("the container ended with exit code {code}"),
        _ => String::new(),
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
        Around { pods: pods.collect(), served: BTreeSet::from([("default".to_owned(), "web".to_owned())]) }
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
        let pull = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image x"}}}]});
        let fine = json!({"phase": "Running"});
        let both = around(vec![pod("a", pull.clone()), pod("b", pull.clone())]);
        let health = assess("Deployment", progressing.clone(), &deployment, &both);
        assert_eq!(health.code, HealthCode::Degraded);
        assert_eq!(health.message, "0 of 2 ready; pod a: ImagePullBackOff: no such image x");
        let one = around(vec![pod("a", pull), pod("b", fine)]);
        let health = assess("Deployment", progressing, &deployment, &one);
        assert_eq!(health.code, HealthCode::Progressing);
        assert!(health.message.contains("ImagePullBackOff"));
    }
}
