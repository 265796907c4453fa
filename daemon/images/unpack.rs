//! Unpacks one layer, whoever made it, into a directory that overlayfs can use.
//!
//! Invariant: a layer counts as unpacked only when all of it was read and its bytes have its diff id.

use crate::Config;
use crate::digest::{Digest, SummedReader};
use crate::error::{Error, content};
use crate::tarball::Tarball;
use crate::tree::{Outcome, Tree};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks a layer's blob into the empty directory `dir` and checks that its content is `diff_id`.
/// Entries that are left out on purpose are told in the log.
pub(crate) fn unpack(diff_id: &Digest, blob: File, dir: &Path, config: &Config) -> Result<(), Error> {
    let mut at = Vec::new();
    let found = unpack_entries(blob, dir, config, &mut at).map_err(|source| Error::Unpack {
        layer: diff_id.to_string(),
        entry: String::from_utf8_lossy(&at).into_owned(),
        source: Arc::new(source),
    })?;
    if found == *diff_id {
        return Ok(());
    }
    let (expected, found) = (diff_id.to_string(), found.to_string());
    Err(Error::Digest { what: format!("unpacked layer {diff_id}"), expected, found })
}

/// What is behind gzip, zstd or nothing, told by its first bytes: media types are often wrong.
pub(crate) fn decompressed(file: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(128 << 10, file);
    let start = file.fill_buf()?;
    if start.starts_with(&GZIP) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)))
    } else if start.starts_with(&ZSTD) {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(file)?))
    } else {
        Ok(Box::new(file))
    }
}

/// A layer's media type must be one of the tar ones; encrypted, foreign and helm layers are named and refused.
pub(crate) fn check_media_type(image: &str, media_type: &str) -> Result<(), Error> {
    let tar = media_type.is_empty()
        || media_type.starts_with("application/vnd.oci.image.layer.v1.tar")
            && !media_type.contains("encrypted")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar");
    if tar {
        return Ok(());
    }
    Err(content(
        image,
        format!("layer of type {media_type:?}: only tar layers, plain, gzip or zstd, can be unpacked"),
    ))
}

fn unpack_entries(blob: File, dir: &Path, config: &Config, at: &mut Vec<u8>) -> io::Result<Digest> {
    let limited = SummedReader::new(decompressed(blob)?, config.layer_bytes_max);
    let mut tarball = Tarball::new(limited);
    let mut tree = Tree::open(dir)?;
    let mut files = 0;
    while let Some(entry) = tarball.next_entry()? {
        at.clone_from(&entry.path);
        files += 1;
        if files > config.layer_files_max {
            return Err(io::Error::other(format!("more than the limit of {} files", config.layer_files_max)));
        }
        if let Some((parent, name)) = whiteout(&entry.path) {
            hide(&tree, parent, name)?;
        } else if let Outcome::Ignored(reason) = tree.put(&entry, &mut tarball)? {
            let path = String::from_utf8_lossy(&entry.path);
            tracing::warn!(entry = %path, reason, "left out while unpacking a layer");
        }
    }
    tree.finish()?;
    Ok(tarball.finish()?.sum.digest())
}

/// Splits `a/.wh.b` into `a/` and `.wh.b`.
fn whiteout(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at(start);
    name.starts_with(WHITEOUT).then_some((parent, name))
}

fn hide(tree: &Tree, parent: &[u8], name: &[u8]) -> io::Result<()> {
    if name == OPAQUE {
        return tree.opaque(parent);
    }
    let hidden = &name[WHITEOUT.len()..];
    // What AUFS kept for itself (.wh..wh.plnk and the like) means nothing to anyone else.
    if hidden.starts_with(WHITEOUT) {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(io::Error::other("a deletion that names no file"));
    }
    tree.whiteout(&[parent, hidden].concat())
}
