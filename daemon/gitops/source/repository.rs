//! Repositories on this machine: refs read from their files, objects through libgit2's object database.
//!
//! The repository itself is never opened: libgit2 refuses one that belongs to another user (as root, every user's), and
//! nothing of a stranger's configuration should be read anyway.
//!
//! Invariant: only reads, except in the engine's own mirrors.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::{ObjectType, Odb, Oid, Repository, RepositoryInitOptions, Tree};
use jiff::Timestamp;

use super::collect::{Found, Kind, Tree as Files, Unlisted, collect};
use super::verify::Verify;
use super::{MOST_FILE_BYTES, Snapshot};
use crate::Error;
use crate::build::kustomize::{join, parent};

/// The directories of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitDir {
    /// Holds HEAD.
    pub(crate) own: PathBuf,
    /// Holds refs, packed-refs and objects; another one than `own` for a linked work tree.
    pub(crate) common: PathBuf,
}

impl GitDir {
    /// Finds a repository's directories, bare or with a work tree.
    pub(crate) fn find(path: &Path) -> Result<GitDir, Error> {
        let fail = |source| Error::OpenRepository { repository: path.display().to_string(), source };
        let dot_git = path.join(".git");
        let own = match fs::metadata(&dot_git) {
            Ok(meta) if meta.is_dir() => dot_git,
            Ok(_) => {
                let text = fs::read_to_string(&dot_git).map_err(fail)?;
                path.join(text.trim().strip_prefix("gitdir: ").unwrap_or_default())
            }
            Err(_) => path.to_path_buf(),
        };
        if !own.join("HEAD").is_file() {
            fs::metadata(path).map_err(fail)?;
            return Err(fail(io::Error::new(io::ErrorKind::NotFound, "no HEAD in it")));
        }
        let common = match fs::read_to_string(own.join("commondir")) {
            Ok(text) => own.join(text.trim()),
            Err(_) => own.clone(),
        };
        if common.join("reftable").is_dir() {
            return Err(Error::RepositoryForm {
                repository: path.display().to_string(),
                why: "keeps its refs as reftable, which is not read yet; `git refs migrate --ref-format=files` changes it",
            });
        }
        Ok(GitDir { own, common })
    }

    /// Every ref and what it points to, as hex.
    pub(crate) fn refs(&self) -> io::Result<BTreeMap<String, String>> {
        let mut refs = BTreeMap::new();
        match fs::read_to_string(self.common.join("packed-refs")) {
            Ok(text) => {
                let lines = text.lines().filter(|line| !line.starts_with(['#', '^']));
                refs.extend(
                    lines
                        .filter_map(|line| line.split_once(' '))
                        .map(|(id, name)| (name.to_owned(), id.to_owned())),
                );
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut symbolic = Vec::new();
        loose(&self.common.join("refs"), "refs", &mut refs, &mut symbolic)?;
        let head = fs::read_to_string(self.own.join("HEAD"))?;
        note("HEAD", &head, &mut refs, &mut symbolic);
        for (name, target) in symbolic {
            if let Some(id) = refs.get(&target).cloned() {
                refs.insert(name, id);
            }
        }
        Ok(refs)
    }

    /// The object directories: its own, and those it borrows from.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut all = vec![self.common.join("objects")];
        let mut at = 0;
        while let Some(dir) = all.get(at).cloned() {
            at += 1;
            let text = fs::read_to_string(dir.join("info/alternates")).unwrap_or_default();
            let more = text
                .lines()
                .filter(|line| !line.starts_with('#') && !line.is_empty())
                .map(|line| dir.join(line));
            let fresh: Vec<PathBuf> = more.filter(|dir| !all.contains(dir)).collect();
            // As git: a chain of borrowing ends somewhere.
            if all.len() < 32 {
                all.extend(fresh);
            }
        }
        all
    }
}

fn note(name: &str, text: &str, refs: &mut BTreeMap<String, String>, symbolic: &mut Vec<(String, String)>) {
    match text.trim().strip_prefix("ref: ") {
        Some(target) => symbolic.push((name.to_owned(), target.to_owned())),
        None => {
            refs.insert(name.to_owned(), text.trim().to_owned());
        }
    }
}

fn loose(
    dir: &Path,
    prefix: &str,
    refs: &mut BTreeMap<String, String>,
    symbolic: &mut Vec<(String, String)>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            loose(&entry.path(), &name, refs, symbolic)?;
        } else if !name.ends_with(".lock") {
            match fs::read_to_string(entry.path()) {
                Ok(text) => note(&name, &text, refs, symbolic),
                // Deleted, or just packed: then packed-refs has it, and its change wakes again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What is read from a repository.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// Where the objects are.
    pub(crate) objects: Vec<PathBuf>,
    /// The commit, or a tag on it.
    pub(crate) id: String,
    /// The directory of the manifests.
    pub(crate) path: String,
    /// For messages.
    pub(crate) repository: String,
    pub(crate) reference: String,
    pub(crate) verify: Option<Verify>,
}

/// What an application's files are in one commit, by Git's own hashes: equal ones mean equal files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    /// The application's directory.
    tree: Oid,
    /// What its kustomizations asked for elsewhere; nothing where nothing is.
    beside: BTreeMap<String, Option<Oid>>,
}

impl Reading {
    fn failed(&self, what: &str) -> impl Fn(git2::Error) -> Error + use<> {
        let what = format!("{what} {}", self.id.get(..12).unwrap_or(&self.id));
        let repository = self.repository.clone();
        move |source| Error::ReadRepository { what: what.clone(), repository: repository.clone(), source }
    }

    pub(crate) fn open(&self) -> Result<Repository, git2::Error> {
        let odb = Odb::new()?;
        for dir in &self.objects {
            odb.add_disk_alternate(&dir.to_string_lossy())?;
        }
        Repository::from_odb(odb)
    }

    /// Whether the commit's object is there.
    pub(crate) fn is_here(&self) -> bool {
        let id = Oid::from_str(&self.id);
        id.is_ok_and(|id| self.open().is_ok_and(|repository| repository.find_object(id, None).is_ok()))
    }

    /// The files of the commit.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, Error> {
        let repository = self.open().map_err(self.failed("objects for"))?;
        let read = self.read(&repository, None)?;
        Ok(read.map(|(snapshot, _)| snapshot).unwrap_or_default())
    }

    /// The files of the commit, and what they are known by; nothing when they are known already.
    pub(crate) fn read(
        &self,
        repository: &Repository,
        known: Option<&Index>,
    ) -> Result<Option<(Snapshot, Index)>, Error> {
        if self.id.len() == 64 {
            let repository = self.repository.clone();
            return Err(Error::RepositoryForm {
                repository,
                why: "uses SHA-256 ids, which are not read yet; use a SHA-1 repository",
            });
        }
        let id = Oid::from_str(&self.id).map_err(self.failed("ref"))?;
        let object = repository.find_object(id, None).map_err(self.failed("object"))?;
        let commit = object.peel_to_commit().map_err(self.failed("commit"))?;
        let tree = commit.tree().map_err(self.failed("tree of"))?;
        let root = if self.path.is_empty() {
            tree.id()
        } else {
            let entry = tree.get_path(Path::new(&self.path)).ok();
            let Some(entry) = entry.filter(|entry| entry.kind() == Some(ObjectType::Tree)) else {
                let (path, reference) = (self.path.clone(), self.reference.clone());
                return Err(Error::NoPath { path, reference, repository: self.repository.clone() });
            };
            entry.id()
        };
        let at = |path: &str| tree.get_path(Path::new(path)).ok().map(|entry| entry.id());
        // All of a repository changes with every commit; a part of it need not.
        if !self.path.is_empty()
            && known.is_some_and(|known| {
                known.tree == root && known.beside.iter().all(|(path, id)| at(path) == *id)
            })
        {
            return Ok(None);
        }
        if let Some(verify) = &self.verify {
            verify.check(repository, id).map_err(|why| Error::Unverified {
                commit: self.id.get(..12).unwrap_or(&self.id).to_owned(),
                repository: self.repository.clone(),
                why,
            })?;
        }
        let mut files = CommitFiles { repository, tree: &tree, reading: self };
        let (snapshot, asked) = collect(&mut files, &self.path, &self.repository)?;
        let author = commit.author();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let snapshot = Snapshot {
            revision: commit.id().to_string(),
            author: Some(format!("{} <{}>", text(author.name_bytes()), text(author.email_bytes()))),
            message: Some(text(commit.message_bytes()).trim_end().to_owned()),
            committed_at: Timestamp::from_second(commit.time().seconds()).ok(),
            ..snapshot
        };
        let beside = asked.into_iter().map(|path| (at(&path), path)).map(|(id, path)| (path, id)).collect();
        Ok(Some((snapshot, Index { tree: root, beside })))
    }
}

/// The files of one commit. Links are followed inside it and nowhere else.
struct CommitFiles<'a> {
    repository: &'a Repository,
    tree: &'a Tree<'a>,
    reading: &'a Reading,
}

const LINK: i32 = 0o120_000;
/// Links that lead to links.
const MOST_LINKS: usize = 8;

impl Files for CommitFiles<'_> {
    fn list(&mut self, dir: &str) -> Result<Vec<(String, Kind)>, Unlisted> {
        let failed = |source| Unlisted::Broken(self.reading.failed(&format!("{dir} of"))(source));
        let entry;
        let subtree;
        let tree = if dir.is_empty() {
            self.tree
        } else {
            entry = self.tree.get_path(Path::new(dir)).map_err(|_| Unlisted::Gone)?;
            if entry.kind() != Some(ObjectType::Tree) {
                return Err(Unlisted::Gone);
            }
            subtree = self.repository.find_tree(entry.id()).map_err(failed)?;
            &subtree
        };
        let mut found = Vec::new();
        for entry in tree {
            let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
            match entry.kind() {
                Some(ObjectType::Tree) => found.push((name, Kind::Directory)),
                Some(ObjectType::Blob) => found.push((name, Kind::File)),
                Some(ObjectType::Commit) => found.push((name, Kind::Submodule)),
                _ => {}
            }
        }
        Ok(found)
    }

    fn file(&mut self, path: &str) -> Result<Found, Error> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            if path.is_empty() || path.starts_with('/') || path.starts_with("..") {
                return Ok(Found::Nothing);
            }
            let Ok(entry) = self.tree.get_path(Path::new(&path)) else { return Ok(Found::Nothing) };
            if entry.kind() != Some(ObjectType::Blob) {
                return Ok(Found::Nothing);
            }
            let failed = self.reading.failed(&format!("{path} of"));
            let odb = self.repository.odb().map_err(&failed)?;
            let (size, _) = odb.read_header(entry.id()).map_err(&failed)?;
            if size > MOST_FILE_BYTES {
                let why = format!("is larger than {MOST_FILE_BYTES} bytes, so it is not read");
                return Ok(Found::Unreadable(why));
            }
            let object = odb.read(entry.id()).map_err(&failed)?;
            if entry.filemode() != LINK {
                return Ok(Found::File(Arc::from(object.data())));
            }
            let target = String::from_utf8_lossy(object.data()).into_owned();
            let next = join(parent(&path), &target);
            let leaves = next.starts_with('/') || next.starts_with("..");
            if leaves || self.tree.get_path(Path::new(&next)).is_err() {
                let where_to = if leaves { "out of the repository" } else { "to nothing" };
                return Ok(Found::Unreadable(format!(
                    "is a symbolic link that leads {where_to}, to {target}"
                )));
            }
            path = next;
        }
        Ok(Found::Unreadable("is a symbolic link that leads in a ring".to_owned()))
    }
}

/// The engine's own copy of a repository on another machine: packs, and what the refs were.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) dir: PathBuf,
}

impl Mirror {
    /// The repository's refs when it was last reached; only those that were wanted.
    pub(crate) fn last(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.dir.join("holdfast-refs")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(id, name)| (name.to_owned(), id.to_owned()))
            .collect()
    }

    /// Remembers them; written only when they differ.
    pub(crate) fn remember(&self, refs: &BTreeMap<String, String>) -> Result<(), Error> {
        if *refs == self.last() {
            return Ok(());
        }
        let text: String = refs.iter().map(|(name, id)| format!("{id} {name}\n")).collect();
        let (path, fresh) = (self.dir.join("holdfast-refs"), self.dir.join("holdfast-refs.new"));
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| Error::Write { path, source })
    }

    /// The object directory.
    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    fn open(&self) -> Result<Repository, git2::Error> {
        let mut options = RepositoryInitOptions::new();
        options.bare(true).mkpath(true).external_template(false);
        Repository::init_opts(&self.dir, &options)
    }

    /// Takes in a pack whose bytes arrive through a channel.
    pub(crate) fn store(&self, mut pack: tokio::sync::mpsc::Receiver<Vec<u8>>) -> Result<(), git2::Error> {
        let repository = self.open()?;
        let odb = repository.odb()?;
        let mut writer = odb.packwriter()?;
        while let Some(bytes) = pack.blocking_recv() {
            io::Write::write_all(&mut writer, &bytes)
                .map_err(|error| git2::Error::from_str(&error.to_string()))?;
        }
        writer.commit().map(|_| ())
    }

    /// Packs it consists of; many make it slow.
    pub(crate) fn packs(&self) -> usize {
        let dir = fs::read_dir(self.objects().join("pack"));
        dir.map_or(0, |entries| {
            entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "pack")).count()
        })
    }

    /// Begins anew.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write { path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }
}
