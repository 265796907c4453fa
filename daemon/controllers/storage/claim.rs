//! PersistentVolumeClaim: finds a volume for a claim, or has one made.
//!
//! Invariant: the volume is given to the claim before the claim says that it has it; so no volume has two claims.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::Key;
use imbl::OrdMap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Plan, Reconciler};
use serde_json::{Value, json};

use super::{
    Act, BIND_COMPLETED, BOUND_BY_CONTROLLER, COMPONENT, Ground, PROVISIONED_BY, PROVISIONER, Seen,
    bind_completed, claim_ref, default_class, reference, status, volume_name,
};
use crate::Error;
use crate::step::{Note, Step};

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const ASKED: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What is there.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) claim: Option<Arc<PersistentVolumeClaim>>,
    /// All volumes.
    pub(crate) volumes: OrdMap<Key, Arc<PersistentVolume>>,
    /// All classes.
    pub(crate) classes: OrdMap<Key, Arc<StorageClass>>,
    /// Where volumes are made.
    pub(crate) ground: Arc<Ground>,
    /// What was told of the claim last: told again it would be news to nobody.
    pub(crate) told: Option<String>,
}

/// Binds claims.
pub(crate) struct Claims {
    seen: Seen,
    told: Mutex<BTreeMap<Key, String>>,
}

impl Claims {
    /// Over these caches.
    pub(crate) fn new(seen: Seen) -> Claims {
        Claims { seen, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<Key, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconciler for Claims {
    type Key = Key;
    type View = View;
    type Step = Act;
    type Error = Error;
    const NAME: &'static str = "persistentvolumeclaim";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let claim = self.seen.claims.get(key);
        let mut told = self.told();
        if claim.as_ref().is_none_or(|claim| bind_completed(claim)) {
            told.remove(key);
        }
        Ok(View {
            claim,
            volumes: self.seen.volumes.snapshot(),
            classes: self.seen.classes.snapshot(),
            ground: Arc::clone(&self.seen.ground),
            told: told.get(key).cloned(),
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Act> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Act) -> Result<(), Error> {
        if let Act::Cluster(step) = &step
            && let Step::Record(note) = &**step
        {
            self.told().insert(key.clone(), note.message.clone());
        }
        super::act(&self.seen.client, step).await
    }
}

/// What is to be done for one claim.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Act> {
    let Some(claim) = &view.claim else { return Plan::empty() };
    let acts = if bind_completed(claim) { bound(view, claim, now) } else { unbound(view, claim, now) };
    Plan::in_turn(acts)
}

/// A claim that has its volume: its status says what it has.
fn bound(view: &View, claim: &PersistentVolumeClaim, now: Timestamp) -> Vec<Act> {
    let note = || Note::about(claim, now);
    let volume = volume_name(claim).and_then(|name| view.volumes.get(&Key::new("", name)));
    let Some(volume) = volume else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned();
        return lost(claim, note().warns(COMPONENT, "ClaimLost", message));
    };
    if claim_ref(volume).is_none_or(|known| known.uid != claim.metadata.uid) {
        if claim_ref(volume).is_none() {
            return vec![Act::cluster(give(volume, claim))];
        }
        let message = "Two claims are bound to the same volume, this one is bound incorrectly".to_owned();
        return lost(claim, note().warns(COMPONENT, "ClaimMisbound", message));
    }
    let mut acts = grown(view, claim, volume);
    let spec = volume.spec.as_ref();
    let mut wanted =
        json!({"phase": "Bound", "accessModes": spec.and_then(|spec| spec.access_modes.as_ref())});
    if acts.is_empty() {
        wanted["capacity"] = json!(spec.and_then(|spec| spec.capacity.as_ref()));
    }
    acts.extend(says(claim, wanted).map(Act::cluster));
    acts
}

/// A claim that asks for more than it has: directories have no size, so it is given what it asks for.
fn grown(view: &View, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Act> {
    let (wanted, has) = (json!(claim), json!(volume));
    let larger = api::volumes::requested(&wanted) > api::volumes::capacity(&has);
    let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    let allowed = view
        .classes
        .get(&Key::new("", class))
        .is_some_and(|class| class.allow_volume_expansion == Some(true) && class.provisioner == PROVISIONER);
    if !larger || !allowed || view.ground.made(volume).is_none() {
        return Vec::new();
    }
    let size = &wanted["spec"]["resources"]["requests"]["storage"];
    vec![Act::cluster(Step::patch(volume, json!({"spec": {"capacity": {"storage": size}}})))]
}

fn lost(claim: &PersistentVolumeClaim, note: Note) -> Vec<Act> {
    let status = says(claim, json!({"phase": "Lost", "capacity": null, "accessModes": null}));
    status
        .into_iter()
        .flat_map(|step| [Act::cluster(step), Act::cluster(Step::Record(note.clone()))])
        .collect()
}

fn unbound(view: &View, claim: &Arc<PersistentVolumeClaim>, now: Timestamp) -> Vec<Act> {
    let note = || Note::about(&**claim, now);
    if claim.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let pending = says(claim, json!({"phase": "Pending"})).map(Act::cluster);
    let mut acts: Vec<Act> = pending.into_iter().collect();
    if !acts.is_empty() {
        // The status is a change that leads here again.
        return acts;
    }
    if let Some(name) = volume_name(claim) {
        match chosen_by_user(view, claim, name) {
            Ok(Some(volume)) => acts.extend(bind(volume, claim)),
            Ok(None) => {}
            Err((reason, message)) => {
                acts.extend(once(view, note().warns(COMPONENT, reason, message)));
            }
        }
        return acts;
    }
    let class_name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    if class_name.is_none()
        && let Some(default) = default_class(view.classes.values())
    {
        // As documented, a claim without a class gets the default one whenever there is one.
        let patch = json!({"spec": {"storageClassName": default.metadata.name}});
        acts.push(Act::cluster(Step::patch(&**claim, patch)));
        return acts;
    }
    let class = class_name.and_then(|name| view.classes.get(&Key::new("", name)));
    let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
    let waits =
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(volume) = matching(view, claim, waits) {
        acts.extend(bind(volume, claim));
        return acts;
    }
    let told = match (class_name.unwrap_or_default(), class) {
        ("", _) => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            note().says(COMPONENT, "FailedBinding", message.to_owned())
        }
        (name, None) => {
            let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
            note().warns(COMPONENT, "ProvisioningFailed", message)
        }
        (_, Some(_)) if waits && selected.is_none() => {
            let message = "waiting for first consumer to be created before binding".to_owned();
            note().says(COMPONENT, "WaitForFirstConsumer", message)
        }
        (_, Some(class)) if class.provisioner == NO_PROVISIONER => {
            let message = "no persistent volumes available for this claim".to_owned();
            note().says(COMPONENT, "FailedBinding", message)
        }
        (_, Some(class)) => {
            acts.extend(provision(view, claim, class, now));
            return acts;
        }
    };
    acts.extend(once(view, told));
    acts
}

/// Has a volume made: by this node, or by whoever follows claims of that class.
fn provision(
    view: &View,
    claim: &Arc<PersistentVolumeClaim>,
    class: &StorageClass,
    now: Timestamp,
) -> Vec<Act> {
    let note = || Note::about(&**claim, now);
    let asked =
        claim.metadata.annotations.as_ref().is_some_and(|all| ASKED.iter().all(|key| all.contains_key(*key)));
    let mut acts = Vec::new();
    if !asked {
        let by: BTreeMap<&str, &str> = ASKED.iter().map(|key| (*key, class.provisioner.as_str())).collect();
        acts.push(Act::cluster(Step::patch(&**claim, json!({"metadata": {"annotations": by}}))));
    }
    if class.provisioner != PROVISIONER {
        if !asked {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                class.provisioner
            );
            acts.push(Act::cluster(Step::Record(note().says(COMPONENT, "ExternalProvisioning", message))));
        }
        return acts;
    }
    let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
    if selected.is_some_and(|node| *node != view.ground.node) {
        // The node that was chosen makes it.
        return acts;
    }
    let spec = claim.spec.as_ref();
    let refused = if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        Some("directories cannot be block volumes: use volumeMode Filesystem")
    } else if spec.is_some_and(|spec| spec.selector.is_some()) {
        Some("claim.Spec.Selector is not supported for dynamic provisioning")
    } else if spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some()) {
        Some("directories are made empty: spec.dataSource is not supported")
    } else {
        None
    };
    if let Some(why) = refused {
        let class_name = class.metadata.name.as_deref().unwrap_or_default();
        let message = format!("failed to provision volume with StorageClass \"{class_name}\": {why}");
        acts.extend(once(view, note().warns(COMPONENT, "ProvisioningFailed", message)));
        return acts;
    }
    let volume = made_for(view, claim, class);
    let name = volume.metadata.name.clone().unwrap_or_default();
    acts.push(Act::Make(view.ground.of(&name)));
    let message = format!("Successfully provisioned volume {name}");
    let told = note().says(PROVISIONER, "ProvisioningSucceeded", message);
    acts.push(Act::cluster(Step::create(&volume, Some(told))));
    acts
}

fn made_for(view: &View, claim: &PersistentVolumeClaim, class: &StorageClass) -> PersistentVolume {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let spec = claim.spec.as_ref();
    let requests = spec.and_then(|spec| spec.resources.as_ref()).and_then(|all| all.requests.as_ref());
    let size = requests.and_then(|requests| requests.get("storage")).cloned();
    let here = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![view.ground.node.clone()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![here]), match_fields: None };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: Some(vec!["kubernetes.io/pv-protection".to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.and_then(|spec| spec.access_modes.clone()),
            capacity: size.map(|size| [("storage".to_owned(), size)].into()),
            claim_ref: Some(reference(claim)),
            local: Some(LocalVolumeSource {
                fs_type: None,
                path: view.ground.of(&name).display().to_string(),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            ),
            mount_options: class.mount_options.clone(),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// The volume that a claim names itself.
fn chosen_by_user<'a>(
    view: &'a View,
    claim: &PersistentVolumeClaim,
    name: &str,
) -> Result<Option<&'a Arc<PersistentVolume>>, (&'static str, String)> {
    let Some(volume) = view.volumes.get(&Key::new("", name)) else { return Ok(None) };
    let (wanted, has) = (json!(claim), json!(&**volume));
    let promised = &has["spec"]["claimRef"];
    if !promised.is_null() {
        let message = format!("volume \"{name}\" already bound to a different claim.");
        return if api::volumes::is_for(promised, &wanted) {
            Ok(Some(volume))
        } else {
            Err(("FailedBinding", message))
        };
    }
    let mismatch =
        |why: &str| Err(("VolumeMismatch", format!("Cannot bind to requested volume \"{name}\": {why}")));
    let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    let differs =
        |key: &str, default: &str| text(&has["spec"][key], default) != text(&wanted["spec"][key], default);
    if !api::volumes::is_large_enough(&has, &wanted) {
        mismatch("requested PV is too small")
    } else if differs("storageClassName", "") {
        mismatch("storageClassName does not match")
    } else if differs("volumeMode", "Filesystem") {
        mismatch("incompatible volumeMode")
    } else if !api::volumes::is_such(&has["spec"], &wanted["spec"]) {
        mismatch("incompatible accessMode")
    } else {
        Ok(Some(volume))
    }
}

/// The smallest volume that is what a claim asks for. One that is promised to the claim comes first; where the first
/// consumer is waited for, only that one.
fn matching<'a>(
    view: &'a View,
    claim: &PersistentVolumeClaim,
    waits: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let wanted = json!(claim);
    let promised = |volume: &&Arc<PersistentVolume>| {
        claim_ref(volume).is_some_and(|known| api::volumes::is_for(&json!(known), &wanted))
    };
    if let Some(volume) = view.volumes.values().find(promised) {
        return Some(volume);
    }
    if waits {
        return None;
    }
    let fits = view.volumes.values().filter_map(|volume| {
        let has = json!(&**volume);
        api::volumes::satisfies(&has, &wanted).then(|| (api::volumes::capacity(&has), volume))
    });
    fits.min_by_key(|(capacity, _)| capacity.map(|size| size.as_bytes())).map(|(_, volume)| volume)
}

/// Gives a volume to a claim, then tells the claim.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Vec<Act> {
    let mut acts = Vec::new();
    if claim_ref(volume).is_none_or(|known| known.uid.is_none() || known.uid != claim.metadata.uid) {
        acts.push(Act::cluster(give(volume, claim)));
    }
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if volume_name(claim).is_none() {
        annotations[BOUND_BY_CONTROLLER] = json!("yes");
    }
    let patch =
        json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.metadata.name}});
    acts.push(Act::cluster(Step::patch(claim, patch)));
    acts
}

fn give(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Step {
    let mut patch = json!({"spec": {"claimRef": reference(claim)}});
    if claim_ref(volume).is_none() {
        patch["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
    }
    Step::patch(volume, patch)
}

/// Lets the status say this, unless it does.
fn says(claim: &PersistentVolumeClaim, wanted: Value) -> Option<Step> {
    let known = json!(claim.status);
    let differs = |(key, value): (&String, &Value)| known.get(key).unwrap_or(&Value::Null) != value;
    wanted.as_object().is_some_and(|wanted| wanted.iter().any(differs)).then(|| status(claim, wanted))
}

/// Tells why a claim waits, unless that was told last.
fn once(view: &View, note: Note) -> Option<Act> {
    (view.told.as_ref() != Some(&note.message)).then_some(Act::cluster(Step::Record(note)))
}
