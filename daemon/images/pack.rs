//! Makes images from files in memory: real layers, reproducible to the byte.
//!
//! Invariant: the same `Build` gives the same digests on every machine and at every time.

use crate::digest::{Digest, Sum, SummedWriter};
use crate::error::{Error, content};
use crate::image::{
    ConfigFile, Descriptor, ImageConfig, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, RootFs, architecture,
};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::{self, Write};

/// What an image is to be made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Build {
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
    /// How it is run.
    pub config: ImageConfig,
}

impl Build {
    /// An image that runs `entrypoint`, still without layers.
    pub fn new(entrypoint: &[&str]) -> Build {
        let entrypoint = entrypoint.iter().map(|part| (*part).to_owned()).collect();
        Build { layers: Vec::new(), config: ImageConfig { entrypoint, ..ImageConfig::default() } }
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Build {
        self.layers.push(layer);
        self
    }
}

/// Files that are stored, shared and unpacked together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    /// Its files, a directory before what it holds.
    pub files: Vec<File>,
}

impl Layer {
    /// What programs expect of any system: root and nobody in /etc/passwd and /etc/group, and a /tmp.
    pub fn base() -> Layer {
        let passwd = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
        Layer::default()
            .directory("/etc", 0o755)
            .file("/etc/group", 0o644, Bytes::from_static(b"root:x:0:\nnobody:x:65534:\n"))
            .file("/etc/passwd", 0o644, Bytes::from_static(passwd.as_bytes()))
            .directory("/root", 0o700)
            .directory("/tmp", 0o1777)
    }

    /// Adds a regular file owned by root.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, bytes: impl Into<Bytes>) -> Layer {
        self.add(path, mode, Content::File(bytes.into()))
    }

    /// Adds a directory owned by root.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Layer {
        self.add(path, mode, Content::Directory)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.add(path, 0o777, Content::Symlink(target.to_owned()))
    }

    fn add(mut self, path: &str, mode: u32, content: Content) -> Layer {
        self.files.push(File { path: path.to_owned(), mode, uid: 0, gid: 0, content });
        self
    }
}

/// One entry of a layer; its modification time is always the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute path in the image, without `.` and `..`.
    pub path: String,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub content: Content,
}

/// What a file of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file with these bytes.
    File(Bytes),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(String),
}

/// The documents of a build, digests known, nothing written yet.
pub(crate) struct Packed {
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

/// Names everything a build consists of. Layers are plain tar, so a layer's digest is its diff id as well and
/// does not depend on a compressor's version.
pub(crate) fn pack(what: &str, build: &Build) -> Result<Packed, Error> {
    check(what, build)?;
    let mut layers = Vec::new();
    let mut descriptors = Vec::new();
    for layer in &build.layers {
        let mut sink = SummedWriter { inner: io::sink(), sum: Sum::default() };
        write_layer(layer, &mut sink).map_err(|error| content(what, error.to_string()))?;
        let size = sink.sum.bytes;
        let digest = sink.sum.digest();
        descriptors.push(Descriptor {
            media_type: OCI_LAYER.into(),
            digest: digest.to_string(),
            size,
            ..Descriptor::default()
        });
        layers.push(digest);
    }
    let file = ConfigFile {
        created: Some("1970-01-01T00:00:00Z".into()),
        architecture: architecture().into(),
        os: "linux".into(),
        config: build.config.clone(),
        rootfs: RootFs { kind: "layers".into(), diff_ids: layers.iter().map(Digest::to_string).collect() },
        history: Vec::new(),
    };
    let config = serde_json::to_vec(&file).expect("a configuration has only text keys");
    let manifest = manifest(descriptors, &config);
    Ok(Packed { layers, config, manifest })
}

/// The manifest over these layers and this configuration.
pub(crate) fn manifest(layers: Vec<Descriptor>, config: &[u8]) -> Vec<u8> {
    let config = Descriptor {
        media_type: OCI_CONFIG.into(),
        digest: Digest::of(config).to_string(),
        size: config.len() as u64,
        ..Descriptor::default()
    };
    let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST.into(), config, layers };
    serde_json::to_vec(&manifest).expect("a manifest has only text keys")
}

/// Writes a layer as a tar stream, file by file.
pub(crate) fn write_layer(layer: &Layer, out: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for file in &layer.files {
        let path = file.path.trim_start_matches('/');
        let mut header = tar::Header::new_gnu();
        header.set_mode(file.mode & 0o7777);
        header.set_uid(file.uid.into());
        header.set_gid(file.gid.into());
        header.set_mtime(0);
        match &file.content {
            Content::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, &bytes[..])?;
            }
            Content::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Content::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    tar.finish()
}

fn check(what: &str, build: &Build) -> Result<(), Error> {
    for layer in &build.layers {
        let mut seen = BTreeSet::new();
        for file in &layer.files {
            let path = &file.path;
            let plain = path
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
            if !plain {
                return Err(content(what, format!("path {path:?} is not absolute and plain (/a/b)")));
            }
            if path.split('/').any(|part| part.starts_with(".wh.")) {
                return Err(content(what, format!("path {path:?} would be read as a deletion (.wh.)")));
            }
            if !seen.insert(path) {
                return Err(content(what, format!("path {path:?} is there twice in one layer")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn sample() -> Build {
        Build::new(&["/kubia"])
            .layer(Layer::base())
            .layer(Layer::default().file("/kubia", 0o755, &b"program"[..]).symlink("/k", "kubia"))
    }

    #[test]
    fn the_same_files_always_give_the_same_digests() {
        let packed = pack("kubia:1", &sample()).unwrap();
        // A change of these values means every machine makes its local images anew: be sure it is wanted.
        let expected = [
            "sha256:dcce339587fbfb95c7487083ca662d921282859e7fe7f25c8d3f34dc235ddaaa",
            "sha256:bd79892907a818ebac2c86a83a89292b0b4a1081395e2acfa2d73e3561204c61",
        ];
        assert_eq!(packed.layers.iter().map(Digest::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(pack("kubia:1", &sample()).unwrap().manifest, packed.manifest);
        let mut other = sample();
        other.layers[1].files[0].mode = 0o700;
        assert_ne!(pack("kubia:1", &other).unwrap().layers[1], packed.layers[1]);
    }

    #[test]
    fn a_build_with_a_path_that_is_not_plain_is_refused() {
        for path in ["etc", "/", "/a/../b", "/a//b", "/.wh.a", "/a/"] {
            let build = Build::new(&["/a"]).layer(Layer::default().directory(path, 0o755));
            assert!(pack("x:1", &build).is_err(), "{path}");
        }
        let twice = Layer::default().directory("/a", 0o755).directory("/a", 0o755);
        let error = pack("x:1", &Build::new(&[]).layer(twice)).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "x:1: path \"/a\" is there twice in one layer");
    }
}
