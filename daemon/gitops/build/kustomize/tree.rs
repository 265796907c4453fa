//! Paths among the files of a snapshot: joined, cleaned and looked up without a disk.
//!
//! Invariant: no path leads out of the snapshot; what is not in it is not there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::NAMES;

/// The files of a snapshot.
pub(crate) type Files = BTreeMap<Arc<str>, Arc<[u8]>>;

/// A path relative to a directory, cleaned. Leading `..` stay: whoever holds the files decides whether they lead anywhere.
pub(crate) fn join(dir: &str, path: &str) -> String {
    let absolute = path.starts_with('/') || (dir.starts_with('/') && !path.starts_with('/'));
    let start = if path.starts_with('/') { "" } else { dir };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if absolute { format!("/{joined}") } else { joined }
}

/// The directory of a file.
pub(crate) fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..at])
}

/// Whether a path is in a directory or below it.
pub(crate) fn is_below(dir: &str, path: &str) -> bool {
    dir.is_empty() && !path.starts_with("..") && !path.starts_with('/')
        || path.strip_prefix(dir).is_some_and(|rest| dir == "/" || rest.starts_with('/'))
}

/// The kustomization file of a directory, if there is exactly one; all of them otherwise.
pub(crate) fn kustomizations(files: &Files, dir: &str) -> Vec<Arc<str>> {
    let there = |name: &&str| files.get_key_value(join(dir, name).as_str()).map(|(path, _)| Arc::clone(path));
    NAMES.iter().filter_map(there).collect()
}

/// Whether a resource's path is an address on another machine.
pub(crate) fn is_remote(path: &str) -> bool {
    let host = path.split('/').next().unwrap_or_default();
    path.contains("://")
        || path.contains("?ref=")
        || path.starts_with("git::")
        || path.starts_with("git@")
        || (host.contains('.') && !host.starts_with('.') && path.contains('/') && host.ends_with(".com"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_a_shell_would() {
        for (dir, path, want) in [
            ("a/b", "../c/./x.yaml", "a/c/x.yaml"),
            ("", "../x", "../x"),
            ("a", "../../x", "../x"),
            ("/srv/a", "../../../x", "/x"),
            ("a", "/etc/passwd", "/etc/passwd"),
            ("a", ".", "a"),
        ] {
            assert_eq!(join(dir, path), want);
        }
        assert!(is_below("a", "a/b") && is_below("", "b") && !is_below("a", "ab") && !is_below("", "../b"));
    }
}
