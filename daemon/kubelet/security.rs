//! Who a container is and what it may do, from the security contexts of pod and container: pure.
//!
//! Invariant: what is documented to be refused is refused in the documented words; nothing asked for is passed over.

use std::path::{Component, Path, PathBuf};

use images::ImageConfig;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use runtime::{Seccomp, User};

/// Sysctls that belong to a sandbox alone and harm nobody else, as documented.
const SAFE_SYSCTLS: [&str; 13] = [
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
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What the runtime is told of a container's rights.
pub(crate) struct Security {
    pub(crate) user: User,
    pub(crate) user_name: Option<String>,
    pub(crate) strict_groups: bool,
    pub(crate) capabilities: Vec<String>,
    pub(crate) privileged: bool,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Seccomp,
    pub(crate) apparmor: Option<String>,
    pub(crate) read_only_root: bool,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
}

/// What a profile's name is looked up in.
pub(crate) struct Profiles<'a> {
    /// Where seccomp profiles lie.
    pub(crate) seccomp: &'a Path,
}

impl Security {
    /// Container settings before the pod's, as documented.
    pub(crate) fn of(
        pod: &Pod,
        container: &Container,
        image: &ImageConfig,
        profiles: &Profiles<'_>,
    ) -> Result<Security, String> {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let all = spec.security_context.clone().unwrap_or_default();
        let own = container.security_context.clone().unwrap_or_default();
        let uid = own.run_as_user.or(all.run_as_user);
        let gid = own.run_as_group.or(all.run_as_group);
        if own.run_as_non_root.or(all.run_as_non_root) == Some(true) {
            not_root(uid, &image.user)
                .map_err(|why| format!("{why} (pod: {:?}, container: {})", full_name(pod), container.name))?;
        }
        let mut extra = Vec::new();
        for group in all.supplemental_groups.iter().flatten().copied().chain(all.fs_group) {
            extra.push(id(group)?);
        }
        let user = User { uid: id(uid.unwrap_or(0))?, gid: id(gid.unwrap_or(0))?, extra };
        let privileged = own.privileged.unwrap_or(false);
        let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
        let paths = |list: &[&str]| {
            if unmasked { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() }
        };
        Ok(Security {
            user,
            user_name: user_name(uid, gid, &image.user),
            strict_groups: all.supplemental_groups_policy.as_deref() == Some("Strict"),
            capabilities: capabilities(own.capabilities.as_ref()),
            privileged,
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            seccomp: seccomp(own.seccomp_profile.as_ref().or(all.seccomp_profile.as_ref()), profiles)?,
            apparmor: apparmor(&own, &all)
                .filter(|profile| profile.type_ == "Localhost")
                .and_then(|profile| profile.localhost_profile.clone()),
            read_only_root: own.read_only_root_filesystem.unwrap_or(false),
            masked_paths: paths(runtime::MASKED_PATHS),
            readonly_paths: paths(runtime::READONLY_PATHS),
        })
    }
}

fn id(id: i64) -> Result<u32, String> {
    u32::try_from(id).map_err(|_| format!("user or group id {id} is out of range"))
}

/// Kubernetes' way to name a pod in messages.
fn full_name(pod: &Pod) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

fn not_root(uid: Option<i64>, image_user: &str) -> Result<(), String> {
    let user = image_user.split(':').next().unwrap_or_default();
    match (uid, user.parse::<u32>()) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".to_owned()),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err("container has runAsNonRoot and image will run as root".to_owned()),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if user.is_empty() => {
            Err("container has runAsNonRoot and image will run as root".to_owned())
        }
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
        )),
    }
}

/// A user id keeps the group that the image's own passwd gives it, unless the pod names one.
fn user_name(uid: Option<i64>, gid: Option<i64>, image_user: &str) -> Option<String> {
    let name = match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        (Some(uid), None) => uid.to_string(),
        (None, Some(gid)) => {
            let user = image_user.split(':').next().unwrap_or_default();
            format!("{}:{gid}", if user.is_empty() { "0" } else { user })
        }
        (None, None) => image_user.to_owned(),
    };
    Some(name).filter(|name| !name.is_empty())
}

fn seccomp(profile: Option<&SeccompProfile>, profiles: &Profiles<'_>) -> Result<Seccomp, String> {
    let Some(profile) = profile else { return Ok(Seccomp::Default) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::Default),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if name.is_empty() || !inside {
                return Err(format!(
                    "seccomp profile {name:?} must be a path inside {}",
                    profiles.seccomp.display()
                ));
            }
            Ok(Seccomp::Profile(profiles.seccomp.join(name)))
        }
        other => Err(format!("there is no seccompProfile type {other:?}")),
    }
}

fn apparmor<'a>(own: &'a SecurityContext, all: &'a PodSecurityContext) -> Option<&'a AppArmorProfile> {
    own.app_armor_profile.as_ref().or(all.app_armor_profile.as_ref())
}

/// The customary set, less what is dropped, plus what is added. `ALL` goes first, on either side.
fn capabilities(changes: Option<&k8s_openapi::api::core::v1::Capabilities>) -> Vec<String> {
    let name = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let list = |list: Option<&Vec<String>>| list.into_iter().flatten().map(name).collect::<Vec<_>>();
    let drop = list(changes.and_then(|changes| changes.drop.as_ref()));
    let add = list(changes.and_then(|changes| changes.add.as_ref()));
    let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut set = match (has_all(&add), has_all(&drop)) {
        (true, _) => names(runtime::ALL_CAPABILITIES),
        (false, true) => Vec::new(),
        (false, false) => names(runtime::DEFAULT_CAPABILITIES),
    };
    set.extend(add.into_iter().filter(|name| name != "ALL"));
    set.retain(|known| !drop.contains(known));
    set.sort();
    set.dedup();
    set
}

/// The sysctls of a pod, each under its name with dots.
pub(crate) fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let context = spec.security_context.as_ref();
    let asked = context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    asked.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect()
}

/// Why the pod's sysctls are not set: reason and message for a pod that fails for good.
pub(crate) fn forbidden_sysctl(spec: &PodSpec, allowed: &[String]) -> Option<(String, String)> {
    let refuse = |why: String| Some(("SysctlForbidden".to_owned(), why));
    let host = (spec.host_network == Some(true), spec.host_ipc == Some(true));
    for (name, _) in sysctls(spec) {
        let network = name.starts_with("net.");
        let ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| name.starts_with(p));
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(fits) {
            return refuse(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if !network && !ipc {
            return refuse(format!("forbidden sysctl: {name:?} is the whole machine's, not a pod's"));
        }
        if network && host.0 {
            return refuse(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
        if ipc && host.1 {
            return refuse(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
        }
    }
    None
}

/// Why the kernel cannot confine the pod as it asks: reason and message for a pod that fails for good.
pub(crate) fn unconfinable(spec: &PodSpec, has_apparmor: bool) -> Option<(String, String)> {
    let empty = (PodSecurityContext::default(), SecurityContext::default());
    let all = spec.security_context.as_ref().unwrap_or(&empty.0);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        let own = container.security_context.as_ref().unwrap_or(&empty.1);
        let Some(profile) = apparmor(own, all) else { continue };
        let refuse = |why: &str| Some(("AppArmor".to_owned(), format!("Cannot enforce AppArmor: {why}")));
        match profile.type_.as_str() {
            "Unconfined" => {}
            _ if !has_apparmor => return refuse("AppArmor is not enabled on the host"),
            "Localhost" => {}
            _ => return refuse("this node loads no default profile: name a loaded one with type Localhost"),
        }
    }
    None
}

/// Where the kernel says whether it has AppArmor.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Where seccomp profiles lie when the configuration names no place.
pub(crate) fn seccomp_dir(configured: &Path, pods_dir: &Path) -> PathBuf {
    match configured.as_os_str().is_empty() {
        true => pods_dir.parent().unwrap_or(pods_dir).join("seccomp"),
        false => configured.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn security(pod_context: Value, context: Value, image_user: &str) -> Result<Security, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]},
        }))
        .unwrap();
        let image = ImageConfig { user: image_user.to_owned(), ..ImageConfig::default() };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        Security::of(&pod, container, &image, &Profiles { seccomp: Path::new("/profiles") })
    }

    #[test]
    fn a_container_that_must_not_be_root_is_refused_in_the_documented_words() {
        let check = |context: Value, image: &str, expected: Option<&str>| {
            let found = security(json!({"runAsNonRoot": true}), context, image);
            let wanted = expected.map(|text| format!("{text} (pod: \"p_n(u)\", container: c)"));
            assert_eq!(found.err(), wanted, "image user {image:?}");
        };
        check(json!({}), "", Some("container has runAsNonRoot and image will run as root"));
        check(json!({}), "0:5", Some("container has runAsNonRoot and image will run as root"));
        check(json!({}), "1000", None);
        check(
            json!({}),
            "web",
            Some(
                "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root",
            ),
        );
        check(json!({"runAsUser": 7}), "", None);
        check(json!({"runAsUser": 0}), "7", Some("container's runAsUser breaks non-root policy"));
        check(json!({"runAsNonRoot": false}), "", None);
    }

    #[test]
    fn the_user_is_the_containers_the_pods_or_the_images() {
        let check = |pod: Value, own: Value, image: &str, expected: Option<&str>| {
            assert_eq!(security(pod, own, image).unwrap().user_name.as_deref(), expected);
        };
        check(json!({}), json!({}), "web:logs", Some("web:logs"));
        check(json!({}), json!({}), "", None);
        check(json!({"runAsUser": 5}), json!({}), "web", Some("5"));
        check(json!({"runAsUser": 5, "runAsGroup": 6}), json!({"runAsUser": 7}), "web", Some("7:6"));
        check(json!({"runAsGroup": 6}), json!({}), "web:logs", Some("web:6"));
        check(json!({"runAsGroup": 6}), json!({}), "", Some("0:6"));
    }

    #[test]
    fn capabilities_are_dropped_from_and_added_to_the_customary_set() {
        let check = |context: Value, with: &[&str], without: &[&str]| {
            let found = security(json!({}), json!({"capabilities": context}), "").unwrap().capabilities;
            for name in with {
                assert!(found.contains(&(*name).to_owned()), "{name} is in {found:?}");
            }
            for name in without {
                assert!(!found.contains(&(*name).to_owned()), "{name} is not in {found:?}");
            }
        };
        check(json!({}), &["CAP_CHOWN"], &["CAP_SYS_ADMIN"]);
        check(json!({"add": ["SYS_TIME"], "drop": ["CHOWN"]}), &["CAP_SYS_TIME"], &["CAP_CHOWN"]);
        check(
            json!({"add": ["net_bind_service"], "drop": ["all"]}),
            &["CAP_NET_BIND_SERVICE"],
            &["CAP_CHOWN"],
        );
        check(
            json!({"add": ["ALL"], "drop": ["SYS_ADMIN"]}),
            &["CAP_SYS_TIME", "CAP_BPF"],
            &["CAP_SYS_ADMIN", "ALL"],
        );
    }

    #[test]
    fn a_profile_is_a_file_of_the_nodes_own_directory() {
        let profile = |kind: &str, name: &str| {
            let profile = json!({"seccompProfile": {"type": kind, "localhostProfile": name}});
            security(profile, json!({}), "").map(|security| security.seccomp)
        };
        assert_eq!(profile("Localhost", "a/b.json").unwrap(), Seccomp::Profile("/profiles/a/b.json".into()));
        assert_eq!(profile("Unconfined", "").unwrap(), Seccomp::Unconfined);
        assert_eq!(security(json!({}), json!({}), "").unwrap().seccomp, Seccomp::Default);
        for name in ["../x", "/etc/x", ""] {
            assert!(profile("Localhost", name).unwrap_err().contains("must be a path inside /profiles"));
        }
    }

    #[test]
    fn only_safe_sysctls_are_set_and_others_where_the_configuration_allows_them() {
        let check = |name: &str, more: Value, allowed: &[&str], expected: Option<&str>| {
            let mut spec =
                json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
            let found = forbidden_sysctl(&serde_json::from_value(spec).unwrap(), &allowed);
            assert_eq!(found.map(|(_, message)| message).as_deref(), expected, "{name}");
        };
        check("kernel.shm_rmid_forced", json!({}), &[], None);
        check("net/ipv4/tcp_syncookies", json!({}), &[], None);
        check("kernel.msgmax", json!({}), &[], Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"));
        check("kernel.msgmax", json!({}), &["kernel.msg*"], None);
        let whole = Some("forbidden sysctl: \"vm.swappiness\" is the whole machine's, not a pod's");
        check("vm.swappiness", json!({}), &["vm.swappiness"], whole);
        let net = Some("forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled");
        check("net.ipv4.tcp_syncookies", json!({"hostNetwork": true}), &[], net);
    }

    #[test]
    fn a_pod_that_asks_for_apparmor_is_refused_where_the_kernel_has_none() {
        let spec = |kind: &str| -> PodSpec {
            let context = json!({"appArmorProfile": {"type": kind, "localhostProfile": "mine"}});
            serde_json::from_value(json!({"containers": [{"name": "c", "securityContext": context}]}))
                .unwrap()
        };
        assert_eq!(unconfinable(&spec("Unconfined"), false), None);
        let (reason, message) = unconfinable(&spec("Localhost"), false).unwrap();
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
        );
        assert_eq!(unconfinable(&spec("Localhost"), true), None);
        assert!(unconfinable(&spec("RuntimeDefault"), true).is_some());
    }
}
