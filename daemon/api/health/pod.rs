//! Health of a pod: which container waits, crashes or is not ready, and why.
//!
//! Invariant: the first container in trouble is named, init containers before the others.

use serde_json::Value;

use super::{Health, HealthCode, condition, count, is, reason, text};

pub(super) fn pod(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    let phase = text(status, "phase");
    if !matches!(phase, "Succeeded" | "Failed")
        && let Some(trouble) = containers(status).find_map(trouble)
    {
        return Health::degraded(trouble);
    }
    match phase {
        "Succeeded" => Health::healthy("completed"),
        "Failed" => Health::degraded(failure(status)),
        "Pending" | "" => Health::progressing(pending(object)),
        "Running" => running(object, spec),
        other => Health::new(HealthCode::Unknown, format!("unknown phase {other}")),
    }
}

fn running(object: &Value, spec: &Value) -> Health {
    let status = &object["status"];
    if !matches!(text(spec, "restartPolicy"), "Always" | "") {
        return Health::progressing("running to completion");
    }
    let all = list(status, "containerStatuses");
    let ready = all.iter().filter(|c| c["ready"] == true).count();
    if condition(object, "Ready").is_some_and(|c| is(c, "True")) {
        let restarts: i64 = all.iter().map(|c| count(c, "restartCount")).sum();
        let message = format!("{ready} of {} containers ready", all.len());
        return Health::healthy(if restarts > 0 {
            format!("{message}, {}", times(restarts))
        } else {
            message
        });
    }
    // Not ready after a crash is trouble; not ready before the first one is a start.
    let crashed = all.iter().find(|c| c["ready"] != true && c["lastState"].get("terminated").is_some());
    if let Some(container) = crashed {
        let restarts = times(count(container, "restartCount"));
        let cause = exit(&container["lastState"]["terminated"]);
        return Health::degraded(format!(
            "container {}: not ready, {restarts}, last {cause}",
            text(container, "name")
        ));
    }
    let unready: Vec<&str> = all.iter().filter(|c| c["ready"] != true).map(|c| text(c, "name")).collect();
    match condition(object, "Ready") {
        _ if !unready.is_empty() => {
            Health::progressing(format!("container {} is not ready", unready.join(", ")))
        }
        Some(ready) => Health::progressing(reason(ready)),
        None => Health::progressing("not ready yet"),
    }
}

/// Why a container waits, when it is not just starting: reasons that begin with Err or end with Error or BackOff.
fn trouble(container: &Value) -> Option<String> {
    let waiting = &container["state"]["waiting"];
    let why = text(waiting, "reason");
    let bad = why.starts_with("Err")
        || ["Error", "BackOff", "InvalidImageName"].iter().any(|end| why.ends_with(end));
    if !bad {
        return None;
    }
    let mut message = format!("container {}: {why}", text(container, "name"));
    let details = text(waiting, "message");
    if !details.is_empty() {
        message.push_str(&format!(": {details}"));
    }
    let last = &container["lastState"]["terminated"];
    if last.is_object() {
        message.push_str(&format!(" ({})", exit(last)));
    }
    Some(message)
}

fn failure(status: &Value) -> String {
    let own = [text(status, "reason"), text(status, "message")];
    let own: Vec<&str> = own.into_iter().filter(|text| !text.is_empty()).collect();
    if !own.is_empty() {
        return own.join(": ");
    }
    let ended = containers(status).map(|c| (text(c, "name"), &c["state"]["terminated"]));
    let failed = ended.filter(|(_, end)| end.is_object()).find(|(_, end)| count(end, "exitCode") != 0);
    match failed {
        Some((name, end)) => format!("container {name}: {}", exit(end)),
        None => "failed".to_owned(),
    }
}

fn pending(object: &Value) -> String {
    let status = &object["status"];
    if let Some(unscheduled) = condition(object, "PodScheduled").filter(|c| is(c, "False")) {
        return format!("no node takes it: {}", reason(unscheduled));
    }
    let waiting = containers(status).find(|c| c["state"].get("waiting").is_some());
    match waiting {
        Some(container) => {
            let why = text(&container["state"]["waiting"], "reason");
            format!("container {}: {}", text(container, "name"), if why.is_empty() { "waiting" } else { why })
        }
        None if text(&object["spec"], "nodeName").is_empty() => "waits for a node".to_owned(),
        None => "is being started".to_owned(),
    }
}

/// How a container ended: `exit code 1`, `out of memory (exit code 137)`, with its own last words where it left any.
fn exit(terminated: &Value) -> String {
    let code = count(terminated, "exitCode");
    let signal = count(terminated, "signal");
    let mut cause = match text(terminated, "reason") {
        "OOMKilled" => format!("out of memory (exit code {code})"),
        _ if signal > 0 => format!("killed by signal {signal} (exit code {code})"),
        _ => format!("exit code {code}"),
    };
    let words = text(terminated, "message").trim();
    if !words.is_empty() {
        cause.push_str(&format!(": {words}"));
    }
    cause
}

fn times(restarts: i64) -> String {
    if restarts == 1 { "1 restart".to_owned() } else { format!("{restarts} restarts") }
}

/// Init containers first.
fn containers(status: &Value) -> impl Iterator<Item = &Value> {
    list(status, "initContainerStatuses").iter().chain(list(status, "containerStatuses"))
}

fn list<'a>(status: &'a Value, name: &str) -> &'a [Value] {
    status.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
