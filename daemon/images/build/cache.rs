//! Remembers which layer a step gave, by everything that decided about it.
//!
//! Invariant: an entry only hurries: one whose layer is gone is as good as none.

use crate::digest::Digest;
use crate::disk::Disk;
use crate::error::{Error, disk};
use crate::image::Descriptor;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::PathBuf;

/// A layer of an image being built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: String,
    /// When it was made, seconds since 1970.
    pub(crate) created: i64,
}

impl Stored {
    /// The digests of its blob and its directory.
    pub(crate) fn digests(&self) -> Option<(Digest, Digest)> {
        Some((Digest::parse(&self.blob.digest).ok()?, Digest::parse(&self.diff_id).ok()?))
    }
}

/// The key of a step: a sum over its parts, each with its length, so that no two lists of parts are one text.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The layer of a step that was done before. An empty list: the step changed nothing.
pub(crate) fn find(store: &Disk, key: &str) -> Option<Vec<Stored>> {
    let bytes = fs::read(path(store, key)).ok()?;
    let stored: Vec<Stored> = serde_json::from_slice(&bytes).ok()?;
    let here = stored.iter().all(|stored| {
        stored.digests().is_some_and(|(blob, diff)| store.has_blob(&blob) && store.has_layer(&diff))
    });
    here.then_some(stored)
}

pub(crate) fn keep(store: &Disk, key: &str, stored: &[Stored]) -> Result<(), Error> {
    let path = path(store, key);
    let dir = path.parent().unwrap_or(&path);
    fs::create_dir_all(dir).map_err(disk("create", dir))?;
    let bytes = serde_json::to_vec(stored).expect("a layer has only text keys");
    fs::write(&path, bytes).map_err(disk("write", &path))
}

/// Every layer that an entry needs; entries that need what is gone are taken away.
pub(crate) fn needs(store: &Disk) -> Vec<Digest> {
    let mut needs = Vec::new();
    let entries = fs::read_dir(store.dir().join("cache")).into_iter().flatten().flatten();
    for entry in entries {
        let key = entry.file_name().to_string_lossy().into_owned();
        match find(store, &key) {
            Some(stored) => {
                needs.extend(stored.iter().filter_map(Stored::digests).flat_map(|(blob, diff)| [blob, diff]));
            }
            None => drop(fs::remove_file(entry.path())),
        }
    }
    needs
}

/// Forgets everything.
pub(crate) fn clear(store: &Disk) -> Result<(), Error> {
    let dir = store.dir().join("cache");
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk("remove", &dir)(error)),
        _ => Ok(()),
    }
}

fn path(store: &Disk, key: &str) -> PathBuf {
    store.dir().join("cache").join(key)
}
