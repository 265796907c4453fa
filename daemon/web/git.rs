//! Git's smart HTTP: `git push http://127.0.0.1:9440/git/NAME`, and fetching from there.
//!
//! Invariant: nobody is answered whom the application does not admit; a request without end is cut by its size.

use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::serve::{App, refuse};

/// What a client of a fetch has to say fits into this, unpacked.
const MOST_FETCH: u64 = 4 << 20;

#[derive(Deserialize)]
pub(crate) struct Asked {
    service: Option<String>,
}

type Peer = ConnectInfo<SocketAddr>;

/// The list of refs, where every client begins.
pub(crate) async fn refs(
    State(app): State<App>,
    ConnectInfo(peer): Peer,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let name = bare(&name);
    if let Err(answer) = admit(&app, name, peer, &headers) {
        return answer;
    }
    let Some(service) = asked.service else {
        return refuse(403, "Git's dumb protocol is not served; use git 1.6.6 or newer");
    };
    match app.room.actions.git_refs(name, &service) {
        Ok(text) => answer(&format!("application/x-{service}-advertisement"), Body::from(text)),
        Err(refusal) => refuse(refusal.status, &refusal.message),
    }
}

/// A push.
pub(crate) async fn receive(
    State(app): State<App>,
    ConnectInfo(peer): Peer,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let name = bare(&name).to_owned();
    if let Err(answer) = admit(&app, &name, peer, &headers) {
        return answer;
    }
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut parts = body.into_data_stream();
        // It ends with the body, or when nobody reads it any more.
        while let Some(Ok(bytes)) = parts.next().await {
            if sender.send(bytes.to_vec()).await.is_err() {
                break;
            }
        }
    });
    run(&app, name, "git-receive-pack", receiver)
}

/// A fetch.
pub(crate) async fn upload(
    State(app): State<App>,
    ConnectInfo(peer): Peer,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let name = bare(&name).to_owned();
    if let Err(answer) = admit(&app, &name, peer, &headers) {
        return answer;
    }
    let packed = text(&headers, header::CONTENT_ENCODING) == Some("gzip");
    let mut plain = Vec::new();
    if packed {
        let unpacked = flate2::read::GzDecoder::new(&body[..]).take(MOST_FETCH).read_to_end(&mut plain);
        if unpacked.is_err() {
            return refuse(400, "the request is not gzip, although it says so");
        }
    } else {
        plain = body.to_vec();
    }
    let (sender, receiver) = mpsc::channel(1);
    // The channel has room for the one message.
    let _ = sender.try_send(plain);
    run(&app, name, "git-upload-pack", receiver)
}

fn run(app: &App, name: String, service: &'static str, body: crate::Incoming) -> Response {
    let (sender, receiver) = mpsc::channel(16);
    let work = app.room.actions.git(name, service, body, sender);
    let stop = app.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled; a push that is cut off here has moved its ref or has not.
            () = stop.cancelled_owned() => {}
            () = work => {}
        }
    });
    let parts = futures::stream::unfold(receiver, |mut receiver| async move {
        let part = receiver.recv().await?;
        Some((Ok::<Vec<u8>, Infallible>(part), receiver))
    });
    answer(&format!("application/x-{service}-result"), Body::from_stream(parts))
}

fn answer(kind: &str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind.to_owned())], body).into_response()
}

/// `NAME` and `NAME.git` are the same.
fn bare(name: &str) -> &str {
    name.strip_suffix(".git").unwrap_or(name)
}

#[expect(clippy::result_large_err, reason = "an answer is what a handler gives, and this is one")]
fn admit(app: &App, name: &str, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Response> {
    let is_local = peer.ip().to_canonical().is_loopback();
    app.room.actions.admit_git(name, is_local, token(headers)).map_err(|refusal| {
        let mut answer = refuse(refusal.status, &refusal.message);
        if answer.status() == StatusCode::UNAUTHORIZED {
            let ask = http::HeaderValue::from_static("Basic realm=\"holdfast\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
        }
        answer
    })
}

/// The password of basic authentication, or a bearer token.
fn token(headers: &HeaderMap) -> Option<String> {
    let given = text(headers, header::AUTHORIZATION)?;
    if let Some(token) = given.strip_prefix("Bearer ") {
        return Some(token.trim().to_owned());
    }
    let decoded = STANDARD.decode(given.strip_prefix("Basic ")?.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_password_or_a_bearer() {
        let given =
            |value: &str| token(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]));
        assert_eq!(given("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(given("Basic bWU6czNjcmV0").as_deref(), Some("s3cret"));
        assert_eq!(given("Basic %%%"), None);
        assert_eq!(bare("home.git"), "home");
    }
}
