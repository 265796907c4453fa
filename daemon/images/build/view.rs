//! Looks into layers as one tree, as overlayfs would show them, without mounting anything.
//!
//! Invariant: symbolic links are followed inside the tree only, and never by the kernel.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

const LINKS_MAX: usize = 40;

/// A tree of layers.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Top first.
    layers: Vec<PathBuf>,
}

/// Something in the tree.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where its bytes and attributes are; `None` for the root of a tree without layers.
    pub(crate) real: Option<(PathBuf, Metadata)>,
    /// For a directory, all that show through, top first.
    dirs: Vec<PathBuf>,
}

impl Node {
    pub(crate) fn is_dir(&self) -> bool {
        self.real.as_ref().is_none_or(|(_, meta)| meta.is_dir())
    }

    fn link(&self) -> io::Result<Option<PathBuf>> {
        match &self.real {
            Some((path, meta)) if meta.is_symlink() => fs::read_link(path).map(Some),
            _ => Ok(None),
        }
    }
}

impl View {
    /// Layers bottom first.
    pub(crate) fn new(layers: &[PathBuf]) -> View {
        View { layers: layers.iter().rev().cloned().collect() }
    }

    pub(crate) fn root(&self) -> io::Result<Node> {
        let real = match self.layers.first() {
            Some(top) => Some((top.clone(), fs::symlink_metadata(top)?)),
            None => None,
        };
        Ok(Node { real, dirs: self.layers.clone() })
    }

    /// What a directory holds under a name.
    pub(crate) fn child(&self, dir: &Node, name: &OsStr) -> io::Result<Option<Node>> {
        let mut found: Option<Node> = None;
        for dir in &dir.dirs {
            let path = dir.join(name);
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                break;
            }
            let opaque = meta.is_dir() && is_opaque(&path);
            match &mut found {
                None => {
                    let dirs = if meta.is_dir() { vec![path.clone()] } else { Vec::new() };
                    let is_dir = meta.is_dir();
                    found = Some(Node { real: Some((path, meta)), dirs });
                    if !is_dir {
                        break;
                    }
                }
                Some(node) if meta.is_dir() => node.dirs.push(path),
                Some(_) => break,
            }
            if opaque {
                break;
            }
        }
        Ok(found)
    }

    /// Everything in a directory.
    pub(crate) fn children(&self, dir: &Node) -> io::Result<BTreeMap<OsString, Node>> {
        let mut children = BTreeMap::new();
        for real in &dir.dirs {
            for entry in fs::read_dir(real)? {
                let name = entry?.file_name();
                if !children.contains_key(&name)
                    && let Some(node) = self.child(dir, &name)?
                {
                    children.insert(name, node);
                }
            }
        }
        Ok(children)
    }

    /// Follows a path, links included, to where it really leads in the tree (relative to its root) and what is there.
    pub(crate) fn find(&self, path: &Path) -> io::Result<(PathBuf, Option<Node>)> {
        let mut left: Vec<OsString> = parts(path);
        left.reverse();
        let mut way: Vec<(OsString, Option<Node>)> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                way.pop();
                continue;
            }
            let parent = match way.last() {
                Some((_, node)) => node.clone(),
                None => Some(self.root()?),
            };
            let node = match &parent {
                Some(parent) if parent.is_dir() => self.child(parent, &name)?,
                _ => None,
            };
            let Some(target) = node.as_ref().map(Node::link).transpose()?.flatten() else {
                way.push((name, node));
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::other(format!("{}: too many symbolic links", path.display())));
            }
            if target.is_absolute() {
                way.clear();
            }
            left.extend(parts(&target).into_iter().rev());
        }
        let real = way.iter().map(|(name, _)| name).collect();
        let node = match way.pop() {
            Some((_, node)) => node,
            None => Some(self.root()?),
        };
        Ok((real, node))
    }

    /// A small file's text; empty when it is not there.
    pub(crate) fn text(&self, path: &str) -> String {
        let node = self.find(Path::new(path)).ok().and_then(|(_, node)| node);
        let real = node.and_then(|node| node.real).filter(|(_, meta)| meta.is_file() && meta.len() < 1 << 20);
        real.and_then(|(path, _)| fs::read_to_string(path).ok()).unwrap_or_default()
    }
}

/// A path's names and `..`s; the root and `.` are none.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// Whether a directory hides what layers below have in it.
pub(crate) fn is_opaque(path: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::lgetxattr(path, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"y")
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_to_where_they_lead_in_the_tree_and_upper_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        fs::create_dir_all(lower.join("usr/bin")).unwrap();
        fs::write(lower.join("usr/bin/sh"), "old").unwrap();
        fs::write(lower.join("usr/bin/ls"), "ls").unwrap();
        symlink("/usr/bin", lower.join("bin")).unwrap();
        symlink("../../../../../etc", lower.join("up")).unwrap();
        fs::create_dir_all(upper.join("usr/bin")).unwrap();
        fs::write(upper.join("usr/bin/sh"), "new").unwrap();
        let view = View::new(&[lower, upper.clone()]);
        let (real, node) = view.find(Path::new("/bin/sh")).unwrap();
        assert_eq!(real, Path::new("usr/bin/sh"));
        assert_eq!(fs::read_to_string(&node.unwrap().real.unwrap().0).unwrap(), "new");
        let (_, bin) = view.find(Path::new("bin/")).unwrap();
        let names: Vec<_> = view.children(&bin.unwrap()).unwrap().into_keys().collect();
        assert_eq!(names, ["ls", "sh"]);
        let (real, node) = view.find(Path::new("up/passwd")).unwrap();
        assert_eq!((real.as_path(), node.is_none()), (Path::new("etc/passwd"), true));
        symlink("loop", upper.join("loop")).unwrap();
        assert!(view.find(Path::new("loop")).unwrap_err().to_string().contains("too many symbolic links"));
    }
}
