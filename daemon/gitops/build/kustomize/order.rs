//! The order of the objects that are printed: kustomize's own, or the one that the kustomization asks for.

use super::file::SortOptions;
use super::resource::Resource;

const FIRST: [&str; 22] = [
    "Namespace",
    "ResourceQuota",
    "StorageClass",
    "CustomResourceDefinition",
    "ServiceAccount",
    "PodSecurityPolicy",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ConfigMap",
    "Secret",
    "Endpoints",
    "Service",
    "LimitRange",
    "PriorityClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Deployment",
    "StatefulSet",
    "CronJob",
    "PodDisruptionBudget",
];
const LAST: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

pub(super) fn sort(resources: &mut [Resource], options: Option<&SortOptions>) -> Result<(), String> {
    let asked = options.and_then(|options| options.legacy_sort_options.as_ref());
    match options.map(|options| options.order.as_str()) {
        Some("fifo") if asked.is_some() => {
            return Err("sortOptions.legacySortOptions goes with order legacy only".to_owned());
        }
        Some("fifo") => return Ok(()),
        None | Some("legacy") => {}
        Some(_) => return Err("sortOptions.order has to be fifo or legacy".to_owned()),
    }
    let of = |list: &[&str]| list.iter().map(|kind| (*kind).to_owned()).collect::<Vec<String>>();
    let first = asked.map_or_else(|| of(&FIRST), |asked| asked.order_first.clone());
    let last = asked.map_or_else(|| of(&LAST), |asked| asked.order_last.clone());
    resources.sort_by_cached_key(|resource| {
        let name = resource.current();
        let in_last = last.iter().position(|kind| *kind == name.gvk.kind).map(|at| at as i64 + 1);
        let in_first = first.iter().position(|kind| *kind == name.gvk.kind);
        let in_first = in_first.map(|at| at as i64 - first.len() as i64);
        let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
        let gvk = name.gvk;
        let kind = format!("{}_{}_{}", or(gvk.group, "~G"), or(gvk.version, "~V"), or(gvk.kind, "~K"));
        let own = format!("{}|{}", or(name.namespace, "~X"), or(name.name, "~N"));
        (in_last.or(in_first).unwrap_or(0), kind, own)
    });
    Ok(())
}
