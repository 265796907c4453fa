//! Which files of a snapshot are read by themselves, and which through a kustomization.
//!
//! Invariant: below the application's directory every manifest is read, through one way only, or told to be read by nobody.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::kustomize::{self, Files, NAMES, is_below, join, parent};
use super::{Defaults, Defect, FileBuilt, objects};
use crate::source::{Snapshot, is_manifest};

/// How the files of a snapshot are to be read.
pub(super) struct Layout {
    /// Files that hold objects as they are.
    pub(super) plain: BTreeSet<Arc<str>>,
    /// Directories whose kustomization is rendered.
    pub(super) kustomizations: Vec<String>,
    /// Directories of Helm charts, which are not rendered.
    pub(super) charts: BTreeSet<String>,
    root: Arc<str>,
}

impl Layout {
    pub(super) fn of(snapshot: &Snapshot) -> Layout {
        let root = Arc::clone(&snapshot.root);
        let inside = |file: &str| {
            root.is_empty() && !file.starts_with('/') || is_below(&root, file) || root.as_ref() == "/"
        };
        let dirs: BTreeSet<&str> = snapshot
            .files
            .keys()
            .filter(|file| inside(file) && is_kustomization(file))
            .map(|file| parent(file))
            .collect();
        // The outermost ones; what they lie above is theirs.
        let is_outer = |dir: &&&str| {
            !dirs.iter().any(|other| other != *dir && (other.is_empty() || is_below(other, dir)))
        };
        let outer: Vec<&str> = dirs.iter().filter(is_outer).copied().collect();
        let plain = snapshot.files.keys().filter(|file| {
            let of_kustomization = |dir: &&str| dir.is_empty() || is_below(dir, file);
            inside(file) && is_manifest(name(file)) && !outer.iter().any(of_kustomization)
        });
        let charts: BTreeSet<String> = snapshot
            .files
            .keys()
            .filter(|file| inside(file) && name(file) == "Chart.yaml")
            .map(|file| parent(file).to_owned())
            .collect();
        // A chart's templates are no manifests: one sentence tells it instead of a defect in each of them.
        let of_chart = |file: &str| charts.iter().any(|dir| dir.is_empty() || is_below(dir, file));
        let plain = plain.filter(|file| !of_chart(file)).cloned().collect();
        // A base that another one refers to, and a component, are no wish of their own.
        let referred: BTreeSet<String> =
            dirs.iter().flat_map(|dir| directories(&snapshot.files, dir)).collect();
        let is_wish = |dir: &&str| !referred.contains(*dir) && !is_component(&snapshot.files, dir);
        let kustomizations = outer.into_iter().filter(is_wish).map(str::to_owned).collect();
        Layout { plain, kustomizations, charts, root }
    }

    /// Manifests that lie in a kustomization's directory and that no kustomization refers to.
    pub(super) fn unreferenced<'u>(
        &self,
        files: &Files,
        units: impl Iterator<Item = &'u Arc<Unit>>,
    ) -> Vec<Defect> {
        let units: Vec<&Arc<Unit>> = units.collect();
        if units.iter().any(|unit| unit.built.unread) {
            return Vec::new();
        }
        let used = |file: &Arc<str>| units.iter().any(|unit| unit.files.iter().any(|(used, _)| used == file));
        let all_kustomizations: BTreeSet<&str> =
            files.keys().filter(|file| is_kustomization(file)).map(|file| parent(file)).collect();
        // What a kustomization names that is not rendered here may be meant for another application.
        let named: BTreeSet<String> =
            all_kustomizations.iter().flat_map(|dir| references(files, dir)).collect();
        let lost = files.keys().filter(|file| {
            (self.root.is_empty() || is_below(&self.root, file))
                && is_manifest(name(file))
                && !is_kustomization(file)
                && !self.plain.contains(*file)
                && !used(file)
                && !named.contains(&***file)
        });
        let notice = |file: &Arc<str>| Defect {
            file: file.to_string(),
            line: 0,
            column: 0,
            message: "no kustomization refers to this file, so nothing in it is applied".to_owned(),
            help: "list it under resources, or remove it".to_owned(),
            object: None,
        };
        lost.map(notice).collect()
    }
}

/// One rendered kustomization.
#[derive(Debug)]
pub(super) struct Unit {
    /// All files that it was made of, as they were.
    files: Vec<(Arc<str>, Arc<[u8]>)>,
    /// How many files there were, so that a new one is noticed.
    count: usize,
    pub(super) built: FileBuilt,
}

impl Unit {
    pub(super) fn build(snapshot: &Snapshot, dir: &str, defaults: &Defaults) -> Unit {
        let rendered = kustomize::render(&snapshot.files, dir);
        let mut built = FileBuilt { notices: rendered.notices, ..FileBuilt::default() };
        built.unread = !rendered.defects.is_empty();
        built.defects = rendered.defects;
        for made in &rendered.objects {
            let text = snapshot.files.get(&made.file).map(|bytes| &**bytes);
            let of_object = objects::build_made(made, text, defaults);
            built.objects.extend(of_object.objects);
            built.defects.extend(of_object.defects);
            built.notices.extend(of_object.notices);
            built.kept_back.extend(of_object.kept_back);
            built.unread |= of_object.unread;
        }
        let files = rendered.used.into_iter().filter_map(|file| {
            let bytes = Arc::clone(snapshot.files.get(&file)?);
            Some((file, bytes))
        });
        Unit { files: files.collect(), count: snapshot.files.len(), built }
    }

    /// Whether rendering it again would give the same.
    pub(super) fn is_current(&self, files: &Files) -> bool {
        let same = |(file, bytes): &(Arc<str>, Arc<[u8]>)| {
            files.get(file).is_some_and(|now| Arc::ptr_eq(now, bytes) || now == bytes)
        };
        !self.built.unread && self.count == files.len() && self.files.iter().all(same)
    }
}

fn name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

pub(crate) fn is_kustomization(file: &str) -> bool {
    NAMES.contains(&name(file))
}

fn references(files: &Files, dir: &str) -> Vec<String> {
    let all = kustomize::kustomizations(files, dir);
    let named = all.iter().flat_map(|file| kustomize::references(&files[file]));
    named.map(|path| join(dir, &path)).collect()
}

fn directories(files: &Files, dir: &str) -> Vec<String> {
    let mut found = references(files, dir);
    found.retain(|path| !files.contains_key(path.as_str()));
    found
}

fn is_component(files: &Files, dir: &str) -> bool {
    let all = kustomize::kustomizations(files, dir);
    all.iter().any(|file| kustomize::is_component(&files[file]))
}
