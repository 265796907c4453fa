//! Yesterday's CustomResourceDefinition: one schema for all versions, and nothing pruned unless asked for.

use serde_json::{Map, Value, json};

use super::Changing;

/// Fields that stood beside the versions and stand in each of them today, with what they are called there.
const PER_VERSION: [(&str, &str); 3] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];

pub(super) fn convert(changing: &mut Changing) {
    changing.object.remove("status");
    let Some(spec) = changing.spec() else { return };
    let mut told: Vec<(String, &str)> = Vec::new();
    let kept = spec.remove("preserveUnknownFields");
    if kept.is_some() {
        told.push(("spec.preserveUnknownFields".into(), "is said in the schema today"));
    }
    if spec.get("scope").is_none_or(Value::is_null) {
        spec.insert("scope".into(), "Namespaced".into());
        told.push(("spec.scope".into(), "is required today; Namespaced is taken"));
    }
    versions(spec, &mut told);
    shared(spec, &mut told);
    conversion(spec, &mut told);
    let prunes = kept == Some(Value::Bool(false));
    for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
        columns(version);
        schema(version, prunes);
    }
    for (path, message) in told {
        changing.tell(path, message);
    }
}

fn versions(spec: &mut Map<String, Value>, told: &mut Vec<(String, &str)>) {
    if let Some(version) = spec.remove("version") {
        told.push(("spec.version".into(), "is a list of versions today"));
        if spec.get("versions").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("versions".into(), json!([{ "name": version, "served": true, "storage": true }]));
        }
    }
}

fn shared(spec: &mut Map<String, Value>, told: &mut Vec<(String, &str)>) {
    for (then, now) in PER_VERSION {
        let Some(value) = spec.remove(then) else { continue };
        for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
            if version.get(now).is_none_or(Value::is_null) {
                version[now] = value.clone();
            }
        }
        told.push((format!("spec.{then}"), "is said for each version today"));
    }
}

fn conversion(spec: &mut Map<String, Value>, told: &mut Vec<(String, &str)>) {
    let Some(Value::Object(conversion)) = spec.get_mut("conversion") else { return };
    let mut webhook = Map::new();
    for (then, now) in
        [("webhookClientConfig", "clientConfig"), ("conversionReviewVersions", "conversionReviewVersions")]
    {
        if let Some(value) = conversion.remove(then) {
            webhook.insert(now.into(), value);
            told.push((format!("spec.conversion.{then}"), "is said under spec.conversion.webhook today"));
        }
    }
    if !webhook.is_empty() {
        conversion.insert("webhook".into(), webhook.into());
    }
}

fn columns(version: &mut Value) {
    let columns = version.get_mut("additionalPrinterColumns").and_then(Value::as_array_mut);
    for column in columns.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(path) = column.remove("JSONPath") {
            column.insert("jsonPath".into(), path);
        }
    }
}

/// A schema is required today, and must say that it is one of objects.
fn schema(version: &mut Value, prunes: bool) {
    if !version["schema"]["openAPIV3Schema"].is_object() {
        version["schema"] = json!({ "openAPIV3Schema": { "x-kubernetes-preserve-unknown-fields": true } });
    }
    let root = &mut version["schema"]["openAPIV3Schema"];
    root["type"] = "object".into();
    if !prunes {
        root["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
}
