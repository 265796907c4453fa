//! The ways to a repository on another machine: HTTPS through rustls, SSH through the `ssh` program.
//!
//! This file starts a program although only `runtime` does otherwise: `ssh` brings the user's keys, agent, known hosts
//! and configuration, which no library reads the same way.
//!
//! Invariant: messages never show credentials.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::location::{Location, redact};
use super::pace::{Pace, Patience};
use super::smart::{self, Advertisement, AdvertisementReader, Answer};
use crate::Error;
use crate::secret::Secret;

/// Refs and error texts are kept in memory.
const MOST_ADVERTISED: usize = 64 << 20;
/// A pack larger than this is not a repository of manifests.
const MOST_PACK: usize = 2 << 30;

/// What reaching a repository on another machine takes. Left out, all is the machine's: certificates, keys, known hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Of basic authentication; forges take any name beside a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password or token, read anew each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Certificates of an authority of one's own, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// `http://proxy:3128`, instead of what the environment says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The private key for SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
    /// The host keys for SSH; others are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
}

/// How remote repositories are reached.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    http: reqwest::Client,
    ssh: OsString,
    auth: Auth,
    patience: Patience,
}

/// A user and a password.
type Credentials = (String, String);

impl Ways {
    /// HTTPS with the machine's certificates, and this program for SSH.
    ///
    /// # Errors
    /// `Reach` when the certificates or the proxy of the configuration cannot be used.
    pub(crate) fn new(ssh: OsString, auth: Auth, patience: Patience, shown: &str) -> Result<Ways, Error> {
        // Another room may have set the same provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent("git/2 (holdfast)")
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(patience.silence);
        if let Some(path) = &auth.ca {
            let pem =
                std::fs::read(path).map_err(|error| unreachable(shown, Told::new("read", path, error)))?;
            let all = reqwest::Certificate::from_pem_bundle(&pem);
            for certificate in all.map_err(|error| unreachable(shown, Told::new("parse", path, error)))? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if let Some(proxy) = &auth.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|error| unreachable(shown, error))?);
        }
        let http = builder.build().map_err(|error| unreachable(shown, error))?;
        Ok(Ways { http, ssh, auth, patience })
    }

    fn credentials(&self, shown: &str) -> Result<Option<Credentials>, Error> {
        let Some(secret) = &self.auth.password else { return Ok(None) };
        let password = secret.read().map_err(|error| unreachable(shown, error))?;
        Ok(Some((self.auth.user.clone().unwrap_or_else(|| "git".to_owned()), password)))
    }

    /// Connects and reads the refs.
    pub(crate) async fn connect(&self, location: &Location) -> Result<Connection, Error> {
        match location {
            Location::Http(url) => self.connect_http(url).await,
            Location::Ssh { host, port, path } => self.connect_ssh(location, host, *port, path).await,
            Location::Local(_) => Err(Error::Protocol {
                url: location.shown(),
                why: "a local repository needs no connection".to_owned(),
            }),
        }
    }

    async fn connect_http(&self, url: &str) -> Result<Connection, Error> {
        let shown = redact(url);
        let mut credentials = self.credentials(&shown)?;
        let mut request = self.http.get(format!("{url}/info/refs?service=git-upload-pack"));
        if let Some((user, password)) = &credentials {
            request = request.basic_auth(user, Some(password));
        }
        let answer = answered(request, self.patience, &shown).await?;
        if reqwest::Url::parse(url).map(|asked| asked.origin()).ok() != Some(answer.url().origin()) {
            // They are for the server that was asked, not for where it sends.
            credentials = None;
        }
        let kind = answer
            .headers()
            .get(http::header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or("");
        if kind != "application/x-git-upload-pack-advertisement" {
            let why = format!("it answers with {kind:?}, not with Git's smart protocol; check the address");
            return Err(Error::Protocol { url: shown, why });
        }
        let base = moved(url, answer.url());
        let mut reader = AdvertisementReader::default();
        let mut body = answer.bytes_stream();
        let mut got = 0;
        let mut pace = Pace::new(self.patience, Instant::now());
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|source| unreachable(&shown, source.without_url()))?;
            got += bytes.len();
            paced(&mut pace, bytes.len(), &shown)?;
            reader.lines.push(&bytes);
            let read = reader.advance().map_err(|why| Error::Protocol { url: shown.clone(), why })?;
            if let Some(advertised) = read {
                return Ok(Connection {
                    advertised,
                    shown,
                    patience: self.patience,
                    channel: Channel::Http { client: self.http.clone(), base, credentials },
                });
            }
            if got > MOST_ADVERTISED {
                return Err(Error::TooMuch { path: shown, most: MOST_ADVERTISED, what: "bytes of refs" });
            }
        }
        Err(Error::Protocol { url: shown, why: "the list of refs ends in the middle".to_owned() })
    }

    async fn connect_ssh(
        &self,
        at: &Location,
        host: &str,
        port: Option<u16>,
        path: &str,
    ) -> Result<Connection, Error> {
        let shown = at.shown();
        let mut command = Command::new(&self.ssh);
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]);
        if let Some(identity) = &self.auth.identity {
            command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(identity);
        }
        if let Some(known) = &self.auth.known_hosts {
            command.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
            command.args(["-o", "StrictHostKeyChecking=yes"]);
        }
        if let Some(port) = port {
            command.arg("-p").arg(port.to_string());
        }
        command.arg("--").arg(host).arg(format!("git-upload-pack '{}'", path.replace('\'', "'\\''")));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|source| Error::Spawn { program: "ssh", url: shown.clone(), source })?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err(Error::CutOff("starting ssh")) };
        let mut pipe = Pipe { child, input, output, silence: self.patience.silence };
        let mut reader = AdvertisementReader::default();
        let mut got = 0;
        let mut pace = Pace::new(self.patience, Instant::now());
        loop {
            let bytes = pipe.read(&shown).await?;
            got += bytes.len();
            paced(&mut pace, bytes.len(), &shown)?;
            reader.lines.push(&bytes);
            match reader.advance() {
                Ok(Some(advertised)) => {
                    let (patience, channel) = (self.patience, Channel::Ssh(Box::new(pipe)));
                    return Ok(Connection { advertised, shown, patience, channel });
                }
                Ok(None) if !bytes.is_empty() && got <= MOST_ADVERTISED => {}
                Ok(None) => {
                    let why = pipe.last_words().await;
                    return Err(Error::Protocol { url: shown, why });
                }
                Err(why) => return Err(Error::Protocol { url: shown, why }),
            }
        }
    }
}

/// A connection whose refs are read.
pub(crate) struct Connection {
    pub(crate) advertised: Advertisement,
    shown: String,
    patience: Patience,
    channel: Channel,
}

enum Channel {
    Http { client: reqwest::Client, base: String, credentials: Option<Credentials> },
    Ssh(Box<Pipe>),
}

struct Pipe {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    silence: Duration,
}

impl Pipe {
    /// The next bytes; empty at the end.
    async fn read(&mut self, shown: &str) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; 64 << 10];
        let read = tokio::time::timeout(self.silence, self.output.read(&mut buffer)).await;
        let count = match read {
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return Err(unreachable(shown, error)),
            Err(elapsed) => return Err(unreachable(shown, elapsed)),
        };
        buffer.truncate(count);
        Ok(buffer)
    }

    /// What the program said before it ended.
    async fn last_words(&mut self) -> String {
        let mut words = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let mut limited = errors.take(4096);
            let _ = tokio::time::timeout(Duration::from_secs(2), limited.read_to_end(&mut words)).await;
        }
        let words = String::from_utf8_lossy(&words);
        let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let words = words.join("; ");
        let help = match &words {
            words if words.is_empty() => "ssh ended without a word",
            words if words.contains("Host key verification") => "; add the host's key to root's known_hosts",
            words if words.contains("Permission denied") => "; give root a key that this host accepts",
            _ => "",
        };
        words + help
    }
}

impl Connection {
    /// Fetches one object with all it needs but its history, given what is there; the pack goes to `pack`.
    /// Returns the pack's size.
    pub(crate) async fn fetch(
        self,
        want: &str,
        have: &[String],
        pack: mpsc::Sender<Vec<u8>>,
    ) -> Result<usize, Error> {
        let body = smart::request(&self.advertised, want, have);
        let mut answer = Answer::new(&self.advertised);
        let (shown, patience) = (self.shown, self.patience);
        let mut pace = Pace::new(patience, Instant::now());
        match self.channel {
            Channel::Http { client, base, credentials } => {
                let mut request = client
                    .post(format!("{base}/git-upload-pack"))
                    .header(http::header::CONTENT_TYPE, "application/x-git-upload-pack-request")
                    .header(http::header::ACCEPT, "application/x-git-upload-pack-result")
                    .body(body);
                if let Some((user, password)) = credentials {
                    request = request.basic_auth(user, Some(password));
                }
                let mut stream = answered(request, patience, &shown).await?.bytes_stream();
                while let Some(bytes) = stream.next().await {
                    let bytes = bytes.map_err(|source| unreachable(&shown, source.without_url()))?;
                    paced(&mut pace, bytes.len(), &shown)?;
                    give(&mut answer, &bytes, &pack, &shown).await?;
                }
            }
            Channel::Ssh(mut pipe) => {
                pipe.input.write_all(&body).await.map_err(|error| unreachable(&shown, error))?;
                loop {
                    let bytes = pipe.read(&shown).await?;
                    if bytes.is_empty() {
                        break;
                    }
                    paced(&mut pace, bytes.len(), &shown)?;
                    give(&mut answer, &bytes, &pack, &shown).await?;
                }
                if answer.given == 0 {
                    let why = pipe.last_words().await;
                    return Err(Error::Protocol { url: shown, why });
                }
            }
        }
        Ok(answer.given)
    }

    /// Says goodbye when nothing is to be fetched.
    pub(crate) async fn end(self) {
        if let Channel::Ssh(mut pipe) = self.channel {
            // The far side ends by itself; if it does not, dropping the child ends it.
            let _ = pipe.input.write_all(b"0000").await;
            drop(pipe.input);
            let _ = tokio::time::timeout(Duration::from_secs(2), pipe.child.wait()).await;
        }
    }
}

/// Where the pack is to be had: the server may have moved the repository. Credentials follow to the same server only.
fn moved(asked: &str, answered: &reqwest::Url) -> String {
    let mut base = answered.clone();
    base.set_query(None);
    if let Ok(asked) = reqwest::Url::parse(asked)
        && asked.origin() == base.origin()
    {
        // Both are URLs with a host, so both take a user and a password.
        let _ = base.set_username(asked.username());
        let _ = base.set_password(asked.password());
    }
    base.as_str().trim_end_matches("/info/refs").to_owned()
}

async fn give(
    answer: &mut Answer,
    bytes: &[u8],
    pack: &mpsc::Sender<Vec<u8>>,
    shown: &str,
) -> Result<(), Error> {
    let part = answer.push(bytes).map_err(|why| Error::Protocol { url: shown.to_owned(), why })?;
    if answer.given > MOST_PACK {
        return Err(Error::TooMuch { path: shown.to_owned(), most: MOST_PACK, what: "bytes of one commit" });
    }
    if !part.is_empty() {
        // A receiver that is gone has an error of its own to tell.
        let _ = pack.send(part).await;
    }
    Ok(())
}

fn paced(pace: &mut Pace, bytes: usize, shown: &str) -> Result<(), Error> {
    let took = pace.took(bytes, Instant::now());
    took.map_err(|why| Error::Protocol { url: shown.to_owned(), why })
}

/// The head of an answer, which must not be dripped either.
async fn answered(
    request: reqwest::RequestBuilder,
    patience: Patience,
    shown: &str,
) -> Result<reqwest::Response, Error> {
    match tokio::time::timeout(patience.span, request.send()).await {
        Ok(asked) => succeeded(asked, shown),
        Err(elapsed) => Err(unreachable(shown, elapsed)),
    }
}

fn succeeded(asked: reqwest::Result<reqwest::Response>, shown: &str) -> Result<reqwest::Response, Error> {
    let answer = asked.map_err(|source| unreachable(shown, source.without_url()))?;
    let status = answer.status().as_u16();
    let help = match status {
        200 => return Ok(answer),
        401 | 403 => {
            "it wants credentials: auth = { user = \"…\", password = { file = \"…\" } }, or https://user:token@host/path"
        }
        404 => "check the address; a private repository answers so when credentials are missing",
        429 => "it is asked too often: raise `interval`",
        500.. => "the server is in trouble, it is asked again",
        _ => "check the address",
    };
    Err(Error::Refused { url: shown.to_owned(), status, help })
}

/// What was tried with a file of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{verb} the certificates in {path}")]
struct Told {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Told {
    fn new(
        verb: &'static str,
        path: &Path,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Told {
        Told { verb, path: path.to_path_buf(), source: source.into() }
    }
}

fn unreachable(shown: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Reach { url: shown.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_follow_a_moved_repository_on_the_same_server_only() {
        let asked = "https://me:s3%40cret@example.org/old.git";
        for (answered, base) in [
            ("https://example.org/old.git/info/refs?service=x", "https://me:s3%40cret@example.org/old.git"),
            ("https://example.org/new.git/info/refs?service=x", "https://me:s3%40cret@example.org/new.git"),
            ("https://example.org:444/old.git/info/refs?service=x", "https://example.org:444/old.git"),
            ("http://example.org/old.git/info/refs?service=x", "http://example.org/old.git"),
            ("https://elsewhere.org/old.git/info/refs?service=x", "https://elsewhere.org/old.git"),
        ] {
            assert_eq!(moved(asked, &reqwest::Url::parse(answered).expect("a URL")), base);
        }
    }
}
