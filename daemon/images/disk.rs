//! The directory of an image store: `blobs/sha256`, `layers`, `index.json`, and `tmp` for what is not finished.
//!
//! Invariant: a file in `blobs` or `layers` is whole: it was made in `tmp`, synced, and renamed.
//! Invariant: one process at a time has the directory open.

use crate::digest::{Digest, Sum, SummedWriter};
use crate::error::{Error, disk};
use crate::garbage::Space;
use crate::image::{Descriptor, Index, OCI_INDEX};
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::{NamedTempFile, TempDir};

/// An open store directory.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    _lock: File,
}

impl Disk {
    /// Makes the directory where it is not there, locks it, and removes what a crash left unfinished.
    pub(crate) fn open(dir: &Path) -> Result<Disk, Error> {
        for part in ["blobs/sha256", "layers"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).map_err(disk("make", &part))?;
        }
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(disk("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::Locked { dir: dir.to_path_buf() })?;
        let store = Disk { dir: dir.to_path_buf(), _lock: lock };
        let tmp = store.dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk("empty", &tmp)(error)),
            _ => fs::create_dir(&tmp).map_err(disk("make", &tmp))?,
        }
        let layout = store.dir.join("oci-layout");
        if !layout.exists() {
            fs::write(&layout, r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(disk("write", &layout))?;
        }
        Ok(store)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn space(&self) -> Result<Space, Error> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| disk("measure", &self.dir)(e.into()))?;
        Ok(Space { total_bytes: stat.f_blocks * stat.f_frsize, free_bytes: stat.f_bavail * stat.f_frsize })
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(diff_id).exists()
    }

    /// Reads a small blob whole: a manifest or a configuration.
    pub(crate) fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        fs::read(&path).map_err(disk("read", &path))
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(disk("open", &path))
    }

    /// A file to be filled and kept; it goes away when it is not kept.
    pub(crate) fn scratch(&self) -> Result<NamedTempFile, Error> {
        let tmp = self.dir.join("tmp");
        NamedTempFile::new_in(&tmp).map_err(disk("make a file in", &tmp))
    }

    pub(crate) fn scratch_dir(&self) -> Result<TempDir, Error> {
        let tmp = self.dir.join("tmp");
        let dir = TempDir::new_in(&tmp).map_err(disk("make a directory in", &tmp))?;
        Ok(dir)
    }

    /// What an earlier attempt left of a blob of this size, or an empty file. Blocks: what is there is summed.
    pub(crate) fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, Error> {
        let dir = self.dir.join("partial");
        fs::create_dir_all(&dir).map_err(disk("make", &dir))?;
        let path = dir.join(digest.hex());
        let file = File::options().create(true).read(true).append(true).open(&path);
        let mut part = Partial { file: file.map_err(disk("open", &path))?, path, sum: Sum::default() };
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = part.file.read(&mut buffer).map_err(disk("read", &part.path))?;
            if read == 0 {
                break;
            }
            part.sum.update(&buffer[..read]);
        }
        if part.sum.bytes > size {
            part.restart()?;
        }
        Ok(part)
    }

    /// Makes a whole one a blob.
    pub(crate) fn keep_partial(&self, part: Partial, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        part.file.sync_all().map_err(disk("sync", &part.path))?;
        fs::rename(&part.path, &path).map_err(disk("rename to", &path))
    }

    /// Makes a filled file a blob. The caller has checked that the bytes have this digest.
    pub(crate) fn keep_blob(&self, file: NamedTempFile, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        file.as_file().sync_all().map_err(disk("sync", file.path()))?;
        file.persist(&path).map_err(|e| disk("rename to", &path)(e.error))?;
        Ok(())
    }

    /// Makes a filled directory a layer.
    pub(crate) fn keep_layer(&self, dir: TempDir, diff_id: &Digest) -> Result<(), Error> {
        let path = self.layer_path(diff_id);
        let handle = File::open(dir.path()).map_err(disk("open", dir.path()))?;
        // One call for all files of the layer instead of one fsync for each.
        rustix::fs::syncfs(&handle).map_err(|e| disk("sync", dir.path())(e.into()))?;
        fs::rename(dir.path(), &path).map_err(disk("rename to", &path))?;
        // Nothing is there any more that it could remove.
        let _ = dir.keep();
        Ok(())
    }

    /// Writes bytes as a blob and says their digest.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest) {
            self.copy_blob(bytes, &digest, &digest.to_string())?;
        }
        Ok(digest)
    }

    /// Copies a stream into a blob that must have this digest; `what` names it in messages.
    pub(crate) fn copy_blob(&self, mut from: impl Read, digest: &Digest, what: &str) -> Result<(), Error> {
        let file = self.scratch()?;
        let mut out = SummedWriter { inner: file, sum: Sum::default() };
        io::copy(&mut from, &mut out).map_err(disk("copy a blob to", out.inner.path()))?;
        let found = out.sum.digest();
        if found != *digest {
            let (expected, found) = (digest.to_string(), found.to_string());
            return Err(Error::Digest { what: what.to_owned(), expected, found });
        }
        self.keep_blob(out.inner, digest)
    }

    /// The index as it is on disk; empty when there is none yet.
    pub(crate) fn read_index(&self) -> Result<Index, Error> {
        let path = self.dir.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(disk("read", &path)(error)),
        };
        serde_json::from_slice(&bytes).map_err(|source| Error::Document {
            what: format!("{} (move it away to start with an empty image store)", path.display()),
            source: Arc::new(source),
        })
    }

    /// Replaces the index; when this returns, it and all it names survive a power cut.
    pub(crate) fn write_index(&self, manifests: Vec<Descriptor>) -> Result<(), Error> {
        let index = Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests };
        let bytes = serde_json::to_vec_pretty(&index).expect("an index has only text keys");
        for dir in ["blobs/sha256", "layers"] {
            let dir = self.dir.join(dir);
            sync_directory(&dir)?;
        }
        let path = self.dir.join("index.json");
        let mut file = self.scratch()?;
        file.write_all(&bytes).map_err(disk("write", file.path()))?;
        file.as_file().sync_all().map_err(disk("sync", file.path()))?;
        file.persist(&path).map_err(|e| disk("rename to", &path)(e.error))?;
        sync_directory(&self.dir)
    }

    /// Moves every blob and layer that is not in `needed` into a directory to be deleted.
    pub(crate) fn set_aside(&self, needed: &BTreeSet<Digest>) -> Result<TempDir, Error> {
        let aside = self.scratch_dir()?;
        for part in ["blobs/sha256", "layers", "partial"] {
            let dir = self.dir.join(part);
            if !dir.exists() {
                continue;
            }
            let into = aside.path().join(part);
            fs::create_dir_all(&into).map_err(disk("make", &into))?;
            for entry in fs::read_dir(&dir).map_err(disk("list", &dir))? {
                let entry = entry.map_err(disk("list", &dir))?;
                let name = entry.file_name();
                let digest = Digest::parse(&format!("sha256:{}", name.to_string_lossy()));
                if !digest.is_ok_and(|digest| needed.contains(&digest)) {
                    fs::rename(entry.path(), into.join(&name)).map_err(disk("set aside", &entry.path()))?;
                }
            }
        }
        Ok(aside)
    }
}

/// A blob that is being fetched. It stays when the fetch breaks off, so that the next one goes on from there.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    pub(crate) path: PathBuf,
    /// Of what is in the file.
    pub(crate) sum: Sum,
}

impl Partial {
    /// Begins again.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(disk("empty", &self.path))?;
        self.sum = Sum::default();
        Ok(())
    }

    /// Appends.
    pub(crate) fn writer(&self) -> Result<tokio::fs::File, Error> {
        self.file.try_clone().map(tokio::fs::File::from_std).map_err(disk("write", &self.path))
    }

    /// Takes it away: its bytes are not what they should be.
    pub(crate) fn discard(&self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(disk("remove", &self.path))
    }
}

/// Bytes of all files below a directory, as their sizes say; links are not followed.
pub(crate) fn size_below(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                bytes += metadata.len();
            }
        }
    }
    Ok(bytes)
}

fn sync_directory(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(disk("sync", dir))
}
