//! Netlink as bytes: messages are written with their attributes, sent in one datagram, and answered at once.
//!
//! Invariant: a socket belongs to the network namespace its thread was in when it was opened, wherever it is used.
//! Invariant: what the kernel sends is read with bounds checked; a message cut short ends the reading.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub(crate) const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;

const HEADER: usize = 16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// Room for the largest answer the kernel packs into one datagram.
const RECEIVE: usize = 64 * 1024;

/// Messages to be sent together, in the order in which they were begun.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where the message that is being written starts.
    current: usize,
    count: u32,
}

/// Where an attribute's length is to be written once its contents are complete.
pub(crate) struct Open(usize);

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch::default()
    }

    /// Begins a message; its fixed part is `fixed`.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, fixed: &[u8]) {
        self.end();
        self.current = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.pad();
        self.count += 1;
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let open = self.open_plain(kind);
        self.bytes.extend_from_slice(value);
        self.close(open);
    }

    /// A string with the zero at its end that netlink wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let open = self.open_plain(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(open);
    }

    /// A number as the machine holds it, which is what rtnetlink wants.
    pub(crate) fn native(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number with its highest byte first, which is what nftables wants.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Begins an attribute that holds attributes.
    pub(crate) fn open(&mut self, kind: u16) -> Open {
        self.open_plain(kind | NESTED)
    }

    /// Ends an attribute begun with `open`.
    pub(crate) fn close(&mut self, open: Open) {
        let length = u16::try_from(self.bytes.len() - open.0)
            .expect("attributes are kept under 64 KiB by their writers");
        self.bytes[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Bytes of the message that must not be framed as an attribute (the header inside of a nested one).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn open_plain(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        open
    }

    fn end(&mut self) {
        if self.count > 0 {
            let length = u32::try_from(self.bytes.len() - self.current).expect("a message fits in memory");
            self.bytes[self.current..self.current + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// A message the kernel sent.
pub(crate) struct Answer {
    pub(crate) kind: u16,
    /// The message after its header.
    pub(crate) body: Vec<u8>,
}

/// The kernel's word on one message of a batch.
pub(crate) type Verdict = io::Result<()>;

/// A netlink socket of one network namespace.
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A socket for links, addresses and routes, in the namespace of this thread.
    pub(crate) fn route() -> io::Result<Socket> {
        Socket::new(SockProtocol::NetlinkRoute, 0)
    }

    /// A socket on which the kernel tells of IPv4 addresses that come and go, in the namespace of this thread.
    pub(crate) fn address_events() -> io::Result<Socket> {
        const IPV4_ADDRESSES: u32 = 0x10;
        Socket::new(SockProtocol::NetlinkRoute, IPV4_ADDRESSES)
    }

    /// A socket for packet rules, in the namespace of this thread.
    pub(crate) fn netfilter() -> io::Result<Socket> {
        Socket::new(SockProtocol::NetlinkNetFilter, 0)
    }

    fn new(protocol: SockProtocol, groups: u32) -> io::Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Socket { fd })
    }

    /// Sends the batch as one datagram and gives back what the kernel answered.
    ///
    /// The kernel works on a request before the send returns, so everything it has to say is there to be read;
    /// only a dump goes on while it is read.
    pub(crate) fn send(&self, mut batch: Batch) -> io::Result<(Vec<Verdict>, Vec<Answer>)> {
        batch.end();
        // A transaction of thousands of elements is larger than a socket may send by default.
        if batch.bytes.len() > 100_000 {
            setsockopt(&self.fd, sockopt::SndBufForce, &(batch.bytes.len() * 2))?;
        }
        sendto(self.fd.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut verdicts = Vec::new();
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; RECEIVE];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok((verdicts, answers)),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            split(&buffer[..length], &mut verdicts, &mut answers);
        }
    }

    /// Takes what was told off the socket, unread: that there was something is enough.
    pub(crate) fn discard(&self) {
        let mut buffer = vec![0u8; RECEIVE];
        // ENOBUFS says that more was told than fits: also no more than a change.
        while matches!(
            recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::ENOBUFS)
        ) {}
    }

    /// Sends a batch of which every message must succeed; the first error is the answer.
    pub(crate) fn all(&self, batch: Batch) -> io::Result<Vec<Answer>> {
        let (verdicts, answers) = self.send(batch)?;
        verdicts.into_iter().collect::<Verdict>()?;
        Ok(answers)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn split(mut bytes: &[u8], verdicts: &mut Vec<Verdict>, answers: &mut Vec<Answer>) {
    while let Some((header, _)) = bytes.split_at_checked(HEADER) {
        let length = u32_at(header, 0) as usize;
        let Some(body) = bytes.get(HEADER..length) else { return };
        let kind = u16_at(header, 4);
        if i32::from(kind) == libc::NLMSG_ERROR {
            let code = body.get(..4).map_or(-libc::EPROTO, |code| u32_at(code, 0).cast_signed());
            verdicts.push(if code == 0 {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(code.wrapping_neg()))
            });
        } else if i32::from(kind) != libc::NLMSG_DONE {
            answers.push(Answer { kind, body: body.to_vec() });
        }
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
}

/// The attributes in `bytes`, as (kind, contents).
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16_at(header, 0));
        let kind = u16_at(header, 2) & libc::NLA_TYPE_MASK as u16;
        let contents = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, contents))
    })
}

/// The contents of the first attribute of that kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, contents)| contents)
}

/// A string attribute's text, without the zero at its end.
pub(crate) fn text(contents: &[u8]) -> String {
    String::from_utf8_lossy(contents.strip_suffix(&[0]).unwrap_or(contents)).into_owned()
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The caller has made sure that the bytes are there.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// The caller has made sure that the bytes are there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut batch = Batch::new();
        batch.begin(1, 0, &[7; 4]);
        batch.text(3, "ab");
        let open = batch.open(4);
        batch.native(5, 9);
        batch.close(open);
        batch.begin(2, 0, &[]);
        batch.end();
        let (mut verdicts, mut answers) = (Vec::new(), Vec::new());
        split(&batch.bytes, &mut verdicts, &mut answers);
        // Kinds 1 and 2 are noop and error: only the first is a message.
        assert_eq!(answers.len(), 1);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(text(attribute(&answers[0].body[4..], 3).expect("text")), "ab");
        let nested = attribute(&answers[0].body[4..], 4).expect("nested");
        assert_eq!(attribute(nested, 5), Some(&9u32.to_ne_bytes()[..]));
    }

    proptest! {
        #[test]
        fn bytes_that_make_no_sense_end_the_reading(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            split(&bytes, &mut Vec::new(), &mut Vec::new());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
