//! ServiceAccount: every pod has one, and what the account brings along.

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use super::{find, forbidden};
use crate::object::meta;
use crate::{Inner, write};

const DEFAULT: &str = "default";

/// Gives a pod its account's name and image pull secrets, and refuses an account that is not there.
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
    Ok(())
}
