//! exec over a WebSocket, in Kubernetes' channel protocols v5 and v4.
//!
//! Channel 0 is stdin, 1 stdout, 2 stderr, 3 how it ended (a Status), 4 the terminal's size; in v5, 255 closes a channel.

use client::{Body, full};
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use runtime::{Exec, ExecOrder, Exit, Size};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tracing::debug;

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// The answer that switches to a WebSocket, and the protocol agreed on; or the refusal.
pub(crate) fn upgrade(
    request: &Request<Body>,
) -> Result<(Response<Body>, &'static str), Box<Response<Body>>> {
    let text = |name: header::HeaderName| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let Some(key) = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|_| text(header::UPGRADE).eq_ignore_ascii_case("websocket"))
    else {
        return Err(Box::new(refuse(
            "exec needs a WebSocket upgrade (kubectl 1.31 and newer ask for one; SPDY is not served by this node yet)",
        )));
    };
    let offered = text(header::SEC_WEBSOCKET_PROTOCOL);
    let Some(protocol) =
        PROTOCOLS.into_iter().find(|known| offered.split(',').any(|one| one.trim() == *known))
    else {
        return Err(Box::new(refuse(&format!(
            "none of the protocols {offered:?} is served; v5.channel.k8s.io and v4.channel.k8s.io are"
        ))));
    };
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes());
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((response, protocol))
}

fn refuse(message: &str) -> Response<Body> {
    crate::node::status(StatusCode::BAD_REQUEST, "BadRequest", message)
}

/// Carries the streams of a program until it has ended and its output is told; or tells why it did not start.
pub(crate) async fn carry(upgrade: hyper::upgrade::OnUpgrade, started: Result<Exec, runtime::Error>) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return debug!(error = %error, "exec: the connection was not upgraded"),
    };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let mut exec = match started {
        Ok(exec) => exec,
        Err(error) => {
            // kubectl shows the exit code only; the reason goes where a shell would print it. The client may be gone
            // already: then nobody waits for the answer.
            let _ = socket.send(frame(2, format!("{}\n", reconcile::chain(&error)).as_bytes())).await;
            let _ = socket.send(frame(3, not_started(&error).to_string().as_bytes())).await;
            let _ = socket.send(normal_close()).await;
            return;
        }
    };
    let (mut sink, mut source) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Message>(16);
    let mut pumps = tokio::task::JoinSet::new();
    pumps.spawn(pump(1, std::mem::replace(&mut exec.stdout, Box::new(tokio::io::empty())), frames.clone()));
    if let Some(stderr) = exec.stderr.take() {
        pumps.spawn(pump(2, stderr, frames.clone()));
    }
    let mut stdin = exec.stdin.take();
    let orders = exec.orders.clone();
    let incoming = tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(data) = message else { if message.is_close() { break } else { continue } };
            match data.split_first() {
                Some((0, bytes)) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(bytes).await.and(pipe.flush().await).is_err()
                    {
                        stdin = None;
                    }
                }
                Some((4, bytes)) => resize(bytes, &orders).await,
                Some((255, [0])) => stdin = None,
                _ => {}
            }
        }
    });
    let writer = tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // Clients take any other code than a normal closure for an error. One that is gone already waits for nothing.
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    });
    let exit = exec.wait().await;
    while pumps.join_next().await.is_some() {}
    let status = match exit {
        Ok(exit) => ended(exit),
        Err(error) => {
            json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "message": reconcile::chain(&error), "code": 500 })
        }
    };
    let _ = frames.send(frame(3, status.to_string().as_bytes())).await;
    drop(frames);
    // Both end with the connection; how they ended says nothing more.
    let _ = writer.await;
    incoming.abort();
}

async fn resize(bytes: &[u8], orders: &mpsc::Sender<ExecOrder>) {
    let Ok(size) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let number = |name: &str| size[name].as_u64().and_then(|number| u16::try_from(number).ok());
    if let (Some(width), Some(height)) = (number("Width"), number("Height")) {
        let _ = orders.send(ExecOrder::Resize(Size { width, height })).await;
    }
}

async fn pump(channel: u8, mut from: Box<dyn AsyncRead + Send + Unpin>, to: mpsc::Sender<Message>) {
    let mut buffer = vec![0; 32 * 1024];
    // A terminal whose last user is gone reads as an error: that is its end.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(frame(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(channel);
    data.extend_from_slice(bytes);
    Message::Binary(data.into())
}

fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Why the program did not start; a program that is missing has the shell's exit code for that.
fn not_started(error: &runtime::Error) -> serde_json::Value {
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
fn ended(exit: Exit) -> serde_json::Value {
    if exit.code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {}", exit.code),
        "details": { "causes": [{ "reason": "ExitCode", "message": exit.code.to_string() }] },
    })
}
