//! A server between the source and a real one, which ails in every way that was seen.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[derive(Debug, Clone, Copy)]
enum Ails {
    Nothing,
    /// Takes the question and never answers.
    Silent,
    /// One byte now and then.
    Drips,
    /// The right head, and then no Git.
    Garbage,
    /// Ends in the middle of the refs.
    BreaksOff,
    /// True refs, and a pack that is none.
    Lies,
    /// Hangs up.
    Gone,
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/x-git-upload-pack-";

async fn serve(real: SocketAddr, ails: Arc<Mutex<Ails>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ails = *ails.lock().unwrap();
            // What the source hangs up on is an error here, and none of the test.
            tokio::spawn(async move { answer(BufReader::new(stream), real, ails).await.ok() });
        }
    });
    address
}

async fn answer(mut stream: BufReader<TcpStream>, real: SocketAddr, ails: Ails) -> std::io::Result<()> {
    let mut asked = String::new();
    while !asked.ends_with("\r\n\r\n") {
        if stream.read_line(&mut asked).await? == 0 {
            return Ok(());
        }
    }
    let refs = format!("{HEAD}advertisement\r\n\r\n");
    match ails {
        Ails::Gone => {}
        Ails::Silent => std::future::pending().await,
        Ails::Drips => {
            stream.write_all(format!("{refs}001e# service=git-upload-pack\n0000").as_bytes()).await?;
            stream.write_all(b"fff0").await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ails::Garbage => {
            stream.write_all(format!("{refs}<html>We moved!</html>").as_bytes()).await?;
        }
        Ails::BreaksOff => {
            stream.write_all(format!("{refs}001e# service=git-upload-pack\n0000").as_bytes()).await?;
        }
        Ails::Lies if asked.starts_with("POST") => {
            stream.write_all(format!("{HEAD}result\r\n\r\n0008NAK\n000c\u{1}garbage0000").as_bytes()).await?;
        }
        Ails::Lies | Ails::Nothing => {
            let mut real = TcpStream::connect(real).await?;
            real.write_all(asked.as_bytes()).await?;
            copy_bidirectional(&mut stream, &mut real).await?;
        }
    }
    stream.shutdown().await
}

#[tokio::test]
async fn a_server_that_ails_keeps_the_last_good_state_and_says_so() {
    let repos = Repositories::new();
    repos.push("a.yaml", "0", "First");
    let ails = Arc::new(Mutex::new(Ails::Nothing));
    let address = serve(serve_http(repos.above.path().to_path_buf()).await, Arc::clone(&ails)).await;
    let location = Location::parse(&format!("http://{address}/bare.git")).unwrap();
    let patience = Patience { silence: Duration::from_secs(2), span: Duration::from_secs(3) };
    let (_tasks, hurry, mut seen) = follow_patiently(
        location,
        &[("main", "")],
        &repos.above.path().join("m"),
        Path::new("ssh"),
        patience,
    );
    seen[0].until_files(&[("a.yaml", "0")]).await;
    let all = [
        (Ails::Silent, "timed out"),
        (Ails::Drips, "it sent only"),
        (Ails::Garbage, "talk Git with"),
        (Ails::BreaksOff, "ends in the middle"),
        (Ails::Lies, "bare.git"),
        (Ails::Gone, "reach http://127.0.0.1"),
    ];
    for (count, (ailing, words)) in all.into_iter().enumerate() {
        let (before, after) = (count.to_string(), (count + 1).to_string());
        *ails.lock().unwrap() = ailing;
        repos.push("a.yaml", &after, "More");
        hurry.notify_one();
        let told = seen[0]
            .until(words, |sourced| sourced.trouble.as_ref().is_some_and(|told| told.contains(words)))
            .await;
        assert_eq!(files(&told), [("a.yaml", before.as_str())], "{ailing:?}");
        *ails.lock().unwrap() = Ails::Nothing;
        hurry.notify_one();
        seen[0].until_files(&[("a.yaml", &after)]).await;
    }
}
