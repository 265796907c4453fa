//! The Pod Security levels: what a namespace's label forbids its pods.
//!
//! Invariant: `privileged` forbids nothing, `baseline` what breaks out of a container, `restricted` also what could.
//! Invariant: sentences and their order are Kubernetes' own, so that people and tools recognise them.

mod baseline;
mod restricted;

use serde_json::Value;

/// How much a namespace trusts its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Everything is allowed.
    Privileged,
    /// What breaks out is forbidden.
    Baseline,
    /// Only what needs nothing special is allowed.
    Restricted,
}

/// A level and the version of the rules that the namespace asks for, as in its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The level.
    pub level: Level,
    /// `latest` or `v1.30`: told in messages; the newest rules are used.
    pub version: String,
}

impl Level {
    /// Reads the value of a label.
    pub fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

impl Policy {
    /// The policy of a mode (`enforce`, `warn`, `audit`) in the labels of a namespace; privileged when unsaid. A word that
    /// is no level is the strictest, as documented.
    pub fn of<'a>(mode: &str, label: impl Fn(&str) -> Option<&'a str>) -> Policy {
        let level = match label(&format!("pod-security.kubernetes.io/{mode}")) {
            None => Level::Privileged,
            Some(text) => Level::parse(text).unwrap_or(Level::Restricted),
        };
        let version = label(&format!("pod-security.kubernetes.io/{mode}-version")).unwrap_or("latest");
        Policy { level, version: version.to_owned() }
    }

    /// `violates PodSecurity "baseline:latest": …`: why a pod with this metadata and spec is against the policy.
    pub fn violation(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let reasons = match self.level {
            Level::Privileged => return None,
            Level::Baseline => baseline::reasons(metadata, spec, baseline::Besides::Nothing),
            Level::Restricted => {
                let mut reasons = baseline::reasons(metadata, spec, baseline::Besides::Restricted);
                reasons.extend(restricted::reasons(spec));
                reasons
            }
        };
        let told = reasons.join(", ");
        (!told.is_empty())
            .then(|| format!("violates PodSecurity \"{}:{}\": {told}", self.level.word(), self.version))
    }
}

/// All containers of a pod with their names.
fn containers(spec: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let all = lists.into_iter().flat_map(|list| spec[list].as_array().into_iter().flatten());
    all.map(|container| (container["name"].as_str().unwrap_or_default(), container))
}

/// The names of the containers for which this holds.
fn named(spec: &Value, holds: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|(_, container)| holds(container)).map(|(name, _)| name).collect()
}

/// `container "a"` or `containers "a", "b"`.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("container{} {}", if names.len() == 1 { "" } else { "s" }, quoted.join(", "))
}

/// `"a", "b"`, sorted and once each.
fn quoted(mut values: Vec<&str>) -> String {
    values.sort_unstable();
    values.dedup();
    values.into_iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(level: Level, spec: Value, wanted: Option<&str>) {
        let policy = Policy { level, version: "latest".to_owned() };
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{ "name": "c" }]);
        }
        assert_eq!(policy.violation(&json!({}), &spec).as_deref(), wanted);
    }

    #[test]
    fn a_plain_pod_is_baseline_but_not_restricted() {
        check(Level::Baseline, json!({}), None);
        check(
            Level::Restricted,
            json!({}),
            Some(concat!(
                r#"violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), "#,
                r#"unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), "#,
                r#"runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), "#,
                r#"seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#
            )),
        );
        let good = json!({ "name": "c", "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } });
        check(
            Level::Restricted,
            json!({ "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }, "containers": [good],
                "volumes": [{ "name": "v", "emptyDir": {} }] }),
            None,
        );
    }

    #[test]
    fn what_breaks_out_is_not_baseline() {
        for (spec, why) in [
            (
                json!({ "hostNetwork": true, "hostPID": true }),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/" } }] }),
                r#"hostPath volumes (volume "v")"#,
            ),
            (
                json!({ "containers": [{ "name": "a", "ports": [{ "hostPort": 80 }] }, { "name": "b", "ports": [{ "hostPort": 81 }] }] }),
                r#"hostPort (containers "a", "b" use hostPorts 80, 81)"#,
            ),
            (
                json!({ "containers": [{ "name": "a", "securityContext": { "privileged": true, "capabilities": { "add": ["KILL", "NET_ADMIN"] } } }] }),
                concat!(
                    r#"non-default capabilities (container "a" must not include "NET_ADMIN" in securityContext.capabilities.add), "#,
                    r#"privileged (container "a" must not set securityContext.privileged=true)"#
                ),
            ),
            (
                json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" }, "sysctls": [{ "name": "kernel.msgmax" }] } }),
                r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined"), forbidden sysctls (kernel.msgmax)"#,
            ),
        ] {
            check(
                Level::Baseline,
                spec.clone(),
                Some(&format!("violates PodSecurity \"baseline:latest\": {why}")),
            );
            check(Level::Privileged, spec, None);
        }
    }

    #[test]
    fn a_namespace_that_says_nothing_is_privileged_and_a_wrong_word_is_strict() {
        assert_eq!(Policy::of("enforce", |_| None).level, Level::Privileged);
        assert_eq!(Policy::of("enforce", |_| Some("bogus")).level, Level::Restricted);
        let policy =
            Policy::of("warn", |name| (name == "pod-security.kubernetes.io/warn").then_some("baseline"));
        assert_eq!(policy, Policy { level: Level::Baseline, version: "latest".to_owned() });
    }
}
