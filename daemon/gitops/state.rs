//! Everything that is live, as one document that a plan can be made against without the node.
//!
//! Invariant: values of Secrets are not in it.

use api::kinds;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::{Error, act};

/// The form of the document.
const FORM: u32 = 1;
/// Kinds that tell nothing of what a plan would do.
const PASSING: [&str; 4] = ["Event", "Lease", "ControllerRevision", "EndpointSlice"];
/// Stands where the value of a Secret stood.
const WITHHELD: &str = "d2l0aGhlbGQ=";

impl Engine {
    /// The document: `{holdfastState, objects}`.
    ///
    /// # Errors
    /// `Door` when the cluster cannot be read.
    pub async fn state(&self) -> Result<Value, Error> {
        let door = self.door();
        let mut objects = Vec::new();
        for kind in kinds::kinds() {
            let lists = kind.verbs.iter().any(|verb| verb == "list");
            if !lists || !kind.is_stored() || PASSING.contains(&kind.kind.as_str()) {
                continue;
            }
            let listed = act::list(&door, kind).await.map_err(|source| Error::Door {
                verb: "list",
                what: kind.plural.clone(),
                source: Box::new(source),
            })?;
            objects.extend(listed.into_iter().map(withheld));
        }
        Ok(json!({"holdfastState": FORM, "objects": objects}))
    }
}

/// The objects of a document.
///
/// # Errors
/// When it is of another form, in words.
pub fn objects_of(document: &Value) -> Result<Vec<Value>, String> {
    match (document["holdfastState"].as_u64(), document["objects"].as_array()) {
        (Some(form), Some(objects)) if form == u64::from(FORM) => Ok(objects.clone()),
        (Some(form), _) => {
            Err(format!("a saved state of form {form} cannot be read by this version, which reads {FORM}"))
        }
        _ => Err("this is no saved state; `holdfast plan --save FILE` makes one".to_owned()),
    }
}

/// Takes out of a plan what it cannot know: whether the values of Secrets differ.
pub fn without_withheld(plan: &mut Value) {
    let Some(changes) = plan.get_mut("changes").and_then(Value::as_array_mut) else { return };
    changes.retain_mut(|change| {
        if change["object"]["kind"] != "Secret" || change["kind"] != "change" {
            return true;
        }
        let Some(fields) = change.get_mut("fields").and_then(Value::as_array_mut) else { return true };
        let value = |field: &Value| field["path"].as_str().is_some_and(|path| path.starts_with("data"));
        fields.retain(|field| !value(field) || field["old"].is_null() || field["new"].is_null());
        !fields.is_empty()
    });
}

fn withheld(mut object: Value) -> Value {
    if object["kind"] == "Secret" {
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            data.values_mut().for_each(|value| *value = json!(WITHHELD));
        }
        if let Some(annotations) = object["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    object
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_saved_without_its_values_and_planned_without_them() {
        let secret = json!({"kind": "Secret", "data": {"p": "b2xk"}, "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "old"}}});
        let saved = withheld(secret).to_string();
        assert!(!saved.contains("b2xk") && !saved.contains("old"), "{saved}");
        let mut plan = json!({"changes": [
            {"kind": "change", "object": {"kind": "Secret"}, "fields": [{"path": "data.p", "old": "x", "new": "y"}]},
            {"kind": "change", "object": {"kind": "Secret"}, "fields": [{"path": "data.q", "old": null, "new": "y"}]},
            {"kind": "change", "object": {"kind": "ConfigMap"}, "fields": [{"path": "data.p", "old": "x", "new": "y"}]}]});
        without_withheld(&mut plan);
        assert_eq!(plan["changes"].as_array().unwrap().len(), 2);
        assert!(objects_of(&json!({})).unwrap_err().contains("--save"));
        assert!(objects_of(&json!({"holdfastState": 9, "objects": []})).is_err());
    }
}
