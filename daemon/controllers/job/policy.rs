//! What a Job says about its failures and successes: `podFailurePolicy` and `successPolicy`.
//!
//! Invariant: the first rule that matches decides; a failure that no rule speaks of counts.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::Pod;

use super::indexes;
use crate::pods::{finished, name, phase, terminating};

/// What a failed pod means for its Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// One of those that `backoffLimit` allows.
    Counts,
    /// As if it had not been.
    Ignored,
    /// Its index has failed for good.
    FailsIndex,
    /// The whole Job has failed; why.
    FailsJob(String),
}

/// Whether only pods that have come to an end are replaced, and counted.
pub(crate) fn only_ended_are_replaced(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether the pod has failed, as far as its Job is concerned: a pod that was deleted may never come to an end.
pub(crate) fn failed(spec: &JobSpec, pod: &Pod) -> bool {
    phase(pod) == "Failed" || (!only_ended_are_replaced(spec) && terminating(pod) && !finished(pod))
}

/// What the failure of this pod means.
pub(crate) fn failure(spec: &JobSpec, pod: &Pod) -> Failure {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    rules.enumerate().find_map(|(at, rule)| by_rule(rule, at, pod)).unwrap_or(Failure::Counts)
}

fn by_rule(rule: &PodFailurePolicyRule, at: usize, pod: &Pod) -> Option<Failure> {
    let what = match &rule.on_exit_codes {
        Some(codes) => exit_code(codes, pod).map(|(container, code)| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!(
                "Container {container} for pod {namespace}/{} failed with exit code {code}",
                name(&pod.metadata)
            )
        }),
        None => {
            rule.on_pod_conditions.iter().flatten().find_map(|pattern| condition(pattern, pod)).map(|kind| {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                format!("Pod {namespace}/{} has condition {kind}", name(&pod.metadata))
            })
        }
    }?;
    Some(match rule.action.as_str() {
        "Ignore" => Failure::Ignored,
        "FailIndex" => Failure::FailsIndex,
        "FailJob" => Failure::FailsJob(format!("{what} matching {} rule at index {at}", rule.action)),
        _ => Failure::Counts,
    })
}

/// The container, and the code with which it failed, that the rule speaks of.
fn exit_code<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let named = containers
        .filter(|container| codes.container_name.as_ref().is_none_or(|name| *name == container.name));
    named
        .filter_map(|container| {
            Some((container.name.as_str(), container.state.as_ref()?.terminated.as_ref()?.exit_code))
        })
        .find(|(_, code)| {
            let listed = codes.values.contains(code);
            *code != 0 && if codes.operator == "NotIn" { !listed } else { listed }
        })
}

fn condition<'a>(pattern: &PodFailurePolicyOnPodConditionsPattern, pod: &'a Pod) -> Option<&'a str> {
    let wanted = pattern.status.as_deref().unwrap_or("True");
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    conditions
        .filter(|known| known.type_ == pattern.type_ && known.status == wanted)
        .map(|known| known.type_.as_str())
        .next()
}

/// The first rule of `successPolicy` that the completed indexes satisfy, as the condition tells it.
pub(crate) fn success(spec: &JobSpec, completed: &BTreeSet<i32>) -> Option<String> {
    let satisfied = |count: Option<i32>, listed: Option<&str>| match (listed, count) {
        (Some(listed), count) => {
            let listed = indexes::parse(listed);
            let done = listed.intersection(completed).count();
            done >= count.map_or(listed.len(), |count| usize::try_from(count).unwrap_or(0))
        }
        (None, Some(count)) => indexes::count(completed) >= count,
        (None, None) => false,
    };
    if completed.is_empty() {
        return None;
    }
    let rules = spec.success_policy.iter().flat_map(|policy| &policy.rules).enumerate();
    let mut met =
        rules.filter(|(_, rule)| satisfied(rule.succeeded_count, rule.succeeded_indexes.as_deref()));
    met.next().map(|(at, _)| format!("Matched rules at index {at}"))
}
