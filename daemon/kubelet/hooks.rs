//! Lifecycle hooks: what a postStart or preStop asks for. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};

use crate::probes::{self, Check};

/// What a hook does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Hook {
    Sleep(Duration),
    /// A program, a request or a connection, as probes make them.
    Check(Check),
}

/// What this hook of this container does, with the pod at this address.
pub(crate) fn check(container: &Container, hook: &LifecycleHandler, ip: &str) -> Hook {
    if let Some(sleep) = &hook.sleep {
        return Hook::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)));
    }
    let as_probe = Probe {
        exec: hook.exec.clone(),
        http_get: hook.http_get.clone(),
        tcp_socket: hook.tcp_socket.clone(),
        ..Probe::default()
    };
    Hook::Check(probes::check(container, &as_probe, ip))
}
