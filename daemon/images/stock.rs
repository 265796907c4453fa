//! Brings an image onto the shelf, blob by blob, from wherever it comes.
//!
//! Invariant: a blob or layer is fetched and unpacked once, however many images and calls want it at a time.

use crate::digest::Digest;
use crate::error::{Error, content};
use crate::image::{Descriptor, Image, Manifest};
use crate::load::Contents;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::shelf::{Origin, Shelf, documents};
use crate::unpack::{check_media_type, unpack};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const LAYERS_AT_ONCE: usize = 3;

/// Where blobs come from.
pub(crate) enum Source {
    Registry(Registry),
    Contents(Contents),
    /// All are on disk.
    Here,
}

/// One lock for each digest that is being worked on.
#[derive(Default)]
pub(crate) struct Turns(Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().expect("nothing panics while it takes its turn");
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// Everything needed to bring one image in.
pub(crate) struct Delivery {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) source: Source,
    pub(crate) references: Vec<Reference>,
    pub(crate) origin: Origin,
}

impl Delivery {
    /// Fetches what is missing of the image with this manifest, unpacks it, and gives it its names.
    pub(crate) async fn stock(&self, manifest: Vec<u8>) -> Result<Arc<Image>, Error> {
        let what = self.references.first().map_or_else(|| "image".to_owned(), |r| format!("image {r}"));
        let read: Manifest = serde_json::from_slice(&manifest)
            .map_err(|e| Error::Document { what: format!("manifest of {what}"), source: Arc::new(e) })?;
        let digests = |descriptors: &[&Descriptor]| -> Result<Vec<Digest>, Error> {
            let parse = |d: &&Descriptor| Digest::parse(&d.digest).map_err(|reason| content(&what, reason));
            descriptors.iter().map(parse).collect()
        };
        let mut all: Vec<&Descriptor> = read.layers.iter().collect();
        all.push(&read.config);
        let mut needed = digests(&all)?;
        needed.push(Digest::of(&manifest));
        let _blobs = self.shelf.pin(needed);
        for layer in &read.layers {
            check_media_type(&what, &layer.media_type)?;
        }
        if read.config.size > DOCUMENT_BYTES_MAX {
            return Err(content(&what, "its configuration is larger than 8 MiB"));
        }
        let held = digests(&all)?.into_iter().zip(&all).filter(|(d, _)| self.shelf.disk.has_blob(d));
        self.source.expect(all.iter().map(|d| d.size).sum(), held.map(|(_, d)| d.size).sum());
        let config_digest = self.blob(&read.config).await?;
        let shelf = self.shelf.clone();
        let named = what.clone();
        let (documents, manifest) = blocking("read an image's configuration", move || {
            let config = shelf.disk.read_document(&config_digest)?;
            Ok((documents(&named, &manifest, &config)?, shelf.disk.write_blob(&manifest)?))
        })
        .await?;
        let _layers = self.shelf.pin(documents.layers.iter().map(|(_, diff_id)| diff_id.clone()).collect());
        let layers = read.layers.into_iter().zip(documents.layers);
        futures::stream::iter(layers.map(|(layer, (_, diff_id))| self.layer(layer, diff_id)))
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        let (shelf, references, origin) = (self.shelf.clone(), self.references.clone(), self.origin);
        blocking("name an image", move || shelf.name(&references, &manifest, origin)).await
    }

    async fn layer(&self, layer: Descriptor, diff_id: Digest) -> Result<(), Error> {
        let blob = self.blob(&layer).await?;
        let turn = self.turns.of(&diff_id).lock_owned().await;
        if self.shelf.disk.has_layer(&diff_id) {
            return Ok(());
        }
        let shelf = self.shelf.clone();
        blocking("unpack a layer", move || {
            // Blocking work goes on when its caller is dropped, so the turn ends with the work.
            let _turn = turn;
            let dir = shelf.disk.scratch_dir()?;
            unpack(&diff_id, shelf.disk.open_blob(&blob)?, dir.path(), &shelf.config)?;
            shelf.disk.keep_layer(dir, &diff_id)
        })
        .await
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Digest, Error> {
        let digest = Digest::parse(&descriptor.digest).map_err(|reason| content("blob", reason))?;
        let turn = self.turns.of(&digest);
        let _turn = turn.lock_owned().await;
        if self.shelf.disk.has_blob(&digest) {
            return Ok(digest);
        }
        match &self.source {
            Source::Registry(registry) => registry.blob(&self.shelf, &digest, descriptor.size).await?,
            Source::Contents(contents) => {
                let (shelf, contents, wanted) = (self.shelf.clone(), contents.clone(), digest.clone());
                blocking("copy a blob", move || contents.blob(&shelf.disk, &wanted)).await?;
            }
            Source::Here => return Err(content("blob", format!("{digest} is not here"))),
        }
        Ok(digest)
    }
}

impl Source {
    fn expect(&self, total_bytes: u64, done_bytes: u64) {
        if let Source::Registry(registry) = self {
            registry.expect(total_bytes, done_bytes);
        }
    }
}

/// Runs what blocks where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    attempt: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Interrupted { attempt }),
    }
}
