//! Frames of SPDY/3.1: bytes to values and back. Draft 3.1 of the protocol, section 2.

use std::collections::BTreeMap;
use std::io;

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longer frames end the connection; clients send at most 32 KiB at once.
const MAX_FRAME: usize = 1 << 20;
/// Header blocks that unfold to more are hostile.
const MAX_HEADERS: usize = 64 * 1024;
const VERSION: u16 = 0x8003;
const END: u8 = 1;

/// Names are in lower case.
pub(super) type Headers = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// SYN_STREAM.
    Open {
        id: u32,
        headers: Headers,
        end: bool,
    },
    /// SYN_REPLY, without headers.
    Reply {
        id: u32,
    },
    /// RST_STREAM.
    Reset {
        id: u32,
    },
    /// PING; answered by the same.
    Ping {
        id: u32,
    },
    /// GOAWAY.
    GoAway,
    Data {
        id: u32,
        bytes: Bytes,
        end: bool,
    },
    /// SETTINGS, HEADERS, WINDOW_UPDATE: nothing follows from them here.
    Other,
}

pub(super) struct Reader<R> {
    from: R,
    unfold: Decompress,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Reader<R> {
        Reader { from, unfold: Decompress::new(true) }
    }

    /// The next frame; none at the end of the connection. Not cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => drop(other?),
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME {
            return Err(broken("a frame is too long"));
        }
        let mut body = BytesMut::zeroed(length);
        self.from.read_exact(&mut body).await?;
        let (body, end) = (body.freeze(), head[4] & END != 0);
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { id: word, bytes: body, end }));
        }
        if head[..2] != VERSION.to_be_bytes() {
            return Err(broken("a frame is of another version"));
        }
        self.control(u16::from_be_bytes([head[2], head[3]]), &body, end).map(Some)
    }

    fn control(&mut self, kind: u16, body: &[u8], end: bool) -> io::Result<Frame> {
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).ok_or_else(|| broken("a frame is too short"))?;
            Ok::<u32, io::Error>(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        Ok(match kind {
            1 => {
                let block = body.get(10..).ok_or_else(|| broken("a stream is opened without headers"))?;
                Frame::Open { id: number(0)? & 0x7fff_ffff, headers: headers(&self.unfold(block)?)?, end }
            }
            3 => Frame::Reset { id: number(0)? & 0x7fff_ffff },
            6 => Frame::Ping { id: number(0)? },
            7 => Frame::GoAway,
            // What HEADERS carry is not needed, but the window of the compression moves on with it.
            8 => {
                self.unfold(body.get(4..).unwrap_or_default())?;
                Frame::Other
            }
            _ => Frame::Other,
        })
    }

    fn unfold(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4096);
        let start = self.unfold.total_in();
        loop {
            let consumed = usize::try_from(self.unfold.total_in() - start).unwrap_or(usize::MAX);
            let rest = block.get(consumed..).unwrap_or_default();
            let before = (rest.len(), out.len());
            match self.unfold.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Ok(out),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.unfold.set_dictionary(&dictionary()).map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
            if out.len() > MAX_HEADERS {
                return Err(broken("a header block is too large"));
            }
            let consumed = usize::try_from(self.unfold.total_in() - start).unwrap_or(usize::MAX);
            if out.len() < out.capacity() && (consumed >= block.len() || before == (rest.len(), out.len())) {
                return Ok(out);
            }
            out.reserve(4096);
        }
    }
}

/// Number of pairs, then each name and value with its length before it.
fn headers(block: &[u8]) -> io::Result<Headers> {
    let mut rest = block;
    let mut number = || {
        let (head, tail) = rest.split_at_checked(4)?;
        rest = tail;
        usize::try_from(u32::from_be_bytes([head[0], head[1], head[2], head[3]])).ok()
    };
    let count = number().ok_or_else(|| broken("a header block is too short"))?;
    let mut headers = Headers::new();
    for _ in 0..count.min(256) {
        let mut text = || {
            let (head, tail) = rest.split_at_checked(4)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let (text, tail) = tail.split_at_checked(length)?;
            rest = tail;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let (Some(name), Some(value)) = (text(), text()) else {
            return Err(broken("a header block is too short"));
        };
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Ok(headers)
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

pub(super) struct Writer {
    fold: Compress,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { fold: Compress::new(Compression::fast(), true) }
    }
}

impl Writer {
    /// A frame as it is sent. Header blocks are compressed without the dictionary, which readers do not insist on.
    pub(super) fn bytes(&mut self, frame: &Frame) -> Vec<u8> {
        match frame {
            Frame::Data { id, bytes, end } => {
                let mut out = Vec::with_capacity(bytes.len() + 8);
                out.extend_from_slice(&id.to_be_bytes());
                length(&mut out, u8::from(*end), bytes.len());
                out.extend_from_slice(bytes);
                out
            }
            Frame::Open { id, headers, end } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend_from_slice(&self.block(headers));
                control(1, u8::from(*end), &body)
            }
            Frame::Reply { id } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend_from_slice(&self.block(&Headers::new()));
                control(2, 0, &body)
            }
            Frame::Reset { id } => control(3, 0, &[id.to_be_bytes(), 5u32.to_be_bytes()].concat()),
            Frame::Ping { id } => control(6, 0, &id.to_be_bytes()),
            Frame::GoAway => control(7, 0, &[0; 8]),
            Frame::Other => control(4, 0, &[0; 4]),
        }
    }

    fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        // There is room for all of it, so one call does it.
        let folded = self.fold.compress_vec(&plain, &mut out, FlushCompress::Sync);
        debug_assert!(folded.is_ok());
        out
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 8);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    length(&mut out, flags, body.len());
    out.extend_from_slice(body);
    out
}

fn length(out: &mut Vec<u8>, flags: u8, length: usize) {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&[flags, high, middle, low]);
}

/// The dictionary of header blocks: words with their length before them, then text.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    let words = WORDS.split('|');
    for word in words {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

const WORDS: &str = "\
    options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|ag\
    e|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-len\
    gth|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|i\
    f-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|pr\
    oxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrad\
    e|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-c\
    ookie|keep-alive|origin";
const TEXT: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authori\
    tative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug S\
    ept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,imag\
    e/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
    sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let mut reader = Reader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        let (mut low, mut high) = (1u32, 0u32);
        for byte in dictionary() {
            low = (low + u32::from(byte)) % 65521;
            high = (high + low) % 65521;
        }
        assert_eq!((dictionary().len(), (high << 16) | low), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        let headers: Headers =
            [("streamtype".to_owned(), "data".to_owned()), ("port".to_owned(), "80".to_owned())].into();
        let frames = [
            Frame::Open { id: 1, headers: headers.clone(), end: false },
            Frame::Open { id: 3, headers, end: true },
            Frame::Data { id: 1, bytes: Bytes::from_static(b"hello"), end: true },
            Frame::Ping { id: 7 },
            Frame::Reset { id: 3 },
            Frame::GoAway,
        ];
        let mut writer = Writer::default();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| writer.bytes(frame)).collect();
        assert_eq!(read(&bytes).await.expect("frames"), frames);
    }

    #[tokio::test]
    async fn headers_that_use_the_dictionary_are_read() {
        let mut fold = Compress::new(Compression::best(), true);
        fold.set_dictionary(&dictionary()).expect("a dictionary");
        let mut plain = 1u32.to_be_bytes().to_vec();
        for text in ["streamType", "error"] {
            plain.extend_from_slice(&u32::try_from(text.len()).expect("short").to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(256);
        fold.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("folded");
        let body = [&5u32.to_be_bytes()[..], &[0; 6], &block].concat();
        let headers: Headers = [("streamtype".to_owned(), "error".to_owned())].into();
        let frames = read(&control(1, 0, &body)).await.expect("a frame");
        assert_eq!(frames, [Frame::Open { id: 5, headers, end: false }]);
    }

    #[tokio::test]
    async fn hostile_frames_are_refused() {
        let too_long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
        let other_version = [0x80, 2, 0, 1, 0, 0, 0, 0];
        let no_headers = [0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1];
        let garbage = [&[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0xff; 2]].concat();
        for bytes in [&too_long[..], &other_version, &no_headers, &garbage] {
            assert!(read(bytes).await.is_err(), "{bytes:?}");
        }
    }
}
