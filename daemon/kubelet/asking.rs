//! Asks a container how it is: by a program, a request or a connection. The errors are what `kubectl describe` shows.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use runtime::{ExecOrder, ExecSpec, Runtime};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::probes::{Check, Wanted};

/// Most bytes of a probe's output that are told.
const TOLD_BYTES: u64 = 10 * 1024;
/// Redirects that are followed, as documented: to the same host only.
const REDIRECTS: usize = 10;
/// Who asks, unless the probe says otherwise.
const AGENT: &str = "kube-probe/1.36";

/// What became of asking: well, perhaps with something to be told all the same, or not, and why.
pub(crate) type Asked = Result<Option<String>, String>;

/// What probes are made with.
pub(crate) struct Asker {
    http: reqwest::Client,
    grpc: reqwest::Client,
}

impl Asker {
    pub(crate) fn new() -> Asker {
        // Certificates are not verified, as documented for HTTPS probes; the pod is asked, nothing is told to it.
        let plain = || {
            let builder = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy();
            builder.danger_accept_invalid_certs(true)
        };
        let same_host = reqwest::redirect::Policy::custom(|attempt| {
            let first = attempt.previous().first().and_then(|url| url.host_str().map(str::to_owned));
            if attempt.previous().len() > REDIRECTS {
                attempt.error(format!("stopped after {REDIRECTS} redirects"))
            } else if attempt.url().host_str() == first.as_deref() {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        let http = plain().redirect(same_host).build();
        let grpc = plain().http2_prior_knowledge().build();
        let expected = "the options of this client are fixed";
        Asker { http: http.expect(expected), grpc: grpc.expect(expected) }
    }

    /// Makes one probe.
    pub(crate) async fn probe(&self, wanted: &Wanted, sandbox: &str, runtime: &dyn Runtime) -> Asked {
        let asked = self.once(&wanted.check, &wanted.container, sandbox, runtime);
        let outcome = tokio::time::timeout(wanted.timeout, asked).await;
        outcome.unwrap_or_else(|_| Err(late(&wanted.check, wanted.timeout)))
    }

    /// Asks once, however long it takes.
    pub(crate) async fn once(
        &self,
        check: &Check,
        container: &str,
        sandbox: &str,
        runtime: &dyn Runtime,
    ) -> Asked {
        match check {
            Check::Http { url, headers } => self.get(url, headers).await,
            Check::Tcp { address } => match tokio::net::TcpStream::connect(address).await {
                Ok(_) => Ok(None),
                Err(error) => Err(format!("dial tcp {address}: {}", connect_error(&error))),
            },
            Check::Exec { command } => exec(command, container, sandbox, runtime).await.map(|()| None),
            Check::Grpc { address, service } => self.health(address, service).await.map(|()| None),
            Check::Impossible { why } => Err(why.clone()),
        }
    }

    async fn get(&self, url: &str, headers: &[(String, String)]) -> Asked {
        let mut all = HeaderMap::new();
        all.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        all.insert(ACCEPT, HeaderValue::from_static("*/*"));
        for own in [USER_AGENT, ACCEPT] {
            // An empty value takes a header away, as documented.
            if headers.iter().any(|(name, value)| name.eq_ignore_ascii_case(own.as_str()) && value.is_empty())
            {
                all.remove(own);
            }
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|error| format!("header {name:?}: {error}"))?;
            let value = HeaderValue::from_str(value).map_err(|error| format!("header {name}: {error}"))?;
            all.insert(name, value);
        }
        let response = self.http.get(url).headers(all).send().await;
        let response = response.map_err(|error| format!("Get {url:?}: {}", request_error(&error)))?;
        let status = response.status().as_u16();
        if (300..400).contains(&status) {
            // To another host, which is not asked: as documented that is well, and told.
            let body = response.text().await.unwrap_or_default();
            Ok(Some(format!("Probe terminated redirects, Response body: {body}")))
        } else if (200..300).contains(&status) {
            Ok(None)
        } else {
            Err(format!("HTTP probe failed with statuscode: {status}"))
        }
    }

    /// One call of gRPC's health protocol: a message of one field there, a message of one number back.
    async fn health(&self, address: &str, service: &str) -> Result<(), String> {
        let url = format!("http://{address}/grpc.health.v1.Health/Check");
        let request = self.grpc.post(url).header("content-type", "application/grpc").header("te", "trailers");
        let response = request.header(USER_AGENT, AGENT).body(health_request(service)).send().await;
        let response = response
            .map_err(|error| format!("failed to connect service {address:?}: {}", request_error(&error)))?;
        let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
        match code {
            None | Some("0") => {}
            Some("12") => {
                return Err(
                    "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                        .to_owned(),
                );
            }
            Some("5") => return Err(format!("service {service:?} is not known")),
            Some(code) => return Err(format!("health rpc failed with status {code}")),
        }
        let body = response
            .bytes()
            .await
            .map_err(|error| format!("health rpc failed: {}", request_error(&error)))?;
        match health_status(&body) {
            Some(1) => Ok(()),
            Some(2) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            Some(3) => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
            _ => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        }
    }
}

/// In gRPC's framing: not compressed, length, then field 1 with the service's name.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend(message);
    body
}

/// Field 1 of the answer; 0, the default, is not sent.
fn health_status(body: &[u8]) -> Option<u8> {
    let message = body.get(5..)?;
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

/// What a probe that got no answer in its time says.
fn late(check: &Check, timeout: Duration) -> String {
    let seconds = timeout.as_secs();
    match check {
        Check::Exec { command } => {
            format!("command timed out: {:?} timed out after {seconds}s", command.join(" "))
        }
        Check::Http { url, .. } => {
            format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        }
        Check::Tcp { address } => format!("dial tcp {address}: i/o timeout"),
        Check::Grpc { address, .. } => {
            format!(
                "timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"
            )
        }
        Check::Impossible { why } => why.clone(),
    }
}

/// The kernel's refusal in the words that people look for.
fn connect_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

fn request_error(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return format!("dial tcp: {}", connect_error(error));
        }
        source = cause.source();
    }
    // The address is told already.
    let whole = reconcile::chain(error);
    whole.split_once("): ").map_or(whole.clone(), |(_, rest)| rest.to_owned())
}

async fn exec(
    command: &[String],
    container: &str,
    sandbox: &str,
    runtime: &dyn Runtime,
) -> Result<(), String> {
    let spec = ExecSpec { args: command.to_vec(), ..ExecSpec::default() };
    let mut exec = runtime.exec(sandbox, container, spec).await.map_err(|error| reconcile::chain(&error))?;
    // A program that outlives its probe is killed with it.
    let kill = KillOnDrop(exec.orders.clone());
    let stderr = exec.stderr.take().unwrap_or_else(|| Box::new(tokio::io::empty()));
    let stdout = std::mem::replace(&mut exec.stdout, Box::new(tokio::io::empty()));
    // Its output ends with the program, or is cut; how it ended decides either way.
    let (out, err) = tokio::join!(told(stdout), told(stderr));
    let exit = exec.wait().await.map_err(|error| reconcile::chain(&error))?;
    drop(kill);
    if exit.code == 0 { Ok(()) } else { Err(format!("{out}{err}")) }
}

/// The beginning of what a program says; the rest is read and forgotten, so that it does not wait for a reader.
async fn told(mut from: Box<dyn AsyncRead + Send + Unpin>) -> String {
    let mut output = Vec::new();
    // A pipe that breaks has told all there is.
    let _ = (&mut from).take(TOLD_BYTES).read_to_end(&mut output).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&output).into_owned()
}

struct KillOnDrop(tokio::sync::mpsc::Sender<ExecOrder>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // One that has ended takes no orders: that is as good.
        let _ = self.0.try_send(ExecOrder::Signal(9));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_call_is_framed_as_grpc_has_it() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_request(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health_status(&[]), None);
    }

    #[test]
    fn what_got_no_answer_is_told_in_the_words_that_people_look_for() {
        let second = Duration::from_secs(1);
        let command = ["cat", "/up"].map(str::to_owned).to_vec();
        assert_eq!(
            late(&Check::Exec { command }, second),
            "command timed out: \"cat /up\" timed out after 1s"
        );
        let tcp = Check::Tcp { address: "10.0.0.2:80".to_owned() };
        assert_eq!(late(&tcp, second), "dial tcp 10.0.0.2:80: i/o timeout");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(connect_error(&refused), "connect: connection refused");
    }
}
