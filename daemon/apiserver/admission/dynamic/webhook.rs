//! Webhooks: servers that users run and that are asked before an object is stored.
//!
//! Invariant: what a webhook answers is foreign: bounded in size and time, and a patch of it is checked like a client's.
//! A webhook that does not answer decides by its `failurePolicy`.

mod call;

use std::time::Duration;

use api::cel::{self, V};
use api::error::ApiError;
use api::kinds;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tracing::warn;

use super::{Attributes, GROUP_VERSION, Operation, matching};
use crate::admission::stored;
use crate::{Inner, object};

/// What a webhook said.
enum Said {
    /// Yes, with a patch when it is a mutating one.
    Yes(Option<Value>),
    /// It was not reached, and its policy is not to mind.
    Nothing,
}

/// The webhooks of a kind of configuration that select the request, in the order of the configurations' names.
fn selected(kind: &str, request: Attributes<'_>) -> Vec<Value> {
    let configurations = stored(request.inner, GROUP_VERSION, kind, "");
    let hooks =
        configurations.into_iter().flat_map(|mut configuration| match configuration["webhooks"].take() {
            Value::Array(hooks) => hooks,
            _ => Vec::new(),
        });
    hooks.filter(|hook| matching::selects(hook, request)).collect()
}

/// Whether there is any webhook that changes objects: mostly there is none.
pub(super) fn may_change(inner: &Inner) -> bool {
    let row = kinds::by_kind(GROUP_VERSION, "MutatingWebhookConfiguration");
    let snapshot = inner.store.snapshot();
    row.is_some_and(|row| snapshot.range(&object::prefix(row, ""), None).next().is_some())
}

/// Lets each mutating webhook change the object, and those that want it once more when a later one did.
pub(super) async fn mutate(
    request: Attributes<'_>,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<bool, ApiError> {
    let seen = Attributes { object: request.object.map(|_| &*object), ..request };
    let hooks = selected("MutatingWebhookConfiguration", seen);
    let changed = round(&hooks, request, object, warnings).await?;
    let Some(last) = changed.iter().rposition(|changed| *changed) else { return Ok(false) };
    let again: Vec<Value> =
        hooks[..last].iter().filter(|hook| hook["reinvocationPolicy"] == "IfNeeded").cloned().collect();
    round(&again, request, object, warnings).await?;
    Ok(true)
}

/// Which of the webhooks changed the object.
async fn round(
    hooks: &[Value],
    request: Attributes<'_>,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<Vec<bool>, ApiError> {
    let mut changed = Vec::new();
    for hook in hooks {
        let before = object.clone();
        let seen = Attributes { object: request.object.map(|_| &before), ..request };
        if let Said::Yes(Some(patch)) = ask(hook, seen, warnings).await? {
            api::patch::json_patch(object, &patch).map_err(|error| ApiError::internal(error.to_string()))?;
            keep_identity(&before, object);
        }
        changed.push(*object != before);
    }
    Ok(changed)
}

/// No webhook makes another object of it.
fn keep_identity(before: &Value, after: &mut Value) {
    for field in ["apiVersion", "kind"] {
        after[field] = before[field].clone();
    }
    let fields = object::metadata(after);
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        match before["metadata"].get(field) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
}

/// Asks all validating webhooks at once; the first in their order that says no is told.
pub(super) async fn validate(request: Attributes<'_>, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let hooks = selected("ValidatingWebhookConfiguration", request);
    let asked = hooks.iter().map(|hook| async {
        let mut told = Vec::new();
        let said = ask(hook, request, &mut told).await;
        (said, told)
    });
    let mut refused = Ok(());
    for (said, told) in futures::future::join_all(asked).await {
        warnings.extend(told);
        refused = refused.and(said.map(|_| ()));
    }
    refused
}

async fn ask(hook: &Value, request: Attributes<'_>, warnings: &mut Vec<String>) -> Result<Said, ApiError> {
    let name = hook["name"].as_str().unwrap_or_default();
    let ignored = hook["failurePolicy"] == "Ignore";
    match wanted(hook, request) {
        Ok(true) => {}
        Ok(false) => return Ok(Said::Nothing),
        Err(_) if ignored => return Ok(Said::Nothing),
        Err(why) => {
            let why = format!("admission webhook {name:?}: failed to evaluate match conditions: {why}");
            return Err(ApiError::forbidden(request.kind(), request.name(), &why));
        }
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let timeout = Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30));
    let version = match hook["admissionReviewVersions"].as_array() {
        Some(versions) if !versions.iter().any(|version| version == "v1") => "admission.k8s.io/v1beta1",
        _ => "admission.k8s.io/v1",
    };
    let mut body = request.request(&uid);
    body["object"] = request.object.cloned().unwrap_or(Value::Null);
    body["oldObject"] = request.old.cloned().unwrap_or(Value::Null);
    let review = json!({ "apiVersion": version, "kind": "AdmissionReview", "request": body });
    let answer = call::post(request.inner, &hook["clientConfig"], &review, timeout).await;
    match answer.and_then(|answer| verdict(answer, &uid, request.operation)) {
        Ok(mut response) => {
            let told = response["warnings"].as_array().into_iter().flatten();
            warnings.extend(told.filter_map(Value::as_str).map(str::to_owned));
            if response["allowed"] == true {
                Ok(Said::Yes(patch(&response)))
            } else {
                Err(denial(name, response["status"].take()))
            }
        }
        Err(why) if ignored => {
            warn!(webhook = name, why, "failed calling a webhook; its failurePolicy is Ignore");
            Ok(Said::Nothing)
        }
        Err(why) => Err(ApiError::internal(format!("failed calling webhook {name:?}: {why}"))),
    }
}

fn wanted(hook: &Value, request: Attributes<'_>) -> Result<bool, String> {
    if hook["matchConditions"].as_array().is_none_or(Vec::is_empty) {
        return Ok(true);
    }
    let shown = request.request("");
    let variables = [
        ("object", request.object.map_or(V::Null, cel::json)),
        ("oldObject", request.old.map_or(V::Null, cel::json)),
        ("request", cel::json(&shown)),
    ];
    matching::conditions(&hook["matchConditions"], &variables)
}

/// The response of a review, when it answers what was asked.
fn verdict(mut review: Value, uid: &str, operation: Operation) -> Result<Value, String> {
    let response = review["response"].take();
    if review["kind"] != "AdmissionReview" || !response.is_object() {
        return Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    if !response["patch"].is_null() && operation == Operation::Delete {
        return Err("a deletion cannot be patched".to_owned());
    }
    if let (Some(text), kind) = (response["patch"].as_str(), &response["patchType"]) {
        if kind != "JSONPatch" {
            return Err(format!("invalid patchType {kind}: expected \"JSONPatch\""));
        }
        let bytes = STANDARD.decode(text).map_err(|error| format!("response.patch: {error}"))?;
        serde_json::from_slice::<Value>(&bytes).map_err(|error| format!("response.patch: {error}"))?;
    }
    Ok(response)
}

fn patch(response: &Value) -> Option<Value> {
    let bytes = STANDARD.decode(response["patch"].as_str()?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The refusal in the API server's own words.
fn denial(name: &str, status: Value) -> ApiError {
    let denied = format!("admission webhook {name:?} denied the request");
    let said = |field: &str| status[field].as_str().filter(|text| !text.is_empty());
    let message = match (said("message"), said("reason")) {
        (Some(why), _) | (None, Some(why)) => format!("{denied}: {why}"),
        (None, None) => format!("{denied} without explanation"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(400).max(400);
    const KNOWN: [&str; 8] = [
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "Conflict",
        "Invalid",
        "BadRequest",
        "TooManyRequests",
        "InternalError",
    ];
    let reason = KNOWN.into_iter().find(|known| Some(*known) == said("reason")).unwrap_or_default();
    let details = if status["details"].is_object() { status["details"].clone() } else { json!({}) };
    ApiError { code, reason, message, details }
}
