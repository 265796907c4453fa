//! LimitRanger: the defaults and bounds that a namespace's LimitRanges set.

use api::error::ApiError;
use api::kinds::Kind;
use api::limits;
use serde_json::Value;

use super::{forbidden, stored};
use crate::Inner;
use crate::object::meta;

pub(super) fn fill_in(inner: &Inner, pod: &mut Value) {
    let ranges = ranges(inner, pod);
    if !ranges.is_empty() {
        limits::fill_in(&ranges, pod);
    }
}

pub(super) fn judge_pod(inner: &Inner, kind: &Kind, pod: &Value) -> Result<(), ApiError> {
    told(kind, pod, &limits::pod_refusals(&ranges(inner, pod), &pod["spec"]))
}

pub(super) fn judge_claim(inner: &Inner, kind: &Kind, claim: &Value) -> Result<(), ApiError> {
    told(kind, claim, &limits::claim_refusals(&ranges(inner, claim), &claim["spec"]))
}

fn ranges(inner: &Inner, object: &Value) -> Vec<Value> {
    stored(inner, "v1", "LimitRange", meta(object, "namespace"))
}

/// One reason stands alone, several stand in brackets, as Go prints a list of errors.
fn told(kind: &Kind, object: &Value, reasons: &[String]) -> Result<(), ApiError> {
    match reasons {
        [] => Ok(()),
        [one] => Err(forbidden(kind, object, one)),
        all => Err(forbidden(kind, object, &format!("[{}]", all.join(", ")))),
    }
}
