//! Addresses of Services: cluster addresses, node ports and health check ports, handed out and taken back.
//!
//! Invariant: one Service is written at a time, so that nothing is handed out twice.
//! Invariant: what a type does not use is taken back when the type changes, unless the writer says otherwise.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::error::ApiError;
use api::kinds::Kind;
use api::schema::{Defect, DefectReason};
use serde_json::{Value, json};

use super::is;
use crate::Inner;
use crate::config::{Config, ServiceRange};
use crate::object::{self, meta};

/// Node ports, as documented.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

/// Hands out Service addresses. One Service is written at a time, so that none is handed out twice.
pub(crate) struct Allocator {
    range: ServiceRange,
    turn: tokio::sync::Mutex<()>,
}

impl Allocator {
    pub(crate) fn new(config: &Config) -> Allocator {
        Allocator { range: config.services, turn: tokio::sync::Mutex::new(()) }
    }

    /// The address that Kubernetes keeps for the API.
    pub(crate) fn first_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.range.network.to_bits() + 1)
    }

    /// Waits for the turn of a kind that is handed addresses; other kinds do not wait.
    pub(crate) async fn begin(&self, kind: &Kind) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if is(kind, "Service") { Some(self.turn.lock().await) } else { None }
    }
}

/// Cluster address and node ports of a Service: kept, taken as asked when free, or the first that is free.
pub(super) fn addresses(
    inner: &Inner,
    kind: &Kind,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<(), ApiError> {
    let name = meta(service, "name").to_owned();
    if let Some(old) = old {
        take_back(&old["spec"], &mut service["spec"]);
    }
    if service["spec"]["type"] == "ExternalName" {
        return Ok(());
    }
    let taken = taken(inner, service);
    cluster_address(inner, old, service, &taken)
        .and_then(|()| node_ports(old, service, &taken))
        .and_then(|()| health_port(old, service, &taken))
        .map_err(|defect| ApiError::invalid(kind, &name, vec![defect]))
}

/// What the new type does not use goes, where the writer left it as it was.
fn take_back(old: &Value, new: &mut Value) {
    let unused = |needs: fn(&Value) -> bool, new: &Value| needs(old) && !needs(new);
    if unused(needs_address, new)
        && same_or_silent(old, new, "clusterIP")
        && same_or_silent(old, new, "clusterIPs")
    {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            forget(new, field);
        }
    }
    if unused(needs_node_ports, new) {
        let before: Vec<Value> = items(old, "ports").iter().map(|port| port["nodePort"].clone()).collect();
        let ports = new.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter(|port| before.contains(&port["nodePort"])) {
            forget(port, "nodePort");
        }
    }
    if unused(needs_health_port, new) && same_or_silent(old, new, "healthCheckNodePort") {
        forget(new, "healthCheckNodePort");
    }
    let balanced: fn(&Value) -> bool = |spec| spec["type"] == "LoadBalancer";
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if unused(balanced, new) && same_or_silent(old, new, field) {
            forget(new, field);
        }
    }
    if unused(is_exposed, new) && same_or_silent(old, new, "externalTrafficPolicy") {
        forget(new, "externalTrafficPolicy");
    }
}

fn needs_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

fn is_exposed(spec: &Value) -> bool {
    let external = !items(spec, "externalIPs").is_empty();
    matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) || needs_address(spec) && external
}

fn needs_node_ports(spec: &Value) -> bool {
    spec["type"] == "NodePort"
        || spec["type"] == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false
}

fn needs_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn same_or_silent(old: &Value, new: &Value, field: &str) -> bool {
    new[field].is_null() || new[field] == old[field]
}

fn forget(value: &mut Value, field: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(field);
    }
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

#[derive(Default)]
struct Taken {
    addresses: BTreeSet<String>,
    ports: BTreeSet<(i64, String)>,
}

fn taken(inner: &Inner, except: &Value) -> Taken {
    let mut taken = Taken::default();
    let kind = api::kinds::by_kind("v1", "Service").expect("Services are served");
    let own = object::key(kind, meta(except, "namespace"), meta(except, "name"));
    let snapshot = inner.store.snapshot();
    for entry in snapshot.range(&object::prefix(kind, ""), None).filter(|entry| *entry.key != own) {
        let service = object::parse(&entry.value);
        taken.addresses.extend(service["spec"]["clusterIP"].as_str().map(str::to_owned));
        let health = service["spec"]["healthCheckNodePort"].as_i64().filter(|number| *number != 0);
        taken.ports.extend(health.map(|number| (number, "TCP".to_owned())));
        for port in service["spec"]["ports"].as_array().into_iter().flatten() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            taken.ports.extend(port["nodePort"].as_i64().map(|number| (number, protocol)));
        }
    }
    taken
}

fn cluster_address(
    inner: &Inner,
    old: Option<&Value>,
    service: &mut Value,
    taken: &Taken,
) -> Result<(), Defect> {
    let asked = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let kept = old.and_then(|old| old["spec"]["clusterIP"].as_str()).unwrap_or_default().to_owned();
    let address = match (asked.as_str(), kept.as_str()) {
        ("", "") => free_address(&inner.allocator.range, taken)
            .ok_or_else(|| {
                defect("spec.clusterIP", "no address is left in the range of Services".to_owned())
            })?
            .to_string(),
        ("", kept) => kept.to_owned(),
        ("None", _) => "None".to_owned(),
        (asked, kept) if asked == kept => asked.to_owned(),
        (asked, _) => {
            let inside = asked.parse().is_ok_and(|address| contains(&inner.allocator.range, address));
            let why = if !inside {
                "the provided IP is not in the valid range"
            } else {
                "provided IP is already allocated"
            };
            if !inside || taken.addresses.contains(asked) {
                return Err(defect(
                    "spec.clusterIPs",
                    format!("Invalid value: [\"{asked}\"]: failed to allocate IP {asked}: {why}"),
                ));
            }
            asked.to_owned()
        }
    };
    service["spec"]["clusterIPs"] = json!([address]);
    service["spec"]["clusterIP"] = address.into();
    Ok(())
}

fn node_ports(old: Option<&Value>, service: &mut Value, taken: &Taken) -> Result<(), Defect> {
    let exposed = matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let allocates = needs_node_ports(&service["spec"]);
    let old_ports = old.and_then(|old| old["spec"]["ports"].as_array()).cloned().unwrap_or_default();
    let mut used = taken.ports.clone();
    let Some(ports) = service["spec"]["ports"].as_array_mut() else { return Ok(()) };
    for (at, port) in ports.iter_mut().enumerate() {
        if !exposed {
            continue;
        }
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let same = |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
        let kept = old_ports.iter().find(same).and_then(|old| old["nodePort"].as_i64());
        let number = match port["nodePort"].as_i64().filter(|number| *number != 0).or(kept) {
            Some(asked) if !NODE_PORTS.contains(&asked) => {
                return Err(defect(
                    &format!("spec.ports[{at}].nodePort"),
                    format!(
                        "Invalid value: {asked}: provided port is not in the valid range. The range of valid ports is 30000-32767"
                    ),
                ));
            }
            Some(asked) if used.contains(&(asked, protocol.clone())) => {
                return Err(defect(
                    &format!("spec.ports[{at}].nodePort"),
                    format!("Invalid value: {asked}: provided port is already allocated"),
                ));
            }
            Some(asked) => asked,
            None if !allocates => continue,
            None => NODE_PORTS.clone().find(|free| !used.contains(&(*free, protocol.clone()))).ok_or_else(
                || defect(&format!("spec.ports[{at}].nodePort"), "no node port is left".to_owned()),
            )?,
        };
        used.insert((number, protocol));
        port["nodePort"] = number.into();
    }
    Ok(())
}

/// Whoever balances asks this port of a node whether pods of the Service run there.
fn health_port(old: Option<&Value>, service: &mut Value, taken: &Taken) -> Result<(), Defect> {
    if !needs_health_port(&service["spec"]) {
        return Ok(());
    }
    let asked = service["spec"]["healthCheckNodePort"].as_i64().filter(|number| *number != 0);
    let kept = old.and_then(|old| old["spec"]["healthCheckNodePort"].as_i64());
    let mut used = taken.ports.clone();
    used.extend(items(&service["spec"], "ports").iter().filter_map(|port| {
        Some((port["nodePort"].as_i64()?, port["protocol"].as_str().unwrap_or("TCP").to_owned()))
    }));
    let number = match asked.or(kept) {
        Some(number) if Some(number) != kept && used.contains(&(number, "TCP".to_owned())) => {
            let message = format!("Invalid value: {number}: provided port is already allocated");
            return Err(defect("spec.healthCheckNodePort", message));
        }
        Some(number) => number,
        None => NODE_PORTS
            .clone()
            .find(|free| !used.contains(&(*free, "TCP".to_owned())))
            .ok_or_else(|| defect("spec.healthCheckNodePort", "no node port is left".to_owned()))?,
    };
    service["spec"]["healthCheckNodePort"] = number.into();
    Ok(())
}

fn defect(path: &str, message: String) -> Defect {
    Defect { path: path.to_owned(), reason: DefectReason::Invalid, message }
}

fn contains(range: &ServiceRange, address: Ipv4Addr) -> bool {
    let size = 1u32 << (32 - u32::from(range.prefix));
    let offset = address.to_bits().wrapping_sub(range.network.to_bits());
    offset > 0 && offset < size - 1
}

/// The first free address above the ones that Kubernetes keeps for the API and for DNS.
fn free_address(range: &ServiceRange, taken: &Taken) -> Option<Ipv4Addr> {
    let size = 1u32 << (32 - u32::from(range.prefix));
    (2..size - 1)
        .map(|offset| Ipv4Addr::from_bits(range.network.to_bits() + offset))
        .find(|address| *address != range.dns && !taken.addresses.contains(&address.to_string()))
}
