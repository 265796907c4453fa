//! What a pod finds as files, on the machine: volumes, and the hosts, hostname and resolv.conf made for it.
//!
//! Invariant: nothing that is mounted here is taken for a directory of ours: what cannot be unmounted is not removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};

use std::path::{Path, PathBuf};

use crate::ownership::Group;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where a pod's files lie.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// On disk.
    pub(crate) disk: PathBuf,
    /// On a tmpfs: secrets, and volumes with medium Memory.
    pub(crate) memory: PathBuf,
}

/// All files of a pod, as they are to be.
#[derive(Debug, Clone, Default, Hash, PartialEq)]
pub(crate) struct Files {
    pub(crate) volumes: BTreeMap<String, Content>,
    /// `hosts`, `hostname`, `resolv.conf`.
    pub(crate) etc: BTreeMap<String, String>,
    /// Whose the volumes become.
    pub(crate) group: Option<Group>,
}

/// Files by their path in a volume.
pub(crate) type Contents = BTreeMap<String, Written>;

/// One file that is made for a pod.
#[derive(Debug, Clone, Hash, PartialEq)]
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// Whose it is, if not root's.
    pub(crate) uid: Option<u32>,
}

impl Written {
    pub(crate) fn roots(bytes: Vec<u8>, mode: u32) -> Written {
        Written { bytes, mode, uid: None }
    }
}

/// What one volume is.
#[derive(Debug, Clone, Hash, PartialEq)]
pub(crate) enum Content {
    /// An empty directory that lives as long as the pod.
    Empty,
    /// The same in memory, never more than so many bytes.
    Memory { size_bytes: Option<u64> },
    /// A path of the machine; `kind` as in `hostPath.type`.
    Host { path: String, kind: String },
    /// A directory that outlives the pod.
    Lasting { path: String, made_here: bool },
    /// A directory of another machine.
    Nfs { server: String, path: String, options: Vec<String> },
    /// The files of an image.
    Image { reference: String },
    /// Files that change together.
    Files { secret: bool, files: Contents },
}

impl Files {
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Hash::hash(self, &mut hasher);
        hasher.finish()
    }
}

impl Places {
    /// Where a container finds a volume on the machine.
    pub(crate) fn volume(&self, name: &str, content: &Content) -> PathBuf {
        match content {
            Content::Host { path, .. } | Content::Lasting { path, .. } => PathBuf::from(path),
            Content::Memory { .. } | Content::Files { secret: true, .. } => {
                self.memory.join("volumes").join(name)
            }
            Content::Empty | Content::Nfs { .. } | Content::Image { .. } | Content::Files { .. } => {
                self.disk.join("volumes").join(name)
            }
        }
    }

    /// Where a generated file lies.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.disk.join("etc").join(name)
    }

    /// Where a container's last words arrive.
    pub(crate) fn last_words(&self, container: &str, attempt: u32) -> PathBuf {
        self.disk.join("last-words").join(format!("{container}.{attempt}"))
    }

    /// What `write` wrote last.
    pub(crate) fn hold(&self) -> Option<u64> {
        fs::read_to_string(self.disk.join("holds")).ok()?.trim().parse().ok()
    }

    /// Whether there is anything of the pod.
    pub(crate) fn exist(&self) -> bool {
        self.disk.exists() || self.memory.exists()
    }

    /// Makes the files as they are to be. Twice is once.
    pub(crate) fn write(&self, files: &Files) -> io::Result<()> {
        for name in ["volumes", "etc", "last-words"] {
            directory(&self.disk.join(name), 0o755)?;
        }
        for (name, text) in &files.etc {
            // Written in place: the file is mounted into containers, which would not see a new one.
            let path = self.etc(name);
            if fs::read_to_string(&path).ok().as_deref() != Some(text) {
                fs::write(&path, text)?;
            }
        }
        for (name, content) in &files.volumes {
            let path = self.volume(name, content);
            let set_up = make(&path, content, self.group_now(files, content));
            set_up.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("MountVolume.SetUp failed for volume {name:?} : {error}"),
                )
            })?;
        }
        fs::write(self.disk.join("holds"), files.hash().to_string())
    }

    /// The group a volume is given now: what containers write to it later is their own affair, so a volume that may be
    /// written to is given its group once, before they start.
    fn group_now<'a>(&self, files: &'a Files, content: &Content) -> Option<&'a Group> {
        let is_first = self.hold().is_none() || matches!(content, Content::Files { .. });
        files.group.as_ref().filter(|_| is_first)
    }

    /// Takes everything away. Gone already is success.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for place in [&self.disk, &self.memory] {
            remove(place)?;
        }
        Ok(())
    }
}

/// Removes a directory of ours with all that is in it; what is mounted there is unmounted first, or nothing is removed.
pub(crate) fn remove(place: &Path) -> io::Result<()> {
    if !place.exists() {
        return Ok(());
    }
    let mut mounted = mounted_below(place)?;
    // The last mounted comes off first.
    mounted.reverse();
    for path in mounted {
        umount2(&path, MntFlags::MNT_DETACH)
            .map_err(|error| io::Error::other(format!("unmount {}: {error}", path.display())))?;
    }
    match fs::remove_dir_all(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why mounts made below a path by a container would not be seen by the machine, if so; in Kubernetes' words.
pub(crate) fn not_shared(path: &Path) -> Option<String> {
    let real = fs::canonicalize(path).ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(4)?.to_owned();
        let shared =
            fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        real.starts_with(&point).then_some((point, shared))
    });
    // Of two at one place the later hides the earlier.
    let (point, shared) = mounts.enumerate().max_by_key(|(at, (point, _))| (point.len(), *at))?.1;
    (!shared)
        .then(|| format!("path {:?} is mounted on {point:?} but it is not a shared mount", path.display()))
}

/// What is mounted at or below a directory, in the order it was mounted.
fn mounted_below(place: &Path) -> io::Result<Vec<PathBuf>> {
    let place = fs::canonicalize(place)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The table writes space, tab, newline and backslash as octal.
    let plain = |text: &str| {
        let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
        PathBuf::from(codes.iter().fold(text.to_owned(), |all, (code, plain)| all.replace(code, plain)))
    };
    Ok(points.map(plain).filter(|point| point.starts_with(&place)).collect())
}

/// Sees to it that this directory is on a tmpfs: what lies there must never reach a disk.
pub(crate) fn in_memory(dir: &Path) -> io::Result<()> {
    directory(dir, 0o700)?;
    let kind = nix::sys::statfs::statfs(dir)?.filesystem_type();
    if kind == nix::sys::statfs::TMPFS_MAGIC {
        return Ok(());
    }
    Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("mode=0700"))?)
}

/// Makes one volume. Twice is once.
fn make(path: &Path, content: &Content, group: Option<&Group>) -> io::Result<()> {
    let give = |path: &Path| group.map_or(Ok(()), |group| group.give(path));
    match content {
        Content::Empty => {
            directory(path, 0o777)?;
            if fs::metadata(path)?.permissions().mode() & 0o777 != 0o777 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
            }
            give(path)
        }
        Content::Memory { size_bytes } => {
            memory(path, *size_bytes)?;
            give(path)
        }
        Content::Host { path, kind } => host_path(Path::new(path), kind),
        Content::Lasting { path, made_here } => {
            lasting(Path::new(path), *made_here)?;
            // As documented for local volumes; a directory that somebody else keeps stays as it is.
            if *made_here { give(Path::new(path)) } else { Ok(()) }
        }
        Content::Nfs { server, path: remote, options } => nfs(path, server, remote, options),
        Content::Image { .. } => Ok(()),
        Content::Files { files, .. } => switch(path, files, group.map(|group| group.gid)),
    }
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

fn memory(path: &Path, size_bytes: Option<u64>) -> io::Result<()> {
    directory(path, 0o777)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = format!("mode=0777{size}");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// A directory that outlives the pod: made where this node is who keeps it, else expected to be there.
fn lasting(path: &Path, made_here: bool) -> io::Result<()> {
    if made_here && !path.exists() {
        directory(path, 0o777)?;
        return fs::set_permissions(path, fs::Permissions::from_mode(0o777));
    }
    if path.exists() {
        Ok(())
    } else {
        Err(io::Error::other(format!("path {} does not exist", path.display())))
    }
}

/// By the kernel's own client; a name is resolved here, since the kernel does not.
fn nfs(path: &Path, server: &str, remote: &str, options: &[String]) -> io::Result<()> {
    directory(path, 0o755)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let resolved = std::net::ToSocketAddrs::to_socket_addrs(&(server, 2049));
    let address = resolved?.next().ok_or_else(|| io::Error::other(format!("{server} has no address")))?.ip();
    let mut all = vec![format!("addr={address}")];
    if !options.iter().any(|option| option.contains("vers=")) {
        all.push("vers=4.2".to_owned());
    }
    all.extend(options.iter().cloned());
    let (source, all) = (format!("{server}:{remote}"), all.join(","));
    let mounted = mount(Some(source.as_str()), path, Some("nfs"), MsFlags::empty(), Some(all.as_str()));
    mounted.map_err(|error| io::Error::other(format!("mount {source} by NFS: {error}")))
}

fn directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The documented types of `hostPath`.
fn host_path(path: &Path, kind: &str) -> io::Result<()> {
    let wrong = |what: &str| {
        Err(io::Error::other(format!("hostPath type check failed: {} is not {what}", path.display())))
    };
    let meta = fs::metadata(path);
    match kind {
        "" if meta.is_ok() => Ok(()),
        // A path that is not there is made, as container engines do.
        "" => directory(path, 0o755),
        "DirectoryOrCreate" => directory(path, 0o755),
        "FileOrCreate" => fs::OpenOptions::new().create(true).append(true).mode(0o644).open(path).map(|_| ()),
        "Directory" if !meta.as_ref().is_ok_and(|meta| meta.is_dir()) => wrong("a directory"),
        "File" if !meta.as_ref().is_ok_and(|meta| meta.is_file()) => wrong("a file"),
        "Socket" if !meta.as_ref().is_ok_and(|meta| meta.file_type().is_socket()) => wrong("a socket file"),
        "CharDevice" if !meta.as_ref().is_ok_and(|meta| meta.file_type().is_char_device()) => {
            wrong("a character device")
        }
        "BlockDevice" if !meta.as_ref().is_ok_and(|meta| meta.file_type().is_block_device()) => {
            wrong("a block device")
        }
        _ => Ok(()),
    }
}

/// Replaces all files of a volume at once: they lie in a dated directory that `..data` points to, as in Kubernetes.
fn switch(volume: &Path, files: &Contents, gid: Option<u32>) -> io::Result<()> {
    directory(volume, 0o755)?;
    let own = |path: &Path, uid: Option<u32>| {
        if uid.or(gid).is_none() { Ok(()) } else { lchown(path, uid, gid) }
    };
    if holds(volume, files) {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    for (name, Written { bytes, mode, uid }) in files {
        let path = volume.join(&fresh).join(name);
        directory(path.parent().unwrap_or(volume), 0o755)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
        file.write_all(bytes)?;
        own(&path, *uid)?;
        file.set_permissions(fs::Permissions::from_mode(*mode))?;
    }
    directory(&volume.join(&fresh), 0o755)?;
    let old = fs::read_link(volume.join("..data")).ok();
    link(&fresh, &volume.join("..data"))?;
    let tops: BTreeSet<&str> = files.keys().filter_map(|name| name.split('/').next()).collect();
    for top in &tops {
        link(&format!("..data/{top}"), &volume.join(top))?;
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name.to_str().is_some_and(|name| !name.starts_with("..") && !tops.contains(name));
        if stale {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) if old.as_os_str() != fresh.as_str() => fs::remove_dir_all(volume.join(old)),
        _ => Ok(()),
    }
}

fn holds(volume: &Path, files: &Contents) -> bool {
    let data = volume.join("..data");
    let count = fs::read_dir(volume).map(|entries| {
        entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with("..")).count()
    });
    let tops: BTreeSet<&str> = files.keys().filter_map(|name| name.split('/').next()).collect();
    count.is_ok_and(|count| count == tops.len())
        && data.exists()
        && files.iter().all(|(name, Written { bytes, mode, uid })| {
            let path = data.join(name);
            fs::read(&path).is_ok_and(|known| known == *bytes)
                && fs::metadata(&path).is_ok_and(|meta| {
                    meta.permissions().mode() & 0o777 == *mode && uid.is_none_or(|uid| meta.uid() == uid)
                })
        })
}

/// Points a symbolic link somewhere else without a moment in which it is missing.
fn link(target: &str, path: &Path) -> io::Result<()> {
    let temporary = path.with_file_name("..link");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary)?;
    fs::rename(&temporary, path)
}
