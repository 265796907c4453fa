//! Reads tar streams from strangers, entry by entry, in bounded memory.
//!
//! Invariant: names and attributes of an entry never take more than `EXTENSION_BYTES_MAX`, whatever the stream says.
//! Invariant: an entry is reported as the stream spells it; whoever writes it to disk resolves its path.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use tar::{EntryType, Header};

const BLOCK_BYTES: u64 = 512;
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// One entry's header, with GNU and pax extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryType,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_seconds: i64,
    pub(crate) mtime_nanos: u32,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) size: u64,
}

/// A tar stream. Reading it gives the bytes of the entry last returned by `next_entry`.
pub(crate) struct Tarball<R> {
    inner: R,
    body_left: u64,
    padding: u64,
    global: Pax,
    /// Bytes that global headers may still take, all together.
    global_left: u64,
}

type Pax = BTreeMap<String, Vec<u8>>;

impl<R: Read> Tarball<R> {
    pub(crate) fn new(inner: R) -> Self {
        Tarball { inner, body_left: 0, padding: 0, global: Pax::new(), global_left: EXTENSION_BYTES_MAX }
    }

    /// The next file, directory, link or device; what is left of the entry before it is skipped.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut pax = self.global.clone();
        let mut left = EXTENSION_BYTES_MAX;
        loop {
            self.skip(self.body_left + self.padding)?;
            (self.body_left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            if kind.is_gnu_longname() {
                let name = self.long(&header, &mut left)?;
                pax.insert("path".into(), name);
            } else if kind.is_gnu_longlink() {
                let link = self.long(&header, &mut left)?;
                pax.insert("linkpath".into(), link);
            } else if kind.is_pax_local_extensions() {
                pax.extend(parse_pax(&self.extension(&header, &mut left)?)?);
            } else if kind.is_pax_global_extensions() {
                let mut global_left = self.global_left;
                let global = parse_pax(&self.extension(&header, &mut global_left)?)?;
                self.global_left = global_left;
                self.global.extend(global.clone());
                pax.extend(global);
            } else {
                let entry = entry(&header, pax)?;
                self.body_left = entry.size;
                self.padding = padding(entry.size);
                return Ok(Some(entry));
            }
        }
    }

    /// Reads the stream to its end, past the archive's end as well, and gives its reader back.
    pub(crate) fn finish(mut self) -> io::Result<R> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        if !read_block(&mut self.inner, header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = header.as_bytes()[..148]
            .iter()
            .chain(&header.as_bytes()[156..])
            .fold(8 * u32::from(b' '), |sum, byte| sum + u32::from(*byte));
        if header.cksum().ok() != Some(sum) {
            return Err(bad("not a tar header (its checksum is wrong)"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, header: &Header, left: &mut u64) -> io::Result<Vec<u8>> {
        let size = header.entry_size()?;
        *left = left.checked_sub(size).ok_or_else(|| bad("extended headers are larger than 1 MiB"))?;
        let mut bytes = Vec::new();
        self.inner.by_ref().take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    fn long(&mut self, header: &Header, left: &mut u64) -> io::Result<Vec<u8>> {
        let mut name = self.extension(header, left)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if io::copy(&mut self.inner.by_ref().take(bytes), &mut io::sink())? != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl<R: Read> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.body_left -= read as u64;
        Ok(read)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES
}

/// False at a clean end of the stream.
fn read_block(from: &mut impl Read, block: &mut [u8; 512]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn entry(header: &Header, mut pax: Pax) -> io::Result<Entry> {
    let mut kind = header.entry_type();
    if kind.is_gnu_sparse() || pax.keys().any(|key| key.starts_with("GNU.sparse.")) {
        return Err(bad("sparse files are not supported: archive it without --sparse"));
    }
    let path = pax.remove("path").unwrap_or_else(|| header.path_bytes().into_owned());
    // The oldest archives mark a directory only by the slash.
    if header.as_bytes()[156] == 0 && path.ends_with(b"/") {
        kind = EntryType::Directory;
    }
    let link = match pax.remove("linkpath") {
        Some(link) => link,
        None => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
    };
    let has_body = kind.is_file() || kind.is_contiguous();
    let size = match pax.get("size") {
        Some(size) => number(size)?,
        None => field(header, 124..136, Header::entry_size)?,
    };
    let id = |key, plain: io::Result<u64>| {
        let id = pax.get(key).map_or(plain, |value| number(value))?;
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad("an owner is out of range"))
    };
    let (uid, gid) =
        (id("uid", field(header, 108..116, Header::uid))?, id("gid", field(header, 116..124, Header::gid))?);
    let (mtime_seconds, mtime_nanos) = match pax.get("mtime") {
        Some(mtime) => time(mtime)?,
        None => (i64::try_from(field(header, 136..148, Header::mtime)?).unwrap_or(0), 0),
    };
    let xattrs = pax
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?.to_owned(), value.clone())))
        .collect();
    Ok(Entry {
        path,
        kind,
        link,
        mode: field(header, 100..108, |header| header.mode().map(u64::from))? as u32 & 0o7777,
        uid,
        gid,
        mtime_seconds,
        mtime_nanos,
        xattrs,
        // As in Go's reader: only files have a body, whatever the size field of a link says.
        size: if has_body { size } else { 0 },
    })
}

/// A number of the header; an empty field is 0, as in Go's reader.
fn field(header: &Header, at: Range<usize>, read: fn(&Header) -> io::Result<u64>) -> io::Result<u64> {
    if header.as_bytes()[at].iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    read(header)
}

/// Records of `length key=value\n`; a value may hold any byte, so the length rules.
fn parse_pax(mut bytes: &[u8]) -> io::Result<Pax> {
    let mut pax = Pax::new();
    let broken = || bad("an extended header is broken");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length = usize::try_from(number(&bytes[..space])?).map_err(|_| broken())?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(broken());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| broken())?;
        match &record[equals + 1..] {
            // An empty value takes an attribute back that a global header gave.
            b"" => pax.remove(key),
            value => pax.insert(key.to_owned(), value.to_vec()),
        };
        bytes = &bytes[length..];
    }
    Ok(pax)
}

fn number(text: &[u8]) -> io::Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|t| t.parse().ok()).ok_or_else(|| bad("a number in an extended header is broken"))
}

/// Seconds with an optional fraction: `1350244992.023960108`, also before the epoch.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let broken = || bad("a time in an extended header is broken");
    let text = std::str::from_utf8(text).map_err(|_| broken())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| broken())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(broken());
    }
    let nanos =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, d| n * 10 + u32::from(d - b'0'));
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Ok((seconds.saturating_sub(1), 1_000_000_000 - nanos)),
        _ => Ok((seconds, nanos)),
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    fn file(path: &str, bytes: &[u8]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).unwrap();
        tar.into_inner().unwrap()
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions(records.iter().copied()).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("plain").unwrap();
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn long_names_and_bodies_are_read_and_unread_bodies_skipped() {
        let long = "d/".repeat(150) + "f";
        let mut bytes = file(&long, b"unread");
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(file("b", &[7; 1000]));
        let mut tarball = Tarball::new(&bytes[..]);
        assert_eq!(tarball.next_entry().unwrap().unwrap().path, long.as_bytes());
        assert_eq!(tarball.next_entry().unwrap().unwrap().path, b"b");
        let mut body = Vec::new();
        tarball.read_to_end(&mut body).unwrap();
        assert_eq!(body, [7; 1000]);
        assert!(tarball.next_entry().unwrap().is_none());
    }

    #[test]
    fn extended_headers_set_path_owner_time_and_attributes() {
        let bytes = pax(&[
            ("path", b"other"),
            ("uid", b"3000000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"x=\ny"),
        ]);
        let entry = Tarball::new(&bytes[..]).next_entry().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.uid), (&b"other"[..], 3_000_000));
        assert_eq!((entry.mtime_seconds, entry.mtime_nanos), (-2, 750_000_000));
        assert_eq!(entry.xattrs, [("user.a".to_owned(), b"x=\ny".to_vec())]);
    }

    #[test]
    fn broken_streams_are_errors_and_never_panics() {
        let whole = file("a", &[1; 600]);
        for cut in [1, 511, 513, 1000, 1535] {
            let mut tarball = Tarball::new(&whole[..cut]);
            let outcome = tarball.next_entry().and_then(|_| tarball.next_entry());
            assert!(outcome.is_err(), "cut at {cut}");
        }
        let mut wrong = whole.clone();
        wrong[0] ^= 1;
        assert!(Tarball::new(&wrong[..]).next_entry().is_err());
        for value in ["4294967295", "-1", "99999999999"] {
            assert!(Tarball::new(&pax(&[("uid", value.as_bytes())])[..]).next_entry().is_err(), "{value}");
        }
        assert!(Tarball::new(&pax(&[("GNU.sparse.major", b"1")])[..]).next_entry().is_err());
    }

    #[test]
    fn a_name_of_gigabytes_is_refused_before_it_is_read() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(4 << 30);
        header.set_cksum();
        let stream = header.as_bytes().chain(io::repeat(b'a'));
        assert!(Tarball::new(stream).next_entry().unwrap_err().to_string().contains("1 MiB"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_in_entries_or_an_error(bytes in proptest::collection::vec(0u8.., 0..2048)) {
            let _ = parse_pax(&bytes);
            let mut tarball = Tarball::new(&bytes[..]);
            while let Ok(Some(_)) = tarball.next_entry() {}
        }
    }
}
