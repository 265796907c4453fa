//! What an image is to those who run it, and the OCI documents it is read from.
//!
//! Invariant: an `Image` handed out is complete: every one of its layers is unpacked at its path.

use crate::reference::Reference;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image this machine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration (`sha256:…`): the same for every name of the image.
    pub id: String,
    /// Digest of the manifest (`sha256:…`), this platform's when the name means several.
    pub digest: String,
    /// Its names, sorted; empty once the last was taken away while it was still in use.
    pub references: Vec<Reference>,
    /// How its author wants it run.
    pub config: ImageConfig,
    /// Directories of its unpacked layers, bottom first, ready as overlayfs lower directories.
    pub layers: Vec<PathBuf>,
    /// Bytes of its blobs as stored (compressed), as Kubernetes reports image sizes.
    pub size: u64,
}

/// The `config` part of an OCI image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    #[serde(rename = "User", skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value`, in order.
    #[serde(rename = "Env", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What is run.
    #[serde(rename = "Entrypoint", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program itself where there is no entrypoint.
    #[serde(rename = "Cmd", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts; empty means `/`.
    #[serde(
        rename = "WorkingDir",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub working_dir: String,
    /// Name or number of the signal that asks it to end; empty means SIGTERM.
    #[serde(
        rename = "StopSignal",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub stop_signal: String,
    /// Labels of the image.
    #[serde(rename = "Labels", skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// `8080/tcp` and the like.
    #[serde(
        rename = "ExposedPorts",
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Instructions for images built on this one.
    #[serde(rename = "OnBuild", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub on_build: Vec<String>,
    /// What runs a build's commands that are no lists; empty means `/bin/sh -c`.
    #[serde(rename = "Shell", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub shell: Vec<String>,
    /// How Docker would ask for its health; kept as it is, Kubernetes has probes.
    #[serde(rename = "Healthcheck", skip_serializing_if = "serde_json::Value::is_null")]
    pub healthcheck: serde_json::Value,
    /// Paths that want storage of their own.
    #[serde(rename = "Volumes", skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, Empty>,
}

/// The empty object that OCI puts behind each port and volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Docker writes null where a list or a map is empty.
fn or_default<'de, T: Deserialize<'de> + Default, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// The configuration blob.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) config: ImageConfig,
    pub(crate) rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub(crate) history: Vec<serde_json::Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<String>,
}

/// Points at a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// An image manifest, OCI's or Docker's version 2 schema 2.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// An image index, OCI's, Docker's manifest list, or the root of a layout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

/// Reads what a name leads to: an index is returned, a manifest (None) only checked.
pub(crate) fn read_index(bytes: &[u8]) -> Result<Option<Index>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Kind {
        manifests: Option<serde::de::IgnoredAny>,
    }
    if serde_json::from_slice::<Kind>(bytes)?.manifests.is_some() {
        return serde_json::from_slice(bytes).map(Some);
    }
    serde_json::from_slice::<Manifest>(bytes).map(|_| None)
}

/// This machine's architecture by its name in OCI documents.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The entries of an index that run here, in its order: those for this platform, or the one that names none.
pub(crate) fn fitting(index: &Index) -> Vec<&Descriptor> {
    let fits = |p: &Platform| p.os == "linux" && p.architecture == architecture();
    let mut fitting: Vec<_> =
        index.manifests.iter().filter(|d| d.platform.as_ref().is_some_and(fits)).collect();
    fitting.extend(index.manifests.iter().filter(|d| d.platform.is_none()));
    fitting
}

/// The platforms an index offers, for the message that none fits.
pub(crate) fn offered(index: &Index) -> String {
    let names: Vec<_> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
