#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use super::*;
use crate::status::{ObjectStatus, Pin, Quarantine, RevisionStatus};
use config::ForgeKind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn status(revision: &str, sync: &str, health: &str, result: &str) -> Status {
    let entry = RevisionStatus {
        revision: revision.into(),
        author: "Ada".into(),
        message: "Raise it\n\nmore".into(),
        result: result.into(),
        ..RevisionStatus::default()
    };
    let mut status = Status { history: vec![entry], ..Status::default() };
    status.sync.state = sync.into();
    status.sync.revision = revision.into();
    status.sync.message = format!("{sync} it is");
    status.source.revision = revision.into();
    status.source.kind = "git".into();
    status.health.code = health.into();
    status.health.message = format!("{health} it is");
    status
}

fn events(before: &Status, after: &Status) -> Vec<String> {
    notices("demo", before, after, now()).iter().map(Notice::line).collect()
}

#[test]
fn only_what_changed_is_told() {
    let going = status("r1", "OutOfSync", "Progressing", "");
    let good = status("r1", "Synced", "Healthy", "Healthy");
    let bad = status("r1", "Synced", "Degraded", "Healthy");
    assert_eq!(events(&going, &good), ["demo healthy at r1 \"Raise it\" by Ada: Synced it is"]);
    assert!(events(&good, &good).is_empty());
    assert_eq!(events(&good, &bad), ["demo failed at r1 \"Raise it\" by Ada: Degraded it is"]);
    assert_eq!(events(&bad, &good), ["demo recovered at r1 \"Raise it\" by Ada: Synced it is"]);
    let mut back = status("r0", "Failed", "Healthy", "Healthy");
    back.decisions.pinned = Some(Pin { revision: "r0".into(), automatic: true, at: String::new() });
    back.decisions.quarantined =
        vec![Quarantine { revision: "r1".into(), reason: "no pod".into(), at: String::new() }];
    assert!(events(&going, &back)[0].starts_with("demo rolled-back at r1"), "{:?}", events(&going, &back));
    let mut asks = good.clone();
    asks.objects.push(ObjectStatus { confirm: true, ..ObjectStatus::default() });
    assert!(events(&good, &asks)[0].contains("1 objects wait for holdfast confirm demo"));
    assert!(events(&asks, &asks).is_empty());
}

/// Answers one request with success and gives what came: head and body.
async fn one_request(listener: TcpListener) -> (String, String) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    stream
        .get_mut()
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn sent(kind: &str, more: serde_json::Value) -> (String, String) {
    // Another test may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let mut declared = serde_json::json!({"kind": kind, "url": url});
    declared.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let receiver: Notify = serde_json::from_value(declared).unwrap();
    receiver.check().unwrap();
    let answered = tokio::spawn(one_request(listener));
    let before = status("r1", "Synced", "Healthy", "Healthy");
    let notice = notices("demo", &before, &status("r1", "Synced", "Degraded", "Healthy"), now()).remove(0);
    send::send(&send::client(), &receiver, &notice).await.unwrap();
    answered.await.unwrap()
}

#[tokio::test]
async fn every_receiver_gets_its_own_form() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let (head, body) = sent("webhook", serde_json::json!({"secret_file": secret})).await;
    let signature = format!("sha256={}", send::hmac(b"s3cret", body.as_bytes()));
    assert!(head.contains(&format!("x-holdfast-signature: {signature}")), "{head}");
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&told["event"], &told["application"], &told["author"]),
        (&"failed".into(), &"demo".into(), &"Ada".into())
    );
    let (_, body) = sent("slack", serde_json::json!({"template": "{application}: {event} {subject}"})).await;
    assert_eq!(body, "{\"text\":\"demo: failed Raise it\"}");
    let (_, body) = sent("discord", serde_json::json!({})).await;
    assert!(body.contains("\"content\":\"demo failed"), "{body}");
    let (_, body) = sent("teams", serde_json::json!({})).await;
    assert!(body.contains("AdaptiveCard"), "{body}");
    let (head, body) = sent("ntfy", serde_json::json!({"secret_file": secret})).await;
    assert!(
        head.contains("priority: high") && head.contains("Bearer s3cret") || head.contains("bearer s3cret"),
        "{head}"
    );
    assert!(body.starts_with("demo failed"), "{body}");
    let (head, _) = sent("matrix", serde_json::json!({"secret_file": secret, "room": "!a:b"})).await;
    assert!(head.starts_with("PUT /hook/_matrix/client/v3/rooms/!a:b/send/m.room.message/"), "{head}");
}

#[test]
fn signatures_are_those_of_the_standard() {
    // RFC 4231, test case 2.
    let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    assert_eq!(send::hmac(b"Jefe", b"what do ya want for nothing?"), wanted);
}

#[tokio::test]
async fn a_mail_is_handed_over_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"220 hello\r\n").await.unwrap();
        let (mut all, mut in_data) = (String::new(), false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return all;
            }
            all.push_str(&line);
            let answer: &[u8] = match line.trim_end() {
                "." => {
                    in_data = false;
                    b"250 taken\r\n"
                }
                _ if in_data => continue,
                "DATA" => {
                    in_data = true;
                    b"354 go on\r\n"
                }
                "EHLO holdfast" => b"250-here\r\n250 SIZE\r\n",
                _ => b"250 fine\r\n",
            };
            stream.get_mut().write_all(answer).await.unwrap();
        }
    });
    let declared = serde_json::json!({"kind": "smtp", "url": url, "from": "box@example.org", "to": ["ada@example.org"],
        "template": "{message}\n.\n{application}"});
    let receiver: Notify = serde_json::from_value(declared).unwrap();
    let before = status("r1", "Synced", "Healthy", "Healthy");
    let notice = notices("demo", &before, &status("r1", "Synced", "Degraded", "Healthy"), now()).remove(0);
    send::send(&send::client(), &receiver, &notice).await.unwrap();
    let all = server.await.unwrap();
    assert!(all.contains("RCPT TO:<ada@example.org>") && all.contains("\r\n..\r\ndemo\r\n.\r\n"), "{all}");
    // A password is not sent in the clear.
    let refused = Notify { user: Some("box".into()), ..receiver };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 hello\r\n250 AUTH PLAIN\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let error = send::send(&send::client(), &Notify { url, ..refused }, &notice).await.unwrap_err();
    assert!(error.to_string().contains("no TLS"), "{error}");
}

#[tokio::test]
async fn every_forge_is_told_of_the_commit_in_its_words() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let good = status("0123456789012345678901234567890123456789", "Synced", "Healthy", "Healthy");
    let (revision, state, why) = forge::state(&good).unwrap();
    assert_eq!(state, forge::State::Success);
    for (kind, path, word) in [
        (ForgeKind::Github, "/repos/me/apps/statuses/0123", "\"state\":\"success\""),
        (ForgeKind::Gitea, "/repos/me/apps/statuses/0123", "\"state\":\"success\""),
        (ForgeKind::Gitlab, "/projects/me%2Fapps/statuses/0123", "\"state\":\"success\""),
        (ForgeKind::Bitbucket, "/repositories/me/apps/commit/0123", "\"state\":\"SUCCESSFUL\""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api", listener.local_addr().unwrap());
        let answered = tokio::spawn(one_request(listener));
        let forge = Forge { kind, url, repository: "me/apps".into(), token_file: "/nowhere".into() };
        let request =
            forge::request(&send::client(), &forge, "demo", &revision, (state, &why), "t0ken").unwrap();
        send::deliver(request).await.unwrap();
        let (head, body) = answered.await.unwrap();
        assert!(head.starts_with(&format!("POST /api{path}")), "{head}");
        assert!(
            head.contains("t0ken") && body.contains(word) && body.contains("holdfast/demo"),
            "{head} {body}"
        );
    }
    assert_eq!(
        forge::state(&status("a", "Failed", "Healthy", "Failed: no")).unwrap().1,
        forge::State::Failure
    );
    assert_eq!(forge::state(&status("a", "OutOfSync", "Progressing", "")).unwrap().1, forge::State::Pending);
}
