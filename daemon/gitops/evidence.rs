//! The last words of a container that fails.
//!
//! Invariant: asked for once per failure; what cannot be had is left out and stops nothing.

use std::time::Duration;

use api::health::HealthCode;
use http::Request;
use kube::Client;
use kube::api::DynamicObject;
use serde_json::Value;

/// Lines, and characters of each.
const MOST_LINES: usize = 6;
const MOST_CHARACTERS: usize = 300;
/// A log that does not come by then is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which run of which container failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failing {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) restarts: i64,
    /// Its earlier run has the words: this one has only just begun.
    pub(crate) previous: bool,
}

/// The container of a pod that fails, if one does.
pub(crate) fn failing(pod: &DynamicObject) -> Option<Failing> {
    let mut value = pod.data.clone();
    (value["apiVersion"], value["kind"]) = ("v1".into(), "Pod".into());
    if api::health::assess(&value)?.code != HealthCode::Degraded {
        return None;
    }
    let status = &pod.data["status"];
    let all =
        ["initContainerStatuses", "containerStatuses"].iter().filter_map(|list| status[*list].as_array());
    let failed = |end: &Value| end.is_object() && end["exitCode"].as_i64() != Some(0);
    let found = all.flatten().find(|container| {
        failed(&container["state"]["terminated"]) || failed(&container["lastState"]["terminated"])
    })?;
    Some(Failing {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        container: found["name"].as_str().unwrap_or_default().to_owned(),
        restarts: found["restartCount"].as_i64().unwrap_or(0),
        previous: found["state"]["running"].is_object(),
    })
}

/// What it wrote last.
pub(crate) async fn last_words(door: &Client, failing: &Failing) -> Vec<String> {
    let mut lines = read(door, failing, failing.previous).await;
    if lines.is_empty() {
        lines = read(door, failing, !failing.previous).await;
    }
    lines
}

async fn read(door: &Client, failing: &Failing, previous: bool) -> Vec<String> {
    // Names of live objects hold nothing that a path would have to escape.
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log?container={}&tailLines={MOST_LINES}&limitBytes=8192&previous={previous}",
        failing.namespace, failing.pod, failing.container
    );
    let Ok(request) = Request::get(path).body(Vec::new()) else { return Vec::new() };
    match tokio::time::timeout(PATIENCE, door.request_text(request)).await {
        Ok(Ok(text)) => tail(&text),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

fn tail(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(MOST_LINES);
    lines[from..].iter().map(|line| line.chars().take(MOST_CHARACTERS).collect()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_run_that_failed_is_the_one_whose_words_are_read() {
        let pod = |state: Value, last: Value| -> DynamicObject {
            serde_json::from_value(
                json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "status": {"phase": "Running",
                "containerStatuses": [{"name": "ok", "ready": true, "state": {"running": {}}},
                    {"name": "c", "ready": false, "restartCount": 3, "state": state, "lastState": last}]}}),
            )
            .unwrap()
        };
        let ended = json!({"terminated": {"exitCode": 1}});
        let waiting =
            failing(&pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended.clone())).unwrap();
        assert_eq!((waiting.container.as_str(), waiting.restarts, waiting.previous), ("c", 3, false));
        assert!(failing(&pod(json!({"running": {}}), ended)).unwrap().previous);
        assert!(failing(&pod(json!({"running": {}}), json!({}))).is_none());
        assert_eq!(tail("a\n\nb\n1\n2\n3\n4\n5\n").len(), MOST_LINES);
    }
}
