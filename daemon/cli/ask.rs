//! Asking the node that runs.
//!
//! Invariant: no proxy is used: the node is on this machine.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use futures::{Stream, StreamExt};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

use super::ink::plain;

/// Where the node is.
#[derive(Debug, Clone)]
pub(crate) struct At {
    /// Of `[web] listen`.
    pub(crate) web: SocketAddr,
    /// The file that holds the token for changing images.
    pub(crate) token: PathBuf,
    /// The administrator's kubeconfig.
    pub(crate) kubeconfig: PathBuf,
}

impl At {
    /// The page's address as this machine reaches it, without a slash at the end.
    pub(crate) fn page(&self) -> String {
        let mut address = self.web;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}")
    }

    /// The address of a path, asked for one application or for all.
    pub(super) fn url(&self, path: &str, application: Option<&str>) -> reqwest::Url {
        let named = application.map(|name| ("application", name));
        let url = format!("{}{path}", self.page());
        match named {
            Some(named) => reqwest::Url::parse_with_params(&url, [named]),
            None => reqwest::Url::parse(&url),
        }
        .expect("a socket address and our own path are a URL")
    }

    pub(super) fn client(&self) -> Result<Client, CliError> {
        Client::builder().no_proxy().build().map_err(|source| CliError::Ask { page: self.page(), source })
    }

    /// Sends a request; the answer's JSON.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let failed = |source: reqwest::Error| self.failed(source);
        let bytes = self.stream(request).await?.bytes().await.map_err(failed)?;
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Sends a request whose answer comes piece by piece.
    pub(super) async fn stream(&self, request: RequestBuilder) -> Result<reqwest::Response, CliError> {
        let answer = request.send().await.map_err(|source| self.failed(source))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let bytes = answer.bytes().await.map_err(|source| self.failed(source))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        let message = value["message"].as_str().map_or_else(text, str::to_owned);
        Err(CliError::Refused { status: status.as_u16(), message })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, CliError> {
        let client = self.client()?;
        self.ask(client.get(format!("{}{path}", self.page()))).await
    }

    fn failed(&self, source: reqwest::Error) -> CliError {
        match source.is_connect() {
            true => CliError::NoNode { page: self.page() },
            false => CliError::Ask { page: self.page(), source },
        }
    }

    /// The documents of `/status`, now and whenever they change.
    pub(super) async fn updates(&self) -> Result<impl Stream<Item = Value> + Unpin + use<>, CliError> {
        let request = self.client()?.get(format!("{}/events", self.page()));
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        let chunks = answer.map_err(|source| self.failed(source))?.bytes_stream();
        let mut lines = Lines::default();
        let documents = chunks.map(move |chunk| {
            let bytes = chunk.unwrap_or_default();
            futures::stream::iter(lines.documents(&bytes))
        });
        Ok(Box::pin(documents.flatten()))
    }
}

/// Cuts an event stream into the documents of its `data:` lines. Ours are one line each.
#[derive(Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// The documents of a stream that has one on each line.
    pub(super) fn plain(&mut self, chunk: &[u8]) -> Vec<Value> {
        let whole = self.whole(chunk);
        whole.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    fn whole(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.0.extend_from_slice(chunk);
        let end = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.0.split_off(end);
        std::mem::replace(&mut self.0, rest)
    }

    fn documents(&mut self, chunk: &[u8]) -> Vec<Value> {
        let whole = self.whole(chunk);
        let data = whole.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
        data.filter_map(|text| serde_json::from_slice(text).ok()).collect()
    }
}

/// What went wrong with a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Nobody listens.
    #[error("no node answers at {page}: start one with `holdfast up`")]
    NoNode {
        /// Where was asked.
        page: String,
    },
    /// The connection broke, or what answers is no node.
    #[error("ask the node at {page}")]
    Ask {
        /// Where.
        page: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// Nobody listens, and its images cannot be reached without it.
    #[error("no node answers at {page}, and without one: {reason}")]
    Alone {
        /// Where was asked.
        page: String,
        /// Why its directory is of no use.
        reason: String,
    },
    /// The node says no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In the node's words.
        message: String,
    },
    /// The stream of changes ended.
    #[error("the node at {page} stopped while its changes were being followed")]
    Stopped {
        /// Where.
        page: String,
    },
    /// A file of the node.
    #[error("read {path}: {way_out}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What to do.
        way_out: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl CliError {
    /// Prints it with its causes; the exit code that tells scripts: 3 when no node answers, otherwise 1.
    pub(crate) fn tell(&self) -> ExitCode {
        let mut line = format!("error: {}", plain(&self.to_string()));
        let mut source = self.source();
        while let Some(cause) = source {
            line.push_str(&format!(": {}", plain(&cause.to_string())));
            source = cause.source();
        }
        eprintln!("{line}");
        ExitCode::from(if matches!(self, CliError::NoNode { .. } | CliError::Alone { .. }) { 3 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_may_come_in_pieces() {
        let mut lines = Lines::default();
        assert!(lines.documents(b"event: status\nda").is_empty());
        assert!(lines.documents(b"ta: {\"ready\":").is_empty());
        assert_eq!(lines.documents(b"true}\n\n: \n\ndata: 1\nda"), [json!({"ready": true}), json!(1)]);
    }
}
