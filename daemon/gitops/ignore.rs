//! Fields that belong to somebody else: what is applied leaves them as they are.
//!
//! Invariant: pure. An ignored field that another manager owns is left out; one that only we own keeps its live value,
//! since leaving it out would delete it.

use serde_json::{Map, Value};

use crate::FIELD_MANAGER;
use crate::build::Object;
use crate::marks;
use crate::policy::Ignore;

/// What is ignored of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) pointers: Vec<String>,
    pub(crate) managers: Vec<String>,
}

impl Rules {
    /// The rules of the configuration and of the object's own annotation.
    pub(crate) fn of(object: &Object, rules: &[Ignore]) -> Rules {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let id = &object.id;
        let mut found = Rules { pointers: marks::ignored(&object.value), managers: Vec::new() };
        let applying = rules.iter().filter(|rule| {
            fits(&rule.kind, &id.kind) && fits(&rule.name, &id.name) && fits(&rule.namespace, &id.namespace)
        });
        for rule in applying {
            found.pointers.extend(rule.pointers.iter().cloned());
            found.managers.extend(rule.managers.iter().cloned());
        }
        found
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pointers.is_empty() && self.managers.is_empty()
    }
}

/// The wanted object with the ignored fields as they are live.
pub(crate) fn mask(wanted: &Value, live: &Value, rules: &Rules) -> Value {
    let mut masked = wanted.clone();
    let owners = owners(live);
    for pointer in &rules.pointers {
        let others =
            owners.iter().any(|(manager, fields)| *manager != FIELD_MANAGER && owns(fields, live, pointer));
        match live.pointer(pointer).filter(|_| !others) {
            Some(value) => set(&mut masked, pointer, value.clone()),
            None => remove(&mut masked, pointer),
        }
    }
    for manager in &rules.managers {
        for (_, fields) in owners.iter().filter(|(name, _)| name == manager) {
            leave(&mut masked, fields);
        }
    }
    masked
}

fn owners(live: &Value) -> Vec<(&str, &Value)> {
    let entries = live["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .filter(|entry| entry["subresource"].as_str().unwrap_or_default() != "status")
        .filter_map(|entry| Some((entry["manager"].as_str()?, &entry["fieldsV1"])))
        .collect()
}

/// Whether a set of fields holds what a pointer names, or something below it.
fn owns(fields: &Value, live: &Value, pointer: &str) -> bool {
    let (mut fields, mut live) = (fields, live);
    for part in pointer.split('/').skip(1) {
        let name = part.replace("~1", "/").replace("~0", "~");
        let below = match live {
            Value::Array(items) => {
                let Some(item) = name.parse().ok().and_then(|at: usize| items.get(at)) else { return false };
                live = item;
                keyed(fields, item)
            }
            other => {
                live = &other[name.as_str()];
                fields.get(format!("f:{name}"))
            }
        };
        match below {
            Some(below) => fields = below,
            None => return false,
        }
    }
    true
}

/// The fields of the list entry that is this item.
fn keyed<'a>(fields: &'a Value, item: &Value) -> Option<&'a Value> {
    let entries = fields.as_object()?;
    let found = entries.iter().find(|(name, _)| match name.strip_prefix("k:") {
        Some(key) => is_item(key, item),
        None => false,
    });
    found.map(|(_, below)| below)
}

fn is_item(key: &str, item: &Value) -> bool {
    let Ok(key) = serde_json::from_str::<Map<String, Value>>(key) else { return false };
    key.iter().all(|(name, value)| item.get(name) == Some(value))
}

/// Takes away what a set of fields names.
fn leave(wanted: &mut Value, fields: &Value) {
    for (name, below) in fields.as_object().into_iter().flatten() {
        let leaf = below.as_object().is_none_or(|below| below.keys().all(|key| key == "."));
        if let Some(field) = name.strip_prefix("f:") {
            match wanted.as_object_mut() {
                Some(object) if leaf => {
                    object.remove(field);
                }
                Some(object) => {
                    if let Some(inner) = object.get_mut(field) {
                        leave(inner, below);
                    }
                }
                None => {}
            }
        } else if let (Some(key), Some(items)) = (name.strip_prefix("k:"), wanted.as_array_mut()) {
            for item in items.iter_mut().filter(|item| is_item(key, item)) {
                leave(item, below);
            }
        }
    }
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let Some((above, name)) = pointer.rsplit_once('/') else { return };
    let name = name.replace("~1", "/").replace("~0", "~");
    if object.pointer(above).is_none() {
        set(object, above, Value::Object(Map::new()));
    }
    match object.pointer_mut(above) {
        Some(Value::Object(fields)) => {
            fields.insert(name, value);
        }
        Some(Value::Array(items)) => {
            if let Some(item) = name.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                *item = value;
            }
        }
        _ => {}
    }
}

fn remove(object: &mut Value, pointer: &str) {
    let Some((above, name)) = pointer.rsplit_once('/') else { return };
    if let Some(Value::Object(fields)) = object.pointer_mut(above) {
        fields.remove(&name.replace("~1", "/").replace("~0", "~"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(pointers: &[&str], managers: &[&str]) -> Rules {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rules { pointers: owned(pointers), managers: owned(managers) }
    }

    #[test]
    fn a_field_of_another_manager_is_left_out_and_one_of_ours_keeps_its_value() {
        let wanted = json!({"spec": {"replicas": 3, "paused": false}});
        let live = json!({"metadata": {"managedFields": [
            {"manager": "holdfast", "fieldsV1": {"f:spec": {"f:paused": {}}}},
            {"manager": "hpa", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
            "spec": {"replicas": 7, "paused": true}});
        let masked = mask(&wanted, &live, &rules(&["/spec/replicas", "/spec/paused"], &[]));
        assert_eq!(masked, json!({"spec": {"paused": true}}));
        assert_eq!(mask(&wanted, &live, &rules(&[], &["hpa"])), json!({"spec": {"paused": false}}));
        assert_eq!(mask(&wanted, &live, &rules(&["/data/x"], &[])), wanted);
    }

    #[test]
    fn a_field_in_an_entry_of_a_list_is_found_by_its_key() {
        let wanted =
            json!({"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}});
        let live = json!({"metadata": {"managedFields": [
            {"manager": "pinner", "fieldsV1": {"f:spec": {"f:containers": {"k:{\"name\":\"b\"}": {".": {}, "f:image": {}}}}}}]},
            "spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b@sha256:1"}]}});
        let left = json!({"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b"}]}});
        assert_eq!(mask(&wanted, &live, &rules(&[], &["pinner"])), left);
        assert_eq!(mask(&wanted, &live, &rules(&["/spec/containers/1/image"], &[])), left);
    }
}
