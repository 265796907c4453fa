//! Judges what an update may not change.
//!
//! Invariant: compares values as stored; both sides are defaulted.

use serde_json::Value;

use super::{Found, items, policy, storage, text, workloads};
use crate::kinds::Kind;
use crate::schema::Defect;

const IMMUTABLE: &str = "field is immutable";
const SEALED: &str = "field is immutable when `immutable` is set";
const POD_FIELDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Paths that never change, by kind.
const FIXED: &[(&str, &[&str])] = &[
    ("Deployment", &["spec.selector"]),
    ("ReplicaSet", &["spec.selector"]),
    ("Secret", &["type"]),
    ("DaemonSet", &["spec.selector"]),
    ("ControllerRevision", &["data"]),
    ("CSIStorageCapacity", &["nodeTopology", "storageClassName"]),
    ("RuntimeClass", &["handler"]),
    ("VolumeAttachment", &["spec"]),
    ("IngressClass", &["spec.controller"]),
    ("EndpointSlice", &["addressType"]),
    ("Job", &["spec.selector", "spec.podFailurePolicy", "spec.backoffLimitPerIndex", "spec.managedBy"]),
];

/// The fields that the kind's update strategy refuses to see changed.
pub(super) fn immutable(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value, found: &mut Found) {
    for (_, paths) in FIXED.iter().filter(|(name, _)| *name == kind.kind) {
        for path in *paths {
            unchanged(new, old, path, found);
        }
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => sealed(new, old, &["data", "binaryData"], found),
        ("", "Secret") => sealed(new, old, &["data"], found),
        ("", "Pod") => match subresource {
            Some("resize") => resized(new, old, found),
            Some("ephemeralcontainers") => joined(&new["spec"], &old["spec"], found),
            _ => pod(&new["spec"], &old["spec"], found),
        },
        ("", "Service") => service(&new["spec"], &old["spec"], found),
        ("", "Node") => node(&new["spec"], &old["spec"], found),
        ("batch", "Job") => job(new, old, found),
        ("", "PersistentVolume") => storage::volume_update(new, old, found),
        ("", "PersistentVolumeClaim") => storage::claim_update(new, old, found),
        ("apps", "StatefulSet") => workloads::stateful_set_update(new, old, found),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            policy::binding_update(new, old, found);
        }
        ("storage.k8s.io", "StorageClass") => storage::class_update(new, old, found),
        _ => {}
    }
}

fn unchanged(new: &Value, old: &Value, path: &str, found: &mut Found) {
    let at = |object: &Value| path.split('.').fold(object.clone(), |value, name| value[name].clone());
    let (new, old) = (at(new), at(old));
    if new != old {
        found.add(Defect::invalid(path, &new, IMMUTABLE));
    }
}

fn sealed(new: &Value, old: &Value, fields: &[&str], found: &mut Found) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        found.add(Defect::forbidden("immutable", SEALED));
    }
    for name in fields {
        if new[*name] != old[*name] {
            found.add(Defect::forbidden(*name, SEALED));
        }
    }
}

fn pod(new: &Value, old: &Value, found: &mut Found) {
    for list in ["containers", "initContainers"] {
        if items(&new[list]).len() != items(&old[list]).len() {
            found.add(Defect::forbidden(
                format!("spec.{list}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let (before, after) = (&old["activeDeadlineSeconds"], &new["activeDeadlineSeconds"]);
    match (before.as_i64(), after.as_i64()) {
        (Some(_), None) => found.add(Defect::invalid(
            "spec.activeDeadlineSeconds",
            after,
            "must not update from a positive integer to nil value",
        )),
        (Some(was), Some(now)) if now > was => {
            found.add(Defect::invalid(
                "spec.activeDeadlineSeconds",
                after,
                "must be less than or equal to previous value",
            ));
        }
        _ => {}
    }
    if items(&old["tolerations"]).iter().any(|kept| !tolerated(kept, &new["tolerations"])) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        found.add(Defect::forbidden("spec.tolerations", why));
    }
    if items(&new["schedulingGates"]).iter().any(|gate| !items(&old["schedulingGates"]).contains(gate)) {
        let why = "only deletion is allowed, but found new scheduling gate";
        found.add(Defect::forbidden("spec.schedulingGates", why));
    }
    // Binding, which comes through here too, names the node; once named it stays.
    let unbound = text(&old["nodeName"]).is_empty();
    let gated = !items(&old["schedulingGates"]).is_empty();
    let fixed = |spec: &Value| {
        let mut fixed = pod_fixed(spec, gated);
        if let (true, Some(map)) = (unbound, fixed.as_object_mut()) {
            map.remove("nodeName");
        }
        fixed
    };
    if fixed(new) != fixed(old) {
        found.add(Defect::forbidden("spec", POD_FIELDS));
    }
}

/// `ValidatePodResize`: only amounts of processor and memory, and the pod's quality stays what it is.
fn resized(new: &Value, old: &Value, found: &mut Found) {
    if crate::pod::quality_of_service(&new["spec"]) != crate::pod::quality_of_service(&old["spec"]) {
        let why = "Pod QOS Class may not change as a result of resizing";
        found.add(Defect::invalid("spec", &"".into(), why));
    }
    let rest = |pod: &Value| {
        let mut pod = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            let containers = pod.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.remove("resizePolicy");
                for side in ["limits", "requests"] {
                    let amounts =
                        container.get_mut("resources").and_then(|resources| resources.get_mut(side));
                    if let Some(amounts) = amounts.and_then(Value::as_object_mut) {
                        amounts.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
                    }
                }
            }
        }
        pod
    };
    let bare = |pod: &Value| prune_empty(rest(pod));
    if bare(new) != bare(old) {
        found.add(Defect::forbidden("spec", "only cpu and memory resources are mutable"));
    }
}

/// Without maps that hold nothing, so that a side which is new and one which is not there are the same.
fn prune_empty(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.values_mut().for_each(|one| *one = prune_empty(one.take()));
            map.retain(|_, one| one.as_object().is_none_or(|inner| !inner.is_empty()));
        }
        Value::Array(list) => list.iter_mut().for_each(|one| *one = prune_empty(one.take())),
        _ => {}
    }
    value
}

/// `ValidatePodEphemeralContainersUpdate`: more may come, none may change or go.
fn joined(new: &Value, old: &Value, found: &mut Found) {
    for kept in items(&old["ephemeralContainers"]) {
        let name = text(&kept["name"]);
        match items(&new["ephemeralContainers"]).iter().find(|one| one["name"] == kept["name"]) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                found.add(Defect::forbidden("spec.ephemeralContainers", &why));
            }
            Some(same) if same != kept => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                found.add(Defect::forbidden("spec.ephemeralContainers", &why));
            }
            Some(_) => {}
        }
    }
}

fn tolerated(kept: &Value, now: &Value) -> bool {
    items(now)
        .iter()
        .any(|one| ["key", "operator", "value", "effect"].iter().all(|name| one[*name] == kept[*name]))
}

/// The part of a pod's spec that may not change. While gates hold it back, its node selector and affinity may get tighter.
fn pod_fixed(spec: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    let negative = spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0);
    if let Some(map) = spec.as_object_mut() {
        for name in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
            map.remove(name);
        }
        if negative {
            map.insert("terminationGracePeriodSeconds".into(), 1.into());
        }
        if gated {
            map.remove("nodeSelector");
            map.remove("affinity");
        }
    }
    spec
}

fn service(new: &Value, old: &Value, found: &mut Found) {
    let address = |spec: &Value| text(&spec["clusterIP"]).to_owned();
    let external = new["type"] == "ExternalName" || old["type"] == "ExternalName";
    if !external && !address(old).is_empty() && address(new) != address(old) {
        let shown = if new["clusterIPs"].is_null() {
            serde_json::json!([address(new)])
        } else {
            new["clusterIPs"].clone()
        };
        found.add(Defect::invalid("spec.clusterIPs[0]", &shown, "may not change once set"));
    }
}

fn node(new: &Value, old: &Value, found: &mut Found) {
    if !text(&old["providerID"]).is_empty() && new["providerID"] != old["providerID"] {
        found.add(Defect::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    if !text(&old["podCIDR"]).is_empty() && new["podCIDR"] != old["podCIDR"] {
        found.add(Defect::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
}

fn job(new: &Value, old: &Value, found: &mut Found) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    // An indexed job may grow or shrink as long as completions and parallelism stay one number.
    let elastic = before["completionMode"] == "Indexed"
        && spec["completions"].is_number()
        && spec["completions"] == spec["parallelism"];
    if spec["completions"] != before["completions"] && !elastic {
        found.add(Defect::invalid("spec.completions", &spec["completions"], IMMUTABLE));
    }
    if spec["completionMode"] != before["completionMode"] {
        found.add(Defect::invalid("spec.completionMode", &spec["completionMode"], IMMUTABLE));
    }
    // A suspended job that never started may still be told where to run.
    let idle = before["suspend"] == true && old["status"]["startTime"].is_null();
    if job_template(spec, idle) != job_template(before, idle) {
        found.add(Defect::invalid("spec.template", &spec["template"], IMMUTABLE));
    }
}

fn job_template(spec: &Value, idle: bool) -> Value {
    let mut template = spec["template"].clone();
    if idle {
        if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("labels");
            metadata.remove("annotations");
        }
        if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
            for name in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                pod.remove(name);
            }
        }
    }
    template
}
