//! One daemon (or command) on the socket: lines in, lines and descriptors out.
//!
//! Invariant: a peer that does not read never stops the shim; past 1 MiB of unread lines it is hung up on.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use shim::{Message, Request};

const MOST_UNREAD: usize = 1 << 20;
/// A request longer than this is none.
const LONGEST_LINE: usize = 4 << 20;

/// The connection.
pub(crate) struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// It said hello and hears of every change.
    pub(crate) subscribed: bool,
}

/// What a line turned out to be.
pub(crate) enum Line {
    /// A request.
    Request(Box<Request>),
    /// Something with a number that is not understood, and why.
    Unknown(u64, String),
}

impl Connection {
    /// Wraps an accepted stream.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, incoming: Vec::new(), outgoing: Vec::new(), subscribed: false })
    }

    /// For polling.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Lines wait for the peer to read.
    pub(crate) fn is_behind(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what is there. An error, the end included, means the connection is over.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<Line>> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.incoming.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if self.incoming.len() > LONGEST_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let Some(end) = self.incoming.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let rest = self.incoming.split_off(end + 1);
        let lines = std::mem::replace(&mut self.incoming, rest);
        lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// Queues a message and sends what the peer takes.
    pub(crate) fn send(&mut self, message: &Message) -> io::Result<()> {
        serde_json::to_writer(&mut self.outgoing, message)?;
        self.outgoing.push(b'\n');
        self.flush()
    }

    /// Sends a message with descriptors; they go with its first byte, so nothing may be waiting before it.
    pub(crate) fn send_with(&mut self, message: &Message, fds: &[OwnedFd]) -> io::Result<()> {
        self.flush()?;
        if self.is_behind() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        beside.push(SendAncillaryMessage::ScmRights(&borrowed));
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(&line)], &mut beside, SendFlags::NOSIGNAL)?;
        self.outgoing.extend_from_slice(&line[sent..]);
        self.flush()
    }

    /// Sends what the peer takes now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.outgoing.len() > MOST_UNREAD { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// A daemon newer than this shim may ask what it does not know: that is answered, not hung up on.
fn parse(line: &[u8]) -> io::Result<Line> {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) => Ok(Line::Request(Box::new(request))),
        Err(error) => {
            let value: serde_json::Value = serde_json::from_slice(line)?;
            let id = value.get("id").and_then(serde_json::Value::as_u64);
            id.map(|id| Line::Unknown(id, error.to_string())).ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
    }
}
