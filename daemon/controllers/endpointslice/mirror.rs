//! Mirror: the Endpoints that somebody wrote for a Service without a selector, as EndpointSlices.
//!
//! Invariant: what this node's own controllers write is never mirrored: it has its slices already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use reconcile::{Plan, Reconciler};

use super::slices::{self, Group, Keeper, MANAGED_BY, SERVICE, endpoint_key};
use super::{kept_for, slices_of};
use crate::Error;
use crate::pods::{name, uid};
use crate::step::{self, Door, Step, controlled_by};

/// What Kubernetes' own controller writes into the label.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that were used as a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints themselves.
const OWN: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone; its slices are collected.
    pub(crate) endpoints: Option<Arc<Endpoints>>,
    /// The Service of that name.
    pub(crate) service: Option<Arc<Service>>,
    /// The slices of the namespace whose names begin so, or that are labelled as the Service's.
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// Keeps the slices of Endpoints.
pub(crate) struct Mirrors {
    client: Door,
    endpoints: Cache<Endpoints>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
}

impl Mirrors {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        endpoints: Cache<Endpoints>,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Mirrors {
        Mirrors { client, endpoints, services, slices }
    }
}

impl Reconciler for Mirrors {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "endpointslicemirroring";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        Ok(View {
            endpoints: self.endpoints.get(key),
            service: self.services.get(key),
            slices: slices_of(&self.slices, key),
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// The Service whose slice it is, if it mirrors Endpoints.
pub(crate) fn mirrored_for(slice: &EndpointSlice) -> Option<&str> {
    kept_for(slice, MANAGER)
}

/// Lays the addresses of the subsets into slices; none where nothing is to be mirrored.
pub(crate) fn plan(view: &View, _now: Timestamp) -> Plan<Step> {
    let Some(endpoints) = &view.endpoints else { return Plan::empty() };
    let called = name(&endpoints.metadata);
    let ours: Vec<&Arc<EndpointSlice>> =
        view.slices.iter().filter(|slice| mirrored_for(slice) == Some(called)).collect();
    if endpoints.metadata.deletion_timestamp.is_some() || !is_mirrored(view, endpoints) {
        return Plan::in_turn(ours.into_iter().map(|slice| Step::delete(&**slice, None)).collect());
    }
    let taken: BTreeSet<String> = view.slices.iter().map(|slice| name(&slice.metadata).to_owned()).collect();
    Plan::in_turn(slices::lay(&keeper(endpoints), &groups(endpoints), ours, taken))
}

fn is_mirrored(view: &View, endpoints: &Endpoints) -> bool {
    let selected = |service: &Arc<Service>| {
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|all| !all.is_empty())
    };
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().is_some_and(|labels| labels.get(SKIP).is_some_and(|v| v == "true"));
    let lock = meta.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
    view.service.as_ref().is_some_and(|service| !selected(service)) && !skipped && !lock
}

fn keeper(endpoints: &Endpoints) -> Keeper<'_> {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.to_owned(), name(meta).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    Keeper {
        name: name(meta),
        uid: uid(meta),
        namespace: meta.namespace.clone(),
        labels,
        annotations: Some(annotations).filter(|all| !all.is_empty()),
        owner: controlled_by(endpoints),
    }
}

fn groups(endpoints: &Endpoints) -> BTreeMap<Group, slices::Endpoints> {
    let mut groups: BTreeMap<Group, slices::Endpoints> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let port = |port: &k8s_openapi::api::core::v1::EndpointPort| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                Some(port.port),
                port.app_protocol.clone(),
            )
        };
        let mut ports: Vec<_> = subset.ports.iter().flatten().map(port).collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned();
            let endpoint = mirrored(address, ready);
            let group = groups.entry(Group { family, ports: ports.clone() }).or_default();
            group.insert(endpoint_key(&endpoint), endpoint);
        }
    }
    groups
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}
