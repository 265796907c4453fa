//! The system calls that the safe bindings do not offer, each wrapped once.
//!
//! Invariant: this process has one thread; that is what makes plain `clone3` children free to run any code.
#![expect(unsafe_code, reason = "these calls have no safe binding; every block is one call")]

use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The libc crate's own constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old one.
    Parent {
        /// The child, in our pid namespace.
        pid: u32,
        /// The child, for ever.
        pidfd: OwnedFd,
    },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

#[repr(C)]
struct Filter {
    len: u16,
    instructions: *const Instruction,
}

/// One instruction of a classic BPF program.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u16,
    /// Jump if true.
    pub(crate) jt: u8,
    /// Jump if false.
    pub(crate) jf: u8,
    /// Operand.
    pub(crate) k: u32,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn done(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks with new namespaces (`CLONE_NEW*`), into a v2 cgroup if one is given.
pub(crate) fn fork(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: u64::from(namespaces.unsigned_abs()) | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork; the process has one thread, so no lock is held by another in the child.
    let pid = done(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel stored a new descriptor here that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: u32::try_from(pid).expect("the kernel hands out positive pids"), pidfd })
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: takes no pointer; the flags given here are CLONE_NEW* only, which touch no memory of ours.
    done(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Joins namespaces of a process (pidfd) or the one a namespace file stands for.
pub(crate) fn setns(fd: BorrowedFd<'_>, namespaces: c_int) -> io::Result<()> {
    // SAFETY: takes no pointer; the descriptor is alive for the call.
    done(unsafe { libc::setns(fd.as_raw_fd(), namespaces) }.into()).map(drop)
}

/// Sets `MOUNT_ATTR_*` and a propagation (`MS_*`, 0 for none) on a mount and all beneath it.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, propagation: u64) -> io::Result<()> {
    set_attributes(mount, MountAttr { set, clear: 0, propagation, userns: 0 }, libc::AT_RECURSIVE)
}

/// Sets `MOUNT_ATTR_*` on a mount, and on nothing beneath it.
pub(crate) fn mount_setattr_of_top(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    set_attributes(mount, MountAttr { set, clear: 0, propagation: 0, userns: 0 }, 0)
}

fn set_attributes(mount: BorrowedFd<'_>, attr: MountAttr, flags: c_int) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | flags;
    // SAFETY: path is a C string, attr lives through the call and its size is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    done(result).map(drop)
}

/// Takes an identity: supplementary groups, group, user, in the order that keeps the right to do the next.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice. The raw call, since one thread is all there is.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes no pointer.
    done(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes no pointer.
    done(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `prctl` with numbers only.
pub(crate) fn prctl(option: c_int, argument: u64) -> io::Result<c_int> {
    // SAFETY: only options whose arguments are plain numbers are passed by this crate.
    let result = unsafe { libc::prctl(option, argument, 0_u64, 0_u64, 0_u64) };
    done(result.into()).map(|_| result)
}

/// Sets effective, permitted and inheritable capabilities, as bit sets.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let word = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: version 3 reads two data elements, which is what there is.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Installs a seccomp filter on this thread.
pub(crate) fn seccomp(program: &[Instruction]) -> io::Result<()> {
    const SET_MODE_FILTER: u64 = 1;
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let filter = Filter { len, instructions: program.as_ptr() };
    // SAFETY: the program outlives the call and its length is told; the kernel copies and verifies it.
    done(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const filter) }).map(drop)
}

/// Gives every signal its default action and unblocks all.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: the default action runs no code of ours; refusals (KILL, STOP, glibc's two) are harmless.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = 0_u64;
    // SAFETY: the set is 8 bytes as told; the old one is not asked for.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<c_void>(),
            8,
        )
    };
}

/// Ignores a signal.
pub(crate) fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    let _ = unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Replaces the program; comes back only with an error.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let list = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: both arrays end in null and point to C strings that outlive the call.
    let _ = unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process without running anything registered for its end.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) {
    // SAFETY: takes no pointer; only called by a process that uses no descriptor any more.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Sleeps until a signal comes.
pub(crate) fn pause() {
    // SAFETY: takes nothing and touches no memory.
    let _ = unsafe { libc::pause() };
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) {
    // SAFETY: takes no pointer; marking closes nothing now.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
