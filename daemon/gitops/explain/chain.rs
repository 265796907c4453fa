//! The chain itself, from what was gathered. Pure.

use api::health::{Health, HealthCode};
use serde_json::Value;

use super::{Explanation, Gathered, Link};
use crate::build::Id;
use crate::decide::short;
use crate::status::{ObjectStatus, Status};

/// Events told of one object, the newest.
const MOST_EVENTS: usize = 4;

/// Makes the chain and finds the cause in it.
pub(crate) fn assemble(found: &Gathered) -> Explanation {
    let mut links = Vec::new();
    let root = found.above.first().map_or_else(|| found.id.clone(), id_of);
    let mut depth = 0;
    if let Some((name, status)) = &found.application {
        depth = from_source(name, status, &root, &mut links);
    }
    // What waits to be made has its reason in the link before.
    let wanted = found.application.as_ref().is_some_and(|(_, status)| {
        status.objects.iter().any(|known| known.id() == root && known.sync != "Synced")
    });
    if found.above.is_empty() && !wanted {
        links.push(absent(found, depth));
    }
    for object in &found.above {
        of_object(object, found, depth, &mut links);
        depth += 1;
    }
    for (level, object) in &found.below {
        of_object(object, found, depth + level - 1, &mut links);
    }
    let application = found.application.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
    Explanation { object: found.id.clone(), application, summary: summary(&links), links }
}

/// Application, commit, file and the object's place in the sync. How deep the next link is.
fn from_source(name: &str, status: &Status, root: &Id, links: &mut Vec<Link>) -> u32 {
    let sync = &status.sync;
    let state = match sync.state.as_str() {
        "Synced" => "ok",
        "Failed" => "bad",
        _ => "wait",
    };
    let waits = if sync.waits_for.is_empty() || sync.message.contains(&sync.waits_for) {
        String::new()
    } else {
        format!("; waits for {}", sync.waits_for)
    };
    links.push(Link {
        depth: 0,
        what: format!("application {name}"),
        // That another object fails is not this one's cause.
        state: if state == "bad" { "note" } else { state },
        says: format!("{}: {}{waits}", sync.state, sync.message),
        lines: Vec::new(),
    });
    let entry = status.history.iter().rev().find(|entry| entry.revision == sync.revision);
    let (author, message) =
        entry.map(|entry| (entry.author.as_str(), entry.message.as_str())).unwrap_or_default();
    let subject = message.lines().next().unwrap_or_default();
    let by = if author.is_empty() { String::new() } else { format!(" by {author}") };
    links.push(Link {
        depth: 1,
        what: format!(
            "{} {}",
            if status.source.kind == "git" { "commit" } else { "revision" },
            short(&sync.revision)
        ),
        state: "ok",
        says: format!("{subject}{by}").trim().to_owned(),
        lines: history(status, root),
    });
    if let Some(known) = status.objects.iter().find(|known| known.id() == *root) {
        links.push(wanted(known));
    }
    if let Some(hook) = status.hooks.iter().find(|hook| hook.id() == *root) {
        let state = match hook.state.as_str() {
            "Succeeded" | "Skipped" => "ok",
            "Failed" => "bad",
            _ => "wait",
        };
        links.push(Link {
            depth: 2,
            what: format!("{}:{}", hook.file, hook.line),
            state,
            says: format!("a {} hook, {}, attempt {} {}", hook.phase, hook.state, hook.attempt, hook.message)
                .trim()
                .to_owned(),
            lines: hook.evidence.clone(),
        });
    }
    for defect in status.defects.iter().filter(|defect| defect.object.as_deref() == Some(&root.to_string())) {
        links.push(Link {
            depth: 2,
            what: format!("{}:{}", defect.file, defect.line),
            state: "bad",
            says: defect.message.clone(),
            lines: vec![format!("way out: {}", defect.help)],
        });
    }
    3
}

/// What the last revisions did to the object, the newest first.
fn history(status: &Status, root: &Id) -> Vec<String> {
    let name = root.to_string();
    let entries = status.history.iter().rev().filter_map(|entry| {
        let outcome = entry.objects.iter().find(|outcome| outcome.object == name)?;
        let why = if outcome.message.is_empty() { String::new() } else { format!(": {}", outcome.message) };
        Some(format!("{} by {} at {}{why}", outcome.did, short(&entry.revision), entry.started_at))
    });
    entries.take(3).collect()
}

fn wanted(known: &ObjectStatus) -> Link {
    let state = match known.sync.as_str() {
        "Synced" => "ok",
        "Failed" => "bad",
        _ => "wait",
    };
    let mut says = match known.sync.as_str() {
        "Synced" => "live is what the file says".to_owned(),
        "Pruning" => "no file wants it any more: it is being deleted".to_owned(),
        other => format!("{other} {}", known.message).trim().to_owned(),
    };
    if !known.waits_for.is_empty() {
        says.push_str(&format!("; waits for {}", known.waits_for));
    }
    if !known.ended.is_empty() {
        says.push_str(&format!("; ended and deleted by itself: {}", known.ended));
    }
    let lines = if known.healed.is_empty() { Vec::new() } else { vec![known.healed.clone()] };
    Link { depth: 2, what: format!("{}:{}", known.file, known.line), state, says, lines }
}

fn absent(found: &Gathered, depth: u32) -> Link {
    let what = found.id.to_string();
    match &found.tombstone {
        Some(stone) => Link {
            depth,
            what,
            state: "bad",
            says: format!(
                "pruned at {} by revision {}: it had left {}:{}",
                stone.at,
                short(&stone.revision),
                stone.file,
                stone.line
            ),
            lines: vec![format!("holdfast undo brings it back: {}", stone.id)],
        },
        None => Link { depth, what, state: "bad", says: "is not there".to_owned(), lines: Vec::new() },
    }
}

fn of_object(object: &Value, found: &Gathered, depth: u32, links: &mut Vec<Link>) {
    let health = api::health::assess(object);
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    let mut says = health.as_ref().map(said).unwrap_or_default();
    if let Some(changed) = last_change(object) {
        says = if says.is_empty() { changed } else { format!("{says}; {changed}") };
    }
    links.push(Link {
        depth,
        what: id_of(object).to_string(),
        state: health.as_ref().map_or("ok", |health| state_of(health.code)),
        says,
        lines: events(found.events.get(uid).map(Vec::as_slice).unwrap_or_default()),
    });
    if object["kind"] == "Pod" {
        containers(object, found.words.get(uid), depth + 1, links);
    }
}

fn said(health: &Health) -> String {
    match health.message.as_str() {
        "" => health.code.to_string(),
        message => format!("{}: {message}", health.code),
    }
}

fn state_of(code: HealthCode) -> &'static str {
    match code {
        HealthCode::Healthy | HealthCode::Suspended => "ok",
        HealthCode::Progressing => "wait",
        _ => "bad",
    }
}

/// Who wrote last, when that was not the engine.
fn last_change(object: &Value) -> Option<String> {
    let entries = object["metadata"]["managedFields"].as_array()?;
    let own = entries.iter().filter(|entry| entry["subresource"].as_str().unwrap_or_default().is_empty());
    let last = own.max_by_key(|entry| entry["time"].as_str().unwrap_or_default().to_owned())?;
    let manager = last["manager"].as_str()?;
    // Controllers keep their notes on what they look after.
    let controller = manager.starts_with("holdfast") || manager == "kube-controller-manager";
    (!controller && object["metadata"]["ownerReferences"].is_null())
        .then(|| format!("last changed by {manager} at {}", last["time"].as_str().unwrap_or_default()))
}

fn containers(pod: &Value, words: Option<&Vec<String>>, depth: u32, links: &mut Vec<Link>) {
    let status = &pod["status"];
    let mut words = words.cloned();
    for (list, noun) in [("initContainerStatuses", "init container"), ("containerStatuses", "container")] {
        for container in status[list].as_array().into_iter().flatten() {
            let Some((state, says)) = container_state(container, noun == "init container") else { continue };
            let failed = state == "bad";
            links.push(Link {
                depth,
                what: format!("{noun} {}", container["name"].as_str().unwrap_or_default()),
                state,
                says,
                lines: if failed { words.take().unwrap_or_default() } else { Vec::new() },
            });
        }
    }
}

/// Nothing for an init container that has done its work.
fn container_state(container: &Value, init: bool) -> Option<(&'static str, String)> {
    let state = &container["state"];
    let restarts = container["restartCount"].as_i64().unwrap_or(0);
    let again = match restarts {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        more => format!(", {more} restarts"),
    };
    let last = &container["lastState"]["terminated"];
    let before = if last.is_object() { format!(", before that {}", ended(last)) } else { String::new() };
    if let Some(waiting) = state.get("waiting").filter(|waiting| waiting.is_object()) {
        let reason = waiting["reason"].as_str().unwrap_or("waiting");
        let message = waiting["message"].as_str().map(|text| format!(": {text}")).unwrap_or_default();
        let starts = matches!(reason, "ContainerCreating" | "PodInitializing" | "waiting");
        return Some((if starts { "wait" } else { "bad" }, format!("{reason}{message}{again}{before}")));
    }
    if let Some(end) = state.get("terminated").filter(|end| end.is_object()) {
        let fine = end["exitCode"] == 0;
        return (!(fine && init))
            .then(|| (if fine { "ok" } else { "bad" }, format!("{}{again}", ended(end))));
    }
    if container["ready"] == true {
        return Some(("ok", format!("runs and is ready{again}{before}")));
    }
    let crashed = last.is_object() && last["exitCode"] != 0;
    Some((if crashed { "bad" } else { "wait" }, format!("runs but is not ready{again}{before}")))
}

fn ended(end: &Value) -> String {
    let code = end["exitCode"].as_i64().unwrap_or(0);
    let words = end["message"].as_str().unwrap_or_default().trim();
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    match end["reason"].as_str() {
        Some("OOMKilled") => format!("killed for using more memory than its limit (exit code {code}){words}"),
        _ => format!("ended with exit code {code}{words}"),
    }
}

/// Warnings first; probe output is in them.
fn events(events: &[Value]) -> Vec<String> {
    let at = |event: &Value| {
        let times = [&event["lastTimestamp"], &event["eventTime"], &event["metadata"]["creationTimestamp"]];
        times.iter().find_map(|time| time.as_str()).unwrap_or_default().to_owned()
    };
    let mut warnings: Vec<&Value> = events.iter().filter(|event| event["type"] == "Warning").collect();
    warnings.sort_by_key(|event| std::cmp::Reverse(at(event)));
    let line = |event: &&Value| {
        let count = event["count"].as_i64().unwrap_or(1);
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        format!("{}: {}{times}", text("reason"), text("message").trim())
    };
    warnings.iter().take(MOST_EVENTS).map(line).collect()
}

fn id_of(object: &Value) -> Id {
    let (group, _) = api::kinds::split_api_version(object["apiVersion"].as_str().unwrap_or_default());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    Id {
        group: group.to_owned(),
        kind: text(&object["kind"]),
        namespace: text(&meta["namespace"]),
        name: text(&meta["name"]),
    }
}

/// The deepest thing that is wrong is the cause; what only waits comes after it.
fn summary(links: &[Link]) -> String {
    for state in ["bad", "wait"] {
        let found = links.iter().filter(|link| link.state == state);
        // Of equally deep ones the first: pods fail alike.
        let mut cause: Option<&Link> = None;
        for link in found {
            if cause.is_none_or(|known| link.depth > known.depth) {
                cause = Some(link);
            }
        }
        if let Some(cause) = cause {
            let line = cause.lines.last().map(|line| format!(" — {line}")).unwrap_or_default();
            return format!("{}: {}{line}", cause.what, cause.says);
        }
    }
    "all is well".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{RevisionStatus, SyncStatus};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn found() -> Gathered {
        let id = Id {
            group: "apps".into(),
            kind: "Deployment".into(),
            namespace: "default".into(),
            name: "web".into(),
        };
        let object = ObjectStatus {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Deployment".into(),
            namespace: "default".into(),
            name: "web".into(),
            sync: "Synced".into(),
            file: "web.yaml".into(),
            line: 3,
            ..ObjectStatus::default()
        };
        let entry = RevisionStatus {
            revision: "r1".into(),
            author: "Ada".into(),
            message: "Raise it\n".into(),
            ..RevisionStatus::default()
        };
        let status = Status {
            sync: SyncStatus {
                state: "Synced".into(),
                revision: "r1".into(),
                message: "1 object".into(),
                ..SyncStatus::default()
            },
            objects: vec![object],
            history: vec![entry],
            ..Status::default()
        };
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": "default", "uid": "p"}, "spec": {},
            "status": {"phase": "Running", "containerStatuses": [{"name": "app", "restartCount": 4,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 3}}}]}});
        Gathered {
            id,
            application: Some(("demo".into(), status.into())),
            above: vec![deployment],
            below: vec![(1, pod)],
            events: BTreeMap::from([(
                "p".to_owned(),
                vec![json!({"type": "Warning", "reason": "BackOff", "message": "waits", "count": 7})],
            )]),
            words: BTreeMap::from([("p".to_owned(), vec!["no database".to_owned()])]),
            tombstone: None,
        }
    }

    #[test]
    fn the_chain_leads_from_the_commit_to_the_last_words() {
        let told = assemble(&found());
        let lines: Vec<String> = told
            .links
            .iter()
            .map(|link| {
                format!("{} {} [{}] {} {:?}", link.depth, link.what, link.state, link.says, link.lines)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "0 application demo [ok] Synced: 1 object []",
                "1 revision r1 [ok] Raise it by Ada []",
                "2 web.yaml:3 [ok] live is what the file says []",
                "3 Deployment default/web [wait] Progressing: 0 of 1 replicas available []",
                "4 Pod default/web-1 [bad] Degraded: container app: CrashLoopBackOff (exit code 3) [\"BackOff: waits (7 times)\"]",
                "5 container app [bad] CrashLoopBackOff, 4 restarts, before that ended with exit code 3 [\"no database\"]",
            ]
        );
        assert_eq!(
            told.summary,
            "container app: CrashLoopBackOff, 4 restarts, before that ended with exit code 3 — no database"
        );
    }

    #[test]
    fn what_is_not_there_is_said_to_be_pruned_when_it_was() {
        let mut gone = found();
        (gone.above, gone.below) = (vec![], vec![]);
        assert!(assemble(&gone).summary.ends_with("is not there"));
        gone.tombstone = Some(crate::archive::Tombstone {
            at: jiff::Timestamp::UNIX_EPOCH,
            id: gone.id.clone(),
            revision: "r1".into(),
            file: "web.yaml".into(),
            line: 3,
            object: json!({}),
        });
        assert!(
            assemble(&gone).summary.contains("by revision r1: it had left web.yaml:3"),
            "{}",
            assemble(&gone).summary
        );
    }
}
