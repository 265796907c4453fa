//! Field specs: where in which kinds something is to be set, and the walk that gets there.
//!
//! Invariant: a path that is not there is made only where its spec says `create`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::resource::Gvk;

/// One place in one kind (or in all).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FieldSpec {
    #[serde(default)]
    pub(super) group: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) path: String,
    #[serde(default)]
    pub(super) create: bool,
}

impl FieldSpec {
    pub(super) fn gvk(&self) -> Gvk {
        Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    pub(super) fn everywhere(path: &str, create: bool) -> FieldSpec {
        FieldSpec { path: path.to_owned(), create, ..FieldSpec::default() }
    }
}

/// What is made where the last part of a path is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Create {
    Nothing,
    Scalar,
    Map,
}

impl Create {
    fn value(self) -> Value {
        match self {
            Create::Nothing | Create::Scalar => Value::Null,
            Create::Map => Value::Object(Map::new()),
        }
    }
}

/// What is done at the place.
pub(super) type Set<'a> = &'a mut dyn FnMut(&mut Value) -> Result<(), String>;

/// Visits every place of a spec in an object.
pub(super) fn visit(
    spec: &FieldSpec,
    object: &mut Value,
    create: Create,
    set: Set<'_>,
) -> Result<(), String> {
    if !Gvk::of(object).is_selected(&spec.gvk()) {
        return Ok(());
    }
    let path = split_path(&spec.path, '/');
    let create = if spec.create { create } else { Create::Nothing };
    walk(object, &path, create, set).map_err(|why| format!("{}: {why}", spec.path))
}

fn walk(value: &mut Value, path: &[String], create: Create, set: Set<'_>) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else { return set(value) };
    match value {
        Value::Null => Ok(()),
        Value::Array(items) => items.iter_mut().try_for_each(|item| walk(item, path, create, set)),
        Value::Object(map) => {
            let (name, is_list) = match first.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (first.as_str(), false),
            };
            let made = match create {
                Create::Nothing => None,
                _ if is_list => None,
                create if rest.is_empty() => Some(create.value()),
                _ => Some(Value::Object(Map::new())),
            };
            match (map.get_mut(name), made) {
                (Some(field), Some(made)) if field.is_null() && !made.is_null() => *field = made,
                (Some(_), _) => {}
                (None, Some(made)) => {
                    map.insert(name.to_owned(), made);
                }
                (None, None) => return Ok(()),
            }
            match map.get_mut(name) {
                Some(field) => walk(field, rest, create, set),
                None => Ok(()),
            }
        }
        _ => Err("a map or a list is expected on the way there".to_owned()),
    }
}

/// Splits a path; a backslash before the separator keeps it.
pub(super) fn split_path(path: &str, separator: char) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut joined = false;
    for part in path.split(separator) {
        match parts.last_mut() {
            Some(last) if joined => {
                last.push(separator);
                last.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
        let last = parts.last_mut().expect("a part was just put there");
        joined = last.ends_with('\\');
        if joined {
            last.pop();
        }
    }
    parts
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_backslash_keeps_the_separator() {
        assert_eq!(split_path("a/b\\/c/d", '/'), ["a", "b/c", "d"]);
        assert_eq!(split_path("a", '/'), ["a"]);
    }

    #[test]
    fn only_a_spec_that_creates_makes_what_is_missing() {
        let spec = FieldSpec::everywhere("spec/list/name", true);
        let mut object = json!({"kind": "X", "spec": {"list": [{"name": "a"}, {}]}});
        visit(&spec, &mut object, Create::Scalar, &mut |value| {
            *value = json!("b");
            Ok(())
        })
        .unwrap();
        assert_eq!(object["spec"]["list"], json!([{"name": "b"}, {"name": "b"}]));
        let spec = FieldSpec::everywhere("spec/other", false);
        let mut calls = 0;
        visit(&spec, &mut object, Create::Map, &mut |_| {
            calls += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(calls, 0);
    }
}
