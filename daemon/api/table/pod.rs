//! Prints pods: the STATUS that users know is no field but a reading of phase, reasons and container states.
//!
//! Invariant: follows Kubernetes' `printPod` case by case, since people and scripts match on its words.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, age_of, condition, count, items, name, or, string, text, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let reading = read(pod);
    let restarts = match reading.last_restart {
        Some(last) if reading.restarts != 0 => {
            format!("{} ({} ago)", reading.restarts, age::human(now.as_second() - last.as_second()))
        }
        _ => reading.restarts.to_string(),
    };
    let gates = items(&spec["readinessGates"]);
    let passed =
        gates.iter().filter(|gate| condition(pod, string(&gate["conditionType"])) == Some("True")).count();
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) };
    vec![
        name(pod),
        format!("{}/{}", reading.ready, reading.total).into(),
        reading.reason.into(),
        restarts.into(),
        age_of(pod, now),
        or(string(&status["podIP"]), "<none>"),
        or(string(&spec["nodeName"]), "<none>"),
        or(string(&status["nominatedNodeName"]), "<none>"),
        gates.into(),
    ]
}

struct Reading {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Reading {
    fn restarted(&mut self, container: &Value) {
        self.restarts += count(&container["restartCount"]);
        self.last_restart =
            self.last_restart.max(age::at(&container["lastState"]["terminated"]["finishedAt"]));
    }
}

fn read(pod: &Value) -> Reading {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars =
        items(&spec["initContainers"]).iter().filter(|one| one["restartPolicy"] == "Always").count();
    let mut reading = Reading {
        reason: string(if string(&status["reason"]).is_empty() {
            &status["phase"]
        } else {
            &status["reason"]
        })
        .to_owned(),
        ready: 0,
        total: items(&spec["containers"]).len() + sidecars,
        restarts: 0,
        last_restart: None,
    };
    let gated = |one: &Value| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated";
    if items(&status["conditions"]).iter().any(gated) {
        reading.reason = "SchedulingGated".into();
    }
    let initializing = read_init(pod, &mut reading);
    if !initializing || condition(pod, "Initialized") == Some("True") {
        read_containers(pod, &mut reading);
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            reading.reason = "Unknown".into();
        } else if !matches!(string(&status["phase"]), "Succeeded" | "Failed") {
            reading.reason = "Terminating".into();
        }
    }
    reading
}

/// Reads the init containers up to the first that is not done; says whether there is one.
fn read_init(pod: &Value, reading: &mut Reading) -> bool {
    let declared = items(&pod["spec"]["initContainers"]);
    for (index, container) in items(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        reading.restarted(container);
        let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
        if !terminated.is_null() && count(&terminated["exitCode"]) == 0 {
            continue;
        }
        if is_sidecar(pod, container) && container["started"] == true {
            reading.ready += usize::from(container["ready"] == true);
            continue;
        }
        let reason = string(&waiting["reason"]);
        reading.reason = if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !reason.is_empty() && reason != "PodInitializing" {
            format!("Init:{reason}")
        } else {
            format!("Init:{index}/{}", declared.len())
        };
        return true;
    }
    false
}

fn read_containers(pod: &Value, reading: &mut Reading) {
    // Restarts of init containers that are over no longer count; those of sidecars do.
    (reading.restarts, reading.last_restart) = (0, None);
    for container in items(&pod["status"]["initContainerStatuses"]).iter().filter(|one| is_sidecar(pod, one))
    {
        reading.restarted(container);
    }
    let mut running = false;
    for container in items(&pod["status"]["containerStatuses"]).iter().rev() {
        reading.restarted(container);
        let state = &container["state"];
        let waiting = string(&state["waiting"]["reason"]);
        if !waiting.is_empty() {
            reading.reason = waiting.to_owned();
        } else if !state["terminated"].is_null() {
            reading.reason = ended(&state["terminated"]);
        } else if container["ready"] == true && !state["running"].is_null() {
            running = true;
            reading.ready += 1;
        }
    }
    if reading.reason == "Completed" && running {
        let ready = condition(pod, "Ready") == Some("True");
        reading.reason = if ready { "Running".into() } else { "NotReady".into() };
    }
}

fn is_sidecar(pod: &Value, status: &Value) -> bool {
    let declared = items(&pod["spec"]["initContainers"]);
    declared.iter().any(|one| one["name"] == status["name"] && one["restartPolicy"] == "Always")
}

fn ended(terminated: &Value) -> String {
    match (string(&terminated["reason"]), count(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", count(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
