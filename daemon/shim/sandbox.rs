//! What a shim holds: the sandbox's namespaces by being in them, its containers, and the file of its last words.
//!
//! Invariant: the state file is replaced whole after every change, before anybody is told of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use shim::cgroup::Devices;
use shim::code::Code;
use shim::{Container, Exit, Observed, Sandbox, State};

use crate::attach::Listener;
use crate::child::{Fail, Step};
use crate::connection::Connection;
use crate::log::{Log, Rest};
use crate::memory::SharedMemory;
use crate::sys;

/// A request waiting for its answer: connection and request.
pub(crate) type Waiter = (u64, u64);

/// One stream of a container, on its way into the log.
pub(crate) struct Pump {
    /// Where it is read from.
    pub(crate) fd: OwnedFd,
    /// The unfinished line.
    pub(crate) rest: Rest,
}

/// A process that was started and watched.
pub(crate) struct Process {
    /// Itself, for ever; `None` once it was waited for.
    pub(crate) pidfd: Option<OwnedFd>,
    /// Open until the program runs or its start failed.
    pub(crate) report: Option<OwnedFd>,
    /// Who asked for it, while `report` is open.
    pub(crate) waiter: Option<Waiter>,
}

/// A container and its process.
pub(crate) struct Running {
    /// As asked for.
    pub(crate) spec: Container,
    /// As observed.
    pub(crate) observed: Observed,
    /// Its first process.
    pub(crate) process: Process,
    /// Its log.
    pub(crate) log: Log,
    /// Standard output, or the terminal, and standard error.
    pub(crate) pumps: [Option<Pump>; 2],
    /// The other end of an open standard input.
    pub(crate) input: Option<OwnedFd>,
    /// Who hears it besides the log.
    pub(crate) listeners: Vec<Listener>,
}

/// An exec and its process.
pub(crate) struct Further {
    /// The process.
    pub(crate) process: Process,
    /// The connection that hears of its end.
    pub(crate) connection: u64,
    /// Our copies of what goes to the daemon once the program runs.
    pub(crate) fds: Vec<OwnedFd>,
}

/// The shim.
pub(crate) struct Shim {
    /// What it was started with.
    pub(crate) spec: Sandbox,
    /// The sandbox's directory.
    pub(crate) dir: PathBuf,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    /// Where daemons knock.
    pub(crate) listener: UnixListener,
    /// Daemons (and commands) being talked to.
    pub(crate) connections: BTreeMap<u64, Connection>,
    /// The next connection's number.
    pub(crate) next: u64,
    /// By name and attempt.
    pub(crate) containers: BTreeMap<(String, u32), Running>,
    /// By process.
    pub(crate) execs: BTreeMap<u32, Further>,
    /// The sandbox's `/dev/shm`.
    pub(crate) shm: SharedMemory,
    /// Our own pid namespace, to come back to.
    pub(crate) own_pid_namespace: OwnedFd,
    /// The first process of the containers' common pid namespace, where they have one.
    pub(crate) pause: Option<OwnedFd>,
    /// Who asked for the end.
    pub(crate) shutdown: Option<Waiter>,
    /// The program's own pages.
    pub(crate) code: Code,
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Shim {
    /// Makes the cgroups and namespaces and listens.
    pub(crate) fn set_up(spec: Sandbox, dir: &Path) -> Result<Shim, Fail> {
        sys::ignore(libc::SIGPIPE);
        sys::ignore(libc::SIGHUP);
        rustix::process::setsid().step(|| "start a session".to_owned())?;
        // What is orphaned in the host's pid namespace is the host's first process's to bury: nobody here waits for it.
        if !spec.host_pid {
            sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).step(|| "become a subreaper".to_owned())?;
        }
        spec.cgroups.enter_v1(&shims(&spec)).step(|| "enter the shims' cgroup".to_owned())?;
        let group = spec.group();
        spec.cgroups
            .create(&group, &spec.resources, Devices::Inherited)
            .step(|| "make the sandbox's cgroup".to_owned())?;
        spec.cgroups.delegate(&group).step(|| "delegate the sandbox's cgroup".to_owned())?;
        enter_namespaces(&spec)?;
        let socket = dir.join(shim::SOCKET);
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).step(|| format!("listen on {}", socket.display()))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
            .step(|| format!("protect {}", socket.display()))?;
        listener.set_nonblocking(true).step(|| "set up the socket".to_owned())?;
        let own_pid_namespace =
            fs::File::open("/proc/self/ns/pid").step(|| "open /proc/self/ns/pid".to_owned())?.into();
        let shm = if spec.host_ipc { SharedMemory::Hosts } else { SharedMemory::new(dir)? };
        let pause = if spec.share_pid && !spec.host_pid { Some(pause()?) } else { None };
        let shim = Shim {
            spec,
            dir: dir.to_owned(),
            created_at: now(),
            listener,
            connections: BTreeMap::new(),
            next: 0,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            shm,
            own_pid_namespace,
            pause,
            shutdown: None,
            code: Code::of_this_program(),
        };
        shim.save().step(|| format!("write {}", dir.join(shim::STATE).display()))?;
        Ok(shim)
    }

    /// Lets go of the daemon's streams and directory.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let null = fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        std::env::set_current_dir("/")
    }

    /// All there is to know.
    pub(crate) fn state(&self) -> State {
        let known = self.containers.values().filter(|c| c.process.report.is_none());
        State {
            version: shim::VERSION,
            id: self.spec.id.clone(),
            labels: self.spec.labels.clone(),
            pid: std::process::id(),
            created_at: self.created_at,
            containers: known.map(|c| c.observed.clone()).collect(),
        }
    }

    /// Replaces the state file. Not synced: it tells of processes, and those do not survive the machine either.
    pub(crate) fn save(&self) -> io::Result<()> {
        let (path, fresh) = (self.dir.join(shim::STATE), self.dir.join("state.json.new"));
        fs::write(&fresh, serde_json::to_vec(&self.state())?)?;
        fs::rename(fresh, path)
    }

    /// A container's cgroup.
    pub(crate) fn group_of(&self, spec: &Container) -> String {
        format!("{}/{}", self.spec.group(), spec.key())
    }

    /// A container's own directory.
    pub(crate) fn dir_of(&self, spec: &Container) -> PathBuf {
        self.dir.join(shim::CONTAINERS).join(spec.key())
    }
}

/// Forks the first process of a common pid namespace: it keeps the namespace and buries what is orphaned in it.
fn pause() -> Result<OwnedFd, Fail> {
    match sys::fork(libc::CLONE_NEWPID, None).step(|| "fork".to_owned())? {
        sys::Forked::Parent { pidfd, .. } => Ok(pidfd),
        sys::Forked::Child => {
            // With the shim's end the namespace ends, and all that is in it.
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
            sys::ignore(libc::SIGCHLD);
            sys::close_from(0);
            loop {
                sys::pause();
            }
        }
    }
}

/// What the shim in this directory shall hold.
pub(crate) fn read_spec(dir: &Path) -> Result<Sandbox, Fail> {
    let path = dir.join(shim::SPEC);
    let text = fs::read(&path).step(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map_err(io::Error::from).step(|| format!("read {}", path.display()))
}

/// The shims of an instance share a group beside the sandboxes', so that no limit of a pod hits its shim and the
/// end of the daemon's service does not end the shims.
pub(crate) fn shims(spec: &Sandbox) -> String {
    format!("{}/shims", spec.group)
}

fn enter_namespaces(spec: &Sandbox) -> Result<(), Fail> {
    let net = if spec.host_network { 0 } else { libc::CLONE_NEWNET };
    let ipc = if spec.host_ipc { 0 } else { libc::CLONE_NEWIPC };
    sys::unshare(libc::CLONE_NEWUTS | ipc | net)
        .step(|| "make network, ipc and uts namespaces".to_owned())?;
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .step(|| format!("set the hostname {}", spec.hostname))?;
    }
    for (name, value) in &spec.sysctls {
        let namespaced = name.starts_with("net.") && !spec.host_network
            || ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        if !namespaced || name.contains("..") || name.contains('/') {
            return Err(Fail {
                reason: format!("set sysctl {name}: it is not the sandbox's own"),
                code: 128,
            });
        }
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).step(|| format!("set sysctl {name} to {value}"))?;
    }
    Ok(())
}

/// How a process that was waited for ended.
pub(crate) fn exit_of(status: rustix::process::WaitIdStatus) -> Exit {
    let signal = status.terminating_signal();
    let code = match signal {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(255),
    };
    Exit { code, signal, oom_killed: false, finished_at: now() }
}
