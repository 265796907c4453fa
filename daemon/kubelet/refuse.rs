//! What a pod may ask for in Kubernetes and this node does not give yet: refused by name, never ignored. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// The first field of the pod that would be ignored, in words for its status.
pub(crate) fn refused(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let of_pod = pod_fields(spec);
    let containers = [
        ("initContainers", spec.init_containers.as_deref()),
        ("containers", Some(spec.containers.as_slice())),
    ];
    let of_containers = containers.into_iter().flat_map(|(list, containers)| {
        let containers = containers.unwrap_or_default().iter().enumerate();
        containers.filter_map(move |(at, container)| {
            Some(format!("spec.{list}[{at}].{}", container_field(container)?))
        })
    });
    let field = of_pod.map(|field| format!("spec.{field}")).or_else(|| of_containers.into_iter().next())?;
    Some(format!("{field} is not served by this node yet: remove it, or run the pod where it is"))
}

fn pod_fields(spec: &PodSpec) -> Option<&'static str> {
    let security = spec.security_context.as_ref();
    let asked = [
        ("hostUsers", spec.host_users == Some(false)),
        ("runtimeClassName", spec.runtime_class_name.is_some()),
        ("resourceClaims", spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty())),
        (
            "securityContext.seLinuxOptions",
            security.is_some_and(|security| security.se_linux_options.is_some()),
        ),
        (
            "securityContext.windowsOptions",
            security.is_some_and(|security| security.windows_options.is_some()),
        ),
    ];
    asked.into_iter().find_map(|(field, asked)| asked.then_some(field))
}

fn container_field(container: &Container) -> Option<&'static str> {
    let security = container.security_context.as_ref();
    let asked = [
        ("volumeDevices", container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty())),
        (
            "restartPolicyRules with an action other than Restart",
            container.restart_policy_rules.iter().flatten().any(|rule| rule.action != "Restart"),
        ),
        (
            "securityContext.procMount",
            security.is_some_and(|security| security.proc_mount.as_deref() == Some("Unmasked")),
        ),
        (
            "securityContext.seLinuxOptions",
            security.is_some_and(|security| security.se_linux_options.is_some()),
        ),
    ];
    asked.into_iter().find_map(|(field, asked)| asked.then_some(field))
}
