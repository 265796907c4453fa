//! EndpointSlice: where the pods behind each Service can be reached.
//!
//! Invariant: an endpoint stays in the slice it is in, so one pod's change writes one slice.
//! Invariant: a slice's name follows from the Service and a number; slices of others are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::names::Names;
use crate::pods::{self, name, uid};
use crate::step::{self, Part, Place, Step, controlled_by};

/// Whose slice it is.
const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What Kubernetes' own controller writes there.
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// As Kubernetes' default.
const MOST_ENDPOINTS: usize = 100;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone; its slices are collected.
    pub(crate) service: Option<Arc<Service>>,
    /// The pods of its namespace that it selects.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The slices of the namespace whose names begin as the Service's do, or that are labelled as its.
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// Keeps EndpointSlices.
pub(crate) struct EndpointSlices {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    slices: Cache<EndpointSlice>,
}

impl EndpointSlices {
    /// Over these caches.
    pub(crate) fn new(
        client: Client,
        services: Cache<Service>,
        pods: Cache<Pod>,
        slices: Cache<EndpointSlice>,
    ) -> EndpointSlices {
        EndpointSlices { client, services, pods, slices }
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
        let in_namespace = |at: &&Key| at.namespace == key.namespace;
        let (pods, slices) = (self.pods.snapshot(), self.slices.snapshot());
        let first = Key::new(&key.namespace, "");
        let pods = pods.range(first.clone()..).take_while(|(at, _)| in_namespace(at)).map(|(_, pod)| pod);
        let slices = slices.range(first..).take_while(|(at, _)| in_namespace(at)).map(|(_, slice)| slice);
        Ok(View {
            pods: pods.filter(|pod| selects(&service, &pod.metadata)).cloned().collect(),
            slices: slices.filter(|slice| concerns(slice, &key.name)).cloned().collect(),
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

/// The Service whose slice it is, if it is kept here.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.metadata.labels.as_ref()?;
    (labels.get(MANAGED_BY)? == MANAGER).then(|| labels.get(SERVICE).map(String::as_str))?
}

fn concerns(slice: &EndpointSlice, service: &str) -> bool {
    service_of(slice) == Some(service) || name(&slice.metadata).starts_with(service)
}

/// The ports and the address family that all endpoints of a slice share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    family: String,
    ports: Vec<(String, String, Option<i32>, Option<String>)>,
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
    let mut wanted = endpoints(service, &view.pods);
    for family in families(service) {
        if wanted.keys().all(|group| group.family != family) {
            // As Kubernetes: a Service with nothing behind it has one empty slice without ports.
            wanted.insert(Group { family, ports: Vec::new() }, BTreeMap::new());
        }
    }
    let mut ours: Vec<&Arc<EndpointSlice>> = view
        .slices
        .iter()
        .filter(|slice| service_of(slice) == Some(name(&service.metadata)))
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    ours.sort_by_key(|slice| name(&slice.metadata));
    let mut taken: BTreeSet<String> =
        view.slices.iter().map(|slice| name(&slice.metadata).to_owned()).collect();
    let mut steps = Vec::new();
    for (group, endpoints) in &wanted {
        let (mine, others) = ours.into_iter().partition(|slice| group_of(slice) == *group);
        ours = others;
        steps.extend(fill(service, group, endpoints.clone(), mine, &mut taken));
    }
    steps.extend(ours.into_iter().map(|slice| Step::delete(&**slice, None)));
    // New places are made before old ones go: InTurn keeps that order, since deletes are last.
    Plan::in_turn(steps)
}

type Endpoints = BTreeMap<String, Endpoint>;

/// Writes one group into its slices.
fn fill(
    service: &Service,
    group: &Group,
    mut wanted: Endpoints,
    slices: Vec<&Arc<EndpointSlice>>,
    taken: &mut BTreeSet<String>,
) -> Vec<Step> {
    let placeholder = wanted.is_empty();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stays = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|known| wanted.remove(&endpoint_key(known)))
            .collect();
        kept.push((slice, stays));
    }
    // The fullest slices are filled first: fewer slices, fewer writes.
    kept.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    for (_, endpoints) in &mut kept {
        let room = MOST_ENDPOINTS.saturating_sub(endpoints.len()).min(rest.len());
        endpoints.extend(rest.drain(..room));
    }
    let mut steps = Vec::new();
    let mut deletes = Vec::new();
    for (at, (slice, endpoints)) in kept.iter().enumerate() {
        if endpoints.is_empty() && !(placeholder && at == 0) {
            deletes.push(Step::delete(&***slice, None));
            continue;
        }
        let mut new = made(service, group, endpoints.clone());
        let labels = new.metadata.labels.take();
        if slice.endpoints.as_deref().unwrap_or_default() != new.endpoints.as_deref().unwrap_or_default()
            || slice.metadata.labels != labels
        {
            new.metadata = ObjectMeta { labels, ..slice.metadata.clone() };
            let object = serde_json::to_value(&new).expect("a Kubernetes object can be written as JSON");
            steps.push(Step::Put { at: Place::of(&new), part: Part::Whole, object });
        }
    }
    let none_yet = placeholder && kept.is_empty();
    let chunks: Vec<Vec<Endpoint>> = rest.chunks(MOST_ENDPOINTS).map(<[Endpoint]>::to_vec).collect();
    for endpoints in chunks.into_iter().chain(none_yet.then(Vec::new)) {
        let mut slice = made(service, group, endpoints);
        let free =
            Names::new(name(&service.metadata), uid(&service.metadata), taken.iter().map(String::as_str))
                .next();
        taken.extend(free.clone());
        slice.metadata.name = free;
        steps.push(Step::create(&slice, None));
    }
    steps.extend(deletes);
    steps
}

fn made(service: &Service, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let port =
        |(name, protocol, port, app_protocol): &(String, String, Option<i32>, Option<String>)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: *port,
            app_protocol: app_protocol.clone(),
        };
    let ports: Vec<EndpointPort> = group.ports.iter().map(port).collect();
    EndpointSlice {
        address_type: group.family.clone(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controlled_by(service)]),
            ..ObjectMeta::default()
        },
        endpoints: Some(endpoints),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// `IPv4` and `IPv6` of the Service; IPv4 where it does not say.
fn families(service: &Service) -> Vec<String> {
    let known = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if known.is_empty() { vec!["IPv4".to_owned()] } else { known }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let port = |port: &EndpointPort| {
        (
            port.name.clone().unwrap_or_default(),
            port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port.port,
            port.app_protocol.clone(),
        )
    };
    let mut ports: Vec<_> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    Group { family: slice.address_type.clone(), ports }
}

/// An endpoint is the same while pod and address are.
fn endpoint_key(endpoint: &Endpoint) -> String {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{pod} {}", endpoint.addresses.first().map_or("", String::as_str))
}

fn endpoints(service: &Service, selected: &[Arc<Pod>]) -> BTreeMap<Group, Endpoints> {
    let mut groups: BTreeMap<Group, Endpoints> = BTreeMap::new();
    for pod in selected.iter().filter(|pod| !pods::finished(pod)) {
        for family in families(service) {
            let Some(address) = address(pod, &family) else { continue };
            let mut ports = ports(service, pod);
            ports.sort();
            let endpoint = endpoint(service, pod, address);
            groups.entry(Group { family, ports }).or_default().insert(endpoint_key(&endpoint), endpoint);
        }
    }
    groups
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    all.into_iter().find(|ip| ip.contains(':') == (family == "IPv6") && !ip.is_empty()).cloned()
}

fn endpoint(service: &Service, pod: &Pod, address: String) -> Endpoint {
    let spec = pod.spec.clone().unwrap_or_default();
    let all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let (serving, terminating) = (pods::ready(pod), pods::terminating(pod));
    let hostname = spec
        .hostname
        .filter(|_| spec.subdomain.as_deref() == Some(name(&service.metadata)))
        .filter(|h| !h.is_empty());
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            // A pod that is leaving is never ready, unless the Service asks for all addresses.
            ready: Some(all || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: spec.node_name,
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

fn ports(service: &Service, pod: &Pod) -> Vec<(String, String, Option<i32>, Option<String>)> {
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
