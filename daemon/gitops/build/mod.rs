//! Files → objects, each with the file and line it came from, and defects, collected and never thrown.
//!
//! Invariant: a defect keeps back the object it is in, and nothing else.
//! Invariant: a file is read again only when its bytes changed.

#[cfg(test)]
pub(crate) mod damage;
pub(crate) mod kustomize;
mod layout;
mod objects;
mod scalar;
mod substitute;
mod suggest;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use api::kinds::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::defined::{self, Defined};
use crate::source::{Snapshot, is_manifest};
use kustomize::Files;
use layout::{Layout, Unit};

pub(crate) use layout::is_kustomization;
pub(crate) use objects::hash;

/// Names one object, whatever the version it is written in.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// `Deployment`.
    pub kind: String,
    /// Empty for objects of the cluster.
    #[serde(default)]
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An object as the files want it.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// Which object it is.
    pub(crate) id: Id,
    /// The served kind of its `apiVersion`.
    pub(crate) kind: &'static Kind,
    /// What is applied: the file's words, with the namespace and the tracking label filled in.
    pub(crate) value: Arc<Value>,
    /// The file, as its source shows it.
    pub(crate) file: Arc<str>,
    /// Where the object begins, from 1.
    pub(crate) line: u32,
    /// Objects of a lower wave are applied and healthy before those of a higher one.
    pub(crate) wave: i64,
    /// Differs when `value` differs.
    pub(crate) hash: u64,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        let place = |object: &Object| (Arc::clone(&object.file), object.line, object.wave);
        std::ptr::eq(self.kind, other.kind)
            && self.id == other.id
            && self.value == other.value
            && place(self) == place(other)
    }
}

/// Something in a file that a person has to mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Defect {
    /// The file, as its source shows it.
    pub file: String,
    /// From 1; 0 when the whole file is meant.
    pub line: u32,
    /// From 1; 0 when the whole line is meant.
    pub column: u32,
    /// What is wrong, with what.
    pub message: String,
    /// The way out.
    pub help: String,
    /// The object it is in, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.column > 0 {
            write!(f, ":{}", self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.help.is_empty() {
            write!(f, " ({})", self.help)?;
        }
        Ok(())
    }
}

/// Everything the files of one snapshot say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Built {
    /// Sound objects, by file and line.
    pub(crate) objects: Vec<Object>,
    /// What is wrong, by file and line.
    pub(crate) defects: Vec<Defect>,
    /// Objects the files name but whose text has a defect, and their file: neither applied nor pruned.
    pub(crate) kept_back: BTreeMap<Id, Arc<str>>,
    /// What works, but should be written otherwise, and files that nobody reads; by file and line.
    pub(crate) notices: Vec<Defect>,
    /// Files of which a part could not be read, with their text: what they may still hold is not pruned.
    /// `/` stands for every file.
    pub(crate) unread: BTreeMap<Arc<str>, Arc<[u8]>>,
}

/// What the objects of one application get filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// For namespaced objects that name none.
    pub(crate) namespace: String,
    /// The value of the tracking label.
    pub(crate) application: String,
    /// Variables; without any, nothing is replaced.
    pub(crate) substitute: BTreeMap<String, String>,
    /// Kinds beyond the table.
    pub(crate) kinds: Defined,
}

/// Builds snapshots of one application; keeps what each part gave for the next time.
#[derive(Debug)]
pub(crate) struct Builder {
    defaults: Defaults,
    /// What each plain file gave.
    known: BTreeMap<Arc<str>, Known>,
    /// What each kustomization gave, by its directory.
    rendered: BTreeMap<String, Arc<Unit>>,
    /// The files of the last snapshot.
    files: Files,
    /// Manifests with variables: as they are written, and as they are read.
    texts: BTreeMap<Arc<str>, Filled>,
    /// The kinds that the last snapshot itself defines.
    own: Defined,
    /// The kinds that the cluster has beyond the table.
    live: Defined,
}

/// A manifest as it is written, and with its variables filled in.
type Filled = (Arc<[u8]>, Arc<[u8]>);

/// A file's bytes, and what they gave.
type Known = (Arc<[u8]>, Arc<FileBuilt>);

/// What one file or one kustomization gave.
#[derive(Debug, Default)]
pub(crate) struct FileBuilt {
    pub(crate) objects: Vec<Object>,
    pub(crate) defects: Vec<Defect>,
    pub(crate) notices: Vec<Defect>,
    pub(crate) kept_back: Vec<(Id, Arc<str>, u32)>,
    pub(crate) unread: bool,
}

impl Builder {
    /// A builder that has seen no file yet.
    pub(crate) fn new(defaults: Defaults) -> Builder {
        Builder {
            defaults,
            known: BTreeMap::new(),
            rendered: BTreeMap::new(),
            files: Files::new(),
            texts: BTreeMap::new(),
            own: Defined::default(),
            live: Defined::default(),
        }
    }

    /// From now on the cluster has these kinds beyond the table.
    pub(crate) fn live(&mut self, kinds: Defined) {
        self.live = kinds;
    }

    /// Builds a snapshot. Costs what changed since the last one.
    pub(crate) fn build(&mut self, snapshot: &Snapshot) -> Built {
        self.know(self.live.and(&self.own));
        let built = self.pass(snapshot);
        let definitions = built.objects.iter().filter(|object| std::ptr::eq(object.kind, defined::row()));
        let own = Defined::of(definitions.map(|object| &*object.value));
        if own == self.own {
            return built;
        }
        // Objects may stand before the definition of their kind.
        self.own = own;
        self.know(self.live.and(&self.own));
        self.pass(snapshot)
    }

    /// What was built with other kinds is built again.
    fn know(&mut self, kinds: Defined) {
        if self.defaults.kinds != kinds {
            self.defaults.kinds = kinds;
            self.known.clear();
            self.rendered.clear();
        }
    }

    fn pass(&mut self, snapshot: &Snapshot) -> Built {
        let mut built = Built::default();
        let filled = self.fill_in(snapshot, &mut built);
        let snapshot = filled.as_ref().unwrap_or(snapshot);
        let layout = Layout::of(snapshot);
        let mut known = BTreeMap::new();
        for file in &layout.plain {
            let bytes = &snapshot.files[file];
            let of_file = match self.known.get(file) {
                Some((old, of_file)) if Arc::ptr_eq(old, bytes) || old == bytes => Arc::clone(of_file),
                _ => Arc::new(objects::build_file(file, bytes, &self.defaults)),
            };
            if of_file.unread {
                built.unread.insert(Arc::clone(file), Arc::clone(bytes));
            }
            known.insert(Arc::clone(file), (Arc::clone(bytes), of_file));
        }
        let mut rendered = BTreeMap::new();
        for dir in &layout.kustomizations {
            let unit = match self.rendered.get(dir) {
                Some(unit) if unit.is_current(&snapshot.files) => Arc::clone(unit),
                _ => Arc::new(Unit::build(snapshot, dir, &self.defaults)),
            };
            if unit.built.unread {
                // What a broken kustomization meant nobody can tell: all that came from anywhere stays.
                built.unread.insert(Arc::from("/"), Arc::from(Vec::new()));
            }
            rendered.insert(dir.clone(), unit);
        }
        for dir in &layout.charts {
            let file = kustomize::join(dir, "Chart.yaml");
            built.unread.insert(Arc::from(format!("{dir}/")), Arc::from(Vec::new()));
            built.defects.push(Defect {
                file,
                line: 0,
                column: 0,
                message: "a Helm chart, which is not rendered here".to_owned(),
                help: "render it with `helm template` into a file, or leave it out by .holdfastignore"
                    .to_owned(),
                object: None,
            });
        }
        for (file, why) in &snapshot.unreadable {
            built.unread.insert(Arc::clone(file), Arc::from(Vec::new()));
            built.defects.push(Defect {
                file: file.to_string(),
                line: 0,
                column: 0,
                message: why.clone(),
                help: "until it can be read, what came from it stays as it is".to_owned(),
                object: None,
            });
        }
        (self.known, self.rendered) = (known, rendered);
        self.files.clone_from(&snapshot.files);
        for part in self.parts() {
            built.defects.extend(part.defects.iter().cloned());
            built.notices.extend(part.notices.iter().cloned());
            built.kept_back.extend(part.kept_back.iter().map(|(id, file, _)| (id.clone(), Arc::clone(file))));
        }
        built.notices.extend(layout.unreferenced(&snapshot.files, self.rendered.values()));
        self.keep_unique(&mut built);
        built.defects.sort();
        built.notices.sort();
        built.notices.dedup();
        built
    }

    /// The snapshot with the variables of its manifests filled in; nothing when there are none.
    fn fill_in(&mut self, snapshot: &Snapshot, built: &mut Built) -> Option<Snapshot> {
        if self.defaults.substitute.is_empty() {
            return None;
        }
        let mut filled = snapshot.clone();
        let mut texts = BTreeMap::new();
        for (file, bytes) in &mut filled.files {
            let Ok(text) = std::str::from_utf8(bytes) else { continue };
            if is_kustomization(file) || !is_manifest(file.rsplit('/').next().unwrap_or(file)) {
                continue;
            }
            if let Some((old, new)) = self.texts.get(file).filter(|(old, _)| old == bytes) {
                texts.insert(Arc::clone(file), (Arc::clone(old), Arc::clone(new)));
                *bytes = Arc::clone(new);
                continue;
            }
            match substitute::substitute(text, &self.defaults.substitute) {
                Ok(text) => {
                    let new: Arc<[u8]> = Arc::from(text.into_bytes());
                    texts.insert(Arc::clone(file), (Arc::clone(bytes), Arc::clone(&new)));
                    *bytes = new;
                }
                Err(missing) => {
                    built.unread.insert(Arc::clone(file), Arc::clone(bytes));
                    built.defects.extend(missing.into_iter().map(|(line, name)| Defect {
                        file: file.to_string(),
                        line,
                        column: 0,
                        message: format!("variable {name} has no value"),
                        help: format!("declare it under `substitute`, or write ${{{name}:=default}}"),
                        object: None,
                    }));
                    *bytes = Arc::from(Vec::new());
                }
            }
        }
        self.texts = texts;
        Some(filled)
    }

    fn parts(&self) -> impl Iterator<Item = &FileBuilt> {
        let plain = self.known.values().map(|(_, of_file)| &**of_file);
        plain.chain(self.rendered.values().map(|unit| &unit.built))
    }

    /// An object written twice is applied from neither place: which one is meant only a person can tell.
    fn keep_unique(&self, built: &mut Built) {
        let mut places: BTreeMap<&Id, Vec<(Arc<str>, u32)>> = BTreeMap::new();
        for part in self.parts() {
            let sound = part.objects.iter().map(|object| (&object.id, &object.file, object.line));
            let flawed = part.kept_back.iter().map(|(id, file, line)| (id, file, *line));
            for (id, file, line) in sound.chain(flawed) {
                places.entry(id).or_default().push((Arc::clone(file), line));
            }
        }
        let taken: BTreeMap<&Id, &Vec<(Arc<str>, u32)>> =
            places.iter().filter(|(_, places)| places.len() > 1).map(|(id, places)| (*id, places)).collect();
        for (id, places) in &taken {
            built.kept_back.extend(places.first().map(|(file, _)| ((*id).clone(), Arc::clone(file))));
            for (at, (file, line)) in places.iter().enumerate() {
                let (other, other_line) = &places[usize::from(at == 0)];
                built.defects.push(Defect {
                    file: file.to_string(),
                    line: *line,
                    column: 0,
                    message: format!("{id} is defined twice, also in {other}:{other_line}"),
                    help: "rename or remove one of the two; until then the live object stays as it is"
                        .to_owned(),
                    object: Some(id.to_string()),
                });
            }
        }
        for part in self.parts() {
            let alone = part.objects.iter().filter(|object| !taken.contains_key(&object.id));
            built.objects.extend(alone.cloned());
        }
    }

    /// Where a field path of an object is written, for answers of the API that name fields.
    pub(crate) fn place(&self, object: &Object, path: &str) -> (u32, u32) {
        let text = self.files.get(&object.file).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.map_or((object.line, 0), |text| objects::place(text, object.line, path))
    }
}
