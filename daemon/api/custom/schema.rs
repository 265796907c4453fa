//! Walks an object beside a structural schema: nulls, pruning, defaults.
//!
//! Invariant: `apiVersion`, `kind` and `metadata` of the object and of embedded resources are the server's, whatever the
//! schema says of them.

use serde_json::{Map, Value};

use crate::schema as built_in;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const OWN: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The schema of what stands under a name.
pub(crate) fn child<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    match schema["properties"].get(name) {
        Some(child) => Some(child),
        None => schema.get("additionalProperties").filter(|more| more.is_object()),
    }
}

/// Whether unknown fields of this object are kept.
fn keeps_unknown(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true || schema["additionalProperties"] == true
}

fn is_embedded(schema: &Value) -> bool {
    schema["x-kubernetes-embedded-resource"] == true
}

/// Whether a default stands anywhere in it.
pub(super) fn has_defaults(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("default") || map.values().any(has_defaults),
        Value::Array(items) => items.iter().any(has_defaults),
        _ => false,
    }
}

/// Removes nulls that a default takes the place of, and puts metadata into the form that the server keeps it in.
pub fn coerce(schema: &Value, object: &mut Value) {
    own(object);
    nulls(schema, object);
}

/// Metadata of the object, as the built-in kinds have it.
fn own(object: &mut Value) {
    let metadata = object.get_mut("metadata").filter(|metadata| metadata.is_object());
    if let (Some(metadata), Some(of)) = (metadata, built_in::object(META)) {
        built_in::coerce_of(of, metadata);
    }
}

fn nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let replaced = value.is_null()
                    && child(schema, name)
                        .is_some_and(|child| child["nullable"] != true && child.get("default").is_some());
                !replaced
            });
            for (name, value) in map {
                if let Some(child) = child(schema, name) {
                    nulls(child, value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| nulls(&schema["items"], item)),
        _ => {}
    }
}

/// Removes what the schema does not know; the answer is where that was.
pub fn prune(schema: &Value, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    prune_at(schema, object, "", true, &mut removed);
    removed
}

fn prune_at(schema: &Value, value: &mut Value, path: &str, resource: bool, removed: &mut Vec<String>) {
    match value {
        Value::Object(map) => prune_fields(schema, map, path, resource, removed),
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                let path = format!("{path}[{at}]");
                prune_at(&schema["items"], item, &path, is_embedded(&schema["items"]), removed);
            }
        }
        _ => {}
    }
}

fn prune_fields(
    schema: &Value,
    map: &mut Map<String, Value>,
    path: &str,
    resource: bool,
    removed: &mut Vec<String>,
) {
    let keeps = keeps_unknown(schema);
    let unknown = |name: &String| {
        !keeps && child(schema, name).is_none() && !(resource && OWN.contains(&name.as_str()))
    };
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    removed.extend(map.keys().filter(|name| unknown(name)).map(|name| below(name)));
    map.retain(|name, _| !unknown(name));
    for (name, value) in map.iter_mut() {
        if resource && OWN.contains(&name.as_str()) {
            continue;
        }
        if let Some(child) = child(schema, name) {
            prune_at(child, value, &below(name), is_embedded(child), removed);
        }
    }
}

/// Fills in what is open and has a default. Twice is once.
pub fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, child) in schema["properties"].as_object().into_iter().flatten() {
                if let (Some(default), false) = (child.get("default"), map.contains_key(name)) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(child) = child(schema, name) {
                    default(child, value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(&schema["items"], item)),
        _ => {}
    }
}
