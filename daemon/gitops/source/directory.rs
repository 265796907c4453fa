//! A directory as a source: read whole after every change, noticed by notification.
//!
//! Invariant: the watch stands before the directory is read, so no change falls between the two.
//! Invariant: a directory that is gone is trouble, not an empty directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::{EventKind, RecursiveMode};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::collect::{Found, Kind, Tree, Unlisted, collect};
use super::notice::{Notice, Quiet, may_be_directory, nearest_existing};
use super::{MOST_FILE_BYTES, Slot, Snapshot, is_manifest, is_passing};
use crate::Error;
use crate::build::is_kustomization;
use crate::build::kustomize::{NAMES, is_below, join, parent};

/// After a time without changes: one save is one save.
const CALM: Quiet = Quiet {
    done: Duration::from_millis(3),
    unsettled: Duration::from_millis(30),
    most: Duration::from_secs(1),
};
/// While changes follow each other.
const BURST: Quiet = Quiet {
    done: Duration::from_millis(30),
    unsettled: Duration::from_millis(30),
    most: Duration::from_secs(1),
};
/// Changes nearer to each other than this are a burst.
const BURST_GAP: Duration = Duration::from_millis(250);
/// Two writes nearer than the file system's clock tick cannot be told apart by their times.
const RACY: Duration = Duration::from_millis(100);
/// When the watch itself cannot be had (too many watches, say), the directory is looked at this often.
const WITHOUT_WATCH: Duration = Duration::from_secs(5);

/// A directory that one application follows.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) slot: Slot,
}

impl Directory {
    /// Follows the directory until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut reader = Reader { root: self.path.clone(), known: BTreeMap::new() };
        let mut last_change: Option<Instant> = None;
        let mut beside = Beside::default();
        loop {
            let notice = watch(&self.path, &beside);
            let identity = identity(&self.path);
            // Until the thing behind the path is another one, this watch is the right one.
            loop {
                reader = self.read(reader).await;
                let now = self.slot.snapshot().map(|snapshot| Beside::of(&snapshot)).unwrap_or_default();
                if now != beside {
                    beside = now;
                    break;
                }
                let burst = || last_change.is_some_and(|at| at.elapsed() < BURST_GAP);
                tokio::select! {
                    biased;
                    // Cancel-safe: a token stays cancelled.
                    () = stop.cancelled() => return,
                    // Cancel-safe: Notice::settled forgets touches only at its return.
                    () = changed(&notice, || if burst() { BURST } else { CALM }, &self.slot) => {}
                }
                last_change = Some(Instant::now());
                if notice.is_err() || identity.is_none() || self::identity(&self.path) != identity {
                    break;
                }
            }
        }
    }

    async fn read(&self, mut reader: Reader) -> Reader {
        let root = reader.root.clone();
        let read = tokio::task::spawn_blocking(move || {
            let snapshot = reader.read();
            (reader, snapshot)
        });
        match read.await {
            Ok((reader, Ok(snapshot))) => {
                self.slot.good(snapshot);
                reader
            }
            Ok((reader, Err(error))) => {
                self.slot.trouble(&error);
                reader
            }
            Err(_) => {
                self.slot.trouble(&Error::CutOff("reading the directory"));
                Reader { root, known: BTreeMap::new() }
            }
        }
    }
}

async fn changed(notice: &Result<Notice, Error>, quiet: impl Fn() -> Quiet, slot: &Slot) {
    match notice {
        Ok(notice) => {
            notice.settled(quiet).await;
        }
        Err(error) => {
            slot.trouble(error);
            tokio::time::sleep(WITHOUT_WATCH).await;
        }
    }
}

/// Reads a directory once, or a single file.
pub(crate) fn read(path: &Path) -> Result<Snapshot, Error> {
    if !path.is_file() {
        return Reader { root: path.to_path_buf(), known: BTreeMap::new() }.read();
    }
    let fail = |source| Error::ReadDirectory { path: path.to_path_buf(), source };
    let bytes = fs::read(path).map_err(fail)?;
    let name = join("", &path.display().to_string());
    let root = Arc::from(parent(&name));
    let files = BTreeMap::from([(Arc::from(name), Arc::from(bytes))]);
    Ok(Snapshot { root, files, ..Snapshot::default() })
}

/// What a directory's kustomizations read besides its own manifests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Beside {
    /// Then any file may be one that they read.
    has_kustomizations: bool,
    /// Directories beside the application's own.
    dirs: BTreeSet<PathBuf>,
}

impl Beside {
    fn of(snapshot: &Snapshot) -> Beside {
        let outside = snapshot.files.keys().filter(|file| !is_below(&snapshot.root, file));
        Beside {
            has_kustomizations: snapshot.files.keys().any(|file| is_kustomization(file)),
            dirs: outside.map(|file| on_disk(parent(file))).collect(),
        }
    }
}

/// Watches the directory with all below it, what its kustomizations read beside it, and the directory above, which says
/// when this one is replaced.
fn watch(path: &Path, beside: &Beside) -> Result<Notice, Error> {
    // Events name paths as they are watched: one spelling for all of them.
    let root = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let above = nearest_existing(root.parent().unwrap_or(Path::new("/")));
    let mut paths = vec![(above, RecursiveMode::NonRecursive)];
    let here = root.is_dir();
    if here {
        paths.push((root.clone(), RecursiveMode::Recursive));
    }
    let others: BTreeSet<PathBuf> = beside
        .dirs
        .iter()
        .filter_map(|dir| std::path::absolute(dir).ok())
        .filter(|dir| dir.is_dir())
        .collect();
    paths.extend(others.iter().map(|dir| (dir.clone(), RecursiveMode::NonRecursive)));
    let any_file = beside.has_kustomizations;
    Notice::new(&paths, move |touched: &Path, kind: &EventKind| {
        if !here {
            return may_be_directory(kind);
        }
        let Ok(below) = touched.strip_prefix(&root) else {
            if touched.parent().is_some_and(|dir| others.contains(dir)) {
                return true;
            }
            // The directory above was itself moved or removed.
            return root.starts_with(touched);
        };
        let name = below.file_name().map(|name| name.to_string_lossy());
        if name.as_deref().is_some_and(|name| matches!(name, ".sourceignore" | ".holdfastignore")) {
            return true;
        }
        let hidden = below.components().any(|part| is_passing(&part.as_os_str().to_string_lossy()));
        let wanted = |name: &str| any_file || is_manifest(name) || NAMES.contains(&name);
        !hidden && name.is_none_or(|name| wanted(&name) || may_be_directory(kind))
    })
}

/// What stands behind a path, so that a replaced directory or link is seen.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Reads a directory; keeps bytes of files that did not change.
struct Reader {
    root: PathBuf,
    known: BTreeMap<PathBuf, Known>,
}

#[derive(Clone)]
struct Known {
    stamp: (u64, u64, i64, i64),
    /// Read long enough after its last change that the stamp tells all later ones.
    sure: bool,
    bytes: Arc<[u8]>,
}

impl Reader {
    fn read(&mut self) -> Result<Snapshot, Error> {
        let shown = self.root.display().to_string();
        // A name is one and the same however its directory was spelled.
        let root = join("", &shown);
        let meta = fs::metadata(&self.root).and_then(|_| fs::read_dir(&self.root));
        meta.map_err(|source| Error::ReadDirectory { path: self.root.clone(), source })?;
        let mut reading = Reading { reader: self, known: BTreeMap::new() };
        let (mut snapshot, _) = collect(&mut reading, &root, &shown)?;
        self.known = reading.known;
        snapshot.revision = revision(&snapshot);
        Ok(snapshot)
    }

    /// One file; nothing if it has vanished meanwhile or is no file.
    fn file(&self, path: &Path) -> Result<Option<Known>, String> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                return Ok(None);
            }
            Err(error) => return Err(format!("cannot be read: {error}")),
        };
        if !meta.is_file() {
            return Ok(None);
        }
        if meta.len() > MOST_FILE_BYTES as u64 {
            return Err(format!("is larger than {MOST_FILE_BYTES} bytes, so it is not read"));
        }
        let stamp = stamp(&meta);
        if let Some(known) = self.known.get(path).filter(|known| known.sure && known.stamp == stamp) {
            return Ok(Some(known.clone()));
        }
        let sure = age(&meta).is_some_and(|age| age > RACY);
        match fs::read(path) {
            Ok(bytes) => {
                let old = self.known.get(path).map(|known| &known.bytes).filter(|old| ***old == *bytes);
                let bytes = old.map_or_else(|| Arc::from(bytes), Arc::clone);
                Ok(Some(Known { stamp, sure, bytes }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot be read: {error}")),
        }
    }
}

fn stamp(meta: &Metadata) -> (u64, u64, i64, i64) {
    (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec())
}

fn age(meta: &Metadata) -> Option<Duration> {
    let changed =
        UNIX_EPOCH + Duration::new(u64::try_from(meta.ctime()).ok()?, u32::try_from(meta.ctime_nsec()).ok()?);
    SystemTime::now().duration_since(changed).ok()
}

/// One reading of a directory. Links to files are followed, links to directories are not: they may form a ring.
struct Reading<'r> {
    reader: &'r Reader,
    known: BTreeMap<PathBuf, Known>,
}

impl Tree for Reading<'_> {
    fn list(&mut self, dir: &str) -> Result<Vec<(String, Kind)>, Unlisted> {
        let path = on_disk(dir);
        let unlisted = |source: io::Error| match source.kind() {
            _ if path == self.reader.root => {
                Unlisted::Broken(Error::ReadDirectory { path: path.clone(), source })
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unlisted::Gone,
            _ => Unlisted::Hidden(format!("cannot be listed: {source}")),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(&unlisted)? {
            let entry = entry.map_err(&unlisted)?;
            let is_dir = entry.file_type().map_err(&unlisted)?.is_dir();
            let kind = if is_dir { Kind::Directory } else { Kind::File };
            found.push((entry.file_name().to_string_lossy().into_owned(), kind));
        }
        Ok(found)
    }

    fn file(&mut self, path: &str) -> Result<Found, Error> {
        let path = on_disk(path);
        Ok(match self.reader.file(&path) {
            Ok(Some(known)) => {
                let bytes = Arc::clone(&known.bytes);
                self.known.insert(path, known);
                Found::File(bytes)
            }
            Ok(None) => Found::Nothing,
            Err(why) => Found::Unreadable(why),
        })
    }
}

fn on_disk(name: &str) -> PathBuf {
    PathBuf::from(if name.is_empty() { "." } else { name })
}

/// A hash of names and contents: the same files always have the same revision.
fn revision(snapshot: &Snapshot) -> String {
    let mut hasher = Sha256::new();
    let mut feed = |part: &[u8]| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    for (name, bytes) in &snapshot.files {
        feed(name.as_bytes());
        feed(bytes);
    }
    for (name, why) in &snapshot.unreadable {
        feed(name.as_bytes());
        feed(why.as_bytes());
    }
    let digest = hasher.finalize();
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
