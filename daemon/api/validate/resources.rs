//! Judges amounts of resources: names, quantities, and requests against limits.
//!
//! Invariant: amounts are compared as quantities, never as texts.

use serde_json::Value;

use super::{Found, entries, items, names, text};
use crate::quantity::Quantity;
use crate::schema::Defect;

/// Resources that a container may ask for without a domain.
const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Standard names that are no container's: of claims, quotas and nodes.
const STANDARD_ELSEWHERE: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "secrets",
    "services",
    "storage",
];

/// `ValidateResourceRequirements` of a container.
pub(super) fn requirements(resources: &Value, path: &str, found: &mut Found) {
    for list in ["limits", "requests"] {
        for (name, amount) in entries(&resources[list]) {
            let path = format!("{path}.{list}[{name}]");
            let broken = names::qualified(name);
            if broken.is_empty() && !name.contains('/') && !is_container_resource(name) {
                if !STANDARD_ELSEWHERE.contains(&name.as_str()) {
                    let why = "must be a standard resource type or fully qualified";
                    found.add(Defect::invalid(path.clone(), &name.as_str().into(), why));
                }
                let why = "must be a standard resource for containers";
                found.add(Defect::invalid(path.clone(), &name.as_str().into(), why));
            }
            found.rules(&name.as_str().into(), &path, broken);
            amount_at(name, amount, &path, found);
        }
    }
    for (name, request) in entries(&resources["requests"]) {
        let limit = &resources["limits"][name];
        let path = format!("{path}.requests");
        match (parsed(request), parsed(limit)) {
            (Some(wanted), Some(most)) if wanted > most => {
                let why = format!("must be less than or equal to {name} limit of {}", text(limit));
                found.add(Defect::invalid(path, request, &why));
            }
            (Some(wanted), Some(most)) if is_extended(name) && wanted != most => {
                found.add(Defect::invalid(
                    path,
                    request,
                    &format!("must be equal to {name} limit of {}", text(limit)),
                ));
            }
            (Some(_), None) if is_extended(name) => {
                found.add(Defect::required(
                    format!("{}.limits", path.trim_end_matches(".requests")),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
    for (index, claim) in items(&resources["claims"]).iter().enumerate() {
        found.required(&claim["name"], &format!("{path}.claims[{index}].name"));
    }
}

/// Amounts of a node's capacity.
pub(super) fn amounts(list: &Value, path: &str, found: &mut Found) {
    for (name, amount) in entries(list) {
        amount_at(name, amount, &format!("{path}[{name}]"), found);
    }
}

/// `must be greater than or equal to 0` when a present quantity is negative.
pub(super) fn non_negative(amount: &Value, path: &str, found: &mut Found) {
    if parsed(amount).is_some_and(|amount| amount.is_negative()) {
        found.add(Defect::invalid(path, amount, "must be greater than or equal to 0"));
    }
}

fn amount_at(name: &str, amount: &Value, path: &str, found: &mut Found) {
    non_negative(amount, path, found);
    let whole_only = is_extended(name) || name == "pods";
    if whole_only && text(amount).ends_with('m') {
        found.add(Defect::invalid(path, amount, "must be an integer"));
    }
}

fn parsed(amount: &Value) -> Option<Quantity> {
    amount.as_str().and_then(|text| Quantity::parse(text).ok())
}

fn is_container_resource(name: &str) -> bool {
    STANDARD.contains(&name) || name.starts_with("hugepages-")
}

/// A resource of someone's own domain: whole units, never overcommitted.
fn is_extended(name: &str) -> bool {
    name.starts_with("hugepages-") || name.contains('/') && !name.contains("kubernetes.io/")
}
