//! Changes objects by the four kinds of patch and keeps the account of which manager owns which field.
//!
//! Invariant: a patch that is refused leaves the object as it was.
//! Invariant: what a field merges by comes from the schema table, never from the patch.

use serde_json::Value;

use crate::kinds::Kind;

mod apply;
mod compare;
mod fieldset;
mod form;
mod json;
mod managed;
mod strategic;

/// Why a patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422 Invalid.
    #[error("the server rejected our request due to an error in our request ({0})")]
    Rejected(String),
    /// More operations than a patch may have, or more copied than a body may hold: 413 RequestEntityTooLarge.
    #[error("{0}")]
    TooLarge(String),
    /// Strategic merge is for built-in kinds only: 415 UnsupportedMediaType.
    #[error(
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    )]
    Unsupported,
}

impl PatchError {
    /// The HTTP status Kubernetes answers with.
    pub fn code(&self) -> u16 {
        match self {
            PatchError::Malformed(_) => 400,
            PatchError::TooLarge(_) => 413,
            PatchError::Unsupported => 415,
            PatchError::Rejected(_) => 422,
        }
    }
}

/// Fields that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// As Kubernetes prints it: `"kubectl" using apps/v1`, or `"argo"` for one who applies.
    pub manager: String,
    /// `.spec.replicas`, `.spec.template.spec.containers[name="web"].image`.
    pub fields: Vec<String>,
}

/// Why an applied object was not merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others own some of the fields with other values and force was not asked for: 409 Conflict.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied object carries managedFields: 400 BadRequest.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// The applied object cannot be merged, such as a list item without its key: 400 BadRequest.
    #[error("failed to create typed patch object ({object}): {path}: {problem}")]
    Invalid {
        /// `default/web; apps/v1, Kind=Deployment`.
        object: String,
        /// `.spec.template.spec.containers`.
        path: String,
        /// What is wrong there.
        problem: String,
    },
}

impl ApplyError {
    /// The HTTP status Kubernetes answers with.
    pub fn code(&self) -> u16 {
        match self {
            ApplyError::Conflicts(_) => 409,
            ApplyError::ManagedFields | ApplyError::Invalid { .. } => 400,
        }
    }
}

/// Applies a JSON patch (RFC 6902). When it fails the target is unchanged.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    json::apply(target, patch)
}

/// Applies a JSON merge patch (RFC 7386): null removes, objects merge, everything else replaces.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json::merge(target, patch);
}

/// Applies a strategic merge patch with its directives `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/` and
/// `$setElementOrder/`.
pub fn strategic(kind: &Kind, target: &Value, patch: &Value) -> Result<Value, PatchError> {
    strategic::patch(kind, target, patch)
}

/// Merges the user's partial object into the live one (server-side apply) and returns the merged object with its
/// `managedFields`; it equals the live one when nothing changed, times included. Defaulting comes after, by the caller.
///
/// `force` takes over what others own; `subresource` is `Some("status")` when written through it; `now` is RFC 3339 in
/// seconds, written only where this manager's entry changes.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    subresource: Option<&str>,
    now: &str,
) -> Result<Value, ApplyError> {
    let conflicts = if force { OnConflict::Force } else { OnConflict::Refuse };
    apply::apply(kind, live, applied, &Writer { name: manager, subresource, now }, conflicts)
}

/// Writes the new object's `managedFields` after a create, update or patch: fields that changed are the manager's now,
/// fields that are gone are nobody's, and a write that changes nothing changes no time.
pub fn track_update(
    kind: &Kind,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: Option<&str>,
    now: &str,
) {
    apply::track_update(kind, old, new, &Writer { name: manager, subresource, now });
}

/// Who writes, by which way, and when.
#[derive(Debug, Clone, Copy)]
struct Writer<'a> {
    name: &'a str,
    subresource: Option<&'a str>,
    now: &'a str,
}

/// What to do about fields that others own with other values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnConflict {
    Refuse,
    Force,
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    let total: usize = conflicts.iter().map(|conflict| conflict.fields.len()).sum();
    if let ([conflict], 1) = (conflicts, total) {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            conflict.manager, conflict.fields[0]
        );
    }
    let mut lines = Vec::new();
    for conflict in conflicts {
        lines.push(format!("conflicts with {}:", conflict.manager));
        lines.extend(conflict.fields.iter().map(|field| format!("- {field}")));
    }
    format!("Apply failed with {total} conflicts: {}", lines.join("\n"))
}
