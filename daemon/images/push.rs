//! Sends an image to a registry: what it has already is not sent again.
//!
//! Invariant: the manifest goes last, so the registry never shows an image that is not whole.

use crate::digest::Digest;
use crate::error::{Error, content, disk};
use crate::image::{Descriptor, Image, Manifest, OCI_LAYER, OCI_MANIFEST};
use crate::registry::Registry;
use crate::save::compressed;
use crate::shelf::Shelf;
use crate::stock::blocking;
use bytes::Bytes;
use futures::Stream;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

const READ_BYTES: usize = 256 << 10;

/// A blob that may have to be sent.
struct Parcel {
    descriptor: Descriptor,
    path: PathBuf,
    /// Removed with this, for a layer that was compressed on the way.
    _scratch: Option<tempfile::NamedTempFile>,
}

/// Sends the image; the digest under which the registry has it.
pub(crate) async fn push(shelf: &Arc<Shelf>, image: &Image, registry: &Registry) -> Result<String, Error> {
    let what = format!("image {}", registry.reference);
    let parse = |digest: &str| Digest::parse(digest).map_err(|reason| content(&what, reason));
    let (at, id) = (parse(&image.digest)?, parse(&image.id)?);
    let bytes = shelf.disk.read_document(&at)?;
    let mut manifest: Manifest = serde_json::from_slice(&bytes).map_err(|source| Error::Document {
        what: format!("manifest of {what}"),
        source: Arc::new(source),
    })?;
    let _pin = shelf.pin(vec![at, id.clone()]);
    let mut parcels = Vec::new();
    for layer in &mut manifest.layers {
        let digest = parse(&layer.digest)?;
        let _pin = shelf.pin(vec![digest.clone()]);
        parcels.push(parcel(shelf, layer, digest).await?);
    }
    let same = manifest.layers.iter().zip(&parcels).all(|(layer, parcel)| *layer == parcel.descriptor);
    manifest.layers = parcels.iter().map(|parcel| parcel.descriptor.clone()).collect();
    let path = shelf.disk.blob_path(&id);
    parcels.push(Parcel { descriptor: manifest.config.clone(), path, _scratch: None });
    registry.expect(parcels.iter().map(|parcel| parcel.descriptor.size).sum(), 0);
    registry.may_push().await?;
    for parcel in &parcels {
        if registry.has_blob(&parcel.descriptor.digest).await? {
            registry.advance(parcel.descriptor.size);
            continue;
        }
        let file = tokio::fs::File::open(&parcel.path).await.map_err(disk("open", &parcel.path))?;
        registry.send_blob(&parcel.descriptor, chunks(file)).await?;
    }
    // Untouched bytes keep the digest that the image has here.
    let (bytes, kind) = match same {
        true if !manifest.media_type.is_empty() => (bytes, manifest.media_type),
        true => (bytes, OCI_MANIFEST.to_owned()),
        false => (serde_json::to_vec(&manifest).expect("a manifest has only text keys"), manifest.media_type),
    };
    let digest = Digest::of(&bytes).to_string();
    registry.send_manifest(bytes, &kind).await?;
    Ok(digest)
}

/// Plain layers, as builds make them, travel compressed.
async fn parcel(shelf: &Arc<Shelf>, layer: &Descriptor, digest: Digest) -> Result<Parcel, Error> {
    if layer.media_type != OCI_LAYER {
        let path = shelf.disk.blob_path(&digest);
        return Ok(Parcel { descriptor: layer.clone(), path, _scratch: None });
    }
    let shelf = shelf.clone();
    let (scratch, digest, size) = blocking("compress a layer", move || compressed(&shelf, &digest)).await?;
    let descriptor = Descriptor {
        media_type: format!("{OCI_LAYER}+gzip"),
        digest: digest.to_string(),
        size,
        ..layer.clone()
    };
    Ok(Parcel { descriptor, path: scratch.path().to_owned(), _scratch: Some(scratch) })
}

fn chunks(file: tokio::fs::File) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold(file, |mut file| async move {
        let mut buffer = vec![0; READ_BYTES];
        let read = file.read(&mut buffer).await?;
        buffer.truncate(read);
        Ok((read > 0).then(|| (Bytes::from(buffer), file)))
    })
}
