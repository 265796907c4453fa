//! Ephemeral volumes: makes the claim that a pod declares for itself alone.
//!
//! Invariant: a claim of that name that belongs to somebody else is never used.

use std::sync::Arc;

use client::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Plan, Reconciler};

use super::Seen;
use crate::Error;
use crate::pods;
use crate::step::{self, Step, controlled_by};

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Those of its claims that are there.
    pub(crate) claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// Makes claims for pods.
pub(crate) struct Ephemeral(pub(crate) Seen);

impl Reconciler for Ephemeral {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "ephemeral-volume";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let pod = self.0.pods.get(key);
        let names = pod.iter().flat_map(|pod| super::protection::claims_of(pod));
        let claims = names.filter_map(|name| self.0.claims.get(&Key::new(key.namespace.clone(), name)));
        Ok(View { claims: claims.collect(), pod: pod.clone() })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.0.client, step, &|_| ()).await
    }
}

/// Whether a pod declares claims of its own.
pub(crate) fn declares(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.ephemeral.is_some())
}

/// The claims that are missing.
pub(crate) fn plan(view: &View, _: Timestamp) -> Plan<Step> {
    let alive = |pod: &&Arc<Pod>| !pods::terminating(pod) && !pods::finished(pod);
    let Some(pod) = view.pod.as_ref().filter(alive) else { return Plan::empty() };
    let mut steps = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(template) = volume.ephemeral.as_ref().and_then(|one| one.volume_claim_template.as_ref())
        else {
            continue;
        };
        let name = format!("{}-{}", pods::name(&pod.metadata), volume.name);
        let there = view.claims.iter().any(|claim| pods::name(&claim.metadata) == name);
        if there {
            continue;
        }
        let meta = template.metadata.as_ref();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: pod.metadata.namespace.clone(),
                labels: meta.and_then(|meta| meta.labels.clone()),
                annotations: meta.and_then(|meta| meta.annotations.clone()),
                owner_references: Some(vec![controlled_by(&**pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        };
        steps.push(Step::create(&claim, None));
    }
    Plan::together(steps)
}
