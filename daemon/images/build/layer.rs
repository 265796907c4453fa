//! Writes a layer: a tar whose bytes depend on what is in it, not on when or where it was made.
//!
//! Invariant: entries come sorted by path, a directory before what it holds.

use crate::digest::{Digest, Sum, SummedWriter};
use crate::disk::Disk;
use crate::error::{Error, disk};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::EntryType;
use tempfile::NamedTempFile;

/// What a tar header says of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
}

impl Attributes {
    pub(crate) fn of(meta: &Metadata) -> Attributes {
        Attributes { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), mtime: meta.mtime() }
    }
}

/// A layer on its way.
pub(crate) struct LayerWriter {
    tar: tar::Builder<BufWriter<SummedWriter<NamedTempFile>>>,
    /// No time in the layer is later than this.
    latest: Option<i64>,
    entries: usize,
}

impl LayerWriter {
    pub(crate) fn new(store: &Disk, latest: Option<i64>) -> Result<LayerWriter, Error> {
        let sink = SummedWriter { inner: store.scratch()?, sum: Sum::default() };
        let tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, sink));
        Ok(LayerWriter { tar, latest, entries: 0 })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn directory(&mut self, path: &Path, attributes: Attributes) -> io::Result<()> {
        let path = path.join("");
        let mut header = self.header(EntryType::Directory, attributes, 0);
        self.tar.append_data(&mut header, path, io::empty())
    }

    pub(crate) fn file(
        &mut self,
        path: &Path,
        attributes: Attributes,
        size: u64,
        bytes: impl Read,
    ) -> io::Result<()> {
        let mut header = self.header(EntryType::Regular, attributes, size);
        // A file that grows meanwhile must not spill into the next header.
        self.tar.append_data(&mut header, path, Whole { inner: bytes.take(size), left: size })
    }

    pub(crate) fn symlink(&mut self, path: &Path, attributes: Attributes, target: &Path) -> io::Result<()> {
        let mut header = self.header(EntryType::Symlink, Attributes { mode: 0o777, ..attributes }, 0);
        self.tar.append_link(&mut header, path, target)
    }

    pub(crate) fn hardlink(&mut self, path: &Path, attributes: Attributes, target: &Path) -> io::Result<()> {
        let mut header = self.header(EntryType::Link, attributes, 0);
        self.tar.append_link(&mut header, path, target)
    }

    /// A fifo or a device.
    pub(crate) fn special(
        &mut self,
        path: &Path,
        kind: EntryType,
        attributes: Attributes,
        device: u64,
    ) -> io::Result<()> {
        let mut header = self.header(kind, attributes, 0);
        header.set_device_major(rustix::fs::major(device))?;
        header.set_device_minor(rustix::fs::minor(device))?;
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// Attributes beside the header, for the entry that comes next.
    pub(crate) fn extended(&mut self, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
        let named: Vec<(String, &[u8])> =
            attributes.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), &value[..])).collect();
        self.tar.append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value)))
    }

    /// A file of the machine, whatever it is.
    pub(crate) fn copy(&mut self, path: &Path, real: &Path, attributes: Attributes) -> io::Result<()> {
        let meta = fs::symlink_metadata(real)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            self.directory(path, attributes)
        } else if kind.is_symlink() {
            self.symlink(path, attributes, &fs::read_link(real)?)
        } else if kind.is_file() {
            self.file(path, attributes, meta.len(), File::open(real)?)
        } else if kind.is_fifo() {
            self.special(path, EntryType::Fifo, attributes, 0)
        } else if kind.is_char_device() {
            self.special(path, EntryType::Char, attributes, meta.rdev())
        } else if kind.is_block_device() {
            self.special(path, EntryType::Block, attributes, meta.rdev())
        } else {
            // A socket means nothing without the process that made it.
            Ok(())
        }
    }

    /// Ends the layer: its file, its digest, which is its diff id as well, and its bytes.
    pub(crate) fn finish(self) -> Result<(NamedTempFile, Digest, u64), Error> {
        let here = PathBuf::from("a new layer");
        let mut out = self.tar.into_inner().map_err(disk("write", &here))?;
        out.flush().map_err(disk("write", &here))?;
        let sink = out.into_inner().map_err(|error| disk("write", &here)(error.into_error()))?;
        let size = sink.sum.bytes;
        Ok((sink.inner, sink.sum.digest(), size))
    }

    fn header(&mut self, kind: EntryType, attributes: Attributes, size: u64) -> tar::Header {
        self.entries += 1;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        let time = self.latest.map_or(attributes.mtime, |latest| latest.min(attributes.mtime));
        header.set_mtime(u64::try_from(time).unwrap_or(0));
        header.set_size(size);
        header
    }
}

/// Exactly so many bytes: a file that shrinks meanwhile is an error, not a layer with a hole.
struct Whole<R> {
    inner: io::Take<R>,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left -= read as u64;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        Ok(read)
    }
}

/// Names that the kernel's overlay gave attributes to which a layer does not carry.
const OVERLAY: &str = "trusted.overlay.";

/// Writes what a program changed: the upper directory of its overlay.
pub(crate) fn write_changes(writer: &mut LayerWriter, upper: &Path, leave_out: &[PathBuf]) -> io::Result<()> {
    let mut walk = Changes { writer, upper, leave_out, links: Default::default() };
    walk.directory(Path::new(""))
}

struct Changes<'a> {
    writer: &'a mut LayerWriter,
    upper: &'a Path,
    leave_out: &'a [PathBuf],
    /// First name of each file that has several.
    links: std::collections::BTreeMap<(u64, u64), PathBuf>,
}

impl Changes<'_> {
    fn directory(&mut self, dir: &Path) -> io::Result<()> {
        let mut names: Vec<_> =
            fs::read_dir(self.upper.join(dir))?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let path = dir.join(&name);
            if !self.leave_out.contains(&path) {
                self.entry(dir, &path, name.as_bytes())?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Path, path: &Path, name: &[u8]) -> io::Result<()> {
        let real = self.upper.join(path);
        let meta = fs::symlink_metadata(&real)?;
        let attributes = Attributes::of(&meta);
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            let hidden = [b".wh.", name].concat();
            let mark = dir.join(std::ffi::OsStr::from_bytes(&hidden));
            return self.writer.file(&mark, Attributes { mtime: 0, mode: 0, uid: 0, gid: 0 }, 0, io::empty());
        }
        let extended = extended(&real)?;
        if !extended.is_empty() {
            self.writer.extended(&extended)?;
        }
        if meta.is_dir() {
            self.writer.directory(path, attributes)?;
            if super::view::is_opaque(&real) {
                self.writer.file(&path.join(".wh..wh..opq"), Attributes::default(), 0, io::empty())?;
            }
            return self.directory(path);
        }
        if meta.nlink() > 1 {
            let first = self.links.get(&(meta.dev(), meta.ino())).cloned();
            if let Some(first) = first {
                return self.writer.hardlink(path, attributes, &first);
            }
            self.links.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        self.writer.copy(path, &real, attributes)
    }
}

/// The attributes a layer may carry. One that makes a directory another's needs the overlay it was made in.
fn extended(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 4096];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if name == format!("{OVERLAY}redirect") || name == format!("{OVERLAY}metacopy") {
            return Err(io::Error::other(format!(
                "{}: the kernel's overlay keeps it by reference ({name}): turn redirect_dir and metacopy off",
                path.display()
            )));
        }
        if name == "security.capability" || name.starts_with("user.") && !name.starts_with("user.overlay.") {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..])?;
            value.truncate(length);
            found.push((name, value));
        }
    }
    found.sort();
    Ok(found)
}
