//! Resizing running containers in place: what is asked for, whether the node can give it, and what is told. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::plan::View;
use crate::rules::{self, Member, Role};

/// The resources that can be changed while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What a node has for pods, in thousandths of cores and of bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Room {
    /// All of it.
    pub(crate) allocatable: BTreeMap<String, i128>,
    /// What the other pods of the node ask for.
    pub(crate) taken: BTreeMap<String, i128>,
}

/// What each container runs with, and the attempt that got it.
pub(crate) type Applied = BTreeMap<String, (u32, ResourceRequirements)>;

/// The pod as it runs: a resize that it did not get takes nothing from others.
pub(crate) fn as_given<'a>(pod: &'a Pod, applied: &Applied) -> Cow<'a, Pod> {
    let given = |name: &str, own: Option<&ResourceRequirements>| {
        let (_, given) = applied.get(name)?;
        (!same(given, &resizable(own))).then_some(given)
    };
    let differs =
        |member: &Member<'_>| given(&member.container.name, member.container.resources.as_ref()).is_some();
    if !rules::members(pod).iter().any(differs) {
        return Cow::Borrowed(pod);
    }
    let mut pod = pod.clone();
    let Some(spec) = &mut pod.spec else { return Cow::Owned(pod) };
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let Some(given) = given(&container.name, container.resources.as_ref()).cloned() else { continue };
        let own = container.resources.get_or_insert_default();
        let mut requests = own.requests.take().unwrap_or_default();
        requests.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        requests.extend(given.requests.unwrap_or_default());
        own.requests = Some(requests);
    }
    Cow::Owned(pod)
}

/// What is to be done about a running container's resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    None,
    InPlace,
    /// Its policy for a resource that changes says so.
    Restart,
}

/// Why a pod does not get what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    /// `Deferred`, or `Infeasible` when this node can never give it.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Requests and limits of the resizable resources only.
pub(crate) fn resizable(of: Option<&ResourceRequirements>) -> ResourceRequirements {
    let keep = |amounts: Option<&BTreeMap<String, Quantity>>| {
        let kept = amounts.into_iter().flatten().filter(|(name, _)| RESIZABLE.contains(&name.as_str()));
        let kept: BTreeMap<String, Quantity> =
            kept.map(|(name, amount)| (name.clone(), amount.clone())).collect();
        (!kept.is_empty()).then_some(kept)
    };
    ResourceRequirements {
        claims: None,
        limits: keep(of.and_then(|of| of.limits.as_ref())),
        requests: keep(of.and_then(|of| of.requests.as_ref())),
    }
}

/// What a running attempt was given, when that is not what its spec names now.
fn differing<'a>(view: &'a View, member: &Member<'_>, attempt: u32) -> Option<&'a ResourceRequirements> {
    let (known, applied) = view.notes.applied.get(&member.container.name)?;
    (*known == attempt && !same(applied, &resizable(member.container.resources.as_ref()))).then_some(applied)
}

fn milli(amounts: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    Amount::parse(&amounts?.get(name)?.0).ok().map(|amount| amount.as_milli())
}

fn changes(old: &ResourceRequirements, new: &ResourceRequirements, name: &str) -> bool {
    milli(old.requests.as_ref(), name) != milli(new.requests.as_ref(), name)
        || milli(old.limits.as_ref(), name) != milli(new.limits.as_ref(), name)
}

fn same(old: &ResourceRequirements, new: &ResourceRequirements) -> bool {
    !RESIZABLE.iter().any(|name| changes(old, new, name))
}

pub(crate) fn wish(view: &View, pod: &Pod, member: &Member<'_>, attempt: u32) -> Wish {
    let Some(applied) = differing(view, member, attempt) else { return Wish::None };
    if pending(view, pod).is_some() || view.notes.resize_problem.is_some() {
        return Wish::None;
    }
    let new = resizable(member.container.resources.as_ref());
    let restarts = member.container.resize_policy.iter().flatten().any(|policy| {
        policy.restart_policy == "RestartContainer" && changes(applied, &new, &policy.resource_name)
    });
    if restarts { Wish::Restart } else { Wish::InPlace }
}

/// Whether a container of the pod has not what its spec names.
pub(crate) fn is_wanted(view: &View, pod: &Pod) -> bool {
    rules::members(pod).iter().any(|member| {
        let latest = rules::latest(view, &member.container.name).filter(rules::Attempt::is_running);
        latest.is_some_and(|latest| differing(view, member, latest.state.attempt).is_some())
    })
}

/// Why the node cannot give what is asked for, if it cannot.
pub(crate) fn pending(view: &View, pod: &Pod) -> Option<Pending> {
    if !is_wanted(view, pod) {
        return None;
    }
    RESIZABLE.iter().find_map(|name| {
        let asked = asked(pod, name);
        let all = view.room.allocatable.get(*name).copied()?;
        let taken = view.room.taken.get(*name).copied().unwrap_or(0);
        let told = |milli: i128| if *name == "memory" { milli / 1000 } else { milli };
        if asked > all {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                told(asked),
                told(all)
            );
            return Some(Pending { reason: "Infeasible", message });
        }
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
            told(asked),
            told(taken),
            told(all)
        );
        (asked + taken > all).then_some(Pending { reason: "Deferred", message })
    })
}

/// Whether the pod was told that its resize waits for room.
pub(crate) fn is_deferred(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|one| one.type_ == "PodResizePending" && one.reason.as_deref() == Some("Deferred"))
}

/// What a pod's containers ask for together.
pub(crate) fn asked(pod: &Pod, name: &str) -> i128 {
    let members = rules::members(pod);
    let lasting = members.iter().filter(|member| matches!(member.role, Role::Main | Role::Sidecar));
    let requests = lasting.filter_map(|member| member.container.resources.as_ref()?.requests.as_ref());
    requests.filter_map(|requests| milli(Some(requests), name)).sum()
}

/// What a running attempt has, for its status.
pub(crate) fn applied(view: &View, member: &Member<'_>, attempt: u32) -> Option<ResourceRequirements> {
    let of = member.container.resources.as_ref()?;
    let (_, applied) =
        view.notes.applied.get(&member.container.name).filter(|(known, _)| *known == attempt)?;
    let with = |whole: &Option<BTreeMap<String, Quantity>>, part: &Option<BTreeMap<String, Quantity>>| {
        let mut all = whole.clone().unwrap_or_default();
        all.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        all.extend(part.clone().unwrap_or_default());
        (!all.is_empty()).then_some(all)
    };
    Some(ResourceRequirements {
        claims: None,
        limits: with(&of.limits, &applied.limits),
        requests: with(&of.requests, &applied.requests),
    })
}
