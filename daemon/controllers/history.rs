//! The history of a template: ControllerRevisions, which of them is the one of now, and which are let go.
//!
//! Invariant: a revision's name follows from the template, so a round that does not see yet what the last one did makes
//! no second one.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use serde_json::json;

use crate::names::template_hash;
use crate::pods::{controller, name, uid};
use crate::step::{Step, controlled_by};

/// What tells a revision from the others of its owner, on the pods made of it.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// The revision of the template of now.
pub(crate) struct Current {
    /// As it is, or as it will be when the steps are done.
    pub(crate) revision: Arc<ControllerRevision>,
    /// What makes it so.
    pub(crate) steps: Vec<Step>,
    /// How often a name was taken by another template.
    pub(crate) collisions: i32,
}

/// The revisions that the owner controls, the oldest first.
pub(crate) fn of<O: Resource<DynamicType = ()>>(
    owner: &O,
    revisions: &[Arc<ControllerRevision>],
) -> Vec<Arc<ControllerRevision>> {
    let ours = |one: &&Arc<ControllerRevision>| {
        controller(&one.metadata).is_some_and(|known| known.uid == uid(owner.meta()))
    };
    let mut known: Vec<Arc<ControllerRevision>> = revisions.iter().filter(ours).cloned().collect();
    known.sort_by(|a, b| {
        let created = |one: &ControllerRevision| one.metadata.creation_timestamp.clone();
        (a.revision, created(a), name(&a.metadata)).cmp(&(b.revision, created(b), name(&b.metadata)))
    });
    known
}

/// Finds the revision of a template, makes it the latest, or makes it. `label` is where its hash goes.
pub(crate) fn current<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    known: &[Arc<ControllerRevision>],
    collisions: i32,
    label: &str,
) -> Current {
    let next = known.last().map_or(0, |last| last.revision) + 1;
    let same = known.iter().rev().find(|one| template_of(one).as_ref() == Some(template));
    if let Some(same) = same {
        let mut steps = Vec::new();
        let mut revision = Arc::clone(same);
        if same.revision + 1 != next {
            // Gone back to: it is the latest again.
            steps.push(Step::patch(&**same, json!({"revision": next})));
            Arc::make_mut(&mut revision).revision = next;
        }
        return Current { revision, steps, collisions };
    }
    let mut collisions = collisions;
    loop {
        let hash = template_hash(template, collisions);
        let called = format!("{}-{hash}", name(owner.meta()));
        if known.iter().any(|one| name(&one.metadata) == called) {
            collisions += 1;
            continue;
        }
        let mut labels = template.metadata.clone().unwrap_or_default().labels.unwrap_or_default();
        labels.insert(label.to_owned(), hash);
        let mut data = json!({"spec": {"template": template}});
        data["spec"]["template"]["$patch"] = json!("replace");
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(called),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![controlled_by(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data)),
            revision: next,
        };
        let steps = vec![Step::create(&revision, None)];
        return Current { revision: Arc::new(revision), steps, collisions };
    }
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Deletes the oldest of those that nothing is made of any more, but for `limit` of them.
pub(crate) fn cleanup(known: &[Arc<ControllerRevision>], live: &BTreeSet<&str>, limit: i32) -> Vec<Step> {
    let dead: Vec<_> = known.iter().filter(|one| !live.contains(name(&one.metadata))).collect();
    let surplus = dead.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    dead.into_iter().take(surplus).map(|one| Step::delete(&**one, None)).collect()
}
