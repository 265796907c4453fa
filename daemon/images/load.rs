//! Reads images from files: OCI layouts, as directory or tar, and what `docker save` writes.
//!
//! Invariant: names inside an archive never become paths: files are kept under numbers and found by name or digest.

use crate::digest::{Digest, Sum, SummedWriter};
use crate::disk::Disk;
use crate::error::{Error, content, disk};
use crate::image::{self, Descriptor, Index, OCI_LAYER};
use crate::pack;
use crate::reference::Reference;
use crate::shelf::foreign_name;
use crate::tarball::Tarball;
use crate::unpack::decompressed;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const FILES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 3;

/// An image found in a file, not yet on the shelf.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) references: Vec<Reference>,
    pub(crate) manifest: Vec<u8>,
}

/// The files of a layout or archive.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    origin: PathBuf,
    files: Arc<Files>,
}

#[derive(Debug)]
enum Files {
    /// An OCI layout directory.
    Directory,
    /// What was in a tar: copies in a directory of ours that lives as long as this.
    Extracted {
        _dir: tempfile::TempDir,
        by_name: BTreeMap<Vec<u8>, Extracted>,
        links: BTreeMap<Vec<u8>, Vec<u8>>,
    },
}

#[derive(Debug)]
struct Extracted {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// One image of a `docker save` archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Contents {
    /// Opens a layout directory, or takes an archive apart into the store's `tmp`. Blocks.
    pub(crate) fn open(path: &Path, store: &Disk, bytes_max: u64) -> Result<Contents, Error> {
        let metadata = fs::metadata(path).map_err(disk("load images from", path))?;
        let files = match metadata.is_dir() {
            true => Files::Directory,
            false => extract(path, store, bytes_max)?,
        };
        Ok(Contents { origin: path.to_path_buf(), files: Arc::new(files) })
    }

    /// Every image that is for this machine.
    pub(crate) fn images(&self) -> Result<Vec<Found>, Error> {
        if let Some(index) = self.document(b"index.json")? {
            return self.layout(&index);
        }
        if let Some(saved) = self.document(b"manifest.json")? {
            return self.saved(&saved);
        }
        Err(content(
            self.origin.display().to_string(),
            "neither an OCI layout (index.json) nor a `docker save` archive (manifest.json)",
        ))
    }

    /// Copies a blob to the shelf's disk, checking its digest. Blocks.
    pub(crate) fn blob(&self, store: &Disk, digest: &Digest) -> Result<(), Error> {
        let what = format!("{}: blob {digest}", self.origin.display());
        let path = match &*self.files {
            Files::Directory => self.origin.join("blobs/sha256").join(digest.hex()),
            // By content, whatever the archive calls it: `docker save` names layers in its own way.
            Files::Extracted { by_name, .. } => match by_name.values().find(|file| file.digest == *digest) {
                Some(file) => file.path.clone(),
                None => return Err(content(what, "the archive does not hold it: export it again, whole")),
            },
        };
        let file = File::open(&path).map_err(disk("read blob", &path))?;
        store.copy_blob(file, digest, &what)
    }

    fn layout(&self, bytes: &[u8]) -> Result<Vec<Found>, Error> {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| self.unreadable("index.json", e))?;
        let mut found: BTreeMap<Vec<u8>, Vec<Reference>> = BTreeMap::new();
        for descriptor in &index.manifests {
            let Some(manifest) = self.resolve(descriptor, DEPTH_MAX)? else { continue };
            let reference = foreign_name(descriptor, &self.stem()).ok_or_else(|| {
                content(
                    self.origin.display().to_string(),
                    format!(
                        "image {} has no usable name: annotate it with org.opencontainers.image.ref.name, \
                         or name the file after the image",
                        descriptor.digest
                    ),
                )
            })?;
            found.entry(manifest).or_default().push(reference);
        }
        if found.is_empty() {
            let (own, offered) = (image::architecture(), image::offered(&index));
            let reason = format!("holds no image for linux/{own}; its platforms: {offered}");
            return Err(content(self.origin.display().to_string(), reason));
        }
        Ok(found.into_iter().map(|(manifest, references)| Found { references, manifest }).collect())
    }

    /// Follows a descriptor to this platform's manifest; other platforms' blobs are often left out of archives.
    fn resolve(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Vec<u8>>, Error> {
        let digest = Digest::parse(&descriptor.digest)
            .map_err(|reason| content(self.origin.display().to_string(), reason))?;
        let name = format!("blobs/sha256/{}", digest.hex());
        let Some(bytes) = self.document(name.as_bytes())? else { return Ok(None) };
        let found = Digest::of(&bytes);
        if found != digest {
            let what = format!("{}: {name}", self.origin.display());
            return Err(Error::Digest { what, expected: digest.to_string(), found: found.to_string() });
        }
        match image::read_index(&bytes).map_err(|e| self.unreadable(&name, e))? {
            None => Ok(Some(bytes)),
            Some(index) if depth > 0 => {
                for descriptor in image::fitting(&index) {
                    if let Some(manifest) = self.resolve(descriptor, depth - 1)? {
                        return Ok(Some(manifest));
                    }
                }
                Ok(None)
            }
            Some(_) => Err(content(self.origin.display().to_string(), "its indexes are nested too deeply")),
        }
    }

    fn saved(&self, bytes: &[u8]) -> Result<Vec<Found>, Error> {
        let saved: Vec<Saved> =
            serde_json::from_slice(bytes).map_err(|e| self.unreadable("manifest.json", e))?;
        let mut found = Vec::new();
        for image in saved {
            let missing = |name: &str| {
                content(
                    self.origin.display().to_string(),
                    format!("{name:?} is missing: export it again, whole"),
                )
            };
            let config = self.document(image.config.as_bytes())?.ok_or_else(|| missing(&image.config))?;
            let mut layers = Vec::new();
            for name in &image.layers {
                let file = self.extracted(name.as_bytes()).ok_or_else(|| missing(name))?;
                layers.push(Descriptor {
                    media_type: OCI_LAYER.into(),
                    digest: file.digest.to_string(),
                    size: file.size,
                    ..Descriptor::default()
                });
            }
            let mut references = Vec::new();
            for tag in image.repo_tags.unwrap_or_default() {
                references.push(tag.parse()?);
            }
            if references.is_empty() {
                references.push(self.stem().parse()?);
            }
            found.push(Found { references, manifest: pack::manifest(layers, &config) });
        }
        Ok(found)
    }

    /// A small file by its name in the layout; None when it is not there.
    fn document(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let path = match &*self.files {
            Files::Directory => self.origin.join(String::from_utf8_lossy(name).as_ref()),
            Files::Extracted { .. } => match self.extracted(name) {
                Some(file) => file.path.clone(),
                None => return Ok(None),
            },
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("read", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(disk("read", &path))?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            let name = String::from_utf8_lossy(name);
            return Err(content(self.origin.display().to_string(), format!("{name} is larger than 8 MiB")));
        }
        Ok(Some(bytes))
    }

    fn extracted(&self, name: &[u8]) -> Option<&Extracted> {
        let Files::Extracted { by_name, links, .. } = &*self.files else { return None };
        // Old `docker save` stores a layer once and links to it; a link to a link is not written by it.
        by_name.get(links.get(name).map_or(name, Vec::as_slice))
    }

    /// `kubia` of `/tmp/kubia.tar.gz`.
    fn stem(&self) -> String {
        let name = self.origin.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.split('.').next().unwrap_or_default().to_owned()
    }

    fn unreadable(&self, name: &str, source: serde_json::Error) -> Error {
        Error::Document { what: format!("{name} of {}", self.origin.display()), source: Arc::new(source) }
    }
}

fn extract(path: &Path, store: &Disk, bytes_max: u64) -> Result<Files, Error> {
    let dir = store.scratch_dir()?;
    let broken = || disk("read archive", path);
    let file = File::open(path).map_err(broken())?;
    let mut tarball = Tarball::new(decompressed(file).map_err(broken())?);
    let (mut by_name, mut links) = (BTreeMap::new(), BTreeMap::new());
    let mut left = bytes_max;
    while let Some(entry) = tarball.next_entry().map_err(broken())? {
        if by_name.len() + links.len() >= FILES_MAX {
            return Err(content(path.display().to_string(), format!("more than {FILES_MAX} files")));
        }
        let name = plain(&entry.path);
        if entry.kind.is_symlink() || entry.kind.is_hard_link() {
            let base = if entry.kind.is_symlink() { parent(&name) } else { &[][..] };
            links.insert(name.clone(), plain(&[base, b"/", &entry.link].concat()));
        } else if entry.kind.is_file() {
            left = left.checked_sub(entry.size).ok_or_else(|| {
                content(path.display().to_string(), format!("holds more than the limit of {bytes_max} bytes"))
            })?;
            let copy = dir.path().join(by_name.len().to_string());
            let file = File::create(&copy).map_err(disk("write", &copy))?;
            let mut out = SummedWriter { inner: file, sum: Sum::default() };
            io::copy(&mut tarball, &mut out).map_err(disk("copy from archive to", &copy))?;
            by_name.insert(name, Extracted { path: copy, size: out.sum.bytes, digest: out.sum.digest() });
        }
    }
    Ok(Files::Extracted { _dir: dir, by_name, links })
}

fn parent(name: &[u8]) -> &[u8] {
    &name[..name.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

/// `./a/../b` is `b`.
fn plain(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
