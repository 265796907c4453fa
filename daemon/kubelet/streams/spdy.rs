//! SPDY/3.1 as kubectl before 1.31 and other clients of its time speak it: streams over one connection.
//!
//! Only what they use: streams that the client opens, data both ways, half-closes, pings. There is no flow control, since
//! their side (spdystream) has none: a stream that is not read holds up the others.
//! Invariant: hostile frames end the connection: lengths and the size of header blocks are bounded.

mod frame;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tracing::debug;

use super::{Incoming, STATUS, STDERR, STDOUT, Wanted, Wire};
use frame::{Frame, Headers, Reader};

/// How long a client may take to open the streams that it asked for.
const OPENING: Duration = Duration::from_secs(30);
/// How long a client may take to see the end of a connection.
const FAREWELL: Duration = Duration::from_secs(10);
/// Streams of one connection at once: two per forwarded connection.
const MAX_STREAMS: usize = 1024;

/// A stream that the client has opened.
pub(super) struct Stream {
    id: u32,
    pub(super) headers: Headers,
    data: mpsc::Receiver<Bytes>,
    frames: mpsc::Sender<Frame>,
}

/// The writing half of a stream.
#[derive(Clone)]
pub(super) struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Stream {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn writer(&self) -> Writer {
        Writer { id: self.id, frames: self.frames.clone() }
    }

    /// What the client sends, until it closes its half.
    pub(super) fn into_reader(self) -> impl AsyncRead + Unpin + Send {
        StreamReader::new(ReceiverStream::new(self.data).map(Ok::<_, io::Error>))
    }
}

impl Writer {
    /// Sends bytes; false when the connection is gone.
    pub(super) async fn send(&self, bytes: Bytes) -> bool {
        self.frames.send(Frame::Data { id: self.id, bytes, end: false }).await.is_ok()
    }

    /// Closes our half.
    pub(super) async fn end(&self) {
        // A connection that is gone needs no closing.
        let _ = self.frames.send(Frame::Data { id: self.id, bytes: Bytes::new(), end: true }).await;
    }
}

/// The streams of a connection as the client opens them.
pub(super) struct Streams {
    opened: mpsc::Receiver<Stream>,
    /// The connection goes on as long as somebody holds this, a stream, or a writer.
    _open: mpsc::Sender<Frame>,
}

impl Streams {
    /// The next stream; none when the client is gone. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }
}

/// Serves a connection: its streams, and a task that ends when everything is said and seen.
pub(super) fn serve<S>(connection: S) -> (Streams, JoinHandle<()>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (frames, to_send) = mpsc::channel(64);
    let (to, opened) = mpsc::channel(16);
    let streams = Streams { opened, _open: frames.clone() };
    // Held weakly: that the client may still open streams is no reason to go on when ours are done.
    let weak = frames.downgrade();
    drop(frames);
    let reader = tokio::spawn(async move {
        if let Err(error) = hear(BufReader::new(read), weak, &to).await {
            debug!(error = %error, "SPDY connection ended");
        }
    });
    let carrier = tokio::spawn(async move {
        let mut reader = reader;
        if say(write, to_send).await.is_ok() && tokio::time::timeout(FAREWELL, &mut reader).await.is_ok() {
            return;
        }
        reader.abort();
    });
    (streams, carrier)
}

/// Reads frames until the client ends the connection.
async fn hear(
    read: impl AsyncRead + Unpin,
    frames: mpsc::WeakSender<Frame>,
    opened: &mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut reader = Reader::new(read);
    let mut open: BTreeMap<u32, mpsc::Sender<Bytes>> = BTreeMap::new();
    while let Some(frame) = reader.next().await? {
        match frame {
            Frame::Open { id, headers, end } => {
                let Some(frames) = frames.upgrade() else { continue };
                if open.len() >= MAX_STREAMS || open.contains_key(&id) {
                    return Err(io::Error::other("too many streams, or one opened twice"));
                }
                let (to, data) = mpsc::channel(16);
                let _ = frames.send(Frame::Reply { id }).await;
                if opened.send(Stream { id, headers, data, frames }).await.is_ok() && !end {
                    open.insert(id, to);
                }
            }
            Frame::Data { id, bytes, end } => {
                if let Some(to) = open.get(&id).filter(|_| !bytes.is_empty()) {
                    // A stream that nobody reads any more loses what comes.
                    let _ = to.send(bytes).await;
                }
                if end {
                    open.remove(&id);
                }
            }
            Frame::Reset { id } => drop(open.remove(&id)),
            Frame::Ping { id } => {
                let Some(frames) = frames.upgrade() else { continue };
                let _ = frames.send(Frame::Ping { id }).await;
            }
            Frame::GoAway | Frame::Reply { .. } | Frame::Other => {}
        }
    }
    Ok(())
}

async fn say<W: AsyncWrite>(mut write: WriteHalf<W>, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut writer = frame::Writer::default();
    while let Some(frame) = frames.recv().await {
        write.write_all(&writer.bytes(&frame)).await?;
        if frames.is_empty() {
            write.flush().await?;
        }
    }
    write.write_all(&writer.bytes(&Frame::GoAway)).await?;
    write.flush().await?;
    write.shutdown().await
}

/// The streams of a program over this connection; none when the client does not open what it asked for.
pub(super) async fn wire<S>(connection: S, wanted: Wanted) -> Option<Wire>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut streams, carrier) = serve(connection);
    let opened = tokio::time::timeout(OPENING, open(&mut streams, wanted)).await.ok()??;
    let (outgoing, mut said) = mpsc::channel::<(u8, Bytes)>(16);
    let (heard, incoming) = mpsc::channel(16);
    let Opened { writers, stdin, sizes } = opened;
    if let Some(stdin) = stdin {
        tokio::spawn(listen(stdin, heard.clone()));
    }
    if let Some(sizes) = sizes {
        tokio::spawn(resizes(sizes, heard));
    }
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                // Cancel-safe: a message that was not taken stays.
                next = said.recv() => next,
                stream = streams.next() => match stream {
                    // One that was not asked for.
                    Some(_) => continue,
                    // The client is gone.
                    None => return,
                },
            };
            let Some((channel, bytes)) = next else { break };
            let Some(writer) = writers.get(&channel) else { continue };
            if !writer.send(bytes).await {
                return;
            }
        }
        for writer in writers.values() {
            writer.end().await;
        }
    });
    Some(Wire { outgoing, incoming, carrier })
}

#[derive(Default)]
struct Opened {
    writers: BTreeMap<u8, Writer>,
    stdin: Option<Stream>,
    sizes: Option<Stream>,
}

/// Waits for the streams of a program, in whatever order they come.
async fn open(streams: &mut Streams, wanted: Wanted) -> Option<Opened> {
    let outputs = [wanted.stdout, wanted.stderr && !wanted.tty, true].into_iter().filter(|on| *on).count();
    let mut opened = Opened::default();
    while opened.writers.len() < outputs
        || wanted.stdin != opened.stdin.is_some()
        || wanted.tty != opened.sizes.is_some()
    {
        let stream = streams.next().await?;
        let channel = match stream.header("streamtype") {
            "stdin" => {
                opened.stdin = Some(stream);
                continue;
            }
            "resize" => {
                opened.sizes = Some(stream);
                continue;
            }
            "stdout" => STDOUT,
            "stderr" => STDERR,
            "error" => STATUS,
            _ => continue,
        };
        opened.writers.insert(channel, stream.writer());
    }
    Some(opened)
}

async fn listen(stdin: Stream, heard: mpsc::Sender<Incoming>) {
    let mut stdin = stdin;
    while let Some(bytes) = stdin.data.recv().await {
        if heard.send(Incoming::Stdin(bytes)).await.is_err() {
            return;
        }
    }
    // The program may have ended meanwhile.
    let _ = heard.send(Incoming::StdinEnd).await;
}

/// Sizes come as JSON documents one after the other, in pieces of any length.
async fn resizes(sizes: Stream, heard: mpsc::Sender<Incoming>) {
    let mut sizes = sizes;
    let mut text = Vec::new();
    while let Some(bytes) = sizes.data.recv().await {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.iter().position(|byte| *byte == b'}') {
            let document: Vec<u8> = text.drain(..=end).collect();
            let Some(size) = super::size(&document) else { continue };
            if heard.send(Incoming::Resize(size)).await.is_err() {
                return;
            }
        }
        if text.len() > 4096 {
            return;
        }
    }
}

/// The client's side, for tests.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Script(frame::Writer);

#[cfg(test)]
impl Script {
    /// Opens a stream.
    pub(super) fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.0.bytes(&Frame::Open { id, headers, end: false })
    }

    /// Sends data.
    pub(super) fn data(&mut self, id: u32, bytes: &'static [u8], end: bool) -> Vec<u8> {
        self.0.bytes(&Frame::Data { id, bytes: Bytes::from_static(bytes), end })
    }

    /// What is said on each stream, until so many have ended.
    pub(super) async fn hear(from: impl AsyncRead + Unpin, ends: usize) -> BTreeMap<u32, Vec<u8>> {
        let mut reader = Reader::new(from);
        let (mut said, mut ended) = (BTreeMap::<u32, Vec<u8>>::new(), 0);
        while ended < ends {
            let frame = reader.next().await.expect("a frame").expect("more frames");
            if let Frame::Data { id, bytes, end } = frame {
                said.entry(id).or_default().extend_from_slice(&bytes);
                ended += usize::from(end);
            }
        }
        said
    }
}
