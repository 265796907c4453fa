//! Refusals of patches in the words and codes of Kubernetes.

use api::error::ApiError;
use api::patch::{ApplyError, PatchError};
use serde_json::json;

pub(crate) fn of_patch(error: &PatchError) -> ApiError {
    let message = error.to_string();
    match error {
        PatchError::Malformed(_) => ApiError::bad_request(message),
        PatchError::Rejected(_) => ApiError { code: 422, reason: "Invalid", message, details: json!({}) },
        PatchError::TooLarge(_) => {
            ApiError { code: 413, reason: "RequestEntityTooLarge", message, details: json!({}) }
        }
        PatchError::Unsupported => {
            ApiError { code: 415, reason: "UnsupportedMediaType", message, details: json!({}) }
        }
    }
}

pub(crate) fn of_apply(error: &ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let causes = conflicts.iter().flat_map(|conflict| {
                conflict.fields.iter().map(|field| {
                    json!({ "reason": "FieldManagerConflict", "message": format!("conflict with {}", conflict.manager), "field": field })
                })
            });
            ApiError {
                code: 409,
                reason: "Conflict",
                message,
                details: json!({ "causes": causes.collect::<Vec<_>>() }),
            }
        }
        ApplyError::ManagedFields | ApplyError::Invalid { .. } => ApiError::bad_request(message),
    }
}
