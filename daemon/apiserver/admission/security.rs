//! PodSecurity: the level that a namespace's labels demand of its pods.

use api::error::ApiError;
use api::kinds::Kind;
use api::schema::Defect;
use api::security::{Level, Policy};
use serde_json::Value;

use super::{forbidden, namespace_kind};
use crate::Inner;
use crate::object::{self, meta};

/// Refuses a pod that is against what its namespace enforces; warns of what it only warns of.
pub(super) fn judge(
    inner: &Inner,
    kind: &Kind,
    old: Option<&Value>,
    pod: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    if old.is_some_and(|old| old["spec"] == pod["spec"]) {
        return Ok(());
    }
    let policy = |mode: &str| policy(inner, meta(pod, "namespace"), mode);
    if let Some(why) = policy("enforce").violation(&pod["metadata"], &pod["spec"]) {
        return Err(forbidden(kind, pod, &why));
    }
    if let Some(why) = policy("warn").violation(&pod["metadata"], &pod["spec"]) {
        warnings.push(would(&why));
    }
    Ok(())
}

/// Warns of pods that a template would make in vain.
pub(super) fn advise(inner: &Inner, kind: &Kind, object: &Value, warnings: &mut Vec<String>) {
    let template = match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => &object["spec"]["template"],
        ("batch", "CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"],
        ("", "PodTemplate") => &object["template"],
        _ => return,
    };
    if let Some(why) =
        policy(inner, meta(object, "namespace"), "warn").violation(&template["metadata"], &template["spec"])
    {
        warnings.push(would(&why));
    }
}

/// Labels that name no level or version are refused, so that nobody believes in a level that is not there.
pub(super) fn labels(kind: &Kind, namespace: &Value) -> Result<(), ApiError> {
    let mut defects = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let name = format!("pod-security.kubernetes.io/{mode}");
        let labels = &namespace["metadata"]["labels"];
        let path = |name: &str| format!("metadata.labels[{name}]");
        if labels[&name].as_str().is_some_and(|text| Level::parse(text).is_none()) {
            let why = "must be one of privileged, baseline, restricted";
            defects.push(Defect::invalid(path(&name), &labels[&name], why));
        }
        let version = format!("{name}-version");
        if labels[&version].as_str().is_some_and(|text| !is_version(text)) {
            let why = "must be \"latest\" or \"v1.x\"";
            defects.push(Defect::invalid(path(&version), &labels[&version], why));
        }
    }
    if defects.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, meta(namespace, "name"), defects)) }
}

fn is_version(text: &str) -> bool {
    text == "latest" || text.strip_prefix("v1.").is_some_and(|minor| minor.parse::<u16>().is_ok())
}

fn policy(inner: &Inner, namespace: &str, mode: &str) -> Policy {
    let snapshot = inner.store.snapshot();
    let entry = snapshot.get(&object::key(namespace_kind(), "", namespace));
    let labels = entry.map(|entry| &entry.head.labels);
    Policy::of(mode, |name| labels.and_then(|labels| labels.get(name)).map(String::as_str))
}

fn would(violation: &str) -> String {
    violation.replacen("violates", "would violate", 1)
}
