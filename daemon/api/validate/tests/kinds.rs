//! Cases of the kinds beside pods, services and their makers.

use super::*;

fn of(api_version: &str, kind: &str, rest: Value) -> Value {
    let mut object = rest;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object
}

fn template() -> Value {
    json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "a", "image": "x:1" }] } })
}

#[test]
fn stateful_sets_daemon_sets_and_controllers_choose_their_own_pods() {
    let chosen = json!({ "matchLabels": { "app": "other" } });
    for kind in ["StatefulSet", "DaemonSet"] {
        check(
            of("apps/v1", kind, json!({ "spec": { "selector": chosen, "template": template() } })),
            &[
                r#"spec.template.metadata.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`"#,
            ],
        );
        check(
            of("apps/v1", kind, json!({ "spec": { "template": template() } })),
            &["spec.selector: Required value"],
        );
    }
    check(
        of(
            "v1",
            "ReplicationController",
            json!({ "spec": { "selector": { "app": "other" }, "template": template() } }),
        ),
        &[
            r#"spec.template.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`"#,
        ],
    );
    check(
        of("v1", "ReplicationController", json!({ "spec": { "template": template(), "replicas": -1 } })),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    let set = of(
        "apps/v1",
        "StatefulSet",
        json!({ "spec": { "serviceName": "s", "selector": { "matchLabels": { "app": "web" } }, "template": template() } }),
    );
    check(set.clone(), &[]);
    check_update(set.clone(), |set| set["spec"]["replicas"] = json!(5), &[]);
    check_update(
        set,
        |set| set["spec"]["serviceName"] = json!("t"),
        &[
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ],
    );
}

#[test]
fn a_cron_job_has_a_schedule_and_a_job_that_ends() {
    let cron = |schedule: &str, policy: &str| {
        let mut template = template();
        template["spec"]["restartPolicy"] = json!(policy);
        of(
            "batch/v1",
            "CronJob",
            json!({ "spec": { "schedule": schedule, "jobTemplate": { "spec": { "template": template } } } }),
        )
    };
    check(cron("*/1 * * * *", "OnFailure"), &[]);
    check(
        cron("*/1 * * *", "OnFailure"),
        &[r#"spec.schedule: Invalid value: "*/1 * * *": expected exactly 5 fields, found 4: [*/1 * * *]"#],
    );
    check(
        cron("TZ=UTC * * * * *", "Never"),
        &[
            r#"spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"#,
        ],
    );
    check(
        cron("* * * * *", "Always"),
        &[
            r#"spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#,
        ],
    );
}

#[test]
fn an_autoscaler_has_a_target_and_bounds() {
    check(
        of(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({ "spec": { "minReplicas": 5, "maxReplicas": 2, "scaleTargetRef": { "kind": "Deployment" } } }),
        ),
        &[
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
            "spec.scaleTargetRef.name: Required value",
        ],
    );
}

#[test]
fn claims_and_volumes_say_how_much_and_how() {
    let claim = of(
        "v1",
        "PersistentVolumeClaim",
        json!({ "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
        "resources": { "requests": { "storage": "1Gi" } } } }),
    );
    check(claim.clone(), &[]);
    check(
        of("v1", "PersistentVolumeClaim", json!({ "spec": { "accessModes": ["Sometimes"] } })),
        &[
            r#"spec.accessModes: Unsupported value: "Sometimes": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
            "spec.resources[storage]: Required value",
        ],
    );
    check_update(claim.clone(), |claim| claim["spec"]["volumeName"] = json!("pv"), &[]);
    check_update(
        claim.clone(),
        |claim| claim["spec"]["storageClassName"] = json!("slow"),
        &[
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ],
    );
    let mut bound = claim;
    bound["status"] = json!({ "phase": "Bound" });
    check_update(
        bound.clone(),
        |claim| claim["spec"]["resources"]["requests"]["storage"] = json!("2Gi"),
        &[],
    );
    check_update(
        bound,
        |claim| claim["spec"]["resources"]["requests"]["storage"] = json!("1Mi"),
        &["spec.resources.requests.storage: Forbidden: field can not be less than previous value"],
    );
    let volume = |source: Value| {
        let mut spec = json!({ "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"] });
        spec.as_object_mut().expect("an object").extend(source.as_object().expect("an object").clone());
        of("v1", "PersistentVolume", json!({ "spec": spec }))
    };
    check(volume(json!({ "hostPath": { "path": "/data" } })), &[]);
    check(volume(json!({})), &["spec: Required value: must specify a volume type"]);
    check(
        volume(json!({ "hostPath": { "path": "/data" }, "nfs": { "server": "s", "path": "/" } })),
        &["spec.nfs: Forbidden: may not specify more than 1 volume type"],
    );
    check_update(
        volume(json!({ "hostPath": { "path": "/data" } })),
        |volume| volume["spec"]["hostPath"]["path"] = json!("/b"),
        &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"],
    );
    let class = of("storage.k8s.io/v1", "StorageClass", json!({ "provisioner": "a/b" }));
    check(class.clone(), &[]);
    check_update(
        class,
        |class| class["reclaimPolicy"] = json!("Retain"),
        &["reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."],
    );
}

#[test]
fn budgets_and_network_policies_are_not_of_two_minds() {
    check(
        of(
            "policy/v1",
            "PodDisruptionBudget",
            json!({ "spec": { "minAvailable": 1, "maxUnavailable": "50%" } }),
        ),
        &[
            r#"spec: Invalid value: {"maxUnavailable":"50%","minAvailable":1}: minAvailable and maxUnavailable cannot be both set"#,
        ],
    );
    let policy = |peer: Value| {
        of(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({ "spec": { "podSelector": {}, "ingress": [{ "from": [peer] }] } }),
        )
    };
    check(policy(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } })), &[]);
    check(policy(json!({})), &["spec.ingress[0].from[0]: Required value: must specify a peer"]);
    check(
        policy(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.1.0.0/16"] } })),
        &[
            r#"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.1.0.0/16": must be a strict subset of `cidr` "10.0.0.0/8""#,
        ],
    );
}

#[test]
fn limits_and_quotas_are_in_order() {
    check(
        of(
            "v1",
            "LimitRange",
            json!({ "spec": { "limits": [{ "type": "Container", "min": { "cpu": "2" }, "max": { "cpu": "1" } }, { "type": "Pod", "default": { "cpu": "1" } }] } }),
        ),
        &[
            r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1"#,
            r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than default request value 1"#,
            r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than default value 1"#,
            "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'",
        ],
    );
    check(
        of(
            "v1",
            "ResourceQuota",
            json!({ "spec": { "hard": { "pods": "1500m", "cpu": "-1" }, "scopes": ["BestEffort", "NotBestEffort"] } }),
        ),
        &[
            r#"spec.hard[cpu]: Invalid value: "-1": must be greater than or equal to 0"#,
            r#"spec.hard[pods]: Invalid value: "1500m": must be an integer"#,
            r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: conflicting scopes"#,
        ],
    );
    let class = of("scheduling.k8s.io/v1", "PriorityClass", json!({ "value": 1_000_000_001 }));
    check(class, &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]);
    let class = of("scheduling.k8s.io/v1", "PriorityClass", json!({ "value": 10 }));
    check_update(
        class,
        |class| class["value"] = json!(11),
        &["value: Forbidden: may not be changed in an update."],
    );
}

#[test]
fn roles_and_bindings_name_what_they_are_about() {
    let rbac = "rbac.authorization.k8s.io/v1";
    check(
        of(
            rbac,
            "Role",
            json!({ "metadata": { "name": "system:x" }, "rules": [{ "apiGroups": [""], "resources": ["pods"] }] }),
        ),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    check(
        of(rbac, "Role", json!({ "rules": [{ "verbs": ["get"], "nonResourceURLs": ["/x"] }] })),
        &[
            r#"rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#,
        ],
    );
    let binding = of(
        rbac,
        "RoleBinding",
        json!({ "roleRef": { "kind": "Role", "name": "r" }, "subjects": [{ "kind": "User", "name": "u" }] }),
    );
    check(binding.clone(), &[]);
    check_update(
        binding,
        |binding| binding["roleRef"]["name"] = json!("s"),
        &[
            r#"roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"s"}: cannot change roleRef"#,
        ],
    );
    check(
        of(
            rbac,
            "ClusterRoleBinding",
            json!({ "roleRef": { "kind": "Role", "name": "r" }, "subjects": [{ "kind": "ServiceAccount", "name": "s" }] }),
        ),
        &[
            r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#,
            "subjects[0].namespace: Required value",
        ],
    );
}

#[test]
fn admission_is_refused_what_it_could_not_do() {
    const ADMISSION: &str = "admissionregistration.k8s.io/v1";
    check(
        of(
            ADMISSION,
            "ValidatingWebhookConfiguration",
            json!({ "webhooks": [{
                "name": "a.example.com", "clientConfig": { "url": "http://example.com" }, "sideEffects": "None",
                "admissionReviewVersions": ["v1"], "timeoutSeconds": 31,
                "rules": [{ "operations": ["MAKE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }],
                "matchConditions": [{ "name": "c", "expression": "object.x ==" }],
            }] }),
        ),
        &[
            r#"webhooks[0].clientConfig.url: Invalid value: "http://example.com": 'https' is the only allowed URL scheme"#,
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            r#"webhooks[0].rules[0].operations[0]: Unsupported value: "MAKE": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE""#,
            r#"webhooks[0].matchConditions[0].expression: Invalid value: "object.x ==": compilation failed: ERROR: <input>:1:12: Syntax error: unexpected end of input"#,
        ],
    );
    check(
        of(
            ADMISSION,
            "ValidatingAdmissionPolicy",
            json!({ "spec": { "validations": [{ "expression": "nobody > 1" }] } }),
        ),
        &[
            "spec.matchConstraints.resourceRules: Required value",
            r#"spec.validations[0].expression: Invalid value: "nobody > 1": compilation failed: ERROR: <input>:1:1: undeclared reference to 'nobody' (in container '')"#,
        ],
    );
    check(
        of(
            ADMISSION,
            "ValidatingAdmissionPolicyBinding",
            json!({ "spec": { "policyName": "p", "validationActions": ["Deny", "Warn"], "paramRef": { "name": "x" } } }),
        ),
        &[
            r#"spec.validationActions: Invalid value: ["Deny","Warn"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"#,
            "spec.paramRef.parameterNotFoundAction: Required value",
        ],
    );
}
