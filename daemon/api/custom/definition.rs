//! CustomResourceDefinitions themselves: defaults, validation, and what their status says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::text;
use crate::cel;
use crate::schema::Defect;

/// Who deletes the instances before a definition goes.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Whether a kind is this one.
pub fn is(kind: &crate::kinds::Kind) -> bool {
    kind.kind == "CustomResourceDefinition" && kind.group == "apiextensions.k8s.io"
}

/// Fills in what Kubernetes documents as defaults.
pub fn default(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let missing = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || *value == "");
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        for (field, value) in [("listKind", format!("{kind}List")), ("singular", kind.to_lowercase())] {
            if !kind.is_empty() && missing(names.get(field)) {
                names.insert(field.to_owned(), value.into());
            }
        }
    }
    if missing(spec.get("conversion")) {
        spec.insert("conversion".to_owned(), json!({ "strategy": "None" }));
    }
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(false)) {
        spec.remove("preserveUnknownFields");
    }
}

/// What is wrong with a definition.
pub fn check(definition: &Value, old: Option<&Value>) -> Vec<Defect> {
    let mut defects = Vec::new();
    let spec = &definition["spec"];
    let group = text(spec, "group");
    names(definition, &mut defects);
    if !matches!(spec["scope"].as_str(), Some("Cluster" | "Namespaced")) {
        defects.push(Defect::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if spec["preserveUnknownFields"] == true {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        defects.push(Defect::invalid("spec.preserveUnknownFields", &true.into(), why));
    }
    if spec["conversion"]["strategy"] != "None" {
        let path = "spec.conversion.strategy";
        defects.push(Defect::not_supported(path, &spec["conversion"]["strategy"], &["None"]));
    }
    if let Some(old) = old {
        let old = &old["spec"];
        for (path, new, old) in [
            ("spec.group", &spec["group"], &old["group"]),
            ("spec.scope", &spec["scope"], &old["scope"]),
            ("spec.names.plural", &spec["names"]["plural"], &old["names"]["plural"]),
            ("spec.names.kind", &spec["names"]["kind"], &old["names"]["kind"]),
        ] {
            if new != old {
                defects.push(Defect::invalid(path, new, "field is immutable"));
            }
        }
    }
    let protected = group == "k8s.io"
        || group == "kubernetes.io"
        || group.ends_with(".k8s.io")
        || group.ends_with(".kubernetes.io");
    let approved = &definition["metadata"]["annotations"]["api-approved.kubernetes.io"];
    if protected && approved.as_str().is_none_or(str::is_empty) {
        let path = "metadata.annotations[api-approved.kubernetes.io]";
        defects.push(Defect::required(path, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"));
    }
    versions(definition, &mut defects);
    defects
}

fn names(definition: &Value, defects: &mut Vec<Defect>) {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let (group, plural) = (text(spec, "group"), text(names, "plural"));
    let wanted = format!("{plural}.{group}");
    if text(&definition["metadata"], "name") != wanted {
        let told = format!("must be spec.names.plural+\".\"+spec.group ({wanted})");
        defects.push(Defect::invalid("metadata.name", &definition["metadata"]["name"], &told));
    }
    if group.is_empty() {
        defects.push(Defect::required("spec.group", ""));
    } else if group.split('.').count() < 2 {
        defects.push(Defect::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    let label = |text: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
            && !text.ends_with('-')
    };
    let rule = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    for (field, value) in [("plural", &names["plural"]), ("singular", &names["singular"])] {
        if value.as_str().is_none_or(str::is_empty) && field == "plural" {
            defects.push(Defect::required("spec.names.plural", ""));
        } else if !value.as_str().is_none_or(label) {
            defects.push(Defect::invalid(format!("spec.names.{field}"), value, rule));
        }
    }
    for (field, value) in [("kind", &names["kind"]), ("listKind", &names["listKind"])] {
        match value.as_str().unwrap_or_default() {
            "" => defects.push(Defect::required(format!("spec.names.{field}"), "")),
            name if !label(&name.to_lowercase()) => {
                let told = format!("may have mixed case, but should otherwise match: {rule}");
                defects.push(Defect::invalid(format!("spec.names.{field}"), value, &told));
            }
            _ => {}
        }
    }
    for (at, short) in names["shortNames"].as_array().into_iter().flatten().enumerate() {
        if !short.as_str().is_some_and(label) {
            defects.push(Defect::invalid(format!("spec.names.shortNames[{at}]"), short, rule));
        }
    }
}

fn versions(definition: &Value, defects: &mut Vec<Defect>) {
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        return defects.push(Defect::required("spec.versions", "must have at least one version"));
    }
    let stored: Vec<&str> =
        versions.iter().filter(|one| one["storage"] == true).map(|one| text(one, "name")).collect();
    if stored.len() != 1 {
        let why = "must have exactly one version marked as storage version";
        defects.push(Defect::invalid("spec.versions", &json!(stored), why));
    }
    let known = |name: &str| versions.iter().any(|one| text(one, "name") == name);
    for (at, name) in definition["status"]["storedVersions"].as_array().into_iter().flatten().enumerate() {
        if !name.as_str().is_some_and(known) {
            let why = "must appear in spec.versions";
            defects.push(Defect::invalid(format!("status.storedVersions[{at}]"), name, why));
        }
    }
    for (at, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{at}]");
        let name = text(version, "name");
        if versions[..at].iter().any(|other| text(other, "name") == name) {
            defects.push(Defect::duplicate(format!("{path}.name"), &version["name"]));
        }
        for (at, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
            for field in ["name", "type", "jsonPath"] {
                if text(column, field).is_empty() {
                    defects
                        .push(Defect::required(format!("{path}.additionalPrinterColumns[{at}].{field}"), ""));
                }
            }
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        let path = format!("{path}.schema.openAPIV3Schema");
        if !schema.is_object() {
            defects.push(Defect::required(path, "schemas are required"));
            continue;
        }
        if schema["type"] != "object" {
            defects.push(Defect::invalid(
                format!("{path}.type"),
                &schema["type"],
                "must be object at the root",
            ));
        }
        structural(schema, &path, true, defects);
        defaults(schema, &path, defects);
        cel::rules::compile_all(schema, &path, defects);
    }
}

/// Every value has a type, or says that it may be anything.
fn structural(schema: &Value, path: &str, root: bool, defects: &mut Vec<Defect>) {
    let (any, number_or_text) = (
        schema["x-kubernetes-preserve-unknown-fields"] == true,
        schema["x-kubernetes-int-or-string"] == true,
    );
    let of = text(schema, "type");
    if of.is_empty() && !any && !number_or_text && !root {
        defects
            .push(Defect::required(format!("{path}.type"), "must not be empty for specified object fields"));
    }
    let known = ["", "array", "boolean", "integer", "number", "object", "string"];
    if !known.contains(&of) {
        defects.push(Defect::not_supported(format!("{path}.type"), &schema["type"], &known[1..]));
    }
    for field in
        ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id", "$schema"]
    {
        if schema.get(field).is_some_and(|value| !value.is_null()) {
            defects.push(Defect::forbidden(format!("{path}.{field}"), &format!("{field} is not supported")));
        }
    }
    if schema["uniqueItems"] == true {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        defects.push(Defect::forbidden(format!("{path}.uniqueItems"), why));
    }
    if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
        let why = "additionalProperties and properties are mutual exclusive";
        defects.push(Defect::forbidden(format!("{path}.additionalProperties"), why));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && super::validate::parse(pattern).is_none()
    {
        let why = "must be a valid regular expression, but isn't";
        defects.push(Defect::invalid(format!("{path}.pattern"), &schema["pattern"], why));
    }
    if of == "array" && !schema["items"].is_object() {
        defects.push(Defect::required(format!("{path}.items"), "must be specified"));
    }
    if schema["x-kubernetes-list-type"] == "map" {
        let keys = schema["x-kubernetes-list-map-keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            defects.push(Defect::required(format!("{path}.x-kubernetes-list-map-keys"), why));
        }
        for (at, key) in keys.iter().enumerate() {
            if !schema["items"]["properties"][key.as_str().unwrap_or_default()].is_object() {
                let path = format!("{path}.x-kubernetes-list-map-keys[{at}]");
                defects.push(Defect::invalid(path, key, "must be a name of a property of the items"));
            }
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        structural(child, &format!("{path}.properties[{name}]"), root && name == "metadata", defects);
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            structural(&schema[field], &format!("{path}.{field}"), false, defects);
        }
    }
}

/// Defaults are valid values of what they are defaults of.
fn defaults(schema: &Value, path: &str, defects: &mut Vec<Defect>) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let mut found = Vec::new();
        let mut filled = default.clone();
        super::default(schema, &mut filled);
        super::validate::check(schema, &filled, "", &mut found);
        for one in found {
            let at = if one.path.is_empty() { String::new() } else { format!(".{}", one.path) };
            defects.push(Defect { path: format!("{path}.default{at}"), ..one });
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        defaults(child, &format!("{path}.properties[{name}]"), defects);
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            defaults(&schema[field], &format!("{path}.{field}"), defects);
        }
    }
}

/// Whether a text has a format; formats that are not known are not looked at, as documented.
pub(super) fn has_format(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(ip, bits)| {
            ip.parse::<IpAddr>()
                .is_ok_and(|ip| bits.parse::<u8>().is_ok_and(|n| n <= if ip.is_ipv4() { 32 } else { 128 }))
        }),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            let hex = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_hexdigit());
            let parts: Vec<&str> = text.split('-').collect();
            parts.len() == 5 && parts.iter().zip([8, 4, 4, 4, 12]).all(|(part, n)| hex(part, n))
        }
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => text.contains(':') && !text.contains(char::is_whitespace),
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "hostname" => {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        }
        _ => true,
    }
}

/// The status of a definition, given whether somebody else has one of its names: what of it changes is in the answer.
pub fn status(definition: &Value, conflict: Option<&str>, now: &str) -> Value {
    let mut status = definition["status"].as_object().cloned().unwrap_or_default();
    let accepted = match conflict {
        Some(_) => {
            status.get("acceptedNames").cloned().unwrap_or_else(|| json!({ "plural": "", "kind": "" }))
        }
        None => definition["spec"]["names"].clone(),
    };
    status.insert("acceptedNames".to_owned(), accepted);
    let names = match conflict {
        Some(message) => condition("NamesAccepted", false, "NamesConflict", message),
        None => condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
    };
    let was_established = is_established(definition);
    let established = match conflict {
        Some(_) if !was_established => {
            condition("Established", false, "NotAccepted", "not all names are accepted")
        }
        _ => condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted"),
    };
    let mut conditions = vec![names, established];
    if definition["metadata"]["deletionTimestamp"].is_string() {
        let message = "CustomResource deletion is in progress";
        conditions.push(condition("Terminating", true, "InstanceDeletionInProgress", message));
    }
    merge(&mut status, conditions, now);
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|version| version["storage"] == true).map(|version| &version["name"]);
    let mut stored = definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    stored.extend(storage.filter(|storage| !stored.contains(storage)).cloned());
    status.insert("storedVersions".to_owned(), stored.into());
    status.into()
}

/// Whether its kinds are served.
pub fn is_established(definition: &Value) -> bool {
    let mut conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|one| one["type"] == "Established" && one["status"] == "True")
}

fn condition(of: &str, holds: bool, reason: &str, message: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    json!({ "type": of, "status": status, "reason": reason, "message": message })
}

/// Conditions that stay as they are keep their time; those of others stay.
fn merge(status: &mut Map<String, Value>, conditions: Vec<Value>, now: &str) {
    let mut all = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    for mut new in conditions {
        let known = all.iter_mut().find(|old| old["type"] == new["type"]);
        let time = known.as_ref().filter(|old| old["status"] == new["status"]);
        new["lastTransitionTime"] = time.map_or_else(|| now.into(), |old| old["lastTransitionTime"].clone());
        match known {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    status.insert("conditions".to_owned(), all.into());
}
