//! Writes OpenAPI v3 from the schema table: what kubectl reads to validate, explain, patch and apply.
//!
//! Invariant: every definition that is a kind carries `x-kubernetes-group-version-kind`, and every PATCH says `dryRun`,
//! `fieldValidation` and the patch types that the server takes: kubectl asks these documents, not the server, what it can do.

mod descriptions;
mod v2;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::kinds::{self, Kind};
use crate::schema::{self, Field, ListType, Object, Shape, TypeRef};

/// `/openapi/v3`: where the document of each group and version is. The hash changes when the tables do.
pub fn index(custom: &[&'static Kind]) -> Value {
    let hash = hash(custom);
    let mut paths = Map::new();
    for kind in kinds::kinds().iter().chain(custom.iter().copied()) {
        let path = document_path(kind);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/{group_version_path}`, as in `api/v1` or `apis/apps/v1`. Made anew on each call: it is asked for rarely.
pub fn document(group_version_path: &str, custom: &[&'static Kind]) -> Option<Value> {
    built_in(group_version_path).or_else(|| {
        let rows: Vec<&'static Kind> =
            custom.iter().copied().filter(|kind| document_path(kind) == group_version_path).collect();
        crate::custom::openapi::document(&rows)
    })
}

fn built_in(group_version_path: &str) -> Option<Value> {
    let (paths, mut schemas) = parts(group_version_path)?;
    descriptions::describe(&mut schemas);
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.36.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

/// The paths and the types of one group and version, types without their meaning.
fn parts(group_version_path: &str) -> Option<(Map<String, Value>, BTreeMap<String, Value>)> {
    let rows: Vec<&Kind> =
        kinds::kinds().iter().filter(|kind| document_path(kind) == group_version_path).collect();
    if rows.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut schemas = BTreeMap::new();
    for kind in rows {
        let root = schema::root(kind);
        add_object(root, &mut schemas);
        schemas.insert(format!("{}List", root.name), list_schema(kind, root));
        add_paths(kind, &mut paths);
    }
    for name in ["autoscaling.v1.Scale", "core.v1.Binding"] {
        if let Some(object) = schema::object(&format!("io.k8s.api.{name}")) {
            add_object(object, &mut schemas);
        }
    }
    for name in ["DeleteOptions", "ListMeta", "Status"] {
        if let Some(object) = schema::object(&meta(name)) {
            add_object(object, &mut schemas);
        }
    }
    schemas.insert(meta("Patch"), json!({ "type": "object" }));
    Some((paths, schemas))
}

/// `/openapi/v2`: everything in one document of the older form.
pub fn version_two(custom: &[&'static Kind]) -> Value {
    let index = index(custom);
    let (mut paths, mut schemas) = (Map::new(), BTreeMap::new());
    for path in index["paths"].as_object().into_iter().flat_map(|map| map.keys()) {
        if let Some((more, types)) = parts(path) {
            paths.extend(more);
            schemas.extend(types);
        } else if let Some(mut of_users) = document(path, custom) {
            paths.extend(of_users["paths"].as_object_mut().map(std::mem::take).unwrap_or_default());
            let types = of_users.pointer_mut("/components/schemas").and_then(Value::as_object_mut);
            schemas.extend(types.map(std::mem::take).unwrap_or_default());
        }
    }
    descriptions::describe(&mut schemas);
    v2::document(paths, schemas)
}

fn document_path(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}

/// FNV-1a of what the documents are made from.
fn hash(custom: &[&'static Kind]) -> String {
    let texts = [
        include_str!("facts/schema.json"),
        include_str!("facts/holdfast.json"),
        include_str!("facts/kinds.json"),
        env!("CARGO_PKG_VERSION"),
    ];
    let names = kinds::kinds().iter().map(|kind| kind.schema.as_str());
    let schemas: Vec<String> =
        custom.iter().filter_map(|kind| kind.custom()).map(|custom| custom.schema.to_string()).collect();
    let bytes = texts.into_iter().chain(names).chain(schemas.iter().map(String::as_str)).flat_map(str::bytes);
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016X}")
}

fn meta(name: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}")
}

fn add_object(object: &'static Object, schemas: &mut BTreeMap<String, Value>) {
    if schemas.contains_key(object.name) {
        return;
    }
    // Entered before its fields are walked, so that types that hold themselves end.
    schemas.insert(object.name.to_owned(), Value::Null);
    let mut properties = Map::new();
    for field in &object.fields {
        properties.insert(field.name.to_owned(), property(field, schemas));
    }
    let mut schema = json!({ "type": "object" });
    if !properties.is_empty() {
        schema["properties"] = properties.into();
    }
    let required: Vec<&str> =
        object.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if object.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    if object.open {
        schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    if !object.gvk.is_empty() {
        let kinds = object
            .gvk
            .iter()
            .map(|[group, version, kind]| json!({ "group": group, "version": version, "kind": kind }));
        schema["x-kubernetes-group-version-kind"] = kinds.collect();
    }
    schemas.insert(object.name.to_owned(), schema);
}

fn property(field: &Field, schemas: &mut BTreeMap<String, Value>) -> Value {
    let mut property = of_type(field.of, schemas);
    // A reference cannot have siblings in OpenAPI 3.0: it is wrapped, as Kubernetes does.
    if let Some(reference) = property.get("$ref").cloned() {
        property = json!({ "allOf": [{ "$ref": reference }] });
    }
    if let Some(default) = &field.default {
        property["default"] = default.clone();
    }
    if matches!(field.of.shape(), Shape::Array(_)) {
        let name = match field.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        property["x-kubernetes-list-type"] = name.into();
        if !field.keys.is_empty() {
            property["x-kubernetes-list-map-keys"] = json!(field.keys);
        }
    }
    if field.atomic_map {
        property["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategies = [(field.merge, "merge"), (field.retain_keys, "retainKeys")];
    let strategy: Vec<&str> = strategies.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    if !strategy.is_empty() {
        property["x-kubernetes-patch-strategy"] = strategy.join(",").into();
    }
    if let Some(key) = field.merge_key {
        property["x-kubernetes-patch-merge-key"] = key.into();
    }
    property
}

fn of_type(of: TypeRef, schemas: &mut BTreeMap<String, Value>) -> Value {
    match of.shape() {
        Shape::Any => json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
        Shape::String => json!({ "type": "string" }),
        Shape::Bytes => json!({ "type": "string", "format": "byte" }),
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Int32 => json!({ "type": "integer", "format": "int32" }),
        Shape::Int64 => json!({ "type": "integer", "format": "int64" }),
        Shape::Double => json!({ "type": "number", "format": "double" }),
        Shape::Quantity => {
            let name = "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned();
            scalar(name, json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }), schemas)
        }
        Shape::IntOrString => {
            let name = "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned();
            let schema =
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] });
            scalar(name, schema, schemas)
        }
        Shape::Time => scalar(meta("Time"), json!({ "type": "string", "format": "date-time" }), schemas),
        Shape::MicroTime => {
            scalar(meta("MicroTime"), json!({ "type": "string", "format": "date-time" }), schemas)
        }
        Shape::Array(inner) => json!({ "type": "array", "items": of_type(inner, schemas) }),
        Shape::Map(inner) => json!({ "type": "object", "additionalProperties": of_type(inner, schemas) }),
        Shape::Object(object) => {
            add_object(object, schemas);
            reference(object.name)
        }
    }
}

fn scalar(name: String, schema: Value, schemas: &mut BTreeMap<String, Value>) -> Value {
    let reference = reference(&name);
    schemas.insert(name, schema);
    reference
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn list_schema(kind: &Kind, root: &Object) -> Value {
    list(kind, root.name)
}

/// The list of a kind whose schema goes by the row's own name.
pub(crate) fn list_of(kind: &Kind) -> Value {
    list(kind, &kind.schema)
}

/// A document of these paths and schemas, with the types that every document refers to.
pub(crate) fn whole(paths: Map<String, Value>, own: Map<String, Value>) -> Value {
    let mut schemas = BTreeMap::new();
    for name in ["DeleteOptions", "ListMeta", "ObjectMeta", "Status"] {
        if let Some(object) = schema::object(&meta(name)) {
            add_object(object, &mut schemas);
        }
    }
    if let Some(object) = schema::object("io.k8s.api.autoscaling.v1.Scale") {
        add_object(object, &mut schemas);
    }
    schemas.insert(meta("Patch"), json!({ "type": "object" }));
    schemas.extend(own);
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.36.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn list(kind: &Kind, of: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "allOf": [reference(&meta("ListMeta"))] },
            "items": { "type": "array", "items": reference(of) },
        },
        "x-kubernetes-group-version-kind": [{ "group": kind.group, "version": kind.version, "kind": format!("{}List", kind.kind) }],
    })
}

pub(crate) fn add_paths(kind: &Kind, paths: &mut Map<String, Value>) {
    let base = format!("/{}", document_path(kind));
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", kind.plural);
    let mut names = Vec::new();
    if kind.namespaced {
        names.push(path_parameter("namespace"));
    }
    let mut whole =
        operations(kind, &[("create", "post"), ("list", "get"), ("deletecollection", "delete")], &kind.verbs);
    whole.insert("parameters".into(), names.clone().into());
    if kind.namespaced {
        let everywhere = operations(kind, &[("list", "get")], &kind.verbs);
        paths.insert(format!("{base}/{}", kind.plural), everywhere.into());
    }
    names.push(path_parameter("name"));
    let item = [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")];
    let mut one = operations(kind, &item, &kind.verbs);
    one.insert("parameters".into(), names.clone().into());
    paths.insert(format!("{collection}/{{name}}"), one.into());
    for sub in kind.subresources.iter().filter(|sub| sub.name == "status") {
        let mut status = operations(kind, &item, &sub.verbs);
        status.insert("parameters".into(), names.clone().into());
        paths.insert(format!("{collection}/{{name}}/status"), status.into());
    }
    paths.insert(collection, whole.into());
}

fn operations(kind: &Kind, methods: &[(&str, &str)], verbs: &[String]) -> Map<String, Value> {
    let served = methods.iter().filter(|(verb, _)| verbs.iter().any(|known| known == verb));
    served.map(|(verb, method)| ((*method).to_owned(), operation(kind, verb))).collect()
}

fn operation(kind: &Kind, verb: &str) -> Value {
    let parameters: &[&str] = match verb {
        "create" | "update" => &["pretty", "dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["pretty", "dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" => &["pretty", "dryRun", "gracePeriodSeconds", "propagationPolicy"],
        "list" => &[
            "pretty",
            "allowWatchBookmarks",
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ],
        _ => &["pretty"],
    };
    let parameters: Vec<Value> = parameters.iter().map(|name| query_parameter(name)).collect();
    let action = match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    };
    let answer = match verb {
        "list" => format!("{}List", kind.schema),
        "delete" | "deletecollection" => meta("Status"),
        _ => kind.schema.clone(),
    };
    let content = json!({ "application/json": { "schema": reference(&answer) } });
    let mut operation = json!({
        "operationId": format!("{verb}{}{}{}", capital(&kind.group), capital(&kind.version), kind.kind),
        "parameters": parameters,
        "responses": { "200": { "description": "OK", "content": content } },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
    });
    if let Some(body) = request_body(kind, verb) {
        operation["requestBody"] = body;
    }
    operation
}

fn request_body(kind: &Kind, verb: &str) -> Option<Value> {
    match verb {
        "create" | "update" => {
            Some(json!({ "content": { "*/*": { "schema": reference(&kind.schema) } }, "required": true }))
        }
        "patch" => {
            let mut types = vec![
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json",
            ];
            // Clients merge kinds they have no Go type for as plain JSON.
            if kind.schema.starts_with("io.k8s.") {
                types.push("application/strategic-merge-patch+json");
            }
            let schema = json!({ "schema": reference(&meta("Patch")) });
            let content: Map<String, Value> =
                types.into_iter().map(|name| (name.to_owned(), schema.clone())).collect();
            Some(json!({ "content": content, "required": true }))
        }
        "delete" => Some(json!({ "content": { "*/*": { "schema": reference(&meta("DeleteOptions")) } } })),
        _ => None,
    }
}

fn path_parameter(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "uniqueItems": true } })
}

fn query_parameter(name: &str) -> Value {
    let of_type = match name {
        "allowWatchBookmarks" | "force" | "sendInitialEvents" | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        _ => "string",
    };
    json!({ "name": name, "in": "query", "schema": { "type": of_type, "uniqueItems": true } })
}

/// `NetworkingK8sIo` of `networking.k8s.io`; `Core` of the core group.
fn capital(text: &str) -> String {
    let text = if text.is_empty() { "core" } else { text };
    text.split(['.', '-']).map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_of_the_index_exists_and_holds_every_type_it_refers_to() {
        let index = index(&[]);
        let paths = index["paths"].as_object().expect("paths");
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
        for path in paths.keys() {
            let document = document(path, &[]).expect("an indexed document exists");
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let text = document.to_string();
            for part in text.split("\"#/components/schemas/").skip(1) {
                let name = part.split('"').next().expect("a quoted name");
                assert!(schemas.contains_key(name), "{path} lacks {name}");
            }
            assert!(!schemas.values().any(Value::is_null), "{path} has an unfinished type");
        }
        assert_eq!(document("apis/nope/v1", &[]), None);
    }

    /// What kubectl's query parameter verifier, patch type check and explain look for.
    #[test]
    fn kubectl_finds_the_kind_its_patch_types_and_its_parameters() {
        // What is answered and forgotten is not patched.
        for kind in kinds::kinds().iter().filter(|kind| kind.verbs.iter().any(|verb| verb == "patch")) {
            let document = document(&document_path(kind), &[]).expect("a document");
            let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
            let path = format!("/{}{scope}/{}/{{name}}", document_path(kind), kind.plural);
            let patch = &document["paths"][&path]["patch"];
            let gvk = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
            assert_eq!(patch["x-kubernetes-group-version-kind"], gvk, "{path}");
            let parameters: Vec<&str> = patch["parameters"]
                .as_array()
                .expect("parameters")
                .iter()
                .filter_map(|p| p["name"].as_str())
                .collect();
            assert!(parameters.contains(&"dryRun") && parameters.contains(&"fieldValidation"), "{path}");
            let definition =
                &document["components"]["schemas"][&kind.schema]["x-kubernetes-group-version-kind"];
            assert_eq!(definition[0], gvk, "{}", kind.schema);
            let strategic =
                patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some();
            assert_eq!(strategic, kind.group != "holdfast.dev", "{path}");
        }
    }

    #[test]
    fn every_type_and_field_that_people_ask_about_is_described() {
        for kind in kinds::kinds() {
            let document = document(&document_path(kind), &[]).expect("a document");
            let schema = &document["components"]["schemas"][&kind.schema];
            assert!(schema["description"].is_string(), "{}", kind.schema);
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{}.{field}", kind.schema);
            }
        }
        let core = document("api/v1", &[]).expect("served");
        let container = &core["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"];
        assert!(
            container["image"]["description"]
                .as_str()
                .is_some_and(|text| text.starts_with("Container image"))
        );
    }

    #[test]
    fn the_older_document_holds_every_type_it_refers_to() {
        let whole = version_two(&[]);
        let text = whole.to_string();
        assert!(!text.contains("#/components/"), "a reference of the newer form");
        for part in text.split("\"#/definitions/").skip(1) {
            let name = part.split('"').next().expect("a quoted name");
            assert!(whole["definitions"].get(name).is_some(), "{name}");
        }
        let post = &whole["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"];
        let body = post["parameters"].as_array().expect("parameters").iter().find(|one| one["in"] == "body");
        assert_eq!(body.expect("a body")["schema"]["$ref"], "#/definitions/io.k8s.api.core.v1.Pod");
        assert_eq!(post["responses"]["200"]["schema"]["$ref"], "#/definitions/io.k8s.api.core.v1.Pod");
    }

    #[test]
    fn merge_keys_and_defaults_stand_at_the_property() {
        let document = document("apis/apps/v1", &[]).expect("served");
        let containers =
            &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
        let template =
            &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["template"];
        assert!(template["description"].is_string());
        let mut template = template.clone();
        template.as_object_mut().expect("a schema").remove("description");
        assert_eq!(
            template,
            json!({ "allOf": [{ "$ref": "#/components/schemas/io.k8s.api.core.v1.PodTemplateSpec" }], "default": {} })
        );
    }
}
