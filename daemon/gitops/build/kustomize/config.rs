//! Where names, labels, namespaces and images are found in which kinds: kustomize's own table, and what files add to it.

use std::sync::LazyLock;

use serde::Deserialize;

use super::fields::FieldSpec;
use super::resource::Gvk;

/// The names that other objects call one kind by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Referred {
    #[serde(default)]
    pub(super) group: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default, rename = "fieldSpecs")]
    pub(super) specs: Vec<FieldSpec>,
}

impl Referred {
    pub(super) fn gvk(&self) -> Gvk {
        Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }
}

/// All tables.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    pub(super) name_prefix: Vec<FieldSpec>,
    pub(super) name_suffix: Vec<FieldSpec>,
    pub(super) namespace: Vec<FieldSpec>,
    pub(super) common_labels: Vec<FieldSpec>,
    pub(super) labels: Vec<FieldSpec>,
    pub(super) template_labels: Vec<FieldSpec>,
    pub(super) common_annotations: Vec<FieldSpec>,
    pub(super) name_reference: Vec<Referred>,
    pub(super) var_reference: Vec<FieldSpec>,
    pub(super) images: Vec<FieldSpec>,
    pub(super) replicas: Vec<FieldSpec>,
}

impl Config {
    /// kustomize's own.
    pub(super) fn built_in() -> Config {
        BUILT_IN.clone()
    }

    /// Adds what another one has more. Two that differ only in `create` contradict each other.
    pub(super) fn merge(&mut self, other: Config) -> Result<(), String> {
        merge_specs(&mut self.name_prefix, other.name_prefix)?;
        merge_specs(&mut self.name_suffix, other.name_suffix)?;
        merge_specs(&mut self.namespace, other.namespace)?;
        merge_specs(&mut self.common_labels, other.common_labels)?;
        merge_specs(&mut self.labels, other.labels)?;
        merge_specs(&mut self.template_labels, other.template_labels)?;
        merge_specs(&mut self.common_annotations, other.common_annotations)?;
        merge_specs(&mut self.var_reference, other.var_reference)?;
        merge_specs(&mut self.images, other.images)?;
        merge_specs(&mut self.replicas, other.replicas)?;
        for referred in other.name_reference {
            match self.name_reference.iter_mut().find(|known| known.gvk() == referred.gvk()) {
                Some(known) => merge_specs(&mut known.specs, referred.specs)?,
                None => self.name_reference.push(referred),
            }
        }
        Ok(())
    }
}

pub(super) fn merge_specs(into: &mut Vec<FieldSpec>, more: Vec<FieldSpec>) -> Result<(), String> {
    for spec in more {
        match into.iter().find(|known| known.path == spec.path && known.gvk() == spec.gvk()) {
            Some(known) if known.create != spec.create => {
                return Err(format!(
                    "field spec {} is given twice, once with create and once without",
                    spec.path
                ));
            }
            Some(_) => {}
            None => into.push(spec),
        }
    }
    Ok(())
}

static BUILT_IN: LazyLock<Config> = LazyLock::new(|| Config {
    name_prefix: vec![FieldSpec::everywhere("metadata/name", false)],
    name_suffix: vec![FieldSpec::everywhere("metadata/name", false)],
    namespace: vec![
        spec("Namespace", "metadata/name", true),
        spec("APIService.apiregistration.k8s.io", "spec/service/namespace", true),
        spec(
            "CustomResourceDefinition.apiextensions.k8s.io",
            "spec/conversion/webhook/clientConfig/service/namespace",
            false,
        ),
    ],
    common_labels: common_labels(),
    labels: Vec::new(),
    template_labels: template_labels(),
    common_annotations: common_annotations(),
    name_reference: name_references(),
    var_reference: var_references(),
    images: [
        "spec/containers[]/image",
        "spec/initContainers[]/image",
        "spec/template/spec/containers[]/image",
        "spec/template/spec/initContainers[]/image",
    ]
    .into_iter()
    .map(|path| FieldSpec::everywhere(path, true))
    .collect(),
    replicas: ["Deployment", "ReplicationController", "ReplicaSet", "StatefulSet"]
        .into_iter()
        .map(|kind| spec(kind, "spec/replicas", true))
        .collect(),
});

/// `Kind`, `Kind/version` or `Kind.group`.
fn spec(kind: &str, path: &str, create: bool) -> FieldSpec {
    let (kind, version) = kind.split_once('/').unwrap_or((kind, ""));
    let (kind, group) = kind.split_once('.').unwrap_or((kind, ""));
    FieldSpec {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        path: path.to_owned(),
        create,
    }
}

fn template_labels() -> Vec<FieldSpec> {
    [
        ("ReplicationController/v1", "spec/template/metadata/labels"),
        ("Deployment", "spec/template/metadata/labels"),
        ("ReplicaSet", "spec/template/metadata/labels"),
        ("DaemonSet", "spec/template/metadata/labels"),
        ("StatefulSet.apps", "spec/template/metadata/labels"),
        ("StatefulSet.apps", "spec/volumeClaimTemplates[]/metadata/labels"),
        ("Job.batch", "spec/template/metadata/labels"),
        ("CronJob.batch", "spec/jobTemplate/metadata/labels"),
        ("CronJob.batch", "spec/jobTemplate/spec/template/metadata/labels"),
    ]
    .into_iter()
    .map(|(kind, path)| spec(kind, path, true))
    .collect()
}

fn common_labels() -> Vec<FieldSpec> {
    let mut specs = vec![FieldSpec::everywhere("metadata/labels", true)];
    specs.extend(template_labels());
    for (kind, path) in [
        ("Service/v1", "spec/selector"),
        ("ReplicationController/v1", "spec/selector"),
        ("Deployment", "spec/selector/matchLabels"),
        ("ReplicaSet", "spec/selector/matchLabels"),
        ("DaemonSet", "spec/selector/matchLabels"),
        ("StatefulSet.apps", "spec/selector/matchLabels"),
    ] {
        specs.push(spec(kind, path, true));
    }
    for kind in ["Deployment.apps", "StatefulSet.apps"] {
        for affinity in ["podAffinity", "podAntiAffinity"] {
            let at = format!("spec/template/spec/affinity/{affinity}");
            let preferred = "preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm";
            specs.push(spec(kind, &format!("{at}/{preferred}/labelSelector/matchLabels"), false));
            let required = "requiredDuringSchedulingIgnoredDuringExecution";
            specs.push(spec(kind, &format!("{at}/{required}/labelSelector/matchLabels"), false));
        }
        let spread = "spec/template/spec/topologySpreadConstraints/labelSelector/matchLabels";
        specs.push(spec(kind, spread, false));
    }
    for (kind, path) in [
        ("Job.batch", "spec/selector/matchLabels"),
        ("CronJob.batch", "spec/jobTemplate/spec/selector/matchLabels"),
        ("PodDisruptionBudget.policy", "spec/selector/matchLabels"),
        ("NetworkPolicy.networking.k8s.io", "spec/podSelector/matchLabels"),
        ("NetworkPolicy.networking.k8s.io", "spec/ingress/from/podSelector/matchLabels"),
        ("NetworkPolicy.networking.k8s.io", "spec/egress/to/podSelector/matchLabels"),
    ] {
        specs.push(spec(kind, path, false));
    }
    specs
}

fn common_annotations() -> Vec<FieldSpec> {
    let mut specs = vec![FieldSpec::everywhere("metadata/annotations", true)];
    for (kind, path) in [
        ("ReplicationController/v1", "spec/template/metadata/annotations"),
        ("Deployment", "spec/template/metadata/annotations"),
        ("ReplicaSet", "spec/template/metadata/annotations"),
        ("DaemonSet", "spec/template/metadata/annotations"),
        ("StatefulSet", "spec/template/metadata/annotations"),
        ("Job.batch", "spec/template/metadata/annotations"),
        ("CronJob.batch", "spec/jobTemplate/metadata/annotations"),
        ("CronJob.batch", "spec/jobTemplate/spec/template/metadata/annotations"),
    ] {
        specs.push(spec(kind, path, true));
    }
    specs
}

/// Kinds with pods inside, and where their pod's spec is.
const PODS: [(&str, &str); 8] = [
    ("Pod/v1", "spec"),
    ("PodTemplate", "template/spec"),
    ("Deployment", "spec/template/spec"),
    ("ReplicaSet", "spec/template/spec"),
    ("DaemonSet", "spec/template/spec"),
    ("StatefulSet", "spec/template/spec"),
    ("Job", "spec/template/spec"),
    ("CronJob", "spec/jobTemplate/spec/template/spec"),
];

fn in_pods(kinds: &[(&str, &str)], paths: &[&str]) -> Vec<FieldSpec> {
    let each = |(kind, at): &(&str, &str)| {
        paths.iter().map(|path| spec(kind, &format!("{at}/{path}"), false)).collect::<Vec<_>>()
    };
    kinds.iter().flat_map(each).collect()
}

/// Kinds whose pods name accounts, claims and priorities: not all of those with pods, as kustomize has it.
const RUNNERS: [(&str, &str); 7] = [
    ("Pod", "spec"),
    ("StatefulSet", "spec/template/spec"),
    ("Deployment", "spec/template/spec"),
    ("ReplicationController", "spec/template/spec"),
    ("CronJob", "spec/jobTemplate/spec/template/spec"),
    ("Job", "spec/template/spec"),
    ("DaemonSet", "spec/template/spec"),
];

fn referred(kind: &str, specs: Vec<FieldSpec>) -> Referred {
    let FieldSpec { group, version, kind, .. } = spec(kind, "", false);
    Referred { group, version, kind, specs }
}

fn specs(list: &[(&str, &str)]) -> Vec<FieldSpec> {
    list.iter().map(|(kind, path)| spec(kind, path, false)).collect()
}

fn name_references() -> Vec<Referred> {
    let scaled = || specs(&[("HorizontalPodAutoscaler", "spec/scaleTargetRef/name")]);
    let mut all: Vec<Referred> = ["Deployment", "ReplicationController", "ReplicaSet", "StatefulSet"]
        .into_iter()
        .map(|kind| referred(kind, scaled()))
        .collect();
    all.push(referred("ConfigMap/v1", config_map_references()));
    all.push(referred("Secret/v1", secret_references()));
    all.push(referred("Service/v1", specs(&SERVICE_REFERENCES)));
    let rbac = "rbac.authorization.k8s.io";
    let (binding, cluster_binding) = (format!("RoleBinding.{rbac}"), format!("ClusterRoleBinding.{rbac}"));
    all.push(referred(&format!("Role.{rbac}"), specs(&[(&binding, "roleRef/name")])));
    let bound = specs(&[(&binding, "roleRef/name"), (&cluster_binding, "roleRef/name")]);
    all.push(referred(&format!("ClusterRole.{rbac}"), bound));
    let mut accounts = specs(&[(&binding, "subjects"), (&cluster_binding, "subjects")]);
    accounts.extend(in_pods(&RUNNERS, &["serviceAccountName"]));
    all.push(referred("ServiceAccount/v1", accounts));
    let claims = in_pods(&RUNNERS, &["volumes/persistentVolumeClaim/claimName"]);
    all.push(referred("PersistentVolumeClaim/v1", claims));
    let volumes = [("PersistentVolumeClaim", "spec/volumeName"), ("ClusterRole", "rules/resourceNames")];
    all.push(referred("PersistentVolume/v1", specs(&volumes)));
    let classes = [
        ("PersistentVolume", "spec/storageClassName"),
        ("PersistentVolumeClaim", "spec/storageClassName"),
        ("StatefulSet", "spec/volumeClaimTemplates/spec/storageClassName"),
    ];
    all.push(referred("StorageClass.storage.k8s.io/v1", specs(&classes)));
    let priorities = in_pods(&RUNNERS, &["priorityClassName"]);
    all.push(referred("PriorityClass.scheduling.k8s.io/v1", priorities));
    all
}

fn config_map_references() -> Vec<FieldSpec> {
    let mut specs_of = in_pods(
        &PODS,
        &[
            "volumes/configMap/name",
            "containers/env/valueFrom/configMapKeyRef/name",
            "initContainers/env/valueFrom/configMapKeyRef/name",
            "containers/envFrom/configMapRef/name",
            "initContainers/envFrom/configMapRef/name",
            "volumes/projected/sources/configMap/name",
        ],
    );
    specs_of.extend(specs(&[
        ("Node", "spec/configSource/configMap"),
        ("Role", "rules/resourceNames"),
        ("ClusterRole", "rules/resourceNames"),
        ("Ingress", "metadata/annotations/nginx.ingress.kubernetes.io\\/fastcgi-params-configmap"),
    ]));
    specs_of
}

fn secret_references() -> Vec<FieldSpec> {
    let mut specs_of = in_pods(
        &PODS,
        &[
            "volumes/secret/secretName",
            "containers/env/valueFrom/secretKeyRef/name",
            "initContainers/env/valueFrom/secretKeyRef/name",
            "containers/envFrom/secretRef/name",
            "initContainers/envFrom/secretRef/name",
            "imagePullSecrets/name",
            "volumes/projected/sources/secret/name",
        ],
    );
    specs_of.extend(specs(&[
        ("Ingress", "spec/tls/secretName"),
        ("Ingress", "metadata/annotations/ingress.kubernetes.io\\/auth-secret"),
        ("Ingress", "metadata/annotations/nginx.ingress.kubernetes.io\\/auth-secret"),
        ("Ingress", "metadata/annotations/nginx.ingress.kubernetes.io\\/auth-tls-secret"),
        ("ServiceAccount", "imagePullSecrets/name"),
        ("StorageClass", "parameters/secretName"),
        ("StorageClass", "parameters/adminSecretName"),
        ("StorageClass", "parameters/userSecretName"),
        ("StorageClass", "parameters/secretRef"),
        ("Role", "rules/resourceNames"),
        ("ClusterRole", "rules/resourceNames"),
        ("Service.serving.knative.dev/v1", "spec/template/spec/containers/env/valueFrom/secretKeyRef/name"),
        ("PersistentVolume", "spec/azureFile/secretName"),
    ]));
    specs_of
}

const SERVICE_REFERENCES: [(&str, &str); 9] = [
    ("StatefulSet.apps", "spec/serviceName"),
    ("Ingress", "spec/rules/http/paths/backend/serviceName"),
    ("Ingress", "spec/backend/serviceName"),
    ("Ingress", "spec/rules/http/paths/backend/service/name"),
    ("Ingress", "spec/defaultBackend/service/name"),
    ("APIService.apiregistration.k8s.io", "spec/service/name"),
    ("ValidatingWebhookConfiguration.admissionregistration.k8s.io", "webhooks/clientConfig/service"),
    ("MutatingWebhookConfiguration.admissionregistration.k8s.io", "webhooks/clientConfig/service"),
    ("HTTPRoute", "spec/rules/backendRefs/name"),
];

fn var_references() -> Vec<FieldSpec> {
    let kinds = [
        ("CronJob", "spec/jobTemplate/spec/template/spec"),
        ("DaemonSet", "spec/template/spec"),
        ("Deployment", "spec/template/spec"),
        ("Job", "spec/template/spec"),
        ("Pod", "spec"),
        ("ReplicaSet", "spec/template/spec"),
        ("StatefulSet", "spec/template/spec"),
    ];
    let mut all = Vec::new();
    for containers in ["containers", "initContainers"] {
        for field in ["args", "command", "env/value", "volumeMounts/mountPath"] {
            all.extend(in_pods(&kinds, &[&format!("{containers}/{field}")]));
        }
    }
    // A StatefulSet's volumes are left out, as kustomize has it.
    all.extend(in_pods(&kinds[..6], &["volumes/nfs/server"]));
    all.extend(specs(&[
        ("Ingress", "spec/rules/host"),
        ("Ingress", "spec/tls/hosts"),
        ("Ingress", "spec/tls/secretName"),
        ("Service", "spec/ports/port"),
        ("Service", "spec/ports/targetPort"),
        ("StatefulSet", "spec/volumeClaimTemplates/spec/nfs/server"),
        ("PersistentVolume", "spec/nfs/server"),
    ]));
    all.push(FieldSpec::everywhere("metadata/labels", false));
    all.push(FieldSpec::everywhere("metadata/annotations", false));
    all
}
