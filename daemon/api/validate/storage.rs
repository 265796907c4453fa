//! Judges volumes, claims, classes, drivers and attachments.
//!
//! Invariant: a claim or a volume that is bound keeps what it was bound by.

use serde_json::Value;

use super::{Found, entries, items, meta, names, resources, text};
use crate::quantity::Quantity;
use crate::schema::Defect;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
const MOST_PARAMETERS: usize = 512;

/// Fields of a volume's spec that are no source.
const NO_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `ValidatePersistentVolume`.
pub(super) fn volume(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    access_modes(&spec["accessModes"], "spec.accessModes", found);
    if spec["capacity"].as_object().is_none_or(|capacity| capacity.is_empty()) {
        found.add(Defect::required("spec.capacity", ""));
    } else if entries(&spec["capacity"]).any(|(name, _)| name != "storage") {
        found.add(Defect::not_supported("spec.capacity", &spec["capacity"], &["storage"]));
    }
    for (name, amount) in entries(&spec["capacity"]) {
        positive(amount, &format!("spec.capacity[{name}]"), found);
    }
    found.one_of(
        &spec["persistentVolumeReclaimPolicy"],
        "spec.persistentVolumeReclaimPolicy",
        RECLAIM_POLICIES,
    );
    found.one_of(&spec["volumeMode"], "spec.volumeMode", VOLUME_MODES);
    class_name(&spec["storageClassName"], "spec.storageClassName", found);
    let sources: Vec<&String> = entries(spec)
        .filter(|(name, source)| !NO_SOURCES.contains(&name.as_str()) && !source.is_null())
        .map(|(name, _)| name)
        .collect();
    match sources.as_slice() {
        [] => found.add(Defect::required("spec", "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => {
            for name in more {
                let why = "may not specify more than 1 volume type";
                found.add(Defect::forbidden(format!("spec.{name}"), why));
            }
        }
    }
    let host = &spec["hostPath"]["path"];
    if spec["hostPath"].is_object() && found.required(host, "spec.hostPath.path").is_some() {
        if text(host).split('/').any(|part| part == "..") {
            found.add(Defect::invalid("spec.hostPath.path", host, "must not contain '..'"));
        }
        if host == "/" && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
            let why = "may not be 'recycle' for a hostPath mount of '/'";
            found.add(Defect::forbidden("spec.persistentVolumeReclaimPolicy", why));
        }
    }
    if spec["local"].is_object() {
        found.required(&spec["local"]["path"], "spec.local.path");
        if spec["nodeAffinity"].is_null() {
            found.add(Defect::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
}

/// `ValidatePersistentVolumeUpdate`.
pub(super) fn volume_update(new: &Value, old: &Value, found: &mut Found) {
    let source = |object: &Value| {
        let spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.into_iter().filter(|(name, _)| !NO_SOURCES.contains(&name.as_str())).collect::<Vec<_>>()
    };
    if source(new) != source(old) {
        let why = "spec.persistentvolumesource is immutable after creation";
        found.add(Defect::forbidden("spec.persistentvolumesource", why));
    }
    if new["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        found.add(Defect::invalid("spec.volumeMode", &new["spec"]["volumeMode"], "field is immutable"));
    }
}

/// `ValidatePersistentVolumeClaim`.
pub(super) fn claim(object: &Value, found: &mut Found) {
    claim_spec(&object["spec"], "spec", found);
}

/// `ValidatePersistentVolumeClaimSpec`: also of claims in templates.
pub(super) fn claim_spec(spec: &Value, path: &str, found: &mut Found) {
    access_modes(&spec["accessModes"], &format!("{path}.accessModes"), found);
    let storage = &spec["resources"]["requests"]["storage"];
    let at = format!("{path}.resources[storage]");
    if storage.is_null() {
        found.add(Defect::required(at, ""));
    } else {
        positive(storage, &at, found);
    }
    class_name(&spec["storageClassName"], &format!("{path}.storageClassName"), found);
    found.one_of(&spec["volumeMode"], &format!("{path}.volumeMode"), VOLUME_MODES);
    meta::selector(&spec["selector"], &format!("{path}.selector"), found);
    if spec["dataSource"].is_object() {
        found.required(&spec["dataSource"]["name"], &format!("{path}.dataSource.name"));
        found.required(&spec["dataSource"]["kind"], &format!("{path}.dataSource.kind"));
    }
}

/// `ValidatePersistentVolumeClaimUpdate`: a bound claim may only grow; an unbound one is bound once.
pub(super) fn claim_update(new: &Value, old: &Value, found: &mut Found) {
    let bound = old["status"]["phase"] == "Bound";
    let fixed = |object: &Value| {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        if text(&old["spec"]["volumeName"]).is_empty() {
            spec.remove("volumeName");
        }
        // A default class may be given to a claim that had none.
        if old["spec"]["storageClassName"].is_null() {
            spec.remove("storageClassName");
        }
        if bound {
            spec.remove("volumeAttributesClassName");
            spec.remove("resources");
        }
        spec
    };
    if fixed(new) != fixed(old) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        found.add(Defect::forbidden("spec", why));
    }
    let size =
        |object: &Value| Quantity::parse(text(&object["spec"]["resources"]["requests"]["storage"])).ok();
    if let (Some(now), Some(before)) = (size(new), size(old))
        && now < before
    {
        let why = "field can not be less than previous value";
        found.add(Defect::forbidden("spec.resources.requests.storage", why));
    }
}

/// `ValidateStorageClass`.
pub(super) fn class(object: &Value, found: &mut Found) {
    if let Some(name) = found.required(&object["provisioner"], "provisioner") {
        found.rules(&object["provisioner"], "provisioner", names::qualified(&name.to_lowercase()));
    }
    if entries(&object["parameters"]).count() > MOST_PARAMETERS {
        found.add(Defect::too_long("provisioner parameters", MOST_PARAMETERS));
    }
    for (name, _) in entries(&object["parameters"]).filter(|(name, _)| name.is_empty()) {
        found.add(Defect::invalid("parameters", &name.as_str().into(), "field can not be empty."));
    }
    found.one_of(&object["reclaimPolicy"], "reclaimPolicy", &["Delete", "Retain"]);
    found.one_of(&object["volumeBindingMode"], "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
}

/// `ValidateStorageClassUpdate`.
pub(super) fn class_update(new: &Value, old: &Value, found: &mut Found) {
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if new[name] != old[name] {
            found.add(Defect::forbidden(name, &format!("updates to {name} are forbidden.")));
        }
    }
    if new["volumeBindingMode"] != old["volumeBindingMode"] {
        found.add(Defect::invalid("volumeBindingMode", &new["volumeBindingMode"], "field is immutable"));
    }
}

/// `ValidateVolumeAttachment`.
pub(super) fn attachment(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.required(&spec["attacher"], "spec.attacher");
    found.required(&spec["nodeName"], "spec.nodeName");
    let source = &spec["source"];
    match (!source["persistentVolumeName"].is_null(), !source["inlineVolumeSpec"].is_null()) {
        (false, false) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            found.add(Defect::required("spec.source", why));
        }
        (true, true) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            found.add(Defect::invalid("spec.source", source, why));
        }
        _ => {}
    }
}

/// `ValidateCSINode`.
pub(super) fn csi_node(object: &Value, found: &mut Found) {
    let mut seen = Vec::new();
    for (index, driver) in items(&object["spec"]["drivers"]).iter().enumerate() {
        let path = format!("spec.drivers[{index}]");
        driver_name(&driver["name"], &format!("{path}.name"), found);
        found.required(&driver["nodeID"], &format!("{path}.nodeID"));
        if seen.contains(&&driver["name"]) {
            found.add(Defect::duplicate(format!("{path}.name"), &driver["name"]));
        }
        seen.push(&driver["name"]);
    }
}

/// `ValidateCSIDriver`.
pub(super) fn csi_driver(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.one_of(&spec["fsGroupPolicy"], "spec.fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"]);
    for (index, mode) in items(&spec["volumeLifecycleModes"]).iter().enumerate() {
        found.one_of(mode, &format!("spec.volumeLifecycleModes[{index}]"), &["Ephemeral", "Persistent"]);
    }
}

/// `ValidateCSIStorageCapacity`.
pub(super) fn capacity(object: &Value, found: &mut Found) {
    if found.required(&object["storageClassName"], "storageClassName").is_some() {
        class_name(&object["storageClassName"], "storageClassName", found);
    }
    for name in ["capacity", "maximumVolumeSize"] {
        resources::non_negative(&object[name], name, found);
    }
    meta::selector(&object["nodeTopology"], "nodeTopology", found);
}

fn driver_name(name: &Value, path: &str, found: &mut Found) {
    if let Some(text) = found.required(name, path) {
        found.rules(name, path, names::subdomain(&text.to_lowercase()));
    }
}

fn access_modes(modes: &Value, path: &str, found: &mut Found) {
    if items(modes).is_empty() {
        found.add(Defect::required(path, "at least 1 access mode is required"));
    }
    for mode in items(modes) {
        found.one_of(mode, path, ACCESS_MODES);
    }
    if items(modes).len() > 1 && items(modes).iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        found.add(Defect::forbidden(path, why));
    }
}

fn class_name(name: &Value, path: &str, found: &mut Found) {
    if !text(name).is_empty() {
        found.rules(name, path, names::subdomain(text(name)));
    }
}

fn positive(amount: &Value, path: &str, found: &mut Found) {
    let quantity = Quantity::from_value(amount).ok();
    if quantity.is_some_and(|quantity| quantity.is_zero() || quantity.is_negative()) {
        found.add(Defect::invalid(path, amount, "must be greater than zero"));
    }
}
