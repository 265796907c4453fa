//! The table of kinds: which resources this node serves, and which ones Kubernetes has that it does not.
//!
//! Invariant: a row is served only when there is behaviour behind it; everything else Kubernetes knows is refused by name.
//! Invariant: names, verbs and subresources come from `facts/kinds.json`; the code only says which rows are served.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::custom::Custom;

/// A resource as `/apis` lists it: one row of the table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group, `v1`.
    pub version: String,
    /// `Deployment`.
    pub kind: String,
    /// `deployments`: the path segment.
    pub plural: String,
    /// `deployment`.
    pub singular: String,
    /// `deploy`.
    #[serde(default)]
    pub short_names: Vec<String>,
    /// `all` where `kubectl get all` shows it.
    #[serde(default)]
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs of the main resource.
    pub verbs: Vec<String>,
    /// Key in the schema table.
    pub schema: String,
    /// Whether the row has a `status` subresource; set from `subresources`.
    #[serde(skip)]
    pub status: bool,
    /// Whether the row has a `scale` subresource; set from `subresources`.
    #[serde(skip)]
    pub scale: bool,
    /// Whether objects are stored in another version; set from the order of rows.
    #[serde(skip)]
    pub(crate) view: bool,
    /// What a kind that users define says beyond its row.
    #[serde(skip)]
    pub(crate) custom: Option<&'static Custom>,
    /// The subresources that are served.
    #[serde(default)]
    pub subresources: Vec<Subresource>,
}

/// A path below an object, `pods/log`, and the kind that it speaks.
#[derive(Debug, Clone, Deserialize)]
pub struct Subresource {
    /// `log`.
    pub name: String,
    /// Group of the kind spoken.
    pub group: String,
    /// Version of the kind spoken.
    pub version: String,
    /// `Scale`, `Binding`, or the parent's own kind.
    pub kind: String,
    /// Verbs of the subresource.
    pub verbs: Vec<String>,
}

impl Kind {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `deployments.apps`, or `pods` for the core group: how Kubernetes names a resource in messages.
    pub fn resource_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Deployment.apps`, or `Pod` for the core group: how Kubernetes names a kind in messages.
    pub fn kind_name(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The row with what its definition says. A `view` is converted when it is read.
    pub(crate) fn with_custom(self, custom: &'static Custom, view: bool) -> Kind {
        Kind { custom: Some(custom), view, ..self }
    }

    /// What a kind that users define says beyond its row; none for built-in kinds.
    pub fn custom(&self) -> Option<&'static Custom> {
        self.custom
    }

    /// Whether objects are stored in this version. Other rows are views of a stored one.
    pub fn is_stored(&self) -> bool {
        !self.view
    }

    /// The row in whose version objects of this kind are stored.
    pub fn stored(&self) -> &Kind {
        if !self.view || self.custom.is_some() {
            return self;
        }
        let group = storage_group(&self.group);
        kinds().iter().find(|row| row.plural == self.plural && row.group == group).unwrap_or(self)
    }

    /// What does not happen for objects of this kind, because nothing acts on them yet.
    pub fn unattended(&self) -> Option<&'static str> {
        let row = UNATTENDED.iter().find(|(group, kind, _)| *kind == self.kind && *group == self.group);
        row.map(|(.., missing)| *missing)
    }

    /// The subresource of that name, when served.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }
}

/// Every served row, core first, then by group.
pub fn kinds() -> &'static [Kind] {
    &TABLE.served
}

/// The rows that objects are stored under: each object is of exactly one of them.
pub fn stored_kinds() -> impl Iterator<Item = &'static Kind> {
    kinds().iter().filter(|kind| kind.is_stored())
}

/// The served row behind `/apis/{group}/{version}/{plural}`.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    kinds().iter().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
}

/// What is told of without being stored: asked of the kubelets each time.
pub fn computed_kinds() -> &'static [Kind] {
    static COMPUTED: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        let row = |kind: &str, plural: &str, namespaced: bool| {
            serde_json::json!({ "group": "metrics.k8s.io", "version": "v1beta1", "kind": kind, "plural": plural, "singular": "",
                "namespaced": namespaced, "verbs": ["get", "list"], "schema": "" })
        };
        let rows = serde_json::json!([row("NodeMetrics", "nodes", false), row("PodMetrics", "pods", true)]);
        serde_json::from_value(rows).expect("the rows are ours")
    });
    &COMPUTED
}

/// The row behind a path of what is computed.
pub fn computed_by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    let fits = |kind: &&Kind| kind.plural == plural && kind.group == group && kind.version == version;
    computed_kinds().iter().find(fits)
}

/// The served row of an object's `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = split_api_version(api_version);
    kinds().iter().find(|row| row.kind == kind && row.group == group && row.version == version)
}

/// Whether Kubernetes has this kind but this node does not serve it: so that a refusal can say so honestly.
pub fn known_elsewhere(api_version: &str, kind: &str) -> bool {
    let (group, version) = split_api_version(api_version);
    TABLE.elsewhere.iter().any(|[g, v, k]| g == group && v == version && k == kind)
}

/// `("apps", "v1")` of `apps/v1`; `("", "v1")` of `v1`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `apps/v1` of `("apps", "v1")`; `v1` of `("", "v1")`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Group, version, plural and subresources.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// The rows with behaviour behind them and the subresources served of each, in the order `/apis` lists them. Of several
/// versions of one resource the first is the one that is stored; see [`crate::convert`].
const SERVED: &[Row] = &[
    ("", "v1", "bindings", &[]),
    ("", "v1", "configmaps", &[]),
    ("", "v1", "endpoints", &[]),
    ("", "v1", "events", &[]),
    ("", "v1", "limitranges", &[]),
    ("", "v1", "namespaces", &["finalize", "status"]),
    ("", "v1", "nodes", &["proxy", "status"]),
    ("", "v1", "persistentvolumeclaims", &["status"]),
    ("", "v1", "persistentvolumes", &["status"]),
    (
        "",
        "v1",
        "pods",
        &[
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "log",
            "portforward",
            "proxy",
            "resize",
            "status",
        ],
    ),
    ("", "v1", "podtemplates", &[]),
    ("", "v1", "replicationcontrollers", &["scale", "status"]),
    ("", "v1", "resourcequotas", &["status"]),
    ("", "v1", "secrets", &[]),
    ("", "v1", "serviceaccounts", &["token"]),
    ("", "v1", "services", &["proxy", "status"]),
    ("apiregistration.k8s.io", "v1", "apiservices", &["status"]),
    ("apps", "v1", "controllerrevisions", &[]),
    ("apps", "v1", "daemonsets", &["status"]),
    ("apps", "v1", "deployments", &["scale", "status"]),
    ("apps", "v1", "replicasets", &["scale", "status"]),
    ("apps", "v1", "statefulsets", &["scale", "status"]),
    ("events.k8s.io", "v1", "events", &[]),
    ("autoscaling", "v2", "horizontalpodautoscalers", &["status"]),
    ("autoscaling", "v1", "horizontalpodautoscalers", &["status"]),
    ("batch", "v1", "cronjobs", &["status"]),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", &["status"]),
    ("batch", "v1", "jobs", &["status"]),
    ("certificates.k8s.io", "v1", "certificatesigningrequests", &["approval", "status"]),
    ("flowcontrol.apiserver.k8s.io", "v1", "flowschemas", &["status"]),
    ("flowcontrol.apiserver.k8s.io", "v1", "prioritylevelconfigurations", &["status"]),
    ("networking.k8s.io", "v1", "ingressclasses", &[]),
    ("networking.k8s.io", "v1", "ingresses", &["status"]),
    ("networking.k8s.io", "v1", "ipaddresses", &[]),
    ("networking.k8s.io", "v1", "networkpolicies", &[]),
    ("networking.k8s.io", "v1", "servicecidrs", &["status"]),
    ("policy", "v1", "poddisruptionbudgets", &["status"]),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", &[]),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", &[]),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", &[]),
    ("rbac.authorization.k8s.io", "v1", "roles", &[]),
    ("resource.k8s.io", "v1", "deviceclasses", &[]),
    ("resource.k8s.io", "v1", "resourceclaims", &["status"]),
    ("resource.k8s.io", "v1", "resourceclaimtemplates", &[]),
    ("resource.k8s.io", "v1", "resourceslices", &[]),
    ("storage.k8s.io", "v1", "csidrivers", &[]),
    ("storage.k8s.io", "v1", "csinodes", &[]),
    ("storage.k8s.io", "v1", "csistoragecapacities", &[]),
    ("storage.k8s.io", "v1", "storageclasses", &[]),
    ("storage.k8s.io", "v1", "volumeattachments", &["status"]),
    ("storage.k8s.io", "v1", "volumeattributesclasses", &[]),
    ("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicies", &[]),
    ("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicybindings", &[]),
    ("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", &[]),
    ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", &["status"]),
    ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", &[]),
    ("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", &[]),
    ("scheduling.k8s.io", "v1", "priorityclasses", &[]),
    ("coordination.k8s.io", "v1", "leases", &[]),
    ("node.k8s.io", "v1", "runtimeclasses", &[]),
    ("discovery.k8s.io", "v1", "endpointslices", &[]),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", &[]),
    ("authentication.k8s.io", "v1", "tokenreviews", &[]),
    ("authorization.k8s.io", "v1", "localsubjectaccessreviews", &[]),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", &[]),
    ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", &[]),
    ("authorization.k8s.io", "v1", "subjectaccessreviews", &[]),
    ("holdfast.dev", "v1", "applications", &["status"]),
];

/// Kinds that are stored, listed and watched, but that nothing acts on yet, with what does not happen. Whoever makes it
/// happen deletes the row.
const UNATTENDED: &[(&str, &str, &str)] = &[
    ("apiregistration.k8s.io", "APIService", "no other API server is asked"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", "all requests are bounded together"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", "all requests are bounded together"),
    ("networking.k8s.io", "IPAddress", "addresses of Services are kept in the Services alone"),
    ("networking.k8s.io", "NetworkPolicy", "no traffic is refused"),
    ("networking.k8s.io", "ServiceCIDR", "Services get their addresses from the range in the configuration"),
    ("node.k8s.io", "RuntimeClass", "pods cannot choose it"),
    ("policy", "PodDisruptionBudget", "nobody counts its pods, so no eviction is allowed"),
    ("resource.k8s.io", "DeviceClass", "no device is allocated"),
    ("resource.k8s.io", "ResourceClaim", "no device is allocated"),
    ("resource.k8s.io", "ResourceClaimTemplate", "no device is allocated"),
    ("resource.k8s.io", "ResourceSlice", "no device is allocated"),
    ("storage.k8s.io", "CSIDriver", "no volume is mounted by a driver"),
    ("storage.k8s.io", "VolumeAttachment", "no volume is attached"),
    ("storage.k8s.io", "VolumeAttributesClass", "no volume has attributes"),
];

/// The group under which objects are stored: events of both groups are the same objects.
fn storage_group(group: &str) -> &str {
    if group == "events.k8s.io" { "" } else { group }
}

struct Table {
    served: Vec<Kind>,
    elsewhere: Vec<[String; 3]>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut known: Vec<Kind> =
        serde_json::from_str(include_str!("facts/kinds.json")).expect("facts/kinds.json is ours");
    let served = SERVED
        .iter()
        .map(|&(group, version, plural, subresources)| {
            let at = known
                .iter()
                .position(|row| row.plural == plural && row.group == group && row.version == version)
                .expect("a served row is a known row");
            let mut row = known.swap_remove(at);
            row.subresources.retain(|sub| subresources.contains(&sub.name.as_str()));
            row.status = subresources.contains(&"status");
            row.scale = subresources.contains(&"scale");
            let same = |(g, _, p, _): &&Row| *g == storage_group(group) && *p == plural;
            row.view = SERVED.iter().find(same).is_some_and(|(g, v, ..)| (*g, *v) != (group, version));
            row
        })
        .collect();
    let elsewhere = known.into_iter().map(|row| [row.group, row.version, row.kind]).collect();
    Table { served, elsewhere }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_row_is_found_by_path_and_by_kind() {
        let row = by_plural("apps", "v1", "deployments").expect("deployments are served");
        assert_eq!(
            (row.kind_name().as_str(), row.resource_name().as_str()),
            ("Deployment.apps", "deployments.apps")
        );
        assert_eq!(by_kind("apps/v1", "Deployment").map(|kind| kind.plural.as_str()), Some("deployments"));
        assert!(row.scale && row.status);
    }

    #[test]
    fn of_several_versions_one_is_stored() {
        let row = |api_version, kind| by_kind(api_version, kind).expect("served");
        assert!(row("autoscaling/v2", "HorizontalPodAutoscaler").is_stored());
        assert_eq!(row("autoscaling/v1", "HorizontalPodAutoscaler").stored().version, "v2");
        assert_eq!(row("events.k8s.io/v1", "Event").stored().group, "");
        assert_eq!(stored_kinds().count(), kinds().len() - 2);
    }

    #[test]
    fn every_kind_that_nothing_acts_on_is_a_served_one() {
        for (group, kind, _) in UNATTENDED {
            assert!(kinds().iter().any(|row| row.group == *group && row.kind == *kind), "{group} {kind}");
        }
    }

    #[test]
    fn a_kind_of_kubernetes_that_is_not_served_is_known_elsewhere() {
        for (api_version, kind, known) in [
            ("resource.k8s.io/v1beta2", "ResourceClaim", true),
            ("storagemigration.k8s.io/v1beta1", "StorageVersionMigration", true),
            ("apps/v1", "Deployment", false),
            ("apps/v1", "Deploiment", false),
        ] {
            assert_eq!(known_elsewhere(api_version, kind), known, "{api_version} {kind}");
        }
    }
}
