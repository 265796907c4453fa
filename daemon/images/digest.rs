//! Names of content by its SHA-256.
//!
//! Invariant: a `Digest` is `sha256:` and 64 lowercase hexadecimal digits, so it is safe as a file name.

use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read, Write};

/// `sha256:…`, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn parse(text: &str) -> Result<Digest, String> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Digest(text.to_owned()));
        }
        Err(format!("digest {text:?} is not sha256: and 64 hexadecimal digits"))
    }

    pub(crate) fn of(bytes: &[u8]) -> Digest {
        let mut sum = Sum::default();
        sum.update(bytes);
        sum.digest()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone: the name of its file.
    pub(crate) fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A running sum over bytes as they pass.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sum {
    hash: Sha256,
    pub(crate) bytes: u64,
}

impl Sum {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn digest(self) -> Digest {
        let mut text = String::from("sha256:");
        for byte in self.hash.finalize() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble is a hexadecimal digit"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble is a hexadecimal digit"));
        }
        Digest(text)
    }
}

/// Sums what is read through it and stops at a limit.
pub(crate) struct SummedReader<R> {
    inner: R,
    pub(crate) sum: Sum,
    limit_bytes: u64,
}

impl<R: Read> SummedReader<R> {
    pub(crate) fn new(inner: R, limit_bytes: u64) -> Self {
        SummedReader { inner, sum: Sum::default(), limit_bytes }
    }
}

impl<R: Read> Read for SummedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.update(&buffer[..read]);
        if self.sum.bytes > self.limit_bytes {
            return Err(io::Error::other(format!("more than the limit of {} bytes", self.limit_bytes)));
        }
        Ok(read)
    }
}

/// Sums what is written through it.
pub(crate) struct SummedWriter<W> {
    pub(crate) inner: W,
    pub(crate) sum: Sum,
}

impl<W: Write> Write for SummedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
