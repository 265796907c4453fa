//! PersistentVolume: says whether a volume is free, bound or released, and takes away what was made for a claim that is
//! gone.
//!
//! Invariant: the directory goes before the volume does, so that nothing is forgotten on the disk.

use std::sync::Arc;

use client::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::api::Api;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use super::{Act, COMPONENT, Ground, PROVISIONED_BY, Seen, claim_ref, status};
use crate::Error;
use crate::step::{Note, Step};

/// What is there.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) volume: Option<Arc<PersistentVolume>>,
    /// The claim that the volume was given to.
    pub(crate) claim: Option<Arc<PersistentVolumeClaim>>,
    /// Where volumes are made.
    pub(crate) ground: Arc<Ground>,
}

/// Looks after volumes.
pub(crate) struct Volumes(pub(crate) Seen);

impl Reconciler for Volumes {
    type Key = Key;
    type View = View;
    type Step = Act;
    type Error = Error;
    const NAME: &'static str = "persistentvolume";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let volume = self.0.volumes.get(key);
        let claim = match volume.as_ref().and_then(|volume| claim_ref(volume)) {
            None => None,
            Some(given) => self.holder(given).await?,
        };
        Ok(View { volume, claim, ground: Arc::clone(&self.0.ground) })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Act> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Act) -> Result<(), Error> {
        super::act(&self.0.client, step).await
    }
}

impl Volumes {
    /// The claim that a volume was given to. What the cache does not show is asked of the cluster itself: data is
    /// removed only when the claim is known to be gone.
    async fn holder(&self, given: &ObjectReference) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let namespace = given.namespace.clone().unwrap_or_default();
        let name = given.name.clone().unwrap_or_default();
        let known = self.0.claims.get(&Key::new(namespace.clone(), name.clone()));
        if known.as_ref().is_some_and(|claim| claim.metadata.uid == given.uid) {
            return Ok(known);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced((*self.0.client).clone(), &namespace);
        let live = api.get_opt(&name).await.map_err(|source| Error::Read {
            what: format!("PersistentVolumeClaim {namespace}/{name}"),
            source: Box::new(source),
        })?;
        Ok(live.map(Arc::new))
    }
}

/// What is to be done for one volume.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Act> {
    let Some(volume) = &view.volume else { return Plan::empty() };
    let given = claim_ref(volume).and_then(|given| given.uid.as_deref()).filter(|uid| !uid.is_empty());
    let Some(uid) = given else { return Plan::in_turn(phase(volume, "Available", None)) };
    let holder = view.claim.as_ref().filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
    if let Some(claim) = holder {
        let has = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        // While the claim does not say so yet the volume is about to be bound.
        if has.is_empty() || Some(has) == volume.metadata.name.as_deref() {
            return Plan::in_turn(phase(volume, "Bound", None));
        }
    }
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    match policy {
        Some("Delete") => Plan::in_turn(reclaim(view, volume, now)),
        Some("Recycle") => {
            let why = "the policy Recycle is not supported: use Delete or Retain";
            Plan::in_turn(failed(volume, why, now))
        }
        _ => Plan::in_turn(phase(volume, "Released", None)),
    }
}

/// Takes a volume away whose claim is gone.
fn reclaim(view: &View, volume: &Arc<PersistentVolume>, now: Timestamp) -> Vec<Act> {
    let mut acts = phase(volume, "Released", None);
    let annotations = volume.metadata.annotations.as_ref();
    let by = annotations.and_then(|all| all.get(PROVISIONED_BY));
    match (view.ground.made(volume), by) {
        (Some(path), _) => {
            acts.push(Act::Remove(path));
            if volume.metadata.deletion_timestamp.is_none() {
                acts.push(Act::cluster(Step::delete(&**volume, None)));
            }
        }
        // Its provisioner, or the node on which it was made, takes it away.
        (None, Some(_)) => {}
        (None, None) => {
            let why = "error getting deleter volume plugin for volume: no deletable volume plugin matched";
            return failed(volume, why, now);
        }
    }
    acts
}

fn failed(volume: &PersistentVolume, why: &str, now: Timestamp) -> Vec<Act> {
    let acts = phase(volume, "Failed", Some(why));
    let reason = if why.contains("Recycle") { "VolumeFailedRecycle" } else { "VolumeFailedDelete" };
    let told = Note::about(volume, now).warns(COMPONENT, reason, why.to_owned());
    acts.into_iter().flat_map(|act| [act, Act::cluster(Step::Record(told.clone()))]).collect()
}

/// Lets the status say this, unless it does.
fn phase(volume: &PersistentVolume, phase: &str, message: Option<&str>) -> Vec<Act> {
    let known = volume.status.as_ref();
    if known.and_then(|status| status.phase.as_deref()) == Some(phase)
        && known.and_then(|status| status.message.as_deref()) == message
    {
        return Vec::new();
    }
    vec![Act::cluster(status(volume, json!({"phase": phase, "message": message})))]
}
