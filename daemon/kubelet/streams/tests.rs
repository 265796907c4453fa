//! Programs and ports over real connections.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use runtime::fake::FakeRuntime;
use runtime::{ContainerSpec, ExecSpec, Runtime, SandboxSpec};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

/// A program that says something and ends at once.
async fn echo(words: &str) -> Result<Exec, runtime::Error> {
    let fake = FakeRuntime::default();
    fake.start_sandbox(SandboxSpec { id: "s".to_owned(), ..SandboxSpec::default() }).await.unwrap();
    let args = vec!["sleep".to_owned()];
    fake.start_container("s", ContainerSpec { name: "c".to_owned(), args, ..ContainerSpec::default() })
        .await
        .unwrap();
    let args = vec!["echo".to_owned(), words.to_owned()];
    fake.exec("s", "c", ExecSpec { args, ..ExecSpec::default() }).await
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn the_last_words_of_a_program_outlive_what_its_client_says_meanwhile() {
    let (client, server) = pair().await;
    let wire = websocket::wire(server).await;
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let size = websocket::frame(SIZE, br#"{"Width":80,"Height":24}"#);
    client.send(size.clone()).await.unwrap();
    let started = echo("last words").await;
    let mut done = tokio::spawn(connect(wire, started, EndOf::Exec, STDERR));
    // The client is busy elsewhere while the program ends and everything is sent; it says something more.
    client.send(size).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), &mut done).await;
    assert!(early.is_err(), "the connection is kept until the client has seen its end");
    let mut heard = Vec::new();
    while let Some(message) = client.next().await {
        if let Message::Binary(data) = message.unwrap() {
            heard.push(data);
        }
    }
    assert_eq!(heard[0], &b"\x01last words\n"[..]);
    assert_eq!(heard[1], &b"\x03{\"metadata\":{},\"status\":\"Success\"}"[..]);
    drop(client);
    done.await.unwrap();
}

/// A client that can be slow to answer: the frames that it reads, as they stand on the wire.
async fn frame(client: &mut DuplexStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.unwrap();
    let mut data = vec![0; usize::from(head[1])];
    client.read_exact(&mut data).await.unwrap();
    (head[0], data)
}

const PING: u8 = 0x89;
const BINARY: u8 = 0x82;

#[tokio::test(start_paused = true)]
async fn a_program_is_heard_as_soon_as_its_client_has_answered_a_ping_or_spoken() {
    // Masked, as a client's frames are: a pong, and the end of stdin in v5.
    for answer in [&[0x8a, 0x80, 0, 0, 0, 0][..], &[0x82, 0x82, 0, 0, 0, 0, 255, 0][..]] {
        let began = tokio::time::Instant::now();
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let wire = websocket::wire(server).await;
        tokio::spawn(connect(wire, echo("hello").await, EndOf::Exec, STDERR));
        assert_eq!(frame(&mut client).await, (PING, Vec::new()));
        let early = tokio::time::timeout(Duration::from_millis(200), client.read_u8()).await;
        assert!(early.is_err(), "nothing is said before the client has answered");
        client.write_all(answer).await.unwrap();
        assert_eq!(frame(&mut client).await, (BINARY, b"\x01hello\n".to_vec()));
        assert_eq!(began.elapsed().as_millis() / 10, 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_hears_its_program_a_moment_later() {
    let began = tokio::time::Instant::now();
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let wire = websocket::wire(server).await;
    tokio::spawn(connect(wire, echo("hello").await, EndOf::Exec, STDERR));
    assert_eq!(frame(&mut client).await, (PING, Vec::new()));
    assert_eq!(frame(&mut client).await, (BINARY, b"\x01hello\n".to_vec()));
    assert_eq!(began.elapsed().as_millis() / 10, 25);
}

#[tokio::test]
async fn why_nothing_started_is_told_on_the_stream_that_the_client_reads() {
    for channel in [STDOUT, STDERR] {
        let (client, server) = pair().await;
        let wire = websocket::wire(server).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let started = FakeRuntime::default().exec("none", "c", ExecSpec::default()).await;
        let done = tokio::spawn(connect(wire, started, EndOf::Exec, channel));
        let Message::Ping(_) = client.next().await.unwrap().unwrap() else { panic!("it is greeted") };
        let Message::Binary(first) = client.next().await.unwrap().unwrap() else { panic!("it is told") };
        assert_eq!(first[0], channel);
        drop(client);
        done.await.unwrap();
    }
}

/// What an old client sends to open streams: id and headers each.
fn opened(writer: &mut spdy::Script, streams: &[(u32, &[(&str, &str)])]) -> Vec<u8> {
    streams.iter().flat_map(|(id, headers)| writer.open(*id, headers)).collect()
}

#[tokio::test]
async fn a_program_speaks_over_spdy() {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let mut script = spdy::Script::default();
    let wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false };
    let streams: [(u32, &[(&str, &str)]); 3] =
        [(1, &[("streamType", "error")]), (3, &[("streamType", "stdout")]), (5, &[("streamType", "stderr")])];
    client.write_all(&opened(&mut script, &streams)).await.unwrap();
    let wire = spdy::wire(server, wanted).await.unwrap();
    let done = tokio::spawn(connect(wire, echo("hello").await, EndOf::Exec, STDERR));
    let said = spdy::Script::hear(&mut client, 3).await;
    assert_eq!(said[&3], b"hello\n");
    assert_eq!(said[&1], br#"{"metadata":{},"status":"Success"}"#);
    drop(client);
    done.await.unwrap();
}

fn dial_to(port: u16) -> Dial {
    Arc::new(move |asked| {
        Box::pin(async move {
            if asked == 80 {
                TcpStream::connect(("127.0.0.1", port)).await
            } else {
                Err(io::Error::from(io::ErrorKind::ConnectionRefused))
            }
        })
    })
}

/// A server that says what it is told, once, in capitals.
async fn shouter() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
        }
    });
    port
}

#[tokio::test]
async fn connections_are_forwarded_over_spdy_and_refusals_are_told() {
    let (mut client, server): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 16);
    tokio::spawn(forward::streams(server, dial_to(shouter().await)));
    let mut script = spdy::Script::default();
    let streams: [(u32, &[(&str, &str)]); 4] = [
        (1, &[("streamType", "error"), ("port", "80"), ("requestID", "0")]),
        (3, &[("streamType", "data"), ("port", "80"), ("requestID", "0")]),
        (5, &[("streamType", "error"), ("port", "81"), ("requestID", "1")]),
        (7, &[("streamType", "data"), ("port", "81"), ("requestID", "1")]),
    ];
    client.write_all(&opened(&mut script, &streams)).await.unwrap();
    client.write_all(&script.data(3, b"hello", true)).await.unwrap();
    let said = spdy::Script::hear(&mut client, 4).await;
    assert_eq!(said[&3], b"HELLO");
    assert!(said[&1].is_empty());
    assert!(String::from_utf8_lossy(&said[&5]).starts_with("error forwarding port 81: connection refused"));
}
