//! How endpoints are laid into slices, whoever they are kept for.
//!
//! Invariant: an endpoint stays in the slice it is in, so one change writes one slice.
//! Invariant: a slice's name follows from its owner and a number; slices of others are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::names::Names;
use crate::pods::name;
use crate::step::{Part, Place, Step};

/// The Service that a slice is for.
pub(crate) const SERVICE: &str = "kubernetes.io/service-name";
/// Who keeps it.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// As Kubernetes' default.
const MOST_ENDPOINTS: usize = 100;

/// Endpoints by what makes them the same.
pub(crate) type Endpoints = BTreeMap<String, Endpoint>;
/// A port's name, protocol, number and application protocol.
pub(crate) type Port = (String, String, Option<i32>, Option<String>);

/// The ports and the address family that all endpoints of a slice share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    /// `IPv4` or `IPv6`.
    pub(crate) family: String,
    /// In order.
    pub(crate) ports: Vec<Port>,
}

/// For whom slices are kept.
pub(crate) struct Keeper<'a> {
    /// Slices' names begin with it.
    pub(crate) name: &'a str,
    /// What makes their names its own.
    pub(crate) uid: &'a str,
    /// Where.
    pub(crate) namespace: Option<String>,
    /// What they carry.
    pub(crate) labels: BTreeMap<String, String>,
    /// What they carry.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Who owns them.
    pub(crate) owner: OwnerReference,
}

/// Writes what is wanted into the slices that are there. `taken` are all names that begin so.
pub(crate) fn lay(
    keeper: &Keeper<'_>,
    wanted: &BTreeMap<Group, Endpoints>,
    mut ours: Vec<&Arc<EndpointSlice>>,
    mut taken: BTreeSet<String>,
) -> Vec<Step> {
    ours.retain(|slice| slice.metadata.deletion_timestamp.is_none());
    ours.sort_by_key(|slice| name(&slice.metadata));
    let mut steps = Vec::new();
    for (group, endpoints) in wanted {
        let (mine, others) = ours.into_iter().partition(|slice| group_of(slice) == *group);
        ours = others;
        steps.extend(fill(keeper, group, endpoints.clone(), mine, &mut taken));
    }
    // New places are made before old ones go: InTurn keeps that order, since deletes are last.
    steps.extend(ours.into_iter().map(|slice| Step::delete(&**slice, None)));
    steps
}

/// Writes one group into its slices.
fn fill(
    keeper: &Keeper<'_>,
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
        let mut new = made(keeper, group, endpoints.clone());
        let (labels, annotations) = (new.metadata.labels.take(), new.metadata.annotations.take());
        let annotated = annotations.is_none() || slice.metadata.annotations == annotations;
        if slice.endpoints.as_deref().unwrap_or_default() != new.endpoints.as_deref().unwrap_or_default()
            || slice.metadata.labels != labels
            || !annotated
        {
            let annotations = annotations.or_else(|| slice.metadata.annotations.clone());
            new.metadata = ObjectMeta { labels, annotations, ..slice.metadata.clone() };
            let object = serde_json::to_value(&new).expect("a Kubernetes object can be written as JSON");
            steps.push(Step::Put { at: Place::of(&new), part: Part::Whole, object });
        }
    }
    let none_yet = placeholder && kept.is_empty();
    let chunks: Vec<Vec<Endpoint>> = rest.chunks(MOST_ENDPOINTS).map(<[Endpoint]>::to_vec).collect();
    for endpoints in chunks.into_iter().chain(none_yet.then(Vec::new)) {
        let mut slice = made(keeper, group, endpoints);
        let free = Names::new(keeper.name, keeper.uid, taken.iter().map(String::as_str)).next();
        taken.extend(free.clone());
        slice.metadata.name = free;
        steps.push(Step::create(&slice, None));
    }
    steps.extend(deletes);
    steps
}

fn made(keeper: &Keeper<'_>, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |(name, protocol, port, app_protocol): &Port| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: *port,
        app_protocol: app_protocol.clone(),
    };
    let ports: Vec<EndpointPort> = group.ports.iter().map(port).collect();
    EndpointSlice {
        address_type: group.family.clone(),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", keeper.name)),
            namespace: keeper.namespace.clone(),
            labels: Some(keeper.labels.clone()),
            annotations: keeper.annotations.clone(),
            owner_references: Some(vec![keeper.owner.clone()]),
            ..ObjectMeta::default()
        },
        endpoints: Some(endpoints),
        ports: (!ports.is_empty()).then_some(ports),
    }
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
pub(crate) fn endpoint_key(endpoint: &Endpoint) -> String {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{pod} {}", endpoint.addresses.first().map_or("", String::as_str))
}
