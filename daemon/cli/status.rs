//! `holdfast status`: every application and object, and what is wrong.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use serde_json::Value;

use super::ask::{At, CliError};
use super::ink::{Cell, Ink, Tone, ago, plain, short, tone};

/// More applications than these are told worst first, and those that are well in one line each.
const FEW: usize = 4;
/// Applications that the conclusion names.
const NAMED: usize = 8;

/// Prints the status; succeeds only when everything is in sync and healthy.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn run(at: &At, json: bool, wait: Option<Duration>, ink: Ink) -> Result<ExitCode, CliError> {
    let document = match wait {
        Some(time) => wait_ready(at, time).await?,
        None => at.get("/status").await?,
    };
    if json {
        println!("{document:#}");
    } else {
        print!("{}", render(&document, ink, Timestamp::now()));
    }
    Ok(if is_ready(&document) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether everything is in sync and healthy.
pub(crate) fn is_ready(document: &Value) -> bool {
    document["ready"] == true
}

/// Follows the changes until everything is well or the time is over; the last document. What is waited for goes to
/// standard error, once per change.
async fn wait_ready(at: &At, time: Duration) -> Result<Value, CliError> {
    let mut updates = at.updates().await?;
    let over = tokio::time::sleep(time);
    tokio::pin!(over);
    let mut last = None;
    let mut told = BTreeSet::new();
    loop {
        let next = tokio::select! {
            biased;
            // Cancel-safe: a stream keeps what it has not given.
            next = updates.next() => next,
            () = &mut over => break,
        };
        let Some(document) = next else { return Err(CliError::Stopped { page: at.page() }) };
        let waits = waits(&document);
        for line in waits.difference(&told) {
            eprintln!("waiting: {line}");
        }
        let ready = is_ready(&document);
        (told, last) = (waits, Some(document));
        if ready {
            break;
        }
    }
    match last {
        Some(document) => Ok(document),
        None => at.get("/status").await,
    }
}

/// What is not there yet, a line each.
pub(crate) fn waits(document: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for app in applications(document) {
        let status = &app["status"];
        for object in list(&status["objects"]).filter(|object| !is_well(object)) {
            let why = why(object);
            let why = if why.is_empty() { why } else { format!(": {why}") };
            lines.insert(format!(
                "{} {}, {}{why}",
                title(object),
                text(&object["sync"]),
                text(&object["health"]["code"])
            ));
        }
        for defect in list(&status["defects"]) {
            lines.insert(format!("{}: {}", place(defect), text(&defect["message"])));
        }
        if lines.is_empty() && !is_good(app) {
            let why = text(&status["sync"]["message"]);
            let why = if why.is_empty() { "was not looked at yet".to_owned() } else { why };
            lines.insert(format!("application {}: {why}", text(&app["name"])));
        }
    }
    lines
}

/// The whole status as text.
pub(crate) fn render(document: &Value, ink: Ink, now: Timestamp) -> String {
    let node = &document["node"];
    let up = ago(node["uptimeSeconds"].as_i64().unwrap_or_default());
    let mut out = format!(
        "{} {} · holdfast {} · up {up} · {}\n",
        ink.paint(Tone::Soft, "node"),
        ink.paint(Tone::Strong, &text(&node["name"])),
        text(&node["version"]),
        text(&node["page"]),
    );
    for line in list(&node["missing"]) {
        out.push_str(&format!("{} {}\n", ink.paint(Tone::Wait, "not isolated fully:"), text(line)));
    }
    let all: Vec<&Value> = applications(document).collect();
    let (well, mut troubled): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|app| is_good(app));
    if all.len() > FEW {
        troubled.sort_by_key(|app| is_failing(app) == Failing::No);
        out.push_str(&format!("{}\n", counts(&troubled, all.len())));
        for app in troubled {
            out.push('\n');
            out.push_str(&application(app, ink, now));
        }
        out.push_str(&brief(&well, ink));
    } else {
        for app in all {
            out.push('\n');
            out.push_str(&application(app, ink, now));
        }
    }
    for app in list(&document["applications"]).filter(|app| app["followed"] == false) {
        let line =
            format!("application {} is no longer declared: what it made is left alone", text(&app["name"]));
        out.push_str(&format!("\n{}\n", ink.paint(Tone::Wait, &line)));
    }
    out.push('\n');
    out.push_str(&conclusion(document, ink));
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Yes,
    No,
}

/// Whether somebody has to do something, rather than wait.
fn is_failing(app: &Value) -> Failing {
    let status = &app["status"];
    let words = [text(&status["sync"]["state"]), text(&status["health"]["code"])];
    let bad = words.iter().any(|word| tone(word) == Tone::Bad) || list(&status["defects"]).next().is_some();
    if bad { Failing::Yes } else { Failing::No }
}

/// `50 applications: 3 failing, 2 waiting, 45 in sync and healthy`.
fn counts(troubled: &[&Value], all: usize) -> String {
    let failing = troubled.iter().filter(|app| is_failing(app) == Failing::Yes).count();
    let parts = [
        (failing, "failing"),
        (troubled.len() - failing, "waiting"),
        (all - troubled.len(), "in sync and healthy"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    format!("{all} applications: {}", parts.join(", "))
}

/// What is well is one line each.
fn brief(well: &[&Value], ink: Ink) -> String {
    if well.is_empty() {
        return String::new();
    }
    let mut rows = vec![header(&["IN SYNC AND HEALTHY", "OBJECTS", "REVISION", "COMMIT"])];
    rows.extend(well.iter().map(|app| {
        let (status, source) = (&app["status"], &app["status"]["source"]);
        let subject = source["commitMessage"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
        vec![
            Cell::new(Tone::Ok, &format!("✓ {}", text(&app["name"]))),
            Cell::new(Tone::Plain, &list(&status["objects"]).count().to_string()),
            Cell::new(Tone::Soft, &short(source["revision"].as_str().unwrap_or_default())),
            Cell::new(Tone::Soft, subject),
        ]
    }));
    format!("\n{}", ink.table(&rows, 3))
}

/// The command that tells all there is to know of the first object that is not well.
fn way_in(status: &Value) -> Option<String> {
    let degraded = |object: &&Value| tone(&text(&object["health"]["code"])) == Tone::Bad;
    let object = list(&status["objects"]).find(degraded)?;
    let (kind, name, namespace) = (text(&object["kind"]), text(&object["name"]), text(&object["namespace"]));
    let inside = match namespace.as_str() {
        "" | "default" => String::new(),
        namespace => format!(" -n {namespace}"),
    };
    Some(format!("holdfast explain {}/{name}{inside}", kind.to_lowercase()))
}

fn application(app: &Value, ink: Ink, now: Timestamp) -> String {
    let status = &app["status"];
    let (sync, health) = (&status["sync"], &status["health"]);
    let mut out = format!(
        "{}  {}  {}\n",
        ink.paint(Tone::Strong, &text(&app["name"])),
        ink.state(&text(&sync["state"])),
        ink.state(&text(&health["code"])),
    );
    out.push_str(&format!("  {}\n", ink.paint(Tone::Soft, &source(status, now))));
    let mut said = BTreeSet::new();
    for message in [text(&sync["message"]), text(&health["message"])] {
        if !message.is_empty() && said.insert(message.clone()) {
            out.push_str(&format!("  {message}\n"));
        }
    }
    let mut rows = vec![header(&["OBJECT", "SYNC", "HEALTH", "WHY", "FROM"])];
    rows.extend(list(&status["objects"]).map(|object| {
        vec![
            Cell::new(Tone::Plain, &title(object)),
            Cell::state(&text(&object["sync"])),
            Cell::state(&text(&object["health"]["code"])),
            Cell::new(Tone::Plain, &why(object)),
            Cell::new(Tone::Soft, &place(object)),
        ]
    }));
    if rows.len() > 1 {
        out.push_str(&ink.table(&rows, 3));
    }
    for found in list(&status["defects"]) {
        out.push('\n');
        out.push_str(&defect(found, ink));
    }
    if let Some(command) = way_in(status) {
        out.push_str(&format!("  {} {command}\n", ink.paint(Tone::Soft, "all there is to know:")));
    }
    for found in list(&status["advice"]) {
        let words = format!("{}: {} ({})", place(found), text(&found["message"]), text(&found["help"]));
        out.push_str(&format!("{} {words}\n", ink.paint(Tone::Wait, "notice:")));
    }
    out
}

/// The head of a table.
pub(crate) fn header(names: &[&str]) -> Vec<Cell> {
    names.iter().map(|name| Cell::new(Tone::Soft, name)).collect()
}

fn source(status: &Value, now: Timestamp) -> String {
    let source = &status["source"];
    let mut line = match text(&source["kind"]).as_str() {
        "git" => format!("git {} at {}", text(&source["location"]), text(&source["ref"])),
        "dir" => format!("directory {}", text(&source["location"])),
        _ => "source not read yet".to_owned(),
    };
    let revision = short(source["revision"].as_str().unwrap_or_default());
    if !revision.is_empty() {
        line.push_str(&format!(" · {revision}"));
    }
    let subject = source["commitMessage"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
    if !subject.is_empty() {
        line.push_str(&format!(" {:?} by {}", plain(subject), text(&source["author"])));
    }
    let changed = list(&status["conditions"])
        .filter_map(|c| c["lastTransitionTime"].as_str()?.parse::<Timestamp>().ok())
        .max();
    if let Some(at) = changed {
        line.push_str(&format!(" · so since {}", ago(now.duration_since(at).as_secs())));
    }
    line
}

/// A defect as a compiler would say it.
pub(crate) fn defect(defect: &Value, ink: Ink) -> String {
    let mut out = format!(
        "{} {}\n",
        ink.paint(Tone::Bad, "error:"),
        ink.paint(Tone::Strong, &text(&defect["message"]))
    );
    let place = place(defect);
    if !place.is_empty() {
        out.push_str(&format!("  {} {place}\n", ink.paint(Tone::Soft, "-->")));
    }
    let help = text(&defect["help"]);
    if !help.is_empty() {
        out.push_str(&format!("  {} {help}\n", ink.paint(Tone::Soft, "help:")));
    }
    out
}

/// One sentence on the whole.
pub(crate) fn conclusion(document: &Value, ink: Ink) -> String {
    let followed: Vec<&Value> = applications(document).collect();
    let not_yet: Vec<String> =
        followed.iter().filter(|app| !is_good(app)).map(|app| text(&app["name"])).collect();
    if is_ready(document) && followed.is_empty() {
        return "no application is declared: add one to the configuration\n".to_owned();
    }
    if is_ready(document) {
        return format!("{}\n", ink.paint(Tone::Ok, "✓ everything is in sync and healthy"));
    }
    let names = match not_yet.len() {
        0 => "the applications".to_owned(),
        some if some > NAMED => format!("{} and {} more", not_yet[..NAMED].join(", "), some - NAMED),
        _ => not_yet.join(", "),
    };
    format!("{}\n", ink.paint(Tone::Wait, &format!("◌ not there yet: {names}")))
}

/// The applications that this node follows.
pub(crate) fn applications(document: &Value) -> impl Iterator<Item = &Value> {
    list(&document["applications"]).filter(|app| app["followed"] != false)
}

/// Whether an application needs nothing.
pub(crate) fn is_good(app: &Value) -> bool {
    let status = &app["status"];
    status["sync"]["state"] == "Synced"
        && status["health"]["code"] == "Healthy"
        && list(&status["defects"]).next().is_none()
}

/// Whether an object needs nothing.
pub(crate) fn is_well(object: &Value) -> bool {
    object["sync"] == "Synced" && object["health"]["code"] == "Healthy"
}

/// `Deployment default/kubia`.
pub(crate) fn title(object: &Value) -> String {
    let (kind, namespace, name) = (text(&object["kind"]), text(&object["namespace"]), text(&object["name"]));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

/// Why an object is not as it should be.
pub(crate) fn why(object: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in [text(&object["message"]), text(&object["health"]["message"])] {
        if !part.is_empty() && !parts.contains(&part) {
            parts.push(part);
        }
    }
    let first = text(&object["waitsFor"]);
    if !first.is_empty() {
        parts.push(format!("waits for {first}"));
    }
    parts.join("; ")
}

/// `file:line:column`, as far as it is known.
pub(crate) fn place(of: &Value) -> String {
    let mut place = text(&of["file"]);
    for part in
        [&of["line"], &of["column"]].into_iter().map_while(|part| part.as_u64().filter(|number| *number > 0))
    {
        place.push_str(&format!(":{part}"));
    }
    place
}

/// The entries of a list, none when it is not there.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A string made plain; empty when there is none.
pub(crate) fn text(value: &Value) -> String {
    plain(value.as_str().unwrap_or_default())
}
