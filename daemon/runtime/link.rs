//! The conversation with one shim.
//!
//! Invariant: answers find their question by number; when the connection ends every question still open is told so.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use shim::{Answer, Message, Order, Request, State};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::Exit;
use crate::streams::Stream;
use crate::wire;

/// Orders under way before callers wait.
const DEPTH: usize = 64;

type Question = (Order, oneshot::Sender<Answer>);

/// The asking end of a conversation.
#[derive(Clone)]
pub(crate) struct Link {
    questions: mpsc::Sender<Question>,
}

/// The working end: a future to run until the shim is gone.
pub(crate) struct Conversation {
    lines: Lines<BufReader<OwnedReadHalf>>,
    out: OwnedWriteHalf,
    questions: mpsc::Receiver<Question>,
    open: BTreeMap<u64, oneshot::Sender<Answer>>,
    next: u64,
}

/// A program started by an exec.
pub(crate) struct Started {
    /// The terminal, or stdin (if asked for), stdout and stderr.
    pub(crate) fds: Vec<OwnedFd>,
    /// Its process, as the shim calls it.
    pub(crate) pid: u32,
    /// Where its end will be told.
    pub(crate) stream: UnixStream,
}

/// Connects and says hello; the shim's state comes back with both ends.
pub(crate) async fn connect(dir: &Path) -> io::Result<(State, Link, Conversation)> {
    let (read, out) = dial(dir).await?.into_split();
    let (sender, questions) = mpsc::channel(DEPTH);
    let lines = BufReader::new(read).lines();
    let mut talk = Conversation { lines, out, questions, open: BTreeMap::new(), next: 1 };
    talk.send(Request { id: 0, order: Order::Hello { version: shim::VERSION } }).await?;
    while let Some(line) = talk.lines.next_line().await? {
        if let Message::Reply { id: 0, answer: Answer::Hello(state) } = serde_json::from_str(&line)? {
            return Ok((state, Link { questions: sender }, talk));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

impl Link {
    /// Asks; `None` when the shim is gone.
    pub(crate) async fn ask(&self, order: Order) -> Option<Answer> {
        let (sender, answer) = oneshot::channel();
        self.questions.send((order, sender)).await.ok()?;
        answer.await.ok()
    }
}

impl Conversation {
    /// Carries questions out and answers in, and hands on what the shim says by itself, until either end closes.
    pub(crate) async fn run(mut self, mut heard: impl FnMut(Message)) {
        loop {
            // Both branches only wait for the next whole item, so dropping the other one loses nothing.
            tokio::select! {
                biased;
                line = self.lines.next_line() => match line {
                    Ok(Some(line)) => match serde_json::from_str(&line) {
                        Ok(Message::Reply { id, answer }) => {
                            if let Some(asker) = self.open.remove(&id) {
                                let _ = asker.send(answer);
                            }
                        }
                        Ok(message) => heard(message),
                        // A newer shim may tell what this daemon does not know.
                        Err(error) => tracing::debug!(%error, "a shim said something unknown"),
                    },
                    _ => return,
                },
                question = self.questions.recv() => match question {
                    Some((order, asker)) => {
                        let id = self.next;
                        self.next += 1;
                        self.open.insert(id, asker);
                        if self.send(Request { id, order }).await.is_err() {
                            return;
                        }
                    }
                    None => return,
                },
            }
        }
    }

    async fn send(&mut self, request: Request) -> io::Result<()> {
        self.out.write_all(&line(&request)?).await
    }
}

/// Starts a program in a container, or attaches to the one it runs, over a connection of its own: descriptors and the end come back on it.
pub(crate) async fn exec(dir: &Path, order: Order) -> io::Result<Result<Started, Answer>> {
    let mut stream = dial(dir).await?;
    stream.write_all(&line(&Request { id: 0, order })?).await?;
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    // One byte over would belong to what is read later; the shim sends nothing more until the program ends.
    while !text.contains(&b'\n') {
        stream.ready(Interest::READABLE).await?;
        match stream.try_io(Interest::READABLE, || receive(&stream, &mut text, &mut fds)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    match serde_json::from_slice(&text[..end])? {
        Message::Reply { answer: Answer::Exec { pid }, .. } => {
            let stream = rest_of(stream, &text[end + 1..])?;
            Ok(Ok(Started { fds, pid, stream }))
        }
        Message::Reply { answer, .. } => Ok(Err(answer)),
        other => Err(io::Error::other(format!("unexpected {other:?}"))),
    }
}

/// A very short program's end may have come in the same read; it is put back by way of a socket pair.
fn rest_of(stream: UnixStream, rest: &[u8]) -> io::Result<UnixStream> {
    if rest.is_empty() {
        return Ok(stream);
    }
    let (ours, theirs) = UnixStream::pair()?;
    theirs.try_write(rest)?;
    Ok(ours)
}

/// Follows an exec to its end and carries orders to it.
pub(crate) async fn follow(
    started: (UnixStream, u32),
    terminal: Option<Stream>,
    mut orders: mpsc::Receiver<crate::ExecOrder>,
    exit: oneshot::Sender<Exit>,
) {
    let (stream, pid) = started;
    let (read, mut out) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut listening = true;
    loop {
        // Both branches only wait for the next whole item, so dropping the other one loses nothing.
        tokio::select! {
            biased;
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                if let Ok(Message::ExecExit { exit: ended, .. }) = serde_json::from_str(&line) {
                    let _ = exit.send(wire::exit(ended));
                    return;
                }
            }
            order = orders.recv(), if listening => match order {
                Some(crate::ExecOrder::Resize(size)) => {
                    if let Some(Err(error)) = terminal.as_ref().map(|terminal| terminal.resize(size)) {
                        tracing::debug!(%error, "resize a terminal");
                    }
                }
                Some(crate::ExecOrder::Signal(signal)) => {
                    if let Ok(text) = line(&Request { id: 1, order: Order::SignalExec { pid, signal } }) {
                        let _ = out.write_all(&text).await;
                    }
                }
                None => listening = false,
            },
        }
    }
}

fn receive(stream: &UnixStream, text: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut piece = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut piece)];
    let received = rustix::net::recvmsg(stream, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    text.extend_from_slice(&piece[..received.bytes]);
    Ok(received.bytes)
}

/// A socket's path may be 107 bytes long; the directory's descriptor stands for however long that one is.
async fn dial(dir: &Path) -> io::Result<UnixStream> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    UnixStream::connect(PathBuf::from(format!("/proc/self/fd/{number}")).join(shim::SOCKET)).await
}

fn line(request: &Request) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    Ok(text)
}
