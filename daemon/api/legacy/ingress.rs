//! `serviceName` and `servicePort` of yesterday's Ingress.

use serde_json::{Value, json};

use super::{Change, Changing};

pub(super) fn convert(changing: &mut Changing) {
    let mut changes = Vec::new();
    let Some(spec) = changing.spec() else { return };
    if let Some(mut backend) = spec.remove("backend") {
        changes.push(told("spec.backend", "is called spec.defaultBackend today"));
        service(&mut backend, "spec.backend", &mut changes);
        spec.insert("defaultBackend".into(), backend);
    }
    for (rule_at, rule) in
        spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
    {
        let paths = rule.get_mut("http").and_then(|http| http.get_mut("paths")).and_then(Value::as_array_mut);
        for (at, path) in paths.into_iter().flatten().enumerate() {
            let place = format!("spec.rules[{rule_at}].http.paths[{at}]");
            let Some(fields) = path.as_object_mut() else { continue };
            if let Some(backend) = fields.get_mut("backend") {
                service(backend, &format!("{place}.backend"), &mut changes);
            }
            if fields.get("pathType").is_none_or(Value::is_null) {
                fields.insert("pathType".into(), "ImplementationSpecific".into());
                changes.push(told(
                    &format!("{place}.pathType"),
                    "is required today; ImplementationSpecific is taken",
                ));
            }
        }
    }
    changing.changes.append(&mut changes);
}

fn service(backend: &mut Value, path: &str, changes: &mut Vec<Change>) {
    let Some(fields) = backend.as_object_mut() else { return };
    let (name, port) = (fields.remove("serviceName"), fields.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = json!({});
    if let Some(name) = name {
        service["name"] = name;
        changes.push(told(&format!("{path}.serviceName"), "is called service.name today"));
    }
    if let Some(port) = port {
        // A number in quotes is a number: names of ports need a letter.
        let number = port.as_i64().or_else(|| port.as_str()?.parse().ok());
        let (field, value) = match number {
            Some(number) => ("number", number.into()),
            None => ("name", port),
        };
        service["port"] = json!({ field: value });
        changes.push(told(&format!("{path}.servicePort"), &format!("is called service.port.{field} today")));
    }
    fields.insert("service".into(), service);
}

fn told(path: &str, message: &str) -> Change {
    Change { path: path.to_owned(), message: message.to_owned() }
}
