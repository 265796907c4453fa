//! What makes a pod of a StatefulSet the one it is: its number, name, labels, host name and claims.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, Volume};

use super::volumes::claim_name;
use crate::history::{REVISION_HASH, template_of};
use crate::pods::{self, name};
use crate::step::controlled_by;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The number in a pod's name; `None` when it is not a name of this set.
pub(crate) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let text = name(&pod.metadata).strip_prefix(name(&set.metadata))?.strip_prefix('-')?;
    text.parse().ok().filter(|number: &i32| number.to_string() == text)
}

/// The name of the pod with this number.
pub(crate) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name(&set.metadata))
}

/// The labels that tell a pod its name and number, where it lacks them.
pub(crate) fn missing_labels(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Vec<(&'static str, String)> {
    let has = |key: &str, value: &str| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).is_some_and(|known| known == value)
    };
    let wanted = [(POD_NAME, pod_name(set, ordinal)), (POD_INDEX, ordinal.to_string())];
    wanted.into_iter().filter(|(key, value)| !has(key, value)).collect()
}

/// The pod with this number, made of this revision.
pub(crate) fn pod(set: &StatefulSet, revision: &ControllerRevision, ordinal: i32) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let template = template_of(revision).unwrap_or(spec.template);
    let mut pod = pods::from_template(&template, &set.metadata, controlled_by(set));
    pod.metadata.name = Some(pod_name(set, ordinal));
    let missing = missing_labels(set, &pod, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(missing.into_iter().map(|(key, value)| (key.to_owned(), value)));
    labels.insert(REVISION_HASH.to_owned(), name(&revision.metadata).to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(pod_name(set, ordinal));
    pod_spec.subdomain = spec.service_name.filter(|service| !service.is_empty());
    let templates = spec.volume_claim_templates.unwrap_or_default();
    let claimed: Vec<Volume> = templates
        .iter()
        .map(|template| Volume {
            name: name(&template.metadata).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    if !claimed.is_empty() {
        // A claim wins over a volume of the template with its name, as documented.
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|known| claimed.iter().all(|one| one.name != known.name));
        volumes.splice(0..0, claimed);
    }
    pod
}
