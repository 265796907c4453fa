//! What objects use of a ResourceQuota, which of them a quota is about, and what it refuses.
//!
//! Invariant: the use of a namespace is the sum over its objects; nothing else is counted, and nothing twice.

use serde_json::Value;

use crate::kinds::Kind;
use crate::pod::{self, Amounts};
use crate::quantity::Quantity;

/// Kinds of core that a quota may count by their bare plural.
const BARE: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// Resources of pods that have a bare name and one with `requests.`.
const REQUESTED: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// What one object uses, by every name that a quota may bound it with.
pub fn usage(kind: &Kind, object: &Value) -> Amounts {
    let one = Quantity::from_count(1);
    let mut used = Amounts::new();
    used.insert(format!("count/{}", kind.resource_name()), one);
    if kind.group.is_empty() && BARE.contains(&kind.plural.as_str()) {
        used.insert(kind.plural.clone(), one);
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") if !is_over(object) => pod_usage(&object["spec"], &mut used),
        ("", "Service") => service_usage(&object["spec"], &mut used),
        ("", "PersistentVolumeClaim") => claim_usage(object, &mut used),
        _ => {}
    }
    used
}

/// Whether a name in a quota may bound objects of this kind.
pub fn concerns(name: &str, kind: &Kind) -> bool {
    match name.strip_prefix("count/") {
        Some(of) => of == kind.resource_name(),
        None if !kind.group.is_empty() => false,
        None => match kind.kind.as_str() {
            "Pod" => {
                name == "pods"
                    || REQUESTED.contains(&name)
                    || ["requests.", "limits.", "hugepages-"].iter().any(|prefix| name.starts_with(prefix))
            }
            "Service" => name == "services" || name.starts_with("services."),
            "PersistentVolumeClaim" => {
                matches!(name, "persistentvolumeclaims" | "requests.storage")
                    || name.contains(".storageclass.storage.k8s.io/")
            }
            _ => BARE.contains(&name) && name == kind.plural,
        },
    }
}

/// A pod that has ended uses only its place in the list.
fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn pod_usage(spec: &Value, used: &mut Amounts) {
    used.insert("pods".into(), Quantity::from_count(1));
    for (name, amount) in pod::total(spec, "requests") {
        if REQUESTED.contains(&name.as_str()) || name.starts_with("hugepages-") {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod::total(spec, "limits") {
        used.insert(format!("limits.{name}"), amount);
    }
}

fn service_usage(spec: &Value, used: &mut Amounts) {
    let ports = i64::try_from(spec["ports"].as_array().map_or(0, Vec::len)).unwrap_or(i64::MAX);
    let balanced = spec["type"] == "LoadBalancer";
    if balanced {
        used.insert("services.loadbalancers".into(), Quantity::from_count(1));
    }
    if spec["type"] == "NodePort" || balanced && spec["allocateLoadBalancerNodePorts"] != false {
        used.insert("services.nodeports".into(), Quantity::from_count(ports));
    }
}

fn claim_usage(claim: &Value, used: &mut Amounts) {
    let old = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = old.as_str().or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let mut count = |name: &str, amount: Quantity| {
        used.insert(name.to_owned(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), amount);
        }
    };
    count("persistentvolumeclaims", Quantity::from_count(1));
    if let Ok(size) = Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]) {
        count("requests.storage", size);
    }
}

/// Whether a quota is about an object: all its scopes hold. A quota with scopes is about pods only.
pub fn is_about(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let terms = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let is_pod = kind.group.is_empty() && kind.kind == "Pod";
    let mut scopes = plain
        .map(|scope| (scope, "Exists", &Value::Null))
        .chain(terms.map(|term| {
            (
                term["scopeName"].as_str().unwrap_or_default(),
                term["operator"].as_str().unwrap_or_default(),
                &term["values"],
            )
        }))
        .peekable();
    if scopes.peek().is_some() && !is_pod {
        return false;
    }
    scopes.all(|(scope, operator, values)| holds(scope, operator, values, &object["spec"]))
}

fn holds(scope: &str, operator: &str, values: &Value, spec: &Value) -> bool {
    let ends = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = pod::quality_of_service(spec) == "BestEffort";
    let is = match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            let named = values.as_array().is_some_and(|list| list.iter().any(|value| value == class));
            return match operator {
                "In" => named,
                "NotIn" => !named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            };
        }
        "CrossNamespacePodAffinity" => across_namespaces(spec),
        _ => false,
    };
    if operator == "DoesNotExist" { !is } else { is }
}

fn across_namespaces(spec: &Value) -> bool {
    let term = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
            || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|side| {
        let side = &spec["affinity"][*side];
        let list = |name: &str| side[name].as_array().into_iter().flatten();
        list("requiredDuringSchedulingIgnoredDuringExecution").any(term)
            || list("preferredDuringSchedulingIgnoredDuringExecution")
                .any(|one| term(&one["podAffinityTerm"]))
    })
}

/// What a quota bounds of these names: those it has a hard limit for.
pub fn bounded(quota: &Value, used: &Amounts) -> Amounts {
    let hard = &quota["spec"]["hard"];
    used.iter()
        .filter(|(name, _)| !hard[name.as_str()].is_null())
        .map(|(name, amount)| (name.clone(), *amount))
        .collect()
}

/// Why a quota refuses an object that asks for `more` when `used` is used already; Kubernetes' sentence.
pub fn refusal(quota: &Value, used: &Amounts, more: &Amounts) -> Option<String> {
    let hard = pod::amounts(&quota["spec"]["hard"]);
    let over: Vec<&String> = more
        .iter()
        .filter(|(_, amount)| !amount.is_zero() && !amount.is_negative())
        .filter(|(name, amount)| {
            let sum = used.get(*name).map_or(**amount, |known| known.add(amount));
            hard.get(*name).is_some_and(|most| sum > *most)
        })
        .map(|(name, _)| name)
        .collect();
    if over.is_empty() {
        return None;
    }
    let list = |amounts: &Amounts| {
        let of = |name: &&String| format!("{name}={}", amounts.get(*name).unwrap_or(&Quantity::ZERO));
        over.iter().map(of).collect::<Vec<_>>().join(",")
    };
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota["metadata"]["name"].as_str().unwrap_or_default(),
        list(more),
        list(used),
        list(&hard),
    ))
}

/// What a pod must say because a quota bounds it; Kubernetes' sentence.
pub fn unsaid(quota: &Value, spec: &Value) -> Option<String> {
    let hard = quota["spec"]["hard"].as_object()?;
    let mut missing = Vec::new();
    for name in hard.keys() {
        let (side, resource) = match name.split_once('.') {
            Some((side @ ("requests" | "limits"), resource)) => (side, resource),
            None if REQUESTED.contains(&name.as_str()) => ("requests", name.as_str()),
            _ => continue,
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let silent: Vec<&str> = pod::containers(spec)
            .filter(|container| container["resources"][side][resource].is_null())
            .filter_map(|container| container["name"].as_str())
            .collect();
        if !silent.is_empty() {
            missing.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    (!missing.is_empty()).then(|| format!("failed quota: {name}: must specify {}", missing.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_kind;

    fn pod(spec: Value) -> Value {
        let mut whole = json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "500m" }, "limits": { "cpu": "1" } } }] });
        whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        json!({ "spec": whole })
    }

    #[track_caller]
    fn check(kind: &str, object: Value, wanted: Value) {
        let used = usage(by_kind("v1", kind).expect("served"), &object);
        let used: serde_json::Map<String, Value> =
            used.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect();
        assert_eq!(Value::from(used), wanted);
    }

    #[test]
    fn objects_use_what_they_ask_for() {
        check(
            "Pod",
            pod(json!({})),
            json!({ "count/pods": "1", "pods": "1", "cpu": "500m", "requests.cpu": "500m", "limits.cpu": "1" }),
        );
        let mut ended = pod(json!({}));
        ended["status"] = json!({ "phase": "Succeeded" });
        check("Pod", ended, json!({ "count/pods": "1" }));
        check(
            "Service",
            json!({ "spec": { "type": "LoadBalancer", "ports": [{}, {}] } }),
            json!({ "count/services": "1", "services": "1", "services.loadbalancers": "1", "services.nodeports": "2" }),
        );
        check(
            "PersistentVolumeClaim",
            json!({ "spec": { "storageClassName": "ssd", "resources": { "requests": { "storage": "1Gi" } } } }),
            json!({ "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "1Gi",
                "ssd.storageclass.storage.k8s.io/persistentvolumeclaims": "1", "ssd.storageclass.storage.k8s.io/requests.storage": "1Gi" }),
        );
        check("Secret", json!({}), json!({ "count/secrets": "1", "secrets": "1" }));
    }

    #[test]
    fn scopes_choose_pods() {
        let kind = by_kind("v1", "Pod").expect("served");
        let quota = |scopes: Value| json!({ "spec": { "scopes": scopes } });
        let priority = |operator: &str, values: Value| {
            json!({ "spec": { "scopeSelector": { "matchExpressions": [
            { "scopeName": "PriorityClass", "operator": operator, "values": values }] } } })
        };
        let (plain, ends, high) = (
            pod(json!({})),
            pod(json!({ "activeDeadlineSeconds": 5 })),
            pod(json!({ "priorityClassName": "high" })),
        );
        for (quota, pod, wanted) in [
            (quota(json!([])), &plain, true),
            (quota(json!(["Terminating"])), &plain, false),
            (quota(json!(["Terminating"])), &ends, true),
            (quota(json!(["NotTerminating", "NotBestEffort"])), &plain, true),
            (quota(json!(["BestEffort"])), &plain, false),
            (priority("In", json!(["high"])), &high, true),
            (priority("In", json!(["high"])), &plain, false),
            (priority("NotIn", json!(["high"])), &plain, true),
            (priority("Exists", json!([])), &high, true),
            (priority("DoesNotExist", json!([])), &high, false),
        ] {
            assert_eq!(is_about(&quota, kind, pod), wanted, "{quota} {pod}");
        }
        let secrets = by_kind("v1", "Secret").expect("served");
        assert!(!is_about(&quota(json!(["BestEffort"])), secrets, &json!({})));
    }

    #[test]
    fn a_refusal_reads_as_kubernetes_writes_it() {
        let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "1", "requests.cpu": "1", "limits.memory": "1Gi" } } });
        let kind = by_kind("v1", "Pod").expect("served");
        let more = bounded(&quota, &usage(kind, &pod(json!({}))));
        assert_eq!(refusal(&quota, &Amounts::new(), &more), None);
        assert_eq!(
            refusal(&quota, &more, &more).as_deref(),
            Some("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")
        );
        assert_eq!(
            unsaid(&quota, &pod(json!({}))["spec"]).as_deref(),
            Some("failed quota: q: must specify limits.memory for: c")
        );
    }
}
