//! What a LimitRange gives to containers that say nothing, and what it refuses.
//!
//! Invariant: what a container says itself is never changed.

use serde_json::{Map, Value, json};

use crate::pod::{self, Amounts};
use crate::quantity::Quantity;

/// Says in an annotation what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives every container of a pod the default requests and limits of these ranges.
pub fn fill_in(ranges: &[Value], pod: &mut Value) {
    let limits = defaults(ranges, "default");
    let requests = defaults(ranges, "defaultRequest");
    let mut told = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            for (side, given, verb) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = give(container, side, given);
                if !set.is_empty() {
                    let name = container["name"].as_str().unwrap_or_default();
                    told.push(format!("{} {verb} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

fn defaults(ranges: &[Value], list: &str) -> Map<String, Value> {
    let of_containers = items(ranges).filter(|item| item["type"] == "Container");
    of_containers.filter_map(|item| item[list].as_object().cloned()).flatten().collect()
}

fn give(container: &mut Value, side: &str, given: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in given {
        if container["resources"][side][name].is_null() {
            if !container["resources"].is_object() {
                container["resources"] = json!({});
            }
            if !container["resources"][side].is_object() {
                container["resources"][side] = json!({});
            }
            container["resources"][side][name] = amount.clone();
            set.push(name.clone());
        }
    }
    set
}

/// Why these ranges refuse a pod; Kubernetes' sentences.
pub fn pod_refusals(ranges: &[Value], spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for item in items(ranges) {
        match item["type"].as_str() {
            Some("Container") => {
                for container in pod::containers(spec) {
                    let resources = &container["resources"];
                    judge(
                        "Container",
                        item,
                        &pod::amounts(&resources["requests"]),
                        &pod::amounts(&resources["limits"]),
                        &mut found,
                    );
                }
            }
            Some("Pod") => {
                judge("Pod", item, &pod::total(spec, "requests"), &pod::total(spec, "limits"), &mut found)
            }
            _ => {}
        }
    }
    found
}

/// Why these ranges refuse a claim.
pub fn claim_refusals(ranges: &[Value], spec: &Value) -> Vec<String> {
    let wanted = pod::amounts(&spec["resources"]["requests"]);
    let mut found = Vec::new();
    for item in items(ranges).filter(|item| item["type"] == "PersistentVolumeClaim") {
        for (name, least) in pod::amounts(&item["min"]) {
            found.extend(below("PersistentVolumeClaim", &name, least, wanted.get(&name), None));
        }
        for (name, most) in pod::amounts(&item["max"]) {
            // A claim has no limit: what it asks for is what it gets.
            found.extend(above("PersistentVolumeClaim", &name, most, wanted.get(&name), wanted.get(&name)));
        }
    }
    found
}

fn judge(of: &str, item: &Value, requests: &Amounts, limits: &Amounts, found: &mut Vec<String>) {
    for (name, least) in pod::amounts(&item["min"]) {
        found.extend(below(of, &name, least, requests.get(&name), limits.get(&name)));
    }
    for (name, most) in pod::amounts(&item["max"]) {
        found.extend(above(of, &name, most, requests.get(&name), limits.get(&name)));
    }
    for (name, ratio) in pod::amounts(&item["maxLimitRequestRatio"]) {
        found.extend(beyond(of, &name, ratio, requests.get(&name), limits.get(&name)));
    }
}

fn below(
    of: &str,
    name: &str,
    least: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let rule = format!("minimum {name} usage per {of} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{rule}.  No request is specified")),
        (Some(asked), _) if *asked < least => Some(format!("{rule}, but request is {asked}")),
        (_, Some(most)) if *most < least => Some(format!("{rule}, but limit is {most}")),
        _ => None,
    }
}

fn above(
    of: &str,
    name: &str,
    most: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let rule = format!("maximum {name} usage per {of} is {most}");
    match (request, limit) {
        (_, None) => Some(format!("{rule}.  No limit is specified")),
        (_, Some(bound)) if *bound > most => Some(format!("{rule}, but limit is {bound}")),
        (Some(asked), _) if *asked > most => Some(format!("{rule}, but request is {asked}")),
        _ => None,
    }
}

fn beyond(
    of: &str,
    name: &str,
    ratio: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let rule = format!("{name} max limit to request ratio per {of} is {ratio}");
    let Some(asked) = request.filter(|asked| !asked.is_zero()) else {
        return Some(format!("{rule}, but no request is specified or request is 0"));
    };
    let Some(bound) = limit.filter(|bound| !bound.is_zero()) else {
        return Some(format!("{rule}, but no limit is specified or limit is 0"));
    };
    // Compared as products of thousandths, so that nothing is rounded.
    let (asked, bound, ratio) = (asked.as_milli(), bound.as_milli(), ratio.as_milli());
    (bound.saturating_mul(1000) > ratio.saturating_mul(asked))
        .then(|| format!("{rule}, but provided ratio is {:.6}", bound as f64 / asked as f64))
}

fn items(ranges: &[Value]) -> impl Iterator<Item = &Value> {
    ranges.iter().flat_map(|range| range["spec"]["limits"].as_array().into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Vec<Value> {
        vec![json!({ "spec": { "limits": [
            { "type": "Container", "min": { "cpu": "50m" }, "max": { "cpu": "1" }, "default": { "cpu": "500m" },
                "defaultRequest": { "cpu": "100m" }, "maxLimitRequestRatio": { "cpu": "5" } },
            { "type": "Pod", "max": { "cpu": "1500m" } },
            { "type": "PersistentVolumeClaim", "min": { "storage": "1Gi" }, "max": { "storage": "10Gi" } }] } })]
    }

    #[test]
    fn a_container_that_says_nothing_gets_the_defaults() {
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a" },
            { "name": "b", "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "1" } } }] } });
        fill_in(&range(), &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([{ "name": "a", "resources": { "limits": { "cpu": "500m" }, "requests": { "cpu": "100m" } } },
                { "name": "b", "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "1" } } }])
        );
        assert_eq!(
            pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a"
        );
    }

    #[test]
    fn too_little_too_much_and_too_far_apart_are_refused() {
        let refused = |request: &str, limit: &str| {
            let resources = json!({ "requests": { "cpu": request }, "limits": { "cpu": limit } });
            pod_refusals(&range(), &json!({ "containers": [{ "name": "a", "resources": resources }] }))
        };
        assert_eq!(refused("100m", "500m"), [""; 0]);
        assert_eq!(refused("40m", "100m"), ["minimum cpu usage per Container is 50m, but request is 40m"]);
        assert_eq!(
            refused("500m", "2"),
            [
                "maximum cpu usage per Container is 1, but limit is 2",
                "maximum cpu usage per Pod is 1500m, but limit is 2"
            ]
        );
        assert_eq!(
            refused("100m", "1"),
            ["cpu max limit to request ratio per Container is 5, but provided ratio is 10.000000"]
        );
        assert_eq!(
            claim_refusals(&range(), &json!({ "resources": { "requests": { "storage": "500Mi" } } })),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"]
        );
        assert_eq!(
            claim_refusals(&range(), &json!({ "resources": { "requests": { "storage": "11Gi" } } })),
            ["maximum storage usage per PersistentVolumeClaim is 10Gi, but limit is 11Gi"]
        );
    }
}
