//! Makes images for tests: tar entries, layouts and archives.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes entries as they are told, however hostile.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// The path goes into the header unchecked.
    pub(crate) fn raw(mut self, path: &str, kind: EntryType, link: &str, mode: u32, bytes: &[u8]) -> Tar {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, bytes: &[u8]) -> Tar {
        self.raw(path, EntryType::Regular, "", 0o644, bytes)
    }

    pub(crate) fn directory(self, path: &str) -> Tar {
        self.raw(path, EntryType::Directory, "", 0o755, &[])
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Tar {
        self.raw(path, EntryType::Symlink, target, 0o777, &[])
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Tar {
        self.raw(path, EntryType::Link, target, 0o644, &[])
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image in memory: its blobs by digest.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: String,
    pub(crate) config: String,
    pub(crate) layers: Vec<String>,
}

impl Sample {
    /// Each layer as its tar and what is stored of it.
    pub(crate) fn new(layers: &[(Vec<u8>, Vec<u8>)]) -> Sample {
        let mut blobs = BTreeMap::new();
        let diff_ids: Vec<_> = layers.iter().map(|(tar, _)| sha256(tar)).collect();
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
            "config": {"Cmd": ["/a"], "Env": null, "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(_, blob)| {
                serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": sha256(blob), "size": blob.len()})
            })
            .collect();
        let manifest = serde_json::json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(&config), "size": config.len()},
            "layers": descriptors});
        let manifest = manifest.to_string().into_bytes();
        for (_, blob) in layers {
            blobs.insert(sha256(blob), blob.clone());
        }
        let (manifest_digest, config_digest) = (sha256(&manifest), sha256(&config));
        blobs.insert(manifest_digest.clone(), manifest);
        blobs.insert(config_digest.clone(), config);
        let layers = layers.iter().map(|(_, blob)| sha256(blob)).collect();
        Sample { blobs, manifest: manifest_digest, config: config_digest, layers }
    }

    pub(crate) fn plain(layers: &[Vec<u8>]) -> Sample {
        Sample::new(&layers.iter().map(|tar| (tar.clone(), tar.clone())).collect::<Vec<_>>())
    }

    pub(crate) fn index(&self, name: &str) -> Vec<u8> {
        serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.manifest, "size": self.blobs[&self.manifest].len(),
            "annotations": {"org.opencontainers.image.ref.name": name}}]})
        .to_string()
        .into_bytes()
    }

    /// Writes an OCI layout directory.
    pub(crate) fn layout(&self, dir: &Path, name: &str) -> PathBuf {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(dir.join("index.json"), self.index(name)).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(dir.join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        }
        dir.to_path_buf()
    }

    /// The same as a tar.
    pub(crate) fn layout_tar(&self, name: &str) -> Vec<u8> {
        let mut tar = Tar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        // Blobs first, as `docker save` has them: nothing may rely on the order.
        for (digest, bytes) in &self.blobs {
            tar = tar.file(&format!("blobs/sha256/{}", &digest[7..]), bytes);
        }
        tar.file("index.json", &self.index(name)).done()
    }
}

/// A store in a temporary directory.
pub(crate) struct Store {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: images::Images,
}

impl Store {
    pub(crate) fn new() -> Store {
        Store::with(&images::Config::default())
    }

    pub(crate) fn with(config: &images::Config) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let images = images::Images::open(&dir.path().join("images"), config).unwrap();
        Store { dir, images }
    }

    /// Loads an image of these layers, bottom first.
    pub(crate) async fn load(
        &self,
        name: &str,
        layers: &[Vec<u8>],
    ) -> Result<std::sync::Arc<images::Image>, images::Error> {
        let layout = tempfile::tempdir().unwrap();
        Sample::plain(layers).layout(layout.path(), name);
        Ok(self.images.load(layout.path()).await?.remove(0))
    }

    pub(crate) fn reopen(self) -> Store {
        let Store { dir, images } = self;
        drop(images);
        let images = images::Images::open(&dir.path().join("images"), &images::Config::default()).unwrap();
        Store { dir, images }
    }

    /// Everything in the store with its times: equal when nothing was written.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.dir.path().join("images"), &mut names).unwrap();
        names.sort();
        names
    }
}

fn list(dir: &Path, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        names.push(format!("{} {:?}", entry.path().display(), metadata.modified()?));
        if metadata.is_dir() {
            list(&entry.path(), names)?;
        }
    }
    Ok(())
}

/// The whole chain of an error, as a user sees it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
