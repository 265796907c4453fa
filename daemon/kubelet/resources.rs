//! Requests and limits in the kernel's units: pure.

use std::collections::BTreeMap;

use api::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::Resources;

use crate::rules::{self, Member, Role};

/// The score of pods that the kernel takes last, as documented; the kernel may refuse it, then theirs is 0.
const GUARANTEED_SCORE: i32 = -997;
/// What a group without a request weighs.
const LEAST_SHARES: u64 = 2;

/// Requests, or limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Requests,
    Limits,
}

fn milli(of: Option<&ResourceRequirements>, side: Side, name: &str) -> Option<i128> {
    let amounts: &BTreeMap<String, Quantity> = match side {
        Side::Requests => of?.requests.as_ref(),
        Side::Limits => of?.limits.as_ref(),
    }?;
    Amount::parse(&amounts.get(name)?.0).ok().map(|amount| amount.as_milli())
}

fn unsigned(amount: i128) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

fn shares(milli: Option<i128>) -> u64 {
    milli.map_or(LEAST_SHARES, |milli| unsigned(milli * 1024 / 1000).max(LEAST_SHARES))
}

/// Microseconds in 100 ms; less than one the kernel does not take.
fn quota(milli: i128) -> u64 {
    unsigned(milli * 100).max(1000)
}

/// The bounds of one container.
pub(crate) fn of_container(pod: &Pod, container: &Container, machine_bytes: i64) -> Resources {
    let own = container.resources.as_ref();
    Resources {
        cpu_shares: Some(shares(milli(own, Side::Requests, "cpu"))),
        cpu_quota_us: milli(own, Side::Limits, "cpu").map(quota),
        cpu_period_us: Some(100_000),
        memory_bytes: milli(own, Side::Limits, "memory").map(|milli| unsigned(milli / 1000)),
        pids: None,
        oom_score_adj: Some(oom_score(pod, container, machine_bytes)),
    }
}

/// The bounds of a whole pod: its own, or what its containers add up to when each of them has one.
pub(crate) fn of_pod(pod: &Pod, most_pids: u64) -> Resources {
    let members = rules::members(pod);
    let own = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let limit = |name: &str| milli(own, Side::Limits, name).or_else(|| sum(&members, Side::Limits, name));
    let request = milli(own, Side::Requests, "cpu").or(Some(sum_of_asked(&members)));
    Resources {
        cpu_shares: Some(shares(request)),
        cpu_quota_us: limit("cpu").map(quota),
        cpu_period_us: Some(100_000),
        memory_bytes: limit("memory").map(|milli| unsigned(milli / 1000)),
        pids: Some(most_pids).filter(|most| *most > 0),
        oom_score_adj: None,
    }
}

/// Main containers and sidecars run together, init containers one by one beside the sidecars. None when one is unbounded.
fn sum(members: &[Member<'_>], side: Side, name: &str) -> Option<i128> {
    let (mut together, mut sidecars, mut alone) = (0, 0, 0);
    for member in members.iter().filter(|member| member.role != Role::Ephemeral) {
        let amount = milli(member.container.resources.as_ref(), side, name)?;
        match member.role {
            Role::Main => together += amount,
            Role::Sidecar => sidecars += amount,
            Role::Init => alone = amount.max(alone),
            Role::Ephemeral => {}
        }
    }
    Some(together.max(alone) + sidecars)
}

fn sum_of_asked(members: &[Member<'_>]) -> i128 {
    let asked = |member: &Member<'_>| milli(member.container.resources.as_ref(), Side::Requests, "cpu");
    let running = members.iter().filter(|member| matches!(member.role, Role::Main | Role::Sidecar));
    let alone = members.iter().filter(|member| member.role == Role::Init).filter_map(asked).max();
    running.filter_map(asked).sum::<i128>().max(alone.unwrap_or(0))
}

/// Guaranteed, Burstable or BestEffort, as documented.
pub(crate) fn quality_of_service(pod: &Pod) -> &'static str {
    let members = rules::members(pod);
    let lasting = members.iter().filter(|member| member.role != Role::Ephemeral);
    let mut all: Vec<Option<&ResourceRequirements>> =
        lasting.map(|member| member.container.resources.as_ref()).collect();
    // What the pod itself asks for stands for its containers.
    if let Some(own) = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()) {
        all = vec![Some(own)];
    }
    let names = ["cpu", "memory"];
    let amount =
        |of: Option<&ResourceRequirements>, side, name| milli(of, side, name).filter(|amount| *amount > 0);
    let asks = |of: &Option<&ResourceRequirements>| {
        names.iter().any(|name| {
            amount(*of, Side::Requests, name).is_some() || amount(*of, Side::Limits, name).is_some()
        })
    };
    let guaranteed = |of: &Option<&ResourceRequirements>| {
        names.iter().all(|name| {
            let limit = amount(*of, Side::Limits, name);
            limit.is_some() && amount(*of, Side::Requests, name).is_none_or(|asked| Some(asked) == limit)
        })
    };
    match () {
        () if !all.iter().any(asks) => "BestEffort",
        () if all.iter().all(guaranteed) => "Guaranteed",
        () => "Burstable",
    }
}

/// As documented for the classes of service; a burstable container's falls with its share of memory asked for.
fn oom_score(pod: &Pod, container: &Container, machine_bytes: i64) -> i32 {
    match quality_of_service(pod) {
        "Guaranteed" => GUARANTEED_SCORE,
        "BestEffort" => 1000,
        _ => {
            let asked = milli(container.resources.as_ref(), Side::Requests, "memory").unwrap_or(0) / 1000;
            let machine = i128::from(machine_bytes).max(1);
            // Neither as safe as the guaranteed ones nor as likely as the best effort ones.
            i32::try_from((1000 - 1000 * asked / machine).clamp(3, 999)).unwrap_or(999)
        }
    }
}
