//! Starts containers and further programs in them: forks, keeps the parent's ends.
//!
//! Invariant: the shim never waits for a child on its way; it hears of success or failure through the report socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use shim::cgroup::{Devices, Layout};
use shim::{Container, Exec, Observed};

use crate::child::{self, Fail, Start, Step, Streams};
use crate::log::{Log, Rest};
use crate::rootfs;
use crate::sandbox::{Further, Process, Pump, Running, Shim, Waiter};
use crate::sys::{self, Forked};

const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;

impl Shim {
    /// Starts a container; the answer comes when its report closes.
    pub(crate) fn start(&mut self, spec: Container, waiter: Waiter) -> Result<(), Fail> {
        let (group, dir) = (self.group_of(&spec), self.dir_of(&spec));
        let outcome = self.fork_container(&spec, &group, waiter);
        match outcome {
            Ok(running) => {
                self.containers.insert((spec.name.clone(), spec.attempt), running);
                Ok(())
            }
            Err(failure) => {
                let _ = self.spec.cgroups.remove(&group);
                let _ = std::fs::remove_dir_all(dir);
                Err(failure)
            }
        }
    }

    fn fork_container(&self, spec: &Container, group: &str, waiter: Waiter) -> Result<Running, Fail> {
        let dir = self.dir_of(spec);
        rootfs::prepare(&dir)?;
        let max = if spec.log_max_bytes == 0 { LOG_BYTES } else { spec.log_max_bytes };
        let files = if spec.log_files == 0 { LOG_FILES } else { spec.log_files };
        let log =
            Log::open(&spec.log_path, max, files).step(|| format!("open log {}", spec.log_path.display()))?;
        let devices = if spec.privileged { Devices::Inherited } else { Devices::Standard };
        self.spec.cgroups.create(group, &spec.resources, devices).step(|| "make the cgroup".to_owned())?;
        let (report, child_report) = report_pair()?;
        let (streams, ours) =
            if spec.tty { (Streams::default(), Ours::default()) } else { streams(spec.stdin)? };
        let cgroup = open_unified(&self.spec.cgroups, group)?;
        let shm = self.shm.another()?;
        let (pid, pidfd) = match self.fork_in_pid_namespace(spec, cgroup.as_ref().map(AsFd::as_fd))? {
            Forked::Parent { pid, pidfd } => (pid, pidfd),
            Forked::Child => {
                let start = self.child(spec, group, &child_report, streams);
                let plan = rootfs::Plan {
                    container: spec,
                    dir: &dir,
                    own_net: !self.spec.host_network,
                    layout: &self.spec.cgroups,
                    group,
                    shm: &shm,
                };
                child::become_container(start, &plan)
            }
        };
        let observed =
            Observed { name: spec.name.clone(), attempt: spec.attempt, pid, ..Observed::default() };
        let pump = |fd: Option<OwnedFd>| fd.map(|fd| Pump { fd, rest: Rest::default() });
        Ok(Running {
            spec: spec.clone(),
            observed,
            process: Process { pidfd: Some(pidfd), report: Some(report), waiter: Some(waiter) },
            log,
            pumps: [pump(ours.output), pump(ours.error)],
            input: ours.input,
            listeners: Vec::new(),
        })
    }

    /// Forks with a mount namespace of its own, and with the pid namespace that the container is to have.
    fn fork_in_pid_namespace(
        &self,
        spec: &Container,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Forked, Fail> {
        let joined = match spec.pid_of.as_str() {
            _ if self.spec.host_pid => return fork(libc::CLONE_NEWNS, cgroup),
            "" => self.pause.as_ref(),
            name => {
                let runs = |c: &&Running| c.spec.name == name && c.observed.exit.is_none();
                let target = self.containers.values().rfind(runs);
                let pidfd = target.and_then(|target| target.process.pidfd.as_ref());
                Some(
                    pidfd
                        .ok_or_else(|| Fail { reason: format!("no running container {name}"), code: 128 })?,
                )
            }
        };
        let Some(joined) = joined else { return fork(libc::CLONE_NEWPID | libc::CLONE_NEWNS, cgroup) };
        // The pid namespace of children is the shim's to choose, and to choose back.
        sys::setns(joined.as_fd(), libc::CLONE_NEWPID)
            .step(|| "enter the common pid namespace".to_owned())?;
        let forked = fork(libc::CLONE_NEWNS, cgroup);
        if !matches!(forked, Ok(Forked::Child)) {
            sys::setns(self.own_pid_namespace.as_fd(), libc::CLONE_NEWPID)
                .step(|| "return to the shim's pid namespace".to_owned())?;
        }
        forked
    }

    /// Whether the end of its first process ends all of a container.
    pub(crate) fn has_own_pids(&self, spec: &Container) -> bool {
        !self.spec.host_pid && self.pause.is_none() && spec.pid_of.is_empty()
    }

    /// Starts a further program in the newest running attempt of a container.
    pub(crate) fn exec(&mut self, name: &str, exec: &Exec, waiter: Waiter) -> Result<(), Fail> {
        let runs =
            |c: &&Running| c.spec.name == name && c.observed.exit.is_none() && c.process.report.is_none();
        let Some(container) = self.containers.values().rfind(runs) else {
            return Err(Fail { reason: format!("no running container {name}"), code: 0 });
        };
        let target = container.process.pidfd.as_ref().expect("a running container was not waited for");
        let group = self.group_of(&container.spec);
        let (report, child_report) = report_pair()?;
        let (streams, ours) =
            if exec.tty { (Streams::default(), Ours::default()) } else { streams(exec.stdin)? };
        let cgroup = open_unified(&self.spec.cgroups, &group)?;
        // The pid namespace of children is the shim's to choose, and to choose back.
        sys::setns(target.as_fd(), libc::CLONE_NEWPID)
            .step(|| "enter the container's pid namespace".to_owned())?;
        let forked = sys::fork(0, cgroup.as_ref().map(AsFd::as_fd));
        if let Ok(Forked::Child) = forked {
            let start = self.child(&container.spec, &group, &child_report, streams);
            child::become_exec(start, exec, target.as_fd())
        }
        sys::setns(self.own_pid_namespace.as_fd(), libc::CLONE_NEWPID)
            .step(|| "return to the shim's pid namespace".to_owned())?;
        let Forked::Parent { pid, pidfd } = forked.step(|| "fork".to_owned())? else {
            unreachable!("the child never returns")
        };
        let process = Process { pidfd: Some(pidfd), report: Some(report), waiter: Some(waiter) };
        let fds = [ours.input, ours.output, ours.error].into_iter().flatten().collect();
        self.execs.insert(pid, Further { process, connection: waiter.0, fds });
        Ok(())
    }

    fn child<'a>(
        &'a self,
        container: &'a Container,
        group: &'a str,
        report: &'a OwnedFd,
        streams: Streams,
    ) -> Start<'a> {
        let hostname = &self.spec.hostname;
        Start { layout: &self.spec.cgroups, group, container, hostname, report: report.as_fd(), streams }
    }
}

fn fork(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Fail> {
    sys::fork(namespaces, cgroup).step(|| "fork".to_owned())
}

/// A v2 group's directory, to be born in; `None` without a v2 tree.
pub(crate) fn open_unified(layout: &Layout, group: &str) -> Result<Option<OwnedFd>, Fail> {
    let Some(path) = layout.unified(group) else { return Ok(None) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
    open.step(|| format!("open cgroup {}", path.display())).map(Some)
}

/// The shim's ends of a child's streams.
#[derive(Default)]
struct Ours {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

fn streams(stdin: bool) -> Result<(Streams, Ours), Fail> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned());
    let (output, child_output) = pipe()?;
    let (error, child_error) = pipe()?;
    let (child_input, input) = if stdin { pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
    for fd in [&output, &error] {
        rustix::io::ioctl_fionbio(fd, true).step(|| "set up a pipe".to_owned())?;
    }
    let streams = Streams { input: child_input, output: Some(child_output), error: Some(child_error) };
    Ok((streams, Ours { input, output: Some(output), error: Some(error) }))
}

fn report_pair() -> Result<(OwnedFd, OwnedFd), Fail> {
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, childs) = pair.map_err(io::Error::from).step(|| "make a socket pair".to_owned())?;
    rustix::io::ioctl_fionbio(&ours, true).step(|| "set up a socket pair".to_owned())?;
    Ok((ours, childs))
}
