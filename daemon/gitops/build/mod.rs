//! Files → objects, each with the file and line it came from, and defects, collected and never thrown.
//!
//! Invariant: a defect keeps back the object it is in, and nothing else.
//! Invariant: a file is read again only when its bytes changed.

mod objects;
mod scalar;
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

use crate::source::Snapshot;

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
    /// Files of which a part could not be read, with their text: what they may still hold is not pruned.
    pub(crate) unread: BTreeMap<Arc<str>, Arc<[u8]>>,
}

/// What the objects of one application get filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// For namespaced objects that name none.
    pub(crate) namespace: String,
    /// The value of the tracking label.
    pub(crate) application: String,
}

/// Builds snapshots of one application; keeps what each file gave for the next time.
#[derive(Debug)]
pub(crate) struct Builder {
    defaults: Defaults,
    known: BTreeMap<Arc<str>, Known>,
}

/// A file's bytes, and what they gave.
type Known = (Arc<[u8]>, Arc<FileBuilt>);

/// What one file gave.
#[derive(Debug, Default)]
pub(crate) struct FileBuilt {
    pub(crate) objects: Vec<Object>,
    pub(crate) defects: Vec<Defect>,
    pub(crate) kept_back: Vec<(Id, u32)>,
    pub(crate) unread: bool,
}

impl Builder {
    /// A builder that has seen no file yet.
    pub(crate) fn new(defaults: Defaults) -> Builder {
        Builder { defaults, known: BTreeMap::new() }
    }

    /// Builds a snapshot. Costs what changed since the last one.
    pub(crate) fn build(&mut self, snapshot: &Snapshot) -> Built {
        let mut known = BTreeMap::new();
        let mut built = Built::default();
        for (file, bytes) in &snapshot.files {
            let of_file = match self.known.get(file) {
                Some((old, of_file)) if Arc::ptr_eq(old, bytes) || old == bytes => Arc::clone(of_file),
                _ => Arc::new(objects::build_file(file, bytes, &self.defaults)),
            };
            built.defects.extend(of_file.defects.iter().cloned());
            built.kept_back.extend(of_file.kept_back.iter().map(|(id, _)| (id.clone(), Arc::clone(file))));
            if of_file.unread {
                built.unread.insert(Arc::clone(file), Arc::clone(bytes));
            }
            known.insert(Arc::clone(file), (Arc::clone(bytes), of_file));
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
        self.known = known;
        self.keep_unique(&mut built);
        built.defects.sort();
        built
    }

    /// An object written twice is applied from neither place: which one is meant only a person can tell.
    fn keep_unique(&self, built: &mut Built) {
        let mut places: BTreeMap<&Id, Vec<(Arc<str>, u32)>> = BTreeMap::new();
        for (file, (_, of_file)) in &self.known {
            let sound = of_file.objects.iter().map(|object| (&object.id, object.line));
            let flawed = of_file.kept_back.iter().map(|(id, line)| (id, *line));
            for (id, line) in sound.chain(flawed) {
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
        for (_, of_file) in self.known.values() {
            built
                .objects
                .extend(of_file.objects.iter().filter(|object| !taken.contains_key(&object.id)).cloned());
        }
    }

    /// Where a field path of an object is written, for answers of the API that name fields.
    pub(crate) fn place(&self, object: &Object, path: &str) -> (u32, u32) {
        let text = self.known.get(&object.file).and_then(|(bytes, _)| std::str::from_utf8(bytes).ok());
        text.map_or((object.line, 0), |text| objects::place(text, object.line, path))
    }
}
