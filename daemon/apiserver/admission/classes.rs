//! DefaultStorageClass, DefaultIngressClass, RuntimeClass, StorageObjectInUseProtection and PersistentVolumeClaimResize:
//! what an object gets from the class it names, or from the default one.

use api::error::ApiError;
use api::kinds::Kind;
use api::quantity::Quantity;
use serde_json::{Value, json};

use super::{find, forbidden, stored};
use crate::Inner;
use crate::object::{meta, metadata};

const STORAGE: &str = "storage.k8s.io/v1";
const STORAGE_DEFAULTS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const INGRESS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

/// A claim that names no class gets the default one; of several the newest.
pub(super) fn storage(inner: &Inner, claim: &mut Value) {
    let old = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    if !claim["spec"]["storageClassName"].is_null() || !old.is_null() {
        return;
    }
    let mut classes = stored(inner, STORAGE, "StorageClass", "");
    classes.retain(|class| {
        STORAGE_DEFAULTS.iter().any(|name| class["metadata"]["annotations"][*name] == "true")
    });
    let newest = classes.into_iter().max_by(|a, b| {
        let made = meta(a, "creationTimestamp").cmp(meta(b, "creationTimestamp"));
        made.then_with(|| meta(b, "name").cmp(meta(a, "name")))
    });
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = meta(&class, "name").into();
    }
}

/// A volume or claim in use is not taken away, once somebody looks after it.
pub(super) fn protect(kind: &Kind, object: &mut Value, finalizer: &str) {
    if kind.unattended().is_some() {
        return;
    }
    let held = metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = held.as_array_mut()
        && !list.iter().any(|one| one == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// Only a claim whose class lets it grow may grow.
pub(super) fn may_grow(inner: &Inner, kind: &Kind, old: &Value, claim: &Value) -> Result<(), ApiError> {
    let size = |claim: &Value| Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]).ok();
    let grows = matches!((size(old), size(claim)), (Some(before), Some(now)) if now > before);
    if !grows {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(forbidden(kind, claim, "Only bound persistent volume claims can be expanded"));
    }
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = find(inner, STORAGE, "StorageClass", "", class);
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(forbidden(kind, claim, why))
}

/// An Ingress that names no class gets the default one.
pub(super) fn ingress(inner: &Inner, kind: &Kind, ingress: &mut Value) -> Result<(), ApiError> {
    let named = !ingress["spec"]["ingressClassName"].is_null()
        || !ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null();
    if named {
        return Ok(());
    }
    let mut classes = stored(inner, "networking.k8s.io/v1", "IngressClass", "");
    classes.retain(|class| class["metadata"]["annotations"][INGRESS_DEFAULT] == "true");
    match classes.as_slice() {
        [] => {}
        [one] => ingress["spec"]["ingressClassName"] = meta(one, "name").into(),
        several => {
            let why = format!("{} default IngressClasses were found, only 1 allowed", several.len());
            return Err(forbidden(kind, ingress, &why));
        }
    }
    Ok(())
}

/// Overhead and scheduling of the pod's runtime class.
pub(super) fn runtime(inner: &Inner, kind: &Kind, pod: &mut Value) -> Result<(), ApiError> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
        if !pod["spec"]["overhead"].is_null() {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(forbidden(kind, pod, why));
        }
        return Ok(());
    };
    let Some(class) = find(inner, "node.k8s.io/v1", "RuntimeClass", "", &name) else {
        return Err(forbidden(kind, pod, &format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let overhead = &class["overhead"]["podFixed"];
    if !overhead.is_null() {
        if !pod["spec"]["overhead"].is_null() && pod["spec"]["overhead"] != *overhead {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(forbidden(kind, pod, why));
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (label, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = pod["spec"]["nodeSelector"][label].as_str();
        if own.is_some_and(|own| value != own) {
            let why = format!(
                "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{label}] = {}; pod.spec.nodeSelector[{label}] = {}",
                value.as_str().unwrap_or_default(),
                own.unwrap_or_default()
            );
            return Err(forbidden(kind, pod, &why));
        }
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][label] = value.clone();
    }
    let more = class["scheduling"]["tolerations"].as_array().cloned().unwrap_or_default();
    if !more.is_empty() {
        let mut all = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        let new: Vec<Value> = more.into_iter().filter(|one| !all.contains(one)).collect();
        all.extend(new);
        pod["spec"]["tolerations"] = all.into();
    }
    Ok(())
}
