//! Images made by the test: layers, an OCI layout, what `docker save` writes, a push into a registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::node::{Node, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image: its name, its layers as tars, and its config.
pub(crate) struct Image {
    reference: String,
    layers: Vec<Vec<u8>>,
    config: Value,
}

/// An entry of a layer.
pub(crate) enum File<'a> {
    /// Path, mode and content.
    Plain(&'a str, u32, Vec<u8>),
    /// Path and where it leads.
    Link(&'a str, &'a str),
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content).unwrap();
}

/// A layer's tar.
pub(crate) fn layer(files: Vec<File<'_>>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        match file {
            File::Plain(path, mode, content) => add(&mut tar, path, mode, &content),
            File::Link(path, target) => {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// A program of this machine with the libraries it is linked with, at the places where it looks for them.
fn with_libraries(program: &str) -> Vec<(String, Vec<u8>)> {
    let listed = run("ldd", &[program]);
    let libraries = listed.out.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
    let paths = std::iter::once(program.to_owned()).chain(libraries);
    let read = |path: String| {
        let content = fs::read(&path).unwrap_or_else(|error| panic!("read {path}: {error}"));
        (path.trim_start_matches('/').to_owned(), content)
    };
    paths.map(read).collect()
}

/// The busybox of this machine, statically linked, with a shell and what the tests run; and getent, which resolves
/// names as programs do (a static program cannot).
pub(crate) fn busybox(reference: &str) -> Image {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let program = program.expect("this machine lacks busybox (Debian: busybox-static)");
    let applets = [
        "sh", "cat", "ls", "echo", "sleep", "wget", "nslookup", "id", "hostname", "true", "false", "stat",
        "dd", "tail", "head", "seq", "env", "ps", "tty", "stty", "nc", "kill", "touch", "mkdir", "yes",
        "httpd", "tar",
    ];
    let paths: Vec<String> = applets.iter().map(|name| format!("bin/{name}")).collect();
    let mut first = vec![File::Plain("bin/busybox", 0o755, program)];
    let resolver = with_libraries("/usr/bin/getent");
    first.extend(resolver.iter().map(|(path, content)| File::Plain(path, 0o755, content.clone())));
    first.extend(paths.iter().map(|path| File::Link(path, "busybox")));
    let second = vec![File::Plain("etc/origin", 0o644, b"made by a test\n".to_vec())];
    Image::new(reference, vec![layer(first), layer(second)], json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}))
}

impl Image {
    /// An image of layers (tars) and the OCI config's inner `config`.
    pub(crate) fn new(reference: &str, layers: Vec<Vec<u8>>, config: Value) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Image { reference: reference.to_owned(), layers, config }
    }

    /// The blobs: compressed layers, config, and last the manifest.
    fn blobs(&self) -> Vec<Vec<u8>> {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|layer| gzip(layer)).collect();
        let described =
            |kind: &str, blob: &[u8]| json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()});
        let layers: Vec<Value> = blobs.iter().map(|blob| described(LAYER, blob)).collect();
        let config = self.config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, &config), "layers": layers,
        });
        blobs.extend([config, manifest.to_string().into_bytes()]);
        blobs
    }

    /// One layer more, above the others.
    pub(crate) fn add_layer(&mut self, layer: Vec<u8>) {
        let diff_ids = self.config["rootfs"]["diff_ids"].as_array_mut().unwrap();
        diff_ids.push(digest(&layer).into());
        self.layers.push(layer);
    }

    /// What a registry serves of it: by tag or digest, `layer` or the media type, and the bytes.
    pub(crate) fn served(&self) -> BTreeMap<String, (String, Vec<u8>)> {
        let blobs = self.blobs();
        let mut served = BTreeMap::new();
        for (at, blob) in blobs.iter().enumerate() {
            let kind = match blobs.len() - at {
                1 => MANIFEST,
                2 => CONFIG,
                _ => "layer",
            };
            served.insert(digest(blob), (kind.to_owned(), blob.clone()));
            if kind == MANIFEST {
                served.insert("v1".to_owned(), (kind.to_owned(), blob.clone()));
            }
        }
        served
    }

    /// An OCI layout: path in it and content.
    fn layout(&self) -> Vec<(String, Vec<u8>)> {
        let blobs = self.blobs();
        let manifest = blobs.last().unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MANIFEST, "digest": digest(manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": self.reference},
        }]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        files.extend(
            blobs.into_iter().map(|blob| (format!("blobs/{}", digest(&blob).replace(':', "/")), blob)),
        );
        files
    }

    /// Writes an OCI layout as a directory.
    pub(crate) fn write_layout_dir(&self, dir: &Path) {
        for (name, content) in self.layout() {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// Writes an OCI layout as a tar.
    pub(crate) fn write_layout_tar(&self, path: &Path) {
        let mut tar = tar::Builder::new(Vec::new());
        self.layout().iter().for_each(|(name, content)| add(&mut tar, name, 0o644, content));
        fs::write(path, tar.into_inner().unwrap()).unwrap();
    }

    /// Writes what `docker save | gzip` does.
    pub(crate) fn write_docker_save(&self, path: &Path) {
        let mut tar = tar::Builder::new(Vec::new());
        let names: Vec<String> = (0..self.layers.len()).map(|at| format!("{at}/layer.tar")).collect();
        self.layers.iter().zip(&names).for_each(|(layer, name)| add(&mut tar, name, 0o644, layer));
        add(&mut tar, "config.json", 0o644, self.config.to_string().as_bytes());
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.reference], "Layers": names}]);
        add(&mut tar, "manifest.json", 0o644, manifest.to_string().as_bytes());
        fs::write(path, gzip(&tar.into_inner().unwrap())).unwrap();
    }

    /// Pushes into a registry over plain HTTP, `name` as `team/app` and `tag`, with curl.
    pub(crate) fn push(&self, registry: &str, name: &str, tag: &str, scratch: &Path) {
        let curl = |args: &[&str]| {
            let said = run("curl", &[&["-sS", "--fail", "--noproxy", "*"], args].concat());
            assert_eq!(said.code, 0, "curl {}: {}", args.join(" "), said.all());
            said.out
        };
        let blobs = self.blobs();
        let (manifest, rest) = blobs.split_last().unwrap();
        let body = |bytes: &[u8]| {
            fs::write(scratch, bytes).unwrap();
            format!("@{}", scratch.display())
        };
        for blob in rest {
            let head =
                curl(&["-i", "-X", "POST", "-d", "", &format!("http://{registry}/v2/{name}/blobs/uploads/")]);
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("location:"));
            let place = line.unwrap_or_else(|| panic!("an upload location: {head}"))[9..].trim().to_owned();
            let place = if place.starts_with('/') { format!("http://{registry}{place}") } else { place };
            let join = if place.contains('?') { '&' } else { '?' };
            let place = format!("{place}{join}digest={}", digest(blob));
            let binary = ["-X", "PUT", "-H", "Content-Type: application/octet-stream", "--data-binary"];
            curl(&[&binary[..], &[&body(blob), &place]].concat());
        }
        let kind = format!("Content-Type: {MANIFEST}");
        let place = format!("http://{registry}/v2/{name}/manifests/{tag}");
        curl(&["-X", "PUT", "-H", &kind, "--data-binary", &body(manifest), &place]);
    }
}

impl Node {
    /// Puts the busybox of this machine into the node's image store as `busybox:1`.
    pub(crate) fn load_busybox(&self) {
        let archive = self.path("busybox.tar");
        busybox("busybox:1").write_layout_tar(&archive);
        self.ok(&["image", "load", archive.to_str().unwrap()]);
    }
}
