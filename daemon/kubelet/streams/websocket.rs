//! Channels in a WebSocket: each binary message is a channel's number and its bytes; in v5, 255 closes a channel.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::{Incoming, PIECE, SIZE, STDIN, Wire};

/// How long a client may take to see the end of a connection.
const FAREWELL: Duration = Duration::from_secs(10);
/// How long the first words wait for a client that answers no ping.
const GREETING: Duration = Duration::from_millis(250);
const CLOSE_CHANNEL: u8 = 255;

/// The channels of a program over this connection.
///
/// kubectl before 1.33 begins to read beside making its streams, and throws away what comes for a stream that it has not
/// made yet. So nothing is said before it has answered a ping, or said something itself.
pub(super) async fn wire<S>(connection: S) -> Wire
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (outgoing, mut said) = mpsc::channel::<(u8, Bytes)>(16);
    let (heard, incoming) = mpsc::channel(16);
    let (greeted, answered) = oneshot::channel::<()>();
    let reader = tokio::spawn(async move {
        let mut greeted = Some(greeted);
        while let Some(Ok(message)) = source.next().await {
            if let Some(greeted) = greeted.take() {
                // The writer may have waited long enough already.
                let _ = greeted.send(());
            }
            // The client's own close is answered by the library when it is read; then the stream ends.
            let Some(data) = carried(message) else { continue };
            let Some(message) = read(&data) else { continue };
            // Nobody listens once the program has ended; what still comes is read all the same.
            let _ = heard.send(message).await;
        }
    });
    let carrier = tokio::spawn(async move {
        let mut reader = reader;
        if sink.send(Message::Ping(Bytes::new())).await.is_err() {
            return reader.abort();
        }
        // Whether it answered, left or keeps silent: it is spoken to now.
        let _ = tokio::time::timeout(GREETING, answered).await;
        loop {
            let next = tokio::select! {
                biased;
                // Cancel-safe: a message that was not taken stays.
                next = said.recv() => next,
                // Cancel-safe: a task that has ended stays so. The client is gone.
                _ = &mut reader => return,
            };
            let Some((channel, bytes)) = next else { break };
            if sink.send(frame(channel, &bytes)).await.is_err() {
                return reader.abort();
            }
        }
        farewell(sink).await;
        // Closing with something unread would make the kernel reset the connection, and the client lose our last words.
        if tokio::time::timeout(FAREWELL, &mut reader).await.is_err() {
            reader.abort();
        }
    });
    Wire { outgoing, incoming, carrier }
}

/// Clients take any other code than a normal closure for an error. One that is gone already waits for nothing.
async fn farewell<S>(mut sink: SplitSink<WebSocketStream<S>, Message>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(close))).await;
    let _ = sink.flush().await;
}

fn read(data: &Bytes) -> Option<Incoming> {
    match data.split_first()? {
        (&STDIN, _) => Some(Incoming::Stdin(data.slice(1..))),
        (&SIZE, bytes) => super::size(bytes).map(Incoming::Resize),
        (&CLOSE_CHANNEL, [STDIN]) => Some(Incoming::StdinEnd),
        _ => None,
    }
}

/// A message on a channel.
pub(super) fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut data = BytesMut::with_capacity(bytes.len() + 1);
    data.extend_from_slice(&[channel]);
    data.extend_from_slice(bytes);
    Message::Binary(data.freeze())
}

/// What a message carries: some clients, that of Python among them, send what is text as text.
pub(super) fn carried(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(data) => Some(data),
        Message::Text(text) => Some(text.into()),
        _ => None,
    }
}

/// The bytes inside a WebSocket, without their frames.
pub(super) async fn tunnel<S>(connection: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (near, far) = tokio::io::duplex(2 * PIECE);
    let (mut out, mut into) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let Some(data) = carried(message) else { continue };
            if into.write_all(&data).await.is_err() {
                return;
            }
        }
        // The other side may have ended first.
        let _ = into.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = out.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
        farewell(sink).await;
    });
    near
}
