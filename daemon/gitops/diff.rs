//! What a sync would change, field by field.
//!
//! Invariant: values of Secrets are never in a diff.

use serde::Serialize;
use serde_json::Value;

use crate::build::{Defect, Id};
use crate::forecast::Effect;

/// What a sync of an application would do now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The application.
    pub application: String,
    /// The revision that would be applied.
    pub revision: String,
    /// The revision that is held now.
    pub held: String,
    /// What the revision waits for; empty when it is applied at once.
    pub waits: String,
    /// Hooks that would run, in their order.
    pub hooks: Vec<PlannedHook>,
    /// In the order in which it happens; empty when live is what the files say.
    pub changes: Vec<Change>,
    /// What is kept back.
    pub defects: Vec<Defect>,
}

/// A hook that would run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedHook {
    /// Which object.
    pub object: Id,
    /// `pre-sync`, …
    pub phase: &'static str,
    /// The file it is written in.
    pub file: String,
    /// From 1.
    pub line: u32,
}

/// What would happen to one object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Which object.
    pub object: Id,
    /// What would happen.
    pub kind: ChangeKind,
    /// The file it is (or was) written in.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// Why, where that is not plain.
    pub reason: String,
    /// Its wave.
    pub wave: i64,
    /// It waits for a person's confirmation.
    pub confirm: bool,
    /// The fields that would change.
    pub fields: Vec<FieldChange>,
    /// What that does to what runs.
    pub effects: Vec<Effect>,
}

/// What would happen to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Made.
    Create,
    /// Changed in place.
    Change,
    /// Deleted and made again, since it differs in what cannot change.
    Recreate,
    /// Deleted.
    Prune,
    /// Not wanted any more but kept; the reason says why.
    Hold,
    /// Cannot be applied; the reason says why.
    Fail,
}

/// One field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldChange {
    /// `spec.template.spec.containers[0].image`.
    pub path: String,
    /// Nothing if the field appears.
    pub old: Option<Value>,
    /// Nothing if the field vanishes.
    pub new: Option<Value>,
}

/// An object without what the cluster writes by itself.
pub(crate) fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in
            ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"]
        {
            meta.remove(field);
        }
    }
    object
}

/// The fields in which two objects differ, in the order of their paths.
pub(crate) fn fields(kind: &str, old: &Value, new: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    compare("", Some(&comparable(old)), Some(&comparable(new)), &mut changes);
    if kind == "Secret" {
        changes.iter_mut().for_each(redact);
    }
    changes
}

fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<FieldChange>) {
    if old == new {
        return;
    }
    // What is made, or goes whole, is told field by field: so that what must not be shown is found.
    let empty = Value::Object(serde_json::Map::new());
    let near = matches!(path, "" | "metadata");
    let fill = |side: Option<&Value>| side.is_none_or(Value::is_null) && near;
    let (old, new) = match (old, new) {
        (old, Some(Value::Object(_))) if fill(old) => (Some(&empty), new),
        (Some(Value::Object(_)), new) if fill(new) => (old, Some(&empty)),
        both => both,
    };
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
            let mut names: Vec<&String> = names.collect();
            names.sort();
            for name in names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&below, old.get(name), new.get(name), changes);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                compare(&format!("{path}[{index}]"), old.get(index), new.get(index), changes);
            }
        }
        _ => changes.push(FieldChange { path: path.to_owned(), old: old.cloned(), new: new.cloned() }),
    }
}

fn redact(change: &mut FieldChange) {
    let secret = ["data", "stringData"].iter().any(|field| {
        change.path == *field || change.path.strip_prefix(field).is_some_and(|rest| rest.starts_with('.'))
    });
    // The last applied configuration of kubectl holds the values once more.
    if secret || change.path.starts_with("metadata.annotations") {
        for side in [&mut change.old, &mut change.new].into_iter().flatten() {
            *side = Value::String("(redacted)".to_owned());
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_person_changed_is_in_a_diff() {
        let live = json!({"metadata": {"name": "a", "resourceVersion": "1", "generation": 2}, "spec": {"replicas": 3, "l": [1, 2]}, "status": {"x": 1}});
        let next = json!({"metadata": {"name": "a", "resourceVersion": "9", "generation": 3}, "spec": {"replicas": 5, "l": [1]}, "status": {}});
        let got = fields("Deployment", &live, &next);
        assert_eq!(
            got,
            vec![
                FieldChange { path: "spec.l[1]".into(), old: Some(json!(2)), new: None },
                FieldChange { path: "spec.replicas".into(), old: Some(json!(3)), new: Some(json!(5)) },
            ]
        );
    }

    #[test]
    fn a_secret_value_is_never_in_a_diff() {
        let made = json!({"metadata": {"name": "s", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "bmV3"}}, "data": {"p": "bmV3"}, "stringData": {"q": "new"}});
        let text = serde_json::to_string(&fields("Secret", &Value::Null, &made)).unwrap();
        assert!(
            text.contains("\"data\"") && !text.contains("bmV3") && !text.contains("\"new\":\"new\""),
            "{text}"
        );
        let got =
            fields("Secret", &json!({"data": {"p": "b2xk"}}), &json!({"data": {"p": "bmV3", "q": "eA=="}}));
        let text = serde_json::to_string(&got).unwrap();
        assert!(text.contains("data.p") && text.contains("data.q"), "{text}");
        assert!(!text.contains("b2xk") && !text.contains("bmV3") && !text.contains("eA=="), "{text}");
    }
}
