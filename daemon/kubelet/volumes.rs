//! Which files a pod's volumes hold, and what is still missing for them: pure.

use std::collections::BTreeSet;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PersistentVolume, Pod, PodSpec, ProjectedVolumeSource, Volume,
    VolumeProjection,
};

use crate::env::{Facts, Sources, field_value, resource_value};
use crate::etc::{self, Names};
use crate::files::{Content, Contents, Files, Written};
use crate::ownership::Group;

/// Provisions directories on this node.
const DIRECTORY_PROVISIONER: &str = "holdfast.dev/directory";
/// What keeps a pod waiting for the moment that its token takes.
pub(crate) const NO_TOKEN_YET: &str = "its service account token is not here yet";
/// A token's life when the pod does not say, as documented.
const TOKEN_SECONDS: i64 = 3600;

/// One token that a pod's volumes hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenKey {
    /// Empty: the API server's own.
    pub(crate) audience: String,
    pub(crate) seconds: i64,
}

/// Decides every file of the pod.
///
/// # Errors
/// In words, when a source that is not optional is missing or a kind of volume is not served.
pub(crate) fn wanted(pod: &Pod, sources: &Sources, facts: &Facts, names: &Names) -> Result<Files, String> {
    let group = pod.spec.as_ref().and_then(Group::of);
    let mut files = Files { volumes: [].into(), etc: etc::of(pod, names), group };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let content = content(pod, volume, sources, facts);
        let content = content
            .map_err(|why| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name))?;
        files.volumes.insert(volume.name.clone(), readable(content, files.group.as_ref()));
    }
    Ok(files)
}

/// The same for volumes that were made once: of what has lost its source the files stay, so only its kind is told.
pub(crate) fn made(pod: &Pod, sources: &Sources, facts: &Facts, names: &Names) -> Files {
    let group = pod.spec.as_ref().and_then(Group::of);
    let mut files = Files { volumes: [].into(), etc: etc::of(pod, names), group };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let parts = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let mut hidden = parts.map(|part| part.secret.is_some() || part.service_account_token.is_some());
        let secret = volume.secret.is_some() || hidden.any(|hidden| hidden);
        let content = content(pod, volume, sources, facts);
        let content = content.unwrap_or(Content::Files { secret, files: Contents::new() });
        files.volumes.insert(volume.name.clone(), readable(content, files.group.as_ref()));
    }
    files
}

/// Generated files can be read by the pod's group, if it has one.
fn readable(content: Content, group: Option<&Group>) -> Content {
    match content {
        Content::Files { secret, mut files } if group.is_some() => {
            files.values_mut().for_each(|file| file.mode |= 0o440);
            Content::Files { secret, files }
        }
        content => content,
    }
}

/// The tokens that the pod's volumes hold.
pub(crate) fn tokens(pod: &Pod) -> BTreeSet<TokenKey> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(token).collect()
}

fn token(source: &VolumeProjection) -> Option<TokenKey> {
    source.service_account_token.as_ref().map(|token| TokenKey {
        audience: token.audience.clone().unwrap_or_default(),
        seconds: token.expiration_seconds.unwrap_or(TOKEN_SECONDS),
    })
}

/// The claim that a volume stands for, if it does; the second tells whether the pod's own is meant.
pub(crate) fn claim(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    let named = volume.persistent_volume_claim.as_ref().map(|source| (source.claim_name.clone(), false));
    let own = || {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        (format!("{name}-{}", volume.name), true)
    };
    named.or_else(|| volume.ephemeral.as_ref().map(|_| own()))
}

/// The images that volumes are made of, each with its pull policy.
pub(crate) fn images(pod: &Pod) -> Vec<(String, String)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.image.as_ref());
    let named = sources.filter_map(|source| {
        let reference = source.reference.clone()?;
        let latest = reference.ends_with(":latest") || !reference.rsplit('/').next()?.contains([':', '@']);
        let default = if latest { "Always" } else { "IfNotPresent" };
        Some((reference, source.pull_policy.clone().unwrap_or_else(|| default.to_owned())))
    });
    named.collect()
}

fn content(pod: &Pod, volume: &Volume, sources: &Sources, facts: &Facts) -> Result<Content, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(empty) = &volume.empty_dir {
        let size = empty.size_limit.as_ref().and_then(|size| bytes(&size.0));
        return match empty.medium.as_deref() {
            None | Some("") => Ok(Content::Empty),
            Some("Memory") => Ok(Content::Memory { size_bytes: size.filter(|size| *size > 0) }),
            Some(other) => Err(format!("emptyDir medium {other:?} is not served by this node")),
        };
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::Host { path: host.path.clone(), kind: host.type_.clone().unwrap_or_default() });
    }
    if let Some(source) = &volume.config_map {
        let picked =
            Picked { items: source.items.as_deref(), mode: source.default_mode, optional: source.optional };
        let files = of_config_map(sources, namespace, &source.name, &picked)?;
        return Ok(Content::Files { secret: false, files });
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let picked =
            Picked { items: source.items.as_deref(), mode: source.default_mode, optional: source.optional };
        let files = of_secret(sources, namespace, name, &picked)?;
        return Ok(Content::Files { secret: true, files });
    }
    if let Some(source) = &volume.downward_api {
        let files = of_downward(pod, source.items.as_deref(), source.default_mode, facts)?;
        return Ok(Content::Files { secret: false, files });
    }
    if let Some(source) = &volume.projected {
        return of_projected(pod, source, sources, facts);
    }
    if let Some((name, own)) = claim(pod, volume) {
        return of_claim(pod, &name, own, sources);
    }
    if let Some(image) = &volume.image {
        let reference = image.reference.clone().unwrap_or_default();
        return Ok(Content::Image { reference });
    }
    if let Some(nfs) = &volume.nfs {
        let (server, path) = (nfs.server.clone(), nfs.path.clone());
        return Ok(Content::Nfs { server, path, options: Vec::new() });
    }
    Err(not_served(volume))
}

/// A kind of volume that needs a driver or a cloud that is not here, by its name.
fn not_served(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let kind = value.as_object().and_then(|fields| fields.keys().find(|name| *name != "name").cloned());
    format!(
        "volumes of kind {:?} are not served by this node: emptyDir, hostPath, configMap, secret, downwardAPI, projected, \
         persistentVolumeClaim, ephemeral, image and nfs are",
        kind.unwrap_or_default()
    )
}

fn bytes(text: &str) -> Option<u64> {
    Quantity::parse(text).ok().and_then(|quantity| u64::try_from(quantity.as_milli() / 1000).ok())
}

fn of_projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Content, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mode_of_all = source.default_mode;
    let (mut files, mut secret) = (Contents::new(), false);
    for part in source.sources.iter().flatten() {
        if let Some(part) = &part.config_map {
            let picked = Picked { items: part.items.as_deref(), mode: mode_of_all, optional: part.optional };
            files.extend(of_config_map(sources, namespace, &part.name, &picked)?);
        } else if let Some(part) = &part.secret {
            secret = true;
            let picked = Picked { items: part.items.as_deref(), mode: mode_of_all, optional: part.optional };
            files.extend(of_secret(sources, namespace, &part.name, &picked)?);
        } else if let Some(part) = &part.downward_api {
            files.extend(of_downward(pod, part.items.as_deref(), mode_of_all, facts)?);
        } else if let (Some(key), Some(part)) = (token(part), &part.service_account_token) {
            secret = true;
            let text = sources.tokens.get(&key).ok_or(NO_TOKEN_YET)?;
            // As documented: whoever reads a token is its only reader where it is known who that is.
            let uid = pod.spec.as_ref().and_then(only_user);
            let grouped = pod.spec.as_ref().is_some_and(|spec| Group::of(spec).is_some());
            let mode = if uid.is_some() || grouped { 0o600 } else { mode(None, mode_of_all) };
            files.insert(safe(&part.path)?, Written { bytes: text.clone().into_bytes(), mode, uid });
        } else {
            return Err("of projected sources configMap, secret, downwardAPI and serviceAccountToken are served by this node, no other".to_owned());
        }
    }
    Ok(Content::Files { secret, files })
}

/// The user that all containers of a pod run as, where the pod says so.
fn only_user(spec: &PodSpec) -> Option<u32> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = all.map(|one| one.security_context.as_ref().and_then(|own| own.run_as_user).or(of_pod));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

/// What a claim is bound to.
fn of_claim(pod: &Pod, name: &str, own: bool, sources: &Sources) -> Result<Content, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claim = sources.claims.get(&client::Key::new(namespace, name));
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
    let owners = claim.metadata.owner_references.iter().flatten();
    if own && !owners.into_iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Err(format!("PVC \"{namespace}/{name}\" was not created for pod (pod is not owner)"));
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|_| bound);
    let volume = volume.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" is not bound"))?;
    let found = sources.volumes.get(&client::Key::new("", &volume));
    let found = found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
    let spec = found.spec.as_ref();
    let for_us = spec
        .and_then(|spec| spec.claim_ref.as_ref())
        .is_some_and(|claimed| claimed.uid == claim.metadata.uid && claimed.name.as_deref() == Some(name));
    if !for_us {
        return Err(format!(
            "persistentvolume \"{volume}\" is not bound to persistentvolumeclaim \"{name}\""
        ));
    }
    of_persistent(found)
}

fn of_persistent(volume: &PersistentVolume) -> Result<Content, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &volume.spec else { return Err(format!("persistentvolume \"{name}\" has no spec")) };
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "persistentvolume \"{name}\" has volumeMode Block: block devices are not served by this node, file systems are"
        ));
    }
    let provisioned = volume.metadata.annotations.iter().flatten();
    let made_here = provisioned
        .into_iter()
        .any(|(key, value)| key == "pv.kubernetes.io/provisioned-by" && value == DIRECTORY_PROVISIONER);
    if let Some(host) = &spec.host_path {
        let (path, kind) = (host.path.clone(), host.type_.clone().unwrap_or_default());
        return Ok(if made_here {
            Content::Lasting { path, made_here }
        } else {
            Content::Host { path, kind }
        });
    }
    if let Some(local) = &spec.local {
        return Ok(Content::Lasting { path: local.path.clone(), made_here });
    }
    if let Some(nfs) = &spec.nfs {
        let (server, path) = (nfs.server.clone(), nfs.path.clone());
        return Ok(Content::Nfs { server, path, options: spec.mount_options.clone().unwrap_or_default() });
    }
    Err(format!(
        "persistentvolume \"{name}\" needs a driver that is not here: hostPath, local, nfs and those of {DIRECTORY_PROVISIONER} are served by this node"
    ))
}

/// What of an object's keys is wanted.
struct Picked<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(0o644)).unwrap_or(0o644) & 0o777
}

fn of_config_map(
    sources: &Sources,
    namespace: &str,
    name: &str,
    picked: &Picked<'_>,
) -> Result<Contents, String> {
    let Some(map) = sources.config_map(namespace, name) else {
        return if picked.optional == Some(true) {
            Ok(Contents::new())
        } else {
            Err(format!("configmap \"{name}\" not found"))
        };
    };
    let texts = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binaries = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    chosen("config", texts.chain(binaries).collect(), picked)
}

fn of_secret(
    sources: &Sources,
    namespace: &str,
    name: &str,
    picked: &Picked<'_>,
) -> Result<Contents, String> {
    let Some(secret) = sources.secret(namespace, name) else {
        return if picked.optional == Some(true) {
            Ok(Contents::new())
        } else {
            Err(format!("secret \"{name}\" not found"))
        };
    };
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    chosen("secret", data.collect(), picked)
}

/// All keys under their own names, or the items under their paths.
fn chosen(
    kind: &str,
    data: std::collections::BTreeMap<String, Vec<u8>>,
    picked: &Picked<'_>,
) -> Result<Contents, String> {
    let Some(items) = picked.items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .into_iter()
            .map(|(key, value)| (key, Written::roots(value, mode(None, picked.mode))))
            .collect());
    };
    let mut files = Contents::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let file = Written::roots(value.clone(), mode(item.mode, picked.mode));
                files.insert(safe(&item.path)?, file);
            }
            None if picked.optional == Some(true) => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(files)
}

fn of_downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    facts: &Facts,
) -> Result<Contents, String> {
    let mut files = Contents::new();
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, &field.field_path, facts)?,
            (None, Some(resource)) => {
                let container = resource.container_name.as_deref().unwrap_or_default();
                let divisor = resource.divisor.as_ref().map(|divisor| divisor.0.as_str());
                resource_value(pod, container, &resource.resource, divisor, facts)?
            }
            (None, None) => return Err(format!("downwardAPI item {:?} names no field", item.path)),
        };
        let file = Written::roots(text.into_bytes(), mode(item.mode, default_mode));
        files.insert(safe(&item.path)?, file);
    }
    Ok(files)
}

/// A path inside the volume: validation has seen it, but what is written to the machine is checked where it is written.
fn safe(path: &str) -> Result<String, String> {
    let inside = !path.is_empty()
        && path.split('/').all(|part| !part.is_empty() && part != "." && !part.starts_with(".."));
    if inside { Ok(path.to_owned()) } else { Err(format!("path {path:?} leads out of the volume")) }
}
