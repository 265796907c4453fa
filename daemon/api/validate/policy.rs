//! Judges what allows, refuses and bounds: roles, budgets, quotas, limits, classes, network policies.
//!
//! Invariant: amounts are compared as quantities, never as texts.

use serde_json::{Value, json};

use super::{Found, entries, items, meta, names, resources, text, workloads};
use crate::quantity::Quantity;
use crate::schema::Defect;

const RBAC: &str = "rbac.authorization.k8s.io";
/// The highest priority that is not the system's own.
const MOST_PRIORITY: i64 = 1_000_000_000;

/// `ValidatePodDisruptionBudget`.
pub(super) fn budget(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        found.add(Defect::invalid("spec", spec, why));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        workloads::share(&spec[name], &format!("spec.{name}"), found);
    }
    meta::selector(&spec["selector"], "spec.selector", found);
    found.one_of(
        &spec["unhealthyPodEvictionPolicy"],
        "spec.unhealthyPodEvictionPolicy",
        &["AlwaysAllow", "IfHealthyBudget"],
    );
}

/// `ValidateNetworkPolicy`.
pub(super) fn network_policy(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    meta::selector(&spec["podSelector"], "spec.podSelector", found);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(&spec[list]).iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            for (at, port) in items(&rule["ports"]).iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{at}]"), found);
            }
            for (at, peer) in items(&rule[peers]).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{at}]"), found);
            }
        }
    }
    for (index, one) in items(&spec["policyTypes"]).iter().enumerate() {
        found.one_of(one, &format!("spec.policyTypes[{index}]"), &["Egress", "Ingress"]);
    }
}

fn policy_port(port: &Value, path: &str, found: &mut Found) {
    found.one_of(&port["protocol"], &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]);
    match &port["port"] {
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(0);
            found.rules(&port["port"], &format!("{path}.port"), names::port_number(number));
            if port["endPort"].as_i64().is_some_and(|end| end < number) {
                let why = "must be greater than or equal to `port`";
                found.add(Defect::invalid(format!("{path}.endPort"), &port["endPort"], why));
            }
        }
        Value::String(name) => {
            found.rules(&port["port"], &format!("{path}.port"), names::port_name(name));
            if !port["endPort"].is_null() {
                let why = "may not be specified when `port` is non-numeric";
                found.add(Defect::forbidden(format!("{path}.endPort"), why));
            }
        }
        _ if !port["endPort"].is_null() => {
            let why = "may not be specified when `port` is not specified";
            found.add(Defect::forbidden(format!("{path}.endPort"), why));
        }
        _ => {}
    }
}

fn policy_peer(peer: &Value, path: &str, found: &mut Found) {
    let set = |name: &str| !peer[name].is_null();
    let selected = set("podSelector") || set("namespaceSelector");
    if !selected && !set("ipBlock") {
        found.add(Defect::required(path, "must specify a peer"));
    } else if selected && set("ipBlock") {
        found.add(Defect::forbidden(path, "may not specify both ipBlock and another peer"));
    }
    for name in ["podSelector", "namespaceSelector"] {
        meta::selector(&peer[name], &format!("{path}.{name}"), found);
    }
    let block = &peer["ipBlock"];
    if block.is_null() {
        return;
    }
    let path = format!("{path}.ipBlock");
    if found.required(&block["cidr"], &format!("{path}.cidr")).is_none() {
        return;
    }
    let Some(outer) = cidr(text(&block["cidr"])) else {
        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        return found.add(Defect::invalid(format!("{path}.cidr"), &block["cidr"], why));
    };
    for (index, except) in items(&block["except"]).iter().enumerate() {
        let path = format!("{path}.except[{index}]");
        match cidr(text(except)) {
            None => {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                found.add(Defect::invalid(path, except, why));
            }
            Some(inner) if inner.1 <= outer.1 || masked(inner.0, outer.1) != masked(outer.0, outer.1) => {
                let why = format!("must be a strict subset of `cidr` {:?}", text(&block["cidr"]));
                found.add(Defect::invalid(path, except, &why));
            }
            Some(_) => {}
        }
    }
}

/// Address and length of prefix, as if of version 6.
fn cidr(text: &str) -> Option<(u128, u32)> {
    let (address, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    match address.parse().ok()? {
        std::net::IpAddr::V4(four) if length <= 32 => Some((four.to_ipv6_mapped().to_bits(), length + 96)),
        std::net::IpAddr::V6(six) if length <= 128 => Some((six.to_bits(), length)),
        _ => None,
    }
}

fn masked(address: u128, length: u32) -> u128 {
    if length == 0 { 0 } else { address >> (128 - length) }
}

/// `ValidateResourceQuota`.
pub(super) fn quota(object: &Value, old: Option<&Value>, found: &mut Found) {
    let spec = &object["spec"];
    for list in ["spec", "status"] {
        for (name, amount) in entries(&object[list]["hard"]) {
            let path = format!("{list}.hard[{name}]");
            found.rules(&name.as_str().into(), &path, names::qualified(name));
            resources::non_negative(amount, &path, found);
            if is_count(name) && text(amount).ends_with('m') {
                found.add(Defect::invalid(path, amount, "must be an integer"));
            }
        }
    }
    let scopes = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    for scope in items(&spec["scopes"]) {
        if !scopes.contains(&text(scope)) {
            found.add(Defect::invalid("spec.scopes", &spec["scopes"], "unsupported scope"));
        }
    }
    let has = |scope: &str| items(&spec["scopes"]).iter().any(|one| one == scope);
    if has("BestEffort") && has("NotBestEffort") || has("Terminating") && has("NotTerminating") {
        found.add(Defect::invalid("spec.scopes", &spec["scopes"], "conflicting scopes"));
    }
    for term in items(&spec["scopeSelector"]["matchExpressions"]) {
        let path = "spec.scopeSelector.matchExpressions";
        let (operator, values) = (text(&term["operator"]), items(&term["values"]));
        if !scopes.contains(&text(&term["scopeName"])) {
            found.add(Defect::invalid(format!("{path}.scopeName"), &term["scopeName"], "unsupported scope"));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                found.add(Defect::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                found.add(Defect::invalid(format!("{path}.values"), &term["values"], why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => found.add(Defect::invalid(
                format!("{path}.operator"),
                &term["operator"],
                "not a valid selector operator",
            )),
        }
    }
    if old.is_some_and(|old| old["spec"]["scopes"] != spec["scopes"]) {
        found.add(Defect::invalid("spec.scopes", &spec["scopes"], "field is immutable"));
    }
}

/// Names that count objects, which come whole.
fn is_count(name: &str) -> bool {
    name.starts_with("count/")
        || name.starts_with("services")
        || matches!(
            name,
            "pods"
                | "configmaps"
                | "secrets"
                | "persistentvolumeclaims"
                | "replicationcontrollers"
                | "resourcequotas"
        )
}

/// `ValidateLimitRange`.
pub(super) fn limit_range(object: &Value, found: &mut Found) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, limit) in items(&object["spec"]["limits"]).iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        let of_type = found.required(&limit["type"], &format!("{path}.type")).unwrap_or_default();
        if seen.contains(&of_type) {
            found.add(Defect::duplicate(format!("{path}.type"), &limit["type"]));
        }
        seen.push(of_type);
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (name, amount) in entries(&limit[list]) {
                let path = format!("{path}.{list}[{name}]");
                found.rules(&name.as_str().into(), &path, names::qualified(name));
                resources::non_negative(amount, &path, found);
            }
        }
        if of_type == "Pod" {
            for list in ["default", "defaultRequest"] {
                if entries(&limit[list]).next().is_some() {
                    let why = "may not be specified when `type` is 'Pod'";
                    found.add(Defect::forbidden(format!("{path}.{list}"), why));
                }
            }
        }
        if of_type == "PersistentVolumeClaim"
            && ["min", "max"].iter().all(|list| limit[*list]["storage"].is_null())
        {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            found.add(Defect::required(format!("{path}.limits"), why));
        }
        ordered(limit, &path, found);
    }
}

/// The least is not above the request, the request not above the default, the default not above the most.
fn ordered(limit: &Value, path: &str, found: &mut Found) {
    for (low, low_word, high, high_word) in [
        ("min", "min", "max", "max"),
        ("min", "min", "defaultRequest", "default request"),
        ("defaultRequest", "default request", "max", "max"),
        ("min", "min", "default", "default"),
        ("defaultRequest", "default request", "default", "default"),
        ("default", "default", "max", "max"),
    ] {
        for (name, least) in entries(&limit[low]) {
            let most = &limit[high][name];
            if let (Ok(a), Ok(b)) = (Quantity::parse(text(least)), Quantity::parse(text(most)))
                && a > b
            {
                let why = format!(
                    "{low_word} value {} is greater than {high_word} value {}",
                    text(least),
                    text(most)
                );
                found.add(Defect::invalid(format!("{path}.{low}[{name}]"), least, &why));
            }
        }
    }
}

/// `ValidatePriorityClass`.
pub(super) fn priority(object: &Value, old: Option<&Value>, found: &mut Found) {
    let name = text(&object["metadata"]["name"]);
    let of_system = matches!(
        (name, object["value"].as_i64()),
        ("system-cluster-critical", Some(2_000_000_000)) | ("system-node-critical", Some(2_000_001_000))
    );
    if !of_system {
        if name.starts_with("system-") {
            let why = "priority class names with 'system-' prefix are reserved for system use only";
            found.add(Defect::forbidden("metadata.name", why));
        }
        if object["value"].as_i64().is_some_and(|value| value > MOST_PRIORITY) {
            let why = format!("maximum allowed value of a user defined priority is {MOST_PRIORITY}");
            found.add(Defect::forbidden("value", &why));
        }
    }
    found.one_of(&object["preemptionPolicy"], "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    for field in ["value", "preemptionPolicy"] {
        if old.is_some_and(|old| old[field] != object[field]) {
            found.add(Defect::forbidden(field, "may not be changed in an update."));
        }
    }
}

/// `ValidateRuntimeClass`.
pub(super) fn runtime(object: &Value, found: &mut Found) {
    found.rules(&object["handler"], "handler", names::label(text(&object["handler"])));
    resources::amounts(&object["overhead"]["podFixed"], "overhead.podFixed", found);
}

/// `ValidateRole` and `ValidateClusterRole`.
pub(super) fn role(object: &Value, cluster: bool, found: &mut Found) {
    for (index, rule) in items(&object["rules"]).iter().enumerate() {
        let path = format!("rules[{index}]");
        if items(&rule["verbs"]).is_empty() {
            found.add(Defect::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if !items(&rule["nonResourceURLs"]).is_empty() {
            if !cluster {
                let why = "namespaced rules cannot apply to non-resource URLs";
                found.add(Defect::invalid(format!("{path}.nonResourceURLs"), &rule["nonResourceURLs"], why));
            }
            let others = ["apiGroups", "resources", "resourceNames"];
            if others.iter().any(|list| !items(&rule[*list]).is_empty()) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                found.add(Defect::invalid(format!("{path}.nonResourceURLs"), &rule["nonResourceURLs"], why));
            }
            continue;
        }
        if items(&rule["apiGroups"]).is_empty() {
            let why = "resource rules must supply at least one api group";
            found.add(Defect::required(format!("{path}.apiGroups"), why));
        }
        if items(&rule["resources"]).is_empty() {
            let why = "resource rules must supply at least one resource";
            found.add(Defect::required(format!("{path}.resources"), why));
        }
    }
}

/// `ValidateRoleBinding` and `ValidateClusterRoleBinding`.
pub(super) fn binding(object: &Value, cluster: bool, found: &mut Found) {
    let role = &object["roleRef"];
    if role["apiGroup"] != RBAC {
        found.add(Defect::not_supported("roleRef.apiGroup", &role["apiGroup"], &[RBAC]));
    }
    let kinds: &[&str] = if cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
    if !kinds.contains(&text(&role["kind"])) {
        let shown = json!(text(&role["kind"]));
        found.add(Defect::not_supported("roleRef.kind", &shown, kinds));
    }
    if found.required(&role["name"], "roleRef.name").is_some() {
        found.rules(&role["name"], "roleRef.name", names::path_segment(text(&role["name"])));
    }
    for (index, subject) in items(&object["subjects"]).iter().enumerate() {
        let path = format!("subjects[{index}]");
        found.required(&subject["name"], &format!("{path}.name"));
        let group = json!(text(&subject["apiGroup"]));
        match text(&subject["kind"]) {
            "ServiceAccount" => {
                found.rules(
                    &subject["name"],
                    &format!("{path}.name"),
                    names::subdomain(text(&subject["name"])),
                );
                if group != "" {
                    found.add(Defect::not_supported(format!("{path}.apiGroup"), &group, &[""]));
                }
                if cluster || subject["namespace"].is_string() {
                    found.required(&subject["namespace"], &format!("{path}.namespace"));
                } else {
                    found.add(Defect::required(format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" if group != RBAC => {
                found.add(Defect::not_supported(format!("{path}.apiGroup"), &group, &[RBAC]));
            }
            "User" | "Group" => {}
            _ => {
                let shown = json!(text(&subject["kind"]));
                let kinds = ["ServiceAccount", "User", "Group"];
                found.add(Defect::not_supported(format!("{path}.kind"), &shown, &kinds));
            }
        }
    }
}

/// `ValidateRoleBindingUpdate`.
pub(super) fn binding_update(new: &Value, old: &Value, found: &mut Found) {
    if new["roleRef"] != old["roleRef"] {
        found.add(Defect::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
    }
}
