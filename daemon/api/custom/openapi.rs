//! OpenAPI v3 of custom kinds: what kubectl explains and client libraries read.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::openapi;

/// `com.example.stable.v1.CronTab` of the kind in `stable.example.com/v1`.
pub fn name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

/// The document of a group and version whose kinds are these; none without any.
pub fn document(rows: &[&'static Kind]) -> Option<Value> {
    if rows.is_empty() {
        return None;
    }
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for kind in rows {
        schemas.insert(kind.schema.clone(), schema(kind));
        schemas.insert(format!("{}List", kind.schema), openapi::list_of(kind));
        openapi::add_paths(kind, &mut paths);
    }
    Some(openapi::whole(paths, schemas))
}

/// The schema as it is published: with the fields that every object has.
pub fn schema(kind: &Kind) -> Value {
    let mut schema = kind.custom().map(|custom| custom.schema.clone()).unwrap_or_default();
    let text = |what: &str| json!({ "type": "string", "description": what });
    let meta = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    schema["properties"]["apiVersion"] = text("the version of the schema that this object is in");
    schema["properties"]["kind"] = text("the kind of this object");
    schema["properties"]["metadata"] =
        json!({ "description": "what every object has", "allOf": [{ "$ref": meta }] });
    schema["x-kubernetes-group-version-kind"] =
        json!([{ "group": kind.group, "version": kind.version, "kind": kind.kind }]);
    schema
}
