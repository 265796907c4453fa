//! `holdfast explain`: one causal chain, from the commit to the last log lines.

use std::process::ExitCode;

use serde_json::Value;

use super::ask::{At, CliError};
use super::ink::{Ink, Tone, plain};
use super::status::{list, text, title};

/// Prints the chain; succeeds when all of it is well.
///
/// # Errors
/// When the node cannot be asked, or knows no such object.
pub(crate) async fn run(
    at: &At,
    object: &str,
    namespace: &str,
    json: bool,
    ink: Ink,
) -> Result<ExitCode, CliError> {
    let Some((kind, name)) =
        object.split_once('/').filter(|(kind, name)| !kind.is_empty() && !name.is_empty())
    else {
        let message = format!("{object:?} names no object: write it as kind/name, deployment/web say");
        return Err(CliError::Refused { status: 400, message });
    };
    let mut url = at.url("/explain", None);
    url.query_pairs_mut()
        .append_pair("kind", kind)
        .append_pair("name", name)
        .append_pair("namespace", namespace);
    let told = at.ask(at.client()?.get(url)).await?;
    if json {
        println!("{told:#}");
    } else {
        print!("{}", render(&told, ink));
    }
    let well = list(&told["links"]).all(|link| matches!(link["state"].as_str(), Some("ok" | "note")));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The chain as text.
pub(crate) fn render(told: &Value, ink: Ink) -> String {
    let mut out = format!("{}\n", ink.paint(Tone::Strong, &title(&told["object"])));
    out.push_str(&format!("{}\n\n", text(&told["summary"])));
    for link in list(&told["links"]) {
        let depth = usize::try_from(link["depth"].as_u64().unwrap_or(0)).unwrap_or(0);
        let (sign, tone) = match link["state"].as_str() {
            Some("ok") => ("✓", Tone::Ok),
            Some("wait") => ("◌", Tone::Wait),
            Some("bad") => ("✗", Tone::Bad),
            _ => ("·", Tone::Soft),
        };
        let indent = "  ".repeat(depth);
        let says = text(&link["says"]);
        let says = if says.is_empty() { says } else { format!("  {says}") };
        out.push_str(&format!("{indent}{} {}{says}\n", ink.paint(tone, sign), text(&link["what"])));
        for line in list(&link["lines"]) {
            let line = plain(line.as_str().unwrap_or_default());
            out.push_str(&format!("{indent}    {}\n", ink.paint(Tone::Soft, &format!("│ {line}"))));
        }
    }
    out
}
