use super::*;
use crate::kinds::by_kind;

#[track_caller]
fn check(then: Value, now: Value, told: &[&str]) {
    let today = today(&then).expect("of yesterday").expect("lives on");
    assert_eq!(today.object, now);
    let paths: Vec<&str> = today.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, told);
    let served = by_kind(now["apiVersion"].as_str().expect("text"), now["kind"].as_str().expect("text"));
    if let Some(kind) = served {
        assert_eq!(crate::schema::check_fields(kind, &today.object), [], "today's form has today's fields");
    }
    assert_eq!(super::today(&today.object), None, "today's form is of today");
}

fn template() -> Value {
    json!({ "metadata": { "labels": { "app": "kubia" } }, "spec": { "containers": [{ "name": "c", "image": "kubia:1" }] } })
}

#[test]
fn a_selector_left_out_is_the_templates_labels() {
    for version in ["extensions/v1beta1", "apps/v1beta1", "apps/v1beta2"] {
        check(
            json!({ "apiVersion": version, "kind": "Deployment", "metadata": { "name": "kubia" },
                "spec": { "replicas": 3, "template": template(), "rollbackTo": { "revision": 1 } } }),
            json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "kubia", "labels": { "app": "kubia" } },
                "spec": { "replicas": 3, "template": template(), "selector": { "matchLabels": { "app": "kubia" } } } }),
            &["apiVersion", "spec.selector", "spec.rollbackTo"],
        );
    }
    check(
        json!({ "apiVersion": "apps/v1beta1", "kind": "StatefulSet", "metadata": { "name": "kubia", "labels": { "a": "b" } },
            "spec": { "serviceName": "kubia", "selector": { "matchLabels": { "app": "kubia" } }, "template": template() } }),
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "kubia", "labels": { "a": "b" } },
            "spec": { "serviceName": "kubia", "selector": { "matchLabels": { "app": "kubia" } }, "template": template() } }),
        &["apiVersion", "spec.updateStrategy"],
    );
}

#[test]
fn an_ingress_names_service_and_port_as_today() {
    check(
        json!({ "apiVersion": "extensions/v1beta1", "kind": "Ingress", "metadata": { "name": "kubia" }, "spec": {
            "backend": { "serviceName": "other", "servicePort": "http" },
            "rules": [{ "host": "kubia.example.com", "http": { "paths": [
                { "path": "/", "backend": { "serviceName": "kubia-nodeport", "servicePort": 80 } }] } }] } }),
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": { "name": "kubia" }, "spec": {
            "defaultBackend": { "service": { "name": "other", "port": { "name": "http" } } },
            "rules": [{ "host": "kubia.example.com", "http": { "paths": [{ "path": "/", "pathType": "ImplementationSpecific",
                "backend": { "service": { "name": "kubia-nodeport", "port": { "number": 80 } } } }] } }] } }),
        &[
            "apiVersion",
            "spec.backend",
            "spec.backend.serviceName",
            "spec.backend.servicePort",
            "spec.rules[0].http.paths[0].backend.serviceName",
            "spec.rules[0].http.paths[0].backend.servicePort",
            "spec.rules[0].http.paths[0].pathType",
        ],
    );
}

#[test]
fn an_autoscalers_flat_metrics_get_targets() {
    let metrics = json!([
        { "type": "Resource", "resource": { "name": "cpu", "targetAverageUtilization": 30 } },
        { "type": "Pods", "pods": { "metricName": "qps", "targetAverageValue": "100" } },
        { "type": "Object", "object": { "metricName": "latency", "target": { "kind": "Ingress", "name": "i" }, "targetValue": "20" } },
    ]);
    let today = json!([
        { "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 30 } } },
        { "type": "Pods", "pods": { "metric": { "name": "qps" }, "target": { "type": "AverageValue", "averageValue": "100" } } },
        { "type": "Object", "object": { "metric": { "name": "latency" }, "describedObject": { "kind": "Ingress", "name": "i" },
            "target": { "type": "Value", "value": "20" } } },
    ]);
    let scaler = |version: &str, of: &str, metrics: &Value| {
        json!({ "apiVersion": version, "kind": "HorizontalPodAutoscaler",
        "metadata": { "name": "h" }, "spec": { "maxReplicas": 5, "metrics": metrics,
            "scaleTargetRef": { "apiVersion": of, "kind": "Deployment", "name": "kubia" } } })
    };
    check(
        scaler("autoscaling/v2beta1", "extensions/v1beta1", &metrics),
        scaler("autoscaling/v2", "apps/v1", &today),
        &[
            "apiVersion",
            "spec.scaleTargetRef.apiVersion",
            "spec.metrics[0].resource",
            "spec.metrics[1].pods",
            "spec.metrics[2].object",
        ],
    );
    check(
        scaler("autoscaling/v2beta2", "apps/v1", &today),
        scaler("autoscaling/v2", "apps/v1", &today),
        &["apiVersion"],
    );
}

#[test]
fn a_definition_gets_versions_scope_and_schema() {
    check(
        json!({ "apiVersion": "apiextensions.k8s.io/v1beta1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "websites.extensions.example.com" }, "spec": { "group": "extensions.example.com", "version": "v1",
                "names": { "kind": "Website", "singular": "website", "plural": "websites" },
                "additionalPrinterColumns": [{ "name": "Repo", "type": "string", "JSONPath": ".spec.gitRepo" }] } }),
        json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "websites.extensions.example.com" }, "spec": { "group": "extensions.example.com", "scope": "Namespaced",
                "names": { "kind": "Website", "singular": "website", "plural": "websites" },
                "versions": [{ "name": "v1", "served": true, "storage": true,
                    "additionalPrinterColumns": [{ "name": "Repo", "type": "string", "jsonPath": ".spec.gitRepo" }],
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } }),
        &["apiVersion", "spec.scope", "spec.version", "spec.additionalPrinterColumns"],
    );
}

#[test]
fn what_only_moved_keeps_its_body() {
    let job = json!({ "schedule": "0 * * * *", "jobTemplate": { "spec": { "template": template() } } });
    check(
        json!({ "apiVersion": "batch/v1beta1", "kind": "CronJob", "metadata": { "name": "c" }, "spec": job }),
        json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "c" }, "spec": job }),
        &["apiVersion"],
    );
    check(
        json!({ "apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": { "name": "b" },
            "spec": { "minAvailable": 1, "selector": {} } }),
        json!({ "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "b" }, "spec": { "minAvailable": 1 } }),
        &["apiVersion", "spec.selector"],
    );
    check(
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1alpha1", "kind": "RoleBinding", "metadata": { "name": "r" },
            "roleRef": { "kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io" },
            "subjects": [{ "kind": "User", "name": "u", "apiVersion": "rbac.authorization.k8s.io/v1alpha1" }] }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "r" },
            "roleRef": { "kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io" },
            "subjects": [{ "kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io" }] }),
        &["apiVersion", "subjects[0].apiVersion"],
    );
}

#[test]
fn what_is_gone_for_good_is_named_with_what_to_use() {
    for (api_version, kind, word) in [
        ("extensions/v1beta1", "PodSecurityPolicy", "pod-security.kubernetes.io/enforce"),
        ("policy/v1beta1", "PodSecurityPolicy", "pod-security.kubernetes.io/enforce"),
        ("servicecatalog.k8s.io/v1alpha1", "Broker", "operator"),
    ] {
        let gone =
            today(&json!({ "apiVersion": api_version, "kind": kind })).expect("known").expect_err("gone");
        assert!(gone.what == kind && gone.instead.contains(word), "{gone:?}");
    }
    let volumes = json!({ "volumes": [{ "name": "a", "emptyDir": {} }, { "name": "html", "gitRepo": { "repository": "https://x" } }] });
    let found = gone(&json!({ "apiVersion": "v1", "kind": "Pod", "spec": volumes }));
    assert_eq!(found.iter().map(|gone| gone.path.as_str()).collect::<Vec<_>>(), ["spec.volumes[1].gitRepo"]);
    assert_eq!(gone(&json!({ "kind": "Deployment", "spec": { "template": { "spec": volumes } } })).len(), 1);
}

#[test]
fn objects_of_today_and_of_nobody_are_left_alone() {
    for (api_version, kind) in [
        ("apps/v1", "Deployment"),
        ("v1", "Pod"),
        ("extensions.example.com/v1", "Website"),
        ("apps/v1beta1", "Website"),
    ] {
        assert_eq!(today(&json!({ "apiVersion": api_version, "kind": kind })), None, "{api_version} {kind}");
    }
    assert_eq!(today(&json!({ "kind": "Website" })), None);
    assert_eq!(today(&json!([])), None);
}
