//! Containers of one machine: sandboxes, the containers in them, their logs' writers and their last words.
//!
//! A sandbox is a shim process (see `shim`) that holds network, ipc and uts namespaces and is the parent of its
//! containers. The daemon may come and go; the shims stay. This crate knows nothing of Kubernetes.
//!
//! Invariant: twice is once. Starting what runs answers what runs; stopping what is gone is success.
//! Invariant: `sandboxes()` is what the shims said last; a lost shim is shown as `alive: false`, never dropped silently.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
pub use dial::connect;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

/// What every implementation must do: the suite that `LinuxRuntime` and `FakeRuntime` both pass.
pub mod conformance;
/// The runtime in memory, for tests of the rooms above.
pub mod fake;
/// The runtime on Linux: one shim per sandbox.
pub mod linux;

mod dial;
mod link;
mod seccomp;
mod streams;
mod sweep;
mod wire;

/// The door to the containers of one machine.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// What this machine cannot isolate, each with its reason; empty means everything holds.
    async fn isolation(&self) -> Isolation;

    /// Starts the sandbox, or answers the running one with the same id.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when the shim cannot be started or refuses; [`Error::Lost`] when a sandbox with this id is
    /// there whose shim died: stop it first.
    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, Error>;

    /// Kills what is left in the sandbox and removes shim, namespaces, cgroups and directory. Gone already is success.
    ///
    /// # Errors
    /// [`Error::Stop`] when something could not be removed; calling again continues.
    async fn stop_sandbox(&self, id: &str) -> Result<(), Error>;

    /// Creates and starts a container; one with the same name and attempt is answered as it is, running or exited.
    ///
    /// # Errors
    /// [`Error::Start`] carries what the container's own start said and the exit code it stands for (127 not found,
    /// 126 not executable, 128 anything else): nothing of that attempt is left then.
    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerState, Error>;

    /// Signals the container's first process; `SIGKILL` kills everything in its cgroup. An exited one is success.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], [`Error::NoContainer`].
    async fn signal_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        signal: i32,
    ) -> Result<(), Error>;

    /// Frees an exited container's files and memory of it; its logs stay. Gone already is success.
    ///
    /// # Errors
    /// [`Error::Running`] when it still runs.
    async fn remove_container(&self, sandbox: &str, name: &str, attempt: u32) -> Result<(), Error>;

    /// Runs a program inside the newest running attempt of a container.
    ///
    /// # Errors
    /// [`Error::NoContainer`] when none runs; [`Error::Exec`] when the program cannot be started.
    async fn exec(&self, sandbox: &str, name: &str, spec: ExecSpec) -> Result<Exec, Error>;

    /// Hears what the newest running attempt of a container says from now on, and speaks to it. `tty` is what the container
    /// was started with. Dropping the standard input leaves it open for others; see [`Runtime::close_input`].
    ///
    /// # Errors
    /// [`Error::NoContainer`] when none runs; [`Error::Exec`] when the sandbox's shim is too old to be asked.
    async fn attach(&self, sandbox: &str, name: &str, tty: bool, stdin: bool) -> Result<Exec, Error>;

    /// Ends the standard input of the newest running attempt of a container. One that is gone is success.
    ///
    /// # Errors
    /// [`Error::Shim`] when the shim does not answer.
    async fn close_input(&self, sandbox: &str, name: &str) -> Result<(), Error>;

    /// Every sandbox as last heard of, kept current by the shims' own events.
    fn sandboxes(&self) -> BTreeMap<String, SandboxState>;

    /// One of them: costs the same however many there are.
    fn sandbox(&self, id: &str) -> Option<SandboxState>;

    /// Ids of sandboxes worth another look. `RecvError::Lagged` means: look at all of them.
    fn changes(&self) -> broadcast::Receiver<String>;

    /// Changes the bounds of a running container; those that are `None` are lifted. One that has ended is success.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], [`Error::Lost`]; [`Error::Resize`] when the kernel refuses, e.g. a memory bound below what
    /// is in use.
    async fn resize_container(
        &self,
        sandbox: &str,
        name: &str,
        attempt: u32,
        resources: &Resources,
    ) -> Result<(), Error>;

    /// Changes the bounds of a whole sandbox; those that are `None` are lifted, but for the number of processes.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], [`Error::Lost`]; [`Error::Resize`] when the kernel refuses.
    async fn resize_sandbox(&self, sandbox: &str, resources: &Resources) -> Result<(), Error>;

    /// Bytes that its containers wrote beside their mounts, by name. Walks their files.
    ///
    /// # Errors
    /// [`Error::NoSandbox`].
    async fn written(&self, sandbox: &str) -> Result<BTreeMap<String, u64>, Error>;

    /// What the sandbox uses now, read from its cgroups.
    ///
    /// # Errors
    /// [`Error::NoSandbox`], [`Error::Lost`].
    async fn usage(&self, sandbox: &str) -> Result<Usage, Error>;
}

/// What the machine lets us isolate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolation {
    /// What is missing; empty when nothing is.
    pub missing: Vec<Missing>,
}

/// One thing that cannot be isolated here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The thing, e.g. "memory limits".
    pub what: String,
    /// Why, and the way out.
    pub why: String,
}

/// What a sandbox shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Its identity: letters, digits, `-`, `_` and `.`, at most 128; becomes names of a directory and of cgroups.
    pub id: String,
    /// The hostname seen inside.
    pub hostname: String,
    /// Kept with the sandbox and given back after a restart of the daemon.
    pub labels: BTreeMap<String, String>,
    /// Use the host's network namespace instead of an own one.
    pub host_network: bool,
    /// Which processes containers see.
    pub pids: PidNamespace,
    /// Use the host's ipc namespace, with its shared memory, instead of an own one.
    pub host_ipc: bool,
    /// Namespaced sysctls, e.g. `net.ipv4.ip_unprivileged_port_start`; written inside the sandbox's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Bounds of the whole sandbox.
    pub resources: Resources,
    /// Where the containers' logs are; made if missing, never removed here.
    pub log_dir: PathBuf,
}

/// Which processes the containers of a sandbox see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Each its own.
    #[default]
    Container,
    /// All containers each other's; a process that is none of theirs is the first.
    Sandbox,
    /// The machine's.
    Host,
}

/// Bounds on what may be used; `None` means unbounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, as cgroup v1's `cpu.shares` (1024 per core asked for).
    pub cpu_shares: Option<u64>,
    /// CPU time per period, microseconds.
    pub cpu_quota_us: Option<u64>,
    /// The period, microseconds; 100000 when `None`.
    pub cpu_period_us: Option<u64>,
    /// Hard memory limit, bytes.
    pub memory_bytes: Option<u64>,
    /// Most processes and threads.
    pub pids: Option<u64>,
    /// Wish for `/proc/self/oom_score_adj`; best effort.
    pub oom_score_adj: Option<i32>,
}

/// A sandbox as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxState {
    /// The id it was started with.
    pub id: String,
    /// The labels it was started with.
    pub labels: BTreeMap<String, String>,
    /// The shim's process id; 0 when the shim is lost.
    pub shim_pid: u32,
    /// `/proc/<shim>/ns/net`: valid while the shim is alive.
    pub netns: PathBuf,
    /// When the shim started.
    pub created_at: Timestamp,
    /// Its containers, by name and attempt.
    pub containers: Vec<ContainerState>,
    /// False when the shim is lost: only `stop_sandbox` helps then.
    pub alive: bool,
}

/// What a container shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Unique in its sandbox together with `attempt`; same alphabet as a sandbox's id.
    pub name: String,
    /// Counts restarts from 0.
    pub attempt: u32,
    /// Unpacked layers, bottom first; overlaid with a writable directory of the container's own.
    pub layers: Vec<PathBuf>,
    /// The program and its arguments; the program is looked up in the container's `PATH` when it has no slash.
    pub args: Vec<String>,
    /// The environment, complete but for `PATH`, `HOME` and `HOSTNAME`, which get defaults when absent.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` when empty; made when missing.
    pub cwd: String,
    /// Who runs it, when `user_name` is `None`.
    pub user: User,
    /// `name`, `uid`, `name:group`, `uid:gid` as in an image's config; looked up in the root's `/etc/passwd` and `/etc/group`.
    pub user_name: Option<String>,
    /// Mounted in this order, after the standard ones.
    pub mounts: Vec<Mount>,
    /// Its own bounds, inside the sandbox's.
    pub resources: Resources,
    /// Capability names (`CAP_CHOWN`): the effective, permitted and bounding set. Ignored when `privileged`.
    pub capabilities: Vec<String>,
    /// All capabilities, no seccomp, no masked paths, the host's devices.
    pub privileged: bool,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// Which system calls are let through.
    pub seccomp: Seccomp,
    /// Mount the root read-only.
    pub read_only_root: bool,
    /// Hidden paths; [`MASKED_PATHS`] is the customary list.
    pub masked_paths: Vec<String>,
    /// Paths made read-only; [`READONLY_PATHS`] is the customary list.
    pub readonly_paths: Vec<String>,
    /// The CRI log file.
    pub log_path: PathBuf,
    /// Size at which the log is rotated, bytes; 10 MiB when 0.
    pub log_max_bytes: u64,
    /// Files kept, the current one included; 5 when 0.
    pub log_files: u32,
    /// Give it a terminal as its standard streams.
    pub tty: bool,
    /// Keep standard input open (an empty pipe) instead of `/dev/null`.
    pub stdin: bool,
    /// A running container of the sandbox whose processes it sees, and that sees its.
    pub pid_of: Option<String>,
    /// Leave out the groups that the image's own files give the user.
    pub strict_groups: bool,
    /// The AppArmor profile, loaded in the kernel, that confines it.
    pub apparmor: Option<String>,
}

/// The paths container engines hide by custom.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// The paths container engines make read-only by custom.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Every capability the kernel has.
pub const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The capabilities container engines leave by custom (Docker's and the CRI's default set).
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Numeric identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids; added to those of `/etc/group` when `user_name` is given.
    pub extra: Vec<u32>,
}

/// One mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// On the host; unused for tmpfs.
    pub source: PathBuf,
    /// Absolute, inside the container; made when missing.
    pub target: String,
    /// Mount it read-only.
    pub read_only: bool,
    /// What kind.
    pub kind: MountKind,
    /// How mounts beneath it travel.
    pub propagation: Propagation,
    /// What of the source is mounted: a path resolved inside it, made as a directory when missing. Empty: all of it.
    pub sub_path: String,
    /// With `read_only`: what is mounted beneath it is read-only as well.
    pub recursive_read_only: bool,
}

/// Kinds of mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the host, with what is mounted beneath it.
    #[default]
    Bind,
    /// Unpacked layers of an image, bottom first; read-only, and nothing in it can be run.
    Image {
        /// The layers.
        layers: Vec<PathBuf>,
    },
    /// Fresh memory; `size_bytes` `None` means half of the machine's.
    Tmpfs {
        /// Most bytes it may hold.
        size_bytes: Option<u64>,
    },
}

/// Kubernetes' mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`: nothing travels.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

/// Which system calls a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The customary allow list.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// What a profile in OCI's form says; the file is read when the container starts.
    Profile(PathBuf),
}

/// A container as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// Its attempt.
    pub attempt: u32,
    /// When its program was started.
    pub started_at: Timestamp,
    /// Running or exited.
    pub phase: Phase,
    /// A sentence on how it ended, where there is one to say.
    pub message: String,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its first process lives.
    Running {
        /// In the host's pid namespace.
        pid: u32,
    },
    /// Its first process ended.
    Exited {
        /// The exit code; 128 + signal when a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The kernel killed something in it for want of memory.
        oom_killed: bool,
        /// When it ended.
        finished_at: Timestamp,
    },
}

/// What to run inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Added to the container's own environment.
    pub env: Vec<(String, String)>,
    /// Give it a terminal: one stream both ways.
    pub tty: bool,
    /// Open its standard input.
    pub stdin: bool,
    /// The terminal's first size.
    pub size: Option<Size>,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A program running inside a container.
pub struct Exec {
    /// Its standard input; dropping it (without tty) is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output, or the terminal.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// What can be asked of it while it runs. Dropping it leaves the program running.
    pub orders: mpsc::Sender<ExecOrder>,
    pub(crate) exit: oneshot::Receiver<Exit>,
}

impl Exec {
    /// How it ended; the streams may still hold its last output. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Lost`] when the shim died first.
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        (&mut self.exit).await.map_err(|_| Error::Lost { id: "of the running program".to_owned() })
    }
}

/// Orders to a running [`Exec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOrder {
    /// Change the terminal's size.
    Resize(Size),
    /// Send a signal.
    Signal(i32),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// What is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// The sandbox with all its containers.
    pub total: Amount,
    /// Each running container, by name.
    pub containers: BTreeMap<String, Amount>,
}

/// One cgroup's use; 0 where no controller counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// CPU time since its start, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory charged, bytes.
    pub memory_bytes: u64,
    /// The same without inactive file pages.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What can go wrong here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine lacks something and the configuration insists on it.
    #[error(
        "this machine cannot isolate containers fully: {missing} (set isolation = \"best-effort\" to go without)"
    )]
    Isolation {
        /// All of it, in words.
        missing: String,
    },
    /// A name that cannot be one.
    #[error(
        "{what} {name:?} is no usable name: letters, digits, '-', '_' and '.', 1 to 128 of them, not starting with a dot"
    )]
    Name {
        /// Sandbox or container.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// The runtime's directory.
    #[error("{step} {}", path.display())]
    Dir {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A sandbox did not start.
    #[error("start sandbox {id}: {reason}")]
    Sandbox {
        /// Its id.
        id: String,
        /// What its shim said.
        reason: String,
    },
    /// A sandbox is not known here.
    #[error("no sandbox {id}")]
    NoSandbox {
        /// Its id.
        id: String,
    },
    /// A sandbox whose shim died.
    #[error("the shim of sandbox {id} is gone; stop the sandbox and start it again")]
    Lost {
        /// Its id.
        id: String,
    },
    /// A sandbox could not be removed whole.
    #[error("stop sandbox {id}: {reason}")]
    Stop {
        /// Its id.
        id: String,
        /// What is left and why.
        reason: String,
    },
    /// A container is not known, or does not run where it must.
    #[error("no running container {name} in sandbox {id}")]
    NoContainer {
        /// The sandbox.
        id: String,
        /// The container.
        name: String,
    },
    /// A container still runs.
    #[error("container {name} in sandbox {id} still runs")]
    Running {
        /// The sandbox.
        id: String,
        /// The container.
        name: String,
    },
    /// A container did not start.
    #[error("start container {name}: {reason}")]
    Start {
        /// The container.
        name: String,
        /// The step that failed, on what, and why.
        reason: String,
        /// 127: program not found; 126: not executable; 128: anything else.
        code: i32,
    },
    /// A program could not be started inside a container.
    #[error("exec in container {name}: {reason}")]
    Exec {
        /// The container.
        name: String,
        /// The step that failed, on what, and why.
        reason: String,
        /// 127: program not found; 126: not executable; 128: anything else.
        code: i32,
    },
    /// Bounds could not be changed.
    #[error("resize container {name}: {reason}")]
    Resize {
        /// The container.
        name: String,
        /// The file that was refused, and why.
        reason: String,
    },
    /// The conversation with a shim broke.
    #[error("talk to the shim of sandbox {id}: {reason}")]
    Shim {
        /// The sandbox.
        id: String,
        /// What happened.
        reason: String,
    },
}

/// Whether a name may become part of paths: 1 to 128 letters, digits, `-`, `_`, `.`, no leading dot.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=128).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Name { what, name: name.to_owned() })
}
