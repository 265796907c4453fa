//! The built-in admission plugins: what becomes of an object before it is stored, and what may not be stored at all.
//!
//! Invariant: `mutate` only fills in what was left open; `validate` only refuses. Both see the object with its defaults.
//! Invariant: the order is Kubernetes': limits, account, priority, tolerations, classes; quota comes last, when nothing
//! else can refuse any more.

mod accounts;
mod classes;
pub(crate) mod dynamic;
mod limits;
mod pods;
mod priority;
pub(crate) mod quota;
mod security;

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use crate::object::{self, meta};
use crate::{Inner, write};

/// The namespaces that every cluster has from the start.
const FIRST_NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// NamespaceLifecycle, as documented: 404 for a namespace that is missing, 403 for one that is terminating.
pub(crate) fn admit(inner: &Inner, kind: &Kind, object: &Value) -> Result<(), ApiError> {
    if !kind.namespaced {
        return Ok(());
    }
    let namespace = meta(object, "namespace");
    let row = namespace_kind();
    let snapshot = inner.store.snapshot();
    let entry =
        snapshot.get(&object::key(row, "", namespace)).ok_or_else(|| ApiError::not_found(row, namespace))?;
    if entry.head.fields.get("status.phase").is_some_and(|phase| phase == "Terminating") {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::forbidden(kind, meta(object, "name"), &why));
    }
    Ok(())
}

/// What the plugins make of a new object.
pub(crate) async fn mutate(inner: &Inner, kind: &Kind, object: &mut Value) -> Result<(), ApiError> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            limits::fill_in(inner, object);
            accounts::give(inner, kind, object).await?;
            priority::resolve(inner, kind, object)?;
            pods::tolerate(object);
            classes::runtime(inner, kind, object)?;
        }
        ("", "PersistentVolumeClaim") => {
            classes::storage(inner, object);
            classes::protect(kind, object, "kubernetes.io/pvc-protection");
        }
        ("", "PersistentVolume") => classes::protect(kind, object, "kubernetes.io/pv-protection"),
        ("networking.k8s.io", "Ingress") => classes::ingress(inner, kind, object)?,
        _ => {}
    }
    Ok(())
}

/// What the plugins refuse. `old` is what is stored now, if anything; what they only advise against becomes a warning.
pub(crate) fn validate(
    inner: &Inner,
    kind: &Kind,
    old: Option<&Value>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            if old.is_none() {
                limits::judge_pod(inner, kind, object)?;
            }
            security::judge(inner, kind, old, object, warnings)
        }
        ("", "PersistentVolumeClaim") => {
            limits::judge_claim(inner, kind, object)?;
            old.map_or(Ok(()), |old| classes::may_grow(inner, kind, old, object))
        }
        ("scheduling.k8s.io", "PriorityClass") => priority::one_default(inner, kind, object),
        ("", "Namespace") => security::labels(kind, object),
        _ => {
            security::advise(inner, kind, object, warnings);
            Ok(())
        }
    }
}

/// The stored objects of a kind in a namespace, or in the cluster.
fn stored(inner: &Inner, api_version: &str, kind: &str, namespace: &str) -> Vec<Value> {
    let Some(row) = kinds::by_kind(api_version, kind) else { return Vec::new() };
    let snapshot = inner.store.snapshot();
    let prefix = object::prefix(row, namespace);
    snapshot.range(&prefix, None).map(|entry| object::parse(&entry.value)).collect()
}

/// One stored object.
fn find(inner: &Inner, api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let row = kinds::by_kind(api_version, kind)?;
    let snapshot = inner.store.snapshot();
    snapshot.get(&object::key(row, namespace, name)).map(|entry| object::parse(&entry.value))
}

fn forbidden(kind: &Kind, object: &Value, why: &str) -> ApiError {
    let name = meta(object, "name");
    let name = if name.is_empty() { meta(object, "generateName") } else { name };
    ApiError::forbidden(kind, name, why)
}

fn namespace_kind() -> &'static Kind {
    kinds::by_kind("v1", "Namespace").expect("Namespaces are served")
}

/// Makes the first namespaces and the priorities of the system where they are missing. Twice is once.
pub(crate) async fn make_first_objects(inner: &Inner) -> Result<(), ApiError> {
    let row = namespace_kind();
    let snapshot = inner.store.snapshot();
    let missing = FIRST_NAMESPACES.iter().filter(|name| snapshot.get(&object::key(row, "", name)).is_none());
    let made = missing.map(|name| write::own(inner, row, "", None, json!({ "metadata": { "name": name } })));
    futures::future::try_join_all(made).await?;
    priority::make_first(inner).await
}
