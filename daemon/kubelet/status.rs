//! The status of a pod as observed: pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::plan::View;
use crate::rules::{self, Member, Progress, Role};
use crate::{container_status, ending, resize};

/// The status to be reported for this view.
pub(crate) fn of(view: &View, pod: &Pod, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let members = rules::members(pod);
    let progress = rules::progress(view, pod, &members);
    let list = |wanted: &dyn Fn(Role) -> bool| -> Vec<ContainerStatus> {
        let members = members.iter().filter(|member| wanted(member.role));
        members.map(|member| container_status::of(view, pod, member, now)).collect()
    };
    let init = list(&|role| matches!(role, Role::Init | Role::Sidecar));
    let main = list(&|role| role == Role::Main);
    let ephemeral = list(&|role| role == Role::Ephemeral);
    let told = Told { view, pod, members: &members, progress, init: &init, main: &main };
    let ending = ending::ending(view, pod, now).filter(|_| rules::running(view).next().is_none());
    let phase = if ending.is_some() { "Failed" } else { told.phase() };
    let ended = matches!(phase, "Succeeded" | "Failed");
    let conditions = told.conditions(&old, phase, now);
    let ip = if rules::is_host_network(pod) { Some(view.host_ip.clone()) } else { view.ip.clone() }
        .or(old.pod_ip.clone().filter(|_| ended));
    let (reason, message) = match &ending {
        Some(ending) => (Some(ending.reason.clone()), Some(ending.message.clone())),
        None if ended => (old.reason.clone(), old.message.clone()),
        None => (None, view.refused.clone().or(view.notes.sandbox_problem.clone())),
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: Some(view.host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: view.host_ip.clone() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: old.start_time.clone().or(Some(Time(floor(now)))),
        reason,
        message,
        observed_generation: pod.metadata.generation,
        ..old
    }
}

/// Whether two statuses tell the same: times of transitions follow from the rest.
pub(crate) fn same(one: &PodStatus, other: &PodStatus) -> bool {
    let plain = |status: &PodStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_transition_time = None;
            condition.last_probe_time = None;
        }
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status.start_time = None;
        status
    };
    plain(one) == plain(other)
}

/// Times in statuses have whole seconds.
pub(crate) fn floor(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What the conditions and the phase are made from.
struct Told<'a> {
    view: &'a View,
    pod: &'a Pod,
    members: &'a [Member<'a>],
    progress: Progress,
    init: &'a [ContainerStatus],
    main: &'a [ContainerStatus],
}

/// Whether it holds, and, if there is more to say, reason and message.
type Finding = (bool, Option<String>, Option<String>);

impl Told<'_> {
    /// The documented phases: Pending until every container has started once, then Running until all have ended for good.
    fn phase(&self) -> &'static str {
        let before = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let runs = rules::running(self.view).next().is_some();
        if self.progress.init_failed && !runs {
            return "Failed";
        }
        let mains = self.members.iter().filter(|member| member.role == Role::Main);
        let last: Vec<_> = mains.map(|member| rules::latest(self.view, &member.container.name)).collect();
        // A pod that is going gets no restarts: what has ended has ended.
        let all_ended = last.iter().all(|last| last.as_ref().is_some_and(|last| last.exit_code().is_some()));
        let going = self.pod.metadata.deletion_timestamp.is_some() && !last.is_empty() && all_ended;
        if (self.progress.over || going) && !self.progress.init_failed && !runs {
            let good = last.iter().flatten().all(|attempt| attempt.exit_code() == Some(0));
            return if good { "Succeeded" } else { "Failed" };
        }
        let begun = self.progress.initialized && last.iter().all(Option::is_some);
        let held = |attempt: &rules::Attempt| {
            rules::in_post_start(self.view, &attempt.state.name, attempt.state.attempt)
        };
        let waits = last.iter().flatten().any(|attempt| attempt.state.attempt == 0 && held(attempt));
        if (begun && !waits) || (before == Some("Running") && last.iter().any(Option::is_some)) {
            "Running"
        } else {
            "Pending"
        }
    }

    fn conditions(&self, old: &PodStatus, phase: &str, now: Timestamp) -> Vec<PodCondition> {
        let containers = self.containers_ready(phase);
        let ours = [
            ("PodReadyToStartContainers", self.ready_to_start(phase)),
            ("Initialized", self.initialized(phase)),
            ("Ready", self.ready(old, &containers)),
            ("ContainersReady", containers),
        ];
        let mut conditions: Vec<PodCondition> =
            ours.into_iter().map(|(name, finding)| self.condition(old, name, finding, now)).collect();
        if let Some((_, message)) = &self.view.notes.evicted {
            let finding = (true, Some("TerminationByKubelet".to_owned()), Some(message.clone()));
            conditions.push(self.condition(old, "DisruptionTarget", finding, now));
        }
        if let Some(pending) = resize::pending(self.view, self.pod) {
            let finding = (true, Some(pending.reason.to_owned()), Some(pending.message));
            conditions.push(self.condition(old, "PodResizePending", finding, now));
        } else if resize::is_wanted(self.view, self.pod) {
            let problem = self.view.notes.resize_problem.clone();
            let finding = (true, problem.as_ref().map(|_| "Error".to_owned()), problem);
            conditions.push(self.condition(old, "PodResizeInProgress", finding, now));
        }
        let is_ours = |condition: &PodCondition| {
            let of_resize = matches!(condition.type_.as_str(), "PodResizePending" | "PodResizeInProgress");
            of_resize || conditions.iter().any(|known| known.type_ == condition.type_)
        };
        let others = old.conditions.iter().flatten().filter(|condition| !is_ours(condition));
        let others: Vec<PodCondition> = others.cloned().collect();
        conditions.extend(others);
        conditions
    }

    fn ready_to_start(&self, phase: &str) -> Finding {
        let has_network = self.view.ip.is_some() || rules::is_host_network(self.pod);
        let up = self.view.sandbox.as_ref().is_some_and(|sandbox| sandbox.alive) && has_network;
        (up && !matches!(phase, "Succeeded" | "Failed"), None, None)
    }

    fn initialized(&self, phase: &str) -> Finding {
        if phase == "Succeeded" {
            return (true, Some("PodCompleted".to_owned()), None);
        }
        if self.progress.initialized {
            return (true, None, None);
        }
        let done = |member: &Member<'_>| rules::init_done(self.view, member);
        let init = self.members.iter().filter(|member| matches!(member.role, Role::Init | Role::Sidecar));
        let names: Vec<&str> =
            init.filter(|member| !done(member)).map(|member| member.container.name.as_str()).collect();
        let message = format!("containers with incomplete status: [{}]", names.join(" "));
        (false, Some("ContainersNotInitialized".to_owned()), Some(message))
    }

    fn containers_ready(&self, phase: &str) -> Finding {
        match phase {
            "Succeeded" => return (false, Some("PodCompleted".to_owned()), None),
            "Failed" => return (false, Some("PodFailed".to_owned()), None),
            _ => {}
        }
        let roles: BTreeMap<&str, Role> =
            self.members.iter().map(|member| (member.container.name.as_str(), member.role)).collect();
        let sidecars =
            self.init.iter().filter(|status| roles.get(status.name.as_str()) == Some(&Role::Sidecar));
        let counted = sidecars.chain(self.main);
        let not: Vec<&str> =
            counted.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        if not.is_empty() && self.progress.initialized {
            return (true, None, None);
        }
        let message = format!("containers with unready status: [{}]", not.join(" "));
        (false, Some("ContainersNotReady".to_owned()), Some(message))
    }

    /// Ready means all containers are, and all of the pod's readiness gates are open.
    fn ready(&self, old: &PodStatus, containers: &Finding) -> Finding {
        if !containers.0 {
            return containers.clone();
        }
        let gates = self.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        let shut: Vec<String> = gates
            .filter_map(|gate| {
                let name = &gate.condition_type;
                let known = old.conditions.iter().flatten().find(|condition| condition.type_ == *name);
                match known {
                    None => Some(format!(
                        "corresponding condition of pod readiness gate \"{name}\" does not exist."
                    )),
                    Some(known) if known.status != "True" => Some(format!(
                        "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                        known.status
                    )),
                    Some(_) => None,
                }
            })
            .collect();
        if shut.is_empty() {
            return (true, None, None);
        }
        (false, Some("ReadinessGatesNotReady".to_owned()), Some(shut.join(", ")))
    }

    fn condition(&self, old: &PodStatus, name: &str, finding: Finding, now: Timestamp) -> PodCondition {
        let (holds, reason, message) = finding;
        let status = if holds { "True" } else { "False" };
        let known = old.conditions.iter().flatten().find(|condition| condition.type_ == name);
        let since =
            known.filter(|known| known.status == status).and_then(|known| known.last_transition_time.clone());
        PodCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            last_transition_time: since.or(Some(Time(floor(now)))),
            observed_generation: self.pod.metadata.generation,
            reason,
            message,
            ..PodCondition::default()
        }
    }
}
