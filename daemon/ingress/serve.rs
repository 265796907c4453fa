//! The listening socket: connections, their bound, and their end.
//!
//! Invariant: a connection that is accepted is answered or closed; those under way are given time to end.

use crate::proxy;
use crate::routes::Routes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections at once.
const MOST_CONNECTIONS: usize = 1024;
/// How long a client may take to say what it wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(15);
/// How long requests under way may take once the server stops.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Answers on the socket until the token is cancelled.
pub(crate) async fn run(
    listener: TcpListener,
    tables: watch::Receiver<Option<Arc<Routes>>>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let turn = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => break,
            // Cancel-safe per docs of JoinSet::join_next.
            Some(_) = connections.join_next(), if connections.len() >= MOST_CONNECTIONS => continue,
            // Cancel-safe per docs of TcpListener::accept.
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                connections.spawn(connection(
                    stream,
                    client,
                    tables.clone(),
                    Arc::clone(&turn),
                    stop.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection for Ingresses");
                // Out of file descriptors, most likely: not to be tried again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    // Whoever takes longer is cut off with the set.
    let _ =
        tokio::time::timeout(END_PATIENCE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    tables: watch::Receiver<Option<Arc<Routes>>>,
    turn: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let routes = tables.borrow().clone();
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        async move {
            Ok::<_, std::convert::Infallible>(proxy::answer(routes.as_deref(), request, client, turn).await)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        biased;
        // Not dropped by the other branch: it is polled on below.
        ended = served.as_mut() => ended,
        // Cancel-safe: a token stays cancelled.
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "connection for Ingresses ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::tests::objects;
    use serde_json::json;
    use std::collections::BTreeSet;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// An endpoint that answers every request with its name and the head it got, then closes; one that is asked to
    /// switch protocols does, and sends back what it gets.
    async fn endpoint(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let head = head(&mut stream).await;
                if head.contains("upgrade: echo") {
                    let switch =
                        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                    stream.write_all(switch).await.expect("write");
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.expect("echo");
                    continue;
                }
                let body = format!("{name}\n{head}");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nkeep-alive: 5\r\nconnection: close, x-mine\r\nx-mine: 1\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        });
        address
    }

    async fn head(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.expect("a head"));
        }
        String::from_utf8(bytes).expect("text").to_ascii_lowercase()
    }

    struct Site {
        address: SocketAddr,
        stop: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    /// A server with one Ingress: `site.test` leads to these endpoints.
    async fn site(endpoints: &[SocketAddr]) -> Site {
        let ingress = json!([{"metadata": {"namespace": "default", "name": "site"}, "spec": {"rules": [
            {"host": "site.test", "http": {"paths": [
                {"path": "/idle", "pathType": "Prefix", "backend": {"service": {"name": "idle", "port": {"number": 80}}}},
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"name": "http"}}}}]}}]}}]);
        let mut objects = objects(ingress, json!([]));
        // One slice per endpoint: each has a port of its own.
        let slice = |address: &SocketAddr| {
            serde_json::from_value(
                json!({"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": address.port()}],
                "endpoints": [{"addresses": [address.ip().to_string()]}]}),
            )
            .expect("a slice")
        };
        objects.slices = endpoints.iter().map(slice).collect();
        let (_table, tables) = watch::channel(Some(Arc::new(Routes::new(&objects))));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(listener, tables, stop.clone()));
        Site { address, stop, running }
    }

    /// What the server answers to one request, head and body.
    async fn ask(site: &Site, request: &str) -> String {
        let mut stream = TcpStream::connect(site.address).await.expect("connect");
        stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.expect("write");
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("an answer");
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\nHost: Site.Test:80\nConnection: close\n\n")
    }

    #[tokio::test]
    async fn endpoints_take_turns_and_dead_ones_are_passed_over() {
        let dead = "127.0.0.1:1".parse().expect("an address");
        let site = site(&[endpoint("one").await, dead, endpoint("two").await]).await;
        let mut names = BTreeSet::new();
        for _ in 0..6 {
            let answer = ask(&site, &get("/")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            names.insert(
                answer.split("\r\n\r\n").nth(1).and_then(|body| body.lines().next()).map(str::to_owned),
            );
        }
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[tokio::test]
    async fn headers_of_one_connection_stay_on_it_and_forwarding_headers_are_ours() {
        let site = site(&[endpoint("one").await]).await;
        let request = "GET http://site.test/a?b=c HTTP/1.1\nHost: site.test\nConnection: close, X-Secret\nX-Secret: 1\nTE: gzip\n\
                       Proxy-Authorization: x\nX-Forwarded-For: 6.6.6.6\nForwarded: for=6.6.6.6\nCookie: kept\n\n";
        let answer = ask(&site, request).await.to_ascii_lowercase();
        let (ours, theirs) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(theirs.starts_with("one\nget /a?b=c http/1.1"), "{theirs}");
        for passed in [
            "cookie: kept",
            "host: site.test",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
            "x-forwarded-host: site.test",
        ] {
            assert!(theirs.contains(passed), "{passed} in {theirs}");
        }
        for dropped in ["x-secret", "proxy-authorization", "6.6.6.6", "te: "] {
            assert!(!theirs.contains(dropped), "{dropped} in {theirs}");
        }
        assert!(!ours.contains("x-mine") && !ours.contains("keep-alive"), "{ours}");
    }

    #[tokio::test]
    async fn what_cannot_be_answered_is_explained() {
        let nobody = site(&["127.0.0.1:1".parse().expect("an address")]).await;
        for (request, code, text) in [
            (
                get("/idle/x"),
                "503",
                "Service default/idle port 80 of Ingress default/site has no endpoint that is ready",
            ),
            (get("/"), "502", "no endpoint accepts a connection: 127.0.0.1:1"),
            (
                get("/").replace("Site.Test", "other.test"),
                "404",
                "no Ingress has a rule for http://other.test/",
            ),
            (
                "CONNECT site.test:80 HTTP/1.1\nHost: site.test\nConnection: close\n\n".to_owned(),
                "405",
                "CONNECT",
            ),
        ] {
            let answer = ask(&nobody, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")) && answer.contains(text), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_switch_of_protocols_is_passed_through() {
        let site = site(&[endpoint("one").await]).await;
        let mut stream = TcpStream::connect(site.address).await.expect("connect");
        let request = b"GET / HTTP/1.1\r\nHost: site.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(request).await.expect("write");
        let answer = head(&mut stream).await;
        assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: echo"), "{answer}");
        stream.write_all(b"hello").await.expect("write");
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.expect("an echo");
        assert_eq!(&echoed, b"hello");
    }

    #[tokio::test]
    async fn a_stop_closes_idle_connections_at_once() {
        let site = site(&[endpoint("one").await]).await;
        let mut idle = TcpStream::connect(site.address).await.expect("connect");
        idle.write_all(b"GET /idle HTTP/1.1\r\nHost: site.test\r\n\r\n").await.expect("write");
        assert!(head(&mut idle).await.starts_with("http/1.1 503"));
        site.stop.cancel();
        tokio::time::timeout(Duration::from_secs(1), site.running).await.expect("in time").expect("no panic");
    }

    #[tokio::test]
    async fn bytes_that_are_no_request_end_only_their_connection() {
        let site = site(&[endpoint("one").await]).await;
        assert!(ask(&site, "\u{1}\u{2} nonsense\n\n").await.starts_with("HTTP/1.1 400"));
        assert!(ask(&site, &get("/")).await.starts_with("HTTP/1.1 200"));
    }
}
