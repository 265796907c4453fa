//! Prints volumes, claims, classes, drivers and attachments.
//!
//! Invariant: access modes are kubectl's short words, in the order that the API documents.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, age_of, boolean, flag, is_default_class, items, name, number, or, string, text, wide,
};

pub(super) const VOLUME: &[Column] = &[
    NAME,
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    AGE,
    wide("VolumeMode"),
];

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let claim = &spec["claimRef"];
    let claim = if claim.is_object() {
        format!("{}/{}", string(&claim["namespace"]), string(&claim["name"]))
    } else {
        String::new()
    };
    vec![
        name(object),
        string(&spec["capacity"]["storage"]).into(),
        access_modes(&spec["accessModes"]).into(),
        string(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(object).into(),
        claim.into(),
        class_of(object),
        or(string(&spec["volumeAttributesClassName"]), "<unset>"),
        string(&status["reason"]).into(),
        age_of(object, now),
        or(string(&spec["volumeMode"]), "<unset>"),
    ]
}

pub(super) const CLAIM: &[Column] = &[
    NAME,
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let bound = !string(&spec["volumeName"]).is_empty();
    let (capacity, modes) = if bound {
        (string(&status["capacity"]["storage"]), access_modes(&status["accessModes"]))
    } else {
        ("", String::new())
    };
    vec![
        name(object),
        phase(object).into(),
        string(&spec["volumeName"]).into(),
        capacity.into(),
        modes.into(),
        class_of(object),
        or(string(&spec["volumeAttributesClassName"]), "<unset>"),
        age_of(object, now),
        or(string(&spec["volumeMode"]), "<unset>"),
    ]
}

fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return "Terminating";
    }
    string(&object["status"]["phase"])
}

/// The class in the field, or in the annotation that came before it.
fn class_of(object: &Value) -> Value {
    let old = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    if old.is_string() { old.clone() } else { string(&object["spec"]["storageClassName"]).into() }
}

fn access_modes(modes: &Value) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| items(modes).iter().any(|one| one == mode);
    let words: Vec<&str> = short.iter().filter(|(mode, _)| has(mode)).map(|(_, word)| *word).collect();
    words.join(",")
}

pub(super) const CLASS: &[Column] = &[
    NAME,
    text("Provisioner"),
    text("ReclaimPolicy"),
    text("VolumeBindingMode"),
    flag("AllowVolumeExpansion"),
    AGE,
];

pub(super) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let shown = string(&object["metadata"]["name"]);
    let shown = if is_default_class(object, "storageclass.kubernetes.io/is-default-class")
        || is_default_class(object, "storageclass.beta.kubernetes.io/is-default-class")
    {
        format!("{shown} (default)")
    } else {
        shown.to_owned()
    };
    vec![
        shown.into(),
        string(&object["provisioner"]).into(),
        or(string(&object["reclaimPolicy"]), "Delete"),
        or(string(&object["volumeBindingMode"]), "Immediate"),
        boolean(&object["allowVolumeExpansion"]),
        age_of(object, now),
    ]
}

pub(super) const CSI_NODE: &[Column] = &[NAME, number("Drivers"), AGE];

pub(super) fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["spec"]["drivers"]).len().into(), age_of(object, now)]
}

pub(super) const CSI_DRIVER: &[Column] = &[
    NAME,
    flag("AttachRequired"),
    flag("PodInfoOnMount"),
    flag("StorageCapacity"),
    text("TokenRequests"),
    flag("RequiresRepublish"),
    text("Modes"),
    AGE,
];

pub(super) fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let tokens: Vec<&str> =
        items(&spec["tokenRequests"]).iter().map(|one| string(&one["audience"])).collect();
    let modes: Vec<&str> = items(&spec["volumeLifecycleModes"]).iter().map(string).collect();
    vec![
        name(object),
        (spec["attachRequired"] != false).into(),
        boolean(&spec["podInfoOnMount"]),
        boolean(&spec["storageCapacity"]),
        or(&tokens.join(","), "<unset>"),
        boolean(&spec["requiresRepublish"]),
        or(&modes.join(","), "<none>"),
        age_of(object, now),
    ]
}

pub(super) const CAPACITY: &[Column] = &[NAME, text("StorageClassName"), text("Capacity")];

pub(super) fn capacity(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["storageClassName"]).into(), or(string(&object["capacity"]), "<unset>")]
}

pub(super) const ATTACHMENT: &[Column] =
    &[NAME, text("Attacher"), text("PV"), text("Node"), flag("Attached"), AGE];

pub(super) fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    vec![
        name(object),
        string(&spec["attacher"]).into(),
        string(&spec["source"]["persistentVolumeName"]).into(),
        string(&spec["nodeName"]).into(),
        boolean(&object["status"]["attached"]),
        age_of(object, now),
    ]
}
