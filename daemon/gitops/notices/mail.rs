//! Mail by SMTP: plain to this machine, STARTTLS where it is offered, TLS from the start with `smtps://`.
//!
//! Invariant: a password is never sent without TLS, and no text can end the message or a header early.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::Notify;
use super::send::SendError;

/// A server that takes longer is tried again.
const PATIENCE: Duration = Duration::from_secs(30);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

struct Session {
    stream: BufReader<Box<dyn Stream>>,
    encrypted: bool,
}

/// Sends one mail.
pub(super) async fn send(
    receiver: &Notify,
    password: Option<&str>,
    subject: &str,
    text: &str,
) -> Result<(), SendError> {
    tokio::time::timeout(PATIENCE, talk(receiver, password, subject, text))
        .await
        .map_err(|_| "the mail server does not answer in time")?
}

async fn talk(receiver: &Notify, password: Option<&str>, subject: &str, text: &str) -> Result<(), SendError> {
    let (implicit, rest) = match receiver.url.split_once("://") {
        Some(("smtps", rest)) => (true, rest),
        Some((_, rest)) => (false, rest),
        None => return Err("the url of mail is smtp://host:port".into()),
    };
    let rest = rest.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, if implicit { "465" } else { "25" }));
    let stream = TcpStream::connect((host, port.parse::<u16>()?)).await?;
    let mut session = Session { stream: BufReader::new(Box::new(stream)), encrypted: false };
    if implicit {
        session = session.encrypt(host).await?;
    }
    session.answer("2").await?;
    let mut offers = session.ask("EHLO holdfast", "2").await?;
    if !session.encrypted && offers.to_ascii_uppercase().contains("STARTTLS") {
        session.ask("STARTTLS", "2").await?;
        session = session.encrypt(host).await?;
        offers = session.ask("EHLO holdfast", "2").await?;
    }
    if let Some(user) = &receiver.user {
        if !session.encrypted {
            return Err("the mail server offers no TLS: the password is not sent".into());
        }
        if !offers.to_ascii_uppercase().contains("AUTH") {
            return Err("the mail server takes no password".into());
        }
        let word = STANDARD.encode(format!("\0{user}\0{}", password.unwrap_or_default()));
        session.ask(&format!("AUTH PLAIN {word}"), "2").await?;
    }
    let from = receiver.from.as_deref().unwrap_or_default();
    session.ask(&format!("MAIL FROM:<{}>", address(from)), "2").await?;
    for to in &receiver.to {
        session.ask(&format!("RCPT TO:<{}>", address(to)), "2").await?;
    }
    session.ask("DATA", "3").await?;
    session.ask(&message(from, &receiver.to, subject, text), "2").await?;
    session.ask("QUIT", "2").await.map(|_| ())
}

impl Session {
    async fn encrypt(self, host: &str) -> Result<Session, SendError> {
        let config = rustls::ClientConfig::with_platform_verifier()?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, self.stream.into_inner()).await?;
        Ok(Session { stream: BufReader::new(Box::new(stream)), encrypted: true })
    }

    async fn ask(&mut self, line: &str, wanted: &str) -> Result<String, SendError> {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
        self.stream.get_mut().flush().await?;
        self.answer(wanted).await
    }

    async fn answer(&mut self, wanted: &str) -> Result<String, SendError> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 || all.len() > 16_384 {
                return Err("the mail server hung up".into());
            }
            all.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        }
        if all.starts_with(wanted) {
            Ok(all)
        } else {
            Err(format!("the mail server says: {}", all.trim()).into())
        }
    }
}

/// Without what could end the command.
fn address(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '<' | '>' | ' ')).collect()
}

/// The whole mail with its end. A line that is only a dot would end it: each dot at a begin is doubled.
fn message(from: &str, to: &[String], subject: &str, text: &str) -> String {
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let subject = format!("=?utf-8?B?{}?=", STANDARD.encode(plain(subject)));
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S +0000");
    let body: Vec<String> = text
        .lines()
        .map(|line| if line.starts_with('.') { format!(".{line}") } else { line.to_owned() })
        .collect();
    format!(
        "From: {}\r\nTo: {}\r\nSubject: {subject}\r\nDate: {date}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{}\r\n.",
        plain(from),
        plain(&to.join(", ")),
        body.join("\r\n")
    )
}
