//! Finds out what this machine lets us isolate, by doing it.
//!
//! Invariant: what is tried happens in namespaces of this process and ends with it.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::sys;

/// Things that could not be done and why. `dir` is where containers' roots will be.
pub(crate) fn missing(dir: &Path) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    let namespaces = [
        ("mount namespaces", libc::CLONE_NEWNS),
        ("network namespaces", libc::CLONE_NEWNET),
        ("ipc namespaces", libc::CLONE_NEWIPC),
        ("uts namespaces", libc::CLONE_NEWUTS),
        ("cgroup namespaces", libc::CLONE_NEWCGROUP),
        ("pid namespaces", libc::CLONE_NEWPID),
    ];
    for (name, flag) in namespaces {
        if let Err(error) = sys::unshare(flag) {
            missing.push((name.to_owned(), format!("unshare: {error}; run as root with CAP_SYS_ADMIN")));
        }
    }
    if missing.is_empty() {
        if let Err(error) = overlay(dir) {
            missing.push((
                "overlayfs".to_owned(),
                format!("{error}; put data_dir on ext4 or xfs and load module overlay"),
            ));
        }
        if let Err(error) = sys::seccomp(&crate::seccomp::filter(u64::MAX)) {
            missing.push(("seccomp".to_owned(), format!("{error}; the kernel needs CONFIG_SECCOMP_FILTER")));
        }
    }
    missing
}

fn overlay(dir: &Path) -> std::io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let at = |name: &str| dir.join(name);
    for name in ["lower", "upper", "work", "root"] {
        fs::create_dir_all(at(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    // Volatile as containers' are: taking it away must not wait for a disk that others keep busy.
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", at("root"), "overlay", MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}
