//! Judges metadata: names, labels, annotations, finalizers and owners, and what of it may change.
//!
//! Invariant: the form of a name is a column of the kind, not of the caller.

use serde_json::Value;

use super::{Found, entries, items, names, text};
use crate::kinds::Kind;
use crate::schema::Defect;

/// The most bytes that the annotations of an object may have together.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
/// Finalizers of core that need no domain.
const STANDARD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];
/// What stays as it was made; absent and empty are one.
const IDENTITY: &[&str] =
    &["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
/// Kinds that cannot own (`ValidateOwnerReferences`).
const NO_OWNERS: &[(&str, &str)] = &[("v1", "Event")];

/// `ValidateObjectMeta`.
pub(super) fn object(kind: &Kind, metadata: &Value, found: &mut Found) {
    let name = text(&metadata["name"]);
    let prefix = text(&metadata["generateName"]);
    if !prefix.is_empty() {
        let broken = name_rules(kind, &names::masked(prefix));
        found.rules(&metadata["generateName"], "metadata.generateName", broken);
    }
    if !name.is_empty() {
        found.rules(&metadata["name"], "metadata.name", name_rules(kind, name));
    } else if prefix.is_empty() {
        found.add(Defect::required("metadata.name", "name or generateName is required"));
    }
    let namespace = text(&metadata["namespace"]);
    if kind.namespaced {
        if found.required(&metadata["namespace"], "metadata.namespace").is_some() {
            found.rules(&metadata["namespace"], "metadata.namespace", names::label(namespace));
        }
    } else if !namespace.is_empty() {
        found.add(Defect::forbidden("metadata.namespace", "not allowed on this type"));
    }
    labels(&metadata["labels"], "metadata.labels", found);
    annotations(&metadata["annotations"], "metadata.annotations", found);
    for (index, finalizer) in items(&metadata["finalizers"]).iter().enumerate() {
        let broken = names::qualified(text(finalizer));
        if broken.is_empty()
            && !text(finalizer).contains('/')
            // Kinds beyond Kubernetes' own, and their definitions, are held by whatever qualifies as a name.
            && kind.custom().is_none()
            && kind.group != "apiextensions.k8s.io"
            && !STANDARD_FINALIZERS.contains(&text(finalizer))
        {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            found.add(Defect::invalid(format!("metadata.finalizers[{index}]"), finalizer, why));
        }
        found.rules(finalizer, "metadata.finalizers", broken);
    }
    owners(&metadata["ownerReferences"], found);
}

/// `ValidateObjectMetaUpdate`: identity stays, and a dying object gets no new finalizers.
pub(super) fn update(new: &Value, old: &Value, found: &mut Found) {
    for name in IDENTITY {
        let given =
            |metadata: &Value| metadata.get(*name).filter(|value| !value.is_null() && **value != "").cloned();
        if given(new) != given(old) {
            found.add(Defect::invalid(format!("metadata.{name}"), &new[*name], "field is immutable"));
        }
    }
    if !old["deletionTimestamp"].is_null() {
        let kept = items(&old["finalizers"]);
        let added: Vec<String> =
            items(&new["finalizers"]).iter().filter(|f| !kept.contains(f)).map(Value::to_string).collect();
        if !added.is_empty() {
            let list = added.join(", ");
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            );
            found.add(Defect::forbidden("metadata.finalizers", &why));
        }
    }
}

/// `ValidateLabels`: also of a pod template.
pub(super) fn labels(labels: &Value, path: &str, found: &mut Found) {
    for (key, value) in entries(labels) {
        found.rules(&key.as_str().into(), path, names::qualified(key));
        found.rules(value, path, names::label_value(text(value)));
    }
}

/// `ValidateAnnotations`: keys without regard to case, and the size of all together.
pub(super) fn annotations(annotations: &Value, path: &str, found: &mut Found) {
    let mut bytes = 0;
    for (key, value) in entries(annotations) {
        found.rules(&key.as_str().into(), path, names::qualified(&key.to_lowercase()));
        bytes += key.len() + text(value).len();
    }
    if bytes > MAX_ANNOTATION_BYTES {
        found.add(Defect::too_long(path, MAX_ANNOTATION_BYTES));
    }
}

/// `ValidateLabelSelector`.
pub(super) fn selector(selector: &Value, path: &str, found: &mut Found) {
    labels(&selector["matchLabels"], &format!("{path}.matchLabels"), found);
    for (index, term) in items(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = items(&term["values"]);
        match text(&term["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                found.add(Defect::required(
                    format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                found.add(Defect::forbidden(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => found.add(Defect::invalid(
                format!("{path}.operator"),
                &term["operator"],
                "not a valid selector operator",
            )),
        }
        found.rules(&term["key"], &format!("{path}.key"), names::qualified(text(&term["key"])));
        for (index, value) in values.iter().enumerate() {
            found.rules(value, &format!("{path}.values[{index}]"), names::label_value(text(value)));
        }
    }
}

fn name_rules(kind: &Kind, name: &str) -> Vec<String> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => names::label(name),
        ("", "Service") => names::label_1035(name),
        // Names such as `system:controller:job-controller` are the rule there.
        // An APIService is called after a version and a group, which core has none of: `v1.`.
        ("rbac.authorization.k8s.io" | "certificates.k8s.io" | "apiregistration.k8s.io", _) => {
            names::path_segment(name)
        }
        _ => names::subdomain(name),
    }
}

fn owners(owners: &Value, found: &mut Found) {
    let mut controller: Option<&Value> = None;
    for owner in items(owners) {
        let path = "metadata.ownerReferences";
        for (name, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(&owner[name]).is_empty() {
                found.add(Defect::invalid(format!("{path}.{name}"), &text(&owner[name]).into(), why));
            }
        }
        if NO_OWNERS.contains(&(text(&owner["apiVersion"]), text(&owner["kind"]))) {
            let why = format!(
                "{}, Kind={} is disallowed from being an owner",
                text(&owner["apiVersion"]),
                text(&owner["kind"])
            );
            found.add(Defect::invalid(path, owner, &why));
        }
        if owner["controller"] == true {
            if let Some(first) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    reference(first),
                    reference(owner)
                );
                found.add(Defect::invalid(path, owners, &why));
            }
            controller = Some(owner);
        }
    }
}

fn reference(owner: &Value) -> String {
    format!("{}/{}", text(&owner["kind"]), text(&owner["name"]))
}
