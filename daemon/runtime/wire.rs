//! Between the words of this crate and those of the shims' protocol.
//!
//! Invariant: pure; a shim's answer always becomes a value, unknown times become 1970.

use std::path::PathBuf;

use jiff::Timestamp;
use shim::cgroup;

use crate::{
    ContainerSpec, ContainerState, ExecSpec, Exit, Mount, MountKind, Phase, Propagation, Resources,
    SandboxState, Seccomp,
};

pub(crate) fn resources(from: &Resources) -> cgroup::Resources {
    cgroup::Resources {
        cpu_shares: from.cpu_shares,
        cpu_quota_us: from.cpu_quota_us,
        cpu_period_us: from.cpu_period_us,
        memory_bytes: from.memory_bytes,
        pids: from.pids,
    }
}

pub(crate) fn container(from: ContainerSpec) -> shim::Container {
    shim::Container {
        name: from.name,
        attempt: from.attempt,
        layers: from.layers,
        args: from.args,
        env: pairs(&from.env),
        cwd: from.cwd,
        uid: from.user.uid,
        gid: from.user.gid,
        groups: from.user.extra,
        user: from.user_name.unwrap_or_default(),
        mounts: from.mounts.into_iter().map(mount).collect(),
        resources: resources(&from.resources),
        oom_score_adj: from.resources.oom_score_adj,
        capabilities: from.capabilities,
        privileged: from.privileged,
        no_new_privileges: from.no_new_privileges,
        seccomp: from.seccomp != Seccomp::Unconfined,
        filter: Vec::new(),
        read_only_root: from.read_only_root,
        masked_paths: from.masked_paths,
        readonly_paths: from.readonly_paths,
        log_path: from.log_path,
        log_max_bytes: from.log_max_bytes,
        log_files: from.log_files,
        tty: from.tty,
        stdin: from.stdin,
        pid_of: from.pid_of.unwrap_or_default(),
        strict_groups: from.strict_groups,
        apparmor: from.apparmor.unwrap_or_default(),
    }
}

/// What of a container a shim of this version would pass over without a word.
pub(crate) fn unknown_to(version: u32, container: &shim::Container) -> Option<&'static str> {
    let mounts = &container.mounts;
    let since_2 = [
        ("processes of another container", !container.pid_of.is_empty()),
        ("a seccomp profile", !container.filter.is_empty()),
        ("an AppArmor profile", !container.apparmor.is_empty()),
        ("strict supplementary groups", container.strict_groups),
        ("a part of a volume", mounts.iter().any(|mount| !mount.sub_path.is_empty())),
        ("recursively read-only mounts", mounts.iter().any(|mount| mount.recursive_read_only)),
        ("an image as a volume", mounts.iter().any(|mount| !mount.layers.is_empty())),
    ];
    since_2.into_iter().find_map(|(what, asked)| (version < 2 && asked).then_some(what))
}

pub(crate) fn exec(from: &ExecSpec) -> shim::Exec {
    shim::Exec {
        args: from.args.clone(),
        env: pairs(&from.env),
        tty: from.tty,
        stdin: from.stdin,
        width: from.size.map_or(0, |size| size.width),
        height: from.size.map_or(0, |size| size.height),
    }
}

pub(crate) fn sandbox_state(from: &shim::State, alive: bool) -> SandboxState {
    let shim_pid = if alive { from.pid } else { 0 };
    SandboxState {
        id: from.id.clone(),
        labels: from.labels.clone(),
        shim_pid,
        netns: PathBuf::from(format!("/proc/{}/ns/net", from.pid)),
        created_at: time(from.created_at),
        containers: from.containers.iter().map(container_state).collect(),
        alive,
    }
}

pub(crate) fn container_state(from: &shim::Observed) -> ContainerState {
    let phase = match from.exit {
        None => Phase::Running { pid: from.pid },
        Some(exit) => Phase::Exited {
            code: exit.code,
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            finished_at: time(exit.finished_at),
        },
    };
    ContainerState {
        name: from.name.clone(),
        attempt: from.attempt,
        started_at: time(from.started_at),
        phase,
        message: from.message.clone(),
    }
}

pub(crate) fn exit(from: shim::Exit) -> Exit {
    Exit { code: from.code, signal: from.signal }
}

fn mount(from: Mount) -> shim::Mount {
    let (tmpfs, size_bytes, layers) = match from.kind {
        MountKind::Bind => (false, 0, Vec::new()),
        MountKind::Image { layers } => (false, 0, layers),
        MountKind::Tmpfs { size_bytes } => (true, size_bytes.unwrap_or(0), Vec::new()),
    };
    let propagation = match from.propagation {
        Propagation::Private => shim::Propagation::Private,
        Propagation::HostToContainer => shim::Propagation::HostToContainer,
        Propagation::Bidirectional => shim::Propagation::Bidirectional,
    };
    shim::Mount {
        source: from.source,
        target: from.target,
        read_only: from.read_only,
        tmpfs,
        size_bytes,
        propagation,
        sub_path: from.sub_path,
        recursive_read_only: from.recursive_read_only,
        layers,
    }
}

fn pairs(env: &[(String, String)]) -> Vec<String> {
    env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}
