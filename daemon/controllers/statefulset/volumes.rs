//! The claims of a StatefulSet's pods: made when missing, and owned as the retention policy says.
//!
//! Invariant: a claim is never deleted here; the garbage collector does that when all its owners are gone.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::{COMPONENT, Round};
use crate::claims::or_null;
use crate::pods::{name, uid};
use crate::step::{Step, controlled_by};

/// Whether a pod's claims go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scaled {
    /// The pod stays.
    Kept,
    /// The set was made smaller, and the pod goes.
    Down,
}

/// How the names of the set's claims begin, one for each template.
pub(crate) fn claims_begin(set: &StatefulSet) -> Vec<String> {
    let templates = set.spec.iter().filter_map(|spec| spec.volume_claim_templates.as_ref()).flatten();
    templates.map(|template| format!("{}-{}-", name(&template.metadata), name(&set.metadata))).collect()
}

/// The name of a pod's claim.
pub(crate) fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The claims of a pod that are not there. `None`: one is on its way out and has to be gone first.
pub(crate) fn missing(round: &Round<'_>, ordinal: i32) -> Option<Vec<Step>> {
    let templates = round.spec.volume_claim_templates.iter().flatten();
    let mut steps = Vec::new();
    for template in templates {
        let called = claim_name(round.set, template, ordinal);
        match round.claims.get(&called) {
            Some(known) if stale(round, known) => return None,
            Some(_) => {}
            None => steps.push(made(round, template, called, ordinal)),
        }
    }
    Some(steps)
}

/// A claim that goes, or that belongs to a pod that is gone, is not for the next pod of that number.
fn stale(round: &Round<'_>, claim: &PersistentVolumeClaim) -> bool {
    let alive = |owner: &OwnerReference| round.pods.iter().any(|pod| uid(&pod.metadata) == owner.uid);
    let owners = claim.metadata.owner_references.iter().flatten();
    claim.metadata.deletion_timestamp.is_some()
        || owners.clone().any(|owner| owner.kind == "Pod" && !alive(owner))
}

fn made(round: &Round<'_>, template: &PersistentVolumeClaim, called: String, ordinal: i32) -> Step {
    let set = round.set;
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(round.spec.selector.match_labels.clone().unwrap_or_default());
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(called.clone()),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels).filter(|labels| !labels.is_empty()),
            annotations: template.metadata.annotations.clone(),
            owner_references: deletes_with_set(set).then(|| vec![controlled_by(&**set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let (pod, set_name) = (super::identity::pod_name(set, ordinal), name(&set.metadata));
    let message = format!("create Claim {called} Pod {pod} in StatefulSet {set_name} success");
    let failed = format!("create Claim {called} for Pod {pod} in StatefulSet {set_name} failed error");
    let note = round.note().says(COMPONENT, "SuccessfulCreate", message).or_else("FailedCreate", failed);
    Step::create(&claim, Some(note))
}

fn policy(set: &StatefulSet, when: &str) -> bool {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let said = policy.and_then(|policy| match when {
        "deleted" => policy.when_deleted.as_deref(),
        _ => policy.when_scaled.as_deref(),
    });
    said == Some("Delete")
}

fn deletes_with_set(set: &StatefulSet) -> bool {
    policy(set, "deleted")
}

/// Makes the claims of a pod owned as the policy says: by the set, by the pod when that goes for good, or by neither.
pub(crate) fn owned(round: &Round<'_>, pod: &Pod, ordinal: i32, scaled: Scaled) -> Vec<Step> {
    let set = round.set;
    let by_pod = scaled == Scaled::Down && policy(set, "scaled");
    let by_set = deletes_with_set(set) && !by_pod;
    let templates = round.spec.volume_claim_templates.iter().flatten();
    let claims = templates.filter_map(|template| round.claims.get(&claim_name(set, template, ordinal)));
    claims
        .filter(|claim| claim.metadata.deletion_timestamp.is_none())
        .filter_map(|claim| {
            let known: Vec<OwnerReference> = claim.metadata.owner_references.clone().unwrap_or_default();
            let mut wanted: Vec<OwnerReference> = known
                .iter()
                .filter(|owner| {
                    let ours = owner.uid == uid(&set.metadata) || owner.uid == uid(&pod.metadata);
                    !ours
                        || (by_set && owner.uid == uid(&set.metadata))
                        || (by_pod && owner.uid == uid(&pod.metadata))
                })
                .cloned()
                .collect();
            let has = |owner: &str| wanted.iter().any(|known| known.uid == owner);
            if by_set && !has(uid(&set.metadata)) {
                wanted.push(controlled_by(&**set));
            } else if by_pod && !has(uid(&pod.metadata)) {
                wanted.push(controlled_by(pod));
            }
            let patch = || json!({"metadata": {"ownerReferences": or_null(json!(wanted))}});
            (wanted != known).then(|| Step::patch(&**claim, patch()))
        })
        .collect()
}
