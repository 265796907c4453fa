//! `COPY` and `ADD`: which files go where, and the layer they become.
//!
//! Invariant: sources stay inside their tree and destinations inside the image, whatever their links say.

use super::layer::{Attributes, LayerWriter};
use super::view::{Node, View};
use super::words::fits;
use crate::tarball::Tarball;
use crate::unpack::decompressed;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Which files of a context are not part of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignore {
    /// Pattern and whether it takes files back in.
    rules: Vec<(String, bool)>,
}

impl Ignore {
    /// Reads a `.dockerignore`.
    pub(crate) fn parse(text: &str) -> Ignore {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (pattern, back) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
            let pattern = plain(Path::new(pattern)).to_string_lossy().into_owned();
            (!pattern.is_empty()).then_some((pattern, back))
        };
        Ignore { rules: text.lines().filter_map(rule).collect() }
    }

    /// The last rule that fits a file, or a directory above it, decides.
    fn leaves_out(&self, path: &Path) -> bool {
        let fits_any = |pattern: &str| {
            path.ancestors()
                .any(|path| !path.as_os_str().is_empty() && fits(pattern, &path.to_string_lossy()))
        };
        self.rules.iter().rev().find(|(pattern, _)| fits_any(pattern)).is_some_and(|(_, back)| !back)
    }

    fn takes_back(&self) -> bool {
        self.rules.iter().any(|(_, back)| *back)
    }
}

/// Where files come from.
pub(crate) struct Origin<'a> {
    pub(crate) view: &'a View,
    pub(crate) ignore: &'a Ignore,
    /// Files of a context belong to root; those of another stage stay whose they were.
    pub(crate) owned_by_root: bool,
}

/// One instruction, words expanded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copy {
    pub(crate) sources: Vec<String>,
    /// Documents: name and text.
    pub(crate) documents: Vec<(String, String)>,
    /// Absolute.
    pub(crate) destination: String,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mode: Option<u32>,
    /// Archives among the sources are unpacked.
    pub(crate) unpacks: bool,
}

/// What one path of the layer is made of.
#[derive(Debug, Clone)]
enum Piece {
    /// A directory above a destination, as it is in the image or new.
    Parent(Attributes),
    File(PathBuf, Attributes),
    Text(String, Attributes),
    /// Unpacked into a directory, with one owner for all if wanted.
    Archive {
        real: PathBuf,
        into: PathBuf,
        owner: Option<(u32, u32)>,
    },
}

/// The layer of a `COPY`, planned: every path and what it is made of.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pieces: BTreeMap<PathBuf, Piece>,
}

/// Finds every file and where it goes.
pub(crate) fn plan(copy: &Copy, origin: &Origin<'_>, image: &View) -> Result<Copied, String> {
    let mut found = Vec::new();
    for source in &copy.sources {
        let matches = matching(source, origin)?;
        if matches.is_empty() {
            return Err(format!("{source:?} is not there, or .dockerignore leaves it out"));
        }
        found.extend(matches);
    }
    let many = found.len() + copy.documents.len() > 1;
    let told = |error: io::Error| error.to_string();
    let (place, there) = image.find(Path::new(&copy.destination)).map_err(told)?;
    let into_directory = copy.destination.ends_with('/')
        || copy.destination.ends_with("/.")
        || there.is_some_and(|node| node.is_dir())
        || many;
    if many && !copy.destination.ends_with('/') && !copy.destination.ends_with("/.") {
        return Err(format!("{:?} must end with / for more than one source", copy.destination));
    }
    let mut copied = Copied::default();
    for (path, node) in found {
        if node.is_dir() {
            copied.parents(&place.join("x"), image, copy)?;
            copied.tree(&place, &path, &node, copy, origin)?;
            continue;
        }
        let Some((real, meta)) = &node.real else { continue };
        if copy.unpacks && meta.is_file() && is_archive(real).map_err(told)? {
            copied.parents(&place.join("x"), image, copy)?;
            let archive = Piece::Archive { real: real.clone(), into: place.clone(), owner: copy.owner };
            copied.pieces.insert(place.join(path.file_name().unwrap_or_default()), archive);
            continue;
        }
        let name = path.file_name().unwrap_or_default();
        let target = if into_directory { place.join(name) } else { place.clone() };
        copied.parents(&target, image, copy)?;
        copied
            .pieces
            .insert(target, Piece::File(real.clone(), dressed(Attributes::of(meta), copy, origin, false)));
    }
    for (name, text) in &copy.documents {
        let target = if into_directory { place.join(name) } else { place.clone() };
        copied.parents(&target, image, copy)?;
        let attributes = Attributes { mode: 0o644, ..Attributes::default() };
        copied.pieces.insert(target, Piece::Text(text.clone(), dressed(attributes, copy, origin, false)));
    }
    Ok(copied)
}

impl Copied {
    /// The directories above a path: as the image has them, or new.
    fn parents(&mut self, path: &Path, image: &View, copy: &Copy) -> Result<(), String> {
        for dir in path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            if self.pieces.contains_key(dir) {
                continue;
            }
            let (_, node) = image.find(dir).map_err(|error| error.to_string())?;
            let attributes = match node.as_ref().and_then(|node| node.real.as_ref()) {
                Some((_, meta)) if meta.is_dir() => Attributes::of(meta),
                Some(_) => return Err(format!("/{} is no directory in the image", dir.display())),
                None => {
                    let (uid, gid) = copy.owner.unwrap_or_default();
                    Attributes { mode: 0o755, uid, gid, mtime: 0 }
                }
            };
            self.pieces.insert(dir.to_owned(), Piece::Parent(attributes));
        }
        Ok(())
    }

    /// What a directory holds, not the directory itself.
    fn tree(
        &mut self,
        place: &Path,
        path: &Path,
        node: &Node,
        copy: &Copy,
        origin: &Origin<'_>,
    ) -> Result<(), String> {
        for (name, child) in origin.view.children(node).map_err(|error| error.to_string())? {
            let (path, target) = (path.join(&name), place.join(&name));
            let left_out = origin.ignore.leaves_out(&path);
            let Some((real, meta)) = &child.real else { continue };
            if left_out && !(meta.is_dir() && origin.ignore.takes_back()) {
                continue;
            }
            if !left_out {
                let attributes = dressed(Attributes::of(meta), copy, origin, meta.is_dir());
                self.pieces.insert(target.clone(), Piece::File(real.clone(), attributes));
            }
            if meta.is_dir() {
                self.tree(&target, &path, &child, copy, origin)?;
            }
        }
        Ok(())
    }

    /// What decides about the layer, but for the times of its files.
    pub(crate) fn sum(&self) -> io::Result<String> {
        let mut sum = Sha256::new();
        for (path, piece) in &self.pieces {
            sum.update(path.as_os_str().as_bytes());
            match piece {
                Piece::Parent(a) => sum.update(format!("\0d{:o} {} {}\0", a.mode, a.uid, a.gid)),
                Piece::Text(text, a) => sum.update(format!("\0t{:o} {} {} {text}\0", a.mode, a.uid, a.gid)),
                Piece::File(real, a) => {
                    let meta = fs::symlink_metadata(real)?;
                    let kind = meta.file_type();
                    sum.update(format!("\0{kind:?}{:o} {} {} {}\0", a.mode, a.uid, a.gid, meta.len()));
                    if kind.is_symlink() {
                        sum.update(fs::read_link(real)?.as_os_str().as_bytes());
                    } else if kind.is_file() {
                        sum_file(&mut sum, real)?;
                    }
                }
                Piece::Archive { real, owner, .. } => {
                    sum.update(format!("\0a{owner:?}\0"));
                    sum_file(&mut sum, real)?;
                }
            }
        }
        Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn write(&self, writer: &mut LayerWriter) -> io::Result<()> {
        for (path, piece) in &self.pieces {
            let told = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
            match piece {
                Piece::Parent(attributes) => writer.directory(path, *attributes).map_err(told)?,
                Piece::File(real, attributes) => writer.copy(path, real, *attributes).map_err(told)?,
                Piece::Text(text, attributes) => {
                    writer.file(path, *attributes, text.len() as u64, text.as_bytes()).map_err(told)?;
                }
                Piece::Archive { real, into, owner } => unpack(writer, into, real, *owner).map_err(told)?,
            }
        }
        Ok(())
    }
}

/// Owner and rights as the instruction wants them.
fn dressed(had: Attributes, copy: &Copy, origin: &Origin<'_>, is_dir: bool) -> Attributes {
    let (uid, gid) = match copy.owner {
        Some(owner) => owner,
        None if origin.owned_by_root => (0, 0),
        None => (had.uid, had.gid),
    };
    // Docker gives --chmod to directories as well; without the right to enter them nothing in them could be read.
    let mode = match copy.mode {
        Some(mode) if is_dir => mode | (mode & 0o444) >> 2,
        Some(mode) => mode,
        None => had.mode,
    };
    Attributes { mode, uid, gid, ..had }
}

fn sum_file(sum: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => sum.update(&buffer[..read]),
        }
    }
}

/// The files a source means: one path, or all that fit its pattern.
fn matching(source: &str, origin: &Origin<'_>) -> Result<Vec<(PathBuf, Node)>, String> {
    let told = |error: io::Error| error.to_string();
    let path = plain(Path::new(source));
    let pattern = path.to_string_lossy().into_owned();
    if !pattern.contains(['*', '?', '[', '\\']) {
        let (real, node) = origin.view.find(&path).map_err(told)?;
        let here = node.filter(|_| {
            real.as_os_str().is_empty() || !origin.ignore.leaves_out(&real) || origin.ignore.takes_back()
        });
        // The name is the source's own, the bytes are where it leads to.
        let own = if real.as_os_str().is_empty() { real } else { rename(&real, &path) };
        return Ok(here.map(|node| (own, node)).into_iter().collect());
    }
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::new(), origin.view.root().map_err(told)?)];
    while let Some((dir, node)) = open.pop() {
        for (name, child) in origin.view.children(&node).map_err(told)? {
            let path = dir.join(name);
            if fits(&pattern, &path.to_string_lossy()) && !origin.ignore.leaves_out(&path) {
                let (_, target) = origin.view.find(&path).map_err(told)?;
                found.extend(target.map(|node| (path.clone(), node)));
            } else if child.is_dir() {
                open.push((path, child));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// Where it leads to, under its own last name.
fn rename(real: &Path, path: &Path) -> PathBuf {
    match path.file_name() {
        Some(name) => real.with_file_name(name),
        None => real.to_owned(),
    }
}

/// Without root, `.` and `..`.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// Whether `ADD` takes it apart; archives it would, but that are not read here, are refused.
fn is_archive(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    for (magic, name) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ\0", "xz")] {
        if start.starts_with(magic) {
            return Err(io::Error::other(format!(
                "{}: archives compressed with {name} are not unpacked: COPY it and RUN tar",
                path.display()
            )));
        }
    }
    let mut first = Vec::new();
    // What is no compressed stream after all, is a file.
    let read = decompressed(File::open(path)?).and_then(|inner| inner.take(512).read_to_end(&mut first));
    Ok(read.is_ok() && first.len() == 512 && &first[257..262] == b"ustar")
}

fn unpack(
    writer: &mut LayerWriter,
    place: &Path,
    archive: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let mut tarball = Tarball::new(decompressed(File::open(archive)?)?);
    while let Some(entry) = tarball.next_entry()? {
        let inside = plain(Path::new(OsStr::from_bytes(&entry.path)));
        if inside.as_os_str().is_empty() {
            continue;
        }
        let path = place.join(inside);
        let (uid, gid) = owner.unwrap_or((entry.uid, entry.gid));
        let attributes = Attributes { mode: entry.mode & 0o7777, uid, gid, mtime: entry.mtime_seconds };
        let link = Path::new(OsStr::from_bytes(&entry.link));
        let kept: Vec<_> =
            entry.xattrs.iter().filter(|(name, _)| name == "security.capability").cloned().collect();
        if !kept.is_empty() {
            writer.extended(&kept)?;
        }
        if entry.kind.is_dir() {
            writer.directory(&path, attributes)?;
        } else if entry.kind.is_symlink() {
            writer.symlink(&path, attributes, link)?;
        } else if entry.kind.is_hard_link() {
            writer.hardlink(&path, attributes, &place.join(plain(link)))?;
        } else if entry.kind.is_file() || entry.kind.is_contiguous() {
            writer.file(&path, attributes, entry.size, &mut tarball)?;
        } else if entry.kind.is_fifo() {
            writer.special(&path, tar::EntryType::Fifo, attributes, 0)?;
        }
    }
    Ok(())
}
