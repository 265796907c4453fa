//! The volumes of a pod: whether its claims can be had on a node, and which volume each of them gets.
//!
//! Invariant: a claim that waits for its first consumer is given a volume only on the node that the pod gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::Key;
use imbl::OrdMap;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use crate::ask::{Ask, Claim};
use crate::filter::{Cause, Refusal, one_matches};
use crate::node::Facts;
use crate::round::Round;

/// On a claim: the node for which its volume is made.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// What there is of storage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Storage {
    /// Claims.
    pub(crate) claims: OrdMap<Key, Arc<PersistentVolumeClaim>>,
    /// Volumes.
    pub(crate) volumes: OrdMap<Key, Arc<PersistentVolume>>,
    /// Classes.
    pub(crate) classes: OrdMap<Key, Arc<StorageClass>>,
}

/// How a claim gets its volume.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Choice {
    /// This volume is there.
    Volume {
        /// The volume.
        volume: Arc<PersistentVolume>,
        /// The claim.
        claim: Arc<PersistentVolumeClaim>,
    },
    /// One is to be made for the node.
    Make {
        /// The claim.
        claim: Arc<PersistentVolumeClaim>,
    },
}

impl Choice {
    /// The name of the volume that is given away.
    pub(crate) fn volume(&self) -> Option<&str> {
        match self {
            Choice::Volume { volume, .. } => volume.metadata.name.as_deref(),
            Choice::Make { .. } => None,
        }
    }
}

/// Why a pod's claims cannot be had on any node.
pub(crate) fn missing(storage: &Storage, ask: &Ask) -> Option<String> {
    let mut unbound = false;
    for Claim { key, ephemeral } in &ask.claims {
        let name = &key.name;
        let Some(claim) = storage.claims.get(key) else {
            return Some(if *ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                )
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            });
        };
        if phase(claim) == "Lost" {
            let volume = volume_name(claim).unwrap_or_default();
            return Some(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if *ephemeral && !is_owned(claim, ask) {
            return Some(format!("PVC {key} was not created for pod {} (pod is not owner)", ask.key));
        }
        unbound |= !is_bound(claim) && !waits_for_consumer(storage, claim);
    }
    unbound.then(|| "pod has unbound immediate PersistentVolumeClaims".to_owned())
}

/// Asks one node.
pub(crate) fn refusal(round: &Round<'_>, ask: &Ask, at: usize) -> Option<Refusal> {
    if ask.claims.is_empty() {
        return None;
    }
    let storage = &round.view.storage;
    let claims = ask.claims.iter().filter_map(|claim| Some((&claim.key, storage.claims.get(&claim.key)?)));
    let used_alone = |(key, claim): (&Key, &Arc<PersistentVolumeClaim>)| {
        modes(claim).any(|mode| mode == "ReadWriteOncePod")
            && round.nodes.iter().any(|view| view.used.claims.contains_key(key))
    };
    if claims.clone().any(used_alone) {
        return Refusal::for_now(
            Cause::Volumes,
            "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
        );
    }
    let facts = &round.nodes[at].facts;
    for (_, claim) in claims.filter(|(_, claim)| is_bound(claim)) {
        let volume = storage.volumes.get(&Key::new("", volume_name(claim).unwrap_or_default()));
        let Some(volume) = volume else {
            let reason = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
            return Refusal::always(Cause::Volumes, reason);
        };
        if !is_reachable(volume, facts) {
            return Refusal::always(Cause::Volumes, "node(s) didn't match PersistentVolume's node affinity");
        }
        if !in_zone(volume, facts) {
            return Refusal::always(Cause::Volumes, "node(s) had no available volume zone");
        }
    }
    if choices(round, ask, at).is_none() {
        return Refusal::always(Cause::Volumes, "node(s) didn't find available persistent volumes to bind");
    }
    None
}

/// What is to be done about the claims of a pod before it can be bound to a node; `None`: nothing.
pub(crate) fn choose(round: &Round<'_>, ask: &Ask, at: usize) -> Option<Vec<Choice>> {
    choices(round, ask, at).filter(|choices| !choices.is_empty())
}

/// A volume for each claim that has none; `None`: not on this node.
fn choices(round: &Round<'_>, ask: &Ask, at: usize) -> Option<Vec<Choice>> {
    let (storage, facts) = (&round.view.storage, &round.nodes[at].facts);
    let mut unbound: Vec<&Arc<PersistentVolumeClaim>> = ask
        .claims
        .iter()
        .filter_map(|claim| storage.claims.get(&claim.key))
        .filter(|claim| !is_bound(claim))
        .collect();
    // Small claims first, so that a large volume is left for a large claim.
    unbound.sort_by_key(|claim| api::volumes::requested(&json!(claim)).map(|size| size.as_bytes()));
    let mut given: BTreeSet<String> = BTreeSet::new();
    let mut all = Vec::new();
    for claim in unbound {
        let annotations = claim.metadata.annotations.as_ref();
        if let Some(selected) = annotations.and_then(|annotations| annotations.get(SELECTED_NODE)) {
            if *selected != facts.name {
                return None;
            }
            all.push(Choice::Make { claim: Arc::clone(claim) });
        } else if let Some(volume) = smallest(round, claim, (facts, &given)) {
            given.extend(volume.metadata.name.clone());
            all.push(Choice::Volume { volume, claim: Arc::clone(claim) });
        } else if can_be_made(storage, claim, facts) {
            all.push(Choice::Make { claim: Arc::clone(claim) });
        } else {
            return None;
        }
    }
    Some(all)
}

fn smallest(
    round: &Round<'_>,
    claim: &Arc<PersistentVolumeClaim>,
    (facts, given): (&Facts, &BTreeSet<String>),
) -> Option<Arc<PersistentVolume>> {
    let wanted = json!(claim);
    let free = |volume: &&Arc<PersistentVolume>| {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        !given.contains(name) && !round.claimed.contains(name) && is_reachable(volume, facts)
    };
    let found = round.view.storage.volumes.values().filter(free).filter_map(|volume| {
        let offered = json!(volume);
        api::volumes::satisfies(&offered, &wanted).then(|| (api::volumes::capacity(&offered), volume))
    });
    let found = found.min_by_key(|(capacity, _)| capacity.map(|size| size.as_bytes()));
    found.map(|(_, volume)| Arc::clone(volume))
}

fn can_be_made(storage: &Storage, claim: &PersistentVolumeClaim, facts: &Facts) -> bool {
    let Some(class) = class(storage, claim) else { return false };
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = topologies.is_empty()
        || topologies.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|wanted| {
                facts.labels.get(&wanted.key).is_some_and(|value| wanted.values.contains(value))
            })
        });
    class.provisioner != NO_PROVISIONER && allowed
}

fn class<'a>(storage: &'a Storage, claim: &PersistentVolumeClaim) -> Option<&'a Arc<StorageClass>> {
    let name = claim.spec.as_ref()?.storage_class_name.as_deref().filter(|name| !name.is_empty())?;
    storage.classes.get(&Key::new("", name))
}

fn waits_for_consumer(storage: &Storage, claim: &PersistentVolumeClaim) -> bool {
    class(storage, claim)
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let marks = claim.metadata.annotations.as_ref();
    volume_name(claim).is_some() && marks.is_some_and(|marks| marks.contains_key(BIND_COMPLETED))
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn modes(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let spec = claim.spec.as_ref();
    spec.into_iter().flat_map(|spec| spec.access_modes.iter().flatten()).map(String::as_str)
}

fn is_owned(claim: &PersistentVolumeClaim, ask: &Ask) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == ask.uid())
}

fn is_reachable(volume: &PersistentVolume, facts: &Facts) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| one_matches(required, &facts.name, &facts.labels))
}

/// Where a volume says in which zones it is, the node must be in one of them.
fn in_zone(volume: &PersistentVolume, facts: &Facts) -> bool {
    let says = volume.metadata.labels.iter().flatten().filter(|(key, _)| ZONES.contains(&key.as_str()));
    says.into_iter()
        .all(|(key, zones)| facts.labels.get(key).is_none_or(|zone| zones.split("__").any(|one| one == zone)))
}
