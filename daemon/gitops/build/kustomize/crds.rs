//! `crds`: OpenAPI definitions that mark which fields of custom kinds hold names, labels and annotations.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::yaml;
use super::config::{Config, Referred};
use super::fields::FieldSpec;

/// Nesting of definitions: they may refer to each other in a ring.
const MOST_DEPTH: usize = 32;

/// Reads a file of definitions.
pub(super) fn read(bytes: &[u8]) -> Result<Config, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())?;
    let document = yaml::documents(text).into_iter().next();
    let document =
        document.ok_or("it is empty")?.map_err(|flaw| format!("{}: {}", flaw.line, flaw.message))?;
    let value = document.root.value();
    let types: BTreeMap<&str, &Value> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, of)| (name.as_str(), &of["Schema"]["properties"]))
        .collect();
    let mut config = Config::default();
    for (name, properties) in &types {
        let is_kind = ["kind", "apiVersion", "metadata"].iter().all(|field| properties.get(field).is_some());
        if is_kind {
            let kind = name.rsplit('.').next().unwrap_or(name);
            walk(&mut config, kind, &types, name, &mut Vec::new());
        }
    }
    Ok(config)
}

fn walk(config: &mut Config, kind: &str, types: &BTreeMap<&str, &Value>, name: &str, path: &mut Vec<String>) {
    let Some(properties) = types.get(name).and_then(|properties| properties.as_object()) else { return };
    if path.len() > MOST_DEPTH {
        return;
    }
    for (field, property) in properties {
        path.push(field.clone());
        let spec = |path: &[String]| FieldSpec {
            kind: kind.to_owned(),
            path: path.join("/"),
            ..FieldSpec::default()
        };
        if property.get("x-kubernetes-annotation").is_some() {
            config.common_annotations.push(spec(path));
        }
        if property.get("x-kubernetes-label-selector").is_some() {
            config.common_labels.push(spec(path));
        }
        if property.get("x-kubernetes-identity").is_some() {
            config.name_prefix.push(spec(path));
        }
        let text = |name: &str| property.get(name).and_then(Value::as_str);
        let referred = (text("x-kubernetes-object-ref-api-version"), text("x-kubernetes-object-ref-kind"));
        if let (Some(version), Some(to)) = referred {
            let key = text("x-kubernetes-object-ref-name-key").unwrap_or("name");
            path.push(key.to_owned());
            config.name_reference.push(Referred {
                version: version.to_owned(),
                kind: to.to_owned(),
                specs: vec![spec(path)],
                ..Referred::default()
            });
            path.pop();
        }
        if let Some(other) = text("$ref") {
            walk(config, kind, types, other, path);
        }
        path.pop();
    }
}
