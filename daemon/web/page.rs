//! The status page: a view drawn as HTML.
//!
//! Invariant: pure, and complete without JavaScript; state is told by a symbol and a word, colour only repeats it.

use jiff::Timestamp;

use crate::Facts;
use crate::html::Html;
use crate::overview::{self, Asked, FEW, verdict};
use crate::view::{Application, Pod, View};

/// Applications that the headline names.
const NAMED: usize = 8;
/// Revisions of an application that are shown.
const MOST_HISTORY: usize = 10;

/// The whole page.
pub(crate) fn document(view: &View, node: &Facts, asked: &Asked, now: Timestamp) -> String {
    let mut html = Html::default();
    html.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>")
        .text(&title(view, node))
        .raw("</title>\n<link rel=\"icon\" href=\"data:,\">\n<link rel=\"stylesheet\" href=\"/style.css\">\n")
        .raw("<script src=\"/live.js\" defer></script>\n</head>\n<body>\n<header><strong>holdfast</strong> <span>")
        .text(&node.name)
        .raw("</span> <span id=\"live\">as of ")
        .text(&now.strftime("%H:%M:%S UTC").to_string())
        .raw("</span></header>\n");
    if view.applications.len() > FEW {
        overview::search(&mut html, asked);
    }
    html.raw("<main aria-live=\"polite\">");
    draw(&mut html, view, node, asked, now);
    html.raw("</main>\n<footer>holdfast ")
        .text(&node.version)
        .raw(" · API <code>")
        .text(&node.api_address)
        .raw("</code> · kubeconfig <code>")
        .text(&node.kubeconfig)
        .raw("</code> · <a href=\"/status\">status as JSON</a> · <a href=\"/metrics\">metrics</a></footer>\n</body>\n</html>\n");
    html.finish()
}

/// What changes: the inside of `<main>`.
pub(crate) fn contents(view: &View, node: &Facts, asked: &Asked, now: Timestamp) -> String {
    let mut html = Html::default();
    draw(&mut html, view, node, asked, now);
    html.finish()
}

fn draw(html: &mut Html, view: &View, node: &Facts, asked: &Asked, now: Timestamp) {
    let tone = if view.ready { Tone::Ok } else { worst(view) };
    html.raw("<h1 data-title=\"").text(&title(view, node)).raw("\" class=\"").raw(tone.class()).raw("\">");
    html.raw(tone.symbol()).raw(" ").text(&headline(view)).raw("</h1>");
    for line in &node.missing {
        html.raw("\n<div class=\"defect\"><p><b>This machine cannot isolate fully</b></p><p>")
            .text(line)
            .raw("</p></div>");
    }
    let chosen = overview::chosen(view, asked);
    if !asked.application.is_empty() {
        html.raw("<p><a href=\"/\">← all applications</a></p>");
        if chosen.is_empty() {
            html.raw("<p class=\"none\">There is no application of this name.</p>");
        }
        chosen.iter().for_each(|app| application(html, app, now));
        return;
    }
    if view.applications.len() > FEW {
        overview::counts(html, view, asked);
        overview::tiles(html, &chosen, asked);
    }
    for app in overview::in_full(&chosen) {
        application(html, app, now);
    }
    services(html, view);
    machines(html, view, now);
    events(html, view, now);
}

fn title(view: &View, node: &Facts) -> String {
    let tone = if view.ready { Tone::Ok } else { worst(view) };
    format!("{} {} · holdfast", tone.symbol(), node.name)
}

fn headline(view: &View) -> String {
    let followed: Vec<&Application> = view.applications.iter().filter(|app| app.followed).collect();
    let not_yet: Vec<&str> =
        followed.iter().filter(|app| !app.read.is_good()).map(|app| app.name.as_str()).collect();
    match (view.ready, followed.len(), not_yet.len()) {
        (true, 0, _) => "No application is declared: add one to the configuration".to_owned(),
        (true, _, _) => "Everything is in sync and healthy".to_owned(),
        (false, _, 0) => "The applications are being read".to_owned(),
        (false, _, 1) => format!("{} is not there yet", not_yet[0]),
        (false, all, some) => {
            let more = if some > NAMED { format!(" and {} more", some - NAMED) } else { String::new() };
            let named = not_yet[..some.min(NAMED)].join(", ");
            format!("{some} of {all} applications are not there yet: {named}{more}")
        }
    }
}

fn worst(view: &View) -> Tone {
    if view.applications.iter().any(|app| verdict(app) == Tone::Bad) { Tone::Bad } else { Tone::Wait }
}

fn application(html: &mut Html, app: &Application, now: Timestamp) {
    let status = &app.read;
    html.raw("\n<section id=\"app-")
        .text(&encoded(&app.name))
        .raw("\"><div class=\"top\"><h2>")
        .text(&app.name)
        .raw("</h2>");
    state(html, &status.sync.state);
    state(html, &status.health.code);
    if app.followed {
        html.raw("<span class=\"acts\"><a class=\"button\" href=\"/plan?application=")
            .text(&encoded(&app.name));
        html.raw("\">Plan</a>");
        button(html, "/sync", app, "", "Sync now", "Look at the source and at everything live anew");
        html.raw("</span>");
    }
    html.raw("</div>");
    decisions(html, app);
    if !app.followed {
        html.raw("<p class=\"wait\">No longer declared in this node's configuration: what it made is left alone.</p>");
    }
    if status.sync.message != status.sync.waits_for {
        sentence(html, &status.sync.message);
    }
    if status.health.message != status.sync.message {
        sentence(html, &status.health.message);
    }
    facts(html, app, now);
    for defect in &status.defects {
        html.raw("\n<div class=\"defect\"><p><b>");
        html.text(&defect.message)
            .raw("</b></p><p><code>")
            .text(&place(&defect.file, defect.line, defect.column))
            .raw("</code>");
        if let Some(object) = &defect.object {
            html.raw(" · ").text(object);
        }
        html.raw("</p>");
        if !defect.help.is_empty() {
            html.raw("<p>Way out: ").text(&defect.help).raw("</p>");
        }
        html.raw("</div>");
    }
    objects(html, app);
    hooks(html, app);
    history(html, app, now);
    html.raw("</section>");
}

/// A form with one button. The path and words are ours.
fn button(
    html: &mut Html,
    path: &'static str,
    app: &Application,
    more: &str,
    word: &'static str,
    hint: &'static str,
) {
    html.raw("<form method=\"post\" action=\"").raw(path).raw("?application=").text(&encoded(&app.name));
    html.text(more).raw("\"><button title=\"").raw(hint).raw("\">").raw(word).raw("</button></form>");
}

/// What waits for a person's word, with the button that gives it.
fn decisions(html: &mut Html, app: &Application) {
    if !app.followed {
        return;
    }
    let status = &app.read;
    let waiting: Vec<&gitops::ObjectStatus> = status.objects.iter().filter(|object| object.confirm).collect();
    if !waiting.is_empty() {
        html.raw("\n<div class=\"ask\"><p><b>Waits for your word: what would go with it is lost</b></p><ul>");
        for object in &waiting {
            html.raw("<li>")
                .text(&object.id().to_string())
                .raw(" <span class=\"soft\">")
                .text(&object.message)
                .raw("</span></li>");
        }
        html.raw("</ul>");
        button(html, "/confirm", app, "", "Confirm the deletion", "Delete them");
        html.raw("</div>");
    }
    if let Some(pin) = &status.decisions.pinned {
        html.raw("\n<div class=\"ask\"><p><b>");
        html.raw(if pin.automatic { "Rolled back by the policy" } else { "Rolled back by hand" });
        html.raw("</b> to <code>")
            .text(short(&pin.revision))
            .raw("</code>; the next commit is tried by itself.</p>");
        for known in
            status.decisions.quarantined.iter().filter(|known| known.revision == status.source.revision)
        {
            html.raw("<p>In quarantine: <code>")
                .text(short(&known.revision))
                .raw("</code> ")
                .text(&known.reason)
                .raw("</p>");
        }
        button(html, "/resume", app, "", "Try the newest again", "End the rollback");
        html.raw("</div>");
    } else if !status.sync.waits_for.is_empty() {
        html.raw("\n<div class=\"ask\"><p>").text(&status.sync.waits_for).raw("</p>");
        if status.sync.waits_for.contains("holdfast approve") {
            button(html, "/approve", app, "", "Approve", "Let the newest revision through");
        }
        html.raw("</div>");
    }
}

fn hooks(html: &mut Html, app: &Application) {
    if app.read.hooks.is_empty() {
        return;
    }
    html.raw("<table><thead><tr><th>Hook<th>Phase<th>State<th>Why<th>From</tr></thead><tbody>");
    for hook in &app.read.hooks {
        html.raw("\n<tr><td data-label=\"Hook\">");
        object_link(html, &hook.kind, &hook.namespace, &hook.name, &hook.id().to_string());
        html.raw("</td>");
        cell(html, "<td class=\"short\" data-label=\"Phase\">", &hook.phase);
        html.raw("<td class=\"short\" data-label=\"State\">");
        state(html, &hook.state);
        html.raw("</td>");
        cell(html, "<td data-label=\"Why\">", &hook.message);
        cell(html, "<td class=\"from\" data-label=\"From\">", &place(&hook.file, hook.line, 0));
        html.raw("</tr>");
    }
    html.raw("</tbody></table>");
}

/// A link to the page of an object.
pub(crate) fn object_link(html: &mut Html, kind: &str, namespace: &str, name: &str, shown: &str) {
    html.raw("<a href=\"/object?kind=").text(&encoded(kind)).raw("&amp;namespace=").text(&encoded(namespace));
    html.raw("&amp;name=").text(&encoded(name)).raw("\">").text(shown).raw("</a>");
}

fn sentence(html: &mut Html, text: &str) {
    if !text.is_empty() {
        html.raw("<p>").text(text).raw("</p>");
    }
}

fn facts(html: &mut Html, app: &Application, now: Timestamp) {
    let (source, status) = (&app.read.source, &app.read);
    html.raw("<dl><dt>Source</dt><dd>").text(if source.kind == "dir" { "directory " } else { "Git " });
    html.raw("<code>").text(&source.location).raw("</code>");
    if !source.reference.is_empty() {
        html.raw(" at <code>").text(&source.reference).raw("</code>");
    }
    if let Some(path) = app.object.data.pointer("/spec/source/path").and_then(serde_json::Value::as_str) {
        html.raw(" in <code>").text(path).raw("</code>");
    }
    html.raw("</dd>");
    if !source.revision.is_empty() {
        html.raw("<dt>Revision</dt><dd><code>").text(short(&source.revision)).raw("</code> ");
        commit(html, &source.author, &source.commit_message);
        if !source.fetched_at.is_empty() {
            html.raw("<span class=\"soft\">· read ");
            since(html, source.fetched_at.parse().ok(), now);
            html.raw(" ago</span>");
        }
        html.raw("</dd>");
    }
    let conditions = status
        .conditions
        .iter()
        .filter(|condition| condition.kind == "Synced" || condition.kind == "Healthy");
    // As it is since the later of the two changed.
    if let Some(at) = conditions.filter_map(|condition| condition.last_transition_time.parse().ok()).max() {
        html.raw("<dt>So since</dt><dd>");
        since(html, Some(at), now);
        html.raw("</dd>");
    }
    html.raw("</dl>");
}

fn commit(html: &mut Html, author: &str, message: &str) {
    let subject = message.lines().next().unwrap_or_default();
    if !subject.is_empty() {
        html.text(subject).raw(" ");
    }
    if !author.is_empty() {
        html.raw("<span class=\"soft\">by ").text(author).raw("</span> ");
    }
}

fn objects(html: &mut Html, app: &Application) {
    if app.read.objects.is_empty() {
        html.raw("<p class=\"none\">No objects.</p>");
        return;
    }
    html.raw("<table><thead><tr><th>Kind<th>Namespace<th>Name<th>In sync<th>Health<th>Why<th>From</tr></thead><tbody>");
    for object in &app.read.objects {
        cell(html, "\n<tr><td class=\"short\" data-label=\"Kind\">", &object.kind);
        cell(html, "<td class=\"short\" data-label=\"Namespace\">", &object.namespace);
        html.raw("<td data-label=\"Name\">");
        object_link(html, &object.kind, &object.namespace, &object.name, &object.name);
        html.raw("</td><td class=\"short\" data-label=\"In sync\">");
        state(html, &object.sync);
        html.raw("</td><td class=\"short\" data-label=\"Health\">");
        state(html, &object.health.code);
        html.raw("</td>");
        html.raw("<td data-label=\"Why\">").text(&why(object));
        if !object.health.evidence.is_empty() {
            html.raw("<pre>").text(&object.health.evidence.join("\n")).raw("</pre>");
        }
        html.raw("</td>");
        cell(html, "<td class=\"from\" data-label=\"From\">", &place(&object.file, object.line, 0));
        html.raw("</tr>");
    }
    html.raw("</tbody></table>");
}

fn why(object: &gitops::ObjectStatus) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in [&object.message, &object.health.message] {
        if !part.is_empty() && !parts.contains(part) {
            parts.push(part.clone());
        }
    }
    if !object.waits_for.is_empty() {
        parts.push(format!("waits for {}", object.waits_for));
    }
    parts.join("; ")
}

fn history(html: &mut Html, app: &Application, now: Timestamp) {
    if app.read.history.is_empty() {
        return;
    }
    html.raw("<details id=\"history-").text(&app.name).raw("\"><summary>History</summary>");
    html.raw(
        "<table><thead><tr><th>Revision<th>Commit<th>Begun<th>Took<th>Did<th>Result<th></tr></thead><tbody>",
    );
    for entry in app.read.history.iter().rev().take(MOST_HISTORY) {
        html.raw("\n<tr><td class=\"short\" data-label=\"Revision\"><code>").text(short(&entry.revision));
        html.raw("</code></td><td data-label=\"Commit\">");
        commit(html, &entry.author, &entry.message);
        html.raw("</td><td class=\"short\" data-label=\"Begun\">");
        let begun: Option<Timestamp> = entry.started_at.parse().ok();
        let ended: Option<Timestamp> = entry.finished_at.parse().ok();
        html.raw("<span class=\"soft\">");
        since(html, begun, now);
        html.raw(" ago</span></td>");
        let took = begun.zip(ended).map(|(begun, ended)| took(ended.duration_since(begun).as_millis()));
        html.raw("<td class=\"short\" data-label=\"Took\"");
        let phases: Vec<String> = entry
            .phases
            .iter()
            .filter(|phase| phase.milliseconds > 0)
            .map(|phase| format!("{} {}", phase.name, self::took(i128::from(phase.milliseconds))))
            .collect();
        html.raw(" title=\"")
            .text(&phases.join(", "))
            .raw("\">")
            .text(&took.unwrap_or_default())
            .raw("</td>");
        html.raw("<td data-label=\"Did\">");
        did(html, entry);
        html.raw("</td>");
        html.raw("<td data-label=\"Result\">");
        let (word, rest) = entry.result.split_once(": ").unwrap_or((&entry.result, ""));
        state(html, if word.is_empty() { "Progressing" } else { word });
        html.raw(" ").text(rest);
        if !entry.trigger.is_empty() {
            html.raw(" <span class=\"soft\">").text(&entry.trigger).raw("</span>");
        }
        html.raw("</td><td class=\"short\">");
        if app.followed && entry.revision != app.read.sync.revision {
            let more = format!("&revision={}", encoded(&entry.revision));
            button(
                html,
                "/rollback",
                app,
                &more,
                "Roll back to it",
                "Self-healing goes on; the next commit is tried",
            );
        }
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table></details>");
}

/// What a sync did, counted; the objects at a closer look.
fn did(html: &mut Html, entry: &gitops::RevisionStatus) {
    let tally = &entry.did;
    let counts = [
        (tally.created, "created"),
        (tally.changed, "changed"),
        (tally.pruned, "pruned"),
        (tally.failed, "failed"),
    ];
    let words: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if words.is_empty() {
        return;
    }
    let lines: Vec<String> = entry
        .objects
        .iter()
        .map(|object| format!("{} {} {}", object.did, object.object, object.message))
        .collect();
    html.raw("<span title=\"").text(&lines.join("\n")).raw("\">").text(&words.join(", ")).raw("</span>");
}

fn services(html: &mut Html, view: &View) {
    html.raw("\n<section><h3>Services</h3>");
    if view.services.is_empty() {
        html.raw("<p class=\"none\">None.</p></section>");
        return;
    }
    html.raw("<table><thead><tr><th>Service<th>Type<th>Address<th>Ports<th>On every address of this machine</tr></thead><tbody>");
    for service in &view.services {
        cell(html, "\n<tr><td data-label=\"Service\">", &format!("{}/{}", service.namespace, service.name));
        cell(html, "<td data-label=\"Type\">", &service.kind);
        cell(html, "<td class=\"ip\" data-label=\"Address\">", &service.address);
        let ports: Vec<String> =
            service.ports.iter().map(|(port, protocol, _)| format!("{port}/{protocol}")).collect();
        let open: Vec<String> = service
            .ports
            .iter()
            .filter(|port| port.2 > 0)
            .map(|(_, protocol, node)| format!("{node}/{protocol}"))
            .collect();
        cell(html, "<td data-label=\"Ports\">", &ports.join(", "));
        cell(html, "<td data-label=\"Node ports\">", &open.join(", "));
        html.raw("</tr>");
    }
    html.raw("</tbody></table></section>");
}

fn machines(html: &mut Html, view: &View, now: Timestamp) {
    for node in &view.nodes {
        html.raw("\n<section><div class=\"top\"><h3>Node ").text(&node.name).raw("</h3>");
        state(html, if node.ready { "Ready" } else { "NotReady" });
        html.raw("<span class=\"soft ip\">").text(&node.address).raw("</span></div>");
        if !node.ready {
            sentence(html, &node.message);
        }
        pods(html, view.pods.iter().filter(|pod| pod.node == node.name).collect(), now);
        html.raw("</section>");
    }
    let known = |pod: &&Pod| !view.nodes.iter().any(|node| node.name == pod.node);
    let homeless: Vec<&Pod> = view.pods.iter().filter(known).collect();
    if !homeless.is_empty() {
        html.raw("\n<section><h3>Pods without a node</h3>");
        pods(html, homeless, now);
        html.raw("</section>");
    }
}

fn pods(html: &mut Html, pods: Vec<&Pod>, now: Timestamp) {
    if pods.is_empty() {
        html.raw("<p class=\"none\">No pods.</p>");
        return;
    }
    html.raw("<table><thead><tr><th>Pod<th>State<th>Ready<th>Restarts<th>Address<th>Age<th>Why</tr></thead><tbody>");
    for pod in pods {
        html.raw("\n<tr><td class=\"name\" data-label=\"Pod\">");
        object_link(html, "Pod", &pod.namespace, &pod.name, &format!("{}/{}", pod.namespace, pod.name));
        html.raw("</td>");
        html.raw("<td class=\"short\" data-label=\"State\">");
        let alive = pod.state == "Running" && pod.ready < pod.containers;
        toned(html, if alive { Tone::Wait } else { tone(&pod.state) }, &pod.state);
        html.raw("</td>");
        cell(
            html,
            "<td class=\"short\" data-label=\"Ready\">",
            &format!("{} of {}", pod.ready, pod.containers),
        );
        cell(html, "<td class=\"short\" data-label=\"Restarts\">", &pod.restarts.to_string());
        cell(html, "<td class=\"short ip\" data-label=\"Address\">", &pod.ip);
        html.raw("<td class=\"short\" data-label=\"Age\">");
        since(html, pod.since, now);
        html.raw("</td>");
        cell(html, "<td data-label=\"Why\">", &pod.message);
        html.raw("</tr>");
    }
    html.raw("</tbody></table>");
}

fn events(html: &mut Html, view: &View, now: Timestamp) {
    html.raw("\n<section><h3>Recent events</h3>");
    if view.events.is_empty() {
        html.raw("<p class=\"none\">None.</p></section>");
        return;
    }
    html.raw("<table><thead><tr><th>Ago<th>Reason<th>Object<th>Message</tr></thead><tbody>");
    for event in &view.events {
        html.raw("\n<tr><td class=\"short\" data-label=\"Ago\">");
        since(html, event.at, now);
        html.raw("</td><td class=\"short\" data-label=\"Reason\">");
        if event.warning {
            html.raw("<span class=\"state bad\">! ").text(&event.reason).raw("</span>");
        } else {
            html.text(&event.reason);
        }
        html.raw("</td>");
        cell(html, "<td data-label=\"Object\">", &event.object);
        let times = if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
        cell(html, "<td data-label=\"Message\">", &format!("{}{times}", event.message));
        html.raw("</tr>");
    }
    html.raw("</tbody></table></section>");
}

fn cell(html: &mut Html, open: &'static str, text: &str) {
    html.raw(open).text(text).raw("</td>");
}

/// How a state is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Ok,
    Wait,
    Bad,
    Dim,
}

impl Tone {
    pub(crate) fn class(self) -> &'static str {
        match self {
            Tone::Ok => "ok",
            Tone::Wait => "wait",
            Tone::Bad => "bad",
            Tone::Dim => "dim",
        }
    }

    fn symbol(self) -> &'static str {
        match self {
            Tone::Ok => "✓",
            Tone::Wait => "◌",
            Tone::Bad => "✗",
            Tone::Dim => "?",
        }
    }
}

pub(crate) fn tone(word: &str) -> Tone {
    match word {
        "Synced" | "Healthy" | "Running" | "Succeeded" | "Ready" | "Skipped" => Tone::Ok,
        "OutOfSync" | "Progressing" | "Pruning" | "Missing" | "Pending" | "ContainerCreating"
        | "PodInitializing" | "Terminating" | "Suspended" | "Superseded" | "Waiting" => Tone::Wait,
        "" | "Unknown" => Tone::Dim,
        // Degraded, Failed, NotReady and every reason for which a container does not run.
        _ => Tone::Bad,
    }
}

pub(crate) fn state(html: &mut Html, word: &str) {
    toned(html, tone(word), word);
}

fn toned(html: &mut Html, tone: Tone, word: &str) {
    html.raw("<span class=\"state ").raw(tone.class()).raw("\">").raw(tone.symbol()).raw(" ");
    html.text(if word.is_empty() { "Unknown" } else { word }).raw("</span>");
}

fn since(html: &mut Html, at: Option<Timestamp>, now: Timestamp) {
    if let Some(at) = at {
        html.raw("<time datetime=\"")
            .text(&at.to_string())
            .raw("\">")
            .text(&ago(now.duration_since(at).as_secs()))
            .raw("</time>");
    }
}

fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86400),
    }
}

fn took(milliseconds: i128) -> String {
    match milliseconds.max(0) {
        ms @ 0..1000 => format!("{ms} ms"),
        ms @ 1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        ms => ago(i64::try_from(ms / 1000).unwrap_or(i64::MAX)),
    }
}

/// A revision as people say it: seven digits of a hash, other names whole.
fn short(revision: &str) -> &str {
    let hash = revision.len() >= 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hash { &revision[..7] } else { revision }
}

pub(crate) fn place(file: &str, line: u32, column: u32) -> String {
    match (line, column) {
        (0, _) => file.to_owned(),
        (line, 0) => format!("{file}:{line}"),
        (line, column) => format!("{file}:{line}:{column}"),
    }
}

pub(crate) fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
