//! `holdfast confirm`, `approve`, `rollback`, `resume`, `undo`: what a person decides.

use std::process::ExitCode;

use jiff::Timestamp;

use super::ask::{At, CliError};
use super::ink::{Cell, Ink, Tone, ago, short};
use super::status::{header, list, place, text, title};

/// Tells the node; prints what it did.
///
/// # Errors
/// When the node cannot be asked, or has nothing to decide.
pub(crate) async fn run(
    at: &At,
    path: &str,
    application: Option<&str>,
    more: &[(&str, String)],
) -> Result<ExitCode, CliError> {
    let mut url = at.url(path, application);
    for (name, value) in more {
        url.query_pairs_mut().append_pair(name, value);
    }
    let answer = at.ask(at.client()?.post(url)).await?;
    println!("{}: {}", text(&answer["application"]), text(&answer["message"]));
    println!("follow it with `holdfast status --wait 60`");
    Ok(ExitCode::SUCCESS)
}

/// Lists what can be brought back.
///
/// # Errors
/// When the node cannot be asked, or knows no such application.
pub(crate) async fn pruned(at: &At, application: &str, ink: Ink) -> Result<ExitCode, CliError> {
    let found = at.ask(at.client()?.get(at.url("/pruned", Some(application)))).await?;
    print!("{}", render(&found, ink, Timestamp::now()));
    Ok(ExitCode::SUCCESS)
}

fn render(found: &serde_json::Value, ink: Ink, now: Timestamp) -> String {
    let mut rows = vec![header(&["PRUNED", "OBJECT", "BY", "WAS IN"])];
    rows.extend(list(found).map(|known| {
        let at = known["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let at = at.map(|at| format!("{} ago", ago(now.duration_since(at).as_secs()))).unwrap_or_default();
        vec![
            Cell::new(Tone::Soft, &at),
            Cell::new(Tone::Strong, &title(&known["object"])),
            Cell::new(Tone::Plain, &short(known["revision"].as_str().unwrap_or_default())),
            Cell::new(Tone::Soft, &place(known)),
        ]
    }));
    match rows.len() {
        1 => "nothing was pruned in the last seven days\n".to_owned(),
        _ => ink.table(&rows, 1),
    }
}
