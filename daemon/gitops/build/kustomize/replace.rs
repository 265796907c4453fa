//! Replacements: a field of one object copied into fields of others.
//!
//! Invariant: a target that is not there is an error unless it is to be created.

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::split_path;
use super::patch::Selector;
use super::resource::{Gvk, Name, Resource, spelled};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Replacement {
    /// A file with more of these, instead of the rest.
    pub(super) path: String,
    pub(super) source: Option<Source>,
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Source {
    group: String,
    version: String,
    kind: String,
    name: String,
    namespace: String,
    field_path: String,
    options: Option<Options>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Target {
    select: Option<Selector>,
    reject: Vec<Selector>,
    field_paths: Vec<String>,
    options: Option<Options>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Options {
    delimiter: String,
    index: i64,
    encoding: String,
    create: bool,
}

/// Does one replacement.
pub(super) fn replace(replacement: &Replacement, resources: &mut [Resource]) -> Result<(), String> {
    let Some(source) = replacement.source.as_ref().filter(|_| !replacement.targets.is_empty()) else {
        return Err("a replacement needs a source and at least one target".to_owned());
    };
    let value = source.value(resources)?;
    for target in &replacement.targets {
        target.fill(&value, resources)?;
    }
    Ok(())
}

impl Source {
    fn value(&self, resources: &[Resource]) -> Result<Value, String> {
        let wish = Name {
            gvk: Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() },
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        };
        let fits = |resource: &&Resource| resource.names().iter().any(|name| name.is_selected_by(&wish));
        let mut found = resources.iter().filter(fits);
        let source = match (found.next(), found.next()) {
            (Some(source), None) => source,
            (None, _) => return Err(format!("nothing is selected by source {}", wish.shown())),
            (Some(_), Some(_)) => return Err(format!("more than one object is source {}", wish.shown())),
        };
        let path = if self.field_path.is_empty() { "metadata.name" } else { &self.field_path };
        let value = lookup(&source.value, &steps(path))
            .filter(|value| !is_empty(value))
            .ok_or_else(|| format!("field {path} is missing in source {}", wish.shown()))?;
        match self.options.as_ref().filter(|options| !options.delimiter.is_empty()) {
            None => Ok(value.clone()),
            Some(options) => {
                let text = scalar(value)?;
                let part = usize::try_from(options.index).ok();
                let part = part.and_then(|at| text.split(&options.delimiter).nth(at));
                let part =
                    part.ok_or_else(|| format!("index {} is out of bounds in {text}", options.index))?;
                Ok(Value::String(part.to_owned()))
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::Object(_) | Value::Array(_) => {
            Err("option delimiter can only be used with scalar values".to_owned())
        }
        other => Ok(spelled(other)),
    }
}

impl Target {
    fn fill(&self, value: &Value, resources: &mut [Resource]) -> Result<(), String> {
        let Some(select) = &self.select else {
            return Err("a target needs to select objects".to_owned());
        };
        let texts = select.compile()?;
        let wish = select.name();
        let rejected: Vec<(Name, &Selector)> =
            self.reject.iter().map(|selector| (selector.name(), selector)).collect();
        let own = ["metadata.name".to_owned()];
        let paths = if self.field_paths.is_empty() { &own[..] } else { &self.field_paths[..] };
        for resource in resources {
            if !texts.fits_texts(resource) {
                continue;
            }
            let mut rejected_by_text = false;
            for (_, selector) in rejected.iter().filter(|(_, selector)| selector.selects_by_text()) {
                rejected_by_text |= selector.compile()?.fits_texts(resource);
            }
            let is_rejected = |name: &Name| {
                let named = |wish: &Name| *wish != Name::default() && name.is_selected_by(wish);
                rejected.iter().any(|(wish, _)| named(wish))
            };
            let chosen = resource.names().iter().any(|name| name.is_selected_by(&wish) && !is_rejected(name));
            if rejected_by_text || !chosen {
                continue;
            }
            for path in paths {
                self.fill_path(value, &mut resource.value, path)?;
            }
        }
        Ok(())
    }

    fn fill_path(&self, value: &Value, object: &mut Value, path: &str) -> Result<(), String> {
        let create = self.options.as_ref().is_some_and(|options| options.create);
        let empty = match value {
            Value::Object(_) => Value::Object(Map::new()),
            Value::Array(_) => Value::Array(Vec::new()),
            _ => Value::Null,
        };
        let mut count = 0;
        let mut set = |field: &mut Value| {
            count += 1;
            self.set(field, value)
        };
        every(object, &steps(path), create.then_some(&empty), &mut set)?;
        if count == 0 {
            let or_create = if create { " or create" } else { "" };
            return Err(format!("unable to find{or_create} field \"{path}\" in replacement target"));
        }
        Ok(())
    }

    fn set(&self, field: &mut Value, value: &Value) -> Result<(), String> {
        let value = match self.options.as_ref().filter(|options| !options.delimiter.is_empty()) {
            None => value.clone(),
            Some(options) => {
                let (is, new) = (scalar(field)?, scalar(value)?);
                let mut parts: Vec<&str> = is.split(&options.delimiter).collect();
                match usize::try_from(options.index) {
                    Err(_) => parts.insert(0, &new),
                    Ok(at) if at >= parts.len() => parts.push(&new),
                    Ok(at) => parts[at] = &new,
                }
                Value::String(parts.join(&options.delimiter))
            }
        };
        *field = match field {
            // A scalar keeps its type: a number stays one when text is copied into it, and the other way round.
            Value::String(_) if !value.is_object() && !value.is_array() => Value::String(spelled(&value)),
            Value::Number(_) | Value::Bool(_) if !value.is_object() && !value.is_array() => {
                let text = spelled(&value);
                match super::super::scalar::resolve(&text) {
                    Ok(typed) if std::mem::discriminant(&typed) == std::mem::discriminant(field) => typed,
                    _ => return Err(format!("{text:?} cannot stand where {field} stood")),
                }
            }
            _ => value,
        };
        Ok(())
    }
}

/// Splits a path at dots; those inside brackets belong to their part.
pub(super) fn steps(path: &str) -> Vec<String> {
    let mut result = Vec::new();
    let mut open: Option<String> = None;
    for part in split_path(path, '.') {
        match open.take() {
            Some(text) => {
                let text = format!("{text}.{part}");
                if part.ends_with(']') { result.push(text) } else { open = Some(text) }
            }
            None if part.starts_with('[') && !part.ends_with(']') => open = Some(part),
            None => result.push(part),
        }
    }
    result.extend(open);
    result
}

/// `[name=x]` as its field and value.
fn bracketed(step: &str) -> Option<(&str, &str)> {
    step.strip_prefix('[')?.strip_suffix(']')?.split_once('=')
}

/// The value at a path; the first that fits where several could.
pub(super) fn lookup<'a>(value: &'a Value, steps: &[String]) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    let next = match (value, bracketed(step)) {
        (Value::Array(items), Some((field, wanted))) => items.iter().find(|item| {
            let is = if field.is_empty() { Some(*item) } else { item.get(field) };
            is.is_some_and(|is| spelled(is) == wanted)
        })?,
        (Value::Array(items), None) if step == "-" => items.last()?,
        (Value::Array(items), None) => items.get(step.parse::<usize>().ok()?)?,
        (Value::Object(map), _) => map.get(step)?,
        _ => return None,
    };
    lookup(next, rest)
}

type Set<'a> = &'a mut dyn FnMut(&mut Value) -> Result<(), String>;

/// Visits every place that a path leads to; `create` is what is made at its end where nothing is.
fn every(value: &mut Value, steps: &[String], create: Option<&Value>, set: Set<'_>) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else { return set(value) };
    if let Ok(at) = step.parse::<usize>() {
        let Value::Array(items) = value else { return Err(format!("{step} needs a list")) };
        if let Some(end) = create
            && items.len() == at
        {
            items.push(made(rest, end));
        }
        let count = items.len();
        let item = items
            .get_mut(at)
            .ok_or_else(|| format!("index {at} specified but only {count} elements found"))?;
        return every(item, rest, create, set);
    }
    if let Some((field, wanted)) = bracketed(step) {
        return every_item(value, (field, wanted), rest, create, set);
    }
    if step == "*" {
        return match value {
            Value::Array(items) => items.iter_mut().try_for_each(|item| every(item, rest, create, set)),
            _ => Err("* needs a list".to_owned()),
        };
    }
    let map = match value {
        Value::Object(map) => map,
        Value::Null if create.is_some() => super::resource::object(value),
        Value::Null => return Ok(()),
        _ => return Err(format!("{step} needs a map")),
    };
    match (map.get_mut(step), create) {
        (Some(field), _) => every(field, rest, create, set),
        (None, None) => Ok(()),
        (None, Some(end)) => {
            let field = map.entry(step.clone()).or_insert_with(|| made(rest, end));
            every(field, rest, create, set)
        }
    }
}

/// What stands where nothing was, so that the rest of the path fits.
fn made(rest: &[String], end: &Value) -> Value {
    match rest.first() {
        None => end.clone(),
        Some(next) if next.parse::<usize>().is_ok() || bracketed(next).is_some() => Value::Array(Vec::new()),
        Some(_) => Value::Object(Map::new()),
    }
}

fn every_item(
    value: &mut Value,
    (field, wanted): (&str, &str),
    rest: &[String],
    create: Option<&Value>,
    set: Set<'_>,
) -> Result<(), String> {
    if value.is_null() && create.is_some() {
        *value = Value::Array(Vec::new());
    }
    let Value::Array(items) = value else { return Err(format!("[{field}={wanted}] needs a list")) };
    let pattern = Regex::new(wanted).map_err(|error| error.to_string())?;
    let fits = |item: &Value| {
        let is = if field.is_empty() { Some(item) } else { item.get(field) };
        is.is_some_and(|is| pattern.is_match(&spelled(is)))
    };
    if create.is_some() && !items.iter().any(fits) {
        items.push(match field {
            "" => Value::String(wanted.to_owned()),
            field => serde_json::json!({field: wanted}),
        });
    }
    for item in items.iter_mut().filter(|item| fits(item)) {
        if field.is_empty() {
            set(item)?;
        } else {
            every(item, rest, create, set)?;
        }
    }
    Ok(())
}
