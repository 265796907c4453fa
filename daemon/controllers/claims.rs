//! Adoption and release: what matches a selector and has no controller is taken, what no longer matches is let go.
//!
//! Invariant: an owner that is on its way out takes nothing.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource;
use serde_json::{Value, json};

use crate::pods::{controller, selected, uid};
use crate::step::{Step, controlled_by};

/// What changes hands.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The patches of owner references.
    pub(crate) steps: Vec<Step>,
    /// How many of them adopt.
    pub(crate) adopted: usize,
}

/// Compares those that the owner controls, and those that nobody controls, with the owner's selector.
pub(crate) fn claims<O, K>(
    owner: &O,
    selector: &LabelSelector,
    objects: &[Arc<K>],
    adoptable: impl Fn(&K) -> bool,
) -> Claims
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()>,
{
    held_claims(owner, selector, objects, (None, adoptable))
}

/// As `claims`; what is adopted also gets a finalizer, and what is let go loses it.
pub(crate) fn held_claims<O, K>(
    owner: &O,
    selector: &LabelSelector,
    objects: &[Arc<K>],
    (finalizer, adoptable): (Option<&str>, impl Fn(&K) -> bool),
) -> Claims
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()>,
{
    let mut claims = Claims::default();
    if owner.meta().deletion_timestamp.is_some() {
        return claims;
    }
    for object in objects {
        let meta = object.meta();
        match (controller(meta), selected(selector, meta)) {
            (Some(_), false) => claims.steps.push(released(&**object, uid(owner.meta()), finalizer)),
            (None, true) if meta.deletion_timestamp.is_none() && adoptable(object) => {
                claims.adopted += 1;
                claims.steps.push(adopted(&**object, owner, finalizer));
            }
            _ => {}
        }
    }
    claims
}

fn adopted<O, K>(object: &K, owner: &O, finalizer: Option<&str>) -> Step
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()>,
{
    let meta = object.meta();
    let known = meta.owner_references.iter().flatten().filter(|known| known.uid != uid(owner.meta()));
    let owners: Vec<_> = known.cloned().chain([controlled_by(owner)]).collect();
    let mut patch = json!({"metadata": {"ownerReferences": owners}});
    if let Some(finalizer) = finalizer.filter(|wanted| !held(meta, wanted)) {
        let all = meta.finalizers.iter().flatten().map(String::as_str).chain([finalizer]);
        patch["metadata"]["finalizers"] = json!(all.collect::<Vec<_>>());
    }
    Step::patch(object, patch)
}

fn released<K: Resource<DynamicType = ()>>(object: &K, owner: &str, finalizer: Option<&str>) -> Step {
    let meta = object.meta();
    let rest: Vec<_> = meta.owner_references.iter().flatten().filter(|known| known.uid != owner).collect();
    let mut patch = json!({"metadata": {"ownerReferences": or_null(json!(rest))}});
    if let Some(finalizer) = finalizer.filter(|known| held(meta, known)) {
        let rest: Vec<_> = meta.finalizers.iter().flatten().filter(|one| *one != finalizer).collect();
        patch["metadata"]["finalizers"] = or_null(json!(rest));
    }
    Step::patch(object, patch)
}

fn held(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|one| one == finalizer)
}

/// A merge patch removes a list by null.
pub(crate) fn or_null(list: Value) -> Value {
    if list.as_array().is_some_and(Vec::is_empty) { Value::Null } else { list }
}
