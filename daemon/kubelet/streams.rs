//! Streams between a client and a program: exec, attach and port-forward, over WebSockets and over SPDY.
//!
//! Channel 0 is stdin, 1 stdout, 2 stderr, 3 how it ended (a Status), 4 the terminal's size.
//! Invariant: a program's last output is told before its end, and a connection is closed only after the client has seen
//! the end: what it sent meanwhile must not make the kernel throw our last words away.

mod forward;
mod spdy;
mod websocket;

use bytes::Bytes;
use client::{Body, full};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use runtime::{Exec, ExecOrder, Exit, Size};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

pub(crate) use forward::{Dial, forward};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const SIZE: u8 = 4;
/// What is read from a program at once.
const PIECE: usize = 32 * 1024;

/// What is asked for: one of these protocols, in the order they are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// exec and attach.
    Program,
    /// port-forward.
    Ports,
}

/// How the client and this node will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Channels in a WebSocket; since v5 a channel can be closed.
    Channels,
    /// Streams of SPDY/3.1.
    Spdy,
    /// Streams of SPDY/3.1 inside a WebSocket.
    Tunnel,
}

/// Which streams a client opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// A request that has become a connection.
pub(crate) struct Upgrade {
    pub(crate) protocol: Protocol,
    connection: hyper::upgrade::OnUpgrade,
}

/// The client's side of a program, whatever carries it.
struct Wire {
    /// Channel and bytes; dropped when everything is said.
    outgoing: mpsc::Sender<(u8, Bytes)>,
    incoming: mpsc::Receiver<Incoming>,
    /// Ends when everything is said and the client has seen it, or is gone.
    carrier: JoinHandle<()>,
}

enum Incoming {
    Stdin(Bytes),
    StdinEnd,
    Resize(Size),
}

/// The answer that switches protocols, and the connection to come; or the refusal.
pub(crate) fn upgrade(
    request: &mut Request<Body>,
    purpose: Purpose,
) -> Result<(Response<Body>, Upgrade), Box<Response<Body>>> {
    let asked = text(request.headers(), header::UPGRADE).to_ascii_lowercase();
    let agreed = match asked.as_str() {
        "websocket" => websocket_agreed(request.headers(), purpose),
        "spdy/3.1" => spdy_agreed(request.headers(), purpose),
        _ => Err(refuse(StatusCode::BAD_REQUEST, "you must specify an upgrade: websocket or SPDY/3.1")),
    };
    let (response, protocol) = agreed?;
    let Some(connection) = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>() else {
        let why = "this connection cannot be upgraded";
        return Err(refuse(StatusCode::BAD_REQUEST, why));
    };
    Ok((response, Upgrade { protocol, connection }))
}

fn websocket_agreed(
    headers: &HeaderMap,
    purpose: Purpose,
) -> Result<(Response<Body>, Protocol), Box<Response<Body>>> {
    const CHANNELS: [(&str, Protocol); 2] =
        [("v5.channel.k8s.io", Protocol::Channels), ("v4.channel.k8s.io", Protocol::Channels)];
    const PORTS: [(&str, Protocol); 3] = [
        ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
        ("v5.channel.k8s.io", Protocol::Channels),
        ("v4.channel.k8s.io", Protocol::Channels),
    ];
    let known: &[(&str, Protocol)] = if purpose == Purpose::Ports { &PORTS } else { &CHANNELS };
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "the WebSocket has no Sec-WebSocket-Key"));
    };
    let offered = text(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let agreed = known.iter().find(|(name, _)| offered.split(',').any(|one| one.trim() == *name));
    let Some((name, protocol)) = agreed else {
        let served: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let why = format!("none of the protocols {offered:?} is served; these are: {}", served.join(", "));
        return Err(refuse(StatusCode::BAD_REQUEST, &why));
    };
    let mut response = switching("websocket");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((response, *protocol))
}

fn spdy_agreed(
    headers: &HeaderMap,
    purpose: Purpose,
) -> Result<(Response<Body>, Protocol), Box<Response<Body>>> {
    const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
    let known: &'static str =
        if purpose == Purpose::Ports { "portforward.k8s.io" } else { "v4.channel.k8s.io" };
    let offered: Vec<&str> =
        headers.get_all(VERSION).iter().filter_map(|value| value.to_str().ok()).collect();
    // Who names no version of port-forward means the only one.
    let silent = offered.is_empty() && purpose == Purpose::Ports;
    if !silent && !offered.iter().any(|line| line.split(',').any(|one| one.trim() == known)) {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts [{known}]"
        );
        let mut refusal = refuse(StatusCode::FORBIDDEN, &why);
        let accepted = HeaderName::from_static("x-accepted-stream-protocol-versions");
        refusal.headers_mut().insert(accepted, HeaderValue::from_static(known));
        return Err(refusal);
    }
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(VERSION, HeaderValue::from_static(known));
    Ok((response, Protocol::Spdy))
}

fn switching(to: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(to));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn refuse(code: StatusCode, message: &str) -> Box<Response<Body>> {
    let reason = if code == StatusCode::FORBIDDEN { "Forbidden" } else { "BadRequest" };
    Box::new(crate::node::status(code, reason, message))
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What becomes of a program's end.
pub(crate) enum EndOf {
    /// An exec: its exit code is told.
    Exec,
    /// An attach: that it is over is all there is to tell. The end of the client's input may have a consequence.
    Attach(Option<BoxFuture<'static, ()>>),
}

/// Carries the streams of a program until it has ended and its output is told; or tells why it did not start.
pub(crate) async fn carry(
    upgrade: Upgrade,
    wanted: Wanted,
    started: Result<Exec, runtime::Error>,
    of: EndOf,
) {
    let upgraded = match upgrade.connection.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return debug!(error = %error, "the connection was not upgraded"),
    };
    let wire = match upgrade.protocol {
        Protocol::Channels => Some(websocket::wire(upgraded).await),
        _ => spdy::wire(upgraded, wanted).await,
    };
    // A terminal has one stream for both.
    let told_on = if wanted.tty || !wanted.stderr { STDOUT } else { STDERR };
    match wire {
        Some(wire) => connect(wire, started, of, told_on).await,
        None => debug!("the client did not open the streams it asked for"),
    }
}

/// `told_on`: the channel on which a client reads why nothing started.
async fn connect(wire: Wire, started: Result<Exec, runtime::Error>, of: EndOf, told_on: u8) {
    let Wire { outgoing, mut incoming, carrier } = wire;
    // A client that is gone waits for no answer: what cannot be sent is of no use.
    let mut exec = match started {
        Ok(exec) => exec,
        Err(error) => {
            // kubectl shows the exit code only; the reason goes where a shell would print it.
            drop(incoming);
            let reason = format!("{}\n", reconcile::chain(&error));
            let _ = outgoing.send((told_on, reason.into())).await;
            let _ = outgoing.send((STATUS, not_started(&error).to_string().into())).await;
            drop(outgoing);
            let _ = carrier.await;
            return;
        }
    };
    let mut pumps = JoinSet::new();
    let stdout = std::mem::replace(&mut exec.stdout, Box::new(tokio::io::empty()));
    pumps.spawn(pump(STDOUT, stdout, outgoing.clone()));
    if let Some(stderr) = exec.stderr.take() {
        pumps.spawn(pump(STDERR, stderr, outgoing.clone()));
    }
    let (mut stdin, orders) = (exec.stdin.take(), exec.orders.clone());
    let (attached, mut at_end) = match of {
        EndOf::Exec => (false, None),
        EndOf::Attach(at_end) => (true, at_end),
    };
    let listener = tokio::spawn(async move {
        while let Some(message) = incoming.recv().await {
            match message {
                Incoming::Stdin(bytes) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&bytes).await.and(pipe.flush().await).is_err()
                    {
                        stdin = None;
                    }
                }
                Incoming::StdinEnd => {
                    stdin = None;
                    if let Some(at_end) = at_end.take() {
                        at_end.await;
                    }
                }
                Incoming::Resize(size) => drop(orders.send(ExecOrder::Resize(size)).await),
            }
        }
        // A client that has left says nothing more either.
        if let Some(at_end) = at_end.take() {
            at_end.await;
        }
    });
    let gone = outgoing.clone();
    let exit = tokio::select! {
        biased;
        // Cancel-safe, as its description says.
        exit = exec.wait() => Some(exit),
        // Cancel-safe: the channel stays closed. An attached client that has left is not waited for.
        () = gone.closed(), if attached => None,
    };
    drop(gone);
    let Some(exit) = exit else { return };
    while pumps.join_next().await.is_some() {}
    let status = match exit {
        Ok(_) if attached => json!({ "metadata": {}, "status": "Success" }),
        Ok(exit) => ended(exit),
        Err(error) => {
            json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": reconcile::chain(&error), "code": 500 })
        }
    };
    let _ = outgoing.send((STATUS, status.to_string().into())).await;
    drop(outgoing);
    // How the connection ended says nothing more.
    let _ = carrier.await;
    listener.abort();
}

async fn pump(channel: u8, mut from: Box<dyn AsyncRead + Send + Unpin>, to: mpsc::Sender<(u8, Bytes)>) {
    let mut buffer = vec![0; PIECE];
    // A terminal whose last user is gone reads as an error: that is its end.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send((channel, Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
            return;
        }
    }
}

/// A terminal's size as clients tell it: `{"Width":80,"Height":24}`.
fn size(bytes: &[u8]) -> Option<Size> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let number = |name: &str| size[name].as_u64().and_then(|number| u16::try_from(number).ok());
    Some(Size { width: number("Width")?, height: number("Height")? })
}

/// Why the program did not start; a program that is missing has the shell's exit code for that.
fn not_started(error: &runtime::Error) -> Value {
    let message = reconcile::chain(error);
    match error {
        runtime::Error::Exec { code, .. } => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message,
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        _ => {
            json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500 })
        }
    }
}

/// How the program ended, as kubectl reads it.
fn ended(exit: Exit) -> Value {
    if exit.code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {}", exit.code),
        "details": { "causes": [{ "reason": "ExitCode", "message": exit.code.to_string() }] },
    })
}

#[cfg(test)]
mod tests;
