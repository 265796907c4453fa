//! Probes: which are wanted (pure), and the tasks that make them.
//!
//! A readiness probe that has not succeeded yet is tried again after 10 ms, 20 ms, … up to its period: a container is
//! told ready when it is, not a period later. After the first success the documented timings hold.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerPort, HTTPGetAction, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use runtime::{ExecOrder, ExecSpec, Runtime, SandboxState};
use tokio::io::AsyncReadExt;

use crate::book::Notes;
use crate::plan::is_running;

/// One probe of one running attempt of a container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) kind: Kind,
    pub(crate) check: Check,
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) failure_threshold: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Check {
    Http {
        url: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        address: String,
    },
    Exec {
        command: Vec<String>,
    },
    /// Cannot be made; fails with this text.
    Impossible {
        why: String,
    },
}

/// The probes that are to run now. Readiness and liveness wait for the startup probe.
pub(crate) fn wanted(pod: &Pod, sandbox: Option<&SandboxState>, ip: &str, notes: &Notes) -> Vec<Wanted> {
    let Some((spec, sandbox)) = pod.spec.as_ref().zip(sandbox) else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let mut all = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        let newest = sandbox
            .containers
            .iter()
            .filter(|state| state.name == container.name)
            .max_by_key(|state| state.attempt);
        let Some(state) = newest.filter(|state| is_running(state)) else { continue };
        let probed = notes.probes.get(&container.name).filter(|probed| probed.attempt == state.attempt);
        let started = container.startup_probe.is_none() || probed.is_some_and(|probed| probed.started);
        let due = [
            (Kind::Startup, container.startup_probe.as_ref().filter(|_| !started)),
            (Kind::Readiness, container.readiness_probe.as_ref().filter(|_| started)),
            (Kind::Liveness, container.liveness_probe.as_ref().filter(|_| started)),
        ];
        for (kind, probe) in due {
            all.extend(probe.map(|probe| one(container, state.attempt, kind, probe, ip)));
        }
    }
    all
}

fn one(container: &Container, attempt: u32, kind: Kind, probe: &Probe, ip: &str) -> Wanted {
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
    };
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1)
    };
    Wanted {
        container: container.name.clone(),
        attempt,
        kind,
        check: check(container, probe, ip),
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
        timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        success_threshold: count(probe.success_threshold, 1),
        failure_threshold: count(probe.failure_threshold, 3),
    }
}

pub(crate) fn check(container: &Container, probe: &Probe, ip: &str) -> Check {
    if let Some(exec) = &probe.exec {
        return Check::Exec { command: exec.command.clone().unwrap_or_default() };
    }
    let ports = container.ports.as_deref().unwrap_or_default();
    if let Some(http) = &probe.http_get {
        return match port(&http.port, ports) {
            Some(port) => Check::Http { url: url(http, ip, port), headers: headers(http) },
            None => Check::Impossible {
                why: format!("port {:?} is not a port of container {}", http.port, container.name),
            },
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.as_deref().unwrap_or(ip);
        return match port(&tcp.port, ports) {
            Some(port) => Check::Tcp { address: format!("{host}:{port}") },
            None => Check::Impossible {
                why: format!("port {:?} is not a port of container {}", tcp.port, container.name),
            },
        };
    }
    Check::Impossible { why: "grpc probes are not served by this node yet".to_owned() }
}

fn port(port: &IntOrString, ports: &[ContainerPort]) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let named =
                ports.iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            named.and_then(|number| u16::try_from(number).ok()).or_else(|| name.parse().ok())
        }
    }
}

fn url(http: &HTTPGetAction, ip: &str, port: u16) -> String {
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let path = http.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!(
        "{scheme}://{}:{port}{slash}{path}",
        http.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip)
    )
}

fn headers(http: &HTTPGetAction) -> Vec<(String, String)> {
    http.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect()
}

/// Most bytes of a probe's output that are told.
const TOLD_BYTES: u64 = 4096;

/// Makes one probe. The error is what `kubectl describe` shows.
pub(crate) async fn make(
    wanted: &Wanted,
    sandbox: &str,
    runtime: &dyn Runtime,
    http: &reqwest::Client,
) -> Result<(), String> {
    let outcome =
        tokio::time::timeout(wanted.timeout, once(&wanted.check, &wanted.container, sandbox, runtime, http));
    outcome.await.unwrap_or_else(|_| Err(format!("no answer within {}s", wanted.timeout.as_secs())))
}

/// Asks once, however long it takes.
pub(crate) async fn once(
    check: &Check,
    container: &str,
    sandbox: &str,
    runtime: &dyn Runtime,
    http: &reqwest::Client,
) -> Result<(), String> {
    match check {
        Check::Http { url, headers } => get(http, url, headers).await,
        Check::Tcp { address } => match tokio::net::TcpStream::connect(address).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("dial tcp {address}: {error}")),
        },
        Check::Exec { command } => exec(command, container, sandbox, runtime).await,
        Check::Impossible { why } => Err(why.clone()),
    }
}

async fn get(http: &reqwest::Client, url: &str, headers: &[(String, String)]) -> Result<(), String> {
    let mut request = http.get(url).header("User-Agent", "kube-probe/1.36");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let response = request
        .send()
        .await
        .map_err(|error| format!("Get {url:?}: {}", reconcile::chain(&error.without_url())))?;
    let status = response.status().as_u16();
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
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
    let mut output = Vec::new();
    // Its output ends with the program, or is cut; how it ended decides either way.
    let _ = (&mut exec.stdout).take(TOLD_BYTES).read_to_end(&mut output).await;
    let exit = exec.wait().await.map_err(|error| reconcile::chain(&error))?;
    drop(kill);
    if exit.code == 0 {
        Ok(())
    } else {
        Err(format!("command exited with {}: {}", exit.code, String::from_utf8_lossy(&output).trim()))
    }
}

struct KillOnDrop(tokio::sync::mpsc::Sender<ExecOrder>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // One that has ended takes no orders: that is as good.
        let _ = self.0.try_send(ExecOrder::Signal(9));
    }
}
