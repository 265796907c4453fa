//! Protection: a claim stays while a pod uses it, and a volume while it is bound.
//!
//! Invariant: the finalizer is there before anything can use the object, and goes only when nothing does.

use std::sync::Arc;

use client::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use super::Seen;
use crate::Error;
use crate::pods;
use crate::step::{self, Step};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// A claim, or with an empty namespace a volume, and who uses it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone, or the key is a volume's.
    pub(crate) claim: Option<Arc<PersistentVolumeClaim>>,
    /// `None`: gone, or the key is a claim's.
    pub(crate) volume: Option<Arc<PersistentVolume>>,
    /// The pods in the claim's namespace.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// Protects claims and volumes.
pub(crate) struct Protection(pub(crate) Seen);

impl Reconciler for Protection {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "storage-protection";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        if key.namespace.is_empty() {
            return Ok(View { volume: self.0.volumes.get(key), ..View::default() });
        }
        let claim = self.0.claims.get(key);
        let going = claim.as_ref().is_some_and(|claim| claim.metadata.deletion_timestamp.is_some());
        let all = self.0.pods.snapshot();
        let beside = all.range(Key::new(key.namespace.clone(), "")..);
        let beside = beside.take_while(|(known, _)| going && known.namespace == key.namespace);
        let pods = beside.map(|(_, pod)| Arc::clone(pod)).collect();
        Ok(View { claim, volume: None, pods })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.0.client, step, &|_| ()).await
    }
}

/// Puts the finalizer on what stays, and takes it off what may go.
pub(crate) fn plan(view: &View, _: Timestamp) -> Plan<Step> {
    let step = match (&view.claim, &view.volume) {
        (Some(claim), _) => {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let used = view.pods.iter().any(|pod| uses(pod, name));
            finalizer(&**claim, CLAIM, used)
        }
        (None, Some(volume)) => {
            let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
            finalizer(&**volume, VOLUME, bound)
        }
        (None, None) => None,
    };
    Plan::in_turn(step.into_iter().collect())
}

/// The claims that a pod mounts.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let name = pods::name(&pod.metadata);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let of = |volume: &k8s_openapi::api::core::v1::Volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    };
    volumes.filter_map(of).collect()
}

/// A pod uses its claims from when it has a node until it has ended.
fn uses(pod: &Pod, claim: &str) -> bool {
    let on_node =
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    on_node && !pods::finished(pod) && claims_of(pod).iter().any(|known| known == claim)
}

fn finalizer<K: Resource<DynamicType = ()>>(object: &K, finalizer: &str, used: bool) -> Option<Step> {
    let meta: &ObjectMeta = object.meta();
    let mut held = meta.finalizers.clone().unwrap_or_default();
    let has = held.iter().any(|known| known == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (false, false) => held.push(finalizer.to_owned()),
        (true, true) if !used => held.retain(|known| known != finalizer),
        _ => return None,
    }
    Some(Step::patch(object, json!({"metadata": {"finalizers": held}})))
}
