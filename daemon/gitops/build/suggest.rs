//! The way out of a defect: the nearest name that exists, the version that is served, the quotes that are missing.
//!
//! Invariant: only names that exist are suggested.

use api::kinds::{self, Kind};
use api::schema::{self, Defect, DefectReason, Shape};
use serde_json::Value;

/// What to say about a kind that is not served: the message and the way out.
pub(super) fn kind(api_version: &str, name: &str) -> (String, String) {
    if kinds::known_elsewhere(api_version, name) {
        let message = format!("{name} {api_version} is not served by this node yet");
        return (message, "remove the object, or keep it in a directory of its own until it is".to_owned());
    }
    let message = format!("there is no kind {name} in {api_version}");
    let same_name = kinds::kinds().iter().find(|kind| kind.kind == name);
    if let Some(kind) = same_name {
        return (message, format!("{name} is served as apiVersion: {}", kind.api_version()));
    }
    if name == "Kustomization" {
        let help = "a kustomization is rendered when its file is called kustomization.yaml; Flux' own kind of this name is not served";
        return (message, help.to_owned());
    }
    let names = kinds::kinds().iter().map(|kind| kind.kind.as_str());
    let help = match nearest(name, names) {
        Some(kind) => format!("did you mean kind: {kind}?"),
        None => "served kinds: `kubectl api-resources` lists them".to_owned(),
    };
    (message, help)
}

/// A defect's message with the field in front.
pub(super) fn message(defect: &Defect) -> String {
    match defect.reason {
        DefectReason::Unknown => format!("unknown field {}", defect.path),
        DefectReason::WrongType => wrong_type(defect),
        _ if defect.message.contains(&defect.path) => defect.message.clone(),
        _ => format!("{}: {}", defect.path, defect.message),
    }
}

/// Kubernetes' own sentence names Go's types; here is what it means.
fn wrong_type(defect: &Defect) -> String {
    let between = |from: &str, to: &str| {
        let rest = defect.message.split_once(from)?.1;
        Some(rest.split_once(to).map_or(rest, |(word, _)| word))
    };
    let (Some(is), Some(wanted)) = (between("cannot unmarshal ", " into "), between(" of type ", " ("))
    else {
        return format!("{}: {}", defect.path, defect.message);
    };
    let wanted = match wanted.trim_start_matches('*') {
        "int" | "int32" | "int64" => "an integer",
        "bool" => "true or false",
        "string" => "a string",
        map if map.starts_with("map") => "a map",
        list if list.starts_with("[]") => "a list",
        other => other,
    };
    format!("{}: {wanted} is wanted here, not a value of type {is}", defect.path)
}

/// The way out of a field's defect.
pub(super) fn help(kind: &Kind, defect: &Defect, object: &Value) -> String {
    let steps = steps(&defect.path);
    match defect.reason {
        DefectReason::Unknown => {
            let Some((Step::Key(last), parents)) = steps.split_last() else { return String::new() };
            let fields = siblings(kind, parents);
            match nearest(last, fields.iter().copied()) {
                Some(field) => format!("did you mean {field}?"),
                None => {
                    format!("remove it; `kubectl explain {}` lists the fields", explain_path(kind, parents))
                }
            }
        }
        _ => match steps.iter().try_fold(object, |value, step| step.of(value)) {
            Some(Value::Bool(_)) if defect.message.contains("string") => {
                "quote it: plain yes, no, on, off, true and false are not strings".to_owned()
            }
            Some(value @ Value::Number(_)) if defect.message.contains("string") => {
                format!("quote it: \"{value}\"")
            }
            _ => format!("`kubectl explain {}` tells what it wants", explain_path(kind, &steps)),
        },
    }
}

fn explain_path(kind: &Kind, steps: &[Step<'_>]) -> String {
    let keys = steps.iter().filter_map(|step| match step {
        Step::Key(name) => Some(*name),
        Step::Item(_) => None,
    });
    std::iter::once(kind.singular.as_str()).chain(keys).collect::<Vec<_>>().join(".")
}

enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

impl Step<'_> {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match self {
            Step::Key(name) => value.get(name),
            Step::Item(index) => value.get(index),
        }
    }
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    let step = |part| match str::strip_suffix(part, ']') {
        Some(inner) => inner.parse().map_or(Step::Key(inner), Step::Item),
        None => Step::Key(part),
    };
    parts.map(step).collect()
}

/// The fields that exist where these steps lead.
fn siblings(kind: &Kind, steps: &[Step<'_>]) -> Vec<&'static str> {
    if let Some(custom) = kind.custom() {
        return defined_siblings(&custom.schema, steps);
    }
    let mut shape = Shape::Object(schema::root(kind));
    for step in steps {
        shape = match (shape, step) {
            (Shape::Object(object), Step::Key(name)) => match object.field(name) {
                Some(field) => field.of.shape(),
                None => return Vec::new(),
            },
            (Shape::Array(of), Step::Item(_)) | (Shape::Map(of), _) => of.shape(),
            _ => return Vec::new(),
        };
    }
    match shape {
        Shape::Object(object) => object.fields.iter().map(|field| field.name).collect(),
        _ => Vec::new(),
    }
}

/// The same in the schema of a definition.
fn defined_siblings(schema: &'static Value, steps: &[Step<'_>]) -> Vec<&'static str> {
    let below = |schema: &'static Value, step: &Step<'_>| match step {
        Step::Key(name) => schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]),
        Step::Item(_) => &schema["items"],
    };
    let schema = steps.iter().fold(schema, below);
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// The nearest of some names, if it is near enough to be meant.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |name: &'a str| {
        let distance = distance(&wanted.to_lowercase(), &name.to_lowercase());
        (distance <= 1 + wanted.len() / 4).then_some((distance, name))
    };
    names.filter_map(near).min().map(|(_, name)| name)
}

/// How many letters have to be added, removed, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
