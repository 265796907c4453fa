//! What may enter: nothing into a namespace that is not there or is going away.

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::json;

use crate::object::{self, meta};
use crate::{Inner, write};

/// The namespaces that every cluster has from the start.
const FIRST_NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// NamespaceLifecycle, as documented: 404 for a namespace that is missing, 403 for one that is terminating.
pub(crate) fn admit(inner: &Inner, kind: &Kind, object: &serde_json::Value) -> Result<(), ApiError> {
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

fn namespace_kind() -> &'static Kind {
    kinds::by_kind("v1", "Namespace").expect("Namespaces are served")
}

/// Makes the first namespaces where they are missing. Twice is once.
pub(crate) async fn make_first_namespaces(inner: &Inner) -> Result<(), ApiError> {
    let row = namespace_kind();
    let snapshot = inner.store.snapshot();
    let missing = FIRST_NAMESPACES.iter().filter(|name| snapshot.get(&object::key(row, "", name)).is_none());
    let made = missing.map(|name| write::own(inner, row, "", None, json!({ "metadata": { "name": name } })));
    futures::future::try_join_all(made).await?;
    Ok(())
}
