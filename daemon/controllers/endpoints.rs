//! Endpoints: where the pods behind each Service can be reached, in one object per Service, as older clients ask for it.
//!
//! Invariant: Endpoints of a Service without a selector are somebody else's and are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::endpointslice::{HEADLESS, address, families, headless, hostname, pods_of, ports};
use crate::pods;
use crate::step::{self, Door, Part, Place, Step};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// What Kubernetes' own controller writes there.
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// As Kubernetes: what is beyond is in the slices only.
const MOST: usize = 1000;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) service: Option<Arc<Service>>,
    /// The pods of its namespace that it selects.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The Endpoints of its name.
    pub(crate) known: Option<Arc<Endpoints>>,
}

/// Keeps Endpoints.
pub(crate) struct EndpointsOfServices {
    client: Door,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
}

impl EndpointsOfServices {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        services: Cache<Service>,
        pods: Cache<Pod>,
        endpoints: Cache<Endpoints>,
    ) -> EndpointsOfServices {
        EndpointsOfServices { client, services, pods, endpoints }
    }
}

impl Reconciler for EndpointsOfServices {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "endpoints";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let service = self.services.get(key);
        let pods = service.as_ref().map(|service| pods_of(&self.pods, &key.namespace, service));
        Ok(View { pods: pods.unwrap_or_default(), known: self.endpoints.get(key), service })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Writes the one object, or takes it away with its Service.
pub(crate) fn plan(view: &View, _now: Timestamp) -> Plan<Step> {
    let ours = |known: &&Arc<Endpoints>| {
        let labels = known.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
    };
    let Some(service) = &view.service else {
        let gone = view.known.iter().filter(ours).filter(|one| one.metadata.deletion_timestamp.is_none());
        return Plan::in_turn(gone.map(|known| Step::delete(&**known, None)).collect());
    };
    let spec = service.spec.clone().unwrap_or_default();
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
        || spec.type_.as_deref() == Some("ExternalName")
        || service.metadata.deletion_timestamp.is_some()
    {
        return Plan::empty();
    }
    let wanted = made(service, &view.pods);
    let Some(known) = &view.known else { return Plan::in_turn(vec![Step::create(&wanted, None)]) };
    let over = |meta: &ObjectMeta| meta.annotations.as_ref().and_then(|all| all.get(OVER_CAPACITY)).cloned();
    if known.subsets.clone().unwrap_or_default() == wanted.subsets.clone().unwrap_or_default()
        && known.metadata.labels == wanted.metadata.labels
        && over(&known.metadata) == over(&wanted.metadata)
    {
        return Plan::empty();
    }
    let mut annotations = known.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    annotations.extend(wanted.metadata.annotations.unwrap_or_default());
    let metadata = ObjectMeta {
        labels: wanted.metadata.labels,
        annotations: Some(annotations).filter(|all| !all.is_empty()),
        ..known.metadata.clone()
    };
    let object = Endpoints { metadata, subsets: wanted.subsets };
    let at = Place::of(&object);
    let object = serde_json::to_value(&object).expect("a Kubernetes object can be written as JSON");
    Plan::in_turn(vec![Step::Put { at, part: Part::Whole, object }])
}

fn made(service: &Service, selected: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let (subsets, cut) = subsets(service, selected);
    let annotation = || BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]);
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: cut.then(annotation),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// A port as it sorts: name, protocol, number, application protocol.
type Ports = BTreeSet<(Option<String>, String, i32, Option<String>)>;

/// The pods with the same ports together, and whether some were too many.
fn subsets(service: &Service, selected: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    // One object holds one family: the Service's first.
    let family = families(service).first().cloned().unwrap_or_else(|| "IPv4".to_owned());
    let there = |pod: &&Arc<Pod>| !pods::finished(pod) && (all || !pods::terminating(pod));
    let mut groups: BTreeMap<Ports, EndpointSubset> = BTreeMap::new();
    let portless = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_none_or(Vec::is_empty);
    let mut listed: Vec<(String, &Arc<Pod>)> =
        selected.iter().filter(there).filter_map(|pod| Some((address(pod, &family)?, pod))).collect();
    // The ready ones first, so that what is cut off is missed least.
    listed.sort_by_key(|(ip, pod)| (!(all || pods::ready(pod)), ip.clone()));
    let cut = listed.len() > MOST;
    for (ip, pod) in listed.into_iter().take(MOST) {
        let named = |name: String| (!name.is_empty()).then_some(name);
        let ports: Ports = ports(service, pod)
            .into_iter()
            .filter_map(|(name, protocol, port, app)| Some((named(name), protocol, port?, app)))
            .collect();
        if ports.is_empty() && !(portless && headless(service)) {
            continue;
        }
        let subset = groups.entry(ports).or_default();
        let list =
            if all || pods::ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(reached(service, pod, ip));
    }
    let with_ports = |(ports, mut subset): (Ports, EndpointSubset)| {
        let port = |(name, protocol, port, app_protocol)| EndpointPort {
            name,
            port,
            protocol: Some(protocol),
            app_protocol,
        };
        let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
        subset.ports = (!ports.is_empty()).then_some(ports);
        subset
    };
    (groups.into_iter().map(with_ports).collect(), cut)
}

fn reached(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    EndpointAddress {
        ip,
        hostname: hostname(service, pod),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}
