//! The sandbox's `/dev/shm`: one tmpfs, of which every container gets a mount of its own.
//!
//! Invariant: the host's mount namespace holds no mount of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::child::{Fail, Step};
use crate::{rootfs, sys};

/// Where the tmpfs is kept.
pub(crate) enum SharedMemory {
    /// Attached nowhere; kernels since 6.15 make further mounts of it.
    Afloat(OwnedFd),
    /// Attached at a path of a mount namespace that only this descriptor holds, for older kernels.
    Kept {
        /// That namespace.
        namespace: OwnedFd,
        /// The shim's own, to come back to.
        home: OwnedFd,
        /// Where in `namespace`.
        path: PathBuf,
    },
    /// The host's own, for sandboxes in its ipc namespace.
    Hosts,
}

impl SharedMemory {
    /// An empty one; `dir` is a directory of the sandbox.
    pub(crate) fn new(dir: &Path) -> Result<SharedMemory, Fail> {
        let options = [("mode", "1777"), ("size", "65536k")];
        let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tree = rootfs::fresh("tmpfs", &options, hardened)?;
        if rootfs::another_mount(tree.as_fd(), "").is_ok() {
            return Ok(SharedMemory::Afloat(tree));
        }
        SharedMemory::keep(tree, dir).step(|| "keep the sandbox's shared memory".to_owned())
    }

    fn keep(tree: OwnedFd, dir: &Path) -> io::Result<SharedMemory> {
        let own = || std::fs::File::open("/proc/self/ns/mnt").map(OwnedFd::from);
        let home = own()?;
        sys::unshare(libc::CLONE_NEWNS)?;
        let attached = rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
        )
        .and_then(|()| {
            rustix::mount::move_mount(&tree, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        });
        let namespace = own();
        sys::setns(home.as_fd(), libc::CLONE_NEWNS)?;
        attached?;
        Ok(SharedMemory::Kept { namespace: namespace?, home, path: dir.to_owned() })
    }

    /// A mount for one more container, attached nowhere.
    pub(crate) fn another(&self) -> Result<OwnedFd, Fail> {
        let tree = match self {
            SharedMemory::Afloat(tree) => rootfs::another_mount(tree.as_fd(), "").map_err(io::Error::from),
            SharedMemory::Kept { namespace, home, path } => within(namespace, home, path),
            SharedMemory::Hosts => rootfs::clone_tree(Path::new("/dev/shm")).map_err(io::Error::from),
        };
        tree.step(|| "mount the sandbox's shared memory".to_owned())
    }
}

fn within(namespace: &OwnedFd, home: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    sys::setns(namespace.as_fd(), libc::CLONE_NEWNS)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree: Result<OwnedFd, Errno> = rustix::mount::open_tree(CWD, path, flags);
    sys::setns(home.as_fd(), libc::CLONE_NEWNS)?;
    Ok(tree?)
}
