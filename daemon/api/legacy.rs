//! Reads yesterday's manifests: objects of versions that Kubernetes no longer serves, of kinds that live on, in today's form.
//!
//! [`today`] converts an object; [`gone`] names parts of any object that no longer exist anywhere. Both are for whoever
//! reads files; the API itself serves today's versions only, as Kubernetes does.
//!
//! Invariant: nothing that the manifest says is lost silently: what has no place today is told, with its path.
//! Invariant: what the manifest leaves open gets today's defaults, but for selectors, labels and scopes, which today are required.

mod autoscaler;
mod definition;
mod ingress;

use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// An object in today's form.
#[derive(Debug, Clone, PartialEq)]
pub struct Today {
    /// The object, as a manifest of today says it.
    pub object: Value,
    /// What was changed; the first one names the versions.
    pub changes: Vec<Change>,
}

/// One thing that reads differently today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where in yesterday's form: `spec.rules[0].http.paths[0].backend.serviceName`.
    pub path: String,
    /// What it is called, or set to, today; a sentence without full stop.
    pub message: String,
}

/// Something that no Kubernetes has any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Where it stands: `spec.volumes[0].gitRepo`; `kind` for a whole object.
    pub path: String,
    /// What is gone: `PodSecurityPolicy`, `gitRepo volumes`.
    pub what: String,
    /// What to use in its place.
    pub instead: String,
}

/// Kinds whose old versions are called differently today: group and version then, kind, group and version now.
const MOVED: &[(&str, &str, &str)] = &[
    ("extensions/v1beta1", "DaemonSet", "apps/v1"),
    ("extensions/v1beta1", "Deployment", "apps/v1"),
    ("extensions/v1beta1", "ReplicaSet", "apps/v1"),
    ("extensions/v1beta1", "Job", "batch/v1"),
    ("extensions/v1beta1", "Ingress", "networking.k8s.io/v1"),
    ("extensions/v1beta1", "NetworkPolicy", "networking.k8s.io/v1"),
    ("apps/v1beta1", "ControllerRevision", "apps/v1"),
    ("apps/v1beta1", "Deployment", "apps/v1"),
    ("apps/v1beta1", "StatefulSet", "apps/v1"),
    ("apps/v1beta2", "ControllerRevision", "apps/v1"),
    ("apps/v1beta2", "DaemonSet", "apps/v1"),
    ("apps/v1beta2", "Deployment", "apps/v1"),
    ("apps/v1beta2", "ReplicaSet", "apps/v1"),
    ("apps/v1beta2", "StatefulSet", "apps/v1"),
    ("batch/v1beta1", "CronJob", "batch/v1"),
    ("batch/v2alpha1", "CronJob", "batch/v1"),
    ("networking.k8s.io/v1beta1", "Ingress", "networking.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", "IngressClass", "networking.k8s.io/v1"),
    ("policy/v1beta1", "PodDisruptionBudget", "policy/v1"),
    ("autoscaling/v2beta1", "HorizontalPodAutoscaler", "autoscaling/v2"),
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler", "autoscaling/v2"),
    ("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition", "apiextensions.k8s.io/v1"),
    ("coordination.k8s.io/v1beta1", "Lease", "coordination.k8s.io/v1"),
    ("events.k8s.io/v1beta1", "Event", "events.k8s.io/v1"),
    ("node.k8s.io/v1beta1", "RuntimeClass", "node.k8s.io/v1"),
    ("scheduling.k8s.io/v1alpha1", "PriorityClass", "scheduling.k8s.io/v1"),
    ("scheduling.k8s.io/v1beta1", "PriorityClass", "scheduling.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "CSIDriver", "storage.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "CSINode", "storage.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "CSIStorageCapacity", "storage.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "StorageClass", "storage.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", "VolumeAttachment", "storage.k8s.io/v1"),
];

/// Groups that are gone with all their kinds, and kinds that are gone from groups that live on (`*`: of every group).
const GONE: &[(&str, &str, &str)] = &[
    (
        "*",
        "PodSecurityPolicy",
        "label the namespace pod-security.kubernetes.io/enforce: baseline (or restricted)",
    ),
    ("extensions", "ThirdPartyResource", "a CustomResourceDefinition"),
    ("settings.k8s.io", "*", "env and volumes in the pod template itself"),
    ("servicecatalog.k8s.io", "*", "plain objects that run the service, or an operator's own kinds"),
];

/// The object in today's form when its version is one of yesterday; none when it is of today or unknown.
pub fn today(object: &Value) -> Option<Result<Today, Gone>> {
    let (api_version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    let (group, _) = crate::kinds::split_api_version(api_version);
    let lost = GONE.iter().find(|(of, what, _)| {
        if *of == "*" { *what == kind } else { *of == group && (*what == "*" || *what == kind) }
    });
    if let Some((_, _, instead)) = lost {
        return Some(Err(Gone { path: "kind".into(), what: kind.into(), instead: (*instead).into() }));
    }
    let version = served(api_version, kind)?;
    let mut change = Changing { object: object.as_object()?.clone(), changes: Vec::new() };
    change.tell("apiVersion", format!("{kind} {api_version} is read as {version}"));
    change.object.insert("apiVersion".into(), version.into());
    change.body(api_version, kind);
    Some(Ok(Today { object: change.object.into(), changes: change.changes }))
}

/// Parts of an object of whatever version that no longer exist in Kubernetes.
pub fn gone(object: &Value) -> Vec<Gone> {
    let spec_of_pod = ["spec", "spec.template.spec", "spec.jobTemplate.spec.template.spec"];
    let mut found = Vec::new();
    for path in spec_of_pod {
        let spec = path.split('.').fold(object, |value, name| &value[name]);
        for (at, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
            if volume["gitRepo"].is_object() {
                found.push(Gone {
                    path: format!("{path}.volumes[{at}].gitRepo"),
                    what: "gitRepo volumes".into(),
                    instead: "an emptyDir that an init container clones the repository into".into(),
                });
            }
        }
    }
    found
}

fn served(api_version: &str, kind: &str) -> Option<&'static str> {
    if matches!(api_version, "rbac.authorization.k8s.io/v1beta1" | "rbac.authorization.k8s.io/v1alpha1") {
        let known = matches!(kind, "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding");
        return known.then_some("rbac.authorization.k8s.io/v1");
    }
    MOVED.iter().find(|(then, of, _)| *then == api_version && *of == kind).map(|(.., now)| *now)
}

/// An object on its way to today.
struct Changing {
    object: Fields,
    changes: Vec<Change>,
}

impl Changing {
    fn tell(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.changes.push(Change { path: path.into(), message: message.into() });
    }

    fn spec(&mut self) -> Option<&mut Fields> {
        self.object.get_mut("spec")?.as_object_mut()
    }

    /// Takes out a field of `spec` that has no place today.
    fn drop(&mut self, field: &str, why: &str) {
        if self.spec().and_then(|spec| spec.remove(field)).is_some() {
            self.tell(format!("spec.{field}"), why);
        }
    }

    fn body(&mut self, api_version: &str, kind: &str) {
        match kind {
            "Deployment" => {
                self.chosen_by_template();
                self.drop(
                    "rollbackTo",
                    "is gone; roll back by reverting the commit, or `kubectl rollout undo`",
                );
            }
            "DaemonSet" => {
                self.chosen_by_template();
                self.drop("templateGeneration", "is gone; metadata.generation counts");
                self.rolls(api_version, "extensions/v1beta1");
            }
            "ReplicaSet" => self.chosen_by_template(),
            "StatefulSet" => {
                self.chosen_by_template();
                self.rolls(api_version, "apps/v1beta1");
            }
            "Job" => self.drop(
                "autoSelector",
                "is gone; a Job chooses its own pods unless spec.manualSelector is true",
            ),
            "Ingress" => ingress::convert(self),
            "HorizontalPodAutoscaler" => autoscaler::convert(self, api_version),
            "CustomResourceDefinition" => definition::convert(self),
            "PodDisruptionBudget" => self.budget(),
            "RuntimeClass" => {}
            "RoleBinding" | "ClusterRoleBinding" => self.subjects(),
            _ => {}
        }
    }

    /// The selector and the labels were the template's when nothing else was said.
    fn chosen_by_template(&mut self) {
        let labels = match self.object.get("spec").map(|spec| &spec["template"]["metadata"]["labels"]) {
            Some(Value::Object(labels)) if !labels.is_empty() => labels.clone(),
            _ => return,
        };
        let unsaid = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || *value == json!({}));
        if let Some(spec) = self.spec()
            && unsaid(spec.get("selector"))
        {
            spec.insert("selector".into(), json!({ "matchLabels": labels }));
            self.tell("spec.selector", "is required today; the template's labels are taken");
        }
        let metadata = self.object.entry("metadata").or_insert_with(|| json!({}));
        if unsaid(metadata.get("labels")) {
            metadata["labels"] = labels.into();
        }
    }

    /// In the first version nothing was rolled unless it was said; today it is.
    fn rolls(&mut self, api_version: &str, first: &str) {
        let said = self.spec().is_some_and(|spec| spec.contains_key("updateStrategy"));
        if api_version == first && !said {
            let message = "was OnDelete when left out; today a change is rolled out. Write type: OnDelete to keep the old way";
            self.tell("spec.updateStrategy", message);
        }
    }

    /// An empty selector chose nothing, today it chooses everything.
    fn budget(&mut self) {
        if let Some(spec) = self.spec()
            && spec.get("selector").is_some_and(|selector| *selector == json!({}))
        {
            spec.remove("selector");
            self.tell(
                "spec.selector",
                "an empty selector chose no pod, today it chooses all; it is left out",
            );
        }
    }

    fn subjects(&mut self) {
        let Some(Value::Array(subjects)) = self.object.get_mut("subjects") else { return };
        let mut renamed = Vec::new();
        for (at, subject) in
            subjects.iter_mut().enumerate().filter_map(|(at, s)| Some((at, s.as_object_mut()?)))
        {
            if let Some(Value::String(version)) = subject.remove("apiVersion") {
                let (group, _) = crate::kinds::split_api_version(&version);
                if !group.is_empty() && !subject.contains_key("apiGroup") {
                    subject.insert("apiGroup".into(), group.into());
                }
                renamed.push(at);
            }
        }
        for at in renamed {
            self.tell(format!("subjects[{at}].apiVersion"), "is called apiGroup today, without the version");
        }
    }
}

#[cfg(test)]
mod tests;
