//! Defaults of volumes, claims, classes and drivers.

use serde_json::json;

use super::{Fields, child, made, set};

pub(super) fn volume(map: &mut Fields) {
    set(made(map, "status"), "phase", || "Pending".into());
    let spec = made(map, "spec");
    set(spec, "persistentVolumeReclaimPolicy", || "Retain".into());
    set(spec, "volumeMode", || "Filesystem".into());
    if let Some(host) = child(spec, "hostPath") {
        set(host, "type", || "".into());
    }
}

pub(super) fn claim(map: &mut Fields) {
    set(made(map, "status"), "phase", || "Pending".into());
    set(made(map, "spec"), "volumeMode", || "Filesystem".into());
}

pub(super) fn class(map: &mut Fields) {
    set(map, "reclaimPolicy", || "Delete".into());
    set(map, "volumeBindingMode", || "Immediate".into());
}

pub(super) fn driver(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "attachRequired", || true.into());
    set(spec, "podInfoOnMount", || false.into());
    set(spec, "storageCapacity", || false.into());
    set(spec, "fsGroupPolicy", || "ReadWriteOnceWithFSType".into());
    set(spec, "volumeLifecycleModes", || json!(["Persistent"]));
    set(spec, "requiresRepublish", || false.into());
    set(spec, "seLinuxMount", || false.into());
}
