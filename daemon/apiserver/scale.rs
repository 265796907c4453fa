//! The scale subresource: `autoscaling/v1` Scale over `spec.replicas`.

use api::custom::{self, Scale};
use api::error::ApiError;
use api::kinds::Kind;
use api::patch;
use serde_json::{Value, json};

use crate::object::{self, meta};
use crate::path::Resource;
use crate::write::{Asked, Written};
use crate::{Inner, read};

const APPLY: &str = "application/apply-patch+yaml";

/// GET of a scale.
pub(crate) fn get(inner: &Inner, resource: &Resource) -> Result<Value, ApiError> {
    let entry = read::entry(inner, resource)?;
    Ok(scale_of(resource.kind, &object::parse(&entry.value)))
}

/// PUT or PATCH of a scale: changes `spec.replicas` and nothing else.
pub(crate) async fn write(
    asked: &mut Asked<'_>,
    patch_type: Option<&str>,
    body: Value,
) -> Result<Value, ApiError> {
    let kind = asked.resource.kind;
    if patch_type == Some(APPLY) {
        let applied = applied(asked.resource, &body)?;
        let written = asked.patch(APPLY, applied).await?;
        return Ok(scale_of(kind, &object::parse(&written.value)));
    }
    let written: Written = asked
        .change_fields(|old| {
            let wanted = wanted(&scale_of(kind, old), patch_type, &body)?;
            let version = meta(&wanted, "resourceVersion");
            if !version.is_empty() && version != meta(old, "resourceVersion") {
                return Err(crate::write::modified(kind, meta(old, "name")));
            }
            let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
            let mut new = old.clone();
            match scale_paths(kind) {
                Some(paths) => custom::put(&mut new, &paths.spec, replicas.into()),
                None => new["spec"]["replicas"] = replicas.into(),
            }
            Ok(new)
        })
        .await?;
    Ok(scale_of(kind, &object::parse(&written.value)))
}

fn wanted(current: &Value, patch_type: Option<&str>, body: &Value) -> Result<Value, ApiError> {
    let name = meta(current, "name");
    let mut wanted = current.clone();
    match patch_type {
        None => wanted = body.clone(),
        Some("application/json-patch+json") => {
            patch::json_patch(&mut wanted, body).map_err(|error| crate::refusal::of_patch(&error))?;
        }
        Some("application/merge-patch+json" | "application/strategic-merge-patch+json") => {
            patch::merge_patch(&mut wanted, body);
        }
        Some(_) => return Err(ApiError::unsupported_media_type(&crate::write::PATCH_TYPES)),
    }
    check_replicas(name, &wanted["spec"]["replicas"])?;
    Ok(wanted)
}

/// The part of the scaled object that an applied scale is about, so that its manager owns that field there.
fn applied(resource: &Resource, scale: &Value) -> Result<Value, ApiError> {
    let (kind, name) = (resource.kind, resource.name.as_deref().unwrap_or_default());
    let told = (scale["apiVersion"].as_str(), scale["kind"].as_str());
    if told != (Some("autoscaling/v1"), Some("Scale")) {
        return Err(ApiError::bad_request(format!(
            "the scale of {name:?} is applied as a Scale of autoscaling/v1, not as {} of {}",
            scale["kind"], scale["apiVersion"]
        )));
    }
    let replicas = &scale["spec"]["replicas"];
    check_replicas(name, replicas)?;
    let mut metadata = json!({ "name": name });
    for field in ["resourceVersion", "uid", "managedFields"] {
        if let Some(value) = scale["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut applied = json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata });
    if !replicas.is_null() {
        match scale_paths(kind) {
            Some(paths) => custom::put(&mut applied, &paths.spec, replicas.clone()),
            None => applied["spec"]["replicas"] = replicas.clone(),
        }
    }
    Ok(applied)
}

fn check_replicas(name: &str, replicas: &Value) -> Result<(), ApiError> {
    match replicas.as_i64() {
        None if !replicas.is_null() => {
            Err(ApiError::bad_request("spec.replicas: must be a number".to_owned()))
        }
        Some(replicas) if !(0..=i64::from(i32::MAX)).contains(&replicas) => {
            Err(ApiError::bad_request(format!(
                "Scale.autoscaling {name:?} is invalid: spec.replicas: Invalid value: {replicas}: must be greater than or equal to 0"
            )))
        }
        _ => Ok(()),
    }
}

/// Where a kind that users define keeps what a scale tells.
fn scale_paths(kind: &Kind) -> Option<&'static Scale> {
    kind.custom().and_then(|custom| custom.scale.as_ref())
}

fn scale_of(kind: &Kind, object: &Value) -> Value {
    let (wanted, found, labels) = match scale_paths(kind) {
        Some(paths) => {
            let of = |path: &str| custom::find(object, path).first().map(|value| (*value).clone());
            let count = |path: &str| of(path).and_then(|value| value.as_i64()).unwrap_or(0);
            let labels = if paths.selector.is_empty() { None } else { of(&paths.selector) };
            let labels = labels.and_then(|labels| labels.as_str().map(str::to_owned)).unwrap_or_default();
            (count(&paths.spec), count(&paths.status), labels)
        }
        None => {
            let count = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
            (count("spec"), count("status"), selector_text(&object["spec"]["selector"]))
        }
    };
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": { "replicas": wanted },
        "status": { "replicas": found, "selector": labels },
    })
}

/// A label selector in the form of a query, `app=kubia,tier in (a,b)`.
fn selector_text(selector: &Value) -> String {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        equal.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    if !selector["matchLabels"].is_object() && !selector["matchExpressions"].is_array() {
        // A ReplicationController selects by labels alone.
        let labels = selector.as_object().into_iter().flatten();
        parts.extend(labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("Exists") => key.to_owned(),
            Some("DoesNotExist") => format!("!{key}"),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            _ => format!("{key} in ({})", values.join(",")),
        });
    }
    parts.join(",")
}
