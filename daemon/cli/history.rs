//! `holdfast history`: every sync, what it did, how long each part took, how it ended.

use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::Value;

use super::ask::{At, CliError};
use super::ink::{Ink, Tone, ago, plain, short};
use super::status::{applications, list, text};

/// Prints the history, the newest first.
///
/// # Errors
/// When the node cannot be asked.
pub(crate) async fn run(
    at: &At,
    application: Option<&str>,
    json: bool,
    ink: Ink,
) -> Result<ExitCode, CliError> {
    let document = at.get("/status").await?;
    let wanted = |app: &&Value| application.is_none_or(|name| app["name"] == name);
    let found: Vec<&Value> = applications(&document).filter(wanted).collect();
    if let (true, Some(name)) = (found.is_empty(), application) {
        let message = format!("there is no application {name}; `holdfast status` lists them");
        return Err(CliError::Refused { status: 404, message });
    }
    if json {
        let all: Value = found
            .iter()
            .map(|app| serde_json::json!({"application": app["name"], "history": app["status"]["history"]}))
            .collect();
        println!("{all:#}");
    } else {
        found.iter().for_each(|app| print!("{}", render(app, ink, Timestamp::now())));
    }
    Ok(ExitCode::SUCCESS)
}

/// One application's history as text.
pub(crate) fn render(app: &Value, ink: Ink, now: Timestamp) -> String {
    let status = &app["status"];
    let mut out = format!("{}\n", ink.paint(Tone::Strong, &text(&app["name"])));
    let entries: Vec<&Value> = list(&status["history"]).collect();
    if entries.is_empty() {
        out.push_str("  nothing was synced yet\n");
    }
    for entry in entries.iter().rev() {
        out.push_str(&one(entry, status, ink, now));
    }
    for known in list(&status["decisions"]["quarantined"]) {
        let line = format!(
            "  in quarantine: {}, {}",
            short(known["revision"].as_str().unwrap_or_default()),
            text(&known["reason"])
        );
        out.push_str(&format!("{}\n", ink.paint(Tone::Wait, &line)));
    }
    out
}

fn one(entry: &Value, status: &Value, ink: Ink, now: Timestamp) -> String {
    let revision = entry["revision"].as_str().unwrap_or_default();
    let held = status["sync"]["revision"] == revision;
    let mut out = format!("{} {}", if held { "●" } else { " " }, ink.paint(Tone::Strong, &short(revision)));
    let subject = entry["message"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
    if !subject.is_empty() {
        out.push_str(&format!(" {}", plain(subject)));
    }
    let author = text(&entry["author"]);
    if !author.is_empty() {
        out.push_str(&ink.paint(Tone::Soft, &format!(" by {author}")));
    }
    if let Some(at) = entry["startedAt"].as_str().and_then(|at| at.parse::<Timestamp>().ok()) {
        out.push_str(&ink.paint(Tone::Soft, &format!(", {} ago", ago(now.duration_since(at).as_secs()))));
    }
    let trigger = text(&entry["trigger"]);
    if !trigger.is_empty() {
        out.push_str(&format!(" ({trigger})"));
    }
    out.push('\n');
    let result = text(&entry["result"]);
    let tone = match result.as_str() {
        "Healthy" => Tone::Ok,
        "" | "Superseded" => Tone::Wait,
        _ => Tone::Bad,
    };
    let result = if result.is_empty() { "going on".to_owned() } else { result };
    out.push_str(&format!("    {}", ink.paint(tone, &result)));
    let did: Vec<String> =
        [("created", "created"), ("changed", "changed"), ("pruned", "pruned"), ("failed", "failed")]
            .iter()
            .filter_map(|(name, word)| {
                Some(format!("{} {word}", entry["did"][*name].as_u64().filter(|n| *n > 0)?))
            })
            .collect();
    if !did.is_empty() {
        out.push_str(&format!(" · {}", did.join(", ")));
    }
    let phases: Vec<String> = list(&entry["phases"])
        .filter_map(|phase| {
            Some(format!(
                "{} {}",
                text(&phase["name"]),
                took(phase["milliseconds"].as_u64().filter(|ms| *ms > 0)?)
            ))
        })
        .collect();
    if !phases.is_empty() {
        out.push_str(&ink.paint(Tone::Soft, &format!(" · {}", phases.join(", "))));
    }
    out.push('\n');
    for object in list(&entry["objects"]).take(12) {
        let message = text(&object["message"]);
        let message = if message.is_empty() { message } else { format!(": {message}") };
        let line = format!("    {} {}{message}", text(&object["did"]), text(&object["object"]));
        out.push_str(&format!("{line} {}\n", ink.paint(Tone::Soft, &text(&object["from"]))));
    }
    let more = list(&entry["objects"]).count().saturating_sub(12);
    if more > 0 {
        out.push_str(&format!("    and {more} more (--json shows all)\n"));
    }
    out
}

fn took(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        more => format!("{} min", more / 60_000),
    }
}
