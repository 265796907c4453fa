//! Port-forward: connections of a client to ports of a pod.
//!
//! Over SPDY each connection is a pair of streams with one request id, for data and for what went wrong. In a WebSocket
//! each port asked for is a pair of channels, which first tell the port.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use super::spdy::{self, Stream, Streams, Writer};
use super::{PIECE, Protocol, Upgrade, websocket};

/// Connects to a port inside the pod.
pub(crate) type Dial = Arc<dyn Fn(u16) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// Carries connections until the client ends.
pub(crate) async fn forward(upgrade: Upgrade, ports: Vec<u16>, dial: Dial) {
    let upgraded = match upgrade.connection.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return debug!(error = %error, "the connection was not upgraded"),
    };
    match upgrade.protocol {
        Protocol::Channels => channels(upgraded, &ports, &dial).await,
        Protocol::Spdy => streams(upgraded, dial).await,
        Protocol::Tunnel => streams(websocket::tunnel(upgraded).await, dial).await,
    }
}

pub(super) async fn streams<S>(connection: S, dial: Dial)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (streams, carrier) = spdy::serve(connection);
    pairs(streams, dial).await;
    carrier.abort();
}

/// The two streams of a connection, as far as they have come.
#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Writer>,
}

async fn pairs(mut streams: Streams, dial: Dial) {
    let mut waiting: BTreeMap<String, Pair> = BTreeMap::new();
    let mut connections = JoinSet::new();
    while let Some(stream) = streams.next().await {
        let id = stream.header("requestid").to_owned();
        let mut pair = waiting.remove(&id).unwrap_or_default();
        match stream.header("streamtype") {
            "error" => pair.error = Some(stream.writer()),
            "data" => pair.data = Some(stream),
            other => debug!(kind = other, "port-forward: a stream of no known type"),
        }
        match pair {
            Pair { data: Some(data), error: Some(error) } => {
                connections.spawn(connection(data, error, Arc::clone(&dial)));
            }
            pair => drop(waiting.insert(id, pair)),
        }
        // Ended ones are let go of.
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(data: Stream, error: Writer, dial: Dial) {
    let writer = data.writer();
    let connected = match data.header("port").parse::<u16>() {
        Ok(port) if port > 0 => {
            dial(port).await.map_err(|why| format!("error forwarding port {port}: {why}"))
        }
        _ => Err(format!("{:?} is no port", data.header("port"))),
    };
    match connected {
        Ok(socket) => {
            let (mut read, mut write) = socket.into_split();
            let out = async {
                let mut from = data.into_reader();
                // Either side may end at any time; then this half is done.
                let _ = tokio::io::copy(&mut from, &mut write).await;
                let _ = write.shutdown().await;
            };
            let back = async {
                let mut buffer = vec![0; PIECE];
                while let Ok(count @ 1..) = read.read(&mut buffer).await {
                    if !writer.send(Bytes::copy_from_slice(&buffer[..count])).await {
                        return;
                    }
                }
                writer.end().await;
            };
            tokio::join!(out, back);
        }
        Err(why) => {
            error.send(why.into()).await;
            writer.end().await;
        }
    }
    error.end().await;
}

/// Channels 2i and 2i+1 are data and error of the i-th port.
async fn channels<S>(connection: S, ports: &[u16], dial: &Dial)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (outgoing, mut to_send) = mpsc::channel::<Message>(16);
    let writer = tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // The client may be gone already.
        let _ = sink.close().await;
    });
    let mut inputs: BTreeMap<u8, mpsc::Sender<Bytes>> = BTreeMap::new();
    let mut connections = JoinSet::new();
    for (at, port) in (0u8..).step_by(2).zip(ports) {
        let (to, from) = mpsc::channel(16);
        inputs.insert(at, to);
        connections.spawn(channel(at, *port, from, outgoing.clone(), Arc::clone(dial)));
    }
    drop(outgoing);
    while let Some(Ok(message)) = source.next().await {
        let Some(data) = websocket::carried(message) else { continue };
        let Some(to) = data.first().and_then(|channel| inputs.get(channel)) else { continue };
        // A connection that has ended takes nothing more.
        let _ = to.send(data.slice(1..)).await;
    }
    drop(inputs);
    connections.abort_all();
    writer.abort();
}

async fn channel(at: u8, port: u16, mut from: mpsc::Receiver<Bytes>, to: mpsc::Sender<Message>, dial: Dial) {
    for channel in [at, at + 1] {
        if to.send(websocket::frame(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let socket = match dial(port).await {
        Ok(socket) => socket,
        Err(why) => {
            let told = format!("error forwarding port {port}: {why}");
            // A client that is gone is not told.
            let _ = to.send(websocket::frame(at + 1, told.as_bytes())).await;
            return;
        }
    };
    let (mut read, mut write) = socket.into_split();
    let out = async {
        while let Some(bytes) = from.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if to.send(websocket::frame(at, &buffer[..count])).await.is_err() {
                return;
            }
        }
    };
    // The end of the pod's side is the end: a channel cannot be closed in halves.
    tokio::select! {
        biased;
        // Both are run until one is over, and then the connection is.
        () = back => {}
        () = async { out.await; std::future::pending::<()>().await } => {}
    }
}
