//! What a pod finds as files: volumes, and the hosts, hostname and resolv.conf made for it. `wanted` is pure.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};

use crate::env::{Facts, Sources, field_value, resource_value};

/// Where a pod's files lie.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// On disk.
    pub(crate) disk: PathBuf,
    /// On a tmpfs: secrets, and volumes with medium Memory.
    pub(crate) memory: PathBuf,
}

/// All files of a pod, as they are to be.
#[derive(Debug, Clone, Default, Hash, PartialEq)]
pub(crate) struct Files {
    pub(crate) volumes: BTreeMap<String, Content>,
    /// `hosts`, `hostname`, `resolv.conf`.
    pub(crate) etc: BTreeMap<String, String>,
}

/// What one volume is.
#[derive(Debug, Clone, Hash, PartialEq)]
pub(crate) enum Content {
    /// An empty directory that lives as long as the pod.
    Empty { memory: bool },
    /// A path of the machine; `kind` as in `hostPath.type`.
    Host { path: String, kind: String },
    /// Files that change together.
    Files { secret: bool, files: BTreeMap<String, (Vec<u8>, u32)> },
}

/// What the node adds to every pod's network files.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) dns: String,
    pub(crate) host_resolv_conf: String,
    pub(crate) ip: String,
}

impl Files {
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Hash::hash(self, &mut hasher);
        hasher.finish()
    }
}

/// Decides every file of the pod.
///
/// # Errors
/// In words, when a source that is not optional is missing or a kind of volume is not served.
pub(crate) fn wanted(pod: &Pod, sources: &Sources, facts: &Facts, names: &Names) -> Result<Files, String> {
    let mut files = Files { volumes: BTreeMap::new(), etc: etc(pod, names) };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let content =
            content(pod, volume, sources, facts).map_err(|why| format!("volume {:?}: {why}", volume.name))?;
        files.volumes.insert(volume.name.clone(), content);
    }
    Ok(files)
}

type Contents = BTreeMap<String, (Vec<u8>, u32)>;

fn content(pod: &Pod, volume: &Volume, sources: &Sources, facts: &Facts) -> Result<Content, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(empty) = &volume.empty_dir {
        return Ok(Content::Empty { memory: empty.medium.as_deref() == Some("Memory") });
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::Host { path: host.path.clone(), kind: host.type_.clone().unwrap_or_default() });
    }
    if let Some(source) = &volume.config_map {
        let files = of_config_map(
            sources,
            namespace,
            &source.name,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
        )?;
        return Ok(Content::Files { secret: false, files });
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let files = of_secret(
            sources,
            namespace,
            name,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
        )?;
        return Ok(Content::Files { secret: true, files });
    }
    if let Some(source) = &volume.downward_api {
        return Ok(Content::Files {
            secret: false,
            files: of_downward(pod, source.items.as_deref(), source.default_mode, facts)?,
        });
    }
    if let Some(source) = &volume.projected {
        let mut files = Contents::new();
        let mode = source.default_mode;
        let mut secret = false;
        for part in source.sources.iter().flatten() {
            if let Some(part) = &part.config_map {
                files.extend(of_config_map(
                    sources,
                    namespace,
                    &part.name,
                    part.items.as_deref(),
                    mode,
                    part.optional,
                )?);
            } else if let Some(part) = &part.secret {
                secret = true;
                files.extend(of_secret(
                    sources,
                    namespace,
                    &part.name,
                    part.items.as_deref(),
                    mode,
                    part.optional,
                )?);
            } else if let Some(part) = &part.downward_api {
                files.extend(of_downward(pod, part.items.as_deref(), mode, facts)?);
            } else {
                return Err("a projected source other than configMap, secret and downwardAPI is not served by this node yet".to_owned());
            }
        }
        return Ok(Content::Files { secret, files });
    }
    Err("this kind of volume is not served by this node yet; emptyDir, hostPath, configMap, secret, downwardAPI and projected are".to_owned())
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(0o644)).unwrap_or(0o644) & 0o777
}

fn of_config_map(
    sources: &Sources,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Contents, String> {
    let Some(map) = sources.config_map(namespace, name) else {
        return if optional == Some(true) {
            Ok(Contents::new())
        } else {
            Err(format!("configmap \"{name}\" not found"))
        };
    };
    let texts = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binaries = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    chosen(texts.chain(binaries).collect(), items, default_mode, optional, &format!("configmap \"{name}\""))
}

fn of_secret(
    sources: &Sources,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Contents, String> {
    let Some(secret) = sources.secret(namespace, name) else {
        return if optional == Some(true) {
            Ok(Contents::new())
        } else {
            Err(format!("secret \"{name}\" not found"))
        };
    };
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    chosen(data.collect(), items, default_mode, optional, &format!("secret \"{name}\""))
}

/// All keys under their own names, or the items under their paths.
fn chosen(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    what: &str,
) -> Result<Contents, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.into_iter().map(|(key, value)| (key, (value, mode(None, default_mode)))).collect());
    };
    let mut files = Contents::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                files.insert(safe(&item.path)?, (value.clone(), mode(item.mode, default_mode)));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{what} has no key {:?}", item.key)),
        }
    }
    Ok(files)
}

fn of_downward(
    pod: &Pod,
    items: Option<&[k8s_openapi::api::core::v1::DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    facts: &Facts,
) -> Result<Contents, String> {
    let mut files = Contents::new();
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, &field.field_path, facts)?,
            (None, Some(resource)) => {
                let container = resource.container_name.as_deref().unwrap_or_default();
                resource_value(
                    pod,
                    container,
                    &resource.resource,
                    resource.divisor.as_ref().map(|divisor| divisor.0.as_str()),
                    facts,
                )?
            }
            (None, None) => return Err(format!("downwardAPI item {:?} names no field", item.path)),
        };
        files.insert(safe(&item.path)?, (text.into_bytes(), mode(item.mode, default_mode)));
    }
    Ok(files)
}

/// A path inside the volume: validation has seen it, but what is written to the machine is checked where it is written.
fn safe(path: &str) -> Result<String, String> {
    let inside = !path.is_empty()
        && path.split('/').all(|part| !part.is_empty() && part != "." && !part.starts_with(".."));
    if inside { Ok(path.to_owned()) } else { Err(format!("path {path:?} leads out of the volume")) }
}

fn etc(pod: &Pod, names: &Names) -> BTreeMap<String, String> {
    let empty = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let hostname = hostname(pod);
    let mut hosts =
        "# Made by holdfast for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            .to_owned();
    if !names.ip.is_empty() {
        let domain = spec
            .subdomain
            .as_ref()
            .map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.cluster.local\t"))
            .unwrap_or_default();
        hosts.push_str(&format!("{}\t{domain}{hostname}\n", names.ip));
    }
    for alias in spec.host_aliases.iter().flatten() {
        hosts.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.clone().unwrap_or_default().join("\t")
        ));
    }
    BTreeMap::from([
        ("hosts".to_owned(), hosts),
        ("hostname".to_owned(), format!("{hostname}\n")),
        ("resolv.conf".to_owned(), resolv_conf(spec, namespace, names)),
    ])
}

/// `spec.hostname`, or the pod's name cut to what a hostname may be.
pub(crate) fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let name = own.or(pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// As documented for each `dnsPolicy`, with `dnsConfig` merged in.
fn resolv_conf(spec: &k8s_openapi::api::core::v1::PodSpec, namespace: &str, names: &Names) -> String {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network.unwrap_or(false);
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let host = |word: &str| -> Vec<String> {
        let lines = names.host_resolv_conf.lines().filter_map(|line| line.trim().strip_prefix(word));
        lines.flat_map(|rest| rest.split_whitespace().map(str::to_owned)).collect()
    };
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        _ if cluster => {
            let own = [
                format!("{namespace}.svc.cluster.local"),
                "svc.cluster.local".to_owned(),
                "cluster.local".to_owned(),
            ];
            (
                vec![names.dns.clone()],
                own.into_iter().chain(host("search")).collect(),
                vec!["ndots:5".to_owned()],
            )
        }
        _ => (host("nameserver"), host("search"), host("options")),
    };
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.clone().unwrap_or_default());
        searches.extend(config.searches.clone().unwrap_or_default());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|known| known.split(':').next() != Some(&name));
            options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

impl Places {
    /// Where a container finds a volume on the machine.
    pub(crate) fn volume(&self, name: &str, content: &Content) -> PathBuf {
        match content {
            Content::Host { path, .. } => PathBuf::from(path),
            Content::Empty { memory: true } | Content::Files { secret: true, .. } => {
                self.memory.join("volumes").join(name)
            }
            Content::Empty { memory: false } | Content::Files { .. } => self.disk.join("volumes").join(name),
        }
    }

    /// Where a generated file lies.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.disk.join("etc").join(name)
    }

    /// Where a container's last words arrive.
    pub(crate) fn last_words(&self, container: &str, attempt: u32) -> PathBuf {
        self.disk.join("last-words").join(format!("{container}.{attempt}"))
    }

    /// What `write` wrote last.
    pub(crate) fn hold(&self) -> Option<u64> {
        fs::read_to_string(self.disk.join("holds")).ok()?.trim().parse().ok()
    }

    /// Whether there is anything of the pod.
    pub(crate) fn exist(&self) -> bool {
        self.disk.exists() || self.memory.exists()
    }

    /// Makes the files as they are to be. Twice is once.
    pub(crate) fn write(&self, files: &Files) -> io::Result<()> {
        for name in ["volumes", "etc", "last-words"] {
            directory(&self.disk.join(name), 0o755)?;
        }
        for (name, text) in &files.etc {
            // Written in place: the file is mounted into containers, which would not see a new one.
            let path = self.etc(name);
            if fs::read_to_string(&path).ok().as_deref() != Some(text) {
                fs::write(&path, text)?;
            }
        }
        for (name, content) in &files.volumes {
            let path = self.volume(name, content);
            match content {
                Content::Empty { .. } => {
                    directory(&path, 0o777)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
                }
                Content::Host { path, kind } => host_path(Path::new(path), kind)?,
                Content::Files { files, .. } => switch(&path, files)?,
            }
        }
        fs::write(self.disk.join("holds"), files.hash().to_string())
    }

    /// Takes everything away. Gone already is success.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for place in [&self.disk, &self.memory] {
            match fs::remove_dir_all(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The documented types of `hostPath`.
fn host_path(path: &Path, kind: &str) -> io::Result<()> {
    let wrong = |what: &str| {
        Err(io::Error::other(format!("hostPath type check failed: {} is not {what}", path.display())))
    };
    let meta = fs::metadata(path);
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" => directory(path, 0o755),
        "FileOrCreate" => fs::OpenOptions::new().create(true).append(true).mode(0o644).open(path).map(|_| ()),
        "Directory" if !meta.as_ref().is_ok_and(|meta| meta.is_dir()) => wrong("a directory"),
        "File" if !meta.as_ref().is_ok_and(|meta| meta.is_file()) => wrong("a file"),
        _ => Ok(()),
    }
}

/// Replaces all files of a volume at once: they lie in a dated directory that `..data` points to, as in Kubernetes.
fn switch(volume: &Path, files: &Contents) -> io::Result<()> {
    directory(volume, 0o755)?;
    if holds(volume, files) {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    for (name, (bytes, mode)) in files {
        let path = volume.join(&fresh).join(name);
        directory(path.parent().unwrap_or(volume), 0o755)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(*mode))?;
    }
    directory(&volume.join(&fresh), 0o755)?;
    let old = fs::read_link(volume.join("..data")).ok();
    link(&fresh, &volume.join("..data"))?;
    let tops: std::collections::BTreeSet<&str> =
        files.keys().filter_map(|name| name.split('/').next()).collect();
    for top in &tops {
        link(&format!("..data/{top}"), &volume.join(top))?;
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name.to_str().is_some_and(|name| !name.starts_with("..") && !tops.contains(name));
        if stale {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) if old.as_os_str() != fresh.as_str() => fs::remove_dir_all(volume.join(old)),
        _ => Ok(()),
    }
}

fn holds(volume: &Path, files: &Contents) -> bool {
    let data = volume.join("..data");
    let count = fs::read_dir(volume).map(|entries| {
        entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with("..")).count()
    });
    let tops: std::collections::BTreeSet<&str> =
        files.keys().filter_map(|name| name.split('/').next()).collect();
    count.is_ok_and(|count| count == tops.len())
        && data.exists()
        && files.iter().all(|(name, (bytes, mode))| {
            let path = data.join(name);
            fs::read(&path).is_ok_and(|known| known == *bytes)
                && fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == *mode)
        })
}

/// Points a symbolic link somewhere else without a moment in which it is missing.
fn link(target: &str, path: &Path) -> io::Result<()> {
    let temporary = path.with_file_name("..link");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary)?;
    fs::rename(&temporary, path)
}
