//! One kustomization after the other: resources, generators, components, transformers, in kustomize's order.
//!
//! Invariant: a directory that is already being read is never entered again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::super::Defect;
use super::super::yaml::{self, Dialect, Node, Shape};
use super::config::Config;
use super::file::{Kustomization, Trouble, Var};
use super::generate::{Generator, Kind, Options};
use super::resource::{Behaviour, Gvk, Name, Resource, text};
use super::tree::{Files, is_below, is_remote, join, kustomizations};
use super::{crds, vars};

/// Kustomizations inside each other.
const MOST_DEPTH: usize = 64;
/// Objects that one kustomization may come to.
const MOST_OBJECTS: usize = 100_000;

/// What has been gathered so far.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) resources: Vec<Resource>,
    pub(super) config: Config,
    pub(super) vars: Vec<Var>,
    /// The names that are taken and by whom, while nothing renames.
    taken: Option<BTreeMap<Key, (Arc<str>, u32)>>,
}

/// What no two objects may have in common: kind, namespace and name.
type Key = (Gvk, String, String);

/// A file's name and its bytes.
type Named = (Arc<str>, Arc<[u8]>);

/// A step that failed: its complaint, or nothing when it has complained already.
pub(super) type Failed = Option<Trouble>;

pub(super) struct Renderer<'f> {
    pub(super) files: &'f Files,
    pub(super) used: BTreeSet<Arc<str>>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) notices: Vec<Defect>,
    open: Vec<String>,
    documents: BTreeMap<Arc<str>, Arc<Vec<(Value, u32)>>>,
    /// What `buildMetadata` of the top asks for.
    pub(super) metadata: Vec<String>,
}

/// A complaint about an object, at the place where it begins.
pub(super) fn at_resource(resource: &Resource, why: &str) -> Trouble {
    Box::new(Defect {
        file: resource.file.to_string(),
        line: resource.line,
        column: 0,
        message: format!("{}: {why}", resource.current().shown()),
        help: "correct the object or the kustomization that changes it".to_owned(),
        object: None,
    })
}

impl<'f> Renderer<'f> {
    pub(super) fn new(files: &'f Files) -> Renderer<'f> {
        Renderer {
            files,
            used: BTreeSet::new(),
            troubles: Vec::new(),
            notices: Vec::new(),
            open: Vec::new(),
            documents: BTreeMap::new(),
            metadata: Vec::new(),
        }
    }

    /// Reads the kustomization of a directory and all below it.
    pub(super) fn directory(&mut self, dir: &str) -> Result<(Layer, Kustomization), Failed> {
        let top = self.kustomization(dir)?;
        if self.open.is_empty() {
            self.metadata.clone_from(&top.fields.build_metadata);
        }
        self.open.push(dir.to_owned());
        let layer = self.gather(&top, dir, Layer::default());
        self.open.pop();
        Ok((layer?, top))
    }

    fn kustomization(&mut self, dir: &str) -> Result<Kustomization, Failed> {
        let found = kustomizations(self.files, dir);
        let nowhere = |message: String, help: &str| {
            let file = if dir.is_empty() { "." } else { dir };
            let (message, help) = (message, help.to_owned());
            Box::new(Defect { file: file.to_owned(), line: 0, column: 0, message, help, object: None })
        };
        let file = match &found[..] {
            [file] => Arc::clone(file),
            [] => return Err(Some(nowhere("no kustomization.yaml in it".to_owned(), "add one"))),
            several => {
                let message = format!("several kustomization files: {}", several.join(", "));
                return Err(Some(nowhere(message, "keep one of them")));
            }
        };
        self.used.insert(Arc::clone(&file));
        match Kustomization::read(&file, &self.files[&file]) {
            Ok(read) => {
                for (line, column, field, today) in read.outdated() {
                    self.notices.push(Defect {
                        file: file.to_string(),
                        line,
                        column,
                        message: format!("{field} is an old spelling"),
                        help: format!("write {today} instead"),
                        object: None,
                    });
                }
                Ok(read)
            }
            Err(troubles) => {
                self.troubles.extend(troubles);
                Err(None)
            }
        }
    }

    /// The steps of one kustomization, in kustomize's order. A component works on what its parent has gathered.
    fn gather(&mut self, top: &Kustomization, dir: &str, mut layer: Layer) -> Result<Layer, Failed> {
        self.refuse(top)?;
        let complaints = self.troubles.len();
        for (at, path) in top.fields.resources.iter().enumerate() {
            let place = format!("resources[{at}]");
            if let Err(failed) = self.resource(&mut layer, top, dir, path, &place) {
                // The next one may be wrong too, and is told in the same breath.
                self.troubles.extend(failed);
            }
        }
        if self.troubles.len() > complaints {
            return Err(None);
        }
        layer
            .config
            .merge(self.configurations(top, dir)?)
            .map_err(|why| top.at("configurations", &why, ""))?;
        for (at, path) in top.fields.crds.iter().enumerate() {
            let place = format!("crds[{at}]");
            let (_, bytes) = self.read(top, dir, path, &place)?;
            let config =
                crds::read(&bytes).map_err(|why| top.at(&place, &why, "give an OpenAPI definition"))?;
            layer.config.merge(config).map_err(|why| top.at(&place, &why, "remove one of the two"))?;
        }
        layer.taken = None;
        self.generate(&mut layer, top, dir)?;
        for (at, path) in top.fields.components.iter().enumerate() {
            let place = format!("components[{at}]");
            layer = self.component(layer, top, dir, path, &place)?;
        }
        self.transform(&mut layer, top, dir)?;
        for var in &top.fields.vars {
            if layer.vars.iter().any(|known| known.name == var.name) {
                return Err(Some(top.at(
                    "vars",
                    &format!("variable {} is given twice", var.name),
                    "rename it",
                )));
            }
        }
        vars::bind(&top.fields.vars, &mut layer.resources)
            .map_err(|why| top.at("vars", &why, "name one object"))?;
        layer.vars.extend(top.fields.vars.iter().cloned());
        Ok(layer)
    }

    /// What is known to kustomize but not done here is said so.
    fn refuse(&mut self, top: &Kustomization) -> Result<(), Failed> {
        let fields = &top.fields;
        if !fields.helm_charts.is_empty() || !fields.helm_chart_inflation_generator.is_empty() {
            let help = "render it with `helm template` into a file and list that under resources";
            return Err(Some(top.at(
                "helmCharts",
                "Helm charts are not rendered inside a kustomization",
                help,
            )));
        }
        if !fields.validators.is_empty() {
            let message = "validators are programs, and no program is run by a repository";
            return Err(Some(top.at("validators", message, "remove it; objects are validated anyway")));
        }
        if fields.openapi.contains_key("path") {
            let (line, column) = (top.line("openapi"), 0);
            self.notices.push(Defect {
                file: top.file.to_string(),
                line,
                column,
                message: "openapi.path is not read: lists of custom kinds are replaced as a whole by patches"
                    .to_owned(),
                help: "use JSON patches where a list of a custom kind has to be merged".to_owned(),
                object: None,
            });
        }
        Ok(())
    }

    fn resource(
        &mut self,
        layer: &mut Layer,
        top: &Kustomization,
        dir: &str,
        path: &str,
        place: &str,
    ) -> Result<(), Failed> {
        let joined = join(dir, path);
        if self.files.contains_key(joined.as_str()) {
            let (file, _) = self.read(top, dir, path, place)?;
            let objects = self.objects(&file)?;
            let shown = self.shown(&file);
            let resources = objects.iter().map(|(value, line)| {
                let mut resource = Resource::new(value.clone(), Arc::clone(&file), *line);
                resource.origin.clone_from(&shown);
                resource
            });
            return self.append(layer, resources.collect(), top, place);
        }
        self.enter(top, dir, path, place)?;
        let (below, kustomization) = self.directory(&joined)?;
        if kustomization.is_component() {
            let message = format!("{path} is a Component");
            return Err(Some(top.at(place, &message, "list it under components")));
        }
        for var in &below.vars {
            if layer.vars.iter().any(|known| known.name == var.name) {
                return Err(Some(top.at(
                    place,
                    &format!("variable {} is given twice", var.name),
                    "rename it",
                )));
            }
        }
        layer.config.merge(below.config).map_err(|why| top.at(place, &why, "remove one of the two"))?;
        layer.vars.extend(below.vars);
        self.append(layer, below.resources, top, place)
    }

    fn component(
        &mut self,
        layer: Layer,
        top: &Kustomization,
        dir: &str,
        path: &str,
        place: &str,
    ) -> Result<Layer, Failed> {
        self.enter(top, dir, path, place)?;
        let joined = join(dir, path);
        let component = self.kustomization(&joined)?;
        if !component.is_component() {
            let message = format!("{path} is not of kind Component");
            return Err(Some(top.at(
                place,
                &message,
                "write kind: Component in it, or list it under resources",
            )));
        }
        self.open.push(joined.clone());
        let gathered = self.gather(&component, &joined, layer);
        self.open.pop();
        gathered
    }

    /// Looks at a directory that is to be entered.
    fn enter(&self, top: &Kustomization, dir: &str, path: &str, place: &str) -> Result<(), Failed> {
        let joined = join(dir, path);
        let refuse = |message: String, help: &str| Err(Some(top.at(place, &message, help)));
        if is_remote(path) {
            let help = "copy it into the repository, or declare it as an application of its own";
            return refuse(format!("{path} is on another machine, and a build fetches nothing"), help);
        }
        if path.starts_with('/') {
            return refuse(format!("{path} is an absolute path"), "write it relative to this file");
        }
        if self.open.contains(&joined) {
            return refuse(
                format!("{path} leads back to a kustomization that it is part of"),
                "break the ring",
            );
        }
        if self.open.len() >= MOST_DEPTH {
            return refuse("kustomizations are nested too deeply".to_owned(), "flatten them");
        }
        if kustomizations(self.files, &joined).is_empty() {
            let below = format!("{joined}/");
            let is_dir = self.files.keys().any(|file| file.starts_with(&below));
            return if is_dir {
                refuse(format!("no kustomization.yaml in {joined}"), "add one, or list the files")
            } else {
                refuse(format!("there is no {joined}"), "correct the path, or add what is missing")
            };
        }
        Ok(())
    }

    /// A file of a kustomization: in its directory or below.
    pub(super) fn read(
        &mut self,
        top: &Kustomization,
        dir: &str,
        path: &str,
        place: &str,
    ) -> Result<Named, Failed> {
        self.bytes(dir, path).map_err(|(message, help)| Some(top.at(place, &message, help)))
    }

    pub(super) fn bytes(&mut self, dir: &str, path: &str) -> Result<Named, (String, &'static str)> {
        let joined = join(dir, path);
        if is_remote(path) {
            return Err((format!("{path} is on another machine"), "copy it into the repository"));
        }
        if !is_below(dir, &joined) {
            let message = format!("{path} is not in the kustomization's directory or below it");
            return Err((message, "move the file, or make the other directory a base"));
        }
        match self.files.get_key_value(joined.as_str()) {
            Some((file, bytes)) => {
                self.used.insert(Arc::clone(file));
                Ok((Arc::clone(file), Arc::clone(bytes)))
            }
            None => Err((format!("there is no {joined}"), "correct the path, or add the file")),
        }
    }

    /// The objects of a file with their lines. Lists are taken apart.
    pub(super) fn objects(&mut self, file: &Arc<str>) -> Result<Arc<Vec<(Value, u32)>>, Failed> {
        if let Some(known) = self.documents.get(file) {
            return Ok(Arc::clone(known));
        }
        let read = read_objects(file, &self.files[file]).map_err(|troubles| {
            self.troubles.extend(troubles);
            None
        })?;
        let read = Arc::new(read);
        self.documents.insert(Arc::clone(file), Arc::clone(&read));
        Ok(read)
    }

    pub(super) fn append(
        &self,
        layer: &mut Layer,
        resources: Vec<Resource>,
        top: &Kustomization,
        place: &str,
    ) -> Result<(), Failed> {
        if layer.resources.len() + resources.len() > MOST_OBJECTS {
            return Err(Some(top.at(place, &format!("more than {MOST_OBJECTS} objects"), "split it")));
        }
        let key = |name: &Name| (name.gvk.clone(), name.effective().to_owned(), name.name.clone());
        let Layer { resources: gathered, taken, .. } = layer;
        let known = taken.get_or_insert_with(|| {
            let place = |resource: &Resource| (Arc::clone(&resource.file), resource.line);
            gathered.iter().map(|resource| (key(&resource.current()), place(resource))).collect()
        });
        for resource in resources {
            let name = resource.current();
            let here = (Arc::clone(&resource.file), resource.line);
            if let Some((file, line)) = known.insert(key(&name), here) {
                let why = format!("is there already, from {file}:{line}");
                return Err(Some(at_resource(&resource, &why)));
            }
            gathered.push(resource);
        }
        Ok(())
    }

    fn configurations(&mut self, top: &Kustomization, dir: &str) -> Result<Config, Failed> {
        let mut config = Config::built_in();
        for (at, path) in top.fields.configurations.iter().enumerate() {
            let place = format!("configurations[{at}]");
            let value = if path.contains('\n') {
                yaml::documents(path).into_iter().flatten().next().map(|document| document.root.value())
            } else {
                let (_, bytes) = self.read(top, dir, path, &place)?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                yaml::documents(&text).into_iter().flatten().next().map(|document| document.root.value())
            };
            let read = super::file::read_as(value.unwrap_or_default());
            let more = read.map_err(|why| top.at(&place, &why, "correct the configuration"))?;
            config.merge(more).map_err(|why| top.at(&place, &why, "remove one of the two"))?;
        }
        Ok(config)
    }

    fn generate(&mut self, layer: &mut Layer, top: &Kustomization, dir: &str) -> Result<(), Failed> {
        let lists = [
            (Kind::ConfigMap, "configMapGenerator", &top.fields.config_map_generator),
            (Kind::Secret, "secretGenerator", &top.fields.secret_generator),
        ];
        for (kind, field, generators) in lists {
            for (at, generator) in generators.iter().enumerate() {
                let place = format!("{field}[{at}]");
                let global = top.fields.generator_options.as_ref();
                let made = self.generated(kind, generator, global, dir);
                let mut made = made.map_err(|why| top.at(&place, &why, "correct the generator"))?;
                made.file = Arc::clone(&top.file);
                made.line = top.line(&place);
                self.note_generator(&mut made, top, kind);
                absorb(layer, made).map_err(|why| top.at(&place, &why, "correct `behavior` or the name"))?;
            }
        }
        self.generator_plugins(layer, top, dir)
    }

    pub(super) fn generated(
        &mut self,
        kind: Kind,
        generator: &Generator,
        global: Option<&Options>,
        dir: &str,
    ) -> Result<Resource, String> {
        let behaviour = generator.behaviour()?;
        let mut read = |path: &str| {
            let read = self.bytes(dir, path).map_err(|(message, help)| format!("{message} ({help})"))?;
            Ok(read.1.to_vec())
        };
        let (value, wants_hash) = generator.generate(kind, global, &mut read)?;
        let mut resource = Resource::new(value, Arc::from(""), 0);
        (resource.wants_hash, resource.behaviour) = (wants_hash, behaviour);
        Ok(resource)
    }

    pub(super) fn top_dir(&self) -> String {
        self.open.first().cloned().unwrap_or_default()
    }

    /// What `buildMetadata` tells of a file: its path from the top.
    fn shown(&self, file: &str) -> Option<String> {
        if self.metadata.is_empty() {
            return None;
        }
        let top = self.open.first().map_or("", String::as_str);
        Some(format!("path: {}\n", relative(top, file)))
    }

    fn note_generator(&self, made: &mut Resource, top: &Kustomization, kind: Kind) {
        if self.metadata.is_empty() {
            return;
        }
        let root = self.open.first().map_or("", String::as_str);
        made.origin = Some(format!(
            "configuredIn: {}\nconfiguredBy:\n  apiVersion: builtin\n  kind: {}Generator\n",
            relative(root, &top.file),
            kind.name()
        ));
    }
}

/// A path as seen from a directory.
pub(super) fn relative(from: &str, path: &str) -> String {
    let from: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let common = from.iter().zip(&path).take_while(|(a, b)| a == b).count();
    let up = vec![".."; from.len() - common];
    up.into_iter().chain(path[common..].iter().copied()).collect::<Vec<_>>().join("/")
}

/// Adds a generated object, or merges it into the one that is there.
pub(super) fn absorb(layer: &mut Layer, mut made: Resource) -> Result<(), String> {
    let name = made.current();
    let matches: Vec<usize> =
        (0..layer.resources.len()).filter(|at| layer.resources[*at].is_called(&name)).collect();
    match (&matches[..], made.behaviour) {
        ([], Behaviour::Create) => layer.resources.push(made),
        ([], _) => {
            return Err(format!("{} does not exist, so it cannot be merged or replaced", name.shown()));
        }
        ([_], Behaviour::Create) => {
            return Err(format!("{} exists already; behavior has to be merge or replace", name.shown()));
        }
        ([at], behaviour) => {
            let old = &layer.resources[*at];
            made.wants_hash &= old.wants_hash;
            made.take_metadata_of(old);
            if behaviour == Behaviour::Merge {
                made.origin.clone_from(&old.origin);
                for field in ["data", "binaryData"] {
                    let mut merged = old.value[field].as_object().cloned().unwrap_or_default();
                    merged.extend(made.value[field].as_object().cloned().unwrap_or_default());
                    if !merged.is_empty() {
                        made.value[field] = Value::Object(merged);
                    }
                }
            }
            layer.resources[*at] = made;
        }
        _ => return Err(format!("several objects are called {}", name.shown())),
    }
    Ok(())
}

/// The objects of a text, in the dialect of kustomize.
pub(super) fn read_objects(file: &str, bytes: &[u8]) -> Result<Vec<(Value, u32)>, Vec<Trouble>> {
    let trouble = |line, column, message: &str, help: &str| {
        let (message, help) = (message.to_owned(), help.to_owned());
        Box::new(Defect { file: file.to_owned(), line, column, message, help, object: None })
    };
    let Ok(written) = std::str::from_utf8(bytes) else {
        return Err(vec![trouble(0, 0, "not UTF-8 text", "save the file as UTF-8")]);
    };
    let (mut found, mut troubles) = (Vec::new(), Vec::new());
    for document in yaml::documents_in(written, Dialect::Kustomize) {
        match document {
            Ok(document) if document.flaws.is_empty() => take(&document.root, &mut found),
            Ok(document) => troubles.extend(
                document.flaws.iter().map(|flaw| trouble(flaw.line, flaw.column, &flaw.message, &flaw.help)),
            ),
            Err(flaw) => troubles.push(trouble(flaw.line, flaw.column, &flaw.message, &flaw.help)),
        }
    }
    for (value, line) in &found {
        let missing = if !value.is_object() {
            Some("a Kubernetes object is expected here")
        } else if text(&value["kind"]).is_empty() {
            Some("no kind, so this is not a Kubernetes object")
        } else if text(&value["metadata"]["name"]).is_empty() {
            Some("no metadata.name; kustomize tells objects apart by it")
        } else {
            None
        };
        if let Some(message) = missing {
            troubles.push(trouble(*line, 0, message, "add what is missing, or take the file off the list"));
        }
    }
    if troubles.is_empty() { Ok(found) } else { Err(troubles) }
}

fn take(node: &Node, found: &mut Vec<(Value, u32)>) {
    if matches!(&node.shape, Shape::Scalar(Value::Null)) {
        return;
    }
    let kind = node.get("kind").map(|entry| entry.value.value());
    if kind.as_ref().and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
        && let Some(items) = node.get("items")
    {
        if let Shape::List(items) = &items.value.shape {
            items.iter().for_each(|item| take(item, found));
        }
        return;
    }
    found.push((node.value(), node.line));
}
