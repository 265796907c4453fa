//! The rules of `baseline`: nothing that is known to lead out of a container.
//!
//! Invariant: one function per rule, each giving at most one reason.

use serde_json::Value;

use super::{containers, listed, named, quoted};

/// Which rules a stricter level takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Besides {
    Nothing,
    Restricted,
}

const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: &[&str] =
    &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

pub(super) fn reasons(metadata: &Value, spec: &Value, besides: Besides) -> Vec<String> {
    let own = besides == Besides::Nothing;
    [
        app_armor(metadata, spec),
        own.then(|| capabilities(spec)).flatten(),
        namespaces(spec),
        own.then(|| host_paths(spec)).flatten(),
        host_ports(spec),
        probes(spec),
        privileged(spec),
        proc_mount(spec),
        selinux(spec),
        own.then(|| seccomp(spec)).flatten(),
        sysctls(spec),
        windows(spec),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<String> {
    let mut bad = Vec::new();
    let loose = |context: &Value| context["appArmorProfile"]["type"] == "Unconfined";
    if loose(&spec["securityContext"]) {
        bad.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
    }
    let names = named(spec, |container| loose(&container["securityContext"]));
    if !names.is_empty() {
        bad.push(format!("{} must not set AppArmor profile type to \"Unconfined\"", listed(&names)));
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    for (name, value) in
        annotations.filter(|(name, _)| name.starts_with("container.apparmor.security.beta.kubernetes.io/"))
    {
        let value = value.as_str().unwrap_or_default();
        if !matches!(value, "" | "runtime/default") && !value.starts_with("localhost/") {
            bad.push(format!("{name}={value:?}"));
        }
    }
    let plural = if bad.len() > 1 { "s" } else { "" };
    (!bad.is_empty()).then(|| format!("forbidden AppArmor profile{plural} ({})", bad.join(", ")))
}

fn capabilities(spec: &Value) -> Option<String> {
    let added = |container: &Value| -> Vec<String> {
        let list = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
        let words = list.filter_map(Value::as_str);
        words.filter(|word| !CAPABILITIES.contains(word)).map(str::to_owned).collect()
    };
    let names = named(spec, |container| !added(container).is_empty());
    let all: Vec<String> = containers(spec).flat_map(|(_, container)| added(container)).collect();
    (!names.is_empty()).then(|| {
        format!(
            "non-default capabilities ({} must not include {} in securityContext.capabilities.add)",
            listed(&names),
            quoted(all.iter().map(String::as_str).collect())
        )
    })
}

fn namespaces(spec: &Value) -> Option<String> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| format!("host namespaces ({})", set.join(", ")))
}

fn host_paths(spec: &Value) -> Option<String> {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let names: Vec<String> = volumes
        .filter(|volume| !volume["hostPath"].is_null())
        .map(|volume| format!("{:?}", volume["name"].as_str().unwrap_or_default()))
        .collect();
    let plural = if names.len() > 1 { "s" } else { "" };
    (!names.is_empty()).then(|| format!("hostPath volumes (volume{plural} {})", names.join(", ")))
}

fn host_ports(spec: &Value) -> Option<String> {
    let used = |container: &Value| -> Vec<i64> {
        let ports = container["ports"].as_array().into_iter().flatten();
        ports.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0).collect()
    };
    let names = named(spec, |container| !used(container).is_empty());
    let mut ports: Vec<i64> = containers(spec).flat_map(|(_, container)| used(container)).collect();
    ports.sort_unstable();
    ports.dedup();
    let verb = if names.len() > 1 { "use" } else { "uses" };
    let plural = if ports.len() > 1 { "s" } else { "" };
    let ports: Vec<String> = ports.iter().map(i64::to_string).collect();
    (!names.is_empty())
        .then(|| format!("hostPort ({} {verb} hostPort{plural} {})", listed(&names), ports.join(", ")))
}

fn probes(spec: &Value) -> Option<String> {
    let names = named(spec, |container| {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|name| &container[name]);
        let hooks = ["postStart", "preStop"].map(|name| &container["lifecycle"][name]);
        probes.into_iter().chain(hooks).any(|action| {
            let hosts =
                ["httpGet", "tcpSocket"].map(|kind| action[kind]["host"].as_str().unwrap_or_default());
            hosts.iter().any(|host| !host.is_empty())
        })
    });
    (!names.is_empty()).then(|| format!("probe or lifecycle host ({} must not set host)", listed(&names)))
}

fn privileged(spec: &Value) -> Option<String> {
    let names = named(spec, |container| container["securityContext"]["privileged"] == true);
    (!names.is_empty())
        .then(|| format!("privileged ({} must not set securityContext.privileged=true)", listed(&names)))
}

fn proc_mount(spec: &Value) -> Option<String> {
    let set = |container: &Value| {
        !matches!(container["securityContext"]["procMount"].as_str(), None | Some("Default"))
    };
    let names = named(spec, set);
    (!names.is_empty()).then(|| {
        format!("procMount ({} must not set securityContext.procMount to \"Unmasked\")", listed(&names))
    })
}

fn selinux(spec: &Value) -> Option<String> {
    let bad = |options: &Value| {
        let word = |field: &str| options[field].as_str().unwrap_or_default().to_owned();
        !SELINUX_TYPES.contains(&word("type").as_str())
            || !word("user").is_empty()
            || !word("role").is_empty()
    };
    let mut told = Vec::new();
    if bad(&spec["securityContext"]["seLinuxOptions"]) {
        told.push("pod".to_owned());
    }
    let names = named(spec, |container| bad(&container["securityContext"]["seLinuxOptions"]));
    if !names.is_empty() {
        told.push(listed(&names));
    }
    (!told.is_empty()).then(|| {
        format!("seLinuxOptions ({} set forbidden securityContext.seLinuxOptions)", told.join(" and "))
    })
}

fn seccomp(spec: &Value) -> Option<String> {
    let loose = |context: &Value| context["seccompProfile"]["type"] == "Unconfined";
    let mut told = Vec::new();
    if loose(&spec["securityContext"]) {
        told.push("pod".to_owned());
    }
    let names = named(spec, |container| loose(&container["securityContext"]));
    if !names.is_empty() {
        told.push(listed(&names));
    }
    (!told.is_empty()).then(|| {
        format!(
            "seccompProfile ({} must not set securityContext.seccompProfile.type to \"Unconfined\")",
            told.join(" and ")
        )
    })
}

fn sysctls(spec: &Value) -> Option<String> {
    let set = spec["securityContext"]["sysctls"].as_array().into_iter().flatten();
    let names: Vec<&str> =
        set.filter_map(|one| one["name"].as_str()).filter(|name| !SYSCTLS.contains(name)).collect();
    (!names.is_empty()).then(|| format!("forbidden sysctls ({})", names.join(", ")))
}

fn windows(spec: &Value) -> Option<String> {
    let set = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let mut told = Vec::new();
    if set(&spec["securityContext"]) {
        told.push("pod".to_owned());
    }
    let names = named(spec, |container| set(&container["securityContext"]));
    if !names.is_empty() {
        told.push(listed(&names));
    }
    (!told.is_empty()).then(|| {
        format!(
            "hostProcess ({} must not set securityContext.windowsOptions.hostProcess=true)",
            told.join(" and ")
        )
    })
}
