//! Storage: claims get their volumes, volumes are made and taken away, and nothing goes while it is used.
//!
//! Invariant: what is removed from the disk is a directory that this node made for a volume, right below the directory
//! of volumes, and never anything else.

pub(crate) mod claim;
pub(crate) mod ephemeral;
pub(crate) mod protection;
pub(crate) mod volume;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::step::{self, Door, Place, Step};

/// Who makes volumes out of directories of this node.
pub(crate) const PROVISIONER: &str = "holdfast.dev/directory";
/// The class that is there from the start.
const FIRST_CLASS: &str = "standard";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const COMPONENT: &str = "persistentvolume-controller";

/// The node that volumes are made on, and where on it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ground {
    /// The node's name.
    pub(crate) node: String,
    /// One directory per volume lies in it.
    pub(crate) directory: PathBuf,
}

/// One effect on the cluster or on the disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// On the cluster.
    Cluster(Box<Step>),
    /// A directory for a volume, which every user may write.
    Make(PathBuf),
    /// A directory with everything in it.
    Remove(PathBuf),
}

impl Act {
    fn cluster(step: Step) -> Act {
        Act::Cluster(Box::new(step))
    }
}

/// What the controllers of storage look at.
#[derive(Clone)]
pub(crate) struct Seen {
    /// The door.
    pub(crate) client: Door,
    /// Claims.
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    /// Volumes.
    pub(crate) volumes: Cache<PersistentVolume>,
    /// Classes.
    pub(crate) classes: Cache<StorageClass>,
    /// Pods.
    pub(crate) pods: Cache<Pod>,
    /// Where volumes are made.
    pub(crate) ground: Arc<Ground>,
}

impl Seen {
    /// Returns when every cache has its first list.
    pub(crate) async fn synced(self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.pods.synced().await;
    }
}

impl Ground {
    /// The directory of a volume.
    fn of(&self, volume: &str) -> PathBuf {
        self.directory.join(volume)
    }

    /// The directory of a volume that this node made.
    fn made(&self, volume: &PersistentVolume) -> Option<PathBuf> {
        let annotations = volume.metadata.annotations.as_ref()?;
        let path = Path::new(&volume.spec.as_ref()?.local.as_ref()?.path);
        let ours = annotations.get(PROVISIONED_BY).is_some_and(|by| by == PROVISIONER)
            && path == self.of(volume.metadata.name.as_deref()?);
        ours.then(|| path.to_owned())
    }
}

/// Does one effect.
pub(crate) async fn act(client: &Door, act: Act) -> Result<(), Error> {
    let on_disk = |what: &Path, done: io::Result<()>| match done {
        Ok(()) => Ok(()),
        Err(source) => Err(Error::Directory { path: what.to_owned(), source }),
    };
    match act {
        Act::Cluster(step) => step::act(client, *step, &|_| ()).await,
        Act::Make(path) => {
            let what = path.clone();
            let made = tokio::task::spawn_blocking(move || make(&path));
            on_disk(&what, made.await.unwrap_or_else(|_| Err(io::Error::other("interrupted"))))
        }
        Act::Remove(path) => {
            let what = path.clone();
            let removed = tokio::task::spawn_blocking(move || remove(&path));
            on_disk(&what, removed.await.unwrap_or_else(|_| Err(io::Error::other("interrupted"))))
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)?;
    // As users of images are many and none of them is known here; who may reach the directory says its parent.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The class that claims have that name none: the newest that says so, as documented.
pub(crate) fn default_class<'a>(
    classes: impl Iterator<Item = &'a Arc<StorageClass>>,
) -> Option<&'a Arc<StorageClass>> {
    let is_default = |class: &&Arc<StorageClass>| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
    };
    classes.filter(is_default).max_by_key(|class| {
        let made = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (made, std::cmp::Reverse(class.metadata.name.clone()))
    })
}

/// Makes the class that is there from the start. It is made when a node starts, not when somebody deletes it.
pub(crate) struct FirstClass(pub(crate) Seen);

impl Reconciler for FirstClass {
    type Key = Key;
    type View = Vec<Arc<StorageClass>>;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "storageclass";

    async fn observe(&self, _: &Key) -> Result<Vec<Arc<StorageClass>>, Error> {
        Ok(self.0.classes.snapshot().values().cloned().collect())
    }

    fn plan(classes: &Vec<Arc<StorageClass>>, _: Timestamp) -> Plan<Step> {
        first_class(classes)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.0.client, step, &|_| ()).await
    }
}

/// The class by which directories are made on the node where the first pod runs; the default unless there is one.
pub(crate) fn first_class(classes: &[Arc<StorageClass>]) -> Plan<Step> {
    if classes.iter().any(|class| class.metadata.name.as_deref() == Some(FIRST_CLASS)) {
        return Plan::empty();
    }
    let mut class = StorageClass {
        metadata: ObjectMeta { name: Some(FIRST_CLASS.to_owned()), ..ObjectMeta::default() },
        provisioner: PROVISIONER.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    };
    if default_class(classes.iter()).is_none() {
        class.metadata.annotations = Some([(DEFAULT_CLASS.to_owned(), "true".to_owned())].into());
    }
    Plan::in_turn(vec![Step::create(&class, None)])
}

/// The name of that class.
pub(crate) fn first_class_key() -> Key {
    Key::new("", FIRST_CLASS)
}

/// Whether a claim and a volume are bound to each other on the claim's side.
fn bind_completed(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    volume_name(claim).is_some() && annotations.is_some_and(|all| all.contains_key(BIND_COMPLETED))
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// Merges into the status of exactly this object.
fn status<K: Resource<DynamicType = ()>>(object: &K, status: serde_json::Value) -> Step {
    let patch = json!({"metadata": {"uid": object.meta().uid}, "status": status});
    Step::Patch { at: Place::of(object), part: step::Part::Status, patch, note: None }
}
