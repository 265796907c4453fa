//! What a forked child does on its way to becoming a container's program: enter, build, give up rights, exec.
//!
//! Invariant: it ends in `execve` or in a report of the step that failed; it never returns into the shim's loop.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};

use shim::cgroup::Layout;
use shim::{Container, Exec};

use crate::identity::{self, Identity};
use crate::{rootfs, sys};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a refused start of a program is worth as an exit code, as shells have it.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// Most open files a container may have, where the shim itself may have that many.
const OPEN_FILES: u64 = 1 << 20;

/// A step that failed, on its way to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fail {
    /// The step, on what, and why.
    pub(crate) reason: String,
    /// The exit code it stands for.
    pub(crate) code: i32,
}

/// Names the step of a failed call.
pub(crate) trait Step<T> {
    /// `step: why`.
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Fail>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Fail> {
        self.map_err(|error| Fail { reason: format!("{}: {}", what(), error.into()), code: 128 })
    }
}

/// The child's ends of its three streams; all `None` when it gets a terminal.
#[derive(Default)]
pub(crate) struct Streams {
    /// Standard input; `/dev/null` when `None`.
    pub(crate) input: Option<OwnedFd>,
    /// Standard output.
    pub(crate) output: Option<OwnedFd>,
    /// Standard error.
    pub(crate) error: Option<OwnedFd>,
}

/// Everything both kinds of children need.
pub(crate) struct Start<'a> {
    /// The cgroup trees.
    pub(crate) layout: &'a Layout,
    /// The group to enter.
    pub(crate) group: &'a str,
    /// The container.
    pub(crate) container: &'a Container,
    /// The sandbox's hostname.
    pub(crate) hostname: &'a str,
    /// Where failures are told, and terminals handed over.
    pub(crate) report: BorrowedFd<'a>,
    /// The streams.
    pub(crate) streams: Streams,
}

/// Becomes a container's first process.
pub(crate) fn become_container(start: Start<'_>, plan: &rootfs::Plan<'_>) -> ! {
    let report = start.report;
    fail(report, container(start, plan));
}

/// Becomes a further process of the container whose first one `target` (a pidfd) is.
pub(crate) fn become_exec(start: Start<'_>, exec: &Exec, target: BorrowedFd<'_>) -> ! {
    let report = start.report;
    fail(report, further(start, exec, target));
}

fn fail(report: BorrowedFd<'_>, outcome: Result<std::convert::Infallible, Fail>) -> ! {
    let Err(failure) = outcome;
    let text = serde_json::to_vec(&failure).unwrap_or_default();
    let _ = rustix::io::write(report, &text);
    sys::exit(failure.code)
}

fn container(start: Start<'_>, plan: &rootfs::Plan<'_>) -> Result<std::convert::Infallible, Fail> {
    sys::reset_signals();
    start.layout.enter_v1(start.group).step(|| "enter the cgroup".to_owned())?;
    // Only now: the namespace's root is the group one is in when it is made.
    sys::unshare(libc::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".to_owned())?;
    adjust_self(start.container);
    let terminal = rootfs::enter(plan)?;
    let identity = identity::resolve(start.container)?;
    let tty = terminal.is_some();
    take_streams(start.report, start.streams, terminal, identity.uid)?;
    let env = environment(start.container, &[], start.hostname, &identity, tty);
    run(start.container, &start.container.args, &env, &identity)
}

fn further(start: Start<'_>, exec: &Exec, target: BorrowedFd<'_>) -> Result<std::convert::Infallible, Fail> {
    sys::reset_signals();
    start.layout.enter_v1(start.group).step(|| "enter the cgroup".to_owned())?;
    adjust_self(start.container);
    sys::setns(target, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)
        .step(|| "enter the container's namespaces".to_owned())?;
    let terminal = if exec.tty {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty()).step(|| "open /".to_owned())?;
        Some(rootfs::open_terminal(root.as_fd())?)
    } else {
        None
    };
    if let (Some((master, _)), true) = (&terminal, exec.width > 0) {
        let size =
            rustix::termios::Winsize { ws_row: exec.height, ws_col: exec.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size).step(|| "size the terminal".to_owned())?;
    }
    let identity = identity::resolve(start.container)?;
    take_streams(start.report, start.streams, terminal, identity.uid)?;
    let env = environment(start.container, &exec.env, start.hostname, &identity, exec.tty);
    run(start.container, &exec.args, &env, &identity)
}

/// What may be refused without harm: the wish for the OOM score (lowering needs `CAP_SYS_RESOURCE`) and the open files.
fn adjust_self(container: &Container) {
    if let Some(score) = container.oom_score_adj {
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    let had = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = Some(had.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)));
    let wish = rustix::process::Rlimit { current: limit, maximum: limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, wish);
}

/// Puts the streams where programs expect them; a terminal's master goes to the shim.
fn take_streams(
    report: BorrowedFd<'_>,
    streams: Streams,
    terminal: Option<(OwnedFd, OwnedFd)>,
    uid: u32,
) -> Result<(), Fail> {
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    let what = || "set up the standard streams".to_owned();
    if let Some((master, peer)) = terminal {
        hand_over(report, master.as_fd()).step(|| "hand over the terminal".to_owned())?;
        rustix::fs::fchown(&peer, Some(rustix::fs::Uid::from_raw(uid)), None).step(what)?;
        rustix::process::ioctl_tiocsctty(&peer).step(|| "take the terminal".to_owned())?;
        rustix::stdio::dup2_stdin(&peer).step(what)?;
        rustix::stdio::dup2_stdout(&peer).step(what)?;
        return rustix::stdio::dup2_stderr(&peer).step(what);
    }
    // Programs open /dev/stdout anew, which asks for the rights of the pipe's owner.
    for pipe in [&streams.input, &streams.output, &streams.error].into_iter().flatten() {
        rustix::fs::fchown(pipe, Some(rustix::fs::Uid::from_raw(uid)), None).step(what)?;
    }
    let null = || fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let or_null = |fd: Option<OwnedFd>| fd.map_or_else(null, Ok);
    rustix::stdio::dup2_stdin(or_null(streams.input).step(what)?).step(what)?;
    rustix::stdio::dup2_stdout(or_null(streams.output).step(what)?).step(what)?;
    rustix::stdio::dup2_stderr(or_null(streams.error).step(what)?).step(what)
}

fn hand_over(report: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    beside.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(report, &[IoSlice::new(b"t")], &mut beside, SendFlags::empty())?;
    Ok(())
}

/// The container's environment, then the exec's; what everybody expects is added when nobody set it.
fn environment(
    container: &Container,
    more: &[String],
    hostname: &str,
    identity: &Identity,
    tty: bool,
) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut set = |pair: String, replace: bool| match env.iter_mut().find(|have| name(have) == name(&pair)) {
        Some(have) if replace => *have = pair,
        Some(_) => {}
        None => env.push(pair),
    };
    for pair in container.env.iter().chain(more) {
        set(pair.clone(), true);
    }
    set(format!("PATH={DEFAULT_PATH}"), false);
    set(format!("HOSTNAME={hostname}"), false);
    set(format!("HOME={}", identity.home), false);
    if tty {
        set("TERM=xterm".to_owned(), false);
    }
    env
}

fn run(
    container: &Container,
    args: &[String],
    env: &[String],
    identity: &Identity,
) -> Result<std::convert::Infallible, Fail> {
    let cwd = if container.cwd.is_empty() { "/" } else { &container.cwd };
    if rustix::process::chdir(cwd).is_err() {
        fs::create_dir_all(cwd).step(|| format!("create the working directory {cwd}"))?;
        rustix::process::chdir(cwd).step(|| format!("enter the working directory {cwd}"))?;
    }
    let refuse = |reason: String| Fail { reason, code: NOT_FOUND };
    let Some(program) = args.first() else { return Err(refuse("exec: no command was given".to_owned())) };
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let strings = |list: &[String]| {
        let convert = |text: &String| CString::new(text.as_bytes());
        let odd = |_| refuse(format!("exec: {program:?}: an argument or variable contains a zero byte"));
        list.iter().map(convert).collect::<Result<Vec<_>, _>>().map_err(odd)
    };
    let (args, variables) = (strings(args)?, strings(env)?);
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.clone()]
    } else {
        path.split(':')
            .map(|dir| if dir.is_empty() { program.clone() } else { format!("{dir}/{program}") })
            .collect()
    };
    let candidates = strings(&candidates)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::close_on_exec_from(3);
    identity::take(container, identity)?;
    let mut denied = None;
    for candidate in &candidates {
        let error = sys::execve(candidate, &args, &variables);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            _ => denied = denied.or(Some(error)),
        }
    }
    Err(match denied {
        Some(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Fail { reason: format!("exec: {program:?}: permission denied"), code: NOT_EXECUTABLE }
        }
        Some(error) => Fail { reason: format!("exec: {program:?}: {error}"), code: NOT_EXECUTABLE },
        None if program.contains('/') => {
            refuse(format!("exec: {program:?}: stat {program}: no such file or directory"))
        }
        None => refuse(format!("exec: {program:?}: executable file not found in $PATH")),
    })
}
