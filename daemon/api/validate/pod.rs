//! Judges pods and pod templates: containers, environment, ports, scheduling.
//!
//! Invariant: a template is judged by the same function as a pod, only at another path.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Found, entries, items, meta, names, probes, resources, text, volumes};
use crate::schema::Defect;

/// `ValidatePodCreate`.
pub(super) fn pod(object: &Value, found: &mut Found) {
    spec(&object["spec"], "spec", found);
}

/// What only a pod that comes may not have.
pub(super) fn created(object: &Value, found: &mut Found) {
    if !items(&object["spec"]["ephemeralContainers"]).is_empty() {
        found.add(Defect::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
}

/// `ValidatePodTemplateSpec`.
pub(super) fn template(template: &Value, path: &str, found: &mut Found) {
    meta::labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"), found);
    meta::annotations(&template["metadata"]["annotations"], &format!("{path}.metadata.annotations"), found);
    spec(&template["spec"], &format!("{path}.spec"), found);
}

fn spec(spec: &Value, path: &str, found: &mut Found) {
    volumes::volumes(spec, path, found);
    containers(spec, path, found);
    found.one_of(&spec["restartPolicy"], &format!("{path}.restartPolicy"), &["Always", "OnFailure", "Never"]);
    dns(spec, path, found);
    meta::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), found);
    for (name, form) in [
        ("serviceAccountName", names::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain),
        ("priorityClassName", names::subdomain),
        ("hostname", names::label),
        ("subdomain", names::label),
    ] {
        if !text(&spec[name]).is_empty() {
            found.rules(&spec[name], &format!("{path}.{name}"), form(text(&spec[name])));
        }
    }
    for (index, secret) in items(&spec["imagePullSecrets"]).iter().enumerate() {
        found.required(&secret["name"], &format!("{path}.imagePullSecrets[{index}].name"));
    }
    found.non_negative(
        &spec["terminationGracePeriodSeconds"],
        &format!("{path}.terminationGracePeriodSeconds"),
    );
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        let why = "must be between 1 and 2147483647, inclusive";
        found.add(Defect::invalid(format!("{path}.activeDeadlineSeconds"), deadline, why));
    }
    for (index, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        found.rules(&alias["ip"], &format!("{path}.ip"), names::ip(text(&alias["ip"])));
        for (index, host) in items(&alias["hostnames"]).iter().enumerate() {
            found.rules(host, &format!("{path}.hostnames[{index}]"), names::subdomain(text(host)));
        }
    }
    tolerations(&spec["tolerations"], &format!("{path}.tolerations"), found);
    affinity(&spec["affinity"], &format!("{path}.affinity"), found);
    spread(&spec["topologySpreadConstraints"], &format!("{path}.topologySpreadConstraints"), found);
    security(&spec["securityContext"], &format!("{path}.securityContext"), found);
    for (index, gate) in items(&spec["schedulingGates"]).iter().enumerate() {
        found.rules(
            &gate["name"],
            &format!("{path}.schedulingGates[{index}]"),
            names::qualified(text(&gate["name"])),
        );
    }
    if !text(&spec["nodeName"]).is_empty() && !items(&spec["schedulingGates"]).is_empty() {
        found.add(Defect::forbidden(
            format!("{path}.nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

fn containers(spec: &Value, path: &str, found: &mut Found) {
    if items(&spec["containers"]).is_empty() {
        found.add(Defect::required(format!("{path}.containers"), ""));
    }
    let mut seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for (index, one) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            container(one, spec, &path, found);
            if one["name"].as_str().is_some_and(|name| !name.is_empty() && !seen.insert(name)) {
                found.add(Defect::duplicate(format!("{path}.name"), &one["name"]));
            }
            let sidecar = one["restartPolicy"] == "Always";
            if list == "initContainers" && !sidecar {
                for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if !one[name].is_null() {
                        let why = "may not be set for init containers without restartPolicy=Always";
                        found.add(Defect::forbidden(format!("{path}.{name}"), why));
                    }
                }
            }
            if list == "containers" || sidecar {
                claim_host_ports(one, &path, &mut host_ports, found);
            }
        }
    }
}

fn container(container: &Value, spec: &Value, path: &str, found: &mut Found) {
    if let Some(name) = found.required(&container["name"], &format!("{path}.name")) {
        found.rules(&container["name"], &format!("{path}.name"), names::label(name));
    }
    if let Some(image) = found.required(&container["image"], &format!("{path}.image"))
        && image.trim() != image
    {
        let why = "must not have leading or trailing whitespace";
        found.add(Defect::invalid(format!("{path}.image"), &container["image"], why));
    }
    found.one_of(
        &container["imagePullPolicy"],
        &format!("{path}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    let policies = ["FallbackToLogsOnError", "File"];
    found.one_of(
        &container["terminationMessagePolicy"],
        &format!("{path}.terminationMessagePolicy"),
        &policies,
    );
    found.one_of(
        &container["restartPolicy"],
        &format!("{path}.restartPolicy"),
        &["Always", "Never", "OnFailure"],
    );
    ports(container, spec, path, found);
    environment(container, path, found);
    volumes::mounts(container, spec, path, found);
    probes::probes(container, path, found);
    probes::lifecycle(container, spec, path, found);
    resources::requirements(&container["resources"], &format!("{path}.resources"), found);
    security(&container["securityContext"], &format!("{path}.securityContext"), found);
    let own = &container["securityContext"];
    if own["allowPrivilegeEscalation"] == false {
        if own["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            found.add(Defect::invalid(format!("{path}.securityContext"), own, why));
        } else if items(&own["capabilities"]["add"])
            .iter()
            .any(|cap| matches!(text(cap), "CAP_SYS_ADMIN" | "SYS_ADMIN"))
        {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            found.add(Defect::invalid(format!("{path}.securityContext"), own, why));
        }
    }
}

fn ports(container: &Value, spec: &Value, path: &str, found: &mut Found) {
    let mut seen = BTreeSet::new();
    for (index, port) in items(&container["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            let broken = names::port_name(name);
            if broken.is_empty() && !seen.insert(name) {
                found.add(Defect::duplicate(format!("{path}.name"), &port["name"]));
            }
            found.rules(&port["name"], &format!("{path}.name"), broken);
        }
        match port["containerPort"].as_i64().unwrap_or(0) {
            0 => found.add(Defect::required(format!("{path}.containerPort"), "")),
            number => found.rules(
                &port["containerPort"],
                &format!("{path}.containerPort"),
                names::port_number(number),
            ),
        }
        if let Some(number) = port["hostPort"].as_i64().filter(|number| *number != 0) {
            found.rules(&port["hostPort"], &format!("{path}.hostPort"), names::port_number(number));
            if spec["hostNetwork"] == true && port["hostPort"] != port["containerPort"] {
                let why = "must match `containerPort` when `hostNetwork` is true";
                found.add(Defect::invalid(format!("{path}.containerPort"), &port["containerPort"], why));
            }
        }
        if found.required(&port["protocol"], &format!("{path}.protocol")).is_some() {
            found.one_of(&port["protocol"], &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]);
        }
    }
}

fn claim_host_ports(container: &Value, path: &str, taken: &mut BTreeSet<String>, found: &mut Found) {
    for (index, port) in items(&container["ports"]).iter().enumerate() {
        let number = port["hostPort"].as_i64().unwrap_or(0);
        let claim = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
        if number != 0 && !taken.insert(claim.clone()) {
            found.add(Defect::duplicate(format!("{path}.ports[{index}].hostPort"), &claim.into()));
        }
    }
}

fn environment(container: &Value, path: &str, found: &mut Found) {
    for (index, variable) in items(&container["env"]).iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        if let Some(name) = found.required(&variable["name"], &format!("{path}.name")) {
            found.rules(&variable["name"], &format!("{path}.name"), names::env_name(name));
        }
        if !variable["valueFrom"].is_null() {
            value_from(variable, &format!("{path}.valueFrom"), found);
        }
    }
    for (index, from) in items(&container["envFrom"]).iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        let sources: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|name| !from[*name].is_null()).collect();
        match sources.as_slice() {
            [] => found.add(Defect::invalid(
                path.as_str(),
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [one] => {
                found.required(&from[*one]["name"], &format!("{path}.{one}.name"));
            }
            _ => found.add(Defect::invalid(
                path.as_str(),
                &"".into(),
                "may not have more than one field specified at a time",
            )),
        }
        if !text(&from["prefix"]).is_empty() {
            found.rules(&from["prefix"], &format!("{path}.prefix"), names::env_name(text(&from["prefix"])));
        }
    }
}

fn value_from(variable: &Value, path: &str, found: &mut Found) {
    let from = &variable["valueFrom"];
    let known = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given: Vec<&str> = known.into_iter().filter(|name| !from[*name].is_null()).collect();
    if given.is_empty() {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        found.add(Defect::invalid(path, &"".into(), why));
    }
    if !text(&variable["value"]).is_empty() && !given.is_empty() {
        found.add(Defect::invalid(path, &"".into(), "may not be specified when `value` is not empty"));
    } else if given.len() > 1 {
        found.add(Defect::invalid(path, &"".into(), "may not have more than one field specified at a time"));
    }
    for name in ["configMapKeyRef", "secretKeyRef"] {
        if !from[name].is_null() {
            found.required(&from[name]["name"], &format!("{path}.{name}.name"));
            if let Some(key) = found.required(&from[name]["key"], &format!("{path}.{name}.key")) {
                found.rules(&from[name]["key"], &format!("{path}.{name}.key"), names::config_key(key));
            }
        }
    }
    if !from["fieldRef"].is_null() {
        let field = &from["fieldRef"]["fieldPath"];
        field_ref(field, &format!("{path}.fieldRef.fieldPath"), ENV_FIELDS, found);
    }
    if !from["resourceFieldRef"].is_null() {
        found.required(&from["resourceFieldRef"]["resource"], &format!("{path}.resourceFieldRef.resource"));
    }
}

/// Fields of the pod that the environment may show, sorted as Kubernetes lists them.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A field of the pod that may be shown: one of these, or one label or annotation.
pub(super) fn field_ref(field: &Value, path: &str, known: &[&str], found: &mut Found) {
    let Some(name) = found.required(field, path) else { return };
    let subscript =
        |map: &str| name.strip_prefix(map).is_some_and(|rest| rest.starts_with("['") && rest.ends_with("']"));
    if !subscript("metadata.annotations") && !subscript("metadata.labels") {
        found.one_of(field, path, known);
    }
}

fn dns(spec: &Value, path: &str, found: &mut Found) {
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    found.one_of(&spec["dnsPolicy"], &format!("{path}.dnsPolicy"), &policies);
    let servers = items(&spec["dnsConfig"]["nameservers"]);
    if spec["dnsPolicy"] == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        let at = if spec["dnsConfig"].is_null() { "dnsConfig" } else { "dnsConfig.nameservers" };
        found.add(Defect::required(format!("{path}.{at}"), why));
    }
    for (index, server) in servers.iter().enumerate() {
        found.rules(server, &format!("{path}.dnsConfig.nameservers[{index}]"), names::ip(text(server)));
    }
}

fn tolerations(list: &Value, path: &str, found: &mut Found) {
    for (index, toleration) in items(list).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if !key.is_empty() {
            found.rules(&toleration["key"], &format!("{path}.key"), names::qualified(key));
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            found.add(Defect::invalid(format!("{path}.operator"), &operator.into(), why));
        }
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            found.add(Defect::invalid(format!("{path}.effect"), &text(&toleration["effect"]).into(), why));
        }
        match operator {
            "Exists" if !text(&toleration["value"]).is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                found.add(Defect::invalid(format!("{path}.operator"), &toleration["value"], why));
            }
            "" | "Equal" => found.rules(
                &toleration["value"],
                &format!("{path}.operator"),
                names::label_value(text(&toleration["value"])),
            ),
            _ => found.one_of(&toleration["operator"], &format!("{path}.operator"), &["Equal", "Exists"]),
        }
        if !text(&toleration["effect"]).is_empty() {
            found.one_of(
                &toleration["effect"],
                &format!("{path}.effect"),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}

fn affinity(affinity: &Value, path: &str, found: &mut Found) {
    let required = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let at = format!("{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    if !required.is_null() && items(&required["nodeSelectorTerms"]).is_empty() {
        found.add(Defect::required(at.as_str(), "must have at least one node selector term"));
    }
    for (term, value) in items(&required["nodeSelectorTerms"]).iter().enumerate() {
        for (index, expression) in items(&value["matchExpressions"]).iter().enumerate() {
            node_expression(expression, &format!("{at}[{term}].matchExpressions[{index}]"), found);
        }
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        let list = "requiredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in items(&affinity[name][list]).iter().enumerate() {
            let path = format!("{path}.{name}.{list}[{index}]");
            meta::selector(&term["labelSelector"], &format!("{path}.labelSelector"), found);
            if text(&term["topologyKey"]).is_empty() {
                found.add(Defect::required(format!("{path}.topologyKey"), "can not be empty"));
            }
        }
        let list = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in items(&affinity[name][list]).iter().enumerate() {
            let path = format!("{path}.{name}.{list}[{index}]");
            if !term["weight"].as_i64().is_some_and(|weight| (1..=100).contains(&weight)) {
                found.add(Defect::invalid(
                    format!("{path}.weight"),
                    &term["weight"],
                    "must be in the range 1-100",
                ));
            }
            if text(&term["podAffinityTerm"]["topologyKey"]).is_empty() {
                found
                    .add(Defect::required(format!("{path}.podAffinityTerm.topologyKey"), "can not be empty"));
            }
        }
    }
}

fn node_expression(expression: &Value, path: &str, found: &mut Found) {
    let values = items(&expression["values"]);
    let at = format!("{path}.values");
    match text(&expression["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            found.add(Defect::required(at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            found.add(Defect::forbidden(
                at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            found.add(Defect::required(at, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => {
            let why = "not a valid selector operator";
            found.add(Defect::invalid(format!("{path}.operator"), &expression["operator"], why));
        }
    }
    found.rules(&expression["key"], &format!("{path}.key"), names::qualified(text(&expression["key"])));
}

fn spread(list: &Value, path: &str, found: &mut Found) {
    for (index, constraint) in items(list).iter().enumerate() {
        let path = format!("{path}[{index}]");
        if constraint["maxSkew"].as_i64().is_none_or(|skew| skew <= 0) {
            found.add(Defect::invalid(
                format!("{path}.maxSkew"),
                &constraint["maxSkew"],
                "must be greater than zero",
            ));
        }
        if text(&constraint["topologyKey"]).is_empty() {
            found.add(Defect::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        found.one_of(&constraint["whenUnsatisfiable"], &format!("{path}.whenUnsatisfiable"), &actions);
        meta::selector(&constraint["labelSelector"], &format!("{path}.labelSelector"), found);
    }
}

/// What pods' and containers' security contexts have in common.
fn security(context: &Value, path: &str, found: &mut Found) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        let id = &context[name];
        if id.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            found.add(Defect::invalid(
                format!("{path}.{name}"),
                id,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    let profile = &context["seccompProfile"];
    if !profile.is_null() {
        found.one_of(
            &profile["type"],
            &format!("{path}.seccompProfile.type"),
            &["Localhost", "RuntimeDefault", "Unconfined"],
        );
        if profile["type"] == "Localhost" && text(&profile["localhostProfile"]).is_empty() {
            let why = "must be set when seccomp type is Localhost";
            found.add(Defect::required(format!("{path}.seccompProfile.localhostProfile"), why));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, sysctl) in items(&context["sysctls"]).iter().enumerate() {
        let path = format!("{path}.sysctls[{index}].name");
        if let Some(name) = found.required(&sysctl["name"], &path)
            && !seen.insert(name)
        {
            found.add(Defect::duplicate(path.clone(), &sysctl["name"]));
        }
        let name = text(&sysctl["name"]);
        if !name.is_empty() && !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9]$";
            found.add(Defect::invalid(path, &sysctl["name"], why));
        }
    }
}

/// Parts of lower-case letters, digits, dashes and underscores that begin and end with a letter or digit, between dots or
/// slashes.
fn is_sysctl(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| plain(*first) && plain(*last))
            && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

/// The labels that a selector's terms ask of a template (`selector` does not match template `labels`).
pub(super) fn labels_of(template: &Value) -> std::collections::BTreeMap<String, String> {
    entries(&template["metadata"]["labels"])
        .map(|(key, value)| (key.clone(), text(value).to_owned()))
        .collect()
}
