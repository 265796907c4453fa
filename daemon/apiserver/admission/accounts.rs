//! ServiceAccount: every pod has one, and what the account brings along.

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use super::{find, forbidden};
use crate::object::meta;
use crate::{Inner, write};

const DEFAULT: &str = "default";

/// Where the account's token lies in containers, as documented.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and the seven seconds by which Kubernetes' own tokens are known.
const TOKEN_SECONDS: u64 = 3607;

/// Gives a pod its account's name, token and image pull secrets, and refuses an account that is not there.
pub(super) async fn give(inner: &Inner, kind: &Kind, pod: &mut Value) -> Result<(), ApiError> {
    let namespace = meta(pod, "namespace").to_owned();
    let name = match pod["spec"]["serviceAccountName"].as_str() {
        None | Some("") => DEFAULT.to_owned(),
        Some(name) => name.to_owned(),
    };
    for field in ["serviceAccountName", "serviceAccount"] {
        pod["spec"][field] = name.as_str().into();
    }
    // Mirror pods stand for files of the node, which is nobody's account.
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Ok(());
    }
    let account = match find(inner, "v1", "ServiceAccount", &namespace, &name) {
        Some(account) => account,
        None if name == DEFAULT => {
            // The namespace is newer than its controller's round; what that would make is made here.
            let row = kinds::by_kind("v1", "ServiceAccount").expect("ServiceAccounts are served");
            let account = json!({ "metadata": { "name": name, "namespace": namespace } });
            Box::pin(write::own(inner, row, &namespace, None, account.clone())).await?;
            account
        }
        None => {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            return Err(forbidden(kind, pod, &why));
        }
    };
    let silent = pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty);
    if silent && account["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty()) {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wishes = [&pod["spec"], &account].map(|object| object["automountServiceAccountToken"].as_bool());
    if wishes.into_iter().flatten().next().unwrap_or(true) {
        mount_token(&mut pod["spec"]);
    }
    Ok(())
}

/// Mounts the token into every container that has nothing at its place.
fn mount_token(spec: &mut Value) {
    let name = format!("kube-api-access-{}", write::random_suffix());
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array();
            if mounts.into_iter().flatten().any(|mount| mount["mountPath"] == TOKEN_DIR) {
                continue;
            }
            push(
                &mut container["volumeMounts"],
                json!({ "name": name, "readOnly": true, "mountPath": TOKEN_DIR }),
            );
            mounted = true;
        }
    }
    if mounted {
        push(&mut spec["volumes"], token_volume(&name));
    }
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        list => *list = json!([item]),
    }
}

fn token_volume(name: &str) -> Value {
    let namespace =
        json!({ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } });
    json!({ "name": name, "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [namespace] } },
    ] } })
}
