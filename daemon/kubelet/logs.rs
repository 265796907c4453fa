//! Reads containers' logs in the CRI format: tail, since, timestamps, follow, across rotations.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

/// What of a log is wanted: the documented options of `pods/log`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) follow: bool,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<usize>,
}

/// A file that grows is looked at again after this while somebody follows it.
const FOLLOW: Duration = Duration::from_millis(100);

/// The last bytes of a log's text, for a failed container's last words.
pub(crate) fn end_of(path: &Path, bytes: usize) -> String {
    let mut lines = Vec::new();
    let wanted = Wanted { tail_lines: Some(80), ..Wanted::default() };
    // A log that cannot be read has nothing to tell.
    let _ = past(path, &wanted, &mut |line| lines.extend_from_slice(line));
    let text = String::from_utf8_lossy(&lines).into_owned();
    let from = text.len().saturating_sub(bytes);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

/// Sends what is wanted of a log, in the order it was written, until its end, or, when followed, until `running` says
/// that nothing more will come.
pub(crate) async fn send(
    path: PathBuf,
    wanted: Wanted,
    running: impl Fn() -> bool + Send + 'static,
    to: mpsc::Sender<Bytes>,
) {
    let mut left = wanted.limit_bytes.unwrap_or(usize::MAX);
    let first = {
        let (path, wanted) = (path.clone(), wanted.clone());
        tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            let end = past(&path, &wanted, &mut |line| all.extend_from_slice(line));
            (all, end)
        })
        .await
    };
    let Ok((mut bytes, end)) = first else { return };
    bytes.truncate(left);
    left -= bytes.len();
    if !bytes.is_empty() && to.send(bytes.into()).await.is_err() {
        return;
    }
    let Ok(mut at) = end else { return };
    while wanted.follow && left > 0 {
        let last = !running();
        let mut fresh = Vec::new();
        at = more(&path, at, &wanted, &mut fresh);
        fresh.truncate(left);
        left -= fresh.len();
        if !fresh.is_empty() && to.send(fresh.into()).await.is_err() {
            return;
        }
        if last {
            return;
        }
        tokio::select! {
            biased;
            // Cancel-safe: the channel stays closed.
            () = to.closed() => return,
            () = tokio::time::sleep(FOLLOW) => {}
        }
    }
}

/// Position in the current file, and which file that was.
#[derive(Debug, Clone, Copy)]
struct At {
    inode: u64,
    offset: u64,
}

/// Tells every wanted line that is there, oldest rotated file first; returns where the current file ended.
fn past(path: &Path, wanted: &Wanted, tell: &mut dyn FnMut(&[u8])) -> io::Result<At> {
    let mut lines: std::collections::VecDeque<Vec<u8>> = std::collections::VecDeque::new();
    let mut end = At { inode: 0, offset: 0 };
    for file in rotated(path).into_iter().chain([path.to_owned()]) {
        let opened = match fs::File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let inode = std::os::unix::fs::MetadataExt::ino(&opened.metadata()?);
        let mut reader = BufReader::new(opened);
        let mut offset = 0;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            if line.last() == Some(&b'\n') {
                offset += line.len() as u64;
                if let Some(text) = text(&line, wanted) {
                    match wanted.tail_lines {
                        None => tell(&text),
                        Some(count) => {
                            lines.push_back(text);
                            if lines.len() > count {
                                lines.pop_front();
                            }
                        }
                    }
                }
            }
            line.clear();
        }
        end = At { inode, offset };
    }
    lines.iter().for_each(|line| tell(line));
    Ok(end)
}

/// `0.log.3`, `0.log.2`, `0.log.1`: oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for number in 1.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        let file = PathBuf::from(name);
        if !file.exists() {
            break;
        }
        found.push(file);
    }
    found.reverse();
    found
}

/// What was written since `at`; follows into the new file after a rotation.
fn more(path: &Path, at: At, wanted: &Wanted, into: &mut Vec<u8>) -> At {
    let Ok(mut file) = fs::File::open(path) else { return at };
    let Ok(meta) = file.metadata() else { return at };
    let inode = std::os::unix::fs::MetadataExt::ino(&meta);
    let mut at = at;
    if inode != at.inode {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        if let Ok(mut old) = fs::File::open(PathBuf::from(name)) {
            read_on(&mut old, at.offset, wanted, into);
        }
        at = At { inode, offset: 0 };
    }
    at.offset = read_on(&mut file, at.offset, wanted, into);
    at
}

fn read_on(file: &mut fs::File, offset: u64, wanted: &Wanted, into: &mut Vec<u8>) -> u64 {
    let mut fresh = Vec::new();
    if file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_to_end(&mut fresh)).is_err() {
        return offset;
    }
    let whole = fresh.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in fresh[..whole].split_inclusive(|byte| *byte == b'\n') {
        into.extend(text(line, wanted).unwrap_or_default());
    }
    offset + whole as u64
}

/// The text of a line `2026-11-24T03:00:00.0Z stdout F text`; none when it is older than wanted or no such line.
fn text(line: &[u8], wanted: &Wanted) -> Option<Vec<u8>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let time = std::str::from_utf8(time).ok()?;
    if let Some(since) = wanted.since
        && time.parse::<Timestamp>().ok()? < since
    {
        return None;
    }
    let mut out = Vec::new();
    if wanted.timestamps {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
    }
    // A part of a line is told without the newline that the format adds.
    let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    out.extend_from_slice(text);
    Some(out)
}
