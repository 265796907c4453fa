//! Whether a PersistentVolume is what a PersistentVolumeClaim asks for.
//!
//! Invariant: where the volume lies is not asked here: that depends on the node.

use serde_json::Value;

use crate::quantity::Quantity;
use crate::select::Labels;

/// Whether a volume could be bound to a claim: free or promised to it, of its class and mode, and large enough.
pub fn satisfies(volume: &Value, claim: &Value) -> bool {
    let (offered, wanted) = (&volume["spec"], &claim["spec"]);
    if !volume["metadata"]["deletionTimestamp"].is_null() {
        return false;
    }
    let reference = &offered["claimRef"];
    if !reference.is_null() {
        return is_for(reference, claim);
    }
    let phase = volume["status"]["phase"].as_str().unwrap_or("Available");
    let selector = &wanted["selector"];
    let selected = selector.is_null()
        || Labels::from_selector(selector).is_ok_and(|labels| labels.matches_object(volume));
    matches!(phase, "Available" | "Pending")
        && selected
        && is_such(offered, wanted)
        && is_large_enough(volume, claim)
}

/// Whether `spec.claimRef` of a volume means this claim.
pub fn is_for(reference: &Value, claim: &Value) -> bool {
    let meta = &claim["metadata"];
    let uid = reference["uid"].as_str().unwrap_or_default();
    reference["name"] == meta["name"]
        && reference["namespace"] == meta["namespace"]
        && (uid.is_empty() || meta["uid"] == uid)
}

/// Class, volume mode and access modes.
pub fn is_such(offered: &Value, wanted: &Value) -> bool {
    let text = |value: &Value, default: &'static str| value.as_str().unwrap_or(default).to_owned();
    let has = |mode: &Value| offered["accessModes"].as_array().is_some_and(|modes| modes.contains(mode));
    text(&offered["storageClassName"], "") == text(&wanted["storageClassName"], "")
        && text(&offered["volumeMode"], "Filesystem") == text(&wanted["volumeMode"], "Filesystem")
        && text(&offered["volumeAttributesClassName"], "") == text(&wanted["volumeAttributesClassName"], "")
        && wanted["accessModes"].as_array().is_none_or(|modes| modes.iter().all(has))
}

/// Whether the volume holds what the claim asks for.
pub fn is_large_enough(volume: &Value, claim: &Value) -> bool {
    match (capacity(volume), requested(claim)) {
        (Some(has), Some(wants)) => has >= wants,
        (_, None) => true,
        (None, Some(_)) => false,
    }
}

/// `spec.capacity.storage` of a volume.
pub fn capacity(volume: &Value) -> Option<Quantity> {
    Quantity::from_value(&volume["spec"]["capacity"]["storage"]).ok()
}

/// `spec.resources.requests.storage` of a claim.
pub fn requested(claim: &Value) -> Option<Quantity> {
    Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim() -> Value {
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}})
    }

    fn volume(change: Value) -> Value {
        let mut volume = json!({"metadata": {"name": "v", "labels": {"disk": "ssd"}}, "spec": {
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "fast", "capacity": {"storage": "8Gi"}}});
        for (key, value) in change.as_object().into_iter().flatten() {
            volume["spec"][key] = value.clone();
        }
        volume
    }

    #[test]
    fn a_volume_satisfies_a_claim_by_size_class_modes_and_promise() {
        for (change, fits) in [
            (json!({}), true),
            (json!({"capacity": {"storage": "4Gi"}}), false),
            (json!({"storageClassName": "slow"}), false),
            (json!({"accessModes": ["ReadOnlyMany"]}), false),
            (json!({"volumeMode": "Block"}), false),
            (json!({"claimRef": {"name": "c", "namespace": "n"}}), true),
            (json!({"claimRef": {"name": "c", "namespace": "n", "uid": "other"}}), false),
            (json!({"claimRef": {"name": "d", "namespace": "n"}}), false),
        ] {
            assert_eq!(satisfies(&volume(change.clone()), &claim()), fits, "{change}");
        }
    }

    #[test]
    fn a_selector_of_the_claim_must_hold() {
        for (value, fits) in [("ssd", true), ("hdd", false)] {
            let mut claim = claim();
            claim["spec"]["selector"] = json!({"matchLabels": {"disk": value}});
            assert_eq!(satisfies(&volume(json!({})), &claim), fits, "{value}");
        }
    }
}
