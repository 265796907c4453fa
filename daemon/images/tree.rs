//! Writes tar entries below one directory and nowhere else, whatever their paths and links say.
//!
//! Invariant: every path is resolved by the kernel with this directory as its root (`RESOLVE_IN_ROOT`), so no
//! `..`, absolute path or symbolic link, planted by an earlier entry or not, leads out of it.

use crate::tarball::{Entry, Tarball};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OPAQUE: &str = "trusted.overlay.opaque";
const COPY_BYTES: usize = 128 << 10;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is on disk.
    Written,
    /// It was left out; the reason, for a notice.
    Ignored(&'static str),
}

/// A directory being filled.
pub(crate) struct Tree {
    root: OwnedFd,
    buffer: Vec<u8>,
    /// Directories and their times: set at the end, since every file put into one changes it.
    times: Vec<(Vec<u8>, Timestamps)>,
}

/// A name in an open directory; nothing is resolved any more.
struct Spot<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
}

impl Tree {
    /// Fills `dir`, which must be empty.
    pub(crate) fn open(dir: &Path) -> io::Result<Tree> {
        let root = rustix::fs::openat(CWD, dir, directory_flags(), Mode::empty())?;
        Ok(Tree { root, buffer: vec![0; COPY_BYTES], times: Vec::new() })
    }

    /// Writes one entry; its body is read from `body`.
    pub(crate) fn put<R: Read>(&mut self, entry: &Entry, body: &mut Tarball<R>) -> io::Result<Outcome> {
        let path = normalise(&entry.path);
        if path.is_empty() {
            return match entry.kind.is_dir() {
                true => self.put_directory(&path, entry),
                false => Err(io::Error::other("only a directory can be the root of a layer")),
            };
        }
        if entry.kind.is_dir() {
            self.put_directory(&path, entry)
        } else if entry.kind.is_file() || entry.kind.is_contiguous() {
            self.put_file(&path, entry, body)
        } else if entry.kind.is_symlink() {
            self.put_symlink(&path, entry)
        } else if entry.kind.is_hard_link() {
            self.put_hardlink(&path, &normalise(&entry.link))
        } else if entry.kind.is_fifo() {
            self.put_fifo(&path, entry)
        } else if entry.kind.is_character_special() || entry.kind.is_block_special() {
            Ok(Outcome::Ignored("device nodes are not made from images"))
        } else {
            Err(io::Error::other(format!("unknown kind of entry {:?}", entry.kind)))
        }
    }

    /// Hides what layers below have at this path. What this layer itself put there stays.
    pub(crate) fn whiteout(&self, path: &[u8]) -> io::Result<()> {
        let path = normalise(path);
        let spot = self.spot(&path)?;
        match spot.kind()? {
            Some(FileType::Directory) => set_opaque(&open_directory(&spot)?),
            Some(_) => Ok(()),
            None => {
                Ok(rustix::fs::mknodat(&spot.parent, spot.name, FileType::CharacterDevice, Mode::empty(), 0)?)
            }
        }
    }

    /// Hides everything that layers below have in this directory.
    pub(crate) fn opaque(&self, path: &[u8]) -> io::Result<()> {
        set_opaque(&self.directory(&normalise(path))?)
    }

    /// Gives the directories their times. Nothing may be put after this.
    pub(crate) fn finish(self) -> io::Result<()> {
        for (path, times) in self.times.iter().rev() {
            match self.resolve(path) {
                Ok(dir) => rustix::fs::futimens(&dir, times)?,
                // A later entry put something else there.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn put_directory(&mut self, path: &[u8], entry: &Entry) -> io::Result<Outcome> {
        let dir = match path {
            b"" => self.root.try_clone()?,
            _ => {
                let spot = self.spot(path)?;
                if spot.kind()? != Some(FileType::Directory) {
                    spot.make_directory()?;
                }
                open_directory(&spot)?
            }
        };
        let outcome = set_attributes(&dir, entry)?;
        self.times.push((path.to_vec(), times(entry)));
        Ok(outcome)
    }

    fn put_file<R: Read>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        body: &mut Tarball<R>,
    ) -> io::Result<Outcome> {
        let spot = self.spot(path)?;
        spot.clear()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&spot.parent, spot.name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(fd);
        loop {
            let read = body.read(&mut self.buffer)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read])?;
        }
        let outcome = set_attributes(&file, entry)?;
        rustix::fs::futimens(&file, &times(entry))?;
        Ok(outcome)
    }

    fn put_symlink(&self, path: &[u8], entry: &Entry) -> io::Result<Outcome> {
        let spot = self.spot(path)?;
        spot.clear()?;
        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &spot.parent, spot.name)?;
        spot.set_owner_and_times(entry)?;
        Ok(Outcome::Written)
    }

    fn put_hardlink(&self, path: &[u8], target: &[u8]) -> io::Result<Outcome> {
        if path == target {
            return Ok(Outcome::Written);
        }
        let (dir, name) = split(target);
        let missing = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR => io::Error::other("its hard link target is not in this layer"),
            error => error.into(),
        };
        let target = Spot { parent: self.resolve(dir).map_err(missing)?, name: OsStr::from_bytes(name) };
        if target.kind()?.is_none() {
            return Err(missing(Errno::NOENT));
        }
        let spot = self.spot(path)?;
        spot.clear()?;
        // No AT_SYMLINK_FOLLOW: a link to a symbolic link is that, not what it points to.
        rustix::fs::linkat(&target.parent, target.name, &spot.parent, spot.name, AtFlags::empty())?;
        Ok(Outcome::Written)
    }

    fn put_fifo(&self, path: &[u8], entry: &Entry) -> io::Result<Outcome> {
        let spot = self.spot(path)?;
        spot.clear()?;
        rustix::fs::mknodat(&spot.parent, spot.name, FileType::Fifo, Mode::empty(), 0)?;
        spot.set_owner_and_times(entry)?;
        rustix::fs::chmodat(&spot.parent, spot.name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        Ok(Outcome::Written)
    }

    fn spot<'a>(&self, path: &'a [u8]) -> io::Result<Spot<'a>> {
        let (dir, name) = split(path);
        if name.is_empty() {
            return Err(io::Error::other("names the root of the layer"));
        }
        Ok(Spot { parent: self.directory(dir)?, name: OsStr::from_bytes(name) })
    }

    /// The directory at this path, made with its parents where it is not there.
    fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR) if !path.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        let spot = self.spot(path)?;
        match spot.kind()? {
            Some(FileType::Directory) => {}
            // A whiteout: the directory below stays hidden, this is a new one.
            None | Some(FileType::CharacterDevice) => spot.make_directory()?,
            Some(_) => return Err(io::Error::other("its parent is no directory in this layer")),
        }
        Ok(open_directory(&spot)?)
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: something on the machine was renamed meanwhile and the kernel could not be sure.
            match rustix::fs::openat2(&self.root, path, directory_flags(), Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                outcome => return outcome,
            }
        }
    }
}

impl Spot<'_> {
    fn kind(&self) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory in place of whatever is here.
    fn make_directory(&self) -> io::Result<()> {
        let was_whiteout = self.kind()? == Some(FileType::CharacterDevice);
        self.clear()?;
        rustix::fs::mkdirat(&self.parent, self.name, Mode::from_raw_mode(0o755))?;
        if was_whiteout {
            set_opaque(&open_directory(self)?)?;
        }
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        match self.kind()? {
            None => Ok(()),
            // The parent is reached through its descriptor, and the standard library does not follow links below it.
            Some(FileType::Directory) => std::fs::remove_dir_all(
                Path::new(&format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(self.name),
            ),
            Some(_) => Ok(rustix::fs::unlinkat(&self.parent, self.name, AtFlags::empty())?),
        }
    }

    fn set_owner_and_times(&self, entry: &Entry) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(&self.parent, self.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(&self.parent, self.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

fn open_directory(spot: &Spot<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(&spot.parent, spot.name, directory_flags() | OFlags::NOFOLLOW, Mode::empty())
}

fn set_opaque(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Owner first: changing it clears setuid bits and capabilities.
fn set_attributes(fd: &impl std::os::fd::AsFd, entry: &Entry) -> io::Result<Outcome> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    let mut outcome = Outcome::Written;
    for (name, value) in &entry.xattrs {
        // Anything else is the machine's business; trusted.overlay.* would even change what overlayfs shows.
        if name != "security.capability" && !name.starts_with("user.") {
            outcome = Outcome::Ignored("extended attributes other than user.* and security.capability");
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            Err(Errno::NOTSUP) => {
                outcome = Outcome::Ignored("extended attributes this file system cannot hold")
            }
            set => set?,
        }
    }
    Ok(outcome)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_seconds, tv_nsec: i64::from(entry.mtime_nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// `/a/./b/../c/` is `a/c`; as in a file system, `..` at the root stays there.
fn normalise(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
