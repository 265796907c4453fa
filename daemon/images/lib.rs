//! Holds the OCI images of one machine: pulled, loaded or built, each layer stored and unpacked once.
//!
//! Invariant: an image is in the index only when every blob and layer of it is complete on disk.
//! Invariant: nothing that an image, or a caller's list of images in use, still needs is removed.

mod credentials;
mod digest;
mod disk;
mod error;
mod image;
mod load;
mod pack;
mod pull;
mod reference;
mod shelf;
mod stock;
mod tarball;
mod tree;
mod unpack;

pub use credentials::Credentials;
pub use error::Error;
pub use image::{Empty, Image, ImageConfig};
pub use pack::{Build, Content, File, Layer};
pub use reference::Reference;

use digest::Digest;
use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use load::{Contents, Found};
use pull::{Pulls, Registry};
use shelf::{Origin, Shelf};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use stock::{Delivery, Source, Turns, blocking};
use tokio::sync::watch;

/// Options of the image store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Registries spoken to over plain HTTP (`host` or `host:port`); localhost and 127.0.0.1 always are.
    pub insecure: Vec<String>,
    /// A docker config.json with credentials, read anew at each pull; empty means none.
    pub docker_config: PathBuf,
    /// The most bytes one layer may unpack to.
    pub layer_bytes_max: u64,
    /// The most files one layer may hold.
    pub layer_files_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            insecure: Vec::new(),
            docker_config: PathBuf::new(),
            layer_bytes_max: 32 << 30,
            layer_files_max: 2_000_000,
        }
    }
}

/// What a collection gave back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Names that were taken away.
    pub references: Vec<Reference>,
    /// Bytes of files removed.
    pub bytes: u64,
}

/// How far a pull has come, in bytes of blobs as the registry sends them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here, those held before included.
    pub done_bytes: u64,
    /// Bytes of the whole image; 0 until its manifest is read.
    pub total_bytes: u64,
}

/// The image store of one machine. Clones are the same store.
#[derive(Clone)]
pub struct Images {
    shelf: Arc<Shelf>,
    turns: Arc<Turns>,
    pulls: Arc<Pulls>,
    /// Pulls that can be joined, by what is pulled and as whom.
    under_way: Arc<Mutex<BTreeMap<Errand, WeakShared<Pulling>>>>,
}

type Errand = (Reference, Option<Credentials>);
type Pulling = BoxFuture<'static, Result<Arc<Image>, Error>>;

impl Images {
    /// Opens the store in `dir`, made when it is not there. Recovers every image, removes what a crash left,
    /// and fails when another process has it open. Blocks.
    pub fn open(dir: &Path, config: &Config) -> Result<Images, Error> {
        Ok(Images {
            shelf: Arc::new(Shelf::open(dir, config)?),
            turns: Arc::default(),
            pulls: Arc::new(watch::Sender::new(BTreeMap::new())),
            under_way: Arc::default(),
        })
    }

    /// The image of this name, if it is here.
    pub fn get(&self, reference: &Reference) -> Option<Arc<Image>> {
        self.shelf.get(reference)
    }

    /// Pulls an image from its registry, also when one of this name is here; only what is missing is fetched.
    /// Without `auth`, the configured docker config.json is asked. Callers that want the same image as the same
    /// user share one pull; it ends when the last of them is dropped.
    pub async fn pull(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let errand = (reference.clone(), auth);
        let pulling = {
            let mut under_way = self.under_way.lock().expect("nothing panics while it joins a pull");
            under_way.retain(|_, pulling| pulling.upgrade().is_some());
            match under_way.get(&errand).and_then(WeakShared::upgrade) {
                Some(pulling) => pulling,
                None => {
                    let (images, (reference, auth)) = (self.clone(), errand.clone());
                    let fetch = async move { images.fetch(&reference, auth).await };
                    let pulling = fetch.boxed().shared();
                    under_way.extend(pulling.downgrade().map(|weak| (errand, weak)));
                    pulling
                }
            }
        };
        pulling.await
    }

    /// Loads every image of an OCI layout (directory or tar) or a `docker save` tar; an archive may be compressed
    /// with gzip or zstd. An image whose file gives it only a tag, or no name, is named after the file.
    pub async fn load(&self, path: &Path) -> Result<Vec<Arc<Image>>, Error> {
        let (shelf, path) = (self.shelf.clone(), path.to_path_buf());
        let (contents, found) = blocking("open an archive", move || {
            let contents = Contents::open(&path, &shelf.disk, shelf.config.layer_bytes_max)?;
            let found = contents.images()?;
            Ok((contents, found))
        })
        .await?;
        let mut images = Vec::new();
        for Found { references, manifest } in found {
            let delivery = self.delivery(references, Source::Contents(contents.clone()), Origin::Local);
            images.push(delivery.stock(manifest).await?);
        }
        Ok(images)
    }

    /// Makes an image of files; writes nothing when exactly this image has this name already.
    pub async fn build(&self, reference: &Reference, build: Build) -> Result<Arc<Image>, Error> {
        let (shelf, name) = (self.shelf.clone(), reference.clone());
        let built = blocking("build an image", move || {
            let packed = pack::pack(&format!("image {name}"), &build)?;
            let manifest = Digest::of(&packed.manifest);
            if let Some(image) = shelf.get(&name).filter(|image| image.digest == manifest.as_str()) {
                return Ok(Err(image));
            }
            let mut needed = packed.layers.clone();
            needed.push(Digest::of(&packed.config));
            let pin = shelf.pin(needed);
            for (layer, digest) in build.layers.iter().zip(&packed.layers) {
                if shelf.disk.has_blob(digest) {
                    continue;
                }
                let mut file = shelf.disk.scratch()?;
                let mut out = BufWriter::new(file.as_file_mut());
                let written = pack::write_layer(layer, &mut out).and_then(|()| out.flush());
                drop(out);
                written.map_err(error::disk("write a layer to", file.path()))?;
                shelf.disk.keep_blob(file, digest)?;
            }
            shelf.disk.write_blob(&packed.config)?;
            Ok(Ok((packed.manifest, pin)))
        })
        .await?;
        match built {
            Err(image) => Ok(image),
            Ok((manifest, _pin)) => {
                self.delivery(vec![reference.clone()], Source::Here, Origin::Local).stock(manifest).await
            }
        }
    }

    /// Every image, by id; one stored under two manifests is there twice.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.shelf.list()
    }

    /// Takes one name away. Its files go with the next `collect`, unless something needs them.
    pub async fn remove(&self, reference: &Reference) -> Result<(), Error> {
        let (shelf, reference) = (self.shelf.clone(), reference.clone());
        blocking("remove an image", move || shelf.remove(&reference)).await
    }

    /// Removes pulled images whose ids are not in use, and every file that no image needs. Loaded and built
    /// images stay, since no registry can give them again: `remove` them.
    pub async fn collect(&self, in_use: &BTreeSet<String>) -> Result<Freed, Error> {
        let (shelf, in_use) = (self.shelf.clone(), in_use.clone());
        blocking("collect images", move || shelf.collect(&in_use)).await
    }

    /// Changes with every change of the list.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shelf.changed()
    }

    /// The pulls under way.
    pub fn progress(&self) -> watch::Receiver<BTreeMap<Reference, Progress>> {
        self.pulls.subscribe()
    }

    async fn fetch(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let auth = match auth {
            Some(auth) => Some(auth),
            None => self.configured(reference).await?,
        };
        let registry = Registry::new(reference, auth, &self.shelf.config, self.pulls.clone())?;
        let manifest = registry.manifest().await?;
        let delivery = self.delivery(vec![reference.clone()], Source::Registry(registry), Origin::Pulled);
        delivery.stock(manifest).await
    }

    async fn configured(&self, reference: &Reference) -> Result<Option<Credentials>, Error> {
        let path = &self.shelf.config.docker_config;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let json = tokio::fs::read(path).await.map_err(error::disk("read credentials from", path))?;
        Credentials::from_docker_config(&json, reference, &path.display().to_string())
    }

    fn delivery(&self, references: Vec<Reference>, source: Source, origin: Origin) -> Delivery {
        Delivery { shelf: self.shelf.clone(), turns: self.turns.clone(), source, references, origin }
    }
}
