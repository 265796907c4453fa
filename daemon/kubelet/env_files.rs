//! Variables that a pod's own containers left in files of its emptyDirs (`fileKeyRef`).
//!
//! Invariant: whatever a container made of its volume, no file outside of it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, FileKeySelector, Pod};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::files::{Content, Places};

/// Most bytes of such a file, as documented.
const LONGEST_BYTES: u64 = 64 * 1024;

/// The text of each file that could be read, by volume and path.
pub(crate) type EnvFiles = BTreeMap<(String, String), String>;

/// Reads the files that a container's variables name.
pub(crate) fn read(pod: &Pod, container: &Container, places: &Places) -> EnvFiles {
    let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    let wanted = sources.filter_map(|source: &EnvVarSource| source.file_key_ref.as_ref());
    let found = wanted.filter_map(|file| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let volume = volumes.into_iter().find(|volume| volume.name == file.volume_name)?;
        let medium = volume.empty_dir.as_ref()?.medium.as_deref().unwrap_or_default();
        let content = if medium.is_empty() { Content::Empty } else { Content::Memory { size_bytes: None } };
        let text = read_within(&places.volume(&volume.name, &content), &file.path)?;
        Some(((file.volume_name.clone(), file.path.clone()), text))
    });
    found.collect()
}

fn read_within(volume: &Path, path: &str) -> Option<String> {
    let root = File::open(volume).ok()?;
    let how = OpenHow::new()
        // A pipe that nobody writes to must not hold anybody up.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(&root, path, how).ok()?);
    let plain = file.metadata().ok().filter(|meta| meta.is_file() && meta.len() <= LONGEST_BYTES);
    plain?;
    let mut text = String::new();
    file.take(LONGEST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What a variable is that a key of a file stands for; None where it may be missing and is.
///
/// # Errors
/// In words, when the file or its key is missing and must not be, or the file is not written as documented.
pub(crate) fn value(files: &EnvFiles, wanted: &FileKeySelector) -> Result<Option<String>, String> {
    let (volume, path, key) = (&wanted.volume_name, &wanted.path, &wanted.key);
    let optional = wanted.optional == Some(true);
    let Some(text) = files.get(&(volume.clone(), path.clone())) else {
        let why = format!("environment variable file {path:?} does not exist in volume {volume:?}");
        return if optional { Ok(None) } else { Err(why) };
    };
    let pairs = parse(text).map_err(|why| format!("file {path:?} of volume {volume:?}: {why}"))?;
    match pairs.get(key) {
        Some(value) => Ok(Some(value.clone())),
        None if optional => Ok(None),
        None => Err(format!("environment variable key {key:?} not found in file {path:?}")),
    }
}

/// `KEY='value'` line by line; a value may go over several lines, and `#` begins a line that says nothing.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let (mut pairs, mut rest, mut line) = (BTreeMap::new(), text, 1);
    while !rest.is_empty() {
        let (head, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let bare = head.trim();
        if bare.is_empty() || bare.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let opened = rest.split_once('=').filter(|(key, _)| !key.contains('\n'));
        let inside =
            opened.and_then(|(key, value)| Some((key, value.trim_start_matches(' ').strip_prefix('\'')?)));
        let Some((key, (value, after))) =
            inside.and_then(|(key, value)| Some((key, value.split_once('\'')?)))
        else {
            return Err(format!("line {line} is not KEY='value'"));
        };
        let (tail, after) = after.split_once('\n').unwrap_or((after, ""));
        if !tail.trim().is_empty() {
            return Err(format!("line {line} goes on after its closing quote"));
        }
        pairs.insert(key.trim().to_owned(), value.to_owned());
        (rest, line) = (after, line + 1 + value.matches('\n').count());
    }
    Ok(pairs)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_quotes_and_may_have_several_lines() {
        let pairs = parse("# said\n\n A='one'\nB='two\nthree' \nC=''\n").unwrap();
        let wanted = [("A", "one"), ("B", "two\nthree"), ("C", "")];
        assert_eq!(pairs, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_is_written_otherwise_is_told_with_its_line() {
        for (text, line) in
            [("A=one\n", 1), ("A='x'\n\nB\n", 3), ("A='x' B='y'\n", 1), ("A='1\n2'\nB='open\n", 3)]
        {
            let why = parse(text).unwrap_err();
            assert!(why.contains(&format!("line {line} ")), "{text:?}: {why}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(dir.path().join("secret"), "A='x'\n").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("env")).unwrap();
        std::fs::write(volume.join("own"), "A='y'\n").unwrap();
        assert_eq!(read_within(&volume, "env"), None);
        assert_eq!(read_within(&volume, "../secret"), None);
        assert_eq!(read_within(&volume, "own").as_deref(), Some("A='y'\n"));
    }
}
