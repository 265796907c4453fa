//! What is on the shelf: names, images, and which files something still needs.
//!
//! Invariant: names change on disk first, then in memory, and both under one lock.
//! Invariant: a file is set aside only while no image, no caller and no work under way (a pin) needs it.

use crate::build::cache;
use crate::digest::Digest;
use crate::disk::{Disk, size_below};
use crate::error::{Error, content, disk};
use crate::image::{ConfigFile, Descriptor, Image, Manifest, OCI_MANIFEST};
use crate::reference::Reference;
use crate::unpack::unpack;
use crate::{Builds, Config, Freed, InUse};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

pub(crate) const NAME: &str = "io.containerd.image.name";
pub(crate) const TAG: &str = "org.opencontainers.image.ref.name";
const ORIGIN: &str = "dev.holdfast.image.origin";

/// Where an image came from. Only what a registry can give again is ever collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Pulled,
    Local,
}

/// The store behind `Images`.
pub(crate) struct Shelf {
    pub(crate) disk: Disk,
    pub(crate) config: Config,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<Reference, Name>,
    /// By digest of the manifest.
    images: BTreeMap<Digest, Known>,
    pins: BTreeMap<Digest, usize>,
}

#[derive(Debug, Clone)]
struct Name {
    manifest: Digest,
    manifest_bytes: u64,
    origin: Origin,
}

struct Known {
    image: Arc<Image>,
    needs: BTreeSet<Digest>,
}

/// Keeps files from being set aside while something is made of them.
pub(crate) struct Pin {
    shelf: Arc<Shelf>,
    digests: Vec<Digest>,
}

impl Shelf {
    /// Recovers every image from the directory. A missing layer is unpacked again from its blob; an image
    /// whose blobs are gone is dropped with a notice.
    pub(crate) fn open(dir: &Path, config: &Config) -> Result<Shelf, Error> {
        let store = Disk::open(dir)?;
        let mut state = State::default();
        for descriptor in store.read_index()?.manifests {
            let Some((reference, name)) = name(&descriptor) else {
                tracing::warn!(digest = descriptor.digest, "an entry of the image index has no usable name");
                continue;
            };
            match recover(&store, &name.manifest, config) {
                Ok(known) => {
                    state.images.entry(name.manifest.clone()).or_insert(known);
                    state.names.insert(reference, name);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%reference, error, "an image is damaged and must be had again");
                }
            }
        }
        state.refer();
        let (changes, _) = watch::channel(0);
        Ok(Shelf { disk: store, config: config.clone(), state: Mutex::new(state), changes })
    }

    pub(crate) fn get(&self, reference: &Reference) -> Option<Arc<Image>> {
        let state = self.lock();
        if let Some(name) = state.names.get(reference) {
            return state.images.get(&name.manifest).map(|known| known.image.clone());
        }
        // A digest means the same bytes under whichever name of the repository they came.
        let wanted = reference.digest()?;
        let same = |other: &Reference| {
            other.registry() == reference.registry() && other.repository() == reference.repository()
        };
        let (_, name) = state.names.iter().find(|(r, n)| same(r) && n.manifest.as_str() == wanted)?;
        state.images.get(&name.manifest).map(|known| known.image.clone())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.lock().images.values().map(|known| known.image.clone()).collect();
        images.sort_by(|a, b| (&a.id, &a.digest).cmp(&(&b.id, &b.digest)));
        images
    }

    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps these files for as long as the pin lives, whether they are there already or not.
    pub(crate) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pin {
        let mut state = self.lock();
        for digest in &digests {
            *state.pins.entry(digest.clone()).or_default() += 1;
        }
        Pin { shelf: self.clone(), digests }
    }

    /// Gives a complete image its names; the names' former images stay until collected. Blocks.
    pub(crate) fn name(
        &self,
        references: &[Reference],
        manifest: &Digest,
        origin: Origin,
    ) -> Result<Arc<Image>, Error> {
        let known = recover(&self.disk, manifest, &self.config)?;
        let manifest_bytes = self.disk.read_document(manifest)?.len() as u64;
        let mut state = self.lock();
        let mut names = state.names.clone();
        for reference in references {
            let name = Name { manifest: manifest.clone(), manifest_bytes, origin };
            names.insert(reference.clone(), name);
        }
        self.disk.write_index(index(&names))?;
        state.images.entry(manifest.clone()).or_insert(known);
        state.names = names;
        state.refer();
        self.changes.send_modify(|count| *count += 1);
        Ok(state.images[manifest].image.clone())
    }

    /// Blocks.
    pub(crate) fn remove(&self, reference: &Reference) -> Result<(), Error> {
        let mut state = self.lock();
        let mut names = state.names.clone();
        if names.remove(reference).is_none() {
            return Err(Error::NotHeld { reference: reference.clone() });
        }
        self.disk.write_index(index(&names))?;
        state.names = names;
        state.refer();
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes away the names for which `goes` says so and whose images are not in use, then every file that nothing
    /// needs. Blocks.
    pub(crate) fn collect(
        &self,
        in_use: &InUse,
        goes: &dyn Fn(&Image, Origin) -> bool,
        builds: Builds,
    ) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        if builds == Builds::Forget {
            cache::clear(&self.disk)?;
        }
        let aside = {
            let mut state = self.lock();
            let mut names = state.names.clone();
            names.retain(|reference, name| {
                let image = state.images.get(&name.manifest).map(|known| &known.image);
                let stays =
                    image.is_some_and(|image| in_use.ids.contains(&image.id) || !goes(image, name.origin));
                if !stays {
                    freed.references.push(reference.clone());
                }
                stays
            });
            if !freed.references.is_empty() {
                self.disk.write_index(index(&names))?;
                state.names = names;
            }
            let named: BTreeSet<_> = state.names.values().map(|name| name.manifest.clone()).collect();
            state
                .images
                .retain(|digest, known| named.contains(digest) || in_use.ids.contains(&known.image.id));
            state.refer();
            let mut needed: BTreeSet<_> =
                state.images.values().flat_map(|known| known.needs.clone()).collect();
            needed.extend(state.pins.keys().cloned());
            needed.extend(self.needs_of_nameless(&in_use.ids));
            needed.extend(cache::needs(&self.disk));
            let hex = |dir: &std::path::PathBuf| Some(format!("sha256:{}", dir.file_name()?.to_str()?));
            needed.extend(in_use.layers.iter().filter_map(|dir| Digest::parse(&hex(dir)?).ok()));
            self.disk.set_aside(&needed)?
        };
        if !freed.references.is_empty() {
            self.changes.send_modify(|count| *count += 1);
        }
        freed.bytes = size_below(aside.path()).map_err(disk("measure", aside.path()))?;
        let path = aside.path().to_path_buf();
        aside.close().map_err(disk("remove", &path))?;
        Ok(freed)
    }

    /// The image that a person means: by name, or by the beginning of its id or digest.
    pub(crate) fn find(&self, text: &str) -> Option<Arc<Image>> {
        let named = text.parse().ok().and_then(|reference| self.get(&reference));
        let hex = text.trim_start_matches("sha256:");
        let plain = hex.len() >= 4 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let begins = |digest: &str| digest.trim_start_matches("sha256:").starts_with(hex);
        named.or_else(|| {
            let mut fits =
                self.list().into_iter().filter(|image| plain && (begins(&image.id) || begins(&image.digest)));
            // Several would be a guess.
            fits.next().filter(|_| fits.next().is_none())
        })
    }

    /// Whether a registry can give the image again.
    pub(crate) fn origin(&self, image: &Image) -> Origin {
        let state = self.lock();
        let pulled = image
            .references
            .iter()
            .filter_map(|r| state.names.get(r))
            .all(|name| name.origin == Origin::Pulled);
        if pulled { Origin::Pulled } else { Origin::Local }
    }

    /// After a restart only the configuration tells which layers a container of a nameless image runs on.
    fn needs_of_nameless(&self, in_use: &BTreeSet<String>) -> BTreeSet<Digest> {
        let mut needs = BTreeSet::new();
        for id in in_use.iter().filter_map(|id| Digest::parse(id).ok()) {
            let config = self.disk.read_document(&id).ok();
            let config = config.and_then(|bytes| serde_json::from_slice::<ConfigFile>(&bytes).ok());
            let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
            needs.extend(diff_ids.iter().filter_map(|id| Digest::parse(id).ok()));
            needs.insert(id);
        }
        needs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it changes the shelf")
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.shelf.lock();
        for digest in &self.digests {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
    }
}

impl State {
    /// Writes into each image the names it has now.
    fn refer(&mut self) {
        for (digest, known) in &mut self.images {
            let names = self.names.iter().filter(|(_, name)| name.manifest == *digest);
            let references: Vec<_> = names.map(|(reference, _)| reference.clone()).collect();
            if known.image.references != references {
                known.image = Arc::new(Image { references, ..(*known.image).clone() });
            }
        }
    }
}

/// The documents of an image, checked against each other.
pub(crate) struct Documents {
    pub(crate) manifest: Manifest,
    pub(crate) config: ConfigFile,
    /// Digest of the blob and diff id of each layer, bottom first.
    pub(crate) layers: Vec<(Digest, Digest)>,
}

/// Checks a manifest and a configuration; `what` names the image in messages.
pub(crate) fn documents(what: &str, manifest: &[u8], config: &[u8]) -> Result<Documents, Error> {
    let document =
        |kind: &str, source| Error::Document { what: format!("{kind} of {what}"), source: Arc::new(source) };
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|e| document("manifest", e))?;
    let config: ConfigFile = serde_json::from_slice(config).map_err(|e| document("configuration", e))?;
    let parse = |text: &String| Digest::parse(text).map_err(|reason| content(what, reason));
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        let (layers, ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        return Err(content(what, format!("manifest names {layers} layers, configuration {ids}")));
    }
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        layers.push((parse(&layer.digest)?, parse(diff_id)?));
    }
    Ok(Documents { manifest, config, layers })
}

/// Reads an image whose blobs are all here.
fn recover(store: &Disk, manifest: &Digest, config: &Config) -> Result<Known, Error> {
    let bytes = store.read_document(manifest)?;
    let what = format!("image {manifest}");
    let read: Manifest = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Document { what: what.clone(), source: Arc::new(source) })?;
    let id = Digest::parse(&read.config.digest).map_err(|reason| content(&what, reason))?;
    let documents = documents(&what, &bytes, &store.read_document(&id)?)?;
    for (blob, diff_id) in &documents.layers {
        let file = store.open_blob(blob)?;
        if !store.has_layer(diff_id) {
            let dir = store.scratch_dir()?;
            unpack(diff_id, file, dir.path(), config)?;
            store.keep_layer(dir, diff_id)?;
        }
    }
    let size = bytes.len() as u64
        + documents.manifest.config.size
        + documents.manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
    let image = Image {
        id: id.to_string(),
        digest: manifest.to_string(),
        references: Vec::new(),
        config: documents.config.config,
        layers: documents.layers.iter().map(|(_, diff_id)| store.layer_path(diff_id)).collect(),
        size,
    };
    let mut needs: BTreeSet<_> = documents.layers.into_iter().flat_map(|(blob, diff)| [blob, diff]).collect();
    needs.extend([manifest.clone(), id]);
    Ok(Known { image: Arc::new(image), needs })
}

fn name(descriptor: &Descriptor) -> Option<(Reference, Name)> {
    let reference = descriptor.annotations.get(NAME)?.parse().ok()?;
    let manifest = Digest::parse(&descriptor.digest).ok()?;
    let origin = match descriptor.annotations.get(ORIGIN).map(String::as_str) {
        Some("pulled") => Origin::Pulled,
        _ => Origin::Local,
    };
    Some((reference, Name { manifest, manifest_bytes: descriptor.size, origin }))
}

fn index(names: &BTreeMap<Reference, Name>) -> Vec<Descriptor> {
    let descriptor = |(reference, name): (&Reference, &Name)| {
        let origin = match name.origin {
            Origin::Pulled => "pulled",
            Origin::Local => "local",
        };
        let mut annotations = BTreeMap::from([
            (NAME.to_owned(), reference.canonical()),
            (ORIGIN.to_owned(), origin.to_owned()),
        ]);
        if let Some(tag) = reference.tag() {
            annotations.insert(TAG.to_owned(), tag.to_owned());
        }
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: name.manifest.to_string(),
            size: name.manifest_bytes,
            platform: None,
            annotations,
        }
    };
    names.iter().map(descriptor).collect()
}

/// The name a foreign OCI layout gives an entry: a whole reference, or a tag to be put behind `stem`.
pub(crate) fn foreign_name(descriptor: &Descriptor, stem: &str) -> Option<Reference> {
    if let Some(full) = descriptor.annotations.get(NAME) {
        return full.parse().ok();
    }
    match descriptor.annotations.get(TAG) {
        Some(name) if name.contains([':', '/']) => name.parse().ok(),
        Some(tag) => format!("{stem}:{tag}").parse().ok(),
        None => stem.parse().ok(),
    }
}
