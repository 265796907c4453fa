//! What a daemon and a shim say to each other, and the cgroup driver both use.
//!
//! One JSON document per line over the Unix socket [`SOCKET`] in the sandbox's directory: [`Request`] one way,
//! [`Message`] the other. File descriptors of an exec travel beside its answer (`SCM_RIGHTS`).
//!
//! Invariant: the protocol only grows. A new field has a default, a new order is refused by old shims with
//! [`Refusal::Unsupported`]; nothing is renamed or removed, for shims outlive the daemon that started them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod cgroup;
pub mod code;

/// The version of this protocol. 2: processes of another container, system call filters, AppArmor, groups of the image's
/// files, parts of mounts, read-only mounts beneath mounts and layers as mounts.
pub const VERSION: u32 = 2;
/// The socket's name in the sandbox's directory.
pub const SOCKET: &str = "shim.sock";
/// The [`Sandbox`] the shim was started with, in the sandbox's directory.
pub const SPEC: &str = "sandbox.json";
/// The shim's [`State`] as it was last, in the sandbox's directory; replaced whole.
pub const STATE: &str = "state.json";
/// Containers' own directories live in this directory of the sandbox, one per name and attempt.
pub const CONTAINERS: &str = "containers";

/// What a sandbox shall be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// Its identity.
    pub id: String,
    /// The hostname inside.
    pub hostname: String,
    /// The daemon's own notes, given back unread.
    pub labels: BTreeMap<String, String>,
    /// Stay in the host's network namespace.
    pub host_network: bool,
    /// Stay in the host's pid namespace.
    pub host_pid: bool,
    /// Stay in the host's ipc namespace, with its shared memory.
    pub host_ipc: bool,
    /// One pid namespace for all containers, with a first process of the shim's own.
    pub share_pid: bool,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Bounds of the whole.
    pub resources: cgroup::Resources,
    /// The cgroup trees of this machine.
    pub cgroups: cgroup::Layout,
    /// The instance's group in each tree, e.g. `holdfast-ab12`; the sandbox's is beneath it.
    pub group: String,
}

impl Sandbox {
    /// The sandbox's group in each tree.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{}/{}", self.group, self.id)
    }
}

/// What a container shall be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Unique together with `attempt`.
    pub name: String,
    /// Counts restarts.
    pub attempt: u32,
    /// Unpacked layers, bottom first.
    pub layers: Vec<PathBuf>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User id when `user` is empty.
    pub uid: u32,
    /// Group id when `user` is empty.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `name[:group]` or `uid[:gid]`; looked up inside.
    pub user: String,
    /// Mounts after the standard ones.
    pub mounts: Vec<Mount>,
    /// Own bounds.
    pub resources: cgroup::Resources,
    /// Wish for `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Capability names.
    pub capabilities: Vec<String>,
    /// Everything allowed.
    pub privileged: bool,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// Install the system call filter.
    pub seccomp: bool,
    /// Root read-only at the end.
    pub read_only_root: bool,
    /// Hidden paths.
    pub masked_paths: Vec<String>,
    /// Read-only paths.
    pub readonly_paths: Vec<String>,
    /// The CRI log file.
    pub log_path: PathBuf,
    /// Rotation size, bytes.
    pub log_max_bytes: u64,
    /// Files kept.
    pub log_files: u32,
    /// A terminal as standard streams.
    pub tty: bool,
    /// An open standard input.
    pub stdin: bool,
    /// The container whose pid namespace it joins; empty: its own, or the sandbox's.
    pub pid_of: String,
    /// The groups of the image's own files are left out.
    pub strict_groups: bool,
    /// The AppArmor profile to change to.
    pub apparmor: String,
    /// A system call filter in place of the customary one: an instruction per number, from its highest bits 16 of
    /// operation, 8 of each jump, 32 of operand.
    pub filter: Vec<u64>,
}

impl Container {
    /// Its name in paths and cgroups.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.name, self.attempt)
    }
}

/// A container's name in paths and cgroups.
#[must_use]
pub fn key(name: &str, attempt: u32) -> String {
    format!("{name}.{attempt}")
}

/// One mount.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// On the host; ignored for tmpfs.
    pub source: PathBuf,
    /// Inside the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// A fresh tmpfs instead of a bind.
    pub tmpfs: bool,
    /// The tmpfs's size, bytes; 0: the kernel's default.
    pub size_bytes: u64,
    /// How mounts beneath travel.
    pub propagation: Propagation,
    /// What of the source is mounted, resolved inside it; made as a directory when missing. Empty: all.
    pub sub_path: String,
    /// Mounts beneath it are read-only as well.
    pub recursive_read_only: bool,
    /// Unpacked layers, bottom first, mounted read-only instead of a source.
    pub layers: Vec<PathBuf>,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// What to run inside a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// With an open standard input.
    pub stdin: bool,
    /// The terminal's columns; 0: unknown.
    pub width: u16,
    /// The terminal's rows; 0: unknown.
    pub height: u16,
}

/// One line from a daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// What a daemon can ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Say hello; answered by [`Answer::Hello`]. From then on this connection hears [`Message::Container`].
    Hello {
        /// The daemon's protocol version.
        version: u32,
    },
    /// Answered by [`Answer::Hello`].
    State,
    /// Answered by [`Answer::Container`] once the program runs.
    Start {
        /// What to start.
        container: Box<Container>,
    },
    /// Signal a container's first process.
    Signal {
        /// The container.
        name: String,
        /// Its attempt.
        attempt: u32,
        /// The signal.
        signal: i32,
    },
    /// Forget an exited container.
    Remove {
        /// The container.
        name: String,
        /// Its attempt.
        attempt: u32,
    },
    /// Answered by [`Answer::Exec`] with file descriptors: the terminal, or stdin (if open), stdout, stderr.
    Exec {
        /// The container: its newest running attempt.
        name: String,
        /// What to run.
        exec: Exec,
    },
    /// Signal a running exec.
    SignalExec {
        /// As answered.
        pid: u32,
        /// The signal.
        signal: i32,
    },
    /// Change the size of a container's own terminal.
    Resize {
        /// The container.
        name: String,
        /// Its attempt.
        attempt: u32,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Hear a running container from now on, and speak to it. Answered by [`Answer::Exec`] with file descriptors: the
    /// terminal or (if open and wanted) stdin, then stdout and, without a terminal, stderr. Its end comes as
    /// [`Message::ExecExit`].
    Attach {
        /// The container: its newest running attempt.
        name: String,
        /// Standard input is wanted.
        stdin: bool,
    },
    /// End the standard input of a container.
    CloseInput {
        /// The container: its newest running attempt.
        name: String,
    },
    /// Kill everything, remove the cgroups, answer and exit.
    Shutdown,
}

/// One line from a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// A container changed.
    Container(Observed),
    /// A container was forgotten.
    Removed {
        /// The container.
        name: String,
        /// Its attempt.
        attempt: u32,
    },
    /// An exec of this connection ended.
    ExecExit {
        /// As answered.
        pid: u32,
        /// How.
        exit: Exit,
    },
}

/// Answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done; nothing more to say.
    Done,
    /// All the shim knows.
    Hello(State),
    /// The container as it is now.
    Container(Observed),
    /// The program runs.
    Exec {
        /// In the host's pid namespace.
        pid: u32,
    },
    /// No.
    Refused {
        /// What kind of no.
        refusal: Refusal,
        /// The step, on what, and why.
        reason: String,
        /// The exit code a failed start stands for; 0 otherwise.
        #[serde(default)]
        code: i32,
    },
}

/// Kinds of no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The shim does not know this order.
    Unsupported,
    /// No such container, or none that runs.
    NotFound,
    /// The container still runs.
    Running,
    /// It was tried and failed.
    Failed,
}

/// All a shim knows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The shim's protocol version.
    pub version: u32,
    /// The sandbox.
    pub id: String,
    /// The daemon's notes.
    pub labels: BTreeMap<String, String>,
    /// The shim's process.
    pub pid: u32,
    /// When it started, nanoseconds since 1970.
    pub created_at: i64,
    /// Its containers.
    pub containers: Vec<Observed>,
}

/// A container as its shim sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// Name.
    pub name: String,
    /// Attempt.
    pub attempt: u32,
    /// First process, in the host's pid namespace.
    pub pid: u32,
    /// When its program started, nanoseconds since 1970.
    pub started_at: i64,
    /// How it ended; `None` while it runs.
    pub exit: Option<Exit>,
    /// A sentence on how it ended.
    pub message: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
    /// The kernel killed something in its cgroup for want of memory.
    pub oom_killed: bool,
    /// When, nanoseconds since 1970.
    pub finished_at: i64,
}

/// What the started program says on its standard output before it goes into the background.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Birth {
    /// The sandbox is there and the socket listens.
    Ready(State),
    /// It is not.
    Failed(String),
}

/// What `holdfast-shim probe` says: what could not be done here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Thing and reason.
    pub missing: Vec<(String, String)>,
}
