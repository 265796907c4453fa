//! Variables (`$(NAME)`), which kustomize still reads: replacements are what it offers today.
//!
//! Invariant: what is no variable of the kustomization stays as it is written.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Create, FieldSpec, visit};
use super::file::Var;
use super::replace::{lookup, steps};
use super::resource::{Gvk, Name, Resource, spelled, split};

/// Notes which objects give variables their values.
pub(super) fn bind(vars: &[Var], resources: &mut [Resource]) -> Result<(), String> {
    for var in vars {
        let objref = &var.objref;
        let (group, version) = split(&objref.api_version);
        let or = |one: &str, other: &str| if one.is_empty() { other.to_owned() } else { one.to_owned() };
        let wish = Name {
            gvk: Gvk {
                group: or(group, &objref.group),
                version: or(version, &objref.version),
                kind: objref.kind.clone(),
            },
            namespace: objref.namespace.clone(),
            name: objref.name.clone(),
        };
        let exact = !wish.namespace.is_empty() || wish.is_cluster_scoped();
        let fits = |resource: &&mut Resource| {
            let name = resource.original();
            name.gvk == wish.gvk && name.name == wish.name && (!exact || name.effective() == wish.effective())
        };
        let mut found = resources.iter_mut().filter(fits);
        if let Some(resource) = found.next() {
            if found.next().is_some() {
                return Err(format!("variable {} may take its value from several objects", var.name));
            }
            resource.vars.push(var.name.clone());
        }
    }
    Ok(())
}

/// Writes the variables' values wherever the table says that they may stand.
pub(super) fn resolve(vars: &[Var], specs: &[FieldSpec], resources: &mut [Resource]) -> Result<(), String> {
    if vars.is_empty() {
        return Ok(());
    }
    let mut values = BTreeMap::new();
    for var in vars {
        let path = if var.fieldref.fieldpath.is_empty() { "metadata.name" } else { &var.fieldref.fieldpath };
        let source = resources.iter().find(|resource| resource.vars.contains(&var.name));
        let source =
            source.ok_or_else(|| format!("variable {} has no object to take its value from", var.name))?;
        let path_steps = steps(&path.replace('[', ".[").replace("..[", ".["));
        let plain: Vec<String> = path_steps
            .iter()
            .map(|step| match step.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
                Some(index) if index.parse::<usize>().is_ok() => index.to_owned(),
                _ => step.clone(),
            })
            .collect();
        let value = lookup(&source.value, &plain);
        let value = value.ok_or_else(|| format!("variable {}: {path} is not there", var.name))?;
        values.insert(var.name.as_str(), value.clone());
    }
    for resource in resources {
        for spec in specs {
            visit(spec, &mut resource.value, Create::Nothing, &mut |place| {
                expand_in(place, &values);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn expand_in(place: &mut Value, values: &BTreeMap<&str, Value>) {
    match place {
        Value::String(text) => *place = expand(text, values),
        Value::Array(items) => {
            items.iter_mut().filter(|item| item.is_string()).for_each(|item| expand_in(item, values))
        }
        Value::Object(map) => {
            map.values_mut().filter(|value| value.is_string()).for_each(|value| expand_in(value, values))
        }
        _ => {}
    }
}

/// `$(NAME)` becomes its value, `$$` one dollar. A text that is nothing but one variable takes on its type.
fn expand(text: &str, values: &BTreeMap<&str, Value>) -> Value {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            result.push('$');
            rest = escaped;
            continue;
        }
        match after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            Some((name, left)) => {
                match values.get(name) {
                    Some(value) if result.is_empty() && left.is_empty() => return value.clone(),
                    Some(value) => result.push_str(&spelled(value)),
                    None => {
                        result.push_str("$(");
                        result.push_str(name);
                        result.push(')');
                    }
                }
                rest = left;
            }
            None => {
                result.push('$');
                rest = after;
            }
        }
    }
    result.push_str(rest);
    Value::String(result)
}
