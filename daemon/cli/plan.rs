//! `holdfast plan`: what a sync will do, to the files and to what runs.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use super::ask::{At, CliError};
use super::diff::render_change;
use super::ink::{Ink, Tone, short};
use super::status::{defect, list, place, text, title};

/// Prints the plans; succeeds when nothing in them fails.
///
/// # Errors
/// When the node cannot be asked, or knows no such application.
pub(crate) async fn run(
    at: &At,
    application: Option<&str>,
    json: bool,
    ink: Ink,
) -> Result<ExitCode, CliError> {
    let plans = at.ask(at.client()?.get(at.url("/diff", application))).await?;
    Ok(show(&plans, json, ink))
}

/// Prints plans; succeeds when nothing in them fails.
pub(crate) fn show(plans: &Value, json: bool, ink: Ink) -> ExitCode {
    if json {
        println!("{plans:#}");
    } else {
        print!("{}", render(plans, ink));
    }
    if is_sound(plans) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Saves what is live.
///
/// # Errors
/// When the node cannot be asked, or the file not be written.
pub(crate) async fn save(at: &At, file: &Path) -> Result<ExitCode, CliError> {
    let token = std::fs::read_to_string(&at.token).map_err(|source| CliError::Read {
        path: at.token.clone(),
        way_out: "all objects are for root alone: use sudo, and the node's own --config",
        source,
    })?;
    let request = at.client()?.get(at.url("/state", None)).bearer_auth(token.trim());
    let state = at.ask(request).await?;
    let failed =
        |source| CliError::Read { path: file.to_path_buf(), way_out: "it cannot be written", source };
    let mut opened = std::fs::OpenOptions::new();
    let mut opened = opened.create(true).write(true).truncate(true).mode(0o600).open(file).map_err(failed)?;
    opened.write_all(state.to_string().as_bytes()).map_err(failed)?;
    println!(
        "{} objects saved in {}, Secrets without their values",
        list(&state["objects"]).count(),
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Nothing is refused and nothing is wrong with the files.
pub(crate) fn is_sound(plans: &Value) -> bool {
    let fails = |change: &Value| {
        change["kind"] == "fail" || list(&change["effects"]).any(|effect| effect["kind"] == "refused")
    };
    list(plans).all(|plan| {
        plan["error"].is_null()
            && list(&plan["defects"]).next().is_none()
            && !list(&plan["changes"]).any(fails)
    })
}

/// The plans as text.
pub(crate) fn render(plans: &Value, ink: Ink) -> String {
    let mut out = String::new();
    for plan in list(plans) {
        let name = ink.paint(Tone::Strong, &text(&plan["application"]));
        if plan["error"].is_string() {
            out.push_str(&format!("{name}: {} {}\n", ink.paint(Tone::Bad, "error:"), text(&plan["error"])));
            continue;
        }
        out.push_str(&format!("{name}: {}\n", course(plan)));
        let waits = text(&plan["waits"]);
        if !waits.is_empty() {
            out.push_str(&format!("{}\n", ink.paint(Tone::Wait, &waits)));
        }
        for hook in list(&plan["hooks"]).filter(|hook| hook["phase"] == "pre-sync") {
            out.push_str(&render_hook(hook, ink));
        }
        for change in list(&plan["changes"]) {
            let mut change = change.clone();
            // All of what is made would be a field: its file shows it better.
            if change["kind"] == "create" {
                change["fields"] = Value::Null;
            }
            out.push_str(&render_change(&change, ink));
            list(&change["effects"]).for_each(|effect| out.push_str(&render_effect(effect, ink)));
        }
        for hook in list(&plan["hooks"]).filter(|hook| hook["phase"] != "pre-sync") {
            out.push_str(&render_hook(hook, ink));
        }
        for found in list(&plan["defects"]) {
            out.push('\n');
            out.push_str(&defect(found, ink));
        }
        out.push_str(&format!("\n{}\n", summary(plan)));
    }
    out
}

/// `abc1234 → def5678`.
fn course(plan: &Value) -> String {
    let (held, next) =
        (plan["held"].as_str().unwrap_or_default(), plan["revision"].as_str().unwrap_or_default());
    match held {
        "" => short(next),
        held if held == next => format!("at {}", short(next)),
        held => format!("{} → {}", short(held), short(next)),
    }
}

fn render_hook(hook: &Value, ink: Ink) -> String {
    let what = format!("► {}", title(&hook["object"]));
    format!(
        "\n{} {} hook  {}\n",
        ink.paint(Tone::Strong, &what),
        text(&hook["phase"]),
        ink.paint(Tone::Soft, &place(hook))
    )
}

fn render_effect(effect: &Value, ink: Ink) -> String {
    let kind = text(&effect["kind"]);
    let tone = match kind.as_str() {
        "data" | "no-room" | "refused" => Tone::Bad,
        "unseen" | "stop" | "image" => Tone::Wait,
        _ => Tone::Plain,
    };
    let sign = if tone == Tone::Bad { "!" } else { "→" };
    let mut out = format!("    {}\n", ink.paint(tone, &format!("{sign} {}", text(&effect["message"]))));
    let pods: Vec<String> = list(&effect["pods"]).map(text).collect();
    if !pods.is_empty() {
        let shown = pods.iter().take(8).cloned().collect::<Vec<String>>().join(", ");
        let more = if pods.len() > 8 { format!(" and {} more", pods.len() - 8) } else { String::new() };
        out.push_str(&format!("      {}\n", ink.paint(Tone::Soft, &format!("{shown}{more}"))));
    }
    out
}

fn summary(plan: &Value) -> String {
    let count = |kind: &str| list(&plan["changes"]).filter(|change| change["kind"] == kind).count();
    let words = [
        ("create", "to create"),
        ("change", "to change"),
        ("recreate", "to make anew"),
        ("prune", "to prune"),
        ("hold", "kept back"),
        ("fail", "refused"),
    ];
    let parts: Vec<String> = words
        .iter()
        .filter(|(kind, _)| count(kind) > 0)
        .map(|(kind, word)| format!("{} {word}", count(kind)))
        .collect();
    match parts.is_empty() {
        true => "nothing to do: live is what the files say".to_owned(),
        false => parts.join(", "),
    }
}
