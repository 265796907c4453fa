//! What a pod's spec says as a whole: its quality of service, and what it asks for in sum.
//!
//! Invariant: containers run at the same time, init containers one after the other, restartable ones beside all that follow.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Guaranteed, Burstable or BestEffort, as documented: from the requests and limits of all containers.
pub fn quality_of_service(spec: &Value) -> &'static str {
    let of = |container: &Value, side: &str| -> Amounts {
        let mut amounts = amounts(&container["resources"][side]);
        amounts.retain(|name, amount| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero());
        amounts
    };
    let containers: Vec<&Value> = containers(spec).collect();
    if containers.iter().all(|one| of(one, "limits").is_empty() && of(one, "requests").is_empty()) {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|container| {
        let limits = of(container, "limits");
        limits.len() == 2 && of(container, "requests") == limits
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// What the pod asks for, or may use at most: `side` is `requests` or `limits`. Overhead comes on top.
pub fn total(spec: &Value, side: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in list(spec, "containers") {
        add(&mut sum, &amounts(&container["resources"][side]));
    }
    let (mut beside, mut most) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let own = amounts(&container["resources"][side]);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut beside, &own);
            raise(&mut most, &beside);
        } else {
            let mut then = beside.clone();
            add(&mut then, &own);
            raise(&mut most, &then);
        }
    }
    raise(&mut sum, &most);
    let overhead = amounts(&spec["overhead"]);
    if side == "requests" {
        add(&mut sum, &overhead);
    } else {
        let limited = overhead.into_iter().filter(|(name, _)| sum.contains_key(name)).collect();
        add(&mut sum, &limited);
    }
    sum
}

/// Containers and init containers.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    list(spec, "containers").chain(list(spec, "initContainers"))
}

/// A list of amounts as it stands in an object; what is no quantity is left out.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

/// Adds amount to amount.
pub fn add(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = into.get(name).map_or(*amount, |known| known.add(amount));
        into.insert(name.clone(), sum);
    }
}

fn raise(into: &mut Amounts, to: &Amounts) {
    for (name, amount) in to {
        let least = into.get(name).map_or(*amount, |known| (*known).max(*amount));
        into.insert(name.clone(), least);
    }
}

fn list<'a>(spec: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    spec[name].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(cpu: &str) -> Value {
        json!({ "resources": { "requests": { "cpu": cpu }, "limits": { "cpu": cpu, "memory": "1Gi" } } })
    }

    #[test]
    fn init_containers_count_only_where_they_ask_for_more() {
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = json!("Always");
        for (init, wanted) in [
            (json!([]), "600m"),
            (json!([container("1")]), "1"),
            (json!([sidecar, container("1")]), "1100m"),
            (json!([container("1"), sidecar]), "1"),
        ] {
            let spec =
                json!({ "containers": [container("500m"), container("100m")], "initContainers": init });
            assert_eq!(total(&spec, "requests")["cpu"].to_string(), wanted, "{init}");
        }
        let spec = json!({ "containers": [container("1")], "overhead": { "cpu": "1", "pods": "1" } });
        assert_eq!(total(&spec, "limits")["cpu"].to_string(), "2");
        assert_eq!(total(&spec, "limits").len(), 2);
    }

    #[test]
    fn quality_follows_requests_and_limits() {
        let full = json!({ "resources": { "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1024Mi" } } });
        for (containers, wanted) in [
            (json!([{}]), "BestEffort"),
            (json!([{ "resources": { "requests": { "cpu": "0" } } }]), "BestEffort"),
            (json!([full]), "Guaranteed"),
            (json!([full, {}]), "Burstable"),
            (json!([container("1")]), "Burstable"),
        ] {
            assert_eq!(quality_of_service(&json!({ "containers": containers })), wanted, "{containers}");
        }
    }
}
