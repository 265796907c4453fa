//! JSON patch and JSON merge patch.
//!
//! Invariant: what `copy` operations may copy in all is bounded, so a small patch cannot make a huge object.

use json_patch::{Patch, PatchOperation};
use serde_json::{Map, Value};

use super::PatchError;

/// Operations in one patch, as Kubernetes bounds them.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that `copy` may copy in all: the bound on a request body.
const MAX_COPIED: usize = 3 * 1024 * 1024;

pub(super) fn apply(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = patch.as_array().ok_or_else(|| malformed("a JSON patch is a list of operations"))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let Patch(operations) = serde_json::from_value(patch.clone())
        .map_err(|error| malformed(&format!("error decoding patch: {error}")))?;
    let mut patched = target.clone();
    let mut copied = 0;
    for operation in operations {
        if let PatchOperation::Copy(copy) = &operation
            && let Some(value) = patched.pointer(copy.from.as_str())
        {
            copied += value.to_string().len();
            if copied > MAX_COPIED {
                let message = format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                );
                return Err(PatchError::TooLarge(message));
            }
        }
        json_patch::patch(&mut patched, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Rejected(error.to_string()))?;
    }
    *target = patched;
    Ok(())
}

pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

fn malformed(message: &str) -> PatchError {
    PatchError::Malformed(message.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(target: Value, patch: Value, expected: Result<Value, (u16, &str)>) {
        let mut patched = target.clone();
        match (apply(&mut patched, &patch), expected) {
            (Ok(()), Ok(expected)) => assert_eq!(patched, expected),
            (Err(error), Err((code, part))) => {
                assert_eq!(error.code(), code, "{error}");
                assert!(error.to_string().contains(part), "{error}");
                assert_eq!(patched, target, "a refused patch leaves the object as it was");
            }
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn json_patches_apply_or_say_why_not() {
        let object = json!({"a": {"b": [1, 2]}});
        check(
            object.clone(),
            json!([{"op": "add", "path": "/a/b/-", "value": 3}]),
            Ok(json!({"a": {"b": [1, 2, 3]}})),
        );
        check(object.clone(), json!([{"op": "replace", "path": "/a", "value": 1}]), Ok(json!({"a": 1})));
        check(
            object.clone(),
            json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
            Ok(json!({"a": {}, "c": [1, 2]})),
        );
        let half = json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/b", "value": 1}]);
        check(object.clone(), half, Err((422, "the server rejected our request")));
        check(object.clone(), json!([{"op": "remove", "path": "/x"}]), Err((422, "/x")));
        check(object.clone(), json!({"op": "remove"}), Err((400, "list of operations")));
        check(object.clone(), json!([{"op": "jump", "path": "/a"}]), Err((400, "error decoding patch")));
        check(object, Value::Array(vec![json!({}); 10_001]), Err((413, "got 10001")));
    }

    #[test]
    fn copies_cannot_blow_an_object_up() {
        let doubling = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        check(
            json!({"a": ["x".repeat(1000)]}),
            Value::Array(vec![doubling; 64]),
            Err((413, "accumulated size")),
        );
    }

    #[test]
    fn merge_patches_follow_the_examples_of_rfc_7386() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!(["a"]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        ] {
            let mut merged = target;
            merge(&mut merged, &patch);
            assert_eq!(merged, expected);
        }
    }
}
