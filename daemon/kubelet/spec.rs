//! From a container of a pod to what the runtime is asked for: pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use images::Image;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use runtime::{ContainerSpec, Mount, MountKind, Propagation};

use crate::env::expand;
use crate::files::{Content, Files, Places};
use crate::security::{Profiles, Security};

/// What a container's spec is made from, besides the container.
pub(crate) struct Ground<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) image: &'a Image,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) files: &'a Files,
    pub(crate) places: &'a Places,
    pub(crate) machine_memory_bytes: i64,
    /// Where seccomp profiles lie.
    pub(crate) seccomp_dir: &'a Path,
    pub(crate) log_path: PathBuf,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_files: u32,
    /// For an ephemeral container: whose processes it sees.
    pub(crate) pid_of: Option<String>,
    /// The layers of the images that volumes are made of, by reference.
    pub(crate) volume_images: BTreeMap<String, Vec<PathBuf>>,
}

/// Everything the runtime has to know of one attempt.
///
/// # Errors
/// In words, when the pod asks for what cannot be given: `runAsNonRoot` with a root image, no command at all …
pub(crate) fn container(
    ground: &Ground<'_>,
    container: &Container,
    attempt: u32,
) -> Result<ContainerSpec, String> {
    let empty = PodSpec::default();
    let spec = ground.pod.spec.as_ref().unwrap_or(&empty);
    let config = &ground.image.config;
    let mut env: Vec<(String, String)> = config
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    for (name, value) in &ground.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let known: BTreeMap<String, String> = ground.env.iter().cloned().collect();
    let words = |list: &Option<Vec<String>>| {
        list.as_ref()
            .filter(|list| !list.is_empty())
            .map(|list| list.iter().map(|word| expand(word, &known)).collect::<Vec<_>>())
    };
    // As documented: a command replaces entrypoint and cmd, args replace cmd only.
    let (command, arguments) = match (words(&container.command), words(&container.args)) {
        (Some(command), arguments) => (command, arguments.unwrap_or_default()),
        (None, Some(arguments)) => (config.entrypoint.clone(), arguments),
        (None, None) => (config.entrypoint.clone(), config.cmd.clone()),
    };
    let args: Vec<String> = command.into_iter().chain(arguments).collect();
    if args.is_empty() {
        return Err("no command specified: neither the container nor its image names one".to_owned());
    }
    let profiles = Profiles { seccomp: ground.seccomp_dir };
    let security = Security::of(ground.pod, container, config, &profiles)?;
    let mut mounts = own_files(ground, container, attempt, spec);
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(ground, mount, &known)?);
    }
    // What is mounted inside another mount comes after it, whatever the order in the spec.
    mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        layers: ground.image.layers.clone(),
        args,
        env,
        cwd: container
            .working_dir
            .clone()
            .filter(|dir| !dir.is_empty())
            .unwrap_or_else(|| config.working_dir.clone()),
        user: security.user,
        user_name: security.user_name,
        mounts,
        resources: crate::resources::of_container(ground.pod, container, ground.machine_memory_bytes),
        capabilities: security.capabilities,
        privileged: security.privileged,
        no_new_privileges: security.no_new_privileges,
        seccomp: security.seccomp,
        read_only_root: security.read_only_root,
        masked_paths: security.masked_paths,
        readonly_paths: security.readonly_paths,
        strict_groups: security.strict_groups,
        apparmor: security.apparmor,
        log_path: ground.log_path.clone(),
        log_max_bytes: ground.log_max_bytes,
        log_files: ground.log_files,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        pid_of: ground.pid_of.clone(),
    })
}

/// hosts, hostname, resolv.conf and the file for last words.
fn own_files(ground: &Ground<'_>, container: &Container, attempt: u32, spec: &PodSpec) -> Vec<Mount> {
    let bind =
        |source: PathBuf, target: &str| Mount { source, target: target.to_owned(), ..Mount::default() };
    let mounted =
        |target: &str| container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == target);
    let mut mounts = Vec::new();
    for (name, target) in
        [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let host_network = spec.host_network.unwrap_or(false) && name == "hostname";
        if !mounted(target) && !host_network {
            mounts.push(bind(ground.places.etc(name), target));
        }
    }
    let target = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/dev/termination-log");
    mounts.push(bind(ground.places.last_words(&container.name, attempt), target));
    mounts
}

fn volume_mount(
    ground: &Ground<'_>,
    mount: &VolumeMount,
    known: &BTreeMap<String, String>,
) -> Result<Mount, String> {
    let content = ground
        .files
        .volumes
        .get(&mount.name)
        .ok_or_else(|| format!("volume {:?} is not in the pod", mount.name))?;
    let source = ground.places.volume(&mount.name, content);
    let expr = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
    let expanded = expr.map(|text| whole(text, known)).transpose()?;
    let sub_path = mount.sub_path.clone().filter(|path| !path.is_empty()).or(expanded).unwrap_or_default();
    let inside = Path::new(&sub_path).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(format!("subPath {sub_path:?} must be relative and stay inside the volume"));
    }
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    };
    let claimed_read_only =
        ground.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
            let claim = volume.persistent_volume_claim.as_ref().and_then(|claim| claim.read_only);
            let nfs = volume.nfs.as_ref().and_then(|nfs| nfs.read_only);
            volume.name == mount.name && claim.or(nfs) == Some(true)
        });
    let kind = match content {
        Content::Image { reference } => {
            let layers = ground.volume_images.get(reference).cloned();
            MountKind::Image { layers: layers.ok_or_else(|| format!("image {reference:?} is not here yet"))? }
        }
        _ => MountKind::Bind,
    };
    let read_only = mount.read_only.unwrap_or(false)
        || claimed_read_only
        || matches!(content, Content::Files { .. } | Content::Image { .. });
    Ok(Mount {
        source,
        target: mount.mount_path.clone(),
        read_only,
        kind,
        propagation,
        sub_path,
        recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
    })
}

/// Every reference has to be known, as documented for `subPathExpr`.
fn whole(text: &str, known: &BTreeMap<String, String>) -> Result<String, String> {
    let expanded = expand(text, known);
    let left = text.match_indices("$(").filter_map(|(at, _)| text[at + 2..].split_once(')'));
    match left.map(|(name, _)| name).find(|name| !known.contains_key(*name)) {
        Some(name) => Err(format!("failed to expand subPath: missing value for {name:?}")),
        None => Ok(expanded),
    }
}
