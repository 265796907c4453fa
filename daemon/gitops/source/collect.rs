//! Which files of a tree an application is made of: every manifest below its directory, and all that its kustomizations
//! refer to, wherever in the tree that is.
//!
//! Invariant: the same for a commit and for a directory; each is asked through two questions only.
//! Invariant: what is there but cannot be read is told, and never the same as what is not there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::{MOST_BYTES, MOST_FILES, Snapshot, is_manifest, is_passing};
use crate::Error;
use crate::build::kustomize::{self, NAMES, is_below, join, parent};

/// Levels of directories.
const MOST_DEPTH: usize = 64;

/// What a directory holds under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    /// Another repository, named by a commit.
    Submodule,
}

/// What stands at a path.
#[derive(Debug)]
pub(crate) enum Found {
    File(Arc<[u8]>),
    /// It is there, but this is why its text cannot be had.
    Unreadable(String),
    Nothing,
}

/// A commit or a directory.
pub(crate) trait Tree {
    /// The names in a directory; an error when there is none. `Err(Some(why))` keeps what came from below it.
    fn list(&mut self, dir: &str) -> Result<Vec<(String, Kind)>, Unlisted>;
    /// One file.
    fn file(&mut self, path: &str) -> Result<Found, Error>;
}

/// Why a directory has no list.
#[derive(Debug)]
pub(crate) enum Unlisted {
    /// It vanished meanwhile, or never was.
    Gone,
    /// It hides its files: all that came from below it has to stay.
    Hidden(String),
    /// Nothing can be told at all.
    Broken(Error),
}

/// Gathers the files of an application. Also tells which paths outside its directory were asked for.
pub(crate) fn collect(
    tree: &mut dyn Tree,
    root: &str,
    shown: &str,
) -> Result<(Snapshot, BTreeSet<String>), Error> {
    let snapshot = Snapshot { root: Arc::from(root), ..Snapshot::default() };
    let mut gathering = Gathering {
        tree,
        snapshot,
        bytes: 0,
        shown,
        waiting: VecDeque::new(),
        asked: BTreeSet::new(),
        ignore: Vec::new(),
    };
    gathering.walk(root, 0, true)?;
    gathering.follow()?;
    let mut asked = gathering.asked;
    asked.retain(|path| !root.is_empty() && !is_below(root, path));
    Ok((gathering.snapshot, asked))
}

struct Gathering<'t> {
    tree: &'t mut dyn Tree,
    snapshot: Snapshot,
    bytes: usize,
    /// For messages.
    shown: &'t str,
    /// Kustomizations whose references were not followed yet.
    waiting: VecDeque<Arc<str>>,
    asked: BTreeSet<String>,
    /// Rules of ignore files: the directory they are in, and the rules.
    ignore: Vec<(String, Vec<super::ignore::Rule>)>,
}

impl Gathering<'_> {
    fn walk(&mut self, dir: &str, depth: usize, is_root: bool) -> Result<(), Error> {
        if depth > MOST_DEPTH {
            return Err(self.too_much(MOST_DEPTH, "levels of directories"));
        }
        let entries = match self.tree.list(dir) {
            Ok(entries) => entries,
            Err(Unlisted::Broken(error)) => return Err(error),
            Err(Unlisted::Gone) if !is_root => return Ok(()),
            Err(Unlisted::Gone) => return Ok(()),
            Err(Unlisted::Hidden(why)) => {
                self.snapshot.unreadable.insert(Arc::from(format!("{dir}/")), why);
                return Ok(());
            }
        };
        let rules = self.ignore.len();
        for name in [".sourceignore", ".holdfastignore"] {
            if entries.iter().any(|(entry, kind)| entry == name && *kind == Kind::File)
                && let Found::File(bytes) = self.tree.file(&join(dir, name))?
            {
                self.ignore.push((dir.to_owned(), super::ignore::rules(&String::from_utf8_lossy(&bytes))));
            }
        }
        for (name, kind) in entries {
            if is_passing(&name) {
                continue;
            }
            let path = join(dir, &name);
            if super::ignore::is_ignored(&self.ignore, &path, kind == Kind::Directory) {
                continue;
            }
            match kind {
                Kind::Directory => self.walk(&path, depth + 1, false)?,
                Kind::File if is_manifest(&name) || NAMES.contains(&name.as_str()) => self.take(&path)?,
                Kind::File => {}
                Kind::Submodule => {
                    let why =
                        "is a submodule, which is not followed; copy its files, or make it an application";
                    self.snapshot.unreadable.insert(Arc::from(format!("{path}/")), why.to_owned());
                }
            }
        }
        self.ignore.truncate(rules);
        Ok(())
    }

    /// Reads a file that is wanted, once.
    fn take(&mut self, path: &str) -> Result<(), Error> {
        if !self.asked.insert(path.to_owned()) {
            return Ok(());
        }
        match self.tree.file(path)? {
            Found::Nothing => {}
            Found::Unreadable(why) => {
                self.snapshot.unreadable.insert(Arc::from(path), why);
            }
            Found::File(bytes) => {
                self.bytes += bytes.len();
                let path: Arc<str> = Arc::from(path);
                if NAMES.contains(&path.rsplit('/').next().unwrap_or(&path)) {
                    self.waiting.push_back(Arc::clone(&path));
                }
                self.snapshot.files.insert(path, bytes);
            }
        }
        if self.snapshot.files.len() > MOST_FILES {
            return Err(self.too_much(MOST_FILES, "manifests"));
        }
        if self.bytes > MOST_BYTES {
            return Err(self.too_much(MOST_BYTES, "bytes of manifests"));
        }
        Ok(())
    }

    /// Follows what kustomizations refer to.
    fn follow(&mut self) -> Result<(), Error> {
        while let Some(file) = self.waiting.pop_front() {
            let dir = parent(&file).to_owned();
            let bytes = Arc::clone(&self.snapshot.files[&file]);
            for reference in kustomize::references(&bytes) {
                let path = join(&dir, &reference);
                self.take(&path)?;
                if let Some(bytes) = self.snapshot.files.get(path.as_str()).cloned() {
                    for more in kustomize::plugin_references(&bytes) {
                        self.take(&join(&dir, &more))?;
                    }
                } else {
                    for name in NAMES {
                        self.take(&join(&path, name))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn too_much(&self, most: usize, what: &'static str) -> Error {
        Error::TooMuch { path: self.shown.to_owned(), most, what }
    }
}
