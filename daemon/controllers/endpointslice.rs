//! EndpointSlice: where the pods behind each Service can be reached.
//!
//! Invariant: a slice that somebody else keeps is left alone, also when it is labelled as the Service's.

pub(crate) mod mirror;
mod slices;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::pods::{self, name, uid};
use crate::step::{self, Door, Step, controlled_by};
use slices::{Endpoints, Group, Keeper, MANAGED_BY, Port, SERVICE, endpoint_key};

/// What Kubernetes' own controller writes there.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Says that the Service has no address of its own.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone; its slices are collected.
    pub(crate) service: Option<Arc<Service>>,
    /// The pods of its namespace that it selects.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The slices of the namespace whose names begin as the Service's do, or that are labelled as its.
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
    /// The zones of the nodes that say theirs.
    pub(crate) zones: BTreeMap<String, String>,
}

/// Keeps EndpointSlices.
pub(crate) struct EndpointSlices {
    client: Door,
    services: Cache<Service>,
    pods: Cache<Pod>,
    slices: Cache<EndpointSlice>,
    nodes: Cache<Node>,
}

impl EndpointSlices {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        services: Cache<Service>,
        pods: Cache<Pod>,
        slices: Cache<EndpointSlice>,
        nodes: Cache<Node>,
    ) -> EndpointSlices {
        EndpointSlices { client, services, pods, slices, nodes }
    }
}

impl Reconciler for EndpointSlices {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "endpointslice";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(service) = self.services.get(key) else { return Ok(View::default()) };
        let nodes = self.nodes.snapshot();
        Ok(View {
            pods: pods_of(&self.pods, &key.namespace, &service),
            slices: slices_of(&self.slices, key),
            zones: nodes.iter().filter_map(|(at, node)| Some((at.name.clone(), zone_of(node)?))).collect(),
            service: Some(service),
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Whether a Service picks an object by its labels. One without a selector picks nothing.
pub(crate) fn selects(service: &Service, meta: &ObjectMeta) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = meta.labels.as_ref();
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    })
}

/// The zone that a node says it is in.
pub(crate) fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

/// The pods that a Service selects.
pub(crate) fn pods_of(pods: &Cache<Pod>, namespace: &str, service: &Service) -> Vec<Arc<Pod>> {
    if service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_none_or(BTreeMap::is_empty) {
        return Vec::new();
    }
    let snapshot = pods.snapshot();
    let all = snapshot.range(Key::new(namespace, "")..).take_while(|(at, _)| at.namespace == namespace);
    all.map(|(_, pod)| pod).filter(|pod| selects(service, &pod.metadata)).cloned().collect()
}

/// The slices whose names begin as those of the key do, or that are labelled as its.
fn slices_of(slices: &Cache<EndpointSlice>, key: &Key) -> Vec<Arc<EndpointSlice>> {
    let snapshot = slices.snapshot();
    let from = snapshot.range(Key::new(&key.namespace, "")..);
    let all = from.take_while(|(at, _)| at.namespace == key.namespace).map(|(_, slice)| slice);
    let concerns = |slice: &&Arc<EndpointSlice>| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(SERVICE)).is_some_and(|service| *service == key.name)
            || name(&slice.metadata).starts_with(&key.name)
    };
    all.filter(concerns).cloned().collect()
}

/// The Service whose slice it is, if it is kept here.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    kept_for(slice, MANAGER)
}

/// The Service whose slice it is, if it is kept by that controller.
fn kept_for<'a>(slice: &'a EndpointSlice, manager: &str) -> Option<&'a str> {
    let labels = slice.metadata.labels.as_ref()?;
    (labels.get(MANAGED_BY)? == manager).then(|| labels.get(SERVICE).map(String::as_str))?
}

/// Puts every reachable pod into a slice of its group, and takes out what is no longer reachable.
pub(crate) fn plan(view: &View, _now: Timestamp) -> Plan<Step> {
    let Some(service) = &view.service else { return Plan::empty() };
    let spec = service.spec.clone().unwrap_or_default();
    let selects_nothing = spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
    if selects_nothing
        || spec.type_.as_deref() == Some("ExternalName")
        || service.metadata.deletion_timestamp.is_some()
    {
        return Plan::empty();
    }
    let mut wanted = endpoints(service, view);
    for family in families(service) {
        if wanted.keys().all(|group| group.family != family) {
            // As Kubernetes: a Service with nothing behind it has one empty slice without ports.
            wanted.insert(Group { family, ports: Vec::new() }, BTreeMap::new());
        }
    }
    let ours =
        view.slices.iter().filter(|slice| service_of(slice) == Some(name(&service.metadata))).collect();
    let taken: BTreeSet<String> = view.slices.iter().map(|slice| name(&slice.metadata).to_owned()).collect();
    Plan::in_turn(slices::lay(&keeper(service), &wanted, ours, taken))
}

fn keeper(service: &Service) -> Keeper<'_> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    Keeper {
        name: name(&service.metadata),
        uid: uid(&service.metadata),
        namespace: service.metadata.namespace.clone(),
        labels,
        annotations: None,
        owner: controlled_by(service),
    }
}

/// Whether the Service has no address of its own.
pub(crate) fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// `IPv4` and `IPv6` of the Service; IPv4 where it does not say.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let known = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if known.is_empty() { vec!["IPv4".to_owned()] } else { known }
}

fn endpoints(service: &Service, view: &View) -> BTreeMap<Group, Endpoints> {
    let mut groups: BTreeMap<Group, Endpoints> = BTreeMap::new();
    for pod in view.pods.iter().filter(|pod| !pods::finished(pod)) {
        for family in families(service) {
            let Some(address) = address(pod, &family) else { continue };
            let mut ports = ports(service, pod);
            ports.sort();
            let endpoint = endpoint(service, pod, address, &view.zones);
            groups.entry(Group { family, ports }).or_default().insert(endpoint_key(&endpoint), endpoint);
        }
    }
    groups
}

/// The pod's address of a family.
pub(crate) fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    all.into_iter().find(|ip| ip.contains(':') == (family == "IPv6") && !ip.is_empty()).cloned()
}

fn endpoint(service: &Service, pod: &Pod, address: String, zones: &BTreeMap<String, String>) -> Endpoint {
    let spec = pod.spec.clone().unwrap_or_default();
    let all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let (serving, terminating) = (pods::ready(pod), pods::terminating(pod));
    let ready = all || (serving && !terminating);
    let zone = spec.node_name.as_ref().and_then(|node| zones.get(node)).cloned();
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            // A pod that is leaving is never ready, unless the Service asks for all addresses.
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, spec.node_name.as_deref(), zone.as_deref()).filter(|_| ready),
        hostname: hostname(service, pod),
        node_name: spec.node_name,
        zone,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// Where traffic for this endpoint should best come from, as `trafficDistribution` asks.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let nodes =
        node.filter(|_| wanted == "PreferSameNode").map(|node| vec![ForNode { name: node.to_owned() }]);
    let known = matches!(wanted, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    (known && (zones.is_some() || nodes.is_some()))
        .then_some(EndpointHints { for_nodes: nodes, for_zones: zones })
}

/// The name of the pod's own in the Service's domain.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.subdomain.as_deref() == Some(name(&service.metadata));
    spec.hostname.clone().filter(|hostname| ours && !hostname.is_empty())
}

/// The ports of a pod that the Service leads to.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let all = service.spec.iter().filter_map(|spec| spec.ports.as_ref()).flatten();
    all.filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = target(port, &protocol, pod)?;
        Some((port.name.clone().unwrap_or_default(), protocol, Some(number), port.app_protocol.clone()))
    })
    .collect()
}

/// The port on the pod: a number, or the container port of that name. A pod without that name has no such port.
fn target(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    let wanted = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let known = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    known
        .filter(|known| known.protocol.as_deref().unwrap_or("TCP") == protocol)
        .find(|known| known.name.as_deref() == Some(wanted))
        .map(|known| known.container_port)
}
