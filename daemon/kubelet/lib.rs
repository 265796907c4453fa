//! Makes the pods that are bound to this machine run, and says how they are.
//!
//! Invariant: one slot per pod, keyed by uid: a pod that changed ten times while it was starting is brought to its last
//! state once; a pod of the same name with another uid is another pod.
//! Invariant: what runs is observed from the runtime, never remembered: after a restart every plan is empty.

mod act;
mod admit;
mod asking;
mod book;
mod container_status;
mod ending;
mod env;
mod env_files;
mod etc;
mod eviction;
mod files;
mod hooks;
mod logs;
mod machine;
mod node;
mod observe;
mod ownership;
mod plan;
mod pressure;
mod probes;
mod probing;
mod programs;
mod pulling;
mod refuse;
mod resize;
mod resources;
mod rules;
mod security;
mod spec;
mod status;
mod stopping;
mod streams;
mod tokens;
mod usage;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;

use client::{Caches, Clock};
use images::Images;
use network::Network;
use reconcile::{Backoff, Queue, Tasks, Work};
use runtime::Runtime;
use serde::{Deserialize, Serialize};

/// `[kubelet]` of config.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many pods may run on this machine at once.
    pub max_pods: u32,
    /// Wait before a container that failed twice in a row is started again, in seconds; doubles up to five minutes.
    pub crash_backoff_seconds: u32,
    /// Size at which a container's log is rotated, in MiB.
    pub log_mib: u64,
    /// How many files of a container's log are kept.
    pub log_files: u32,
    /// Most processes and threads of one pod; 0 means no bound.
    pub pod_pids: u64,
    /// What of the processors pods are not promised, in thousandths of one.
    pub reserved_cpu_milli: u64,
    /// What of the memory pods are not promised, in MiB.
    pub reserved_memory_mib: u64,
    /// With less memory than this left, in MiB, pods are evicted; 0 means never.
    pub eviction_memory_mib: u64,
    /// With less than this left on the disk, in MiB, pods are evicted; 0 means never.
    pub eviction_disk_mib: u64,
    /// With fewer inodes than this left, in percent, pods are evicted; 0 means never.
    pub eviction_inodes_percent: u8,
    /// With fewer process ids than this left, in percent, pods are evicted; 0 means never.
    pub eviction_pids_percent: u8,
    /// Sysctls that pods may set besides the safe ones; a `*` at the end stands for any rest.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Where `localhostProfile`s of seccomp lie; empty means `seccomp` in the data directory.
    pub seccomp_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_pods: 110,
            crash_backoff_seconds: 10,
            log_mib: 10,
            log_files: 5,
            pod_pids: 4096,
            reserved_cpu_milli: 0,
            reserved_memory_mib: 0,
            eviction_memory_mib: 100,
            eviction_disk_mib: 512,
            eviction_inodes_percent: 1,
            eviction_pids_percent: 2,
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_dir: PathBuf::new(),
        }
    }
}

/// What a kubelet works with.
pub struct Parts {
    /// This node's name in the cluster.
    pub node_name: String,
    /// `[kubelet]`.
    pub config: Config,
    /// Pods' volumes and generated files.
    pub pods_dir: PathBuf,
    /// The same for what must never reach a disk; on a tmpfs.
    pub memory_dir: PathBuf,
    /// Containers' logs.
    pub logs_dir: PathBuf,
    /// The containers of this machine.
    pub runtime: Arc<dyn Runtime>,
    /// The addresses of this machine.
    pub network: Arc<dyn Network>,
    /// The images of this machine.
    pub images: Images,
    /// The door's caches.
    pub caches: Caches,
    /// The time.
    pub clock: Clock,
}

/// Why a kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory for what must never reach a disk.
    #[error("keep {path} in memory: secrets are written there")]
    Memory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The Node object.
    #[error("register node {name}")]
    Register {
        /// The node's name.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

/// Registers the node, starts the loop, and answers the door for logs and exec of this node's pods.
///
/// # Errors
/// When the Node object can be neither made nor updated.
pub async fn start(parts: Parts, tasks: &Tasks) -> Result<client::NodeDoor, StartError> {
    let memory = &parts.memory_dir;
    match files::in_memory(memory) {
        // Who may not mount makes no containers either, so no secret is ever written there.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %memory.display(), %error, "no memory for secrets: pods cannot be started");
        }
        kept => kept.map_err(|source| StartError::Memory { path: memory.clone(), source })?,
    }
    let queue: Queue<String> = Queue::new();
    let kubelet = Arc::new(act::Kubelet::new(parts, queue.clone(), tasks));
    node::register(&kubelet)
        .await
        .map_err(|source| StartError::Register { name: kubelet.parts.node_name.clone(), source })?;
    observe::wake_on_changes(&kubelet, tasks);
    eviction::start(&kubelet, tasks);
    let work = Work {
        reconciler: Arc::new(act::Shared(Arc::clone(&kubelet))),
        queue,
        now: kubelet.parts.clock.teller(),
        at_once: 32,
        backoff: Backoff::default(),
    };
    tasks.spawn("kubelet", move |stop| async move {
        // Sandboxes of pods that are gone must not be judged before the pods are known.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work.reconciler.0.synced() => {}
        }
        work.run(stop).await;
    });
    Ok(node::door(kubelet))
}

/// Takes away the files of all pods, and what is mounted among them. Gone already is success.
///
/// # Errors
/// What could not be unmounted or removed: nothing is removed through a mount.
pub fn remove_files(pods_dir: &std::path::Path, memory_dir: &std::path::Path) -> std::io::Result<()> {
    files::remove(pods_dir)?;
    files::remove(memory_dir)
}

#[cfg(test)]
mod tests;
