//! Who a container is and what it may do, from the security contexts of pod and container: pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use runtime::{Seccomp, User};

/// What the runtime is told of a container's rights.
pub(crate) struct Security {
    pub(crate) user: User,
    pub(crate) user_name: Option<String>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) privileged: bool,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Seccomp,
    pub(crate) read_only_root: bool,
}

impl Security {
    /// Container settings before the pod's, as documented.
    pub(crate) fn of(spec: &PodSpec, container: &Container, image_user: &str) -> Result<Security, String> {
        let pod = spec.security_context.clone().unwrap_or_default();
        let own = container.security_context.clone().unwrap_or_default();
        let id = |id: i64| u32::try_from(id).map_err(|_| format!("user or group id {id} is out of range"));
        let uid = own.run_as_user.or(pod.run_as_user);
        let gid = own.run_as_group.or(pod.run_as_group);
        if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            let root = match uid {
                Some(uid) => uid == 0,
                None => matches!(image_user.split(':').next(), Some("" | "0" | "root")),
            };
            if root {
                return Err("container has runAsNonRoot and image will run as root".to_owned());
            }
        }
        let mut extra = Vec::new();
        for group in pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group) {
            extra.push(id(group)?);
        }
        let user = User { uid: id(uid.unwrap_or(0))?, gid: id(gid.unwrap_or(0))?, extra };
        let user_name = uid.is_none().then(|| image_user.to_owned()).filter(|name| !name.is_empty());
        let privileged = own.privileged.unwrap_or(false);
        let profile = own.seccomp_profile.or(pod.seccomp_profile);
        let seccomp = match profile.as_ref().map(|profile| profile.type_.as_str()) {
            Some("Unconfined") => Seccomp::Unconfined,
            None | Some("RuntimeDefault") => Seccomp::Default,
            Some(other) => {
                return Err(format!(
                    "seccompProfile type {other:?} is not served by this node yet; RuntimeDefault and Unconfined are"
                ));
            }
        };
        Ok(Security {
            user,
            user_name,
            capabilities: capabilities(own.capabilities.as_ref()),
            privileged,
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            seccomp,
            read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        })
    }
}

/// The customary set, less what is dropped, plus what is added.
fn capabilities(changes: Option<&k8s_openapi::api::core::v1::Capabilities>) -> Vec<String> {
    let name = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let drop: Vec<String> =
        changes.iter().flat_map(|changes| changes.drop.iter().flatten()).map(name).collect();
    let add: Vec<String> =
        changes.iter().flat_map(|changes| changes.add.iter().flatten()).map(name).collect();
    let mut set: Vec<String> = runtime::DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    set.retain(|known| !drop.contains(known) && !drop.iter().any(|drop| drop == "ALL"));
    set.extend(add);
    set.sort();
    set.dedup();
    set
}
