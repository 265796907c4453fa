//! Error answers: what went wrong with a request, as the `metav1.Status` that Kubernetes would send.
//!
//! Invariant: code, reason and wording are Kubernetes' own (apimachinery's `errors` package), so clients that match on them work.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::schema::{Defect, DefectReason};

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`: `NotFound`, `AlreadyExists`, `Conflict`, `Invalid` …
    pub reason: &'static str,
    /// What on what.
    pub message: String,
    /// `metav1.StatusDetails`; an empty object when there are none. A `continue` in it, the token to go on with a list
    /// whose state is gone, is told in the answer's metadata.
    pub details: Value,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// The message of a lost compare-and-set, for [`ApiError::conflict`].
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl ApiError {
    /// The answer's body: a `v1` `Status`.
    pub fn status(&self) -> Value {
        let mut details = self.details.clone();
        let next = details.as_object_mut().and_then(|details| details.remove("continue"));
        let metadata = next.map_or(json!({}), |next| json!({ "continue": next }));
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": details, "code": self.code,
        })
    }

    /// 404: `pods "x" not found`.
    pub fn not_found(kind: &Kind, name: &str) -> ApiError {
        let message = format!("{} {name:?} not found", kind.resource_name());
        ApiError { code: 404, reason: "NotFound", message, details: of_resource(kind, name) }
    }

    /// 404 for a path that no resource lives at.
    pub fn no_such_path() -> ApiError {
        plain(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: `deployments.apps "x" already exists`.
    pub fn already_exists(kind: &Kind, name: &str) -> ApiError {
        let message = format!("{} {name:?} already exists", kind.resource_name());
        ApiError { code: 409, reason: "AlreadyExists", message, details: of_resource(kind, name) }
    }

    /// 409: `Operation cannot be fulfilled on deployments.apps "x": …`; see [`MODIFIED`].
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource_name());
        ApiError { code: 409, reason: "Conflict", message, details: of_resource(kind, name) }
    }

    /// 409 of server-side apply: each conflicting manager with the version it wrote (`apps/v1`) and its field paths (`.spec.replicas`).
    pub fn apply_conflict(conflicts: &[(String, String, Vec<String>)]) -> ApiError {
        let count: usize = conflicts.iter().map(|(_, _, fields)| fields.len()).sum();
        let mut parts = Vec::new();
        let mut causes = Vec::new();
        for (manager, version, fields) in conflicts {
            let with = format!("with {manager:?} using {version}");
            match fields.as_slice() {
                [field] => parts.push(format!("conflict {with}: {field}")),
                fields => parts.push(format!("conflicts {with}:\n- {}", fields.join("\n- "))),
            }
            causes.extend(fields.iter().map(|field| {
                json!({ "reason": "FieldManagerConflict", "message": format!("conflict {with}"), "field": field })
            }));
        }
        let plural = if count == 1 { "" } else { "s" };
        let message = format!("Apply failed with {count} conflict{plural}: {}", parts.join("\n"));
        ApiError { code: 409, reason: "Conflict", message, details: json!({ "causes": causes }) }
    }

    /// 422: `Deployment.apps "x" is invalid: spec.replicas: Invalid value: …`, one cause per defect.
    pub fn invalid(kind: &Kind, name: &str, defects: Vec<Defect>) -> ApiError {
        let mut texts: Vec<String> = defects.iter().map(Defect::to_string).collect();
        texts.dedup();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            _ => format!("[{}]", texts.join(", ")),
        };
        let mut details = object(json!({ "name": name, "group": kind.group, "kind": kind.kind }));
        let causes: Vec<Value> = defects
            .into_iter()
            .map(|d| json!({ "reason": cause_reason(d.reason), "message": d.message, "field": d.path }))
            .collect();
        details.insert("causes".into(), causes.into());
        let message = format!("{} {name:?} is invalid: {list}", kind.kind_name());
        ApiError { code: 422, reason: "Invalid", message, details: details.into() }
    }

    /// 400 for a body that is no object of the kind: the first wrong type as Go's decoder words it, else every unknown or
    /// duplicate field as strict decoding does.
    pub fn undecodable(kind: &Kind, defects: &[Defect]) -> ApiError {
        let why = match defects.iter().find(|d| d.reason == DefectReason::WrongType) {
            Some(wrong) => wrong.message.clone(),
            None => {
                let all: Vec<&str> = defects.iter().map(|d| d.message.as_str()).collect();
                format!("strict decoding error: {}", all.join(", "))
            }
        };
        let (version, kind) = (&kind.version, &kind.kind);
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        plain(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> ApiError {
        plain(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `pods "x" is forbidden: …`.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> ApiError {
        let resource = kind.resource_name();
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        ApiError { code: 403, reason: "Forbidden", message, details: of_resource(kind, name) }
    }

    /// 405.
    pub fn method_not_allowed() -> ApiError {
        plain(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406 with the media types that can be had.
    pub fn not_acceptable(accepted: &[&str]) -> ApiError {
        plain(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// 410 for a resource version or a continue token that history no longer holds.
    pub fn expired(message: impl Into<String>) -> ApiError {
        plain(410, "Expired", message)
    }

    /// 410 for a watch from a version older than the oldest kept: `too old resource version: 3 (17)`.
    pub fn too_old(asked: u64, oldest: u64) -> ApiError {
        ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 413 for a body over the limit.
    pub fn too_large(limit_bytes: usize) -> ApiError {
        plain(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// 415 with the media types that are understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> ApiError {
        let list = accepted.join(", ");
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {list}"
        );
        plain(415, "UnsupportedMediaType", message)
    }

    /// 429; the client comes back after that many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_seconds: u32) -> ApiError {
        retried(plain(429, "TooManyRequests", message), retry_seconds)
    }

    /// 500: `Internal error occurred: …`.
    pub fn internal(why: impl fmt::Display) -> ApiError {
        let mut error = plain(500, "InternalError", format!("Internal error occurred: {why}"));
        error.details = json!({ "causes": [{ "message": why.to_string() }] });
        error
    }

    /// 503; the client comes back after that many seconds.
    pub fn unavailable(message: impl Into<String>, retry_seconds: u32) -> ApiError {
        retried(plain(503, "ServiceUnavailable", message), retry_seconds)
    }

    /// 504: `Timeout: …`; the client may come back after that many seconds.
    pub fn timeout(why: &str, retry_seconds: u32) -> ApiError {
        retried(plain(504, "Timeout", format!("Timeout: {why}")), retry_seconds)
    }
}

fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
    ApiError { code, reason, message: message.into(), details: json!({}) }
}

fn retried(mut error: ApiError, seconds: u32) -> ApiError {
    error.details = json!({ "retryAfterSeconds": seconds });
    error
}

/// Details of an error about a resource: `kind` holds the plural, as apimachinery does.
fn of_resource(kind: &Kind, name: &str) -> Value {
    object(json!({ "name": name, "group": kind.group, "kind": kind.plural })).into()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, v)| v != "").collect(),
        _ => Map::new(),
    }
}

fn cause_reason(reason: DefectReason) -> &'static str {
    match reason {
        DefectReason::Required => "FieldValueRequired",
        DefectReason::Duplicate => "FieldValueDuplicate",
        DefectReason::NotFound => "FieldValueNotFound",
        DefectReason::NotSupported => "FieldValueNotSupported",
        DefectReason::Forbidden => "FieldValueForbidden",
        DefectReason::TooLong => "FieldValueTooLong",
        DefectReason::TooMany => "FieldValueTooMany",
        DefectReason::WrongType => "FieldValueTypeInvalid",
        DefectReason::Invalid | DefectReason::Unknown => "FieldValueInvalid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;

    #[track_caller]
    fn check(error: &ApiError, code: u16, reason: &str, message: &str) {
        let status = error.status();
        assert_eq!(
            (&status["code"], &status["reason"], &status["message"]),
            (&json!(code), &json!(reason), &json!(message))
        );
        assert_eq!(status["status"], "Failure");
    }

    #[test]
    fn errors_read_as_kubernetes_words_them() {
        let pod = by_kind("v1", "Pod").expect("served");
        let deployment = by_kind("apps/v1", "Deployment").expect("served");
        check(&ApiError::not_found(pod, "x"), 404, "NotFound", r#"pods "x" not found"#);
        check(
            &ApiError::already_exists(deployment, "x"),
            409,
            "AlreadyExists",
            r#"deployments.apps "x" already exists"#,
        );
        check(
            &ApiError::conflict(deployment, "x", MODIFIED),
            409,
            "Conflict",
            "Operation cannot be fulfilled on deployments.apps \"x\": the object has been modified; please apply your changes to the latest version and try again",
        );
        check(&ApiError::forbidden(pod, "x", "no"), 403, "Forbidden", r#"pods "x" is forbidden: no"#);
        check(&ApiError::too_old(1, 5), 410, "Expired", "too old resource version: 1 (5)");
    }

    #[test]
    fn several_defects_are_listed_in_brackets_with_one_cause_each() {
        let deployment = by_kind("apps/v1", "Deployment").expect("served");
        let defects = vec![
            Defect::required("spec.selector", ""),
            Defect::invalid("spec.replicas", &json!(-1), "must be greater than or equal to 0"),
        ];
        let error = ApiError::invalid(deployment, "x", defects.clone());
        check(
            &error,
            422,
            "Invalid",
            "Deployment.apps \"x\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: -1: must be greater than or equal to 0]",
        );
        assert_eq!(
            error.details["causes"][0],
            json!({ "reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector" })
        );
        check(
            &ApiError::invalid(deployment, "x", defects[..1].to_vec()),
            422,
            "Invalid",
            r#"Deployment.apps "x" is invalid: spec.selector: Required value"#,
        );
    }

    #[test]
    fn an_apply_conflict_names_the_other_manager_and_the_field() {
        let error =
            ApiError::apply_conflict(&[("kubectl".into(), "apps/v1".into(), vec![".spec.replicas".into()])]);
        check(
            &error,
            409,
            "Conflict",
            "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas",
        );
        assert_eq!(error.details["causes"][0]["reason"], "FieldManagerConflict");
    }
}
