//! Writes images as archives that other engines read: OCI, which `docker load` takes as well, or Docker's older form.
//!
//! Invariant: the same images give the same bytes, whenever they are written.

use crate::digest::{Digest, Sum};
use crate::error::{Error, content, disk};
use crate::image::{Descriptor, Image, Index, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::shelf::{NAME, Shelf, TAG, documents};
use crate::unpack::decompressed;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// The form of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An OCI layout, with the index that `docker load` reads beside it.
    #[default]
    Oci,
    /// What `docker save` wrote before: one plain tar per layer.
    Docker,
}

/// An image and the names it is saved under.
pub(crate) type Chosen = (Arc<Image>, Vec<Reference>);

/// Writes the archive. Blocks.
pub(crate) fn save(
    shelf: &Shelf,
    chosen: &[Chosen],
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let mut archive = Archive { shelf, tar: tar::Builder::new(out), written: BTreeSet::new() };
    match format {
        Format::Oci => archive.oci(chosen)?,
        Format::Docker => archive.docker(chosen)?,
    }
    archive.tar.into_inner().and_then(|out| out.flush()).map_err(disk("write", Path::new("an archive")))
}

struct Archive<'a> {
    shelf: &'a Shelf,
    tar: tar::Builder<&'a mut dyn Write>,
    written: BTreeSet<String>,
}

impl Archive<'_> {
    fn oci(&mut self, chosen: &[Chosen]) -> Result<(), Error> {
        let (mut manifests, mut saved) = (Vec::new(), Vec::new());
        for (image, names) in chosen {
            let (manifest, id) = (parse(&image.digest)?, parse(&image.id)?);
            let bytes = self.shelf.disk.read_document(&manifest)?;
            let config = self.shelf.disk.read_document(&id)?;
            let read = documents(&image.digest, &bytes, &config)?;
            let size = bytes.len() as u64;
            let media_type = match read.manifest.media_type.is_empty() {
                true => OCI_MANIFEST.to_owned(),
                false => read.manifest.media_type.clone(),
            };
            let descriptor = |annotations| Descriptor {
                media_type: media_type.clone(),
                digest: image.digest.clone(),
                size,
                platform: None,
                annotations,
            };
            if names.is_empty() {
                manifests.push(descriptor(BTreeMap::new()));
            }
            manifests.extend(names.iter().map(|name| {
                let tag = name.tag().map(|tag| (TAG.to_owned(), tag.to_owned()));
                let full = (NAME.to_owned(), name.canonical());
                descriptor([full].into_iter().chain(tag).collect())
            }));
            let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            let layers: Vec<String> = read.layers.iter().map(|(digest, _)| blob(digest)).collect();
            saved.push(json!({"Config": blob(&id), "RepoTags": tags(names), "Layers": layers}));
            for digest in read.layers.iter().map(|(digest, _)| digest).chain([&id, &manifest]) {
                let file = self.shelf.disk.open_blob(digest)?;
                self.file(&blob(digest), file)?;
            }
        }
        let index = Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests };
        self.document("index.json", &serde_json::to_vec(&index).expect("an index has only text keys"))?;
        self.document("manifest.json", &serde_json::to_vec(&saved).expect("plain data"))?;
        self.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    fn docker(&mut self, chosen: &[Chosen]) -> Result<(), Error> {
        let mut saved = Vec::new();
        for (image, names) in chosen {
            let (manifest, id) = (parse(&image.digest)?, parse(&image.id)?);
            let config = self.shelf.disk.read_document(&id)?;
            let read = documents(&image.digest, &self.shelf.disk.read_document(&manifest)?, &config)?;
            let mut layers = Vec::new();
            for (digest, diff_id) in &read.layers {
                let name = format!("{}.tar", diff_id.hex());
                if !self.written.contains(&name) {
                    let file = self.plain(digest)?;
                    self.file(&name, file)?;
                }
                layers.push(name);
            }
            let name = format!("{}.json", id.hex());
            self.document(&name, &config)?;
            saved.push(json!({"Config": name, "RepoTags": tags(names), "Layers": layers}));
        }
        self.document("manifest.json", &serde_json::to_vec(&saved).expect("plain data"))
    }

    /// A layer without its compression, as a file, for a tar tells sizes first.
    fn plain(&self, digest: &Digest) -> Result<File, Error> {
        let mut scratch = self.shelf.disk.scratch()?;
        let path = scratch.path().to_owned();
        let file = self.shelf.disk.open_blob(digest)?;
        let copied = decompressed(file).and_then(|mut plain| io::copy(&mut plain, scratch.as_file_mut()));
        copied.map_err(disk("write a layer to", &path))?;
        scratch.reopen().map_err(disk("open", &path))
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.entry(name, bytes.len() as u64, bytes)
    }

    fn file(&mut self, name: &str, file: File) -> Result<(), Error> {
        let size = file.metadata().map_err(disk("read", Path::new(name)))?.len();
        self.entry(name, size, file)
    }

    fn entry(&mut self, name: &str, size: u64, bytes: impl Read) -> Result<(), Error> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        self.tar.append_data(&mut header, name, bytes).map_err(disk("write to the archive", Path::new(name)))
    }
}

fn parse(digest: &str) -> Result<Digest, Error> {
    Digest::parse(digest).map_err(|reason| content("an image", reason))
}

/// Docker knows images by tags only.
fn tags(names: &[Reference]) -> Vec<String> {
    names.iter().filter(|name| name.digest().is_none()).map(ToString::to_string).collect()
}

/// Compresses a plain layer for a registry: its file, digest and bytes. Blocks.
pub(crate) fn compressed(
    shelf: &Shelf,
    digest: &Digest,
) -> Result<(tempfile::NamedTempFile, Digest, u64), Error> {
    let scratch = shelf.disk.scratch()?;
    let path = scratch.path().to_owned();
    let sink = crate::digest::SummedWriter { inner: scratch, sum: Sum::default() };
    // No name and no time in the header, so that the same layer is the same blob.
    let mut encoder = flate2::GzBuilder::new().write(sink, flate2::Compression::default());
    io::copy(&mut shelf.disk.open_blob(digest)?, &mut encoder).map_err(disk("compress a layer to", &path))?;
    let sink = encoder.finish().map_err(disk("compress a layer to", &path))?;
    let size = sink.sum.bytes;
    Ok((sink.inner, sink.sum.digest(), size))
}
