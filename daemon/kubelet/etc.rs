//! The files of `/etc` that every container gets: hosts, hostname, resolv.conf. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// What a hostname may be long, in the kernel and in DNS.
const LONGEST_HOSTNAME: usize = 63;
const LONGEST_FQDN: usize = 64;
/// The domain of the cluster.
const DOMAIN: &str = "cluster.local";

/// What the node adds to every pod's network files.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) dns: String,
    pub(crate) host_resolv_conf: String,
    /// The machine's own `/etc/hosts`, for pods in its network.
    pub(crate) host_hosts: String,
    pub(crate) ip: String,
}

/// Each file with its text.
pub(crate) fn of(pod: &Pod, names: &Names) -> BTreeMap<String, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    BTreeMap::from([
        ("hosts".to_owned(), hosts(pod, spec, names)),
        ("hostname".to_owned(), format!("{}\n", kernel_hostname(pod).unwrap_or_else(|_| hostname(pod)))),
        ("resolv.conf".to_owned(), resolv_conf(spec, namespace, names)),
    ])
}

/// In Kubernetes' own form: programs, and its conformance suite, look for the first line.
fn hosts(pod: &Pod, spec: &PodSpec, names: &Names) -> String {
    let mut hosts = if spec.host_network == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{}", names.host_hosts)
    } else {
        let mut own = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        if !names.ip.is_empty() {
            let domain = fqdn(pod).map(|name| format!("{name}\t")).unwrap_or_default();
            own.push_str(&format!("{}\t{domain}{}\n", names.ip, hostname(pod)));
        }
        own
    };
    let aliases: Vec<_> = spec.host_aliases.iter().flatten().collect();
    if !aliases.is_empty() {
        hosts.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        hosts.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    hosts
}

/// `hostname.subdomain.namespace.svc.cluster.local`, for pods with a subdomain.
fn fqdn(pod: &Pod) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_ref().filter(|subdomain| !subdomain.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{DOMAIN}", hostname(pod)))
}

/// What the kernel is told: the hostname, or the whole name where the pod asks for that.
///
/// # Errors
/// In words, when the whole name is longer than the kernel takes.
pub(crate) fn kernel_hostname(pod: &Pod) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let whole = spec.and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    let name = match fqdn(pod).filter(|_| whole) {
        Some(name) => name,
        None => return Ok(hostname(pod)),
    };
    if name.len() > LONGEST_FQDN {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long ({LONGEST_FQDN} characters is the max, {} characters requested) in namespace {namespace}",
            name.len()
        ));
    }
    Ok(name)
}

/// `spec.hostnameOverride`, `spec.hostname`, or the pod's name cut to what a hostname may be.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.clone()).filter(|name| !name.is_empty()) {
        return name;
    }
    let own = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = own.or(pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(LONGEST_HOSTNAME).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// As documented for each `dnsPolicy`, with `dnsConfig` merged in.
fn resolv_conf(spec: &PodSpec, namespace: &str, names: &Names) -> String {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network.unwrap_or(false);
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let host = |word: &str| -> Vec<String> {
        let lines = names.host_resolv_conf.lines().filter_map(|line| line.trim().strip_prefix(word));
        lines.flat_map(|rest| rest.split_whitespace().map(str::to_owned)).collect()
    };
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        _ if cluster => {
            let own = [
                format!("{namespace}.svc.cluster.local"),
                "svc.cluster.local".to_owned(),
                "cluster.local".to_owned(),
            ];
            (
                vec![names.dns.clone()],
                own.into_iter().chain(host("search")).collect(),
                vec!["ndots:5".to_owned()],
            )
        }
        _ => (host("nameserver"), host("search"), host("options")),
    };
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.clone().unwrap_or_default());
        searches.extend(config.searches.clone().unwrap_or_default());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|known| known.split(':').next() != Some(&name));
            options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}
