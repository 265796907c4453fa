//! Pages of one thing: an object with its chain, its live form and its log; and the plan of an application.
//!
//! Invariant: values of Secrets are never shown; what is live is read with the node's own door, at the moment it is asked for.

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Facts;
use crate::html::Html;
use crate::page::{encoded, object_link, place};

/// A log that does not come by then is left out.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lines of a log that are shown.
const LOG_LINES: u32 = 200;

/// What is read for the page of an object.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// As YAML.
    pub(crate) live: Option<String>,
    /// Container and its last lines.
    pub(crate) logs: Vec<(String, String)>,
}

/// Reads the live form, and of a pod its logs.
pub(crate) async fn read(door: &kube::Client, told: &Value) -> Found {
    let text = |name: &str| told["object"][name].as_str().unwrap_or_default();
    let (group, kind) = (text("group"), text("kind"));
    let Some(row) = api::kinds::kinds().iter().find(|row| row.group == group && row.kind == kind) else {
        return Found::default();
    };
    let (namespace, name) = (encoded(text("namespace")), encoded(text("name")));
    let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    let inside = if row.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
    let path = format!("{root}/{}{inside}/{}/{name}", row.version, row.plural);
    let Ok(request) = Request::get(&path).body(Vec::new()) else { return Found::default() };
    let Ok(live) = door.request::<Value>(request).await else { return Found::default() };
    let mut found = Found { live: serde_yaml::to_string(&shown(&live, kind)).ok(), logs: Vec::new() };
    if kind == "Pod" {
        for container in containers(&live) {
            let path = format!(
                "{path}/log?container={}&tailLines={LOG_LINES}&limitBytes=262144",
                encoded(&container)
            );
            let Ok(request) = Request::get(path).body(Vec::new()) else { continue };
            if let Ok(Ok(text)) = tokio::time::timeout(PATIENCE, door.request_text(request)).await {
                found.logs.push((container, text));
            }
        }
    }
    found
}

fn containers(pod: &Value) -> Vec<String> {
    let lists = ["initContainers", "containers"].iter().filter_map(|list| pod["spec"][*list].as_array());
    lists.flatten().filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
}

/// An object as people want to see it.
fn shown(live: &Value, kind: &str) -> Value {
    let mut live = live.clone();
    if let Some(meta) = live.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    if kind == "Secret" {
        for field in ["data", "stringData"] {
            if let Some(values) = live.get_mut(field).and_then(Value::as_object_mut) {
                values.values_mut().for_each(|value| *value = json!("(not shown)"));
            }
        }
        if let Some(annotations) = live["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    live
}

/// The page of one object.
pub(crate) fn object(told: &Value, found: &Found, node: &Facts, now: Timestamp) -> String {
    let text = |name: &str| told["object"][name].as_str().unwrap_or_default();
    let title = match text("namespace") {
        "" => format!("{} {}", text("kind"), text("name")),
        namespace => format!("{} {namespace}/{}", text("kind"), text("name")),
    };
    framed(&title, node, now, |html| {
        html.raw("<h1>").text(&title).raw("</h1><section><h2>Why it is as it is</h2><p class=\"cause\">");
        html.text(told["summary"].as_str().unwrap_or_default()).raw("</p>");
        chain(html, told);
        html.raw("</section>");
        for (container, log) in &found.logs {
            html.raw("\n<section><h3>Log of container ").text(container).raw("</h3>");
            match log.is_empty() {
                true => html.raw("<p class=\"none\">It wrote nothing.</p></section>"),
                false => html.raw("<pre>").text(log).raw("</pre></section>"),
            };
        }
        if let Some(live) = &found.live {
            html.raw("\n<section><h3>Live</h3><pre>").text(live).raw("</pre></section>");
        }
    })
}

fn chain(html: &mut Html, told: &Value) {
    html.raw("<ol class=\"chain\">");
    for link in told["links"].as_array().into_iter().flatten() {
        let (class, sign) = match link["state"].as_str() {
            Some("ok") => ("ok", "✓"),
            Some("wait") => ("wait", "◌"),
            Some("bad") => ("bad", "✗"),
            _ => ("soft", "·"),
        };
        html.raw("\n<li class=\"d");
        html.text(&link["depth"].as_u64().unwrap_or(0).min(8).to_string())
            .raw("\"><span class=\"")
            .raw(class)
            .raw("\">");
        html.raw(sign).raw("</span> <b>").text(link["what"].as_str().unwrap_or_default()).raw("</b> ");
        html.text(link["says"].as_str().unwrap_or_default());
        let lines: Vec<&str> =
            link["lines"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !lines.is_empty() {
            html.raw("<pre>").text(&lines.join("\n")).raw("</pre>");
        }
        html.raw("</li>");
    }
    html.raw("</ol>");
}

/// The page of a plan.
pub(crate) fn plan(plan: &Value, node: &Facts, now: Timestamp) -> String {
    let name = plan["application"].as_str().unwrap_or_default();
    let changes: Vec<&Value> = plan["changes"].as_array().into_iter().flatten().collect();
    framed(&format!("Plan of {name}"), node, now, |html| {
        html.raw("<h1>Plan of ").text(name).raw("</h1><section>");
        let waits = plan["waits"].as_str().unwrap_or_default();
        if !waits.is_empty() {
            html.raw("<p class=\"wait\">").text(waits).raw("</p>");
        }
        for hook in plan["hooks"].as_array().into_iter().flatten() {
            html.raw("<p>► ").text(&title(&hook["object"])).raw(" runs as a ");
            html.text(hook["phase"].as_str().unwrap_or_default()).raw(" hook</p>");
        }
        if changes.is_empty() {
            html.raw("<p class=\"ok\">Nothing to do: live is what the files say.</p>");
        }
        html.raw("</section>");
        changes.iter().for_each(|known| change(html, known));
    })
}

fn title(id: &Value) -> String {
    let text = |name: &str| id[name].as_str().unwrap_or_default();
    match text("namespace") {
        "" => format!("{} {}", text("kind"), text("name")),
        namespace => format!("{} {namespace}/{}", text("kind"), text("name")),
    }
}

fn change(html: &mut Html, change: &Value) {
    let (class, word) = match change["kind"].as_str() {
        Some("create") => ("state ok", "+ created"),
        Some("change") => ("state wait", "~ changed"),
        Some("recreate") => ("state bad", "± deleted and made anew"),
        Some("prune") => ("state bad", "- pruned"),
        Some("hold") => ("state", "= kept"),
        _ => ("state bad", "! cannot be applied"),
    };
    let id = &change["object"];
    let text = |name: &str| id[name].as_str().unwrap_or_default();
    html.raw("\n<section><div class=\"top\"><h3>");
    object_link(html, text("kind"), text("namespace"), text("name"), &title(id));
    html.raw("</h3><span class=\"").raw(class).raw("\">").raw(word).raw("</span><span class=\"soft from\">");
    let line = u32::try_from(change["line"].as_u64().unwrap_or(0)).unwrap_or(0);
    html.text(&place(change["file"].as_str().unwrap_or_default(), line, 0)).raw("</span></div>");
    let reason = change["reason"].as_str().unwrap_or_default();
    if !reason.is_empty() {
        html.raw("<p>").text(reason).raw("</p>");
    }
    for effect in change["effects"].as_array().into_iter().flatten() {
        let bad = matches!(effect["kind"].as_str(), Some("data" | "no-room" | "refused"));
        html.raw(if bad { "<p class=\"bad\">! " } else { "<p>→ " });
        html.text(effect["message"].as_str().unwrap_or_default());
        let pods: Vec<&str> =
            effect["pods"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !pods.is_empty() {
            html.raw(" <span class=\"soft\">").text(&pods.join(" → ")).raw("</span>");
        }
        html.raw("</p>");
    }
    // All of what is made would be a field: its file shows it better.
    let whole = change["kind"] == "create";
    let fields: Vec<&Value> = change["fields"].as_array().into_iter().flatten().filter(|_| !whole).collect();
    if !fields.is_empty() {
        html.raw("<table class=\"diff\"><thead><tr><th>Field<th>Live<th>Wanted</tr></thead><tbody>");
        for field in fields {
            html.raw("\n<tr><td data-label=\"Field\"><code>")
                .text(field["path"].as_str().unwrap_or_default());
            html.raw("</code></td><td class=\"old\" data-label=\"Live\">");
            value(html, &field["old"]);
            html.raw("</td><td class=\"new\" data-label=\"Wanted\">");
            value(html, &field["new"]);
            html.raw("</td></tr>");
        }
        html.raw("</tbody></table>");
    }
    html.raw("</section>");
}

fn value(html: &mut Html, value: &Value) {
    match value {
        Value::Null => {}
        Value::String(text) => {
            html.text(text);
        }
        other => {
            html.text(&other.to_string());
        }
    }
}

fn framed(title: &str, node: &Facts, now: Timestamp, body: impl FnOnce(&mut Html)) -> String {
    let mut html = Html::default();
    html.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>")
        .text(title)
        .raw(" · holdfast</title>\n<link rel=\"icon\" href=\"data:,\">\n<link rel=\"stylesheet\" href=\"/style.css\">\n")
        .raw("</head>\n<body>\n<header><strong><a href=\"/\">holdfast</a></strong> <span>")
        .text(&node.name)
        .raw("</span> <span id=\"live\">as of ")
        .text(&now.strftime("%H:%M:%S UTC").to_string())
        .raw("</span></header>\n<main>");
    body(&mut html);
    html.raw("</main>\n</body>\n</html>\n");
    html.finish()
}
