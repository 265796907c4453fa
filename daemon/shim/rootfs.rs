//! Builds what a container sees as `/`, inside its own mount namespace, and moves it there.
//!
//! Invariant: sources are opened in the host's view first, targets are resolved inside the new root (`RESOLVE_IN_ROOT`),
//! so no symlink of an image or volume leads a mount outside.
//! Invariant: nothing here is mounted in the host's namespace; the end of the last process takes it all away.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use shim::cgroup::Layout;
use shim::{Container, Mount, Propagation};

use crate::child::{Fail, Step};
use crate::sys;

const RDONLY: u64 = 1;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// mount(2) takes one page of options.
const LONGEST_OPTIONS: usize = 4095;

/// What to build from.
pub(crate) struct Plan<'a> {
    /// The container.
    pub(crate) container: &'a Container,
    /// Its own directory: `upper`, `work` and the mount point `root` are in it.
    pub(crate) dir: &'a Path,
    /// The sandbox has its own network namespace, so sysfs can be mounted fresh.
    pub(crate) own_net: bool,
    /// The cgroup trees.
    pub(crate) layout: &'a Layout,
    /// The container's group in them.
    pub(crate) group: &'a str,
    /// A mount of the sandbox's shared memory, attached nowhere.
    pub(crate) shm: &'a OwnedFd,
}

#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
}

struct Root(OwnedFd);

/// Makes the directories a container's root needs.
pub(crate) fn prepare(dir: &Path) -> Result<(), Fail> {
    for name in ["upper", "work", "root"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).step(|| format!("create {}", path.display()))?;
    }
    Ok(())
}

/// Builds the root and leaves the process in it. The terminal's two ends come back when the container wants one.
pub(crate) fn enter(plan: &Plan<'_>) -> Result<Option<(OwnedFd, OwnedFd)>, Fail> {
    let container = plan.container;
    let mut binds = container.mounts.iter().map(source).collect::<Result<Vec<_>, _>>()?;
    let groups = cgroup_trees(plan)?;
    let devices = DEVICES.map(|name| (name, clone_tree(&Path::new("/dev").join(name))));
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .step(|| "make / a slave mount".to_owned())?;
    let path = plan.dir.join("root");
    for (mount, bind) in container.mounts.iter().zip(&mut binds).filter(|(mount, _)| !mount.layers.is_empty())
    {
        *bind = Some(image(mount, &path)?);
    }
    overlay(plan, &path)?;
    let root = Root(open_directory(&path).step(|| format!("open {}", path.display()))?);
    standard(plan, &root, groups)?;
    for (name, tree) in devices {
        let tree = tree.step(|| format!("open /dev/{name}"))?;
        if !container.privileged {
            root.attach(&tree, &format!("/dev/{name}"), Kind::File)?;
        }
    }
    if container.privileged {
        copy_devices(&root, Path::new("/dev"))?;
    }
    for (mount, tree) in container.mounts.iter().zip(binds) {
        place(&root, mount, tree, container.privileged)?;
    }
    if !container.privileged {
        hide(&root, container)?;
    }
    let terminal = if container.tty { Some(open_terminal(root.0.as_fd())?) } else { None };
    pivot(&root)?;
    if container.read_only_root {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
        rustix::mount::mount_remount("/", flags, c"").step(|| "make / read-only".to_owned())?;
    }
    Ok(terminal)
}

/// Opens a new terminal of the devpts at `dev/pts` under `root`: the master's end and the program's.
pub(crate) fn open_terminal(root: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), Fail> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(root, "dev/pts/ptmx", flags, Mode::empty())
        .step(|| "open /dev/pts/ptmx".to_owned())?;
    rustix::pty::unlockpt(&master).step(|| "unlock a terminal".to_owned())?;
    let peer_flags =
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let peer = rustix::pty::ioctl_tiocgptpeer(&master, peer_flags)
        .step(|| "open a terminal's other end".to_owned())?;
    Ok((master, peer))
}

/// A further mount of what lies at a path below a mount, attached nowhere.
pub(crate) fn another_mount(of: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(of, path, flags)
}

fn overlay(plan: &Plan<'_>, target: &Path) -> Result<(), Fail> {
    let what = || format!("mount overlay on {}", target.display());
    if plan.container.layers.is_empty() {
        return Err(Fail { reason: format!("{}: the container has no layers", what()), code: 128 });
    }
    let (lower, held) = lower(&plan.container.layers)?;
    let (upper, work) = (escape(&plan.dir.join("upper")), escape(&plan.dir.join("work")));
    let options = format!("{lower},upperdir={upper},workdir={work}");
    let flags = if plan.container.privileged { MountFlags::empty() } else { MountFlags::NODEV };
    let mount = |options: String| {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
    };
    // The writable layer dies with the container, so nothing in it is worth an fsync; kernels before 5.10 do not know.
    match mount(format!("{options},volatile")) {
        Err(Errno::INVAL) => mount(options).step(what),
        outcome => outcome.step(what),
    }?;
    drop(held);
    Ok(())
}

/// Unpacked layers as an option of a mount, and what has to stay open until it is made.
fn lower(layers: &[PathBuf]) -> Result<(String, Vec<OwnedFd>), Fail> {
    let joined =
        |paths: &[PathBuf]| paths.iter().rev().map(|path| escape(path)).collect::<Vec<_>>().join(":");
    let named = joined(layers);
    if named.len() <= LONGEST_OPTIONS / 2 {
        return Ok((format!("lowerdir={named}"), Vec::new()));
    }
    // All options have to fit in one page: names of open directories are shorter than any path.
    let held = open_all(layers)?;
    let names = held.iter().map(|layer| PathBuf::from(format!("/proc/self/fd/{}", layer.as_raw_fd())));
    Ok((format!("lowerdir={}", joined(&names.collect::<Vec<_>>())), held))
}

fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn open_all(layers: &[PathBuf]) -> Result<Vec<OwnedFd>, Fail> {
    let open = |layer: &PathBuf| open_directory(layer).step(|| format!("open layer {}", layer.display()));
    layers.iter().map(open).collect()
}

fn standard(plan: &Plan<'_>, root: &Root, groups: Vec<(String, OwnedFd)>) -> Result<(), Fail> {
    let hardened = attr_hardened();
    root.attach(&fresh("proc", &[], hardened)?, "/proc", Kind::Directory)?;
    let device_flags = if plan.container.privileged {
        MountAttrFlags::MOUNT_ATTR_NOSUID
    } else {
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
    };
    root.attach(
        &fresh("tmpfs", &[("mode", "755"), ("size", "65536k")], device_flags)?,
        "/dev",
        Kind::Directory,
    )?;
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts =
        fresh("devpts", &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], quiet)?;
    root.attach(&pts, "/dev/pts", Kind::Directory)?;
    root.attach(plan.shm, "/dev/shm", Kind::Directory)?;
    if let Ok(queues) = fresh("mqueue", &[], hardened) {
        root.attach(&queues, "/dev/mqueue", Kind::Directory)?;
    }
    let dev = root.target("/dev", Kind::Directory)?;
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        rustix::fs::symlinkat(target, &dev, name).step(|| format!("link /dev/{name}"))?;
    }
    let read_only = if plan.container.privileged { 0 } else { RDONLY };
    let sys = if plan.own_net {
        fresh("sysfs", &[], hardened)?
    } else {
        clone_tree(Path::new("/sys")).step(|| "open /sys".to_owned())?
    };
    sys::mount_setattr(sys.as_fd(), read_only, 0).step(|| "make /sys read-only".to_owned())?;
    root.attach(&sys, "/sys", Kind::Directory)?;
    attach_cgroups(plan, root, groups, read_only)
}

/// The container's own groups as `/sys/fs/cgroup`: the tree itself where there is only v2, else one directory per tree.
fn attach_cgroups(
    plan: &Plan<'_>,
    root: &Root,
    groups: Vec<(String, OwnedFd)>,
    read_only: u64,
) -> Result<(), Fail> {
    if groups.is_empty() {
        return Ok(());
    }
    for (_, tree) in &groups {
        sys::mount_setattr(tree.as_fd(), read_only | 2 | NODEV | NOEXEC, libc::MS_PRIVATE)
            .step(|| "make /sys/fs/cgroup read-only".to_owned())?;
    }
    if let ([(_, tree)], true) = (groups.as_slice(), plan.layout.v1.is_empty()) {
        return root.attach(tree, "/sys/fs/cgroup", Kind::Directory);
    }
    let top = fresh("tmpfs", &[("mode", "755"), ("size", "64k")], attr_hardened())?;
    root.attach(&top, "/sys/fs/cgroup", Kind::Directory)?;
    for (name, tree) in &groups {
        root.attach(tree, &format!("/sys/fs/cgroup/{name}"), Kind::Directory)?;
    }
    sys::mount_setattr(top.as_fd(), read_only, 0).step(|| "make /sys/fs/cgroup read-only".to_owned())
}

fn cgroup_trees(plan: &Plan<'_>) -> Result<Vec<(String, OwnedFd)>, Fail> {
    let v1 = plan.layout.v1.iter().map(|tree| &tree.mount);
    let v2 = plan.layout.v2.iter().map(|tree| &tree.mount);
    v1.chain(v2)
        .map(|mount| {
            let path = mount.join(plan.group);
            let name =
                mount.file_name().map_or_else(|| "unified".to_owned(), |n| n.to_string_lossy().into_owned());
            let tree = clone_tree(&path).step(|| format!("open cgroup {}", path.display()))?;
            Ok((name, tree))
        })
        .collect()
}

/// What is mounted and what it is.
type Source = (OwnedFd, Kind, bool);

/// What of the host is mounted; `None` for what is made fresh.
fn source(mount: &Mount) -> Result<Option<Source>, Fail> {
    if mount.tmpfs || !mount.layers.is_empty() {
        return Ok(None);
    }
    let top = if mount.sub_path.is_empty() {
        clone_tree(&mount.source).step(|| what(mount))?
    } else {
        open_directory(&mount.source).step(|| what(mount))?
    };
    part(mount, top).map(Some)
}

/// The layers of an image as one read-only tree. `place` is a directory to mount it on while it is looked into, in a
/// namespace of this process's own: before 6.5 the kernel takes many layers by mount(2) alone, and before 6.15 it clones
/// nothing that is attached nowhere.
fn image(mount: &Mount, place: &Path) -> Result<Source, Fail> {
    if let [layer] = mount.layers.as_slice() {
        let top = if mount.sub_path.is_empty() { clone_tree(layer) } else { open_directory(layer) };
        return part(mount, top.step(|| what(mount))?);
    }
    let (options, held) = lower(&mount.layers)?;
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL).step(|| what(mount))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    rustix::mount::mount("overlay", place, "overlay", flags, options.as_c_str()).step(|| what(mount))?;
    drop(held);
    let top = if mount.sub_path.is_empty() { clone_tree(place) } else { open_directory(place) };
    let tree = top.step(|| what(mount)).and_then(|top| part(mount, top))?;
    rustix::mount::unmount(place, UnmountFlags::DETACH).step(|| what(mount))?;
    Ok(tree)
}

/// The wanted part of a mount's source, and what it is.
fn part(mount: &Mount, top: OwnedFd) -> Result<Source, Fail> {
    let tree =
        if mount.sub_path.is_empty() { top } else { within(top, &mount.sub_path).step(|| what(mount))? };
    let stat = rustix::fs::fstat(&tree).step(|| what(mount))?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    let device = kind.is_char_device() || kind.is_block_device();
    Ok((tree, if kind.is_dir() { Kind::Directory } else { Kind::File }, device))
}

fn what(mount: &Mount) -> String {
    match mount.sub_path.as_str() {
        "" => format!("mount {} on {}", mount.source.display(), mount.target),
        sub_path => format!("mount {sub_path} of {} on {}", mount.source.display(), mount.target),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// What lies at a path inside a volume, and never outside of it whatever its links say.
fn within(volume: OwnedFd, sub_path: &str) -> Result<OwnedFd, Errno> {
    let root = Root(volume);
    let found = match root.find(sub_path) {
        Err(Errno::NOENT) => {
            // As the volume itself may be used, so may what is made in it.
            let mode = rustix::fs::fstat(&root.0)?.st_mode & 0o777;
            make_within(&root, Path::new(sub_path), Mode::from_raw_mode(mode))?;
            root.find(sub_path)?
        }
        found => found?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(&found, "", flags)
}

fn make_within(root: &Root, path: &Path, mode: Mode) -> Result<(), Errno> {
    let mut at = PathBuf::new();
    rustix::process::umask(Mode::empty());
    for part in path.components() {
        let parent = if at.as_os_str().is_empty() { None } else { Some(root.find(&at.to_string_lossy())?) };
        let parent = parent.as_ref().map_or(root.0.as_fd(), AsFd::as_fd);
        match rustix::fs::mkdirat(parent, part.as_os_str(), mode) {
            Err(Errno::EXIST) | Ok(()) => at.push(part),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn place(root: &Root, mount: &Mount, tree: Option<Source>, privileged: bool) -> Result<(), Fail> {
    let what = || format!("mount {} on {}", mount.source.display(), mount.target);
    let read_only = if mount.read_only { RDONLY } else { 0 };
    let Some((tree, kind, device)) = tree else {
        let size = mount.size_bytes.to_string();
        let options: &[(&str, &str)] = if mount.size_bytes == 0 { &[] } else { &[("size", &size)] };
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let tree = fresh("tmpfs", options, flags)?;
        sys::mount_setattr(tree.as_fd(), read_only, 0).step(what)?;
        return root.attach(&tree, &mount.target, Kind::Directory);
    };
    let no_devices = if device || privileged { 0 } else { NODEV };
    let image = if mount.layers.is_empty() { 0 } else { RDONLY | NOEXEC };
    let beneath = if mount.recursive_read_only { read_only } else { 0 };
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    sys::mount_setattr(tree.as_fd(), beneath | image | no_devices, propagation).step(what)?;
    sys::mount_setattr_of_top(tree.as_fd(), read_only).step(what)?;
    root.attach(&tree, &mount.target, kind)
}

/// Hides the masked paths and freezes the read-only ones; those that are not there need neither.
fn hide(root: &Root, container: &Container) -> Result<(), Fail> {
    for path in &container.readonly_paths {
        let Ok(place) = root.find(path) else { continue };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let what = || format!("make {path} read-only");
        let tree = rustix::mount::open_tree(&place, "", flags).step(what)?;
        sys::mount_setattr(tree.as_fd(), RDONLY, 0).step(what)?;
        attach_at(&tree, place.as_fd()).step(what)?;
    }
    for path in &container.masked_paths {
        let Ok(place) = root.find(path) else { continue };
        let what = || format!("mask {path}");
        let is_dir = rustix::fs::fstat(&place)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
            .step(what)?;
        let cover = if is_dir {
            let flags = attr_hardened() | MountAttrFlags::MOUNT_ATTR_RDONLY;
            fresh("tmpfs", &[("size", "0"), ("nr_inodes", "2")], flags)?
        } else {
            clone_tree(Path::new("/dev/null")).step(what)?
        };
        attach_at(&cover, place.as_fd()).step(what)?;
    }
    Ok(())
}

/// A privileged container has the host's devices, as nodes of its own.
fn copy_devices(root: &Root, dir: &Path) -> Result<(), Fail> {
    for entry in fs::read_dir(dir).step(|| format!("read {}", dir.display()))?.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let own = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/ptmx"];
        if own.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        if meta.is_dir() {
            root.target(&path.to_string_lossy(), Kind::Directory)?;
            copy_devices(root, &path)?;
        } else if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
            let parent = root.target(&dir.to_string_lossy(), Kind::Directory)?;
            let kind = rustix::fs::FileType::from_raw_mode(meta.mode());
            let mode = Mode::from_raw_mode(meta.mode() & 0o7777);
            rustix::fs::mknodat(&parent, entry.file_name(), kind, mode, meta.rdev())
                .step(|| format!("make {}", path.display()))?;
        }
    }
    Ok(())
}

fn pivot(root: &Root) -> Result<(), Fail> {
    rustix::process::fchdir(&root.0).step(|| "enter the new root".to_owned())?;
    // With "." twice the old root ends up on top of the new one and is taken off without a directory for it.
    rustix::process::pivot_root(".", ".").step(|| "pivot into the new root".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(|| "leave the old root".to_owned())?;
    rustix::process::chdir("/").step(|| "enter /".to_owned())
}

impl Root {
    /// The thing at `path`, resolved inside the root.
    fn find(&self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &self.0,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// The same; made, with its parents, when missing.
    fn target(&self, path: &str, kind: Kind) -> Result<OwnedFd, Fail> {
        let what = || format!("make {path} in the container");
        match self.find(path) {
            Err(Errno::NOENT) => {}
            outcome => return outcome.step(what),
        }
        let full = PathBuf::from(path);
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(Fail { reason: format!("{}: no such path can be", what()), code: 128 });
        };
        let parent = self.target(&parent.to_string_lossy(), Kind::Directory)?;
        let mode = Mode::from_raw_mode(0o755);
        match kind {
            Kind::Directory => rustix::fs::mkdirat(&parent, name, mode).step(what)?,
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).step(what)?;
            }
        }
        self.find(path).step(what)
    }

    fn attach(&self, tree: &OwnedFd, path: &str, kind: Kind) -> Result<(), Fail> {
        let target = self.target(path, kind)?;
        attach_at(tree, target.as_fd()).step(|| format!("mount on {path}"))
    }
}

fn attach_at(tree: &OwnedFd, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

pub(crate) fn clone_tree(path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

/// A new mount of a file system without a source; an option with an empty value is a flag.
pub(crate) fn fresh(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Fail> {
    let what = || format!("mount {kind}");
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step(what)?;
    for (name, value) in options {
        let set = if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *name)
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *name, *value)
        };
        set.step(|| format!("mount {kind} with {name}={value}"))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).step(what)?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(what)
}

fn attr_hardened() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}
