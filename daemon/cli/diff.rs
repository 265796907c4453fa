//! `holdfast diff`: what a sync would change, field by field.

use std::process::ExitCode;

use serde_json::Value;

use super::ask::{At, CliError};
use super::ink::{Ink, Tone, plain, short};
use super::status::{defect, list, place, text, title};

/// Prints the differences; succeeds only when there are none.
///
/// # Errors
/// When the node cannot be asked, or knows no such application.
pub(crate) async fn run(
    at: &At,
    application: Option<&str>,
    json: bool,
    ink: Ink,
) -> Result<ExitCode, CliError> {
    let client = at.client()?;
    let request = client.get(at.url("/diff", application));
    let diffs = at.ask(request).await?;
    if json {
        println!("{diffs:#}");
    } else {
        print!("{}", render(&diffs, ink));
    }
    Ok(if is_empty(&diffs) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_empty(diffs: &Value) -> bool {
    let none = |value: &Value| list(value).next().is_none();
    list(diffs).all(|diff| none(&diff["changes"]) && none(&diff["defects"]) && diff["error"].is_null())
}

/// The differences as text.
pub(crate) fn render(diffs: &Value, ink: Ink) -> String {
    let mut out = String::new();
    for diff in list(diffs) {
        let name = ink.paint(Tone::Strong, &text(&diff["application"]));
        if diff["error"].is_string() {
            out.push_str(&format!("{name}: {} {}\n", ink.paint(Tone::Bad, "error:"), text(&diff["error"])));
            continue;
        }
        let revision = short(diff["revision"].as_str().unwrap_or_default());
        let changes = list(&diff["changes"]).count();
        let word = match changes {
            0 => "live is what the files say".to_owned(),
            1 => "1 object would change".to_owned(),
            more => format!("{more} objects would change"),
        };
        out.push_str(&format!("{name} at {revision}: {word}\n"));
        list(&diff["changes"]).for_each(|change| out.push_str(&render_change(change, ink)));
        for found in list(&diff["defects"]) {
            out.push('\n');
            out.push_str(&defect(found, ink));
        }
    }
    out
}

/// One change and its fields.
pub(crate) fn render_change(change: &Value, ink: Ink) -> String {
    let (sign, word, tone) = match text(&change["kind"]).as_str() {
        "create" => ("+", "created", Tone::Ok),
        "change" => ("~", "changed", Tone::Wait),
        "recreate" => ("±", "deleted and made anew", Tone::Bad),
        "prune" => ("-", "pruned", Tone::Bad),
        "hold" => ("=", "kept", Tone::Soft),
        _ => ("!", "cannot be applied", Tone::Bad),
    };
    let from = place(change);
    let from = if from.is_empty() { from } else { ink.paint(Tone::Soft, &format!("  {from}")) };
    let mut out =
        format!("\n{} {}{from}\n", ink.paint(tone, &format!("{sign} {}", title(&change["object"]))), word);
    let reason = text(&change["reason"]);
    if !reason.is_empty() {
        out.push_str(&format!("    {reason}\n"));
    }
    for field in list(&change["fields"]) {
        let line = match (value(&field["old"]), value(&field["new"])) {
            (Some(old), Some(new)) => {
                format!("{} → {}", ink.paint(Tone::Bad, &old), ink.paint(Tone::Ok, &new))
            }
            (None, Some(new)) => ink.paint(Tone::Ok, &format!("+ {new}")),
            (Some(old), None) => ink.paint(Tone::Bad, &format!("- {old}")),
            (None, None) => continue,
        };
        out.push_str(&format!("    {}: {line}\n", text(&field["path"])));
    }
    out
}

fn value(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| plain(&value.to_string()))
}
