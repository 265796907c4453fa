//! From a container of a pod to what the runtime is asked for: pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::quantity::Quantity;
use images::Image;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use runtime::{ContainerSpec, Mount, MountKind, Propagation, Resources};

use crate::env::expand;
use crate::files::{Files, Places};
use crate::security::Security;

/// What a container's spec is made from, besides the container.
pub(crate) struct Ground<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) image: &'a Image,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) files: &'a Files,
    pub(crate) places: &'a Places,
    pub(crate) machine_memory_bytes: i64,
    pub(crate) log_path: PathBuf,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_files: u32,
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
    let security = Security::of(spec, container, &config.user)?;
    let mut mounts = own_files(ground, container, attempt, spec);
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(ground, mount, &known)?);
    }
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
        resources: resources(container, ground.machine_memory_bytes),
        capabilities: security.capabilities,
        privileged: security.privileged,
        no_new_privileges: security.no_new_privileges,
        seccomp: security.seccomp,
        read_only_root: security.read_only_root,
        masked_paths: runtime::MASKED_PATHS.iter().map(|path| (*path).to_owned()).collect(),
        readonly_paths: runtime::READONLY_PATHS.iter().map(|path| (*path).to_owned()).collect(),
        log_path: ground.log_path.clone(),
        log_max_bytes: ground.log_max_bytes,
        log_files: ground.log_files,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
    })
}

/// hosts, hostname, resolv.conf and the file for last words.
fn own_files(ground: &Ground<'_>, container: &Container, attempt: u32, spec: &PodSpec) -> Vec<Mount> {
    let bind = |source: PathBuf, target: &str| Mount {
        source,
        target: target.to_owned(),
        read_only: false,
        kind: MountKind::Bind,
        propagation: Propagation::Private,
    };
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
    let mut source = ground.places.volume(&mount.name, content);
    let sub_path = mount
        .sub_path
        .clone()
        .or(mount.sub_path_expr.as_ref().map(|text| expand(text, known)))
        .filter(|path| !path.is_empty());
    if let Some(sub_path) = sub_path {
        let inside =
            Path::new(&sub_path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            return Err(format!("subPath {sub_path:?} must be relative and stay inside the volume"));
        }
        source.push(sub_path);
    }
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    };
    let files = matches!(content, crate::files::Content::Files { .. });
    let read_only = mount.read_only.unwrap_or(false) || files;
    Ok(Mount { source, target: mount.mount_path.clone(), read_only, kind: MountKind::Bind, propagation })
}

/// Requests and limits in the kernel's units.
fn resources(container: &Container, machine_bytes: i64) -> Resources {
    let side = |limits: bool, name: &str| -> Option<i128> {
        let resources = container.resources.as_ref()?;
        let amounts = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() }?;
        Quantity::parse(&amounts.get(name)?.0).ok().map(|quantity| quantity.as_milli())
    };
    let unsigned = |amount: i128| u64::try_from(amount).unwrap_or(0);
    let memory = side(true, "memory").map(|milli| unsigned(milli / 1000));
    let shares = side(false, "cpu").map_or(2, |milli| unsigned(milli * 1024 / 1000).max(2));
    Resources {
        cpu_shares: Some(shares),
        cpu_quota_us: side(true, "cpu").map(|milli| unsigned(milli * 100).max(1000)),
        cpu_period_us: Some(100_000),
        memory_bytes: memory,
        pids: None,
        oom_score_adj: Some(oom_score(container, machine_bytes)),
    }
}

/// As documented for the classes of service; a burstable container's falls with its share of memory asked for.
fn oom_score(container: &Container, machine_bytes: i64) -> i32 {
    let amounts = container.resources.as_ref();
    let get = |limits: bool, name: &str| {
        let amounts = amounts
            .and_then(|amounts| if limits { amounts.limits.as_ref() } else { amounts.requests.as_ref() });
        amounts.and_then(|amounts| amounts.get(name)).map(|quantity| quantity.0.clone())
    };
    let guaranteed =
        ["cpu", "memory"].iter().all(|name| get(true, name).is_some() && get(true, name) == get(false, name));
    if guaranteed {
        return -997;
    }
    match get(false, "memory").and_then(|text| Quantity::parse(&text).ok()) {
        None => 1000,
        Some(quantity) => {
            let asked = quantity.as_milli() / 1000;
            let machine = i128::from(machine_bytes).max(1);
            i32::try_from((1000 - 1000 * asked / machine).clamp(3, 999)).unwrap_or(999)
        }
    }
}
