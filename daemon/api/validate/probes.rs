//! Judges probes and lifecycle hooks: one action each, with a port that can be reached.
//!
//! Invariant: a probe and a hook have exactly one action.

use serde_json::Value;

use super::{Found, items, names, text};
use crate::schema::Defect;

/// `validateLivenessProbe`, `validateReadinessProbe`, `validateStartupProbe` of one container.
pub(super) fn probes(container: &Value, path: &str, found: &mut Found) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[name];
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{name}");
        action(probe, &path, &["exec", "grpc", "httpGet", "tcpSocket"], found);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            found.non_negative(&probe[field], &format!("{path}.{field}"));
        }
        if name != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|count| count != 1) {
            found.add(Defect::invalid(
                format!("{path}.successThreshold"),
                &probe["successThreshold"],
                "must be 1",
            ));
        }
        let grace = &probe["terminationGracePeriodSeconds"];
        if name == "readinessProbe" && !grace.is_null() {
            let why = "must not be set for readinessProbes";
            found.add(Defect::invalid(format!("{path}.terminationGracePeriodSeconds"), grace, why));
        } else if grace.as_i64().is_some_and(|seconds| seconds <= 0) {
            found.add(Defect::invalid(
                format!("{path}.terminationGracePeriodSeconds"),
                grace,
                "must be greater than 0",
            ));
        }
    }
}

/// `validateLifecycle` of one container.
pub(super) fn lifecycle(container: &Value, spec: &Value, path: &str, found: &mut Found) {
    if !container["lifecycle"]["stopSignal"].is_null() && text(&spec["os"]["name"]).is_empty() {
        let why = "may not be set for containers with empty `spec.os.name`";
        found.add(Defect::forbidden(format!("{path}.lifecycle.stopSignal"), why));
    }
    let grace = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    for name in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][name];
        if !hook.is_null() {
            action(
                hook,
                &format!("{path}.lifecycle.{name}"),
                &["exec", "httpGet", "sleep", "tcpSocket"],
                found,
            );
        }
        let seconds = &hook["sleep"]["seconds"];
        if seconds.as_i64().is_some_and(|seconds| !(0..=grace).contains(&seconds)) {
            let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            found.add(Defect::invalid(format!("{path}.lifecycle.{name}.sleep"), seconds, &why));
        }
    }
}

fn action(of: &Value, path: &str, known: &[&str], found: &mut Found) {
    let given: Vec<&str> = known.iter().copied().filter(|name| !of[*name].is_null()).collect();
    match given.as_slice() {
        [] => found.add(Defect::required(path, "must specify a handler type")),
        [_] => {}
        [_, extra @ ..] => {
            for name in extra {
                found.add(Defect::forbidden(
                    format!("{path}.{name}"),
                    "may not specify more than 1 handler type",
                ));
            }
        }
    }
    if !of["exec"].is_null() && items(&of["exec"]["command"]).is_empty() {
        found.add(Defect::required(format!("{path}.exec.command"), ""));
    }
    let get = &of["httpGet"];
    if !get.is_null() {
        found.required(&get["path"], &format!("{path}.httpGet.path"));
        port(&get["port"], &format!("{path}.httpGet.port"), found);
        found.one_of(&get["scheme"], &format!("{path}.httpGet.scheme"), &["HTTP", "HTTPS"]);
        for (index, header) in items(&get["httpHeaders"]).iter().enumerate() {
            header_name(&header["name"], &format!("{path}.httpGet.httpHeaders[{index}].name"), found);
        }
    }
    for name in ["tcpSocket", "grpc"] {
        if !of[name].is_null() {
            port(&of[name]["port"], &format!("{path}.{name}.port"), found);
        }
    }
}

/// A port by number or by name (`ValidatePortNumOrName`).
pub(super) fn port(port: &Value, path: &str, found: &mut Found) {
    match port {
        Value::String(name) => found.rules(port, path, names::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or(0);
            found.rules(&number.into(), path, names::port_number(number));
        }
    }
}

fn header_name(name: &Value, path: &str, found: &mut Found) {
    let fine = !text(name).is_empty() && text(name).bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !fine {
        let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
        found.add(Defect::invalid(path, name, why));
    }
}
