//! What was applied and what was pruned, on this machine's disk: the way back, also without a network.
//!
//! Invariant: a revision that can be rolled back to can be read from here alone; equal files lie here once.
//! Invariant: nothing is written while nothing changes; what is kept is bounded by the history and by time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::build::Id;
use crate::source::Snapshot;

/// How long what was pruned can be brought back, and how many objects at most.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
const MOST_KEPT: usize = 2000;

/// The revisions and tombstones of one application.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    dir: PathBuf,
}

/// An object that was pruned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    /// When.
    pub at: Timestamp,
    /// Which object.
    pub id: Id,
    /// The revision that no longer wanted it.
    pub revision: String,
    /// Where it was written.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// As it was.
    pub object: Value,
}

#[derive(Serialize, Deserialize)]
struct Listing {
    revision: String,
    author: Option<String>,
    message: Option<String>,
    committed_at: Option<Timestamp>,
    #[serde(default)]
    root: String,
    files: BTreeMap<String, String>,
    unreadable: BTreeMap<String, String>,
}

impl Archive {
    pub(crate) fn new(dir: PathBuf) -> Archive {
        Archive { dir }
    }

    /// Keeps a snapshot, and of the others those in `keep`.
    pub(crate) fn save(&self, snapshot: &Snapshot, keep: &BTreeSet<String>) -> Result<(), Error> {
        let path = self.listing(&snapshot.revision);
        if path.exists() {
            return Ok(());
        }
        let mut files = BTreeMap::new();
        for (name, bytes) in &snapshot.files {
            let digest = hex(&Sha256::digest(bytes));
            let file = self.dir.join("files").join(&digest);
            if !file.exists() {
                write(&file, bytes)?;
            }
            files.insert(name.to_string(), digest);
        }
        let listing = Listing {
            revision: snapshot.revision.clone(),
            author: snapshot.author.clone(),
            message: snapshot.message.clone(),
            committed_at: snapshot.committed_at,
            root: snapshot.root.to_string(),
            files,
            unreadable: snapshot
                .unreadable
                .iter()
                .map(|(file, why)| (file.to_string(), why.clone()))
                .collect(),
        };
        write(&path, &serde_json::to_vec(&listing).expect("a listing is plain data"))?;
        self.sweep(&snapshot.revision, keep);
        Ok(())
    }

    /// A snapshot that was kept; nothing when it is not here whole.
    pub(crate) fn load(&self, revision: &str) -> Option<Snapshot> {
        let listing: Listing = serde_json::from_slice(&fs::read(self.listing(revision)).ok()?).ok()?;
        let mut files = BTreeMap::new();
        for (name, digest) in &listing.files {
            let bytes = fs::read(self.dir.join("files").join(digest)).ok()?;
            // A disk that lies must not become what the machine holds.
            if hex(&Sha256::digest(&bytes)) != *digest {
                return None;
            }
            files.insert(Arc::from(name.as_str()), Arc::from(bytes));
        }
        let unreadable = listing.unreadable.iter().map(|(file, why)| (Arc::from(file.as_str()), why.clone()));
        Some(Snapshot {
            revision: listing.revision,
            author: listing.author,
            message: listing.message,
            committed_at: listing.committed_at,
            root: Arc::from(listing.root),
            files,
            unreadable: unreadable.collect(),
        })
    }

    /// Keeps an object that is about to be deleted.
    pub(crate) fn bury(&self, tombstone: &Tombstone) -> Result<(), Error> {
        let name = hex(&Sha256::digest(tombstone.id.to_string()))[..16].to_owned();
        let path =
            self.dir.join("pruned").join(format!("{:020}-{name}.json", tombstone.at.as_millisecond().max(0)));
        write(&path, &serde_json::to_vec(tombstone).expect("an object is plain data"))?;
        let all = self.graves();
        let surplus = all.len().saturating_sub(MOST_KEPT);
        for (at, path) in all.iter().enumerate() {
            let old = read(path).is_none_or(|old| tombstone.at.duration_since(old.at) > KEPT);
            if !old && at >= surplus {
                break;
            }
            // One that cannot be removed now is removed the next time.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// What was pruned and can be brought back, the newest first; of each object the last.
    pub(crate) fn buried(&self, now: Timestamp) -> Vec<Tombstone> {
        let mut seen = BTreeSet::new();
        let all = self.graves().into_iter().rev().filter_map(|path| read(&path));
        all.filter(|known| now.duration_since(known.at) <= KEPT && seen.insert(known.id.clone())).collect()
    }

    fn graves(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("pruned")).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension() == Some("json".as_ref()));
        paths.sort();
        paths
    }

    fn listing(&self, revision: &str) -> PathBuf {
        self.dir.join("revisions").join(format!("{}.json", hex(&Sha256::digest(revision))))
    }

    /// What no kept revision needs goes. A failure leaves something to the next sweep.
    fn sweep(&self, newest: &str, keep: &BTreeSet<String>) {
        let mut needed = BTreeSet::new();
        for entry in fs::read_dir(self.dir.join("revisions")).into_iter().flatten().flatten() {
            let listing =
                fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Listing>(&bytes).ok());
            match listing {
                Some(listing) if listing.revision == newest || keep.contains(&listing.revision) => {
                    needed.extend(listing.files.into_values());
                }
                _ => {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        for entry in fs::read_dir(self.dir.join("files")).into_iter().flatten().flatten() {
            if !needed.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn read(path: &Path) -> Option<Tombstone> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whole or not at all, and for root alone: files may hold secrets.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Write { path: path.to_path_buf(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let passing = path.with_extension("passing");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&passing)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(failed)?;
    fs::rename(&passing, path).map_err(failed)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    fn snapshot(revision: &str, files: &[(&str, &str)]) -> Snapshot {
        let files = files.iter().map(|(name, text)| (Arc::from(*name), Arc::from(text.as_bytes())));
        Snapshot {
            revision: revision.into(),
            message: Some("why".into()),
            files: files.collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_revision_comes_back_as_it_was_and_goes_when_the_history_forgets_it() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::new(dir.path().join("demo"));
        let (one, two) =
            (snapshot("r/1", &[("a", "1"), ("b", "x")]), snapshot("r2", &[("a", "2"), ("b", "x")]));
        archive.save(&one, &BTreeSet::new()).unwrap();
        archive.save(&two, &BTreeSet::from(["r/1".to_owned()])).unwrap();
        assert_eq!(archive.load("r/1"), Some(one));
        assert_eq!(archive.load("r2"), Some(two.clone()));
        assert_eq!(fs::read_dir(dir.path().join("demo/files")).unwrap().count(), 3);
        archive.save(&snapshot("r3", &[("b", "x")]), &BTreeSet::from(["r2".to_owned()])).unwrap();
        assert_eq!((archive.load("r/1"), archive.load("r2")), (None, Some(two)));
        assert_eq!(fs::read_dir(dir.path().join("demo/files")).unwrap().count(), 2);
        for file in fs::read_dir(dir.path().join("demo/files")).unwrap() {
            fs::write(file.unwrap().path(), "rot").unwrap();
        }
        assert_eq!(archive.load("r2"), None, "what is not what it was is not brought back");
    }

    #[test]
    fn what_was_pruned_can_be_found_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::new(dir.path().to_path_buf());
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let stone = |name: &str, when: &str| Tombstone {
            at: at(when),
            id: Id { kind: "ConfigMap".into(), name: name.into(), ..Id::default() },
            revision: "r".into(),
            file: "a.yaml".into(),
            line: 1,
            object: json!({"data": {"k": when}}),
        };
        archive.bury(&stone("a", "2026-01-01T00:00:00Z")).unwrap();
        archive.bury(&stone("a", "2026-01-02T00:00:00Z")).unwrap();
        archive.bury(&stone("b", "2026-01-03T00:00:00Z")).unwrap();
        let found = archive.buried(at("2026-01-04T00:00:00Z"));
        let names: Vec<(&str, i8)> = found
            .iter()
            .map(|s| (s.id.name.as_str(), s.at.to_zoned(jiff::tz::TimeZone::UTC).day()))
            .collect();
        assert_eq!(names, [("b", 3), ("a", 2)]);
        archive.bury(&stone("c", "2026-01-09T12:00:00Z")).unwrap();
        assert_eq!(archive.buried(at("2026-01-09T12:00:00Z")).len(), 2);
        assert_eq!(archive.graves().len(), 2);
    }
}
