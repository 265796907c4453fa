//! Holds the OCI images of one machine: pulled, loaded or built, each layer stored and unpacked once.
//!
//! Invariant: an image is in the index only when every blob and layer of it is complete on disk.
//! Invariant: nothing that an image, or a caller's list of images in use, still needs is removed.

mod build;
mod credentials;
mod digest;
mod disk;
mod error;
mod garbage;
mod image;
mod load;
mod pack;
mod pull;
mod push;
mod reference;
mod registry;
mod save;
mod shelf;
mod stock;
mod tarball;
mod tree;
mod unpack;

pub use build::{Bind, News, Program, Ran, Recipe, Runner, Said, Tell};
pub use credentials::Credentials;
pub use error::Error;
pub use garbage::{Held, Space, spare};
pub use image::{Empty, Image, ImageConfig};
pub use pack::{Build, Content, File, Layer};
pub use reference::Reference;
pub use registry::Host;
pub use save::Format;

use digest::Digest;
use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use load::{Contents, Found};
use registry::{Pulls, Registry};
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
    /// Mirrors and certificates of single registries.
    pub registry: Vec<Host>,
    /// A registry that sends nothing for so long is given up.
    pub stall_seconds: u64,
    /// Pulled images that no container uses are removed, those unused for longest first, once the disk is this full
    /// (percent), until it is only that full.
    pub gc_high_percent: u8,
    /// See `gc_high_percent`.
    pub gc_low_percent: u8,
    /// An image is not removed before it was here, unused, for so long.
    pub gc_min_age_seconds: u64,
    /// A pulled image that was not used for so long is removed however much room there is; 0 means never.
    pub gc_max_age_seconds: u64,
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
            registry: Vec::new(),
            stall_seconds: 60,
            gc_high_percent: 85,
            gc_low_percent: 80,
            gc_min_age_seconds: 120,
            gc_max_age_seconds: 0,
            layer_bytes_max: 32 << 30,
            layer_files_max: 2_000_000,
        }
    }
}

/// What containers use and a collection must leave alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// Ids of images.
    pub ids: BTreeSet<String>,
    /// Directories of layers, as a container's overlay names them.
    pub layers: Vec<PathBuf>,
}

/// What a collection gave back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Names that were taken away.
    pub references: Vec<Reference>,
    /// Bytes of files removed.
    pub bytes: u64,
}

/// What becomes of the layers that only builds remember.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Builds {
    /// They stay: the next build of the same steps is quick.
    #[default]
    Remember,
    /// They go.
    Forget,
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

    /// Builds an image from a Dockerfile; its programs run by `runner`.
    pub async fn build_file(
        &self,
        recipe: &Recipe,
        runner: &dyn Runner,
        tell: Tell<'_>,
    ) -> Result<Arc<Image>, Error> {
        build::build(self, recipe, runner, tell).await
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
    pub async fn collect(&self, in_use: &InUse) -> Result<Freed, Error> {
        let (shelf, in_use) = (self.shelf.clone(), in_use.clone());
        let goes = |_: &Image, origin: Origin| origin == Origin::Pulled;
        blocking("collect images", move || shelf.collect(&in_use, &goes, Builds::Remember)).await
    }

    /// Removes these images (by id) unless they are in use, and every file that no image needs.
    pub async fn evict(
        &self,
        ids: &BTreeSet<String>,
        in_use: &InUse,
        builds: Builds,
    ) -> Result<Freed, Error> {
        let (shelf, ids, in_use) = (self.shelf.clone(), ids.clone(), in_use.clone());
        let goes = move |image: &Image, _: Origin| ids.contains(&image.id);
        blocking("remove images", move || shelf.collect(&in_use, &goes, builds)).await
    }

    /// Whether a registry gave this image, and could again.
    pub fn is_pulled(&self, image: &Image) -> bool {
        self.shelf.origin(image) == Origin::Pulled
    }

    /// The image that a person means: by name, or by the beginning of its id or digest.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        self.shelf.find(text)
    }

    /// Gives an image one more name.
    pub async fn tag(&self, image: &Image, name: &Reference) -> Result<Arc<Image>, Error> {
        let (shelf, image, name) = (self.shelf.clone(), image.clone(), name.clone());
        let digest = Digest::parse(&image.digest).map_err(|reason| error::content("image", reason))?;
        blocking("name an image", move || shelf.name(&[name], &digest, Origin::Local)).await
    }

    /// Its manifest and its configuration, as they are.
    pub async fn documents(&self, image: &Image) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let parse = |text: &str| Digest::parse(text).map_err(|reason| error::content("image", reason));
        let (shelf, manifest, config) = (self.shelf.clone(), parse(&image.digest)?, parse(&image.id)?);
        blocking("read an image", move || {
            Ok((shelf.disk.read_document(&manifest)?, shelf.disk.read_document(&config)?))
        })
        .await
    }

    /// Writes images as one archive, each under the names that were asked for.
    pub async fn save(
        &self,
        chosen: Vec<(Arc<Image>, Vec<Reference>)>,
        format: Format,
        mut out: impl Write + Send + 'static,
    ) -> Result<(), Error> {
        let shelf = self.shelf.clone();
        blocking("save images", move || save::save(&shelf, &chosen, format, &mut out)).await
    }

    /// Sends an image to a registry under a name; the digest it has there.
    pub async fn push(
        &self,
        image: &Image,
        name: &Reference,
        auth: Option<Credentials>,
    ) -> Result<String, Error> {
        let registry = self.registry(name, auth).await?;
        push::push(&self.shelf, image, &registry).await
    }

    /// How much room there is where the images are. Blocks, but only for as long as the kernel needs to tell.
    pub fn space(&self) -> Result<Space, Error> {
        self.shelf.disk.space()
    }

    /// The options it was opened with.
    pub fn config(&self) -> &Config {
        &self.shelf.config
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
        let mut registry = self.registry(reference, auth).await?;
        let manifest = registry.manifest().await?;
        let delivery = self.delivery(vec![reference.clone()], Source::Registry(registry), Origin::Pulled);
        delivery.stock(manifest).await
    }

    async fn registry(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Registry, Error> {
        let config = &self.shelf.config;
        let path = &config.docker_config;
        let json = match path.as_os_str().is_empty() {
            true => b"{}".to_vec(),
            false => tokio::fs::read(path).await.map_err(error::disk("read credentials from", path))?,
        };
        let known = |reference: &Reference| {
            Credentials::from_docker_config(&json, reference, &path.display().to_string())
        };
        Registry::new(reference, auth, config, &known, self.pulls.clone())
    }

    fn delivery(&self, references: Vec<Reference>, source: Source, origin: Origin) -> Delivery {
        Delivery { shelf: self.shelf.clone(), turns: self.turns.clone(), source, references, origin }
    }
}
