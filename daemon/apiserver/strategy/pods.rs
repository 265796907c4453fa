//! What subresources may change of a pod: its node, once; its resources; its ephemeral containers.
//!
//! Invariant: everything that the subresource is not about stays as it is stored.

use api::error::ApiError;
use api::kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{self, meta};
use crate::write;

/// The stored pod with the part that `resize` or `ephemeralcontainers` is about as wanted.
pub(super) fn part(subresource: &str, old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    if subresource == "ephemeralcontainers" {
        new["spec"]["ephemeralContainers"] = wanted["spec"]["ephemeralContainers"].clone();
        return new;
    }
    for list in ["containers", "initContainers"] {
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let of = wanted["spec"][list].as_array().into_iter().flatten();
            let Some(same) = of.into_iter().find(|one| one["name"] == container["name"]) else { continue };
            for field in ["resources", "resizePolicy"] {
                if !same[field].is_null() {
                    container[field] = same[field].clone();
                }
            }
        }
    }
    new
}

/// Binds a pod to a node, as the binding subresource documents: once, and never a pod that is going.
pub(crate) fn bind(kind: &Kind, pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, ApiError> {
    let name = meta(pod, "name");
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("binding of pod {name:?}: target.name: Required value")));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is already assigned to node {bound:?}"),
        ));
    }
    if object::is_terminating(pod) {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = node.into();
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": write::seconds(now), "lastProbeTime": null }));
    new["status"]["conditions"] = conditions.into();
    Ok(new)
}
