//! An object on its way through a kustomization: its value, what it was called before, and where it came from.
//!
//! Invariant: names that it had before are never forgotten: patches, references and replacements may use any of them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::scope;

/// Group, version and kind. Empty parts of a wish match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gvk {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

impl Gvk {
    pub(super) fn of(value: &Value) -> Gvk {
        let (group, version) = split(text(&value["apiVersion"]));
        Gvk { group: group.to_owned(), version: version.to_owned(), kind: text(&value["kind"]).to_owned() }
    }

    /// Whether a wish with open parts fits.
    pub(super) fn is_selected(&self, wish: &Gvk) -> bool {
        let fits = |wish: &str, is: &str| wish.is_empty() || wish == is;
        fits(&wish.group, &self.group) && fits(&wish.version, &self.version) && fits(&wish.kind, &self.kind)
    }
}

/// `("", "v1")` of `v1`; a lone word that is no version is a group.
pub(super) fn split(api_version: &str) -> (&str, &str) {
    match api_version.split_once('/') {
        Some(parts) => parts,
        None if api_version.starts_with('v') => ("", api_version),
        None => (api_version, ""),
    }
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A scalar as it would be written.
pub(super) fn spelled(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// Names one object at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) gvk: Gvk,
    /// As written; empty when nothing is written.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Name {
    pub(super) fn is_cluster_scoped(&self) -> bool {
        scope::is_cluster(&self.gvk.group, &self.gvk.kind)
    }

    /// The namespace that counts when two are compared.
    pub(super) fn effective(&self) -> &str {
        if self.is_cluster_scoped() {
            "_non_namespaceable_"
        } else if self.namespace.is_empty() {
            "default"
        } else {
            &self.namespace
        }
    }

    pub(super) fn same(&self, other: &Name) -> bool {
        self.name == other.name && self.gvk == other.gvk && self.effective() == other.effective()
    }

    /// Whether a wish with open parts fits.
    pub(super) fn is_selected_by(&self, wish: &Name) -> bool {
        (wish.namespace.is_empty() || self.effective() == wish.effective())
            && (wish.name.is_empty() || self.name == wish.name)
            && self.gvk.is_selected(&wish.gvk)
    }

    /// For messages: `Deployment web`, `Deployment shop/web`.
    pub(super) fn shown(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.gvk.kind, self.name)
        } else {
            format!("{} {}/{}", self.gvk.kind, self.namespace, self.name)
        }
    }
}

/// What a generator does when the object is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Behaviour {
    #[default]
    Create,
    Merge,
    Replace,
}

#[derive(Debug, Clone)]
struct Previous {
    namespace: String,
    name: String,
    kind: String,
}

#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) value: Value,
    /// The file that it is written in, and its line there.
    pub(super) file: Arc<str>,
    pub(super) line: u32,
    previous: Vec<Previous>,
    pub(super) prefixes: Vec<String>,
    pub(super) suffixes: Vec<String>,
    /// Its name gets a hash of its content at the end.
    pub(super) wants_hash: bool,
    pub(super) behaviour: Behaviour,
    /// Variables that take their value from it.
    pub(super) vars: Vec<String>,
    /// What `buildMetadata` tells of where it came from.
    pub(super) origin: Option<String>,
    /// What `buildMetadata` tells of what changed it.
    pub(super) transformations: String,
}

impl Resource {
    pub(super) fn new(value: Value, file: Arc<str>, line: u32) -> Resource {
        Resource {
            value,
            file,
            line,
            previous: Vec::new(),
            prefixes: Vec::new(),
            suffixes: Vec::new(),
            wants_hash: false,
            behaviour: Behaviour::Create,
            vars: Vec::new(),
            origin: None,
            transformations: String::new(),
        }
    }

    pub(super) fn gvk(&self) -> Gvk {
        Gvk::of(&self.value)
    }

    pub(super) fn name(&self) -> &str {
        text(&self.value["metadata"]["name"])
    }

    pub(super) fn namespace(&self) -> &str {
        text(&self.value["metadata"]["namespace"])
    }

    /// What it is called now.
    pub(super) fn current(&self) -> Name {
        Name { gvk: self.gvk(), namespace: self.namespace().to_owned(), name: self.name().to_owned() }
    }

    /// What it was called before, the oldest first.
    pub(super) fn before(&self) -> Vec<Name> {
        let gvk = self.gvk();
        let name = |previous: &Previous| Name {
            gvk: Gvk { kind: previous.kind.clone(), ..gvk.clone() },
            namespace: previous.namespace.clone(),
            name: previous.name.clone(),
        };
        self.previous.iter().map(name).collect()
    }

    /// What it was called in the file it came from.
    pub(super) fn original(&self) -> Name {
        self.before().into_iter().next().unwrap_or_else(|| self.current())
    }

    /// All its names, the present one last.
    pub(super) fn names(&self) -> Vec<Name> {
        let mut names = self.before();
        names.push(self.current());
        names
    }

    pub(super) fn is_called(&self, name: &Name) -> bool {
        self.names().iter().any(|known| known.same(name))
    }

    /// Keeps the present name among those before.
    pub(super) fn remember(&mut self) {
        let now = self.current();
        self.previous.push(Previous {
            namespace: now.effective().to_owned(),
            name: now.name.clone(),
            kind: now.gvk.kind,
        });
    }

    pub(super) fn meta(&mut self) -> &mut Map<String, Value> {
        object(entry(&mut self.value, "metadata"))
    }

    pub(super) fn set_name(&mut self, name: &str) {
        self.meta().insert("name".to_owned(), Value::String(name.to_owned()));
    }

    pub(super) fn set_namespace(&mut self, namespace: &str) {
        if namespace.is_empty() {
            self.meta().remove("namespace");
        } else {
            self.meta().insert("namespace".to_owned(), Value::String(namespace.to_owned()));
        }
    }

    /// Labels or annotations as text.
    pub(super) fn strings(&self, field: &str) -> Map<String, Value> {
        let entries = self.value["metadata"][field].as_object().into_iter().flatten();
        entries.map(|(key, value)| (key.clone(), Value::String(spelled(value)))).collect()
    }

    pub(super) fn set_strings(&mut self, field: &str, strings: Map<String, Value>) {
        if strings.is_empty() {
            self.meta().remove(field);
        } else {
            self.meta().insert(field.to_owned(), Value::Object(strings));
        }
    }

    /// Takes over what another one is called and carries; its own labels and annotations win.
    pub(super) fn take_metadata_of(&mut self, other: &Resource) {
        for field in ["labels", "annotations"] {
            let mut merged = other.strings(field);
            merged.extend(self.strings(field));
            self.set_strings(field, merged);
        }
        self.set_name(other.name());
        self.set_namespace(other.namespace());
        self.previous.clone_from(&other.previous);
        self.prefixes.clone_from(&other.prefixes);
        self.suffixes.clone_from(&other.suffixes);
        self.vars.clone_from(&other.vars);
    }

    /// Whether it was renamed or moved: then kustomize has touched its annotations.
    pub(super) fn was_changed(&self) -> bool {
        !self.previous.is_empty() || self.wants_hash || self.origin.is_some()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.value.as_object().is_none_or(Map::is_empty)
    }
}

/// A field of a map, made if it is not there.
pub(super) fn entry<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    object(value).entry(field.to_owned()).or_insert(Value::Null)
}

/// The map that a value is; anything else becomes an empty one.
pub(super) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made a map just now")
}
