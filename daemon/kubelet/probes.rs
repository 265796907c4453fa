//! Probes: which are wanted. Pure.
//!
//! A readiness probe that has not succeeded yet is tried again after 10 ms, 20 ms, … up to its period: a container is
//! told ready when it is, not a period later. After the first success the documented timings hold.

use std::time::Duration;

use crate::plan::View;
use crate::rules::{self, Attempt, Member, Role};
use k8s_openapi::api::core::v1::{Container, ContainerPort, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

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
    /// The probe's own grace period for the container that it ends.
    pub(crate) grace_seconds: Option<i64>,
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
    /// `grpc.health.v1.Health/Check`, in clear text.
    Grpc {
        address: String,
        service: String,
    },
    /// Cannot be made; fails with this text.
    Impossible {
        why: String,
    },
}

/// The probes that are to run now. Readiness and liveness wait for the startup probe, all for the postStart hook.
pub(crate) fn wanted(view: &View, members: &[Member<'_>], ip: &str) -> Vec<Wanted> {
    let mut all = Vec::new();
    for member in members.iter().filter(|member| matches!(member.role, Role::Main | Role::Sidecar)) {
        let container = &member.container;
        let latest = rules::latest(view, &container.name).filter(Attempt::is_running);
        let Some(attempt) = latest.map(|latest| latest.state.attempt) else { continue };
        if rules::in_post_start(view, &container.name, attempt) {
            continue;
        }
        let probed = view.notes.probes.get(&container.name).filter(|probed| probed.attempt == attempt);
        if probed.is_some_and(|probed| probed.must_restart.is_some()) {
            continue;
        }
        let started = container.startup_probe.is_none() || probed.is_some_and(|probed| probed.started);
        let due = [
            (Kind::Startup, container.startup_probe.as_ref().filter(|_| !started)),
            (Kind::Readiness, container.readiness_probe.as_ref().filter(|_| started)),
            (Kind::Liveness, container.liveness_probe.as_ref().filter(|_| started)),
        ];
        for (kind, probe) in due {
            all.extend(probe.map(|probe| one(container, attempt, kind, probe, ip)));
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
        grace_seconds: probe.termination_grace_period_seconds,
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
    if let Some(grpc) = &probe.grpc {
        let service = grpc.service.clone().unwrap_or_default();
        return Check::Grpc { address: format!("{ip}:{}", grpc.port), service };
    }
    Check::Impossible { why: "it names nothing to ask".to_owned() }
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
