//! Writes the same as one OpenAPI v2 document, for clients that know no other.
//!
//! Invariant: made from the parts of the v3 documents, so that both say the same.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// One document of the paths and types of all v3 documents.
pub(super) fn document(paths: Map<String, Value>, schemas: BTreeMap<String, Value>) -> Value {
    let paths: Map<String, Value> = paths.into_iter().map(|(path, item)| (path, path_item(item))).collect();
    let mut whole = json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": "v1.36.0" },
        "paths": paths,
        "definitions": schemas,
    });
    refer(&mut whole);
    whole
}

fn path_item(item: Value) -> Value {
    let Value::Object(methods) = item else { return item };
    let methods = methods.into_iter().map(|(method, operation)| match operation {
        Value::Array(list) => (method, list.into_iter().map(parameter).collect()),
        operation => (method, self::operation(operation)),
    });
    methods.collect::<Map<String, Value>>().into()
}

fn operation(mut operation: Value) -> Value {
    let mut parameters: Vec<Value> = match operation["parameters"].take() {
        Value::Array(list) => list.into_iter().map(parameter).collect(),
        _ => Vec::new(),
    };
    if let Some(body) = operation.as_object_mut().and_then(|map| map.remove("requestBody")) {
        let content = body["content"].as_object().cloned().unwrap_or_default();
        let schema = content.values().next().map_or(json!({}), |one| one["schema"].clone());
        let consumes: Vec<String> = content.into_iter().map(|(media, _)| media).collect();
        let required = body["required"] == true;
        parameters.push(json!({ "name": "body", "in": "body", "required": required, "schema": schema }));
        operation["consumes"] = consumes.into();
    }
    operation["parameters"] = parameters.into();
    operation["produces"] = json!(["application/json", "application/yaml"]);
    for answer in operation["responses"].as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        let content = answer.as_object_mut().and_then(|map| map.remove("content"));
        if let Some(schema) = content.and_then(|content| content["application/json"].get("schema").cloned()) {
            answer["schema"] = schema;
        }
    }
    operation
}

/// The type of a parameter stands in it, not in a schema of its own.
fn parameter(mut parameter: Value) -> Value {
    let schema = parameter.as_object_mut().and_then(|map| map.remove("schema"));
    if let (Some(Value::Object(schema)), Some(map)) = (schema, parameter.as_object_mut()) {
        map.extend(schema);
    }
    parameter
}

/// References point elsewhere, and need no wrapping to have siblings.
fn refer(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(all)) = map.get("allOf")
                && let [Value::Object(only)] = all.as_slice()
                && only.len() == 1
                && let Some(reference) = only.get("$ref").cloned()
            {
                map.remove("allOf");
                map.insert("$ref".to_owned(), reference);
            }
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replacen("#/components/schemas/", "#/definitions/", 1);
            }
            map.values_mut().for_each(refer);
        }
        Value::Array(list) => list.iter_mut().for_each(refer),
        _ => {}
    }
}
