//! One file → its objects and its defects.
//!
//! Invariant: every part of a file ends as an object, as a defect, or as both; nothing is passed over in silence.

use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use api::kinds::{self, Kind};
use api::{legacy, schema};
use serde_json::{Map, Value};

use super::kustomize::Made;
use super::yaml::{self, Document, Flaw, Node, Shape};
use super::{Defaults, Defect, FileBuilt, Id, Object, suggest};
use crate::APPLICATION_LABEL;

/// Annotations that put an object into a wave, the first that is there counts.
const WAVES: [&str; 2] = ["holdfast.dev/wave", "argocd.argoproj.io/sync-wave"];

/// Reads one file.
pub(super) fn build_file(file: &Arc<str>, bytes: &[u8], defaults: &Defaults) -> FileBuilt {
    let mut reader = FileReader { file, defaults, built: FileBuilt::default() };
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            for document in yaml::documents(text) {
                match document {
                    Ok(document) => reader.document(&document),
                    Err(flaw) => reader.unread(flaw),
                }
            }
        }
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            reader.unread(Flaw {
                line: u32::try_from(line).unwrap_or(u32::MAX),
                column: 0,
                message: "not UTF-8 text".to_owned(),
                help: "save the file as UTF-8".to_owned(),
            });
        }
    }
    reader.built
}

/// Makes an object of what a kustomization gave; `text` is the file that it began in.
pub(super) fn build_made(made: &Made, text: Option<&[u8]>, defaults: &Defaults) -> FileBuilt {
    let mut reader = FileReader { file: &made.file, defaults, built: FileBuilt::default() };
    let text = text.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let find = |path: &str| place(text, made.line, path);
    reader.value(made.value.clone(), &Place { line: made.line, column: 0, find: &find });
    reader.built
}

/// Where a field path of the object that begins at a line is written.
pub(super) fn place(text: &str, line: u32, path: &str) -> (u32, u32) {
    let roots: Vec<Rc<Node>> =
        yaml::documents(text).into_iter().flatten().map(|document| document.root).collect();
    let object = roots.iter().find_map(|root| find(root, line));
    object.map_or((line, 0), |node| node.place(path))
}

fn find(node: &Rc<Node>, line: u32) -> Option<Rc<Node>> {
    if let Some(items) = node.get("items")
        && let Shape::List(items) = &items.value.shape
        && let Some(found) = items.iter().find_map(|item| find(item, line))
    {
        return Some(found);
    }
    (node.line == line).then(|| Rc::clone(node))
}

/// Where an object begins, and where its fields are.
struct Place<'p> {
    line: u32,
    column: u32,
    find: &'p dyn Fn(&str) -> (u32, u32),
}

struct FileReader<'a> {
    file: &'a Arc<str>,
    defaults: &'a Defaults,
    built: FileBuilt,
}

impl FileReader<'_> {
    fn document(&mut self, document: &Document) {
        let first = self.built.objects.len();
        self.node(&document.root);
        if document.flaws.is_empty() {
            return;
        }
        // The text says something twice: which of the two is meant cannot be known, so its objects are kept back.
        let objects = self.built.objects.split_off(first);
        let named = objects.first().map(|object| object.id.to_string());
        self.built.kept_back.extend(objects.into_iter().map(|object| (object.id, object.file, object.line)));
        for flaw in &document.flaws {
            self.defect(flaw.clone(), named.clone());
        }
    }

    fn unread(&mut self, flaw: Flaw) {
        self.built.unread = true;
        self.defect(flaw, None);
    }

    fn defect(&mut self, flaw: Flaw, object: Option<String>) {
        self.built.defects.push(Defect {
            file: self.file.to_string(),
            line: flaw.line,
            column: flaw.column,
            message: flaw.message,
            help: flaw.help,
            object,
        });
    }

    /// A document, or an item of a list.
    fn node(&mut self, node: &Node) {
        let flaw = |message: &str, help: &str| Flaw {
            line: node.line,
            column: node.column,
            message: message.to_owned(),
            help: help.to_owned(),
        };
        match &node.shape {
            Shape::Scalar(Value::Null) => return,
            Shape::Map(_) => {}
            _ => {
                return self.unread(flaw(
                    "a Kubernetes object is expected here, this is a list or a plain value",
                    "write apiVersion, kind and metadata, or move the file out of the application's directory",
                ));
            }
        }
        let text = |name: &str| node.get(name).and_then(|entry| as_text(&entry.value));
        if text("apiVersion").is_some()
            && text("kind").is_some_and(|kind| kind.ends_with("List"))
            && let Some(items) = node.get("items")
            && let Shape::List(items) = &items.value.shape
        {
            return items.iter().for_each(|item| self.node(item));
        }
        let find = |path: &str| node.place(path);
        self.value(node.value(), &Place { line: node.line, column: node.column, find: &find });
    }

    /// An object, whatever it was written in.
    fn value(&mut self, value: Value, place: &Place<'_>) {
        let text = |name: &str| value[name].as_str().filter(|text| !text.is_empty());
        let (Some(api_version), Some(kind_name)) = (text("apiVersion"), text("kind")) else {
            let missing = ["apiVersion", "kind"].into_iter().filter(|name| text(name).is_none());
            let missing = missing.collect::<Vec<_>>().join(" and ");
            return self.unread(Flaw {
                line: place.line,
                column: place.column,
                message: format!("no {missing}, so this is not a Kubernetes object"),
                help: "add what is missing, or move the file out of the application's directory".to_owned(),
            });
        };
        if value["sops"]["mac"].is_string() {
            self.keep_back(&value, place);
            let (line, column) = (place.find)("sops");
            let message = "encrypted with SOPS, which is not decrypted here yet".to_owned();
            let help = "keep it out of the directory, and make the Secret on the node".to_owned();
            return self.defect(Flaw { line, column, message, help }, None);
        }
        match self.defaults.kinds.find(api_version, kind_name) {
            Some(kind) if kind.group == "holdfast.dev" => {
                let flaw = Flaw {
                    line: place.line,
                    column: place.column,
                    message: "an Application cannot be made by a manifest yet".to_owned(),
                    help: "declare it in config.toml as [[application]]".to_owned(),
                };
                self.defect(flaw, None);
            }
            Some(kind) => self.object(value, place, kind),
            None => self.of_yesterday(&value, place),
        }
    }

    /// A version that Kubernetes no longer serves is read in today's form, and told.
    fn of_yesterday(&mut self, value: &Value, place: &Place<'_>) {
        let served = |today: &legacy::Today| {
            let text = |name: &str| today.object[name].as_str().unwrap_or_default();
            kinds::by_kind(text("apiVersion"), text("kind"))
        };
        match legacy::today(value) {
            Some(Ok(today)) if let Some(kind) = served(&today) => {
                for change in &today.changes {
                    let (line, column) = (place.find)(&change.path);
                    self.built.notices.push(Defect {
                        file: self.file.to_string(),
                        line,
                        column,
                        message: format!("yesterday's manifest: {}", change.message),
                        help: "write it so in the file; older Kubernetes versions of it are gone".to_owned(),
                        object: None,
                    });
                }
                self.object(today.object, place, kind);
            }
            Some(Err(gone)) => {
                let (line, column) = (place.find)(&gone.path);
                self.keep_back(value, place);
                let message = format!("{} is gone from Kubernetes", gone.what);
                let flaw = Flaw { line, column, message, help: format!("use instead: {}", gone.instead) };
                self.defect(flaw, None);
            }
            _ => self.unknown_kind(value, place),
        }
    }

    /// The object keeps its name, so that one which is live under another version is not pruned.
    fn unknown_kind(&mut self, value: &Value, place: &Place<'_>) {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let api_version = text(&value["apiVersion"]).unwrap_or_default();
        let kind_name = text(&value["kind"]).unwrap_or_default();
        let (message, help) = suggest::kind(&api_version, &kind_name);
        let (line, column) = (place.find)("kind");
        let named = self.keep_back(value, place);
        self.defect(Flaw { line, column, message, help }, named);
    }

    /// Remembers the name of an object that is not understood.
    fn keep_back(&mut self, value: &Value, place: &Place<'_>) -> Option<String> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let (group, _) = kinds::split_api_version(value["apiVersion"].as_str().unwrap_or_default());
        let object = Id {
            group: group.to_owned(),
            kind: text(&value["kind"])?,
            namespace: text(&value["metadata"]["namespace"])
                .unwrap_or_else(|| self.defaults.namespace.clone()),
            name: text(&value["metadata"]["name"])?,
        };
        let named = object.to_string();
        self.built.kept_back.push((object, Arc::clone(self.file), place.line));
        Some(named)
    }

    fn object(&mut self, mut value: Value, place: &Place<'_>, kind: &'static Kind) {
        name_hook(&mut value);
        let id = match self.identify(&value, kind) {
            Ok(id) => id,
            Err((path, message, help)) => {
                let (line, column) = (place.find)(path);
                return self.unread(Flaw { line, column, message, help: help.to_owned() });
            }
        };
        let mut defects = flaws_of_fields(place, kind, &mut value);
        defects.extend(legacy::gone(&value).into_iter().map(|gone| {
            let (line, column) = (place.find)(&gone.path);
            let message = format!("{} are gone from Kubernetes", gone.what);
            Flaw { line, column, message, help: format!("use instead: {}", gone.instead) }
        }));
        if !defects.is_empty() {
            self.built.kept_back.push((id.clone(), Arc::clone(self.file), place.line));
            for flaw in defects {
                self.defect(flaw, Some(id.to_string()));
            }
            return;
        }
        match wave(&value) {
            Ok(wave) => {
                self.fill_in(&mut value, &id);
                let hash = hash(&value);
                let (file, line) = (Arc::clone(self.file), place.line);
                self.built.objects.push(Object { id, kind, value: Arc::new(value), file, line, wave, hash });
            }
            Err(annotation) => {
                let (line, column) = (place.find)(&format!("metadata.annotations.{annotation}"));
                let message = format!("annotation {annotation} of {id} is not a whole number");
                self.built.kept_back.push((id.clone(), Arc::clone(self.file), place.line));
                self.defect(
                    Flaw { line, column, message, help: "write it like \"1\"".to_owned() },
                    Some(id.to_string()),
                );
            }
        }
    }

    /// The object's name and namespace, or the field, what is wrong with it and the way out.
    fn identify(&self, value: &Value, kind: &Kind) -> Result<Id, (&'static str, String, &'static str)> {
        let meta = &value["metadata"];
        let what = &kind.kind;
        if meta.get("name").is_none() && meta.get("generateName").is_some() {
            return Err((
                "metadata.generateName",
                format!("{what} with generateName: each sync would make another one"),
                "write metadata.name instead",
            ));
        }
        let name = match meta.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            None | Some(Value::Null | Value::String(_)) => {
                return Err(("metadata", format!("{what} without a name"), "add metadata.name"));
            }
            Some(_) => {
                return Err((
                    "metadata.name",
                    format!("the name of this {what} is not a string"),
                    "quote it",
                ));
            }
        };
        let namespace = match meta.get("namespace") {
            _ if !kind.namespaced => String::new(),
            None | Some(Value::Null) => self.defaults.namespace.clone(),
            Some(Value::String(namespace)) if !namespace.is_empty() => namespace.clone(),
            Some(_) => {
                let message = format!("the namespace of {what} {name} is not a name");
                return Err(("metadata.namespace", message, "write it as a string"));
            }
        };
        Ok(Id { group: kind.group.clone(), kind: kind.kind.clone(), namespace, name })
    }

    /// Namespace and tracking label; what only the cluster may say is left out.
    fn fill_in(&self, value: &mut Value, id: &Id) {
        let Some(object) = value.as_object_mut() else { return };
        object.remove("status");
        let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        for field in
            ["managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"]
        {
            meta.remove(field);
        }
        meta.remove("namespace");
        if !id.namespace.is_empty() {
            meta.insert("namespace".to_owned(), Value::String(id.namespace.clone()));
        }
        let labels = meta.entry("labels").or_insert_with(|| Value::Object(Map::new()));
        if !labels.is_object() {
            *labels = Value::Object(Map::new());
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(APPLICATION_LABEL.to_owned(), Value::String(self.defaults.application.clone()));
        }
    }
}

/// Unknown fields and wrong types, each at its line.
fn flaws_of_fields(place: &Place<'_>, kind: &'static Kind, value: &mut Value) -> Vec<Flaw> {
    schema::coerce(kind, value);
    let defects = schema::check_fields(kind, value);
    let flaw = |defect: schema::Defect| {
        let (line, column) = (place.find)(&defect.path);
        let help = suggest::help(kind, &defect, value);
        Flaw { line, column, message: suggest::message(&defect), help }
    };
    defects.into_iter().map(flaw).collect()
}

fn as_text(node: &Node) -> Option<String> {
    match &node.shape {
        Shape::Scalar(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn wave(value: &Value) -> Result<i64, &'static str> {
    let annotations = &value["metadata"]["annotations"];
    for name in WAVES {
        if let Some(text) = annotations.get(name).and_then(Value::as_str) {
            return text.trim().parse().map_err(|_| name);
        }
    }
    Ok(0)
}

/// A hook with generateName gets a name of its content: each run replaces the one before, as its record says.
fn name_hook(value: &mut Value) {
    let prefix = value["metadata"]["generateName"].as_str().map(str::to_owned);
    let named = value["metadata"].get("name").is_some_and(|name| !name.is_null());
    if let (Some(prefix), false, true) = (prefix, named, crate::marks::hook(value).is_some()) {
        let name = format!("{prefix}{:08x}", hash(value) & 0xffff_ffff);
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("generateName");
            meta.insert("name".to_owned(), Value::String(name));
        }
    }
}

/// The same for equal values, also in the next daemon: the inventory remembers it.
pub(crate) fn hash(value: &Value) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    feed(value, &mut hasher);
    hasher.finish()
}

/// FNV-1a, since the standard library's hash may change with the compiler.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn feed(value: &Value, hasher: &mut Fnv) {
    match value {
        Value::Object(map) => {
            map.len().hash(hasher);
            for (key, value) in map {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
        Value::Array(items) => {
            items.len().hash(hasher);
            items.iter().for_each(|item| feed(item, hasher));
        }
        leaf => leaf.hash(hasher),
    }
}
