//! Removes what is left of a sandbox whose shim is gone: processes, cgroups, directory.
//!
//! Invariant: only processes in the sandbox's own cgroups, or shims started for its directory, are ended.
//! Invariant: blocks; call it where blocking is allowed.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use shim::cgroup::Layout;

/// How often new processes are looked for (a fork may outrun one look), and a cgroup is tried.
const ROUNDS: usize = 20;
const PATIENCE: Duration = Duration::from_millis(10);

/// Ends and removes everything; gone already is success.
pub(crate) fn sandbox(layout: &Layout, group: &str, shims: &str, dir: &Path) -> io::Result<()> {
    end_all(|| {
        let mut found = layout.pids(group);
        found.extend(layout.pids(shims).into_iter().filter(|pid| is_shim_of(*pid, dir)));
        found.into_iter().collect()
    })?;
    groups(layout, group)?;
    directory(dir)
}

/// Removes the cgroups. v1 has no event for "the last one has left", so this is tried a few times.
pub(crate) fn groups(layout: &Layout, group: &str) -> io::Result<()> {
    let mut outcome = layout.remove(group);
    for _ in 0..ROUNDS {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(PATIENCE);
        outcome = layout.remove(group);
    }
    outcome
}

/// Removes a directory with all in it; gone already is success.
pub(crate) fn directory(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

fn end_all(look: impl Fn() -> Vec<i32>) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let pids = look();
        if pids.is_empty() {
            return Ok(());
        }
        let alive: Vec<_> = pids
            .into_iter()
            .filter_map(Pid::from_raw)
            .filter_map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
            .collect();
        for pidfd in &alive {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
        for pidfd in &alive {
            let wait = Timespec { tv_sec: 2, tv_nsec: 0 };
            rustix::event::poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&wait))?;
        }
    }
    let left = look();
    if left.is_empty() { Ok(()) } else { Err(io::Error::other(format!("processes {left:?} do not end"))) }
}

/// Process ids come round again: only one that was started for this very directory is meant.
fn is_shim_of(pid: i32, dir: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = dir.as_os_str().as_encoded_bytes();
    command.split(|byte| *byte == 0).nth(2) == Some(wanted)
}
