//! What a kind asks of the server beyond its schema: addresses of Services, selectors of Jobs, the way Pods go.
//!
//! Everything here is a function of the object and of what is stored; there is no other code per kind in this room.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::custom::definition;
use api::error::ApiError;
use api::kinds::Kind;
use api::schema::{Defect, DefectReason};
use jiff::Timestamp;
use serde_json::{Value, json};
use store::Durability;

use crate::config::{Config, ServiceRange};
use crate::delete::{self, Options};
use crate::object::{self, meta, metadata};
use crate::{Inner, write};

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

fn is(kind: &Kind, name: &str) -> bool {
    kind.kind == name && matches!(kind.group.as_str(), "" | "apps" | "batch")
}

/// What a new object gets.
pub(crate) fn create(inner: &Inner, kind: &Kind, object: &mut Value) -> Result<(), ApiError> {
    // A kind that users define may have the name of one of ours.
    if kind.custom().is_some() {
        return Ok(());
    }
    if definition::is(kind) {
        hold(object);
    }
    match kind.kind.as_str() {
        "Service" => addresses(inner, kind, None, object)?,
        "Pod" => {
            let class = api::pod::quality_of_service(&object["spec"]);
            object["status"] = json!({ "phase": "Pending", "qosClass": class });
        }
        "Namespace" => object["status"] = json!({ "phase": "Active" }),
        _ => {}
    }
    Ok(())
}

/// A definition goes only after its instances.
fn hold(definition: &mut Value) {
    let fields = metadata(definition);
    let finalizers = fields.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) =
        finalizers.as_array_mut().filter(|list| !list.iter().any(|one| one == definition::FINALIZER))
    {
        list.push(definition::FINALIZER.into());
    }
}

/// What a changed object gets.
pub(crate) fn update(inner: &Inner, kind: &Kind, old: &Value, new: &mut Value) -> Result<(), ApiError> {
    if is(kind, "Service") {
        addresses(inner, kind, Some(old), new)?;
    }
    Ok(())
}

/// A write to an object leaves its status alone, a write to a subresource everything else.
pub(crate) fn keep_what_is_not_written(
    kind: &Kind,
    subresource: Option<&str>,
    old: &Value,
    wanted: Value,
) -> Value {
    let keep = |from: &Value, mut into: Value, field: &str| {
        match from.get(field) {
            Some(value) => into[field] = value.clone(),
            None => {
                into.as_object_mut().map(|fields| fields.remove(field));
            }
        }
        into
    };
    match subresource {
        None if kind.status => keep(old, wanted, "status"),
        None => wanted,
        Some("status") => {
            let mut new = keep(&wanted, old.clone(), "status");
            if let Some(managed) = wanted["metadata"].get("managedFields") {
                metadata(&mut new).insert("managedFields".to_owned(), managed.clone());
            }
            new
        }
        Some("approval") => {
            let mut new = old.clone();
            new["status"]["conditions"] = wanted["status"]["conditions"].clone();
            new
        }
        Some("finalize") => {
            let mut new = old.clone();
            new["spec"]["finalizers"] = wanted["spec"]["finalizers"].clone();
            new
        }
        Some(_) => wanted,
    }
}

/// Whether anything but metadata and status changed: what `metadata.generation` counts.
pub(crate) fn wanted_state_differs(old: &Value, new: &Value) -> bool {
    let wanted = |object: &Value| {
        let fields = object.as_object().cloned().unwrap_or_default();
        fields
            .into_iter()
            .filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status"))
            .collect::<Vec<_>>()
    };
    wanted(old) != wanted(new)
}

/// Must an acknowledged write have reached the disk? What the machine can tell again need not.
pub(crate) fn durability(kind: &Kind, subresource: Option<&str>) -> Durability {
    let observed = subresource == Some("status")
        && matches!(
            kind.kind.as_str(),
            "Pod" | "Node" | "Service" | "Ingress" | "Deployment" | "ReplicaSet" | "HorizontalPodAutoscaler"
        );
    if observed || matches!(kind.kind.as_str(), "Event" | "Lease" | "EndpointSlice") {
        Durability::Journalled
    } else {
        Durability::Synced
    }
}

/// Whether a deleted object can go now.
pub(crate) fn nothing_holds(kind: &Kind, object: &Value) -> bool {
    let graceful =
        is(kind, "Pod") && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
    let contents =
        is(kind, "Namespace") && object["spec"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
    !graceful && !contents && object::finalizers(object).is_empty()
}

/// The object with the marks of this deletion: grace period, finalizers of the propagation policy.
pub(crate) fn mark_deleted(kind: &Kind, old: &Value, options: &Options, now: Timestamp) -> Value {
    let mut marked = old.clone();
    let policy_finalizer = match options.propagation.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        _ => None,
    };
    let mut held: Vec<&str> = object::finalizers(old);
    if let Some(finalizer) = policy_finalizer
        && !held.contains(&finalizer)
    {
        held.push(finalizer);
    }
    if !held.is_empty() {
        let held: Vec<Value> = held.into_iter().map(Value::from).collect();
        metadata(&mut marked).insert("finalizers".to_owned(), held.into());
    }
    let grace = grace_seconds(kind, old, options);
    let known = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !object::is_terminating(old) || known.is_some_and(|known| grace < known) {
        delete::marks(&mut marked, now, grace);
    }
    if is(kind, "Namespace") {
        marked["status"]["phase"] = "Terminating".into();
    }
    marked
}

/// Pods that run somewhere get time to end; what no kubelet has taken, or has ended, goes at once.
fn grace_seconds(kind: &Kind, old: &Value, options: &Options) -> i64 {
    let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let unbound = old["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if !is(kind, "Pod") || ended || unbound {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_seconds.unwrap_or(own).max(0)
}

/// Cluster address and node ports of a Service: kept, taken as asked when free, or the first that is free.
fn addresses(inner: &Inner, kind: &Kind, old: Option<&Value>, service: &mut Value) -> Result<(), ApiError> {
    let name = meta(service, "name").to_owned();
    if service["spec"]["type"] == "ExternalName" {
        return Ok(());
    }
    let taken = taken(inner, service);
    cluster_address(inner, old, service, &taken)
        .map_err(|defect| ApiError::invalid(kind, &name, vec![defect]))?;
    node_ports(old, service, &taken).map_err(|defect| ApiError::invalid(kind, &name, vec![defect]))
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
            None => NODE_PORTS.clone().find(|free| !used.contains(&(*free, protocol.clone()))).ok_or_else(
                || defect(&format!("spec.ports[{at}].nodePort"), "no node port is left".to_owned()),
            )?,
        };
        used.insert((number, protocol));
        port["nodePort"] = number.into();
    }
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

/// Binds a pod to a node, as the binding subresource documents: once, and never a pod that is going.
pub(crate) fn bind(kind: &Kind, pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, ApiError> {
    let name = meta(pod, "name");
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("binding of pod {name:?}: target.name: Required value")));
    }
    let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !bound.is_empty() {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is already assigned to node {bound:?}"),
        ));
    }
    if object::is_terminating(pod) {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = node.into();
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": write::seconds(now), "lastProbeTime": null }));
    new["status"]["conditions"] = conditions.into();
    Ok(new)
}
